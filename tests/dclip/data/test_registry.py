import itertools
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dclip.data.dataset import Dataset, parse_class_names, read_class_names, settle
from dclip.data.listing import Listing, digest
from dclip.data.registry import DATASETS, get_dataset
from dclip.data.segmentation import IGNORE_INDEX, SegmentationListing

# Columns of every variant, in words: an adapter that loses or gains a class fails here.
SIZES = {
    "shapes": 16,
    "shapes-single": 16,
    "coco": 0,
    "coco14": 80,
    "coco17": 80,
    "voc2007": 20,
    "voc2012": 20,
    "voc12-seg": 21,
    "coco17-seg": 81,
    "cityscapes": 19,
    "context": 59,
    "stuff": 171,
    "ade20k": 150,
}

DRAWN = ("shapes", "shapes-single")
TREE_NAMES = [name for name in DATASETS if name not in DRAWN]


def choices(dataset: Dataset) -> list[dict[str, str]]:
    """Every combination of a data set's options."""
    return [
        dict(zip(dataset.options, values, strict=True))
        for values in itertools.product(*dataset.options.values())
    ]


def test_sizes_are_those_of_the_literature() -> None:
    assert {name: len(dataset.class_names) for name, dataset in DATASETS.items()} == SIZES


@pytest.mark.parametrize("name", DATASETS)
def test_an_entry_is_whole(name: str) -> None:
    dataset = DATASETS[name]
    assert dataset.name == name
    assert tuple(names[0] for names in dataset.phrasings) == dataset.class_names
    assert len(set(dataset.class_names)) == len(dataset.class_names)
    assert dataset.title
    assert dataset.notes
    if name not in (*DRAWN, "coco"):
        assert dataset.test_split in dataset.expected
        assert dataset.train_split is None or dataset.train_split in dataset.expected
        assert dataset.homepage.startswith("http")
    assert any("{split}" in path for path, _ in dataset.layout) or name in DRAWN


def test_published_counts() -> None:
    # science: COCO-14 without unlabelled images, and with them
    coco14 = get_dataset("coco14")
    assert coco14.expected_images("train2014", {}) == 82_081
    assert coco14.expected_images("val2014", {"images": "annotated"}) == 40_137
    assert coco14.expected_images("train2014", {"images": "all"}) == 82_783
    assert coco14.expected_images("val2014", {"images": "all"}) == 40_504
    assert get_dataset("voc2007").expected_images("trainval", {"difficult": "ignore"}) == 5_011
    assert get_dataset("voc2007").expected_images("test", {}) == 4_952
    assert get_dataset("coco").expected_images("val", {}) is None


@pytest.mark.parametrize(
    ("file", "recorded"),
    [
        ("ade150", "9bf5f612ed5c7d1d"),
        ("stuff91", "e69430d68c421aad"),
        ("context59", "172332a478a8de9d"),
        ("coco80", "870d9b6248358360"),
        ("voc20", "4bbe3fa5b97dc0a7"),
        ("cityscapes19", "43e2f291fae08a61"),
        ("cityscapes30", "32693552ee11f34f"),
    ],
)
def test_display_names_stand_in_the_published_order(file: str, recorded: str) -> None:
    # golden: recorded on 2026-11-22 after comparing name by name with MMSegmentation's metadata
    # (ade150, stuff91, context59, cityscapes19) and COCO's annotation files (coco80); voc20 is
    # alphabetical, cityscapes30 ascends by label id. Phrasings may be added; display names and
    # their order may not change.
    names = [phrases[0] for phrases in read_class_names(file)]
    assert digest(names)[:16] == recorded
    if file in ("stuff91", "context59", "voc20"):
        assert names == sorted(names)


def test_an_unknown_name_is_answered_with_names_like_it() -> None:
    with pytest.raises(ValueError, match="did you mean 'coco14'"):
        get_dataset("coco2014")
    with pytest.raises(
        ValueError, match=r"unknown dataset 'imagenet'; known: shapes, shapes-single, coco,"
    ):
        get_dataset("imagenet")


def test_options_are_settled_or_refused() -> None:
    options = {"images": ("annotated", "all"), "difficult": ("negative", "ignore")}
    assert settle(options, {"images": "all"}) == {"images": "all", "difficult": "negative"}
    with pytest.raises(
        ValueError, match=r"unknown option 'masks'.*options are 'images', 'difficul"
    ):
        settle(options, {"masks": "area"})
    with pytest.raises(ValueError, match="'images' cannot be 'some'; choose from 'annotated'"):
        settle(options, {"images": "some"})
    with pytest.raises(ValueError, match="options are none"):
        settle({}, {"images": "all"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat\n\ndog\n", "line 2 .* empty name"),
        ("cat,,tom\n", "line 1 .* empty name"),
        ("cat\ndog\ncat,tom\n", "have 'cat' twice"),
        ("\n", "no class in"),
    ],
)
def test_a_faulty_list_of_class_names_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_class_names(text, "mine")


def test_phrasings_are_separated_by_commas() -> None:
    assert parse_class_names("sofa, couch\ncat\n", "mine") == (("sofa", "couch"), ("cat",))
    assert read_class_names("voc20")[-1][0] == "tv/monitor"


@pytest.mark.parametrize("name", TREE_NAMES)
def test_a_data_set_is_read_from_its_own_format(
    name: str, trees: ModuleType, tmp_path: Path
) -> None:
    dataset = get_dataset(name)
    split = dataset.test_split
    trees.TREES[name](tmp_path, split, 3)
    identities = []
    for options in choices(dataset):
        listing = pickle.loads(pickle.dumps(dataset.open(tmp_path, split, options)))
        identity = listing.identity()
        assert (listing.name, listing.split) == (name, split)
        assert options.items() <= identity.items()
        assert identity == dataset.open(tmp_path, split, options).identity()
        identities.append(tuple(identity.items()))
        keys = [listing.key(index) for index in range(len(listing))]
        assert len(set(keys)) == len(keys) >= 3
        for index in range(3):
            drawn = trees.scene(index, split)
            sample = listing.read(index)
            assert sample.image.size == (trees.SIDE, trees.SIDE)
            if dataset.task == "multilabel":
                assert isinstance(listing, Listing)
                if index > 0:  # the first image of VOC has difficult objects
                    assert sample.labels[:16].tolist() == drawn.labels.tolist()
                    assert not sample.labels[16:].any()
            else:
                assert isinstance(listing, SegmentationListing)
                assert listing.ignore_index == IGNORE_INDEX
                assert sample.mask.dtype == np.uint8
                assert ((sample.mask < len(listing.class_names)) | (sample.mask == 255)).all()
    assert len(set(identities)) == len(identities)
    assert dataset.open(tmp_path, split, {}).identity().items() >= choices(dataset)[0].items()


@pytest.mark.parametrize("name", TREE_NAMES)
def test_class_names_of_the_entry_are_those_of_the_default_options(
    name: str, trees: ModuleType, tmp_path: Path
) -> None:
    dataset = get_dataset(name)
    trees.TREES[name](tmp_path, dataset.test_split, 1)
    listing = dataset.open(tmp_path, dataset.test_split, {})
    assert dataset.class_names in ((), listing.class_names)
    if isinstance(listing, SegmentationListing):
        assert listing.phrasings == dataset.phrasings


@pytest.mark.parametrize("name", TREE_NAMES)
def test_a_missing_tree_and_an_unknown_option_are_told(name: str, tmp_path: Path) -> None:
    dataset = get_dataset(name)
    with pytest.raises(ValueError, match=str(tmp_path)):
        dataset.open(tmp_path, dataset.test_split, {})
    with pytest.raises(ValueError, match="unknown option 'colour'"):
        dataset.open(tmp_path, dataset.test_split, {"colour": "red"})


@pytest.mark.parametrize("name", [*TREE_NAMES, *DRAWN])
def test_an_unknown_split_is_told(name: str, trees: ModuleType, tmp_path: Path) -> None:
    dataset = get_dataset(name)
    if name not in DRAWN:
        trees.TREES[name](tmp_path, dataset.test_split, 1)
    with pytest.raises(ValueError, match="nowhere"):
        dataset.open(tmp_path, "nowhere", {})


# ---------------------------------------------------------------------------------------------
# Column orders, against text embeddings that others made of the classes in the official order
# ---------------------------------------------------------------------------------------------


def centred(path: Path) -> np.ndarray:
    """Unit rows without what all have in common."""
    rows = np.load(path).astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows - rows.mean(axis=0)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def test_voc_and_stuff_columns_mean_the_same_to_a_real_clip(shared_data: Path) -> None:
    voc = centred(shared_data / "clip_text" / "voc20_vitb16.npy")
    stuff = centred(shared_data / "clip_text" / "cocostuff171_vitb16.npy")
    names = get_dataset("stuff").class_names
    other_words = {
        "aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tv/monitor": "tv",
    }  # fmt: skip
    for name, row in zip(get_dataset("voc2007").class_names, voc @ stuff.T, strict=True):
        assert names[row.argmax()] == other_words.get(name, name)
    alike = stuff @ stuff.T - 2 * np.eye(len(names))
    nearest = dict(zip(names, (names[column] for column in alike.argmax(axis=1)), strict=True))
    for one, other in (  # spread over the stuff columns, first to last
        ("blanket", "towel"), ("cage", "fence"), ("carpet", "rug"), ("cupboard", "cabinet"),
        ("grass", "moss"), ("hill", "mountain"), ("mud", "dirt"), ("railing", "fence"),
        ("rock", "stone"), ("sea", "river"), ("sky-other", "clouds"), ("tree", "branch"),
        ("wall-brick", "wall-stone"), ("window-blind", "window-other"), ("wood", "wall-wood"),
    ):  # fmt: skip
        assert nearest[one] == other


def test_coco_columns_are_those_of_a_real_clip(shared_data: Path) -> None:
    # another CLIP, hence another space; but classes alike in one are alike in the other
    coco = centred(shared_data / "clip_text" / "coco80_vitb32.npy")
    stuff = centred(shared_data / "clip_text" / "cocostuff171_vitb16.npy")[:80]
    assert get_dataset("stuff").class_names[:80] == get_dataset("coco14").class_names
    pairs = np.triu_indices(80, 1)
    alike = (coco @ coco.T)[pairs]
    for shift, low, high in ((0, 0.85, 1.0), (1, -1, 0.4), (2, -1, 0.4)):
        moved = np.roll(stuff, shift, axis=0)
        assert low < np.corrcoef(alike, (moved @ moved.T)[pairs])[0, 1] < high
