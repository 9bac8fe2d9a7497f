"""Smooth average precision: the metric itself, with a sigmoid for each step.

Reference: Brown, Xie, Kalogeiton and Zisserman, "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval",
ECCV 2020, equations 4 to 8.
"""

from torch import Tensor

from rareloss import checks, metrics
from rareloss.losses.ranking import RankingLoss
from rareloss.ops import SoftMetric, evaluate, soft_ranks
from rareloss.pool import PerClass, Pool, make_pool, safe_ratio

__all__ = ["SmoothAPLoss", "smooth_average_precision"]


def smooth_average_precision(
    scores: Tensor, positive: Tensor, weight: Tensor | None = None, *, temperature: float = 0.01
) -> PerClass:
    r"""Compute average precision with soft ranks.

    .. math:: \frac{1}{P} \sum_{i \in \text{positives}} w_i
              \frac{w_i / 2 + C_{\text{positives}}(s_i)}{w_i / 2 + C_{\text{all}}(s_i)},
              \qquad C(a) = \sum_j w_j \, \sigma\big((s_j - a) / t\big)

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
        >>> import torch
        >>> scores, positive = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True])
        >>> smooth_average_precision(scores, positive, temperature=0.001).value  # (1 / 1 + 2 / 3) / 2
        tensor(0.8333)
    """
    checks.positive_number("temperature", temperature)
    return evaluate(_METRIC, make_pool(scores, positive, weight), temperature, like=scores)


def _average_precision(pool: Pool, temperature: float) -> Tensor:
    indices, weight = pool.positives()
    among_positives, among_negatives = soft_ranks(pool.scores, pool.weight, indices, weight, temperature)
    # Q / (Q + N), written so that the gradient keeps its digits where the precision is nearly 1.
    precision = 1 / (1 + among_negatives / among_positives)
    return safe_ratio((weight * precision).sum(1), weight.sum(1))


_METRIC = SoftMetric("average_precision", (), _average_precision)


class SmoothAPLoss(RankingLoss):
    r"""One minus the smooth average precision of the pool: :math:`1 - \mathrm{AP}_t`.

    See :func:`rareloss.functional.smooth_average_precision` for the equation and
    :class:`~rareloss.losses.ranking.RankingLoss` for the queue and the shapes.

    Args:
        num_classes: 1 for binary, else the number of classes or labels.
        queue_size: rows remembered from earlier training calls, 0 for none.
        temperature: in the unit of ``temperature_unit``, above 0.
        temperature_unit: ``"std"``, standard deviations of the pool's scores, or ``"logit"``.
        reduction: ``"mean"`` or ``"sum"`` over the defined classes, or ``"none"``.
        ignore_index: the target that means absent; NaN is one for float targets.
        queue_in_eval: read the queue in other calls than training calls too.
        gather_distributed: whether to rank the rows of all ranks; None: in training calls.
        process_group: the ranks that take part; the default group if None.
        check_values: whether to look into targets and weights off the CPU too.
        persistent_queue: whether the remembered rows are part of ``state_dict``.

    Example:
        >>> import torch
        >>> loss = SmoothAPLoss(num_classes=1, queue_size=0)
        >>> logits = torch.tensor([3.0, -1.0, -2.0, -1.5], requires_grad=True)
        >>> bool(loss(logits, torch.tensor([1, 0, 0, 0])) < 0.01)
        True
    """

    metric = _METRIC

    def hard(self, pool: Pool) -> PerClass:
        """Compute the average precision of a pool."""
        return metrics.average_precision_of(pool)
