"""Every data set, from a tree of files on disk to an evaluated DCLIP, by one command."""

import io
import json
import shlex
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dclip.data import registry
from pipeline import datasets
from pipeline.terminal import cli

from .conftest import IMAGE_SETS, TOY, WITH_RAY, write_tree

pytestmark = WITH_RAY

OWN = ("folder:", "webdataset:", "PATH.json")
DRAWN = "coco17-seg"  # has an image without a class
IMAGES = {"train": 8, "test": 5}
COMMAND = (
    "--backbone", TOY, "--device", "cpu", "--extract.workers", "1", "--train.epochs", "1",
    "--train.batch-size", "4", "--dclip.output-dim", "4", "--evaluate.probe-epochs", "1",
    "--experiment", "every", "--json",
)  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the results of all data sets, as a user has it."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Train by Ray Train's local mode, in this process, and render pictures of one data set only.

    Starting processes and rendering take most of the time, and are what test_stages.py is about.
    """
    from pipeline.work import training

    scaling = training.ScalingConfig
    monkeypatch.setattr(training, "ScalingConfig", lambda **_: scaling(num_workers=0))
    if name != DRAWN:
        monkeypatch.setattr("pipeline.work.evaluation.save", lambda _, path: path.touch())


def tree_and_words(trees: ModuleType, name: str, root: Path) -> list[str]:
    """Write the tree, and say it on the command line."""
    if name.startswith("shapes"):
        return ["--dataset", name, "--extract.limit", str(IMAGES["test"])]
    if name == "folder:":
        for split, count in IMAGES.items():
            rows = ["file,labels"]
            for row in range(count):
                trees.write_image(root / split / f"{row}.jpg", trees.scene(row, split).image)
                rows.append(f"{split}/{row}.jpg,{';'.join(drawn(trees, row, split))}")
            trees.write_lines(root / f"{split}.csv", rows)
        return ["--dataset", f"folder:{root}"]
    if name == "webdataset:":
        root.mkdir()
        for split, count in IMAGES.items():
            write_tar(trees, root / f"{split}-000.tar", split, count)
        trees.write_lines(root / "class_names.txt", trees.VOC_NAMES)
        return ["--dataset", f"webdataset:{root}/{{split}}-{{000..000}}.tar"]
    if name == "PATH.json":
        for split, count in IMAGES.items():
            trees.TREES["coco"](root, split, count)
        return ["--dataset", f"{root}/annotations/instances_{{split}}.json", "--root", str(root)]
    known = registry.DATASETS[name]
    splits = (known.train_split, known.test_split) if known.expected else ("train2017", "val2017")
    write_tree(trees, name, root, dict(zip(splits, IMAGES.values(), strict=True)))
    return ["--dataset", name, "--root", str(root)]


def drawn(trees: ModuleType, row: int, split: str) -> list[str]:
    """Class names of a scene in VOC's words."""
    return [trees.VOC_NAMES[column] for column in np.flatnonzero(trees.scene(row, split).labels)]


def write_tar(trees: ModuleType, path: Path, split: str, count: int) -> None:
    with tarfile.open(path, "w") as tar:
        for row in range(count):
            buffer = io.BytesIO()
            Image.fromarray(trees.scene(row, split).image).save(buffer, "PNG")
            labels = json.dumps(drawn(trees, row, split)).encode()
            for suffix, data in (("png", buffer.getvalue()), ("json", labels)):
                member = tarfile.TarInfo(f"{row:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def expected_classes(name: str) -> tuple[str, ...]:
    """Class names of a report: no background, no matter what masks have."""
    if name in ("coco", "PATH.json"):
        return registry.DATASETS["coco14"].class_names
    if name in registry.DATASETS:
        return tuple(n for n in registry.DATASETS[name].class_names if n != "background")
    return ()


def shown_classes(trees: ModuleType, name: str, class_names: Sequence[str]) -> set[str]:
    """Classes that occur in the images of the test split, by the scenes behind them."""
    split = registry.DATASETS[name].test_split if name in registry.DATASETS else "test"
    if name.startswith("shapes"):
        listing = registry.DATASETS[name].open(Path(), split, {})
        drawn = [listing.read(row).labels for row in range(IMAGES["test"])]
    else:
        first = IMAGES["train"] if name in IMAGE_SETS else 0
        drawn = [trees.scene(first + row, split).labels for row in range(IMAGES["test"])]
    columns = np.flatnonzero(np.any(drawn, axis=0))
    if name in ("folder:", "webdataset:"):
        return {trees.VOC_NAMES[column] for column in columns}
    return {class_names[column] for column in columns} | ({"grass"} if name == "stuff" else set())


@pytest.mark.usefixtures("ray_session", "_quick")
@pytest.mark.parametrize("name", [*registry.DATASETS, *OWN])
def test_one_command_leads_from_a_tree_to_an_evaluated_dclip(
    trees: ModuleType,
    tmp_path: Path,
    output: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = tree_and_words(trees, name, tmp_path / "tree")
    words += ["--evaluate.scenes", "6" if name == DRAWN else "1"]
    assert cli.main("run", [*words, "--output", str(output), *COMMAND]) == 0, capsys.readouterr()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    report = json.loads((Path(told["figures"][0]).parent / "report.json").read_text())
    names, dclip = report["class_names"], report["systems"]["dclip"]

    shown = shown_classes(trees, name, names)
    assert tuple(names) == (expected_classes(name) or tuple(names))
    assert shown <= set(names)
    # an image without an object is one of theirs
    with_blank = ("coco", "PATH.json", "coco17-seg", "stuff")
    assert report["images"] == IMAGES["test"] + (name in with_blank)
    # a class that never occurs has no AP, and no share in the mean
    ap = dict(zip(names, dclip["ap"], strict=True))
    assert {known for known in names if ap[known] is not None} == shown
    found = [ap[known] for known in shown]
    assert all(0 <= value <= 1 for value in found)
    assert dclip["map"] == pytest.approx(np.mean(found), abs=1e-5)
    assert told["map"]["dclip"] == dclip["map"]
    assert all(Path(picture).is_file() for picture in told["figures"])


@pytest.mark.usefixtures("ray_session", "_quick")
@pytest.mark.parametrize("name", ["one table"])
def test_photographs_and_one_table_lead_to_an_evaluated_model_in_two_commands(
    trees: ModuleType,
    tmp_path: Path,
    output: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    rows = ["file,labels"]
    for row in range(12):
        trees.write_image(photos / f"{row}.jpg", trees.scene(row, "train").image)
        rows.append(f"{row}.jpg,{';'.join(drawn(trees, row, 'train'))}")
    trees.write_lines(photos / "labels.csv", rows)
    words = ["--output", str(output)]
    assert datasets.main(["check", f"folder:{photos}", *words]) == 0
    (advice,) = [
        line for line in capsys.readouterr().out.splitlines() if "--test-fraction 0.2" in line
    ]
    command = shlex.split(advice.partition("python -m pipeline.run ")[2])
    assert cli.main("run", [*command, *words, *COMMAND]) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    report = json.loads((Path(told["figures"][0]).parent / "report.json").read_text())
    assert report["images"] == 4  # 0.2 of 12, and more so that each class is in both parts
    assert (report["test_fraction"], report["split_seed"]) == (0.2, 0)
    assert not report["test_on_train"]
    assert told["notes"] == report["notes"]
    assert "4 of the 12 images of 'labels': parted by test fraction 0.2, seed 0" in report["notes"]
    assert f"note: {report['notes'][-1]}" in out
    folder = Path(told["features"]["test"]["folder"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["spec"]["listing"]["test_fraction"] == "0.2"
    assert manifest["notes"] == report["notes"]
