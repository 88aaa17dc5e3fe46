"""Checkpoints and shards to a report: what methods gain over frozen CLIP.

All rows of the report are methods: those of the checkpoints, and beside them ``zero_shot`` (CLIP's
global embedding), ``zero_shot_local`` (best location of frozen local features) and ``linear_probe``
(a linear map, then the maximum over locations).
"""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dclip.words import counted
from pipeline.pictures.looks import title_of
from pipeline.settings.config import Config
from pipeline.terminal.cli import Report, remarks
from pipeline.terminal.errors import StageError
from pipeline.terminal.pages import page

if TYPE_CHECKING:
    from torch import Tensor

    from dclip.methods.method import Method
    from dclip.methods.settings import MethodSettings
    from dclip.store.reader import FeatureReader
    from pipeline.features.plan import FeaturePlan
    from pipeline.records.origin import About

log = logging.getLogger(__name__)


_FORMAT = 1
BASELINES = ("zero_shot", "zero_shot_local", "linear_probe")
"""Methods of a report that need no checkpoint."""

# rows whose cosine is that of CLIP's own texts
_CLIP = {"zero_shot": "clip", "zero_shot_local": "clip"}


def baselines(config: Config) -> "dict[str, MethodSettings]":
    """Methods that stand beside every checkpoint: frozen CLIP, and the probe if it is asked for."""
    from dclip.methods.registry import find_settings

    names = BASELINES if config.evaluate.linear_probe else BASELINES[:-1]
    own = {"linear_probe": {"epochs": config.evaluate.probe_epochs}}
    return {name: find_settings(name).model_validate(own.get(name, {})) for name in names}


def baseline(
    config: Config, name: str, settings: "MethodSettings", test: "FeatureReader"
) -> "Method[Any]":
    """A method that needs no checkpoint; fitted on the training split if it trains itself.

    Raises:
        StageError: Features of the training split are missing or damaged.
    """
    from dclip.fitting.batches import hold_out
    from dclip.methods.method import Task, initial
    from dclip.methods.registry import find_method
    from pipeline.features.opened import open_features
    from pipeline.features.plan import plan_features

    task = Task.of_features(test.class_names, *test.text_features())
    method = initial(find_method(name), settings, task, seed=config.seed)
    if settings.trained_by == "itself":
        train = open_features(plan_features(config, config.train_split).folders[:1], config.output)
        rows, _ = hold_out(len(train), config.train.val_fraction, seed=config.data_seed)
        method.fit(train, rows, seed=config.seed)
    return method.eval()


def measure(scores: "Tensor", labels: "Tensor", threshold: float | None) -> dict[str, Any]:
    """Metrics of one system: AP by class, mAP, and where a threshold means something, F1s.

    A class without a positive has no AP, labels without any no mAP: they are None.

    Args:
        scores: One row an image, one column a class.
        labels: 1, 0, or -1 for unknown.
        threshold: From which a class counts as predicted; None where scores are no probabilities.
    """
    from dclip.metrics import average_precision, f1_scores, mean_average_precision

    ap = average_precision(scores, labels)
    has_positive = bool((labels == 1).any())
    result: dict[str, Any] = {
        "map": mean_average_precision(scores, labels) if has_positive else None,
        "ap": [None if value != value else round(value, 6) for value in ap.tolist()],
    }
    if threshold is not None:
        f1 = f1_scores(scores, labels, threshold=threshold)
        result |= {name: round(float(value), 6) for name, value in f1._asdict().items()}
    return result


def evaluate(
    config: Config, files: "Mapping[str, Path]"
) -> "tuple[Report, dict[str, tuple[Method[Any], About]]]":
    """Compare checkpoints with the baselines on the test split; all of them are methods.

    Args:
        config: Settings; they say where the features are.
        files: Checkpoints to score, by what the report calls them.

    Returns:
        The report, and the methods of the checkpoints.

    Raises:
        StageError: Features or checkpoints are missing, damaged, or do not belong together.
    """
    import numpy as np

    from dclip.fitting.fit import scores_of
    from dclip.metrics import inter_class_cosine
    from pipeline.features.opened import open_features
    from pipeline.features.plan import plan_features, tested_on_train, warnings_of
    from pipeline.records.choice import described
    from pipeline.records.provenance import git_commit

    plan = plan_features(config, config.test_split)
    test = open_features(plan.folders[:1], config.output)
    models = load_models(files, test)
    methods = {
        name: baseline(config, name, settings, test) for name, settings in baselines(config).items()
    } | {name: method for name, (method, _) in models.items()}
    systems, cosines = {}, {}
    similarity: dict[str, Any] = {}
    for name, method in methods.items():
        scores = scores_of(method, test, np.arange(len(test)))
        threshold = config.evaluate.threshold if method.gives_probabilities else None
        systems[name] = measure(scores, test.labels, threshold)
        features = method.class_features()
        if features is not None:  # of one class there is no cosine between classes
            cosine = inter_class_cosine(features) if len(features) > 1 else None
            cosines[_CLIP.get(name, name)] = cosine
        if name in models:
            similarity[name] = method.similarity()
    report = {
        "stage": "evaluate",
        "dataset": config.dataset,
        "split": config.test_split,
        "images": len(test),
        "class_names": list(test.class_names),
        "threshold": config.evaluate.threshold,
        "systems": systems,
        "inter_class_cosine": cosines,
        "similarity": similarity,
        "features": test.manifest.fingerprint,
        "checkpoints": {name: str(path) for name, path in files.items()},
        "trained": {name: described(about) for name, (_, about) in models.items()},
        "test_on_train": tested_on_train(config),
        "test_fraction": config.test_fraction,
        "split_seed": None if config.test_fraction is None else config.split_seed,
        "warnings": warnings_of(config),
        "notes": list(plan.notes),
        "commit": git_commit(),
        "config": config.model_dump(mode="json"),
    }
    return report, models


def load_models(
    files: "Mapping[str, Path]", test: "FeatureReader"
) -> "dict[str, tuple[Method[Any], About]]":
    """Methods of checkpoints by name, each with its origin.

    Raises:
        StageError: One is missing, damaged, or was not made for these features.
    """
    from pipeline.records.checkpoints import check_features, load_checkpoint

    models = {}
    for name, path in files.items():
        method, about = load_checkpoint(path)
        check_features(path, about, test.manifest)
        models[name] = (method, about)
    return models


def table(report: Report) -> str:
    """The report as a table for people, in percent."""
    width = max(32, *(len(name) + 2 for name in report["systems"]))
    lines = [f"{'':{width}}{'mAP':>7}{'CF1':>7}{'OF1':>7}{'C-P':>7}{'cosine':>9}"]
    for name, row in report["systems"].items():
        between = report["inter_class_cosine"].get(_CLIP.get(name, name))
        cells = [row["map"], row.get("cf1"), row.get("of1"), row.get("class_precision")]
        lines.append(
            f"{title_of(name):{width}}"
            + "".join(f"{'-' if cell is None else f'{100 * cell:.1f}':>7}" for cell in cells)
            + f"{'-' if between is None else f'{between:.3f}':>9}"
        )
    lines += [
        f"{report['dataset']} {report['split']}, {counted(report['images'], 'image')}; scores in "
        "percent",
        "CF1, OF1: F1 from means over classes and from pooled counts; C-P: mean precision of "
        f"classes; predicted above {report['threshold']:g}",
        "cosine: mean between classes, positive prompts, raw, BatchNorm in evaluation mode, "
        "diagonal out",
        f"(all explained in {page('method')}, Metrics)",
        *(f"{name}: {path} ({report['trained'][name]})"
          for name, path in report["checkpoints"].items()),
        *remarks(report),
    ]  # fmt: skip
    return "\n".join(lines)


def identity(config: Config, files: "Mapping[str, Path]", plan: "FeaturePlan") -> str:
    """Hash of all that a number of a report depends on, and of nothing else.

    Args:
        config: Settings.
        files: Checkpoints by name; what is in them counts, not where they lie.
        plan: Features to score; as they are, with what an extraction left out.

    Raises:
        StageError: Features or checkpoints are missing.
    """
    from dclip.store.shards import digest, file_digest
    from pipeline.features.plan import plan_features, tested_on_train

    own = config.evaluate
    missing = next((path for path in files.values() if not path.is_file()), None)
    if missing is not None:
        raise StageError(f"no checkpoint at {missing}; train it by python -m pipeline.train")
    content: dict[str, Any] = {
        "format": _FORMAT,
        "test": _content(config, plan),
        "checkpoints": {name: file_digest(path) for name, path in files.items()},
        "threshold": own.threshold,
        "test_on_train": tested_on_train(config),
    }
    if own.linear_probe:
        content["probe"] = {
            "train": _content(config, plan_features(config, config.train_split)),
            "epochs": own.probe_epochs,
            "seed": config.seed,
            "data_seed": config.data_seed,
            "val_fraction": config.train.val_fraction,
        }
    return digest(content)


def _content(config: Config, plan: "FeaturePlan") -> list[Any]:
    """What the features of a plan hold: checksums of their shards, texts and labels."""
    from dclip.store.shards import ShardError, read_manifest
    from pipeline.features.copies import local_folders

    try:
        manifest = read_manifest(local_folders(plan.folders[:1], config.output)[0])
    except ShardError as error:
        raise StageError(str(error)) from None
    return [manifest.class_names, [entry.sha256 for entry in manifest.shards], manifest.files]


def run(config: Config) -> Report:
    """Score the given checkpoints, or the one that these settings train."""
    from pipeline.features.plan import plan_features
    from pipeline.records.choice import given_files, take_checkpoint

    plan_features(config, config.test_split)  # what cannot be scored is refused before all else
    return publish(config, given_files(config.evaluate.checkpoint) or [take_checkpoint(config)])


def publish(config: Config, checkpoints: "list[Path]") -> Report:
    """Evaluate, draw, write report and figures, record them in MLflow, and print the table.

    What stands is not made again: the report of the same settings and files, figures, records.
    """
    from dclip.store.paths import write_text
    from pipeline.features.plan import plan_features

    started = time.perf_counter()
    plan = plan_features(config, config.test_split)
    files = _named(checkpoints)
    own = identity(config, files, plan)
    name = f"{config.dataset_slug}-{config.test_split}-{own[:12]}"
    folder = config.output.absolute() / "reports" / name
    path = folder / "report.json"
    report = None if config.evaluate.anew else _standing(path, own)
    models = None
    if report is None:
        log.info("evaluate: %s of %s", config.test_split, config.dataset)
        report, models = evaluate(config, files)
        report["identity"] = own
        folder.mkdir(parents=True, exist_ok=True)
    else:
        log.info("evaluate: nothing to do, %s stands (--evaluate.anew makes it again)", path)
    before = json.dumps(report)
    report["checkpoints"] = {name: str(path) for name, path in files.items()}  # may have moved
    drawn = [folder / Path(figure).name for figure in report.get("figures", [])]
    scenes = config.evaluate.scenes
    if models or report["scenes"] != scenes or not all(figure.is_file() for figure in drawn):
        drawn = _draw(config, plan, files, folder, report, models)
        report["scenes"], report["mlflow"] = scenes, None
    report["figures"] = [str(figure) for figure in drawn]
    if models:
        report["seconds"] = round(time.perf_counter() - started, 2)
    if json.dumps(report) != before:
        write_text(path, json.dumps(report, indent=1))
    store = {"uri": config.tracking_uri, "experiment": config.experiment_name}
    recorded = report["mlflow"] or {}
    if any(recorded.get(key) != value for key, value in store.items()):
        report["mlflow"] = {**store, **_record(config, plan, folder, report)}
        write_text(path, json.dumps(report, indent=1))
    shown = report["mlflow"]
    sys.stdout.write(f"{table(report)}\nreport and figures: {folder}\n")
    sys.stdout.write(f"look at them in MLflow: {shown['command']}\n  {shown['url']}\n")
    return report


def _named(checkpoints: "list[Path]") -> "dict[str, Path]":
    """Checkpoints by what the report calls them."""
    from pipeline.records.choice import names_of
    from pipeline.records.origin import read_about

    names = names_of({path: read_about(path).name for path in checkpoints}, ("clip", *BASELINES))
    return {names[path]: path for path in checkpoints}


def _standing(path: Path, own: str) -> Report | None:
    """The report of this identity, if it stands."""
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if report.get("identity") == own else None


def _draw(
    config: Config,
    plan: "FeaturePlan",
    files: "Mapping[str, Path]",
    folder: Path,
    report: Report,
    models: "Mapping[str, tuple[Method[Any], About]] | None",
) -> list[Path]:
    """Draw all figures of a report; its models are loaded where they are not at hand."""
    from pipeline.features.opened import open_features
    from pipeline.pictures import figures

    if models is None:
        test = open_features(plan.folders[:1], config.output, verify=False)
        models = load_models(files, test)
    return figures.draw_all(folder, config, plan, report, report["systems"], models)


def _record(
    config: Config, plan: "FeaturePlan", folder: Path, report: Report
) -> dict[str, str | None]:
    """Record a report in MLflow; its run, and how to look at it."""
    from pipeline.records.tracking import Tracker

    tracker = Tracker(config)
    tags = {"dclip.stage": "evaluate", "dclip.test_on_train": str(report["test_on_train"]).lower()}
    if config.test_fraction is not None:
        tags |= {
            "dclip.test_fraction": repr(config.test_fraction),
            "dclip.split_seed": str(config.split_seed),
        }
    label = "evaluate " + " ".join(report["checkpoints"])
    spent = report["seconds"]
    with tracker.run(label, key=folder.name, tags=tags, seconds=spent) as tracked:
        settings = config.model_dump(include={"dataset", "test_split", "backbone", "pretrained"})
        own = {"features": report["features"][:12], "threshold": report["threshold"]}
        tracked.params({**settings, **own})
        source = f"{config.dataset_slug}-{config.test_split}"
        tracked.dataset(source, plan.folder, report["features"], "evaluation")
        tracked.metrics(_metrics(report))
        tracked.artifact(folder / "report.json")
        for figure in report["figures"]:
            tracked.artifact(Path(figure), "figures")
        tracked.text(config.model_dump_json(indent=1), "config.json")
    return {
        "run_id": tracked.run_id,
        "command": tracker.ui_command,
        "url": tracker.experiment_url(),
    }


def _metrics(report: Report) -> dict[str, float]:
    """What MLflow shows of a report: test/map/dclip, test/inter_class_cosine/clip, ..."""
    metrics = {}
    for system, row in report["systems"].items():
        for name, value in row.items():
            if name != "ap" and value is not None:
                metrics[f"test/{name}/{system}"] = value
    for system, value in report["inter_class_cosine"].items():
        if value is not None:
            metrics[f"test/inter_class_cosine/{system}"] = value
    return metrics


def describe(config: Config, checkpoints: Sequence[Path] = ()) -> str:
    """The plan of this stage in words, for ``--dry-run``; of given checkpoints, made or not."""
    from pipeline.features.plan import is_complete, plan_features
    from pipeline.records.choice import (
        NoCheckpointError,
        given_files,
        own_checkpoint,
        take_checkpoint,
    )

    def state(plan: "FeaturePlan") -> str:
        return "stands" if is_complete(plan) else "missing, pipeline.extract makes it"

    files = [*checkpoints] or given_files(config.evaluate.checkpoint)
    try:
        files = files or [take_checkpoint(config)]
    except NoCheckpointError:
        files = [own_checkpoint(config)]
    lines = [
        f"checkpoint {path} ({'stands' if path.is_file() else 'missing, pipeline.train makes it'})"
        for path in files
    ]
    test = plan_features(config, config.test_split)
    lines.append(f"features to score {test.folder} ({state(test)})")
    if config.evaluate.linear_probe:
        train = plan_features(config, config.train_split)
        lines.append(f"features of the probe {train.folder} ({state(train)})")
    return "\n".join(lines)
