"""AP against scikit-learn and plain loops, ties and unknown labels included."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dclip.metrics.average_precision import (
    ap_11_point,
    average_precision,
    mean_average_precision,
)


def scores_and_labels(
    seed: int, *, num_images: int = 40, num_classes: int = 5, num_values: int = 7
) -> tuple[Tensor, Tensor]:
    """Few distinct scores, hence many ties; every label value; every class present once."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, num_classes)
    scores = torch.randint(-num_values, num_values, shape, generator=generator).double() / 4
    labels = torch.randint(-1, 2, shape, generator=generator)
    labels[0] = 1
    return scores, labels


def ap_11_point_by_loops(scores: Tensor, labels: Tensor) -> float:
    """One class: at every threshold its precision and recall, then eleven maxima."""
    known = [(s, y) for s, y in zip(scores.tolist(), labels.tolist(), strict=True) if y != -1]
    num_present = sum(y == 1 for _, y in known)
    points = []
    for threshold in {s for s, _ in known}:
        retrieved = [y for s, y in known if s >= threshold]
        hits = sum(y == 1 for y in retrieved)
        points.append((hits, hits / len(retrieved)))
    best = [
        max((precision for hits, precision in points if 10 * hits >= tenths * num_present))
        for tenths in range(11)
    ]
    return sum(best) / 11


@given(seed=st.integers(0, 2**32), num_values=st.sampled_from([1, 3, 1000]))
def test_equals_scikit_learn_with_and_without_ties(seed: int, num_values: int) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = scores_and_labels(seed, num_values=num_values)
    ap = average_precision(scores, labels)
    for column in range(labels.shape[1]):
        is_known = labels[:, column] != -1
        expected = sklearn_metrics.average_precision_score(
            labels[is_known, column].numpy(), scores[is_known, column].numpy()
        )
        assert ap[column].item() == pytest.approx(expected, abs=1e-12)


@given(seed=st.integers(0, 2**32), num_values=st.sampled_from([1, 3, 1000]))
def test_11_point_equals_a_plain_loop(seed: int, num_values: int) -> None:
    scores, labels = scores_and_labels(seed, num_images=23, num_classes=3, num_values=num_values)
    ap = ap_11_point(scores, labels)
    for column in range(3):
        expected = ap_11_point_by_loops(scores[:, column], labels[:, column])
        assert ap[column].item() == pytest.approx(expected, abs=1e-12)


def test_a_hand_worked_ranking() -> None:
    # Ranks: hit, miss, hit, miss.  AP = (1/1 + 2/3) / 2.
    # 11 points: recall 0 to 0.5 is reached at precision 1 (6 points), beyond at 2/3 (5 points).
    scores = torch.tensor([[0.4], [0.9], [0.7], [0.1]])
    labels = torch.tensor([[1], [1], [0], [0]])
    assert average_precision(scores, labels).item() == pytest.approx(5 / 6)
    assert ap_11_point(scores, labels).item() == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_recall_of_three_tenths_is_reached_by_three_hits_of_ten() -> None:
    # Three hits, seven misses, seven hits: precision 1 up to recall 0.3 (4 points), then 10/17.
    labels = torch.tensor([1] * 3 + [0] * 7 + [1] * 7)[:, None]
    scores = -torch.arange(17.0)[:, None]
    assert ap_11_point(scores, labels).item() == pytest.approx((4 + 7 * 10 / 17) / 11)


def test_all_equal_scores_give_the_share_of_present_images() -> None:
    labels = torch.tensor([[1], [0], [0], [1], [0]])
    for function in (average_precision, ap_11_point):
        assert function(torch.zeros(5, 1), labels).item() == pytest.approx(2 / 5)


@given(seed=st.integers(0, 2**32))
def test_the_order_of_images_does_not_matter(seed: int) -> None:
    scores, labels = scores_and_labels(seed)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    for function in (average_precision, ap_11_point):
        torch.testing.assert_close(
            function(scores[order], labels[order]), function(scores, labels), rtol=0, atol=1e-14
        )


@given(seed=st.integers(0, 2**32))
def test_monotone_maps_of_the_scores_do_not_matter(seed: int) -> None:
    scores, labels = scores_and_labels(seed)
    for function in (average_precision, ap_11_point):
        for mapped in (scores.sigmoid(), scores**3, 1e6 * scores - 5, scores.float()):
            assert torch.equal(function(mapped, labels), function(scores, labels))


@given(seed=st.integers(0, 2**32))
def test_values_lie_between_zero_and_one_and_interpolation_never_lowers(seed: int) -> None:
    scores, labels = scores_and_labels(seed)
    for ap in (average_precision(scores, labels), ap_11_point(scores, labels)):
        assert (ap > 0).all()
        assert (ap <= 1 + 1e-15).all()


def test_perfect_ranking_gives_one() -> None:
    labels = torch.randint(0, 2, (30, 4))
    labels[0] = 1
    for function in (average_precision, ap_11_point):
        assert torch.equal(function(labels.float(), labels), torch.ones(4).double())


@given(seed=st.integers(0, 2**32))
def test_unknown_images_might_as_well_not_be_there(seed: int) -> None:
    scores, labels = scores_and_labels(seed)
    moved = torch.where(labels == -1, 100 * scores - 3, scores)
    for function in (average_precision, ap_11_point):
        torch.testing.assert_close(
            function(moved, labels), function(scores, labels), rtol=0, atol=1e-14
        )


def test_an_absent_class_has_no_ap_and_is_left_out_of_the_mean() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5]])
    labels = torch.tensor([[0, 0, -1], [1, 0, -1]])
    for function in (average_precision, ap_11_point):
        values = function(scores, labels)
        assert values[0].item() == pytest.approx(0.5)
        assert values[1:].isnan().all()
    assert mean_average_precision(scores, labels) == pytest.approx(0.5)


def test_nothing_present_anywhere_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no class is present in any of the 3 images"):
        mean_average_precision(torch.zeros(3, 2), torch.zeros(3, 2))


def test_no_images_give_no_ap() -> None:
    for function in (average_precision, ap_11_point):
        assert function(torch.zeros(0, 2), torch.zeros(0, 2)).isnan().all()


def test_infinite_scores_rank_at_the_ends() -> None:
    scores = torch.tensor([[torch.inf], [0.0], [-torch.inf]])
    assert average_precision(scores, torch.tensor([[1], [0], [1]])).item() == pytest.approx(5 / 6)


def test_small_counts_of_many_images_are_exact(device: torch.device) -> None:
    # 30,000 images; float32 would lose whole images in the running counts only beyond 2^24, but
    # already loses digits of their ratios. The last of all is the only one present.
    scores = -torch.arange(30_000.0, device=device)[:, None]
    labels = torch.zeros(30_000, 1, device=device)
    labels[-1] = 1
    assert average_precision(scores, labels).item() == 1 / 30_000


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="1 scores are nan"):
        average_precision(torch.tensor([[float("nan")]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"got 0\.5"):
        average_precision(torch.zeros(1, 1), torch.full((1, 1), 0.5))
    with pytest.raises(ValueError, match="expected scores and labels"):
        inspect.unwrap(average_precision)(torch.zeros(3, 2), torch.zeros(1, 2))
