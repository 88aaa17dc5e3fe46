"""Masks and maps of a square, back on an image of 60 x 30 pixels with an object at x 30 to 45, y 0
to 15; where that lies in each kind of square is worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dclip.data.placing import place_maps, place_mask
from dclip.data.preparation import Resize, preparation

SIZE, SIDE = (60, 30), 24

OBJECT = np.zeros((30, 60), np.uint8)
OBJECT[:15, 30:45] = 1


@pytest.mark.parametrize(
    ("resize", "pixels", "rows", "columns"),
    [
        ("squash", (30, 60), slice(0, 15), slice(30, 45)),
        # the square shows x 15 to 45: 15 pixels from the left, and half of them
        ("shortest", (30, 30), slice(0, 15), slice(15, 30)),
        # 60 x 60 pixels, of which the image is the 30 rows in the middle
        ("longest", (60, 60), slice(15, 30), slice(30, 45)),
    ],
)
def test_an_object_lands_where_it_is(
    resize: Resize, pixels: tuple[int, int], rows: slice, columns: slice
) -> None:
    mask = np.zeros(pixels, np.uint8)
    mask[rows, columns] = 1

    placed = place_mask(mask, preparation(resize, "bilinear"), side=SIDE, size=SIZE)

    assert np.array_equal(placed, OBJECT)


def test_what_was_not_seen_is_background() -> None:
    mask = np.full((24, 24), 7, np.uint8)

    placed = place_mask(mask, preparation("shortest", "bilinear"), side=SIDE, size=SIZE)

    assert (placed[:, 15:45] == 7).all()
    assert placed.sum() == 7 * 30 * 30  # x 0 to 15 and 45 to 60 are 0


@pytest.mark.parametrize(("resize", "side"), [("squash", 60), ("shortest", 30), ("longest", 60)])
def test_the_mask_of_a_square_goes_back_to_the_mask_of_its_image(resize: Resize, side: int) -> None:
    form = preparation(resize, "bicubic")

    square = np.asarray(form.of_mask(Image.fromarray(OBJECT), side))

    placed = place_mask(square, form, side=side, size=SIZE)
    # sides at which no pixel is lost but those that are cut off
    assert np.array_equal(placed, OBJECT)


def test_maps_of_a_squashed_image_are_drawn_as_torch_draws_them() -> None:
    maps = torch.rand(2, 4, 5)

    placed = place_maps(
        maps.numpy(), preparation("squash", "bilinear"), seen=(600, 300), side=SIDE, size=SIZE
    )

    drawn = F.interpolate(maps[None], (30, 60), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.from_numpy(placed), drawn)


def test_maps_lie_over_the_part_that_was_seen() -> None:
    ramp = np.tile(np.arange(4, dtype=np.float32), (1, 4, 1))  # 0 1 2 3 from left to right

    middle = place_maps(
        ramp, preparation("shortest", "bilinear"), seen=(600, 300), side=SIDE, size=SIZE
    )[0]
    whole = place_maps(
        ramp.transpose(0, 2, 1), preparation("longest", "bilinear"), seen=SIZE, side=SIDE, size=SIZE
    )[0]

    assert np.isnan(middle[:, :15]).all()
    assert np.isnan(middle[:, 45:]).all()
    # cells are 7.5 pixels wide from x = 15 on: pixel 30 has its middle at 30.5, cell 2.067 - 0.5
    assert middle[:, 30] == pytest.approx(15.5 / 7.5 - 0.5)
    assert not np.isnan(whole).any()
    # cells are 15 pixels high from y = -15 on: row 0 has its middle at 15.5 of them
    assert whole[0] == pytest.approx(15.5 / 15 - 0.5)
    assert whole[29] == pytest.approx(44.5 / 15 - 0.5)
