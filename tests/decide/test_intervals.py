"""The interval of a share, beside SciPy's."""

import numpy as np
import pytest
from scipy.stats import binomtest

from rareloss.decide.intervals import clopper_pearson


@pytest.mark.parametrize("confidence", [0.8, 0.95, 1 - 1e-7])
def test_clopper_pearson_is_that_of_scipy(confidence: float) -> None:
    hits, rows = np.array([0.0, 3.0, 7.0, 1.0, 500.0]), np.array([7.0, 7.0, 7.0, 10**6, 1000.0])
    many = np.transpose(clopper_pearson(hits, rows, confidence))
    for k, n, ends in zip(hits, rows, many, strict=True):
        exact = binomtest(int(k), int(n)).proportion_ci(confidence, method="exact")
        assert tuple(ends) == pytest.approx((exact.low, exact.high), rel=1e-8)
        assert clopper_pearson(float(k), float(n), confidence) == tuple(ends)


def test_no_rows_tell_nothing_and_effective_numbers_may_round_above_the_rows() -> None:
    assert clopper_pearson(0, 0) == (0, 1)
    assert clopper_pearson(4.000000000000001, 4)[1] == 1
