"""Files of masks beside images: found by name, read by value, missing ones told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip.data.images import ImageError
from dclip.data.listing import ImageListing, MaskedListing
from dclip.data.mask_files import MaskedImages, with_masks
from dclip.fitting.images import ImageSource
from pipeline.features.listings import open_listing
from pipeline.terminal.errors import UsageError

FILES = ("train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg", "test/dog/4.jpg")


def images(root: Path, *, size: tuple[int, int] = (8, 6)) -> None:
    for number, file in enumerate(FILES):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 99, 9)).save(root / file)


def mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


VALUES = np.array([[0, 1, 2, 254, 255, 0, 0, 0]] * 6)


def opened(root: Path, split: str = "train", **options: str) -> ImageListing:
    listing = open_listing(f"folder:{root}", None, split, options)
    assert isinstance(listing, ImageListing)
    return listing


@pytest.mark.parametrize("way", ["{top}/{name}/{n}.png", "{name}/{n}.png", "{name}/{n}.jpg"])
def test_masks_are_found_by_the_names_of_their_images(way: str, tmp_path: Path) -> None:
    images(tmp_path / "data")
    values = np.full((6, 8), 9) if way.endswith("jpg") else VALUES
    for name, n in (("cat", 1), ("dog", 2)):
        mask(tmp_path / "m" / way.format(top="train", name=name, n=n), values)
    listing = opened(tmp_path / "data", masks="../m")
    assert isinstance(listing, MaskedImages)
    assert isinstance(listing, MaskedListing)
    assert listing.mask(1).size == listing.read(1).image.size
    if not way.endswith("jpg"):
        front = np.asarray(listing.mask(0)) > 0
        assert np.array_equal(front, VALUES > 0)
        # as DAPT reads them: 255 is nothing, 1 and what is above it is in front
        authors = opened(tmp_path / "data", masks="../m", mask_void="255")
        assert np.array_equal(np.asarray(authors.mask(0)) > 0, (VALUES > 0) & (VALUES < 255))  # type: ignore[attr-defined]
        assert authors.identity() != listing.identity()
    plain = opened(tmp_path / "data")
    assert listing.identity() != plain.identity()
    # the test split has none, and needs none
    test = opened(tmp_path / "data", "test", masks="../m")
    assert not isinstance(test, MaskedListing)
    assert "no masks of split 'test'" in test.notes[-1]
    assert test.identity() == opened(tmp_path / "data", "test").identity()


def test_masks_that_are_missing_damaged_or_of_another_size_are_told(tmp_path: Path) -> None:
    images(tmp_path / "data")
    with pytest.raises(ValueError, match=r"no folder .*nowhere of masks"):
        opened(tmp_path / "data", masks="nowhere")
    mask(tmp_path / "m/train/cat/1.png", VALUES)
    with pytest.raises(ValueError, match=r"split 'train': of 2 images 1 have no mask in .*dog/2"):
        opened(tmp_path / "data", masks="../m")
    (tmp_path / "m/train/dog").mkdir()
    (tmp_path / "m/train/dog/2.png").write_bytes(b"no image")
    listing = opened(tmp_path / "data", masks="../m")
    with pytest.raises(ImageError, match="mask of image train-dog-2"):
        listing.mask(1)  # type: ignore[attr-defined]
    mask(tmp_path / "m/train/dog/2.png", VALUES[:4])
    source = ImageSource(
        listing, np.arange(2), np_labels(listing), resolution=8, form="crop", threads=1
    )
    with pytest.raises(ImageError, match="has 8 x 6 pixels, its mask 8 x 4"):
        source.pictures(np.array([1]))
    assert source.pictures(np.array([0])).masks.any()  # type: ignore[union-attr]
    source.close()
    for options, reason in (
        ({"mask_void": "255"}, "give their folder by masks=DIR"),
        ({"masks": "../m", "mask_void": "-1"}, "a number from 0 to 255, got '-1'"),
    ):
        with pytest.raises(UsageError, match=reason):
            opened(tmp_path / "data", **options)


def np_labels(listing: ImageListing):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(listing.labels).to(torch.int8)


def test_a_listing_without_masks_is_left_as_it_is(tmp_path: Path) -> None:
    images(tmp_path / "data")
    (tmp_path / "m").mkdir()
    listing = opened(tmp_path / "data")
    found = with_masks(listing, tmp_path / "m")
    assert found.file_names == listing.file_names
    assert not isinstance(found, MaskedImages)
