"""The interval of a share, beside SciPy's, and of a share of weight, beside that of rows."""

import numpy as np
import pytest
from scipy.stats import binomtest, kstwo

from rareloss.decisions.intervals import Sums, at_all_cuts, clopper_pearson, share_of_weight


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


@pytest.mark.parametrize("weight", [1.0, 20.0, 0.3])
def test_share_of_equal_weights_is_that_of_rows(weight: float) -> None:
    for k, n in ((0, 9), (4, 9), (9, 9), (3, 1000)):
        parts = [Sums.of(np.full(rows, weight)) for rows in (k, n - k)]
        assert share_of_weight(*parts, (weight, weight)) == pytest.approx(clopper_pearson(k, n), abs=1e-12)
        odds = share_of_weight(*parts, (weight, weight), odds=3.0)
        expected = [3 * p / (3 * p + 1 - p) for p in clopper_pearson(k, n)]
        assert odds == pytest.approx(expected, abs=1e-12)


def test_heavy_rows_are_fewer_rows_and_one_more_is_of_usual_weight() -> None:
    weight = np.repeat([1.0, 9.0], [90, 10])  # as much of each
    assert Sums.of(weight).row == pytest.approx((90 + 10 * 81) / 180)
    inside, outside = Sums.of(np.full(9, 1.0)), Sums.of(weight[9:])
    low, high = share_of_weight(inside, outside, (5.0, 5.0))
    # 9 of weight 1 and one of 5 have the mean and the variance of 14^2 / 34 rows; with the rest alike.
    rows = (14**2 / 34) + (171**2 / (81 + 810))
    assert high == pytest.approx(share_of_weight(Sums.of(np.append(np.ones(9), 5.0)), outside, (0.0, 0.0))[1])
    assert low < 9 / 180 < clopper_pearson(9, 180)[1] < high < clopper_pearson(14**2 / 34, rows)[1] * 14 / 5


def test_what_rounding_leaves_of_a_whole_is_nothing() -> None:
    whole = Sums.of(np.full(10, 0.1))
    part = Sums(np.array([np.cumsum(np.full(10, 0.1))[-1] - 1e-16]), whole.squared)
    assert whole.without(part).weight == 0
    assert share_of_weight(part, whole.without(part), (0.1, 0.1))[1] == 1


def test_recall_at_all_cuts_is_as_wide_as_its_largest_variance() -> None:
    # The bound for equal weights is the law of Kolmogorov's distance; rows of weight 9 that all score low vary more.
    heavy = np.append(np.ones(90), np.full(10, 9.0))
    widths = []
    for weight in (np.ones(100), heavy[np.random.default_rng(0).permutation(100)], heavy):
        above = Sums(np.cumsum(weight), np.cumsum(weight**2))
        none = Sums(np.zeros(100), np.zeros(100))
        found = at_all_cuts((above, none), (above.at(-1), Sums.of(np.ones(50))), (float(weight.max()), 1.0))
        middle = int(np.abs(found["recall"][0] - 0.5).argmin())
        widths.append(found["recall"][2, middle] - found["recall"][1, middle])
    assert widths[0] / 2 == pytest.approx(np.sqrt(np.log(40) / 200))
    assert kstwo(100).sf(widths[0] / 2) == pytest.approx(0.05, abs=0.01)
    assert widths[0] < widths[1] <= widths[2]
