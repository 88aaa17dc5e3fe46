"""What runs in other processes of a training and of a table of rows; MLflow is the driver's."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from dclip.data.listing import Listing
from dclip.fitting.fit import EpochReport, divergence, scores_of
from dclip.fitting.pack import Pack
from dclip.methods.method import Method, initial
from dclip.methods.registry import find_method
from dclip.metrics import expected_calibration_error, inter_class_cosine, top1_accuracy
from dclip.provenance import git_commit
from dclip.store.paths import write_text
from pipeline.features.opened import open_features
from pipeline.records.checkpoints import write_state
from pipeline.records.trainings import HISTORY, STATE, of_subset, read_history
from pipeline.settings.training import Trained
from pipeline.work.memory import count_anew, peak
from pipeline.work.packs import Job, fit_pack, scored_features, task_of
from pipeline.work.scores import measure


def fit_and_keep(settings: Mapping[str, Any]) -> str:
    """One worker of Ray Train: train a pack, and keep its state and history.

    Args:
        settings: Reference of the ``job``, and ``folder`` of state and history.

    Returns:
        Where all of the pack has diverged, which retrying would not mend; else nothing.
    """
    job: Job = ray.get(settings["job"])
    folder: Path = settings["folder"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    history: list[Any] = []
    saved = time.monotonic()

    def save(pack: Pack) -> None:
        nonlocal saved
        if rank == 0:
            write_state(folder / STATE, pack)
            saved = time.monotonic()

    def begun(pack: Pack) -> None:
        history.extend(read_history(folder / HISTORY)[: pack.epoch])

    def on_epoch(pack: Pack, reports: list[EpochReport]) -> None:
        if rank == 0:  # before the state, which must not tell of more than the history
            history.append([report.line() for report in reports])
            text = "".join(json.dumps(line) + "\n" for line in history)
            write_text(folder / HISTORY, text)
        save(pack)

    def on_step(pack: Pack) -> None:
        if time.monotonic() - saved > job.trained[0].loop.checkpoint_seconds:
            save(pack)

    return fit_pack(
        job,
        ray.train.torch.get_device(),
        state=folder / STATE,
        rank=rank,
        workers=context.get_world_size(),
        begun=begun,
        on_epoch=on_epoch,
        on_step=on_step,
    ).diverged


def fit_and_score(
    job: Job,
    device: str,
    test: Sequence[str],
    threshold: float,
    test_images: Listing | None = None,
) -> list[dict[str, Any]]:
    """A task of a table of rows: train a pack to its last epoch and score that on the test split.

    Args:
        job: The pack.
        device: ``"cpu"`` or ``"cuda"``.
        test: Features of the test split.
        threshold: Probability above which a class counts as predicted.
        test_images: Of the test split, for methods that are fed images themselves.

    Returns:
        One result a training.
    """
    history: list[list[EpochReport]] = []
    begun = ended = 0.0
    is_own = count_anew(torch.device(device))

    def start(_: Pack) -> None:
        nonlocal begun, ended
        begun = ended = time.perf_counter()

    def on_epoch(_: Pack, reports: list[EpochReport]) -> None:
        nonlocal ended
        history.append(reports)
        ended = time.perf_counter()

    fitted = fit_pack(
        job,
        torch.device(device),
        begun=start,
        on_epoch=on_epoch,
        test=test,
        test_images=test_images,
    )
    most = peak(torch.device(device), is_own=is_own)
    pack, scores, labels = fitted.pack, fitted.scores, fitted.labels
    of_test = _Test(job, device, test, test_images, threshold)
    assert scores is not None  # as there is a test split
    assert labels is not None
    results = []
    for number, (trained, seed) in enumerate(zip(job.trained, job.seeds, strict=True)):
        diverged = divergence(pack, number) if number in pack.diverged else ""
        if not diverged and not scores[number].isfinite().all():
            diverged = "its scores are no numbers"
        results.append(
            {
                "train": trained.loop.loop.model_dump(),
                **_about(trained, seed, threshold),
                "parameters": pack.num_trained(number),
                "diverged": diverged,
                "history": [reports[number].line() for reports in history],
                "seconds": (ended - begun) / len(pack) if history else None,
                "together": len(pack),
                "peak": most._asdict(),
                **of_test.scored(pack.method(number), scores[number], labels, diverged),
            }
        )
    return results


def score_alone(
    job: Job,
    device: str,
    test: Sequence[str],
    threshold: float,
    test_images: Listing | None = None,
) -> list[dict[str, Any]]:
    """A task of a table of rows: what the loop does not train, fitted if it trains itself.

    Args:
        job: Of one training.
        device: ``"cpu"`` or ``"cuda"``.
        test: Features of the test split.
        threshold: Probability above which a class counts as predicted.
        test_images: Of the test split, for methods that are fed images themselves.

    Returns:
        Its result.
    """
    place = torch.device(device)
    (trained,), (seed,) = job.trained, job.seeds
    is_own = count_anew(place)
    is_fitted = trained.own.trained_by is not None
    seconds = None
    with job.opened(place) as (reader, features):
        task = task_of(job, reader, device)
        method = initial(find_method(job.method), trained.own, task, seed=seed).on(device)
        if is_fitted:
            left, rows, _ = job.data(features, reader.class_names)
            begun = time.perf_counter()
            method.fit(left, rows, seed=seed)
            seconds = time.perf_counter() - begun
    source, shown = scored_features(job, test, test_images)
    scores, labels = scores_of(method.eval(), source, shown), source.labels[shown]
    of_test = _Test(job, device, test, test_images, threshold)
    most = peak(place, is_own=is_own)
    diverged = "" if scores.isfinite().all() else "its scores are no numbers"
    weights = [w.numel() for w in method.parameters() if w.requires_grad] if is_fitted else []
    return [
        {
            **_about(trained, seed, threshold),
            "parameters": sum(weights),
            "diverged": diverged,
            "history": [],
            "seconds": seconds,
            "together": 1,
            "peak": most._asdict(),
            **of_test.scored(method, scores, labels, diverged),
        }
    ]


def _about(trained: Trained, seed: int, threshold: float) -> dict[str, Any]:
    """What a result says of its training."""
    return {
        trained.own.name: trained.own.model_dump(mode="json"),
        **of_subset(trained.subset),
        "seed": seed,
        "threshold": threshold,
        "commit": git_commit(),
    }


@dataclass(frozen=True)
class _Test:
    """A test split that methods of a job are scored on.

    Attributes:
        job: What was trained.
        device: Where.
        features: Of the split.
        images: Theirs, for methods that are fed images themselves.
        threshold: Probability above which a class counts as predicted.
    """

    job: Job
    device: str
    features: Sequence[str]
    images: Listing | None
    threshold: float

    @torch.no_grad()
    def scored(
        self, method: Method[Any], scores: Tensor, labels: Tensor, diverged: str
    ) -> dict[str, Any]:
        """What a result says of scores, and of the texts they come from.

        Args:
            method: That has scored.
            scores: Of the images.
            labels: Of the same.
            diverged: Why scores mean nothing; empty where they do.
        """
        if diverged:
            return {"class_cosine": None, "test": {}}
        texts = method.class_features()
        alone = texts is None or len(texts) < 2
        cosine = None if texts is None or alone else inter_class_cosine(texts.float().cpu())
        is_probability = method.tells_probabilities()
        test = measure(scores, labels, self.threshold if is_probability else None)
        if is_probability:
            ece = expected_calibration_error(scores, labels)
            test["ece"] = None if ece != ece else ece
        protocol = self.job.trained[0].subset.protocol
        if protocol is None:
            return {"class_cosine": cosine, "test": test}
        test["top1"] = top1_accuracy(scores, labels)
        result = {"class_cosine": cosine, "test": test}
        return result if protocol == "few_shot" else result | self._of_new(method, test)

    def _of_new(self, method: Method[Any], test: dict[str, Any]) -> dict[str, Any]:
        """Accuracy on classes that were not trained, put into the scores; or why there is none."""
        reader = open_features(self.features, self.job.output, verify=False)
        task = task_of(self.job, reader, self.device, new=True).to(self.device)
        try:
            asked = method.for_classes(task)
        except ValueError as error:
            test["top1_new"] = None
            return {"not_asked": str(error)}
        source, rows = scored_features(self.job, self.features, self.images, new=True)
        test["top1_new"] = top1_accuracy(scores_of(asked.eval(), source, rows), source.labels[rows])
        return {}
