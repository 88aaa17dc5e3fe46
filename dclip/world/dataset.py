"""The embedded data set as splits of scenes, with label vectors or masks; nothing to download."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dclip.data.dataset import Dataset, settle
from dclip.data.listing import Sample
from dclip.data.segmentation import BACKGROUND, IGNORE_INDEX, SegmentationSample
from dclip.world import shapes


@dataclass(frozen=True)
class ShapesListing:
    """A split of the embedded data set (`dclip.world.shapes`), drawn as it is read.

    Args:
        split: A key of ``shapes.SPLIT_SIZES``.
        seed: Of the world.
        resolution: Side of the images in pixels.

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

    def __post_init__(self) -> None:
        if self.split not in shapes.SPLIT_SIZES:
            known = ", ".join(map(repr, shapes.SPLIT_SIZES))
            raise ValueError(f"unknown split {self.split!r}; shapes has {known}")

    @property
    def name(self) -> str:
        """The data set's name, ``"shapes"``."""
        return "shapes"

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the label vector."""
        return shapes.CLASS_NAMES

    def __len__(self) -> int:
        return shapes.SPLIT_SIZES[self.split]

    def key(self, index: int) -> str:
        """Split and index."""
        return f"{self.split}-{index:05d}"

    def read(self, index: int) -> Sample:
        """The scene and its label vector.

        Raises:
            ValueError: If the index is out of range.
        """
        scene = shapes.scene(self.split, index, seed=self.seed, resolution=self.resolution)
        return Sample(Image.fromarray(scene.image), scene.labels)

    def identity(self) -> dict[str, str | int]:
        """Split, seed, resolution and the version of the world."""
        return {
            "name": self.name,
            "split": self.split,
            "seed": self.seed,
            "resolution": self.resolution,
            "version": shapes.VERSION,
        }


@dataclass(frozen=True)
class ShapesMaskListing:
    """A split of the embedded data set with masks: background, then its classes.

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
        """The data set's name, ``"shapes"``."""
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
        own = self.scenes
        scene = shapes.scene(own.split, index, seed=own.seed, resolution=own.resolution)
        return SegmentationSample(Image.fromarray(scene.image), scene.mask)

    def read_mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The mask alone; the scene is drawn for it all the same.

        Raises:
            ValueError: If the index is out of range.
        """
        return self.read(index).mask

    def identity(self) -> dict[str, str | int]:
        """That of the split with label vectors, and that this one has masks."""
        return {**self.scenes.identity(), "masks": "drawn"}


def open_shapes(root: Path | None, split: str, options: Mapping[str, str]) -> ShapesListing:
    """A split of the embedded data set; ``root`` is not looked at.

    Raises:
        ValueError: If there is no such split, or an option is given.
    """
    del root
    settle({}, options)
    return ShapesListing(split)


def open_shapes_masks(
    root: Path | None, split: str, options: Mapping[str, str]
) -> ShapesMaskListing:
    """The same split with masks; ``root`` is not looked at.

    Raises:
        ValueError: If there is no such split, or an option is given.
    """
    return ShapesMaskListing(open_shapes(root, split, options))


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
