"""Cityscapes: the fine annotations, as the 19 classes that are scored or the 30 that are named."""

from collections.abc import Mapping
from pathlib import Path

from dclip.data.dataset import Dataset, read_class_names
from dclip.data.mask_folders import MaskFolders, Places, in_order
from dclip.data.segmentation import list_images

# Value stored in a labelIds file, and the name behind it.
LABELS: Mapping[int, str] = dict(
    enumerate(
        (
            "unlabeled",
            "ego vehicle",
            "rectification border",
            "out of roi",
            "static",
            "dynamic",
            "ground",
            "road",
            "sidewalk",
            "parking",
            "rail track",
            "building",
            "wall",
            "fence",
            "guard rail",
            "bridge",
            "tunnel",
            "pole",
            "polegroup",
            "traffic light",
            "traffic sign",
            "vegetation",
            "terrain",
            "sky",
            "person",
            "rider",
            "car",
            "truck",
            "bus",
            "caravan",
            "trailer",
            "train",
            "motorcycle",
            "bicycle",
        )
    )
)

# Values that the benchmark scores, in the order of its train ids.
_SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# All but what is no part of the scene: nothing, the car the camera is in, and the picture's rim.
_NAMED = tuple(range(4, 34))

_PHRASINGS = {name: read_class_names(name) for name in ("cityscapes19", "cityscapes30")}


def _find(root: Path, split: str) -> Places:
    tail = "_leftImg8bit.png"
    images = list_images(root / "leftImg8bit" / split, f"*/*{tail}")
    keys = tuple(path.name.removesuffix(tail) for path in images)
    masks = tuple(
        root / "gtFine" / split / image.parent.name / f"{key}_gtFine_labelIds.png"
        for image, key in zip(images, keys, strict=True)
    )
    return keys, images, masks


MASKS = MaskFolders(
    "cityscapes",
    _find,
    {
        "cityscapes19": (_PHRASINGS["cityscapes19"], in_order(_SCORED, LABELS)),
        "cityscapes30": (_PHRASINGS["cityscapes30"], in_order(_NAMED, LABELS)),
    },
)

CITYSCAPES = Dataset(
    name="cityscapes",
    title="Cityscapes (fine)",
    task="segmentation",
    train_split="train",
    test_split="val",
    expected={"train": 2_975, "val": 500},
    class_names=tuple(names[0] for names in _PHRASINGS["cityscapes19"]),
    phrasings=_PHRASINGS["cityscapes19"],
    options=MASKS.options,
    homepage="https://www.cityscapes-dataset.com/downloads/",
    layout=(
        ("leftImg8bit/{split}/*/*_leftImg8bit.png", "images, a folder per city"),
        ("gtFine/{split}/*/*_gtFine_labelIds.png", "masks of label ids (not train ids)"),
    ),
    open=MASKS.open,
    notes="The benchmark scores 19 classes; classes=cityscapes30 has the 30 the paper speaks of:"
    " every label but unlabeled, ego vehicle, rectification border and out of roi. The test split"
    " has no public labels.",
)
