"""The embedded data set as the registry knows it; nothing to download."""

from collections.abc import Mapping
from pathlib import Path

from dclip.data import shapes
from dclip.data.dataset import Dataset, settle
from dclip.data.listing import ShapesListing
from dclip.data.segmentation import ShapesMaskListing


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
