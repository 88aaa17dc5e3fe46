"""How long an extraction will take, for its dry run."""

import os
import time
from collections.abc import Sequence

import torch

from dclip.store.shards import Sidecar
from dclip.words import counted
from pipeline.cluster.device import choose_device
from pipeline.features.plan import FeaturePlan
from pipeline.settings.config import Config
from pipeline.work.shard_maker import open_extractor

_SAMPLE = 8  # images that are timed where no shard is there to tell the speed


def estimate(config: Config, plan: FeaturePlan, known: Sequence[Sidecar], images_left: int) -> str:
    """Expected time, by the speed of finished shards or of a few images encoded now."""
    if os.environ.get("RAY_ADDRESS"):
        workers = config.extract.workers or 1
        per = "a worker" if config.extract.workers is None else counted(workers, "worker")
    else:
        device, _ = choose_device(config.device)
        workers = config.extract.workers or (1 if device == "cuda" else os.cpu_count() or 1)
        per = counted(workers, "worker")
    spent = sum(sidecar.seconds.get("total", 0.0) for sidecar in known)
    count = sum(sidecar.count for sidecar in known)
    source = "the shards that are done"
    if not count or not spent:
        spent, count, source = *_time_sample(config, plan), f"{_SAMPLE} images encoded now"
    seconds = images_left * spent / count / workers
    return (
        f"estimated time: {_duration(seconds)} by {per}, start-up aside (from {source}: "
        f"{count / spent:.3g} images/s a worker)"
    )


def _time_sample(config: Config, plan: FeaturePlan) -> tuple[float, int]:
    """Seconds that one worker takes for the first images of a plan, once warm, and their number."""
    device, _ = choose_device(config.device)
    extractor = open_extractor(config, device, batch_size=_SAMPLE)
    rows = range(min(_SAMPLE, plan.num_images))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        list(extractor.encode(plan.listing, rows))
        started = time.perf_counter()
        list(extractor.encode(plan.listing, rows))
        return time.perf_counter() - started, len(rows)
    finally:
        torch.set_num_threads(threads)
        extractor.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
