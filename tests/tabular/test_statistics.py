"""Intervals against values worked by hand, and verdicts that never say more than an interval does."""

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
from scipy import stats

from rareloss.tabular.comparison.statistics import (
    corrected_error,
    holm,
    over_sets,
    over_these_sets,
    overall,
    paired_interval,
    paired_p,
    verdict,
)

METHODS = [
    {"name": "tuned_ce", "label": "Tuned cross-entropy", "kind": "baseline"},
    {"name": "ce_continued", "label": "Cross-entropy continued", "kind": "control"},
    {"name": "smooth_ap_stage", "label": "Smooth-AP, stage", "kind": "ranking"},
    {"name": "trees", "label": "Boosted trees", "kind": "reference"},
]


def judge(test: dict[str, list[float]], cap: float | None = None) -> dict[str, Any]:
    """Return the verdict on a model's test values."""
    rows = []
    for method, values in test.items():
        if method != "tuned_ce":
            gaps = [one - other for one, other in zip(values, test["tuned_ce"], strict=True)]
            interval = paired_interval(gaps, test_over_train=1 / 3, comparisons=len(test) - 1)
            supported = interval.low is not None and interval.low > 0
            rows.append({"method": method, **interval._asdict(), "supported": supported})
    return verdict("linear", METHODS, rows, test, test_over_train=1 / 3, cap=cap)


def test_interval_of_two_splits_by_hand() -> None:
    # Student's t of 1 degree of freedom at .975 is tan(.475 pi); the standard deviation of 0 and 2 is sqrt(2).
    half = math.tan(0.475 * math.pi) * math.sqrt(2) * math.sqrt(1 / 2 + 1 / 4)
    assert paired_interval([0.0, 2.0], test_over_train=1 / 4) == pytest.approx((1.0, 1.0 - half, 1.0 + half))


def test_more_comparisons_widen_the_interval() -> None:
    one = paired_interval([0.1, 0.2, 0.3], test_over_train=1 / 3)
    eight = paired_interval([0.1, 0.2, 0.3], test_over_train=1 / 3, comparisons=8)
    assert one.low is not None
    assert eight.low is not None
    assert eight.low < one.low
    assert eight.mean == one.mean


def test_interval_never_narrows_below_what_shared_rows_allow() -> None:
    many = paired_interval([0.0, 0.2] * 500, test_over_train=1 / 3)
    assert many.high is not None
    # However many splits, the deviation of 0.1 is divided by sqrt(3) at most.
    assert many.high - many.mean > 1.9 * 0.1 / math.sqrt(3)


def test_one_split_has_no_ends() -> None:
    assert paired_interval([0.5], test_over_train=1 / 3) == (0.5, None, None)


def test_supported_gain_is_named() -> None:
    found = judge({"tuned_ce": [0.4, 0.5, 0.6], "smooth_ap_stage": [0.5, 0.6001, 0.7]})
    assert found["winner"] == "smooth_ap_stage"
    assert found["sentence"].startswith("Smooth-AP, stage: +0.100 over tuned cross-entropy (0.500)")


def test_unsupported_gain_is_no_winner() -> None:
    found = judge({"tuned_ce": [0.4, 0.5, 0.6], "smooth_ap_stage": [0.5, 0.55, 0.9]})
    assert found["winner"] is None
    assert found["sentence"].startswith("none: keep cross-entropy (0.500)")
    assert "3 seeds make wide intervals" in found["sentence"]


def test_one_seed_has_no_winner() -> None:
    found = judge({"tuned_ce": [0.4], "smooth_ap_stage": [0.9]})
    assert found["winner"] is None
    assert "run at least 3" in found["sentence"]


def test_control_and_trees_are_never_winners() -> None:
    found = judge({"tuned_ce": [0.4, 0.5, 0.6], "ce_continued": [0.5, 0.6, 0.7001], "trees": [0.8, 0.9001, 1.0]})
    assert found["winner"] is None
    assert "Boosted trees beat every method here (0.900)" in found["sentence"]


def test_trees_that_beat_cross_entropy_but_not_every_arm_are_said_to() -> None:
    found = judge({"tuned_ce": [0.4, 0.5, 0.6], "ce_continued": [0.4, 0.9, 0.6], "trees": [0.5, 0.6001, 0.7]})
    assert "Boosted trees beat tuned cross-entropy here (0.600), though not every method" in found["sentence"]


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (0.051, "Boosted trees beat every method here"),
        (0.050, "these seeds do not say"),
        (-0.050, "these seeds do not say"),
        (-0.051, "Every method beats boosted trees here"),
    ],
)
def test_trees_are_held_against_all_methods_at_once(ahead: float, said: str) -> None:
    # The gaps deviate by .01. Of two methods and shared rows the interval reaches 6.205 * .01 * sqrt(1/3 + 1/3) = .0507
    # (Student's t of 2 degrees of freedom at 1 - .025 / 2); of one method it were .0351, without shared rows .0358.
    trees = [0.5 + ahead + error for error in (-0.01, 0.0, 0.01)]
    assert said in judge({"tuned_ce": [0.5] * 3, "ce_continued": [0.5] * 3, "trees": trees})["sentence"]


def test_control_is_told_beside_a_winner() -> None:
    found = judge(
        {"tuned_ce": [0.4, 0.5, 0.6], "ce_continued": [0.43, 0.53, 0.63], "smooth_ap_stage": [0.5, 0.6001, 0.7]}
    )
    assert "further steps of cross-entropy give +0.030" in found["sentence"]


def test_capacity_below_the_base_rate_is_told() -> None:
    found = judge({"tuned_ce": [0.1, 0.2], "smooth_ap_stage": [0.1, 0.2]}, cap=0.25)
    assert "No model can exceed 0.250" in found["sentence"]


def test_overall_names_winners_and_what_is_kept() -> None:
    verdicts = [{"model": "linear", "winner": "smooth_ap_stage"}, {"model": "mlp", "winner": None}]
    means = {"linear": {"tuned_ce": 0.3, "trees": 0.7}, "mlp": {"tuned_ce": 0.5, "trees": 0.7}}
    said = overall(verdicts, means, METHODS)
    assert said.startswith("Use Smooth-AP, stage for linear; keep cross-entropy for mlp.")
    assert "linear 0.300, mlp 0.500; boosted trees 0.700" in said


def test_p_value_without_shared_rows_is_that_of_students_test() -> None:
    gaps = [0.01, 0.03, -0.01, 0.02, 0.04]
    assert paired_p(gaps, test_over_train=0) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    assert corrected_error(gaps, test_over_train=0) == pytest.approx(stats.sem(gaps))


def test_p_value_is_below_a_level_where_the_interval_excludes_zero() -> None:
    gaps = [0.01, 0.03, 0.02]
    edge = paired_interval(gaps, test_over_train=1 / 3).low
    assert edge is not None
    assert paired_p([gap - edge for gap in gaps], test_over_train=1 / 3) == pytest.approx(0.05)


@pytest.mark.parametrize(("gaps", "p"), [([0.1], 1.0), ([0.0, 0.0], 1.0), ([0.1, 0.1], 0.0)])
def test_p_value_without_spread(gaps: list[float], p: float) -> None:
    assert paired_p(gaps, test_over_train=1 / 3) == p


def test_holm_by_hand() -> None:
    # In order: .005 x 5, .01 x 4, .03 x 3, then .04 x 2 and .05 x 1, which are not below what came before.
    assert holm([0.05, 0.01, 0.03, 0.005, 0.04]) == pytest.approx([0.09, 0.04, 0.09, 0.025, 0.09])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_set_alone_has_its_own_interval() -> None:
    gaps = [0.01, 0.03, -0.01, 0.02]
    error = corrected_error(gaps, test_over_train=1 / 3)
    found = over_these_sets([float(np.mean(gaps))], [error], [4])
    assert found == pytest.approx(paired_interval(gaps, test_over_train=1 / 3))


def test_two_alike_sets_are_as_welch_and_satterthwaite_say() -> None:
    mean, low, high = over_these_sets([0.0, 0.2], [0.1, 0.1], [5, 5])
    # Twice as many degrees of freedom, and 1 / sqrt(2) of the error.
    half = stats.t.ppf(0.975, 8) * 0.1 / math.sqrt(2)
    assert (mean, low, high) == pytest.approx((0.1, 0.1 - half, 0.1 + half))


def test_sets_without_spread_have_an_interval_of_no_width() -> None:
    assert over_these_sets([0.1, 0.3], [0.0, 0.0], [3, 3]) == pytest.approx((0.2, 0.2, 0.2))
    assert over_these_sets([0.1], [0.0], [1]) == (0.1, None, None)


def test_sets_known_alike_have_the_interval_of_a_mean() -> None:
    # Equal weights, whatever the variance between sets: what is left is Student's interval.
    effects = [0.10, 0.02, 0.05, -0.01]
    found = over_sets(effects, [0.01] * 4)
    low, high = stats.t.interval(0.95, 3, np.mean(effects), stats.sem(effects))
    assert found == pytest.approx((np.mean(effects), low, high))


def test_random_effects_agree_with_statsmodels() -> None:
    # statsmodels 0.15, combine_effects(method_re="iterated", use_t=True): .055525, -.029995 to .141044. Its variance
    # between sets is Paule and Mandel's, so the last digits differ.
    found = over_sets([0.177, 0.064, 0.037, 0.016, -0.002], [0.026, 0.013, 0.016, 0.009, 0.002])
    assert found == pytest.approx((0.055525, -0.029995, 0.141044), abs=4e-4)


def test_sets_that_agree_weigh_by_their_precision() -> None:
    mean = over_sets([0.10, 0.11, 0.10], [0.01, 0.1, 0.01]).mean
    weight = np.array([1 / 0.01**2, 1 / 0.1**2, 1 / 0.01**2])
    assert mean == pytest.approx(float(weight @ [0.10, 0.11, 0.10] / weight.sum()))


def test_sets_that_agree_by_luck_are_not_known_better_than_their_errors_say() -> None:
    _, low, high = over_sets([0.1, 0.1, 0.1], [0.03] * 3)
    assert low is not None
    assert high is not None
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 2) * 0.03 / math.sqrt(3))


def test_one_set_says_nothing_of_others() -> None:
    assert over_sets([0.1], [0.01]) == (0.1, None, None)
