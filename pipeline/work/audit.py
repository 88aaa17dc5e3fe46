"""Labels, copies and classes that take from each other, out of features."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from dclip.data.listing import Listing
from dclip.fitting.drawn import with_labels
from dclip.fitting.fit import DivergenceError
from dclip.fitting.out_of_fold import draw_folds, out_of_fold, platt_scaled, without
from dclip.logits import kept_sigmoid
from dclip.methods.method import Task
from dclip.methods.registry import find_method, find_settings
from dclip.methods.settings import of_preset
from dclip.metrics import mean_average_precision
from dclip.metrics.label_issues import LabelIssues, confidence_of, label_issues, sure_labels
from dclip.metrics.stealing import (
    Shares,
    Stealing,
    difference_interval,
    matched_thresholds,
    stealing,
)
from dclip.neighbours import agreement, groups_of, mean_directions, nearest_pairs
from dclip.pictures.canvas import heading, one_line, save
from dclip.store.reader import FeatureReader
from dclip.words import counted, told
from pipeline.cluster.device import choose_device
from pipeline.features.duplicates import find_overlap
from pipeline.features.opened import open_features
from pipeline.features.plan import FeaturePlan
from pipeline.features.shown import look_at
from pipeline.pictures.contact_sheet import Row, Shot, contact_sheet, shot_of
from pipeline.pictures.stealing_figures import stealing_map
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress

log = logging.getLogger(__name__)

_ROWS = 256  # images that are read at once
_FEWEST = 10  # images of a pair of classes, below which nothing is said of it


@dataclass(frozen=True, order=True)
class Seen:
    """An image of features: its split, row and key there, and its place in the listing."""

    split: str
    row: int
    key: str
    index: int


@dataclass(frozen=True)
class Copy:
    """Two images that are copies of one picture, or nearly.

    Attributes:
        first: One of them.
        second: The other.
        agreement: Mean over locations of the cosine there.
        cosine: Of their global embeddings.
        same_bytes: Whether their files are the same; None where that was not compared.
    """

    first: Seen
    second: Seen
    agreement: float
    cosine: float
    same_bytes: bool | None

    @property
    def is_leak(self) -> bool:
        """Whether they are in two splits."""
        return self.first.split != self.second.split


@dataclass(frozen=True)
class Taking:
    """A class that is scored wrongly more often where another is there.

    Attributes:
        kind: ``lights``: absent, and scored present; ``hides``: present, and scored absent.
        present: Class that is there.
        scored: Class that is scored.
        wrong_with: Errors in images that have the former.
        images_with: Those images.
        wrong_without: Errors in the others.
        images_without: The others.
        difference: Share of errors with it less that without.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    kind: str
    present: str
    scored: str
    wrong_with: int
    images_with: int
    wrong_without: int
    images_without: int
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Audited:
    """What was found in a split.

    Attributes:
        reader: Its features.
        probabilities: Calibrated, out of fold.
        rounds: mAP of each scorer, out of fold, against the labels that are given.
        issues: Labels that are likely wrong.
        suggested: 1 or 0 for unknown labels that scores are sure of; -1 for all others.
        copies: Within the split, then with the others; those that agree most first.
        errors: Of every class, by the presence of every other.
        taking: Pairs of classes, the surest first.
        notes: What could not be looked at.
    """

    reader: FeatureReader
    probabilities: Tensor
    rounds: dict[str, float]
    issues: LabelIssues
    suggested: Tensor
    copies: list[Copy]
    errors: Stealing
    taking: list[Taking]
    notes: list[str]


def audit(config: Config, plan: FeaturePlan, others: Sequence[FeaturePlan]) -> Audited:
    """Look a split over.

    Args:
        config: Settings.
        plan: Features of the split.
        others: Of splits that should share no image with it.

    Raises:
        StageError: Features are missing or damaged, or cannot train a scorer.
    """
    wanted = config.audit
    reader = open_features(plan.folders[:1], config.output)
    copies, notes = find_copies(config, [plan, *others])
    inside = np.array(
        [[one.first.row, one.second.row] for one in copies if not one.is_leak],
        np.int64,
    ).reshape(-1, 2)
    try:
        folds = draw_folds(groups_of(len(reader), inside), wanted.folds, seed=config.data_seed)
        probabilities, rounds, issues = score(config, reader, folds)
    except (ValueError, DivergenceError) as error:
        raise StageError(f"cannot score {plan.listing.split!r}: {told(error)}") from None
    labels = reader.labels
    sure = sure_labels(probabilities, confidence_of(probabilities, labels))
    found = stealing(probabilities >= matched_thresholds(probabilities, labels), labels)
    return Audited(
        reader=reader,
        probabilities=probabilities,
        rounds=rounds,
        issues=issues,
        suggested=torch.where(labels == -1, sure, torch.tensor(-1, dtype=torch.int8)),
        copies=copies,
        errors=found,
        taking=taking_of(found, reader.class_names),
        notes=notes,
    )


def score(
    config: Config, reader: FeatureReader, folds: Int64[np.ndarray, " images"]
) -> tuple[Tensor, dict[str, float], LabelIssues]:
    """Calibrated probabilities out of fold, mAP of every scorer, and labels that they doubt.

    Raises:
        ValueError: The features cannot train a scorer.
    """
    wanted, labels = config.audit, reader.labels
    device, why = choose_device(config.device)
    task = Task.of_features(reader.class_names, *reader.text_features())
    task = replace(task, sigmoid=kept_sigmoid(reader.manifest.spec))
    left, rounds = labels, {}
    total = len(reader) * len(wanted.scorers)
    log.info(
        "audit: %s in %d folds, scored by %s on %s (%s)",
        counted(len(reader), "image"), wanted.folds, ", then ".join(wanted.scorers), device, why,
    )  # fmt: skip
    with progress("audit", total, "images scored") as bar:
        for name in wanted.scorers:
            settings = find_settings(name)
            loop, own = of_preset(settings, settings.usual_preset())
            kind = find_method(name)
            scores = out_of_fold(
                kind,
                own,
                loop.model_copy(
                    update={
                        "epochs": wanted.epochs,
                        "warmup_epochs": min(loop.warmup_epochs, wanted.epochs - 1),
                    }
                ),
                task,
                with_labels(reader, left),
                folds,
                seed=config.seed,
                device=device,
                done=bar.advance,
            )
            rounds[name] = mean_average_precision(scores, labels)
            probabilities = platt_scaled(scores, labels, are_probabilities=kind.gives_probabilities)
            issues = label_issues(probabilities, labels)
            left = without(labels, issues.rows, issues.columns)
    return probabilities, rounds, issues


def taking_of(errors: Stealing, class_names: Sequence[str]) -> list[Taking]:
    """Pairs of classes whose errors depend on each other for certain, the surest first."""
    pairs = []
    for kind, shares in zip(("lights", "hides"), errors, strict=True):
        difference, (low, high) = shares.difference(), difference_interval(shares)
        is_sure = (shares.with_ >= _FEWEST) & (shares.without >= _FEWEST) & (low > 0)
        np.fill_diagonal(is_sure, val=False)
        for a, b in zip(*np.nonzero(is_sure), strict=True):
            counts = (int(part[a, b]) for part in shares)
            numbers = (float(part[a, b]) for part in (difference, low, high))
            pairs.append(Taking(kind, class_names[a], class_names[b], *counts, *numbers))
    return sorted(pairs, key=lambda pair: -pair.low)


def find_copies(config: Config, plans: Sequence[FeaturePlan]) -> tuple[list[Copy], list[str]]:
    """Copies within the first split, and between it and the others.

    Candidates are the nearest images by CLIP's global embedding and by the mean direction of the
    locations; what counts is how far they agree location by location.
    """
    wanted = config.audit
    readers = [open_features(plan.folders[:1], config.output) for plan in plans]
    vectors = [_vectors(reader) for reader in readers]
    means = [own.mean(0) for own in vectors[0]]
    copies, notes = [], []
    for number, (plan, reader) in enumerate(zip(plans, readers, strict=True)):
        candidates = np.unique(
            np.concatenate(
                [
                    nearest_pairs(
                        ours - mean,
                        None if number == 0 else theirs - mean,
                        each=wanted.neighbours,
                    )
                    for ours, theirs, mean in zip(vectors[0], vectors[number], means, strict=True)
                ]
            ),
            axis=0,
        )
        same, note = _same_bytes(plans[0], plan, readers[0], reader)
        notes += note
        splits = plans[0].listing.split, plan.listing.split
        for start in range(0, len(candidates), _ROWS):
            part = candidates[start : start + _ROWS]
            one, other = (
                _locations(of, part[:, side]) for side, of in enumerate((readers[0], reader))
            )
            agreed = agreement(one, other)
            cosines = torch.nn.functional.cosine_similarity(
                readers[0].embeddings(part[:, 0]), reader.embeddings(part[:, 1])
            )
            for at in (agreed >= wanted.copies).nonzero().flatten().tolist():
                first, second = map(int, part[at])
                copies.append(
                    Copy(
                        Seen(
                            splits[0], first, readers[0].keys[first], int(readers[0].indices[first])
                        ),
                        Seen(splits[1], second, reader.keys[second], int(reader.indices[second])),
                        float(agreed[at]),
                        float(cosines[at]),
                        None if same is None else (first, second) in same,
                    )
                )
    return sorted(copies, key=lambda one: (-one.agreement, one.first, one.second)), notes


def _locations(reader: FeatureReader, rows: Int64[np.ndarray, " rows"]) -> Tensor:
    """Local features without the mean token."""
    return reader.local(rows)[:, int(reader.manifest.include_global_token) :]


def _vectors(reader: FeatureReader) -> tuple[Tensor, Tensor]:
    """Mean direction of the locations, and global embedding, of all images."""
    parts = [
        mean_directions(_locations(reader, np.arange(start, min(start + _ROWS, len(reader)))))
        for start in range(0, len(reader), _ROWS)
    ]
    return torch.cat(parts), torch.nn.functional.normalize(reader.embeddings(), dim=-1)


def _same_bytes(
    one: FeaturePlan, other: FeaturePlan, ours: FeatureReader, theirs: FeatureReader
) -> tuple[set[tuple[int, int]] | None, list[str]]:
    """Pairs of rows whose files are the same, as far as that is known, and what is to be told."""
    splits = f"{one.listing.split} and {other.listing.split}"
    try:
        overlap = find_overlap(one.listing, other.listing, everything=False)
    except OSError as error:
        return None, [f"files of {splits} were not compared: {told(error)}"]
    if overlap.compared == "by place":
        return None, []  # drawn, or remote
    row_of = [
        {int(index): row for row, index in enumerate(each.indices)} for each in (ours, theirs)
    ]
    pairs = {
        (row_of[0].get(first, -1), row_of[1].get(second, -1))
        for first, second in (*overlap.copies, *overlap.alike)
    }
    note = [] if overlap.is_whole else [f"files of {splits} were compared {overlap.compared}"]
    return pairs, note


# ---------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------


def draw(config: Config, plans: Sequence[FeaturePlan], found: Audited, folder: Path) -> list[Path]:
    """Draw what was found; files, in the order to look at them.

    Args:
        config: Settings.
        plans: Of the split that was looked over, and of the others.
        found: In it.
        folder: Of the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listing, reader = plans[0].listing, found.reader
    title = f"{config.dataset_slug} {listing.split}, {len(reader):,} images"
    paths = []
    if len(found.issues.rows):
        path = folder / "label_issues.png"
        save(contact_sheet(_issue_rows(config.audit.shown, listing, found), title), path)
        paths.append(path)
    if found.copies:
        path = folder / "copies.png"
        listings = {plan.listing.split: plan.listing for plan in plans}
        across = [one for one in found.copies if one.is_leak]
        within = [one for one in found.copies if not one.is_leak]
        rows = [
            Row(head, _pair_shots(part[: config.audit.shown // 2], listings))
            for head, part in (("in two splits: leakage", across), ("within the split", within))
            if part
        ]
        save(contact_sheet(rows, heading(title, "copies, two by two")), path)
        paths.append(path)
    if found.taking:
        path = folder / "stealing.png"
        save(_stealing_figure(config.audit.pairs, found, title), path)
        paths.append(path)
    return paths


def _issue_rows(most: int, listing: Listing, found: Audited) -> list[Row]:
    issues, reader = found.issues, found.reader
    rows = []
    for head, given in (("labelled, and likely not there", 1), ("likely there, not labelled", 0)):
        shots = []
        for at in np.flatnonzero(issues.given == given)[: most // 2]:
            row, column = int(issues.rows[at]), int(issues.columns[at])
            said = float(found.probabilities[row, column])
            caption = (
                f"{one_line(reader.class_names[column], 24)}\nprobability {said:.3f}\n"
                f"{one_line(reader.keys[row], 26)}"
            )
            shots.append(shot_of(look_at(listing, int(reader.indices[row])), caption))
        if shots:
            rows.append(Row(head, shots))
    return rows


def _pair_shots(copies: Sequence[Copy], listings: dict[str, Listing]) -> list[Shot]:
    shots = []
    for number, one in enumerate(copies, 1):
        for seen in (one.first, one.second):
            caption = (
                f"{number}.  agree {one.agreement:.3f}\n{one_line(seen.split, 26)}\n"
                f"{one_line(seen.key, 26)}"
            )
            shots.append(shot_of(look_at(listings[seen.split], seen.index), caption))
    return shots


def _stealing_figure(most: int, found: Audited, title: str) -> Any:
    names = found.reader.class_names
    column = {name: position for position, name in enumerate(names)}
    shown: dict[int, None] = {}
    for pair in found.taking:
        new = [column[name] for name in (pair.present, pair.scored)]
        if len({*shown, *new}) > most:
            break
        shown |= dict.fromkeys(new)
    order = sorted(shown)

    def part(shares: Shares) -> np.ndarray:
        values = shares.difference()[np.ix_(order, order)]
        np.fill_diagonal(values, np.nan)
        return values

    told_by = (
        "more errors where a is there than where it is not, of the classes of the surest pairs"
    )
    return stealing_map(
        {
            "a lights b: b absent, scored present": part(found.errors.lights),
            "a hides b: b present, scored absent": part(found.errors.hides),
        },
        [names[position] for position in order],
        heading(title, told_by),
    )
