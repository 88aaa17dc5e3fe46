"""A trained method, or frozen CLIP, to a file that others run."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dclip.checkpoints.origin import About, read_about
from dclip.exports.description import ExportError, missing_packages
from dclip.provenance import git_commit
from dclip.store.shards import digest, file_digest
from dclip.texts import fold_name
from dclip.words import counted
from pipeline.features.backbone import describe_backbone, warnings_of
from pipeline.records.choice import NoCheckpointError, take_one
from pipeline.records.origin import kind_trained_on
from pipeline.records.report import StageReport, remarks, show, standing, write
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work.plans import ExportPlan

log = logging.getLogger(__name__)

_VERSION = 1  # raise it when the same model gives another file


@dataclass(frozen=True, kw_only=True)
class ExportReport(StageReport):
    """What was written.

    Attributes:
        file: The model.
        format: Of the file.
        what: What goes in.
        bytes: Of the file.
        sha256: Of the file.
        difference: Largest one from the model it was made of, on a few images.
        taken: What was exported, in a line.
        description: What the file says of itself, as in ``model.json``.
        warnings: What a reader has to know.
        identity: Hash of all that the file depends on.
        config: All settings.
        commit: Of the code.
        seconds: How long it took.
    """

    stage = "export"

    file: str
    format: str
    what: str
    bytes: int
    sha256: str
    difference: float
    taken: str
    description: dict[str, Any]
    warnings: list[str]
    identity: str
    config: dict[str, Any]
    commit: str | None
    seconds: float


def plan_export(config: Config) -> ExportPlan:
    """What the settings ask for.

    Raises:
        UsageError: Classes that were not trained, or none where they have to be named; the tower
            where tensors alone are kept; a checkpoint where none is wanted.
        StageError: The checkpoint is missing, damaged, or of another backbone; its method cannot be
            exported; a package is missing.
    """
    wanted = config.export
    what = wanted.what or ("head" if wanted.format == "safetensors" else "image")
    if what == "image" and wanted.format == "safetensors":
        raise UsageError(
            "--format safetensors keeps the tensors of the head, and an image tower is more than "
            "tensors; give --what head, or --format onnx or pt2"
        )
    if missing := missing_packages(wanted.format):
        raise StageError(missing)
    config, checkpoint, about, taken = _take(config)
    backbone = describe_backbone(config)
    kind = "value"
    if checkpoint is not None and about is not None:
        kind = kind_trained_on(checkpoint, about, backbone)
        if about.settings.sees_images():
            raise StageError(
                f"checkpoint {checkpoint} is of {about.settings.name}, which looks at images "
                "itself, through its own pass of CLIP, and cannot be exported; a method on local "
                "features can, such as dclip"
            )
    classes = _classes(config, about)
    weights = None if checkpoint is None else file_digest(checkpoint)
    identity = digest(
        {
            "version": _VERSION,
            "format": wanted.format,
            "what": what,
            "classes": list(classes),
            "weights": weights,
            "features": backbone.space(kind),
        }
    )
    name = "clip" if about is None else about.name.replace(" ", "-")
    return ExportPlan(
        config=config,
        format=wanted.format,
        what=what,
        checkpoint=checkpoint,
        about=about,
        weights=weights,
        kind=kind,
        feature_space=digest(backbone.space(kind)),
        classes=classes,
        taken=taken,
        identity=identity,
        folder=config.output.absolute() / "exports" / f"{name}-{identity[:12]}",
    )


def _take(config: Config) -> tuple[Config, Path | None, About | None, str]:
    """The settings with the backbone that is meant, and the checkpoint if one is exported.

    Raises:
        UsageError: Both a checkpoint and none are asked for, or no class of frozen CLIP is named.
        StageError: There is no checkpoint, or it is damaged.
    """
    wanted = config.export
    if wanted.zero_shot:
        if wanted.checkpoint is not None:
            raise UsageError("--zero-shot takes no --checkpoint; give one of them")
        if not wanted.classes:
            raise UsageError('name the classes of frozen CLIP: --classes "dog, horse, person"')
        return config, None, None, f"frozen CLIP {describe_backbone(config).name} alone"
    config, checkpoint, why = take_one(config, wanted.checkpoint)
    about = read_about(checkpoint)
    if not about.class_names:
        raise StageError(
            f"checkpoint {checkpoint} was trained on captions and knows no classes; it cannot be "
            "exported"
        )
    count = counted(len(about.class_names), "class", "classes")
    return config, checkpoint, about, f"checkpoint {checkpoint} ({why}): {about.name}, on {count}"


def _classes(config: Config, about: About | None) -> tuple[str, ...]:
    """Names of the columns, as they were trained.

    Raises:
        UsageError: One is unknown to the checkpoint, is there twice, or is no name.
    """
    given = [name.strip() for name in config.export.classes]
    if about is None or not given:
        names = given or (about.class_names if about else [])
    else:
        known = {fold_name(name): name for name in about.class_names}
        if strange := [name for name in given if fold_name(name) not in known]:
            raise UsageError(
                f"--classes: the checkpoint was not trained on {strange[0]!r}; it knows "
                f"{', '.join(about.class_names[:8])}{', ...' * (len(about.class_names) > 8)}; "
                "names of your own choice take --zero-shot"
            )
        names = [known[fold_name(name)] for name in given]
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise UsageError(f"--classes: {twice[0]!r} is there twice; leave one of them")
    return tuple(names)


def _standing(plan: ExportPlan) -> ExportReport | None:
    """What was reported of the file, if both stand."""
    report = standing(plan.folder, ExportReport, plan.identity)
    if report is None or report.file != str(plan.file):
        return None
    try:
        is_same = file_digest(plan.file) == report.sha256
    except OSError:
        return None
    return report if is_same else None


def run(config: Config) -> ExportReport:
    """Write the file, compare it with the model, and say how it is run; one that stands is kept."""
    started = time.perf_counter()
    plan = plan_export(config)
    log.info("export: taken: %s", plan.taken)
    report = _standing(plan)
    if report is not None:
        log.info("export: %s stands", plan.file)
    else:
        from pipeline.work import exporting  # torch, which a file that stands does not wait for

        try:
            made = exporting.make(plan)
        except ExportError as error:
            raise StageError(str(error)) from None
        report = ExportReport(
            file=str(plan.file),
            format=plan.format,
            what=plan.what,
            bytes=made.size,
            sha256=file_digest(plan.file),
            difference=made.difference,
            taken=plan.taken,
            description=made.description,
            warnings=warnings_of(plan.config),
            identity=plan.identity,
            config=plan.config.model_dump(mode="json"),
            commit=git_commit(),
            seconds=round(time.perf_counter() - started, 2),
        )
        write(plan.folder, report)
    show(table(report, plan))
    return report


def table(report: ExportReport, plan: ExportPlan) -> str:
    """What was written, and how it is run."""
    told = report.description
    outputs = "; ".join(f"{name} {axes}" for name, axes in told["outputs"].items())
    inputs = "; ".join(f"{name} {axes}" for name, axes in told["inputs"].items())
    example = plan.example.read_text(encoding="utf-8").rstrip()
    lines = [
        f"{plan.file}  ({report.bytes / 2**20:.1f} MB)",
        f"taken: {report.taken}",
        f"in: {inputs.replace(chr(39), '')}",
        f"out: {outputs.replace(chr(39), '')}; scores are of kind {told['scores']}, maps of kind "
        f"{told['maps']}",
        f"largest difference from the model: {report.difference:.1g}",
        *remarks(report.warnings),
        f"how it is run ({plan.example}):",
        *(f"  {line}".rstrip() for line in example.splitlines()),
    ]
    return "\n".join(lines)


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    try:
        plan = plan_export(config)
    except NoCheckpointError as missing:
        return f"missing: {missing}"
    stands = ", which stands" if _standing(plan) else ""
    return (
        f"{plan.what} of {counted(len(plan.classes), 'class', 'classes')} as {plan.format}, to "
        f"{plan.file}{stands}\ntaken: {plan.taken}"
    )
