"""Pairs of images and captions, and labelled scenes, drawn for the small CLIP.

Worker processes load this file and no more: open_clip would take each of them seconds.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from dclip.world import shapes

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Phase:
    """One stretch of the curriculum.

    Attributes:
        name: What the log calls it.
        canvas: Side in pixels at which pairs are drawn.
        side: Side in pixels at which the model sees them, a multiple of its stride, at most
            ``canvas``.
        neighbours: Fewest and most objects beside the caption's.
        attributes: Whether captions tell more than the name.
        pairs: How many image-caption pairs are drawn; they are passed over again and again.
        steps: Optimiser steps.
        batch: Pairs a step.
        learning_rate: Peak of a warm-up and cosine schedule of its own.
        is_cropped: Whether a larger canvas is cropped, in each step elsewhere, rather than shrunk.
        warm_up: Steps to the peak, at most a quarter of all.
    """

    name: str
    canvas: int
    side: int
    neighbours: tuple[int, int]
    attributes: bool
    pairs: int
    steps: int
    batch: int
    learning_rate: float
    is_cropped: bool = False
    warm_up: int = 50


CURRICULA: dict[str, tuple[Phase, ...]] = {
    "tiny": (
        Phase("names", 96, 64, (0, 0), False, 16_000, 600, 64, 3e-3),
        Phase("close-ups", 96, 96, (0, 3), True, 40_000, 3_600, 64, 2e-3),
        Phase("scenes", 192, 192, (0, 4), True, 16_000, 1_000, 32, 1e-3),
    ),
    "tiny-vit": (
        Phase("names", 112, 96, (0, 0), False, 32_000, 1_500, 128, 2e-3, True, 200),
        Phase("close-ups", 112, 96, (0, 3), True, 48_000, 2_000, 128, 2e-3, True, 200),
        Phase("scenes", 192, 192, (0, 4), True, 20_000, 1_000, 64, 1e-3, False, 100),
    ),
}
"""How each of the small CLIPs is trained."""


@dataclass(frozen=True)
class Pairs:
    """Image-caption pairs in memory; equal captions are kept once.

    Attributes:
        images: RGB images.
        captions: The distinct captions.
        caption_of: Index into ``captions`` of every image.
    """

    images: UInt8[Tensor, "images 3 height width"]
    captions: tuple[str, ...]
    caption_of: Int[Tensor, " images"]


def draw_pairs(phase: Phase, first: int, *, seed: int, workers: int) -> Pairs:
    """Pairs ``first``, ``first + 1``, ... of the shapes world for one phase.

    Args:
        phase: Says how many, and of which kind.
        first: Index of the first pair; phases take ranges of their own.
        seed: Of the world.
        workers: Processes that draw; with 0, this one does.
    """
    chunk = 250
    jobs = [
        (phase, seed, range(start, min(start + chunk, first + phase.pairs)))
        for start in range(first, first + phase.pairs, chunk)
    ]
    side = phase.canvas if phase.is_cropped else phase.side
    images = torch.empty((phase.pairs, 3, side, side), dtype=torch.uint8)
    written: list[str] = []
    for pixels, captions in _map(_draw_chunk, jobs, workers):
        images[len(written) : len(written) + len(captions)] = torch.from_numpy(pixels)
        written.extend(captions)
    distinct = {caption: number for number, caption in enumerate(sorted(set(written)))}
    return Pairs(
        images=images,
        captions=tuple(distinct),
        caption_of=torch.tensor([distinct[caption] for caption in written]),
    )


def _map(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """Results in the order of the jobs, from worker processes if there are to be any."""
    if not workers:
        yield from map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(work, jobs)


def _draw_chunk(job: tuple[Phase, int, range]) -> tuple[UInt8[np.ndarray, "n 3 h w"], list[str]]:
    """Images, channels first, and captions of some pairs; runs in a worker process."""
    phase, seed, indices = job
    scenes = [
        shapes.photo(
            index,
            seed=seed,
            resolution=phase.canvas,
            neighbours=phase.neighbours,
            attributes=phase.attributes,
        )
        for index in indices
    ]
    images = np.stack([scene.image for scene in scenes]).transpose(0, 3, 1, 2)
    if phase.side != phase.canvas and not phase.is_cropped:
        torch.set_num_threads(1)
        shrunk = F.interpolate(
            torch.from_numpy(np.ascontiguousarray(images)).float(),
            (phase.side, phase.side),
            mode="bilinear",
            antialias=True,
        )
        images = shrunk.round().clamp(0, 255).byte().numpy()
    return np.ascontiguousarray(images), [scene.caption for scene in scenes]


def draw_scenes(
    split: str, size: int, *, seed: int, workers: int
) -> Iterator[tuple[UInt8[Tensor, "images 3 height width"], UInt8[Tensor, "images classes"]]]:
    """Images and label vectors of the first scenes of a split, in batches."""
    jobs = [(split, seed, range(at, min(at + 100, size))) for at in range(0, size, 100)]
    for images, labels in _map(_draw_scene_chunk, jobs, workers):
        yield torch.from_numpy(images), torch.from_numpy(labels)


def _draw_scene_chunk(
    job: tuple[str, int, range],
) -> tuple[UInt8[np.ndarray, "images 3 height width"], UInt8[np.ndarray, "images classes"]]:
    """One batch of `draw_scenes`; runs in a worker process."""
    split, seed, indices = job
    scenes = [shapes.scene(split, index, seed=seed) for index in indices]
    images = np.stack([scene.image for scene in scenes]).transpose(0, 3, 1, 2)
    labels = np.stack([scene.labels for scene in scenes])
    return np.ascontiguousarray(images), labels
