"""Images to local features at the speed of the frozen network.

Threads read, decode and resize ahead while the backbone is at work; pixels travel to the device as
bytes and are normalised there. What is ahead is bounded, so memory is too.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from threading import RLock
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Float32, UInt8
from torch import Tensor

from dclip.backbones import Backbone, ImageFeatures, preparation_of
from dclip.data.augment import augment
from dclip.data.images import ImageError, reading_seconds
from dclip.data.listing import Listing
from dclip.data.pixels import normalise
from dclip.precision import computing_in
from dclip.store.paths import AnyPath
from dclip.store.reader import quantise
from dclip.store.shards import (
    Failure,
    ImageRecord,
    Sidecar,
    Storage,
    label_columns,
    write_shard,
)

Precision = Literal["auto", "float32", "bfloat16", "float16"]

BATCH_SIZES = {"cpu": 32, "cuda": 128}
"""Images a forward pass where no number is given."""

_AHEAD = 2  # batches that are being read while one is in the network


class EncodedBatch(NamedTuple):
    """Features of the images of a batch that could be read.

    Attributes:
        rows: Positions in the listing.
        labels: Label vectors.
        local: Local features.
        embedding: Global embeddings.
        failures: Position and reason of each image that could not be read.
    """

    rows: list[int]
    labels: list[np.ndarray]
    local: Float16[Tensor, "images locations dim"]
    embedding: Float32[Tensor, "images dim"]
    failures: list[tuple[int, str]]


@dataclass
class Seconds:
    """Where the time went: thread-seconds of reading and decoding, seconds of the network.

    Attributes:
        read: Getting the bytes of image files.
        decode: Decoding, augmenting and resizing.
        wait: The network had nothing to do.
        forward: The network, and moving features back.
        queue: Another thread had the network of a CPU.
    """

    read: float = 0.0
    decode: float = 0.0
    wait: float = 0.0
    forward: float = 0.0
    queue: float = 0.0


class _Loaded(NamedTuple):
    row: int
    pixels: np.ndarray | None
    labels: np.ndarray | None
    failure: str
    read: float
    decode: float


@dataclass
class Extractor:
    """A frozen backbone with threads that feed it; safe to use from several threads at once.

    Args:
        backbone: Already on the device.
        device: ``"cpu"`` or ``"cuda"``.
        kind: Which local features.
        precision: In which the network computes. ``auto`` takes float16 on a GPU and float32 on a
            CPU; it goes by the device alone, so that two runs on it give equal bytes.
        batch_size: Images a forward pass; left out: by the device. Where a GPU has too little
            memory for it, it is halved until it fits.
        threads: Threads that read and decode.
        compile: Compile the network: some tens of seconds, then faster.

    Raises:
        ValueError: A kind the backbone does not have.
    """

    backbone: Backbone
    device: str = "cpu"
    kind: str = "value"
    precision: Precision = "auto"
    batch_size: int | None = None
    threads: int = 1
    compile: bool = False
    _pool: ThreadPoolExecutor = field(init=False, repr=False)
    _turn: AbstractContextManager[Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._prepare = preparation_of(self.backbone)
        if self.kind not in self.backbone.kinds:
            raise ValueError(
                f"{self.backbone.name} has no features of kind {self.kind!r}; it has "
                + ", ".join(self.backbone.kinds)
            )
        if self.precision == "auto":
            self.precision = "float16" if self.device == "cuda" else "float32"
        self.batch_size = self.batch_size or BATCH_SIZES.get(self.device, 32)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        # a GPU queues the work of several threads; on a CPU they would only crowd each other out:
        # there the next one reads its first batches and waits
        self._turn = RLock() if self.device == "cpu" else nullcontext()
        self._encode = torch.compile(self._forward) if self.compile else self._forward

    @property
    def compute(self) -> str:
        """Device and precision, such as ``"cuda float16"``, and whether it is compiled."""
        return f"{self.device} {self.precision}" + (" compiled" if self.compile else "")

    def encode(
        self,
        listing: Listing,
        rows: Sequence[int],
        *,
        view: int = 0,
        seed: int = 0,
        seconds: Seconds | None = None,
    ) -> Iterator[EncodedBatch]:
        """Features of some images of a listing, batch after batch in the order given.

        Args:
            listing: Where images come from.
            rows: Positions in it.
            view: 0 for the images as they are; another number for one of their augmented views.
            seed: Of the augmentation.
            seconds: Times are added to it.

        Raises:
            OSError: The storage of the images failed as a whole; one unreadable image does not
                raise, it is among the failures of its batch.
            ValueError: Features are beyond the numbers float16 has.
        """
        spent = Seconds() if seconds is None else seconds
        assert self.batch_size is not None
        batches = [
            rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)
        ]
        coming: list[list[Future[list[_Loaded]]]] = []

        def read_ahead(number: int) -> None:
            while len(coming) <= _AHEAD and number + len(coming) < len(batches):
                batch = batches[number + len(coming)]
                share = -(-len(batch) // self.threads)
                coming.append(
                    [
                        self._pool.submit(self._load_all, listing, part, view, seed)
                        for part in (batch[at : at + share] for at in range(0, len(batch), share))
                    ]
                )

        try:
            read_ahead(0)  # before its turn: who waits for the network reads meanwhile
            started = time.perf_counter()
            with self._turn:
                spent.queue += time.perf_counter() - started
                for number in range(len(batches)):
                    read_ahead(number)
                    yield self._finish(listing, coming.pop(0), spent)
        finally:
            for futures in coming:
                for future in futures:
                    future.cancel()

    def records(
        self,
        listing: Listing,
        rows: Sequence[int],
        *,
        failures: list[Failure],
        view: int = 0,
        seed: int = 0,
        storage: Storage = "float16",
        seconds: Seconds | None = None,
    ) -> Iterator[ImageRecord]:
        """Features of some images as shards keep them, in the order given.

        Args:
            listing: Where images come from.
            rows: Positions in it.
            failures: Images that cannot be read are added to it, those of a batch before its first
                record; all are there when the iterator has come to its end.
            view: As for `encode`.
            seed: As for `encode`.
            storage: How local features are kept.
            seconds: Times are added to it, as failures are.

        Raises:
            OSError: The storage of the images failed as a whole.
            ValueError: Features are beyond the numbers float16 has.
        """
        for batch in self.encode(listing, rows, view=view, seed=seed, seconds=seconds):
            failures += [
                Failure(key=listing.key(row), index=row, error=why) for row, why in batch.failures
            ]
            values, scale = batch.local, None
            if storage == "int8":
                values, scale = quantise(batch.local.float())
            for position, row in enumerate(batch.rows):
                yield ImageRecord(
                    listing.key(row),
                    row,
                    *label_columns(batch.labels[position]),
                    values[position].numpy(),
                    batch.embedding[position].numpy(),
                    None if scale is None else scale[position].numpy(),
                )

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _load_all(
        self, listing: Listing, rows: Sequence[int], view: int, seed: int
    ) -> list[_Loaded]:
        return [self._load(listing, row, view, seed) for row in rows]

    def _load(self, listing: Listing, row: int, view: int, seed: int) -> _Loaded:
        started, read_before = time.perf_counter(), reading_seconds()
        try:
            sample = listing.read(row)
        except ImageError as error:
            read = reading_seconds() - read_before
            return _Loaded(row, None, None, " ".join(str(error).split()), read, 0.0)
        read = reading_seconds() - read_before
        square = self._prepare(sample.image, self.backbone.resolution)
        if view:
            square = augment(square, seed=[seed, view, *listing.key(row).encode()])
        pixels = np.asarray(square)
        spent = time.perf_counter() - started - read
        return _Loaded(row, pixels, sample.labels, "", read, spent)

    def _finish(
        self, listing: Listing, futures: Sequence[Future[list[_Loaded]]], spent: Seconds
    ) -> EncodedBatch:
        started = time.perf_counter()
        loaded = [one for future in futures for one in future.result()]
        spent.wait += time.perf_counter() - started
        spent.read += sum(one.read for one in loaded)
        spent.decode += sum(one.decode for one in loaded)
        failures = [(one.row, one.failure) for one in loaded if one.pixels is None]
        good = [one for one in loaded if one.pixels is not None]
        pixels = (
            torch.from_numpy(np.stack([one.pixels for one in good if one.pixels is not None]))
            if good
            else None
        )
        try:
            features = self._features(pixels, spent)
        except FloatingPointError:
            keys = ", ".join(listing.key(one.row) for one in good[:3])
            raise ValueError(
                f"the features of {keys}, ... have values beyond float16; check the weights of"
                f" {self.backbone.name}"
            ) from None
        return EncodedBatch(
            [one.row for one in good],
            [one.labels for one in good if one.labels is not None],
            features.local,
            features.embedding,
            failures,
        )

    def _features(
        self, pixels: UInt8[Tensor, "images height width 3"] | None, spent: Seconds
    ) -> ImageFeatures:
        """Features on the CPU, the local ones as float16."""
        if pixels is None:
            dim = self.backbone.embed_dim
            return ImageFeatures(torch.zeros(0, dim), torch.zeros(0, 1, dim, dtype=torch.float16))
        parts: list[ImageFeatures] = []
        while len(pixels):
            part = pixels[: self.batch_size]  # it may have been halved since the batch was cut
            try:
                features = self._on_device(part, spent)
            except torch.cuda.OutOfMemoryError:
                if len(part) == 1:
                    raise
            else:
                parts.append(features)
                pixels = pixels[len(part) :]
                continue
            # not inside the handler: there the exception still holds what the pass had allocated
            assert self.batch_size is not None
            self.batch_size = min(self.batch_size, len(part) // 2)
            torch.cuda.empty_cache()
        return ImageFeatures(*map(torch.cat, zip(*parts, strict=True)))

    def _on_device(
        self, pixels: UInt8[Tensor, "images height width 3"], spent: Seconds
    ) -> ImageFeatures:
        if self.device == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self.device, non_blocking=True)
        with torch.inference_mode(), computing_in(self.precision, self.device):
            started = time.perf_counter()
            features = self._encode(pixels)
            local = features.local.half()
            if not torch.isfinite(local).all():
                raise FloatingPointError
            result = ImageFeatures(features.embedding.float().cpu(), local.cpu())
            spent.forward += time.perf_counter() - started
            return result

    def _forward(self, pixels: UInt8[Tensor, "images height width 3"]) -> ImageFeatures:
        images = normalise(pixels, self.backbone.mean, self.backbone.std)
        return self.backbone.encode_images(images, kind=self.kind)


def write_encoded(
    folder: AnyPath,
    number: int,
    records: Iterable[ImageRecord],
    *,
    failures: Sequence[Failure],
    seconds: Seconds,
    fingerprint: str,
    compute: str,
) -> Sidecar:
    """Write one shard of records as an extractor makes them, with what they cost.

    Args:
        folder: Where it goes.
        number: Of the shard.
        records: Images in order; each is made as it is written.
        failures: Images that are left out; all are there when the records have come to their end.
        seconds: Where the time of the records goes.
        fingerprint: That of the folder.
        compute: Device and precision.

    Raises:
        OSError: Images or shards cannot be reached or written.
    """
    started = time.perf_counter()
    # filled as the last record is drawn, which is before write_shard reads it
    spent: dict[str, float] = {}

    def timed() -> Iterator[ImageRecord]:
        yield from records
        spent.update(asdict(seconds), total=time.perf_counter() - started - seconds.queue)
        del spent["queue"]  # the time of another shard

    return write_shard(
        folder,
        number,
        timed(),
        failures,
        fingerprint=fingerprint,
        compute=compute,
        seconds=spent,
    )
