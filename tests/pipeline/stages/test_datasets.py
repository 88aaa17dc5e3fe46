"""The data set program: its table, what it finds wrong with a copy, and what it counts."""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dclip.data import registry
from pipeline import datasets

from ...processes import in_a_new_process
from ..conftest import write_tree

DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"
EXPECTED = {name: known.expected for name, known in registry.DATASETS.items()}
PUBLISHED = [name for name in registry.DATASETS if not name.startswith("shapes")]


@pytest.fixture(autouse=True)
def output(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is written that no command line has another place for."""
    folder = tmp_path_factory.mktemp("outputs")
    monkeypatch.setenv("DCLIP_OUTPUT", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets as if 2 training and 3 test images were published."""
    for name in PUBLISHED:
        known = registry.DATASETS[name]
        if known.expected:
            sizes = {split: 2 for split in (known.train_split,) if split} | {known.test_split: 3}
            if name in ("coco17-seg", "stuff"):  # the writer adds an image without objects
                sizes = {split: size + 1 for split, size in sizes.items()}
            small = replace(known, expected=sizes, expected_with={}, expected_also={})
            monkeypatch.setitem(registry.DATASETS, name, small)  # type: ignore[misc]


def write(trees: ModuleType, name: str, root: Path) -> Path:
    """A tree of the tiny size."""
    known = registry.DATASETS[name]
    splits = {split: 2 for split in (known.train_split,) if split} | {known.test_split: 3}
    return write_tree(trees, name, root, splits)


def exchange(one: Path, other: Path) -> None:
    """Give each of two files or folders the name of the other."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


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
    done = in_a_new_process(code)
    assert "examples:" in done.stdout


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "DCLIP_OUPUT",
            "x",
            "unknown environment variable DCLIP_OUPUT; did you mean DCLIP_OUTPUT?",
        ),
        ("DCLIP_OUTPUT", "s3://bucket/x", "argument --output: s3://bucket/x must be a folder"),
    ],
)
def test_variables_are_checked_as_in_the_stages(
    variable: str,
    value: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    assert datasets.main(["check", "shapes"]) == 2
    assert message in capsys.readouterr().err


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
        (["check", "coco14", "--root", ".", "--split", "train2017"], "coco14 has 'train2014'"),
        (["check", "coco14", "--root", ".", "--option", "images"], "--option must be KEY=VALUE"),
        (["check", "coco14", "--root", ".", "--option", "a=b"], "unknown option 'a'"),
        (["check", "webdataset:{split}.tar"], "Name it with --split"),
        (["check", "shapes", "--bogus"], "--bogus"),
        (["stats", "shapes", "--limit", "0"], "--limit must be 1 or more"),
        (["stats", "folder:nowhere"], "no folder nowhere"),
        (["check", str(DOCS.parent)], f"is it folder:{DOCS.parent}?"),
        (["check", "x/train.tar"], "is it webdataset:x/train.tar?"),
        (["check", "folder:x", "--split-seed", "-1"], "'-1' is no whole number from 0 on"),
        (["stats", "coco14"], "needs --root DIR"),
        (["stats", "coco14", "--root", "nowhere"], "no folder"),
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
            assert f"MISSING {tmp_path}/{pattern}: {what}".replace("{split}", split) in out
    assert f"official page: {known.homepage}" in out


@pytest.mark.parametrize("root", [None, "nowhere", "file"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_without_a_root_one_learns_what_belongs_there_as_well(
    tmp_path: Path, name: str, root: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = "DIR" if root is None else str(tmp_path / root)
    out = problems(name, *([] if root is None else ["--root", place]), capsys=capsys)
    assert ("needs --root DIR" if root is None else f"--root {place} is no folder") in out
    known = registry.DATASETS[name]
    split = known.test_split if known.expected else "{split}"
    for pattern, what in known.layout:
        line = f"MISSING {place}/{pattern}: {what}".replace("{split}", split)
        assert line in out
    assert f"official page: {known.homepage}" in out


# A folder of each tree that a user may take for its root.
TOO_LOW = {
    "voc2007": "VOCdevkit/VOC2007/JPEGImages",
    "voc2012": "VOCdevkit/VOC2012/ImageSets",
    "voc12-seg": "VOCdevkit/VOC2012/SegmentationClass",
    "context": "VOCdevkit/VOC2010/JPEGImages",
    "cityscapes": "leftImg8bit",
    "ade20k": "ADEChallengeData2016/images",
    "stuff": "stuffthingmaps",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_root_that_is_too_high_or_too_low_is_put_right(
    trees: ModuleType, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(trees, name, tmp_path / "copies" / "mine")
    for wrong in (tmp_path, root.parent, root / TOO_LOW.get(name, "annotations")):
        out = problems(name, "--root", wrong, capsys=capsys)
        (right,) = re.findall(r"REMEDY +the files are found from .*: give --root (.*)", out)
        assert right.startswith(str(root))
        assert main("check", name, "--root", right) == 0, capsys.readouterr().out
        capsys.readouterr()


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("coco17", "coco14"),
        ("voc2007", "voc2012"),
        ("voc2012", "voc2007"),
        ("context", "voc12-seg"),
    ],
)
def test_another_data_set_is_recognised(
    trees: ModuleType, tmp_path: Path, asked: str, there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = problems(asked, "--root", write(trees, there, tmp_path), capsys=capsys)
    assert f"REMEDY  the files of {there} ({registry.DATASETS[there].title}) are there" in out


MASKS = {
    "voc12-seg": "VOCdevkit/VOC2012/SegmentationClass",
    "context": "VOCdevkit/VOC2010/SegmentationClassContext",
    "cityscapes": "gtFine",
    "stuff": "stuffthingmaps",
    "ade20k": "ADEChallengeData2016/annotations",
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_are_missing_or_of_another_kind_are_found(
    trees: ModuleType, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(trees, name, tmp_path)
    for file in (root / MASKS[name]).rglob("*.png"):
        with Image.open(file) as mask:
            mask.convert("RGB").save(file)
    out = problems(name, "--root", root, capsys=capsys)
    assert re.search(r"cannot be read: .*coloured picture.*is this another format", out)
    shutil.rmtree(root / MASKS[name])
    out = problems(name, "--root", root, capsys=capsys)
    assert re.search(r"masks of split .* are missing, such as|no stuff-thing maps", out)
    assert re.search(r"MISSING .*\.png: ", out)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "stuff"])
def test_images_and_masks_of_other_splits_are_found(
    trees: ModuleType, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = registry.DATASETS[name]
    folders = [path for path in write(trees, name, tmp_path).rglob("*") if path.is_dir()]
    pairs = [(f, f.with_name(known.test_split)) for f in folders if f.name == known.train_split]
    exchange(*pairs[0])
    out = problems(name, "--root", tmp_path, capsys=capsys)
    assert re.search(r"masks of split .* are missing.* is in .*, were splits exchanged\?", out)
    exchange(*pairs[1])
    out = problems(name, "--root", tmp_path, capsys=capsys)
    assert f"split {known.test_split!r} of {name} has as many, was one taken for the other?" in out
    if name != "stuff":  # its names are plain numbers
        assert "images are of another split by their names" in out


def test_stuff_of_other_splits_is_found_by_the_annotations_of_coco(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(trees, "stuff", tmp_path, {"train2017": 24, "val2017": 24})
    for folder in (tmp_path, tmp_path / "stuffthingmaps"):
        exchange(folder / "train2017", folder / "val2017")
    out = problems("stuff", "--root", tmp_path, capsys=capsys)
    assert "no image is in val2017 by the annotations of coco17; were the splits exchanged?" in out


def test_train_ids_of_cityscapes_are_no_label_ids(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dclip.data.cityscapes import MASKS

    table = np.full(256, 255, np.uint8)
    for stored, column in MASKS.classes["cityscapes19"][1].items():
        table[stored] = column
    for file in (write(trees, "cityscapes", tmp_path) / "gtFine").rglob("*.png"):
        Image.fromarray(table[np.asarray(Image.open(file))]).save(file)
    out = problems("cityscapes", "--root", tmp_path, capsys=capsys)
    assert re.search(r"no labels of cityscapes: 255 .*is this another format or numbering", out)
    assert "masks of label ids (not train ids)" in out


def test_one_split_of_a_copy_can_be_checked_alone(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(write(trees, "cityscapes", tmp_path) / "leftImg8bit" / "train")
    out = problems("cityscapes", "--root", tmp_path, capsys=capsys)
    assert "to check 'val' alone: --split val" in out
    assert main("check", "cityscapes", "--root", tmp_path, "--split", "val") == 0


def test_both_published_counts_of_context_will_do(
    trees: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = replace(registry.DATASETS["context"], expected={"train": 3, "val": 4})
    known = replace(known, expected_also={"train": 2, "val": 3})
    monkeypatch.setitem(registry.DATASETS, "context", known)  # type: ignore[misc]
    assert main("check", "context", "--root", write(trees, "context", tmp_path)) == 0
    assert "2 images, 59 classes, as published; others have 3" in capsys.readouterr().out


def test_check_and_stats_share_the_listings_of_the_stages(
    trees: ModuleType, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.features.splits import open_dataset
    from pipeline.settings.config import Config

    root = write(trees, "coco14", tmp_path)
    assert main("check", "coco14", "--root", root) == 0
    made = {path: path.stat().st_mtime_ns for path in (output / "listings").iterdir()}
    assert len(made) == 2
    assert main("stats", "coco14", "--root", root) == 0
    open_dataset(Config(dataset="coco14", root=root, output=output), "val2014")
    assert {path: path.stat().st_mtime_ns for path in (output / "listings").iterdir()} == made
    assert len(list((output / "datasets").glob("*.png"))) == 4


def test_swapped_splits_are_found_by_count_and_name(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "coco14", tmp_path)
    exchange(tmp_path / "train2014", tmp_path / "val2014")
    files = [tmp_path / "annotations" / f"instances_{s}.json" for s in ("train2014", "val2014")]
    exchange(*files)
    out = problems("coco14", "--root", tmp_path, capsys=capsys)
    assert "3 images, 80 classes, but 2 images are published" in out
    assert "split 'val2014' of coco14 has as many, was one taken for the other?" in out
    assert "3 images are of another split by their names, such as COCO_val2014_" in out
    assert "speaks of images of val2014" in out


def test_swapped_image_folders_are_found(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "coco17", tmp_path)
    exchange(tmp_path / "train2017", tmp_path / "val2017")
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
    assert "1 class occurs in no image: cat" in out
    assert "1 image has no class" in out
    assert "1 label is unknown" in out


def test_the_real_sample_has_its_splits_swapped(
    shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = problems("coco17", "--root", shared_data / "coco_tiny", capsys=capsys)
    assert "instances_train2017.json speaks of images of val2017" in out


def photographs(root: Path, *, copies: bool = False, **tables: Sequence[str]) -> str:
    """A folder with a table a split; every picture is another one, of 5 kB or more."""
    seed = 0
    for split, labels in tables.items():
        lines = ["file,labels"]
        (root / split).mkdir(parents=True)
        for number, label in enumerate(labels):
            seed += 1
            noise = np.random.default_rng(number if copies else seed)
            pixels = noise.integers(0, 256, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{split}{number}.png")
            lines.append(f"{split}/{split}{number}.png,{label}")
        (root / f"{split}.csv").write_text("\n".join(lines))
    return f"folder:{root}"


def coco_tree(root: Path, files: dict[str, str], **categories: dict[int, str]) -> Path:
    """Annotations of two pictures a split, ids from 1 in each; ``files`` is a pattern a split."""
    for split, known in categories.items():
        images = [{"id": n, "file_name": files[split].format(n)} for n in (1, 2)]
        for number, image in enumerate(images):
            place = root / split / str(image["file_name"])
            if "://" not in str(image["file_name"]):
                place.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng([number, len(split)])
                pixels = noise.integers(0, 256, (48, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place)
        annotations = [
            {"id": n, "image_id": 1 + n % 2, "category_id": k, "bbox": [0, 0, 4, 4]}
            for n, k in enumerate(known, start=1)
        ]
        content = {
            "images": [{**image, "width": 48, "height": 48} for image in images],
            "annotations": annotations,
            "categories": [{"id": k, "name": name} for k, name in known.items()],
        }
        (root / split).mkdir(parents=True, exist_ok=True)
        place = root / "annotations" / f"instances_{split}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(content))
    return root


def test_equal_ids_in_each_split_are_no_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {1: "disc", 2: "box"}
    root = coco_tree(tmp_path, {"train": "a{}.png", "val": "b{}.png"}, train=names, val=names)
    assert main("check", "coco", "--root", root) == 0
    out = capsys.readouterr().out
    assert "no image is in train as well, compared by place, size and bytes" in out
    assert "--train-split train --test-split val" in out


def test_the_same_pictures_under_other_names_are_an_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = photographs(tmp_path, copies=True, train=["a", "b"], test=["a", "b", "b"])
    out = problems(name, capsys=capsys)
    assert "2 images are in train as well" in out
    assert "has the bytes of" in out


def test_columns_in_another_order_are_a_note_and_other_classes_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"train": "a{}.png", "val": "b{}.png"}
    names = {1: "disc", 2: "box"}
    root = coco_tree(tmp_path / "order", files, train=names, val={4: "box", 9: "disc"})
    assert main("check", "coco", "--root", root) == 0
    assert "columns are matched by name" in capsys.readouterr().out
    root = coco_tree(tmp_path / "other", files, train=names, val={1: "disc", 2: "ring"})
    out = problems("coco", "--root", root, capsys=capsys)
    assert "'val' has no 'box'" in out
    assert "'train' has no 'ring'" in out


@pytest.mark.parametrize(
    ("labels", "kind", "named"),
    [
        (["Dog", "dog"], "note", "one text to CLIP, and share its probability: 'Dog' = 'dog'"),
        (["disc " * 100, "b"], "PROBLEM", "takes 107 tokens with its prompt, and RN101 reads 77"),
        (["a", "a"], "note", "one class alone, 'a'"),
    ],
)
def test_class_names_are_looked_at_as_the_stages_do(
    tmp_path: Path, labels: list[str], kind: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = photographs(tmp_path, train=labels, test=labels)
    assert main("check", name) == (1 if kind == "PROBLEM" else 0)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if named in line]
    assert line.strip().startswith(kind)


def test_the_context_of_another_backbone_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["disc " * 40, "b"]
    name = photographs(tmp_path, train=labels, test=labels)
    assert main("check", name, "--backbone", "ViT-B-16") == 0
    assert "tiny reads 32" in problems(name, "--backbone", "tiny", capsys=capsys)


def test_a_test_split_without_a_positive_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = problems(photographs(tmp_path, train=["a", "b"], test=["", ""]), capsys=capsys)
    assert "no image of split 'test' has any class" in out


def test_one_split_alone_says_what_is_missing_and_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = photographs(tmp_path / "my photos", data=["a", "b"] * 4, copies=True)
    assert main("check", name) == 0
    out = capsys.readouterr().out
    assert "one split alone, 'data'" in out
    assert f"--dataset 'folder:{tmp_path}/my photos' --test-fraction 0.2" in out
    assert main("check", name, "--test-fraction", "0.25", "--full") == 0
    out = capsys.readouterr().out
    assert "2 images, 2 classes" in out
    assert "parted by test fraction 0.25, seed 0" in out
    assert "one split alone" not in out
    shutil.copy(tmp_path / "my photos/data/data0.png", tmp_path / "my photos/data/data1.png")
    assert main("check", name) == 0
    assert "1 of the images have the same bytes as another one" in capsys.readouterr().out


def test_splits_in_letters_of_any_size_are_told_which_is_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, split in enumerate(("Train", "Test")):
        Image.new("RGB", (8, 8), (number, 9, 9)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{split}.CSV").write_text(f"file,labels\n{number}.png,dog;cat\n")
    assert main("check", f"folder:{tmp_path}") == 0
    assert "--train-split Train --test-split Test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--test-fraction", "2"], "no number between 0 and 1"),
        (["--test-fraction", "0.2", "--split", "data"], "leave out --split"),
        (["--test-fraction", "0.2"], "parts a source of one split"),
    ],
)
def test_what_cannot_be_parted_is_wrong_usage(
    tmp_path: Path, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = photographs(tmp_path, train=["a", "b"], test=["a", "b"])
    assert main("check", name, *words) == 2
    assert named in capsys.readouterr().err


def test_addresses_and_missing_folders_are_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {1: "disc", 2: "box"}
    address = "http://images.example.org/{}.jpg"
    files = {"train": address, "val": "deep/er/b{}.png"}
    root = coco_tree(tmp_path, files, train=names, val=names)
    shutil.rmtree(tmp_path / "val" / "deep")
    out = problems("coco", "--root", root, capsys=capsys)
    assert "Errno" not in out
    assert "images.example.org" in out
    assert "2 of 2 images are missing, such as" in out


def test_what_cannot_be_read_is_a_finding_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = photographs(tmp_path, train=["a", "b"], test=["a", "b"])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "train.csv"))

    monkeypatch.setattr("pipeline.inspection.check._check_labels", refuse)
    out = problems(name, capsys=capsys)
    assert out.count(f"Permission denied: '{tmp_path / 'train.csv'}'") == 2


def test_masks_in_black_and_white_and_masks_without_a_counted_pixel_are_named(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "voc12-seg", tmp_path)
    masks = sorted((tmp_path / "VOCdevkit/VOC2012/SegmentationClass").iterdir())
    for number, file in enumerate(masks):
        with Image.open(file) as opened:
            size = opened.size
        pixels = np.full(size[::-1], 255, np.uint8)
        if number % 2:
            pixels[: size[1] // 2] = 0
        Image.fromarray(pixels).save(file)
    out = problems("voc12-seg", "--root", tmp_path, "--full", capsys=capsys)
    assert "masks hold only the values 0 and 255, so that no object is counted" in out
    assert "masks hold ignored pixels only, so that no object is counted" in out


# ---------------------------------------------------------------------------------------------
# stats
# ---------------------------------------------------------------------------------------------


def test_stats_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all.csv").write_text(
        "file,labels\na.png,dog;cat\nb.png,dog\nc.png,\nd.png,dog;cat;cow\n"
    )
    (tmp_path / "class_names.txt").write_text("cat\ncow\ndog\nowl\n")
    assert main("stats", f"folder:{tmp_path}", "--output", tmp_path / "out", "--json") == 0
    out = capsys.readouterr().out
    (report,) = json.loads(out.splitlines()[-1])
    assert report["images_of_class"] == {"cat": 2, "cow": 1, "dog": 3, "owl": 0}
    assert report["labels_per_image"] == {"mean": 1.5, "min": 0, "max": 3, "none": 1}
    assert "mean 1.50, 0 to 3; 1 image without" in out
    assert "dog 3, cat 2, cow 1, owl 0" in out
    for file in report["files"]:
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 20


def test_stats_count_what_masks_show(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "ade20k", tmp_path)
    words = ("stats", "ade20k", "--root", tmp_path, "--split", "validation", "--json")
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
    assert main("stats", "shapes", "--split", "test", "--limit", "5", "--output", tmp_path) == 0
    assert "shapes test: 1,000 images (5 looked at), 16 classes" in capsys.readouterr().out


def test_stats_of_nothing_readable_fail(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "ade20k", tmp_path)
    for file in (tmp_path / "ADEChallengeData2016" / "annotations" / "validation").iterdir():
        file.write_bytes(b"")
    assert main("stats", "ade20k", "--root", tmp_path, "--split", "validation") == 1
    assert "no sample of ade20k validation can be read" in capsys.readouterr().err


def test_stats_of_masks_count_no_background(
    trees: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(trees, "voc12-seg", tmp_path)
    assert main("stats", "voc12-seg", "--root", tmp_path, "--json") == 0
    for report in json.loads(capsys.readouterr().out.splitlines()[-1]):
        assert list(report["images_of_class"]) == list(registry.DATASETS["voc2012"].class_names)


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


def test_a_folder_without_tables_is_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.csv").write_text("file,labels\na.png,dog\n")
    assert main("check", f"folder:{tmp_path}") == 1
    told = capsys.readouterr().err
    assert "neither tables train.csv and test.csv" in told
    assert f"is it folder:{tmp_path}/mine?" in told


def test_the_folder_of_the_page_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, *_ = re.findall(r"```csv\n(.*?)```", DOCS.read_text("utf-8"), re.S)
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
    assert main("stats", "pets", "--root", tmp_path, "--output", tmp_path) == 0
    assert "labels per image  mean 1.00" in capsys.readouterr().out
