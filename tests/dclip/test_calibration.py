"""Calibration and thresholds: by hand, the likelihood's minimum, and what they never do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from dclip.calibration import (
    CalibrationError,
    calibrate,
    choose_thresholds,
    fit_scaling,
    is_present,
    scaling_of,
)
from dclip.checkpoints.calibration import Calibration, Measured, Rule
from dclip.metrics import average_precision, expected_calibration_error


def drawn(images: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-odds that are twice too sure and too high, and labels they are of."""
    random = torch.Generator().manual_seed(seed)
    odds = 4 * torch.randn(images, classes, generator=random)
    offsets = torch.randn(classes, generator=random)
    chance = (odds / 2 - 1.5 + offsets).sigmoid()
    return odds, (torch.rand(images, classes, generator=random) < chance).int()


def test_temperature_by_hand() -> None:
    """Of sure answers 2 of 3 are right: with Platt's targets 0.8 and 0.2, the mean target of the
    sure is (0.8 + 0.8 + 0.2) / 3 = 0.6, so 4 a = log(0.6 / 0.4)."""
    odds = torch.tensor([[4.0], [4.0], [4.0], [-4.0], [-4.0], [-4.0]])
    labels = torch.tensor([[1], [1], [0], [0], [0], [1]])
    assert fit_scaling(odds, labels, kind="temperature").scale == pytest.approx(
        math.log(1.5) / 4, rel=1e-6
    )
    platt = fit_scaling(odds, labels)
    assert platt.offset == pytest.approx(0, abs=1e-6)  # by symmetry


def test_platt_of_one_class_is_a_logistic_regression_on_smoothed_targets() -> None:
    odds, labels = drawn(400, 1)
    found = fit_scaling(odds, labels)
    # each image twice, once of each label, weighed by the target
    plus, minus = int(labels.sum()), int((labels == 0).sum())
    target = np.where(labels[:, 0] == 1, (plus + 1) / (plus + 2), 1 / (minus + 2))
    peer = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(
        np.repeat(odds.double().numpy(), 2, axis=0),
        np.tile([1, 0], len(odds)),
        sample_weight=np.stack([target, 1 - target], 1).ravel(),
    )
    assert found.scale == pytest.approx(peer.coef_[0, 0], rel=1e-4)
    # the offset of a single class is drawn towards 0, and what it gives up the shared one has
    assert found.offset + float(found.class_offsets[0]) == pytest.approx(
        peer.intercept_[0], rel=1e-4
    )
    assert abs(float(found.class_offsets[0])) < 1e-6


def test_the_gradient_vanishes_at_what_is_found() -> None:
    odds, labels = drawn(200, 7)
    labels[::3, 2] = -1
    found = fit_scaling(odds, labels)
    scale = torch.tensor(found.scale, requires_grad=True, dtype=torch.float64)
    offset = torch.tensor(found.offset, requires_grad=True, dtype=torch.float64)
    own = found.class_offsets.clone().requires_grad_()
    known = labels >= 0
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    target = torch.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    z = scale * odds.double() + offset + own
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        z[known], target.double()[known], reduction="sum"
    )
    (loss + own.square().sum() / 2).backward()
    for value in (scale, offset, own):
        assert value.grad is not None
        assert value.grad.abs().max() < 1e-3


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(8, 60), st.integers(1, 6), st.floats(0.01, 100))
def test_the_order_of_images_stays_and_scale_does_not_matter(
    seed: int, images: int, classes: int, times: float
) -> None:
    odds, labels = drawn(images, classes, seed)
    try:
        found = fit_scaling(odds, labels)
    except CalibrationError:
        return
    calibrated = found.apply(odds)
    assert torch.equal(average_precision(calibrated, labels).isnan(), (labels == 1).sum(0) == 0)
    torch.testing.assert_close(
        average_precision(calibrated, labels),
        average_precision(odds.double(), labels),
        equal_nan=True,
    )
    other = fit_scaling(odds * times, labels)
    torch.testing.assert_close(other.apply(odds * times), calibrated, atol=2e-3, rtol=2e-3)


def test_calibration_lowers_the_error_on_images_it_has_not_seen() -> None:
    odds, labels = drawn(600, 5)
    fresh, truth = drawn(600, 5)
    found = calibrate(odds, labels)
    before = expected_calibration_error(fresh.sigmoid(), truth)
    after = expected_calibration_error(scaling_of(found).apply(fresh).sigmoid(), truth)
    assert after < before / 3
    told = found.measured
    assert told.ece_before is not None
    assert told.ece_after is not None
    assert told.ece_after < told.ece_before / 3
    assert told.cf1_before is not None
    assert told.cf1_after is not None
    assert told.cf1_after > told.cf1_before
    assert told.map is not None
    assert told.map_low is not None
    assert told.map_high is not None
    assert told.map_low < told.map < told.map_high


def test_thresholds_by_hand() -> None:
    """Of 3 positives two lead; the third comes after two negatives: above 1.5, F1 is 2 * 2 / 5."""
    odds = torch.tensor([[4.0], [2.0], [1.0], [0.0], [-1.0], [-2.0]])
    labels = torch.tensor([[1], [1], [0], [0], [1], [0]])

    def cut(rule: Rule) -> float:
        return float(torch.logit(choose_thresholds(odds, labels, rule, prior=0).own))

    assert cut(Rule()) == pytest.approx(1.5)
    assert cut(Rule("precision", 0.9)) == pytest.approx(1.5)
    assert cut(Rule("precision", 0.6)) == pytest.approx(-1.5)  # 3 of 5
    assert cut(Rule("recall", 0.5)) == pytest.approx(1.5)
    assert cut(Rule("recall", 0.9)) == pytest.approx(-1.5)


def test_a_class_with_few_positives_is_drawn_towards_all_and_one_without_any_has_theirs() -> None:
    odds, labels = drawn(500, 6)
    labels[:, 5] = 0  # none
    labels[1:, 4] = 0
    labels[0, 4] = 1
    odds[0, 4] = -9.0  # its only positive ranks last
    alone = choose_thresholds(odds, labels, prior=0)
    mixed = choose_thresholds(odds, labels)
    assert float(mixed.own[5]) == pytest.approx(mixed.shared)
    assert alone.own[4] < 0.001
    assert abs(mixed.own[4] - mixed.shared) < abs(alone.own[4] - alone.shared)
    plenty = choose_thresholds(odds, labels, prior=1e9)
    np.testing.assert_allclose(plenty.own, plenty.shared, atol=0.02)


def test_unknown_labels_do_not_count() -> None:
    odds, labels = drawn(80, 3)
    more = torch.cat([odds, 50 * torch.ones(20, 3)])
    unknown = torch.cat([labels, -torch.ones(20, 3, dtype=torch.int32)])
    assert fit_scaling(more, unknown).scale == pytest.approx(fit_scaling(odds, labels).scale)
    np.testing.assert_allclose(
        choose_thresholds(more, unknown).own, choose_thresholds(odds, labels).own
    )


@pytest.mark.parametrize(
    ("odds", "labels", "words"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 2), "no known positives, or no known negatives"),
        (torch.zeros(4, 2), torch.ones(4, 2), "no known positives, or no known negatives"),
        (torch.full((4, 1), math.nan), torch.tensor([[1], [0], [1], [0]]), "not finite"),
        (-torch.arange(8.0)[:, None], torch.tensor([[0]] * 4 + [[1]] * 4), "fall where presence"),
        (torch.zeros(1, 1), torch.ones(1, 1), "two held-out images at least"),
    ],
)
def test_what_cannot_be_calibrated_is_said(
    odds: torch.Tensor, labels: torch.Tensor, words: str
) -> None:
    with pytest.raises(CalibrationError, match=words):
        calibrate(odds, labels)


def test_scores_that_are_no_odds_get_probabilities_by_platt_alone() -> None:
    odds, labels = drawn(200, 3)
    cosines = 0.2 + odds / 100
    found = calibrate(cosines, labels, are_log_odds=False, cosines=cosines)
    assert found.measured.ece_before is None
    assert found.measured.ece_after is not None
    assert found.untrained_cosine is not None
    assert 0.1 < found.untrained_cosine < 0.3
    assert found.measured.untrained_f1 is not None
    assert found.measured.untrained_f1 > 0.5
    with pytest.raises(CalibrationError, match="make probabilities by 'platt'"):
        calibrate(cosines, labels, kind="temperature", are_log_odds=False)


def test_new_names_have_no_offset_and_the_threshold_of_all() -> None:
    odds, labels = drawn(200, 3)
    found = calibrate(odds, labels)
    other = found.for_columns([2, None])
    assert other.class_offsets == [found.class_offsets[2], 0.0]
    assert other.thresholds == [found.thresholds[2], found.shared_threshold]
    sure = torch.tensor([[0.999, 0.001]])
    assert is_present(other, sure).tolist() == [[True, False]]


@pytest.mark.parametrize(
    "text", ["", "f2", "precision", "precision=0", "recall=1", "recall=1.5", "precision=nan"]
)
def test_a_rule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give f1, precision=0\.9 or recall=0\.9"):
        Rule.parse(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"thresholds": [0.5]},
        {"thresholds": [0.5, 1.0]},
        {"scale": 0.0},
        {"rule": "best"},
        {"shared_threshold": math.nan},
        {"other": 1},
    ],
)
def test_a_damaged_calibration_is_refused(wrong: dict[str, object]) -> None:
    good = {
        "kind": "platt", "scale": 1.0, "offset": 0.0, "class_offsets": [0.0, 0.0], "rule": "f1",
        "thresholds": [0.5, 0.5], "shared_threshold": 0.5, "images": 4, "positives": [1, 1],
        "measured": Measured(),
    }  # fmt: skip
    Calibration.model_validate(good)
    with pytest.raises(ValueError, match="validation error"):
        Calibration.model_validate({**good, **wrong})
