"""What Ray Tune runs, called by itself: packs whose points fail, damaged shards, going on."""

import shlex
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from ray import tune

from dclip.store.shards import read_manifest
from pipeline.features.plan import FeaturePlan, plan_features
from pipeline.records.checkpoints import load_checkpoint
from pipeline.records.tracking import Tracker
from pipeline.settings.config import Config, config_class
from pipeline.settings.space import Entry
from pipeline.stages import sweep
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError
from pipeline.work import ranking, sweeping
from pipeline.work.packs import begin
from pipeline.work.trial_runs import TrialRuns
from pipeline.work.trials import PACK, train_pack

from ..conftest import settings
from ..stages.test_extract import features_here

pytestmark = pytest.mark.usefixtures("_toy_on_path")

ALPHA, DIM = "dclip.mfi_weight", "dclip.output_dim"
GLOBAL = "toy_global:GlobalHead"
EXTRACT = {"limit": 48, "shard_size": 16, "split": "train"}


@pytest.fixture(scope="module")
def features(_toy_on_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the features of a training split."""
    return features_here(tmp_path_factory.mktemp("features"), EXTRACT)


class Pack:
    """A pack of points, and what it reported."""

    def __init__(self, output: Path, features: Path, points: list[dict[str, Any]], **train: Any):
        train = {"val_fraction": 0.25, "batch_size": 8, "output_dim": 8, **train}
        self.config: Config = settings(
            output, features=features, extract=EXTRACT, train=train, sweep={"epochs": 3}
        )
        self.plan: FeaturePlan = plan_features(self.config, "train")
        self.folder = output / "sweep"
        self.entries = [Entry(number, point) for number, point in enumerate(points)]
        self.sweep = sweeping.shared(self.config, self.plan, self.folder)

    def fit(self, monkeypatch: pytest.MonkeyPatch, *, stop_after: int = 99) -> list[dict[str, Any]]:
        """Reports of a run, which may be killed after some."""
        told: list[dict[str, Any]] = []

        def report(result: dict[str, Any]) -> None:
            told.append(result)
            if len(told) == stop_after:
                raise SystemError("killed")

        monkeypatch.setattr(tune, "report", report)
        try:
            train_pack({PACK: self.entries}, self.sweep)
        except SystemError:
            assert len(told) == stop_after
        return told

    def rows(self, reports: list[dict[str, Any]], error: Exception | None = None) -> list[Any]:
        return sweeping.rows_of(self.result(reports, error), self.config.own.watched)

    def result(self, reports: list[dict[str, Any]], error: Exception | None) -> SimpleNamespace:
        """As Tune gives it."""
        metrics = reports[-1] if reports else None
        return SimpleNamespace(config={PACK: self.entries}, metrics=metrics, error=error)


def scores(reports: list[dict[str, Any]], position: int) -> list[Any]:
    """History of a point, without what the clock says."""
    lines = [report["outcomes"][position]["line"] for report in reports]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def test_a_point_that_is_bound_to_diverge_does_not_take_its_pack_along(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [{ALPHA: 7e-5}, {ALPHA: 100.0}, {ALPHA: 1e-5}]
    pack = Pack(tmp_path / "pack", features, points, preset="author")
    reports = pack.fit(monkeypatch)
    calm = Pack(tmp_path / "calm", features, [points[0], points[2]], preset="author")
    expected = calm.fit(monkeypatch)
    assert len(reports) == 3
    assert [scores(reports, 0), scores(reports, 2)] == [scores(expected, 0), scores(expected, 1)]
    for report in reports:
        assert "the summed MFI loss would diverge: alpha=100" in report["outcomes"][1]["error"]
    rows = pack.rows(reports)
    assert [row["val_map"] is None for row in rows] == [False, True, False]
    assert not any(row["again"] for row in rows)  # it is a result
    # and the others have a checkpoint each
    done = [row for row in rows if row["val_map"] is not None]
    written = sweeping.write_checkpoints(pack.config, pack.plan, pack.folder, done)
    assert [path.name for path in written] == ["trial-0000.safetensors", "trial-0002.safetensors"]


def test_a_pack_of_points_that_are_all_bound_to_diverge_is_a_result(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(tmp_path, features, [{ALPHA: 100.0}, {ALPHA: 90.0}], preset="author")
    (report,) = pack.fit(monkeypatch)
    assert ["would diverge" in one["error"] for one in report["outcomes"]] == [True, True]
    assert report["score"] == -1


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "selection": "best_on_val"}])
def test_a_point_that_diverges_leaves_the_others_their_numbers_also_after_a_kill(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    changes = {"optimizer": "sgd", **changes}
    wild = Pack(tmp_path / "wild", features, [{ALPHA: 0.1}, {ALPHA: 1e38}], **changes)
    calm = Pack(tmp_path / "calm", features, [{ALPHA: 0.1}, {ALPHA: 0.2}], **changes)
    assert len(wild.fit(monkeypatch, stop_after=2)) == 2
    reports, expected = wild.fit(monkeypatch), calm.fit(monkeypatch)
    assert [report["resumed"] for report in reports] == [2, 2, 0]
    assert scores(reports, 0) == scores(expected, 0)
    assert reports[-1]["outcomes"][0]["val_map"] == expected[-1]["outcomes"][0]["val_map"]
    row = wild.rows(reports)[1]
    assert "the loss is not a finite number from step 2 of epoch 1 on" in row["error"]
    assert (row["epochs"], row["val_map"], row["again"]) == (0, None, False)


def test_a_damaged_shard_is_no_result_and_the_point_goes_on_once_it_is_repaired(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(features, tmp_path / "features")
    pack = Pack(tmp_path, tmp_path / "features", [{ALPHA: 0.1}, {ALPHA: 0.2}])
    folder = Path(pack.plan.folder)
    shard = folder / read_manifest(folder).shards[1].name
    whole = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(whole.replace(b"\x93NUMPY", b"\x93NUMBY"))
    with pytest.raises(ValueError, match=r"run python -m pipeline\.extract --repair") as caught:
        pack.fit(monkeypatch)
    rows = pack.rows([], caught.value)
    assert all(row["again"] and "--repair" in row["error"] for row in rows)
    shard.write_bytes(whole)
    assert len(pack.fit(monkeypatch)) == 3


def test_a_pack_is_parted_where_it_fails_before_its_first_epoch(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(tmp_path, features, [{DIM: 8}, {DIM: 10**12}])
    with pytest.raises(RuntimeError) as caught:
        pack.fit(monkeypatch)

    assert sweeping._to_part(pack.result([], caught.value)) == pack.entries
    assert sweeping._to_part(pack.result([], ValueError("a damaged file"))) == []
    alone = Pack(tmp_path, features, [{DIM: 8}])
    assert len(alone.fit(monkeypatch)) == 3
    pack.sweep = replace(pack.sweep, apart=frozenset({0, 1}))
    assert pack.fit(monkeypatch) == []  # it leaves the points to others


def test_trials_begin_with_the_seeds_of_their_points(tmp_path: Path, features: Path) -> None:
    pack = Pack(tmp_path, features, [{"seed": 3}, {}])
    from pipeline.features.opened import open_features

    reader = open_features(pack.plan.folders, tmp_path)
    both = begin(pack.sweep.job(pack.entries), reader)
    alone = begin(replace(pack.sweep, seed=9).job(pack.entries[:1]), reader)
    assert both.weights[0][0].equal(alone.weights[0][0])
    assert not both.weights[0][0].equal(both.weights[0][1])


def test_runs_of_points_say_what_became_of_them(tmp_path: Path, features: Path) -> None:
    """Two points fail together and are then trained apart; one of another pack diverges."""
    pack = Pack(tmp_path, features, [{ALPHA: 0.1}, {ALPHA: 0.2}, {ALPHA: 0.3}, {ALPHA: 0.4}])
    tracker = Tracker(pack.config)
    runs = TrialRuns(pack.config, pack.plan, "sweep-1", tracker)

    def given(*numbers: int, error: Exception | None = None) -> Any:
        return SimpleNamespace(
            trial_id="-".join(map(str, numbers)),
            config={PACK: [pack.entries[number] for number in numbers]},
            get_pickled_error=lambda: error,
            get_error=lambda: None,
        )

    def told(errors: list[str]) -> dict[str, Any]:
        line = {"epoch": 1, "loss": 0.5}
        outcomes = [{"error": error, "line": {} if error else line} for error in errors]
        return {"outcomes": outcomes, "epoch": 1, "score": 0.5, "resumed": 0}

    def states() -> dict[str, tuple[str, str]]:
        store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        found = store.search_runs([store.get_experiment_by_name("dclip-shapes").experiment_id])
        tags = {run.info.run_id: run.data.tags for run in found}
        return {
            tags[run.info.run_id]["dclip.key"]: (
                run.info.status, tags[run.info.run_id].get("dclip.error", ""),
            )
            for run in found
        }  # fmt: skip

    large, mixed = given(0, 1, error=RuntimeError("too large")), given(2, 3)
    for trial_ in (large, mixed):
        runs.on_trial_start(0, [], trial_)
    runs.on_trial_error(0, [], large)
    runs.on_trial_result(0, [], mixed, told(["", "the loss is not a finite number"]))
    runs.on_trial_complete(0, [], mixed)
    assert states() == {
        "sweep-1/0": ("FAILED", "too large"),
        "sweep-1/1": ("FAILED", "too large"),
        "sweep-1/2": ("FINISHED", ""),
        "sweep-1/3": ("FAILED", "the loss is not a finite number"),
    }
    runs.part(pack.entries[:2])
    runs.on_trial_start(0, [], large)  # which leaves its points to others
    runs.on_trial_complete(0, [], large)
    runs.on_trial_start(0, [], given(0))
    runs.on_trial_result(0, [], given(0), told([""]))
    runs.on_trial_complete(0, [], given(0))
    assert states()["sweep-1/0"] == ("FINISHED", "")
    assert states()["sweep-1/1"] == ("FAILED", "too large")
    assert states()["sweep-1/3"][0] == "FAILED"


class TunerHere:
    """Runs trials in this process, one after the other, with the callbacks; keeps nothing."""

    def __init__(self, trainable: Any, *, param_space: Any, run_config: Any, **_: Any) -> None:
        self.trainable, self.packs = trainable, param_space[PACK]["grid_search"]
        self.callbacks = run_config.callbacks[0]

    @staticmethod
    def can_restore(_: str) -> bool:
        return False

    def fit(self) -> list[SimpleNamespace]:
        return list(map(self._fit, self.packs))

    def _fit(self, pack: list[Entry]) -> SimpleNamespace:
        told: list[dict[str, Any]] = []
        error: Exception | None = None
        given = SimpleNamespace(
            trial_id=f"{pack[0].number}", config={PACK: pack},
            get_pickled_error=lambda: error, get_error=lambda: None,
        )  # fmt: skip
        self.callbacks.on_trial_start(0, [], given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tune, "report", told.append)
            try:
                self.trainable({PACK: pack})
            except (RuntimeError, ValueError) as caught:
                error = caught
        for result in told:
            self.callbacks.on_trial_result(0, [], given, result)
        (self.callbacks.on_trial_error if error else self.callbacks.on_trial_complete)(0, [], given)
        return SimpleNamespace(config={PACK: pack}, metrics=told[-1] if told else None, error=error)


def test_a_sweep_of_good_wild_and_impossible_points_ends_as_far_as_it_can(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(tune, "Tuner", TunerHere)
    monkeypatch.setattr("pipeline.cluster.session.ray_session", lambda _: nullcontext())
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1})
    shutil.copytree(features, tmp_path / "features")

    def settled(space: dict[str, Any]) -> Config:
        return settings(
            tmp_path, features=tmp_path / "features", extract=EXTRACT,
            train={"val_fraction": 0.25, "preset": "author", "output_dim": 8},
            sweep={"epochs": 2, "space": space},
        )  # fmt: skip

    report = sweep.run(settled({ALPHA: [7e-5, 100.0], "seed": [0, 1]}))
    assert [row["val_map"] is None for row in report["trials"]] == [False, False, True, True]
    assert report["failed"] == 2
    assert "No other setting was trained; between seeds val/map deviates by" in (
        capsys.readouterr().out
    )
    with pytest.raises(StageError, match=r"1 of 2 trials .*the same command trains them then"):
        sweep.run(settled({DIM: [8, 10**12]}))
    assert "failed: " in capsys.readouterr().out
    folder = Path(plan_features(settled({DIM: [8]}), "train").folder)
    shard = folder / read_manifest(folder).shards[0].name
    whole = shard.read_bytes()
    shard.chmod(0o644)

    def damaged(*_: Any) -> nullcontext[None]:  # after the sweep has verified it
        shard.write_bytes(whole.replace(b"\x93NUMPY", b"\x93NUMBY"))
        return nullcontext()

    last = settled({ALPHA: [1e-5, 2e-5]})
    monkeypatch.setattr("pipeline.cluster.session.ray_session", damaged)
    with pytest.raises(
        StageError, match=r"2 of 2 trials .*run python -m pipeline\.extract --repair"
    ):
        sweep.run(last)
    shard.write_bytes(whole)
    monkeypatch.setattr("pipeline.cluster.session.ray_session", lambda _: nullcontext())
    assert sweep.run(last)["failed"] == 0
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert len(store.search_model_versions("name = 'dclip-shapes'")) == 2  # of whole sweeps only


def test_a_method_with_lists_and_paths_that_no_model_can_hold_is_swept_all_the_same(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: Any
) -> None:
    """It is said before the trials that there will be no registered model, and there is none."""
    monkeypatch.setattr(tune, "Tuner", TunerHere)
    monkeypatch.setattr("pipeline.cluster.session.ray_session", lambda _: nullcontext())
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1})
    words = ["a.txt", str(tmp_path / "b.txt")]
    space = {"global_head.sizes": [[4], [4], [3, 2]], "global_head.words": words}
    config = config_class(GLOBAL).model_validate(
        {
            **settings(tmp_path, features=features, extract=EXTRACT).model_dump(exclude={"dclip"}),
            "method": GLOBAL,
            "sweep": {"epochs": 1, "space": space},
        }
    )
    report = sweep.run(config)
    points = [(row["global_head.sizes"], row["global_head.words"]) for row in report["trials"]]
    assert sorted(points) == sorted([([4], words[0]), ([3, 2], words[0]),
                                     ([4], words[1]), ([3, 2], words[1])])  # fmt: skip
    assert report["failed"] == 0
    assert load_checkpoint(Path(report["checkpoint"]))[1].settings.sizes in ([4], [3, 2])
    assert report["model"] is None
    assert "registered" not in capsys.readouterr().out
    (told,) = [record.message for record in caplog.records if "registered" in record.message]
    assert told.endswith("global_head is fed embedding, a registered model local features alone")


# ---------------------------------------------------------------------------------------------
# The best, in words
# ---------------------------------------------------------------------------------------------


def words_of(points: list[dict[str, Any]], scores: list[float | None], **changes: Any) -> str:
    """Explanation of a sweep with these scores, best first."""
    keys = {key: [point[key] for point in points] for key in points[0]}
    config = Config.model_validate({"sweep": {"space": keys}, "output": "out", **changes})
    pack = [Entry(number, point) for number, point in enumerate(points)]
    rows = [
        {"trial": n, **point, "val_map": score, "pack": pack, "position": n}
        for n, (point, score) in enumerate(zip(points, scores, strict=True))
    ]
    checkpoint = Path("out").absolute() / "sweeps" / "sweep-1" / "trials" / "trial-0000.safetensors"
    return ranking.explanation(config, "sweep-1", rows, checkpoint)


def test_the_best_is_told_with_its_settings_and_the_command_that_evaluates_it() -> None:
    words = words_of(
        [{ALPHA: 0.1}, {ALPHA: 0.2}, {ALPHA: 9.0}],
        [0.5, 0.46, None],
        dataset="folder:my photos",
        extract={"limit": 9},
    )
    assert "Best of 3 trials (1 failed) of sweep-1: trial 0, " in words
    assert "dclip.mfi_weight=0.1" in words
    assert "val/map 0.5000 on the held-out images" in words
    assert "trial 1 (dclip.mfi_weight=0.2), has 0.0400 less. How much of that is chance" in words
    assert "--space seed=0,1,2" in words
    command = words.rpartition("Evaluate it: ")[2]
    assert command == (
        "python -m pipeline.evaluate --dataset 'folder:my photos' --output out --extract.limit 9 "
        "--checkpoint out/sweeps/sweep-1/trials/trial-0000.safetensors"
    )
    parsed, _ = cli.parse("evaluate", "", shlex.split(command)[3:])
    assert parsed.extract.limit == 9
    assert parsed.evaluate.checkpoint is not None


def test_the_distance_to_the_next_setting_is_in_deviations_between_seeds() -> None:
    points = [
        {ALPHA: 0.1, "seed": 0}, {ALPHA: 0.1, "seed": 1}, {ALPHA: 0.2, "seed": 0},
        {ALPHA: 0.2, "seed": 1},
    ]  # fmt: skip
    # variances 0.0002 and 0.0008, one degree of freedom each: sqrt(0.001 / 2) = 0.0224;
    # 0.53 - 0.45 = 0.08 is 3.6 of it
    words = words_of(points, [0.53, 0.51, 0.45, 0.41])
    assert "The next setting, trial 2 (dclip.mfi_weight=0.2), has 0.0800 less: 3.6 times" in words
    only_seeds = words_of([{"seed": 0}, {"seed": 1}], [0.53, 0.51])
    assert "No other setting was trained; between seeds val/map deviates by 0.0141" in only_seeds
    assert "No other setting was trained." in words_of([{ALPHA: 0.1}], [0.5])
