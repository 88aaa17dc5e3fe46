"""Things of a user's own code, found by ``package.module:name``."""

import difflib
import importlib
import re
from typing import Any

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_own(name: str) -> bool:
    """Whether a name is of the form ``package.module:name``."""
    return _NAME.fullmatch(name) is not None


def find_own(name: str, what: str) -> Any:
    """What ``package.module:name`` is.

    Args:
        name: Where it is.
        what: What it is to be, for messages.

    Raises:
        ValueError: There is no such module, or nothing of that name in it.
        ImportError: Something that the module imports is not there.
    """
    module_name, _, own = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, something it imports is not
        raise ValueError(
            f"no module {error.name!r} for the {what} {name!r}; install it or add its folder to"
            " PYTHONPATH"
        ) from error
    found = getattr(module, own, None)
    if not callable(found):
        near = difflib.get_close_matches(own, dir(module))
        raise ValueError(
            f"{module_name!r} has no callable {own!r} for the {what} {name!r}" + did_you_mean(near)
        )
    return found


def did_you_mean(near: list[str]) -> str:
    """The end of an error message that offers near matches, or nothing."""
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""
