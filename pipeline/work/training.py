"""A pack of trainings on Ray Train: its workers, epochs as they come, checkpoints at the end."""

import logging
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dclip.fitting.fit import check_training, divergence
from dclip.store.reader import FeatureReader
from dclip.words import counted, percent, told
from pipeline.cluster import session as cluster
from pipeline.cluster.address import cluster_address
from pipeline.cluster.device import choose_device
from pipeline.cluster.watch import watched
from pipeline.features.alone import ImagesAlone
from pipeline.features.backbone import clip_of
from pipeline.features.opened import open_backbone, open_features
from pipeline.features.plan import FeaturePlan
from pipeline.records.checkpoints import read_progress, read_state
from pipeline.records.origin import about_training
from pipeline.records.tracking import TrackedRun, Tracker
from pipeline.records.trainings import (
    HISTORY,
    STATE,
    metric_names,
    pack_folder,
    read_history,
    run_name,
)
from pipeline.settings.config import Config
from pipeline.settings.training import at
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress
from pipeline.work.calibrating import calibration_of
from pipeline.work.fitting import keep, tracked
from pipeline.work.packs import Job, begin
from pipeline.work.workers import fit_and_keep

log = logging.getLogger(__name__)


def train(configs: Sequence[Config], plan: FeaturePlan, paths: Sequence[Path]) -> None:
    """Train a pack of settings, and write the checkpoint of each.

    Args:
        configs: Settings that can share passes over the features.
        plan: Features.
        paths: Where the checkpoint of each goes; one that stands is left as it is.

    Raises:
        StageError: Features, state or workers fail, or a training diverges.
    """
    config = configs[0]
    reader: FeatureReader | ImagesAlone
    if plan.listing.class_names:
        reader = open_features(plan.folders, config.output)
    else:
        reader = ImagesAlone(plan.num_images, open_backbone(config), plan)
    names = [run_name(one, plan) for one in configs]
    folder = pack_folder(config, names)
    name = folder.name
    job = Job(
        config.method,
        tuple(at(one, {}) for one in configs),
        seeds=tuple(one.seed for one in configs),
        data_seed=config.data_seed,
        features=tuple(plan.folders) if plan.listing.class_names else (),
        output=config.output.absolute(),
        clip=clip_of(config),
        images=plan.listing if config.own.sees_images() else None,
        count=plan.num_images,
    )
    pack = begin(job, reader, fresh=False)  # the workers make the weights
    left, rows, held = job.data(job.beside(reader), reader.class_names)
    check_training(pack, left, rows, held)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / STATE).is_file():
        read_state(folder / STATE, pack)
        _require_history(folder / HISTORY, pack.epoch)
        log.info("train: %s goes on after epoch %d, step %d", name, pack.epoch, pack.step)
    tracker = Tracker(config)
    called = " + ".join(one.trained_name for one in configs)
    with ExitStack() as stack:
        runs = [stack.enter_context(tracked(tracker, one, plan)) for one in configs]
        with (
            _follow(folder / HISTORY, config.train.epochs, pack.epoch, called, runs),
            _interruption_told(config, folder),
        ):
            if pack.epoch < config.train.epochs:
                with cluster.ray_session(config):
                    _fit_on_ray(config, job, folder)
        read_state(folder / STATE, pack)
        if pack.epoch < config.train.epochs:
            raise StageError(
                f"training {name} stands at epoch {pack.epoch} of {config.train.epochs}: "
                "another process wrote to it meanwhile; the same command goes on"
            )
        history = read_history(folder / HISTORY)
        for number, (one, path, run) in enumerate(zip(configs, paths, runs, strict=True)):
            if number in pack.diverged or path.is_file():
                continue
            method = pack.method(number)
            about = about_training(
                one, plan, reader.manifest, epoch=pack.best_epoch(number), seed=one.seed,
                history=[lines[number] for lines in history],
                calibration=calibration_of(method, left, held, one.trained_name),
            )  # fmt: skip
            run.tags({"dclip.selection": config.train.selection, "dclip.epoch": str(about.epoch)})
            keep(run, one, path, method, about)
        if pack.diverged:
            first = min(pack.diverged)
            raise StageError(f"training {names[first]} diverged: {divergence(pack, first)}")


@contextmanager
def _interruption_told(config: Config, folder: Path) -> Iterator[None]:
    """On Ctrl-C, say what is kept and where."""
    try:
        yield
    except KeyboardInterrupt:
        epoch, step = read_progress(folder / STATE)
        within = f" and step {step} of the next" if step else ""
        kept = f"the state there is kept in {folder}" if epoch or step else "nothing is kept yet"
        log.info(
            "train: interrupted after epoch %d of %d%s; %s",
            epoch,
            config.train.epochs,
            within,
            kept,
        )
        raise


class Trainer(DataParallelTrainer):  # type: ignore[misc]  # Any to mypy
    """Ray Train without those of its actors that have nothing to do here.

    Each is a process that loads for seconds. One hands out Ray's data sets, of which there are
    none; one outlives the driver to give its CPUs back, but a local session ends with the driver.
    """

    def _create_default_callbacks(self) -> list[Any]:
        idle: tuple[type, ...] = (DatasetsCallback,)
        if not cluster_address():
            idle = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, idle)]


def _fit_on_ray(config: Config, job: Job, folder: Path) -> None:
    """Run the workers until the last epoch's state is written."""
    device, why = choose_device(config.device)
    train = config.train
    resource = "GPU" if device == "cuda" else "CPU"
    available = int(ray.cluster_resources().get(resource, 0))
    least = train.workers if train.min_workers is None else train.min_workers
    if least > available:
        raise StageError(
            f"--train.workers {train.workers}: the cluster has {available} {resource}s; "
            "ask for fewer workers or add nodes"
        )
    if train.cache == "device" and device != "cuda":
        raise StageError(
            f"--train.cache device: the training runs on the CPU ({why}); use ram or none"
        )
    workers = counted(train.workers, "worker")
    log.info("train: %s: %s on %s (%s)", folder.name, workers, device, why)
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    each = 1 if device == "cuda" else cpus_each(cpus, train.workers)
    trainer = Trainer(
        fit_and_keep,
        train_loop_config={"job": ray.put(job), "folder": folder},
        # the process group; without, what controls the workers need not load torch for seconds
        backend_config=None if train.workers == 1 and device == "cpu" else TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=train.workers if least == train.workers else (least, train.workers),
            use_gpu=device == "cuda",
            resources_per_worker=None if device == "cuda" else {"CPU": each},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=train.max_failures),
        ),
    )
    try:
        with workers_watched(resource, least * each), _interruptible():
            result = trainer.fit()
    except TrainingFailedError as error:
        raise StageError(
            f"training {folder.name} failed: {told(cluster.cause(error))}; the same command goes "
            "on from its last state"
        ) from None
    if result.return_value:
        raise StageError(f"training {folder.name} diverged: {result.return_value}")


@contextmanager
def workers_watched(resource: str, needed: int, seconds: float = 15.0) -> Iterator[None]:
    """Say so when a lost node leaves too few CPUs or GPUs, for which Ray waits without a word.

    Args:
        resource: ``"CPU"`` or ``"GPU"``.
        needed: How many the training cannot do without.
        seconds: Between two looks.
    """
    was_enough = True

    def look() -> None:
        nonlocal was_enough
        there = int(ray.cluster_resources().get(resource, 0))
        if there < needed and was_enough:
            log.warning(
                "train: %d of %d %ss are left; waiting for a node to join (with --min-workers "
                "the training would go on with fewer workers; its state is kept)",
                there, needed, resource,
            )  # fmt: skip
        was_enough = there >= needed

    with watched(look, "train: looking at the cluster", seconds=seconds):
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt, and stay one afterwards.

    Ray Train takes the signal over, for good, and ends the process with exit code 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def cpus_each(nodes: Sequence[int], workers: int) -> int:
    """CPUs of a worker, which are its threads: as many as all workers can have at once.

    No more than the smallest node has, so that any node can take over what a lost one did.

    Args:
        nodes: CPUs of each node; those without any take no part.
        workers: Number of workers.
    """
    cpus = min(count for count in nodes if count > 0)
    while cpus > 1 and sum(count // cpus for count in nodes) < workers:
        cpus -= 1
    return cpus


def _require_history(path: Path, epochs: int) -> None:
    """Refuse a state whose history is damaged or gone: a checkpoint could not be told from it.

    Raises:
        StageError: It does not tell of that many epochs.
    """
    try:
        count = len(read_history(path))
    except ValueError as error:
        raise StageError(
            f"{path} is damaged ({told(error)}); delete {path.parent} to train from the start"
        ) from None
    if count < epochs:
        raise StageError(
            f"{path} tells of {count} of {epochs} epochs; delete {path.parent} to train from the "
            "start"
        )


@contextmanager
def _follow(
    path: Path, epochs: int, done: int, label: str, tracked: Sequence[TrackedRun]
) -> Iterator[None]:
    """Show and record each epoch while the workers run, from the file that rank 0 writes."""
    seen = 0

    def look() -> None:
        nonlocal seen
        for lines in read_history(path)[seen:]:
            for run, line in zip(tracked, lines, strict=True):
                run.metrics(metric_names(line), step=int(line["epoch"]))
            seen += 1
            if seen > done:
                losses = ", ".join(f"{line.get('loss', math.nan):.4f}" for line in lines)
                maps = ", ".join(percent(line.get("val_map")) for line in lines)
                bar.advance(1, f"loss {losses}, val/map {maps}")

    with (
        progress(f"train {label}", epochs, "epochs", done) as bar,
        watched(look, "train: showing and recording epochs", seconds=0.5, at_end=True),
    ):
        yield
