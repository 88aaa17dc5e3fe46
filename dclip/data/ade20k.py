"""ADE20K's scene parsing benchmark, 150 classes."""

from pathlib import Path

from dclip.data.dataset import Dataset, first_folder, read_class_names
from dclip.data.mask_folders import MaskFolders, Places, beside, in_order
from dclip.data.segmentation import list_images

_PHRASINGS = read_class_names("ade150")


def _find(root: Path, split: str) -> Places:
    bases = (root / "ADEChallengeData2016", root)
    base = first_folder(tuple(one / "images" for one in bases), f"ADE20K under {root}").parent
    images = list_images(base / "images" / split, "*.jpg")
    return beside(images, base / "annotations" / split)


_MASKS = MaskFolders("ade20k", _find, {"ade150": (_PHRASINGS, in_order(range(1, 151), (0,)))})

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
    open=_MASKS.open,
    notes="Value 0 (other) is not counted and the others move down by one, which is called"
    " reducing the zero label.",
)
