"""Whether tomorrow's scores are still those that the threshold was cut on."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom, ks_2samp

__all__ = ["Drift", "check_drift", "likely_alerts"]


@dataclass(frozen=True)
class Drift:
    """What has changed.

    Args:
        expected: alerts that the old share above the threshold gives among the new rows.
        got: alerts.
        p_value: how likely a number at least as far from the expected one is, two-sided, where nothing has changed.
        distance: the largest difference of the two distributions (Kolmogorov-Smirnov).
        distance_p_value: its p-value.
        same_alerts: the score above which the new rows have the old share of alerts.
        sentence: what to make of it.
    """

    expected: float
    got: int
    p_value: float
    distance: float
    distance_p_value: float
    same_alerts: float
    sentence: str

    @property
    def drifted(self) -> bool:
        """Whether the alerts are others than chance explains in 1 of 100 checks."""
        return self.p_value < 0.01


def check_drift(before: np.ndarray, after: np.ndarray, threshold: float) -> Drift:
    """Compare new scores with those that a threshold was cut on.

    With k of n old rows above, the number among m new ones is beta-binomial, :math:`BB(m, k + 1, n - k)`, where the
    threshold is one of the old scores and nothing has changed.

    Args:
        before: ``[n]``, the old scores.
        after: ``[m]``, the new ones.
        threshold: the cut; rows above it are alerts. -inf alerts everybody and inf nobody, whatever the scores are.

    Raises:
        ValueError: no rows, scores that are not finite, or a threshold that is not a number.

    Example:
        >>> old, new = np.arange(1000.0), np.arange(500.0) + 600
        >>> check_drift(old, new, 989.0).drifted
        True
    """
    old, new = (_scores(name, given) for name, given in (("before", before), ("after", after)))
    if np.isnan(threshold):
        raise ValueError("threshold must be a score, inf (alert nobody) or -inf (alert everybody), got NaN")
    above, n, m = int((old > threshold).sum()), len(old), len(new)
    got = int((new > threshold).sum())
    test = ks_2samp(old, new, method="auto")
    differ = f"the scores differ by up to {test.statistic:.3g} of all rows"
    if np.isinf(threshold):
        # The number of alerts is then no matter of chance, so the beta-binomial would say nothing true of it.
        whom = "nobody" if threshold > 0 else "everybody"
        sentence = f"{got} alerts, since the threshold {threshold} alerts {whom}; {differ}"
        return Drift(float(got), got, 1.0, float(test.statistic), float(test.pvalue), float(threshold), sentence)
    low, high, p_value = likely_alerts(above, n, got, m)
    alerted = round(above / n * m)
    same = float(np.sort(new)[m - 1 - alerted]) if alerted < m else -np.inf  # no score lies below the least one
    verdict = "more than" if got > high else "fewer than" if got < low else "within"
    sentence = (
        f"{got} alerts, {verdict} the {low} to {high} that 99 of 100 unchanged periods of {m} rows give; {differ}. "
        f"The threshold for the old share of alerts is now {same:.6g}, was {threshold:.6g}"
    )
    return Drift(above / n * m, got, p_value, float(test.statistic), float(test.pvalue), same, sentence)


def likely_alerts(above: int, n: int, got: int, m: int) -> tuple[int, int, float]:
    """Say how many of m rows are above a threshold where k of n others were, if nothing has changed.

    Args:
        above: k, at least 0.
        n: of how many.
        got: those of the m rows that are above it.
        m: of how many.

    Returns:
        the ends of what 99 of 100 unchanged periods give; and how likely a number at least as far out is, two-sided.
    """
    count = betabinom(m, above + 1, max(n - above, 1))
    low, high = (int(end) for end in count.ppf([0.005, 0.995]))
    return low, high, float(min(1.0, 2 * min(count.cdf(got), count.sf(got - 1))))


def _scores(name: str, given: np.ndarray) -> np.ndarray:
    scores = np.asarray(given, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"{name} must be scores [n] of at least one row, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} must be finite, {int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not")
    return scores
