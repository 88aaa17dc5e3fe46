"""Making shards in a worker: the backbone, and threads that feed it.

Neither Ray nor MLflow is loaded here, which each worker would wait for.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from dclip.store.extraction import Extractor, Seconds, write_encoded
from dclip.store.shards import Failure, ImageRecord, Sidecar
from pipeline.features.opened import open_backbone
from pipeline.features.plan import FeaturePlan
from pipeline.features.reuse import Made, Source, made_of, shard_records, sound_ones
from pipeline.settings.config import Config


def open_extractor(
    config: Config,
    device: str,
    *,
    batch_size: int | None,
    threads: int = 1,
    compile: bool = False,  # noqa: A002 - as the extractor has it
) -> Extractor:
    """The backbone of the settings on a device, with threads that feed it."""
    return Extractor(
        open_backbone(config, device=device),
        device=device,
        kind=config.extract.kind,
        precision=config.extract.precision,
        batch_size=batch_size,
        threads=threads,
        compile=compile,
    )


class ShardMaker:
    """Actor that holds the backbone and makes shards."""

    def __init__(self, config: Config, device: str, threads: int) -> None:
        self._done: dict[Any, int] = {}
        # the network has work while another shard is read or written
        self._slots = threading.Semaphore(2)
        self._extractor = open_extractor(
            config,
            device,
            batch_size=config.extract.batch_size,
            threads=threads,
            compile=config.extract.compile,
        )

    def ready(self) -> None:
        """Answer as soon as the backbone is loaded."""

    def progress(self) -> int:
        """Images done of shards that are not finished."""
        return sum(self._done.values())

    def make(self, plan: FeaturePlan, number: int, sources: Sequence[Source]) -> Made:
        """Make one shard."""
        with self._slots:
            sidecar = make_shard(plan, number, self._extractor, sources, self._done)
            return made_of(plan, number, sidecar)


def make_shard(
    plan: FeaturePlan,
    number: int,
    extractor: Extractor,
    sources: Sequence[Source] = (),
    done: dict[Any, int] | None = None,
) -> Sidecar:
    """Read, encode and write the images of one shard; unreadable ones are recorded and left out.

    Args:
        plan: What is made.
        number: Which shard of it.
        extractor: The backbone.
        sources: Shards whose images are taken over instead of computed; damaged ones are passed
            over.
        done: Number of finished images of the shard, kept up to date under its number.

    Raises:
        OSError: Images or shards cannot be reached or written.
    """
    seconds = Seconds()
    failures: list[Failure] = []

    def compute(rows: Sequence[int]) -> Iterator[ImageRecord]:
        return extractor.records(
            plan.listing,
            rows,
            view=plan.view,
            seed=plan.view_seed,
            storage=plan.storage,
            failures=failures,
            seconds=seconds,
        )

    def records() -> Iterator[ImageRecord]:
        found = shard_records(plan, number, sound_ones(sources), compute)
        for count, record in enumerate(found, start=1):
            yield record
            if done is not None:
                done[plan.folder, number] = count

    try:
        return write_encoded(
            plan.folder,
            number,
            records(),
            failures=failures,
            seconds=seconds,
            fingerprint=plan.fingerprint,
            compute=extractor.compute,
        )
    finally:
        if done is not None:
            done.pop((plan.folder, number), None)
