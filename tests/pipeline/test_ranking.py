"""A method whose scores are no probabilities: what needs them is refused, or has another rule."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from dclip.checkpoints.files import write_checkpoint
from dclip.checkpoints.origin import FORMAT, About
from dclip.fitting.loop import Loop
from dclip.methods.method import Task, initial
from dclip.methods.registry import find_method
from dclip.store.shards import digest
from dclip.world import shapes
from pipeline.features.backbone import describe_backbone
from pipeline.features.plan import plan_features
from pipeline.settings.config import Config
from pipeline.settings.training import Trained
from pipeline.stages import extract, predict, segment, segments_mlr
from pipeline.terminal.errors import UsageError
from pipeline.work.packs import Job
from pipeline.work.workers import fit_and_score

from .conftest import settings
from .stages.test_extract import make_here

pytestmark = pytest.mark.usefixtures("_toy_on_path")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint of the ranking, untrained."""
    backbone = describe_backbone(settings(tmp_path))
    kind = find_method("toy_ranking:Ranking")
    about = About(
        format=FORMAT, method="toy_ranking:Ranking", name="ranking", settings=kind.Settings(),
        loop=Loop(), feature_space=digest(backbone.space("value")), backbone_name=backbone.name,
        embed_dim=backbone.embed_dim, class_names=list(shapes.CLASS_NAMES), seed=0, epoch=1,
        features="f" * 64, history=[{"epoch": 1.0, "loss": 0.5}], commit=None,
    )  # fmt: skip
    task = Task.of_features(shapes.CLASS_NAMES, torch.ones(32, backbone.embed_dim))
    path = tmp_path / "ranking.safetensors"
    write_checkpoint(path, initial(kind, about.settings, task, seed=0), about)
    return path


@pytest.mark.parametrize("method", ["toy_method:MaskedCosine", "toy_ranking:Ranking"])
def test_an_ablation_tells_f1_of_probabilities_only(method: str, tmp_path: Path) -> None:
    config = settings(tmp_path, extract={"limit": 12, "shard_size": 8})
    plan = plan_features(config, "train")
    make_here(plan, config)
    extract.extract(config, [plan])
    trained = Trained(config.train, find_method(method).Settings())
    folders = tuple(plan.folders[:1])
    job = Job(method, (trained,), (0,), data_seed=0, features=folders, output=tmp_path)
    (result,) = fit_and_score(job, "cpu", folders, 0.5)
    assert 0 < result["test"]["map"] <= 1
    assert ("cf1" in result["test"]) == (method == "toy_method:MaskedCosine")


def test_it_has_no_row_of_the_classes_that_it_finds(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def names(*systems: str) -> list[str]:
        own = {"checkpoint": [file], "systems": systems, "limit": 2}
        plan = segment.plan_segment(settings(tmp_path, segment=own))
        return [system.name for system in plan.systems]

    caplog.set_level("INFO")
    assert names("checkpoints", "checkpoints_present") == ["ranking"]
    told = "ranking gives no probabilities, so it does not find classes"
    assert told in caplog.text
    with pytest.raises(UsageError, match=told):
        names("checkpoints_present")


def test_segments_of_it_need_all_classes_to_compete(tmp_path: Path, file: Path) -> None:
    def plan(**own: object) -> object:
        config = settings(tmp_path, segments_mlr={"checkpoint": file, "limit": 2, **own})
        return segments_mlr.plan_segments(config)

    with pytest.raises(UsageError, match=r"a ranking gives no prob.* give --no-only-present"):
        plan()
    plan(only_present=False)


def test_its_predictions_are_scores_and_every_trained_class_competes(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(shapes.scene("test", 3).image).save(photo)
    own = {"paths": [str(photo)], "classes": ["star", "dog", "ring"], "checkpoint": file}
    config: Config = settings(tmp_path, predict={**own, "threshold": 0.001})
    report = predict.run(config)
    told = capsys.readouterr().out
    (image,) = report.images
    rows = {row["class"]: row for row in image["scores"]}
    assert all(row["probability"] is None for row in rows.values())
    assert rows["dog"]["score"] is None
    scores = [rows[name]["score"] for name in ("star", "ring")]
    assert [row["class"] for row in image["scores"]] == [
        "star" if scores[0] >= scores[1] else "ring",
        "ring" if scores[0] >= scores[1] else "star",
        "dog",
    ]
    # at this threshold there is no background, so that the two share all pixels
    assert rows["star"]["pixel_share"] + rows["ring"]["pixel_share"] == pytest.approx(1)
    assert "score   above  CLIP cosine" in told
    assert "probability  CLIP" not in told
    assert f"{scores[0]:.3f}" in told
    assert any("no probabilities" in warning for warning in report.warnings)
    table = Path(image["pictures"]["mask"]).parent / "predictions.csv"
    kept = {row["class"]: row for row in csv.DictReader(table.read_text().splitlines())}
    assert float(kept["star"]["score"]) == pytest.approx(scores[0])
    assert set(image["pictures"]) == {"mask", "overlay", "heat", "heat-clip"}
