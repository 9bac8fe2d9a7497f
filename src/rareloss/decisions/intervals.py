"""Intervals of shares of rows that were seen: of one, and of all that a threshold can choose from."""

from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

__all__ = ["Sums", "at_all_cuts", "clopper_pearson", "share_of_weight"]

Array = NDArray[np.float64]


class Sums(NamedTuple):
    """What rows weigh.

    Args:
        weight: the sum of their weights, of any one shape.
        squared: that of the squared weights.
    """

    weight: Array
    squared: Array

    @classmethod
    def of(cls, weight: Array) -> "Sums":
        """Sum rows."""
        return cls(np.asarray(weight.sum()), np.asarray(weight @ weight))

    def at(self, place: slice | int) -> "Sums":
        """Take some."""
        return Sums(self.weight[place], self.squared[place])

    def with_row(self, weight: float | Array) -> "Sums":
        """Add a row."""
        return Sums(self.weight + weight, self.squared + weight**2)

    def without(self, part: "Sums") -> "Sums":
        """Take a part away. What rounding leaves of nothing is nothing."""
        weight = self.weight - part.weight
        weight = np.where(weight > 1e-9 * self.weight, weight, 0.0)
        return Sums(weight, np.maximum(self.squared - part.squared, 1e-12 * weight**2))

    @property
    def row(self) -> Array:
        """The weight of the row that a unit of weight is of, on average; of no rows 1."""
        return np.where(self.weight > 0, self.squared, 1.0) / np.where(self.weight > 0, self.weight, 1.0)


@overload
def clopper_pearson(hits: float, rows: float, confidence: float = 0.95) -> tuple[float, float]: ...
@overload
def clopper_pearson(hits: Array, rows: Array, confidence: float = 0.95) -> tuple[Array, Array]: ...
def clopper_pearson(
    hits: float | Array, rows: float | Array, confidence: float = 0.95
) -> tuple[float | Array, float | Array]:
    r"""Compute the interval of a share of which ``hits`` of ``rows`` were seen, exact for counts.

    With :math:`B_p(a, b)` the quantile at p of a Beta distribution, k hits of n rows and :math:`\alpha` the risk, it is

    .. math:: \big[B_{\alpha / 2}(k, n - k + 1),\; B_{1 - \alpha / 2}(k + 1, n - k)\big],

    from 0 where nothing was hit and to 1 where all was.

    Args:
        hits: numbers, or arrays of any one shape; effective ones need not be whole.
        rows: of how many; 0 rows tell nothing, so theirs is [0, 1].
        confidence: that the share lies within.

    Returns:
        the lower and the upper end, in the shape of ``hits``.

    Reference:
        Clopper and Pearson, "The Use of Confidence or Fiducial Limits", Biometrika 1934.

    Example:
        >>> low, high = clopper_pearson(8, 10)
        >>> round(low, 4), round(high, 4)
        (0.4439, 0.9748)
    """
    tail, misses = (1 - confidence) / 2, np.maximum(np.subtract(rows, hits, dtype=np.float64), 0.0)
    low = np.where(np.greater(hits, 0), betaincinv(np.maximum(hits, 1e-12), misses + 1, tail), 0.0)
    high = np.where(misses > 0, betaincinv(np.add(hits, 1.0), np.maximum(misses, 1e-12), 1 - tail), 1.0)
    return (low, high) if low.ndim else (float(low), float(high))


def share_of_weight(
    inside: Sums,
    outside: Sums,
    rows: tuple[float | Array, float | Array],
    confidence: float = 0.95,
    odds: float = 1.0,
) -> tuple[Array, Array]:
    r"""Compute the interval of a share of weight, of which ``inside`` was seen, approximately.

    A sum W of weights whose squares sum to S counts as :math:`W^2 / S` rows of weight S / W, which have its mean and
    its variance. The end that Clopper and Pearson find with one row more takes one more of usual weight: where none but
    light ones were found, they alone would say that there is hardly any variance. With equal weights it is theirs.

    Args:
        inside, outside: what the rows inside and outside weigh.
        rows: of what weight one more is, inside and outside.
        confidence: that the share lies within, half of the risk on each side.
        odds: what those of the share are multiplied by.

    Returns:
        the lower and the upper end.

    Reference:
        Fay and Feuer, "Confidence intervals for directly standardized rates", Statistics in Medicine 1997, who take
        the heaviest row that there is.

    Example:
        >>> low, high = share_of_weight(Sums.of(np.ones(8)), Sums.of(np.ones(2)), (1.0, 1.0))
        >>> low.round(4), high.round(4)
        (np.float64(0.4439), np.float64(0.9748))
    """
    tail = (1 - confidence) / 2

    def end(inside: Sums, outside: Sums, level: float) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            one, other = (part.weight**2 / part.squared for part in (inside, outside))
            share = betaincinv(one, other, level)
            times = odds * (inside.squared / inside.weight) / (outside.squared / outside.weight)
            return np.asarray(times * share / (times * share + (1 - share)))

    low = np.where(np.greater(inside.weight, 0), end(inside, outside.with_row(rows[1]), tail), 0.0)
    high = np.where(np.greater(outside.weight, 0), end(inside.with_row(rows[0]), outside, 1 - tail), 1.0)
    return low, high


def at_all_cuts(
    above: tuple[Sums, Sums],
    whole: tuple[Sums, Sums],
    heaviest: tuple[float, float] = (1.0, 1.0),
    confidence: float = 0.95,
    odds: float = 1.0,
    at: slice | int = slice(None),
) -> dict[str, Array]:
    r"""Compute what alarms achieve above some of the scores, with intervals that hold at all of them at once.

    Of P positives the recall at every cut lies within :math:`\sqrt{\ln(2 / \alpha) / 2P}` of what was seen (Dvoretzky,
    Kiefer and Wolfowitz, with Massart's constant). A false-positive rate near 0 is known far better than that: given
    one row's score, the numbers above it among the other rows are binomial, so the intervals of Clopper and Pearson
    with the risk :math:`\alpha / (n + 1)` hold at all n scores at once, for the precision too. Where each class has one
    weight all are exact, ties included.

    Unequal weights count as rows of one weight, and all is approximate. P is such that 1 / 4P is the largest variance
    that the recall has at any cut, and no more than :math:`W^2 / S` for a sum W of weights and one S of their squares,
    which n is made of. The two sides of a cut are taken as in :func:`share_of_weight`, where one row more is of the
    heaviest: at so small a risk a few heavy rows matter that were not seen there.

    Args:
        above: the positives and the negatives above each cut, ``[m]``.
        whole: all of them.
        heaviest: the weight of the heaviest of each.
        confidence: of each of the three.
        odds: what those of the precision are multiplied by.
        at: the cuts that are wanted; the others tell how well the recall is known.

    Returns:
        ``recall``, ``precision`` and ``fpr``, each ``[3, m]``: what was seen, and the lower and the upper end. Where
        nothing is above, the precision is NaN, within [0, 1].

    Reference:
        Massart, "The Tight Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality", Annals of Probability 1990.

    Example:
        >>> ten, none = (Sums(each, each) for each in (np.array([10.0]), np.zeros(1)))
        >>> found = at_all_cuts((ten, none), (Sums.of(np.ones(20)), Sums.of(np.ones(80))))
        >>> found["recall"][:, 0].round(3)
        array([0.5  , 0.196, 0.804])
    """
    (hits, false), (positives, negatives) = above, whole
    recall, missed = hits.weight / positives.weight, positives.without(hits)
    spread = float(((1 - recall) ** 2 * hits.squared + recall**2 * missed.squared).max())
    spread = max(spread, float(positives.squared) / 4)
    reach = np.sqrt(np.log(2 / (1 - confidence)) / (2 * (positives.weight**2 / (4 * spread))))
    rows = sum(float(of.weight**2 / of.squared) for of in whole)
    each = 1 - (1 - confidence) / (rows + 1)
    recall, hits, false = recall[at], hits.at(at), false.at(at)
    with np.errstate(invalid="ignore"):
        seen = odds * hits.weight / (odds * hits.weight + false.weight)
    precision = share_of_weight(hits, false, heaviest, each, odds)
    rest, row = negatives.without(false), (heaviest[1], heaviest[1])
    # The row that the score is of is not above it: one negative less tells something, or all do.
    left = np.maximum(rest.weight - negatives.row, 0.0)
    fewer = Sums(left, rest.squared * left / np.where(rest.weight > 0, rest.weight, 1.0))
    fpr = share_of_weight(false, rest, row, each)[0], share_of_weight(false, fewer, row, each)[1]
    return {
        "recall": np.stack([recall, np.maximum(recall - reach, 0.0), np.minimum(recall + reach, 1.0)]),
        "precision": np.stack([seen, *precision]),
        "fpr": np.stack([false.weight / negatives.weight, *fpr]),
    }
