"""Which frozen CLIPs can be taken, before any is loaded: ``python -m pipeline.backbones``."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from pipeline.terminal.called import as_called, command
from pipeline.terminal.programs import Parser, finish

FAMILIES = ("value path", "class token", "attention pool", "mean", "normed mean")
"""Of image towers, as `dclip.backbones.towers` tells them."""

DESCRIPTION = """\
List the frozen CLIPs that can be loaded by name, or show what is known of one.

examples:
  python -m pipeline.backbones list
  python -m pipeline.backbones list siglip2 --cached
  python -m pipeline.backbones list --family class-token --needs none
  python -m pipeline.backbones show ViT-B-16-SigLIP2
  python -m pipeline.backbones show ViT-L-14 --pretrained laion2b_s32b_b82k
  python -m pipeline.backbones show local-dir:FOLDER
Nothing is downloaded, and no server is asked."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(
        prog=command("backbones"),
        description=as_called(DESCRIPTION),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="list | show | write")
    what = "a line for every pair of architecture and released weights"
    sub = commands.add_parser("list", help=what, description=what, allow_abbrev=False)
    sub.add_argument(
        "part", nargs="?", default="", metavar="TEXT", help="only names and tags with this in them"
    )
    sub.add_argument(
        "--family",
        type=_family,
        metavar="FAMILY",
        help=f"only towers that pool so: {', '.join(FAMILIES)}; a hyphen may stand for the space",
    )
    sub.add_argument(
        "--needs",
        choices=("none", "hf"),
        help="none: only what is read by CLIP's own tokenizer; hf: only what needs dclip[hf]",
    )
    sub.add_argument("--cached", action="store_true", help="only weights that are on this machine")
    sub.add_argument(
        "--markdown", action="store_true", help="a line for every architecture, as in the documents"
    )
    what = "all that is known of one, and how to take it"
    sub = commands.add_parser("show", help=what, description=what, allow_abbrev=False)
    sub.add_argument(
        "name",
        metavar="NAME",
        help="an architecture of open_clip, tiny, tiny-vit, hf-hub:org/name or local-dir:PATH",
    )
    sub.add_argument(
        "--pretrained", metavar="TAG", help="only these weights: a tag, random, or a file"
    )
    sub.add_argument("--tag", metavar="TAG", help="which released weights the file holds")
    what = "for whoever changes a tower or open_clip: make the file behind list, and the table of"
    commands.add_parser(
        "write", help=f"{what} the documents, anew", description=f"{what} the documents, anew"
    )
    return top


def _family(text: str) -> str:
    family = text.replace("-", " ").lower()
    if family not in FAMILIES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(FAMILIES)}")
    return family


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, do it, and turn the outcome into an exit code.

    Returns:
        As `finish` has it.
    """

    def work() -> None:
        flags = parser().parse_args(argv)
        import_module("pipeline.stages.backbones").run(flags)

    return finish("backbones", work)


if __name__ == "__main__":
    sys.exit(main())
