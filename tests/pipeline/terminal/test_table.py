"""Columns of a table stand under their headings, whatever is in them."""

from pipeline.terminal.table import Column, aligned


def test_a_column_is_as_wide_as_its_longest_cell_and_no_line_ends_in_a_space() -> None:
    columns = [Column("name", is_left=True), Column("mAP", ".1f", times=100), Column("", width=9)]
    rows = [("a", 1.0, None), ("a name that is long", 0.05, "x"), ("b", None, "")]
    assert aligned(columns, rows, indent=" ") == [
        " name                   mAP",
        " a                    100.0          -",
        " a name that is long    5.0          x",
        " b                        -",
    ]


def test_text_is_as_it_is_and_numbers_have_the_form_of_their_column() -> None:
    columns = [Column("share", ".1%"), Column("count", ","), Column("any")]
    assert aligned(columns, [(0.125, 12_345, 0.5), ("n/a", None, True)])[1:] == [
        "12.5%  12,345   0.5",
        "  n/a       -  True",
    ]


def test_a_table_without_rows_is_its_headings() -> None:
    assert aligned([Column("a"), Column("b", width=3)], []) == ["a    b"]
