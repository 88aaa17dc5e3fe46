"""F1 by hand, and against scikit-learn."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dclip.metrics.f1 import F1Scores, f1_scores


def test_a_hand_worked_table() -> None:
    # Class 0: predicted 3, present 2, hits 2.  P = 2/3, R = 1.
    # Class 1: predicted 1, present 2, hits 1.  P = 1,   R = 1/2.
    # Class 2: predicted 0, present 1, hits 0.  P = 0,   R = 0.
    # Class 3: predicted 1, present 0, hits 0.  P = 0,   R = 0.
    probabilities = torch.tensor(
        [[0.9, 0.8, 0.1, 0.2], [0.8, 0.1, 0.2, 0.7], [0.7, 0.3, 0.3, 0.1]], dtype=torch.float64
    )
    labels = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]])
    class_precision, class_recall = (2 / 3 + 1) / 4, 1.5 / 4
    overall_precision, overall_recall = 3 / 5, 3 / 5
    expected = F1Scores(
        class_precision=class_precision,
        class_recall=class_recall,
        cf1=2 * class_precision * class_recall / (class_precision + class_recall),
        overall_precision=overall_precision,
        overall_recall=overall_recall,
        of1=0.6,
    )
    assert f1_scores(probabilities, labels) == pytest.approx(expected)


def test_cf1_is_not_the_mean_of_the_classes_f1() -> None:
    # Class 0: P = 1/2, R = 1, F1 = 2/3.  Class 1: P = 1, R = 1/2, F1 = 2/3.  C-P = C-R = 3/4.
    probabilities = torch.tensor([[0.9, 0.9], [0.9, 0.1]])
    labels = torch.tensor([[1, 1], [0, 1]])
    assert f1_scores(probabilities, labels).cf1 == pytest.approx(3 / 4)


@given(seed=st.integers(0, 2**32), threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_precision_and_recall_equal_scikit_learn(seed: int, threshold: float) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(12, 4, generator=generator)
    labels = torch.randint(0, 2, (12, 4), generator=generator)
    scores = f1_scores(probabilities, labels, threshold=threshold)
    predicted = (probabilities > threshold).int().numpy()
    for average, precision, recall, f1 in (
        ("macro", scores.class_precision, scores.class_recall, None),
        ("micro", scores.overall_precision, scores.overall_recall, scores.of1),
    ):
        expected = sklearn_metrics.precision_recall_fscore_support(
            labels.numpy(), predicted, average=average, zero_division=0
        )
        assert precision == pytest.approx(expected[0])
        assert recall == pytest.approx(expected[1])
        if f1 is not None:
            assert f1 == pytest.approx(expected[2])


def test_a_probability_at_the_threshold_predicts_nothing() -> None:
    half = torch.full((2, 1), 0.5)
    assert f1_scores(half, torch.ones(2, 1)).of1 == 0
    assert f1_scores(half, torch.ones(2, 1), threshold=0.49).of1 == 1


def test_unknown_labels_are_not_counted() -> None:
    probabilities = torch.tensor([[0.9, 0.9], [0.9, 0.1]])
    labels = torch.tensor([[1, -1], [-1, 1]])
    scores = f1_scores(probabilities, labels)
    assert (scores.overall_precision, scores.overall_recall) == (1.0, 0.5)


def test_nothing_predicted_and_nothing_present_give_zero() -> None:
    for probabilities, labels in (
        (torch.zeros(3, 2), torch.ones(3, 2)),
        (torch.ones(3, 2), torch.zeros(3, 2)),
        (torch.zeros(0, 2), torch.zeros(0, 2)),
    ):
        assert f1_scores(probabilities, labels) == F1Scores(0, 0, 0, 0, 0, 0)


def test_perfect_predictions_give_one(device: torch.device) -> None:
    labels = torch.eye(3, device=device)
    assert f1_scores(labels, labels) == F1Scores(1, 1, 1, 1, 1, 1)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], got 50"):
        f1_scores(torch.zeros(1, 1), torch.zeros(1, 1), threshold=50)
    with pytest.raises(ValueError, match="1 probabilities are nan"):
        f1_scores(torch.tensor([[float("nan")]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="got 2"):
        f1_scores(torch.zeros(1, 1), torch.full((1, 1), 2))
    # Past the type checks of these tests, as in a user's program.
    for labels in (torch.zeros(1, 2), torch.zeros(2), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match="expected probabilities and labels"):
            inspect.unwrap(f1_scores)(torch.zeros(3, labels.shape[-1]), labels)
