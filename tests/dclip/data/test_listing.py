import ast
import pickle
from pathlib import Path

import numpy as np
import pytest

from dclip.data import listing as listings
from dclip.data import segmentation
from dclip.data.listing import Listing, check_key
from dclip.world import shapes
from dclip.world.dataset import ShapesListing


def test_shapes_are_a_listing_of_scenes() -> None:
    listing = ShapesListing("test", seed=3, resolution=96)
    assert isinstance(listing, Listing)
    assert (listing.name, listing.split, len(listing)) == ("shapes", "test", 1000)
    assert listing.class_names == shapes.CLASS_NAMES
    scene = shapes.scene("test", 12, seed=3, resolution=96)
    sample = listing.read(12)
    assert np.array_equal(np.asarray(sample.image), scene.image)
    assert np.array_equal(sample.labels, scene.labels)


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
    general = {"images", "listing"}
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
