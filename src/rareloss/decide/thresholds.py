"""A threshold from validation scores, and what it achieves, each with a distribution-free interval."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta, betabinom, binom

from rareloss import checks
from rareloss.decide.intervals import clopper_pearson
from rareloss.objective import Objective

__all__ = ["Cut", "Interval", "find_threshold", "quantile_interval"]


@dataclass(frozen=True)
class Interval:
    """A value with an interval.

    Args:
        value: on the given rows.
        low: the interval's lower end.
        high: its upper end.
        exact: whether it covers at least as often as stated whatever the scores are distributed like, for any number of
            rows; else it does so approximately.
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

    def alerts_of(self, rows: int) -> Interval:
        """Compute how many of so many future rows will alarm, with a prediction interval.

        With k of n rows above an order statistic, the number among m future rows is beta-binomial,
        :math:`BB(m, k + 1, n - k)`: exact for a capacity cut on unweighted rows without ties.
        """
        checks.integer("rows", rows, least=1)
        above = self.alerts.value * self.rows
        count = betabinom(rows, above + 1, max(self.rows - above, 1e-9))
        tail = (1 - self.confidence) / 2
        exact = self.alerts.exact and self.objective.kind == "recall@top"
        return Interval(self.alerts.value * rows, float(count.ppf(tail)), float(count.ppf(1 - tail)), exact)


def quantile_interval(
    scores: np.ndarray, share: float, weight: np.ndarray | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Compute where the score lies above which ``share`` of the population is, by order statistics.

    The number of n rows above it is binomial, so it lies between two of the sorted scores whatever the distribution:
    exact for equal weights. Others count as many equal ones as leave the variance of the share above as it is.
    """
    weight = np.ones(len(scores)) if weight is None else weight
    order = np.argsort(-scores, kind="stable")
    until = np.cumsum(weight[order])
    whole = until[-1]
    at = order[min(int(np.searchsorted(until, share * whole)), len(order) - 1)]
    rows = _equal_rows(weight, scores > scores[at], share)
    tail = (1 - confidence) / 2
    fewest, most = binom.ppf(tail, rows, share), binom.isf(tail, rows, share) + 1
    low, high = -np.inf, np.inf
    if most <= rows:
        low = scores[order[min(int(np.searchsorted(until, most / rows * whole * (1 - 1e-12))), len(order) - 1)]]
    if fewest >= 1:
        high = scores[order[int(np.searchsorted(until, fewest / rows * whole * (1 - 1e-12)))]]
    return float(low), float(high)


def find_threshold(
    scores: np.ndarray,
    labels: np.ndarray,
    objective: Objective | str,
    weight: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    prevalence_factor: float = 1.0,
    guarantee: bool = False,
) -> Cut:
    """Cut validation scores for an objective, and say what the cut achieves.

    Args:
        scores: ``[n]``, finite.
        labels: ``[n]`` in {0, 1}.
        objective: any but ``"ap"``.
        weight: ``[n]``, not negative: how many rows each stands for. 1 by default.
        confidence: of the intervals and of ``guarantee``.
        prevalence_factor: what the prevalence is multiplied by where the cut is used. Recall and false-positive rate
            stay, precision, alerts and cost change; the threshold is that of the given rows.
        guarantee: lower the target to where it holds on future rows with ``confidence``, by the Beta distribution of
            the share above an order statistic: at most this false-positive rate or capacity, or at least this recall.
            It needs equal weights among the rows that it counts.

    Raises:
        ValueError: rows that do not fit, one class alone, ``"ap"``, or a guarantee that cannot be given.

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
    if objective.kind == "ap":
        raise ValueError("average precision sets no threshold; use 'recall@top=...' or 'recall@fpr=...'")
    scores, positive, weight = _rows(scores, labels, weight)
    note = ""
    if guarantee:
        threshold, note = _guaranteed(scores, positive, weight, objective, confidence)
    else:
        threshold = float(objective.threshold(*map(torch.from_numpy, (scores, positive, weight))))
        if threshold == np.inf:
            note = _nearest(scores, positive, weight, objective)
        elif objective.kind == "recall@top" and not (scores > threshold).any():
            note = f"the capacity is less than the highest score's rows; the nearest is {_tied(scores, weight):.4g}"
        elif objective.share is not None and not (scores[~positive] > threshold).any() and "fpr" in objective.kind:
            nearest = _tied(scores[~positive], weight[~positive])
            note = f"the budget is less than the highest negative; the nearest is {nearest:.4g}"
    return _achieved(scores, positive, weight, objective, threshold, note, confidence, prevalence_factor, guarantee)


def _achieved(
    scores: np.ndarray,
    positive: np.ndarray,
    weight: np.ndarray,
    objective: Objective,
    threshold: float,
    note: str,
    confidence: float,
    factor: float,
    guarantee: bool,
) -> Cut:
    above = scores > threshold
    # A threshold that labels chose from is as good as it looks by luck too; one from a share is not.
    blind = objective.share is not None
    of_negatives = blind and objective.kind != "recall@top"
    recall = _share(weight[positive], above[positive], confidence, of_negatives)
    fpr = _share(weight[~positive], above[~positive], confidence, False)
    if of_negatives and _equal(weight[~positive]):  # the share above an order statistic has a Beta distribution
        low, high = _above_order_statistic(int(above[~positive].sum()), int((~positive).sum()), confidence)
        fpr = Interval(fpr.value, low, high, True)
    rate = float(weight[positive].sum() / weight.sum())
    shifted = factor * rate
    if shifted >= 1:
        raise ValueError(f"a prevalence of {rate:.4g} cannot be multiplied by {factor:g}")
    odds = shifted * (1 - rate) / (rate * (1 - shifted))
    precision = _precision(weight, positive, above, confidence, odds, objective.kind == "recall@top")
    alerts = _sum(confidence, (shifted, recall), (1 - shifted, fpr))
    if factor == 1 and _equal(weight):
        k, n = int(above.sum()), len(scores)
        top = objective.kind == "recall@top"
        ends = _above_order_statistic(k, n, confidence) if top else clopper_pearson(k, n, confidence)
        alerts = Interval(k / n, *ends, exact=top)
    cost = None
    if objective.fn is not None and objective.fp is not None:
        missed = Interval(1 - recall.value, 1 - recall.high, 1 - recall.low, recall.exact)
        cost = _sum(confidence, (objective.fn * shifted, missed), (objective.fp * (1 - shifted), fpr))
    where = Interval(threshold, threshold, threshold, False)
    if np.isfinite(threshold) and not guarantee:
        # The share above is the target where one is set, else what came out: then the cut's own luck is left out.
        counted = ~positive if of_negatives else positive if objective.kind == "precision@recall" else positive | True
        level = objective.share or float(weight[counted & above].sum() / weight[counted].sum())
        if 0 < level < 1:
            ends = quantile_interval(scores[counted], level, weight[counted], confidence)
            where = Interval(threshold, *ends, exact=blind and _equal(weight[counted]))
    rows = _equal_rows(weight, above, min(max(float(weight[above].sum() / weight.sum()), 1e-12), 1 - 1e-12))
    return Cut(objective, where, recall, precision, fpr, alerts, cost, not note, note, confidence, rows)


def _rows(
    scores: np.ndarray, labels: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    weight = np.ones(len(scores)) if weight is None else np.asarray(weight, dtype=np.float64)
    if scores.ndim != 1 or not scores.shape == labels.shape == weight.shape:
        raise ValueError(
            f"scores, labels and weight must be [n] each, got {scores.shape}, {labels.shape} and {weight.shape}"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1; for one class of many give labels == it")
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("weight must be finite and not negative")
    there = weight > 0
    scores, positive, weight = scores[there], labels[there].astype(bool), weight[there]
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, {int((~np.isfinite(scores)).sum())} are not")
    if not positive.any() or positive.all():
        raise ValueError(f"a threshold needs both classes, got {int(positive.sum())} positives of {len(scores)} rows")
    return scores, positive, weight


def _equal(weight: np.ndarray) -> bool:
    return bool(weight.min() == weight.max())


def _equal_rows(weight: np.ndarray, above: np.ndarray, share: float) -> float:
    # As many rows of one weight as give the share above the same variance. One more of the heaviest rows counts as
    # above: where none was found there, the light ones would say that there is hardly any variance.
    if _equal(weight):
        return len(weight)
    squares = float((np.square(weight) * np.square(above - share)).sum() + weight.max() ** 2)
    return max(1.0, float(np.floor(share * (1 - share) * weight.sum() ** 2 / squares)))


def _share(weight: np.ndarray, above: np.ndarray, confidence: float, exact: bool) -> Interval:
    value = float(weight[above].sum() / weight.sum())
    rows = len(weight) if _equal(weight) else weight.sum() ** 2 / np.square(weight).sum()
    return Interval(value, *clopper_pearson(value * rows, rows, confidence), exact=exact and _equal(weight))


def _above_order_statistic(above: int, rows: int, confidence: float) -> tuple[float, float]:
    # The share of the population above the score that has so many of the rows above it.
    tail, found = (1 - confidence) / 2, beta(above + 1, max(rows - above, 1e-9))
    return float(found.ppf(tail)), float(found.ppf(1 - tail))


def _precision(
    weight: np.ndarray, positive: np.ndarray, above: np.ndarray, confidence: float, odds: float, exact: bool
) -> Interval:
    # Kept alarms are positive with the odds of all alarms times how much rarer negatives were kept: the interval of
    # that share, moved to the odds where the cut is used.
    hits, false = weight[above & positive], weight[above & ~positive]
    if not above.any():
        return Interval(np.nan, 0.0, 1.0, True)
    equal = _equal(weight[positive]) and _equal(weight[~positive])
    a = float(hits.sum() ** 2 / np.square(hits).sum()) if len(hits) else 0.0
    b = float(false.sum() ** 2 / np.square(false).sum()) if len(false) else 0.0
    heavy = [float(each.mean()) for each in (weight[positive], weight[~positive])]
    if not equal:
        heavy = [
            float(part.sum()) / count if count else mean
            for part, count, mean in zip((hits, false), (a, b), heavy, strict=True)
        ]
    odds *= heavy[0] / heavy[1]
    low, high = clopper_pearson(a, a + b, confidence)
    value, low, high = (odds * p / (odds * p + 1 - p) for p in (a / (a + b), low, high))
    return Interval(value, low, high, exact=exact and equal and _equal(weight))


def _sum(confidence: float, *parts: tuple[float, Interval]) -> Interval:
    # The interval of a sum of independent shares from theirs (Zou and Donner, "Construction of confidence limits about
    # effect measures", Statistics in Medicine 2008).
    value = sum(factor * part.value for factor, part in parts)
    down = np.sqrt(sum((factor * (part.value - part.low)) ** 2 for factor, part in parts))
    up = np.sqrt(sum((factor * (part.high - part.value)) ** 2 for factor, part in parts))
    return Interval(value, float(value - down), float(value + up), False)


def _guaranteed(
    scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, objective: Objective, confidence: float
) -> tuple[float, str]:
    if objective.kind not in ("recall@top", "recall@fpr", "pauc@fpr", "precision@recall"):
        raise ValueError(f"{objective} cannot be guaranteed; a capacity, a false-positive rate and a recall can")
    counted = {"recall@top": positive | True, "precision@recall": positive}.get(objective.kind, ~positive)
    if not _equal(weight[counted]):
        raise ValueError("a guarantee needs equal weights among the rows that set the threshold")
    ordered = np.sort(scores[counted])[::-1]
    above = np.arange(len(ordered))  # rows above each of them
    level = objective.level or 0.0
    if objective.kind == "precision@recall":
        fits = np.flatnonzero(beta.cdf(level, above + 1, len(ordered) - above) <= 1 - confidence)
        if len(fits):
            return float(ordered[fits[0]]), ""
        nearest = float(beta.ppf(1 - confidence, len(ordered), 1))
        return float(ordered[-1]), _too_few(level, confidence, len(ordered), nearest)
    fits = np.flatnonzero(beta.cdf(level, above + 1, len(ordered) - above) >= confidence)
    if len(fits):
        return float(ordered[fits[-1]]), ""
    return float(ordered[0]), _too_few(level, confidence, len(ordered), float(beta.ppf(confidence, 1, len(ordered))))


def _too_few(level: float, confidence: float, rows: int, nearest: float) -> str:
    return (
        f"{level:.4g} cannot be guaranteed with confidence {confidence:g} from {rows} rows; the nearest that can is "
        f"{nearest:.4g}"
    )


def _nearest(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, objective: Objective) -> str:
    if objective.kind != "recall@precision":
        return "no alarm is worth its cost on these rows: nobody is alarmed"
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) < 0, True)
    hits, taken = np.cumsum((weight * positive)[order])[ends], np.cumsum(weight[order])[ends]
    best = int(np.argmax(hits / taken))
    return (
        f"no cut has a precision of {objective.level:.4g}; the nearest is {hits[best] / taken[best]:.4g}, with a "
        f"recall of {hits[best] / hits[-1]:.4g}"
    )


def _tied(scores: np.ndarray, weight: np.ndarray) -> float:
    return float(weight[scores == scores.max()].sum() / weight.sum())
