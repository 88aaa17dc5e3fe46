"""The space of a sweep: its points, checked before anything runs, and how they share the work."""

import difflib
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dclip.fitting.loop import Loop
from dclip.fitting.subset import Subset
from dclip.methods.settings import MethodSettings
from pipeline.settings.config import Config
from pipeline.settings.sections import TrainConfig, bounds
from pipeline.settings.training import LOOP, SUBSET, Trained, alike, at
from pipeline.terminal.errors import UsageError

SEED = "seed"
MOST_TRIALS = 10_000
"""Of one sweep: more could neither be compared in MLflow nor drawn."""
MOST_SHOWN = 50
"""Of the trials of a sweep, on a terminal."""
_LARGEST_SEED = 2**63 - 1  # of torch
_MOST_IN_A_PACK = 32  # bounds the memory of their activations

Point = dict[str, Any]
"""Values of the swept keys, as JSON has them: ``{"train.lr": 0.1, "seed": 3}``."""


class Entry(NamedTuple):
    """One trial: its number in the sweep, and what it tries."""

    number: int
    point: Point


def keys_of(config: Config) -> list[str]:
    """All that can be swept; a preset stands for many keys at once and is none of them."""
    own = config.own
    return [
        *(f"{own.name}.{name}" for name in type(own).model_fields),
        *(f"{LOOP}{name}" for name in Loop.model_fields if name != "preset"),
        *(f"{SUBSET}{name}" for name in Subset.model_fields),
        SEED,
    ]


def space_of(config: Config) -> Mapping[str, list[Any] | str]:
    """What is varied: as the settings say, or as the method proposes.

    Raises:
        UsageError: Neither says anything.
    """
    own = config.own
    space = config.sweep.space or {f"{own.name}.{k}": v for k, v in own.sweep_space.items()}
    if not space:
        raise UsageError(f"say what to vary by --space; these can be: {', '.join(keys_of(config))}")
    return space


def checked_space(config: Config) -> dict[str, list[Any] | str]:
    """The space with values of the types the settings have.

    Raises:
        UsageError: A key cannot be swept, or the settings refuse a value; the message names both.
            Or ASHA would compare trainings of different lengths, or there are too many trials.
    """
    given = space_of(config)
    if config.sweep.asha and f"{LOOP}epochs" in given:
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
    for key, values in given.items():
        _require_key(config, key, f"sweep.space: {key!r} cannot be swept")
        if isinstance(values, str):
            if config.sweep.search == "grid":
                raise UsageError(
                    f"sweep.space: a grid takes no range, got {key}={values}; list values, or use "
                    "--search random or optuna"
                )
            low, high = bounds(values)
            whole = _is_integer(config, key)
            if whole and not (low.is_integer() and high.is_integer()):
                raise UsageError(f"sweep.space: {key} is a whole number, got {values}")
            for end in (low, high):
                _checked(config, key, int(end) if whole else end, "sweep.space: ")
            space[key] = values
        else:
            checked = [_checked(config, key, value, "sweep.space: ") for value in values]
            # equal values would be equal trials
            space[key] = list({json.dumps(value): value for value in checked}.values())
    return space


def every_value(config: Config) -> list[Point]:
    """Points of the space that between them have every value of every key, or both its ends.

    Raises:
        UsageError: See :func:`checked_space`.
    """
    ends = {
        key: [*bounds(values)] if isinstance(values, str) else values
        for key, values in checked_space(config).items()
    }
    most = max(map(len, ends.values()))
    return [{key: v[number % len(v)] for key, v in ends.items()} for number in range(most)]


def checked_point(config: Config, point: Mapping[str, Any]) -> Point:
    """A point with values of the types the settings have.

    Raises:
        UsageError: A key is no setting, or the settings refuse a value.
    """
    for key in point:
        _require_key(config, key, f"{key!r} cannot be changed")
    return {key: _checked(config, key, value) for key, value in point.items()}


def _require_key(config: Config, key: str, message: str) -> None:
    """Refuse what is no setting of a single training.

    Raises:
        UsageError: It is none; the message goes on with the nearest one.
    """
    known = keys_of(config)
    if key in known:
        return
    close = [one for one in known if leaf(one) == leaf(key)]
    close = close or difflib.get_close_matches(key, known, n=1)
    if key.startswith(LOOP) and key.removeprefix(LOOP) in TrainConfig.model_fields:
        close = []  # no slip of the pen: what all trainings have in common
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"{message}; {hint}these can: {', '.join(known)}")


def _checked(config: Config, key: str, value: Any, where: str = "") -> Any:
    """The value as the settings understand it, as JSON has it."""
    try:
        if key == SEED:
            return TypeAdapter(Annotated[int, Field(ge=0, le=_LARGEST_SEED)]).validate_python(value)
        found = section_of(at(config, {key: value}), key)
        return found.model_dump(mode="json")[leaf(key)]
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        text = f"{message[:1].lower()}{message[1:]}"
        raise UsageError(f"{where}{key}: {text}, got {value!r}") from None


def section_of(trained: Trained, key: str) -> BaseModel:
    """The section of the settings of a training that a key is of."""
    if key.startswith(LOOP):
        return trained.loop
    return trained.subset if key.startswith(SUBSET) else trained.own


def _is_integer(config: Config, key: str) -> bool:
    if key == SEED:
        return True
    model = type(section_of(at(config, {}), key))
    return model.model_fields[leaf(key)].annotation in (int, int | None)


def entries(config: Config) -> list[Entry]:
    """All trials of a grid or of random search, in a fixed order.

    The grid takes every combination once (values that make no difference are left out); fewer
    ``trials`` are drawn from it. Random search draws each key by itself, from its list or its
    range, and no point twice.

    Raises:
        UsageError: See :func:`checked_space`.
    """
    import numpy as np  # which settings do without until points are drawn

    space = checked_space(config)
    random = np.random.default_rng([config.seed, 3])
    lists = {key: values for key, values in space.items() if not isinstance(values, str)}
    wanted = config.sweep.trials
    points: list[Point] = []
    drawn: set[str] = set()
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
        draws, whole = _Draws(random), whole_numbers(config)
        wanted = wanted or 8
        for _ in range(100 * wanted):  # whole numbers may repeat
            point = draw(space, whole, draws)
            if text_of(point) not in drawn:
                drawn.add(text_of(point))
                points.append(point)
            if len(points) == wanted:
                break
    return [Entry(number, point) for number, point in enumerate(points)]


def _grid(config: Config, lists: Mapping[str, list[Any]]) -> list[Point]:
    """Every combination; values that make no difference in one are the first of their lists."""
    name = config.own.name
    points: dict[str, Point] = {}
    for values in itertools.product(*lists.values()):
        point = dict(zip(lists, values, strict=True))
        idle = {f"{name}.{key}" for key in at(config, point).own.idle()}
        point |= {key: lists[key][0] for key in idle & lists.keys()}
        points.setdefault(text_of(point), point)
    return list(points.values())


def text_of(point: Point) -> str:
    """Its values as text: equal for equal points, of whatever types they are."""
    return json.dumps(list(point.values()))


def whole_numbers(config: Config) -> frozenset[str]:
    """Keys whose values are whole numbers."""
    return frozenset(key for key in keys_of(config) if _is_integer(config, key))


def draw(space: Mapping[str, list[Any] | str], whole: Collection[str], source: Any) -> Point:
    """One point; ``source`` has the methods by which an Optuna trial suggests values."""
    point: Point = {}
    for key, values in space.items():
        if not isinstance(values, str):
            point[key] = source.suggest_categorical(key, values)
            continue
        low, high = bounds(values)
        if key in whole:
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
    if config.sweep.pack == "never" or config.sweep.asha:
        return [[entry] for entry in trials]
    settings = {entry.number: at(config, entry.point) for entry in trials}
    groups = []
    for kind in alike([settings[entry.number] for entry in trials]):
        own = [trials[number] for number in kind]
        count = max(round(slots * len(own) / len(trials)), -(-len(own) // _MOST_IN_A_PACK))
        count = min(max(count, 1), len(own))
        own.sort(key=lambda entry: _width(settings[entry.number].own))
        groups += [own[first::count] for first in range(count)]
    return groups


def _width(own: MethodSettings) -> list[int]:
    """How large the weights of a method are, as far as trials that train together differ in it."""
    values = [getattr(own, name) for name in sorted(own.may_differ)]
    return [value or 0 for value in values if value is None or isinstance(value, int)]


def suggest(
    space: Mapping[str, list[Any] | str], whole: Collection[str], name: str, trial: Any
) -> dict[str, Any]:
    """A trial's parameters for Ray Tune, chosen by Optuna: a group of one under ``name``."""
    return {name: [Entry(trial.number, draw(space, whole, trial))]}


def shown(value: object) -> str:
    """A value for tables and names."""
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)


def label(point: Point) -> str:
    """Name of a trial: its values."""
    return " ".join(f"{leaf(key)}={shown(value)}" for key, value in point.items())


def leaf(key: str) -> str:
    """A swept key without its section."""
    return key.rpartition(".")[2]
