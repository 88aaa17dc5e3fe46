"""PASCAL-Context in 59 classes, as masks the usual conversion makes."""

from functools import partial

from dclip.data.dataset import Dataset, read_class_names
from dclip.data.mask_folders import MaskFolders, in_order
from dclip.data.voc import find_listed

_PHRASINGS = read_class_names("context59")

_MASKS = MaskFolders(
    "context",
    partial(find_listed, "VOC2010", "SegmentationContext", "SegmentationClassContext"),
    {  # value 0 is background: any of the other 400 labels
        "context59": (_PHRASINGS, in_order(range(1, 60), (0, 255))),
        "context60": ((("background",), *_PHRASINGS), in_order(range(60))),
    },
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
    options=_MASKS.options,
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
    open=_MASKS.open,
    notes="The official files have 459 labels; the masks expected here hold the 59 frequent ones in"
    " alphabetical order. Background pixels are not counted, or are a class with classes=context60."
    " The paper has 4,998 and 5,105 images; the lists that its programs give, and the converter"
    " takes, have 4,996 and 5,104.",
)
