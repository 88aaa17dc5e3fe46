"""What a process of a sweep does: it trains a pack of trials, and keeps and reports each epoch."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray import tune

from dclip.clip_settings import ClipSettings
from dclip.data.listing import Listing
from dclip.fitting.fit import EpochReport, divergence
from dclip.fitting.pack import Pack
from dclip.fitting.subset import Subset
from dclip.methods.registry import find_method
from dclip.methods.settings import MethodSettings
from dclip.store.paths import write_text
from dclip.words import told
from pipeline.records.checkpoints import write_state
from pipeline.settings.sections import TrainConfig
from pipeline.settings.space import SEED, Entry
from pipeline.settings.training import Trained, trained_at
from pipeline.work.packs import Job, fit_pack

PACK = "pack"
SCORE = "score"
"""What Tune compares by: the best val/map of the pack, -1 where all of it failed."""


@dataclass(frozen=True)
class Sweep:
    """What all packs of a sweep share.

    Attributes:
        method: Name of the method.
        train: Settings of the loop, outside the points.
        own: Those of the method, outside the points.
        subset: Which part of the data is trained on, outside the points.
        seed: Of the initial weights, where points have none.
        data_seed: Seed of the shuffle and of the held-out images.
        num_classes: Number of classes.
        features: Folder of the clean features, then those of their views.
        output: The output folder.
        states: Folder of the kept states.
        device: ``"cpu"`` or ``"cuda"``.
        gpus: Share of a GPU that a pack of one trial may fill.
        apart: Numbers of trials that are not trained in packs (any more).
        clip: The frozen CLIP, for methods that train through it.
        images: Of the features, for methods that are fed images themselves.
    """

    method: str
    train: TrainConfig
    own: MethodSettings
    subset: Subset
    seed: int
    data_seed: int
    num_classes: int
    features: tuple[str, ...]
    output: Path
    states: Path
    device: str = "cpu"
    gpus: float = 1.0
    apart: frozenset[int] = field(default_factory=frozenset)
    clip: ClipSettings | None = None
    images: Listing | None = None

    def trained_as(self, entry: Entry) -> Trained:
        """Settings of a trial."""
        return trained_at(
            self.train.model_dump(),
            self.method,
            self.own.model_dump(),
            self.subset.model_dump(),
            entry.point,
        )

    def refusal(self, entry: Entry) -> str:
        """Why a trial is not trained: it is bound to diverge; empty if it is not."""
        one = self.trained_as(entry)
        try:
            find_method(self.method).check(one.own, one.loop, self.num_classes)
        except ValueError as error:
            return told(error)
        return ""

    def trained(self, pack: Sequence[Entry]) -> list[int]:
        """Positions in a pack that are trained: all but those that are bound to diverge."""
        return [n for n, entry in enumerate(pack) if not self.refusal(entry)]

    def job(self, entries: Sequence[Entry]) -> Job:
        """The training of some trials together."""
        return Job(
            self.method,
            tuple(self.trained_as(entry) for entry in entries),
            seeds=tuple(entry.point.get(SEED, self.seed) for entry in entries),
            data_seed=self.data_seed,
            features=self.features,
            output=self.output,
            clip=self.clip,
            images=self.images,
        )


def state_files(folder: Path, pack: Sequence[Entry]) -> tuple[Path, Path]:
    """Where a pack keeps its training state, and what it reported of each epoch."""
    name = folder / f"pack-{pack[0].number:04d}"  # no other pack has this trial
    return name.with_suffix(".safetensors"), name.with_suffix(".json")


def read_results(path: Path, pack: Sequence[Entry]) -> list[dict[str, Any]]:
    """Reports of a pack; none if the file is of other points, or not there.

    A search that was restored from an older record may choose another point for the same number.
    """
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results: list[dict[str, Any]] = found.get("results", [])
    return results if found.get(PACK) == json.loads(json.dumps(pack)) else []


def lines(results: Sequence[Mapping[str, Any]], position: int) -> list[dict[str, float]]:
    """History of one trial of a pack."""
    outcomes = [result["outcomes"][position] for result in results]
    return [outcome["line"] for outcome in outcomes if not outcome["error"]]


def train_pack(space: Mapping[str, Any], sweep: Sweep) -> None:
    """Train a pack of trials together, report each epoch, go on from the state that is there.

    Tune's own checkpoints are not used: its record of a sweep may name one that was replaced in the
    moment the driver was killed, and then that pack could not go on. Here one state is replaced
    in place, and reports that may have been lost with the driver are made again.

    A trial that diverges, or is bound to, is reported with its ``error`` and does not stop the
    others. That is a result. Everything else, such as a lost worker or a damaged shard, leaves this
    function as an exception, and the same command tries again what it kept from its end.

    Args:
        space: ``{"pack": [Entry, ...]}``.
        sweep: What all packs share.

    Raises:
        Exception: Whatever keeps the pack, or a trial of it, from being trained.
    """
    pack = [Entry(*entry) for entry in space[PACK]]  # Tune may have made lists of them
    if len(pack) > 1 and pack[0].number in sweep.apart:
        return
    device = torch.device(sweep.device)
    gpu_share = sweep.gpus if len(pack) == 1 else 1.0
    if device.type == "cuda" and gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(gpu_share)
    state, kept = state_files(sweep.states, pack)
    state.parent.mkdir(parents=True, exist_ok=True)
    positions = sweep.trained(pack)
    results = read_results(kept, pack)
    if not results:
        state.unlink(missing_ok=True)

    def begun(training: Pack | None) -> None:
        del results[0 if training is None else training.epoch :]  # written before the state
        for result in results:
            tune.report({**result, "resumed": len(results)})

    def report(training: Pack | None, epochs: Sequence[EpochReport]) -> None:
        earlier = [outcome["error"] for outcome in results[-1]["outcomes"]] if results else []
        outcomes: list[dict[str, Any]] = []
        for position, entry in enumerate(pack):
            if position not in positions:
                outcomes.append(_failed(0, sweep.refusal(entry)))
                continue
            assert training is not None  # as there are positions
            number = positions.index(position)
            history = lines(results, position)
            error = earlier[position] if earlier else ""
            if not error and number in training.diverged:
                error = divergence(training, number)
            if not error and math.isnan(epochs[number].val_map):
                error = f"its scores are no numbers after epoch {training.epoch}; lower lr"
            if error:
                outcomes.append(_failed(len(history), error))
                continue
            line = epochs[number].line()
            best = [*history, line][training.best_epoch(number) - 1]
            outcomes.append(
                {
                    "line": line,
                    "val_map": best["val_map"],
                    "watched": {key: best.get(key) for key in epochs[number].watched},
                    "epochs": len(history) + 1,
                    "error": "",
                }
            )
        scores = [outcome["val_map"] for outcome in outcomes if outcome["val_map"] is not None]
        result = {
            "epoch": len(results) + 1,
            SCORE: max(scores, default=-1.0),
            "outcomes": outcomes,
            "resumed": 0,
        }
        results.append(result)
        # in this order: the state never tells of more than the reports do, and Tune, which may end
        # the pack as it hears of an epoch, hears of none that is not kept
        write_text(kept, json.dumps({PACK: pack, "results": results}))
        if training is not None:
            write_state(state, training)
        tune.report(result)

    if not positions:
        begun(None)
        report(None, [])
        return
    fitted = fit_pack(
        sweep.job([pack[position] for position in positions]),
        device,
        state=state,
        gpu_share=gpu_share,
        begun=begun,
        on_epoch=report,
    )
    if fitted.diverged:  # the last that was left
        report(fitted.pack, [])


def _failed(epochs: int, error: str) -> dict[str, Any]:
    return {"line": {}, "val_map": None, "epochs": epochs, "error": error}


# Tune keeps the name of what it runs with a sweep, and goes on with nothing else: this is the name
# that sweeps begun earlier have
train_pack.__name__ = "trial"
