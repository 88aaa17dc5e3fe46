"""ADE20K's scene parsing benchmark, 150 classes."""

from collections.abc import Mapping
from pathlib import Path

from dclip.data.dataset import Dataset, first_folder, read_class_names, settle
from dclip.data.segmentation import IGNORE_INDEX, MaskFolderListing, list_images, require_masks

_PHRASINGS = read_class_names("ade150")

ADE20K_IDS = {0: IGNORE_INDEX, **{column + 1: column for column in range(150)}}
"""Masks hold 0 for "other", which is not counted, and class column + 1."""


def open_ade20k(root: Path, split: str, options: Mapping[str, str]) -> MaskFolderListing:
    """A split of ADE20K.

    Raises:
        ValueError: If images or masks are missing, or an option is given.
    """
    settle({}, options)
    bases = (root / "ADEChallengeData2016", root)
    base = first_folder(tuple(one / "images" for one in bases), f"ADE20K under {root}").parent
    images = list_images(base / "images" / split, "*.jpg")
    masks = tuple(base / "annotations" / split / f"{path.stem}.png" for path in images)
    require_masks(masks, split)
    return MaskFolderListing(
        name="ade20k",
        split=split,
        phrasings=_PHRASINGS,
        keys=tuple(path.stem for path in images),
        image_paths=images,
        mask_paths=masks,
        id_map=ADE20K_IDS,
    )


ADE20K = Dataset(
    name="ade20k",
    title="ADE20K scene parsing (150 classes)",
    task="segmentation",
    train_split="training",
    test_split="validation",
    expected={"training": 20_210, "validation": 2_000},
    class_names=tuple(names[0] for names in _PHRASINGS),
    phrasings=_PHRASINGS,
    options={},
    homepage="http://sceneparsing.csail.mit.edu/",
    layout=(
        ("ADEChallengeData2016/images/{split}/*.jpg", "images"),
        ("ADEChallengeData2016/annotations/{split}/*.png", "masks, 0 other, 1 to 150 classes"),
    ),
    open=open_ade20k,
    notes="Value 0 (other) is not counted and the others move down by one, which is called"
    " reducing the zero label.",
)
