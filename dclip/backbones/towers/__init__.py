"""Image towers by family: how each comes to its global embedding, and to local features.

Every CLIP here ends in two steps. A *pool* makes one vector of many locations, and a *head* takes
it into the space of the texts. Local features are what the same steps make of a location by
itself. How exactly depends on the pool, of which there are five; docs/method.md has the formulas:

============== ============================= ============================================= =======
family         towers                        local feature of a location                   module
============== ============================= ============================================= =======
value path     CLIP ResNet                   value and output map of the pool              resnet
class token    CLIP ViT, EVA, MobileCLIP-B   norm and head of its token                    vit,
                                                                                           trunk
attention pool SigLIP, PE-Core, CoCa         the pool on its token alone, then the head    vit,
                                                                                           trunk
mean           FastViT, Swin, GAP ViT        the head                                      trunk
normed mean    ConvNeXt, ViTamin, CLIPA      norm and head                                 vit,
                                                                                           trunk
============== ============================= ============================================= =======
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from dclip.backbones import ImageFeatures
from dclip.backbones.blocks import PlainBlock


@runtime_checkable
class ImageTower(Protocol):
    """An image tower of some family, and the way to local features through it.

    Attributes:
        module: The tower, as the library that wrote it has it.
        family: One of the module's table: ``"class token"``.
        stride: Pixels from one location to the next.
        native_size: Rows and columns of pixels it was built for, not always multiples of the
            stride.
        native_grid: Rows and columns of its locations at that size.
        paths: How local features are made, by kind; ``"value"`` first.
        has_mean_token: Whether the mean over all locations precedes them.
        blocks: Its blocks, first to last, if all are plain and positions do not enter them.
    """

    module: nn.Module
    family: str
    stride: int
    native_size: tuple[int, int]
    native_grid: tuple[int, int]
    paths: dict[str, str]
    has_mean_token: bool
    blocks: list[PlainBlock]

    def encode(
        self, images: Float[Tensor, "images 3 height width"], *, kind: str, grid: tuple[int, int]
    ) -> ImageFeatures:
        """Global embeddings and local features, not normalised.

        Args:
            images: Normalised, on the tower's device, in its dtype.
            kind: One of ``paths``.
            grid: Rows and columns of locations that the images have.
        """
        ...

    def restore(self) -> None:
        """Back to the size it was built for, with the very weights it came with."""
        ...

    def record(self) -> dict[str, object]:
        """What the weights do not tell of it, in words of ours (`dclip.backbones.record`)."""
        ...
