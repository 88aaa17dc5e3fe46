"""Paired differences: the interval by hand, against a table and against SciPy."""

import numpy as np
import pytest
from scipy import stats

from dclip.metrics import paired_interval
from dclip.metrics.paired import student_quantile


def test_by_hand() -> None:
    # differences 1, 3, 2, 2, 2: mean 2, squares of deviations 2, s = sqrt(2 / 4), s / sqrt 5 =
    # 0.316228; t of 4 degrees of freedom at 95 % is 2.776445 in every table
    mean, low, high = paired_interval([1.0, 3.0, 2.0, 2.0, 2.0])
    assert mean == 2
    assert (low, high) == pytest.approx((2 - 0.877989, 2 + 0.877989), abs=1e-6)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 31, 200])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantiles_are_those_of_scipy(freedom: int, confidence: float) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, freedom)
    assert student_quantile(freedom, confidence=confidence) == pytest.approx(expected, rel=1e-9)


def test_it_holds_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = [
        low <= 0 <= high
        for _, low, high in (paired_interval(random.normal(size=4).tolist()) for _ in range(2000))
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)  # four standard deviations


def test_equal_pairs_have_no_width_and_one_pair_has_no_interval() -> None:
    assert paired_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="two differences at least, got 1"):
        paired_interval([1.0])
