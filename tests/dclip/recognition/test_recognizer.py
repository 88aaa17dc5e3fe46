"""Load, fit, predict, save: as a user of the library does it."""

import os
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone

import dclip
from dclip import Recognizer, UntrainedWarning
from dclip.checkpoints.files import write_checkpoint
from dclip.checkpoints.origin import CheckpointError
from dclip.data.images import ImageError
from dclip.recognition import features
from dclip.recognition.places import NoModelError
from dclip.store.extraction import Extractor
from dclip.world.dataset import ShapesListing

TRAIN, TEST = ShapesListing("train"), ShapesListing("test")
NAMES = TRAIN.class_names


def labelled(listing: ShapesListing, count: int) -> tuple[list[Image.Image], list[list[str]]]:
    samples = [listing.read(row) for row in range(count)]
    present = [[NAMES[k] for k in np.flatnonzero(sample.labels == 1)] for sample in samples]
    return [sample.image for sample in samples], present


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def fitted(cache: Path) -> Recognizer:
    images, labels = labelled(TRAIN, 120)
    return dclip.fit(
        images, labels, backbone="tiny", class_names=NAMES, epochs=4, val_fraction=0.3,
        cache=cache, device="cpu", progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(fitted: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted.save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def counted_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass of an extraction had."""
    passes: list[int] = []
    usual = Extractor._on_device

    def counting(self: Extractor, pixels: torch.Tensor, *rest: object) -> object:
        passes.append(len(pixels))
        return usual(self, pixels, *rest)

    monkeypatch.setattr(Extractor, "_on_device", counting)
    return passes


def test_fit_predict_and_what_a_result_holds(fitted: Recognizer) -> None:
    images, labels = labelled(TEST, 24)
    assert fitted.class_names == NAMES
    assert fitted.calibration is not None
    assert fitted.score(images, labels) > 0.85
    results = fitted.predict(images)
    hits = sum(len(set(one.present) & set(own)) for one, own in zip(results, labels, strict=True))
    assert 2 * hits / sum(len(one.present) + len(own) for one, own in
                          zip(results, labels, strict=True)) > 0.75  # fmt: skip
    one = results[3]
    assert one.class_names == NAMES
    assert list(one.scores) == list(one.thresholds) == list(NAMES)
    assert set(one.measures.values()) == {"probability"}
    assert one.present == sorted(
        (n for n in NAMES if one.scores[n] > one.thresholds[n]), key=lambda n: -one.scores[n]
    )
    assert one.thresholds == dict(zip(NAMES, fitted.thresholds, strict=True))
    assert one.maps.shape == (16, 6, 6)
    assert one.mask is not None
    assert one.mask.shape == (images[3].height, images[3].width)
    assert {NAMES[value - 1] for value in np.unique(one.mask) if value} <= set(one.present)
    proba = fitted.predict_proba(images)
    np.testing.assert_allclose(proba[3], list(one.scores.values()), atol=1e-5)
    # in batches of any size, and alone, an image gets the same
    alone = fitted.predict(images[3], batch_size=1)[0]
    np.testing.assert_allclose(list(alone.scores.values()), proba[3], atol=1e-5)
    figure = one.plot(most=3)
    assert [axis.get_title() for axis in figure.axes[:3]][:2] == ["image", "mask"]


def test_what_is_saved_says_the_same_and_is_described(fitted: Recognizer, saved: Path) -> None:
    images, _ = labelled(TEST, 3)
    again = dclip.load(saved, device="cpu")
    np.testing.assert_array_equal(again.predict_proba(images), fitted.predict_proba(images))
    assert again.thresholds.tolist() == fitted.thresholds.tolist()
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    card = (saved / "README.md").read_text()
    told = fitted.calibration
    assert told is not None
    assert told.measured.map is not None
    assert f"{100 * told.measured.map:.1f} % [" in card
    assert f"| star | {told.thresholds[NAMES.index('star')]:.3f} |" in card
    assert repr(again).startswith("Recognizer(dclip on tiny at 192 px")


def test_new_names_are_clips_own_and_old_ones_known_in_any_case(fitted: Recognizer) -> None:
    image = TEST.read(0).image
    with pytest.warns(UntrainedWarning, match="1 of 2 classes were not trained on, such as 'boat'"):
        (said,) = fitted.predict(image, classes=["STAR", "boat"])
    assert said.measures == {"STAR": "probability", "boat": "cosine"}
    (usual,) = fitted.predict(image)
    assert said.scores["STAR"] == pytest.approx(usual.scores["star"], abs=1e-5)
    assert fitted.calibration is not None
    assert said.thresholds["boat"] == fitted.calibration.untrained_cosine
    with warnings.catch_warnings(action="error"):
        (half,) = fitted.predict(image, threshold=0.99)
    assert set(half.thresholds.values()) == {0.99}
    assert half.present == [n for n in usual.present if usual.scores[n] > 0.99]


def test_frozen_clip_alone_tells_shares(tmp_path: Path) -> None:
    model = dclip.load("tiny", device="cpu")
    TEST.read(0).image.save(tmp_path / "a.png")
    (said,) = model.predict(tmp_path, classes=["cross", "heart", "moon"])
    assert sum(said.scores.values()) == pytest.approx(1, abs=1e-5)
    assert set(said.thresholds.values()) == {1 / 3}
    assert said.present == sorted(
        (name for name, value in said.scores.items() if value > 1 / 3),
        key=lambda name: -said.scores[name],
    )
    (alone,) = model.predict(tmp_path, classes=["cross"])
    assert alone.present == []  # a softmax over one class says nothing
    with pytest.raises(ValueError, match="trained on no classes; name some"):
        model.predict(tmp_path)
    with pytest.raises(ValueError, match="nothing was trained"):
        model.save(tmp_path)


def test_corrected_labels_take_no_second_look_and_a_stop_costs_a_shard(
    cache: Path, tmp_path: Path, counted_passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = labelled(TRAIN, 120)
    labels[0] = ["star"]
    again = dclip.fit(images, labels, backbone="tiny", class_names=NAMES, epochs=1, cache=cache,
                      device="cpu", progress=False)  # fmt: skip
    assert again.class_names == NAMES
    assert not counted_passes
    usual, made = features.write_encoded, []

    def stopped(*arguments: object, **named: object) -> object:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(1)
        return usual(*arguments, **named)

    monkeypatch.setattr(features, "write_encoded", stopped)
    some = {"backbone": "tiny", "epochs": 1, "cache": tmp_path, "device": "cpu", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        dclip.fit(images[:100], labels[:100], **some)
    assert sum(counted_passes) == 64
    monkeypatch.setattr(features, "write_encoded", usual)
    dclip.fit(images[:100], labels[:100], **some)
    assert sum(counted_passes) == 100


def test_a_folder_with_a_table_and_a_damaged_image(tmp_path: Path) -> None:
    images, labels = labelled(TRAIN, 30)
    lines = ["file,labels"]
    for number, (image, own) in enumerate(zip(images, labels, strict=True)):
        image.save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{';'.join(own)}")
    (tmp_path / "7.png").write_bytes(b"damaged")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="1 of 30 images cannot be read and are left out"):
        model = dclip.fit(tmp_path, "labels.csv", backbone="tiny", epochs=1, device="cpu",
                          cache=tmp_path / "cache", progress=False)  # fmt: skip
    assert model.about is not None
    assert set(model.class_names) == {name for own in labels for name in own}
    with pytest.raises(ImageError, match=r"7\.png"):
        model.predict(tmp_path)
    with pytest.warns(UserWarning, match="left out: "):
        assert len(model.predict(tmp_path, errors="skip", masks=False)) == 29


def test_scikit_learns_manners(tmp_path: Path) -> None:
    model = Recognizer("tiny", "linear_probe", epochs=3, seed=4, cache=tmp_path, device="cpu")
    other = clone(model)
    assert other is not model
    assert other.get_params() == model.get_params()
    assert other.set_params(seed=5).get_params()["seed"] == 5
    images, labels = labelled(TRAIN, 40)
    table = np.array([[name in own for name in NAMES] for own in labels], np.int8)
    assert other.fit(images, table, NAMES, progress=False) is other
    assert other.classes_.tolist() == list(NAMES)
    assert other.predict_proba(images[:3]).shape == (3, 16)
    with pytest.raises(ValueError, match="knows the classes it was fitted on, and no others"):
        other.predict(images[0], classes=["boat"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"backbone": "tiny", "epoch": 3}, "unknown setting 'epoch' of dclip; did you mean epochs"),
        ({"method": "dlcip"}, "unknown method 'dlcip'"),
        ({"method": "zero_shot"}, "is not trained; ask frozen CLIP"),
        ({"thresholds": "best"}, "is no rule for thresholds"),
        ({"val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\)"),
        ({"lr": -1.0}, "greater than 0"),
    ],
)
def test_wrong_parameters_are_refused_at_once(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recognizer(**wrong)


@pytest.mark.parametrize(
    ("images", "labels", "names", "words"),
    [
        ([np.zeros((4, 4, 3))], None, None, "labels are missing"),
        ([np.zeros((4, 4, 3))], [["a"], ["b"]], None, "1 images, but labels of 2"),
        ([np.zeros((4, 4, 3))], [["a"]], ["b"], "label 'a' is none of the 1 class names"),
        ([np.zeros((4, 4, 3))], [[0, 1]], None, "2 columns, class_names none"),
        ([np.zeros((4, 4, 3))], [[0, 2]], ["a", "b"], "labels must be 1"),
        ([np.zeros((4, 4, 3))], [[0, 1]], ["Dog", "dog"], "are one text to CLIP"),
        ([np.zeros((4, 4, 3))], [[0]], ["a " * 90], "of which tiny reads"),
        ("no-such-folder", None, None, "no folder no-such-folder"),
    ],
)
def test_what_does_not_go_together_is_said(
    images: object, labels: object, names: object, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Recognizer("tiny", device="cpu").fit(images, labels, names, progress=False)


def test_of_an_output_folder_the_newest_or_the_best(
    fitted: Recognizer, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    data = (saved / "model.safetensors").read_bytes()
    (folder / "dclip-a.safetensors").write_bytes(data)
    assert fitted.about is not None
    worse = fitted.about.model_copy(
        update={"history": [{**line, "val_map": 0.1} for line in fitted.about.history], "seed": 9}
    )
    write_checkpoint(folder / "dclip-b.safetensors", fitted.method, worse)
    variant = worse.model_copy(update={"name": "asl_only"})  # trained at once, and written last
    write_checkpoint(folder / "asl_only-b.safetensors", fitted.method, variant)
    (folder / "dclip-c.safetensors").write_bytes(b"damaged")
    os.utime(folder / "dclip-a.safetensors", ns=(1, 1))
    newest, best = (dclip.load(tmp_path, which=w, device="cpu").about for w in ("newest", "best"))
    assert newest is not None
    assert best is not None
    assert (newest.name, newest.seed, best.seed) == ("dclip", 9, 0)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere/at.safetensors", "no model at nowhere/at.safetensors; give an output folder"),
        ("RN110", "did you mean"),
        ("https://host/model", "is a URL; copy the folder"),
        ("models:/none@best", "models:/none@best: .*; is MLFLOW_TRACKING_URI that of its store"),
    ],
)
def test_a_place_without_a_model_is_said(
    place: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(NoModelError, match=words):
        dclip.load(place)


def test_a_hub_name_offline_and_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="no folder or file nobody/nothing-at-all"):
        dclip.load("nobody/nothing-at-all")
    with pytest.raises(NoModelError, match=r"no checkpoint in .*; train one"):
        dclip.load(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"that can be read: .*a\.safetensors is not"):
        dclip.load(tmp_path)
