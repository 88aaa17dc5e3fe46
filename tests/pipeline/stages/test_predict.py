"""Any images, any class names: what is written, what is said of new classes, users' mistakes."""

import csv
import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from dclip.checkpoints.origin import About, CheckpointError, Encoder, read_about
from dclip.data.images import IMAGE_SUFFIXES
from dclip.pictures import masks
from dclip.recognition.looking import Looker
from dclip.world import shapes
from pipeline.features import backbone
from pipeline.records import choice
from pipeline.records.choice import NoCheckpointError
from pipeline.settings.config import Config
from pipeline.stages import predict
from pipeline.terminal import cli
from pipeline.terminal.checks import require_checkpoints
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import prediction

from ..conftest import settings
from .test_segment import checkpoint

pytestmark = [pytest.mark.usefixtures("_toy_on_path")]

CLASSES = ["star", "dog", "ring"]


@pytest.fixture
def _drawn() -> None:
    """Asked for by tests that look at the pictures; the others leave them empty, to save time."""


@pytest.fixture(autouse=True)
def _pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "_drawn" not in request.fixturenames:
        monkeypatch.setattr(prediction, "save", lambda _, path: path.touch())


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


@pytest.mark.usefixtures("_drawn")
def test_an_image_gets_scores_maps_and_a_mask_of_its_own_size(
    tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = predict.run(wanted(tmp_path, scene))
    (image,) = report.images
    with Image.open(image["pictures"]["mask"]) as mask:
        assert (mask.mode, mask.size) == ("P", (150, 100))
        shares = np.bincount(np.asarray(mask).ravel(), minlength=4) / 15000
    for row in image["scores"]:
        assert row["trained"] == (row["class"] != "dog")
        assert row["scored_by"] == ("projectors" if row["trained"] else "clip")
        if row["trained"]:
            share = shares[1 + CLASSES.index(row["class"])]
            assert row["pixel_share"] == pytest.approx(share)
    assert set(image["pictures"]) == {"mask", "overlay", "heat", "heat-clip"}
    assert all(Path(path).is_file() for path in image["pictures"].values())
    folder = Path(image["pictures"]["mask"]).parent
    assert json.loads((folder / "report.json").read_text())["images"] == report.images
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
    assert [Path(image["pictures"]["mask"]).name for image in report["images"]] == [
        "scene-mask.png", "scene-2-mask.png",
    ]  # fmt: skip
    last = told.err.splitlines()[-1]
    assert last.startswith("predict: error: 2 of 4 images left out: ")
    assert "cut.jpg" in last
    assert "missing.png" in last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [], "zero_shot": True}, "name the classes to look for"),
        ({"classes": ["dog", " dog"]}, r"remove the repetition of \['dog'\]"),
        ({"classes": ["dog", " "]}, "must not be blank"),
        ({"classes": ["dog", "Dog", "hot-dog"]}, "one text to CLIP.*'dog' = 'Dog'; leave one"),
        ({"classes": ["dog", "a\nb"]}, "control character"),
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
    with pytest.raises(CheckpointError, match="was trained on features of toy"):
        predict.describe(config.model_copy(update={"backbone": "toy_backbone:other"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no image"):
        predict.describe(wanted(tmp_path, tmp_path / "empty"))


# ---------------------------------------------------------------------------------------------
# What answers
# ---------------------------------------------------------------------------------------------


def words(tmp_path: Path, *given: object) -> Config:
    common = ["--classes", "star, dog, ring", "--output", str(tmp_path), "--device", "cpu"]
    return cli.parse("predict", "", [*map(str, given), *common])[0]


def test_photographs_are_seen_by_a_real_clip_unless_another_is_named(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Config) -> Path:
        raise NoCheckpointError("none")

    monkeypatch.setattr(choice, "take_checkpoint", missing)
    for given in ([], ["--zero-shot"]):
        config, checkpoint, _ = predict._take(words(tmp_path, scene, *given))
        assert (config.backbone, checkpoint) == ("RN101", None)
        config, _, _ = predict._take(words(tmp_path, scene, *given, "--backbone", "tiny"))
        assert config.backbone == "tiny"
        assert "tiny on image files" in " ".join(backbone.warnings_of(config))


def test_a_standing_checkpoint_of_the_settings_is_taken_and_a_line_says_so(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = checkpoint(settings(tmp_path), tmp_path / "one.safetensors")
    monkeypatch.setattr(choice, "take_checkpoint", lambda _: file)
    config = wanted(tmp_path, scene, checkpoint=None)
    with caplog.at_level(logging.INFO, "pipeline"):
        report = predict.run(config)
    assert report.checkpoint == str(file)
    assert report.taken in caplog.text
    assert f"checkpoint {file} (that of these settings)" in report.taken


def test_a_checkpoint_brings_the_backbone_it_was_trained_on(tmp_path: Path, scene: Path) -> None:
    encoder = Encoder(
        backbone="tiny", pretrained="random", resolution=64, include_global_token=False,
        kind="value", templates=["no {}", "{}"],
    )  # fmt: skip
    about = about_with(tmp_path, encoder)
    config = words(tmp_path, scene)
    taken = choice.with_backbone_of(config, about)
    assert (taken.backbone, taken.pretrained) == ("tiny", "random")
    assert (taken.resolution, taken.include_global_token) == (64, False)
    named = choice.with_backbone_of(words(tmp_path, scene, "--resolution", "96"), about)
    assert (named.backbone, named.resolution) == ("tiny", 96)
    other = words(tmp_path, scene, "--backbone", "RN50")
    assert choice.with_backbone_of(other, about) is other
    older = about.model_copy(update={"encoder": None, "backbone_name": "RN101/openai"})
    taken = choice.with_backbone_of(config, older)
    assert (taken.backbone, taken.pretrained) == ("RN101", "openai")


def test_no_class_is_refused_by_the_name_of_its_flag(tmp_path: Path, scene: Path) -> None:
    config = Config(output=tmp_path, predict={"paths": [str(scene)]})
    with pytest.raises(UsageError, match='name the classes to look for: --classes "dog'):
        predict.plan_predict(config)


def test_a_checkpoint_does_not_start_code_that_nobody_named(tmp_path: Path, scene: Path) -> None:
    encoder = Encoder(
        backbone="os:getcwd", pretrained=None, resolution=64, include_global_token=False,
        kind="value", templates=[],
    )  # fmt: skip
    with pytest.raises(UsageError, match="to run that code, say so: --backbone os:getcwd"):
        choice.with_backbone_of(words(tmp_path, scene), about_with(tmp_path, encoder))


def about_with(tmp_path: Path, encoder: Encoder) -> About:
    file = checkpoint(settings(tmp_path), tmp_path / "one.safetensors")
    return read_about(file).model_copy(update={"encoder": encoder})


# ---------------------------------------------------------------------------------------------
# Names that were not trained
# ---------------------------------------------------------------------------------------------


def test_names_that_were_not_trained_have_clips_scale_and_it_is_said_everywhere(
    tmp_path: Path,
    scene: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "pipeline"):
        report = predict.run(wanted(tmp_path, scene))
    (warning,) = report.warnings
    assert "not trained on 1 of 3 classes (dog)" in warning
    assert warning in caplog.text
    out = capsys.readouterr().out
    assert f"warning: {warning}" in out
    (line,) = [line for line in out.splitlines() if line.startswith("  dog")]
    assert line.split()[1:4] == ["no", "-", "-"]  # not there; no probability, and no threshold
    assert line.endswith("CLIP: not trained")
    (row,) = [row for row in report.images[0]["scores"] if row["class"] == "dog"]
    assert row["probability"] is None
    assert row["pixel_share"] is None
    assert -1 <= row["clip_cosine"] <= 1
    assert "untrained_probability" not in row
    assert report.images[0]["scores"][-1] is row  # after those of the checkpoint
    table = Path(report.images[0]["pictures"]["mask"]).parent / "predictions.csv"
    lines = table.read_text().splitlines()
    (kept,) = [own for own in csv.DictReader(lines) if own["class"] == "dog"]
    assert (kept["trained"], kept["scored_by"], kept["probability"]) == ("False", "clip", "")


def test_what_the_method_says_of_them_is_beside_it_on_request(tmp_path: Path, scene: Path) -> None:
    report = predict.run(wanted(tmp_path, scene, untrained_probability=True))
    rows = {row["class"]: row for row in report.images[0]["scores"]}
    assert 0 <= rows["dog"]["untrained_probability"] <= 1
    assert rows["dog"]["probability"] is None
    assert rows["star"]["untrained_probability"] is None


def test_a_trained_name_in_another_case_is_the_trained_name(tmp_path: Path, scene: Path) -> None:
    plain = predict.run(wanted(tmp_path, scene, classes=["star", "ring"]))
    other = predict.run(wanted(tmp_path, scene, classes=["Star", "RING"]))
    assert other.warnings == []
    scores = [
        {row["class"].lower(): row["probability"] for row in report.images[0]["scores"]}
        for report in (plain, other)
    ]
    assert scores[0] == scores[1]


def test_where_no_name_was_trained_frozen_clip_answers_alone(tmp_path: Path, scene: Path) -> None:
    names = ["dog", "horse"]
    report = predict.run(wanted(tmp_path, scene, classes=names))
    assert "not trained on 2 of 2" in report.warnings[0]
    (image,) = report.images
    assert all(row["pixel_share"] is not None for row in image["scores"])
    assert set(image["pictures"]) == {"mask", "overlay", "heat"}


# ---------------------------------------------------------------------------------------------
# One image never costs another
# ---------------------------------------------------------------------------------------------


def test_formats_of_a_folder_are_read_or_counted_by_name(
    tmp_path: Path,
    scene: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "mixed"
    (folder / "more").mkdir(parents=True)
    with Image.open(scene) as image:
        rgb = image.convert("RGB")
    for name in ("UPPER.JPG", "word.jfif", "word.jpe", "noextension"):
        rgb.save(folder / name, "JPEG")
    if ".avif" in IMAGE_SUFFIXES:
        rgb.save(folder / "photo.avif")
    (folder / "scan.jp2").write_bytes(b"\0\0\0\x0cjP  ")
    (folder / "._apple.jpg").write_bytes(b"\0\5\x16\7")
    with caplog.at_level(logging.INFO, "pipeline"):
        report = predict.run(wanted(tmp_path, folder, folder / "noextension", zero_shot=True))
    read = {Path(image["image"]).name for image in report.images}
    avif = {"photo.avif"} if ".avif" in IMAGE_SUFFIXES else set()
    assert read == {"UPPER.JPG", "word.jfif", "word.jpe", "noextension"} | avif
    assert report.error is None
    told = report.passed_over[str(folder)]
    assert told == (
        "1 .jp2 (scan.jp2), 1 hidden (._apple.jpg), 1 without suffix (noextension), "
        "1 folder, which are not looked into"
    )
    assert told in caplog.text
    assert told in capsys.readouterr().out


def test_a_folder_of_other_formats_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.heic").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no image \(.*\) directly in it; it has 1 \.heic"):
        predict.describe(wanted(tmp_path, tmp_path / "phone", zero_shot=True))


@pytest.mark.usefixtures("_drawn")
@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u5b57"])
def test_long_names_of_files_have_pictures_of_short_names(
    tmp_path: Path, scene: Path, letter: str
) -> None:
    most = 255 // len(letter.encode()) - 8
    long = [scene.with_name(f"{letter * most}{end}.png") for end in "ab"]
    for path in long:
        path.write_bytes(scene.read_bytes())
    report = predict.run(wanted(tmp_path, *long, scene, zero_shot=True))
    assert report.error is None
    pictures = [set(image["pictures"].values()) for image in report.images]
    assert all(Path(path).is_file() for own in pictures for path in own)
    assert len(set.union(*pictures)) == 3 * 3


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("no kernel"), KeyError("mode")])
@pytest.mark.parametrize("step", ["predict", "draw"])
def test_any_error_of_one_image_leaves_the_others(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    bad = scene.with_name("bad.png")
    bad.write_bytes(scene.read_bytes())
    owner, name = (Looker, "look") if step == "predict" else (prediction, "_draw")
    usual = getattr(owner, name)
    calls: list[int] = []

    def failing(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return usual(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)
    report = predict.run(wanted(tmp_path, bad, scene, zero_shot=True))
    (failure,) = report.failures
    assert "bad.png" in failure
    assert str(error.args[0] if error.args else "MemoryError") in failure
    assert Path(report.images[-1]["image"]).name == "scene.png"
    # scores that are there are kept where only the pictures failed
    assert len(report.images) == (1 if step == "predict" else 2)
    assert report.error.startswith("1 of 2 images")


def test_results_are_written_as_they_come_and_the_same_command_goes_on(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scene.with_name("a.png")
    first.write_bytes(scene.read_bytes())
    config = wanted(tmp_path, first, scene, zero_shot=True)
    usual = Looker.look
    seen: list[object] = []

    def stopped(self: Looker, images: list[Image.Image]) -> object:
        seen.append(images)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return usual(self, images)

    monkeypatch.setattr(Looker, "look", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict.run(config)
    folder = predict.plan_predict(config).folder
    (line,) = (folder / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == str(first)
    assert len((folder / "predictions.csv").read_text().splitlines()) == 1 + 3
    with (folder / "predictions.jsonl").open("a") as file:
        file.write('{"image": "cut sh')  # as a kill leaves it
    report = predict.run(config)
    assert len(seen) == 3  # the first image is not looked at again
    assert [Path(image["image"]).name for image in report.images] == ["a.png", "scene.png"]
    kept = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert kept == report.images
    predict.run(config)
    assert len(seen) == 3
    os.utime(first, ns=(1, 1))  # a file that changed is looked at again
    predict.run(config)
    assert len(seen) == 4
    of_another_version = [{**line, "scores": [{"class": "dog"}]} for line in kept]
    text = "".join(f"{json.dumps(line)}\n" for line in of_another_version)
    (folder / "predictions.jsonl").write_text(text)
    assert set(predict.run(config).images[0]["scores"][0]) == set(kept[0]["scores"][0])


def test_names_that_are_no_utf8_are_written_all_the_same(tmp_path: Path, scene: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(scene.parent) + b"/\xff.png"))
    try:
        odd.write_bytes(scene.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    report = predict.run(wanted(tmp_path, odd, zero_shot=True))
    assert report.images[0]["image"].endswith("\\xff.png")


@pytest.mark.usefixtures("_drawn")
def test_more_classes_than_a_palette_has_make_masks_of_16_bits(tmp_path: Path, scene: Path) -> None:
    names = [f"thing {number}" for number in range(300)]
    report = predict.run(wanted(tmp_path, scene, classes=names, zero_shot=True, threshold=0.001))
    (image,) = report.images
    with Image.open(image["pictures"]["mask"]) as mask:
        assert mask.mode == "I;16"
        assert mask.size == (150, 100)
        values = np.asarray(mask)
    assert 0 < values.max() <= 300
    for path in image["pictures"].values():
        with Image.open(path) as picture:
            assert max(picture.size) <= 4000


def test_the_shared_mixed_formats_are_read_or_named(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "cases" / "predict_mixed_formats"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    report = predict.run(wanted(tmp_path, folder, zero_shot=True))
    count = len(list(folder.iterdir()))
    passed = [int(n) for n in re.findall(r"(\d+) [.\w]", report.passed_over[str(folder)])]
    assert len(report.images) + sum(passed) == count
    assert report.error is None


@pytest.mark.parametrize(
    ("resize", "seen"),
    [("squash", slice(0, 60)), ("shortest", slice(15, 45)), ("longest", slice(0, 60))],
)
def test_mask_and_maps_lie_where_the_object_is(resize: str, seen: slice, tmp_path: Path) -> None:
    # 60 x 30 pixels, dark but for x 30 to 42 and y 6 to 21; a location is 1 to 2 pixels of it
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[6:21, 30:42] = 255
    Image.fromarray(pixels).save(tmp_path / "box.png")
    plan = predict.plan_predict(
        settings(
            tmp_path,
            backbone=f"toy_light:{resize}",
            predict={
                "paths": [str(tmp_path / "box.png")], "classes": ["light", "dark"],
                "zero_shot": True,
            },
        )
    )  # fmt: skip
    image = Image.fromarray(pixels)
    looker = prediction.looker_of(plan, "cpu")

    said = looker.look([image])[0]

    mask = said.mask.numpy()
    assert mask.shape == (30, 60)
    assert (mask[8:19, 32:40] == 1).all()  # the object, two pixels from its edges
    away = np.ones((30, 60), bool)
    away[4:23, 28:44] = False
    unseen = np.ones((30, 60), bool)
    unseen[:, seen] = False
    assert (mask[unseen] == 0).all()
    assert (mask[away & ~unseen] == 2).all()
    light = looker.maps_on(said.maps.numpy(), image, masks.small_size(image))[0]
    drawn = np.asarray(Image.fromarray(light).resize((60, 30), Image.Resampling.NEAREST))
    assert np.array_equal(np.isnan(drawn), unseen)
    assert drawn[8:19, 32:40].min() > 0.9
    assert drawn[away & ~unseen].max() < 0.1


# ---------------------------------------------------------------------------------------------
# The newest training of the output folder
# ---------------------------------------------------------------------------------------------


def trained(tmp_path: Path, name: str, when: int, **changes: object) -> Path:
    """A training of the small CLIP in the output folder, of some features, at some time."""
    config = settings(tmp_path, backbone="tiny")
    file = checkpoint(config, tmp_path / "one.safetensors", name)
    about = read_about(file)
    encoder = Encoder(
        backbone="tiny", pretrained=None, resolution=192, include_global_token=True,
        kind="value", templates=["no {}", "a {}"],
    )  # fmt: skip
    about = about.model_copy(update={"encoder": encoder, **changes})
    path = tmp_path / "checkpoints" / f"{name}-{when}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(load_file(file), path, about.metadata())
    os.utime(path, (when, when))
    return path


def test_the_newest_training_answers_with_its_own_names_and_a_line_says_so(
    tmp_path: Path, scene: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, "dclip", 5)
    newest = trained(tmp_path, "dclip", 9, features="e" * 64, class_names=["ring", "star"])
    trained(tmp_path, "asl_only", 10, features="e" * 64, class_names=["ring", "star"])
    config, _ = cli.parse("predict", "", [str(scene), "--output", str(tmp_path)])
    with caplog.at_level(logging.INFO, "pipeline"):
        plan = predict.plan_predict(config)
    assert plan.checkpoint == newest  # of its pack, the one of the method
    assert plan.classes == ("ring", "star")
    assert plan.config.backbone == "tiny"
    assert plan.taken.startswith(f"checkpoint {newest} (the newest of {tmp_path}): dclip, ")
    assert not caplog.records
    for given in (["--zero-shot"], ["--classes", "dog", "--zero-shot", "--backbone", "tiny"]):
        config, _ = cli.parse("predict", "", [str(scene), "--output", str(tmp_path), *given])
        if "--classes" in given:
            assert predict.plan_predict(config).checkpoint is None
        else:
            with pytest.raises(UsageError, match="name the classes"):
                predict.plan_predict(config)


def test_what_cannot_be_taken_for_the_newest_is_passed_over_with_a_line(
    tmp_path: Path, scene: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = trained(tmp_path, "dclip", 1)
    foreign = Encoder(
        backbone="os:getcwd", pretrained=None, resolution=192, include_global_token=True,
        kind="value", templates=["no {}", "a {}"],
    )  # fmt: skip
    code = trained(tmp_path, "dclip", 7, encoder=foreign, features="e" * 64)
    for name, content in (("cut", good.read_bytes()[:200]), ("empty", b""), ("text", b"no")):
        (good.parent / f"{name}.safetensors").write_bytes(content)
    (good.parent / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (good.parent / "folder.safetensors").mkdir()
    words = [str(scene), "--output", str(tmp_path), "--checkpoint", "newest"]
    with caplog.at_level(logging.WARNING, "pipeline"):
        plan = predict.plan_predict(cli.parse("predict", "", words)[0])
    assert plan.checkpoint == good
    for name in ("cut", "empty", "text", "gone", "folder", code.stem):
        (line,) = [line for line in caplog.messages if f"{name}.safetensors" in line]
        assert line.startswith("warning: left out: ")
        assert line.count("\n") == 0
    assert "give --backbone os:getcwd" in caplog.text


def test_another_folder_or_backbone_has_no_newest_and_settings_that_say_more_are_meant(
    tmp_path: Path, scene: Path
) -> None:
    trained(tmp_path, "dclip", 1)
    for given in (["--output", str(tmp_path / "other")], ["--backbone", "RN101"]):
        words = [str(scene), "--output", str(tmp_path), *given, "--checkpoint", "newest"]
        with pytest.raises(NoCheckpointError, match=r"no training in .*checkpoints; make one"):
            predict.plan_predict(cli.parse("predict", "", words)[0])
    open_ones = ([], ["--backbone", "RN101"], ["--device", "cpu", "--threshold", "0.3"])
    for given in open_ones:
        assert choice.is_open(cli.parse("predict", "", [str(scene), *given])[0])
    for given in (["--seed", "1"], ["--dataset", "shapes-single"], ["--train.lr", "0.5"],
                  ["--dclip.mfi-weight", "0"], ["--method", "dualcoop"]):  # fmt: skip
        assert not choice.is_open(cli.parse("predict", "", [str(scene), *given])[0])


def test_the_newest_may_be_named_among_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = trained(tmp_path, "dclip", 1), trained(tmp_path, "dclip", 2)
    words = ["--checkpoint", f"{old},newest", "--output", str(tmp_path)]
    config, _ = cli.parse("evaluate", "", words)
    with caplog.at_level(logging.INFO, "pipeline"):
        assert choice.given_files(config.evaluate.checkpoint, config) == [old, new]
    assert f"--checkpoint newest: {new} (dclip, " in caplog.text
    require_checkpoints(config.evaluate.checkpoint)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "newest").write_bytes(old.read_bytes())  # a file of that name is that file
    assert choice.given_files([Path("newest")], config) == [tmp_path / "newest"]
