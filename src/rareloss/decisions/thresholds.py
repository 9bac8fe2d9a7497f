"""A threshold from validation scores, and what it achieves, each with a distribution-free interval."""

from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr, betainc, betaincinv, logit
from scipy.stats import betabinom

from rareloss import checks
from rareloss.decisions.intervals import Sums, at_all_cuts, clopper_pearson, share_of_weight
from rareloss.objectives import Objective

__all__ = ["Band", "Cut", "Interval", "band", "find_threshold", "highest_precision", "quantile_interval"]

Array = NDArray[np.float64]

# Of a cut that labels choose: how often rows are reweighted, and at how many scores of each kind it may be.
_RESAMPLES, _LEVELS = 400, 1_000
# Of the risk of a threshold of unequal weights: what its upper end may have. The first where no ends are closest.
_PARTS = (2 / 3, 0.5, 0.6, 0.75, 0.85, 0.95)
# With fewer positives than this a cut of resampled rows is about where it was, by want of others.
_POSITIVES = 100


@dataclass(frozen=True)
class Interval:
    """A value with an interval.

    Args:
        value: on the given rows.
        low: the interval's lower end.
        high: its upper end.
        exact: whether it covers at least as often as stated whatever the scores are distributed like, with ties too,
            for any number of rows; else it does so approximately.
    """

    value: float
    low: float
    high: float
    exact: bool

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]{'' if self.exact else ', approximately'}"


@dataclass(frozen=True)
class Cut:
    """A threshold and what alarms above it achieve.

    Args:
        objective: what it was cut for.
        threshold: the score; rows *above* it are alarms. Its interval is that of the population's threshold.
        recall: the share of positives that alarm at ``threshold.value``, like all that follows.
        precision: the share of alarms that are positive.
        fpr: the share of negatives that alarm.
        alerts: the share of rows that alarm.
        cost: per row, for an objective of costs.
        reached: whether the target is reached on these rows, and under ``guarantee`` with the stated confidence.
        note: what is in the way and the nearest that can be reached, where it is not.
        confidence: of every interval.
        rows: how many rows there were, in weights of equal size.
        tied: whether several rows have the threshold's score. They stay below, so intervals of what a share sets cover
            more often than stated, and are wider than they would be without ties.
    """

    objective: Objective
    threshold: Interval
    recall: Interval
    precision: Interval
    fpr: Interval
    alerts: Interval
    cost: Interval | None
    reached: bool
    note: str
    confidence: float
    rows: float
    tied: bool

    def alerts_of(self, rows: int) -> Interval:
        """Compute how many of so many future rows will alarm, with a prediction interval.

        With k of n rows above an order statistic, the number among m future rows is beta-binomial,
        :math:`BB(m, k + 1, n - k)`: exact for a capacity cut on unweighted rows, where none is tied with the threshold.
        """
        checks.integer("rows", rows, least=1)
        above = self.alerts.value * self.rows
        count = betabinom(rows, above + 1, max(self.rows - above, 1e-9))
        tail = (1 - self.confidence) / 2
        exact = self.alerts.exact and self.objective.quantile is not None and not self.tied
        return Interval(self.alerts.value * rows, float(count.ppf(tail)), float(count.ppf(1 - tail)), exact)


def quantile_interval(
    scores: np.ndarray, share: float, weight: np.ndarray | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Compute where the score lies above which ``share`` of the population is, by order statistics.

    The number of n rows above it is binomial, so it lies between two of the sorted scores whatever the distribution:
    exact for equal weights, ties or not. Of all pairs that cover it often enough, the closest is taken, as measured by
    the log-odds of their ranks, which the scores have no part in. With others, the scores above which the share of
    weight has an interval that holds ``share`` (:func:`rareloss.decisions.intervals.share_of_weight`), approximately;
    of six ways to divide the risk between the ends likewise the closest.
    """
    if weight is None or _equal(weight):
        fewest, most = _ranks(len(scores), share, confidence)
        at = [len(scores) - rank for rank in (most, fewest) if 0 < rank <= len(scores)]
        ordered = np.partition(scores, at) if at else scores
        low = float(ordered[-most]) if most <= len(scores) else -np.inf
        return low, float(ordered[-fewest]) if fewest else np.inf
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    sums = Sums(*(np.append(0.0, np.cumsum(weight[order] ** power)) for power in (1, 2)))
    whole = sums.at(-1)

    def share_above(number: int, risk: float) -> tuple[float, float]:
        inside = sums.at(number)
        low, high = share_of_weight(inside, whole.without(inside), (whole.row, whole.row), 1 - 2 * risk)
        return float(low), float(high)

    def ends(part: float) -> tuple[float, int, int]:
        # With this part of the risk above: how far apart the ends are, and how many rows are at or above each.
        numbers, risk = range(len(order) + 1), 1 - confidence
        fewest = bisect_left(numbers, share, key=lambda number: share_above(number, part * risk)[1])
        most = bisect_left(numbers, True, key=lambda number: share_above(number, (1 - part) * risk)[0] > share)
        if not fewest or most > len(order):
            return np.inf, most, fewest
        return float(np.subtract(*logit(sums.weight[[most, fewest]] / whole.weight))), most, fewest

    _, most, fewest = min(map(ends, _PARTS), key=lambda found: found[0])
    return (
        float(ordered[most - 1]) if most <= len(order) else -np.inf,
        float(ordered[fewest - 1]) if fewest else np.inf,
    )


def _ranks(rows: int, share: float, confidence: float) -> tuple[int, int]:
    # With N ~ Bin(rows, share) rows above the quantile, the l-th score from the top is not below it unless N < l, and
    # the m-th not above it unless N >= m. Rank 0, or one more than the rows, stands for an end that no row bounds.
    middle = rows * share
    reach = 8 * np.sqrt(middle * (1 - share)) + 8
    number = np.arange(max(0, int(middle - reach)), min(rows, int(middle + reach) + 1) + 1)
    until = bdtr(number, rows, share)
    before = np.append(0.0 if number[0] == 0 else bdtr(number[0] - 1, rows, share), until[:-1])
    last = np.searchsorted(until, confidence + before)
    fewest = number[last < len(number)]
    most = number[last[last < len(number)]] + 1
    with np.errstate(divide="ignore"):
        apart = logit(most / (rows + 1)) - logit(fewest / (rows + 1))
    # Where no pair covers, all the risk goes to the end that there is.
    best = int(np.argmin(apart)) if np.isfinite(apart).any() else 0 if share < 0.5 else len(fewest) - 1
    return int(fewest[best]), int(most[best])


def find_threshold(
    scores: np.ndarray,
    labels: np.ndarray,
    objective: Objective | str,
    weight: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    prevalence_factor: float = 1.0,
    guarantee: bool = False,
    simultaneous: bool = False,
) -> Cut:
    """Cut validation scores for an objective, and say what the cut achieves.

    Args:
        scores: ``[n]``, finite.
        labels: ``[n]`` in {0, 1}.
        objective: any that sets a threshold; average precision looks at all of them.
        weight: ``[n]``, not negative: how many rows each stands for. 1 by default.
        confidence: of the intervals and of ``guarantee``.
        prevalence_factor: what the prevalence is multiplied by where the cut is used. Recall and false-positive rate
            stay, precision, alerts and cost change; the threshold is that of the given rows.
        guarantee: lower the target to where it holds on future rows with ``confidence``, by the Beta distribution of
            the share above an order statistic: at most this false-positive rate or capacity, or at least this recall.
            It needs equal weights among the rows that it counts.
        simultaneous: make the intervals of what the cut achieves hold at all thresholds at once, so that they hold
            however it was chosen, by labels or by moving it after a look: those of :func:`band`, at this cut. Where
            labels choose it, for a precision or for costs, that of the threshold then holds every one that the band
            does not rule out (approximately: between two scores, and for costs with the prevalence of these rows).

    Raises:
        ValueError: rows that do not fit, one class alone, average precision, or a guarantee that cannot be given.

    Example:
        >>> random = np.random.default_rng(0)
        >>> labels = random.random(5_000) < 0.02
        >>> cut = find_threshold(random.normal(size=5_000) + 2 * labels, labels, "recall@fpr=1%")
        >>> cut.fpr.low < 0.01 < cut.fpr.high, cut.recall.exact
        (True, True)
    """
    objective = Objective.of(objective)
    checks.probability("confidence", confidence, open_low=True, open_high=True)
    checks.positive_number("prevalence_factor", prevalence_factor)
    scores, positive, weight = _rows(scores, labels, weight)
    note, counted = "", _counted(positive, objective)
    allowed = int((objective.budget or 0.0) * counted.sum() * (1 + 1e-12))
    if guarantee:
        threshold, allowed, note = _guaranteed(scores[counted], weight[counted], objective, confidence)
    else:
        threshold = float(objective.threshold(*map(torch.from_numpy, (scores, positive, weight))))
        if threshold == np.inf:
            note = _nearest(scores, positive, weight, objective)
        elif objective.budget is not None and not (scores[counted] > threshold).any():
            nearest = _tied(scores[counted], weight[counted])
            limit = "capacity" if objective.quantile is not None else "budget of negatives"
            note = f"the {limit} is less than what the highest score has; the nearest is {nearest:.4g}"
    # A threshold that labels chose is as good as it looks by luck too; an order statistic of some of the rows is not.
    blind = guarantee or objective.budget is not None
    cut = _achieved(scores, positive, weight, objective, threshold, note, confidence, prevalence_factor, blind, allowed)
    if guarantee:
        cut = replace(cut, threshold=Interval(threshold, threshold, threshold, False))
    return _anywhere(cut, scores, positive, weight, prevalence_factor) if simultaneous else cut


@dataclass(frozen=True)
class Band:
    """What alarms above each score achieve, with intervals that hold at all of them at once.

    Args:
        thresholds: ``[m]``, the distinct scores, downwards; rows *above* one are alarms.
        recall: ``[3, m]``: the value on the given rows, and the interval's lower and upper ends.
        precision: alike; where nothing is above, the value is NaN and the interval [0, 1].
        fpr: alike, the false-positive rate.
        confidence: that a metric's intervals hold at all thresholds; each metric has its own.
    """

    thresholds: Array
    recall: Array
    precision: Array
    fpr: Array
    confidence: float


def band(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None, *, confidence: float = 0.95) -> Band:
    """Compute what a cut at each score achieves, with intervals that hold wherever a person then puts the threshold.

    See :func:`rareloss.decisions.intervals.at_all_cuts` for the formulas. Where each class has one weight, such as that
    of sampled negatives, all are exact, ties included; else approximate.

    Args:
        scores: ``[n]``, finite.
        labels: ``[n]`` in {0, 1}.
        weight: ``[n]``, not negative; 1 by default.
        confidence: of each metric's intervals.

    Raises:
        ValueError: rows that do not fit, or one class alone.

    Example:
        >>> found = band(np.arange(100.0), np.arange(100) >= 80)
        >>> found.thresholds[10], found.recall[:, 10].round(3)
        (np.float64(89.0), array([0.5  , 0.196, 0.804]))
    """
    checks.probability("confidence", confidence, open_low=True, open_high=True)
    scores, positive, weight = _rows(scores, labels, weight)
    thresholds, above = _above(scores, positive, weight)
    found = at_all_cuts(above, *_classes(positive, weight), confidence)
    return Band(thresholds, **found, confidence=confidence)


def _above(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> tuple[Array, tuple[Sums, Sums]]:
    # The distinct scores, downwards, and the positives and negatives above each.
    thresholds, place = np.unique(-scores, return_inverse=True)

    def above(of: np.ndarray, power: int) -> Array:
        here = np.bincount(place[of], weight[of] ** power, len(thresholds))
        return np.asarray(np.cumsum(here) - here)

    hits, false = (Sums(above(of, 1), above(of, 2)) for of in (positive, ~positive))
    return -thresholds, (hits, false)


def _and_all(above: tuple[Sums, Sums], whole: tuple[Sums, Sums]) -> tuple[Sums, Sums]:
    # A cut more, which all rows are above.
    hits, false = (Sums(*map(np.append, some, of)) for some, of in zip(above, whole, strict=True))
    return hits, false


def _classes(positive: np.ndarray, weight: np.ndarray) -> tuple[tuple[Sums, Sums], tuple[float, float]]:
    # All positives and all negatives, and the heaviest of each.
    one, other = weight[positive], weight[~positive]
    return (Sums.of(one), Sums.of(other)), (float(one.max()), float(other.max()))


def _alike(positive: np.ndarray, weight: np.ndarray) -> bool:
    return _equal(weight[positive]) and _equal(weight[~positive])


def _anywhere(cut: Cut, scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, factor: float) -> Cut:
    # The cut with intervals that leave no luck out.
    thresholds, above = _above(scores, positive, weight)
    (whole, heaviest), alike = _classes(positive, weight), _alike(positive, weight)
    shifted, odds = _shift(positive, weight, factor)
    place = int(np.searchsorted(-thresholds, -cut.threshold.value))
    found = at_all_cuts(_and_all(above, whole), whole, heaviest, cut.confidence, odds, place)
    recall, precision, fpr = (
        Interval(float(each[0]), float(each[1]), float(each[2]), alike)
        for each in (found["recall"], found["precision"], found["fpr"])
    )
    alerts = _sum((shifted, recall), (1 - shifted, fpr))
    if factor == 1 and _equal(weight):
        rows, each = float(len(scores)), 1 - (1 - cut.confidence) / (len(scores) + 1)
        number = float((scores > cut.threshold.value).sum())
        ends = clopper_pearson(number, max(rows - 1, number), each)
        alerts = Interval(cut.alerts.value, *ends, exact=True)
    where = cut.threshold
    if _level(cut.objective) is None:
        ends = _not_ruled_out(cut.objective, scores, positive, weight, cut.confidence)
        where = _with_value(where.value, ends, False)
    return replace(
        cut,
        threshold=where,
        recall=recall,
        precision=replace(precision, exact=alike and factor == 1),
        fpr=fpr,
        alerts=alerts,
        cost=_cost(cut.objective, shifted, recall, fpr),
    )


def _with_value(value: float, ends: tuple[float, float], exact: bool) -> Interval:
    # Of cuts that are as good the highest is taken, which may lie above an interval of the lowest.
    return Interval(value, min(value, ends[0]), max(value, ends[1]), exact)


def _not_ruled_out(
    objective: Objective, scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, confidence: float
) -> tuple[float, float]:
    # Between which scores the population's threshold for a precision or for costs may be, by the intervals at all cuts;
    # for another goal they rule out nothing.
    thresholds, above = _above(scores, positive, weight)
    whole, heaviest = _classes(positive, weight)
    if objective.precision is not None:
        _, low, high = at_all_cuts(above, whole, heaviest, confidence)["precision"]
        # It is the lowest with the precision: none below all that may have it, nor above one that surely has.
        lowest = float(thresholds[high >= objective.precision].min())
        surely = float(thresholds[low >= objective.precision].min(initial=np.inf))
        return lowest if lowest > thresholds[-1] else -np.inf, surely
    if objective.fn is None or objective.fp is None:
        return -np.inf, np.inf
    # Alarms for all rows catch all, for sure. Each of two metrics takes half of the risk.
    thresholds = np.append(thresholds, -np.inf)
    found = at_all_cuts(_and_all(above, whole), whole, heaviest, (1 + confidence) / 2)
    rate = float(weight[positive].sum() / weight.sum())
    missed, alarmed = objective.fn * rate, objective.fp * (1 - rate)
    least, most = (
        missed * (1 - found["recall"][row]) + alarmed * found["fpr"][other] for row, other in ((2, 1), (1, 2))
    )
    least[-1] = most[-1] = alarmed
    possible = thresholds[least <= most.min()]
    highest = float(possible.max())
    return float(possible.min()), highest if highest < thresholds[0] else np.inf


def _resampled(
    objective: Objective, scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, confidence: float
) -> tuple[float, float]:
    # Where the cut of the highest utility comes out when rows get weights from an exponential distribution (the
    # Bayesian bootstrap). It may be at up to so many scores of positives, and of all rows in equal ratios of their
    # ranks. The k rows of a class between two of them weigh as much as a Gamma(k) variable, unequal ones as one of the
    # same mean and variance.
    hit, every = np.unique(scores[positive]), np.unique(scores)[::-1]
    hit = hit[np.linspace(0, len(hit) - 1, min(len(hit), _LEVELS)).astype(int)]
    every = every[np.geomspace(1, len(every), min(len(every), _LEVELS)).astype(int) - 1]
    levels = np.unique(np.concatenate([hit, every]))[::-1]
    ordered = np.sort(scores)
    before = np.searchsorted(ordered, levels) - 1
    below = np.append(np.where(before >= 0, ordered[before], -np.inf), np.inf)  # the last: alarm nobody
    place = len(levels) - np.searchsorted(levels[::-1], scores, side="right")  # the highest level not above a score
    random = np.random.default_rng(0)

    def drawn(of: np.ndarray) -> Array:
        total, squares = (np.bincount(place[of], weight[of] ** power, len(levels)) for power in (1, 2))
        size = np.divide(squares, total, out=np.ones_like(total), where=total > 0)
        return np.asarray(np.cumsum(size * random.standard_gamma(total / size, (_RESAMPLES, len(levels))), axis=1))

    hits, false = drawn(positive), drawn(~positive)
    worth = objective.utility(torch.from_numpy(hits), torch.from_numpy(false)).numpy()
    # The lowest of the best: of the population, no positive need be where the precision ends.
    lowest = worth.shape[1] - 1 - worth[:, ::-1].argmax(1)
    best = np.where(worth.max(1) > 0, lowest, len(levels))
    tail = (1 - confidence) / 2
    low, high = np.quantile(below[best], [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def _counted(positive: np.ndarray, objective: Objective) -> np.ndarray:
    # The rows that set the threshold, or that a guarantee would count.
    return {"positives": positive, "negatives": ~positive, "rows": positive | True}[_counted_name(objective)]


def _counted_name(objective: Objective) -> str:
    if objective.recall is not None:
        return "positives"
    return "rows" if objective.budget is None or objective.quantile is not None else "negatives"


def _level(objective: Objective) -> float | None:
    # The fraction of the counted rows that lies above the threshold, at most or at least; None where labels choose it.
    return objective.budget if objective.recall is None else objective.recall


def _shift(positive: np.ndarray, weight: np.ndarray, factor: float) -> tuple[float, float]:
    # The prevalence where the cut is used, and its odds over those of the given rows.
    rate = float(weight[positive].sum() / weight.sum())
    shifted = factor * rate
    if shifted >= 1:
        raise ValueError(f"a prevalence of {rate:.4g} cannot be multiplied by {factor:g}")
    return shifted, shifted * (1 - rate) / (rate * (1 - shifted))


def _cost(objective: Objective, rate: float, recall: Interval, fpr: Interval) -> Interval | None:
    if objective.fn is None or objective.fp is None:
        return None
    missed = Interval(1 - recall.value, 1 - recall.high, 1 - recall.low, recall.exact)
    return _sum((objective.fn * rate, missed), (objective.fp * (1 - rate), fpr))


def _achieved(
    scores: np.ndarray,
    positive: np.ndarray,
    weight: np.ndarray,
    objective: Objective,
    threshold: float,
    note: str,
    confidence: float,
    factor: float,
    blind: bool,
    allowed: int,
) -> Cut:
    above, equal = scores > threshold, _equal(weight)
    shifted, odds = _shift(positive, weight, factor)
    sets = _counted_name(objective) if blind else ""

    def share(name: str, of: np.ndarray) -> Interval:
        if not (equal or _equal(weight[of])):
            row = float(Sums.of(weight[of]).row)
            return Interval(*_part(weight[above & of], weight[of & ~above], (row, row), confidence), False)
        hits, number = int((above & of).sum()), int(of.sum())
        if sets == name:
            return _of_order_statistic(hits, allowed, number, confidence)
        ends = clopper_pearson(hits, number, confidence)
        return Interval(hits / number, *ends, exact=sets in ("positives", "negatives"))

    recall, fpr = share("positives", positive), share("negatives", ~positive)
    precision = _precision(weight, positive, above, confidence, odds, sets == "rows" and factor == 1)
    alerts = _sum((shifted, recall), (1 - shifted, fpr))
    if factor == 1 and equal:
        k, n = int(above.sum()), len(scores)
        alerts = Interval(k / n, *clopper_pearson(k, n, confidence), exact=False)
        if sets == "rows":
            alerts = _of_order_statistic(k, allowed, n, confidence)
    elif factor == 1 and not _alike(positive, weight):  # the prevalence is known no better than the rest
        row = float(Sums.of(weight).row)
        alerts = Interval(*_part(weight[above], weight[~above], (row, row), confidence), False)
    level = _level(objective)
    ends, exact = (threshold, threshold), False
    if level is None:
        few = positive.sum() < _POSITIVES or not np.isfinite(threshold)
        found = _not_ruled_out if few else _resampled
        ends = found(objective, scores, positive, weight, confidence)
    elif np.isfinite(threshold):
        counted = _counted(positive, objective)
        same = equal or _equal(weight[counted])
        ends = quantile_interval(scores[counted], level, None if same else weight[counted], confidence)
        exact = objective.budget is not None and same
    where = _with_value(threshold, ends, exact)
    rows = _equal_rows(weight, above, min(max(float(weight[above].sum() / weight.sum()), 1e-12), 1 - 1e-12))
    cost, tied = _cost(objective, shifted, recall, fpr), int((scores == threshold).sum()) > 1
    return Cut(objective, where, recall, precision, fpr, alerts, cost, not note, note, confidence, rows, tied)


def _rows(
    scores: np.ndarray, labels: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    weight = np.ones(len(scores)) if weight is None else np.asarray(weight, dtype=np.float64)
    if scores.ndim != 1 or not scores.shape == labels.shape == weight.shape:
        raise ValueError(
            f"scores, labels and weight must be [n] each, got {scores.shape}, {labels.shape} and {weight.shape}"
        )
    if labels.dtype != bool and not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels must be 0 or 1; for one class of many give labels == it")
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("weight must be finite and not negative")
    positive, there = labels.astype(bool, copy=False), weight > 0
    if not there.all():
        scores, positive, weight = scores[there], positive[there], weight[there]
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, {int((~np.isfinite(scores)).sum())} are not")
    if not positive.any() or positive.all():
        raise ValueError(f"a threshold needs both classes, got {int(positive.sum())} positives of {len(scores)} rows")
    # By a power of two, which rounds nothing: weights of any size can be squared.
    return scores, positive, np.ldexp(weight, -np.frexp(weight.max())[1])


def _equal(weight: np.ndarray) -> bool:
    return bool(weight.min() == weight.max())


def _equal_rows(weight: np.ndarray, above: np.ndarray, share: float) -> float:
    # As many rows of one weight as give the share above the same variance. One more row of usual weight counts as
    # above: where none was found there, the light ones would say that there is hardly any variance.
    if _equal(weight):
        return len(weight)
    squares = float((np.square(weight) * np.square(above - share)).sum() + Sums.of(weight).row ** 2)
    return max(1.0, float(np.floor(share * (1 - share) * weight.sum() ** 2 / squares)))


def _part(
    inside: np.ndarray, outside: np.ndarray, rows: tuple[float, float], confidence: float, odds: float = 1.0
) -> tuple[float, float, float]:
    # The share of weight that is inside, at so many times its odds, with its interval.
    low, high = share_of_weight(Sums.of(inside), Sums.of(outside), rows, confidence, odds)
    hits = odds * float(inside.sum())
    return hits / (hits + float(outside.sum())), float(low), float(high)


def _of_order_statistic(above: int, allowed: int, rows: int, confidence: float) -> Interval:
    # The share of the population above the highest score that has more than ``allowed`` of the rows at or above it.
    # Break ties by lot: then it has ``allowed`` rows above it, no less of the population, and the share of that has the
    # law Beta(allowed + 1, rows - allowed), which gives the upper end. For the lower end let v be the lowest score with
    # less of the population above it than that end at ``allowed`` rows. Where the end at ``above`` rows is too high,
    # the cut is v or higher, and either way v has more rows above it than chance gives it with half of the risk.
    low, high = clopper_pearson(above, rows, confidence)[0], clopper_pearson(allowed, rows, confidence)[1]
    return Interval(above / rows, low, high, exact=True)


def _precision(
    weight: np.ndarray, positive: np.ndarray, above: np.ndarray, confidence: float, odds: float, exact: bool
) -> Interval:
    # Kept alarms are positive with the odds of all alarms times how much rarer negatives were kept: the interval of
    # that share, moved to the odds where the cut is used.
    if not above.any():
        return Interval(np.nan, 0.0, 1.0, True)
    rows = float(Sums.of(weight[positive]).row), float(Sums.of(weight[~positive]).row)
    ends = _part(weight[above & positive], weight[above & ~positive], rows, confidence, odds)
    return Interval(*ends, exact=exact and _equal(weight))


def _sum(*parts: tuple[float, Interval]) -> Interval:
    # The interval of a sum of independent shares from theirs (Zou and Donner, "Construction of confidence limits about
    # effect measures", Statistics in Medicine 2008).
    value = sum(factor * part.value for factor, part in parts)
    down = np.sqrt(sum((factor * (part.value - part.low)) ** 2 for factor, part in parts))
    up = np.sqrt(sum((factor * (part.high - part.value)) ** 2 for factor, part in parts))
    return Interval(value, float(value - down), float(value + up), False)


def _guaranteed(
    scores: np.ndarray, weight: np.ndarray, objective: Objective, confidence: float
) -> tuple[float, int, str]:
    # The threshold, how many rows may lie above it, and what is in the way; of the rows that are counted.
    if (level := _level(objective)) is None:
        raise ValueError(f"{objective} cannot be guaranteed; a capacity, a false-positive rate and a recall can")
    if not _equal(weight):
        raise ValueError("a guarantee needs equal weights among the rows that set the threshold")
    ordered = np.sort(scores)[::-1]
    above, rows = np.arange(len(ordered)), len(ordered)  # rows above each of them
    sure = betainc(above + 1, rows - above, level)  # the chance that the share above it is at most the level
    if objective.recall is not None:
        fits = np.flatnonzero(sure <= 1 - confidence)
        place, best, nearest = (int(fits[0]) if len(fits) else rows - 1), rows - 1, 1 - confidence
    else:
        fits = np.flatnonzero(sure >= confidence)
        place, best, nearest = (int(fits[-1]) if len(fits) else 0), 0, confidence
    note = "" if len(fits) else _too_few(level, confidence, rows, betaincinv(best + 1, rows - best, nearest))
    return float(ordered[place]), place, note


def _too_few(level: float, confidence: float, rows: int, nearest: float) -> str:
    return (
        f"{level:.4g} cannot be guaranteed with confidence {confidence:g} from {rows} rows; the nearest that can is "
        f"{nearest:.4g}"
    )


def _nearest(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, objective: Objective) -> str:
    if objective.precision is None:
        return "no alert is worth its cost on these rows: there are none"
    precision, recall, _ = highest_precision(scores, positive, weight)
    return (
        f"no cut has a precision of {objective.precision:.4g}; the nearest is {precision:.4g}, with a recall of "
        f"{recall:.4g}"
    )


def highest_precision(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> tuple[float, float, float]:
    """Find the highest precision of any cut.

    Returns:
        it, its recall, and the lowest score above the cut.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) < 0, True)
    hits, taken = np.cumsum((weight * positive)[order])[ends], np.cumsum(weight[order])[ends]
    best = int(np.argmax(hits / taken))
    return float(hits[best] / taken[best]), float(hits[best] / hits[-1]), float(scores[order][ends][best])


def _tied(scores: np.ndarray, weight: np.ndarray) -> float:
    return float(weight[scores == scores.max()].sum() / weight.sum())
