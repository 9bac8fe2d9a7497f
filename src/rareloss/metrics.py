"""The hard twins of the soft metrics: exact, on raw logits of any dtype, weighted, per class.

Each takes scores ``[M]`` or ``[M, C]`` and returns :class:`PerClass`, 0-d or ``[C]``, in float64 and without gradient.
A class without positives or without negatives is not defined and its value is NaN; a present score that is NaN or
infinite makes the value NaN. Weight 0 means absent.
"""

import torch
from torch import Tensor

from rareloss import checks
from rareloss.ranking.pool import PerClass, Pool, make_pool, per_class, safe_ratio, tie_groups
from rareloss.ranking.threshold import snapped_target

__all__ = ["PerClass", "average_precision", "partial_auc", "recall_at_fpr", "recall_at_quantile"]


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
    pool = make_pool(scores, positive, weight)
    hits, rows = tie_groups(pool.scores, pool.positive, pool.weight).sums
    precision = safe_ratio(hits.cumsum(1), rows.cumsum(1))
    return per_class(pool, safe_ratio((hits * precision).sum(1), hits.sum(1)), pool.negative, scores)


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
    pool = make_pool(scores, positive, weight, iid_mask)
    counted = threshold_weight(pool, among)
    groups = tie_groups(pool.scores, pool.positive, counted)
    hits, inside = groups.sums
    until = inside.cumsum(1)
    target = snapped_target(until, quantile)
    before = until - inside
    share = safe_ratio(target - before, inside).clamp(0.0, 1.0)
    # Rows that set no threshold (positives among negatives, rows that are not iid) are above it or not.
    level = groups.score.double()
    last_above = torch.where((inside > 0) & (until <= target), level, torch.inf).amin(1, keepdim=True)
    first_below = torch.where((inside > 0) & (until > target), level, -torch.inf).amax(1, keepdim=True)
    halfway = last_above / 2 + first_below / 2
    in_gap = 0.5 * (level > halfway) + 0.5 * (level >= halfway)
    free = torch.where(before < target, 1.0, torch.where(before > target, 0.0, in_gap))
    recall = safe_ratio((hits * torch.where(inside > 0, share, free)).sum(1), hits.sum(1))
    return per_class(pool, recall, pool.iid_negative, scores)


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
        iid_mask: bool, same shape or ``[M]``: only iid negatives count; all by default.

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
    pool = make_pool(scores, positive, weight, iid_mask)
    hits, alarms = tie_groups(pool.scores, pool.positive, pool.iid_negative).sums
    total = alarms.sum(1, keepdim=True)
    until = alarms.cumsum(1)
    before = until - alarms
    enter, leave = before.clamp(alpha * total, beta * total), until.clamp(alpha * total, beta * total)
    # The segment rises by the group's hits; over its covered part the mean height is that of the part's middle.
    middle = safe_ratio((enter + leave) / 2 - before, alarms)
    height = hits.cumsum(1) - hits + hits * middle
    area = ((leave - enter) * height).sum(1)
    return per_class(pool, safe_ratio(area, hits.sum(1) * total[:, 0] * (beta - alpha)), pool.iid_negative, scores)


def threshold_weight(pool: Pool, among: str) -> Tensor:
    """Choose the weights ``[C, M]`` that set a recall threshold: the iid rows, or the iid negatives."""
    return pool.weight * pool.iid if among == "all" else pool.iid_negative
