"""Features and labels to a report of what is likely wrong with them.

Three questions: which labels are wrong or missing, which images are copies, and which classes are
scored wrongly because another is there.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dclip.methods.registry import find_settings
from dclip.provenance import git_commit
from dclip.store.paths import write_text
from dclip.store.shards import digest
from dclip.words import counted, short
from pipeline.features.backbone import describe_backbone, warnings_of
from pipeline.features.plan import FeaturePlan, complete_manifest, is_complete, plan_features
from pipeline.features.shown import path_of_image
from pipeline.records import labels_table
from pipeline.records.report import StageReport, folder_of, remarks, show, standing, write
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError, UsageError
from pipeline.terminal.table import Column, aligned, as_csv

log = logging.getLogger(__name__)

_FORMAT = 1
_PRINTED = 10


@dataclass(frozen=True, kw_only=True)
class AuditReport(StageReport):
    """What is likely wrong with a split.

    Attributes:
        dataset: Name or place of the data.
        split: What was looked over.
        others: Splits that should share no image with it.
        images: Their number in the split.
        class_names: In column order.
        rounds: mAP out of fold of each scorer, against the labels as they are.
        wrong: Labels that are there and likely wrong.
        missing: Labels that are likely missing.
        suggested: Unknown labels of which scores are sure.
        issues: The first of them, as in ``label_issues.csv``.
        copies: Pairs of copies within the split.
        leaks: Pairs of copies in two splits.
        pairs: The first of them, as in ``copies.csv``.
        taking: Pairs of classes of which one is surely scored wrongly where the other is there.
        stealing: The first of them, as in ``stealing.csv``.
        backbone: Name of the frozen CLIP.
        features: Fingerprint of the features.
        labels_table: Labels with what is suggested; None where none was asked for.
        warnings: What a reader has to know.
        notes: What could not be looked at, and how the split was read.
        commit: Of the code.
        config: All settings.
        identity: Hash of all that its numbers depend on.
        figures: Files of the pictures.
        seconds: How long it took.
    """

    stage = "audit"

    dataset: str
    split: str
    others: list[str]
    images: int
    class_names: list[str]
    rounds: dict[str, float]
    wrong: int
    missing: int
    suggested: int
    issues: list[dict[str, Any]]
    copies: int
    leaks: int
    pairs: list[dict[str, Any]]
    taking: int
    stealing: list[dict[str, Any]]
    backbone: str
    features: str
    labels_table: str | None
    warnings: list[str]
    notes: list[str]
    commit: str | None
    config: dict[str, Any]
    identity: str
    figures: list[str]
    seconds: float


def plan_audit(config: Config) -> tuple[FeaturePlan, list[FeaturePlan]]:
    """Features of the split that is looked over, and of the others as far as they stand.

    Raises:
        UsageError: An unknown split, a scorer that is fed images, or a table that cannot be
            written.
        StageError: There are no features of the split.
    """
    wanted = config.audit
    split = wanted.split or config.train_split
    for name in wanted.scorers:
        try:
            settings = find_settings(name)
        except ValueError as error:
            raise UsageError(f"--scorers: {error}") from None
        if settings().sees_images() or settings.needs_gradients or settings().own_texts():
            raise UsageError(
                f"--scorers {name}: it is fed more than features; take linear_probe or dclip"
            )
    plan = plan_features(config, split)
    if not is_complete(plan):
        raise StageError(
            f"no features of split {split!r} at {plan.folder}; make them by python -m "
            "pipeline.extract with the same settings"
        )
    others = []
    for name in dict.fromkeys((config.train_split, config.test_split)):
        if name == split or config.test_on_train:
            continue
        try:
            other = plan_features(config, name)
        except (ValueError, OSError):
            continue
        if is_complete(other):
            others.append(other)
        else:
            log.info("audit: no features of split %r, where copies are not looked for", name)
    if wanted.write_labels is not None:
        images = [path_of_image(plan.listing, index) for index in range(plan.num_images)]
        labels_table.require_place(wanted.write_labels, images, flag="--write-labels")
    return plan, others


def run(config: Config) -> AuditReport:
    """Look the split over, write and draw what is found, and print a summary.

    What stands is not made again, unless a table of labels is asked for.
    """
    started = time.perf_counter()
    plan, others = plan_audit(config)
    own = _identity(config, plan, others)
    folder = folder_of(config, f"audit-{config.dataset_slug}-{plan.listing.split}-{own[:12]}")
    is_asked = config.audit.anew or config.audit.write_labels is not None
    kept = None if is_asked else standing(folder, AuditReport, own)
    if kept is not None and all(Path(figure).is_file() for figure in kept.figures):
        log.info("audit: nothing to do, %s stands (--anew makes it again)", folder / "report.json")
        show(table(kept), f"tables and pictures: {folder}")
        return kept
    from pipeline.work import audit, audit_tables

    found = audit.audit(config, plan, others)
    folder.mkdir(parents=True, exist_ok=True)
    figures = audit.draw(config, [plan, *others], found, folder)
    plans = {one.listing.split: one for one in (plan, *others)}
    tables = audit_tables.tables_of(plans, found)
    for name, rows in tables.items():
        write_text(folder / f"{name}.csv", as_csv(_COLUMNS[name], rows))
    if config.audit.write_labels is not None:
        audit_tables.write_corrected(config.audit.write_labels, plan, found)
    report = AuditReport(
        dataset=config.dataset,
        split=plan.listing.split,
        others=[other.listing.split for other in others],
        images=len(found.reader),
        class_names=list(found.reader.class_names),
        rounds=found.rounds,
        wrong=int((found.issues.given == 1).sum()),
        missing=int((found.issues.given == 0).sum()),
        suggested=len(tables["suggestions"]),
        issues=tables["label_issues"][:100],
        copies=sum(not one.is_leak for one in found.copies),
        leaks=sum(one.is_leak for one in found.copies),
        pairs=tables["copies"][:100],
        taking=len(found.taking),
        stealing=tables["stealing"][:100],
        backbone=describe_backbone(config).name,
        features=plan.fingerprint,
        labels_table=None if config.audit.write_labels is None else str(config.audit.write_labels),
        warnings=warnings_of(config),
        notes=[*found.notes, *plan.notes],
        commit=git_commit(),
        config=config.model_dump(mode="json"),
        identity=own,
        figures=list(map(str, figures)),
        seconds=round(time.perf_counter() - started, 2),
    )
    write(folder, report)
    show(table(report), f"tables and pictures: {folder}")
    return report


def _identity(config: Config, plan: FeaturePlan, others: Sequence[FeaturePlan]) -> str:
    """Hash of all that a report depends on."""
    contents: list[Any] = []
    for one in (plan, *others):
        manifest = complete_manifest(one)
        assert manifest is not None
        contents.append([one.listing.split, [entry.sha256 for entry in manifest.shards]])
        contents.append([manifest.files])
    own = config.audit.model_dump(mode="json", exclude={"write_labels", "anew"})
    seeds = [config.seed, config.data_seed]
    return digest({"format": _FORMAT, "features": contents, "settings": own, "seeds": seeds})


_COLUMNS = {
    "label_issues": ["rank", "key", "class", "why", "given", "probability", "path"],
    "suggestions": ["key", "class", "suggested", "probability", "path"],
    "copies": [
        "leak", "split_1", "key_1", "split_2", "key_2", "agreement", "cosine", "same_bytes",
        "path_1", "path_2",
    ],
    "stealing": [
        "kind", "present", "scored", "wrong_with", "images_with", "wrong_without",
        "images_without", "difference", "low", "high",
    ],
}  # fmt: skip


def table(report: AuditReport) -> str:
    """A summary for people."""
    scores = ", then ".join(f"{name} {100 * value:.1f}" for name, value in report.rounds.items())
    lines = [
        f"{report.dataset} {report.split}: {counted(report.images, 'image')}, "
        f"{counted(len(report.class_names), 'class', 'classes')}; mAP out of fold, %: {scores}",
        f"labels that are likely wrong: {report.wrong:,}; likely missing: {report.missing:,}"
        + (f"; unknown, with a suggestion: {report.suggested:,}" if report.suggested else ""),
    ]
    columns = [
        Column("", width=3),
        Column("class", width=16, is_left=True),
        Column("why", width=7, is_left=True),
        Column("probability", ".4f"),
        Column("image", is_left=True),
    ]
    rows = [
        (str(one["rank"]), short(one["class"], 24), one["why"], one["probability"],
         short(one["key"], 48))
        for one in report.issues[:_PRINTED]
    ]  # fmt: skip
    lines += aligned(columns, rows, indent="  ") if rows else []
    beside = f", and {report.leaks:,} with {', '.join(report.others)}" if report.others else ""
    lines.append(f"pairs of copies: {report.copies:,} within {report.split}{beside}")
    if report.leaks:
        lines.append(
            f"warning: {counted(report.leaks, 'pair')} of copies in two splits: a score on one says"
            " less than it seems"
        )
    for one in report.pairs[:_PRINTED]:
        places = " = ".join(f"{one[f'split_{n}']} {short(one[f'key_{n}'], 32)}" for n in (1, 2))
        lines.append(f"  {one['agreement']:.3f}  {places}")
    lines.append(f"pairs of classes of which one surely takes from the other: {report.taking:,}")
    for one in report.stealing[:_PRINTED]:
        verb = {"lights": "lights up", "hides": "hides"}[one["kind"]]
        share = one["wrong_with"] / one["images_with"]
        other = one["wrong_without"] / one["images_without"]
        lines.append(
            f"  {one['present']} {verb} {one['scored']}: wrong in {share:.1%} of "
            f"{one['images_with']:,} with it, {other:.1%} of {one['images_without']:,} without"
        )
    return "\n".join([*lines, *remarks(report.warnings, report.notes)])


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    plan, others = plan_audit(config)
    lines = [
        f"labels of {counted(plan.num_images, 'image')} of {plan.listing.split}, {plan.folder}",
        f"scored in {config.audit.folds} folds by {', then '.join(config.audit.scorers)}",
        "copies within " + ", and with ".join(p.listing.split for p in (plan, *others)),
    ]
    if config.audit.write_labels is not None:
        lines.append(f"labels with what is suggested to {config.audit.write_labels}")
    return "\n".join(lines)
