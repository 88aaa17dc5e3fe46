from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dclip.data.cityscapes import LABELS, MASKS
from dclip.data.dataset import read_class_names
from dclip.data.images import ImageError
from dclip.data.mask_folders import MaskFolders, beside, in_order
from dclip.data.registry import get_dataset
from dclip.data.segmentation import (
    IGNORE_INDEX,
    MaskFolderListing,
    list_images,
    read_indices,
    translate,
)
from dclip.data.stuff import STUFF_IDS, THING_IDS, pixel_map


@pytest.fixture
def listing(tmp_path: Path) -> MaskFolderListing:
    """One image of 6 x 4 pixels with a mask of cats (stored as 7) on nothing (0)."""
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(tmp_path / "mask.png")
    return MaskFolderListing(
        name="toy",
        split="val",
        phrasings=(("cat",),),
        keys=("a",),
        image_paths=(tmp_path / "a.png",),
        mask_paths=(tmp_path / "mask.png",),
        id_map={0: IGNORE_INDEX, 7: 0},
    )


def test_a_mask_of_another_size_is_refused(listing: MaskFolderListing) -> None:
    path = listing.mask_paths[0]
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    with pytest.raises(ImageError, match=r"mask\.png is 5 x 4 pixels, its image 6 x 4$"):
        listing.read(0)
    Image.fromarray(np.zeros((6, 4), np.uint8)).save(path)
    with pytest.raises(ImageError, match="is 4 x 6 pixels, its image 6 x 4; did a camera"):
        listing.read(0)


def test_unknown_values_are_named_with_their_number(listing: MaskFolderListing) -> None:
    values = np.zeros((4, 6), np.uint8)
    values[0, :3], values[1, 0] = 9, 200
    Image.fromarray(values).save(listing.mask_paths[0])
    with pytest.raises(ImageError, match=r"no labels of toy: 9 \(3 pixels\), 200 \(1 pixels\)$"):
        listing.read(0)
    many = np.arange(30, 54, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(many).save(listing.mask_paths[0])
    with pytest.raises(ImageError, match=r"37 \(1 pixels\) and 16 more"):
        listing.read(0)


def test_a_damaged_or_unfit_mask_is_refused(listing: MaskFolderListing) -> None:
    path = listing.mask_paths[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"mask .*mask\.png cannot be decoded"):
        listing.read(0)
    Image.new("RGB", (6, 4)).save(path)
    with pytest.raises(ImageError, match=r"mode 'RGB'.*coloured picture"):
        listing.read(0)
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(path)
    with pytest.raises(ImageError, match="not one 8-bit channel"):
        listing.read(0)
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match="cannot be decoded"):
        listing.read(0)
    path.unlink()
    with pytest.raises(ImageError, match="there is no mask"):
        listing.read(0)


def test_a_mask_that_would_fill_the_memory_is_refused(
    listing: MaskFolderListing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dclip.data.segmentation.MAX_PIXELS", 23)
    with pytest.raises(ImageError, match="6 x 4 pixels, more than 23"):
        read_indices(listing.mask_paths[0])


@pytest.mark.parametrize(
    ("keys", "reason"),
    [((), "lists no images"), (("a", "a"), "lists a twice"), (("a/b",), "'a/b' cannot be")],
)
def test_a_listing_needs_keys_that_are_unique_and_fit(keys: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MaskFolderListing("toy", "val", (("cat",),), keys, (), (), {})


def test_palette_masks_are_read_as_numbers(trees: ModuleType, tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for palette in (False, True):
        trees.write_mask(tmp_path / "mask.png", values, palette=palette)
        assert np.array_equal(read_indices(tmp_path / "mask.png"), values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_of_few_bits_are_read_as_numbers(
    bits: int, trees: ModuleType, tmp_path: Path
) -> None:
    # Pillow shows four bits of grey as 0, 17, 34, ...; the file says 0, 1, 2, ...
    values = (np.arange(3 * 11) % 2**bits).reshape(3, 11)
    trees.write_grey_png(tmp_path / "mask.png", values, bits=bits)
    assert np.array_equal(read_indices(tmp_path / "mask.png"), values)


def test_one_bit_palettes_are_read_as_numbers(tmp_path: Path) -> None:
    # PNG packs a palette of two colours into single bits
    image = Image.fromarray(np.array([[0, 1, 1]], np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "mask.png", bits=1)
    assert read_indices(tmp_path / "mask.png").tolist() == [[0, 1, 1]]


@given(
    st.dictionaries(st.integers(0, 255), st.integers(0, 255), min_size=1),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=40),
)
def test_translation_is_a_look_up(id_map: dict[int, int], picks: list[int]) -> None:
    stored = list(id_map)
    values = [stored[pick % len(stored)] for pick in picks]
    found = translate(np.array([values], np.uint8), id_map, source="x", name="x")
    assert found.tolist() == [[id_map[value] for value in values]]


# ---------------------------------------------------------------------------------------------
# The tables, against pairs of stored value and name taken from each data set's own documents
# ---------------------------------------------------------------------------------------------

# Any shift or swap of a table or of a class-name file breaks one of these.
ANCHORS: dict[tuple[str, str], dict[int, str | None]] = {
    ("voc12-seg", "voc21"): {0: "background", 1: "aeroplane", 15: "person", 20: "tv/monitor"},
    ("voc12-seg", "voc20"): {0: None, 1: "aeroplane", 5: "bottle", 15: "person", 20: "tv/monitor"},
    ("cityscapes", "cityscapes19"): {
        0: None, 6: None, 7: "road", 8: "sidewalk", 9: None, 11: "building", 17: "pole", 18: None,
        19: "traffic light", 21: "vegetation", 23: "sky", 24: "person", 25: "rider", 26: "car",
        28: "bus", 29: None, 31: "train", 33: "bicycle",
    },
    ("cityscapes", "cityscapes30"): {
        0: None, 3: None, 4: "static", 6: "ground", 7: "road", 9: "parking", 10: "rail track",
        14: "guard rail", 18: "polegroup", 23: "sky", 29: "caravan", 30: "trailer", 33: "bicycle",
    },
    ("context", "context59"): {
        0: None, 1: "aeroplane", 9: "book", 19: "computer", 36: "mouse", 37: "person",
        40: "potted plant", 46: "sign", 47: "sky", 53: "tree", 57: "water", 59: "wood",
    },
    ("context", "context60"): {0: "background", 1: "aeroplane", 47: "sky", 59: "wood"},
    ("ade20k", ""): {
        0: None, 1: "wall", 2: "building", 3: "sky", 4: "floor", 5: "tree", 7: "road", 13: "person",
        21: "car", 22: "water", 44: "signboard", 66: "toilet", 81: "bus", 99: "bottle",
        111: "stool", 128: "bicycle", 137: "traffic light", 149: "clock", 150: "flag",
    },
    # a stuff-thing map holds the label id minus one: person 1, bench 15, backpack 27, ...
    ("stuff", "stuff171"): {
        0: "person", 10: "fire hydrant", 12: "stop sign", 14: "bench", 26: "backpack", 43: "bottle",
        61: "chair", 71: "tv", 89: "toothbrush", 91: "banner", 123: "grass", 148: "road",
        156: "sky-other", 168: "tree", 181: "wood", 255: None,
    },
    ("stuff", "stuff91"): {0: None, 91: "banner", 156: "sky-other", 181: "wood", 255: None},
    ("coco17-seg", "object81"): {
        0: "person", 12: "stop sign", 89: "toothbrush", 91: "background", 255: "background",
    },
    ("coco17-seg", "object80"): {0: "person", 71: "tv", 89: "toothbrush", 91: None, 255: None},
}  # fmt: skip


@pytest.mark.parametrize(("name", "classes"), ANCHORS)
def test_stored_values_have_their_published_names(
    name: str, classes: str, trees: ModuleType, tmp_path: Path
) -> None:
    dataset = get_dataset(name)
    trees.TREES[name](tmp_path, dataset.test_split, 1)
    options = {"classes": classes} if classes else {}
    if name == "coco17-seg":
        options["masks"] = "stuff"
    listing = dataset.open(tmp_path, dataset.test_split, options)
    assert isinstance(listing, MaskFolderListing)
    for stored, class_name in ANCHORS[name, classes].items():
        position = listing.id_map[stored]
        found = None if position == IGNORE_INDEX else listing.class_names[position]
        assert found == class_name, stored
    positions = {position for position in listing.id_map.values() if position != IGNORE_INDEX}
    assert positions == set(range(len(listing.class_names)))


@pytest.mark.parametrize(("name", "classes"), [key for key in ANCHORS if key[0] != "coco17-seg"])
def test_the_anchors_notice_every_rotation_of_a_table(
    name: str, classes: str, trees: ModuleType, tmp_path: Path
) -> None:
    # the test of the test: with names moved by k columns, some anchor has another name
    dataset = get_dataset(name)
    trees.TREES[name](tmp_path, dataset.test_split, 1)
    listing = dataset.open(tmp_path, dataset.test_split, {"classes": classes} if classes else {})
    assert isinstance(listing, MaskFolderListing)
    size = len(listing.class_names)
    for shift in range(1, size):
        names = listing.class_names[shift:] + listing.class_names[:shift]
        assert any(
            class_name is not None and names[listing.id_map[stored]] != class_name
            for stored, class_name in ANCHORS[name, classes].items()
        )


def test_a_data_set_of_masks_is_a_finder_and_a_table(tmp_path: Path) -> None:
    masks = MaskFolders(
        "mine",
        lambda root, split: beside(list_images(root / split, "*.jpg"), root / "masks"),
        {"pets": ((("cat",), ("dog", "hound")), in_order((7, 9), (0,)))},
    )
    for folder in ("val", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (3, 1)).save(tmp_path / "val" / "a.jpg")
    with pytest.raises(ValueError, match=r"1 of 1 masks of split 'val' are missing"):
        masks.open(tmp_path, "val", {})
    Image.fromarray(np.array([[0, 7, 9]], np.uint8)).save(tmp_path / "masks" / "a.png")
    listing = masks.open(tmp_path, "val", {})
    assert (listing.keys, listing.class_names) == (("a",), ("cat", "dog"))
    assert listing.read(0).mask.tolist() == [[255, 0, 1]]
    with pytest.raises(ValueError, match="options are none"):
        masks.open(tmp_path, "val", {"classes": "pets"})


def test_cityscapes_tables_follow_the_label_names() -> None:
    for classes in ("cityscapes19", "cityscapes30"):
        names = [phrases[0] for phrases in read_class_names(classes)]
        assert MASKS.classes[classes][1].keys() == LABELS.keys()
        for stored, position in MASKS.classes[classes][1].items():
            assert position == IGNORE_INDEX or names[position] == LABELS[stored]


def test_stuff_ids_are_the_182_but_for_the_unused() -> None:
    assert (len(THING_IDS), len(STUFF_IDS)) == (80, 91)
    assert set(range(1, 183)) - {*THING_IDS, *STUFF_IDS} == {
        12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91,
    }  # fmt: skip
    assert 11 not in pixel_map(THING_IDS)  # street sign, never annotated


# ---------------------------------------------------------------------------------------------
# Masks against the scenes they were written from
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["context", "ade20k", "cityscapes"])
def test_masks_are_those_of_the_scenes(name: str, trees: ModuleType, tmp_path: Path) -> None:
    dataset = get_dataset(name)
    trees.TREES[name](tmp_path, dataset.test_split, 4)
    listing = dataset.open(tmp_path, dataset.test_split, {})
    order = sorted(range(4), key=lambda n: (n % 2, n)) if name == "cityscapes" else range(4)
    for index, number in enumerate(order):  # cityscapes: by city first
        drawn = trees.scene(number).mask
        assert np.array_equal(listing.read(index).mask, np.where(drawn > 0, drawn - 1, 255))


def test_stuff_maps_hold_things_and_stuff(trees: ModuleType, tmp_path: Path) -> None:
    trees.write_coco(tmp_path, "val2017", 2)
    drawn = trees.scene(1, "val2017").mask
    things = drawn > 0
    read = {}
    for classes in ("stuff171", "stuff91"):
        listing = get_dataset("stuff").open(tmp_path, "val2017", {"classes": classes})
        mask = read[classes] = listing.read(1).mask
        assert listing.class_names[mask[1:][~things[1:]][0]] == "grass"
        assert (mask[0][~things[0]] == 255).all()
    assert np.array_equal(read["stuff171"][things], drawn[things] - 1)
    assert (read["stuff91"][things] == 255).all()


def test_real_ade20k_masks_hold_what_is_in_the_pictures(shared_data: Path, tmp_path: Path) -> None:
    sample = shared_data / "ade20k_sample" / "sampleData"
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "validation").symlink_to(sample / folder)
    listing = get_dataset("ade20k").open(tmp_path, "validation", {})
    names = [
        {listing.class_names[k] for k in np.unique(listing.read(index).mask) if k != 255}
        for index in range(3)
    ]
    # the third shows a street with a red bus, a white van and an iron stairway
    assert names[2] >= {"building", "sky", "road", "sidewalk", "car", "signboard", "bus", "van"}
    assert names[2] >= {"streetlight", "escalator"}
    assert {"sky", "tree"} <= names[0] & names[1]
    stored = np.asarray(Image.open(sample / "annotations" / f"{listing.key(0)}.png"))
    assert np.array_equal(listing.read(0).mask, np.where(stored == 0, 255, stored - 1))


def test_a_real_cityscapes_frame_agrees_with_its_train_ids(
    shared_data: Path, tmp_path: Path
) -> None:
    # the sample has both files; train ids are what the benchmark makes of label ids
    sample = shared_data / "cityscapes_sample"
    for folder in ("leftImg8bit", "gtFine"):
        (tmp_path / folder / "val").mkdir(parents=True)
        (tmp_path / folder / "val" / "frankfurt").symlink_to(sample / folder)
    listing = get_dataset("cityscapes").open(tmp_path, "val", {})
    assert listing.key(0) == "frankfurt_000000_000294"
    trained = np.asarray(Image.open(next(sample.glob("gtFine/*labelTrainIds.png"))))
    mask = listing.read(0).mask
    # both files were shrunk on their own, so edges differ by a pixel here and there
    assert (mask == trained).mean() > 0.99
    for position in np.unique(mask):
        assert np.bincount(trained[mask == position]).argmax() == position
