"""The space of a sweep: its points, checked before anything runs, and how they share the work."""

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from dclip.recipe import Recipe
from pipeline.config import Config, TrainConfig, bounds
from pipeline.errors import UsageError

SEED = "seed"
_PREFIX = "train."
# a preset stands for many keys at once; sweep one value of it at a time
_KEYS = [f"{_PREFIX}{name}" for name in Recipe.model_fields if name != "preset"] + [SEED]
MOST_TRIALS = 10_000
"""Of one sweep: more could neither be compared in MLflow nor drawn."""
_LARGEST_SEED = 2**63 - 1  # of torch
_MOST_IN_A_PACK = 32  # bounds the memory of their activations

Point = dict[str, Any]
"""Values of the swept keys: ``{"train.mfi_weight": 0.1, "seed": 3}``."""


class Entry(NamedTuple):
    """One trial: its place in the sweep, and what it tries."""

    number: int
    point: Point


def recipe_at(train: TrainConfig, point: Mapping[str, Any]) -> TrainConfig:
    """Settings of the training at a point."""
    changes = {
        key.removeprefix(_PREFIX): value for key, value in point.items() if key.startswith(_PREFIX)
    }
    return TrainConfig.model_validate({**train.model_dump(), **changes})


def checked_space(config: Config) -> dict[str, list[Any] | str]:
    """The space with values of the types the recipe has.

    Raises:
        UsageError: A key cannot be swept, or the recipe refuses a value; the message names both. Or
            ASHA would compare trainings of different lengths, or there are too many trials.
    """
    if config.sweep.asha and f"{_PREFIX}epochs" in config.sweep.space:
        raise UsageError(
            "sweep.asha stops trials that are behind others at the same epoch, and a longer "
            "training, whose learning rate falls later, would be stopped for its length alone; "
            "take train.epochs out of sweep.space, or use --no-asha"
        )
    if (config.sweep.trials or 0) > MOST_TRIALS:
        raise UsageError(
            f"sweep.trials: {config.sweep.trials} trials, a sweep has at most {MOST_TRIALS}"
        )
    space: dict[str, list[Any] | str] = {}
    for key, values in config.sweep.space.items():
        if key not in _KEYS:
            full = f"{_PREFIX}{key}"
            close = [full] if full in _KEYS else difflib.get_close_matches(key, _KEYS, n=1)
            if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) in TrainConfig.model_fields:
                close = []  # no slip of the pen: what all trials of a sweep have in common
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UsageError(
                f"sweep.space: {key!r} cannot be swept; {hint}these can: {', '.join(_KEYS)}"
            )
        if isinstance(values, str):
            if config.sweep.search == "grid":
                raise UsageError(
                    f"sweep.space: a grid takes no range, got {key}={values}; list values, or use "
                    "--search random or optuna"
                )
            low, high = bounds(values)
            if _is_integer(key) and not (low.is_integer() and high.is_integer()):
                raise UsageError(f"sweep.space: {key} is a whole number, got {values}")
            for end in (low, high):
                _checked(config, key, int(end) if _is_integer(key) else end)
            space[key] = values
        else:
            # equal values would be equal trials
            space[key] = list(dict.fromkeys(_checked(config, key, value) for value in values))
    return space


def _checked(config: Config, key: str, value: Any) -> Any:
    """The value as the recipe understands it."""
    try:
        if key == SEED:
            return TypeAdapter(Annotated[int, Field(ge=0, le=_LARGEST_SEED)]).validate_python(value)
        return getattr(recipe_at(config.train, {key: value}), key.removeprefix(_PREFIX))
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        text = f"{message[:1].lower()}{message[1:]}"
        raise UsageError(f"sweep.space: {key}: {text}, got {value!r}") from None


def _is_integer(key: str) -> bool:
    kinds = (int, int | None)
    return key == SEED or TrainConfig.model_fields[key.removeprefix(_PREFIX)].annotation in kinds


def entries(config: Config) -> list[Entry]:
    """All trials of a grid or of random search, in a fixed order.

    The grid takes every combination once (without MFI, lambda makes no difference and is left
    out); fewer ``trials`` are drawn from it. Random search draws each key by itself, from its list
    or its range, and no point twice.

    Raises:
        UsageError: See :func:`checked_space`.
    """
    import numpy as np

    space = checked_space(config)
    random = np.random.default_rng([config.seed, 3])
    lists = {key: values for key, values in space.items() if not isinstance(values, str)}
    wanted = config.sweep.trials
    points: list[Point] = []
    drawn: set[tuple[Any, ...]] = set()
    combinations = math.prod(map(len, lists.values()))
    if config.sweep.search == "grid" and combinations > MOST_TRIALS:
        raise UsageError(
            f"sweep.space: a grid of {combinations} points, at most {MOST_TRIALS} can be taken; "
            "list fewer values, or use --search random or optuna"
        )
    if len(lists) == len(space) and combinations <= MOST_TRIALS:
        points = _grid(config, lists)
        wanted = wanted or (len(points) if config.sweep.search == "grid" else 8)
        if wanted < len(points):
            chosen = sorted(random.choice(len(points), wanted, replace=False).tolist())
            points = [points[number] for number in chosen]
    else:
        draws = _Draws(random)
        wanted = wanted or 8
        for _ in range(100 * wanted):  # whole numbers may repeat
            point = draw(space, draws)
            if tuple(point.values()) not in drawn:
                drawn.add(tuple(point.values()))
                points.append(point)
            if len(points) == wanted:
                break
    return [Entry(number, point) for number, point in enumerate(points)]


def _grid(config: Config, lists: Mapping[str, list[Any]]) -> list[Point]:
    weight = f"{_PREFIX}redundancy_weight"
    alpha = f"{_PREFIX}mfi_weight"
    points: dict[tuple[Any, ...], Point] = {}
    for values in itertools.product(*lists.values()):
        point = dict(zip(lists, values, strict=True))
        if weight in lists and point.get(alpha, config.train.mfi_weight) == 0:
            point[weight] = lists[weight][0]
        points.setdefault(tuple(point.values()), point)
    return list(points.values())


def draw(space: Mapping[str, list[Any] | str], source: Any) -> Point:
    """One point; ``source`` has the methods by which an Optuna trial suggests values."""
    point: Point = {}
    for key, values in space.items():
        if not isinstance(values, str):
            point[key] = source.suggest_categorical(key, values)
            continue
        low, high = bounds(values)
        if _is_integer(key):
            point[key] = source.suggest_int(key, int(low), int(high), log=low > 0)
        else:
            point[key] = source.suggest_float(key, low, high, log=low > 0)
    return point


class _Draws:
    """Independent random values, asked for as of an Optuna trial."""

    def __init__(self, random: Any) -> None:
        self._random = random

    def suggest_categorical(self, _: str, values: Sequence[Any]) -> Any:
        return values[int(self._random.integers(len(values)))]

    def suggest_float(self, _: str, low: float, high: float, *, log: bool) -> float:
        if not log:
            return float(self._random.uniform(low, high))
        return float(low * (high / low) ** self._random.uniform())

    def suggest_int(self, key: str, low: int, high: int, *, log: bool) -> int:
        # each whole number stands for the half below and the half above it
        value = self.suggest_float(key, max(low - 0.5, 0.5 * log), high + 0.5, log=log)
        return min(max(round(value), low), high)


def packs(config: Config, trials: Sequence[Entry], slots: int) -> list[list[Entry]]:
    """Trials that train together, in about as many groups as there are ``slots`` for them.

    Points that differ in more than training together allows, or whose sweep says ``never``, stay
    apart. Trials are dealt out in turn by their width, so that groups take about equally long.
    """
    from dclip.trials import MAY_DIFFER

    if config.sweep.pack == "never" or config.sweep.asha:
        return [[entry] for entry in trials]
    kinds: dict[str, list[Entry]] = {}
    for entry in trials:
        recipe = recipe_at(config.train, entry.point).recipe
        kinds.setdefault(recipe.model_dump_json(exclude=set(MAY_DIFFER)), []).append(entry)
    groups = []
    for kind in kinds.values():
        count = max(round(slots * len(kind) / len(trials)), -(-len(kind) // _MOST_IN_A_PACK))
        count = min(max(count, 1), len(kind))
        kind.sort(key=lambda entry: recipe_at(config.train, entry.point).output_dim or 0)
        groups += [kind[first::count] for first in range(count)]
    return groups


def suggest(space: Mapping[str, list[Any] | str], name: str, trial: Any) -> dict[str, Any]:
    """A trial's parameters for Ray Tune, chosen by Optuna: a group of one under ``name``."""
    return {name: [Entry(trial.number, draw(space, trial))]}


def shown(value: object) -> str:
    """A value for tables and names."""
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)


def label(point: Point) -> str:
    """Name of a trial: its values."""
    return " ".join(f"{key.removeprefix(_PREFIX)}={shown(value)}" for key, value in point.items())
