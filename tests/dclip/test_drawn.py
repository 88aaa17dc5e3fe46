"""Parts of the training data: what is drawn belongs to rows and columns, and to the seed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dclip.fitting.batches import MemoryFeatures
from dclip.fitting.drawn import columns_of, part_of
from dclip.fitting.subset import Subset
from dclip.methods.method import Task, with_classes
from dclip.prompts import ClassTexts

IMAGES, NAMES = 60, ("dog", "cat", "ox", "hen", "fox")
ROWS = np.arange(IMAGES)


def features() -> MemoryFeatures:
    random = torch.Generator().manual_seed(0)
    labels = (torch.rand(IMAGES, len(NAMES), generator=random) < 0.3).int()
    labels[::7, 0] = -1
    local = torch.arange(IMAGES, dtype=torch.float32)[:, None, None].expand(-1, 2, 3)
    return MemoryFeatures(local, labels, grid=(1, 2), embeddings=local[:, 0])


@given(st.permutations(range(IMAGES)), st.integers(1, 9))
def test_the_draw_depends_neither_on_the_order_nor_on_rows_that_are_not_there(
    order: list[int], seed: int
) -> None:
    for subset in (Subset(num_images=20), Subset(shots=3)):
        given_rows = np.array(order[:50])
        _, one, _ = part_of(subset, features(), given_rows, NAMES, seed=seed)
        _, other, _ = part_of(subset, features(), np.sort(given_rows), NAMES, seed=seed)
        assert sorted(one) == list(other)
        places = [order.index(row) for row in one]
        assert places == sorted(places)  # in the order given
    spoilt = Subset(label_fraction=0.5, label_noise=0.2)
    every = part_of(spoilt, features(), ROWS, NAMES, seed=seed).features
    some = part_of(spoilt, features(), np.array(order[:9]), NAMES, seed=seed).features
    assert torch.equal(every.labels, some.labels)


@pytest.mark.parametrize("seed", range(3))
def test_a_draw_of_more_holds_that_of_less(seed: int) -> None:
    source = features()

    def rows(**asked: int) -> set[int]:
        return set(part_of(Subset(**asked), source, ROWS, NAMES, seed=seed).rows.tolist())

    assert len(rows(num_images=10)) == 10
    assert rows(num_images=10) < rows(num_images=30) < rows(num_images=60)
    assert rows(shots=1) < rows(shots=2) < rows(shots=4)
    assert rows(shots=1) != rows(num_images=len(rows(shots=1)))

    def known(share: float) -> torch.Tensor:
        drawn = part_of(Subset(label_fraction=share), source, ROWS, NAMES, seed=seed)
        return drawn.features.labels >= 0

    assert (known(0.2) <= known(0.6)).all()
    assert (known(0.6) <= known(1.0)).all()


def test_every_class_is_shown_by_so_many_images_or_by_all_there_are() -> None:
    source = features()
    left = part_of(Subset(shots=5), source, ROWS, NAMES, seed=0).rows
    shown = (source.labels == 1).sum(0)
    assert ((source.labels[left] == 1).sum(0) >= shown.clamp(max=5)).all()
    assert len(left) <= 5 * len(NAMES)
    everyone = part_of(Subset(shots=IMAGES), source, ROWS, NAMES, seed=0).rows
    assert set(everyone) == set(np.flatnonzero((source.labels == 1).any(1).numpy()))
    # of one class, exactly so many
    one = part_of(Subset(shots=4, classes=("ox",)), source, ROWS, NAMES, seed=0)
    assert one.columns == [2]
    assert one.features.labels[one.rows].flatten().tolist() == [1] * 4


def test_labels_are_hidden_and_turned_at_their_rates_and_the_given_ones_stay() -> None:
    local = torch.zeros(6000, 1, 2)
    labels = (torch.arange(6000 * 4).reshape(6000, 4) % 3 == 0).int()
    source = MemoryFeatures(local, labels, grid=(1, 1))
    before = source.labels.clone()
    rows = np.arange(6000)
    hidden = part_of(Subset(label_fraction=0.25), source, rows, NAMES[:4], seed=1).features.labels
    # 24,000 draws: five standard deviations of a share are below 0.015
    assert float((hidden >= 0).float().mean()) == pytest.approx(0.25, abs=0.015)
    assert torch.equal(hidden[hidden >= 0], before[hidden >= 0])
    wrong = part_of(Subset(label_noise=0.1), source, rows, NAMES[:4], seed=1).features.labels
    for value in (0, 1):
        share = float((wrong[before == value] != value).float().mean())
        assert share == pytest.approx(0.1, abs=0.02)
    assert torch.equal(source.labels, before)
    other = part_of(Subset(label_noise=0.1), source, rows, NAMES[:4], seed=2).features.labels
    assert not torch.equal(other, wrong)


def test_what_is_left_out_keeps_the_source_and_unknown_labels_stay_unknown() -> None:
    source = features()
    assert part_of(Subset(), source, ROWS, NAMES, seed=0) == (source, ROWS, None)
    left = part_of(Subset(label_noise=0.9), source, ROWS, NAMES, seed=0).features
    assert torch.equal(left.labels < 0, source.labels < 0)
    assert torch.equal(left.local(ROWS[:3]), source.local(ROWS[:3]))
    assert torch.equal(left.embeddings(ROWS[:3]), source.embeddings(ROWS[:3]))  # type: ignore[attr-defined]


def test_classes_are_the_first_or_those_named_in_the_order_of_the_columns() -> None:
    assert columns_of(Subset(classes=2), NAMES) == [0, 1]
    assert columns_of(Subset.model_validate({"classes": "hen, dog"}), NAMES) == [0, 3]
    assert Subset.model_validate({"classes": "3"}).classes == 3
    assert Subset.model_validate({"classes": ["3"]}).classes == 3  # as of a command line
    assert (Subset(classes=2).is_drawn, Subset(classes=2, shots=3).is_drawn) == (False, True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"num_images": 61}, "num_images 61: there are 60 images"),
        ({"classes": 6}, "classes 6: there are 5 classes"),
        ({"classes": ("dog", "cow")}, "'cow' is none of the classes"),
        ({"classes": ("dog", "dog")}, "name each class once"),
        ({"label_fraction": 1e-6}, "leaves no label of 60 images"),
    ],
)
def test_what_cannot_be_drawn_is_told(asked: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        part_of(Subset.model_validate(asked), features(), ROWS, NAMES, seed=0)


def test_a_task_of_some_classes_has_their_texts() -> None:
    pairs = torch.arange(10.0)[:, None].expand(-1, 3)
    phrasings = ClassTexts(torch.eye(6)[:, :3], torch.tensor([0, 1, 1, 2, 3, 4]))
    part = with_classes(Task(NAMES, pairs, phrasings), [1, 3])
    assert part.class_names == ("cat", "hen")
    assert part.pairs[:, 0].tolist() == [1, 3, 6, 8]  # absence first, then presence
    assert part.texts.classes.tolist() == [0, 0, 1]
    assert torch.equal(part.texts.features, phrasings.features[[1, 2, 4]])
