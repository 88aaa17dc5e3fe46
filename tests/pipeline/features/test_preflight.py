"""What can only fail late is refused in the first second of every stage, by its name."""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip.data.listing import ImageListing
from pipeline.datasets import main
from pipeline.features import backbone, splits
from pipeline.features.listings import known_splits
from pipeline.features.plan import plan_features
from pipeline.features.preflight import require_images, shared_places
from pipeline.features.splits import open_dataset, open_labelled
from pipeline.settings.config import Config
from pipeline.stages import extract
from pipeline.terminal import cli
from pipeline.terminal.checks import require_output
from pipeline.terminal.errors import UsageError

from ...processes import in_a_new_process
from ..conftest import TOY

pytestmark = pytest.mark.usefixtures("_toy_on_path")

STAGES = ("extract", "train", "evaluate", "run", "sweep", "ablate", "segments_mlr")
Rows = Sequence[tuple[str, str]]


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)


def folder(root: Path, **tables: Rows) -> str:
    """A folder of pictures and one CSV a split, of (file, labels)."""
    for number, (split, rows) in enumerate(tables.items()):
        for row, (file, _) in enumerate(rows):
            if not (root / file).exists():
                picture(root / file, 50 * number + row)
        lines = ["file,labels", *(f"{file},{labels}" for file, labels in rows)]
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return f"folder:{root}"


def rows(split: str, labels: Sequence[str]) -> Rows:
    return [(f"{split}/{number}.jpg", label) for number, label in enumerate(labels)]


def coco(
    file: Path, split: str, categories: Mapping[int, str], labels: Sequence[int], *, first: int = 1
) -> None:
    """An annotation file, its pictures below ``<root>/<split>``."""
    root = file.parent.parent
    for number in range(len(labels)):
        picture(root / split / f"{number}.jpg", 100 * (split != "train") + number)
    content = {
        "images": [
            {"id": first + n, "file_name": f"{n}.jpg", "width": 8, "height": 8}
            for n in range(len(labels))
        ],
        "categories": [{"id": k, "name": name} for k, name in categories.items()],
        "annotations": [
            {"id": n + 1, "image_id": first + n, "category_id": k, "bbox": [0, 0, 4, 4]}
            for n, k in enumerate(labels)
        ],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def tar(path: Path, labels: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for number, label in enumerate(labels):
            buffer = BytesIO()
            Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
            for suffix, data in (("png", buffer.getvalue()), ("txt", f"{label}\n".encode())):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                out.addfile(member, BytesIO(data))
    (path.parent / "class_names.txt").write_text("box\ndisc\n")


NAMED = ["--train-split", "train", "--test-split", "test"]  # conf/coco.yaml has others


def settings(tmp_path: Path, dataset: str, **changes: object) -> Config:
    values = {"dataset": dataset, "backbone": TOY, "output": tmp_path / "out", "device": "cpu"}
    return Config.model_validate({**values, **changes})


def one_split(root: Path, kind: str) -> str:
    """A source whose train and test split are the same six images."""
    labels = ["disc", "box", "disc", "box", "disc;box", "box"]
    if kind == "json":
        coco(root / "annotations" / "all.json", "", {1: "disc", 2: "box"}, [1, 2, 1, 2, 1, 2])
        return str(root / "annotations" / "all.json")
    if kind == "tar":
        tar(root / "all-000.tar", ["disc", "box"] * 3)
        return f"webdataset:{root}/all-{{000..000}}.tar"
    if kind == "copied table":
        listed = rows("images", labels)
        return folder(root, train=listed, test=listed)
    return folder(root, data=rows("images", labels))


# ---------------------------------------------------------------------------------------------
# A test on the training images
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dry", [True, False])
def test_every_stage_refuses_a_test_on_the_training_images(
    tmp_path: Path, stage: str, dry: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = one_split(tmp_path / "d", "json")
    words = ["--dataset", dataset, "--root", str(tmp_path / "d"), "--backbone", TOY]
    words += ["--output", str(tmp_path / "out"), *(["--dry-run"] if dry else [])]
    assert cli.main(stage, words) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "all.json has no {split}, so that train and test split are the same images" in told
    assert "--test-fraction 0.2" in told
    assert "--test-on-train" in told


@pytest.mark.parametrize("kind", ["json", "tar", "copied table", "same name"])
def test_the_same_images_are_refused_unless_asked_for(tmp_path: Path, kind: str) -> None:
    dataset = one_split(tmp_path / "d", kind)
    changes: dict[str, object] = {"root": tmp_path / "d"} if kind == "json" else {}
    if kind == "same name":
        changes = {"train_split": "data", "test_split": "data"}
    config = settings(tmp_path, dataset, **changes)
    for split in {config.train_split, config.test_split}:
        with pytest.raises(UsageError, match="--test-on-train"):
            open_dataset(config, split)
    allowed = config.model_copy(update={"test_on_train": True})
    assert len(open_dataset(allowed, config.test_split)) == 6
    assert splits.tested_on_train(allowed)
    assert any("training images" in warning for warning in backbone.warnings_of(allowed))


@pytest.mark.parametrize(
    ("train", "test"), [("trainval", "train"), ("val", "trainval"), ("test", "test")]
)
def test_published_splits_that_share_images_are_refused_without_a_look(
    tmp_path: Path, train: str, test: str
) -> None:
    config = settings(tmp_path, "voc2007", train_split=train, test_split=test)
    with pytest.raises(UsageError, match="--test-on-train"):
        splits.tested_on_train(config)


def test_splits_with_other_images_are_no_test_on_train_whatever_the_flag_says(
    tmp_path: Path,
) -> None:
    dataset = folder(tmp_path / "d", train=rows("train", ["a", "b"]), test=rows("test", ["a", "b"]))
    config = settings(tmp_path, dataset, test_on_train=True)
    assert not splits.tested_on_train(config)
    assert backbone.warnings_of(config) == []
    assert not splits.tested_on_train(Config())
    one, other = (open_dataset(config, split) for split in ("train", "test"))
    assert shared_places(one, other) == 0


# ---------------------------------------------------------------------------------------------
# A split that is made
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "tar", "table", "coco tree"])
def test_a_source_of_one_split_is_parted(tmp_path: Path, kind: str) -> None:
    changes: dict[str, object] = {"test_fraction": 1 / 3, "train_split": "fit"}
    if kind == "coco tree":
        root = tmp_path / "d"
        coco(root / "annotations" / "instances_x.json", "x", {1: "disc", 2: "box"}, [1, 2] * 3)
        dataset, changes["root"] = "coco", root
    else:
        dataset = one_split(tmp_path / "d", kind)
        if kind == "json":
            changes["root"] = tmp_path / "d"
    config = settings(tmp_path, dataset, **changes)
    fit, test = plan_features(config, "fit"), plan_features(config, "test")
    keys = [{plan.listing.key(n) for n in range(plan.num_images)} for plan in (fit, test)]
    assert [len(part) for part in keys] == [4, 2]
    assert not keys[0] & keys[1]
    labels = np.asarray(test.listing.labels)  # type: ignore[attr-defined]
    assert (labels == 1).any(axis=0).all()
    told = test.source["listing"]
    assert (told["part"], told["test_fraction"], told["split_seed"]) == ("test", repr(1 / 3), "0")
    other = config.model_copy(update={"split_seed": 1})
    assert plan_features(other, "test").fingerprint != test.fingerprint
    assert "parted by test fraction 0.333333, seed 0" in test.notes[-1]


@pytest.mark.parametrize(
    ("dataset", "changes", "named"),
    [
        ("voc2007", {}, "voc2007 has 'train', 'val'"),
        ("shapes", {}, "parts a source of one split; shapes has 'train'"),
        ("two tables", {}, "has 'test', 'train'"),
        ("{split}.json", {}, "none that can be seen"),
        ("one table", {"test_split": "train"}, "both are called 'train'"),
        ("one table", {"ask": "val"}, "no split 'val': --test-fraction makes 'train' and 'test'"),
    ],
)
def test_what_has_splits_of_its_own_is_not_parted(
    tmp_path: Path, dataset: str, changes: dict[str, str], named: str
) -> None:
    root = tmp_path / "d"
    if dataset == "two tables":
        dataset = folder(root, train=rows("a", ["x", "y"]), test=rows("b", ["x", "y"]))
    elif dataset == "one table":
        dataset = folder(root, data=rows("a", ["x", "y"]))
    elif dataset == "{split}.json":
        dataset = str(tmp_path / dataset)
    split = changes.pop("ask", "train")
    config = settings(tmp_path, dataset, test_fraction=0.2, **changes)
    with pytest.raises(UsageError) as caught:
        open_dataset(config, split)
    assert named in str(caught.value)


@pytest.mark.parametrize("fraction", ["0", "1", "-0.1", "nan", "text"])
def test_a_fraction_is_between_0_and_1(fraction: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("extract", ["--test-fraction", fraction, "--dry-run"]) == 2
    assert "test_fraction" in capsys.readouterr().err


def test_splits_are_seen_by_the_files_of_a_pattern(tmp_path: Path) -> None:
    for split in ("train", "val"):
        tar(tmp_path / f"{split}-000.tar", ["box"])
        tar(tmp_path / "tars" / split / f"{split}-000.tar", ["box"])
    (tmp_path / "val.json").touch()
    assert known_splits(f"webdataset:{tmp_path}/{{split}}-{{000..000}}.tar", None) == [
        "train",
        "val",
    ]
    assert known_splits(f"webdataset:{tmp_path}/tars/{{split}}/{{split}}-*.tar", None) == [
        "train",
        "val",
    ]
    assert known_splits(f"{tmp_path}/{{split}}.json", None) == ["val"]
    assert known_splits(f"{tmp_path}/val.json", None) == ["all"]
    assert known_splits("folder:nowhere", None) == []


# ---------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------


def test_columns_of_the_test_split_are_matched_by_name(tmp_path: Path) -> None:
    root = tmp_path / "d"
    coco(root / "annotations" / "instances_train.json", "train", {1: "disc", 2: "box"}, [1, 2, 1])
    coco(root / "annotations" / "instances_test.json", "test", {5: "box", 9: "disc"}, [5, 9])
    config = settings(tmp_path, "coco", root=root)
    train, test = (plan_features(config, split).listing for split in ("train", "test"))
    assert train.class_names == test.class_names == ("disc", "box")
    assert isinstance(test, ImageListing)
    assert test.labels.tolist() == [[0, 1], [1, 0]]
    assert any("matched by name" in note for note in test.notes)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_names_the_classes_that_differ(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "d"
    coco(root / "annotations" / "instances_train.json", "train", {1: "disc", 2: "box"}, [1, 2, 1])
    coco(root / "annotations" / "instances_test.json", "test", {1: "disc", 2: "ring"}, [1, 2])
    words = ["--dataset", "coco", "--root", str(root), "--backbone", TOY, "--output", str(tmp_path)]
    assert cli.main(stage, [*words, *NAMED]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "'test' has no 'box'" in told
    assert "'train' has no 'ring'" in told


def test_a_training_split_alone_can_be_used(tmp_path: Path) -> None:
    dataset = folder(tmp_path / "d", train=rows("train", ["a", "b"]))
    config = settings(tmp_path, dataset)
    assert len(open_dataset(config, "train")) == 2
    with pytest.raises(UsageError, match="has one split, 'train', and no 'test'; part it with"):
        open_dataset(config, "test")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_how_one_table_is_parted(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", one_split(tmp_path / "d", "table"), "--backbone", TOY]
    assert cli.main(stage, [*words, "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "has one split, 'data', and no 't" in told
    assert "--test-fraction 0.2" in told
    assert "--test-on-train" in told


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "val"), ("train", "holdout test")])
def test_splits_of_other_names_are_told_with_the_flags_that_take_them(
    tmp_path: Path, splits: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "d"
    for split in splits:
        file = root / "annotations" / f"instances_{split}.json"
        coco(file, split, {1: "disc", 2: "box"}, [1, 2, 1])
    train, test = map(shlex.quote, splits)
    flags = f"--train-split {train} --test-split {test}"
    words = ["--dataset", "coco", "--root", str(root), "--backbone", TOY, "--output", str(tmp_path)]
    assert cli.main("run", words) == 2
    assert "no split 'train2017'; its splits are" in (told := capsys.readouterr().err)
    assert f"give {flags}" in told
    assert main(["check", "coco", "--root", str(root)]) == 0
    assert f"{flags}\n" in capsys.readouterr().out
    assert cli.main("run", [*words, *shlex.split(flags), "--dry-run"]) == 0


def test_usual_splits_need_no_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train2017", "val2017"):
        file = tmp_path / "annotations" / f"instances_{split}.json"
        coco(file, split, {1: "disc", 2: "box"}, [1, 2, 1])
    main(["check", "coco", "--root", str(tmp_path)])
    told = capsys.readouterr().out
    assert "  val2017:" in told
    assert "--train-split" not in told


LONG = "a very particular and long-winded description of one kind of disc " * 8


@pytest.mark.parametrize(
    ("name", "named"),
    [(LONG.strip(), "tokens with its prompt, and RN101 reads 77"), ("a\tb", "control character")],
)
@pytest.mark.parametrize("stage", ["extract", "run"])
def test_a_name_that_is_no_prompt_is_refused(
    tmp_path: Path, name: str, named: str, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "d"
    for split in ("train", "test"):
        file = root / "annotations" / f"instances_{split}.json"
        coco(file, split, {1: name, 2: "box"}, [1, 2, 1])
    words = ["--dataset", "coco", "--root", str(root), "--output", str(tmp_path / "out")]
    assert cli.main(stage, [*words, *NAMED]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_the_context_is_that_of_the_backbone(tmp_path: Path) -> None:
    name = "disc " * 40
    dataset = folder(
        tmp_path / "d", train=rows("train", [name, "b"]), test=rows("test", [name, "b"])
    )
    assert len(open_dataset(settings(tmp_path, dataset, backbone="ViT-B-16"), "train")) == 2
    with pytest.raises(UsageError, match="takes 47 tokens with its prompt, and tiny reads 32"):
        open_dataset(settings(tmp_path, dataset, backbone="tiny"), "train")


def test_labels_of_which_none_is_known_to_be_absent_are_refused(tmp_path: Path) -> None:
    for number, (one, other) in enumerate((("1,-1", "-1,1"), ("1,0", "-1,1"), ("1,1", "1,1"))):
        place = tmp_path / str(number)
        dataset = folder(place, train=rows("train", ["a", "b"]))
        (place / "train.csv").write_text(f"file,a,b\ntrain/0.jpg,{one}\ntrain/1.jpg,{other}\n")
        config = settings(tmp_path, dataset, backbone=TOY)
        if number:
            assert len(open_labelled(config, "train")) == 2
            continue
        with pytest.raises(UsageError, match="'train' are 1 and -1 alone: -1 is unknown"):
            open_labelled(config, "train")


@pytest.mark.parametrize("stage", ["extract", "run", "evaluate", "ablate"])
def test_a_test_split_without_any_positive_is_refused(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = folder(tmp_path / "d", train=rows("train", ["a", "b"]), test=rows("test", ["", ""]))
    words = ["--dataset", dataset, "--backbone", TOY, "--output", str(tmp_path / "out")]
    assert cli.main(stage, words) == 2
    assert "no image of split 'test' has any class" in capsys.readouterr().err
    # but its features can be made, and training does not ask for it
    alone = Config.model_validate(
        {"dataset": dataset, "backbone": TOY, "output": tmp_path, "extract": {"split": "test"}}
    )
    assert [plan.name for plan in extract.all_plans(alone)] == ["test"]
    assert plan_features(settings(tmp_path, dataset), "train").num_images == 2


def test_names_that_are_one_text_and_classes_without_an_image_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "d"
    dataset = folder(root, train=rows("train", ["Dog", "dog"]), test=rows("test", ["DOG", "dog"]))
    plans = extract.all_plans(settings(tmp_path, dataset))
    with caplog.at_level(logging.INFO, "pipeline"):
        extract._tell(settings(tmp_path, dataset), plans)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert "1 class has no image in 'train' to learn from: DOG" in told[0]
    assert "1 class has no image in 'test' to be scored on: Dog; mAP is over the others" in told[1]
    assert "one text to CLIP, and share its probability: 'DOG' = 'Dog' = 'dog'" in told[2]
    plan = extract.describe(settings(tmp_path, dataset))
    assert "'train' to learn from: DOG" in plan
    assert "'test' to be scored on: Dog" in plan


# ---------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------


def test_a_dry_run_notices_that_the_images_of_a_cached_listing_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "d"
    for split in ("train", "test"):
        file = root / "annotations" / f"instances_{split}.json"
        coco(file, split, {1: "disc", 2: "box"}, [1, 2, 1])
    words = ["--dataset", "coco", "--root", str(root), "--output", str(tmp_path / "out"), *NAMED]
    words += ["--backbone", TOY, "--device", "cpu", "--dry-run"]
    assert cli.main("extract", words) == 0
    for picture_file in root.rglob("*.jpg"):
        picture_file.unlink()
    for stage in ("extract", "run"):
        assert cli.main(stage, words) == 1
        assert f"such as {root}/train/0.jpg" in capsys.readouterr().err
    assert cli.main("extract", words[:-1]) == 1  # before Ray is started
    assert "images of split 'train' are gone" in capsys.readouterr().err


def test_one_image_of_many_is_enough_to_begin(tmp_path: Path) -> None:
    dataset = folder(tmp_path / "d", train=rows("train", ["a"] * 40))
    listing = open_dataset(settings(tmp_path, dataset), "train")
    for number in range(1, 40):
        (tmp_path / "d" / "train" / f"{number}.jpg").unlink()
    require_images(listing)


def test_a_look_takes_no_torch_and_less_than_a_second_beyond_the_listing(tmp_path: Path) -> None:
    names = [f"a rather uncommon object number {number}" for number in range(1203)]
    dataset = folder(tmp_path / "d", train=rows("t", names), test=rows("t2", names))
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pipeline.settings.config import Config\n"
        "from pipeline.features.splits import open_dataset\n"
        f"config = Config(dataset={dataset!r}, output=Path({str(tmp_path / 'out')!r}))\n"
        "from pipeline.features.splits import _open_split, _source\n"
        "for split in ('train', 'test'): _open_split(_source(config), split)\n"
        "started = time.process_time()\n"
        "for split in ('train', 'test'): open_dataset(config, split)\n"
        "assert time.process_time() - started < 2, time.process_time() - started\n"
        "assert not {'torch', 'ray', 'open_clip'} & set(sys.modules)\n"
    )
    in_a_new_process(code)
    shutil.rmtree(tmp_path / "d")


EARLY = """
import sys
from pipeline.terminal import cli

for words in sys.argv[1:]:
    stage, *argv = words.split()
    code = cli.main(stage, argv)
    loaded = sorted({"torch", "ray", "mlflow", "open_clip"} & sys.modules.keys())
    print(stage, code, *loaded)
"""


def test_settings_that_cannot_be_are_refused_before_torch_is_loaded(
    tmp_path: Path,
) -> None:
    missing = f"--checkpoint {tmp_path}/no.safetensors --dataset folder:{tmp_path}"
    commands = {
        "sweep --space train.lrr=1": (2, "did you mean 'train.lr'"),
        "sweep --asha --space train.epochs=5,10": (2, "use --no-asha"),
        "sweep --space dclip.mfi_weight=0.1 --train.workers 2": (2, "--sweep.concurrency"),
        "train --backbone nosuch": (2, "unknown backbone 'nosuch'; give 'tiny'"),
        "sweep --backbone ViT-B-61": (2, "'ViT-B-61'; did you mean 'ViT-B-16', "),
        "extract --backbone ViT-B-16 --resolution 225": (2, "in place of 225 take 224 or 240"),
        "train --backbone coca_base": (2, "multiples of 18 pixels, not 448 x 448"),
        "train --backbone RN50 --pretrained webli": (2, "webli is of ViT-B-16-SigLIP, "),
        "train --backbone RN50 --tag laion400m_e31": (2, "no weights 'laion400m_e31' for RN50"),
        "run --backbone nosuch --dry-run": (2, "unknown backbone 'nosuch'"),
        "train --min-workers 3": (2, "--train.min-workers 3 is more than --train.workers 1"),
        "train --cache device --device cpu": (2, "use ram or none"),
        "run --train.min-workers 3": (2, "--train.min-workers 3 is more than --train.workers 1"),
        "run --test-split nowhere": (2, "'nowhere'"),
        "extract --split nowhere": (2, "'nowhere'"),
        "train --train-split nowhere": (2, "'nowhere'"),
        "evaluate --test-split nowhere": (2, "'nowhere'"),
        "segment --split nowhere": (2, "'nowhere'"),
        "segments_mlr --split nowhere": (2, "'nowhere'"),
        f"evaluate {missing}": (1, "no checkpoint at"),
        f"segment {missing}": (1, "no checkpoint at"),
        f"segments_mlr {missing}": (1, "no checkpoint at"),
        f"predict a.jpg --classes dog {missing}": (1, "no checkpoint at"),
    }
    done = subprocess.run(
        [sys.executable, "-c", EARLY, *commands],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    told = [f"{words.split()[0]} {code}" for words, (code, _) in commands.items()]
    assert done.stdout.splitlines() == told, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    for line, (words, (_, expected)) in zip(errors, commands.items(), strict=True):
        assert expected in line, words
    assert not list(tmp_path.iterdir())


def test_a_context_that_is_too_long_in_one_trial_or_row_is_refused_before_any_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--method", "dualcoop", "--output", str(tmp_path), "--dry-run"]
    key = "dualcoop.context_length"
    # what the settings say is tried nowhere, where it is varied
    for stage, flag in {"sweep": "--space", "ablate": "--vary"}.items():
        fits = [*base, "--dualcoop.context-length", "80", flag, f"{key}=4,8"]
        assert cli.main(stage, fits) == 0, capsys.readouterr().err
        assert cli.main(stage, [*base, flag, f"{key}=4,80,8"]) == 2
        assert "of which tiny reads 32; lower the context_length by" in capsys.readouterr().err
    assert cli.main("sweep", [*base, "--search", "optuna", "--space", f"{key}=4..80"]) == 2


def test_a_place_that_cannot_be_written_to_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below" / "it"):
        assert cli.main("extract", ["--output", str(place)]) == 2
        assert f"{file} is a file; name a folder" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UsageError, match=r"may not be written to"):
        require_output(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
