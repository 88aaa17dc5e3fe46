"""Class names in one cell of text: joined by a separator, or a list as JSON or Python writes it."""

import ast
import json
import re
from collections.abc import Collection
from contextlib import suppress

MAX_LABEL_CHARS = 1 << 16
"""A cell of more characters is no list of class names."""

MARKS = (",", ";", "|", "\t", "\n")
"""What labels are joined by in tables that people and programs write."""

# What programs write for a value that is not there.
_MISSING = frozenset({"nan", "none", "null", "n/a", "#n/a", "<na>"})

_ESCAPE = r"\\(?:[\"'\\nrt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
_STRING = rf"(?:\"(?:[^\"\\\n]|{_ESCAPE})*\"|'(?:[^'\\\n]|{_ESCAPE})*')"
# Without commas Python takes strings in a row for one, and so prints NumPy its arrays.
_PYTHON_LIST = re.compile(rf"\[\s*(?:{_STRING}\s*(?:,\s*{_STRING}\s*)*,?\s*)?\]")


def read_labels(text: str, separator: str, known: Collection[str] = ()) -> tuple[list[str], bool]:
    """Class names in a cell of text, and whether it was written as a list.

    Args:
        text: Empty for none; names joined by the separator, of which one may stand at the end; or
            a list of strings as JSON or Python writes it.
        separator: Not empty.
        known: Class names, where they are known. One of these that has the separator in it is
            taken whole, unless all its parts are class names too.

    Raises:
        ValueError: If it looks like a list and is none of strings, or a name is empty, or what
            programs write for a missing value. The message does not say where.

    Example:
        >>> read_labels("dog; traffic light;", ";")
        (['dog', 'traffic light'], False)
        >>> read_labels("['dog', 'traffic light']", ";"), read_labels("[]", ";")
        ((['dog', 'traffic light'], True), ([], True))
    """
    text = text.strip()
    if len(text) > MAX_LABEL_CHARS:
        raise ValueError(f"labels of {len(text):,} characters; {MAX_LABEL_CHARS:,} is the most")
    parts = text.split() if separator == " " else [part.strip() for part in text.split(separator)]
    if text in known and (len(parts) == 1 or not all(part in known for part in parts)):
        return [text], False
    if text.startswith("[") and text.endswith("]"):
        return [check_label(name, known) for name in _read_list(text)], True
    if (text.startswith("{") and text.endswith("}")) or re.match(r"\(\s*[\"']", text):
        raise ValueError(
            f"labels {short(text)} look like a set or tuple; write a list, {_as_list(['a', 'b'])},"
            f" or names joined by {separator!r}"
        )
    if not parts[-1]:
        parts.pop()
    return [check_label(part, known) for part in parts], False


def check_label(name: object, known: Collection[str] = ()) -> str:
    """A class name without spaces around it.

    Raises:
        ValueError: If it is no text, empty, a piece of a list, or a missing value.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"label {short(name)} is no class name")
    name = name.strip()
    if name in known:
        return name
    if name.casefold() in _MISSING:
        raise ValueError(
            f"label {name!r} is what programs write for a missing value; leave the cell empty where"
            f" there is no label, or list {name!r} in class_names.txt if it is a class"
        )
    if name[:1] == "[" or name[-1:] == "]" or re.match(r"[\"'].*[\"']$", name):
        raise ValueError(
            f"label {short(name)} looks like a piece of a list; write {_as_list(['a', 'b'])} in one"
            " cell, or list it in class_names.txt if it is a class"
        )
    return check_text(name)


def check_text(text: str) -> str:
    """The text itself, if it can be written to a file.

    Raises:
        ValueError: If it has half of a character (a lone surrogate, which JSON can write).
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{short(text)} is no text: it has half of a character") from None
    return text


def parts_of(name: str, marks: Collection[str] = MARKS) -> tuple[str, list[str]] | None:
    """The mark that may join several names in one, and these; None where there is none.

    Example:
        >>> parts_of("dog, cat"), parts_of("traffic light")
        ((',', ['dog', 'cat']), None)
    """
    for mark in marks:
        parts = [part.strip() for part in name.split(mark)]
        if len(parts) > 1 and all(parts):
            return mark, parts
    return None


def short(value: object) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def _read_list(text: str) -> list[object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
        if _PYTHON_LIST.fullmatch(text):
            with suppress(ValueError, SyntaxError):  # a character beyond Unicode's last
                values = ast.literal_eval(text)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(
            f"labels {short(text)} look like a list, but are none of class names; write"
            f" {_as_list(['a', 'b'])}"
        )
    return values


def _as_list(names: list[str]) -> str:
    return json.dumps(names)
