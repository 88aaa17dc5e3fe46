"""The embedded data sets as splits of drawn images: labels, masks, captions; no download."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from dclip.data.dataset import Dataset, settle
from dclip.data.listing import Sample
from dclip.data.segmentation import BACKGROUND, IGNORE_INDEX, SegmentationSample
from dclip.world import shapes

_SIZES: dict[str, dict[str, int]] = {
    "shapes": shapes.SPLIT_SIZES,
    "shapes-single": shapes.SINGLE_SIZES,
}
_DRAW: dict[str, Callable[..., shapes.Scene]] = {
    "shapes": shapes.scene,
    "shapes-single": shapes.single,
}
_REMEMBERED = 20_000  # captions of this many images: a few MB


@dataclass(frozen=True)
class ShapesListing:
    """A split of an embedded data set (`dclip.world.shapes`), drawn as it is read.

    Args:
        split: A key of ``shapes.SPLIT_SIZES``, or of ``shapes.SINGLE_SIZES``.
        seed: Of the world.
        resolution: Side of the images in pixels.
        name: The data set: ``"shapes"``, the scenes, or ``"shapes-single"``, one object an image.

    Raises:
        ValueError: If there is no such split.

    Example:
        >>> listing = ShapesListing("single")
        >>> len(listing), listing.key(7), listing.class_names[listing.read(7).labels.argmax()]
        (400, 'single-00007', 'moon')
    """

    split: str
    seed: int = 0
    resolution: int = shapes.RESOLUTION
    name: str = "shapes"

    def __post_init__(self) -> None:
        sizes = _SIZES[self.name]
        if self.split not in sizes:
            known = ", ".join(map(repr, sizes))
            raise ValueError(f"unknown split {self.split!r}; {self.name} has {known}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the label vector."""
        return shapes.CLASS_NAMES

    def __len__(self) -> int:
        return _SIZES[self.name][self.split]

    def key(self, index: int) -> str:
        """Split and index."""
        return f"{self.split}-{index:05d}"

    def read(self, index: int) -> Sample:
        """The scene and its label vector.

        Raises:
            ValueError: If the index is out of range.
        """
        drawn = self.draw(index)
        return Sample(Image.fromarray(drawn.image), drawn.labels)

    def draw(self, index: int) -> shapes.Scene:
        """The image with everything known of it.

        Raises:
            ValueError: If the index is out of range.
        """
        return _DRAW[self.name](self.split, index, seed=self.seed, resolution=self.resolution)

    def captions(self, rows: Int64[np.ndarray, " rows"]) -> list[tuple[str, str]]:
        """Two captions of each image: a short one, of its largest object, and a long one, of all.

        The long one has a sentence for each object and one for the ground, parted by spaces; it
        fits 77 tokens of CLIP. Images are drawn for it, the first time.

        Args:
            rows: Indices, in any order.

        Raises:
            ValueError: If an index is out of range.

        Example:
            >>> ShapesListing("test").captions(np.array([0]))[0][0]
            'a photo of a striped cross.'
        """
        return [_captions(self, int(row)) for row in rows]

    def mask(self, index: int) -> Image.Image:
        """Mask of the objects, as large as the image: 255 on objects, else 0.

        Raises:
            ValueError: If the index is out of range.
        """
        return Image.fromarray(np.where(self.draw(index).mask > 0, 255, 0).astype(np.uint8))

    def identity(self) -> dict[str, str | int]:
        """Split, seed, resolution and the version of the world."""
        return {
            "name": self.name,
            "split": self.split,
            "seed": self.seed,
            "resolution": self.resolution,
            "version": shapes.VERSION,
        }


@functools.lru_cache(_REMEMBERED)
def _captions(listing: ShapesListing, index: int) -> tuple[str, str]:
    drawn = listing.draw(index)
    return drawn.caption, " ".join(drawn.sentences)


@dataclass(frozen=True)
class ShapesMaskListing:
    """A split of an embedded data set with masks: background, then its classes.

    Attributes:
        scenes: The same split with label vectors.

    Example:
        >>> listing = ShapesMaskListing(ShapesListing("single"))
        >>> np.unique(listing.read_mask(7)).tolist(), listing.class_names[8]
        ([0, 8], 'moon')
    """

    scenes: ShapesListing
    ignore_index: int = IGNORE_INDEX

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.scenes.name

    @property
    def split(self) -> str:
        """Which part of it."""
        return self.scenes.split

    @property
    def class_names(self) -> tuple[str, ...]:
        """Display names in the order of mask values."""
        return (BACKGROUND, *self.scenes.class_names)

    @property
    def phrasings(self) -> tuple[tuple[str, ...], ...]:
        """Each class has its one name."""
        return tuple((name,) for name in self.class_names)

    @property
    def image_paths(self) -> tuple[Path, ...]:
        """None: scenes are drawn."""
        return ()

    def __len__(self) -> int:
        return len(self.scenes)

    def key(self, index: int) -> str:
        """Split and index."""
        return self.scenes.key(index)

    def read(self, index: int) -> SegmentationSample:
        """The scene and its mask.

        Raises:
            ValueError: If the index is out of range.
        """
        drawn = self.scenes.draw(index)
        return SegmentationSample(Image.fromarray(drawn.image), drawn.mask)

    def read_mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The mask alone; the scene is drawn for it all the same.

        Raises:
            ValueError: If the index is out of range.
        """
        return self.read(index).mask

    def identity(self) -> dict[str, str | int]:
        """That of the split with label vectors, and that this one has masks."""
        return {**self.scenes.identity(), "masks": "drawn"}


def open_shapes(
    root: Path | None, split: str, options: Mapping[str, str], *, name: str = "shapes"
) -> ShapesListing:
    """A split of an embedded data set; ``root`` is not looked at.

    Raises:
        ValueError: If there is no such split, or an option is given.
    """
    del root
    settle({}, options)
    return ShapesListing(split, name=name)


def open_shapes_masks(
    root: Path | None, split: str, options: Mapping[str, str], *, name: str = "shapes"
) -> ShapesMaskListing:
    """The same split with masks; ``root`` is not looked at.

    Raises:
        ValueError: If there is no such split, or an option is given.
    """
    return ShapesMaskListing(open_shapes(root, split, options, name=name))


SHAPES = Dataset(
    name="shapes",
    title="shapes (embedded, drawn)",
    task="multilabel",
    train_split="train",
    test_split="test",
    expected=shapes.SPLIT_SIZES,
    class_names=shapes.CLASS_NAMES,
    phrasings=tuple((name,) for name in shapes.CLASS_NAMES),
    options={},
    homepage="",
    layout=(),
    open=open_shapes,
    notes="Procedural scenes of 16 classes that come with the package; needs no root. Masks are"
    " drawn with the scenes; background is their first class.",
    open_masks=open_shapes_masks,
)

SHAPES_SINGLE = replace(
    SHAPES,
    name="shapes-single",
    title="shapes, one object an image (embedded, drawn)",
    expected=shapes.SINGLE_SIZES,
    open=functools.partial(open_shapes, name="shapes-single"),
    open_masks=functools.partial(open_shapes_masks, name="shapes-single"),
    notes="Images of one object on a ground strewn with halves of other objects, as many of every"
    " class; for learning from few. Comes with the package; needs no root. Masks show the object.",
)
