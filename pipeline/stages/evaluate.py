"""Checkpoints and shards to a report: what methods gain over frozen CLIP.

All rows of the report are methods: those of the checkpoints, and beside them ``zero_shot`` (CLIP's
global embedding), ``zero_shot_local`` (best location of frozen local features) and ``linear_probe``
(a linear map, then the maximum over locations).
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip.checkpoints.origin import read_about
from dclip.methods.registry import find_settings
from dclip.methods.settings import MethodSettings, of_preset
from dclip.provenance import git_commit
from dclip.store.shards import ShardError, digest, file_digest, read_manifest
from dclip.words import counted
from pipeline.features.backbone import describe_backbone, warnings_of
from pipeline.features.copies import local_folders
from pipeline.features.plan import FeaturePlan, is_complete, plan_features
from pipeline.features.splits import tested_on_train
from pipeline.pictures.looks import title_of
from pipeline.records.choice import (
    NoCheckpointError,
    given_files,
    names_of,
    own_checkpoint,
    take_checkpoint,
)
from pipeline.records.report import (
    Record,
    Recorded,
    StageReport,
    folder_of,
    record,
    remarks,
    show,
    standing,
    write,
)
from pipeline.records.trainings import of_subset
from pipeline.settings.config import Config
from pipeline.settings.training import at, require_all_classes
from pipeline.terminal.errors import StageError, UsageError
from pipeline.terminal.pages import page
from pipeline.terminal.table import Column, aligned

log = logging.getLogger(__name__)


_FORMAT = 2
BASELINES = ("zero_shot", "zero_shot_local", "linear_probe")
"""Methods of a report that need no checkpoint."""

# rows whose cosine is that of CLIP's own texts
_CLIP = {"zero_shot": "clip", "zero_shot_local": "clip", "zero_shot_pooled": "clip"}


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(StageReport):
    """Scores of methods on the test split.

    Attributes:
        dataset: Name or place of the data.
        split: What was scored.
        images: Their number.
        class_names: In column order.
        threshold: From which a class counts as predicted.
        systems: Metrics of every method, by what it is called.
        curves: Reliability of its probabilities, and precision over recall.
        inter_class_cosine: Mean cosine between classes of the texts that a method has; of frozen
            CLIP as ``clip``. None of a single class.
        similarity: Readings of how alike the classes of each checkpoint are.
        features: Fingerprint of the features.
        checkpoints: Files by what they are called.
        trained: What each was trained to, in words.
        test_on_train: Whether the images are those that were trained on.
        test_fraction: Share of a split that was set apart for tests, if that is how it was made.
        split_seed: Of that share.
        warnings: What a reader has to know.
        notes: How the split was read.
        commit: Of the code.
        config: All settings.
        identity: Hash of all that its numbers depend on.
        scenes: Images of the activation maps.
        mlflow: Where MLflow has it; None before it is there.
        figures: Files of the pictures.
        seconds: How long it took.
    """

    stage = "evaluate"

    dataset: str
    split: str
    images: int
    class_names: list[str]
    threshold: float
    systems: dict[str, dict[str, Any]]
    curves: dict[str, dict[str, Any]]
    inter_class_cosine: dict[str, float | None]
    similarity: dict[str, dict[str, float]]
    features: str
    checkpoints: dict[str, str]
    trained: dict[str, str]
    test_on_train: bool
    test_fraction: float | None
    split_seed: int | None
    warnings: list[str]
    notes: list[str]
    commit: str | None
    config: dict[str, Any]
    identity: str
    scenes: int
    mlflow: Recorded | None
    figures: list[str]
    seconds: float


def baselines(config: Config) -> dict[str, MethodSettings]:
    """Methods that stand beside every checkpoint: frozen CLIP, and the probe if it is asked for."""
    frozen = ("zero_shot_pooled",) if config.evaluate.zero_shot_pooled else ()
    names = (*BASELINES[:-1], *frozen, *(BASELINES[-1:] if config.evaluate.linear_probe else ()))
    own = {"linear_probe": {"epochs": config.evaluate.probe_epochs}}
    found = {name: find_settings(name).model_validate(own.get(name, {})) for name in names}
    if config.evaluate.tagclip is not None:
        found["tagclip"] = of_preset(find_settings("tagclip"), config.evaluate.tagclip)[1]
    return found


def require_offered(config: Config) -> None:
    """Refuse a baseline that looks into a backbone which does not let it.

    Raises:
        UsageError: It does not.
    """
    if config.evaluate.tagclip is None:
        return
    backbone = describe_backbone(config)
    if "attention" not in backbone.offers:
        raise UsageError(
            f"--evaluate.tagclip needs a ViT that gives its attention, which {backbone.name} is "
            "not; leave it out, or take --backbone ViT-B-16"
        )


def run(config: Config) -> EvaluateReport:
    """Score the given checkpoints, or the one that these settings train."""
    require_all_classes([at(config, {})])
    plan_features(config, config.test_split)  # what cannot be scored is refused before all else
    return publish(
        config, given_files(config.evaluate.checkpoint, config) or [take_checkpoint(config)]
    )


def publish(config: Config, checkpoints: Sequence[Path]) -> EvaluateReport:
    """Evaluate, draw, write report and figures, record them in MLflow, and print the table.

    What stands is not made again: the report of the same settings and files, figures, records.
    """
    require_offered(config)
    plan = plan_features(config, config.test_split)
    files = _named(checkpoints)
    own = identity(config, files, plan)
    folder = folder_of(config, f"{config.dataset_slug}-{config.test_split}-{own[:12]}")
    kept = None if config.evaluate.anew else standing(folder, EvaluateReport, own)
    if kept is None:
        log.info("evaluate: %s of %s", config.test_split, config.dataset)
        report = _make(config, plan, files, folder, own)
    else:
        log.info("evaluate: nothing to do, %s stands (--evaluate.anew makes it again)",
                 folder / "report.json")  # fmt: skip
        drawn = [folder / Path(figure).name for figure in kept.figures]  # may have moved
        report = replace(
            kept,
            checkpoints={name: str(path) for name, path in files.items()},
            figures=list(map(str, drawn)),
        )
        if kept.scenes != config.evaluate.scenes or not all(path.is_file() for path in drawn):
            report = _make(config, plan, files, folder, own, report)
    if report != kept:
        write(folder, report)
    recorded = report.mlflow
    if recorded is None or not recorded.is_of(config):
        recorded = record(config, _record(config, plan, folder, report))
        report = replace(report, mlflow=recorded)
        write(folder, report)
    show(table(report), f"report and figures: {folder}", *recorded.lines())
    return report


def _make(
    config: Config,
    plan: FeaturePlan,
    files: Mapping[str, Path],
    folder: Path,
    own: str,
    kept: EvaluateReport | None = None,
) -> EvaluateReport:
    """The report and its pictures; of one that stands the pictures only."""
    from pipeline.work import evaluation

    started = time.perf_counter()
    scored, scenes = None, config.evaluate.scenes
    if kept is None:
        scored = evaluation.evaluate(config, plan, files, baselines(config))
        kept = EvaluateReport(
            dataset=config.dataset,
            split=config.test_split,
            images=scored.images,
            class_names=scored.class_names,
            threshold=config.evaluate.threshold,
            systems=scored.systems,
            curves=scored.curves,
            inter_class_cosine=_shared(scored.cosines),
            similarity=scored.similarity,
            features=scored.features,
            checkpoints={name: str(path) for name, path in files.items()},
            trained=scored.trained,
            test_on_train=tested_on_train(config),
            test_fraction=config.test_fraction,
            split_seed=None if config.test_fraction is None else config.split_seed,
            warnings=warnings_of(config),
            notes=list(plan.notes),
            commit=git_commit(),
            config=config.model_dump(mode="json"),
            identity=own,
            scenes=scenes,
            mlflow=None,
            figures=[],
            seconds=0.0,
        )
    data = f"{Path(kept.dataset).name} {kept.split}, {kept.images:,} images"
    if kept.test_on_train:
        data += ", TRAINED ON THESE"
    drawn = evaluation.draw(config, plan, files, folder, data, kept.systems, kept.curves, scored)
    seconds = round(time.perf_counter() - started, 2) if scored else kept.seconds
    figures = list(map(str, drawn))
    return replace(kept, figures=figures, scenes=scenes, mlflow=None, seconds=seconds)


def _shared(cosines: Mapping[str, float | None]) -> dict[str, float | None]:
    """Cosines by system, where those that look at CLIP's own texts are one."""
    return {_CLIP.get(name, name): cosine for name, cosine in cosines.items()}


def table(report: EvaluateReport) -> str:
    """The report as a table for people, in percent."""
    columns = [
        Column("", width=32, is_left=True),
        *(Column(title, ".1f", 100, width=5) for title in ("mAP", "CF1", "OF1", "C-P")),
        *(Column(title, ".1f", 100, width=6) for title in ("CF1 t", "OF1 t", "ECE", "ECE c")),
        Column("cosine", ".3f", width=7),
    ]
    rows = [
        (
            title_of(name),
            *(row.get(key) for key in ("map", "cf1", "of1", "class_precision")),
            *(row.get(key) for key in ("cf1_chosen", "of1_chosen", "ece", "ece_calibrated")),
            report.inter_class_cosine.get(_CLIP.get(name, name)),
        )
        for name, row in report.systems.items()
    ]
    lines = [
        *aligned(columns, rows),
        f"{report.dataset} {report.split}, {counted(report.images, 'image')}; scores in percent",
        "CF1, OF1: F1 from means over classes and from pooled counts; C-P: mean precision of "
        f"classes; predicted above {report.threshold:g}",
        "CF1 t, OF1 t: at the thresholds that a checkpoint keeps; ECE: calibration error of its "
        "probabilities, ECE c: of calibrated ones",
        "cosine: mean between classes, positive prompts, raw, BatchNorm in evaluation mode, "
        "diagonal out",
        f"(all explained in {page('method')}, Metrics)",
        *(f"{name}: {path} ({report.trained[name]})" for name, path in report.checkpoints.items()),
        *remarks(report.warnings, report.notes),
    ]
    return "\n".join(lines)


def identity(config: Config, files: Mapping[str, Path], plan: FeaturePlan) -> str:
    """Hash of all that a number of a report depends on, and of nothing else.

    Args:
        config: Settings.
        files: Checkpoints by name; what is in them counts, not where they lie.
        plan: Features to score; as they are, with what an extraction left out.

    Raises:
        StageError: Features or checkpoints are missing.
    """
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
    if own.zero_shot_pooled:
        content["zero_shot_pooled"] = True
    if own.tagclip is not None:
        content["tagclip"] = baselines(config)["tagclip"].model_dump(mode="json")
    if own.linear_probe:
        content["probe"] = {
            "train": _content(config, plan_features(config, config.train_split)),
            "epochs": own.probe_epochs,
            "seed": config.seed,
            "data_seed": config.data_seed,
            "val_fraction": config.train.val_fraction,
            **of_subset(config.subset),
        }
    return digest(content)


def _content(config: Config, plan: FeaturePlan) -> list[Any]:
    """What the features of a plan hold: checksums of their shards, texts and labels."""
    try:
        manifest = read_manifest(local_folders(plan.folders[:1], config.output)[0])
    except ShardError as error:
        raise StageError(str(error)) from None
    return [manifest.class_names, [entry.sha256 for entry in manifest.shards], manifest.files]


def _named(checkpoints: Sequence[Path]) -> dict[str, Path]:
    """Checkpoints by what the report calls them."""
    names = names_of({path: read_about(path).name for path in checkpoints}, ("clip", *BASELINES))
    return {names[path]: path for path in checkpoints}


def _record(config: Config, plan: FeaturePlan, folder: Path, report: EvaluateReport) -> Record:
    """What MLflow keeps of a report."""
    tags = {"dclip.stage": "evaluate", "dclip.test_on_train": str(report.test_on_train).lower()}
    if config.test_fraction is not None:
        tags |= {
            "dclip.test_fraction": repr(config.test_fraction),
            "dclip.split_seed": str(config.split_seed),
        }
    settings = config.model_dump(include={"dataset", "test_split", "backbone", "pretrained"})
    return Record(
        label="evaluate " + " ".join(report.checkpoints),
        key=folder.name,
        tags=tags,
        seconds=report.seconds,
        params={**settings, "features": report.features[:12], "threshold": report.threshold},
        features=(f"{config.dataset_slug}-{config.test_split}", plan.folder, report.features),
        metrics=_metrics(report),
        files=[folder / "report.json"],
        figures=[Path(figure) for figure in report.figures],
        texts={"config.json": config.model_dump_json(indent=1)},
    )


def _metrics(report: EvaluateReport) -> dict[str, float | None]:
    """What MLflow shows of a report: test/map/dclip, test/inter_class_cosine/clip, ..."""
    metrics = {
        f"test/{name}/{system}": value
        for system, row in report.systems.items()
        for name, value in row.items()
        if name != "ap"
    }
    cosines = report.inter_class_cosine.items()
    return metrics | {f"test/inter_class_cosine/{system}": value for system, value in cosines}


def describe(config: Config, checkpoints: Sequence[Path] = ()) -> str:
    """The plan of this stage in words, for ``--dry-run``; of given checkpoints, made or not."""
    require_offered(config)

    def state(plan: FeaturePlan) -> str:
        return "stands" if is_complete(plan) else "missing, pipeline.extract makes it"

    files = [*checkpoints] or given_files(config.evaluate.checkpoint, config)
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
