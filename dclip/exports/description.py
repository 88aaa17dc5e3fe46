"""What an exported file says of itself, in plain JSON."""

import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal

FORMATS = ("onnx", "pt2", "safetensors")
"""Kinds of files, which are their suffixes, too."""

Format = Literal["onnx", "pt2", "safetensors"]

What = Literal["image", "head"]
"""``image``: pixels in. ``head``: local features in, as the frozen CLIP gives them."""


_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # of the extra, by format


class ExportError(ValueError):
    """A model that cannot be exported, or whose file says something else than the model does."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """All that a user of the file has to know.

    Attributes:
        what: What goes in.
        class_names: Of the columns of ``scores`` and ``maps``.
        thresholds: Of each class, the score from which on it counts as there; None where there is
            none.
        inputs: Axes of each input by its name; ``"batch"`` is any number. All are float32.
        outputs: Axes of each output by its name.
        scores: ``probability`` of each class by itself; ``share``: they sum to 1 over the classes;
            ``score``: on a scale of the method's own, to compare images by.
        maps: ``probability`` of the class at each place, or ``cosine`` with CLIP's text.
        resolution: Rows and columns of pixels.
        resize: How an image becomes that square: ``squash``, ``shortest`` (the middle is kept) or
            ``longest`` (black bars).
        interpolation: Filter of the resize, with antialiasing.
        mean: Of each channel, taken from pixels in [0, 1].
        std: Of each channel, what they are divided by then.
        backbone: Name of the frozen CLIP.
        kind: Of its local features.
        include_global_token: Whether the mean of the local features precedes them.
        feature_space: Hash of what gives the local features their meaning; None where not said.
        method: Name of the method; ``clip`` for frozen CLIP alone.
        checkpoint: SHA-256 of the file of the method; None for frozen CLIP.
        commit: Of the code that wrote the file.
    """

    what: What
    class_names: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    scores: Literal["probability", "share", "score"]
    maps: Literal["probability", "cosine"]
    resolution: int
    resize: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    backbone: str
    kind: str
    include_global_token: bool
    feature_space: str | None = None
    method: str
    checkpoint: str | None = None
    commit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        told: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return told

    def metadata(self) -> dict[str, str]:
        """The same as texts by name, each of them JSON: what ONNX can keep."""
        return {key: json.dumps(value) for key, value in self.to_json().items()}


def missing_packages(form: str) -> str:
    """What has to be installed to write a format, in a line; empty if nothing has.

    Args:
        form: One of `FORMATS`.
    """
    missing = [name for name in _PACKAGES.get(form, ()) if find_spec(name) is None]
    if not missing:
        return ""
    are = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {are} not installed: pip install 'dclip[export]'"
