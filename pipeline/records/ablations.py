"""Ablations on file: which trainings their rows take, and the small file that each comes to.

An ablation that was stopped goes on from these files, and more seeds or rows train only what is
new.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dclip.store.shards import digest
from pipeline.features.backbone import require_prompts
from pipeline.features.plan import FeaturePlan, plan_features
from pipeline.features.splits import open_labelled
from pipeline.settings.config import Config, EvaluateConfig
from pipeline.settings.rows import rows
from pipeline.settings.training import Trained, alike, identity_of
from pipeline.terminal.errors import StageError

Result = dict[str, Any]
"""What a training came to, as its file has it."""


@dataclass(frozen=True)
class Training:
    """One training: its settings and a seed of initial weights.

    Attributes:
        trained: Settings.
        seed: Seed of the initial weights.
        name: Hash of these, of the features and of what else shapes the result.
    """

    trained: Trained
    seed: int
    name: str


class Ablation:
    """What an ablation trains, on what, and where results go.

    Attributes:
        train: Features that are trained on.
        test: Features that are scored.
        rows: Lines of the table.
        seeds: Seeds of each row.
        trainings: What is trained, by name; rows of the same settings share trainings.
        name: Of the ablation.
        folder: Where table and picture go.
    """

    def __init__(self, config: Config) -> None:
        open_labelled(config, config.test_split)  # before a backbone is loaded
        self.train: FeaturePlan = plan_features(config, config.train_split)
        self.test: FeaturePlan = plan_features(config, config.test_split)
        self.rows = rows(config)
        tried = [row.trained.own for row in self.rows]
        require_prompts(config, self.train.listing.class_names, tried)
        self.seeds = range(config.seed, config.seed + config.ablate.seeds)
        shared: dict[str, Any] = {
            "features": [plan.fingerprint for plan in (self.train, *self.train.views, self.test)],
            "data_seed": config.data_seed,
            "val_fraction": config.train.val_fraction,
            "precision": config.train.precision,
        }
        threshold = config.evaluate.threshold
        if threshold != EvaluateConfig.model_fields["threshold"].default:
            shared["threshold"] = threshold
        every = [
            [
                Training(row.trained, seed, _name(config.method, row.trained, seed, shared))
                for seed in self.seeds
            ]
            for row in self.rows
        ]
        self._names = [[training.name for training in own] for own in every]
        self.trainings: dict[str, Training] = {}
        for own in every:
            for training in own:
                self.trainings.setdefault(training.name, training)
        table = [
            [row.study, row.label, names[0]]
            for row, names in zip(self.rows, self._names, strict=True)
        ]
        self.name = f"ablation-{digest({'rows': table, 'seeds': len(self.seeds)})[:12]}"
        home = config.output.absolute() / "ablations"
        self.folder, self._results = home / self.name, home / "trainings"

    def result_path(self, name: str) -> Path:
        """Where the result of a training is or goes."""
        return self._results / f"{name}.json"

    def done(self) -> dict[str, Result]:
        """Results of the finished trainings, by name."""
        found = {}
        for name in self.trainings:
            path = self.result_path(name)
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except ValueError:
                raise StageError(f"{path} is damaged; delete it to train this again") from None
            if "threshold" not in result:  # of an earlier version: F1 of a threshold nobody knows
                test = {key: result["test"][key] for key in ("map", "ap") if key in result["test"]}
                result["test"] = test
            found[name] = result
        return found

    def by_row(self, results: Mapping[str, Result]) -> list[list[Result]]:
        """Results of each row, seed by seed."""
        return [[results[name] for name in names] for names in self._names]

    def label_of(self, name: str) -> str:
        """What the first row of a training is called."""
        row = next(row for row, own in zip(self.rows, self._names, strict=True) if name in own)
        return f"{row.study}: {row.label}"


def _name(method: str, trained: Trained, seed: int, shared: Mapping[str, Any]) -> str:
    own = {
        "loop": trained.loop.loop.model_dump(exclude={"preset"}, exclude_defaults=True),
        "method": method,
        "settings": identity_of(method, trained.own),
        "seed": seed,
    }
    return digest({**shared, **own})[:16]


def packs(trainings: Iterable[Training], size: int) -> list[list[Training]]:
    """Trainings that can run together, at most ``size`` each, all of about one size."""
    everything = list(trainings)
    groups = [[everything[n] for n in kind] for kind in alike([one.trained for one in everything])]
    result = []
    for group in groups:
        parts = math.ceil(len(group) / size)
        result += [group[part::parts] for part in range(parts)]
    return sorted(result, key=lambda pack: -len(pack) * pack[0].trained.loop.epochs)
