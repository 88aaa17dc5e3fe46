"""The rows of an ablation and of a comparison: trainings, each with settings of its own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from dclip.fitting.loop import Loop
from dclip.methods.registry import METHODS, find_settings
from dclip.methods.settings import MethodSettings
from pipeline.settings.config import DEFAULT_METHOD, Config, conf_folder, config_class, read_layer
from pipeline.settings.sections import AblateRow, CompareRow, TrainConfig
from pipeline.settings.space import SEED, checked_point, leaf, section_of, shown
from pipeline.settings.training import (
    LOOP,
    SUBSET,
    Trained,
    at,
    check_looped,
    check_trained,
    require_fed,
)
from pipeline.terminal.errors import UsageError

AS_IT_IS = "as it is"

_TIMES = re.compile(r"x[0-9]+(\.[0-9]+)?")
_PRESET = "train.preset"
_PROTOCOL = f"{SUBSET}protocol"
# of the section train: where and how, not what
_NOT_THE_LOOP = {*TrainConfig.model_fields} - {*Loop.model_fields}


class Point(NamedTuple):
    """Where on a curve a row is.

    Attributes:
        key: The setting that is varied.
        value: What it is there; None for all of the data.
    """

    key: str
    value: Any

    def __str__(self) -> str:
        value = "all" if self.value is None else self.value
        words = ", ".join(value) if isinstance(value, list | tuple) else shown(value)
        return f"{leaf(self.key)} = {words}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        study: Which question it belongs to.
        label: What it is called there.
        trained: Settings it is trained with.
        method: Name of the method.
        point: Where on a curve it is, if it is on one.
        against: Label of the row of the same study, and point, that it is compared with.
    """

    study: str
    label: str
    trained: Trained
    method: str = DEFAULT_METHOD
    point: Point | None = None
    against: str | None = None

    @property
    def title(self) -> list[str]:
        """Study and label, as names and MLflow have them."""
        return [self.study if self.point is None else str(self.point), self.label]


def rows(config: Config) -> list[Row]:
    """All lines of an ablation, study by study.

    Raises:
        UsageError: There is no such study or setting, or a value that cannot be.
    """
    check_looped(config)
    given = _given_rows(config)
    found = [
        Row(row.study, row.label, _trained(config, row, config.ablate.epochs), config.method)
        for row in _of_studies(given, config.ablate.studies, "ablate")
    ]
    require_fed(config, [row.trained.own for row in found])
    return found


def compared_rows(config: Config) -> list[Row]:
    """All lines of a comparison: of each point of its curves, if it has some, every method.

    Raises:
        UsageError: There is no such method, study or setting, or a value that cannot be; two rows
            have one name; a row is compared with one that is not there.
    """
    wanted, systems = config.compare.studies, _given_systems(config)
    for row in systems:
        config_class(row.method)  # which refuses what is no method
    points = _points(config, systems)
    if points:
        studies = list(dict.fromkeys(leaf(point.key) for point in points))
        chosen = _chosen(studies, wanted, "compare")
        points = [point for study in chosen for point in points if leaf(point.key) == study]
    else:
        systems = _of_studies(systems, wanted, "compare")
    found = []
    places: list[Point | None] = [*points] or [None]
    for point in places:
        for row in systems:
            beside = [one.label for one in systems if point or one.study == row.study]
            if beside.count(row.label) > 1:
                raise UsageError(f"compare: two rows are called {row.label!r}; name them apart")
            against = row.against or beside[0]
            if against not in beside:
                raise UsageError(
                    f"compare row {row.label!r}: there is no row {against!r} to compare with; "
                    f"{', '.join(beside)}"
                )
            one = _system(config, row, point)
            found.append(replace(one, against=None if against == row.label else against))
    if len({row.trained.subset.protocol for row in found}) > 1:
        raise UsageError(
            "compare: rows are of different protocols, which are scored differently; give one to "
            "all by --protocol"
        )
    return found


def of_method(config: Config, method: str) -> Config:
    """The settings for another method: its own are those of its preset, others as they are.

    What the section ``train`` was given counts for all methods, what it has of a preset does not.

    Raises:
        UsageError: There is no such method, or it has no such preset.
    """
    if method == config.method:
        return config
    kind, settings = config_class(method), find_settings(method)
    preset = config.train.preset
    is_usual = preset == config.own.usual_preset()
    if is_usual or (settings.trained_by != "loop" and preset not in settings.presets):
        preset = settings.usual_preset()
    try:
        loop, own = settings.preset_values(preset)
    except ValueError as error:
        raise UsageError(f"compare: {error}; choose one by its row's train.preset") from None
    filled = config.own.preset_values(config.train.preset).loop
    given = {
        key: value
        for key, value in config.train.model_dump(include=config.train.model_fields_set).items()
        if key not in filled or value != filled[key]
    }
    values = {
        **config.__dict__,
        "method": method,
        "train": TrainConfig.model_validate({**loop, **given, "preset": preset}),
        settings.name: settings.model_validate(own),
    }
    return kind.model_construct(set(config.model_fields_set), **values)


R = TypeVar("R", bound=AblateRow)


def _of_studies(given: Sequence[R], wanted: Sequence[str], stage: str) -> list[R]:
    """Rows of the studies that are wanted, study by study; all where none is named."""
    studies = list(dict.fromkeys(row.study for row in given))
    chosen = _chosen(studies, wanted, stage)
    return [row for study in chosen for row in given if row.study == study]


def _chosen(studies: Sequence[str], wanted: Sequence[str], stage: str) -> list[str]:
    """Studies that are wanted, once each; all where none is named."""
    for study in wanted:
        if study not in studies:
            raise UsageError(f"{stage}.studies: there is no {study!r}; {', '.join(studies)}")
    return list(dict.fromkeys(wanted or studies))


def _given_systems(config: Config) -> list[CompareRow]:
    """What is compared: rows that are given, methods that are named, or all of the package."""
    asked = config.compare
    if asked.rows and asked.methods:
        raise UsageError("compare: give --methods or rows, not both")
    if asked.rows:
        return list(asked.rows)
    usual = [
        name for name in METHODS if find_settings(name)().training_feeds() <= {"local", "embedding"}
    ]
    found = []
    for name in asked.methods or usual:
        method, changes = _named_method(name)
        found.append(CompareRow(label=name, method=method, set=changes))
    return found


def _named_method(name: str) -> tuple[str, dict[str, Any]]:
    """A method, or a variant of one, as the method and what is set."""
    for method in METHODS:
        settings = find_settings(method)
        if name != method and name in settings.variants:
            return method, _named(settings(), settings.variants[name].changes)
    try:
        find_settings(name)
    except ValueError as error:
        raise UsageError(f"compare.methods: {error}") from None
    return name, {}


def _points(config: Config, systems: Sequence[CompareRow]) -> list[Point]:
    """Where all rows are compared; none where nothing is varied."""
    asked = config.compare
    curves = {f"{SUBSET}{name}": getattr(asked, name) for name in ("num_images", "shots")}
    curves[f"{SUBSET}label_fraction"] = asked.label_fraction
    given = [key for key, values in curves.items() if values]
    if len(given) > 1:
        flags = " and ".join(f"--{leaf(key).replace('_', '-')}" for key in given)
        raise UsageError(
            f"{flags}: one curve at a time; --vary takes several keys, a study for each"
        )
    if given and asked.vary:
        raise UsageError(
            f"--{leaf(given[0]).replace('_', '-')} is short for --vary {given[0]}=...; give one"
        )
    names = {find_settings(row.method).name for row in systems}
    points: list[Point] = []
    for key, values in ({given[0]: curves[given[0]]} if given else asked.vary).items():
        section = key.partition(".")[0]
        if f"{section}." not in (LOOP, SUBSET) and section not in names:
            raise UsageError(
                f"compare.vary: {key!r} is no setting of the data (subset.*), of the loop "
                f"(train.*) or of a method that is compared ({', '.join(sorted(names))})"
            )
        for value in [values] if isinstance(values, str) else values:
            is_all = value == "all" and f"{section}." == SUBSET
            points.append(Point(key, None if is_all else value))
    return points


def _system(config: Config, row: CompareRow, point: Point | None) -> Row:
    """A row at a point of a curve.

    What the point varies has no bearing on some rows: a key of another method, or of the loop where
    that does not train. They are the same at each point.
    """
    base = of_method(config, row.method)
    own = base.own
    changes = dict(row.set)
    if config.compare.protocol is not None:
        changes = {_PROTOCOL: config.compare.protocol, **changes}
    key = "" if point is None else point.key
    if key in {name.replace("-", "_") for name in changes}:
        raise UsageError(f"compare row {row.label!r} sets {key}, which is varied")
    if own.trained_by != "loop" and (told := [k for k in changes if k.startswith(LOOP)]):
        raise UsageError(
            f"compare row {row.label!r}: {row.method} is not trained by the loop, {told[0]} does "
            "nothing"
        )
    looped = (LOOP,) if own.trained_by == "loop" else ()
    if point is not None and key.startswith((SUBSET, f"{own.name}.", *looped)):
        changes[key] = point.value
    if own.trained_by == "loop":
        check_trained(base)
    asked = row.model_copy(update={"set": changes})
    trained = _trained(base, asked, config.compare.epochs, "compare")
    require_fed(base, [trained.own])
    return Row(row.study if point is None else leaf(key), row.label, trained, row.method, point)


def _given_rows(config: Config) -> list[AblateRow]:
    """Rows that the settings give, or those that are usual for the method."""
    asked, own = config.ablate, config.own
    if asked.vary:
        return [
            AblateRow(study=leaf(key), label=f"{leaf(key)} = {value}", set={key: value})
            for key, values in asked.vary.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
    if asked.rows:
        return list(asked.rows)
    # those are of the published form, which the usual preset has not
    if config.method == DEFAULT_METHOD and config.train.preset != own.usual_preset():
        _, content = read_layer(conf_folder() / "ablate.yaml")
        return [AblateRow.model_validate(row) for row in content["ablate"]["rows"]]
    rows = [AblateRow(study="method", label=AS_IT_IS)]
    rows += [
        AblateRow(study="method", label=variant.title, set=_named(own, variant.changes))
        for variant in own.variants.values()
    ]
    for key, values in own.sweep_space.items():
        rows.append(AblateRow(study=key, label=AS_IT_IS))
        rows += [
            AblateRow(study=key, label=f"{key} = {value}", set=_named(own, {key: value}))
            for value in values
        ]
    return rows


def _named(own: MethodSettings, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{own.name}.{key}": value for key, value in changes.items()}


def _trained(config: Config, row: AblateRow, epochs: int | None, stage: str = "ablate") -> Trained:
    """Settings of a row: of its last epoch, with what it changes.

    Raises:
        UsageError: It changes what is no setting, or to a value that cannot be.
    """
    changes = {key.replace("-", "_"): value for key, value in row.set.items()}
    preset, base = changes.pop(_PRESET, None), config
    where = f"{stage} row {row.label!r}"
    if preset is not None:
        try:
            values = config.own.preset_values(preset)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        kept = config.train.model_dump(include=_NOT_THE_LOOP)
        train = TrainConfig.model_validate({**kept, **values.loop})
        filled = config.own.model_validate(values.own)
        base = config.model_copy(update={"train": train, filled.name: filled})
    fixed: dict[str, Any] = {"selection": "last"}
    if epochs is not None:
        fixed["epochs"] = epochs
    for key in (SEED, "train.selection", *(["train.epochs"] if "epochs" in fixed else [])):
        if key in changes:
            raise UsageError(
                f"{where}: {key} is the same in all rows (--{stage}.seeds, --{stage}.epochs; "
                "scores are of the last epoch)"
            )
    try:
        point = {key: _relative(base, key, value) for key, value in changes.items()}
        found = at(base, checked_point(base, point))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    except ValidationError as error:  # each value will do by itself, and not all together
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {message}") from None
    return found._replace(loop=found.loop.model_copy(update=fixed))


def _relative(config: Config, key: str, value: Any) -> Any:
    """``x0.1`` as a tenth of what the settings say, without rounding noise."""
    if not (isinstance(value, str) and _TIMES.fullmatch(value)):
        return value
    usual = getattr(section_of(at(config, {}), key), leaf(key), None)
    if not isinstance(usual, int | float):
        raise UsageError(f"{key}={value}: the settings have no number there; give one")
    product = float(f"{usual * float(value[1:]):.6g}")
    return round(product) if isinstance(usual, int) else product
