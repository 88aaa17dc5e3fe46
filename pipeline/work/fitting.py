"""A method that fits itself, in this process and without Ray; and how any training is recorded."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dclip.checkpoints.files import write_checkpoint
from dclip.checkpoints.origin import About
from dclip.fitting.fit import check_source, scores_of
from dclip.methods.method import Method, initial
from dclip.methods.registry import find_method
from dclip.metrics import mean_average_precision
from dclip.words import counted, told
from pipeline.cluster.device import choose_device
from pipeline.features.backbone import clip_of
from pipeline.features.opened import open_features
from pipeline.features.plan import FeaturePlan
from pipeline.records.origin import about_training
from pipeline.records.tracking import TrackedRun, Tracker
from pipeline.records.trainings import metric_names, run_name, run_params, shown_name
from pipeline.settings.config import Config
from pipeline.settings.training import at
from pipeline.terminal.errors import StageError
from pipeline.work.calibrating import calibration_of
from pipeline.work.packs import Job, task_of

log = logging.getLogger(__name__)


def fit_alone(config: Config, plan: FeaturePlan, path: Path) -> None:
    """Let a method fit itself, score it on the held-out images, and write its checkpoint.

    Its history is one line: what the method says of its fit, the number of images, seconds, and
    ``val_map`` where held-out images show a class.

    Args:
        config: Settings.
        plan: Features, of which the clean view is read.
        path: Where the checkpoint goes.

    Raises:
        StageError: Features are missing or damaged, or nothing can be fitted to them.
    """
    device, why = choose_device(config.device)
    folders = plan.folders[:1]
    reader = open_features(folders, config.output)
    names, seeds = reader.class_names, (config.seed,)
    job = Job(
        config.method,
        (at(config, {}),),
        seeds,
        config.data_seed,
        tuple(folders),
        config.output,
        clip=clip_of(config),
        images=plan.listing if config.own.sees_images() else None,
    )
    task = task_of(job, reader, device)
    method = initial(find_method(config.method), config.own, task, seed=config.seed).on(device)
    with tracked(Tracker(config), config, plan) as run:
        started = time.perf_counter()
        try:
            features, rows, held = job.data(job.beside(reader), names)
            check_source(len(names), features, rows)
            log.info("train: %s fits itself to %s on %s (%s); of the settings of the loop only "
                     "val_fraction and data_seed count",
                     config.trained_name, counted(len(rows), "image"), device, why)  # fmt: skip
            said = method.fit(features, rows, seed=config.seed)
        except ValueError as error:
            raise StageError(f"cannot train {config.trained_name}: {told(error)}") from None
        seconds = round(time.perf_counter() - started, 3)
        line = {"epoch": 1.0, "images": len(rows), **said, "seconds": seconds}
        labels = features.labels[held]
        if (labels == 1).any():
            line["val_map"] = mean_average_precision(scores_of(method, features, held), labels)
        about = about_training(
            config, plan, reader.manifest, epoch=1, seed=config.seed, history=[line],
            calibration=calibration_of(method, features, held, config.trained_name),
        )  # fmt: skip
        run.metrics(metric_names(line), step=1)
        keep(run, config, path, method.eval(), about)


@contextmanager
def tracked(tracker: Tracker, config: Config, plan: FeaturePlan) -> Iterator[TrackedRun]:
    """The MLflow run of a training, with its settings and its data."""
    name = run_name(config, plan)
    tags = {"dclip.stage": "train"}
    with tracker.run(shown_name(config, name), key=name, tags=tags) as run:
        run.params(run_params(config, plan))
        source = f"{config.dataset_slug}-{config.train_split}"
        run.dataset(source, plan.folder, plan.fingerprint, "training")
        yield run


def keep(run: TrackedRun, config: Config, path: Path, method: Method[Any], about: About) -> None:
    """Write the checkpoint of a training, and let its MLflow run have it with all settings."""
    write_checkpoint(path, method, about)
    run.artifact(path, "checkpoint")
    run.text(config.model_dump_json(indent=1), "config.json")
