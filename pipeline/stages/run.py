"""The whole study: features, a method and its variants, their comparison with frozen CLIP."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from dclip.provenance import git_commit
from pipeline.cluster.address import require_cluster
from pipeline.features.backbone import require_prompts
from pipeline.features.images import require_images
from pipeline.features.plan import is_complete, plan_features
from pipeline.records.trainings import checkpoint_path
from pipeline.settings.config import Config
from pipeline.settings.training import check_trained, compared
from pipeline.stages import evaluate, extract, train
from pipeline.terminal.cli import Report


def run(config: Config) -> Report:
    """Run all stages; the report holds the scores, cosines, seconds by stage, and the settings."""
    for settings in compared(config):  # before an extraction, which may take hours
        check_trained(settings)
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Report]) -> Report:
        started = time.perf_counter()
        report = work()
        seconds[stage] = round(time.perf_counter() - started, 2)
        return report

    is_pending = _is_pending(config)  # splits are refused before a backbone is looked at
    listing = plan_features(config, config.train_split).listing
    require_prompts(config, listing.class_names)  # before features are made of what cannot train
    require_images(listing, [config.own])
    evaluate.require_offered(config)
    with ExitStack() as session:
        if is_pending:
            require_cluster()
            # one start for all stages; where nothing is to be done, Ray is not even loaded
            from pipeline.cluster import session as cluster

            timed("start", lambda: session.enter_context(cluster.ray_session(config)) or {})
        features = timed("extract", partial(extract.run, config))
        trained = timed("train", lambda: {"all": train.run_together(compared(config))})
    checkpoints = [Path(report["checkpoint"]) for report in trained["all"]]
    scored = timed("evaluate", lambda: evaluate.publish(config, checkpoints).to_json())
    return {
        "stage": "run",
        "map": {name: row["map"] for name, row in scored["systems"].items()},
        "inter_class_cosine": scored["inter_class_cosine"],
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "features": features["splits"],
        **{name: scored[name] for name in ("test_on_train", "warnings", "notes")},
        "checkpoints": scored["checkpoints"],
        "figures": scored["figures"],
        "mlflow": scored["mlflow"],
        "config": config.model_dump(mode="json"),
        "commit": git_commit(),
    }


def _is_pending(config: Config) -> bool:
    """Whether any stage has work for Ray."""
    plans = [*extract.all_plans(config)]
    source = plan_features(config, config.train_split)
    left = [
        settings.own.trained_by == "loop"  # others fit themselves without Ray
        for settings in compared(config)
        if not checkpoint_path(settings, source).is_file()
    ]
    return not all(map(is_complete, plans)) or any(left)


def describe(config: Config) -> str:
    """The plan of all stages in words, for ``--dry-run``."""
    parts = [("extract", extract.describe(config))]
    parts += [
        (f"train {settings.trained_name}", train.describe(settings))
        for settings in compared(config)
    ]
    source = plan_features(config, config.train_split)
    made = [checkpoint_path(settings, source) for settings in compared(config)]
    parts += [("evaluate", evaluate.describe(config, made))]
    return "\n".join(f"{stage}:\n  " + text.replace("\n", "\n  ") for stage, text in parts)
