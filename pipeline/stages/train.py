"""Feature shards to a checkpoint: Ray Train fits a method.

The work is :func:`dclip.fitting.fit.fit`; this stage reads the manifest, places workers, keeps
resumable checkpoints, records each epoch, and writes one safetensors file a training. Trainings
that differ only in what the method lets differ are one pack, on one Ray Train run.
"""

import json
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dclip.fitting.loop import Loop
from dclip.words import counted
from pipeline.cluster.watch import watched
from pipeline.settings.config import Config, TrainConfig
from pipeline.settings.space import Trained, alike, identity_of
from pipeline.terminal.cli import Report
from pipeline.terminal.errors import StageError, UsageError, told

if TYPE_CHECKING:
    from dclip.fitting.pack import Pack
    from dclip.store.reader import FeatureReader
    from pipeline.features.plan import FeaturePlan
    from pipeline.records.tracking import TrackedRun

log = logging.getLogger(__name__)


_HISTORY, STATE = "history.jsonl", "state.safetensors"
# above it, what a trial computes of classes by classes takes the room, and each trains by itself
_MOST_CLASSES_TOGETHER = 1000
# where and how often, not what: these do not change the trained weights
_PLACEMENT = {"workers", "min_workers", "max_failures", "checkpoint_seconds", "cache"}


def compared(config: Config) -> list[Config]:
    """Settings of the trainings that are compared: the method's variants, and the method."""
    own = config.own
    if own.variant() is not None:
        return [config]
    plain = [
        config.with_own(**variant.changes).model_copy(update={"name": name})
        for name, variant in own.variants.items()
    ]
    return [*plain, config]


def checkpoint_path(config: Config, plan: "FeaturePlan") -> Path:
    """Where the checkpoint of these settings goes; the name holds a hash of all that shapes it."""
    return config.output.absolute() / "checkpoints" / f"{run_name(config, plan)}.safetensors"


def run_name(config: Config, plan: "FeaturePlan") -> str:
    """Name of a training, and a hash of features, method, settings and seed.

    Settings at their defaults are left out of the hash: `pipeline.settings.space.identity_of`.
    """
    from dclip.store.shards import digest

    identity = digest(
        {
            "features": plan.fingerprint,
            **({"views": [view.fingerprint for view in plan.views]} if plan.views else {}),
            "method": config.method,
            "settings": identity_of(config.method, config.own),
            "loop": config.train.model_dump(exclude=_PLACEMENT | {"preset"}, exclude_defaults=True),
            "seed": config.seed,
        }
    )
    return f"{config.trained_name}-{identity[:12]}"


def shown_name(config: Config, name: str) -> str:
    """How MLflow shows a training: the method, what differs from its preset, and the short hash."""
    own, loop = config.own, config.train
    preset = own.presets[loop.preset]
    usual = Loop.model_validate({**preset.loop, "preset": loop.preset})
    usual_own = type(own).model_validate(preset.own)
    variant = own.variant()
    said = own.variants[variant].changes if variant else {}  # by the name
    words = [
        f"{key}={getattr(mine, key)}"
        for mine, theirs in ((own, usual_own), (loop, usual))
        for key in type(theirs).model_fields
        if getattr(mine, key) != getattr(theirs, key)
        and not (mine is own and key in said and config.trained_name == variant)
    ]
    if config.seed:
        words.append(f"seed={config.seed}")
    preset_words = [loop.preset] if loop.preset != "robust" else []
    more = [f"and {len(words) - 4} more"] if len(words) > 4 else []
    return " ".join([config.trained_name, *preset_words, *words[:4], *more, name[-12:][:6]])


def run(config: Config) -> Report:
    """Train the method of these settings, unless its checkpoint stands."""
    return run_together([config])[0]


def run_together(configs: Sequence[Config]) -> list[Report]:
    """Train the methods of several settings as one pack, those whose checkpoint does not stand.

    Args:
        configs: Settings that differ in the method's own and in ``name`` alone.
    """
    from pipeline.features.plan import plan_features
    from pipeline.records.origin import read_about

    started = time.perf_counter()
    for config in configs:
        check(config)
    plan = plan_features(configs[0], configs[0].train_split)
    paths = [checkpoint_path(config, plan) for config in configs]
    missing = [place for place, path in enumerate(paths) if not path.is_file()]
    for place, path in enumerate(paths):
        if place not in missing:
            log.info("train: nothing to do, %s stands", path)
    for group in _groups(configs, plan, missing):
        _train([configs[place] for place in group], plan, [paths[place] for place in group])
    seconds = round(time.perf_counter() - started, 2)
    reports = []
    for place, path in enumerate(paths):
        about = read_about(path)
        kept = about.history[about.epoch - 1]
        watched = "".join(
            f", {name.replace('_', '-')} {_number(kept.get(name))}"
            for name in about.settings.watched
        )
        sys.stdout.write(
            f"{about.name}: epoch {about.epoch} ({about.loop.selection}), loss "
            f"{kept['loss']:.4f}, val/map {_percent(kept.get('val_map'))}{watched}, at {path}\n"
        )
        reports.append(
            {
                "stage": "train",
                "method": about.name,
                "checkpoint": str(path),
                "trained_now": place in missing,
                "final": kept,
                "seconds": seconds,
            }
        )
    return reports


def _groups(
    configs: Sequence[Config], plan: "FeaturePlan", missing: Sequence[int]
) -> list[list[int]]:
    """Places of the settings that train together, of those whose checkpoint is missing."""
    if len(plan.listing.class_names) > _MOST_CLASSES_TOGETHER:
        return [[place] for place in missing]
    groups = []
    for kind in alike([Trained(config.train, config.own) for config in configs]):
        own = [place for place in kind if place in missing]
        names = [run_name(configs[place], plan) for place in kind]
        if own and (_folder(configs[0], names) / STATE).is_file():
            own = kind  # they were begun together: what is lost is written from what is kept
        groups += [own] if own else []
    return groups


def _folder(config: Config, names: Sequence[str]) -> Path:
    """Where trainings that are one pack keep state and history."""
    from dclip.store.shards import digest

    together = digest({"pack": names})[:12]
    name = names[0] if len(names) == 1 else f"pack-{together}"
    return config.output.absolute() / "train" / name


def check(config: Config) -> None:
    """Refuse settings that contradict each other, before any file is read.

    Raises:
        UsageError: There are fewer workers than the least number, none of their device's memory, or
            the method is not trained by the loop.
    """
    train = config.train
    if config.own.trained_by != "loop":
        raise UsageError(
            f"--method {config.method} is not trained here: pipeline.evaluate has it beside every "
            "checkpoint"
        )
    lacking = sorted(config.own.feeds - {"local", "embedding"})
    if lacking or config.own.needs_gradients:
        what = " and ".join(lacking) or "gradients through the backbone"
        raise UsageError(
            f"--method {config.method} is fed {what}, which features on disk do not hold"
        )
    if train.min_workers is not None and train.min_workers > train.workers:
        raise UsageError(
            f"--train.min-workers {train.min_workers} is more than --train.workers {train.workers}"
        )
    if train.cache == "device" and config.device == "cpu":
        raise UsageError(
            "--train.cache device: the training runs on the CPU (as asked); use ram or none"
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _train(configs: Sequence[Config], plan: "FeaturePlan", paths: Sequence[Path]) -> None:
    """Train a pack of settings, and write the checkpoint of each."""
    from pipeline.cluster.address import require_cluster

    require_cluster()  # what follows takes seconds to load

    from dclip.fitting.batches import hold_out
    from dclip.fitting.fit import check_training, divergence
    from pipeline.cluster import session as cluster
    from pipeline.features.opened import open_features
    from pipeline.records.checkpoints import read_state, write_checkpoint
    from pipeline.records.origin import about_training
    from pipeline.records.tracking import Tracker

    config = configs[0]
    reader = open_features(plan.folders, config.output)
    names = [run_name(one, plan) for one in configs]
    folder = _folder(config, names)
    name = folder.name
    settings = {
        "train": config.train.model_dump(),
        "method": config.method,
        "own": [one.own.model_dump() for one in configs],
        "seeds": [one.seed for one in configs],
        "data_seed": config.data_seed,
        "features": plan.folders,
        "output": str(config.output.absolute()),
        "folder": str(folder),
    }
    pack = begin(settings, reader, fresh=False)  # the workers make the weights
    rows, val_rows = hold_out(len(reader), config.train.val_fraction, seed=config.data_seed)
    check_training(pack, reader, rows, val_rows)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / STATE).is_file():
        read_state(folder / STATE, pack)
        _require_history(folder / _HISTORY, pack.epoch)
        log.info("train: %s goes on after epoch %d, step %d", name, pack.epoch, pack.step)
    tracker = Tracker(config)
    called = " + ".join(one.trained_name for one in configs)
    with ExitStack() as stack:
        tracked = []
        for one, own_name in zip(configs, names, strict=True):
            run = stack.enter_context(
                tracker.run(shown_name(one, own_name), key=own_name, tags={"dclip.stage": "train"})
            )
            run.params(run_params(one, plan))
            source = f"{config.dataset_slug}-{config.train_split}"
            run.dataset(source, plan.folder, plan.fingerprint, "training")
            tracked.append(run)
        with (
            _follow(folder / _HISTORY, config.train.epochs, pack.epoch, called, tracked),
            _interruption_told(config, folder),
        ):
            if pack.epoch < config.train.epochs:
                with cluster.ray_session(config):
                    _fit_on_ray(config, settings, folder)
        read_state(folder / STATE, pack)
        if pack.epoch < config.train.epochs:
            raise StageError(
                f"training {name} stands at epoch {pack.epoch} of {config.train.epochs}: "
                "another process wrote to it meanwhile; the same command goes on"
            )
        history = _read_history(folder / _HISTORY)
        for trial, (one, path) in enumerate(zip(configs, paths, strict=True)):
            if trial in pack.diverged or path.is_file():
                continue
            about = about_training(
                one, plan, reader, epoch=pack.best_epoch(trial), seed=one.seed,
                history=[lines[trial] for lines in history],
            )  # fmt: skip
            write_checkpoint(path, pack.method(trial), about)
            tracked[trial].tags(
                {"dclip.selection": config.train.selection, "dclip.epoch": str(about.epoch)}
            )
            tracked[trial].artifact(path, "checkpoint")
            tracked[trial].text(one.model_dump_json(indent=1), "config.json")
        if pack.diverged:
            first = min(pack.diverged)
            raise StageError(f"training {names[first]} diverged: {divergence(pack, first)}")


@contextmanager
def _interruption_told(config: Config, folder: Path) -> Iterator[None]:
    """On Ctrl-C, say what is kept and where."""
    from pipeline.records.checkpoints import read_place

    try:
        yield
    except KeyboardInterrupt:
        epoch, step = read_place(folder / STATE)
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


def begin(
    settings: Mapping[str, Any],
    reader: "FeatureReader",
    device: str = "cpu",
    *,
    fresh: bool = True,
) -> "Pack":
    """Fresh trials of some settings on these features.

    Args:
        settings: ``train``, ``method``, and, one a trial, ``own`` and ``seeds``.
        reader: Features.
        device: Where they are trained.
        fresh: False for trials whose state is read.
    """
    from dclip.fitting.pack import Pack
    from dclip.methods.method import Task
    from dclip.methods.registry import find_method

    train = TrainConfig.model_validate(settings["train"])
    use_precision(train.precision, device)
    kind = find_method(settings["method"])
    own = [kind.Settings.model_validate(one) for one in settings["own"]]
    task = Task.of_features(reader.class_names, *reader.text_features())
    seeds = settings["seeds"]
    return Pack(kind, own, train.loop, task, seeds=seeds, device=device, fresh=fresh)


def use_precision(precision: str, device: str) -> None:
    """Let a GPU multiply in TF32, unless the settings want float32 throughout."""
    import torch

    if precision == "auto" and device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")


def run_params(config: Config, plan: "FeaturePlan") -> dict[str, Any]:
    """What MLflow shows as the parameters of a training."""
    from pipeline.records.tracking import flat

    keep = {"dataset", "backbone", "pretrained", "resolution", "seed", "train_split"}
    return {
        **flat(config.model_dump(include=keep)),
        "method": config.method,
        **flat(config.train.model_dump(exclude=_PLACEMENT), "train."),
        **flat(config.own.model_dump(), f"{config.own.name}."),
        "features": plan.fingerprint[:12],
    }


def _fit_on_ray(config: Config, settings: Mapping[str, Any], folder: Path) -> None:
    """Run the workers until the last epoch's state is written."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipeline.cluster import session as cluster
    from pipeline.cluster.device import choose_device

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
    trainer = TorchTrainer(
        _worker,
        train_loop_config=dict(settings),
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
        with places_watched(resource, least * each), _interruptible():
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise StageError(
            f"training {folder.name} failed: {told(cluster.cause(error))}; the same command goes "
            "on from its last state"
        ) from None
    if isinstance(result.return_value, str):
        raise StageError(f"training {folder.name} diverged: {result.return_value}")


@contextmanager
def places_watched(resource: str, needed: int, seconds: float = 15.0) -> Iterator[None]:
    """Say so when a lost node leaves too few places, for which Ray then waits without a word.

    Args:
        resource: ``"CPU"`` or ``"GPU"``.
        needed: How many the training cannot do without.
        seconds: Between two looks.
    """
    import ray

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


def _worker(settings: dict[str, Any]) -> str | None:
    """One Ray Train worker; returns what went wrong if the loss diverged."""
    import ray.train
    import ray.train.torch

    from dclip.fitting.batches import hold_out
    from dclip.fitting.fit import DivergenceError, EpochReport, fit, share_state
    from dclip.store.paths import write_text
    from pipeline.features.cache import cached_features
    from pipeline.records.checkpoints import read_state, write_state

    config = TrainConfig.model_validate(settings["train"])
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    folder = Path(settings["folder"])
    history_file, state = folder / _HISTORY, folder / STATE
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        if rank == 0:
            write_state(state, pack)
            saved = time.monotonic()

    def on_epoch(reports: list[EpochReport]) -> None:
        if rank == 0:
            history.append([report.line() for report in reports])
            write_text(history_file, "".join(json.dumps(line) + "\n" for line in history))
        save()

    def on_step() -> None:
        if time.monotonic() - saved > config.checkpoint_seconds:
            save()

    with cached_features(
        settings["features"], Path(settings["output"]), cache=config.cache, device=device
    ) as (reader, features):
        pack = begin(settings, reader, str(device), fresh=not state.is_file())
        if rank == 0 and state.is_file():
            read_state(state, pack)
        if workers > 1:  # what another node sees of the file may be older
            share_state(pack, rank)
        history = _read_history(history_file)[: pack.epoch]
        rows, val_rows = hold_out(len(reader), config.val_fraction, seed=settings["data_seed"])
        try:
            fit(
                pack,
                features,
                rows,
                seed=settings["data_seed"],
                val_rows=val_rows,
                rank=rank,
                workers=workers,
                on_epoch=on_epoch,
                on_step=on_step,
            )
        except DivergenceError as error:
            return str(error)
    return None


def _read_history(path: Path) -> list[list[dict[str, float]]]:
    """One line an epoch, with what it did to each trial; none if no epoch is done."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def _require_history(path: Path, epochs: int) -> None:
    """Refuse a state whose history is damaged or gone: a checkpoint could not be told from it.

    Raises:
        StageError: It does not tell of that many epochs.
    """
    try:
        count = len(_read_history(path))
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
    path: Path, epochs: int, done: int, label: str, tracked: "Sequence[TrackedRun]"
) -> Iterator[None]:
    """Show and record each epoch while the workers run, from the file that rank 0 writes."""
    from pipeline.terminal.progress import progress

    seen = 0

    def look() -> None:
        nonlocal seen
        for lines in _read_history(path)[seen:]:
            for run, line in zip(tracked, lines, strict=True):
                run.metrics(metric_names(line), step=int(line["epoch"]))
            seen += 1
            if seen > done:
                losses = ", ".join(f"{line.get('loss', math.nan):.4f}" for line in lines)
                maps = ", ".join(_percent(line.get("val_map")) for line in lines)
                bar.advance(1, f"loss {losses}, val/map {maps}")

    with (
        progress(f"train {label}", epochs, "epochs", done) as bar,
        watched(look, "train: showing and recording epochs", seconds=0.5, at_end=True),
    ):
        yield


def metric_names(line: Mapping[str, float]) -> dict[str, float]:
    """Line of the history under the names MLflow shows; its plots open on the first one."""
    first = {"val/map": line["val_map"]} if "val_map" in line else {}
    others = {f"train/{key}": v for key, v in line.items() if key not in ("epoch", "val_map")}
    return first | others


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    from dclip.methods.method import Task, initial
    from dclip.methods.registry import find_method
    from dclip.store.shards import MANIFEST
    from pipeline.features.plan import describe_backbone, plan_features

    check(config)
    plan = plan_features(config, config.train_split)
    path = checkpoint_path(config, plan)
    names = plan.listing.class_names
    task = Task.placeholder(names, describe_backbone(config).embed_dim)
    method = initial(
        find_method(config.method), config.own, task, seed=config.seed, follow_task=False
    )
    parameters = sum(weight.numel() for weight in method.parameters())
    held = round(plan.num_images * config.train.val_fraction)
    features = "complete" if (plan.folder / MANIFEST).is_file() else "not extracted yet"
    return "\n".join(
        [
            f"features {plan.folder} ({features})",
            f"{plan.num_images - held} images to train on, {held} held out for val/*",
            f"{parameters} parameters, {config.train.epochs} epochs, "
            f"preset {config.train.preset}, {counted(config.train.workers, 'worker')}",
            f"checkpoint {path} ({'stands' if path.is_file() else 'to be made'})",
        ]
    )
