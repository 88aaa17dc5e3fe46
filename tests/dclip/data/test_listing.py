import ast
import pickle
from pathlib import Path

import numpy as np
import pytest

from dclip.data import listing as listings
from dclip.data import segmentation
from dclip.data.listing import Listing, check_key
from dclip.fitting.batches import CaptionSource
from dclip.world import shapes
from dclip.world.dataset import ShapesListing, ShapesMaskListing


def test_shapes_are_a_listing_of_scenes() -> None:
    listing = ShapesListing("test", seed=3, resolution=96)
    assert isinstance(listing, Listing)
    assert (listing.name, listing.split, len(listing)) == ("shapes", "test", 1000)
    assert listing.class_names == shapes.CLASS_NAMES
    scene = shapes.scene("test", 12, seed=3, resolution=96)
    sample = listing.read(12)
    assert np.array_equal(np.asarray(sample.image), scene.image)
    assert np.array_equal(sample.labels, scene.labels)


def test_captions_come_in_the_order_of_the_rows_short_and_long() -> None:
    listing = ShapesListing("test")
    assert isinstance(listing, CaptionSource)
    first, other, again = listing.captions(np.array([7, 2, 7]))
    scene = shapes.scene("test", 7)
    assert first == again == (scene.caption, " ".join(scene.sentences))
    assert other[1].count(".") == len(shapes.scene("test", 2).objects) + 1
    with pytest.raises(ValueError, match="use 0 to 999"):
        listing.captions(np.array([1000]))


def test_single_objects_are_a_data_set_of_their_own() -> None:
    listing = ShapesListing("val", name="shapes-single")
    drawn = shapes.single("val", 9)
    assert np.array_equal(np.asarray(listing.read(9).image), drawn.image)
    assert listing.identity() != ShapesListing("train").identity()
    assert (listing.name, len(listing), listing.key(9)) == ("shapes-single", 320, "val-00009")
    masked = ShapesMaskListing(listing)
    assert np.array_equal(masked.read_mask(9), drawn.mask)
    assert masked.name == "shapes-single"


def test_shapes_keys_are_distinct_and_fit_for_files() -> None:
    keys = [
        check_key(listing.key(index))
        for listing in map(ShapesListing, shapes.SPLIT_SIZES)
        for index in range(len(listing))
    ]
    assert len(set(keys)) == sum(shapes.SPLIT_SIZES.values())


def test_a_pickled_listing_reads_the_same() -> None:
    listing = ShapesListing("single", resolution=96)
    copy = pickle.loads(pickle.dumps(listing))
    assert copy == listing
    assert copy.read(1).image.tobytes() == listing.read(1).image.tobytes()


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown split 'val'; shapes has 'train', 'test'"):
        ShapesListing("val")


@pytest.mark.parametrize("key", ["", "a b", "../x", "é", "x" * 129, "a\n"])
def test_keys_unfit_for_files_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="cannot be a sample's key"):
        check_key(key)


def test_what_a_split_is_follows_from_no_data_set() -> None:
    general = {"bounds", "images", "listing"}
    for module in (listings, segmentation):
        tree = ast.parse(Path(module.__file__).read_text())
        imported = {
            f"{node.module}.{name.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for name in node.names
        }
        own = {name.split(".")[2] for name in imported if name.startswith("dclip.data.")}
        assert own <= general, module.__name__
