"""Predictions as a table of labels: predict, correct a line, and read it as a data set."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip.world import shapes
from pipeline.features.splits import open_dataset
from pipeline.records.labels_table import label_of, require_place, write_labels
from pipeline.stages import predict
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import prediction

from ..conftest import settings
from ..stages.test_segment import checkpoint

pytestmark = pytest.mark.usefixtures("_toy_on_path")


def test_predictions_are_corrected_and_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prediction, "save", lambda _, path: path.touch())
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for name, index in (("a b.png", 1), ("c.png", 2), ("more/c.png", 3)):
        Image.fromarray(shapes.scene("test", index).image).resize((96, 96)).save(photos / name)
    classes = ["star", "ring", "dog, small", "moon"]
    table = photos / "train.csv"
    own = {
        "paths": [str(photos), str(photos / "more" / "c.png"), str(photos / "c.png")],
        "classes": classes,
        "labels": table,
        "checkpoint": checkpoint(settings(tmp_path), tmp_path / "one.safetensors"),
    }
    report = predict.run(settings(tmp_path, predict=own))
    assert f"labels table: {table}" in capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a b.png", "c.png", "more/c.png"]  # each once
    for row, image in zip(rows, report.images, strict=False):
        for one in image["scores"]:
            told = int(row[one["class"]])
            if one["class"] == "dog, small":  # not trained on: nothing tells
                assert told == -1
            else:
                assert told == int(one["present"])

    rows[1]["dog, small"], rows[1]["star"] = "1", str(1 - int(rows[1]["star"]))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    changes = {"test_fraction": 0.34, "backbone": "tiny"}
    config = settings(tmp_path, dataset=f"folder:{photos}", **changes)
    listings = [open_dataset(config, split) for split in ("train", "test")]
    assert listings[0].class_names == tuple(sorted(classes))
    found = {
        listing.file_names[row]: dict(zip(listing.class_names, own_labels.tolist(), strict=True))
        for listing in listings
        for row, own_labels in enumerate(listing.labels)
    }
    expected = {row["file"]: {name: int(row[name]) for name in classes} for row in rows}
    assert found == expected
    assert found["c.png"]["dog, small"] == 1
    with pytest.raises(UsageError, match="corrected by hand"):
        predict.describe(settings(tmp_path, predict=own))


def test_what_cannot_say_that_a_class_is_there_makes_no_table(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    own = {
        "paths": [str(tmp_path / "a.png")],
        "classes": ["star", "ring"],
        "zero_shot": True,
        "labels": tmp_path / "train.csv",
    }
    with pytest.raises(UsageError, match="does not say which classes are there; give"):
        predict.describe(settings(tmp_path, predict=own))


def test_a_table_is_written_only_where_it_can_be_read_as_it_was_meant(tmp_path: Path) -> None:
    labels = np.array([[1, 0], [-1, 1]], np.int8)
    write_labels(tmp_path / "a.csv", ["x,1.png", 'y"2.png'], ["traffic light", "a;b"], labels)
    with pytest.raises(StageError, match="table"):
        write_labels(tmp_path / "b.csv", ["x.png"], ["file", "dog"], labels[:1])
    with pytest.raises(UsageError, match="is not in its folder"):
        require_place(tmp_path / "c.csv", [tmp_path.parent / "x.png"], flag="--labels")
    with pytest.raises(UsageError, match="drawn or lie in tars"):
        require_place(tmp_path / "c.csv", [None], flag="--labels")


@pytest.mark.parametrize(
    ("row", "by_clip", "expected"),
    [
        ({"probability": 0.6, "present": False}, False, 0),  # below the class's own threshold
        ({"probability": 0.1, "present": True}, False, 1),
        ({"probability": None, "present": True}, False, -1),  # a cosine's guess
        ({"probability": None, "present": True}, True, -1),
        ({"probability": None, "clip_probability": 0.9, "present": True}, True, 1),
    ],
)
def test_a_class_is_there_by_its_own_threshold_and_open_without_a_probability(
    row: dict[str, object], by_clip: bool, expected: int
) -> None:
    assert label_of(row, by_clip=by_clip) == expected
