"""Trees as tools leave them that export COCO's format, opened as docs/own_data.md says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dclip.data.listing import ImageListing
from pipeline.features.listings import open_listing
from pipeline.inspection.check import check
from pipeline.inspection.splits import default_splits


def write(file: Path, document: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))


def photo(path: Path, number: int) -> None:
    """A photograph that tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (number, 0, 0)).save(path)


def document(
    names: Sequence[str],
    categories: list[dict[str, Any]],
    objects: Sequence[tuple[int, int]],
    *,
    first: int,
    **fields: Any,
) -> dict[str, Any]:
    """Images with these file names and ids from ``first`` on, and (image, category) objects."""
    return {
        "info": {},
        "licenses": [],
        "categories": categories,
        "images": [
            {"id": first + row, "file_name": name, "width": 8, "height": 6}
            for row, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": first + row,
                "image_id": first + image,
                "category_id": category,
                "bbox": [1, 1, 2, 2],
                "area": 4,
                "segmentation": [],
                "iscrowd": 0,
                **fields,
            }
            for row, (image, category) in enumerate(objects)
        ],
    }


def found(dataset: str, root: Path | None, split: str) -> dict[int, set[str]]:
    """Class names by the number that the photograph tells."""
    listing = open_listing(dataset, root, split)
    assert isinstance(listing, ImageListing)
    result = {}
    for row in range(len(listing)):
        image, labels = listing.read(row)
        pixel = image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        names = zip(listing.class_names, labels.tolist(), strict=True)
        result[int(pixel[0])] = {name for name, label in names if label == 1}
    return result


def test_the_page_has_a_command_for_each_tool() -> None:
    page = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text(encoding="utf-8")
    own = page.partition("## Tools that write COCO's format")[2]
    for tool in ("Roboflow", "supervision", "labelme2coco", "Label Studio"):
        section = own.partition(f"### {tool}")[2].partition("###")[0]
        assert "dclip datasets check" in section, tool


EXPECTED = {10: {"cat"}, 20: {"cat", "dog"}, 30: set[str]()}


@pytest.fixture
def roboflow(tmp_path: Path) -> Path:
    """Splits with annotations beside the images, and a category above all others."""
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    for split in ("train", "valid", "test"):
        names = [f"{n}_jpg.rf.{split}{n:04x}.png" for n in (10, 20, 30)]
        for name, number in zip(names, EXPECTED, strict=True):
            photo(tmp_path / split / name, number)
        objects = [(0, 1), (1, 1), (1, 2), (1, 2)]
        content = document(names, categories, objects, first=0)
        write(tmp_path / split / "_annotations.coco.json", content)
    (tmp_path / "README.roboflow.txt").write_text("exported")
    return tmp_path


def test_roboflow(roboflow: Path, tmp_path: Path) -> None:
    pattern = f"{roboflow}/{{split}}/_annotations.coco.json"
    for split in ("train", "valid", "test"):
        assert found(pattern, None, split) == EXPECTED
        assert found("coco", roboflow, split) == EXPECTED
    same = [open_listing(name, roboflow, "valid") for name in (pattern, "coco")]
    assert same[0].identity() == same[1].identity()
    assert sorted(default_splits("coco", roboflow)) == ["test", "train", "valid"]
    told = check("coco", roboflow, splits=["train"])
    assert not told.problems
    assert any("category 'pets' (id 0)" in text for _, _, text in told.lines)
    open_listing("coco", roboflow, "valid", cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_roboflow_with_a_folder_of_images(roboflow: Path) -> None:
    for split in ("train", "valid"):
        (roboflow / split / "images").mkdir()
        for path in (roboflow / split).glob("*.png"):
            path.rename(roboflow / split / "images" / path.name)
        assert found(f"{roboflow}/{{split}}/_annotations.coco.json", None, split) == EXPECTED
        assert found("coco", roboflow, split) == EXPECTED


def test_supervision(tmp_path: Path) -> None:
    categories = [
        {"id": row, "name": name, "supercategory": "common-objects"}
        for row, name in enumerate(("cat", "dog"))
    ]
    names = ["10.png", "20.png", "30.png"]
    for number in EXPECTED:
        photo(tmp_path / "train_images" / f"{number}.png", number)
    flat = [1, 1, 3, 1, 3, 3]  # of masks supervision wrote one polygon without a list around it
    content = document(names, categories, [(0, 0), (1, 0), (1, 1)], first=1, segmentation=flat)
    write(tmp_path / "train.json", content)
    assert found(f"{tmp_path}/{{split}}.json", tmp_path / "train_images", "train") == EXPECTED


def test_labelme2coco(tmp_path: Path) -> None:
    """File names are labelme's ``imagePath``, relative to its own files."""
    categories = [{"id": 0, "name": "cat", "supercategory": "cat"},
                  {"id": 1, "name": "dog", "supercategory": "dog"}]  # fmt: skip
    for number in EXPECTED:
        photo(tmp_path / "shots" / f"{number}.png", number)
    objects = [(0, 0), (1, 0), (1, 1)]
    for form in ("{}.png", "shots/{}.png", "..\\shots\\{}.png", "../shots/{}.png"):
        names = [form.format(number) for number in EXPECTED]
        for split in ("train", "val"):
            write(tmp_path / "out" / f"{split}.json", document(names, categories, objects, first=1))
            pattern = f"{tmp_path}/out/{{split}}.json"
            assert found(pattern, tmp_path / "shots", split) == EXPECTED


@pytest.mark.parametrize(
    "form",
    [
        "images/{}.png",  # with images, on Linux
        "images\\{}.png",  # on Windows
        "images/1/{}.png",  # older ones keep the number of the project
        "{root}/shots/{}.png",  # local files that the exporter found where they lie
        "/data/local-files/?d=shots/{}.png",
        "http://localhost:8080/data/local-files/?d=shots%2F{}.png",
        "/data/upload/1/{}.png",
    ],
)
def test_label_studio(tmp_path: Path, form: str) -> None:
    """Ids from 0 on, categories without supercategory, images in ``images`` or where they were."""
    inner = "shots" if "shots" in form else "export/images"
    names = []
    for number in EXPECTED:
        photo(tmp_path / inner / f"ab12-{number}.png", number)
        names.append(form.format(f"ab12-{number}", root=tmp_path))
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = document(names, categories, [(0, 0), (1, 0), (1, 1)], first=0, ignore=0)
    for image in content["images"]:
        image["width"] = image["height"] = None  # of images it could not open
    write(tmp_path / "export" / "result.json", content)
    root = tmp_path if inner == "shots" else None
    assert found(f"{tmp_path}/export/result.json", root, "all") == EXPECTED
