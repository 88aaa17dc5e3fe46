import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as reference

from dclip.data.preparation import Preparation, preparation, read_preparation


def _image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_default_is_the_papers_square() -> None:
    image = _image(50, 31)

    squashed = image.resize((24, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(Preparation()(image, 24), squashed)
    assert str(Preparation()) == "square, bilinear, antialiased"


def test_shortest_is_torchvisions_resize_and_centre_crop() -> None:
    image = _image(60, 30)

    ours = Preparation("shortest", "bicubic")(image, 24)

    resized = reference.resize(image, 24, reference.InterpolationMode.BICUBIC, antialias=True)
    assert np.array_equal(ours, reference.center_crop(resized, 24))


def test_longest_shows_all_of_it_between_black_bars() -> None:
    image = _image(60, 30)

    square = np.array(Preparation("longest", "bilinear")(image, 24))

    assert square[:6].max() == square[-6:].max() == 0
    assert np.array_equal(square[6:18], np.array(image.resize((24, 12), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize(
    ("resize", "of_image", "of_square"),
    [
        ("squash", (0, 0, 60, 30), (0, 0, 24, 24)),
        ("shortest", (15, 0, 45, 30), (0, 0, 24, 24)),
        ("longest", (0, 0, 60, 30), (0, 6, 24, 18)),
    ],
)
def test_what_is_shown_is_told_in_both_pixels(
    resize: str, of_image: tuple[int, ...], of_square: tuple[int, ...]
) -> None:
    assert preparation(resize, "bilinear").shown(60, 30, 24) == (of_image, of_square)


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["shortest", "longest"]))
def test_every_image_gives_a_square_with_some_of_it_in_it(
    width: int, height: int, resize: str
) -> None:
    form = preparation(resize, "bilinear")

    square = form(Image.new("RGB", (width, height), "white"), 16)
    image, shown = form.shown(width, height, 16)

    assert square.size == (16, 16)
    assert 0 <= image.left < image.right <= width
    assert 0 <= image.top < image.bottom <= height
    box = tuple(map(round, shown))
    assert np.array(square.crop(box)).min() == 255
    assert (np.array(square) == 255).all(axis=2).sum() == (box[2] - box[0]) * (box[3] - box[1])


def test_words_that_are_not_known_and_other_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="'stretch', 'bilinear' are not known; there are squash"):
        preparation("stretch", "bilinear")
    with pytest.raises(ValueError, match="mode 'L'; convert it to RGB"):
        Preparation()(Image.new("L", (8, 8)), 4)


@pytest.mark.parametrize("resize", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_words_beside_features_are_read_as_they_were_written(
    resize: str, interpolation: str
) -> None:
    form = preparation(resize, interpolation)
    assert read_preparation(str(form)) == form


@pytest.mark.parametrize("text", ["", "square", "squash side, bilinear, antialiased", "a, b, c"])
def test_other_words_beside_features_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"(are not known|says no way)"):
        read_preparation(text)
