import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dclip.data import shapes
from dclip.data.coco import find_coco_split, read_coco
from dclip.data.images import ImageError
from dclip.data.listing import ImageListing, Listing, ShapesListing


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
        ({"images": None}, "not in COCO's format: it needs lists"),
        ({"images": [{"id": 7}, {"id": 3}, {"id": 10}]}, "not in COCO's format: KeyError"),
        ({"images": [{"id": 7, "file_name": "7.png"}]}, "annotations of 2 images it does not list"),
        ({"images": [{"id": 7, "file_name": "7.png"}] * 2, "annotations": []}, "image id twice"),
        ({"images": ["7.png"]}, "not in COCO's format: TypeError"),
        ({"annotations": [{"id": 1, "image_id": 7}]}, "not in COCO's format: KeyError"),
        (
            {"annotations": [{"id": 1, "image_id": 7, "category_id": 2}]},
            "image 7 has an object of category 2, which is not listed",
        ),
        ({"annotations": []}, "no image with an object; images='all'"),
        ({"images": [], "annotations": []}, "no image with an object$"),
        ({"categories": []}, "needs categories"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "needs categories"),
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


def test_an_image_id_unfit_as_a_key_is_refused(root: Path) -> None:
    annotations = [{"id": 1, "image_id": "a/b", "category_id": 1}]
    images = [{"id": "a/b", "file_name": "7.png"}]
    write(root, document(images=images, annotations=annotations))
    with pytest.raises(ValueError, match="'a/b' cannot be a sample's key"):
        read(root)


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
