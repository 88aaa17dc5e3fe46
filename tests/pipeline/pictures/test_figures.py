"""Pictures: bounded in size whatever is drawn, text as it is written, what is left out is said."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from dclip.pictures import canvas
from dclip.pictures import masks as mask_figures
from dclip.pictures.masks import MaskRow
from pipeline.pictures import figures

NAMES = [f"class number {number}" for number in range(203)]


def texts(figure: Figure) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def cosines(classes: int) -> np.ndarray:
    features = np.random.default_rng(0).normal(size=(classes, 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features @ features.T


def pictures(classes: int) -> Iterator[Figure]:
    rng, names = np.random.default_rng(1), NAMES[:classes]
    matrices = {name: cosines(classes) for name in ("clip", "asl_only", "dclip")}
    yield figures.similarity_matrices(matrices, names)
    yield figures.cosine_histogram(matrices)
    ap = {"map": 0.5, "ap": rng.random(classes).tolist()}
    yield figures.ap_bars(dict.fromkeys("abcde", ap), names, [3] * classes)
    labels = (rng.random((40, classes)) < 0.1).astype(np.int64)
    yield figures.class_histogram(labels.sum(axis=0), names, "stats")
    yield figures.cooccurrence(labels.T @ labels, names, "stats")
    image = Image.fromarray(rng.integers(0, 255, (30, 400, 3)).astype(np.uint8))
    maps = rng.random((classes, 36, 480)).astype(np.float32)
    maps[:, :, :100] = np.nan
    yield mask_figures.heat_maps(image, maps, names, label="cosine")
    mask = rng.integers(0, classes + 1, (30, 400)).astype(np.uint16)
    yield mask_figures.overlay(image, mask, names)
    rows = [MaskRow(image, [mask] * 4, ["a"] * 4)] * 100
    yield mask_figures.comparison(rows, list("abcd"), [*names, "last"], None)


@pytest.mark.parametrize("classes", [2, 203])
def test_no_side_of_a_picture_is_longer_than_4000_pixels(classes: int, tmp_path: Path) -> None:
    for number, figure in enumerate(pictures(classes)):
        file = tmp_path / f"{number}.png"
        canvas.save(figure, file)
        with Image.open(file) as image:
            assert max(image.size) <= 4000, number
            assert min(image.size) >= 150, number
        assert ("of 203 classes" in texts(figure)) == (classes == 203 and number in (0, 2, 3, 4, 5))


@pytest.mark.parametrize("layout", ["constrained", None])
def test_a_picture_is_what_matplotlib_itself_would_save(layout: str | None, tmp_path: Path) -> None:
    figure = Figure(figsize=(6, 3), layout=layout)
    for axis in figure.subplots(1, 2):
        axis.plot([0, 1000], [0, 1], label="a line")
        axis.set_ylabel("what the layout makes room for")
    canvas.save(figure, tmp_path / "ours.png")
    again = Figure(figsize=(6, 3), layout=layout)
    for axis in again.subplots(1, 2):
        axis.plot([0, 1000], [0, 1], label="a line")
        axis.set_ylabel("what the layout makes room for")
    again.savefig(tmp_path / "theirs.png", dpi=120)
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("ours", "theirs"))
    assert np.array_equal(ours, theirs)


def test_a_figure_of_any_size_is_bounded(tmp_path: Path) -> None:
    figure = Figure(figsize=(300, 10))
    figure.subplots()
    canvas.save(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (4000, 133)


@pytest.mark.parametrize("name", ["a $ b $ c", "$", "$\\frac$", "x_1^2 {", "\\", "%", "a\nb"])
def test_a_name_is_drawn_as_it_is_written(name: str, tmp_path: Path) -> None:
    ap = {"a": {"map": 0.5, "ap": [0.5, 0.5]}}
    for figure in (
        figures.ap_bars(ap, [name, "b"], [1, 1], name),
        figures.similarity_matrices({name: cosines(2)}, [name, "b"], name),
        figures.class_histogram(np.array([1, 2]), [name, "b"], name),
    ):
        canvas.save(figure, tmp_path / "a.png")
    rows = [{"trial": 1, "val_map": 0.5, "inter_class_cosine": None, "a": name}]
    canvas.save(figures.sweep_trials(rows, {"a": [name]}, name), tmp_path / "a.png")


def test_characters_without_a_font_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canvas, "_installed", list)
    canvas._tell_missing.cache_clear()
    with caplog.at_level(logging.WARNING, "pipeline"):
        for _ in range(2):
            figure = figures.class_histogram(
                np.array([1, 2]), ["\u72ac", "dog"], "caf\u00e9 \u03b1"
            )
            canvas.save(figure, tmp_path / "a.png")
    assert [record.getMessage().count("\u72ac") for record in caplog.records] == [1]


def test_a_font_that_has_the_characters_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # stands for a font of East Asia: matplotlib brings one with mathematical letters only
    monkeypatch.setattr(canvas, "_OTHER_FONTS", ("no such font", "STIXGeneral"))
    canvas._installed.cache_clear()
    letter = chr(min(canvas._characters("STIXGeneral") - canvas._characters("DejaVu Sans")))
    assert canvas._families(letter) == ["DejaVu Sans", "STIXGeneral"]
    assert canvas._families("dog") == ["DejaVu Sans"]
    canvas._installed.cache_clear()


def test_classes_in_no_image_take_no_room_among_those_that_occur_together() -> None:
    labels = np.array([[1, 0, 1, 0], [0, 0, 1, 0]])
    figure = figures.cooccurrence(labels.T @ labels, ["dog", "cat", "bus", "car"], "stats")
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(rows) == ["bus", "dog"]
    assert "2 classes are in no image" in texts(figure)


def test_images_are_counted_in_whole_numbers() -> None:
    figure = figures.class_histogram(np.array([1, 1]), ["dog", "cat"], "stats")
    assert all(tick == int(tick) for tick in figure.axes[0].get_yticks())


def test_similar_classes_stand_together() -> None:
    group = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    similarity = np.where(group[:, None] == group[None], 0.9, 0.1)
    ordered = group[figures.block_order(similarity)]
    assert (np.diff(ordered) != 0).sum() == 2  # three runs


def test_the_most_confused_classes_are_those_that_are_shown() -> None:
    matrix = np.eye(100)
    matrix[97, 98] = matrix[98, 97] = 0.9
    shown = texts(figures.similarity_matrices({"clip": matrix}, NAMES[:100]))
    assert {"class number 97", "class number 98"} <= set(shown.splitlines())
    assert "80 of 100 classes" in shown


def test_bars_say_how_many_images_a_class_has() -> None:
    ap = {"a": {"map": 0.5, "ap": [0.5, None, 0.7]}}
    shown = texts(figures.ap_bars(ap, ["dog", "cat", "cow"], [12, 0, 3], "coco val"))
    assert "dog (n=12)" in shown
    assert "cow (n=3)" in shown
    assert "cat" not in shown
    assert "1 classes are in no image" not in shown
    assert "coco val" in shown


def test_the_best_trial_is_named() -> None:
    rows = [
        {"trial": number, "val_map": score, "inter_class_cosine": 0.1, "train.lr": rate}
        for number, score, rate in ((0, 0.5, 0.1), (7, 0.8, 0.2), (9, 0.6, 0.3))
    ]
    shown = texts(figures.sweep_trials(rows, {"train.lr": [0.1, 0.2, 0.3]}, "shapes"))
    assert "trial 7, 80.0 %, lr=0.2" in shown


def test_a_setting_that_is_left_out_is_a_dash_in_a_sweep() -> None:
    rows = [
        {"trial": number, "val_map": score, "dclip.output_dim": size}
        for number, score, size in ((0, 0.5, 32), (1, 0.8, None))
    ]
    shown = texts(figures.sweep_trials(rows, {"dclip.output_dim": [None, 32]}, "shapes"))
    assert "trial 1, 80.0 %, output_dim=-" in shown
    assert "None" not in shown


def test_every_colour_of_a_mask_is_in_its_legend() -> None:
    """Forty classes: ten are coloured, each by another colour, the rest is grey and counted."""
    mask = np.repeat(np.arange(40, dtype=np.uint8), 40).reshape(40, 40)
    image = Image.new("RGB", (40, 40), (0, 0, 0))
    figure = mask_figures.comparison(
        [MaskRow(image, [mask, mask], ["", ""])], ["a", "b"], NAMES, None
    )
    patches = [
        patch for patch in figure.findobj(Patch) if patch.get_label().startswith(("class", "and"))
    ]
    legend = {patch.get_facecolor()[:3] for patch in patches}
    assert len(legend) == len(patches) == 11
    assert "and 30 more" in texts(figure)
    drawn = figure.axes[1].get_images()[0].get_array()
    colours = {tuple(colour) for colour in np.asarray(drawn).reshape(-1, 3).tolist()}
    strength = 0.62 * 255
    expected = {tuple(round(strength * part) for part in colour) for colour in legend}
    assert colours == expected | {(255, 255, 255)}  # and lines between classes


def test_pixels_that_are_not_counted_are_not_coloured() -> None:
    mask = np.array([[0, 0], [255, 255]], np.uint8)
    row = MaskRow(Image.new("RGB", (2, 2), (90, 90, 90)), [mask], [""])
    figure = mask_figures.comparison([row], [""], ["one"], None)
    assert "one" in texts(figure)
    assert "more" not in texts(figure)
    assert "value 255" in texts(mask_figures.comparison([row], [""], ["one"], None, ignore=None))
