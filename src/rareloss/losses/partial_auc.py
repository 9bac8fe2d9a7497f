"""Partial AUC over a band of false-positive rates around a budget.

Reference: Narasimhan and Agarwal, "SVM_pAUC^tight: A New Support Vector Method for Optimizing Partial AUC", KDD 2013,
equation 2, with a sigmoid for each comparison.
"""

from typing import Unpack

import torch
from torch import Tensor
from torch.nn.functional import pad

from rareloss import checks, metrics
from rareloss.losses.ranking import PoolOptions, RankingLoss, Support
from rareloss.ops import count_above, top
from rareloss.pool import PerClass, Pool, chosen, make_pool, per_class, picked, safe_ratio

__all__ = ["PAUCAtBudgetLoss", "soft_partial_auc"]


def soft_partial_auc(
    scores: Tensor,
    positive: Tensor,
    weight: Tensor | None = None,
    *,
    alpha: float = 0.0,
    beta: float = 0.005,
    temperature: float = 0.01,
    iid_mask: Tensor | None = None,
) -> PerClass:
    r"""Compute the partial AUC over ``[alpha, beta]`` with soft comparisons.

    .. math:: \frac{1}{P \, (\beta - \alpha) N} \sum_{i \in \text{positives}} w_i \sum_{j \in \text{iid negatives}} b_j
    \,
              \sigma\big((s_i - s_j) / t\big)

    The negatives are sorted downwards; :math:`b_j` is the part of row j's weight that lies between :math:`\alpha N` and
    :math:`\beta N`, tied rows sharing alike. Rows that swap at an edge have equal scores, so the value is continuous
    and no term for the moving edge is missing.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative, taken as constant; 1 by default.
        alpha: lower edge of the band, false-positive rate.
        beta: upper edge; ``0 <= alpha < beta <= 1``.
        temperature: in units of the scores, above 0.
        iid_mask: bool, same shape or ``[M]``: only iid negatives count; all by default.

    Returns:
        the value per class, in [0, 1]; NaN with gradient 0 for a class without positives or without iid negatives.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a weight that is negative or not finite, or an argument out of range.

    Reference:
        Narasimhan and Agarwal, KDD 2013, equation 2.

    Example:
        >>> scores, positive = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, False])
        >>> soft_partial_auc(scores, positive, beta=1.0).value
        tensor(0.7500)
    """
    checks.between(alpha, beta)
    checks.positive_number("temperature", temperature)
    return _partial_auc(make_pool(scores, positive, weight, iid_mask), alpha, beta, temperature).like(scores)


def _partial_auc(pool: Pool, alpha: float, beta: float, temperature: float) -> PerClass:
    negatives, band = band_rows(pool, alpha, beta)
    places, hits = pool.positive()
    positives, whole = picked(pool.scores, places), hits.sum(1)
    share, part = safe_ratio(hits, whole[:, None]), safe_ratio(band, band.sum(1, keepdim=True))
    above = count_above(positives, share[:, None], negatives, temperature=temperature)[:, 0]
    return per_class(pool, (part * above).sum(1), whole)


def band_rows(pool: Pool, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Choose rows that hold the band: their scores, and the part of each weight that lies in it, both ``[C, n]``."""
    low = top(pool.scores, pool.negative, beta)
    part = low.part(low.scores)
    if alpha > 0:
        part = part - top(pool.scores, pool.negative, alpha).part(low.scores)
    band = low.weight * part.to(low.weight.dtype)
    places, inside = chosen(band, band > 0)
    return picked(low.scores, places), inside


class PAUCAtBudgetLoss(RankingLoss):
    r"""One minus the soft partial AUC of the pool over the band ``[alpha, beta]`` of false-positive rates.

    See :func:`rareloss.functional.soft_partial_auc` for the equation and
    :class:`~rareloss.losses.ranking.RankingLoss` for the other arguments, the queue and the shapes.

    Args:
        num_classes: 1 for binary, else the number of classes or labels.
        alpha: lower edge of the band, false-positive rate.
        beta: upper edge, the budget; the pool's negatives times the smallest edge above 0 should be 10 at least.
        temperature: in the unit of ``temperature_unit``, above 0.
        options: as in :class:`~rareloss.losses.ranking.RankingLoss`.

    Example:
        >>> loss = PAUCAtBudgetLoss(num_classes=1, beta=0.5, queue_size=0, temperature=0.01)
        >>> round(loss(torch.arange(80.0), torch.arange(80) >= 40).item(), 4)
        0.0
    """

    threshold_from_iid_rows = True

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.0,
        beta: float = 0.005,
        *,
        temperature: float = 0.3,
        **options: Unpack[PoolOptions],
    ) -> None:
        super().__init__(num_classes, temperature=temperature, **options)
        self.alpha, self.beta = checks.between(alpha, beta)

    def soft(self, pool: Pool, temperature: float) -> PerClass:
        """Compute the soft partial AUC of a pool."""
        return _partial_auc(pool, self.alpha, self.beta, temperature)

    def hard(self, pool: Pool) -> PerClass:
        """Compute the partial AUC of a pool."""
        return metrics.partial_auc(
            *pool.by_row(), alpha=self.alpha, beta=self.beta, iid_mask=None if pool.iid is None else pool.iid.mT
        )

    def threshold(self, pool: Pool, temperature: float) -> Tensor:
        """Compute the lowest score ``[C]`` of the band, in units of the pool's scores."""
        negatives, band = band_rows(pool, self.alpha, self.beta)
        return pad(torch.where(band > 0, negatives, torch.inf), (0, 1), value=torch.inf).amin(1)

    def support(self, rows: Tensor, negatives: Tensor) -> Support:
        """Compute how many negatives of the pool lie above the smallest edge of the band."""
        edge, value = ("alpha", self.alpha) if self.alpha > 0 else ("beta", self.beta)
        return Support(negatives * value, 10.0, f"{edge}={value} of the pool's negatives")

    def forward(
        self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None, iid_mask: Tensor | None = None
    ) -> Tensor:
        """Compute the loss; shapes as in :class:`~rareloss.losses.ranking.RankingLoss`."""
        return self.pooled(logits, targets, sample_weight, iid_mask)

    def diagnose(
        self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None, iid_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Describe the pool this call would rank; see :meth:`RankingLoss.describe`."""
        return self.describe(logits, targets, sample_weight, iid_mask)
