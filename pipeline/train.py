"""Feature shards to a checkpoint: Ray Train fits the projectors.

The work is :func:`dclip.training.fit`; this stage reads the manifest, places workers, keeps
resumable checkpoints, records each epoch, and writes one safetensors file.
"""

import json
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import Report, main
from pipeline.config import Config, TrainConfig
from pipeline.errors import StageError

if TYPE_CHECKING:
    from pipeline.features import FeaturePlan
    from pipeline.tracking import TrackedRun

log = logging.getLogger(__name__)

DESCRIPTION = """\
Fit the two projectors on the feature shards that pipeline.extract made.

examples:
  python -m pipeline.train                                DCLIP with the robust preset
  python -m pipeline.train --mfi-weight 0                 ASL only, for comparison
  python -m pipeline.train --preset author --workers 2    the published recipe, two workers
A run that was stopped goes on from its last checkpoint; finished settings are not trained again."""

_HISTORY = "history.jsonl"
# where and how often, not what: these do not change the trained weights
_PLACEMENT = {"workers", "checkpoint_every", "max_failures"}


def methods(config: Config) -> list[Config]:
    """Settings of the trainings that are compared: without MFI, and with it."""
    plain = config.with_train(mfi_weight=0.0).model_copy(update={"name": "asl_only"})
    full = config.model_copy(update={"name": config.name or "dclip"})
    return [plain, full] if config.train.mfi_weight > 0 else [plain]


def checkpoint_path(config: Config, plan: "FeaturePlan") -> Path:
    """Where the checkpoint of these settings goes; the name holds a hash of all that shapes it."""
    return config.output.absolute() / "checkpoints" / f"{run_name(config, plan)}.safetensors"


def run_name(config: Config, plan: "FeaturePlan") -> str:
    """Name of a training: the method, and a hash of features, recipe and seed."""
    from dclip.shards import digest

    identity = digest(
        {
            "features": plan.fingerprint,
            **({"views": [view.fingerprint for view in plan.views]} if plan.views else {}),
            "recipe": config.train.model_dump(exclude=_PLACEMENT),
            "seed": config.seed,
        }
    )
    return f"{config.method}-{identity[:12]}"


def run(config: Config) -> Report:
    """Train the projectors of these settings, unless their checkpoint stands."""
    from pipeline.checkpoints import read_about
    from pipeline.features import plan_features

    started = time.perf_counter()
    plan = plan_features(config, config.train_split)
    path = checkpoint_path(config, plan)
    made = not path.is_file()
    if made:
        _train(config, plan, path)
    else:
        log.info("train: nothing to do, %s stands", path)
    about = read_about(path)
    last = about.history[-1]
    sys.stdout.write(
        f"{about.method}: epoch {last['epoch']:.0f}, loss {last['loss']:.4f}, "
        f"val/map {_percent(last.get('val_map'))}, "
        f"inter-class cosine {last['inter_class_cosine']:.3f}, at {path}\n"
    )
    return {
        "stage": "train",
        "method": about.method,
        "checkpoint": str(path),
        "trained_now": made,
        "final": last,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _train(config: Config, plan: "FeaturePlan", path: Path) -> None:
    from dclip.training import build_model, build_optimizer, check_recipe
    from pipeline import cluster
    from pipeline.checkpoints import FORMAT, About, read_state, write_checkpoint
    from pipeline.features import open_features
    from pipeline.provenance import git_commit
    from pipeline.tracking import Tracker

    reader = open_features(plan.folders, config.output)
    check_recipe(config.train, len(reader.class_names))
    name = run_name(config, plan)
    folder = config.output.absolute() / "train" / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "train": config.train.model_dump(),
        "seed": config.seed,
        "features": plan.folders,
        "output": str(config.output.absolute()),
        "folder": str(folder),
    }
    tracker = Tracker(config)
    with tracker.run(config.method, key=name, tags={"dclip.stage": "train"}) as tracked:
        tracked.params(run_params(config, plan))
        source = f"{config.dataset_slug}-{config.train_split}"
        tracked.dataset(source, plan.folder, plan.fingerprint, "training")
        with (
            cluster.ray_session(config),
            _follow(folder / _HISTORY, config.train.epochs, config.method, tracked),
        ):
            state = _fit_on_ray(config, settings, folder)
        texts, _ = reader.text_features()
        model = build_model(config.train, reader.manifest.dim, seed=config.seed)
        read_state(state, model, build_optimizer(model, config.train))
        about = About(
            format=FORMAT,
            method=config.method,
            feature_space=plan.feature_space,
            backbone_name=str(reader.manifest.spec["backbone_name"]),
            embed_dim=reader.manifest.dim,
            class_names=list(reader.class_names),
            recipe=config.train.recipe,
            seed=config.seed,
            features=plan.fingerprint,
            history=_read_history(folder / _HISTORY),
            commit=git_commit(),
        )
        write_checkpoint(path, model, texts, about)
        tracked.artifact(path, "projectors")
        tracked.text(config.model_dump_json(indent=1), "config.json")


def run_params(config: Config, plan: "FeaturePlan") -> dict[str, Any]:
    """What MLflow shows as the parameters of a training."""
    from pipeline.tracking import flat

    keep = {"dataset", "backbone", "pretrained", "resolution", "seed", "train_split"}
    return {
        **flat(config.model_dump(include=keep)),
        **flat(config.train.model_dump(exclude=_PLACEMENT), "train."),
        "features": plan.fingerprint[:12],
    }


def _fit_on_ray(config: Config, settings: Mapping[str, Any], folder: Path) -> Path:
    """Run the workers; folder of the last checkpoint."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipeline import cluster

    device, why = cluster.choose_device(config.device)
    workers, epochs = config.train.workers, config.train.epochs
    log.info("train: %s: %d epochs on %d x %s (%s)", folder.name, epochs, workers, device, why)
    resource = "GPU" if device == "cuda" else "CPU"
    available = int(ray.cluster_resources().get(resource, 0))
    if config.train.workers > available:
        raise StageError(
            f"--train.workers {config.train.workers}: the cluster has {available} {resource}s; "
            "ask for fewer workers or add nodes"
        )
    trainer = TorchTrainer(
        _worker,
        train_loop_config=dict(settings),
        scaling_config=ScalingConfig(num_workers=config.train.workers, use_gpu=device == "cuda"),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=config.train.max_failures),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        reason = " ".join(str(cluster.cause(error)).split())
        raise StageError(
            f"training {folder.name} failed: {reason}; the same command goes on from the last "
            "checkpoint"
        ) from None
    if isinstance(result.return_value, str):
        raise StageError(f"training {folder.name} diverged: {result.return_value}")
    if result.checkpoint is None:
        raise StageError(f"training {folder.name} left no checkpoint; delete {folder} and repeat")
    return Path(result.checkpoint.path)


def _worker(settings: dict[str, Any]) -> str | None:
    """One Ray Train worker; returns what went wrong if the loss diverged."""
    import ray.train
    import ray.train.torch

    from dclip.paths import write_text
    from dclip.training import (
        DivergenceError,
        EpochReport,
        build_model,
        build_optimizer,
        fit,
        hold_out,
    )
    from pipeline.checkpoints import read_state, write_state
    from pipeline.features import open_features

    config = TrainConfig.model_validate(settings["train"])
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    reader = open_features(settings["features"], Path(settings["output"]), verify=False)
    texts = reader.text_features()[0].to(device)
    rows, val_rows = hold_out(len(reader), config.val_fraction, seed=settings["seed"])
    model = build_model(config, reader.manifest.dim, seed=settings["seed"]).to(device)
    optimizer = build_optimizer(model, config)
    history_file = Path(settings["folder"]) / _HISTORY
    history: list[dict[str, float]] = []
    done = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            done = read_state(Path(directory), model, optimizer)
        history = _read_history(history_file)[:done]
    if rank == 0:
        write_text(history_file, "".join(json.dumps(line) + "\n" for line in history))

    def on_epoch(report: EpochReport) -> None:
        line = {name: value for name, value in report._asdict().items() if value == value}
        if rank == 0:
            with history_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if report.epoch % config.checkpoint_every and report.epoch != config.epochs:
            return
        with tempfile.TemporaryDirectory() as directory:
            saved = None
            if rank == 0:
                write_state(Path(directory), model, optimizer, report.epoch)
                saved = ray.train.Checkpoint.from_directory(directory)
            ray.train.report(line, checkpoint=saved)

    wrapped = ray.train.torch.prepare_model(model) if workers > 1 else model
    try:
        fit(
            wrapped,
            optimizer,
            reader,
            rows,
            texts,
            config,
            seed=settings["seed"],
            val_rows=val_rows,
            first_epoch=done,
            rank=rank,
            workers=workers,
            on_epoch=on_epoch,
        )
    except DivergenceError as error:
        return str(error)
    return None


def _read_history(path: Path) -> list[dict[str, float]]:
    """Whole lines of a history file; a line that was cut short by a kill is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


@contextmanager
def _follow(path: Path, epochs: int, label: str, tracked: "TrackedRun") -> Iterator[None]:
    """Show and record each epoch while the workers run, from the file that rank 0 writes."""
    from pipeline.progress import progress

    stop = threading.Event()

    def follow() -> None:
        seen = 0
        logged = tracked.last_step("train/loss")  # by an earlier run that was stopped
        with progress(f"train {label}", epochs, "epochs") as bar:
            last_look = False
            while not last_look:
                last_look = stop.wait(0.5)
                history = _read_history(path)
                for line in history[seen:]:
                    if line["epoch"] > logged:
                        tracked.metrics(metric_names(line), step=int(line["epoch"]))
                    note = f"loss {line['loss']:.4f} val/map {_percent(line.get('val_map'))}"
                    bar.advance(1, note)
                seen = max(seen, len(history))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def metric_names(line: Mapping[str, float]) -> dict[str, float]:
    """Line of the history under the names MLflow shows; its plots open on the first one."""
    names = {
        "val/map": "val_map",
        "train/inter_class_cosine": "inter_class_cosine",
        "train/loss": "loss",
        "train/asl": "asl",
        "train/mfi": "mfi",
        "train/lr": "lr",
        "train/images_per_second": "images_per_second",
    }
    return {shown: line[key] for shown, key in names.items() if key in line}


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    from dclip.shards import MANIFEST
    from dclip.training import build_model
    from pipeline.features import describe_backbone, plan_features

    plan = plan_features(config, config.train_split)
    path = checkpoint_path(config, plan)
    model = build_model(config.train, describe_backbone(config).embed_dim, seed=config.seed)
    held = round(plan.num_images * config.train.val_fraction)
    features = "complete" if (plan.folder / MANIFEST).is_file() else "not extracted yet"
    return "\n".join(
        [
            f"features {plan.folder} ({features})",
            f"{plan.num_images - held} images to train on, {held} held out for val/*",
            f"{model.sizes.parameter_count} parameters, {config.train.epochs} epochs, "
            f"preset {config.train.preset}, {config.train.workers} worker(s)",
            f"checkpoint {path} ({'stands' if path.is_file() else 'to be made'})",
        ]
    )


if __name__ == "__main__":
    sys.exit(main("train"))
