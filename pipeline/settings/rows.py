"""The rows of an ablation: trainings that differ from the settings in one thing each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dclip.fitting.loop import Loop
from dclip.methods.settings import MethodSettings
from pipeline.settings.config import (
    DEFAULT_METHOD,
    AblateRow,
    Config,
    TrainConfig,
    conf_folder,
    read_layer,
)
from pipeline.settings.space import SEED, checked_point, leaf
from pipeline.settings.training import LOOP, Trained, at, check_trained, require_fed
from pipeline.terminal.errors import UsageError

AS_IT_IS = "as it is"

_TIMES = re.compile(r"x[0-9]+(\.[0-9]+)?")
_PRESET = "train.preset"
# of the section train: where and how, not what
_NOT_THE_LOOP = {*TrainConfig.model_fields} - {*Loop.model_fields}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        study: Which question it belongs to.
        label: What it is called there.
        trained: Settings it is trained with.
    """

    study: str
    label: str
    trained: Trained


def rows(config: Config) -> list[Row]:
    """All lines of the table, study by study.

    Raises:
        UsageError: There is no such study or setting, or a value that cannot be.
    """
    check_trained(config)
    given = _given_rows(config)
    studies = list(dict.fromkeys(row.study for row in given))
    wanted = config.ablate.studies or studies
    for study in wanted:
        if study not in studies:
            raise UsageError(f"ablate.studies: there is no {study!r}; {', '.join(studies)}")
    found = [
        Row(row.study, row.label, _trained(config, row))
        for study in dict.fromkeys(wanted)
        for row in given
        if row.study == study
    ]
    require_fed(config, [row.trained.own for row in found])
    return found


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
    if config.method == DEFAULT_METHOD:
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


def _trained(config: Config, row: AblateRow) -> Trained:
    """Settings of a row: of its last epoch, with what it changes.

    Raises:
        UsageError: It changes what is no setting, or to a value that cannot be.
    """
    changes = {key.replace("-", "_"): value for key, value in row.set.items()}
    preset, base = changes.pop(_PRESET, None), config
    where = f"ablate row {row.label!r}"
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
    if config.ablate.epochs is not None:
        fixed["epochs"] = config.ablate.epochs
    for key in (SEED, "train.selection", *(["train.epochs"] if "epochs" in fixed else [])):
        if key in changes:
            raise UsageError(
                f"{where}: {key} is the same in all rows (--ablate.seeds, --ablate.epochs; scores "
                "are of the last epoch)"
            )
    try:
        point = {key: _relative(base, key, value) for key, value in changes.items()}
        checked = checked_point(base, point)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    found = at(base, checked)
    return found._replace(loop=found.loop.model_copy(update=fixed))


def _relative(config: Config, key: str, value: Any) -> Any:
    """``x0.1`` as a tenth of what the settings say, without rounding noise."""
    if not (isinstance(value, str) and _TIMES.fullmatch(value)):
        return value
    own = at(config, {})
    usual = getattr(own.loop if key.startswith(LOOP) else own.own, leaf(key), None)
    if not isinstance(usual, int | float):
        raise UsageError(f"{key}={value}: the settings have no number there; give one")
    product = float(f"{usual * float(value[1:]):.6g}")
    return round(product) if isinstance(usual, int) else product
