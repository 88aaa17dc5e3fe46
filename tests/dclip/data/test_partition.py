"""Train and test images drawn from one list: sizes, coverage of classes, determinism, identity."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dclip.data.listing import ImageListing
from dclip.data.partition import partition, take_part
from dclip.data.webdataset_listing import WebdatasetListing
from dclip.world.dataset import ShapesListing

LABELS = hnp.arrays(
    np.int8,
    st.tuples(st.integers(2, 30), st.integers(1, 6)),
    elements=st.sampled_from([0, 0, 1, -1]),
)
FRACTIONS = st.floats(0.02, 0.98)


def held(labels: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Images of each class in the training and the test part."""
    return np.stack([(labels[is_test == part] == 1).sum(axis=0) for part in (False, True)])


@settings(max_examples=200)
@given(LABELS, FRACTIONS, st.integers(0, 5))
def test_no_class_is_missing_from_a_part_that_one_image_could_bring(
    labels: np.ndarray, fraction: float, seed: int
) -> None:
    is_test = partition(labels, fraction=fraction, seed=seed)
    counts = held(labels, is_test)
    shared = counts.sum(axis=0) > 1
    for column in np.flatnonzero(shared & (counts == 0).any(axis=0)):
        for row in np.flatnonzero(labels[:, column] == 1):
            # moving any of its images would take another class away from where it lies
            own = np.flatnonzero((labels[row] == 1) & shared)
            lost = counts[int(is_test[row]), own] == 1
            alone = is_test.sum() in (1, len(labels) - 1)
            assert lost.any() or alone


@settings(max_examples=200)
@given(LABELS, FRACTIONS, st.integers(0, 5))
def test_both_parts_have_images_and_a_second_draw_is_the_first(
    labels: np.ndarray, fraction: float, seed: int
) -> None:
    is_test = partition(labels, fraction=fraction, seed=seed)
    assert 0 < is_test.sum() < len(labels)
    np.testing.assert_array_equal(is_test, partition(labels, fraction=fraction, seed=seed))


@settings(max_examples=100)
@given(LABELS, FRACTIONS, st.randoms(use_true_random=False))
def test_a_class_that_is_renamed_draws_no_other_images(
    labels: np.ndarray, fraction: float, random: Random
) -> None:
    order = list(range(labels.shape[1]))  # sorted by name, as a folder has them
    random.shuffle(order)
    np.testing.assert_array_equal(
        partition(labels[:, order], fraction=fraction, seed=0),
        partition(labels, fraction=fraction, seed=0),
    )


@settings(max_examples=100)
@given(st.integers(2, 60), FRACTIONS, st.integers(0, 3))
def test_images_of_no_class_are_parted_by_number_alone(
    total: int, fraction: float, seed: int
) -> None:
    is_test = partition(np.zeros((total, 2), np.uint8), fraction=fraction, seed=seed)
    assert is_test.sum() == min(max(round(fraction * total), 1), total - 1)


def test_each_part_has_its_share_of_every_class() -> None:
    rng = np.random.default_rng(0)
    frequency = np.geomspace(0.4, 0.005, 20)
    labels = (rng.random((4000, 20)) < frequency).astype(np.uint8)
    is_test = partition(labels, fraction=0.2, seed=0)
    assert is_test.sum() == 800
    counts = held(labels, is_test)
    assert np.all(counts > 0)
    # a draw by chance strays by sqrt(n * 0.16), 16 of 100 images at two deviations
    np.testing.assert_allclose(counts[1], 0.2 * counts.sum(axis=0), atol=1.5)


def test_another_seed_draws_other_images() -> None:
    labels = np.tile(np.eye(4, dtype=np.uint8), (25, 1))
    draws = {partition(labels, fraction=0.2, seed=seed).tobytes() for seed in range(5)}
    assert len(draws) == 5


def test_the_only_image_of_a_class_is_trained_on() -> None:
    labels = np.zeros((12, 3), np.uint8)
    labels[:, 0], labels[3, 1], labels[7, 2] = 1, 1, 1
    for seed in range(10):
        is_test = partition(labels, fraction=0.25, seed=seed)
        assert is_test.sum() == 3
        assert not is_test[[3, 7]].any()


def test_unknown_labels_are_no_images_of_a_class() -> None:
    labels = np.full((10, 1), -1, np.int8)
    labels[:2] = 1
    assert held(labels, partition(labels, fraction=0.3, seed=0)).tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("total", "fraction", "named"),
    [(1, 0.5, "1 image cannot be parted"), (4, 0.0, "between 0 and 1"), (4, 1.0, "got 1.0")],
)
def test_what_cannot_be_parted_is_refused(total: int, fraction: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        partition(np.ones((total, 1), np.uint8), fraction=fraction, seed=0)


def images(count: int = 10) -> ImageListing:
    return ImageListing(
        name="folder",
        split="labels",
        class_names=("a", "b"),
        image_dir=Path("/images"),
        keys=tuple(f"k{row}" for row in range(count)),
        file_names=tuple(f"{row}.jpg" for row in range(count)),
        labels=np.tile(np.eye(2, dtype=np.uint8), (count // 2, 1)),
        notes=("one image was passed over",),
    )


def tars(count: int = 10) -> WebdatasetListing:
    return WebdatasetListing(
        split="all",
        class_names=("a", "b"),
        tars=("/one.tar",),
        keys=tuple(f"k{row}" for row in range(count)),
        tar_of=np.zeros(count, np.int32),
        offsets=np.arange(count, dtype=np.int64) * 512,
        sizes=np.full(count, 99, np.int64),
        labels=np.tile(np.eye(2, dtype=np.uint8), (count // 2, 1)),
    )


@pytest.mark.parametrize("listing", [images(), tars()], ids=["folder", "tars"])
def test_parts_are_disjoint_and_together_all_images(
    listing: ImageListing | WebdatasetListing,
) -> None:
    train = take_part(listing, "train", fraction=0.2, seed=0, split="fit")
    test = take_part(listing, "test", fraction=0.2, seed=0, split="score")
    assert isinstance(train, type(listing))
    assert isinstance(test, type(listing))
    assert (train.split, test.split, len(test)) == ("fit", "score", 2)
    assert sorted(train.keys + test.keys) == sorted(listing.keys)
    for part in (train, test):
        for row, key in enumerate(part.keys):
            whole = listing.keys.index(key)
            np.testing.assert_array_equal(part.labels[row], listing.labels[whole])
            if isinstance(part, WebdatasetListing):
                assert part.offsets[row] == 512 * whole
            else:
                assert part.file_names[row] == f"{whole}.jpg"
    assert test.notes[-1] == (
        f"2 of the 10 images of {listing.split!r}: parted by test fraction 0.2, seed 0"
    )
    assert test.notes[:-1] == listing.notes


@pytest.mark.parametrize("listing", [images(), tars()], ids=["folder", "tars"])
def test_the_identity_of_a_part_says_source_fraction_seed_and_which(
    listing: ImageListing | WebdatasetListing,
) -> None:
    def identity(fraction: float = 0.2, seed: int = 0, which: str = "test") -> dict[str, str | int]:
        part = "train" if which == "train" else "test"
        return take_part(listing, part, fraction=fraction, seed=seed, split=which).identity()

    own = identity()
    assert own == identity()
    assert (own["part"], own["test_fraction"], own["split_seed"]) == ("test", "0.2", "0")
    assert own["part_of"] == identity(which="train")["part_of"]
    others = [identity(fraction=0.2000001), identity(seed=1), identity(which="train")]
    assert all(other != own for other in others)


def test_images_without_listed_labels_are_not_parted() -> None:
    with pytest.raises(ValueError, match="has splits of its own"):
        take_part(ShapesListing("test"), "test", fraction=0.2, seed=0, split="test")
