"""Exceptions in words."""

import pytest

from dclip.words import told


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (TimeoutError(), "TimeoutError"),
        (OSError(""), "OSError"),
        (KeyError("epoch"), "KeyError: 'epoch'"),
        (FileNotFoundError(2, "No such file", "a.jpg"), "[Errno 2] No such file: 'a.jpg'"),
    ],
)
def test_an_exception_is_told_in_one_line_that_says_something(
    error: Exception, expected: str
) -> None:
    assert told(error) == expected
