"""Memory of SmartCLIP's loss, forward and backward: two matrix products against repeated tensors.

    python benchmarks/smartclip_loss.py               on the CPU, minutes, up to 7 GB
    python benchmarks/smartclip_loss.py --device cuda both at 1,024 pairs, which takes 27 GB
    python benchmarks/smartclip_loss.py --save        keep the result in benchmarks/results

The repeated form is that of the authors' code, written anew from what it does: for each of the two
losses, images, masks and texts are repeated to a row for each pair of pairs, multiplied, normalised
and multiplied again. Both forms get the same features in float32 (512 dimensions, hard masks); the
losses agree. On the CPU memory is the growth of the process's peak, each run in a process of its
own; on a GPU it is what PyTorch had allocated at most, less what was there before. The last line of
stdout is JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from common import tell
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones.clip import OpenCLIPBackbone
from dclip.methods.method import Task
from dclip.methods.pixels.settings import SmartCLIPSettings
from dclip.methods.pixels.smartclip import SmartCLIP
from dclip.methods.smartclip import straight_through_mask
from dclip.retrieval import Encoded

DIM, PAIRS = 512, 1024
CPU_SIZES = {"products": (256, 512, 1024), "repeated": (128, 256, 512)}


def by_products(method: SmartCLIP, images: Tensor, texts: Tensor, logits: Tensor) -> Tensor:
    """The loss as the project computes it."""
    return method.contrast(images, Encoded(texts, logits, 0))["loss"]


def by_repetition(method: SmartCLIP, images: Tensor, texts: Tensor, logits: Tensor) -> Tensor:
    """The same with a row of all dimensions for every image and text."""
    own, pairs = method.settings, len(images)
    masks = straight_through_mask(logits)
    texts = texts / texts.norm(dim=1, keepdim=True)
    targets, losses = torch.arange(pairs, device=images.device), []
    for is_sidm in (True, False):

        def rows(values: Tensor, is_outer: bool) -> Tensor:
            return values.repeat_interleave(pairs, 0) if is_outer else values.repeat(pairs, 1)

        seen = rows(images, is_sidm) * rows(masks, not is_sidm)
        seen = seen / seen.norm(dim=1, keepdim=True)
        cosines = (seen * rows(texts, not is_sidm)).sum(1).view(pairs, pairs)
        losses.append(F.cross_entropy(own.matching_scale * cosines, targets))
    return own.matching_weight * sum(losses) + own.sparsity_weight * masks.abs().mean()


FORMS = {"products": by_products, "repeated": by_repetition}


def settings_of() -> SmartCLIP:
    """The method with its settings; the towers, which take no part, are small."""
    model = open_clip.CLIP(
        embed_dim=DIM,
        vision_cfg={"layers": 1, "width": 64, "head_width": 64, "image_size": 32, "patch_size": 16},
        text_cfg={"vocab_size": 64, "width": DIM, "heads": 8, "layers": 1},
    )
    backbone = OpenCLIPBackbone(model, open_clip.SimpleTokenizer(), name="small")
    task = Task.of_features(("a",), torch.ones(2, DIM))
    return SmartCLIP(SmartCLIPSettings(), Task(task.class_names, task.pairs, task.texts, backbone))


def peak_rss(reset: bool = False) -> int:
    """The most bytes the process has had in memory, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(form: str, pairs: int, device: str) -> dict[str, float]:
    """Bytes and seconds of one forward and backward pass, and the loss."""
    method = settings_of()
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(pairs, DIM, generator=generator) for _ in range(3)]
    few = [value[:4].to(device).requires_grad_() for value in values]
    FORMS[form](method, *few).backward()  # whatever the first pass sets aside
    leaves = [value.to(device).requires_grad_() for value in values]
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else peak_rss(reset=True)
    started = time.perf_counter()
    loss = FORMS[form](method, *leaves)
    loss.backward()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    after = torch.cuda.max_memory_allocated() if on_gpu else peak_rss()
    gradients = torch.stack([leaf.grad.norm() for leaf in leaves])
    return {
        "bytes": after - before,
        "seconds": round(seconds, 4),
        "loss": float(loss),
        "gradient": float(gradients.norm()),
    }


def in_a_new_process(form: str, pairs: int, device: str) -> dict[str, float]:
    """The same, where nothing else was in memory before."""
    words = [sys.executable, __file__, "--device", device, "--only", form, str(pairs)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure both forms at several sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="keep the result")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only[0], int(given.only[1]), given.device)))
        return
    sizes = CPU_SIZES if given.device == "cpu" else dict.fromkeys(FORMS, (256, PAIRS))
    found: dict[str, dict[str, Any]] = {}
    for form, every in sizes.items():
        found[form] = {}
        for pairs in every:
            found[form][str(pairs)] = one = in_a_new_process(form, pairs, given.device)
            print(f"{form:9} {pairs:5} pairs: {one['bytes'] / 1e6:10,.1f} MB, {one['seconds']} s")
    for pairs in sizes["repeated"]:
        for name in ("loss", "gradient"):
            two = [found[form].get(str(pairs), {}).get(name) for form in FORMS]
            assert None in two or abs(two[0] - two[1]) < 1e-4 * abs(two[1]), (pairs, name, two)
    largest = max(sizes["repeated"])
    products = found["products"][str(PAIRS)]["bytes"]
    result = {
        "dim": DIM,
        "device": given.device,
        **found,
        "repeated_pairs": largest,
        "repeated_over_products_of_1024": round(
            found["repeated"][str(largest)]["bytes"] / products, 1
        ),
    }
    tell(f"smartclip_loss-{given.device}", result, save=given.save)


if __name__ == "__main__":
    main()
