"""Rows of a table on file: which trainings they take, and the small file that each comes to.

An ablation or a comparison that was stopped goes on from these files, and more seeds or rows train
only what is new. Both keep them in one place: what one has trained the other need not.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dclip.fitting.subset import Subset
from dclip.store.shards import digest
from pipeline.features.backbone import require_prompts
from pipeline.features.images import require_images
from pipeline.features.plan import FeaturePlan, is_complete, plan_features
from pipeline.features.splits import open_labelled
from pipeline.records.trainings import of_subset
from pipeline.settings.config import Config
from pipeline.settings.rows import Row, compared_rows, of_method, rows
from pipeline.settings.sections import EvaluateConfig
from pipeline.settings.training import Trained, alike, identity_of
from pipeline.terminal.errors import StageError

Result = dict[str, Any]
"""What a training came to, as its file has it."""


@dataclass(frozen=True)
class Training:
    """One training: a method, its settings and a seed of initial weights.

    Attributes:
        method: Name of the method.
        trained: Settings.
        seed: Seed of the initial weights and of the draw of the data; 0 where nothing is trained.
        name: Hash of these, of the features and of what else shapes the result.
    """

    method: str
    trained: Trained
    seed: int
    name: str

    @property
    def is_looped(self) -> bool:
        """Whether the loop trains it."""
        return self.trained.own.trained_by == "loop"


class RowPlan:
    """What the rows of a table train, on what, and where results go.

    Args:
        config: Settings.
        rows: Lines of the table.
        seeds: Number of trainings of each.
        kind: What the table is called.

    Attributes:
        train: Features that are trained on.
        test: Features that are scored.
        rows: Lines of the table.
        seeds: Seeds of each row.
        trainings: What is trained, by name; rows of the same settings share trainings.
        kind: What the table is called.
        name: Of the table.
        folder: Where table and picture go.
        needed: What a result has to say, to be taken as it is.
    """

    needed: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Config, rows: Sequence[Row], seeds: int, kind: str) -> None:
        open_labelled(config, config.test_split)  # before a backbone is loaded
        self.train: FeaturePlan = plan_features(config, config.train_split)
        self.test: FeaturePlan = plan_features(config, config.test_split)
        self.rows = list(rows)
        for method in dict.fromkeys(row.method for row in rows):
            tried = [row.trained.own for row in rows if row.method == method]
            require_prompts(of_method(config, method), self.train.listing.class_names, tried)
            for plan in (self.train, self.test):
                require_images(plan.listing, tried)
        self.seeds = range(config.seed, config.seed + seeds)
        every = [[self._training(config, row, seed) for seed in self.seeds] for row in rows]
        self._names = [[training.name for training in own] for own in every]
        self.trainings: dict[str, Training] = {}
        for own in every:
            for training in own:
                self.trainings.setdefault(training.name, training)
        table = [
            [*row.title, names[0], *([] if row.against is None else [row.against])]
            for row, names in zip(self.rows, self._names, strict=True)
        ]
        self.kind = kind
        self.name = f"{kind}-{digest({'rows': table, 'seeds': len(self.seeds)})[:12]}"
        home = config.output.absolute()
        self.folder = home / f"{kind}s" / self.name
        self._results = home / "ablations" / "trainings"

    def _training(self, config: Config, row: Row, seed: int) -> Training:
        views = (self.train, *self.train.views, self.test)
        features = [plan.fingerprint for plan in views]
        threshold = config.evaluate.threshold
        usual = EvaluateConfig.model_fields["threshold"].default
        shared: dict[str, Any] = {"threshold": threshold} if threshold != usual else {}
        trained = row.trained
        if trained.own.trained_by is None:
            seed, features = 0, features[-1:]
            asked = trained.subset.model_dump(include={"classes", "protocol"})
            trained = trained._replace(subset=Subset.model_validate(asked))
        shared["features"] = features
        if trained.own.trained_by is not None:
            shared |= {"data_seed": config.data_seed, "val_fraction": config.train.val_fraction}
        if trained.own.trained_by == "loop":
            shared["precision"] = config.train.precision
        return Training(row.method, trained, seed, name_of(row.method, trained, seed, shared))

    def described(self, pack: int) -> list[str]:
        """Features, trainings and packs in words, for ``--dry-run``.

        Args:
            pack: Trainings that share one pass over the features, at most.
        """
        done = self.done()
        left = [training for name, training in self.trainings.items() if name not in done]
        state = {True: "complete", False: "not extracted yet"}
        return [
            f"features {self.train.folder} ({state[is_complete(self.train)]})",
            f"scored on {self.test.folder} ({state[is_complete(self.test)]})",
            f"{self.name}: {len(self.rows)} rows, {len(self.trainings)} trainings of seeds "
            f"{self.seeds[0]} to {self.seeds[-1]}, {len(done)} done; the others in "
            f"{len(packs(left, pack))} packs",
        ]

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
            if not self.needed <= result.keys():
                continue  # of an earlier version
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
        return ": ".join(filter(None, row.title))


class Ablation(RowPlan):
    """The rows of an ablation."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, rows(config), config.ablate.seeds, "ablation")


class Comparison(RowPlan):
    """The rows of a comparison."""

    needed = frozenset({"seconds", "peak", "class_cosine"})

    def __init__(self, config: Config) -> None:
        super().__init__(config, compared_rows(config), config.compare.seeds, "comparison")


def name_of(method: str, trained: Trained, seed: int, shared: Mapping[str, Any]) -> str:
    """Name of the result of a training.

    Args:
        method: Name of the method.
        trained: Its settings.
        seed: Of the weights.
        shared: What else shapes the result.
    """
    own: dict[str, Any] = {"method": method, "settings": identity_of(method, trained.own)}
    if trained.own.trained_by is not None:
        own["seed"] = seed
    if trained.own.trained_by == "loop":
        loop = trained.loop.loop
        own["loop"] = loop.model_dump(exclude={"preset"}, exclude_defaults=True)
    return digest({**shared, **own, **of_subset(trained.subset)})[:16]


def packs(trainings: Iterable[Training], size: int) -> list[list[Training]]:
    """Trainings that can run together, at most ``size`` each, all of about one size.

    Those on data that is drawn share it: they have one seed. What the loop does not train is alone.
    """
    looped: dict[Any, list[Training]] = {}
    result: list[list[Training]] = []
    for training in trainings:
        if training.is_looped:
            draw = training.seed if training.trained.subset.is_drawn else None
            looped.setdefault((training.method, draw), []).append(training)
        else:
            result.append([training])
    for kind in looped.values():
        for numbers in alike([one.trained for one in kind]):
            parts = math.ceil(len(numbers) / size)
            result += [[kind[n] for n in numbers[part::parts]] for part in range(parts)]
    return sorted(result, key=lambda pack: -len(pack) * pack[0].trained.loop.epochs)
