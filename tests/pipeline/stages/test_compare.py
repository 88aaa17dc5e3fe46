"""Comparisons: which rows there are, what they share, what they gain, and what is trained anew."""

import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import numpy as np
import pytest

from dclip.fitting.batches import hold_out
from dclip.fitting.fit import scores_of
from dclip.fitting.subset import Subset
from dclip.logits import zero_shot_scores
from dclip.methods.linear_probe import LinearProbeMethod
from dclip.methods.method import Task, initial
from dclip.methods.settings import DCLIPSettings, DualCoOpSettings, LinearProbeSettings
from dclip.metrics import mean_average_precision
from pipeline.features.backbone import clip_of
from pipeline.features.opened import open_features
from pipeline.features.plan import plan_features
from pipeline.pictures import comparison_figures
from pipeline.records.ablations import Ablation, Comparison, Training, name_of, packs
from pipeline.settings.config import Config
from pipeline.settings.rows import compared_rows, of_method
from pipeline.settings.sections import TrainConfig
from pipeline.settings.training import Trained, require_all_classes
from pipeline.stages import compare, extract, sweep
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import comparison
from pipeline.work.packs import Job
from pipeline.work.row_trainings import check_rows
from pipeline.work.workers import fit_and_score, score_alone

from ..conftest import WITH_RAY, settings
from .test_extract import make_here

PAIR = ["circle", "square"]


def wanted(tmp_path: Path, **changes: object) -> Config:
    return settings(tmp_path, compare={"epochs": 2, "seeds": 2, **changes})


def test_the_names_of_results_that_stand_stay() -> None:
    # recorded before results could be of a part of the data, or of several methods
    shared = {"features": ["a", "b"], "data_seed": 0, "val_fraction": 0.1, "precision": "auto"}
    loop, prompts = TrainConfig(epochs=3, selection="last"), DualCoOpSettings(mfi_weight=0.1)
    for name, method, trained, seed in [
        ("4ab79d579b9f50c3", "dclip", Trained(TrainConfig(), DCLIPSettings()), 0),
        ("6edbb602fad128f1", "dclip", Trained(loop, DCLIPSettings(mfi_weight=0.0)), 4),
        ("088b11f9c6ef3f7e", "dualcoop", Trained(TrainConfig(), prompts), 1),
    ]:
        assert name_of(method, trained, seed, shared) == name
        part = trained._replace(subset=Subset(label_fraction=0.5))
        assert name_of(method, part, seed, shared) != name


def test_methods_are_rows_with_their_own_presets(tmp_path: Path) -> None:
    methods = ["asl_only", "dclip", "positivecoop", "zero_shot"]
    config = wanted(tmp_path, methods=methods)
    table = compared_rows(config)
    assert [(row.label, row.method, row.against) for row in table] == [
        ("asl_only", "dclip", None),
        ("dclip", "dclip", "asl_only"),
        ("positivecoop", "positivecoop", "asl_only"),
        ("zero_shot", "zero_shot", "asl_only"),
    ]
    plain, own, other, _ = (row.trained for row in table)
    assert (plain.own.mfi_weight, own.own.mfi_weight) == (0, 0.1)
    assert own.own.output_dim == 8  # of the section of the method that is chosen
    assert (own.loop.lr, other.loop.lr) == (1e-3, 0.01)
    assert own.loop.val_fraction == other.loop.val_fraction == 0.25
    given = config.model_copy(update={"train": TrainConfig(lr=0.5)})
    assert of_method(given, "positivecoop").train.lr == 0.5
    # the usual preset of one is the usual one of another, whatever its name
    usual = settings(tmp_path, compare={"methods": methods}, train={"preset": "anchored"})
    _, own, other, _ = (row.trained.loop for row in compared_rows(usual))
    assert (own.preset, own.lr, other.preset, other.lr) == ("anchored", 4e-3, "robust", 0.01)


def test_all_rows_are_compared_at_every_point_and_a_row_names_its_partner(tmp_path: Path) -> None:
    rows = [
        {"label": "plain", "method": "dclip", "set": {"dclip.mfi_weight": 0}},
        {"label": "mfi", "method": "dclip", "set": {"train.lr": "x2"}},
        {"label": "clip", "method": "zero_shot", "against": "mfi"},
    ]
    vary = {"train.lr": ["x0.1"], "subset.num_images": [12, "all"], "dclip.clip": [0]}
    with pytest.raises(UsageError, match=r"'mfi' sets train\.lr, which is varied"):
        compared_rows(wanted(tmp_path, rows=rows, vary=vary))
    del rows[1]["set"]
    table = compared_rows(wanted(tmp_path, rows=rows, vary=vary))
    points = ["lr = x0.1", "num_images = 12", "num_images = all", "clip = 0"]
    assert [row.title for row in table] == [
        [point, label] for point in points for label in ("plain", "mfi", "clip")
    ]
    assert [row.against for row in table[:3]] == [None, "plain", "mfi"]
    some = wanted(tmp_path, rows=rows, vary=vary, studies=["clip"])
    assert [row.title[0] for row in compared_rows(some)] == ["clip = 0"] * 3
    alone = [*rows[:1], {**rows[1], "against": "mfi"}]  # its own name: compared with none
    assert [row.against for row in compared_rows(wanted(tmp_path, rows=alone))] == [None, None]
    assert [row.trained.loop.lr for row in table[:2]] == [1e-4, 1e-4]
    assert [row.trained.subset.num_images for row in table[3:9]] == [12] * 3 + [None] * 3
    assert [row.trained.own.clip for row in table[9:11]] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["dclop"]}, "unknown method 'dclop'; did you mean 'dclip'"),
        ({"rows": [{"label": "a", "method": "dclop"}]}, "unknown method 'dclop'"),
        ({"methods": ["dclip", "dclip"]}, "two rows are called 'dclip'"),
        ({"num_images": [5], "shots": [1]}, "--num-images and --shots: one curve at a time"),
        ({"shots": [1], "vary": {"train.lr": [1]}}, "short for --vary subset.shots"),
        ({"studies": ["lr"], "shots": [1]}, "compare.studies: there is no 'lr'; shots"),
        ({"vary": {"sgd.lr": [1]}}, "'sgd.lr' is no setting of the data"),
        ({"vary": {"subset.shot": [1]}}, "did you mean 'subset.shots'"),
        ({"label_fraction": [1.5]}, "subset.label_fraction: .*less than or equal to 1, got 1.5"),
        (
            {"rows": [{"label": "a", "method": "zero_shot", "set": {"train.lr": 1}}]},
            "zero_shot is not trained by the loop, train.lr does nothing",
        ),
        (
            {"rows": [{"label": "a", "method": "dclip", "against": "b"}]},
            "there is no row 'b' to compare with; a",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        compared_rows(wanted(tmp_path, **changes))


def test_seeds_on_drawn_data_train_apart_and_rows_on_the_same_draw_together() -> None:
    loop, part = TrainConfig(), Subset(num_images=9)

    def of(subset: Subset, **own: Any) -> list[Training]:
        trained = Trained(loop, DCLIPSettings(**own), subset)
        return [Training("dclip", trained, seed, f"{subset}-{own}-{seed}") for seed in range(3)]

    probe = Training("linear_probe", Trained(loop, LinearProbeSettings()), 0, "probe")
    found = packs([*of(part), *of(part, mfi_weight=0), probe], 9)
    assert sorted([(one.method, one.seed) for one in pack] for pack in found) == [
        *([("dclip", seed)] * 2 for seed in range(3)),
        [("linear_probe", 0)],
    ]
    assert [len(pack) for pack in packs(of(Subset(classes=2)), 9)] == [3]  # nothing is drawn


@pytest.mark.usefixtures("_toy_on_path")
def test_what_is_not_trained_is_one_result_and_what_ablate_trained_counts(tmp_path: Path) -> None:
    config = wanted(tmp_path, methods=["dclip", "zero_shot"], num_images=[12, "all"])
    plan = Comparison(config)
    assert [one.method for one in plan.trainings.values()].count("zero_shot") == 1
    assert len(plan.trainings) == 5
    ablation = settings(tmp_path, ablate={"epochs": 2, "seeds": 2, "studies": ["losses"]})
    both = Ablation(ablation).trainings.keys() & plan.trainings.keys()
    assert len(both) == 2  # dclip on all images
    classes = wanted(tmp_path, methods=["zero_shot"], vary={"subset.classes": [2, "all"]})
    assert len(Comparison(classes).trainings) == 2
    name = both.pop()
    path = plan.result_path(name)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"test": {"map": 0.5}, "threshold": 0.5}))
    assert Ablation(ablation).done().keys() == {name}
    assert not plan.done()  # of an earlier version, which did not measure what is compared


def result(score: float, *, is_trained: bool = True, diverged: str = "") -> dict[str, Any]:
    test = {"map": score, "ece": 0.1} if is_trained else {"map": score}
    return {
        "diverged": diverged, "test": {} if diverged else test, "parameters": 7 * is_trained,
        "class_cosine": None, "seconds": 3.0 if is_trained else None, "together": 2,
        "peak": {"bytes": 10**6, "of": "process"},
    }  # fmt: skip


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    config = wanted(tmp_path, methods=["dclip", "asl_only", "zero_shot"], seeds=3)
    first = [result(0.50), result(0.60), result(0.55)]
    second = [result(0.53), result(0.64), result(0.60)]
    frozen = [result(0.40, is_trained=False)] * 3
    own, plain, clip = comparison.summary(compared_rows(config), [first, second, frozen], range(3))
    # differences 0.03, 0.04, 0.05: mean 0.04, deviation 0.01; t of two degrees of freedom 4.302653
    half = 4.302653 * 0.01 / 3**0.5
    assert plain["difference"] == pytest.approx(0.04)
    assert plain["difference_low"] == pytest.approx(0.04 - half, abs=1e-7)
    assert plain["difference_high"] == pytest.approx(0.04 + half, abs=1e-7)
    # one value against each seed: -0.10, -0.20, -0.15; deviation 0.05
    assert clip["difference"] == pytest.approx(-0.15)
    assert clip["difference_high"] == pytest.approx(-0.15 + 5 * half, abs=1e-7)
    assert (clip["seeds"], clip["test_map_std"], clip["ece"]) == (1, None, None)
    assert (own["difference"], own["test_map_std"]) == (None, pytest.approx(0.05))
    told = comparison.as_text(config, [own, plain, clip])
    assert "+4.00 [+1.52, +6.48]" in told
    same = [result(0.5)] * 3
    _, plain, _ = comparison.summary(compared_rows(config), [same, same, frozen], range(3))
    assert (plain["difference"], plain["difference_low"]) == (0, None)  # not: sure to be nothing
    second[1] = result(0.9, diverged="inf")
    _, plain, _ = comparison.summary(compared_rows(config), [first, second, frozen], range(3))
    assert (plain["diverged"], plain["difference"]) == (1, pytest.approx(0.04))
    assert "1 of 3 diverged" in comparison.as_text(config, [plain])
    lines = comparison.summary(
        compared_rows(config), [[r[0]] for r in (first, second, frozen)], [0]
    )
    assert (lines[1]["difference"], lines[1]["difference_low"]) == (pytest.approx(0.03), None)


def few(tmp_path: Path, **changes: object) -> Config:
    """Images of one class each, a small ViT of random weights."""
    return settings(
        tmp_path,
        dataset="shapes-single",
        backbone="tiny-vit",
        pretrained="random",
        resolution=64,
        extract={"limit": 64, "shard_size": 64, "workers": 1},
        compare={"epochs": 1, "seeds": 2, **changes},
    )


def test_a_protocol_is_of_all_rows_and_counts_in_their_names(tmp_path: Path) -> None:
    config = few(tmp_path, methods=["maple", "zero_shot"], shots=[1, 4], protocol="base_to_new")
    table = compared_rows(config)
    subsets = [row.trained.subset for row in table]
    assert {subset.protocol for subset in subsets} == {"base_to_new"}
    assert [subset.shots for subset in subsets] == [1, 1, 4, 4]
    plan = Comparison(config)
    assert [one.method for one in plan.trainings.values()].count("zero_shot") == 1
    plain = Comparison(few(tmp_path, methods=["maple", "zero_shot"], shots=[1, 4]))
    assert not plain.trainings.keys() & plan.trainings.keys()
    rows = [
        {"label": label, "method": "zero_shot", "set": {"subset.protocol": protocol}}
        for label, protocol in (("a", "few_shot"), ("b", "base_to_new"))
    ]
    with pytest.raises(UsageError, match=r"rows are of different protocols.* by --protocol"):
        compared_rows(few(tmp_path, rows=rows))
    with pytest.raises(
        UsageError, match=r"row 'dclip': protocol few_shot .* take out label_fraction"
    ):
        compared_rows(few(tmp_path, methods=["dclip"], label_fraction=[0.5], protocol="few_shot"))
    with pytest.raises(UsageError, match=r"is for pipeline\.compare, which scores base and new"):
        require_all_classes([table[0].trained])
    shots = settings(tmp_path, subset={"shots": 2, "protocol": "few_shot"})
    with pytest.raises(UsageError, match=r"holds no image out to compare trials by"):
        sweep.describe(shots)


def test_a_protocol_is_refused_where_images_show_several_classes(tmp_path: Path) -> None:
    config = wanted(tmp_path, methods=["zero_shot"], protocol="few_shot")
    config = config.model_copy(update={"backbone": "tiny"})
    for split in ("train", "test"):
        plan = plan_features(config, split)
        make_here(plan, config)
    extract.extract(config, [plan_features(config, split) for split in ("train", "test")])
    with pytest.raises(StageError, match=r"^split test: a few-shot protocol is for images of one"):
        check_rows(config, Comparison(config), "compare")


def accuracies(base: float, new: float | None) -> dict[str, Any]:
    found = result(0.5)
    found["test"] |= {"top1": base, "top1_new": new}
    return found if new is not None else found | {"not_asked": "bound to its classes"}


def test_the_harmonic_mean_is_of_the_averages_and_its_difference_of_each_seed(
    tmp_path: Path,
) -> None:
    methods = ["maple", "zero_shot", "linear_probe"]
    config = few(tmp_path, methods=methods, protocol="base_to_new")
    own = [accuracies(0.8, 0.4), accuracies(0.6, 0.6)]
    clip = [accuracies(0.5, 0.5)] * 2
    probe = [accuracies(0.9, None)] * 2
    table = comparison.summary(compared_rows(config), [own, clip, probe], range(2))
    assert [line["top1"] for line in table] == pytest.approx([0.7, 0.5, 0.9])
    # of 0.7 and 0.5: 0.7 / 1.2; not the mean of 0.5333 and 0.6
    assert table[0]["harmonic"] == pytest.approx(0.7 / 1.2)
    assert table[1]["difference"] == pytest.approx(0.5 - (0.64 / 1.2 + 0.6) / 2)
    assert (table[2]["harmonic"], table[2]["difference"]) == (None, None)
    told = comparison.as_text(config, table)
    assert "58.33" in told
    assert "bound to its classes" in told
    assert "difference: H less that of MaPLe" in told
    figure = comparison_figures.accuracies(table, "", [], "")
    assert [axis.get_title() for axis in figure.axes] == [
        "base classes", "new classes", "harmonic mean",
    ]  # fmt: skip
    one = few(tmp_path, methods=methods[:2], shots=[1, 16], protocol="few_shot")
    four = [own, clip, own[::-1], clip]
    lines = comparison.summary(compared_rows(one), four, range(2))
    assert "harmonic" not in lines[0]
    assert lines[1]["difference"] == pytest.approx(0.5 - 0.7)
    (axis,) = comparison_figures.accuracies(lines, "images per class", [1, 16], "").axes
    assert axis.get_xscale() == "log"


def test_base_and_new_classes_are_scored_among_themselves(tmp_path: Path) -> None:
    config = few(tmp_path, methods=["maple"], protocol="base_to_new")
    plans = [plan_features(config, split) for split in ("train", "test")]
    for plan in plans:
        make_here(plan, config)
    extract.extract(config, plans)
    train, test = plans

    def score(method: str, seed: int) -> dict[str, Any]:
        changes = {"methods": [method], "protocol": "base_to_new", "shots": [2]}
        (row,) = compared_rows(few(tmp_path, **changes))
        is_looped = row.trained.own.trained_by == "loop"
        sees = row.trained.own.sees_images()
        job = Job(
            method, (row.trained,), (seed,), 0, tuple(map(str, train.folders)), tmp_path,
            clip=clip_of(config), images=train.listing if sees else None, draw_seed=seed,
        )  # fmt: skip
        task = fit_and_score if is_looped else score_alone
        (found,) = task(job, "cpu", test.folders, 0.5, test.listing if sees else None)
        return found

    reader = open_features(test.folders, tmp_path)
    texts = Task.of_features(reader.class_names, *reader.text_features()).texts.features
    rows = np.arange(len(reader.labels))
    own = zero_shot_scores(reader.embeddings(rows).float(), texts)
    labels = reader.labels.argmax(1)
    clip = score("zero_shot", 0)["test"]
    for name, first in (("top1", 0), ("top1_new", 8)):
        columns = slice(first, first + 8)
        shown = (labels >= first) & (labels < first + 8)
        right = own[shown, columns].argmax(1) + first == labels[shown]
        assert clip[name] == pytest.approx(float(right.float().mean()))
    found = score("maple", 1)
    assert found["diverged"] == ""
    assert {"top1", "top1_new", "map"} <= found["test"].keys()
    assert 0 <= found["test"]["top1_new"] <= 1
    assert found["parameters"] == 4 * (2 * 64 + 64 * 128 + 128)
    assert found["subset"] == {"shots": 2, "protocol": "base_to_new"}
    probe = score("linear_probe", 1)
    assert probe["test"]["top1_new"] is None
    assert "no others" in probe["not_asked"]


def test_names_of_points_do_not_overlap() -> None:
    close = [(f"method number {n}", 1000 + n, 0.9 + n / 1e4) for n in range(6)]
    lines = [
        {"row": row, "parameters": count, "seconds": float(count), "test_map": score,
         "test_map_std": 0.001}
        for row, count, score in [*close, ("far", 90000, 0.5), ("zero_shot", 0, 0.9)]
    ]  # fmt: skip
    figure = comparison_figures.costs(lines)
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert len(boxes) == len(lines)
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:number])


class TestOnRay:
    pytestmark: ClassVar = [*WITH_RAY, pytest.mark.usefixtures("ray_session")]

    def test_methods_are_compared_and_only_what_is_missing_is_trained(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        methods = ["dclip", "zero_shot", "linear_probe"]
        config = wanted(tmp_path, methods=methods)
        for split in ("train", "test"):
            make_here(plan_features(config, split), config)
        extract.extract(config, [plan_features(config, split) for split in ("train", "test")])
        report = compare.run(config)
        assert report["trained_now"] == 5
        own, clip, probe = report["rows"]
        assert (clip["seconds"], clip["parameters"], clip["ece"]) == (None, 0, None)
        assert own["seconds"] > 0
        assert own["peak_bytes"] > 10**7
        assert own["parameters"] > probe["parameters"] > 0
        assert 0 <= probe["ece"] <= 1
        gains = [probe["by_seed"]["test_map"][s] - own["by_seed"]["test_map"][s] for s in (0, 1)]
        assert probe["difference"] == pytest.approx(np.mean(gains))
        sheet, data, picture = map(Path, report["files"])
        with sheet.open() as file:
            assert [line["row"] for line in csv.DictReader(file)] == methods
        assert json.loads(data.read_text())["config"]["compare"]["methods"] == methods
        assert picture.stat().st_size > 10_000
        assert "linear probe, max-pooled" in capsys.readouterr().out

        reader = open_features(plan_features(config, "train").folders, tmp_path)
        test = open_features(plan_features(config, "test").folders, tmp_path)
        task = Task.of_features(reader.class_names, *reader.text_features())
        method = initial(LinearProbeMethod, LinearProbeSettings(), task, seed=1)
        method.fit(reader, hold_out(len(reader), 0.25, seed=0)[0], seed=1)
        scores = scores_of(method, test, np.arange(len(test)))
        expected = float(mean_average_precision(scores, test.labels))
        assert probe["by_seed"]["test_map"][1] == pytest.approx(expected, abs=1e-3)

        store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert (len(runs), len(children)) == (6, 5)
        assert all("test/map" in run.data.metrics for run in children)

        lost = sorted((tmp_path / "ablations" / "trainings").iterdir())[0]
        lost.unlink()  # as if it had been killed before this one
        assert compare.run(config)["trained_now"] == 1
        more = wanted(tmp_path, methods=[*methods, "asl_only"], seeds=3)
        report = compare.run(more)
        assert report["trained_now"] == 2 + 3  # a seed of two rows, a row of three seeds
        # alone, the one that was lost is summed in another order, by which ranks may change
        again = report["rows"][0]["by_seed"]["test_map"]
        assert again[0] == pytest.approx(own["by_seed"]["test_map"][0], abs=1e-3)

        curve = wanted(tmp_path, methods=methods[:2], vary={"subset.classes": [PAIR, "all"]})
        assert "2 done" not in compare.describe(curve)
        report = compare.run(curve)
        assert report["trained_now"] == 2 + 1  # on two classes, of which CLIP is asked anew
        two = json.loads(Path(report["files"][1]).read_text())["rows"][0]
        assert (two["point"], two["seeds"]) == ("classes = circle, square", 2)
        assert Path(report["files"][2]).name == "comparison-classes.png"

        few = wanted(tmp_path, methods=methods[:1], num_images=[49])
        with pytest.raises(StageError, match=r"'dclip': subset\.num_images 49: there are 48"):
            check_rows(few, Comparison(few), "compare")
