"""What makes a shell complete ``dclip``: a script made once, so that no Python starts at a TAB."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.settings.config import DEFAULT_METHOD, config_class
from pipeline.terminal.cli import POSITIONAL, sections_of, shared_of
from pipeline.terminal.short_help import CONTROL, flags_of


def complete(words: Sequence[str], stages: Mapping[str, Mapping[str, str]]) -> int:
    """Print the script for a shell.

    Args:
        words: The shell.
        stages: Of `pipeline.__main__`: a line each, in groups.

    Returns:
        Exit code.
    """
    try:
        shtab: Any = importlib.import_module("shtab")  # an extra
    except ImportError:
        sys.stderr.write(
            "dclip: error: --completion needs shtab; install it: pip install 'dclip[completion]'\n"
        )
        return 1
    if len(words) != 1 or words[0] not in shtab.SUPPORTED_SHELLS:
        sys.stderr.write(
            f"dclip: error: --completion takes one of {', '.join(shtab.SUPPORTED_SHELLS)}, not "
            f"{' '.join(words) or 'nothing'}\n"
        )
        return 2
    script = shtab.complete(_parser(shtab, stages), shell=words[0])
    sys.stdout.write(f"{script}\n")
    return 0


def _parser(shtab: Any, stages: Mapping[str, Mapping[str, str]]) -> argparse.ArgumentParser:
    """All stages, with what a user sees of them in ``--help``, and what is rare."""
    top = argparse.ArgumentParser("dclip")
    top.add_argument("--version", action="store_true", help="print the versions and stop")
    below = top.add_subparsers(metavar="STAGE")
    for group in stages.values():
        for stage, what in group.items():
            module = importlib.import_module(f"pipeline.{stage}")
            if hasattr(module, "parser"):  # no stage, and a command line of its own
                own = module.parser()
                below.add_parser(stage, help=what, parents=[own], add_help=False)
            else:
                _add_stage(shtab, below.add_parser(stage, help=what), stage)
    return top


def _add_stage(shtab: Any, parser: argparse.ArgumentParser, stage: str) -> None:
    """The flags of a stage, as `dclip` names them."""
    model = config_class(DEFAULT_METHOD)
    key, shown, _ = POSITIONAL.get(stage, ("", "", ""))
    if key:
        parser.add_argument(key, nargs="*", metavar=shown).complete = shtab.FILE  # type: ignore[attr-defined]
    flags = flags_of(model, sections_of(stage, model), shared_of(stage), without=[key])
    for flag in (flag for own in flags.values() for flag in own):
        name, text = f"--{flag.name}", flag.text.replace("%", "%%")
        if not flag.kind:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text)
            continue
        added = parser.add_argument(name, choices=flag.choices or None, help=text)
        if flag.kind.startswith("PATH"):
            added.complete = shtab.FILE  # type: ignore[attr-defined]
    for name, text in CONTROL:
        word, _, value = name.partition(" ")
        if not value:
            parser.add_argument(word, help=text, action="store_true")
            continue
        parser.add_argument(word, help=text).complete = shtab.FILE  # type: ignore[attr-defined]
