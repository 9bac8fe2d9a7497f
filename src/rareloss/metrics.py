"""Exact metrics, the limits of the soft ones: on raw logits of any dtype, weighted, per class.

Each takes scores ``[M]`` or ``[M, C]`` and returns :class:`PerClass`, 0-d or ``[C]``, without gradient, in float64 or,
on a device that has none, in float32. A class without positives or without negatives is not defined and its value is
NaN; a present score that is NaN or infinite makes the value NaN. Weight 0 means absent.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rareloss import checks
from rareloss.ops import accumulator, average_precision_in_one_call, band_fraction, hard_count, top
from rareloss.pool import PerClass, Pool, make_pool, per_class, safe_ratio, select

__all__ = [
    "Cuts",
    "PerClass",
    "average_precision",
    "cost_saved",
    "cuts",
    "partial_auc",
    "precision_at_recall",
    "recall_at_fpr",
    "recall_at_precision",
    "recall_at_quantile",
]


@torch.no_grad()
def average_precision(scores: Tensor, positive: Tensor, weight: Tensor | None = None) -> PerClass:
    r"""Compute the average precision.

    .. math:: \mathrm{AP} = \frac{1}{P} \sum_g p_g \, \frac{\sum_{h \le g} p_h}{\sum_{h \le g} w_h}

    over groups g of equal scores, downwards, with the weight :math:`p_g` of positives and :math:`w_g` of all rows: a
    tied group counts whole, as in scikit-learn's ``average_precision_score``.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative; 1 by default.

    Returns:
        the value per class, in [0, 1].

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or a weight that is negative or not finite.

    Example:
        >>> average_precision(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True])).value
        tensor(0.8333, dtype=torch.float64)
    """
    return average_precision_of(make_pool(scores, positive, weight)).like(scores)


def average_precision_of(pool: Pool) -> PerClass:
    """Compute the average precision ``[C]`` of a pool; see :func:`average_precision`."""
    if len(pool.scores) > 1 and pool.scores.stride(0) == 0 and pool.eager:
        return per_class(pool, _average_precision_in_one_order(pool))
    in_one_call = average_precision_in_one_call(pool)
    if in_one_call is not None:
        return in_one_call
    indices, weight = pool.positives()
    level = select(pool.scores, indices)
    (rank_among_positives,) = hard_count(level, weight, level, with_ties=(True,))
    (rank_among_all,) = hard_count(pool.scores, pool.weight, level, with_ties=(True,))
    precision = safe_ratio(rank_among_positives, rank_among_all)
    total = weight.sum(1, dtype=precision.dtype)
    return per_class(pool, safe_ratio((weight * precision).sum(1), total))


def _average_precision_in_one_order(pool: Pool) -> Tensor:
    # One column of scores under many weights, such as a bootstrap's, is sorted once.
    ordered, order = pool.scores[:1].sort(dim=1, descending=True)
    ends = pad(ordered[0, :-1] > ordered[0, 1:], (0, 1), value=True).nonzero()[:, 0]
    hits, taken = (
        weight.index_select(1, order[0]).cumsum(1, dtype=torch.float64).index_select(1, ends)
        for weight in (pool.positive_weight, pool.weight)
    )
    gained = hits.diff(dim=1, prepend=torch.zeros_like(hits[:, :1]))
    return safe_ratio((gained * safe_ratio(hits, taken)).sum(1), hits[:, -1])


@torch.no_grad()
def recall_at_quantile(
    scores: Tensor,
    positive: Tensor,
    weight: Tensor | None = None,
    *,
    quantile: float = 0.005,
    among: str = "all",
    iid_mask: Tensor | None = None,
) -> PerClass:
    r"""Compute the recall among the top ``quantile`` of the scores.

    The threshold :math:`\theta` has the share q of the weight of all iid rows (``among="all"``), or of the iid
    negatives (``among="negatives"``: recall at a false-positive rate), above it. A tied group at the threshold is
    shared in proportion. Where q falls between two counted rows, :math:`\theta` lies halfway, which is where the soft
    threshold tends to as its temperature tends to 0.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative; 1 by default.
        quantile: q in (0, 1).
        among: ``"all"`` or ``"negatives"``.
        iid_mask: bool, same shape or ``[M]``: the rows that set the threshold; all by default.

    Returns:
        the value per class, in [0, 1]; at most q over the base rate for ``among="all"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a weight that is negative or not finite, ``quantile`` outside (0, 1), or an unknown
            ``among``.

    Example:
        >>> scores, positive = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, False])
        >>> recall_at_quantile(scores, positive, quantile=0.5).value
        tensor(0.5000, dtype=torch.float64)
    """
    checks.probability("quantile", quantile, open_low=True, open_high=True)
    checks.choice("among", among, ("all", "negatives"))
    return recall_at_quantile_of(make_pool(scores, positive, weight, iid_mask), quantile, among).like(scores)


def recall_at_quantile_of(pool: Pool, quantile: float, among: str) -> PerClass:
    """Compute the recall ``[C]`` of a pool in the top ``quantile``; see :func:`recall_at_quantile`."""
    sets_threshold = threshold_weight(pool, among)
    # Less by rounding, so that a fraction which ends with a group finds this one, not the next.
    at = top(pool.scores, sets_threshold, quantile * (1 - 1e-12))
    indices, weight = pool.positives()
    level = select(pool.scores, indices)
    above = at.part(level)
    # Then the threshold lies in the gap below, and rows in there (positives among negatives, rows that are not iid) are
    # above it or not.
    below = torch.where((sets_threshold > 0) & (pool.scores < at.score), pool.scores, -torch.inf)
    below = below.amax(1, keepdim=True)
    halfway = at.score.to(above.dtype) / 2 + below.to(above.dtype) / 2
    in_gap = (level < at.score) & (level > below) & (at.above + at.tied <= at.target * (1 + 4e-12))
    above = torch.where(in_gap, 0.5 * (level > halfway) + 0.5 * (level >= halfway), above)
    total = weight.sum(1, dtype=above.dtype)
    return per_class(pool, safe_ratio((weight * above).sum(1), total))


def recall_at_fpr(
    scores: Tensor,
    positive: Tensor,
    weight: Tensor | None = None,
    *,
    fpr: float = 0.005,
    iid_mask: Tensor | None = None,
) -> PerClass:
    """Compute the recall at a false-positive rate: :func:`recall_at_quantile` among negatives.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative; 1 by default.
        fpr: the share of the iid negatives' weight above the threshold, in (0, 1).
        iid_mask: bool, same shape or ``[M]``: the rows that set the threshold; all by default.

    Returns:
        the value per class, in [0, 1].

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a weight that is negative or not finite, or ``fpr`` outside (0, 1).

    Example:
        >>> scores, positive = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, False])
        >>> recall_at_fpr(scores, positive, fpr=0.25).value  # half of the first negative above: 1 of 2 found
        tensor(0.5000, dtype=torch.float64)
    """
    checks.probability("fpr", fpr, open_low=True, open_high=True)
    return recall_at_quantile(scores, positive, weight, quantile=fpr, among="negatives", iid_mask=iid_mask)


@torch.no_grad()
def partial_auc(
    scores: Tensor,
    positive: Tensor,
    weight: Tensor | None = None,
    *,
    alpha: float = 0.0,
    beta: float = 0.005,
    iid_mask: Tensor | None = None,
) -> PerClass:
    r"""Compute the mean true-positive rate over a band of false-positive rates.

    .. math:: \frac{1}{\beta - \alpha} \int_\alpha^\beta \mathrm{TPR}(f) \, df

    A tied group is a straight segment of the ROC. With ``alpha=0`` this is scikit-learn's
    ``roc_auc_score(max_fpr=beta)`` before McClish's correction, over ``beta``.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative; 1 by default.
        alpha: lower edge of the band, false-positive rate.
        beta: upper edge; ``0 <= alpha < beta <= 1``.
        iid_mask: bool, same shape or ``[M]``: the negatives that set the false-positive rate; others join the pairs
            where they score inside the band. All by default.

    Returns:
        the value per class, in [0, 1].

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a weight that is negative or not finite, or a band without width.

    Example:
        >>> scores, positive = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, False])
        >>> partial_auc(scores, positive, beta=1.0).value  # the whole AUC
        tensor(0.7500, dtype=torch.float64)
    """
    checks.between(alpha, beta)
    return partial_auc_of(make_pool(scores, positive, weight, iid_mask), alpha, beta).like(scores)


def partial_auc_of(pool: Pool, alpha: float, beta: float) -> PerClass:
    """Compute the partial AUC ``[C]`` of a pool; see :func:`partial_auc`."""
    negative = pool.negative_weight
    indices, weight = pool.positives()
    level = select(pool.scores, indices)
    before, until = hard_count(pool.scores, negative, level)
    total = negative.sum(1, keepdim=True, dtype=before.dtype)
    low, high = alpha * total, beta * total
    enter, leave = before.clamp(low, high), until.clamp(low, high)
    # No budget reaches a positive before its tied group, every one after it, and a growing fraction within.
    rising = (leave - enter) * safe_ratio((enter + leave) / 2 - before, until - before)
    area, width = rising + high - leave, high - low
    if pool.iid is not None:
        # Mined negatives inside the band join the pairs; half of those that tie with a positive are below it.
        mined = torch.where(pool.is_positive | pool.iid, 0.0, pool.weight)
        mined = mined * band_fraction(pool.scores, negative, alpha, beta).to(mined.dtype)
        above, or_tied = hard_count(pool.scores, mined, level)
        in_band = mined.sum(1, keepdim=True, dtype=before.dtype)
        area, width = area + in_band - (above + or_tied) / 2, width + in_band
    total_positive = weight.sum(1, dtype=before.dtype)
    return per_class(pool, safe_ratio((weight * area).sum(1), total_positive * width[:, 0]))


class Cuts(NamedTuple):
    """What lies above each cut between two groups of equal scores, downwards.

    Attributes:
        below: ``[C, M]``, the highest score below the cut; -inf where there is none.
        ends: bool ``[C, M]``, whether this row is the last of its group: only there is a cut.
        hits: ``[C, M]``, the weight of positives above; float64, or float32 on a device that has no other.
        taken: likewise, the weight of all rows above.
    """

    below: Tensor
    ends: Tensor
    hits: Tensor
    taken: Tensor

    @property
    def precision(self) -> Tensor:
        """The share of positives above, ``[C, M]``."""
        return safe_ratio(self.hits, self.taken)

    @property
    def recall(self) -> Tensor:
        """The share of the positives that lie above, ``[C, M]``."""
        return safe_ratio(self.hits, self.hits[:, -1:])

    def saved(self, fn: float, fp: float) -> Tensor:
        """The cost saved over alarming nobody or everybody, whichever is cheaper, as a share of that cost."""
        positive, negative = self.hits[:, -1:], self.taken[:, -1:] - self.hits[:, -1:]
        blind = torch.minimum(fn * positive, fp * negative)
        return safe_ratio(blind - fn * (positive - self.hits) - fp * (self.taken - self.hits), blind)


def cuts(pool: Pool) -> Cuts:
    """Find the cuts of each class: all that a threshold can do to these rows."""
    present = torch.where(pool.weight > 0, pool.scores, -torch.inf)
    ordered, order = present.sort(dim=1, descending=True)
    below = pad(ordered[:, 1:], (0, 1), value=-torch.inf)
    hits, taken = (
        weight.gather(1, order).cumsum(1, dtype=accumulator(weight)) for weight in (pool.positive_weight, pool.weight)
    )
    return Cuts(below, ordered > below, hits, taken)


@torch.no_grad()
def recall_at_precision(
    scores: Tensor, positive: Tensor, weight: Tensor | None = None, *, precision: float = 0.5
) -> PerClass:
    """Compute the most recall among the cuts of at least this precision; 0 where there is none.

    It is the largest recall of scikit-learn's ``precision_recall_curve`` where the precision is reached.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative; 1 by default.
        precision: in (0, 1].

    Returns:
        the value per class, in [0, 1].

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a weight that is negative or not finite, or ``precision`` out of range.

    Example:
        >>> scores, positive = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, False])
        >>> recall_at_precision(scores, positive, precision=0.6).value  # 2 of the upper 3 are positive
        tensor(1., dtype=torch.float64)
    """
    checks.probability("precision", precision, open_low=True)
    pool = make_pool(scores, positive, weight)
    found = cuts(pool)
    return _best(pool, found, found.recall * (found.precision >= precision * (1 - 1e-12))).like(scores)


@torch.no_grad()
def precision_at_recall(
    scores: Tensor, positive: Tensor, weight: Tensor | None = None, *, recall: float = 0.8
) -> PerClass:
    """Compute the most precision among the cuts of at least this recall.

    It is the largest precision of scikit-learn's ``precision_recall_curve`` where the recall is reached.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative; 1 by default.
        recall: in (0, 1].

    Returns:
        the value per class, in [0, 1].

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a weight that is negative or not finite, or ``recall`` out of range.
    """
    checks.probability("recall", recall, open_low=True)
    pool = make_pool(scores, positive, weight)
    found = cuts(pool)
    return _best(pool, found, found.precision * (found.recall >= recall * (1 - 1e-12))).like(scores)


@torch.no_grad()
def cost_saved(
    scores: Tensor, positive: Tensor, weight: Tensor | None = None, *, fn: float = 1.0, fp: float = 1.0
) -> PerClass:
    r"""Compute the share of the avoidable cost that the best cut on these rows saves.

    .. math:: 1 - \frac{\min_\theta \; c_{FN} \, FN(\theta) + c_{FP} \, FP(\theta)}{\min(c_{FN} P, \; c_{FP} N)}

    The divisor is the cost without a model: alarm nobody or everybody, whichever is cheaper. So 0 is no use, 1 is no
    mistake, and models are comparable on any rows.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative; 1 by default.
        fn: what a missed positive costs.
        fp: what a false alarm costs.

    Returns:
        the value per class, in [0, 1].

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a weight that is negative or not finite, or a cost that is not above 0.
    """
    checks.positive_number("fn", fn)
    checks.positive_number("fp", fp)
    pool = make_pool(scores, positive, weight)
    found = cuts(pool)
    return _best(pool, found, found.saved(fn, fp).clamp(min=0.0)).like(scores)


def _best(pool: Pool, found: Cuts, value: Tensor) -> PerClass:
    # The highest value among the places that a threshold can cut at.
    return per_class(pool, torch.where(found.ends, value, 0.0).amax(1))


def threshold_weight(pool: Pool, among: str) -> Tensor:
    """Choose the weights ``[C, M]`` that set a recall threshold: the iid rows, or the iid negatives."""
    return pool.threshold_weight if among == "all" else pool.negative_weight
