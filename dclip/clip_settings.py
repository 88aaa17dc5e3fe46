"""What tells one frozen CLIP from another, as its user says it; no torch."""

from typing import NamedTuple

from dclip.data.preparation import Interpolation, Resize


class ClipSettings(NamedTuple):
    """Arguments of `dclip.backbones.load_backbone`."""

    name: str
    pretrained: str | None = None
    resolution: int | None = None
    include_global_token: bool | None = None
    tag: str | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
