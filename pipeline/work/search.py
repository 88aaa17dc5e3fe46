"""Shards in one pass to the images nearest to some queries, and the pictures of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import Backbone, preparation_of
from dclip.data.images import ImageError, read_image
from dclip.data.listing import Listing
from dclip.data.placing import place_cell
from dclip.data.preparation import read_preparation
from dclip.encoding import encode_batches
from dclip.neighbours import Best, Nearest, best_locations
from dclip.pictures.canvas import heading, one_line, save
from dclip.store.paths import AnyPath
from dclip.store.reader import FeatureReader
from pipeline.features.opened import open_backbone, open_features
from pipeline.features.plan import FeaturePlan
from pipeline.features.shown import look_at, path_of_image
from pipeline.pictures.contact_sheet import Row, Shot, contact_sheet, shot_of
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress

_ROWS = 64  # images that are read at once


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        rank: From 1.
        score: Its cosine with the query.
        split: Where it is.
        key: What it is called there.
        path: Its file; empty where it has none of its own.
        row: Of the best location, from 0; None where the whole image was compared.
        column: Likewise.
    """

    rank: int
    score: float
    split: str
    key: str
    path: str
    row: int | None
    column: int | None


@dataclass(frozen=True)
class Found:
    """What a query found.

    Attributes:
        whole: By the whole image.
        location: By the best location; None where none was compared.
        picture: Its contact sheet.
    """

    whole: list[Hit]
    location: list[Hit] | None
    picture: Path


def search(
    config: Config,
    plans: Sequence[FeaturePlan],
    queries: Sequence[str | AnyPath],
    pictures: Sequence[Path],
) -> list[Found]:
    """The nearest images to each query, drawn.

    Args:
        config: Settings.
        plans: Features of the splits that are searched.
        queries: Texts as they are, images by their paths.
        pictures: Where each query's contact sheet goes.

    Raises:
        StageError: Features are missing or damaged, or a query cannot be read.
    """
    wanted = config.search
    encoded = encode_queries(open_backbone(config), queries)
    readers = [open_features(plan.folders[:1], config.output) for plan in plans]
    whole, local = scan(readers, encoded, wanted.count, locations=wanted.locations)
    found = []
    for number, (query, picture) in enumerate(zip(queries, pictures, strict=True)):
        ranked = {
            head: _seen(best, number, plans, readers)
            for head, best in (("by the whole image", whole), ("by the best location", local))
            if best is not None
        }
        rows = [
            Row(head, [_shot(seen) for seen in every[: wanted.shown]])
            for head, every in ranked.items()
        ]
        title = heading(
            f"{one_line(str(query), 80)}",
            f"{config.dataset_slug} {', '.join(plan.listing.split for plan in plans)}, "
            f"{sum(map(len, readers)):,} images, {readers[0].manifest.spec['backbone_name']}",
        )
        save(contact_sheet(rows, title), picture)
        hits = [[seen.hit for seen in every] for every in ranked.values()]
        found.append(Found(hits[0], hits[1] if local is not None else None, picture))
    return found


def encode_queries(
    backbone: Backbone, queries: Sequence[str | AnyPath]
) -> Float[Tensor, "queries dim"]:
    """Features of texts and images in the joint space.

    Raises:
        StageError: An image cannot be read.
    """
    preparation, features = preparation_of(backbone), []
    for query in queries:
        if isinstance(query, str):
            with torch.no_grad():
                features.append(backbone.encode_texts([query]).float()[0])
            continue
        try:
            image = read_image(query)
        except (ImageError, OSError) as error:
            raise StageError(f"query {query}: {error}") from None
        square = np.array(preparation(image, backbone.resolution))
        (said,) = encode_batches(backbone, [torch.from_numpy(square)[None]])
        features.append(said.embedding[0])
    return torch.stack(features)


def scan(
    readers: Sequence[FeatureReader],
    queries: Float[Tensor, "queries dim"],
    count: int,
    *,
    locations: bool = True,
) -> tuple[Best, Best | None]:
    """The nearest images by global embedding and by best location, in one pass over all features.

    Args:
        readers: Of the splits; rows are counted through all of them.
        queries: Features of any length.
        count: Images to keep for each query.
        locations: Whether locations are looked at.
    """
    whole, local = Nearest(count), Nearest(count) if locations else None
    unit, first = F.normalize(queries.float(), dim=-1), 0
    with progress("search", sum(map(len, readers)), "images") as bar:
        for reader in readers:
            skipped = int(reader.manifest.include_global_token)
            for start in range(0, len(reader), _ROWS):
                rows = np.arange(start, min(start + _ROWS, len(reader)))
                embeddings = F.normalize(reader.embeddings(rows), dim=-1)
                whole.add(unit @ embeddings.mT, first=first + start)
                if local is not None:
                    scores, places = best_locations(reader.local(rows)[:, skipped:], unit)
                    local.add(scores, first=first + start, places=places)
                bar.advance(len(rows))
            first += len(reader)
    return whole.best(), None if local is None else local.best()


@dataclass(frozen=True)
class _Seen:
    """A hit and the image behind it."""

    hit: Hit
    listing: Listing
    index: int
    reader: FeatureReader


def _seen(
    best: Best, query: int, plans: Sequence[FeaturePlan], readers: Sequence[FeatureReader]
) -> list[_Seen]:
    """What one query found."""
    found = []
    starts = np.cumsum([0, *map(len, readers)])
    each = zip(*(part[query].tolist() for part in best), strict=True)
    for rank, (score, row, place) in enumerate(each, 1):
        number = int(np.searchsorted(starts, row, side="right")) - 1
        listing, reader = plans[number].listing, readers[number]
        index = int(reader.indices[row - starts[number]])
        across = divmod(place, reader.grid[1]) if place >= 0 else (None, None)
        path = str(path_of_image(listing, index) or "")
        hit = Hit(rank, score, listing.split, listing.key(index), path, *across)
        found.append(_Seen(hit, listing, index, reader))
    return found


def _shot(seen: _Seen) -> Shot:
    """One image of the sheet, with a box around its best location."""
    hit, reader = seen.hit, seen.reader
    image = look_at(seen.listing, seen.index)
    caption = f"{hit.rank}.  {hit.score:.3f}\n{one_line(hit.key, 26)}"
    if isinstance(image, str) or hit.row is None or hit.column is None:
        return shot_of(image, caption)
    spec, (width, height) = reader.manifest.spec, image.size
    box = place_cell(
        hit.row * reader.grid[1] + hit.column,
        reader.grid,
        read_preparation(spec["resize"]),
        side=int(spec["resolution"]),
        size=image.size,
    )
    shares = (box.left / width, box.top / height, box.right / width, box.bottom / height)
    return shot_of(image, caption, shares)
