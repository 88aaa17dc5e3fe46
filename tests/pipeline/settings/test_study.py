"""The study that ships: its rows with MFI differ from their partners in MFI alone."""

from pipeline.settings.config import conf_folder
from pipeline.settings.rows import compared_rows
from pipeline.terminal.cli import parse


def test_every_row_of_the_study_with_mfi_differs_from_its_partner_in_that_alone() -> None:
    config = parse("compare", "", ["--config", str(conf_folder() / "study-mfi.yaml")])[0]
    table = compared_rows(config)
    rows = {(str(row.point), row.label): row for row in table}
    assert len(rows) == len(table)
    with_mfi = [row for row in table if row.against is not None]
    assert len(with_mfi) == len(table) / 2
    for row in with_mfi:
        other = rows[str(row.point), str(row.against)]
        assert (row.trained.loop, row.trained.subset) == (other.trained.loop, other.trained.subset)
        changed = {
            name
            for name in type(row.trained.own).model_fields
            if getattr(row.trained.own, name) != getattr(other.trained.own, name)
        }
        assert changed == {"mfi_weight"}
