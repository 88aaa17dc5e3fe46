"""A small run of every stage: toy backbone, a few scenes, one Ray session for the whole module."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from mlflow.store.db import utils
from sqlalchemy import Engine, create_engine

from dclip.methods.settings import DCLIPSettings
from pipeline.settings.config import Config, config_class
from pipeline.settings.sections import TrainConfig

TOY = "toy_backbone:make"

# modules of a user's own, which import each other by their bare names; they have no examples to run
collect_ignore_glob = ["toy_*.py"]

WITH_RAY = [
    pytest.mark.slow,
    pytest.mark.usefixtures("new_stores_are_copies"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and files open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray.*"),
]
"""Marks of a file whose tests run stages on Ray."""


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
def new_stores_are_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let MLflow fill new stores of this process from one that it made here.

    Making one runs the changes of all of MLflow's versions one by one, which takes seconds.
    """
    template = tmp_path_factory.mktemp("store") / "mlflow.db"
    store = create_engine(f"sqlite:///{template}")
    initialise = utils._initialize_tables
    initialise(store)
    store.dispose()

    def copy(engine: Engine) -> None:
        path = engine.url.database
        assert engine.url.get_backend_name() == "sqlite"
        with closing(sqlite3.connect(template)) as ours, closing(sqlite3.connect(path)) as new:
            ours.backup(new)

    patch = pytest.MonkeyPatch()
    patch.setattr(utils, "_initialize_tables", copy)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def ray_session(_toy_on_path: None) -> Iterator[None]:
    """One local Ray for all stage tests; stages join it instead of starting their own."""
    from pipeline.cluster import session as cluster

    with cluster.ray_session(Config(device="cpu")):
        yield


def settings(output: Path, **changes: object) -> Config:
    """Settings of a run that takes seconds."""
    values: dict[str, object] = {
        "backbone": TOY,
        "output": output,
        "device": "cpu",
        "extract": {"limit": 48, "shard_size": 16, "workers": 2},
        "train": {"epochs": 4, "val_fraction": 0.25},
        "dclip": {"output_dim": 8},
        "evaluate": {"probe_epochs": 2, "scenes": 2},
        "sweep": {
            "epochs": 2,
            "space": {
                "dclip.redundancy_weight": [0.2, 1.0],
                "dclip.mfi_weight": [0.0, 0.1],
                "dclip.output_dim": [4, 8],
            },
            "trials": 2,
        },
    }
    values |= changes
    train = values["train"]
    if isinstance(train, dict):  # keys of the method among those of the loop
        own = {key: train[key] for key in train.keys() & DCLIPSettings.model_fields.keys()}
        loop = {key: value for key, value in train.items() if key not in own}
        values["train"] = {"preset": "robust", **loop}
        values["dclip"] = {**values["dclip"], **own}  # type: ignore[dict-item]
    return config_class("dclip").model_validate(values)


def with_train(config: Config, **changes: object) -> Config:
    """The same settings, some of the loop or of the method replaced (checked again)."""
    own = {key: changes.pop(key) for key in changes.keys() & DCLIPSettings.model_fields.keys()}
    train = TrainConfig.model_validate({**config.train.model_dump(), **changes})
    return config.with_own(**own).model_copy(update={"train": train})


def workers_below(pid: int, title: str) -> list[psutil.Process]:
    """Ray's workers below a process whose title holds a word; others may come and go meanwhile."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if title in "".join(child.cmdline()[:1]):
                found.append(child)
    return found


IMAGE_SETS = {
    "voc2007": "VOC2007/ImageSets/Main",
    "voc2012": "VOC2012/ImageSets/Main",
    "voc12-seg": "VOC2012/ImageSets/Segmentation",
    "context": "VOC2010/ImageSets/SegmentationContext",
}
VAL_CITIES = {"aachen": "frankfurt", "bremen": "lindau"}


def write_tree(trees: ModuleType, name: str, root: Path, splits: Mapping[str, int]) -> Path:
    """A tiny data set of the given splits, of which no image is in two, named as published."""
    if name in IMAGE_SETS:  # one numbering for all splits, as VOC has
        first = 0
        for split, count in splits.items():
            trees.TREES[name](root, split, sum(splits.values()))
            ids = root / "VOCdevkit" / IMAGE_SETS[name] / f"{split}.txt"
            trees.write_lines(ids, ids.read_text().splitlines()[first : first + count])
            first += count
        return root
    for number, (split, count) in enumerate(splits.items()):
        trees.TREES[name](root, split, count)
        if name.startswith("coco") or name == "stuff":
            _rename_coco(root, split, 1000 * number)
        elif name == "cityscapes" and split == "val":
            _rename_cities(root)
    return root


def _rename_coco(root: Path, split: str, first: int) -> None:
    """Images of a split get ids of their own, and names as COCO's."""
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    tag = f"COCO_{split}_" if split.endswith("2014") else ""
    for image in content["images"]:
        old = image["file_name"]
        image["id"] += first
        image["file_name"] = f"{tag}{image['id']:012d}.jpg"
        image["coco_url"] = f"http://images.cocodataset.org/{split}/{image['file_name']}"
        (root / split / old).rename(root / split / image["file_name"])
        mask = root / "stuffthingmaps" / split / old.replace(".jpg", ".png")
        mask.rename(mask.with_name(image["file_name"].replace(".jpg", ".png")))
    for annotation in content["annotations"]:
        annotation["image_id"] += first
    file.write_text(json.dumps(content))


def _rename_cities(root: Path) -> None:
    """The writer's cities are of the training split; these are of the other."""
    for kind in ("leftImg8bit", "gtFine"):
        for old, new in VAL_CITIES.items():
            folder = (root / kind / "val" / old).rename(root / kind / "val" / new)
            for file in folder.iterdir():
                file.rename(file.with_name(file.name.replace(old, new)))


class MlflowServer:
    """A real ``mlflow server`` on this machine, which a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.port,
            "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}",
            "--artifacts-destination", self.folder / "artifacts",
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running server; a test that kills it starts it again."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()
