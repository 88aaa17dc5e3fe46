"""Cached features to batches: who is trained on when, in which view, behind which box.

Everything random follows from ``(seed, epoch)`` and the row of the image, so that a run that was
stopped goes on exactly, and several workers train on what one would.
"""

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped, UInt8
from torch import Tensor, nn

from dclip.fitting.loop import Loop
from dclip.losses.asymmetric import check_labels


@runtime_checkable
class FeatureSource(Protocol):
    """Cached local features with their labels; rows are images."""

    labels: Int[Tensor, "images classes"]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the locations, cached row by row; a mean token may precede them."""
        ...

    @property
    def views(self) -> int:
        """How many views of every image are cached; view 0 is the clean one, others augmented."""
        ...

    def local(
        self,
        rows: Int64[np.ndarray, " rows"],
        views: Int64[np.ndarray, " rows"] | None = None,
    ) -> Float[Tensor, "rows locations dim"]:
        """Local features of some rows, in the order given; clean, or each of the view given.

        They may lie on any device; the training copies them to its own.
        """
        ...


@runtime_checkable
class EmbeddingSource(Protocol):
    """A source that keeps the global embedding of each image, too."""

    def embeddings(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, "rows dim"]:
        """Global embeddings of some rows, in the order given."""
        ...


@runtime_checkable
class CaptionSource(Protocol):
    """A source that keeps the captions of each image, too."""

    def captions(self, rows: Int64[np.ndarray, " rows"]) -> list[tuple[str, ...]]:
        """Captions of some rows, in the order given; any number an image."""
        ...


@runtime_checkable
class PixelSource(Protocol):
    """A source that gives the images themselves, such as `dclip.fitting.images.ImageSource`."""

    def pixels(
        self,
        rows: Int64[np.ndarray, " rows"],
        draws: Int64[np.ndarray, " rows"] | None = None,
    ) -> UInt8[Tensor, "rows height width 3"]:
        """Images of some rows, in the order given; with draws, the seeds of random crops."""
        ...


@runtime_checkable
class MaskSource(Protocol):
    """A source that knows what is in front in each image, too."""

    def pictures(
        self,
        rows: Int64[np.ndarray, " rows"],
        draws: Int64[np.ndarray, " rows"] | None = None,
    ) -> tuple[UInt8[Tensor, "rows height width 3"], Bool[Tensor, "rows height width"] | None]:
        """Images and masks of some rows, cut alike; otherwise as `PixelSource.pixels`."""
        ...


class Batch(NamedTuple):
    """What a worker trains on, or scores, in one step; a method finds in it what it is fed.

    Attributes:
        local: Local features of its images; empty for methods that are not fed them.
        labels: 0, 1, or -1 for unknown; empty where there are none.
        dropped: Locations that take no part, or None if all do.
        known: Number of known labels in the shares of all workers.
        total: Number of images in the shares of all workers.
        workers: How many share the batch: workers, times the parts in which each goes through its
            share.
        epoch: Number of the epoch, from 0.
        embedding: Global embeddings, for methods that are fed them.
        captions: Captions of each image, for methods that are fed them.
        pixels: The images, for methods that are fed them.
        masks: What is in front in each image, for methods that are fed it.
    """

    local: Float[Tensor, "images locations dim"]
    labels: Int[Tensor, "images classes"]
    dropped: Bool[Tensor, "images locations"] | None = None
    known: int = 0
    workers: int = 1
    epoch: int = 0
    embedding: Float[Tensor, "images dim"] | None = None
    captions: Sequence[tuple[str, ...]] | None = None
    pixels: UInt8[Tensor, "images height width 3"] | None = None
    masks: Bool[Tensor, "images height width"] | None = None
    total: int = 0

    def to(self, device: torch.device | str, *, pinned: bool = False) -> "Batch":
        """The same batch, its tensors on a device.

        Args:
            device: Where they are wanted.
            pinned: Copy them by way of pinned memory, without waiting.
        """

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.device == torch.device(device):
                return value
            if not pinned:
                return value.to(device)
            # one that was expanded has places that share memory, which cannot be pinned
            return value.contiguous().pin_memory().to(device, non_blocking=True)

        return Batch(*map(moved, self))


def parts_of(batch: Batch, number: int) -> list[Batch]:
    """A batch in parts, one after another, as if so many more workers shared it.

    Args:
        batch: As given to one worker.
        number: Of parts; those beyond the images are empty.
    """
    if number == 1:
        return [batch]

    def some(value: Any, first: int) -> Any:
        if isinstance(value, Tensor):
            return value[first::number]
        return tuple(value)[first::number] if isinstance(value, Sequence) else value

    return [
        Batch(*(some(value, first) for value in batch))._replace(workers=batch.workers * number)
        for first in range(number)
    ]


def hold_out(num_images: int, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on, both ascending; the same for equal arguments.

    Args:
        num_images: Number of rows.
        fraction: Share of rows held out, in [0, 1).
        seed: Seed of the choice.
    """
    order = np.random.default_rng([seed, 1]).permutation(num_images)
    held = round(num_images * fraction)
    return np.sort(order[held:]), np.sort(order[:held])


def epoch_batches(
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    loop: Loop,
    *,
    seed: int,
    epoch: int,
    first_step: int = 0,
    rank: int = 0,
    workers: int = 1,
    feeds: Collection[str] = ("local",),
) -> Iterator[Batch]:
    """One worker's share of every batch of one epoch.

    Where several views are cached, each row draws one of them, the clean one included. With
    ``loop.feature_cutout``, each row loses a box of locations around a location drawn (see
    :func:`location_boxes`). Both draws belong to the row: they depend neither on the order of the
    rows, nor on which of them are trained on, nor on the workers.

    Args:
        features: Cached local features.
        rows: Rows to go through once, in a shuffled order.
        loop: Source of ``batch_size`` and ``feature_cutout``.
        seed: Seed of all draws, together with ``epoch``.
        epoch: Number of the epoch, from 0.
        first_step: Number of batches of the epoch that were done before.
        rank: Which worker this is.
        workers: Number of workers; each takes every ``workers``-th row of every batch.
        feeds: What the batches hold of each image (see :data:`dclip.methods.settings.Feed`).

    Raises:
        ValueError: ``feature_cutout`` is too small for the grid, the features have other
            locations than the grid and at most one mean token, or the source lacks what is fed.
    """
    order = np.random.default_rng([seed, 0, epoch]).permutation(rows)
    images = len(features.labels)
    views = centres = None
    if features.views > 1:
        views = np.random.default_rng([seed, 4, epoch]).integers(features.views, size=images)
    is_cropped = loop.augmentation == "crop" and not {"pixels", "masks"}.isdisjoint(feeds)
    draws = None
    if is_cropped:
        draws = np.random.default_rng([seed, 11, epoch]).integers(2**63 - 1, size=images)
    if loop.feature_cutout > 0:
        random = np.random.default_rng([seed, 5, epoch])
        centres = random.integers(features.grid, size=(images, 2))
    for start in range(first_step * loop.batch_size, len(order), loop.batch_size):
        batch = order[start : start + loop.batch_size]
        mine = batch[rank::workers]
        read = read_batch(
            features,
            mine,
            feeds,
            views=None if views is None else views[mine],
            draws=None if draws is None else draws[mine],
        )
        dropped = None
        if centres is not None and "local" in feeds:
            boxes = location_boxes(centres[mine], features.grid, fraction=loop.feature_cutout)
            dropped = _after_mean_token(boxes, read.local.shape[1], features.grid)
        known = int((features.labels[batch] >= 0).sum())
        yield read._replace(
            dropped=dropped, known=known, total=len(batch), workers=workers, epoch=epoch
        )


def read_batch(
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    feeds: Collection[str] = ("local",),
    *,
    views: Int64[np.ndarray, " rows"] | None = None,
    draws: Int64[np.ndarray, " rows"] | None = None,
) -> Batch:
    """Some rows of a source, with what a method is fed.

    Args:
        features: Source.
        rows: Rows, in any order.
        feeds: What the batch holds of each image.
        views: View of each row; left out: the clean one.
        draws: Seed of a random crop of each image; left out: images are as the source gives them.

    Raises:
        ValueError: The source lacks what is fed.
    """
    local = torch.empty(len(rows), 0, 0)
    if "local" in feeds:
        local = features.local(rows) if views is None else features.local(rows, views)
    own: dict[str, Any] = {}
    for feed, (protocol, what) in _OTHER_FEEDS.items():
        if feed in feeds and not isinstance(features, protocol):
            raise ValueError(f"{type(features).__name__} has no {what} of its images")
    if "embedding" in feeds and isinstance(features, EmbeddingSource):
        own["embedding"] = features.embeddings(rows)
    if "captions" in feeds and isinstance(features, CaptionSource):
        own["captions"] = features.captions(rows)
    if "masks" in feeds and isinstance(features, MaskSource):
        own["pixels"], own["masks"] = features.pictures(rows, draws)
    elif "pixels" in feeds and isinstance(features, PixelSource):
        own["pixels"] = features.pixels(rows, draws)
    return Batch(local, features.labels[rows], **own)


_OTHER_FEEDS: dict[str, tuple[type, str]] = {
    "embedding": (EmbeddingSource, "embeddings"),
    "captions": (CaptionSource, "captions"),
    "pixels": (PixelSource, "pixels"),
    "masks": (MaskSource, "masks"),
}


def clean_batches(
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    device: torch.device,
    batch_size: int,
    feeds: Collection[str] = ("local",),
) -> Iterator[Batch]:
    """Rows of the clean view in float32, on a device, batch by batch."""
    for start in range(0, len(rows), batch_size):
        batch = read_batch(features, rows[start : start + batch_size], feeds).to(device)
        yield batch._replace(local=batch.local.float())


def evenly(
    rows: Int64[np.ndarray, " rows"], num_classes: int, *, most: int = 4_000_000
) -> Int64[np.ndarray, " some"]:
    """All rows, or of very many a part that lies evenly among them, to look at before training.

    Args:
        rows: One or more.
        num_classes: Scores of each row.
        most: Scores in all; there is one row at least.
    """
    return rows[:: -(-len(rows) * num_classes // most)]


def location_boxes(
    centres: Int64[np.ndarray, "images 2"], grid: tuple[int, int], *, fraction: float
) -> Bool[Tensor, "images cells"]:
    """Which cells of a grid lie in a box around a cell: Cutout's box, on the grid of locations.

    Args:
        centres: Row and column of the cell each box is centred on.
        grid: Rows and columns of the grid.
        fraction: Sides of the box as a share of the grid's, in [0, 1), rounded down to whole cells.
            What lies outside the grid is cut off, so that boxes at the border are smaller.

    Returns:
        True inside the box, row by row; never for all cells of an image.

    Raises:
        ValueError: If the box has no cell.

    Example:
        >>> location_boxes(np.array([[0, 2]]), (3, 4), fraction=0.7).view(3, 4).int()
        tensor([[0, 1, 1, 0],
                [0, 0, 0, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    inside = []
    for side, middles in zip(grid, centres.T, strict=True):
        length = int(fraction * side)
        if length == 0:
            raise ValueError(
                f"a box of {fraction:g} of a {grid[0]} x {grid[1]} grid has no location; "
                "use a larger feature_cutout"
            )
        first, cells = middles[:, None] - length // 2, np.arange(side)
        inside.append((first <= cells) & (cells < first + length))
    in_rows, in_columns = inside
    boxes = in_rows[:, :, None] & in_columns[:, None, :]
    return torch.from_numpy(boxes.reshape(len(centres), grid[0] * grid[1]))


def _after_mean_token(
    boxes: Bool[Tensor, "images cells"], locations: int, grid: tuple[int, int]
) -> Bool[Tensor, "images locations"]:
    """The same with the mean token in front, if there is one; it is never dropped."""
    tokens = locations - boxes.shape[1]
    if tokens not in (0, 1):
        raise ValueError(_no_grid(locations, grid))
    return nn.functional.pad(boxes, (tokens, 0))


def prefetch(batches: Iterator[Batch], device: torch.device, *, depth: int = 2) -> Iterator[Batch]:
    """The same batches on a device, read and copied there by a thread that runs ahead.

    Args:
        batches: Batches in any memory.
        device: Where they are wanted.
        depth: How many batches may wait.
    """
    ready: queue.Queue[tuple[Batch, torch.Event | None] | BaseException | None]
    ready = queue.Queue(maxsize=depth)
    gone = threading.Event()
    device = torch.empty(0, device=device).device  # "cuda" with the number of the GPU
    on_cuda = device.type == "cuda"
    stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]

    def put(item: tuple[Batch, torch.Event | None] | BaseException | None) -> None:
        while not gone.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def run() -> None:
        try:
            with torch.cuda.stream(stream):  # does nothing without one
                for batch in batches:
                    moved = batch.to(device, pinned=on_cuda)
                    put((moved, stream.record_event() if stream else None))
                    if gone.is_set():
                        return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=run, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, event = item
            if event is not None:
                now = torch.cuda.current_stream(device)
                now.wait_event(event)
                for values in batch:
                    if isinstance(values, Tensor):
                        values.record_stream(now)
            yield batch
    finally:
        gone.set()
        thread.join()


class MemoryFeatures:
    """Local features and labels held as tensors: a `FeatureSource` without files.

    Args:
        local: Local features of the images, of any length; with an axis of views in front where
            there are several, the clean one first. The tensor itself is kept, on its device.
        labels: 1 (present), 0 (absent) or -1 (unknown), of any dtype.
        grid: Rows and columns of the locations, as `dclip.backbones.Backbone.grid` gives them.
        embeddings: Global embeddings of the images, for methods that are fed them.
        captions: Captions of each image, for methods that are fed them.

    Raises:
        ValueError: If there is no image, numbers of images differ, labels have other values, or
            locations are not the grid and at most one mean token in front of it.

    Example:
        >>> from dclip import Recipe, Training, hold_out, predict, train_loop
        >>> labels = torch.tensor([[1, 0], [0, 1]]).repeat(4, 1)
        >>> features = MemoryFeatures(torch.randn(8, 6, 16), labels, grid=(2, 3))
        >>> rows, held = hold_out(len(features), 0.25, seed=0)
        >>> texts = torch.randn(4, 16)  # of encode_prompt_pairs
        >>> training = Training([Recipe(epochs=2, output_dim=4)], texts, seeds=[0])
        >>> train_loop(training, features, rows, seed=0)
        >>> predict(training.model(), features, held, texts).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        local: Float[Tensor, "*views images locations dim"],
        labels: Shaped[Tensor, "labelled classes"],
        *,
        grid: tuple[int, int],
        embeddings: Float[Tensor, "images dim"] | None = None,
        captions: Sequence[tuple[str, ...]] | None = None,
    ) -> None:
        if local.ndim not in (3, 4) or labels.ndim != 2 or not local.is_floating_point():
            raise ValueError(
                "expected floating local features [images, locations, dim] or [views, images, "
                f"locations, dim] and labels [images, classes], got {_told(local)} and "
                f"{_told(labels)}"
            )
        images, locations = local.shape[-3:-1]
        if images != len(labels):
            raise ValueError(f"local features of {images} images and labels of {len(labels)}")
        if 0 in local.shape or 0 in labels.shape:
            raise ValueError(f"there are no images: {_told(local)} with labels {_told(labels)}")
        if locations - grid[0] * grid[1] not in (0, 1):
            raise ValueError(_no_grid(locations, grid))
        check_labels(labels)
        self._values = local.detach() if local.ndim == 4 else local.detach()[None]
        self.labels: Int[Tensor, "images classes"] = labels.to("cpu", torch.int8)
        self.grid = grid
        self._embeddings: Callable[[np.ndarray], Tensor] | None = None
        if embeddings is not None:
            self._embeddings = lambda rows: embeddings[torch.from_numpy(rows)]
        self._captions: Callable[[np.ndarray], list[tuple[str, ...]]] | None = None
        if captions is not None:
            self._captions = lambda rows: [captions[row] for row in rows]

    @classmethod
    def copy_of(
        cls, source: FeatureSource, device: torch.device, *, rows_per_read: int = 512
    ) -> "MemoryFeatures":
        """All of another source, views included, as one tensor on a device.

        Args:
            source: What to copy; global embeddings and captions are read from it where they are
                asked for.
            device: Where the copy lies.
            rows_per_read: Rows read at a time.

        Raises:
            ValueError: If there is no image.
        """
        images = len(source.labels)
        values: Tensor | None = None
        for view in range(source.views):
            for start in range(0, images, rows_per_read):
                rows = np.arange(start, min(start + rows_per_read, images))
                part = source.local(rows, np.full(len(rows), view) if view else None)
                if values is None:
                    shape = (source.views, images, *part.shape[1:])
                    values = torch.empty(shape, dtype=part.dtype, device=device)
                values[view, start : start + len(rows)] = part
        if values is None:
            raise ValueError("there are no images")
        copy = cls(values, source.labels, grid=source.grid)
        if isinstance(source, MemoryFeatures):
            copy._embeddings, copy._captions = source._embeddings, source._captions
            return copy
        if isinstance(source, EmbeddingSource):
            copy._embeddings = source.embeddings  # read where they are asked for
        if isinstance(source, CaptionSource):
            copy._captions = source.captions
        return copy

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        images, locations, dim = self._values.shape[1:]
        views = f"{self.views} views of " if self.views > 1 else ""
        return (
            f"MemoryFeatures({views}{images} images, {locations} locations of {dim} dimensions on "
            f"a grid of {self.grid[0]} x {self.grid[1]}, {self.labels.shape[1]} classes, "
            f"{self._values.dtype} on {self._values.device})"
        )

    @property
    def views(self) -> int:
        """Number of views of every image, the clean one included."""
        return len(self._values)

    def embeddings(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, "rows dim"]:
        """Global embeddings of some rows, on the CPU.

        Raises:
            ValueError: If they are not held.
        """
        if self._embeddings is None:
            raise ValueError("these features were made without global embeddings")
        return self._embeddings(rows)

    def captions(self, rows: Int64[np.ndarray, " rows"]) -> list[tuple[str, ...]]:
        """Captions of some rows.

        Raises:
            ValueError: They are not held.
        """
        if self._captions is None:
            raise ValueError("these features were made without captions")
        return self._captions(rows)

    def local(
        self,
        rows: Int64[np.ndarray, " rows"],
        views: Int64[np.ndarray, " rows"] | None = None,
    ) -> Float[Tensor, "rows locations dim"]:
        """Local features of some rows, on the device."""
        flat = rows if views is None else views * len(self.labels) + rows
        chosen = torch.from_numpy(flat).to(self._values.device, non_blocking=True)
        return self._values.flatten(0, 1).index_select(0, chosen)


def _told(values: Tensor) -> str:
    """Shape and dtype, for a message."""
    return f"{list(values.shape)} {values.dtype}"


def _no_grid(locations: int, grid: tuple[int, int]) -> str:
    return (
        f"{locations} locations are not a grid of {grid[0]} x {grid[1]} and at most one mean token"
    )
