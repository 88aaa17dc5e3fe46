from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dclip.data.images import ImageError
from dclip.data.listing import ImageListing
from dclip.data.registry import get_dataset
from dclip.data.voc import CLASS_NAMES, MAX_XML_BYTES, label_vector, read_objects


def open_voc(root: Path, split: str = "test", **options: str) -> ImageListing:
    listing = get_dataset("voc2007").open(root, split, options)
    assert isinstance(listing, ImageListing)
    return listing


@pytest.fixture
def xml(trees: ModuleType, tmp_path: Path) -> Path:
    """An annotation with a chair, a difficult chair, a difficult dog and a cow."""
    path = tmp_path / "one.xml"
    objects = [("chair", False), ("chair", True), ("dog", True), ("cow", False)]
    path.write_text(trees.voc_xml(objects))
    return path


def test_columns_are_alphabetical_by_the_names_in_the_annotations(trees: ModuleType) -> None:
    assert [name.replace(" ", "").replace("/", "") for name in CLASS_NAMES] == trees.VOC_NAMES
    assert sorted(trees.VOC_NAMES) == trees.VOC_NAMES


def test_a_class_with_only_difficult_objects_is_negative_or_left_open(xml: Path) -> None:
    # columns: chair 8, cow 9, dog 11; a chair that is not difficult makes the other one irrelevant
    objects = read_objects(xml)
    assert objects == [(8, False), (8, True), (11, True), (9, False)]
    negative = np.zeros(20)
    negative[[8, 9]] = 1
    assert label_vector(objects).tolist() == negative.tolist()
    ignored = negative.copy()
    ignored[11] = -1
    assert label_vector(objects, difficult="ignore").tolist() == ignored.tolist()


def test_the_option_reaches_the_labels(trees: ModuleType, tmp_path: Path) -> None:
    trees.write_voc(tmp_path, "test", 3, year="VOC2007")
    column = trees.scene(0).objects[0].class_index  # only difficult objects of it in image 0
    assert open_voc(tmp_path).read(0).labels[column] == 0
    ignoring = open_voc(tmp_path, difficult="ignore")
    assert ignoring.read(0).labels[column] == -1
    assert (ignoring.labels < 0).sum() == 1
    assert ignoring.identity()["difficult"] == "ignore"
    assert open_voc(tmp_path).identity() != ignoring.identity()


@pytest.mark.parametrize("above", ["VOCdevkit", "VOCdevkit/VOC2007", "."])
def test_the_root_may_be_any_of_the_folders_on_the_way(
    above: str, trees: ModuleType, tmp_path: Path
) -> None:
    trees.write_voc(tmp_path, "test", 2, year="VOC2007")
    assert open_voc(tmp_path / above).keys == ("000001", "000002")


def test_images_ascend_whatever_the_order_of_the_list(trees: ModuleType, tmp_path: Path) -> None:
    trees.write_voc(tmp_path, "test", 3, year="VOC2007")
    image_set = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    before = open_voc(tmp_path).identity()
    trees.write_lines(image_set, ["000003  1", "000001 -1", "000002  0", ""])
    assert open_voc(tmp_path).keys == ("000001", "000002", "000003")
    assert open_voc(tmp_path).identity() == before


def test_the_other_year_is_refused(trees: ModuleType, tmp_path: Path) -> None:
    trees.write_voc(tmp_path, "trainval", 2, year="VOC2012")
    with pytest.raises(ValueError, match=r"not of VOC2007.*'2008_000001'; ids of VOC2012 look"):
        open_voc(tmp_path / "VOCdevkit" / "VOC2012", "trainval")


def test_missing_parts_are_counted_and_named(trees: ModuleType, tmp_path: Path) -> None:
    trees.write_voc(tmp_path, "test", 3, year="VOC2012")
    base = tmp_path / "VOCdevkit" / "VOC2012"
    (base / "SegmentationClass" / "2008_000002.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 masks .* such as .*2008_000002\.png"):
        get_dataset("voc12-seg").open(tmp_path, "test", {})
    (base / "Annotations" / "2008_000003.xml").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 annotations .*000003\.xml; .* not public"):
        get_dataset("voc2012").open(tmp_path, "test", {})
    with pytest.raises(ValueError, match=r"no split 'val'.*splits there: 'test'"):
        get_dataset("voc2012").open(tmp_path, "val", {})
    for content, reason in (
        ("\n", "lists no images"),
        ("2008_000001 1\n2008_000001 -1\n", "twice"),
    ):
        (base / "ImageSets" / "Main" / "test.txt").write_text(content)
        with pytest.raises(ValueError, match=reason):
            get_dataset("voc2012").open(tmp_path, "test", {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<annotation><object>", "is not XML"),
        (b"<html/>", "holds <html>"),
        (
            b"<annotation><object><name>unicorn</name></object></annotation>",
            "'unicorn', which is no",
        ),
        (
            b"<annotation><object><name>cat</name><difficult>maybe</difficult></object></annotation>",
            "difficult='maybe'",
        ),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "document type or entit"),
        (b"<!DOCTYPE a><annotation/>", "document type or entit"),
        ('<?xml version="1.0"?><!DOCTYPE a><annotation/>'.encode("utf-16"), "is not UTF-8"),
        (b" " * (MAX_XML_BYTES + 1), "more than 1000000 bytes"),
    ],
)
def test_a_malformed_or_hostile_annotation_is_refused(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "one.xml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_objects(path)
    with pytest.raises(ValueError, match="there is no annotation"):
        read_objects(tmp_path / "two.xml")


@pytest.mark.parametrize("kind", ["plain", "grey", "cmyk", "rotated", "flat"])
def test_photographs_of_every_kind_are_read(kind: str, trees: ModuleType, tmp_path: Path) -> None:
    trees.write_voc(tmp_path, "test", 1, year="VOC2007")
    drawn = trees.scene(0).image[:48]
    trees.write_image(tmp_path / "VOCdevkit/VOC2007/JPEGImages/000001.jpg", drawn, kind)
    image = open_voc(tmp_path).read(0).image
    assert image.mode == "RGB"
    expected = {"flat": drawn[:1], "grey": np.repeat(drawn.mean(2, keepdims=True), 3, 2)}
    difference = np.asarray(image).astype(float) - expected.get(kind, drawn)
    assert np.abs(difference).mean() < 25  # JPEG halves the resolution of colours


def test_a_truncated_or_missing_photograph_fails_alone(trees: ModuleType, tmp_path: Path) -> None:
    trees.write_voc(tmp_path, "test", 3, year="VOC2007")
    folder = tmp_path / "VOCdevkit/VOC2007/JPEGImages"
    trees.write_image(folder / "000001.jpg", trees.scene(0).image, "truncated")
    (folder / "000002.jpg").unlink()
    listing = open_voc(tmp_path)
    for index in (0, 1):
        with pytest.raises(ImageError, match=f"00000{index + 1}"):
            listing.read(index)
    assert listing.read(2).labels.any()


def test_voc20_leaves_background_out(trees: ModuleType, tmp_path: Path) -> None:
    trees.write_voc(tmp_path, "val", 1, year="VOC2012")
    drawn = trees.scene(0).mask
    with_background = get_dataset("voc12-seg").open(tmp_path, "val", {}).read(0).mask
    without = get_dataset("voc12-seg").open(tmp_path, "val", {"classes": "voc20"}).read(0).mask
    # the first row is the border colour; the palette's colours are not what counts
    assert (with_background[0] == 255).all()
    assert np.array_equal(with_background[1:], drawn[1:])
    assert np.array_equal(without[1:], np.where(drawn[1:] > 0, drawn[1:] - 1, 255))


def test_real_annotations_and_masks(shared_data: Path, tmp_path: Path) -> None:
    sample = shared_data / "voc_sample"
    assert read_objects(sample / "Annotations" / "2011_003353.xml") == [(14, False)]
    sets = tmp_path / "VOC2012" / "ImageSets"
    for folder in ("Annotations", "JPEGImages", "SegmentationClass"):
        sets.parent.mkdir(exist_ok=True)
        (sets.parent / folder).symlink_to(sample / folder)
    for task, ids in (("Main", "2007_000063\n2011_003353\n"), ("Segmentation", "2007_000063\n")):
        (sets / task).mkdir(parents=True)
        (sets / task / "val.txt").write_text(ids)
    listing = get_dataset("voc2012").open(tmp_path, "val", {})
    found = [
        {CLASS_NAMES[k] for k in np.flatnonzero(listing.read(index).labels)} for index in (0, 1)
    ]
    assert found == [{"dog", "chair"}, {"person"}]
    masks = get_dataset("voc12-seg").open(tmp_path, "val", {})
    names = {masks.class_names[k] for k in np.unique(masks.read(0).mask) if k != 255}
    assert names == {"background", "dog", "chair"}
