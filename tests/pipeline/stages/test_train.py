"""Training through kills, lost nodes, scarce memory and bad input; the weights stay equal."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from torch import Tensor

from dclip.checkpoints.origin import CheckpointError
from dclip.fitting.batches import hold_out
from dclip.fitting.fit import fit
from dclip.fitting.pack import Pack
from dclip.store.paths import as_path
from dclip.store.reader import FeatureReader
from dclip.store.shards import MANIFEST, SAMPLES, TEXT, file_digest, read_manifest
from pipeline.features import cache
from pipeline.features.cache import cached_features
from pipeline.features.opened import open_features
from pipeline.features.plan import plan_features
from pipeline.records.checkpoints import load_checkpoint, write_state
from pipeline.records.trainings import STATE, checkpoint_path, run_name
from pipeline.settings.config import Config
from pipeline.settings.training import Trained
from pipeline.stages import train
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError
from pipeline.work import packs, training

from ..conftest import TOY, WITH_RAY, settings, with_train, workers_below
from .test_extract import cluster, features_here, wait_until  # noqa: F401 - cluster is a fixture

pytestmark = [*WITH_RAY, pytest.mark.usefixtures("_toy_on_path")]

# wide projectors, one image a step: an epoch takes a second, so that kills come within it
SLOW = {"optimizer": "sgd", "epochs": 4, "batch_size": 1, "hidden_dim": 2048, "output_dim": 512}
EXTRACT = {"limit": 96, "shard_size": 16, "split": "train"}


@pytest.fixture(scope="module")
def features(_toy_on_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the features of a training split."""
    return features_here(tmp_path_factory.mktemp("features"), EXTRACT)


def slow(output: Path, features: Path, **changes: object) -> Config:
    return settings(output, features=features, extract=EXTRACT, train={**SLOW, **changes})


def begin(config: Config, reader: FeatureReader) -> Pack:
    """A fresh training of these settings."""
    own = (Trained(config.train, config.own),)
    job = packs.Job(config.method, own, (config.seed,), config.data_seed, (), config.output)
    return packs.begin(job, reader)


def fitted(config: Config) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after the same training in this process, without Ray."""
    reader = open_features(plan_features(config, "train").folders, config.output)
    pack = begin(config, reader)
    start = {name: value.clone() for name, value in pack.method().state_dict().items()}
    rows, _ = hold_out(len(reader), config.train.val_fraction, seed=config.data_seed)
    fit(pack, reader, rows, seed=config.data_seed)
    return start, pack.method().state_dict()


def assert_same_training(
    weights: Mapping[str, Tensor], other: tuple[dict[str, Tensor], ...]
) -> None:
    """Weights differ by less than a hundredth of the way that the training went.

    To the last bit they agree only where as many threads and workers sum up: that alone makes a
    ten-thousandth of the way here, a single step left out a third.
    """
    start, end = other
    for name, value in end.items():
        way = (value - start[name]).double().norm()
        assert (weights[name] - value).double().norm() <= 1e-2 * way, name
    assert any(not torch.equal(value, start[name]) for name, value in end.items())


@pytest.fixture(scope="module")
def undisturbed(
    features: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], ...]:
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
    for path in config.output.rglob(STATE):
        with safetensors.safe_open(path, "pt") as state:
            return int(state.get_tensor("epoch")), int(state.get_tensor("step"))
    return 0, 0


def is_within_epoch(config: Config, after: tuple[int, int]) -> bool:
    now = place(config)
    return now > after and now[1] > 0


def workers(pid: int) -> list[psutil.Process]:
    """Ray Train's workers below a process."""
    return workers_below(pid, "RayTrainWorker")


def kill_with_all_below(process: subprocess.Popen[str]) -> None:
    """Kill a command and Ray's processes below it, which have groups of their own."""
    everything = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for one in everything:
        with suppress(psutil.NoSuchProcess):  # Ray's end themselves when their driver is gone
            one.kill()


def history(config: Config) -> list[dict[str, float]]:
    (path,) = config.output.rglob("history.jsonl")
    return [json.loads(line)[0] for line in path.read_text().splitlines()]


def checkpoint(config: Config) -> dict[str, Tensor]:
    (path,) = config.output.glob("checkpoints/*")
    return load_checkpoint(path)[0].state_dict()


def test_killed_workers_and_drivers_leave_the_weights_of_an_undisturbed_training(
    tmp_path: Path, features: Path, undisturbed: tuple[dict[str, Tensor], ...]
) -> None:
    config = slow(tmp_path, features)
    process = start(config)
    wait_until(lambda: is_within_epoch(config, (0, 0)), process)
    killed = place(config)
    (worker,) = workers(process.pid)
    worker.kill()
    wait_until(lambda: is_within_epoch(config, killed), process)
    assert workers(process.pid)[0].pid != worker.pid
    kill_with_all_below(process)
    process.communicate()
    assert place(config)[0] < SLOW["epochs"]
    assert not list(tmp_path.glob("checkpoints/*"))
    process = start(config)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "goes on after epoch" in errors
    assert_same_training(checkpoint(config), undisturbed)
    assert [line["epoch"] for line in history(config)] == [1, 2, 3, 4]
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert run.info.status == "FINISHED"
    steps = store.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in steps] == [1, 2, 3, 4]


def test_ctrl_c_says_what_is_kept_and_ends_as_an_interruption(
    tmp_path: Path,
    features: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = slow(tmp_path, features, epochs=3)

    def stopped_at_once(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    def stopped_in_epoch_2(config: Config, job: packs.Job, folder: Path) -> None:
        reader = open_features(plan_features(config, "train").folders, config.output)
        pack = begin(config, reader)
        pack.epoch, pack.step = 1, 7
        write_state(folder / STATE, pack)
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # as Ray Train does
        with training._interruptible():
            signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
            signal.raise_signal(signal.SIGINT)

    words = ["--backbone", TOY, "--output", str(tmp_path), "--features", str(features)]
    words += [f"--extract.{name.replace('_', '-')}={value}" for name, value in EXTRACT.items()]
    words += [f"--{name}={value}" for name, value in {**SLOW, "epochs": 3}.items()]
    # a process that was started in the background ignores the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("pipeline.cluster.session.ray_session", lambda _: nullcontext())
    try:
        for stop, expected in (
            (stopped_at_once, "train: interrupted after epoch 0 of 3; nothing is kept yet"),
            (
                stopped_in_epoch_2,
                "interrupted after epoch 1 of 3 and step 7 of the next; the state",
            ),
        ):
            monkeypatch.setattr(training, "_fit_on_ray", stop)
            assert cli.main("train", words) == 130
            assert expected in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before)
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert run.info.status == "KILLED"
    assert run.info.run_name.startswith("dclip robust hidden_dim=2048 output_dim=512 epochs=3")
    assert config.output == tmp_path


# ---------------------------------------------------------------------------------------------
# Nodes
# ---------------------------------------------------------------------------------------------


def test_a_training_outlives_two_of_three_nodes(
    tmp_path: Path,
    features: Path,
    undisturbed: tuple[dict[str, Tensor], ...],
    cluster: tuple[str, list[int]],  # noqa: F811 - the fixture
) -> None:
    """Two workers of three nodes: the idle one takes over; then one worker is left."""
    address, groups = cluster
    config = slow(tmp_path, features)
    process = start(
        config, "--workers", "2", "--min-workers", "1", "--max-failures", "2",
        RAY_ADDRESS=address, RAY_AUTH_MODE="disabled",
    )  # fmt: skip
    for _ in range(2):
        before = place(config)
        wait_until(lambda: is_within_epoch(config, before), process)  # noqa: B023 - used at once
        lost = next(group for group in groups if alive(group) and workers(group))
        os.killpg(lost, signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert_same_training(checkpoint(config), undisturbed)
    assert [line["epoch"] for line in history(config)] == [1, 2, 3, 4]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_waiting_for_a_lost_node_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = iter([2, 1, 1, 2])
    looked = threading.Event()

    def resources() -> dict[str, int]:
        left = next(there, None)
        if left is None:
            looked.set()
        return {"GPU": left or 2}

    monkeypatch.setattr("ray.cluster_resources", resources)
    with training.workers_watched("GPU", 2, seconds=0.01):
        assert looked.wait(30)
    (record,) = [one for one in caplog.records if "--min-workers" in one.message]
    assert "1 of 2 GPUs are left" in record.message


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([8, 8], 2, 8),
        ([5, 5], 3, 2),  # 3 each would leave the third worker waiting for ever
        ([0, 2, 16], 2, 2),  # 16 could not be had again once that node is lost
        ([4, 4], 9, 1),
    ],
)
def test_a_worker_has_as_many_cpus_as_all_can_have(
    nodes: list[int], workers: int, expected: int
) -> None:
    assert training.cpus_each(nodes, workers) == expected


@pytest.mark.parametrize(("address", "cleaners"), [("", 0), ("local", 0), ("head.example:6379", 1)])
def test_processes_that_would_idle_are_not_started(
    address: str, cleaners: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    trainer = training.Trainer(
        print,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="ray", storage_path=str(tmp_path)),
    )
    names = [type(one).__name__ for one in trainer._create_default_callbacks()]
    assert "BackendSetupCallback" in names  # torch's process group
    assert names.count("DatasetsCallback") == 0
    assert names.count("PlacementGroupCleanerCallback") == cleaners
    theirs = [type(one).__name__ for one in DataParallelTrainer._create_default_callbacks(trainer)]
    assert {"DatasetsCallback", "PlacementGroupCleanerCallback"} < {*theirs}


# ---------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------

CPU = torch.device("cpu")


@pytest.fixture
def ram(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A RAM disk of its own: that of the machine is shared with other files of tests."""
    with TemporaryDirectory(dir=cache.RAM_DISK) as folder:
        monkeypatch.setattr(cache, "RAM_DISK", Path(folder))
        yield Path(folder)


def folders(config: Config) -> list[str]:
    return plan_features(config, "train").folders


def copies(config: Config) -> list[Path]:
    name = plan_features(config, "train").folder.name
    return list(cache.RAM_DISK.glob(f"dclip-{os.getuid()}/*/{name}"))


@pytest.mark.usefixtures("ram")
def test_all_who_train_share_one_copy_in_ram_and_the_last_removes_it(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = slow(tmp_path, features)
    with cached_features(folders(config), tmp_path, cache="ram", device=CPU) as (first, _):
        with cached_features(folders(config), tmp_path, cache="ram", device=CPU) as (second, _):
            assert first.folder == second.folder
            assert copies(config) == [first.folder]
        # the copy that stands needs no room of its own
        with monkeypatch.context() as patch:
            patch.setattr(cache, "_free_ram", lambda: 0)
            with cached_features(folders(config), tmp_path, cache="ram", device=CPU) as (other, _):
                assert other.folder == first.folder
        assert copies(config) == [first.folder]
        whole = open_features(folders(config), tmp_path)
        rows = hold_out(len(whole), 0.5, seed=0)[0]
        assert torch.equal(first.local(rows), whole.local(rows))
    assert not copies(config)


def test_a_copy_that_a_killed_process_left_is_removed_by_the_next(
    tmp_path: Path, features: Path, ram: Path
) -> None:
    config = slow(tmp_path, features)
    code = (
        "import os, sys, torch\n"
        "from pathlib import Path\n"
        "from pipeline.features import cache\n"
        "output, cache.RAM_DISK = map(Path, sys.argv[1:3])\n"
        "cpu = torch.device('cpu')\n"
        "with cache.cached_features(sys.argv[3:], output, cache='ram', device=cpu):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    words = [str(tmp_path), str(ram), *folders(config)]
    subprocess.run([sys.executable, "-c", code, *words], check=False)
    assert copies(config)
    shutil.copytree(folders(config)[0], other := tmp_path / "shapes" / "other")
    with cached_features([str(other)], tmp_path, cache="ram", device=CPU):
        assert not copies(config)


@pytest.mark.usefixtures("ram")
def test_a_copy_that_does_not_fit_is_an_error_only_if_it_was_asked_for(
    tmp_path: Path, features: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = slow(tmp_path, features)
    remote = f"{s3_bucket}/{'/'.join(Path(folders(config)[0]).parts[-2:])}"
    for file in Path(folders(config)[0]).iterdir():
        (as_path(remote) / file.name).put(file)
    with cached_features([remote], tmp_path, cache="auto", device=CPU) as (reader, _):
        assert reader.folder.is_relative_to(cache.RAM_DISK)
    for missing in ({"fcntl": None}, {"RAM_DISK": tmp_path / "none"}):  # Windows; macOS
        with monkeypatch.context() as patch:
            for name, value in missing.items():
                patch.setattr(cache, name, value)
            with cached_features([remote], tmp_path, cache="auto", device=CPU) as (reader, _):
                assert reader.folder.is_relative_to(tmp_path / "features")
            with (
                pytest.raises(StageError, match=r"cache ram: this system has no RAM disk .*none"),
                cached_features(folders(config), tmp_path, cache="ram", device=CPU),
            ):
                pass
    monkeypatch.setattr(cache, "_SHARE", 0.0)
    with cached_features([remote], tmp_path, cache="auto", device=CPU) as (reader, _):
        assert reader.folder.is_relative_to(tmp_path / "features")
    with (
        pytest.raises(StageError, match=r"features take .* GB, .* use --train.cache none"),
        cached_features(folders(config), tmp_path, cache="ram", device=CPU),
    ):
        pass


# ---------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, features: Path) -> Config:
    """Settings with a copy of the features, to be damaged."""
    shutil.copytree(features, tmp_path / "features")
    return slow(tmp_path, tmp_path / "features")


def replace_file(config: Config, name: str) -> None:
    """Make the manifest agree with a file that was changed."""
    folder = Path(folders(config)[0])
    manifest = read_manifest(folder)
    files = {**manifest.files, name: file_digest(folder / name)}
    changed = manifest.model_copy(update={"files": files})
    (folder / MANIFEST).write_text(changed.model_dump_json())


def test_labels_beyond_the_classes_are_named(own: Config) -> None:
    path = Path(folders(own)[0]) / SAMPLES
    table = pq.ParquetFile(path).read()
    labels = table["labels"].to_pylist()
    labels[5] = [99]
    place_of = table.column_names.index("labels")
    kind = table.schema.field("labels")
    pq.write_table(table.set_column(place_of, kind, pa.array(labels, kind.type)), path)
    replace_file(own, SAMPLES)
    with pytest.raises(StageError, match=r"labels beyond the 16 classes; run python -m"):
        train.run(own)


def test_texts_of_other_classes_are_named(own: Config) -> None:
    path = Path(folders(own)[0]) / TEXT
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
    texts = safetensors.torch.load_file(path)
    fewer = {name: value[:-2] for name, value in texts.items()}
    safetensors.torch.save_file(fewer, path, metadata=about)
    replace_file(own, TEXT)
    with pytest.raises(ValueError, match=r"16 classes need"):
        train.run(own)


def test_classes_in_another_order_than_their_texts_are_named(own: Config) -> None:
    path = Path(folders(own)[0]) / MANIFEST
    content = json.loads(path.read_text())
    content["class_names"].reverse()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"text.safetensors.* another order, than the manifest"):
        train.run(own)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "delete it to train from the start"),
        (b"x" * 200, "delete it to train from the start"),
        (safetensors.torch.save({"epoch": torch.tensor(2)}), "that of another training"),
    ],
    ids=["empty", "noise", "foreign"],
)
def test_a_damaged_state_is_named_before_ray_starts(
    own: Config, content: bytes, words: str
) -> None:
    name = run_name(own, plan_features(own, "train"))
    path = own.output / "train" / name / STATE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(StageError, match=words) as caught:
        train.run(own)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "tells of 0 of 1 epochs; delete"), ('{"epoch": ', "is damaged .*; delete")],
)
def test_a_history_that_is_gone_or_damaged_is_named_before_ray_starts(
    own: Config, content: str | None, words: str
) -> None:
    reader = open_features(folders(own), own.output)
    pack = begin(own, reader)
    pack.epoch = 1
    folder = own.output / "train" / run_name(own, plan_features(own, "train"))
    folder.mkdir(parents=True)
    write_state(folder / STATE, pack)
    if content is not None:
        (folder / "history.jsonl").write_text(content)
    with pytest.raises(StageError, match=words):
        train.run(own)


def test_a_checkpoint_that_cannot_be_read_is_to_be_deleted(own: Config) -> None:
    path = checkpoint_path(own, plan_features(own, "train"))
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="delete it and train again"):
        train.run(own)


def test_an_alpha_that_is_bound_to_diverge_is_refused_before_any_work(own: Config) -> None:
    wild = with_train(own, optimizer="sgd", mfi_reduction="sum", mfi_weight=1.0, lr=0.1)
    with pytest.raises(ValueError, match="diverge"):
        train.run(wild)
    assert not list(own.output.glob("train/*/*"))
