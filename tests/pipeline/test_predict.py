"""Any images, any class names: what is written, what is said of new classes, users' mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip.data import shapes
from pipeline import cli, predict
from pipeline.config import Config
from pipeline.errors import StageError, UsageError

from .conftest import settings
from .test_segment import checkpoint

pytestmark = [pytest.mark.usefixtures("_toy_on_path")]

CLASSES = ["star", "dog", "ring"]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "scene.png"
    path.parent.mkdir()
    Image.fromarray(shapes.scene("test", 3).image).resize((150, 100)).save(path)
    return path


def wanted(tmp_path: Path, *paths: object, **changes: object) -> Config:
    own: dict[str, object] = {"paths": [str(path) for path in paths], "classes": CLASSES}
    if not changes.get("zero_shot"):
        own["checkpoint"] = checkpoint(settings(tmp_path), tmp_path / "one.safetensors")
    return settings(tmp_path, predict={**own, **changes})


def test_an_image_gets_scores_maps_and_a_mask_of_its_own_size(
    tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = predict.run(wanted(tmp_path, scene))
    (image,) = report["images"]
    with Image.open(image["mask"]) as mask:
        assert (mask.mode, mask.size) == ("P", (150, 100))
        shares = np.bincount(np.asarray(mask).ravel(), minlength=4) / 15000
    for row in image["scores"]:
        assert row["pixel_share"] == pytest.approx(shares[1 + CLASSES.index(row["class"])])
        assert row["trained"] == (row["class"] != "dog")
    assert Path(image["heat"]).is_file()
    assert Path(image["overlay"]).is_file()
    assert "not among them: dog" in capsys.readouterr().out
    folder = Path(image["mask"]).parent
    assert json.loads((folder / "report.json").read_text())["images"] == report["images"]
    assert len((folder / "predictions.csv").read_text().splitlines()) == 1 + 3


def test_what_cannot_be_read_is_named_at_the_end_and_the_others_are_done(
    tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scene.parent / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    words = [
        str(scene.parent), "missing.png", "--classes", "star, dog", "--zero-shot", "--json",
        "--backbone", "toy_backbone:make", "--output", str(tmp_path), str(scene),
    ]  # fmt: skip
    assert cli.main("predict", words) == 1
    told = capsys.readouterr()
    report = json.loads(told.out.splitlines()[-1])
    assert [Path(image["mask"]).name for image in report["images"]] == [
        "scene-mask.png", "scene-2-mask.png",
    ]  # fmt: skip
    last = told.err.splitlines()[-1]
    assert last.startswith("predict: error: 2 of 4 images left out: ")
    assert "cut.jpg" in last
    assert "missing.png" in last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": []}, "give at least one class name"),
        ({"classes": ["dog", " dog"]}, r"remove the repetition of \['dog'\]"),
        ({"classes": ["dog", " "]}, "must not be blank"),
        ({"classes": [str(n) for n in range(255)]}, "254 classes, not 255"),
        ({"paths": []}, "no image"),
        ({"paths": ["ftp://host/a.jpg"]}, "cannot open 'ftp://host/a.jpg'"),
        ({"checkpoint": "no.safetensors"}, "no checkpoint at no.safetensors; give --checkpoint"),
        ({"checkpoint": "a", "zero_shot": True}, "takes no --checkpoint"),
    ],
)
def test_mistakes_are_told_before_any_work(
    changes: dict[str, object], message: str, tmp_path: Path, scene: Path
) -> None:
    with pytest.raises((StageError, UsageError), match=message):
        predict.describe(wanted(tmp_path, scene, **changes))


def test_a_checkpoint_of_another_backbone_and_an_empty_folder_are_refused(
    tmp_path: Path, scene: Path
) -> None:
    config = wanted(tmp_path, scene)
    with pytest.raises(StageError, match="was trained on features of toy"):
        predict.describe(config.model_copy(update={"backbone": "toy_backbone:other"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no image"):
        predict.describe(wanted(tmp_path, tmp_path / "empty"))
