import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dclip.data.coco import find_coco_split, read_coco
from dclip.data.images import ImageError
from dclip.data.listing import ImageListing, Listing
from dclip.world import shapes
from dclip.world.dataset import ShapesListing


def document(**changes: Any) -> dict[str, Any]:
    """Four images: two dogs, one crowd of people and a dog, nothing, one person."""
    names = {18: "dog", 1: "person", 44: "bottle"}
    objects = [(7, 18, 0), (7, 18, 0), (3, 1, 1), (3, 18, 0), (10, 1, 0)]
    return {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in (7, 3, 5, 10)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "iscrowd": crowd}
            for n, (image, category, crowd) in enumerate(objects)
        ],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    } | changes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set in COCO's layout, with one split, ``val``."""
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations").mkdir()
    for number in (7, 3, 5):  # no file for image 10
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "val" / f"{number}.png")
    write(tmp_path, document())
    return tmp_path


def write(root: Path, content: object) -> None:
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))


def read(root: Path, **options: Any) -> ImageListing:
    return read_coco(*find_coco_split(root, "val"), **options)


def test_labels_by_hand(root: Path) -> None:
    listing = read(root)
    # categories ascend by id: person 1, dog 18, bottle 44; images ascend by id, 5 has no object
    assert listing.class_names == ("person", "dog", "bottle")
    assert listing.keys == ("000000000003", "000000000007", "000000000010")
    assert listing.labels.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert (listing.name, listing.split, len(listing)) == ("coco", "val", 3)


def test_a_file_that_is_two_images_has_the_same_objects_in_both(root: Path) -> None:
    again = [{"id": 8, "file_name": "./7.png"}, {"id": 9, "file_name": "7.png"}]
    twice = document(images=[*document()["images"], *again])
    write(root, twice)
    with pytest.raises(ValueError, match=r"images 0{11}7 and 0{11}8 are one file, '\./7\.png'"):
        read(root, images="all")
    twice["annotations"] += [{"image_id": i, "category_id": 18} for i in (8, 9)]
    write(root, twice)
    assert read(root).notes[-1] == (
        "2 images listed again under another id, such as 000000000007 and 000000000008 (./7.png)"
    )


def test_images_without_objects_are_kept_on_demand(root: Path) -> None:
    listing = read(root, images="all")
    assert listing.keys[1] == "000000000005"
    assert listing.labels[1].sum() == 0


def test_samples_are_read_by_index_also_from_a_pickle(root: Path) -> None:
    listing = pickle.loads(pickle.dumps(read(root)))
    assert isinstance(listing, Listing)
    assert listing.key(1) == "000000000007"
    sample = listing.read(1)
    assert sample.image.getpixel((0, 0)) == (7, 0, 0)
    assert sample.labels.tolist() == [0, 1, 0]


def test_a_missing_image_is_found_out_when_it_is_read(root: Path) -> None:
    with pytest.raises(ImageError, match=r"image 000000000010: .*10\.png: No such file"):
        read(root).read(2)


def test_nothing_is_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(root)
    assert capsys.readouterr() == ("", "")


def test_both_layouts_are_found(root: Path) -> None:
    (root / "images").mkdir()
    (root / "val").rename(root / "images" / "val")
    assert read(root).image_dir == root / "images" / "val"
    (root / "images" / "val").rename(root / "elsewhere")
    with pytest.raises(ValueError, match=r"no images of split 'val' .*images/val is there"):
        read(root)


def test_an_unknown_split_is_refused_with_those_there(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'train2017' .*splits there are 'val'"):
        find_coco_split(root, "train2017")
    with pytest.raises(ValueError, match="nor annotations of any other split"):
        find_coco_split(root / "val", "val")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": None}, "it needs lists .*, and has no list 'images'"),
        ({"images": [{"id": 7}, {"id": 3}, {"id": 10}]}, r"entry 2 of images \(id 3\) has no file"),
        ({"images": [{"file_name": "7.png"}]}, "entry 1 of images has no id$"),
        ({"images": [{"id": True}]}, "entry 1 of images .* needs an id that is a whole number"),
        ({"images": [{"id": 1.5}]}, "entry 1 of images .* needs an id that is a whole number"),
        (
            {"images": [{"id": i, "file_name": i} for i in (7, 3, 10)]},
            r"entry 2 of images \(id 3\) has file_name 3, which is no text",
        ),
        ({"images": [{"id": 7, "file_name": "7.png"}]}, "annotations of 2 images it does not list"),
        ({"images": [{"id": 7, "file_name": "7.png"}] * 2, "annotations": []}, "image id twice: 7"),
        ({"images": ["7.png"]}, "entry 1 of images is '7.png', not an object"),
        (
            {"annotations": [{"id": 4, "image_id": 7}]},
            r"entry 1 of annotations \(id 4\) has no category_id$",
        ),
        ({"annotations": [{"category_id": 1}]}, "entry 1 of annotations has no image_id$"),
        ({"annotations": [None]}, "entry 1 of annotations is null, not an object"),
        (
            {"annotations": [{"image_id": 7, "segments_info": []}]},
            "has no category_id; panoptic annotations are of another kind",
        ),
        (
            {"annotations": [{"id": 1, "image_id": 7, "category_id": 2}]},
            "image 7 has an object of category 2, which is not listed",
        ),
        ({"annotations": []}, "no image with an object; images='all'"),
        ({"images": [], "annotations": []}, "no image with an object$"),
        ({"categories": [], "annotations": []}, "needs categories"),
        ({"categories": []}, "object of category 18, which is not listed"),
        (
            {"categories": [{"id": 1}], "annotations": []},
            r"entry 1 of categories \(id 1\) has no name$",
        ),
        (
            {"categories": [{"id": 1, "name": " "}], "annotations": []},
            "needs a name that is a text, not ' '",
        ),
        ({"categories": [{"id": 1, "name": "a"}] * 2}, "lists a category id twice: 1"),
        (
            {"categories": [{"id": i, "name": "ab"[i == 1]} for i in (1, 18, 44)]},
            "categories 18 and 44 are both called 'a'; give each a name of its own",
        ),
    ],
)
def test_a_malformed_document_is_refused(root: Path, changes: dict[str, Any], reason: str) -> None:
    write(root, document(**changes))
    with pytest.raises(ValueError, match=reason):
        read(root)


@pytest.mark.parametrize("name", ["../7.png", "/etc/7.png", "a/../../7.png", "..\\7.png", ""])
def test_a_file_outside_the_image_folder_is_refused(root: Path, name: str) -> None:
    images = [{"id": i, "file_name": name} for i in (7, 3, 10)]
    write(root, document(images=images))
    with pytest.raises(ValueError, match="not inside the image folder"):
        read(root)


@pytest.mark.parametrize(
    ("of_images", "of_annotations", "keys"),
    [
        ([1, 2], ["1", "2"], ["000000000001", "000000000002"]),
        (["1", "2"], [1, 2.0], ["1", "2"]),
        ([1.0, 2.0], [1, 2], ["000000000001", "000000000002"]),
        (["0001", "2"], [1, "2.0"], ["0001", "2"]),
        ([1, "1"], ["1", 1], ["000000000001", "1"]),  # each is there as it is written
        (
            ["train/1.png", "http://h/2.png"],
            ["train/1.png", "http://h/2.png"],
            ["http-h-2-png-88265732fbf8", "train-1-png-b5bbc104d307"],
        ),
    ],
)
def test_ids_are_compared_as_numbers_where_they_are(
    root: Path, of_images: list[Any], of_annotations: list[Any], keys: list[str]
) -> None:
    Image.new("RGB", (4, 4)).save(root / "val" / "1.png")
    images = [{"id": i, "file_name": "1.png"} for i in of_images]
    annotations = [{"image_id": i, "category_id": "18"} for i in of_annotations]
    write(root, document(images=images, annotations=annotations))
    listing = read(root)
    assert listing.keys == tuple(keys)
    assert listing.labels.tolist() == [[0, 1, 0]] * 2
    assert "1 id of categories spelt in two ways, such as '18' and 18" in " ".join(listing.notes)


def test_an_id_that_may_be_one_of_two_is_refused(root: Path) -> None:
    images = [{"id": i, "file_name": "7.png"} for i in ("01", "1")]
    write(root, document(images=images, annotations=[{"image_id": 1, "category_id": 1}]))
    with pytest.raises(ValueError, match="annotations of 1 image it does not list, such as image"):
        read(root)


def test_categories_ascend_by_number_and_as_text_where_all_are_text(root: Path) -> None:
    for ids, expected in (
        ([10, "9", 2.0], ("c", "b", "a")),
        (["10", "9", "2"], ("a", "c", "b")),
        (["x", 10, 2], ("c", "b", "a")),
    ):
        categories = [{"id": i, "name": name} for i, name in zip(ids, "abc", strict=True)]
        annotations = [{"image_id": 7, "category_id": ids[0]}]
        write(root, document(categories=categories, annotations=annotations))
        listing = read(root)
        assert listing.class_names == expected
        assert listing.class_names[listing.labels[0].argmax()] == "a"


def test_what_an_exporter_puts_above_all_categories_is_no_class(root: Path) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "dog", "supercategory": "pets"},
        {"id": 2, "name": "pets", "supercategory": "pets"},
    ]
    annotations = [{"image_id": 7, "category_id": 2}]
    write(root, document(categories=categories, annotations=annotations))
    listing = read(root)
    assert listing.class_names == ("dog", "pets")
    assert listing.labels.tolist() == [[0, 1]]
    assert "category 'pets' (id 0) is what the exporter puts above all others" in listing.notes[0]

    write(root, document(categories=categories, annotations=[{"image_id": 7, "category_id": 0}]))
    with pytest.raises(ValueError, match="categories 0 and 2 are both called 'pets'"):
        read(root)
    for change in ({"supercategory": "pets"}, {"name": "cat"}):  # a class like any other
        other = [categories[0] | change, categories[1] | {"supercategory": "x"}]
        write(root, document(categories=other, annotations=[{"image_id": 7, "category_id": 1}]))
        assert len(read(root).class_names) == 2


def test_images_without_an_object_are_counted(root: Path) -> None:
    expected = "no object in 1 of 4 images, such as 000000000005: "
    assert read(root).notes == (expected + "left out (images=all keeps such images)",)
    assert read(root, images="all").notes == (
        expected + "kept (images=annotated leaves such images out)",
    )


ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", " ", "1", "x" * 5000),
    *("\ud800", "a\0b", "../x", "/", "http://[", "data:image/png;base64,xx", "C:\\", "?d=x"),
    *([], [1], [[1]], [None], ["x"], {}, {"a": 1}, {"size": [4, 4], "counts": "5"}),
]


def test_whatever_a_file_holds_is_read_or_refused_in_words(root: Path) -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        content = lvis(neg_category_ids={7: [44]}, not_exhaustive_category_ids={3: [18]})
        content = json.loads(json.dumps(content))
        entry = rng.choice(content[rng.choice(list(content))])
        key = rng.choice(list(entry))
        entry[key] = rng.choice(ODD)
        write(root, content)
        try:
            listing = read(root, images="all")
            listing.identity()
        except ValueError as error:
            refused += 1
            text = str(error)
            assert text.startswith(str(root)), text
            assert len(text) < 400 + len(str(root)), text
            assert "\n" not in text
            for word in ("NoneType", "object is not", "argument", "KeyError", "codec"):
                assert word not in text
    assert 100 < refused < 400


# ---------------------------------------------------------------------------------------------
# Partial labels, as in LVIS
# ---------------------------------------------------------------------------------------------


def lvis(**lists: dict[int, list[Any]]) -> dict[str, Any]:
    """The document with these lists of its images, by name and image."""
    images = document()["images"]
    for name, by_image in lists.items():
        for image in images:
            if image["id"] in by_image:
                image[name] = by_image[image["id"]]
    return document(images=images)


def test_what_is_not_verified_is_unknown(root: Path) -> None:
    # image 7 has a dog, 3 a person and a dog, 10 a person, 5 nothing; bottles are verified in 7
    absent = {7: [44], 3: [], 5: [1.0, "18"], 10: []}
    write(root, lvis(neg_category_ids=absent, not_exhaustive_category_ids={3: [18], 10: [44]}))
    listing = read(root, images="all")
    assert listing.labels.dtype == np.int8
    assert listing.keys == tuple(f"{number:012d}" for number in (3, 5, 7, 10))
    assert listing.labels.tolist() == [[1, 1, -1], [0, 0, -1], [-1, 1, 0], [1, -1, -1]]
    assert "labels are partial" in " ".join(listing.notes)
    assert listing.read(2).labels.tolist() == [-1, 1, 0]


def test_contradictions_and_images_without_lists_are_told(root: Path) -> None:
    write(root, lvis(neg_category_ids={7: [18, 44]}, not_exhaustive_category_ids={7: [44]}))
    listing = read(root)
    assert listing.labels.tolist() == [[1, 1, -1], [-1, 1, -1], [1, -1, -1]]
    notes = " ".join(listing.notes)
    for text in (
        "1 label with an object though in neg_category_ids, taken for 1, such as 'dog' of image"
        " 000000000007",
        "1 label in both neg_category_ids and not_exhaustive_category_ids, taken for unknown, such"
        " as 'bottle' of image 000000000007",
        "neither neg_category_ids nor not_exhaustive_category_ids in 2 of 3 images, such as"
        " 000000000003",
        "no class is known to be absent",
    ):
        assert text in notes


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            [9],
            r"entry 1 of images \(id 7\) has category 9 in neg_category_ids, which is not listed",
        ),
        ([None], "has category null in neg_category_ids"),
        ("44", "has neg_category_ids '44', which is no list of category ids"),
    ],
)
def test_lists_of_other_content_are_refused(root: Path, value: Any, reason: str) -> None:
    write(root, lvis(neg_category_ids={7: value}))
    with pytest.raises(ValueError, match=reason):
        read(root)


def test_an_address_stands_for_a_file_name(root: Path) -> None:
    for split, number in (("train2017", 3), ("val2017", 7)):  # LVIS mixes both in one split
        (root / split).mkdir()
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / split / f"{number}.png")
    place = "http://images.cocodataset.org"
    images = [
        {"id": 3, "coco_url": f"{place}/train2017/3.png"},
        {"id": 7, "coco_url": f"{place}/val2017/7.png", "file_name": ""},
    ]
    annotations = [{"image_id": i, "category_id": 1} for i in (3, 7)]
    write(root, document(images=images, annotations=annotations))
    listing = read_coco(root / "annotations" / "instances_val.json", root)
    assert listing.file_names == ("train2017/3.png", "val2017/7.png")
    assert listing.image_dir == root
    assert [listing.read(row).image.getpixel((0, 0)) for row in (0, 1)] == [(3, 0, 0), (7, 0, 0)]


def test_ids_that_give_one_key_are_refused(root: Path) -> None:
    ids = [7, "000000000007"]
    images = [{"id": i, "file_name": "7.png"} for i in ids]
    annotations = [{"id": n, "image_id": i, "category_id": 1} for n, i in enumerate(ids)]
    write(root, document(images=images, annotations=annotations))
    with pytest.raises(ValueError, match="lists image 000000000007 twice"):
        read(root)


def test_a_document_that_is_no_json_and_missing_parts_are_refused(root: Path) -> None:
    annotations = root / "annotations" / "instances_val.json"
    with pytest.raises(ValueError, match="no image folder"):
        read_coco(annotations, root / "none")
    with pytest.raises(ValueError, match="no annotation file"):
        read_coco(root / "none.json", root / "val")
    for content in (b'{"images": [', b"\xff\xfe\xfa"):
        annotations.write_bytes(content)
        with pytest.raises(ValueError, match="is not JSON"):
            read(root)
    annotations.write_text("[]")
    with pytest.raises(ValueError, match="not in COCO's format"):
        read(root)


def test_written_shapes_have_the_labels_of_the_drawn_ones(tmp_path: Path) -> None:
    shapes.write_coco(tmp_path, "test", count=5, resolution=96)
    written = read_coco(*find_coco_split(tmp_path, "test"))
    drawn = ShapesListing("test", resolution=96)
    assert written.class_names == drawn.class_names
    for index in range(5):
        assert np.array_equal(written.read(index).labels, drawn.read(index).labels)


def test_real_annotations_have_the_counts_of_a_plain_loop(shared_data: Path) -> None:
    for split, annotated in (("train2017", 30), ("val2017", 6)):
        annotations, images = find_coco_split(shared_data / "coco_tiny", split)
        listing = read_coco(annotations, images)
        content = json.loads(annotations.read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        found = {
            (int(listing.key(index)), name)
            for index in range(len(listing))
            for name, label in zip(listing.class_names, listing.labels[index], strict=True)
            if label
        }
        assert found == {(o["image_id"], names[o["category_id"]]) for o in content["annotations"]}
        assert len(listing) == annotated
        assert len(listing.class_names) == 80
        assert listing.read(0).image.mode == "RGB"
