"""Training through kills, lost nodes, scarce memory and bad input; the weights stay equal."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mlflow
import psutil
import pytest
import safetensors
import torch
from torch import Tensor

from dclip.batches import hold_out
from dclip.training import fit
from pipeline import extract, train
from pipeline.checkpoints import load_checkpoint
from pipeline.config import Config
from pipeline.features import open_features, plan_features

from .conftest import TOY, WITH_RAY, settings
from .test_extract import cluster, make_here, wait_until  # noqa: F401 - cluster is a fixture

pytestmark = [*WITH_RAY, pytest.mark.usefixtures("_toy_on_path")]

# wide projectors, one image a step: an epoch takes a second, so that kills come within it
SLOW = {"epochs": 4, "batch_size": 1, "hidden_dim": 2048, "output_dim": 512}
EXTRACT = {"limit": 96, "shard_size": 16, "split": "train"}


@pytest.fixture(scope="module")
def features(_toy_on_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the features of a training split."""
    config = settings(tmp_path_factory.mktemp("features"), extract=EXTRACT)
    plan = plan_features(config, "train")
    make_here(plan, config)
    extract.extract(config, [plan])
    return config.output / "features"


def slow(output: Path, features: Path, **changes: object) -> Config:
    return settings(output, features=features, extract=EXTRACT, train={**SLOW, **changes})


def fitted(config: Config) -> dict[str, Tensor]:
    """Weights of the same training in this process, without Ray."""
    reader = open_features(plan_features(config, "train").folders, config.output)
    training = train.begin(config.train, reader, seed=config.seed)
    rows, _ = hold_out(len(reader), config.train.val_fraction, seed=config.data_seed)
    fit(training, reader, rows, seed=config.data_seed)
    return training.model().state_dict()


@pytest.fixture(scope="module")
def undisturbed(features: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return fitted(slow(tmp_path_factory.mktemp("undisturbed"), features))


def start(config: Config, *words: str, **environment: str) -> subprocess.Popen[str]:
    """The command that trains these settings."""
    flags = {**SLOW, "val_fraction": config.train.val_fraction, "checkpoint_seconds": 0.2}
    return subprocess.Popen(
        [
            sys.executable, "-m", "pipeline.train", "--backbone", TOY, "--device", "cpu",
            "--output", str(config.output), "--features", str(config.features),
            *(f"--extract.{name.replace('_', '-')}={value}" for name, value in EXTRACT.items()),
            *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()), *words,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def place(config: Config) -> tuple[int, int]:
    """Epochs and steps that the kept state has done."""
    for path in config.output.rglob(train.STATE):
        with safetensors.safe_open(path, "pt") as state:
            return int(state.get_tensor("epoch")), int(state.get_tensor("step"))
    return 0, 0


def is_within_epoch(config: Config, after: tuple[int, int]) -> bool:
    now = place(config)
    return now > after and now[1] > 0


def workers(pid: int) -> list[psutil.Process]:
    """Ray Train's workers below a process."""
    below = psutil.Process(pid).children(recursive=True)
    return [one for one in below if one.is_running() and "RayTrainWorker" in one.name()]


def history(config: Config) -> list[dict[str, float]]:
    (path,) = config.output.rglob("history.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def checkpoint(config: Config) -> dict[str, Tensor]:
    (path,) = config.output.glob("checkpoints/*")
    return load_checkpoint(path)[0].state_dict()


def test_killed_workers_and_drivers_leave_the_weights_of_an_undisturbed_training(
    tmp_path: Path, features: Path, undisturbed: Mapping[str, Tensor]
) -> None:
    config = slow(tmp_path, features)
    process = start(config)
    wait_until(lambda: is_within_epoch(config, (0, 0)), process)
    killed = place(config)
    (worker,) = workers(process.pid)
    worker.kill()
    wait_until(lambda: is_within_epoch(config, killed), process)
    assert workers(process.pid)[0].pid != worker.pid
    everything = psutil.Process(process.pid).children(recursive=True)  # Ray's have other groups
    os.killpg(process.pid, signal.SIGKILL)
    for one in everything:
        one.kill()
    process.communicate()
    assert place(config)[0] < SLOW["epochs"]
    assert not list(tmp_path.glob("checkpoints/*"))
    process = start(config)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "goes on after epoch" in errors
    weights = checkpoint(config)
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights.items())
    assert [line["epoch"] for line in history(config)] == [1, 2, 3, 4]
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert run.info.status == "FINISHED"
    steps = store.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in steps] == [1, 2, 3, 4]
