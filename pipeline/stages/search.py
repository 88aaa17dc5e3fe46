"""Queries and shards to the images that are nearest, in tables and pictures."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dclip.data.images import is_image_name
from dclip.provenance import git_commit
from dclip.store.paths import AnyPath, is_remote, write_text
from dclip.store.shards import digest
from dclip.words import counted, short
from pipeline.features.backbone import describe_backbone, warnings_of
from pipeline.features.listings import path_of
from pipeline.features.plan import FeaturePlan, is_complete, plan_features
from pipeline.records.report import StageReport, folder_of, remarks, show, write
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError, UsageError
from pipeline.terminal.table import Column, aligned, as_csv

log = logging.getLogger(__name__)

_PRINTED = 10
_COLUMNS = ("by", "rank", "score", "split", "key", "path", "row", "column")
_MOST_QUERIES = 1000


@dataclass(frozen=True, kw_only=True)
class SearchReport(StageReport):
    """The nearest images to each query.

    Attributes:
        dataset: Name or place of the data.
        splits: What was searched.
        images: Their number.
        queries: Of each: the query, whether it is a text or an image, ``whole`` and ``location``,
            the images by each ranking, the nearest first, and the files of its table and picture.
        backbone: Name of the frozen CLIP.
        features: Fingerprints of the features, by split.
        warnings: What a reader has to know.
        config: All settings.
        commit: Of the code.
        seconds: How long it took.
    """

    stage = "search"

    dataset: str
    splits: list[str]
    images: int
    queries: list[dict[str, Any]]
    backbone: str
    features: dict[str, str]
    warnings: list[str]
    config: dict[str, Any]
    commit: str | None
    seconds: float


def plan_search(config: Config) -> tuple[list[FeaturePlan], list[str | AnyPath]]:
    """Features that are searched, and the queries: texts as they are, images by their paths.

    Raises:
        UsageError: No query, one that is blank, or an unknown split.
        StageError: No features stand, or not those of a split that is named.
    """
    queries = _queries(config.search.queries)
    return standing_plans(config, config.search.split), queries


def standing_plans(config: Config, named: Sequence[str]) -> list[FeaturePlan]:
    """Plans of the features of some splits; if none is named, of the usual two, if they stand.

    Raises:
        StageError: None stands, or not those of a split that is named.
    """
    plans = []
    for split in dict.fromkeys(named or (config.train_split, config.test_split)):
        try:
            plan = plan_features(config, split)
        except (ValueError, OSError):
            if named or split == config.train_split:
                raise
            continue  # features of a training split alone will do
        if is_complete(plan):
            plans.append(plan)
        elif named:
            raise StageError(
                f"no features of split {split!r} at {plan.folder}; make them by python -m "
                f"pipeline.extract --split {split} with the same settings"
            )
        else:
            log.info("search: no features of split %r, which is left out", split)
    if not plans:
        raise StageError(
            f"no features of {config.dataset} to look at; make them by python -m pipeline.extract "
            "with the same settings"
        )
    return plans


def _queries(given: Sequence[str]) -> list[str | AnyPath]:
    if not given:
        raise UsageError('nothing to look for; name a text or an image: "a red bicycle" photo.jpg')
    if len(given) > _MOST_QUERIES:
        raise UsageError(f"{len(given)} queries; {_MOST_QUERIES} is the most")
    queries: list[str | AnyPath] = []
    for query in dict.fromkeys(one.strip() for one in given):
        if not query or not query.isprintable():
            raise UsageError(f"query {query!r} is blank or has control characters")
        if "://" in query or is_image_name(query):
            path = path_of(query)
            if not is_remote(path) and not path.is_file():
                raise UsageError(f"no image {query}; a text does not end like an image's name")
            queries.append(path)
        else:
            queries.append(query)
    return queries


def run(config: Config) -> SearchReport:
    """Search, draw, and write and print the tables."""
    from pipeline.work import search

    started = time.perf_counter()
    plans, queries = plan_search(config)
    log.info("search: %s of %s", " and ".join(plan.listing.split for plan in plans), config.dataset)
    features = {plan.listing.split: plan.fingerprint for plan in plans}
    asked = {"queries": list(map(str, queries)), "settings": config.search.model_dump(mode="json")}
    own = digest({"features": features, **asked})
    folder = folder_of(config, f"search-{config.dataset_slug}-{own[:12]}")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03d}-{_slug(query)}" for number, query in enumerate(queries, 1)]
    found = search.search(config, plans, queries, [folder / f"{name}.png" for name in names])
    told = []
    for query, name, one in zip(queries, names, found, strict=True):
        table = folder / f"{name}.csv"
        ranked = (("whole", one.whole), ("location", one.location or []))
        rows = ({"by": by, **asdict(hit)} for by, hits in ranked for hit in hits)
        write_text(table, as_csv(_COLUMNS, rows))
        told.append(
            {
                "query": str(query),
                "is_text": isinstance(query, str),
                "whole": [asdict(hit) for hit in one.whole],
                "location": None if one.location is None else [asdict(hit) for hit in one.location],
                "table": str(table),
                "picture": str(one.picture),
            }
        )
    report = SearchReport(
        dataset=config.dataset,
        splits=list(features),
        images=sum(plan.num_images for plan in plans),
        queries=told,
        backbone=describe_backbone(config).name,
        features=features,
        warnings=warnings_of(config),
        config=config.model_dump(mode="json"),
        commit=git_commit(),
        seconds=round(time.perf_counter() - started, 2),
    )
    write(folder, report)
    show(table_of(report), f"tables and pictures: {folder}")
    return report


def _slug(query: str | AnyPath) -> str:
    text = query if isinstance(query, str) else Path(str(query)).stem
    slug = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in text)
    return slug.strip("-")[:48] or "query"


def table_of(report: SearchReport) -> str:
    """The first images of each query, for people."""
    lines = []
    for one in report.queries:
        lines.append(one["query"])
        others = one["location"] or [None] * len(one["whole"])
        columns = [
            Column("", width=3),
            Column("whole", ".3f", width=6),
            Column("image", width=32, is_left=True),
        ]
        if one["location"] is not None:
            columns += [
                Column("best", ".3f", width=6),
                Column("location", width=8, is_left=True),
                Column("image", is_left=True),
            ]
        rows = []
        for whole, place in list(zip(one["whole"], others, strict=True))[:_PRINTED]:
            row = [str(whole["rank"]), whole["score"], short(whole["key"], 32)]
            if place is not None:
                row += [place["score"], f"{place['row']},{place['column']}",
                        short(place["key"], 32)]  # fmt: skip
            rows.append(row)
        lines += aligned(columns, rows, indent="  ")
    lines.append(
        f"{counted(report.images, 'image')} of {report.dataset} {', '.join(report.splits)}; cosines"
        f" of {report.backbone}: of the whole image, and of the best location (row, column from 0)"
    )
    return "\n".join([*lines, *remarks(report.warnings)])


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    plans, queries = plan_search(config)
    kinds = [f"{'text' if isinstance(query, str) else 'image'} {query}" for query in queries]
    return "\n".join(
        [
            *(f"{counted(p.num_images, 'image')} of {p.listing.split}, {p.folder}" for p in plans),
            *kinds,
        ]
    )
