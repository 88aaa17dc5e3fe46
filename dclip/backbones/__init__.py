"""Frozen CLIP models: images to a global embedding and local features, texts to embeddings.

Nothing here is trained. Importing this package does not import ``open_clip``; `load_backbone` does.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dclip.architectures import DEFAULT_RESOLUTION
from dclip.backbones.gradients import (
    ImageGradients,
    PromptedFeatures,
    TextGradients,
    Tower,
    require,
)
from dclip.by_name import find_own, is_own
from dclip.data.preparation import Interpolation, Preparation, Resize

__all__ = [
    "DEFAULT_RESOLUTION",
    "Backbone",
    "ImageFeatures",
    "ImageGradients",
    "PromptedFeatures",
    "TextGradients",
    "Tower",
    "UnsaidWarning",
    "former_fingerprint",
    "load_backbone",
    "preparation_of",
    "require",
]


class UnsaidWarning(UserWarning):
    """A file does not say which weights it holds, and released ones differ in what that means."""


class ImageFeatures(NamedTuple):
    """What a backbone says of a batch of images; nothing is normalised.

    Attributes:
        embedding: CLIP's own global image embedding.
        local: Local features in the joint space, row by row from the top left. Where the backbone's
            ``include_global_token`` holds, entry 0 is the mean token and the grid starts at 1.
    """

    embedding: Float[Tensor, "images dim"]
    local: Float[Tensor, "images locations dim"]


@runtime_checkable
class Backbone(Protocol):
    """What the rest of the project asks of a frozen CLIP; any object that has these will do.

    Methods that learn prompts ask for more: `dclip.backbones.gradients`. A backbone that was not
    trained on squashed images says so by an attribute ``preparation`` (`preparation_of`), one that
    was trained by a sigmoid by ``logit_scale`` and ``logit_bias``.

    Attributes:
        name: How reports call it: ``"tiny"``, ``"RN101/openai"``, ``"package.module:factory"``.
        embed_dim: Dimension of the joint space.
        stride: Pixels a location is wide; both sides of an image are multiples of it, unless the
            size is the model's own.
        resolution: Side in pixels of the squares images are resized to.
        mean: Channel means subtracted from RGB values in [0, 1].
        std: Channel deviations divided by.
        include_global_token: Whether ``local[:, 0]`` is the mean over all locations.
        kinds: The kinds of local features on offer, ``"value"`` first: the one to train on, and
            the only one a backbone has to have. The names of docs/method.md, or names of its own.
    """

    name: str
    embed_dim: int
    stride: int
    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    include_global_token: bool
    kinds: tuple[str, ...]

    def encode_images(
        self, images: Float[Tensor, "images 3 height width"], *, kind: str = "value"
    ) -> ImageFeatures:
        """Global embedding and local features of images already normalised by mean and std.

        Raises:
            ValueError: If ``kind`` is none of ``kinds``.
        """
        ...

    def feature_path(self, kind: str) -> str:
        """How local features of a kind are made, in a few words and a version.

        Two forms of one kind differ here, so that what was stored of one is never taken for the
        other.
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """One embedding a text, not normalised."""
        ...

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of locations of an image of that many pixels."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of the weights and the architecture, the same for every kind.

        Equal when the features of the value kind are equal.
        """
        ...

    def to(self, device: torch.device | str) -> "Backbone":
        """The same backbone, its weights moved to ``device``."""
        ...


def preparation_of(backbone: Backbone) -> Preparation:
    """How images are resized for a backbone: as its attribute ``preparation`` says, else squashed.

    Args:
        backbone: Any; the attribute is optional.
    """
    own: Preparation = getattr(backbone, "preparation", Preparation())
    return own


def former_fingerprint(backbone: Backbone) -> str:
    """The fingerprint that features of version 0.1 have; that of today where none was changed.

    Args:
        backbone: Any; its method ``former_fingerprint`` is optional.
    """
    own: Callable[[], str] = getattr(backbone, "former_fingerprint", backbone.fingerprint)
    return own()


def load_backbone(
    name: str,
    *,
    pretrained: str | None = None,
    tag: str | None = None,
    resolution: int | None = None,
    include_global_token: bool | None = None,
    resize: Resize | None = None,
    interpolation: Interpolation | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """A frozen CLIP by name.

    Args:
        name: One of

            * ``"tiny"`` or ``"tiny-vit"``, the small CLIPs that come with the package, one with a
              ResNet and one with a ViT;
            * an architecture of open_clip: ``"RN101"``, ``"ViT-B-16"`` (or ``"ViT-B/16"``),
              ``"ViT-B-16-SigLIP2"``, ``"PE-Core-B-16"``, ... (`python -m pipeline.backbones list`);
            * ``"hf-hub:org/name"`` or ``"local-dir:PATH"``, a model of open_clip on the Hub or in a
              folder, with its ``open_clip_config.json``;
            * ``"package.module:factory"``, a callable of yours. It is called with the keyword
              arguments ``resolution`` (None for its own default) and ``device``, and returns a
              `Backbone`.
        pretrained: Weights, one of

            * None, OpenAI's weights, the only ones there are, or for the small CLIPs the packaged
              ones;
            * ``"random"``, seeded random weights for a dry trial; nothing is fetched;
            * a tag of open_clip's, such as ``"laion2b_s34b_b79k"``;
            * a local ``.safetensors`` or ``.pt`` file with the state dict of an open_clip model,
              which must match the architecture key by key, or one of OpenAI's archives.
        tag: Which released weights a local file holds. The file does not say how its images were
            normalised, and whether QuickGELU is meant; its tag does.
        resolution: Side in pixels of the images, a multiple of the stride or the model's own. None:
            448, except that the small CLIPs take the side they were trained at.
        include_global_token: Whether the mean token precedes the locations. None: yes for a CLIP
            ResNet (the paper's form); no other tower has one.
        resize: How images become squares (`dclip.data.preparation`). None: squashed for CLIP's own
            models, as in the paper; for others as their weights were trained.
        interpolation: ``"bilinear"`` or ``"bicubic"``; None: likewise.
        mean: Channel means, in [0, 1]; None: those of the weights.
        std: Channel deviations; None: those of the weights.
        device: Where the weights go.

    Raises:
        ValueError: If the name, tag or file is unknown or does not fit, or a library that it needs
            is not installed.
        OSError: If weights have to be fetched and cannot be.

    Example:
        >>> load_backbone("RN51")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: unknown backbone 'RN51'; did you mean 'RN50', ...
    """
    own: dict[str, object] = {
        "resize": resize,
        "interpolation": interpolation,
        "mean": mean,
        "std": std,
        "tag": tag,
    }
    if is_own(name):
        own |= {"pretrained": pretrained, "include_global_token": include_global_token}
        for option, value in own.items():
            if value is not None:
                raise ValueError(
                    f"{option}={value!r} cannot be passed to the backbone factory {name!r};"
                    " leave it out and let the factory choose"
                )
        return _call_factory(name, resolution=resolution, device=device)

    # open_clip takes seconds to import: only whoever loads one of its models waits for it.
    from dclip.backbones.loading import load_model

    return load_model(
        name,
        pretrained=pretrained,
        tag=tag,
        resolution=resolution,
        include_global_token=include_global_token,
        resize=resize,
        interpolation=interpolation,
        mean=mean,
        std=std,
    ).to(device)


def _call_factory(name: str, *, resolution: int | None, device: torch.device | str) -> Backbone:
    """The backbone a user's ``package.module:factory`` builds, checked against the protocol."""
    factory = find_own(name, "backbone")
    backbone = factory(resolution=resolution, device=device)
    missing = [member for member in _members(Backbone) if not hasattr(backbone, member)]
    if missing:
        raise ValueError(
            f"what {name!r} returned, a {type(backbone).__name__}, is no Backbone: it lacks"
            f" {', '.join(missing)}"
        )
    assert isinstance(backbone, Backbone)
    return backbone


def _members(protocol: type) -> list[str]:
    """Names of the attributes and methods a protocol asks for, as written in its class body."""
    methods = [key for key, value in vars(protocol).items() if callable(value)]
    return [key for key in [*protocol.__annotations__, *methods] if not key.startswith("_")]
