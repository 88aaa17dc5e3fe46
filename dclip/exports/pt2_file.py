"""``torch.export``: a graph that torch itself runs, without the code it was traced from."""

import json
import warnings
from pathlib import Path

import torch

from dclip.exports.export import Arrays, Export, Runner, traced

DESCRIPTION = "description.json"
"""Name of the description among the file's ``extra_files``."""


def write(export: Export, path: Path, name: str) -> None:
    """Write the graph with its description among its ``extra_files``.

    Args:
        export: What is written.
        path: Of the file, for now.
        name: What it will be called.
    """
    del name
    extra = {DESCRIPTION: json.dumps(export.description.to_json())}
    program = traced(export)
    with path.open("wb") as file, warnings.catch_warnings():  # by its name torch would refuse it
        # of weights with channels last, which it keeps as they are
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, file, extra_files=extra)


def read(path: Path, export: Export) -> Runner:
    """The file as torch runs it."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    names = [*export.description.outputs]

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            said = module(*(torch.from_numpy(array) for array in inputs.values()))
        return {name: value.numpy() for name, value in zip(names, said, strict=True)}

    return run
