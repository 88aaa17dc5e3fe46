"""The audit finds what was planted: flipped labels, copies in two splits; and its table is read."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dclip.data.folder import read_folder
from dclip.world import shapes
from pipeline.features.plan import plan_features
from pipeline.records.labels_table import write_labels
from pipeline.settings.config import Config
from pipeline.stages import audit, extract
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError, UsageError

from ..conftest import settings
from .test_extract import make_here

TRAIN, TEST = 240, 30
COPIES = {"same": 2, "jpeg": 7, "half": 11, "border": 23}


def copied(image: Image.Image, kind: str) -> Image.Image:
    width, height = image.size
    if kind == "jpeg":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=60)
        return Image.open(file).convert("RGB")
    if kind == "half":
        return image.resize((width // 2, height // 2))
    return image.crop((5, 5, width - 5, height - 5)) if kind == "border" else image


class Planted:
    """A folder of scenes as photographs, with flipped labels, unknown ones, and copies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "photos"
        self.folder.mkdir()
        self.files, labels = [], []
        for split, count in (("test", TEST), ("train", TRAIN)):
            self.files, labels = [], []
            for index in range(count):
                drawn = shapes.scene(split, index)
                self.files.append(f"{split}-{index}.png")
                labels.append(drawn.labels)
                Image.fromarray(drawn.image).save(self.folder / self.files[-1], compress_level=1)
            if split == "test":
                self.write("test", np.stack(labels))
        for kind, index in COPIES.items():
            drawn = shapes.scene("test", index)
            self.files.append(f"copy-{kind}.png")
            copied(Image.fromarray(drawn.image), kind).save(self.folder / self.files[-1])
            labels.append(drawn.labels)
        self.truth = np.stack(labels).astype(np.int8)
        generator = np.random.default_rng(0)
        flat = generator.choice(TRAIN * 16, round(0.02 * TRAIN * 16), replace=False)
        self.labels = self.truth.copy()
        self.flipped = {divmod(int(one), 16) for one in flat}
        for row, column in self.flipped:
            self.labels[row, column] ^= 1
        self.unknown = [(row, 3) for row in range(0, TRAIN, 5) if (row, 3) not in self.flipped]
        for row, column in self.unknown:
            self.labels[row, column] = -1
        self.write("train", self.labels)

    def write(self, split: str, labels: np.ndarray) -> None:
        table = self.folder / f"{split}.csv"
        write_labels(table, self.files, shapes.CLASS_NAMES, labels.astype(np.int8))

    def config(self, **changes: Any) -> Config:
        own = {"scorers": ["logistic_probe", "zero_shot_pooled"], "folds": 3, "shown": 8, **changes}
        return settings(
            self.folder.parent / "outputs",
            dataset=f"folder:{self.folder}",
            backbone="tiny",
            extract={"shard_size": 100},
            audit=own,
        )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    found = Planted(tmp_path_factory.mktemp("audit"))
    config = found.config()
    for split in ("train", "test"):
        plan = plan_features(config, split)
        make_here(plan, config)
        extract.extract(config, [plan])
    return found


@pytest.fixture(scope="module")
def report(planted: Planted) -> audit.AuditReport:
    return audit.run(planted.config(write_labels=planted.folder / "corrected.csv"))


def rows_of(report: audit.AuditReport, name: str) -> list[dict[str, str]]:
    with (Path(report.figures[0]).parent / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def place(row: dict[str, str]) -> tuple[int, int]:
    number = row["key"].removeprefix("train-")
    column = shapes.CLASS_NAMES.index(row["class"])
    return (int(number) if number.isdecimal() else -1), column


def test_flipped_labels_are_the_first_of_the_list(
    planted: Planted, report: audit.AuditReport
) -> None:
    rows = rows_of(report, "label_issues")
    assert len(rows) == report.wrong + report.missing
    hits = np.array([place(row) in planted.flipped for row in rows])
    quarter, count = len(planted.flipped) // 4, len(planted.flipped)
    assert hits[:quarter].mean() >= 0.6  # by chance: 0.02
    assert hits[:count].sum() / count >= 0.3
    for row in rows:
        at = place(row)
        given = planted.labels[at] if at[0] >= 0 else int(row["given"])
        assert {"wrong": 1, "missing": 0}[row["why"]] == int(row["given"]) == given
        assert Path(row["path"]).is_file()
    surety = [abs(int(row["given"]) - float(row["probability"])) for row in rows]
    assert surety == sorted(surety, reverse=True)


def test_unknown_labels_are_no_issues_and_get_suggestions(
    planted: Planted, report: audit.AuditReport
) -> None:
    assert not {place(row) for row in rows_of(report, "label_issues")} & set(planted.unknown)
    rows = rows_of(report, "suggestions")
    assert {place(row) for row in rows} <= set(planted.unknown)
    assert report.suggested == len(rows) > len(planted.unknown) / 4
    right = [int(row["suggested"]) == planted.truth[place(row)] for row in rows]
    assert np.mean(right) > 0.8


def test_copies_in_two_splits_are_all_found_and_no_others(report: audit.AuditReport) -> None:
    rows = rows_of(report, "copies")
    leaks = {(row["key_1"], row["key_2"]): row for row in rows if row["leak"] == "True"}
    assert set(leaks) == {(f"copy-{kind}", f"test-{index}") for kind, index in COPIES.items()}
    assert report.leaks == len(COPIES)
    assert report.copies == 0
    assert leaks["copy-same", "test-2"]["same_bytes"] == "False"  # other settings of PNG
    assert float(leaks["copy-same", "test-2"]["agreement"]) == pytest.approx(1, abs=1e-3)


def test_the_table_of_suggestions_is_a_data_set_with_fewer_errors(
    planted: Planted, report: audit.AuditReport
) -> None:
    assert report.labels_table == str(planted.folder / "corrected.csv")
    listing = read_folder(planted.folder, "corrected")
    assert listing.class_names == tuple(sorted(shapes.CLASS_NAMES))
    order = [listing.class_names.index(name) for name in shapes.CLASS_NAMES]
    corrected = listing.labels[:, order]
    assert listing.file_names == tuple(planted.files)
    changed = corrected != planted.labels
    issues = {place(row) for row in rows_of(report, "label_issues")}
    told = issues | {place(row) for row in rows_of(report, "suggestions")}
    assert {
        (int(row), int(column)) for row, column in zip(*np.nonzero(changed[:TRAIN]), strict=True)
    } == {one for one in told if one[0] >= 0}
    first = rows_of(report, "label_issues")[: len(planted.flipped) // 4]
    assert sum(corrected[place(row)] == planted.truth[place(row)] for row in first) > 0.6 * len(
        first
    )


def test_pictures_and_classes_that_take_are_there_and_a_report_stands(
    planted: Planted, report: audit.AuditReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [Path(figure).name for figure in report.figures]
    assert names[:2] == ["label_issues.png", "copies.png"]
    for figure in report.figures:
        with Image.open(figure) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    rows = rows_of(report, "stealing")
    assert len(rows) == report.taking
    for row in rows:
        share = int(row["wrong_with"]) / int(row["images_with"])
        share -= int(row["wrong_without"]) / int(row["images_without"])
        assert float(row["difference"]) == pytest.approx(share, abs=1e-6)
        assert 0 < float(row["low"]) < share < float(row["high"])
    monkeypatch.setattr("pipeline.work.audit.audit", lambda *_: pytest.fail("it looks again"))
    assert audit.run(planted.config()).identity == report.identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers": ["no_such"]}, "--scorers"),
        ({"scorers": ["maple"]}, "fed more than features"),
        ({"write_labels": "gone/a.csv"}, "there is no folder"),
        ({"write_labels": "a.txt"}, "ends in .csv"),
        ({"split": "val"}, "val"),
    ],
)
def test_mistakes_are_told_before_any_work(
    changes: dict[str, Any], message: str, planted: Planted, tmp_path: Path
) -> None:
    if "write_labels" in changes:
        changes = {"write_labels": tmp_path / changes["write_labels"]}
    with pytest.raises((UsageError, StageError), match=message):
        audit.describe(planted.config(**changes))


def test_a_table_elsewhere_or_one_that_is_there_is_refused(
    planted: Planted, report: audit.AuditReport, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is not in its folder"):
        audit.describe(planted.config(write_labels=tmp_path / "a.csv"))
    with pytest.raises(UsageError, match="corrected by hand"):
        audit.describe(planted.config(write_labels=planted.folder / "corrected.csv"))


def test_drawn_images_have_no_table_and_too_few_images_no_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path, backbone="tiny", extract={"limit": 3, "shard_size": 3})
    plan = plan_features(config, "train")
    make_here(plan, config)
    extract.extract(config, [plan])
    common = ["--backbone", "tiny", "--output", str(tmp_path), "--extract.limit", "3"]
    common += ["--extract.shard-size", "3", "--device", "cpu"]
    capsys.readouterr()
    assert cli.main("audit", [*common, "--write-labels", str(tmp_path / "a.csv")]) == 2
    assert "a table lists files" in capsys.readouterr().err
    assert cli.main("audit", common) == 1
    assert "make no 5 folds" in capsys.readouterr().err
