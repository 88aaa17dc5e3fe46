"""Class names in one cell of text: joined by a separator, or a list as JSON or Python writes it."""

import ast
import json
import re
from collections.abc import Collection
from contextlib import suppress

MAX_LABEL_CHARS = 1 << 16
"""A cell of more characters is no list of class names."""

MARKS = (",", ";", "|", "\t", "\n", "\uff0c", "\u3001", "\uff1b")
"""What labels are joined by in tables that people and programs write, Chinese and Japanese too."""

# What programs write for a value that is not there.
_MISSING = frozenset(
    [
        *("nan", "-nan", "nat", "na", "n/a", "#n/a", "<na>", "#na", "none", "null", "(null)"),
        *("\\n", "undefined", "#name?", "#ref!", "#value!", "#div/0!"),
    ]
)
# Numbers in a row, and what Python, pandas and NumPy print of a collection.
_NUMBERS = re.compile(r"[-+]?\d+(?:\.\d*)?(?:\s+[-+]?\d+(?:\.\d*)?)+")
_CALL = re.compile(r"(?:set|frozenset|list|tuple|dict|array|Index|Counter)\(.*\)")
_TAGS = re.compile(r"#\S+(?:\s+#\S+)+")

_ASCII = 127
_IN_COLUMNS = "write class names, or a column for each class with 1 and 0"

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
    is_set = text.startswith("{") and text.endswith("}")
    if is_set or _CALL.fullmatch(text) or re.match(r"\(\s*[\"']", text):
        raise ValueError(
            f"labels {short(text)} look like a set or tuple; write a list, {_as_list(['a', 'b'])},"
            f" or names joined by {separator!r}"
        )
    if not parts[-1]:
        parts.pop()
    _refuse_vector(parts, text, known)
    return [check_label(part, known) for part in parts], False


def check_label(name: object, known: Collection[str] = ()) -> str:
    """A class name without spaces around it.

    Raises:
        ValueError: If it is no text, empty, a piece of a list, or a missing value.
    """
    if isinstance(name, int | float) and not isinstance(name, bool):
        raise ValueError(f"label {name} is a number, not a class name; {_IN_COLUMNS}")
    if not isinstance(name, str) or not name.strip():
        said = "null" if name is None else short(name)
        raise ValueError(f"label {said} is no class name")
    name = name.strip()
    if name in known:
        return name
    if name.casefold() in _MISSING:
        raise ValueError(
            f"label {name!r} is what programs write for a missing value; leave the cell empty where"
            f" there is no label, or list {name!r} in class_names.txt if it is a class"
        )
    if not any(letter.isalnum() or ord(letter) > _ASCII for letter in name):
        raise ValueError(
            f"label {name!r} has neither letter nor digit; leave the cell empty where there is no"
            " label, or list it in class_names.txt if it is a class"
        )
    if _NUMBERS.fullmatch(name):
        raise ValueError(f"label {short(name)} is a list of numbers, not a class; {_IN_COLUMNS}")
    if _TAGS.fullmatch(name):
        raise ValueError(
            f"label {short(name)} is a list of tags; write {_as_list(['a', 'b'])}, or list it in"
            " class_names.txt if it is a class"
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


def _refuse_vector(parts: list[str], text: str, known: Collection[str]) -> None:
    """Refuse 0 and 1 for each class, which would be classes of these names."""
    is_vector = len(parts) > 1 and set(parts) <= {"0", "1", "-1", "0.0", "1.0", "-1.0"}
    if is_vector and len(set(parts)) < len(parts) and not set(parts) <= set(known):
        raise ValueError(f"labels {short(text)} are a vector of numbers; {_IN_COLUMNS}")


def _read_list(text: str) -> list[object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
        if _PYTHON_LIST.fullmatch(text):
            with suppress(ValueError, SyntaxError):  # a character beyond Unicode's last
                values = ast.literal_eval(text)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        are_numbers = re.fullmatch(r"[\[\]\s\d.,+-]*", text)
        raise ValueError(
            f"labels {short(text)} look like a list, but are none of class names; "
            + (_IN_COLUMNS if are_numbers else f"write {_as_list(['a', 'b'])}")
        )
    return values


def _as_list(names: list[str]) -> str:
    return json.dumps(names)
