"""A cut, what it achieves, and whether it still does."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from sklearn.metrics import precision_score, recall_score

from rareloss.decide.drift import check_drift
from rareloss.decide.thresholds import find_threshold

TEXTS = ("recall@top=5%", "recall@fpr=2%", "recall@precision=40%", "precision@recall=60%", "cost@fn=9,fp=1")


def _rows(seed: int, rows: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.random(rows) < 0.05
    return np.round(random.normal(size=rows) + 2 * labels, 2), labels


@pytest.mark.parametrize("text", TEXTS)
def test_values_equal_scikit_learn_on_weighted_ties(text: str) -> None:
    scores, labels = _rows(0)
    weight = np.where(labels, 1.0, 3.0)
    cut = find_threshold(scores, labels, text, weight)
    alarm = scores > cut.threshold.value
    assert cut.recall.value == pytest.approx(recall_score(labels, alarm, sample_weight=weight))
    assert cut.precision.value == pytest.approx(precision_score(labels, alarm, sample_weight=weight))
    assert cut.fpr.value == pytest.approx(recall_score(~labels, alarm, sample_weight=weight))
    assert cut.alerts.value == pytest.approx(weight[alarm].sum() / weight.sum())


def test_recall_of_a_budget_is_clopper_pearson() -> None:
    scores, labels = _rows(1)
    cut = find_threshold(scores, labels, "recall@fpr=2%")
    hits = int((scores[labels] > cut.threshold.value).sum())
    expected = binomtest(hits, int(labels.sum())).proportion_ci(method="exact")
    assert (cut.recall.low, cut.recall.high) == pytest.approx((expected.low, expected.high))


def test_intervals_of_a_budget_cover() -> None:
    random = np.random.default_rng(0)
    held = []
    for _ in range(200):
        labels = random.random(2000) < 0.02
        cut = find_threshold(random.normal(size=2000) + 2 * labels, labels, "recall@fpr=2%")
        recall = norm.sf(cut.threshold.value - 2)
        held.append(
            (cut.threshold.low <= norm.isf(0.02) <= cut.threshold.high, cut.recall.low <= recall <= cut.recall.high)
        )
    assert np.mean(held, axis=0).min() > 0.91


def test_interval_of_a_capacity_covers_where_all_above_the_cut_may_be_light() -> None:
    # Ten positives of weight 1 are as much as the capacity; one negative in ten was kept, with weight 10.
    random, held = np.random.default_rng(0), []
    truth = brentq(lambda at: 0.01 * norm.sf(at - 2) + 0.99 * norm.sf(at) - 0.01, 0, 10)
    labels = np.arange(109) < 10
    for _ in range(300):
        scores = random.normal(size=109) + 2 * labels
        cut = find_threshold(scores, labels, "recall@top=1%", np.where(labels, 1.0, 10.0))
        held.append(cut.threshold.low <= truth <= cut.threshold.high)
    assert np.mean(held) > 0.93


def test_what_cannot_be_reached_names_the_nearest() -> None:
    scores, labels = _rows(2, 300)
    cut = find_threshold(scores, labels, "recall@fpr=0.1%", guarantee=True)
    assert not cut.reached
    assert "nearest" in cut.note
    with pytest.raises(ValueError, match="both classes"):
        find_threshold(scores, labels & False, "recall@fpr=1%")


def test_drift() -> None:
    random = np.random.default_rng(0)
    old, new = random.normal(size=5000), random.normal(size=3000)
    threshold = float(np.sort(old)[-101])
    assert not check_drift(old, new, threshold).drifted
    assert check_drift(old, new + 0.5, threshold).drifted
