"""ONNX: a graph that ONNX Runtime and many others run; needs the extra ``export``."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import onnxruntime
import torch

from dclip.exports.description import ExportError
from dclip.exports.export import Arrays, Export, Runner, traced
from dclip.words import first_line

MOST_BYTES = 1 << 30
"""Weights of more bytes go to a file of their own: one file of ONNX holds 2 GB at most."""


def write(export: Export, path: Path, name: str) -> None:
    """Write the graph with its description in ``metadata_props``.

    Args:
        export: What is written.
        path: Of the file, for now.
        name: What it will be called; large weights go beside it, to ``<name>.data``.

    Raises:
        ExportError: The graph has a step that ONNX has not.
    """
    program = traced(export)
    try:
        with warnings.catch_warnings(action="ignore"), _quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[*export.description.inputs],
                output_names=[*export.description.outputs],
            )
    except Exception as error:  # of any kind: of torch, onnxscript or onnx
        raise ExportError(
            f"{export.description.method} on {export.description.backbone} cannot be written as "
            f"ONNX: {first_line(error)}"
        ) from None
    assert made is not None
    model = made.model
    _clean(model)
    model.metadata_props.update(export.description.metadata())
    kept = [value.const_value for value in model.graph.initializers.values()]
    weights = sum(int(tensor.nbytes) for tensor in kept if tensor is not None)
    beside = f"{name}.data" if weights > MOST_BYTES else None
    onnx_ir.save(model, path, format="protobuf", external_data=beside)


def read(path: Path, export: Export) -> Runner:
    """The file as ONNX Runtime runs it on the CPU."""
    del export
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # the file has not its name yet
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nobody is told what the optimiser of graphs leaves as it is."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _clean(model: onnx_ir.Model) -> None:
    """The axis of images is called so, and nothing tells where the code lay that made the graph."""
    graph = model.graph
    for value in [*graph.inputs, *graph.outputs]:
        assert value.shape is not None
        value.shape = onnx_ir.Shape(["batch", *[*value.shape][1:]])
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in graph.initializers.values():
        value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()
