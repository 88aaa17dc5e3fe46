"""Confident learning class by class: by hand, against cleanlab, and what is never an issue."""

import numpy as np
import pytest
import torch

from dclip.metrics.label_issues import confidence_of, label_issues, sure_labels


def test_thresholds_and_issues_by_hand() -> None:
    # present: 0.9, 0.8, 0.1, so t1 = 0.6; absent: 0.1, 0.2, 0.7, so t0 = (0.9 + 0.8 + 0.3) / 3
    scores = torch.tensor([[0.9], [0.8], [0.1], [0.1], [0.2], [0.7]])
    labels = torch.tensor([[1], [1], [1], [0], [0], [0]])
    confidence = confidence_of(scores, labels)
    assert confidence.present.tolist() == pytest.approx([0.6])
    assert confidence.absent.tolist() == pytest.approx([2 / 3])
    issues = label_issues(scores, labels)
    # row 2: labelled, and 1 - 0.1 >= 2/3; row 5: not labelled, and 0.7 >= 0.6
    assert issues.rows.tolist() == [2, 5]
    assert issues.columns.tolist() == [0, 0]
    assert issues.given.tolist() == [1, 0]
    assert issues.probabilities.tolist() == pytest.approx([0.1, 0.3])  # least likely first


def noisy(seed: int, images: int = 400, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores on scales of their own, some of them far off, and labels of which some are flipped."""
    generator = np.random.default_rng(seed)
    truth = generator.random((images, classes)) < generator.uniform(0.05, 0.6, classes)
    logits = 4 * (truth - 0.5) + generator.normal(0, 2, truth.shape)
    logits = logits * generator.uniform(0.3, 2, classes) + generator.uniform(-3, 1, classes)
    labels = truth ^ (generator.random(truth.shape) < 0.05)
    probabilities = torch.from_numpy(1 / (1 + np.exp(-logits)))
    return probabilities, torch.from_numpy(labels.astype(np.int8))


@pytest.mark.parametrize("seed", range(5))
def test_issues_are_the_off_diagonal_of_cleanlabs_confident_joint(seed: int) -> None:
    count = pytest.importorskip("cleanlab.count", reason="pip install -e '.[dev]'")
    probabilities, labels = noisy(seed)
    found = label_issues(probabilities, labels)
    confidence = confidence_of(probabilities, labels)
    assert len(found.rows) > 10
    for column in range(labels.shape[1]):
        own = labels[:, column].numpy()
        both = torch.stack([1 - probabilities[:, column], probabilities[:, column]], dim=1).numpy()
        limits = count.get_confident_thresholds(own, both)
        ours = float(confidence.absent[column]), float(confidence.present[column])
        assert ours == pytest.approx(tuple(limits), abs=1e-12)
        _, rows = count.compute_confident_joint(
            own, both, calibrate=False, return_indices_of_off_diagonals=True
        )
        assert sorted(found.rows[found.columns == column].tolist()) == sorted(map(int, rows))


def test_unknown_labels_are_no_issues_and_change_no_other() -> None:
    probabilities, labels = noisy(7)
    hidden = labels.clone()
    hidden[::3, 2] = -1
    issues = label_issues(probabilities, hidden)
    assert not {(row, 2) for row in range(0, 400, 3)} & set(
        zip(issues.rows.tolist(), issues.columns.tolist(), strict=True)
    )
    kept = torch.arange(400) % 3 != 0
    alone = label_issues(probabilities[kept][:, 2:3], labels[kept][:, 2:3])
    of_class = issues.rows[issues.columns == 2]
    assert sorted(of_class.tolist()) == sorted(kept.nonzero().flatten()[alone.rows].tolist())
    sure = sure_labels(probabilities, confidence_of(probabilities, hidden))
    told = sure[::3, 2]
    agree = (told == labels[::3, 2])[told != -1].double().mean()
    assert (told != -1).sum() > 50  # what is not known gets suggestions
    assert agree > 0.8


def test_a_class_of_one_kind_of_label_has_no_issues() -> None:
    probabilities = torch.rand(30, 3)
    labels = torch.zeros(30, 3, dtype=torch.int8)
    labels[:, 1] = 1
    labels[:, 2] = -1
    assert len(label_issues(probabilities, labels).rows) == 0
    sure = sure_labels(probabilities, confidence_of(probabilities, labels))
    assert (sure == -1).all()


def test_what_is_no_probability_is_refused() -> None:
    labels = torch.zeros(2, 1, dtype=torch.int8)
    for wrong in (torch.tensor([[1.5], [0.0]]), torch.tensor([[torch.nan], [0.0]])):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            label_issues(wrong, labels)
