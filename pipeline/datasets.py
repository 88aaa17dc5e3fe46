"""What a data set holds, before any work: ``python -m pipeline.datasets``."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from dclip.store.paths import AnyPath, as_path
from pipeline.terminal.called import as_called, command
from pipeline.terminal.programs import Parser, finish

DESCRIPTION = """\
List the data sets that can be used, check a copy of one, or count what is in it.

examples:
  python -m pipeline.datasets list
  python -m pipeline.datasets check coco14 --root DIR
  python -m pipeline.datasets check voc2007 --root DIR --full
  python -m pipeline.datasets check folder:DIR --test-fraction 0.2
  python -m pipeline.datasets stats shapes
  python -m pipeline.datasets stats folder:DIR --split train
Nothing is downloaded: where a file is missing, check says which, and the page to get it from."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(
        prog=command("datasets"),
        description=as_called(DESCRIPTION),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="list | check | stats")
    commands.add_parser("list", help="print a table of all data sets", allow_abbrev=False)
    for which, what in (
        ("check", "compare a copy with what was published, and read some images"),
        ("stats", "count images, classes and labels, and draw them"),
    ):
        sub = commands.add_parser(which, help=what, description=what, allow_abbrev=False)
        sub.add_argument("name", help="registered name, folder:PATH, webdataset:URLS or PATH.json")
        sub.add_argument(
            "--root", type=_place, metavar="DIR", help="folder of the data set; may be a URL"
        )
        sub.add_argument(
            "--split",
            action="append",
            default=[],
            help="repeatable; left out: the splits to train and report on",
        )
        sub.add_argument(
            "--option",
            "--options",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="setting of the data set, such as difficult=ignore; repeatable",
        )
        sub.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
        sub.add_argument(
            "--output",
            type=_local,
            default=os.environ.get("DCLIP_OUTPUT", "outputs"),  # argparse reads it as a flag's
            metavar="DIR",
            help="folder of pictures and of listings that take long to make; default outputs",
        )
        if which == "check":
            sub.add_argument(
                "--full", action="store_true", help="read and compare all images, not a sample"
            )
            sub.add_argument(
                "--test-fraction",
                type=_fraction,
                metavar="SHARE",
                help="check the two splits that a stage makes of one with this setting",
            )
            sub.add_argument(
                "--split-seed",
                type=_seed,
                default=0,
                metavar="SEED",
                help="seed of that; default 0",
            )
            sub.add_argument(
                "--backbone",
                metavar="NAME",
                help="the CLIP whose prompts class names have to fit; left out: as in the stages",
            )
        else:
            sub.add_argument(
                "--limit",
                type=int,
                default=1000,
                help="samples to look at where labels are not listed (masks, shapes); default 1000",
            )
    return top


def _place(text: str) -> AnyPath:
    try:
        return as_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 0 and 1")
    return fraction


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _local(text: str) -> Path:
    path = _place(text)
    if not isinstance(path, Path):
        raise argparse.ArgumentTypeError(f"{text} must be a folder of this machine, not a URL")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, do it, and turn the outcome into an exit code.

    Returns:
        As `finish` has it.
    """

    def work() -> None:
        flags = parser().parse_args(argv)
        import_module("pipeline.stages.datasets").run(flags)

    return finish("datasets", work)


if __name__ == "__main__":
    sys.exit(main())
