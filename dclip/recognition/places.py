"""What people name a model by, to the one file that holds it."""

import importlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dclip.checkpoints.origin import About, CheckpointError, read_about
from dclip.store.paths import RemotePath, as_path
from dclip.words import told

Which = Literal["newest", "best"]

MODEL_FILE = "model.safetensors"
"""A checkpoint in a folder that is shared, such as one of the Hub's."""

_MLFLOW = ("models:/", "runs:/", "mlflow-artifacts:/")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_SHARED = [MODEL_FILE, "config.json", "README.md"]


class NoModelError(CheckpointError):
    """There is no model at a place that was named."""


def find_model(place: str | Path, which: Which = "newest") -> Path:
    """The checkpoint at a place.

    Args:
        place: A checkpoint; a folder that `Recognizer.save` made; an output folder of the stages;
            any folder of checkpoints; an MLflow URI (``models:/name@best``, ``runs:/id/path``);
            ``hub-user/name``.
        which: Of an output folder: the checkpoint that was written last (of a method and its
            variants that were trained at once, the method), or the one with the highest mAP on the
            images that its training held out.

    Raises:
        NoModelError: There is none, or nothing says which one.
        CheckpointError: The file is damaged.
        OSError: Something has to be fetched and cannot be.
    """
    text = str(place)
    if text.startswith(_MLFLOW):
        return _in_folder(_of_mlflow(text), which, text)
    try:
        path = as_path(place)
    except ValueError as error:
        raise NoModelError(f"no model at {text}: {error}") from None
    if isinstance(path, RemotePath):
        raise NoModelError(f"{text} is a URL; copy the folder or file to this machine first")
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path, which, text)
    if isinstance(place, str) and _HUB.fullmatch(place) and path.suffix != ".safetensors":
        return _of_hub(place) / MODEL_FILE
    raise NoModelError(
        f"no model at {text}; give an output folder, a checkpoint, a folder that save() made, "
        "an MLflow URI such as models:/NAME@best, a name of the Hub (user/name), or the name of a "
        "CLIP, such as RN101 or tiny"
    )


def _in_folder(folder: Path, which: Which, text: str) -> Path:
    shared = folder / MODEL_FILE
    if shared.is_file():
        return shared
    inside = folder / "checkpoints"
    files = sorted((inside if inside.is_dir() else folder).glob("*.safetensors"))
    if not files:  # an artifact of MLflow's has them one or two folders down
        files = sorted(folder.rglob("*.safetensors"))
    found: list[tuple[Path, About]] = []
    damaged = ""
    for path in files:
        try:
            found.append((path, read_about(path)))
        except CheckpointError as error:
            damaged = damaged or str(error)
    found = [(path, about) for path, about in found if about.class_names]
    if not found:
        raise NoModelError(
            f"no checkpoint in {text}" + (f" that can be read: {damaged}" if damaged else
            "; train one: dclip.fit(...), or python -m pipeline.run")
        )  # fmt: skip
    if which == "newest":
        return _newest(found)
    told_by = {path: _val_map(about) for path, about in found}
    best = {path: value for path, value in told_by.items() if value is not None}
    if not best:
        raise NoModelError(f"no checkpoint in {text} says how good it is on held-out images")
    return max(best, key=lambda path: best[path])


def _newest(found: Sequence[tuple[Path, About]]) -> Path:
    """The one that was written last; of trainings made at once, the method and not its variant."""
    newest = max(found, key=lambda one: one[0].stat().st_mtime_ns)
    beside = [
        path
        for path, about in found
        if about.made_with == newest[1].made_with and about.name == about.method == newest[1].method
    ]
    return max(beside, key=lambda path: path.stat().st_mtime_ns, default=newest[0])


def _val_map(about: About) -> float | None:
    """Held-out mAP of the epoch that a checkpoint's weights are of."""
    return about.history[about.epoch - 1].get("val_map")


def _of_mlflow(uri: str) -> Path:
    """The folder of an artifact, on this machine.

    Raises:
        NoModelError: MLflow has none, or is not installed.
    """
    try:
        # by name: the library itself knows nothing of MLflow, and needs it for its URIs alone
        artifacts = importlib.import_module("mlflow.artifacts")
    except ImportError:
        raise NoModelError(f"{uri} takes MLflow; pip install mlflow") from None
    try:
        folder = tempfile.mkdtemp(prefix="dclip-mlflow-")
        return Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
    except Exception as error:  # of whatever store is behind it
        raise NoModelError(
            f"{uri}: {told(error)}; is MLFLOW_TRACKING_URI that of its store?"
        ) from None


def _of_hub(name: str) -> Path:
    """The folder of a model of the Hub, on this machine.

    Raises:
        OSError: It cannot be fetched.
    """
    import huggingface_hub  # a quarter of a second, which a local file does not need

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_SHARED))
    except (OSError, ValueError) as error:  # what its errors descend from
        raise OSError(
            f"no folder or file {name}, and the model cannot be fetched from the Hub: {told(error)}"
        ) from None
