"""A small run of every stage: toy backbone, a few scenes, one Ray session for the whole module."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Config

TOY = "toy_backbone:make"


@pytest.fixture(scope="session")
def _toy_on_path() -> Iterator[None]:
    """Let this process and Ray's workers import the toy backbone as a user's own module."""
    folder = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = folder if before is None else f"{folder}{os.pathsep}{before}"
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(folder)
    yield
    patch.undo()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def ray_session(_toy_on_path: None) -> Iterator[None]:
    """One local Ray for all stage tests; stages join it instead of starting their own."""
    from pipeline import cluster

    with cluster.ray_session(Config(device="cpu")):
        yield


def settings(output: Path, **changes: object) -> Config:
    """Settings of a run that takes seconds."""
    values: dict[str, object] = {
        "backbone": TOY,
        "output": output,
        "device": "cpu",
        "extract": {"limit": 48, "shard_size": 16, "workers": 2},
        "train": {"epochs": 4, "checkpoint_every": 2, "val_fraction": 0.25, "output_dim": 8},
        "evaluate": {"probe_epochs": 2, "scenes": 2},
        "sweep": {"epochs": 2, "mfi_weight": [0.0, 0.1], "output_dim": [4, 8], "trials": 2},
    }
    return Config.model_validate({**values, **changes})
