"""What data sets there are, whether a copy of one is whole, and what is in it.

The only program here that is no stage: it writes no features and reads no config file.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dclip.words import counted
from pipeline.inspection.check import check
from pipeline.inspection.findings import shown
from pipeline.inspection.table import table
from pipeline.settings.config import check_environment
from pipeline.terminal.cli import show_log
from pipeline.terminal.errors import StageError, UsageError

_SAMPLE = 32
"""Images of each split that are read, unless all are asked for."""


def run(flags: argparse.Namespace) -> None:
    """Do what a command line of `pipeline.datasets` says; results go to stdout.

    Raises:
        UsageError: It cannot be done as it is said.
        StageError: A problem was found.
        ValueError: What is on disk cannot be used.
        OSError: A file cannot be read.
    """
    check_environment()
    if flags.command == "list":
        _print(table())
        return
    show_log()
    options = _parse_options(flags.option)
    cache: Path = flags.output.absolute() / "listings"
    if flags.command == "check":
        _check(flags, options, cache)
    else:
        _stats(flags, options, cache)


def _check(flags: argparse.Namespace, options: dict[str, str], cache: Path) -> None:
    findings = check(
        flags.name,
        flags.root,
        splits=flags.split,
        options=options,
        limit=None if flags.full else _SAMPLE,
        cache=cache,
        test_fraction=flags.test_fraction,
        split_seed=flags.split_seed,
        backbone=flags.backbone,
    )
    _print(shown(flags.name, flags.root, findings))
    if flags.json:
        about = {"problems": findings.problems, "findings": findings.lines, "files": findings.files}
        _print(json.dumps(about))
    if findings.problems:
        raise StageError(f"{counted(len(findings.problems), 'problem')} with {flags.name}")


def _stats(flags: argparse.Namespace, options: dict[str, str], cache: Path) -> None:
    if flags.limit < 1:
        raise UsageError(f"--limit must be 1 or more, got {flags.limit}")
    # it draws, and what draws takes seconds to load
    from pipeline.inspection.stats import shown_stats, stats

    reports = []
    for report in stats(
        flags.name,
        flags.root,
        splits=flags.split,
        options=options,
        limit=flags.limit,
        out=flags.output / "datasets",
        cache=cache,
    ):
        _print(shown_stats(report))
        reports.append(report)
    if flags.json:
        _print(json.dumps(reports))


def _parse_options(words: Sequence[str]) -> dict[str, str]:
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--option must be KEY=VALUE, got {word!r}")
        options[key] = value
    return options


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
