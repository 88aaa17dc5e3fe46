"""PASCAL-Context in 59 classes, as masks the usual conversion makes."""

from collections.abc import Mapping
from pathlib import Path

from dclip.data.dataset import Dataset, read_class_names, settle
from dclip.data.segmentation import IGNORE_INDEX, MaskFolderListing, require_masks
from dclip.data.voc import find_voc, read_ids

_OPTIONS = {"classes": ("context59", "context60")}
_PHRASINGS = read_class_names("context59")

# Masks hold 0 for background (any of the other 400 labels) and class column + 1.
CONTEXT59_IDS = {0: IGNORE_INDEX, **{n + 1: n for n in range(59)}, 255: IGNORE_INDEX}
CONTEXT60_IDS = {**{n: n for n in range(60)}, 255: IGNORE_INDEX}


def open_context(root: Path, split: str, options: Mapping[str, str]) -> MaskFolderListing:
    """A split of PASCAL-Context.

    Raises:
        ValueError: If a file is missing, or an option is not known.
    """
    chosen = settle(_OPTIONS, options)
    base = find_voc(root, "VOC2010")
    ids = read_ids(base / "ImageSets" / "SegmentationContext" / f"{split}.txt")
    masks = tuple(base / "SegmentationClassContext" / f"{one}.png" for one in ids)
    require_masks(masks, split)
    with_background = chosen["classes"] == "context60"
    return MaskFolderListing(
        name="context",
        split=split,
        phrasings=((("background",),) if with_background else ()) + _PHRASINGS,
        keys=ids,
        image_paths=tuple(base / "JPEGImages" / f"{one}.jpg" for one in ids),
        mask_paths=masks,
        id_map=CONTEXT60_IDS if with_background else CONTEXT59_IDS,
        options=chosen,
    )


CONTEXT = Dataset(
    name="context",
    title="PASCAL-Context",
    task="segmentation",
    train_split="train",
    test_split="val",
    expected={"train": 4_996, "val": 5_104},
    expected_also={"train": 4_998, "val": 5_105},
    class_names=tuple(names[0] for names in _PHRASINGS),
    phrasings=_PHRASINGS,
    options=_OPTIONS,
    homepage="https://cs.stanford.edu/~roozbeh/pascal-context/",
    layout=(
        ("VOC2010/ImageSets/SegmentationContext/{split}.txt", "ids; VOCdevkit/ may stand above"),
        (
            "VOC2010/SegmentationClassContext/*.png",
            "masks of values 0 (background) to 59, as MMSegmentation's converter"
            " pascal_context.py makes them from trainval_merged.json",
        ),
        ("VOC2010/JPEGImages/*.jpg", "images of VOC2010"),
    ),
    open=open_context,
    notes="The official files have 459 labels; the masks expected here hold the 59 frequent ones in"
    " alphabetical order. Background pixels are not counted, or are a class with classes=context60."
    " The paper has 4,998 and 5,105 images; the lists that its programs give, and the converter"
    " takes, have 4,996 and 5,104.",
)
