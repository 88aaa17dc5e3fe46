"""The one engine that trains: a pack of trainings of a method, on features of complete plans.

A worker of Ray Train, a sweep's process and an ablation's task all call :func:`fit_pack`; they
differ in what they do after an epoch, and in what becomes of the pack.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dclip.clip_settings import ClipSettings
from dclip.data.listing import Listing
from dclip.fitting.batches import FeatureSource, hold_out
from dclip.fitting.drawn import columns_of, new_columns, part_of, with_labels
from dclip.fitting.fit import DivergenceError, EpochReport, fit, share_state
from dclip.fitting.pack import Pack
from dclip.logits import kept_sigmoid
from dclip.methods.method import Method, Task, initial, with_classes
from dclip.methods.registry import find_method
from dclip.methods.settings import MethodSettings
from dclip.store.reader import FeatureReader
from pipeline.features.alone import ImagesAlone
from pipeline.features.backbone import BackboneInfo
from pipeline.features.cache import cached_features
from pipeline.features.opened import frozen_clip, open_features, with_images
from pipeline.records.checkpoints import read_state
from pipeline.settings.training import Trained


@dataclass(frozen=True)
class Job:
    """A pack to be trained, as other processes are told of it.

    Attributes:
        method: Name of the method.
        trained: Settings of each training; they can share passes over the features.
        seeds: Seed of the initial weights of each.
        data_seed: Seed of the shuffle and of the held-out images.
        features: Folder of the clean features, then those of their views.
        output: The output folder.
        clip: The frozen CLIP, for methods that train through it.
        images: Of the features, for methods that are fed images themselves.
        count: How many of the images there are, where no features are kept of them.
        draw_seed: Seed of the part of the data that is drawn; ``data_seed`` where none is given.
    """

    method: str
    trained: tuple[Trained, ...]
    seeds: tuple[int, ...]
    data_seed: int
    features: tuple[str, ...]
    output: Path
    clip: ClipSettings | None = None
    images: Listing | None = None
    count: int = 0
    draw_seed: int | None = None

    def data(
        self, features: FeatureSource, class_names: Sequence[str]
    ) -> tuple[FeatureSource, np.ndarray, np.ndarray]:
        """Features with the labels that are left, rows to train on, and rows to validate on.

        Both are of the subset: who has 50 images holds some of these 50 out. Of the shots of a
        protocol none is held out.

        Raises:
            ValueError: See :func:`dclip.fitting.drawn.part_of`.
        """
        one = self.trained[0]
        seed = self.data_seed if self.draw_seed is None else self.draw_seed
        every = np.arange(len(features.labels))
        left, kept, _ = part_of(one.subset, features, every, class_names, seed=seed)
        fraction = one.subset.held_out(one.loop.val_fraction)
        rows, held = hold_out(len(kept), fraction, seed=self.data_seed)
        return left, kept[rows], kept[held]

    @contextmanager
    def opened(
        self, device: torch.device, gpu_share: float = 1.0
    ) -> Iterator[tuple[FeatureReader | ImagesAlone, FeatureSource]]:
        """What is trained on: its reader, and the source of batches.

        Args:
            device: Where it is trained.
            gpu_share: Share of the GPU's memory that this process may fill.

        Raises:
            StageError: See :func:`pipeline.features.cache.cached_features`.
        """
        own, cache = self.trained[0].own, self.trained[0].loop.cache
        if self.images is not None and not self.features:
            assert self.clip is not None
            alone = ImagesAlone(self.count, frozen_clip(self.clip, str(device)))
            yield alone, with_images(alone, self.images, own)
            return
        is_read_again = own.trained_by is not None and self.images is None
        where = cache if is_read_again else "none"
        with cached_features(
            self.features, self.output, cache=where, device=device, gpu_share=gpu_share
        ) as (reader, features):
            yield reader, self.beside(reader, features)

    def beside(
        self, reader: FeatureReader | ImagesAlone, features: FeatureSource | None = None
    ) -> FeatureSource:
        """The features, with their images where the method is fed them.

        Args:
            reader: Of the features, or of images of which none are kept.
            features: What to train on of the former; left out: the reader itself.
        """
        if self.images is not None:
            return with_images(reader, self.images, self.trained[0].own)
        if features is None:
            assert isinstance(reader, FeatureReader)
            return reader
        return features

    def columns(self, class_names: Sequence[str], *, new: bool = False) -> list[int] | None:
        """Columns of the classes that are trained and scored; None for all.

        Args:
            class_names: Of all classes.
            new: Those instead that a protocol keeps for scoring alone.
        """
        subset = self.trained[0].subset
        return (new_columns if new else columns_of)(subset, class_names)


@dataclass(frozen=True)
class Fitted:
    """A pack that was trained.

    Attributes:
        pack: As far as it came.
        diverged: Where the last of its trainings left the finite numbers; empty if any went on to
            the last epoch.
        scores: Of every image of the test split, by each training; None where none was asked for.
        labels: Of the test split.
    """

    pack: Pack
    diverged: str
    scores: Tensor | None = None
    labels: Tensor | None = None


def begin(
    job: Job,
    reader: FeatureReader | ImagesAlone,
    device: torch.device | str = "cpu",
    *,
    fresh: bool = True,
) -> Pack:
    """A pack with initial weights, on these features.

    Args:
        job: What it is of.
        reader: Features.
        device: Where it is trained.
        fresh: False for a pack whose state is read.
    """
    train = job.trained[0].loop
    use_precision(train.precision, torch.device(device))
    task = task_of(job, reader, device)
    own = [one.own for one in job.trained]
    kind = find_method(job.method)
    return Pack(kind, own, train.loop, task, seeds=job.seeds, device=device, fresh=fresh)


def task_of(
    job: Job, reader: FeatureReader | ImagesAlone, device: torch.device | str, *, new: bool = False
) -> Task:
    """The classes that a job is about, with the frozen CLIP where the method needs it.

    Args:
        job: What is trained or scored.
        reader: Features; they hold the texts of all classes.
        device: Of the frozen CLIP.
        new: The classes instead that a protocol keeps for scoring alone.
    """
    task = Task.of_features(reader.class_names, *reader.text_features())
    task = replace(task, sigmoid=kept_sigmoid(reader.manifest.spec))
    columns = job.columns(reader.class_names, new=new)
    if columns is not None:
        task = with_classes(task, columns)
    needs_texts = any(one.own.own_texts() for one in job.trained)
    kind = find_method(job.method).Settings
    if kind.needs_gradients or kind.sees_images() or needs_texts:
        assert job.clip is not None
        task = replace(task, backbone=frozen_clip(job.clip, str(device)))
    return task


def use_precision(precision: str, device: torch.device) -> None:
    """Let a GPU multiply in TF32, unless the settings want float32 throughout."""
    if precision == "auto" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def fit_pack(
    job: Job,
    device: torch.device,
    *,
    state: Path | None = None,
    gpu_share: float = 1.0,
    rank: int = 0,
    workers: int = 1,
    begun: Callable[[Pack], None] | None = None,
    on_epoch: Callable[[Pack, list[EpochReport]], None],
    on_step: Callable[[Pack], None] | None = None,
    test: Sequence[str] = (),
    test_images: Listing | None = None,
) -> Fitted:
    """Train a pack to its last epoch, from its kept state where there is one.

    The state is read here and written by ``on_epoch`` and ``on_step``: whoever keeps it has records
    of their own, which are to be on disk before it.

    Args:
        job: What is trained, on what.
        device: Where.
        state: File of the kept state, which need not be there.
        gpu_share: Share of the GPU's memory that this process may fill.
        rank: Which worker this is; the first one's state is that of all.
        workers: Number of workers, joined in the default process group.
        begun: Called once the pack stands where it goes on.
        on_epoch: Called after each epoch, with one report a training.
        on_step: Called after each step but an epoch's last.
        test: Features of a test split, which the weights of the end are asked of.
        test_images: Their images, for methods that are fed them.

    Raises:
        StageError: Features or state are missing or damaged, or do not fit where they should go.
        ValueError: See :func:`dclip.fitting.fit.fit`.
    """
    diverged = ""
    with job.opened(device, gpu_share) as (reader, features):
        stands = state is not None and state.is_file()
        pack = begin(job, reader, device, fresh=not stands)
        if state is not None and stands and rank == 0:
            read_state(state, pack)
        if workers > 1:  # what another node sees of the file may be older
            share_state(pack, rank)
        if begun is not None:
            begun(pack)
        left, rows, val_rows = job.data(features, reader.class_names)
        try:
            fit(
                pack,
                left,
                rows,
                seed=job.data_seed,
                val_rows=val_rows,
                rank=rank,
                workers=workers,
                on_epoch=lambda reports: on_epoch(pack, reports),
                on_step=None if on_step is None else lambda: on_step(pack),
            )
        except DivergenceError as error:
            diverged = str(error)
    if not test:
        return Fitted(pack, diverged)
    scored = scored_features(job, test, test_images)
    scores = pack.predict(scored.source, scored.rows)
    return Fitted(pack, diverged, scores, scored.source.labels[scored.rows])


class Scored(NamedTuple):
    """What of the test split is scored.

    Attributes:
        source: Features, with the labels of the classes that are asked for.
        rows: Of the images: all, or under a protocol that parts the classes those that show one.
    """

    source: FeatureSource
    rows: np.ndarray


def scored_features(
    job: Job, test: Sequence[str], images: Listing | None = None, *, new: bool = False
) -> Scored:
    """Features of the test split, with the labels of the classes that a job is about.

    Args:
        job: What is scored.
        test: Features.
        images: Theirs, for methods that are fed images themselves.
        new: The classes instead that a protocol keeps for scoring alone.
    """
    reader = open_features(test, job.output, verify=False)
    source: FeatureSource = reader
    if images is not None:
        source = with_images(reader, images, job.trained[0].own)
    columns = job.columns(reader.class_names, new=new)
    if columns is not None:
        source = with_labels(source, source.labels[:, columns])
    rows = np.arange(len(source.labels))
    if job.trained[0].subset.protocol == "base_to_new":
        rows = rows[(source.labels == 1).any(1).numpy()]
    return Scored(source, rows)


def num_parameters(method: Method[Any]) -> int:
    """How many numbers are trained."""
    return sum(weight.numel() for weight in method.parameters() if weight.requires_grad)


def placeholder(
    name: str,
    own: MethodSettings,
    class_names: Sequence[str],
    backbone: BackboneInfo,
    clip: ClipSettings | None = None,
) -> Method[Any]:
    """A method of some settings before any text is encoded, to be counted or looked at.

    Args:
        name: Of the method.
        own: Its settings.
        class_names: In column order.
        backbone: What is known of it.
        clip: The frozen CLIP itself, for methods whose weights are made from it.
    """
    task = Task.placeholder(class_names, backbone.embed_dim, backbone.text_width)
    if clip is not None and own.sees_images():
        task = replace(task, backbone=frozen_clip(clip, "cpu"))
    return initial(find_method(name), own, task, seed=0, follow_task=False)
