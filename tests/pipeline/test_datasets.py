"""The data set program: its table, what it finds wrong with a copy, and what it counts."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dclip.data import registry
from pipeline import datasets

DOCS = Path(__file__).parent.parent.parent / "docs" / "datasets.md"
EXPECTED = {name: known.expected for name, known in registry.DATASETS.items()}
PUBLISHED = [name for name in registry.DATASETS if name != "shapes"]


@pytest.fixture(scope="module")
def trees() -> Iterator[ModuleType]:
    """The writers of tiny data sets that the tests of the adapters have."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(Path(__file__).parent.parent / "dclip" / "data"))
    yield importlib.import_module("trees")
    patch.undo()


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets as if 2 training and 3 test images were published."""
    for name in PUBLISHED:
        known = registry.DATASETS[name]
        if known.expected:
            sizes = {split: 2 for split in (known.train_split,) if split} | {known.test_split: 3}
            if name in ("coco17-seg", "stuff"):
                sizes[known.test_split] = 4  # the writer adds an image without objects
            small = replace(known, expected=sizes, expected_with={})
            monkeypatch.setitem(registry.DATASETS, name, small)  # type: ignore[misc]


def write(trees: ModuleType, name: str, root: Path, *, swapped: bool = False) -> Path:
    """A tree of the tiny size; ``swapped`` gives each split the images of the other."""
    known = registry.DATASETS[name]
    splits = {split: 2 for split in (known.train_split,) if split} | {known.test_split: 3}
    for split, count in splits.items():
        if name.startswith("voc20"):  # one numbering for both splits, as VOC has
            trees.TREES[name](root, split, 5)
            ids = root / "VOCdevkit" / name.upper() / "ImageSets" / "Main" / f"{split}.txt"
            lines = ids.read_text().splitlines()
            ids.write_text("\n".join(lines[:count] if count == 2 else lines[2:]))
        else:
            trees.TREES[name](root, split, 5 - count if swapped else count)
    if name.startswith("coco"):
        for number, (split, _) in enumerate(splits.items()):
            rename_coco(root, split, 1000 * number)
    return root


def rename_coco(root: Path, split: str, first: int) -> None:
    """Images of a split get ids of their own, and names as COCO's."""
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    tag = f"COCO_{split}_" if split.endswith("2014") else ""
    for image in content["images"]:
        old = image["file_name"]
        image["id"] += first
        image["file_name"] = f"{tag}{image['id']:012d}.jpg"
        image["coco_url"] = f"http://images.cocodataset.org/{split}/{image['file_name']}"
        (root / split / old).rename(root / split / image["file_name"])
        mask = root / "stuffthingmaps" / split / old.replace(".jpg", ".png")
        mask.rename(mask.with_name(image["file_name"].replace(".jpg", ".png")))
    for annotation in content["annotations"]:
        annotation["image_id"] += first
    file.write_text(json.dumps(content))


def main(*words: object) -> int:
    return datasets.main([str(word) for word in words])


def problems(*words: object, capsys: pytest.CaptureFixture[str]) -> str:
    """What check prints of a copy that is not whole."""
    assert main("check", *words) == 1
    captured = capsys.readouterr()
    assert "problem" in captured.err
    return captured.out


# ---------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------


def test_help_teaches_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from pipeline import datasets\n"
        "try:\n"
        "    datasets.main(['--help'])\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'pydantic', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


def test_list_has_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("list") == 0
    out = capsys.readouterr().out
    for known in registry.DATASETS.values():
        assert re.search(rf"^{known.name} .*{re.escape(known.title)}$", out, re.M)
    assert "folder:PATH" in out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "list | check | stats"),
        (["chek"], "check"),
        (["check"], "name"),
        (["check", "coco-14", "--root", "."], "did you mean 'coco"),
        (["check", "coco14"], "needs --root DIR"),
        (["check", "coco14", "--root", "nowhere"], "no folder"),
        (["check", "coco14", "--root", ".", "--split", "train2017"], "coco14 has 'train2014'"),
        (["check", "coco14", "--root", ".", "--option", "images"], "--option must be KEY=VALUE"),
        (["check", "coco14", "--root", ".", "--option", "a=b"], "unknown option 'a'"),
        (["check", "coco", "--root", "."], "Name it with --split"),
        (["check", "webdataset:{split}.tar"], "Name it with --split"),
        (["check", "shapes", "--bogus"], "--bogus"),
        (["stats", "shapes", "--limit", "0"], "--limit must be 1 or more"),
        (["stats", "folder:nowhere"], "Name it with --split"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(*words) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


# ---------------------------------------------------------------------------------------------
# check
# ---------------------------------------------------------------------------------------------


def test_shapes_is_whole_without_a_root(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("check", "shapes", "--split", "single") == 0
    assert "400 images, 16 classes, as published" in capsys.readouterr().out


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_whole_copy_has_no_problem(
    trees: ModuleType, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, name, tmp_path)
    if name == "cityscapes":  # the writer's cities are of the training split
        for kind in ("leftImg8bit", "gtFine"):
            for old, new in (("aachen", "frankfurt"), ("bremen", "lindau")):
                (tmp_path / kind / "val" / old).rename(tmp_path / kind / "val" / new)
                for file in (tmp_path / kind / "val" / new).iterdir():
                    file.rename(file.with_name(file.name.replace(old, new)))
    assert main("check", name, "--root", tmp_path, "--full", "--json") == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "no problem found" in out
    assert json.loads(out.splitlines()[-1])["problems"] == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_empty_folder_tells_what_belongs_there_and_where_it_comes_from(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = registry.DATASETS[name]
    splits = [split for split in (known.train_split, known.test_split) if split]
    words = [word for split in splits for word in ("--split", split)]
    out = problems(name, "--root", tmp_path, *words, capsys=capsys)
    for pattern, what in known.layout:
        for split in splits:
            assert f"MISSING {tmp_path}/{pattern.format(split=split)}: {what}" in out
    assert f"official page: {known.homepage}" in out


def test_swapped_splits_are_found_by_count_and_name(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "coco14", tmp_path)
    for folder, name in (("", "{}"), ("annotations", "instances_{}.json")):
        one, other, aside = (
            tmp_path / folder / name.format(split) for split in ("train2014", "val2014", "aside")
        )
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
    out = problems("coco14", "--root", tmp_path, capsys=capsys)
    assert "3 images, 80 classes, but 2 images are published" in out
    assert "split 'val2014' of coco14 has as many, was one taken for the other?" in out
    assert "3 images are of another split by their names, such as COCO_val2014_" in out
    assert "speaks of images of val2014" in out


def test_swapped_image_folders_are_found(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "coco17", tmp_path)
    (tmp_path / "train2017").rename(tmp_path / "aside")
    (tmp_path / "val2017").rename(tmp_path / "train2017")
    (tmp_path / "aside").rename(tmp_path / "val2017")
    out = problems("coco17", "--root", tmp_path, capsys=capsys)
    assert "2 of 2 images are missing" in out
    assert f"it is in {tmp_path}/val2017, were folders exchanged?" in out


def test_the_wrong_year_is_found(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "voc2012", tmp_path)
    (tmp_path / "VOCdevkit" / "VOC2012").rename(tmp_path / "VOCdevkit" / "VOC2007")
    main_sets = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (main_sets / "val.txt").rename(main_sets / "test.txt")
    (main_sets / "train.txt").rename(main_sets / "trainval.txt")
    out = problems("voc2007", "--root", tmp_path, capsys=capsys)
    assert "ids of VOC2012 look like that" in out
    write(trees, "coco14", tmp_path / "coco")
    annotations = tmp_path / "coco" / "annotations"
    for split in ("train", "val"):
        shutil.move(
            annotations / f"instances_{split}2014.json", annotations / f"instances_{split}2017.json"
        )
        (tmp_path / "coco" / f"{split}2014").rename(tmp_path / "coco" / f"{split}2017")
    out = problems("coco17", "--root", tmp_path / "coco", capsys=capsys)
    assert "speaks of images of train2014" in out


def test_missing_annotations_are_found(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "voc2007", tmp_path)
    (tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml").unlink()
    out = problems("voc2007", "--root", tmp_path, capsys=capsys)
    assert "1 of 2 annotations of split 'trainval' are missing" in out
    assert "found   " in out


def test_missing_and_broken_images_are_named(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "voc2007", tmp_path)
    images = tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages"
    (images / "000001.jpg").unlink()
    trees.write_image(images / "000004.jpg", trees.scene(3).image, "truncated")
    out = problems("voc2007", "--root", tmp_path, capsys=capsys)
    assert "1 of 2 images are missing, such as" in out
    assert re.search(r"1 of 3 cannot be read: .*000004\.jpg", out)


def test_images_in_two_splits_are_found(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "coco14", tmp_path)
    content = json.loads((tmp_path / "annotations" / "instances_train2014.json").read_text())
    other = tmp_path / "annotations" / "instances_val2014.json"
    other.write_text(json.dumps(content))
    shutil.copytree(tmp_path / "train2014", tmp_path / "val2014", dirs_exist_ok=True)
    out = problems("coco14", "--root", tmp_path, capsys=capsys)
    assert "2 images are in train2014 as well" in out


def test_a_permuted_label_map_is_found(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.TREES["stuff"](tmp_path, "val2017", 60)
    words = ("stuff", "--root", tmp_path, "--full")
    assert "nothing speaks of a permuted label map" in problems(*words, capsys=capsys)
    for file in (tmp_path / "stuffthingmaps" / "val2017").iterdir():
        values = np.asarray(Image.open(file))
        moved = np.where(values < 11, (values.astype(int) + 1) % 11, values).astype(np.uint8)
        Image.fromarray(moved).save(file)
    out = problems(*words, capsys=capsys)
    assert re.search(r"masks of '.*' go with labels of '.*is the label map permuted\?", out)


def test_notes_tell_what_is_odd_but_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "all.csv").write_text("file,dog,cat\na.png,1,-1\nb.png,0,0\n")
    assert main("check", f"folder:{tmp_path}") == 0
    out = capsys.readouterr().out
    assert "2 images, 2 classes; there is no published count" in out
    assert "1 classes occur in no image: cat" in out
    assert "1 images have no class" in out
    assert "1 labels are unknown" in out


def test_the_real_sample_has_its_splits_swapped(
    shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = problems("coco17", "--root", shared_data / "coco_tiny", capsys=capsys)
    assert "instances_train2017.json speaks of images of val2017" in out


# ---------------------------------------------------------------------------------------------
# stats
# ---------------------------------------------------------------------------------------------


def test_stats_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all.csv").write_text(
        "file,labels\na.png,dog;cat\nb.png,dog\nc.png,\nd.png,dog;cat;cow\n"
    )
    (tmp_path / "class_names.txt").write_text("cat\ncow\ndog\nowl\n")
    assert main("stats", f"folder:{tmp_path}", "--out", tmp_path / "out", "--json") == 0
    out = capsys.readouterr().out
    (report,) = json.loads(out.splitlines()[-1])
    assert report["images_of_class"] == {"cat": 2, "cow": 1, "dog": 3, "owl": 0}
    assert report["labels_per_image"] == {"mean": 1.5, "min": 0, "max": 3, "none": 1}
    assert "mean 1.50, 0 to 3; 1 images without" in out
    assert "dog 3, cat 2, cow 1, owl 0" in out
    for file in report["files"]:
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 20


def test_stats_count_what_masks_show(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "ade20k", tmp_path)
    words = ("stats", "ade20k", "--root", tmp_path, "--out", tmp_path, "--json")
    assert main(*words) == 0
    (report,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = np.sum([trees.scene(row, "validation").labels for row in range(3)], axis=0)
    assert list(report["images_of_class"].values())[:16] == expected.tolist()
    broken = next((tmp_path / "ADEChallengeData2016" / "annotations" / "validation").iterdir())
    broken.write_bytes(b"no image")
    assert main(*words) == 0
    (report,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["looked_at"], report["unreadable"]) == (2, 1)


def test_stats_look_at_some_of_what_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("stats", "shapes", "--split", "test", "--limit", "5", "--out", tmp_path) == 0
    assert "shapes test: 1,000 images (5 looked at), 16 classes" in capsys.readouterr().out


def test_stats_of_nothing_readable_fail(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "ade20k", tmp_path)
    for file in (tmp_path / "ADEChallengeData2016" / "images" / "validation").iterdir():
        file.write_bytes(b"")
    assert main("stats", "ade20k", "--root", tmp_path, "--out", tmp_path) == 1
    assert "no sample of ade20k validation can be read" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------


def test_every_command_of_the_page_is_accepted() -> None:
    found = re.findall(r"python -m pipeline\.datasets([^\n`|#]*)", DOCS.read_text("utf-8"))
    assert len(found) > 3
    for words in found:
        assert datasets.parser().parse_args(shlex.split(words)).command


def test_the_page_has_every_data_set_and_its_numbers() -> None:
    text = DOCS.read_text("utf-8")
    for name, known in registry.DATASETS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        classes = len(known.class_names) or "the file's"
        assert f"| {classes} |" in row
        for split, images in EXPECTED[name].items():
            assert f"{split} {images:,}" in row
        for option, values in known.options.items():
            assert f"`{option}={'|'.join(values)}`" in row.replace("\\|", "|")
        assert known.homepage in row


def test_the_folder_of_the_page_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (table,) = re.findall(r"```csv\n(.*?)```", DOCS.read_text("utf-8"), re.S)
    (tmp_path / "train.csv").write_text(table)
    (tmp_path / "photos").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / f"{number:04d}.jpg")
    assert main("check", f"folder:{tmp_path}") == 0
    assert "3 images, 3 classes" in capsys.readouterr().out


def test_the_data_set_of_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)
    monkeypatch.setitem(registry.DATASETS, "pets", names["PETS"])  # type: ignore[misc]
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "train.txt").write_text("a.jpg cat dog\nb.jpg\n")
    assert "MISSING" in problems("pets", "--root", tmp_path, capsys=capsys)
    (tmp_path / "test.txt").write_text("c.jpg bird\n")
    assert main("check", "pets", "--root", tmp_path) == 0
    assert main("stats", "pets", "--root", tmp_path, "--out", tmp_path) == 0
    assert "labels per image  mean 1.00" in capsys.readouterr().out
