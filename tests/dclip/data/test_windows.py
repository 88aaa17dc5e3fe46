"""Cutting images for segmentation: every pixel is seen, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dclip.data.windows import Window, sliding_view, whole_view


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 8), st.integers(0, 9))
def test_windows_lie_inside_the_canvas_and_cover_it(
    width: int, height: int, stride: int, larger: int
) -> None:
    short = 8 + larger
    view = sliding_view(picture(width, height), short_side=short, window=8, stride=stride)
    covered = np.zeros(view.canvas, np.bool_)
    for window in view.windows:
        assert window.top + 8 <= view.canvas[0]
        assert window.left + 8 <= view.canvas[1]
        covered[window.top : window.top + 8, window.left : window.left + 8] = True
    assert covered.all()
    assert min(view.canvas) == short
    assert len(set(view.windows)) == len(view.windows) == len(view.pixels)
    assert view.size == (height, width)


def test_a_window_shows_the_pixels_of_its_place() -> None:
    image = picture(20, 10)
    view = sliding_view(image, short_side=10, window=6, stride=4)  # not resized
    assert view.windows[-1] == Window(4, 14, 6, 6)
    assert np.array_equal(view.pixels[-1], np.asarray(image)[4:10, 14:20])


def test_a_whole_view_is_one_square_of_all_the_image() -> None:
    view = whole_view(picture(20, 10), 8)
    assert view.pixels.shape == (1, 8, 8, 3)
    assert view.windows == (Window(0, 0, 10, 20),)
    assert view.canvas == view.size == (10, 20)


@pytest.mark.parametrize(("short_side", "window", "stride"), [(8, 9, 4), (8, 8, 9), (8, 8, 0)])
def test_numbers_that_do_not_fit_are_refused(short_side: int, window: int, stride: int) -> None:
    with pytest.raises(ValueError, match="1 <= stride <= window <= short side"):
        sliding_view(picture(9, 9), short_side=short_side, window=window, stride=stride)
