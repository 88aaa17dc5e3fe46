"""Training against its limits: memory for reading, matrix products for a step.

    python benchmarks/train.py                 on CPUs, with Ray: minutes
    python benchmarks/train.py --device cuda   on one GPU, without Ray: features of COCO-14's size

Both sides of every ratio are timed in one run, turn by turn, and compared by their medians. The
last line of stdout is JSON:

    reader_over_memcpy     images/s out of the shards, over copying as many bytes in RAM
    reader_over_webdataset images/s out of the shards, over webdataset's reader on the same tars
    step_over_limit        time of the matrix products of a step alone, over that of the step
    epoch_over_step        images/s of fit from shards, over those of its step on tensors in memory
    cached_over_online     time of an epoch that runs the backbone (RN50, 224 px), over a cached one
    sweep27_over_single    time of a sweep of 27 trials, over that of one training, whole commands
    packed27_over_single   the same for the training alone, in one process
    workers_2_over_1       images/s of two workers of one thread each, over those of one
    rss_10k_over_1k        peak memory of a training process with 10,000 images, over 1,000
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import tell

from dclip.fitting.batches import Batch
from dclip.fitting.fit import EpochReport, fit
from dclip.store.reader import FeatureReader, write_text_features
from dclip.store.shards import (
    FORMAT,
    MANIFEST,
    SAMPLES,
    TEXT,
    ImageRecord,
    Manifest,
    ShardEntry,
    file_digest,
    shard_name,
    write_samples,
    write_shard,
)  # fmt: skip
from dclip.training import Recipe, Training

COCO = {"images": 82_081, "locations": 197, "dim": 512, "classes": 80}  # RN101 at 448 px
RN50 = {"locations": 50, "dim": 1024, "classes": 80}  # at 224 px

# what workers get of pipeline.cluster: freed memory is kept, not mapped and zeroed anew
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}


def turns(works: Sequence[Callable[[], object]], repeats: int = 7) -> list[float]:
    """Median seconds of each work; the works take turns, so that all see the same machine."""
    spent: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 2):
        for own, work in zip(spent, works, strict=True):
            started = time.perf_counter()
            work()
            if turn > 1:  # the first two warm up
                own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in spent]


def write_features(
    folder: Path, *, images: int, locations: int, dim: int, classes: int, shard: int = 256
) -> None:
    """A folder of shards with random features and labels."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    some = random.standard_normal((64, locations, dim), np.float32).astype(np.float16)
    sidecars = []
    for number, start in enumerate(range(0, images, shard)):
        records = (
            ImageRecord(
                key=f"{row:08d}", index=row,
                labels=tuple(np.flatnonzero(random.random(classes) < 3 / classes).tolist()),
                unknown=(), local=some[row % len(some)], embedding=np.ones(dim, np.float32),
            )
            for row in range(start, min(start + shard, images))
        )  # fmt: skip
        sidecars.append(
            write_shard(folder, number, records, [], fingerprint="", compute="", seconds={})
        )
    write_samples(folder / SAMPLES, sidecars)
    names = [f"class {number}" for number in range(classes)]
    about = {"class_names": names}
    write_text_features(folder / TEXT, texts(classes, dim), torch.ones(classes, dim), about)
    entries = [
        ShardEntry(name=shard_name(n), count=s.count, bytes=s.bytes, sha256=s.sha256)
        for n, s in enumerate(sidecars)
    ]
    manifest = Manifest(
        format=FORMAT, fingerprint="", feature_space="", dataset="random", split="train",
        class_names=[f"class {n}" for n in range(classes)], num_images=images, kind="value", view=0,
        storage="float16", locations=locations, dim=dim, grid=(1, locations),
        include_global_token=False, spec={}, compute=[], seconds={}, shards=entries, failures=[],
        files={name: file_digest(folder / name) for name in (TEXT, SAMPLES)}, commit=None,
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.model_dump_json())


def texts(classes: int, dim: int) -> torch.Tensor:
    """Prompt pairs that mostly agree, as CLIP's do."""
    random = torch.Generator().manual_seed(0)
    common = torch.randn(dim, generator=random)
    return common + 0.5 * torch.randn(2 * classes, dim, generator=random)


# ---------------------------------------------------------------------------------------------
# CPU
# ---------------------------------------------------------------------------------------------


def reading(folder: Path) -> dict[str, Any]:
    """Batches in random order out of the shards, over a copy in RAM and over webdataset."""
    os.environ["WDS_SECURE"] = "1"
    import webdataset
    from numpy.lib import format as npy

    reader = FeatureReader(folder, verify=False)
    batch = 32
    rows = np.random.default_rng(0).permutation(len(reader))
    source = reader.local(np.arange(len(reader))).numpy()  # as many bytes, in RAM
    target = np.empty_like(source[:batch])

    def ours() -> None:
        for start in range(0, len(rows), batch):
            reader.local(rows[start : start + batch])

    def memcpy() -> None:
        for start in range(0, len(rows), batch):
            np.copyto(target, source[start : start + batch])

    def theirs() -> None:
        import io

        tars = [str(path) for path in sorted(folder.glob("*.tar"))]
        data = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
        kept: list[np.ndarray] = []
        for sample in data:
            kept.append(npy.read_array(io.BytesIO(sample["npy"]), allow_pickle=False))
            if len(kept) == batch:
                np.stack(kept, out=target)
                kept.clear()

    own, copy, wds = turns([ours, memcpy, theirs], repeats=5)
    return {
        "reader_over_memcpy": round(copy / own, 3),
        "reader_over_webdataset": round(wds / own, 2),
        "reader_images_per_second": round(len(rows) / own),
    }


def step_work(
    training: Training, local: torch.Tensor, labels: torch.Tensor
) -> Callable[[], object]:
    """One optimisation step on a batch in memory."""

    def step() -> None:
        losses = training.losses(Batch(local.float(), labels, known=labels.numel()))
        training.optimizer.zero_grad()
        losses[:, 0].sum().backward()
        training.optimizer.step()

    return step


def bare_products(training: Training, local: torch.Tensor) -> Callable[[], object]:
    """Only the matrix products of a step, of one training, on float32 in memory."""
    model = training.model()
    device, pairs = local.device, len(training.task.pairs)
    dim, hidden, out = model.sizes.embed_dim, model.sizes.hidden_dim, model.sizes.output_dim
    rows = local.shape[0] * local.shape[1]
    z, zp = torch.randn(rows, dim, device=device), torch.randn(rows, out, device=device)
    w, t = torch.randn(dim, out, device=device), torch.randn(pairs, out, device=device)
    o = torch.randn(rows, pairs, device=device)
    text, h = training.task.pairs, torch.randn(pairs, hidden, device=device)
    w1 = torch.randn(dim, hidden, device=device)
    w2 = torch.randn(hidden, out, device=device)
    into, into_o = torch.empty_like(zp), torch.empty_like(o)

    def products() -> None:
        torch.mm(z, w, out=into)  # forward: project the locations, compare with the texts
        torch.mm(zp, t.T, out=into_o)
        torch.mm(o, t, out=into)  # backward: by locations, texts, and the image projector
        torch.mm(o.T, zp)
        torch.mm(z.T, zp)
        torch.mm(text, w1)  # the text projector, forward and backward
        torch.mm(h, w2)
        torch.mm(t, w2.T)
        torch.mm(h.T, t)
        torch.mm(text.T, h)

    return products


def fitting(folder: Path, recipe: Recipe) -> tuple[Training, float]:
    """A training on all images of a folder, and the seconds of its fastest epoch."""
    reader = FeatureReader(folder, verify=False)
    training = Training([recipe], reader.text_features()[0], seeds=[0])
    rates: list[float] = []

    def note(reports: list[EpochReport]) -> None:
        rates.append(reports[0].images_per_second)

    fit(training, reader, np.arange(len(reader)), seed=0, on_epoch=note)
    return training, len(reader) / max(rates)


def steps_and_epochs(folder: Path) -> dict[str, Any]:
    """A step against its matrix products; an epoch from shards against its steps."""
    reader = FeatureReader(folder, verify=False)
    recipe = Recipe(epochs=3)
    rows = np.arange(recipe.batch_size)
    local, labels = reader.local(rows), reader.labels[rows]
    training = Training([recipe], reader.text_features()[0], seeds=[0])
    step, products = turns([step_work(training, local, labels), bare_products(training, local)], 15)
    spans = []
    for _ in range(2):  # steps before and after the epochs
        spans.append(turns([step_work(training, local, labels)], 15)[0])
        if len(spans) == 1:
            _, epoch = fitting(folder, recipe)
    steps = -(-len(reader) // recipe.batch_size)
    return {
        "step_over_limit": round(products / step, 3),
        "step_ms": round(1000 * step, 2),
        "epoch_over_step": round(steps * statistics.mean(spans) / epoch, 3),
        "epoch_images_per_second": round(len(reader) / epoch),
    }


def online(folder: Path) -> dict[str, Any]:
    """Seconds an image of an epoch that runs RN50 at every step, and of a cached one."""
    from dclip.backbones import load_backbone
    from dclip.store.extraction import Extractor

    recipe = Recipe(epochs=2)
    training, cached = fitting(folder, recipe)
    reader = FeatureReader(folder, verify=False)
    backbone = load_backbone("RN50", pretrained="random", resolution=224)
    extractor = Extractor(backbone, device="cpu", batch_size=32)
    pixels = torch.randint(0, 256, (32, 224, 224, 3), dtype=torch.uint8)
    labels = reader.labels[:32]

    def step() -> None:
        with torch.inference_mode():
            local = extractor._forward(pixels).local.half()
        step_work(training, local.clone(), labels)()

    spent = turns([step], repeats=2)[0]
    extractor.close()
    return {"cached_over_online": round((spent / 32) / (cached / len(reader)), 1)}


def packed(folder: Path) -> dict[str, Any]:
    """27 trials trained together, over one alone, in this process."""
    reader = FeatureReader(folder, verify=False)
    recipe = Recipe(epochs=2)
    grid = [
        recipe.model_copy(
            update={"redundancy_weight": weight, "mfi_weight": alpha, "output_dim": dim}
        )
        for weight in (0.2, 0.5, 1.0)
        for alpha in (0.1, 0.3, 1.0)
        for dim in (32, 48, 64)
    ]
    pairs = reader.text_features()[0]

    def train(recipes: list[Recipe]) -> Callable[[], object]:
        return lambda: fit(
            Training(recipes, pairs, seeds=[0] * len(recipes)),
            reader, np.arange(len(reader)), seed=0,
        )  # fmt: skip

    together, alone = turns([train(grid), train([grid[-1]])], repeats=3)
    return {"packed27_over_single": round(together / alone, 2)}


def commands(scratch: Path) -> dict[str, Any]:
    """Whole commands on ``shapes``: a sweep of 27 trials, and one training."""

    def run(stage: str, *words: str) -> float:
        started = time.perf_counter()
        command = [sys.executable, "-m", f"pipeline.{stage}", "--output", str(scratch / "shapes")]
        subprocess.run(
            [*command, *words],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - started

    run("extract", "--split", "train")
    single = run("train", "--epochs", "10")
    grid = ("mfi_weight=0.1,0.3,1", "redundancy_weight=0.2,0.5,1", "output_dim=32,48,64")
    axes = [word for axis in grid for word in ("--space", f"dclip.{axis}")]
    sweep = run("sweep", "--epochs", "10", *axes)
    return {
        "sweep27_over_single": round(sweep / single, 2),
        "sweep27_seconds": round(sweep, 1),
        "single_seconds": round(single, 1),
    }


def worker(folder: Path, rank: int, workers: int, meet: Path) -> None:
    """One of several workers, in a process of its own; prints its images a second."""
    torch.set_num_threads(1)
    if workers > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meet}", rank=rank, world_size=workers
        )
    reader = FeatureReader(folder, verify=False)
    training = Training([Recipe(epochs=4)], reader.text_features()[0], seeds=[0])
    rates: list[float] = []

    def note(reports: list[EpochReport]) -> None:
        rates.append(reports[0].images_per_second)

    fit(training, reader, np.arange(len(reader)), seed=0, rank=rank, workers=workers, on_epoch=note)
    status = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in status if "kB" in line}
    print(json.dumps({"rate": statistics.median(rates[1:]), "rss": int(sizes["RssAnon"])}))


def workers(folder: Path, count: int, scratch: Path) -> dict[str, float]:
    """What the first of so many workers says."""
    meet = scratch / f"meet-{count}-{folder.name}"
    command = [sys.executable, __file__, "--worker", str(folder), str(count), str(meet)]
    running = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    told = [process.communicate()[0] for process in running]
    result: dict[str, float] = json.loads(told[0].splitlines()[-1])
    return result


def cpu() -> dict[str, Any]:
    """All measurements on the CPU."""
    result: dict[str, Any] = {}

    def add(part: dict[str, Any]) -> None:
        print(part, flush=True)
        result.update(part)

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        large = scratch / "large"
        write_features(large, images=2048, **{k: v for k, v in COCO.items() if k != "images"})
        add(reading(large))
        add(steps_and_epochs(large))
        write_features(scratch / "rn50", images=1024, **RN50)
        add(online(scratch / "rn50"))
        write_features(scratch / "tiny", images=2000, locations=37, dim=128, classes=16)
        add(packed(scratch / "tiny"))
        one, two = (workers(large, count, scratch)["rate"] for count in (1, 2))
        add({"workers_2_over_1": round(two / one, 3)})
        for count in (1000, 10_000):
            write_features(scratch / str(count), images=count, locations=37, dim=512, classes=80)
        small, big = (workers(scratch / str(n), 1, scratch)["rss"] for n in (1000, 10_000))
        add({"rss_10k_over_1k": round(big / small, 3), "rss_mib": round(big / 1024)})
        add(commands(scratch))
    return result


# ---------------------------------------------------------------------------------------------
# GPU
# ---------------------------------------------------------------------------------------------


class OnDevice:
    """Random features of a data set's size, on the device."""

    views = 1

    def __init__(self, images: int, locations: int, dim: int, classes: int) -> None:
        self.grid = (1, locations)
        random = torch.Generator().manual_seed(0)
        self.labels = (torch.rand(images, classes, generator=random) < 3 / classes).to(torch.int8)
        self._values = torch.empty(images, locations, dim, dtype=torch.float16, device="cuda")
        for part in self._values.split(1024):
            part.normal_()

    def local(self, rows: np.ndarray, views: np.ndarray | None = None) -> torch.Tensor:  # noqa: ARG002
        """Features of some rows."""
        return self._values.index_select(0, torch.from_numpy(rows).to("cuda", non_blocking=True))


def gpu(images: int, epochs: int) -> dict[str, Any]:
    """Epochs of COCO-14's size in batches of 32 and 256, and 27 trials together."""
    torch.set_float32_matmul_precision("high")
    source = OnDevice(images, COCO["locations"], COCO["dim"], COCO["classes"])
    pairs = texts(COCO["classes"], COCO["dim"])
    result: dict[str, Any] = {"images": images, "epochs": epochs}

    def timed(recipes: list[Recipe], count: int) -> float:
        training = Training(recipes, pairs, seeds=[0] * len(recipes), device="cuda")
        spent = [time.perf_counter()]

        def note(_: list[EpochReport]) -> None:
            torch.cuda.synchronize()
            spent.append(time.perf_counter())

        fit(training, source, np.arange(images), seed=0, on_epoch=note)
        return count * statistics.median(np.diff(spent).tolist())

    measured = min(epochs, 4)  # epochs alike; the rest is their median's multiple
    for batch in (32, 256):
        recipe = Recipe(epochs=measured, batch_size=batch)
        seconds = timed([recipe], epochs)
        local = source.local(np.arange(batch))
        training = Training([recipe], pairs, seeds=[0], device="cuda")

        def synced(work: Callable[[], object]) -> Callable[[], object]:
            def run() -> None:
                for _ in range(20):
                    work()
                torch.cuda.synchronize()

            return run

        labels = source.labels[:batch].to("cuda")
        step, products = turns(
            [synced(step_work(training, local, labels)), synced(bare_products(training, local))]
        )
        flops = 2 * batch * COCO["locations"] * (2 * 512 * 256 + 3 * 256 * 160)
        result[f"batch_{batch}"] = {
            "epochs50_seconds": round(seconds * 50 / epochs, 1),
            "images_per_second": round(images * epochs / seconds),
            "step_over_limit": round(products / step, 3),
            "step_ms": round(1000 * step / 20, 3),
            "tflops": round(flops * images * epochs / batch / seconds / 1e12, 2),
            "gb_per_second": round(images * epochs * 197 * 512 * 2 / seconds / 1e9, 1),
        }
        print(result[f"batch_{batch}"], flush=True)
    one = Recipe(epochs=2, batch_size=256)
    grid = [
        one.model_copy(update={"redundancy_weight": w, "mfi_weight": a, "output_dim": d})
        for w in (0.2, 0.5, 1.0) for a in (0.1, 0.3, 1.0) for d in (128, 192, 256)
    ]  # fmt: skip
    result["packed27_over_single"] = round(timed(grid, 1) / timed([grid[-1]], 1), 2)
    result["peak_gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    return result


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--images", type=int, default=COCO["images"], help="on a GPU")
    parser.add_argument("--epochs", type=int, default=50, help="on a GPU")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        folder, count, meet, rank = arguments.worker
        worker(Path(folder), int(rank), int(count), Path(meet))
        return
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    on_cpu = arguments.device == "cpu"
    result = cpu() if on_cpu else gpu(arguments.images, arguments.epochs)
    tell(f"train-{arguments.device}", result, save=arguments.save)


if __name__ == "__main__":
    main()
