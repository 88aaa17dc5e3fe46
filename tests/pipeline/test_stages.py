"""The stages on a real Ray and a real MLflow store: from images to a report."""

import json
import os
from pathlib import Path

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from dclip.store.reader import FeatureReader
from dclip.store.shards import file_digest
from dclip.world import shapes
from pipeline.features.cache import RAM_DISK
from pipeline.features.opened import open_backbone
from pipeline.records.trainings import checkpoint_path
from pipeline.settings.config import Config
from pipeline.settings.training import compared
from pipeline.stages import evaluate, extract, run, sweep, train
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import training

from ..processes import in_a_new_process
from .conftest import TOY, WITH_RAY, settings, with_train

pytestmark = WITH_RAY


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict]:  # type: ignore[type-arg]
    """Settings and report of one whole run."""
    config = settings(tmp_path_factory.mktemp("run"))
    return config, run.run(config)


def client(config: Config) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{config.output.absolute() / 'mlflow.db'}")


def tars(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.glob("*.tar"))}


def test_a_run_reports_all_systems_and_leaves_everything_behind(finished) -> None:  # type: ignore[no-untyped-def]
    config, report = finished
    assert list(report["map"]) == [
        "zero_shot", "zero_shot_local", "linear_probe", "asl_only", "dclip",
    ]  # fmt: skip
    assert all(0 <= score <= 1 for score in report["map"].values())
    assert set(report["inter_class_cosine"]) == {"clip", "asl_only", "dclip"}
    assert {"extract", "train", "evaluate"} <= set(report["seconds"])
    assert json.loads(json.dumps(report)) == report
    for picture in report["figures"]:
        with Image.open(picture) as image:
            assert image.size[0] > 300
            assert np.asarray(image.convert("L")).std() > 5
    assert not list(config.output.rglob("*.tmp"))


def test_a_checkpoint_that_is_lost_is_written_from_the_kept_state(  # type: ignore[no-untyped-def]
    finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the checkpoints of two trainings that were one pack."""
    config, report = finished
    lost = Path(report["checkpoints"]["dclip"])
    before = lost.read_bytes()
    lost.unlink()
    monkeypatch.setattr(training, "_fit_on_ray", lambda *_: pytest.fail("it is trained again"))
    trained = train.run_together(compared(config))
    assert [one["trained_now"] for one in trained] == [False, True]
    assert lost.read_bytes() == before


def test_mlflow_holds_epochs_params_data_and_artifacts(finished) -> None:  # type: ignore[no-untyped-def]
    config, report = finished
    store = client(config)
    experiment = store.get_experiment_by_name("dclip-shapes")
    assert experiment is not None
    found = {run.info.run_name: run for run in store.search_runs([experiment.experiment_id])}
    # trainings are told apart by what differs from the preset, and a short hash
    for name in [name for name in found if "epochs=4" in name]:
        found[name.rpartition(" ")[0]] = found.pop(name)
    assert set(found) == {
        "asl_only robust output_dim=8 epochs=4", "dclip robust output_dim=8 epochs=4",
        "evaluate asl_only dclip",
        "extract train", "extract test",
    }  # fmt: skip
    assert all(run.info.status == "FINISHED" for run in found.values())
    trained = found["dclip robust output_dim=8 epochs=4"]
    history = store.get_metric_history(trained.info.run_id, "val/map")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    assert trained.data.params["dclip.mfi_weight"] == str(config.dclip.mfi_weight)
    assert trained.inputs.dataset_inputs[0].dataset.name == "shapes-train"
    names = {file.path for file in store.list_artifacts(trained.info.run_id)}
    assert names == {"checkpoint", "config.json"}
    scored = found["evaluate asl_only dclip"]
    assert scored.data.metrics["test/map/dclip"] == pytest.approx(report["map"]["dclip"])
    figures = {file.path for file in store.list_artifacts(scored.info.run_id, "figures")}
    assert len(figures) == 6


def test_a_second_run_does_nothing_and_gives_the_same_numbers(finished) -> None:  # type: ignore[no-untyped-def]
    config, report = finished
    times = {path: path.stat().st_mtime_ns for path in config.output.rglob("*.tar")}
    again = run.run(config)
    assert again["map"] == report["map"]
    store = client(config)
    run_id = report["mlflow"]["run_id"]
    assert len(store.get_metric_history(run_id, "test/map/dclip")) == 1
    assert all(split["shards_made"] == 0 for split in again["features"].values())
    assert {path: path.stat().st_mtime_ns for path in config.output.rglob("*.tar")} == times


def test_a_finished_run_loads_neither_ray_nor_mlflow(  # type: ignore[no-untyped-def]
    finished, tmp_path: Path
) -> None:
    """Torch it loads: the toy backbone is a user's own code, of which nothing is kept on disk."""
    config, _ = finished
    file = tmp_path / "finished.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    code = (
        "import sys; from pipeline.terminal import cli; "
        f"code = cli.main('run', ['--config', {str(file)!r}]); "
        "loaded = {'ray', 'mlflow'} & set(sys.modules); "
        "assert code == 0 and not loaded, (code, loaded)"
    )
    done = in_a_new_process(code)
    assert "nothing to do" in done.stderr


def test_features_are_those_of_the_backbone_itself(finished) -> None:  # type: ignore[no-untyped-def]
    from dclip.data.pixels import image_to_tensor

    config, _ = finished
    plan = extract.plan_features(config, "test")
    reader = FeatureReader(plan.folder)
    backbone = open_backbone(config)
    sample = plan.listing.read(20)
    image = image_to_tensor(sample.image, backbone.resolution, backbone.mean, backbone.std)
    local = backbone.encode_images(image[None]).local[0]
    torch.testing.assert_close(reader.local(np.array([20]))[0].float(), local, rtol=1e-3, atol=1e-3)
    assert np.array_equal(reader.labels[20].numpy(), sample.labels)


def test_a_missing_shard_is_made_again_byte_for_byte(finished) -> None:  # type: ignore[no-untyped-def]
    config, _ = finished
    folder = extract.plan_features(config, "test").folder
    before = tars(folder)
    (folder / "shard-000001.tar").unlink()
    os.truncate(folder / "shard-000002.tar", 512)
    report = extract.run(config)
    assert report["splits"]["test"]["shards_made"] == 2
    assert report["splits"]["train"]["shards_made"] == 0
    assert tars(folder) == before


def test_another_backbone_never_mixes_with_these_features(finished) -> None:  # type: ignore[no-untyped-def]
    config, report = finished
    other = config.model_copy(update={"backbone": "toy_backbone:other"})
    folders = {extract.plan_features(c, "train").folder for c in (config, other)}
    assert len(folders) == 2
    with pytest.raises(StageError, match=r"run python -m pipeline\.extract first"):
        train.run(other)
    extract.run(other)
    with pytest.raises(StageError, match="use the same backbone"):
        evaluate.publish(other, [Path(report["checkpoints"]["dclip"])])


def test_two_workers_on_one_copy_in_ram_train_what_one_trained(finished) -> None:  # type: ignore[no-untyped-def]
    config, report = finished
    two = with_train(config, workers=2, cache="ram").model_copy(update={"name": "two"})
    first = safetensors.torch.load_file(report["checkpoints"]["dclip"])
    second = safetensors.torch.load_file(train.run(two)["checkpoint"])
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-4)
    copy = extract.plan_features(config, "train").folder.name
    assert not list(RAM_DISK.glob(f"dclip-{os.getuid()}/*/{copy}"))


def test_more_workers_than_cpus_is_an_error_not_a_hang(finished) -> None:  # type: ignore[no-untyped-def]
    config, _ = finished
    with pytest.raises(StageError, match="ask for fewer workers"):
        train.run(with_train(config, workers=999, epochs=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_copy_on_the_gpu_needs_one(finished) -> None:  # type: ignore[no-untyped-def]
    config, _ = finished
    with pytest.raises(UsageError, match=r"--train.cache device: .* use ram or none"):
        train.run(with_train(config, cache="device", epochs=1))


def test_a_diverging_training_says_so_and_leaves_no_checkpoint(finished) -> None:  # type: ignore[no-untyped-def]
    config, _ = finished
    wild = with_train(config, lr=1e30, optimizer="sgd", warmup_epochs=0, epochs=2)
    with pytest.raises(StageError, match="lower lr or mfi_weight"):
        train.run(wild)
    plan = extract.plan_features(wild, "train")
    assert not checkpoint_path(wild, plan).exists()


def test_a_sweep_writes_one_child_run_a_trial(finished, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    config, _ = finished
    report = sweep.run(config)
    assert len(report["trials"]) == 2
    assert report["failed"] == 0
    store = client(config)
    experiment = store.get_experiment_by_name("dclip-shapes")
    assert experiment is not None
    name = report["name"]
    found = store.search_runs(
        [experiment.experiment_id], f"tags.`dclip.sweep_id` = '{name}'", max_results=100
    )
    parents = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in found if "mlflow.parentRunId" in r.data.tags]
    assert (len(parents), len(children)) == (1, 2)
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert {"dclip.mfi_weight", "dclip.redundancy_weight", "dclip.output_dim"} <= set(
            child.data.params
        )
        steps = store.get_metric_history(child.info.run_id, "val/map")
        assert [metric.step for metric in steps] == [1, 2]
        assert child.info.run_id in report["compare_url"]
    assert "compare-runs?runs=" in capsys.readouterr().out
    again = sweep.run(config)
    assert again["trials"] == report["trials"]
    found = store.search_runs([experiment.experiment_id], f"tags.`dclip.sweep_id` = '{name}'")
    assert len(found) == 3


def test_unreadable_images_are_left_out_named_and_too_many_are_refused(
    ray_session: None, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    for split in ("train", "test"):
        shapes.write_coco(root, split, count=12)
    broken = sorted((root / "train").glob("*.jpg"))[4]
    broken.write_bytes(broken.read_bytes()[:300])
    config = settings(tmp_path / "out", dataset="coco", root=root, extract={"shard_size": 5})
    with pytest.raises(StageError, match="max-failures") as caught:
        extract.run(config)
    assert broken.stem in str(caught.value)
    folder = extract.plan_features(config, "train").folder
    assert not (folder / "manifest.json").exists()
    lenient = {"shard_size": 5, "max_failures": 0.2}
    config = settings(tmp_path / "out", dataset="coco", root=root, extract=lenient)
    report = extract.run(config)
    assert (report["splits"]["train"]["unreadable"], report["splits"]["train"]["images"]) == (1, 11)
    reader = FeatureReader(folder)
    assert reader.manifest.failures[0].key == broken.stem
    assert broken.stem not in reader.keys


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"dataset": "coco"}, UsageError, "--root"),
        ({"dataset": "coco", "root": Path("nowhere")}, UsageError, "nowhere"),
        ({"train_split": "trian"}, UsageError, "trian"),
        ({"resolution": 50}, UsageError, "50"),
        ({"device": "cuda"}, StageError, "--device cuda"),
    ],
    ids=["no root", "missing folder", "unknown split", "resolution", "no GPU"],
)
def test_what_cannot_be_done_is_said_before_any_work(
    tmp_path: Path,
    ray_session: None,
    changes: dict[str, object],
    error: type[Exception],
    words: str,
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    backbone = "RN50" if "resolution" in changes else TOY
    config = settings(tmp_path, backbone=backbone, pretrained=None, **changes)
    if "resolution" in changes:
        config = config.model_copy(update={"pretrained": "random"})
    with pytest.raises(error, match=words):
        extract.run(config)
    assert not list(tmp_path.rglob("*.tar"))


def test_wrong_usage_of_a_stage_exits_with_2_and_failed_work_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path)]
    assert cli.main("extract", ["--dataset", "cocoo", *output]) == 2
    assert cli.main("evaluate", ["--checkpoint", str(tmp_path / "no"), *output]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "error:" in line]) == 2
