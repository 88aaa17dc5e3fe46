"""Tables: on the terminal, columns that stand under their headings; in files, CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        title: What stands above it.
        form: How its numbers are written, as in :func:`format`.
        times: What its numbers are multiplied by: 100 for percent.
        width: At least so wide.
        is_left: Whether its cells begin at its left edge; they end at its right edge otherwise.
    """

    title: str
    form: str = ""
    times: float | None = None
    width: int = 0
    is_left: bool = False

    def text(self, value: Any) -> str:
        """A cell; ``-`` for None."""
        if value is None:
            return "-"
        if isinstance(value, str):
            return value
        return format(value if self.times is None else self.times * value, self.form)


def aligned(
    columns: Sequence[Column], rows: Iterable[Sequence[Any]], *, indent: str = ""
) -> list[str]:
    """Lines of a table, the headings first; two spaces between columns, none at the end of a line.

    Args:
        columns: From left to right.
        rows: A value for each column: text, a number, or None.
        indent: What every line begins with.

    Example:
        >>> columns = Column("", is_left=True), Column("mAP", ".1f", times=100)
        >>> aligned(columns, [("a", 0.5), ("b", None)])
        ['    mAP', 'a  50.0', 'b     -']
    """
    lines = [[column.title for column in columns]]
    lines += [
        [column.text(value) for column, value in zip(columns, row, strict=True)] for row in rows
    ]
    widths = [
        max(column.width, *map(len, cells))
        for column, cells in zip(columns, zip(*lines, strict=True), strict=True)
    ]
    return [
        (indent + "  ".join(
            cell.ljust(width) if column.is_left else cell.rjust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        )).rstrip()
        for line in lines
    ]  # fmt: skip


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    r"""Rows as CSV, numbers with six digits behind the point, nothing for None.

    Args:
        columns: Keys of the rows, in order.
        rows: Values by column.

    Example:
        >>> as_csv(["key", "score"], [{"key": "a", "score": 0.5}])
        'key,score\na,0.500000\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row[column] for column in columns)
        writer.writerow([f"{one:.6f}" if isinstance(one, float) else one for one in values])
    return text.getvalue()
