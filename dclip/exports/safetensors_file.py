"""safetensors: the tensors of a folded head, for a few lines of NumPy or of any other language."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from dclip.exports.description import ExportError
from dclip.exports.export import Arrays, Export, Runner
from dclip.exports.heads import FoldedHead, FrozenHead


def write(export: Export, path: Path, name: str) -> None:
    """Write the tensors with their description as the file's metadata.

    Args:
        export: What is written.
        path: Of the file, for now.
        name: What it will be called.

    Raises:
        ExportError: It is more than tensors.
    """
    del name
    head, description = export.head, export.description
    if description.what != "head":
        raise ExportError(
            "safetensors keeps tensors, and an image tower is more than that; take what=head, or "
            "the format onnx or pt2"
        )
    if not head.form:
        raise ExportError(
            f"{description.method} has no folded head, whose tensors alone say what it does; take "
            "the format onnx or pt2"
        )
    tensors = {name: value.contiguous() for name, value in head.named_buffers()}
    if isinstance(head, FoldedHead):
        tensors["local_scale"] = torch.tensor(head.local_scale)
        tensors["pooled_scale"] = torch.tensor(head.pooled_scale)
    elif isinstance(head, FrozenHead) and head.sigmoid is not None:
        tensors["logit_scale"] = torch.tensor(head.sigmoid.scale)
        tensors["logit_bias"] = torch.tensor(head.sigmoid.bias)
    # under one name: several would come in another order each time
    metadata = {"description": json.dumps(description.to_json())}
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def read(path: Path, export: Export) -> Runner:
    """The file by the formulas of `dclip.exports.heads`, in NumPy."""
    tensors = safetensors.numpy.load_file(path)
    description, form = export.description, export.head.form
    grid = description.outputs["maps"][2:]

    def run(inputs: Arrays) -> Arrays:
        local = inputs["local"]
        if form == "dclip":
            scores, maps = _dclip(tensors, local, description.include_global_token)
        else:
            places = local[:, 1:] if description.include_global_token else local
            maps = _unit(places) @ tensors["texts"].T
            cosines = _unit(inputs["embedding"]) @ tensors["texts"].T
            if "logit_scale" in tensors:
                scores = _sigmoid(tensors["logit_scale"] * cosines + tensors["logit_bias"])
            else:
                scores = _softmax(100 * cosines, axis=1)
        maps = maps.transpose(0, 2, 1).reshape(len(local), -1, *grid)
        return {"scores": scores, "maps": maps}

    return run


def _dclip(
    tensors: Arrays, local: np.ndarray, has_mean_token: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and the probability of each class at each location."""
    unit = _unit(local @ tensors["image_projector"].T)
    present, absent = (
        tensors["local_scale"] * (unit @ tensors[name].T) for name in ("presence", "absence")
    )
    pooled = [(_softmax(each, axis=1) * each).sum(1) for each in (present, absent)]
    scale, share, offset = (tensors[name] for name in ("pooled_scale", "share", "offset"))
    odds = scale * (pooled[0] - share * pooled[1]) + offset
    scores = _sigmoid(tensors.get("gain", 1) * odds + tensors.get("shift", 0))
    maps = _sigmoid(scale * (present - share * absent) + offset)
    return scores, maps[:, 1:] if has_mean_token else maps


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit


def _softmax(values: np.ndarray, axis: int) -> np.ndarray:
    weights = np.exp(values - values.max(axis, keepdims=True))
    shares: np.ndarray = weights / weights.sum(axis, keepdims=True)
    return shares


def _sigmoid(values: np.ndarray) -> np.ndarray:
    chances: np.ndarray = 1 / (1 + np.exp(-np.clip(values, -80, None)))
    return chances
