"""COCO-Stuff: things and stuff of COCO 2017 in one mask, 171 classes."""

from pathlib import Path

from dclip.data.dataset import Dataset, first_folder, read_class_names
from dclip.data.mask_folders import MaskFolders, Places, beside, in_order
from dclip.data.segmentation import IGNORE_INDEX, list_images

# Ids of COCO's label list that were never annotated: street sign, hat, shoe, eye glasses, plate,
# mirror, window, desk, door, blender, hair brush.
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
THING_IDS = tuple(number for number in range(1, 92) if number not in _UNUSED)
STUFF_IDS = tuple(range(92, 183))

_THINGS, _STUFF = read_class_names("coco80"), read_class_names("stuff91")
_PHRASINGS = _THINGS + _STUFF


def pixel_map(
    counted: tuple[int, ...], *, first: int = 0, other: int = IGNORE_INDEX
) -> dict[int, int]:
    """Values of a stuff-thing map to class positions.

    A map holds label id minus one, and 255 where nothing was annotated.

    Args:
        counted: Label ids that are classes, in column order.
        first: Position of the first of them.
        other: What pixels of the other labels, and of none, become.
    """
    known = dict.fromkeys((*(number - 1 for number in THING_IDS + STUFF_IDS), 255), other)
    return known | in_order((number - 1 for number in counted), (), first)


def find_stuff_maps(root: Path, split: str) -> Places:
    """Images of a split of COCO and their stuff-thing maps.

    Raises:
        ValueError: If a folder is missing; the message names the places.
    """
    here = f"split {split!r} under {root}"
    folders = (root / split, root / "images" / split)
    images = list_images(first_folder(folders, f"images of {here}"), "*.jpg")
    parents = ("stuffthingmaps", "annotations/stuffthingmaps", "annotations")
    folder = first_folder(
        tuple(root / one / split for one in parents), f"stuff-thing maps of {here}"
    )
    return beside(images, folder)


_MASKS = MaskFolders(
    "stuff",
    find_stuff_maps,
    {
        "stuff171": (_PHRASINGS, pixel_map(THING_IDS + STUFF_IDS)),
        "stuff91": (_STUFF, pixel_map(STUFF_IDS)),
    },
)

STUFF = Dataset(
    name="stuff",
    title="COCO-Stuff 164k",
    task="segmentation",
    train_split="train2017",
    test_split="val2017",
    expected={"train2017": 118_287, "val2017": 5_000},
    class_names=tuple(names[0] for names in _PHRASINGS),
    phrasings=_PHRASINGS,
    options=_MASKS.options,
    homepage="https://github.com/nightrome/cocostuff",
    layout=(
        ("{split}/*.jpg", "images; images/{split}/*.jpg will do as well"),
        ("stuffthingmaps/{split}/*.png", "maps of label id - 1; or in annotations/{split}"),
    ),
    open=_MASKS.open,
    notes="80 things and 91 stuff classes, ascending by label id; classes=stuff91 counts stuff"
    " only, the paper's 91 classes. Maps hold label id - 1 of 182 labels, 11 of them unused."
    " Masks converted to train ids are another format and are not read.",
)
