"""The command ``dclip``: ``dclip STAGE ...`` is ``python -m pipeline.STAGE ...``."""

import difflib
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pipeline.terminal.called import program
from pipeline.terminal.versions import versions

GROUPS = {
    "start here:": {
        "run": "all in one: features, training and a comparison with frozen CLIP",
        "predict": "which classes photographs show, and where",
        "datasets": "list the data sets, check a copy of one, count what is in it",
        "backbones": "list the frozen CLIPs that can be taken",
    },
    "step by step:": {
        "extract": "images to frozen features, once",
        "train": "features to a checkpoint",
        "evaluate": "a checkpoint's scores on the test split, beside frozen CLIP",
        "segment": "masks and mIoU, without training on masks",
        "calibrate": "new thresholds and probabilities for a checkpoint",
        "export": "a checkpoint as one file that runs without this package",
    },
    "answer others:": {"serve": "a trained model answers photographs over HTTP"},
    "look at data:": {
        "search": "extracted images by a text or an image",
        "audit": "labels that are likely wrong, copies, classes that hide others",
    },
    "study:": {
        "sweep": "many settings of one training, side by side",
        "ablate": "a method with one thing taken away at a time",
        "compare": "methods beside each other, over seeds",
        "retrieve": "images by their captions, and captions by their images",
        "segments_mlr": "labels with the help of an image's segments",
    },
}
"""Stages in the order in which one needs them, a line each; others are listed after these."""

_DESCRIPTION = "What photographs show, and where: a frozen CLIP and two small projectors."
_EXAMPLES = (
    ("run", "all of it on drawn shapes, a few minutes"),
    ("run --dataset folder:photos", "your photographs and their table of labels"),
    ("predict new.jpg", "what the newest training says"),
    ('predict new.jpg --classes "dog, horse" --zero-shot', "frozen CLIP alone"),
)


def stages() -> dict[str, dict[str, str]]:
    """All stages there are: those of `GROUPS`, then others by the first line of their module."""
    there = {path.stem: path for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))}
    known = [name for group in GROUPS.values() for name in group]
    others = {name: _first_line(path) for name, path in there.items() if name not in known}
    return {**GROUPS, **({"more:": others} if others else {})}


def _first_line(path: Path) -> str:
    """What a module says of itself, without the command."""
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().strip('"').partition(":")[0]


def page() -> str:
    """What ``--help`` prints."""
    first = program()
    longest = max(len(words) for words, _ in _EXAMPLES)
    lines = [f"usage: {first}STAGE [flags]", "", _DESCRIPTION, "", "examples:"]
    lines += [f"  {first}{words:<{longest}}  {what}" for words, what in _EXAMPLES]
    for title, group in stages().items():
        lines += ["", title, *(f"  {name:<14}{what}" for name, what in group.items())]
    return "\n".join(
        [
            *lines,
            "",
            "flags:",
            "  STAGE --help         what a stage uses, with examples",
            "  --version            print the versions and stop",
            "  --completion SHELL   print what makes a shell (bash, zsh, ...) complete all this",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage that the first word names, with the other words.

    Args:
        argv: Words of the command line; ``sys.argv[1:]`` if left out.

    Returns:
        Exit code of the process, where no stage ends it by itself.
    """
    words = [*(sys.argv[1:] if argv is None else argv)]
    stage = words[0].replace("-", "_") if words and not words[0].startswith("-") else ""
    names = [name for group in stages().values() for name in group]
    if stage in names:
        sys.argv[1:] = words[1:]
        runpy.run_module(f"pipeline.{stage}", run_name="__main__")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(f"{page()}\n")
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"{versions()}\n")
        return 0
    if words[0] == "--completion":
        done: int = import_module("pipeline.terminal.completion").complete(words[1:], stages())
        return done
    return _unknown(words[0], names)


def _unknown(word: str, names: Sequence[str]) -> int:
    flat = word.replace("-", "_").lower()
    close = difflib.get_close_matches(flat, names, n=1, cutoff=0.5)
    close = close or [name for name in names if name.startswith(flat) and flat]
    hint = f"did you mean {program()}{close[0]}? " if close else ""
    what = "flag" if word.startswith("-") else "stage"
    sys.stderr.write(f"dclip: error: no {what} {word!r}; {hint}(see {_help()})\n")
    return 2


def _help() -> str:
    return f"{program()}--help".replace("pipeline.--help", "pipeline --help")


if __name__ == "__main__":
    sys.exit(main())
