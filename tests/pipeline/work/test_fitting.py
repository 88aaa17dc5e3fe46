"""Methods that fit themselves: trained in this process, and their checkpoints in other stages."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from dclip.checkpoints.files import write_checkpoint
from dclip.checkpoints.origin import FORMAT, About, CheckpointError
from dclip.fitting.batches import Batch
from dclip.methods.head_settings import TipAdapterSettings
from dclip.methods.method import Task
from dclip.methods.tip_adapter import TipAdapter
from pipeline.features.backbone import describe_backbone
from pipeline.features.opened import open_features
from pipeline.features.plan import plan_features
from pipeline.records.checkpoints import load_checkpoint
from pipeline.records.choice import described
from pipeline.settings.config import Config
from pipeline.stages import run, train
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError
from pipeline.work.plans import plan_system

from ..conftest import TOY, settings
from ..stages.test_evaluate import make_features

IMAGES = 24
WORDS = ["--backbone", TOY, "--device", "cpu", "--extract.limit", str(IMAGES)]
FITS_ITSELF = ["logistic_probe", "tip_adapter", "linear_probe"]


@pytest.fixture(scope="module")
def output(_toy_on_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the features of both splits."""
    folder = tmp_path_factory.mktemp("fitting")
    make_features(settings(folder, extract={"limit": IMAGES}), "train", "test")
    return folder


def call(stage: str, output: Path, *words: str) -> int:
    return cli.main(stage, [*WORDS, "--output", str(output), *words])


@pytest.fixture
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise AssertionError("Ray is asked for")

    for stage in (train, run):
        monkeypatch.setattr(stage, "require_cluster", refused)


@pytest.mark.usefixtures("_without_ray")
@pytest.mark.parametrize("method", FITS_ITSELF)
def test_a_method_that_fits_itself_is_trained_recorded_and_evaluated(
    method: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--linear-probe.epochs", "2"] if method == "linear_probe" else []
    assert call("train", output, "--method", method, *few, "--train.val-fraction", "0.25",
                "--json") == 0  # fmt: skip
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["trained_now"]
    path = Path(report["checkpoint"])
    loaded, about = load_checkpoint(path)
    assert about.format == FORMAT
    (line,) = about.history
    assert (line["epoch"], line["images"]) == (1, 18)
    assert 0 < line["val_map"] <= 1
    assert described(about) == f"{method}, fitted, seed 0"
    store = mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
    (run,) = [run for run in runs if run.data.params.get("method") == method]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val/map"] == pytest.approx(line["val_map"])
    assert "train.lr" not in run.data.params
    assert "train.val_fraction" in run.data.params

    again = ["--train.val-fraction", "0.25", "--train.epochs", "7", "--train.lr", "0.3"]
    assert call("train", output, "--method", method, *few, *again) == 0
    assert f"{path} stands" in capsys.readouterr().err

    assert call("evaluate", output, "--checkpoint", str(path), "--no-linear-probe", "--json",
                "--evaluate.zero-shot-pooled", "--evaluate.scenes", "1") == 0  # fmt: skip
    scored = json.loads(capsys.readouterr().out.splitlines()[-1])
    name = next(iter(scored["checkpoints"]))
    assert set(scored["systems"]) == {"zero_shot", "zero_shot_local", "zero_shot_pooled", name}
    assert scored["systems"][name]["map"] > 0

    backbone = describe_backbone(Config(backbone=TOY))
    if type(loaded).scores_locations:
        assert plan_system(name, "value", path, about, backbone).trained_classes
    else:
        with pytest.raises(StageError, match="Tip-Adapter does not score locations"):
            plan_system(name, "value", path, about, backbone)

    photo = output / "photo.png"
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(photo)
    names = ",".join(about.class_names[:2]) if method != "linear_probe" else ",".join(
        about.class_names
    )  # fmt: skip
    assert call("predict", output, str(photo), "--classes", names, "--checkpoint", str(path)) == 0


@pytest.mark.usefixtures("_without_ray")
def test_the_whole_study_needs_no_ray_where_features_stand(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "tip_adapter", "--tip-adapter.shots", "3", "--no-evaluate.linear-probe"]
    assert call("run", output, *words, "--evaluate.scenes", "1", "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["map"]) == {"zero_shot", "zero_shot_local", "tip_adapter"}


@pytest.mark.usefixtures("_without_ray")
def test_what_is_fitted_is_the_part_of_the_data_that_is_asked_for(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "tip_adapter", "--subset.num-images", "8", "--train.val-fraction", "0"]
    assert call("train", output, *words) == 0
    assert "fitted, val/map -, images 8, cached-images 8" in capsys.readouterr().out
    plan = plan_features(settings(output, extract={"limit": IMAGES}), "train")
    (path,) = (
        path
        for path in output.glob("checkpoints/tip_adapter-*")
        if load_checkpoint(path)[1].subset is not None
    )
    labels = load_checkpoint(path)[0].labels
    every = open_features(plan.folders, output).labels
    assert len(labels) == 8
    assert all((label == every).all(1).any() for label in labels)


@pytest.mark.usefixtures("_without_ray")
def test_a_fit_that_is_refused_is_one_line(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dclip.methods.tip_adapter.MOST_BYTES", 10)
    words = ["--method", "tip_adapter", "--tip-adapter.beta", "3"]
    assert call("train", output, *words) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("train: error: cannot train tip_adapter: a cache of ")
    assert "give shots" in told


def test_a_cache_of_any_length_is_read_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path, names = tmp_path / "a.safetensors", ["cat", "dog", "fish"]
    own = Task.of_features(names, torch.randn(6, 8))
    method = TipAdapter(TipAdapterSettings(), own)
    method.vectors = torch.randn(5, 8).half()
    method.labels = torch.randint(-1, 2, (5, 3)).to(torch.int8)
    about = About(
        format=FORMAT, method="tip_adapter", name="tip_adapter", settings=method.settings,
        loop={}, feature_space="e", backbone_name="toy", embed_dim=8, class_names=names, seed=0,
        epoch=1, features="f", history=[{"epoch": 1.0}], commit=None,
    )  # fmt: skip
    write_checkpoint(path, method, about)
    batch = Batch(torch.randn(2, 4, 8), torch.empty(0, 0, dtype=torch.int8))
    torch.testing.assert_close(load_checkpoint(path)[0].scores(batch), method.scores(batch))
    whole = safetensors.torch.load_file(path)
    for name, wrong in {
        "weights.labels": whole["weights.labels"][:4].clone(),
        "weights.vectors": torch.randn(5, 9).half(),
        "weights.more": torch.zeros(5, 8),
    }.items():
        safetensors.torch.save_file({**whole, name: wrong}, path, metadata=about.metadata())
        with pytest.raises(CheckpointError, match=r"is not a checkpoint: (it has )?weights\.\w+"):
            load_checkpoint(path)
    without = {name: value for name, value in whole.items() if name != "weights.vectors"}
    safetensors.torch.save_file(without, path, metadata=about.metadata())
    with pytest.raises(CheckpointError, match=r"weights\.vectors is missing"):
        load_checkpoint(path)
