"""A cut, what it achieves, and whether it still does."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import precision_score, recall_score

from rareloss.decisions.drift import check_drift
from rareloss.decisions.intervals import Sums, share_of_weight
from rareloss.decisions.thresholds import band, find_threshold, quantile_interval

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


@pytest.mark.parametrize("share", [0.01, 0.3, 0.95])
@pytest.mark.parametrize("rows", [40, 99, 500, 5000])
def test_order_statistics_hold_the_quantile_and_no_pair_of_half_the_risk_is_closer(rows: int, share: float) -> None:
    low, high = quantile_interval(np.arange(rows, dtype=float), share)
    above = binom(rows, share)
    fewest = 0 if high == np.inf else rows - int(high)
    most = rows + 1 if low == -np.inf else rows - int(low)
    assert above.cdf(most - 1) - above.cdf(fewest - 1) >= 0.95
    equal_tailed = above.ppf(0.025), above.isf(0.025) + 1
    if equal_tailed[0] > 0 and equal_tailed[1] <= rows:
        odds = [(each / (rows + 1 - each)) for each in (fewest, most, *equal_tailed)]
        assert odds[1] / odds[0] <= odds[3] / odds[2]
    # An end that no row bounds is needed only where all rows, or none, lie above with more than the whole risk.
    assert (fewest == 0) == (above.cdf(0) > 0.05)
    assert (most > rows) == (above.sf(rows - 1) > 0.05)


@pytest.mark.parametrize("text", ["recall@fpr=5%", "recall@top=5%"])
def test_what_is_said_to_be_exact_covers_with_heavy_ties(text: str) -> None:
    random, held = np.random.default_rng(0), []
    grid = np.arange(-6.0, 10.0)
    recall, fpr = norm.sf(grid - 1.5), norm.sf(grid)
    alerts = 0.9 * fpr + 0.1 * recall
    best = grid[(alerts if "top" in text else fpr) <= 0.05][0]
    for _ in range(200):
        labels = random.random(200) < 0.1
        cut = find_threshold(np.ceil(random.normal(size=200) + 1.5 * labels), labels, text)
        assert cut.tied
        at = int(cut.threshold.value + 6)
        pairs = {"threshold": best, "recall": recall[at], "fpr": fpr[at], "alerts": alerts[at]}
        pairs["precision"] = 0.1 * recall[at] / alerts[at]
        names = ("threshold", "alerts", "precision") if "top" in text else ("threshold", "recall", "fpr")
        assert all(getattr(cut, name).exact for name in names)
        assert not any(getattr(cut, name).exact for name in {"recall", "fpr", "alerts"}.difference(names))
        held.append([getattr(cut, name).low <= pairs[name] <= getattr(cut, name).high for name in names])
    assert np.mean(held, axis=0).min() > 0.95


def test_ties_leave_the_prediction_of_alerts_approximate() -> None:
    scores, labels = _rows(3)
    assert not find_threshold(scores, labels, "recall@top=5%").alerts_of(1000).exact
    assert find_threshold(scores + np.arange(2000) * 1e-9, labels, "recall@top=5%").alerts_of(1000).exact


def test_another_prevalence_is_not_exact() -> None:
    scores, labels = _rows(4)
    assert find_threshold(scores, labels, "recall@top=5%").precision.exact
    assert not find_threshold(scores, labels, "recall@top=5%", prevalence_factor=0.5).precision.exact


def test_guaranteed_recall_is_exact_and_covers() -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(200):
        labels = np.arange(400) < 60
        cut = find_threshold(random.normal(size=400) + 2 * labels, labels, "precision@recall=80%", guarantee=True)
        recall, fpr = norm.sf(cut.threshold.value - 2), norm.sf(cut.threshold.value)
        assert cut.recall.exact
        assert cut.fpr.exact
        assert not cut.precision.exact
        held.append((recall >= 0.8, cut.recall.low <= recall <= cut.recall.high, cut.fpr.low <= fpr <= cut.fpr.high))
    assert np.mean(held, axis=0).min() > 0.92


def test_equal_weights_change_no_interval_of_a_share() -> None:
    scores, labels = _rows(5)
    for text in ("recall@top=5%", "recall@fpr=2%"):
        plain, heavy = (find_threshold(scores, labels, text, np.full(2000, each)) for each in (1.0, 7.0))
        for name in ("threshold", "recall", "precision", "fpr", "alerts"):
            one, other = getattr(plain, name), getattr(heavy, name)
            assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_intervals_of_unequal_weights_cover_where_heavy_false_alarms_are_few() -> None:
    # A negative is kept at 1 in 20 or 3 in 20, so that the few false alarms seen may all be light by luck.
    random, held = np.random.default_rng(0), []
    for _ in range(200):
        labels = np.arange(1090) < 100
        weight = np.where(labels, 1.0, np.where(random.random(1090) < 0.25, 20.0, 20 / 3))
        cut = find_threshold(random.normal(size=1090) + 2.5 * labels, labels, "recall@top=1%", weight)
        recall, fpr = norm.sf(cut.threshold.value - 2.5), norm.sf(cut.threshold.value)
        precision = recall / (recall + 99 * fpr)
        held.append((cut.fpr.low <= fpr <= cut.fpr.high, cut.precision.low <= precision <= cut.precision.high))
    assert np.mean(held, axis=0).min() > 0.94


def test_band_holds_at_all_thresholds_at_once() -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(200):
        labels = random.random(300) < 0.1
        scores = np.round(random.normal(size=300) + 2 * labels, 1)
        found = band(scores, labels)
        recall, fpr = norm.sf(found.thresholds + 0.05 - 2), norm.sf(found.thresholds + 0.05)
        precision = 0.1 * recall / (0.1 * recall + 0.9 * fpr)
        pairs = ((found.recall, recall), (found.precision, precision), (found.fpr, fpr))
        held.append([((each[1] <= value) & (value <= each[2])).all() for each, value in pairs])
    assert np.mean(held, axis=0).min() > 0.93


@pytest.mark.parametrize("heavy", [1.0, 10.0, None])
@pytest.mark.parametrize("text", TEXTS)
def test_a_cut_takes_its_intervals_from_the_band(text: str, heavy: float | None) -> None:
    scores, labels = _rows(6)
    weight = np.random.default_rng(0).exponential(size=2000) + 0.5 if heavy is None else np.where(labels, 1.0, heavy)
    found = band(scores, labels, weight)
    cut, plain = (find_threshold(scores, labels, text, weight, simultaneous=each) for each in (True, False))
    place = int(np.flatnonzero(found.thresholds == cut.threshold.value)[0])
    where, usual_where = cut.threshold, plain.threshold
    if text.startswith(("recall@precision", "cost")):  # of what the band does not rule out, all
        assert where.low <= usual_where.low <= where.value <= usual_where.high <= where.high
    else:
        assert where == usual_where
    for name in ("recall", "precision", "fpr"):
        one, usual = getattr(cut, name), getattr(plain, name)
        assert one.exact == (heavy is not None)
        assert (one.value, one.low, one.high) == pytest.approx(getattr(found, name)[:, place])
        assert one.value == pytest.approx(usual.value)
        assert one.low < usual.low or usual.low == 0
        assert usual.high < one.high or one.high == 1
    assert cut.alerts.low < plain.alerts.low
    assert cut.alerts.exact == (heavy == 1)
    if cut.cost is not None and plain.cost is not None:
        assert cut.cost.low < plain.cost.low < plain.cost.high < cut.cost.high


@pytest.mark.parametrize(
    ("text", "best"),
    [  # of normal scores, positives 2.5 higher, one in ten
        ("recall@precision=50%", brentq(lambda at: norm.sf(at - 2.5) - 9 * norm.sf(at), 0, 4)),
        ("precision@recall=80%", norm.isf(0.8) + 2.5),
        ("cost@fn=50,fp=2", (np.log(9 * 2 / 50) + 2.5**2 / 2) / 2.5),  # where another alarm costs what it saves
    ],
)
def test_threshold_that_labels_choose_has_an_interval_with_that_luck_in_it(text: str, best: float) -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(60):
        labels = random.random(1_200) < 0.1
        scores = random.normal(size=1_200) + 2.5 * labels
        found = find_threshold(scores, labels, text).threshold
        assert found.low <= found.value <= found.high
        assert not found.exact
        held.append(found.low <= best <= found.high)
    assert np.mean(held) > 0.92


@pytest.mark.parametrize("text", ["cost@fn=50,fp=2", "recall@precision=50%", "recall@precision=99%"])
def test_threshold_with_few_positives_is_what_the_band_leaves(text: str) -> None:
    scores, labels = _rows(8, 400)
    scores[0], labels[0] = 9.0, False  # no cut has a precision of .99
    usual, at_once = (find_threshold(scores, labels, text, simultaneous=each).threshold for each in (False, True))
    assert labels.sum() < 100
    assert usual == at_once
    assert usual.low < usual.high


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_quantile_of_nearly_equal_weights_is_between_order_statistics(share: float) -> None:
    random, rows = np.random.default_rng(0), 800
    low, high = quantile_interval(np.arange(rows, dtype=float), share, 1 + 1e-9 * random.random(rows))
    above = binom(rows, share)
    pairs = [(above.ppf(p * 0.05), above.isf((1 - p) * 0.05) + 1) for p in (0.5, 0.6, 2 / 3, 0.75, 0.85, 0.95)]
    assert (rows - high, rows - low) == min(pairs, key=lambda pair: pair[1] / (rows - pair[1]) * (rows / pair[0] - 1))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_quantile_of_weights_lies_where_the_share_above_may_be_that(share: float) -> None:
    random = np.random.default_rng(0)
    scores, weight = random.normal(size=3000), random.lognormal(size=3000)
    row = float(Sums.of(weight).row)

    def possible(end: float, at: int, part: float) -> list[float]:  # above all rows from the end, and without it
        both = [(Sums.of(weight[above]), Sums.of(weight[~above])) for above in (scores >= end, scores > end)]
        return [float(share_of_weight(*each, (row, row), 1 - 2 * part * 0.05)[at]) for each in both]

    low, high = quantile_interval(scores, share, weight)
    assert any(
        (below := possible(low, 0, 1 - part))[1] <= share < below[0]
        and (beyond := possible(high, 1, part))[1] < share <= beyond[0]
        for part in (0.5, 0.6, 2 / 3, 0.75, 0.85, 0.95)
    )


@pytest.mark.parametrize("text", ["recall@top=5%", "recall@fpr=5%"])
def test_intervals_of_weights_that_differ_much_cover_and_have_ends(text: str) -> None:
    # A row as heavy as the heaviest, counted in with those above, would open some intervals and widen all.
    random, held, widths = np.random.default_rng(0), [], []
    truth = brentq(lambda at: 0.05 * ("top" in text) * (norm.sf(at - 2) - norm.sf(at)) + norm.sf(at) - 0.05, 0, 10)
    for _ in range(200):
        labels = np.arange(1500) < 75
        scores, weight = random.normal(size=1500) + 2 * labels, random.lognormal(size=1500)
        cut = find_threshold(scores, labels, text, weight)
        recall, fpr = norm.sf(cut.threshold.value - 2), norm.sf(cut.threshold.value)
        pairs = {"threshold": truth, "recall": recall, "fpr": fpr, "alerts": 0.05 * recall + 0.95 * fpr}
        pairs["precision"] = 0.05 * recall / pairs["alerts"]
        held.append([getattr(cut, name).low <= pairs[name] <= getattr(cut, name).high for name in pairs])
        widths.append(cut.threshold.high - cut.threshold.low)
    assert np.mean(held, axis=0).min() > 0.91
    assert np.isfinite(widths).all()
    assert np.median(widths) < 0.5


def test_alerts_of_unequal_weights_leave_the_prevalence_open_too() -> None:
    scores, labels = _rows(9)
    weight = np.random.default_rng(0).random(2000) + 1
    cut, row = find_threshold(scores, labels, "recall@top=5%", weight), float(Sums.of(weight).row)
    above = scores > cut.threshold.value
    expected = share_of_weight(Sums.of(weight[above]), Sums.of(weight[~above]), (row, row))
    assert (cut.alerts.low, cut.alerts.high) == expected
    assert cut.alerts.value == pytest.approx(weight[above].sum() / weight.sum())


@pytest.mark.parametrize("weights", ["two", "related to the score"])
def test_band_of_unequal_weights_holds_at_all_thresholds_at_once(weights: str) -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(200):
        labels = random.random(3000) < 0.1
        scores = random.normal(size=3000) + 2 * labels
        likely = scores + random.normal(size=3000) > 1 if weights != "two" else random.random(3000) < 0.5
        kept = random.random(3000) < np.where(likely, 1.0, 0.1)
        found = band(scores[kept], labels[kept], np.where(likely, 1.0, 10.0)[kept])
        recall, fpr = norm.sf(found.thresholds - 2), norm.sf(found.thresholds)
        precision = 0.1 * recall / (0.1 * recall + 0.9 * fpr)
        pairs = ((found.recall, recall), (found.precision, precision), (found.fpr, fpr))
        held.append([((each[1] <= value) & (value <= each[2])).all() for each, value in pairs])
    assert np.mean(held, axis=0).min() > 0.92


def test_what_cannot_be_reached_names_the_nearest() -> None:
    scores, labels = _rows(2, 300)
    cut = find_threshold(scores, labels, "recall@fpr=0.1%", guarantee=True)
    assert not cut.reached
    assert "nearest" in cut.note
    with pytest.raises(ValueError, match="both classes"):
        find_threshold(scores, labels & False, "recall@fpr=1%")


@pytest.mark.parametrize("text", ["recall@top=5%", "recall@fpr=2%", "precision@recall=80%"])
def test_guarantee_is_the_last_order_statistic_that_binomial_numbers_allow(text: str) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(3_000) < 600
    scores = random.normal(size=3_000) + 2 * labels
    cut = find_threshold(scores, labels, text, guarantee=True)
    rows = {"recall@top=5%": scores, "recall@fpr=2%": scores[~labels], "precision@recall=80%": scores[labels]}[text]
    level = {"recall@top=5%": 0.05, "recall@fpr=2%": 0.02, "precision@recall=80%": 0.8}[text]
    # The share above the score with k rows above is at most the level as often as Bin(n, level) is above k.
    sure = binom.sf(np.arange(len(rows)), len(rows), level)
    above = np.flatnonzero(sure <= 0.05)[0] if "recall=" in text else np.flatnonzero(sure >= 0.95)[-1]
    assert (rows > cut.threshold.value).sum() == above


def test_drift_is_told_at_one_percent_of_the_exact_chance() -> None:
    old, rows = np.arange(200.0), 100
    above, every = 10, math.comb(300, 100)
    chance = [math.comb(above + x, x) * math.comb(289 - x, rows - x) / every for x in range(rows + 1)]
    assert sum(chance) == pytest.approx(1)
    seen = []
    for alerts in range(rows + 1):
        new = np.where(np.arange(rows) < alerts, 1e3, -1e3)
        drift = check_drift(old, new, old[-above - 1])
        p_value = min(1.0, 2 * min(sum(chance[: alerts + 1]), sum(chance[alerts:])))
        assert drift.p_value == pytest.approx(p_value)
        assert drift.drifted == (p_value < 0.01)
        seen.append(p_value)
    assert any(0.01 < p_value < 0.05 for p_value in seen)


@pytest.mark.parametrize(("threshold", "alerts"), [(np.inf, 0), (-np.inf, 50)])
def test_drift_of_alerts_to_nobody_or_everybody(threshold: float, alerts: int) -> None:
    drift = check_drift(np.arange(100.0), np.arange(50.0) + 7, threshold)
    assert (drift.got, drift.expected, drift.drifted) == (alerts, alerts, False)
    assert (np.arange(50.0) + 7 > drift.same_alerts).sum() == alerts
    with pytest.raises(ValueError, match="NaN"):
        check_drift(np.arange(100.0), np.arange(50.0), np.nan)


def test_drift() -> None:
    random = np.random.default_rng(0)
    old, new = random.normal(size=5000), random.normal(size=3000)
    threshold = float(np.sort(old)[-101])
    assert not check_drift(old, new, threshold).drifted
    assert check_drift(old, new + 0.5, threshold).drifted


@pytest.mark.parametrize(("threshold", "alerts", "whom"), [(-np.inf, 3000, "everybody"), (np.inf, 0, "nobody")])
def test_infinite_thresholds_do_not_drift(threshold: float, alerts: int, whom: str) -> None:
    random = np.random.default_rng(0)
    drift = check_drift(random.normal(size=10), random.normal(size=3000) + 1, threshold)  # few old rows, many new ones
    assert (drift.got, drift.expected, drift.same_alerts, drift.drifted) == (alerts, alerts, threshold, False)
    assert f"{alerts} alerts, since the threshold {threshold} alerts {whom}" in drift.sentence


def test_old_share_of_all_rows_is_kept_by_alerting_everybody() -> None:
    scores = np.arange(100.0)
    assert check_drift(scores, scores + 5, -1.0).same_alerts == -np.inf


def test_a_threshold_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a score"):
        check_drift(np.arange(9.0), np.arange(9.0), np.nan)


@pytest.mark.parametrize(
    "goal", ["recall@precision=1%", "recall@precision=50%", "cost@fn=1e6,fp=1", "cost@fn=1,fp=1e6"]
)
@pytest.mark.parametrize("simultaneous", [False, True])
def test_interval_of_a_threshold_holds_the_threshold_also_where_any_cut_will_do(goal: str, simultaneous: bool) -> None:
    random = np.random.default_rng(0)
    labels = random.random(5_000) < 0.02
    scores = random.normal(size=5_000) + 2 * labels
    cut = find_threshold(scores, labels, goal, simultaneous=simultaneous)
    assert cut.threshold.low <= cut.threshold.value <= cut.threshold.high
    if goal == "recall@precision=1%":  # below the share of positives: nothing rules out that all rows may be alerts
        assert cut.threshold.low == -np.inf


@pytest.mark.parametrize("factor", [2.0**-900, 2.0**900])
@pytest.mark.parametrize("goal", ["recall@top=1%", "recall@precision=50%"])
def test_size_of_all_weights_changes_nothing(goal: str, factor: float) -> None:
    random = np.random.default_rng(0)
    labels = random.random(3_000) < 0.05
    scores, weight = random.normal(size=3_000) + 2 * labels, random.uniform(1, 4, 3_000)
    for simultaneous in (False, True):
        plain, scaled = (
            find_threshold(scores, labels, goal, w, simultaneous=simultaneous) for w in (weight, factor * weight)
        )
        assert (plain.threshold, plain.recall, plain.precision) == (scaled.threshold, scaled.recall, scaled.precision)
