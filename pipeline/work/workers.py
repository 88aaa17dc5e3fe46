"""What runs in other processes of a training and of an ablation; MLflow is the driver's alone."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from dclip.fitting.fit import EpochReport, divergence
from dclip.fitting.pack import Pack
from dclip.methods.registry import find_method
from dclip.store.paths import write_text
from pipeline.records.checkpoints import write_state
from pipeline.records.provenance import git_commit
from pipeline.records.trainings import HISTORY, STATE, read_history
from pipeline.work.packs import Job, fit_pack, num_parameters
from pipeline.work.scores import measure


def fit_and_keep(settings: Mapping[str, Any]) -> str:
    """One worker of Ray Train: train a pack, and keep its state and history.

    Args:
        settings: ``job``, and ``folder`` of state and history.

    Returns:
        Where all of the pack has diverged, which retrying would not mend; else nothing.
    """
    job: Job = settings["job"]
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
    job: Job, device: str, test: Sequence[str], threshold: float
) -> list[dict[str, Any]]:
    """A task of an ablation: train a pack to its last epoch and score that on the test split.

    Args:
        job: The pack.
        device: ``"cpu"`` or ``"cuda"``.
        test: Features of the test split.
        threshold: Probability above which a class counts as predicted.

    Returns:
        One result a training.
    """
    history: list[list[EpochReport]] = []
    fitted = fit_pack(
        job,
        torch.device(device),
        on_epoch=lambda _, reports: history.append(reports),
        test=test,
    )
    pack, scores, labels = fitted.pack, fitted.scores, fitted.labels
    assert scores is not None  # as there is a test split
    assert labels is not None
    is_probability = find_method(job.method).gives_probabilities
    results = []
    for number, (trained, seed) in enumerate(zip(job.trained, job.seeds, strict=True)):
        diverged = divergence(pack, number) if number in pack.diverged else ""
        if not diverged and not scores[number].isfinite().all():
            diverged = "its scores are no numbers"
        results.append(
            {
                "train": trained.loop.loop.model_dump(),
                trained.own.name: trained.own.model_dump(mode="json"),
                "seed": seed,
                "parameters": num_parameters(pack.method(number)),
                "diverged": diverged,
                "history": [reports[number].line() for reports in history],
                "threshold": threshold,
                "test": {}
                if diverged
                else measure(scores[number], labels, threshold if is_probability else None),
                "commit": git_commit(),
            }
        )
    return results
