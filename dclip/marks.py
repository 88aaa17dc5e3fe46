"""Marks of settings, beside their declaration, for the page that ``--help`` prints."""

from pydantic.config import JsonDict

RARE: JsonDict = {"rare": True}
"""Few people set it: it is left to ``--help-all``."""


def in_short(text: str) -> JsonDict:
    """What it is, in fewer words than its description has up to the first semicolon.

    Args:
        text: Shown in place of that.
    """
    return {"short": text}
