"""Which frozen CLIPs there are, and what is known of one; no stage, as `pipeline.datasets` is none.

Lists come from a file and load no torch. What the file does not have is built without memory.
"""

import argparse
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from dclip.architectures import (
    FILE,
    Architecture,
    Facts,
    Weights,
    check_settings,
    facts,
    is_here,
    no_such_tag,
    read_facts,
    unknown_name,
    write_facts,
)
from dclip.texts import EMBEDDED
from pipeline.inspection.backbones import listed, markdown, replace_section, shown
from pipeline.settings.config import check_environment
from pipeline.terminal.errors import UsageError
from pipeline.terminal.pages import page


def run(flags: argparse.Namespace) -> None:
    """Do what a command line of `pipeline.backbones` says; results go to stdout.

    Raises:
        UsageError: A name or tag is unknown, or nothing is of the kind that was asked for.
        ValueError: A configuration cannot be used.
        OSError: A file is not there, or cannot be written.
    """
    check_environment()
    if flags.command == "list":
        _print(_list(flags))
    elif flags.command == "show":
        _print(_show(flags.name, flags.pretrained, flags.tag))
    else:
        _write()


def _list(flags: argparse.Namespace) -> str:
    known = facts()
    chosen: list[tuple[Architecture, Weights | None]] = []
    for each in known.architectures.values():
        if flags.family not in (None, each.family):
            continue
        if flags.needs not in (None, "none" if each.tokenizer is None else "hf"):
            continue
        pairs: tuple[Weights | None, ...] = each.weights or (None,)
        for weights in pairs:
            words = f"{each.name} {weights.tag if weights else 'random'}"
            if flags.part.lower() in words.lower() and not (flags.cached and not is_here(weights)):
                chosen.append((each, weights))
    if not chosen:
        raise UsageError(
            f"none of {sum(len(each.weights) or 1 for each in known.architectures.values())} is"
            " of that kind; ask for less"
        )
    if flags.markdown:
        return markdown(chosen)
    return listed(chosen, known)


def _show(name: str, pretrained: str | None, tag: str | None) -> str:
    own = _known(name) or _facts().describe(name)
    tags = {each.tag: each for each in own.weights if each.tag}
    if tag is not None and (pretrained is None or pretrained in ("random", *tags)):
        raise UsageError(f"--tag {tag} says which weights a file holds; give it by --pretrained")
    if pretrained is None:
        return shown(own, own.weights)
    if pretrained == "random":
        return shown(own, (), chosen="random")
    weights = tags[pretrained] if pretrained in tags else _of_a_file(own, pretrained, tag)
    return shown(own, (weights,), chosen=pretrained, tag=tag)


def _known(name: str) -> Architecture | None:
    """What the file has of a name; None where it has to be built.

    Raises:
        UsageError: There is no such model, or it is code of the user's.
    """
    known = facts()
    own = known.architectures.get(name.replace("/", "-"))
    if own is not None and known.is_installed:
        return own
    if name in EMBEDDED or name.startswith(("hf-hub:", "local-dir:")):
        return None
    if ":" in name:
        raise UsageError(f"{name} is code of yours; nothing is known of it without running it")
    if known.is_installed:
        raise UsageError(unknown_name(name, known.architectures))
    return None


def _of_a_file(own: Architecture, file: str, tag: str | None) -> Weights:
    """Weights in a file, prepared as its tag or its configuration says."""
    if own.name in facts().architectures and not Path(file).is_file():
        raise UsageError(no_such_tag(own.name, file, [each.tag for each in own.weights]))
    check_settings(own.name, pretrained=file, tag=tag, resolution=None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        weights: Weights = _facts().describe_file(own.name, file, tag)
    for each in told:
        sys.stderr.write(f"backbones: warning: {each.message}\n")
    return weights


def _facts() -> Any:
    """`dclip.backbones.facts`, which loads torch and open_clip."""
    return import_module("dclip.backbones.facts")


def _write() -> None:
    write_facts(FILE, _facts().every_architecture())
    _print(f"wrote {FILE}")
    known = read_facts(FILE)
    document = Path(page("backbones"))
    document.write_text(
        replace_section(document.read_text("utf-8"), markdown(every(known))), "utf-8"
    )
    _print(f"wrote the table of {document}")


def every(known: Facts) -> list[tuple[Architecture, Weights | None]]:
    """All pairs, and architectures without released weights.

    Args:
        known: The facts.
    """
    return [
        (each, weights)
        for each in known.architectures.values()
        for weights in each.weights or (None,)
    ]


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
