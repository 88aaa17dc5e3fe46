"""Expected calibration error: by hand, at its limits, and what is not counted."""

import math

import pytest
import torch

from dclip.metrics import expected_calibration_error


def test_by_hand() -> None:
    # five bins of 0.2. (0, 0.2]: 0.1 (absent), 0.2 (present): means 0.15 and 0.5, gap 0.35, two
    # pairs. (0.2, 0.4]: 0.3 (absent): gap 0.3. (0.8, 1]: 0.9, 1.0, 0.95 (present, present,
    # absent): means 0.95 and 2/3, gap 0.85/3, three pairs. The pair that is unknown is left out.
    # (2 * 0.35 + 1 * 0.3 + 3 * 0.85 / 3) / 6 = 1.85 / 6
    probabilities = torch.tensor(
        [[0.1, 0.2, 0.3], [0.9, 1.0, 0.95], [0.5, 0.0, 0.0]], dtype=torch.float64
    )
    labels = torch.tensor([[0, 1, 0], [1, 1, 0], [-1, -1, -1]])
    assert expected_calibration_error(probabilities, labels, bins=5) == pytest.approx(1.85 / 6)


def test_one_bin_is_the_gap_between_the_means_and_many_are_the_mean_of_the_gaps() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.rand(40, 7, generator=random, dtype=torch.float64)
    labels = (torch.rand(40, 7, generator=random) < 0.3).int()
    one = expected_calibration_error(values, labels, bins=1)
    assert one == pytest.approx(abs(float(values.mean() - labels.double().mean())))
    # each pair in a bin of its own
    many = expected_calibration_error(values, labels, bins=10**7)
    assert many == pytest.approx(float((values - labels).abs().mean()))


def test_certainty_that_is_right_costs_nothing_and_the_ends_are_counted() -> None:
    labels = torch.tensor([[0, 1], [1, 0]])
    assert expected_calibration_error(labels.float(), labels) == 0
    assert expected_calibration_error(1 - labels.float(), labels) == 1
    assert math.isnan(expected_calibration_error(labels.float(), torch.full((2, 2), -1)))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        expected_calibration_error(torch.tensor([[value]]), torch.tensor([[1]]))
