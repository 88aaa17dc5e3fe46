"""One search space to many trials of training, on cached features, compared in MLflow.

A trial runs :func:`dclip.training.fit` in its own process. Only the driver writes to MLflow: a
parent run for the sweep, and a child run for each trial, found again after an interruption.
"""

import csv
import itertools
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import Report, main
from pipeline.config import Config, SweepConfig
from pipeline.errors import StageError, UsageError

if TYPE_CHECKING:
    from pipeline.features import FeaturePlan
    from pipeline.tracking import Tracker

log = logging.getLogger(__name__)

DESCRIPTION = """\
Train many settings of lambda, alpha and the projector dimension, and compare them in MLflow.

examples:
  python -m pipeline.sweep                                the default grid, a few minutes
  python -m pipeline.sweep --mfi-weight 0.05,0.1,0.3 --redundancy-weight 1 --output-dim 32,64
  python -m pipeline.sweep --no-grid --trials 20 --asha   random points, weak ones stopped early
Trials are ranked by val/map, on images held out of the training split; the test split is not
looked at. A sweep that was stopped goes on where it was. Ray restores it with pickle: resume only
sweeps from an output folder that you trust."""


def points(config: SweepConfig, *, seed: int) -> list[dict[str, float | int]]:
    """Settings of all trials, in a fixed order.

    The grid takes every combination once (without MFI, lambda makes no difference and is left
    out); fewer ``trials`` are drawn from it. Random search draws lambda and alpha log-uniformly
    between the smallest and largest positive values given, and one of the dimensions.
    """
    import numpy as np

    random = np.random.default_rng([seed, 3])
    if config.grid:
        first = config.redundancy_weight[0]
        grid = [
            {"redundancy_weight": weight, "mfi_weight": alpha, "output_dim": dim}
            for weight, alpha, dim in itertools.product(
                config.redundancy_weight, config.mfi_weight, config.output_dim
            )
            if alpha > 0 or weight == first
        ]
        if config.trials is None or config.trials >= len(grid):
            return grid
        chosen = sorted(random.choice(len(grid), config.trials, replace=False).tolist())
        return [grid[number] for number in chosen]

    def draw(values: Sequence[float]) -> float:
        positive = [value for value in values if value > 0]
        if not positive:
            raise UsageError("random search needs positive values of lambda and alpha to span")
        low, high = np.log(min(positive)), np.log(max(positive))
        return float(np.exp(random.uniform(low, high)))

    return [
        {
            "redundancy_weight": draw(config.redundancy_weight),
            "mfi_weight": draw(config.mfi_weight),
            "output_dim": int(random.choice(config.output_dim)),
        }
        for _ in range(config.trials or 8)
    ]


def sweep_name(config: Config, plan: "FeaturePlan") -> str:
    """Name of a sweep; a hash of features, recipe, space and seed."""
    from dclip.shards import digest

    swept = {"redundancy_weight", "mfi_weight", "output_dim", "epochs"}
    identity = digest(
        {
            "features": plan.fingerprint,
            **({"views": [view.fingerprint for view in plan.views]} if plan.views else {}),
            "train": config.train.model_dump(exclude=swept),
            "sweep": config.sweep.model_dump(exclude={"concurrency"}),
            "seed": config.seed,
        }
    )
    return f"sweep-{identity[:12]}"


def run(config: Config) -> Report:
    """Run all trials, write table and picture, and print where to compare them."""
    from pipeline import cluster
    from pipeline.features import open_features, plan_features
    from pipeline.tracking import Tracker

    started = time.perf_counter()
    if config.train.val_fraction == 0:
        raise UsageError("a sweep ranks trials by val/map; --train.val-fraction must be above 0")
    plan = plan_features(config, config.train_split)
    open_features(plan.folders, config.output)  # verifies the files once; trials then trust them
    name = sweep_name(config, plan)
    folder = config.output.absolute() / "sweeps" / name
    tracker = Tracker(config)
    tags = {"dclip.stage": "sweep", "dclip.sweep_id": name}
    with tracker.run(name, key=name, tags=tags) as tracked:
        space = config.sweep.model_dump(exclude={"concurrency"})
        tracked.params({f"sweep.{key}": value for key, value in space.items()})
        tracked.dataset(
            f"{config.dataset_slug}-{config.train_split}", plan.folder, plan.fingerprint, "training"
        )
        with cluster.ray_session(config):
            rows = _run_trials(config, plan, name, folder, tracker)
        done = [row for row in rows if row["val_map"] is not None]
        if not done:
            raise StageError(f"all {len(rows)} trials of {name} failed; see {folder}")
        files = _write_results(folder, rows)
        tracked.metrics({"best/val_map": done[0]["val_map"], "trials": float(len(rows))})
        tracked.params({f"best.{key}": done[0][key] for key in _SWEPT})
        for path in files:
            tracked.artifact(path)
    children = tracker.children(name)
    _print_results(rows, files, tracker, children)
    return {
        "stage": "sweep",
        "name": name,
        "trials": rows,
        "best": done[0],
        "failed": len(rows) - len(done),
        "compare_url": tracker.compare_url(children),
        "files": [str(path) for path in files],
        "seconds": round(time.perf_counter() - started, 2),
    }


_SWEPT = ("redundancy_weight", "mfi_weight", "output_dim")


def _run_trials(
    config: Config, plan: "FeaturePlan", name: str, folder: Path, tracker: "Tracker"
) -> list[dict[str, Any]]:
    """Run or restore the trials; one row a trial, best first, failed ones last."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from pipeline import cluster
    from pipeline.progress import progress
    from pipeline.trials import POINT, TrialRuns, trial

    device, why = cluster.choose_device(config.device)
    settings = {
        "train": {**config.train.model_dump(), "epochs": config.sweep.epochs},
        "features": plan.folders,
        "output": str(config.output.absolute()),
        "seed": config.seed,
        "device": device,
    }
    space = points(config.sweep, seed=config.seed)
    need = {"cpu": 1, "gpu": 0.25} if device == "cuda" else {"cpu": 1}
    trainable = tune.with_resources(partial(trial, settings=settings), need)
    epochs = len(space) * config.sweep.epochs
    log.info(
        "sweep: %s: %d trials, %d epochs in all, on %s (%s)", name, len(space), epochs, device, why
    )
    runs = TrialRuns(config, name, tracker)
    scheduler = ASHAScheduler(
        time_attr="epoch", metric="val_map", mode="max", max_t=config.sweep.epochs, grace_period=2
    )
    if tune.Tuner.can_restore(str(folder)):
        log.info("sweep: %s was begun before; finished trials are kept", name)
        tuner = tune.Tuner.restore(
            str(folder), trainable=trainable, param_space={POINT: tune.grid_search(space)}
        )
        callbacks = tuner._local_tuner._run_config.callbacks
        runs = next(callback for callback in callbacks if isinstance(callback, TrialRuns))
        runs.tracker = tracker
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={POINT: tune.grid_search(space)},
            tune_config=tune.TuneConfig(
                scheduler=scheduler if config.sweep.asha else None,
                max_concurrent_trials=config.sweep.concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(folder.parent),
                callbacks=[runs],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                verbose=0,
            ),
        )
    with progress("sweep", epochs, "epochs") as bar:
        runs.bar = bar
        results = tuner.fit()
    rows = []
    for result in results:
        metrics = result.metrics or {}
        failed = result.error is not None
        rows.append(
            {
                **{key: (result.config or {})[POINT][key] for key in _SWEPT},
                "val_map": None if failed else metrics.get("val_map"),
                "inter_class_cosine": None if failed else metrics.get("inter_class_cosine"),
                "epochs": metrics.get("epoch", 0),
                "error": str(cluster.cause(result.error)).splitlines()[-1] if failed else "",
            }
        )
    return sorted(rows, key=lambda row: -1.0 if row["val_map"] is None else -row["val_map"])


def _write_results(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Table of all trials as CSV, and its picture."""
    from dclip.paths import atomic_write
    from pipeline import figures

    table = folder / "trials.csv"
    with (
        atomic_write(table) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    picture = folder / "trials.png"
    figures.save(figures.sweep_trials([row for row in rows if row["val_map"] is not None]), picture)
    return [table, picture]


def _print_results(
    rows: Sequence[Mapping[str, Any]],
    files: Sequence[Path],
    tracker: "Tracker",
    children: Sequence[str],
) -> None:
    lines = [f"{'lambda':>9}{'alpha':>9}{'dim':>6}{'val mAP':>9}{'cosine':>9}{'epochs':>8}"]
    for row in rows:
        scores = (
            "   failed: " + row["error"]
            if row["val_map"] is None
            else f"{100 * row['val_map']:9.1f}{row['inter_class_cosine']:9.3f}{row['epochs']:8d}"
        )
        lines.append(
            f"{row['redundancy_weight']:9.3g}{row['mfi_weight']:9.3g}{row['output_dim']:6d}{scores}"
        )
    lines += [str(path) for path in files]
    lines += [f"compare the trials: {tracker.ui_command}", f"  {tracker.compare_url(children)}"]
    sys.stdout.write("\n".join(lines) + "\n")


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    from pipeline.features import is_complete, plan_features

    plan = plan_features(config, config.train_split)
    space = points(config.sweep, seed=config.seed)
    lines = [
        f"features {plan.folder} ({'complete' if is_complete(plan) else 'not extracted yet'})",
        f"{sweep_name(config, plan)}: {len(space)} trials of {config.sweep.epochs} epochs",
        *(" ".join(f"{key}={value:g}" for key, value in point.items()) for point in space),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main("sweep"))
