import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as run_lengths

from dclip.data.coco import find_coco_split
from dclip.data.coco_masks import decode_runs, open_own_masks, paint_instances
from dclip.data.images import ImageError
from dclip.data.registry import get_dataset


def square(number: int, category: int, left: int, side: int, **changes: Any) -> dict[str, Any]:
    """An upright square outline that starts at (left, left)."""
    right = left + side
    outline = [[left, left, right, left, right, right, left, right]]
    return {
        "id": number, "image_id": 1, "category_id": category, "segmentation": outline,
    } | changes  # fmt: skip


def write(root: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    """One image of 8 x 6 pixels with these annotations, categories cat (1) and dog (2)."""
    Image.new("RGB", (8, 6)).save(root / "1.png")
    document = {
        "images": [{"id": 1, "file_name": "1.png", "width": 8, "height": 6}],
        "annotations": annotations,
        "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}],
    } | changes
    path = root / "instances.json"
    path.write_text(json.dumps(document))
    return path


def paint(root: Path, annotations: list[dict[str, Any]], by: str, **changes: Any) -> np.ndarray:
    path = write(root, annotations, **changes)
    return paint_instances(path, root, split="val", by=by).read(0).mask


def test_small_objects_stay_on_top_or_the_file_decides(tmp_path: Path) -> None:
    annotations = [square(1, 1, 1, 2), square(2, 2, 0, 4)]  # a small cat, then a large dog over it
    expected = np.full((6, 8), 255)
    expected[:4, :4] = 1
    assert np.array_equal(paint(tmp_path, annotations, "file"), expected)
    expected[1:3, 1:3] = 0
    assert np.array_equal(paint(tmp_path, annotations, "area"), expected)


def test_all_three_forms_of_an_outline_are_read(tmp_path: Path) -> None:
    inside = np.zeros((6, 8), np.uint8)
    inside[1:4, 2:7] = 1
    compressed = run_lengths.encode(np.asfortranarray(inside))["counts"].decode()
    plain = [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8]  # 2 columns and a row above, then 3 on and 3 off
    polygon = [[2, 1, 7, 1, 7, 4, 2, 4]]
    size = {"size": [6, 8]}
    for outline in (size | {"counts": compressed}, size | {"counts": plain}, polygon):
        mask = paint(tmp_path, [square(1, 1, 0, 1, segmentation=outline)], "area")
        assert np.array_equal(mask == 0, inside > 0)


def test_flat_and_paired_polygons_are_read(tmp_path: Path) -> None:
    corners = [[2, 1], [7, 1], [7, 4], [2, 4]]
    flat = [value for corner in corners for value in corner]
    expected = paint(tmp_path, [square(1, 1, 0, 1, segmentation=[flat])], "area")
    assert (expected == 0).any()
    for outline in (flat, corners, [corners]):
        mask = paint(tmp_path, [square(1, 1, 0, 1, segmentation=outline)], "area")
        assert np.array_equal(mask, expected)


def test_file_names_are_found_as_for_label_vectors(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "images\\1.png", "width": 8.0, "height": 6}
    listing = paint_instances(write(tmp_path, [], images=[image]), tmp_path, split="val")
    assert listing.read(0).mask.shape == (6, 8)
    assert "1 of 1 file name taken for another path" in listing.notes[-1]


def test_a_polygon_of_two_corners_encloses_nothing(tmp_path: Path) -> None:
    for outline in ([], [[1, 1, 4, 4]]):
        mask = paint(tmp_path, [square(1, 1, 0, 1, segmentation=outline)], "area")
        assert (mask == 255).all()
    assert (paint(tmp_path, [square(1, 1, 0, 2)], "area") == 0).sum() == 4


def test_boxes_without_outlines_make_no_masks_of_ones_own(tmp_path: Path) -> None:
    boxes = [square(number, 1, 0, 1, segmentation=[]) for number in (1, 2)]
    with pytest.raises(ValueError, match="none of 2 objects has an outline with a pixel"):
        open_own_masks(write(tmp_path, boxes), [tmp_path], split="val")
    listing = open_own_masks(write(tmp_path, [*boxes, square(3, 1, 0, 2)]), [tmp_path], split="val")
    assert "2 objects without a pixel in the outline: not in any mask" in listing.notes


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60), st.integers(1, 5))
def test_compressed_runs_are_decoded_as_pycocotools_encodes_them(
    bits: list[int], height: int
) -> None:
    width = -(-len(bits) // height)
    inside = np.zeros(height * width, np.uint8)
    inside[: len(bits)] = bits
    inside = np.asfortranarray(inside.reshape(width, height).T)
    runs = decode_runs(run_lengths.encode(inside)["counts"])
    decoded = np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T
    assert np.array_equal(decoded, inside)


def test_long_runs_are_decoded() -> None:
    inside = np.zeros((1000, 900), np.uint8, order="F")
    inside[5:800, 3:880] = 1
    runs = decode_runs(run_lengths.encode(inside)["counts"])
    assert (sum(runs), sum(runs[1::2])) == (900_000, 795 * 877)
    for text in (b"", b"o", b"\xff", b"ooooooooooooo0"):
        with pytest.raises(ValueError, match=r"are damaged|are cut short"):
            decode_runs(text)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segmentation": {"size": [5, 8], "counts": [40]}}, r"of size \[5, 8\]"),
        ({"segmentation": {"size": [6, 8], "counts": [40]}}, "cover 40 pixels, the image has 48"),
        ({"segmentation": {"size": [6, 8], "counts": "5"}}, "cover 5 pixels"),
        ({"segmentation": {"size": [6, 8], "counts": "é"}}, "run lengths 'é' are damaged"),
        ({"segmentation": [[1, 2, 3]]}, r"polygon \[1, 2, 3\]: a polygon needs pairs"),
        ({"segmentation": [[0, 0, 9e9, 0, 0, 9e9]]}, "coordinates, all about the image"),
        ({"segmentation": {"size": [6, 8]}}, "read: its run lengths have no 'counts'"),
        ({"segmentation": {"counts": [48]}}, "read: its run lengths have no 'size'"),
        (
            {"segmentation": {"size": [6, 8], "counts": [-1, 49]}},
            r"its counts are \[-1, 49\], no numbers of pixels",
        ),
        (
            {"segmentation": None},
            r"entry 1 of annotations \(id 1\) has an outline that cannot be read: it has none"
            r" \(segmentation is null",
        ),
        ({"segmentation": "POLYGON ((1 2))"}, "segmentation is 'POLYGON .*no polygons and no run"),
        ({"segmentation": [{"x": 1}]}, r'\{"x": 1\} among its polygons is none'),
        ({"segmentation": [[1, "2", 3, 4]]}, r'polygon \[1, "2", 3, 4\] is no list of numbers'),
        ({"segmentation": [[0, 0, float("nan"), 0, 0, 9]]}, "coordinates, all about the image"),
        ({"category_id": 9}, "category 9, which is not listed"),
        ({"image_id": 2}, "annotations of 1 image it does not list"),
    ],
)
def test_a_faulty_annotation_is_named(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        paint(tmp_path, [square(1, 1, 0, 2, **changes)], "area")


def test_faulty_images_are_told(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "1.png", "width": 8, "height": 6}
    for images, reason in (
        ([image | {"width": 10**9}], "1000000000 x 6 pixels"),
        ([image | {"width": None}], r"entry 1 of images \(id 1\) has no width, which masks need"),
        ([image | {"height": -6}], "has height -6, which is no number of pixels"),
        ([image | {"height": float("inf")}], "has height Infinity, which is no number of pixels"),
        ([image | {"file_name": "../1.png"}], "not inside the image folder"),
    ):
        with pytest.raises(ValueError, match=reason):
            paint(tmp_path, [square(1, 1, 0, 2)], "area", images=images)
    with pytest.raises(ValueError, match="lists no images"):
        paint(tmp_path, [], "area", images=[])
    with pytest.raises(ImageError, match=r"is 7 x 6 pixels, its image 8 x 6"):
        paint(tmp_path, [], "area", images=[image | {"width": 7}])
    with pytest.raises(ImageError, match="image 000000000001 is listed but there is no file"):
        paint(tmp_path, [], "area", images=[image | {"file_name": "2.png"}])


def test_painted_masks_are_those_of_the_scenes(trees: ModuleType, tmp_path: Path) -> None:
    trees.write_coco(tmp_path, "val2017", 4)
    for masks in ("area", "file", "stuff"):
        for classes, first, ground in (("object81", 1, 0), ("object80", 0, 255)):
            options = {"masks": masks, "classes": classes}
            listing = get_dataset("coco17-seg").open(tmp_path, "val2017", options)
            assert len(listing) == 5
            for index in range(4):  # visible parts do not overlap, so the order does not matter
                drawn = trees.scene(index, "val2017").mask
                expected = np.where(drawn > 0, drawn.astype(int) - 1 + first, ground)
                assert np.array_equal(listing.read(index).mask, expected)
            assert (listing.read(4).mask == ground).all()  # no object: all background


def test_other_categories_are_refused_with_the_first_difference(
    trees: ModuleType, tmp_path: Path
) -> None:
    trees.write_coco(tmp_path, "val2017", 1)
    path = tmp_path / "annotations" / "instances_val2017.json"
    document = json.loads(path.read_text())
    document["categories"][3]["name"] = "moped"
    path.write_text(json.dumps(document))
    for name in ("coco17", "coco17-seg"):
        with pytest.raises(ValueError, match="number 3 by id is 'moped', not 'motorcycle'"):
            get_dataset(name).open(tmp_path, "val2017", {})


def test_real_instances_are_painted_where_their_boxes_are(shared_data: Path) -> None:
    root = shared_data / "coco_tiny"
    annotation_file, _ = find_coco_split(root, "val2017")
    listing = get_dataset("coco17-seg").open(root, "val2017", {"masks": "file"})
    content = json.loads(annotation_file.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_key = {f"{image['id']:012d}": image["id"] for image in content["images"]}
    assert len(listing) == len(content["images"])
    for index in range(len(listing)):
        mask = listing.read(index).mask
        own = [o for o in content["annotations"] if o["image_id"] == by_key[listing.key(index)]]
        assert {listing.class_names[k] for k in np.unique(mask)} <= {
            "background", *(names[o["category_id"]] for o in own),
        }  # fmt: skip
        last = own[-1]  # on top: its box holds as many pixels of its class as it has, or more
        left, top, width, height = (round(value) for value in last["bbox"])
        column = listing.class_names.index(names[last["category_id"]])
        found = (mask[top : top + height + 1, left : left + width + 1] == column).sum()
        assert found >= 0.9 * last["area"]
