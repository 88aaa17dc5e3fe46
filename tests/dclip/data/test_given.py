"""Images as people have them at hand."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dclip.data.given import GivenImages, open_image
from dclip.data.images import ImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def test_every_form_is_the_same_image(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    file = tmp_path / "a.png"
    image.save(file)
    data = BytesIO()
    image.save(data, "PNG")
    planes = PIXELS.transpose(2, 0, 1)
    for one in (
        image, image.convert("RGBA"), file, str(file), f"file://{file}", data.getvalue(), PIXELS,
        planes, PIXELS.astype(np.float32) / 255, PIXELS.astype(np.int64),
        torch.from_numpy(PIXELS), torch.from_numpy(planes.copy()), torch.from_numpy(planes / 255),
    ):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(open_image(one)), PIXELS)
    grey = PIXELS[:, :, 0]
    np.testing.assert_array_equal(np.asarray(open_image(grey)), np.stack([grey] * 3, -1))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (3, "int is no image"),
        (None, "NoneType is no image"),
        ("nothing.png", "cannot open nothing.png"),
        ("ftp2://x/a.png", "image 'ftp2://x/a.png'"),
        (b"no image", "no image of a known format"),
        (np.zeros((2, 3, 4, 5)), r"shape \[2, 3, 4, 5\] is no image"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\] is no image"),
        (np.full((4, 4, 3), 1.5), "lie in \\[0, 1\\]"),
        (np.full((4, 4, 3), np.nan), "lie in \\[0, 1\\]"),
        (np.full((4, 4, 3), 300), "outside 0..255"),
        (np.broadcast_to(np.uint8(0), (9000, 9000)), "more than 64000000 pixels"),
    ],
)
def test_what_is_no_image_is_said(wrong: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        open_image(wrong)


def test_images_are_known_by_their_content_and_a_changed_one_is_another(tmp_path: Path) -> None:
    marks = np.array([[1], [0]], np.int8)
    first, second = Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())
    keys = GivenImages.of([first, second], marks, ["a"]).keys
    assert GivenImages.of([first.copy(), second], 1 - marks, ["b"]).keys == keys
    assert GivenImages.of([second, first], marks, ["a"]).keys != keys
    file = tmp_path / "a.png"
    first.save(file)
    before = GivenImages.of([file], marks[:1], ["a"]).keys
    assert GivenImages.of([str(file)], marks[:1], ["a"]).keys == before
    Image.fromarray(PIXELS[:3]).save(file)
    assert GivenImages.of([file], marks[:1], ["a"]).keys != before
