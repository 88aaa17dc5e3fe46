"""A method of a user's own goes through every stage, and nothing else knows of it."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from dclip.methods.registry import find_method, is_known
from pipeline.terminal import cli

from .conftest import TOY, WITH_RAY

pytestmark = [*WITH_RAY, pytest.mark.usefixtures("ray_session")]

OWN = "toy_method:MaskedCosine"


def call(stage: str, output: Path, *words: str) -> None:
    common = [
        "--backbone", TOY, "--method", OWN, "--device", "cpu", "--output", str(output),
        "--extract.limit", "48", "--extract.shard-size", "16", "--extract.workers", "2",
        "--train.val-fraction", "0.25", "--train.epochs", "3",
    ]  # fmt: skip
    assert cli.main(stage, [*common, *words]) == 0


def test_a_method_in_one_file_goes_through_all_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call("run", tmp_path, "--masked-cosine.scale", "10", "--evaluate.probe-epochs", "2", "--json")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["map"]) == {"zero_shot", "zero_shot_local", "linear_probe", "masked_cosine"}
    assert 0 < report["map"]["masked_cosine"] <= 1
    (path,) = report["checkpoints"].values()
    assert Path(path).name.startswith("masked_cosine-")
    assert is_known(OWN)  # as it was named

    call("sweep", tmp_path, "--sweep.epochs", "2", "--json")
    swept = json.loads(capsys.readouterr().out.splitlines()[-1])
    trials = swept["trials"]
    assert sorted(row["masked_cosine.sparsity"] for row in trials) == [0.0, 0.1]
    assert all(0 <= row["open"] <= 1 and row["val_map"] > 0 for row in trials)
    packs = json.loads(next(tmp_path.glob("sweeps/*/packs.json")).read_text())
    assert sum(map(len, packs)) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model(swept["model"])
    scores = loaded.predict(np.random.default_rng(0).normal(size=(2, 9, 16)).astype(np.float32))
    assert scores.shape == (2, 16)

    call("evaluate", tmp_path, "--checkpoint", swept["checkpoint"], "--no-linear-probe")
    assert "masked_cosine" in capsys.readouterr().out
    call("segment", tmp_path, "--segment.limit", "4", "--segment.workers", "1", "--json",
         "--segment.checkpoint", path)  # fmt: skip
    segmented = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"masked_cosine", "masked_cosine_present"} <= set(segmented["systems"])
    photo = tmp_path / "photo.png"
    from PIL import Image

    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(photo)
    call("predict", tmp_path, str(photo), "--classes", "red disc, blue box", "--checkpoint", path)
    assert "red disc" in capsys.readouterr().out


def test_trials_of_it_train_together(tmp_path: Path) -> None:
    from dclip.fitting.loop import Loop
    from dclip.fitting.pack import Pack
    from dclip.methods.method import Task

    kind = find_method(OWN)
    settings = [kind.Settings(sparsity=value) for value in (0.0, 0.5, 2.0)]
    task = Task.of_features(["a", "b"], torch.randn(4, 8))
    pack = Pack(kind, settings, Loop(), task, seeds=[0, 1, 2])
    from dclip.fitting.batches import Batch

    batch = Batch(torch.randn(3, 5, 8), torch.tensor([[1, 0], [0, 1], [1, -1]]), known=5)
    together = pack.losses(batch)
    assert pack.terms == ("loss", "bce", "mask")
    for trial in range(3):
        alone = pack.method(trial).losses(batch)
        torch.testing.assert_close(together[trial], torch.stack([*alone.values()]))


def test_the_page_shows_the_method_that_is_tried_here() -> None:
    here = Path(__file__).parent
    page = (here.parent.parent / "docs" / "methods.md").read_text()
    assert f"```python\n{(here / 'toy_method.py').read_text().strip()}\n```" in page


def test_a_method_that_is_fed_images_goes_through_the_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = ("--method", "toy_pixels:PixelLine", "--train.augmentation", "crop",
              "--train.accumulate", "2", "--train.schedule", "step",
              "--train.warmup-steps", "2")  # fmt: skip
    call("run", tmp_path, *method, "--evaluate.probe-epochs", "2", "--json")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < report["map"]["pixel_line"] <= 1
    (path,) = report["checkpoints"].values()
    photo = tmp_path / "photo.png"
    from PIL import Image

    Image.fromarray(np.zeros((96, 70, 3), np.uint8)).save(photo)
    call("predict", tmp_path, str(photo), *method[:2], "--classes", "star, circle",
         "--checkpoint", path)  # fmt: skip
    assert "star" in capsys.readouterr().out
    call("compare", tmp_path, "--compare.methods", "zero_shot,toy_pixels:PixelLine",
         "--compare.seeds", "1", "--train.epochs", "1", "--json")  # fmt: skip
    lines = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [line["test_map"] > 0 for line in lines] == [True, True]
    assert lines[1]["parameters"] == 16 * 16 + 16
