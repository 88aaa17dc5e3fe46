"""Captions of a file train SmartCLIP without a class, and retrieval scores it."""

import json
from pathlib import Path

import numpy as np
import pytest

from dclip.world.dataset import ShapesListing
from pipeline.records.checkpoints import load_checkpoint
from pipeline.terminal import cli

from ..conftest import WITH_RAY

pytestmark = [*WITH_RAY, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A table of images and captions, one of whose images is not there."""
    listing, folder = ShapesListing("train"), tmp_path / "pairs"
    folder.mkdir()
    lines = [{"image": "gone.png", "caption": "a text"}]
    for row, (_, told) in enumerate(listing.captions(np.arange(9))):
        listing.read(row).image.resize((64, 64)).save(folder / f"{row}.png")
        lines.append({"image": f"{row}.png", "caption": told})
    table = folder / "pairs.jsonl"
    table.write_text("\n".join(map(json.dumps, lines)))
    return table


def call(stage: str, output: Path, *words: str) -> int:
    common = ["--backbone", "tiny", "--method", "smartclip", "--smartclip.masks", "none",
              "--device", "cpu", "--output", str(output)]  # fmt: skip
    return cli.main(stage, [*common, *words])


def test_captions_of_a_file_train_smartclip_and_are_found_by_it(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"captions:{pairs}"
    assert call("train", tmp_path, "--dataset", data, "--train.epochs", "1", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "no features are kept" in said
    assert "8 images to train on, 1 held out" in said
    steps = ("--train.epochs", "1", "--train.batch-size", "4", "--train.warmup-steps", "1")
    assert call("train", tmp_path, "--dataset", data, *steps, "--json") == 0
    seen = capsys.readouterr()
    report = json.loads(seen.out.splitlines()[-1])
    assert report["final"]["loss"] > 0
    assert not (tmp_path / "features").exists()
    path = Path(report["checkpoint"])
    method, about = load_checkpoint(path)
    assert about.class_names == []
    assert len(method.task.class_names) == 0

    found = call("retrieve", tmp_path, "--captions", str(pairs), "--retrieve.checkpoint", str(path),
                 "--json")  # fmt: skip
    assert found == 0
    systems = json.loads(capsys.readouterr().out.splitlines()[-1])["systems"]
    assert set(systems) == {"zero_shot", "smartclip_no_masks"}

    for stage, words in (("run", ()), ("extract", ()), ("evaluate", ("--checkpoint", str(path)))):
        assert call(stage, tmp_path, "--dataset", data, *words) == 2
        assert "has captions and no classes" in capsys.readouterr().err


def test_what_is_not_fed_captions_alone_is_refused(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--dataset", f"captions:{pairs}", "--backbone", "tiny", "--output", str(tmp_path)]
    for method in ("dclip", "smartclip_adapter"):
        assert cli.main("train", [*asked, "--method", method]) == 2
        assert "has captions and no classes" in capsys.readouterr().err
    gone = ["--dataset", "captions:nowhere.csv", *asked[2:], "--method", "smartclip"]
    assert cli.main("train", gone) == 1
    assert "nowhere.csv" in capsys.readouterr().err
