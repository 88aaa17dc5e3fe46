"""Reports: what they depend on, that they stand, and what odd but valid data give; without Ray."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from dclip.checkpoints.files import write_checkpoint
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Task, initial
from pipeline.features.opened import open_features
from pipeline.features.plan import plan_features
from pipeline.records import choice
from pipeline.records.origin import about_training
from pipeline.records.trainings import checkpoint_path
from pipeline.settings.config import Config
from pipeline.stages import evaluate, extract
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import evaluation

from ...processes import in_a_new_process
from ..conftest import settings, with_train
from .test_extract import make_here

pytestmark = pytest.mark.usefixtures("_toy_on_path")

IMAGES = 12


def wanted(output: Path, **changes: object) -> Config:
    """Settings of a report on a few scenes; changes of ``evaluate`` are added to the usual."""
    own = {"probe_epochs": 1, "scenes": 1, **changes.pop("evaluate", {})}  # type: ignore[dict-item]
    base = {"extract": {"limit": IMAGES, "shard_size": 8}, "evaluate": own}
    return settings(output, **{**base, **changes})


def make_features(config: Config, *splits: str) -> None:
    plans = [plan_features(config, split) for split in splits]
    for plan in plans:
        make_here(plan, config)
    extract.extract(config, plans)


def train_here(config: Config, path: Path | None = None, *, weights: int = 0) -> Path:
    """A checkpoint of these settings, as if they had been trained."""
    plan = plan_features(config, config.train_split)
    path = path or checkpoint_path(config, plan)
    reader = open_features(plan.folders[:1], config.output)
    history = [{"epoch": 1.0, "loss": 0.5}]
    about = about_training(
        config, plan, reader.manifest, epoch=1, seed=config.seed, history=history
    )
    task = Task.of_features(reader.class_names, *reader.text_features())
    write_checkpoint(path, initial(DCLIPMethod, about.settings, task, seed=weights), about)
    return path


@pytest.fixture(scope="module")
def output(_toy_on_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of both splits and one checkpoint."""
    config = wanted(tmp_path_factory.mktemp("evaluate"))
    make_features(config, "train", "test")
    train_here(config)
    return config.output


def folder_of(report: evaluate.EvaluateReport) -> Path:
    return Path(report.figures[0]).parent


def metric_counts(config: Config) -> dict[str, int]:
    """How often each run of the store has its map of the global zero-shot scores."""
    store = mlflow.MlflowClient(config.own_store)
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
    return {
        run.data.tags["dclip.key"]: len(
            store.get_metric_history(run.info.run_id, "test/map/zero_shot")
        )
        for run in runs
    }


def identity(config: Config, *, rename: Callable[[Path], Path] = lambda path: path) -> str:
    plan = plan_features(config, "test")
    usual = wanted(config.output)
    path = rename(checkpoint_path(usual, plan_features(usual, "train")))
    return evaluate.identity(config, {"dclip": path}, plan)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate": {"threshold": 0.9}},
        {"evaluate": {"linear_probe": False}},
        {"evaluate": {"probe_epochs": 2}},
        {"seed": 1},
        {"train": {"val_fraction": 0.5}},
        {"train": {"data_seed": 3}},
    ],
    ids=str,
)
def test_whatever_changes_a_number_changes_the_name(
    output: Path, changes: dict[str, object]
) -> None:
    assert identity(wanted(output, **changes)) != identity(wanted(output))


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate": {"scenes": 3}},
        {"evaluate": {"anew": True}},
        {"train": {"lr": 0.5, "val_fraction": 0.25}},  # of the checkpoint, which is another file
        {"experiment": "mine"},
    ],
    ids=str,
)
def test_what_changes_no_number_does_not(output: Path, changes: dict[str, object]) -> None:
    assert identity(wanted(output, **changes)) == identity(wanted(output))


def test_settings_of_a_probe_that_is_not_fitted_do_not_count(output: Path) -> None:
    off = {"linear_probe": False}
    names = {
        identity(wanted(output, evaluate=own, **more))
        for own, more in ((off, {}), ({**off, "probe_epochs": 7}, {"seed": 4}))
    }
    assert len(names) == 1


def test_of_a_checkpoint_the_content_counts_not_the_place(output: Path, tmp_path: Path) -> None:
    def copied(path: Path) -> Path:
        (tmp_path / "a.safetensors").write_bytes(path.read_bytes())
        return tmp_path / "a.safetensors"

    usual = wanted(output)
    assert identity(usual, rename=copied) == identity(usual)
    other = train_here(usual, tmp_path / "b.safetensors", weights=1)
    assert identity(usual, rename=lambda _: other) != identity(usual)


def test_another_threshold_has_a_report_and_a_run_of_its_own(output: Path) -> None:
    low, high = wanted(output), wanted(output, evaluate={"threshold": 0.9})
    first = evaluate.run(low)
    second = evaluate.run(high)
    assert folder_of(first) != folder_of(second)
    assert first.mlflow.run_id != second.mlflow.run_id
    assert json.loads((folder_of(first) / "report.json").read_text())["threshold"] == 0.5
    counts = metric_counts(low)
    assert counts[folder_of(first).name] == counts[folder_of(second).name] == 1


def test_a_report_that_stands_is_shown_again_and_nothing_else_happens(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = wanted(output)
    first = evaluate.run(config)
    shown = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in folder_of(first).iterdir()}
    code = (
        "import sys\n"
        "from pipeline.terminal import cli\n"
        f"sys.argv = ['x', '--output', {str(output)!r}, '--backbone', 'toy_backbone:make', "
        "'--extract.limit', '12', '--extract.shard-size', '8', '--device', 'cpu', "
        "'--train.epochs', '4', '--train.val-fraction', '0.25', '--dclip.output-dim', '8', "
        "'--probe-epochs', '1', '--scenes', '1']\n"
        "assert cli.main('evaluate') == 0\n"
        "assert not {'mlflow', 'ray', 'matplotlib'} & set(sys.modules)\n"
    )
    done = in_a_new_process(code)
    assert done.stdout == shown
    assert "nothing to do" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in folder_of(first).iterdir()} == before


def test_anew_scores_again_and_mlflow_gets_no_second_set(output: Path) -> None:
    config = wanted(output)
    first = evaluate.run(config)
    path = folder_of(first) / "report.json"
    before = path.stat().st_mtime_ns
    again = evaluate.run(wanted(output, evaluate={"anew": True}))
    assert path.stat().st_mtime_ns > before
    assert again.systems == first.systems
    assert again.mlflow.run_id == first.mlflow.run_id
    assert metric_counts(config)[path.parent.name] == 1


def test_pictures_that_are_gone_or_of_other_scenes_are_drawn_and_no_more(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate.run(wanted(output))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("scored again"))
    picture = Path(first.figures[-1])
    picture.unlink()
    evaluate.run(wanted(output))
    assert picture.is_file()
    with Image.open(picture) as image:
        one = image.size
    assert evaluate.run(wanted(output, evaluate={"scenes": 3})).scenes == 3
    with Image.open(picture) as image:
        assert image.size[1] > 2 * one[1]


def test_without_a_probe_the_training_split_is_not_looked_at(output: Path, tmp_path: Path) -> None:
    """Neither its features nor its list need to be there."""
    train_here(wanted(output), tmp_path / "one.safetensors")
    own = {"linear_probe": False, "checkpoint": tmp_path / "one.safetensors"}
    config = wanted(tmp_path, evaluate=own, train_split="nowhere")
    make_features(config, "test")
    assert "of the probe" not in evaluate.describe(config)
    report = evaluate.run(config)
    assert list(report.systems) == ["zero_shot", "zero_shot_local", "dclip"]


def test_two_checkpoints_of_one_method_are_told_apart(output: Path, tmp_path: Path) -> None:
    config = wanted(output)
    files = [
        train_here(config, tmp_path / name, weights=number)
        for number, name in enumerate(("a/x.safetensors", "b/x.safetensors", "y.safetensors"))
    ]
    report = evaluate.run(wanted(output, evaluate={"checkpoint": files}))
    assert list(report.checkpoints) == ["a/x", "b/x", "y"]
    assert list(report.checkpoints.values()) == list(map(str, files))
    scores = [tuple(report.systems[name]["ap"]) for name in report.checkpoints]
    assert len(set(scores)) == 3
    run = mlflow.MlflowClient(config.own_store).get_run(report.mlflow.run_id)
    assert run.data.metrics["test/map/b/x"] == report.systems["b/x"]["map"]
    assert "b/x" in evaluate.table(report)


def test_names_of_checkpoints() -> None:
    a, b, c = (Path(f"/{name}.safetensors") for name in ("r/dclip", "s/dclip", "t/clip"))
    assert choice.names_of({a: "dclip", c: "asl_only"}) == {a: "dclip", c: "asl_only"}
    # the method of one is the file of the other
    assert choice.names_of({a: "asl_only", b: "dclip", c: "asl_only"}) == {
        a: "r/dclip", b: "dclip", c: "clip",
    }  # fmt: skip
    assert choice.names_of({c: "clip"}, ["clip"]) == {c: "t/clip"}
    odd = Path("/x/ä(1).safetensors")
    assert choice.names_of({odd: "dclip", a: "dclip"})[odd] == "--1-"
    same = [Path("/x/é.safetensors"), Path("/x/è.safetensors")]
    assert len(set(choice.names_of(dict.fromkeys(same, "dclip")).values())) == 2


class TestWithoutACheckpoint:
    """What is taken where none is given."""

    @pytest.fixture
    def fresh(self, output: Path, tmp_path: Path) -> Config:
        """Settings with features that are there and no training yet."""
        (tmp_path / "features").symlink_to(output / "features")
        return wanted(tmp_path)

    def test_there_may_be_none(self, fresh: Config) -> None:
        with pytest.raises(choice.NoCheckpointError, match=r"python -m pipeline\.run"):
            evaluate.run(fresh)
        assert "missing, pipeline.train makes it" in evaluate.describe(fresh)

    def test_the_own_one_is_taken_and_newer_ones_are_named(
        self, fresh: Config, caplog: pytest.LogCaptureFixture
    ) -> None:
        own = train_here(fresh)
        caplog.set_level("INFO")
        assert choice.take_checkpoint(fresh) == own
        assert not caplog.records
        other = train_here(with_train(fresh, preset="author", lr=0.5))
        os.utime(own, (1, 1))
        assert choice.take_checkpoint(fresh) == own
        (line,) = caplog.messages
        assert str(own) in line
        assert str(other) in line
        assert "preset author" in line

    def test_the_one_other_is_taken_and_said(
        self, fresh: Config, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = train_here(with_train(fresh, preset="author", lr=0.5))
        (other.parent / "damaged.safetensors").write_bytes(b"x")
        caplog.set_level("INFO")
        report = evaluate.run(fresh)
        assert report.checkpoints == {"dclip": str(other)}
        assert any("these settings have no checkpoint" in line for line in caplog.messages)
        assert f"{other} (dclip, preset author" in capsys.readouterr().out

    def test_of_several_the_one_of_the_same_method_is_meant(self, fresh: Config) -> None:
        author = with_train(fresh, preset="author", lr=0.5)
        train_here(with_train(author, mfi_weight=0.0))
        full = train_here(author)
        assert choice.take_checkpoint(fresh) == full

    def test_which_of_several_is_asked(self, fresh: Config) -> None:
        files = [train_here(with_train(fresh, lr=lr)) for lr in (0.5, 0.6)]
        with pytest.raises(StageError, match=r"2 others stand .* by --checkpoint FILE") as caught:
            evaluate.run(fresh)
        assert all(str(path) in str(caught.value) for path in files)
        assert not isinstance(caught.value, choice.NoCheckpointError)

    def test_those_of_other_features_are_never_taken(self, fresh: Config, tmp_path: Path) -> None:
        other = wanted(tmp_path, extract={"limit": 5, "shard_size": 8})
        make_features(other, "train")
        train_here(other)
        with pytest.raises(choice.NoCheckpointError):
            choice.take_checkpoint(fresh)


# ---------------------------------------------------------------------------------------------
# Odd but valid data
# ---------------------------------------------------------------------------------------------


def write_images(root: Path, labels: dict[str, list[str]]) -> None:
    """A folder data set: a table a split, of images that hold one colour each."""
    generator = np.random.default_rng(0)
    for split, rows in labels.items():
        lines = ["file,labels"]
        for number, label in enumerate(rows):
            path = root / f"{split}-{number}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = np.full((64, 64, 3), generator.integers(256, size=3), np.uint8)
            Image.fromarray(pixels).save(path)
            lines.append(f"{path.name},{label}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


def odd(tmp_path: Path, labels: dict[str, list[str]]) -> Config:
    write_images(tmp_path / "data", labels)
    own = {"limit": IMAGES, "shard_size": 8, "split": "test"}  # whose labels are then not looked at
    config = wanted(tmp_path, dataset=f"folder:{tmp_path / 'data'}", extract=own)
    make_features(config, "train", "test")
    train_here(config)
    return config


def test_of_one_class_there_is_no_cosine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"train": ["disc", "", "disc", ""] * 2, "test": ["disc", "", "disc"]}
    config = odd(tmp_path, labels)
    report = evaluate.run(config)
    assert report.inter_class_cosine == {"clip": None, "dclip": None}
    assert 0 <= report.systems["dclip"]["map"] <= 1
    rows = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in rows if line.startswith(("CLIP", "DCLIP"))] == ["-"] * 3
    text = (folder_of(report) / "report.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_score_on_the_training_images_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "data", {"train": ["disc", "box", "disc;box", ""]})
    changes = {"dataset": f"folder:{tmp_path / 'data'}", "test_split": "train"}
    config = wanted(tmp_path, **changes, test_on_train=True)
    make_features(config, "train")
    train_here(config)
    report = evaluate.run(config)
    assert report.test_on_train is True
    assert "warning: split 'train' is the training images" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--test-on-train"):
        evaluate.run(wanted(tmp_path, **changes))


def test_without_a_positive_there_is_no_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = odd(tmp_path, {"train": ["disc", "box", "disc;box", ""] * 2, "test": ["", "", ""]})
    report = evaluate.run(config)
    assert report.systems["dclip"]["map"] is None
    assert report.systems["dclip"]["ap"] == [None, None]
    rows = capsys.readouterr().out.splitlines()
    assert [line.split()[-5] for line in rows if line.startswith(("CLIP", "DCLIP"))] == ["-"] * 3
    text = (folder_of(report) / "report.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert math.isfinite(report.inter_class_cosine["dclip"])


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("extract", []),
        ("train", []),
        ("evaluate", []),
        ("evaluate", ["--no-linear-probe"]),
        ("segment", []),
        ("segment", ["--systems", "clip_vv"]),
        ("segments_mlr", []),
        ("predict", ["a.jpg", "--classes", "disc, ring"]),
        ("sweep", []),
        ("ablate", []),
        ("run", []),
    ],
)
def test_a_dry_run_before_anything_is_made_is_a_plan(
    stage: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--backbone", "toy_backbone:make", "--output", str(tmp_path), "--extract.limit", "9"]
    assert cli.main(stage, [*words, *usual, "--dry-run"]) == 0
    told = capsys.readouterr().out
    # frozen CLIP answers where there is no checkpoint
    needs_nothing = stage in ("extract", "predict") or "clip_vv" in words
    assert needs_nothing or any(word in told for word in ("missing", "not extracted", "to be made"))
    assert not list(tmp_path.rglob("*.tar"))
