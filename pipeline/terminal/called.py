"""How the user called a command, so that help, errors and advice name what can be typed again."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_MODULE = re.compile(r"python -m pipeline\.(\w+)")


def program() -> str:
    """What stands before the name of a stage: ``dclip ``, or ``python -m pipeline.``."""
    called = Path(sys.argv[0] if sys.argv else "")
    if called.name == "__main__.py" and called.parent.name == "pipeline":
        return "python -m pipeline "
    return "dclip " if called.stem == "dclip" else "python -m pipeline."


def command(stage: str, words: Sequence[str] = ()) -> str:
    """A command line of a stage, to be typed.

    Args:
        stage: Its name.
        words: That follow; they are quoted where they have to be.
    """
    return " ".join([f"{program()}{stage}", *map(shlex.quote, words)])


def as_called(text: str) -> str:
    """A text in which commands are as the user calls them."""
    first = program()
    return _MODULE.sub(lambda found: f"{first}{found[1]}", text)
