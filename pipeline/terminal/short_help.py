"""What ``--help`` shows of a stage: what it uses, and what people set most; no longer than a page.

A setting is shown as soon as it is in the section of the stage. Where they get too many for a page
(a test counts lines), those that few people set are marked beside their declaration:
``Field(..., json_schema_extra=RARE)``. Of the settings that all stages share, a stage names those
that matter to it in ``SHARED``, beside its description; ``section.key`` is another stage's. What
does not fit all the same, as of a method with many settings, is counted in the last line.
"""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dclip.methods.registry import find_settings
from dclip.words import counted
from pipeline.settings.config import Config
from pipeline.settings.sections import LocalPath, PathOrURL
from pipeline.terminal.called import as_called, program

SHARED = ("dataset", "root", "backbone", "output", "device")
"""What a stage that names none shows of the settings of all stages."""

MOST_LINES = 60
"""Of the page."""

_TOLD = ("dataset", "preset")  # whose default follows from something else
CONTROL = (
    ("--config FILE", "settings of a YAML file, as conf/ has them; repeatable"),
    ("--dry-run", "print the plan and stop"),
    ("--json", "end stdout with the report as one line of JSON"),
    ("--print-config", "print all settings and stop"),
)
"""Flags that are no settings."""

_WIDEST, _NARROWEST, _COLUMN = 100, 80, 28


class Flag(NamedTuple):
    """A setting as the command line has it.

    Attributes:
        name: Without dashes; of the stage's own sections without prefix.
        kind: What follows it, in a word; empty for one that is on or off.
        text: What it is, in short, with its default.
        choices: All that may follow, where these are few.
        is_rare: Whether few people set it.
    """

    name: str
    kind: str
    text: str
    choices: tuple[str, ...]
    is_rare: bool

    @property
    def shown(self) -> str:
        """As it is typed."""
        return f"--{self.name} {self.kind}" if self.kind else f"--[no-]{self.name}"


def flags_of(
    model: type[Config], sections: Sequence[str], shared: Sequence[str], without: Sequence[str] = ()
) -> dict[str, list[Flag]]:
    """The settings that a stage uses, by the section they are in; those of all stages last.

    Args:
        model: Settings with the section of the method.
        sections: The stage's own.
        shared: Keys of the top level, and ``section.key`` of others.
        without: Keys that are given without a flag.
    """
    method = find_settings(str(model.model_fields["method"].default))
    preset = method.preset_values(method.usual_preset())
    usual: dict[str, Mapping[str, Any]] = {"train": preset.loop, method.name: preset.own}
    found: dict[str, list[Flag]] = {}
    for section in sections:
        if section in model.model_fields:
            fields = _fields(model, section)
            found[section] = [
                _flag(key, field, usual.get(section, {}))
                for key, field in fields.items()
                if key not in without
            ]
    found[""] = []
    for key in shared:
        section, _, leaf = key.rpartition(".")
        field = _fields(model, section)[leaf]
        found[""].append(_flag(leaf, field, usual.get(section, {}), before=section))
    return found


def _fields(model: type[Config], section: str) -> dict[str, FieldInfo]:
    kind = model.model_fields[section].annotation if section else model
    assert isinstance(kind, type)
    assert issubclass(kind, BaseModel)
    return kind.model_fields


def _flag(key: str, field: FieldInfo, usual: Mapping[str, Any], *, before: str = "") -> Flag:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    name = ".".join(filter(None, [before, key])).replace("_", "-")
    what, *others = _clauses(field.description or "")
    what = str(extra.get("short", what))
    left_out = next((part for part in others if part.startswith("left out: ")), "")
    default = usual.get(key, None if field.default_factory else field.default)
    left_out = "" if "short" in extra else left_out
    if not left_out and key not in _TOLD and default not in (None, (), [], {}, ""):
        text = default if isinstance(default, str) else _written(default)
        left_out = f"default {text}"
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return Flag(
        name,
        _kind(field.annotation),
        f"{what} ({left_out})" if left_out else what,
        tuple(map(str, choices)),
        bool(extra.get("rare")),
    )


def _clauses(text: str) -> list[str]:
    """A text parted at the semicolons that are not in brackets."""
    parts, depth = [""], 0
    for word in text.split(" "):
        depth += word.count("(") - word.count(")")
        is_end = word.endswith(";") and not depth
        parts[-1] += f" {word[:-1] if is_end else word}"
        parts += [""] if is_end else []
    return [part.strip() for part in parts]


def _written(default: object) -> str:
    """A default as one would type it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, list | tuple):
        return ",".join(map(str, default))
    return str(default)


def _kind(annotation: Any) -> str:
    """What follows a flag, in a word."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        kinds = [_kind(one) for one in get_args(annotation) if one is not NoneType]
        return kinds[0]
    if origin is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if origin in (list, tuple):
        inner = _kind(get_args(annotation)[0])
        return f"{inner},..." if inner.isalpha() else "NAME,..."
    if origin is dict:
        return "KEY=VALUE"
    if annotation in (LocalPath, PathOrURL, Path):
        return "PATH"
    known = {bool: "", int: "N", float: "X", str: "TEXT"}
    return known.get(annotation, "VALUE")


def short_help(
    stage: str, description: str, flags: Mapping[str, Sequence[Flag]], *, words: str, others: int
) -> str:
    """The page that ``--help`` prints.

    Args:
        stage: Its name.
        description: What it does, with examples.
        flags: As `flags_of` gives them.
        words: What may be given without a flag; empty for nothing.
        others: How many settings there are beside those.
    """
    width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
    usage = " ".join(filter(None, [f"usage: {program()}{stage}", words, "[flags]"]))
    head = [usage, "", *as_called(description).splitlines()]
    control = ["", "control:", *chain.from_iterable(_row(*one, width) for one in CONTROL), "", ""]
    rows = {
        section: [_row(flag.shown, as_called(flag.text), width) for flag in own if not flag.is_rare]
        for section, own in flags.items()
    }
    while len(head) + len(control) + _length(rows) > MOST_LINES:
        own = max((each for section, each in rows.items() if section), key=len, default=[])
        if not own:
            break
        own.pop()
    lines = head
    for section, own in rows.items():
        if own:
            lines += ["", f"settings of {section}:" if section else "of all stages:", *chain(*own)]
    more = sum(map(len, flags.values())) - sum(map(len, rows.values()))
    told = f"{counted(more, 'more setting')} of this stage and " if more else ""
    control[-1] = f"--help-all shows the rest: {told}{others} of others, each with its full text"
    return "\n".join([*lines, *control])


def _length(rows: Mapping[str, Sequence[Sequence[str]]]) -> int:
    """Lines that sections take, with those above them."""
    return sum(2 + sum(map(len, own)) for own in rows.values() if own)


def _row(name: str, text: str, width: int) -> list[str]:
    """A flag and its text beside it, or below where it is long."""
    told = textwrap.wrap(text, width - _COLUMN, break_on_hyphens=False)
    head = f"  {name}"
    if len(head) > _COLUMN - 2:
        return [head, *(f"{'':{_COLUMN}}{line}" for line in told)]
    return [f"{head if at == 0 else '':{_COLUMN}}{line}" for at, line in enumerate(told)]
