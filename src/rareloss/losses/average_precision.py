"""Smooth average precision: the metric itself, with a sigmoid for each step.

Reference: Brown, Xie, Kalogeiton and Zisserman, "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval",
ECCV 2020, equations 4 to 8.
"""

import torch
from torch import Tensor

from rareloss import checks, metrics
from rareloss.losses.ranking import RankingLoss
from rareloss.ops import soft_ranks
from rareloss.pool import PerClass, Pool, make_pool, per_class, safe_ratio

__all__ = ["SmoothAPLoss", "smooth_average_precision"]


def smooth_average_precision(
    scores: Tensor, positive: Tensor, weight: Tensor | None = None, *, temperature: float = 0.01
) -> PerClass:
    r"""Compute average precision with soft ranks.

    .. math:: \frac{1}{P} \sum_{i \in \text{positives}} w_i \frac{Q_i}{Q_i + N_i}, \qquad
              Q_i = \frac{w_i}{2} + C_{\text{positives}}(s_i), \quad N_i = C_{\text{negatives}}(s_i), \quad
              C(a) = \sum_j w_j \, \sigma\big((s_j - a) / t\big)

    The soft count has half a row at its own place; the other half is added, so that a row counts itself whole.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative, taken as constant; 1 by default.
        temperature: in units of the scores, above 0.

    Returns:
        the value per class, in [0, 1]; NaN with gradient 0 for a class without positives or without negatives.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a weight that is negative or not finite, or a temperature not above 0.

    Reference:
        Brown et al., ECCV 2020, equation 8.

    Example:
        >>> scores, positive = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True])
        >>> smooth_average_precision(scores, positive, temperature=0.001).value  # (1 / 1 + 2 / 3) / 2
        tensor(0.8333)
    """
    checks.positive_number("temperature", temperature)
    return _average_precision(make_pool(scores, positive, weight), temperature).like(scores)


def _average_precision(pool: Pool, temperature: float) -> PerClass:
    places, own = pool.positive()
    among_positives, among_negatives = soft_ranks(pool.scores, pool.weight, places, own, temperature)
    whole = torch.sum(own, 1)
    # Not as a share of all: near 1 its gradient would be a difference of two nearly equal numbers.
    precision = 1 / (1 + among_negatives / among_positives)
    return per_class(pool, (safe_ratio(own, whole[:, None]) * precision).sum(1), whole)


class SmoothAPLoss(RankingLoss):
    r"""One minus the smooth average precision of the pool: :math:`1 - \mathrm{AP}_t`.

    See :func:`rareloss.functional.smooth_average_precision` for the equation and
    :class:`~rareloss.losses.ranking.RankingLoss` for the arguments, the queue and the shapes.

    Example:
        >>> loss = SmoothAPLoss(num_classes=1, queue_size=0)
        >>> logits = torch.tensor([3.0, -1.0, -2.0, -1.5], requires_grad=True)
        >>> bool(loss(logits, torch.tensor([1, 0, 0, 0])) < 0.01)
        True
    """

    def soft(self, pool: Pool, temperature: float) -> PerClass:
        """Compute the smooth average precision of a pool."""
        return _average_precision(pool, temperature)

    def hard(self, pool: Pool) -> PerClass:
        """Compute the average precision of a pool."""
        return metrics.average_precision(*pool.by_row())

    def forward(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss; shapes as in :class:`~rareloss.losses.ranking.RankingLoss`."""
        return self.pooled(logits, targets, sample_weight)

    def diagnose(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> dict[str, Tensor]:
        """Describe the pool this call would rank; see :meth:`RankingLoss.describe`."""
        return self.describe(logits, targets, sample_weight)
