"""Recall at a review capacity or at a false-positive rate, with a threshold that moves with the scores.

Reference: the threshold as an implicit function of the scores follows Eban et al., "Scalable Learning of
Non-Decomposable Objectives", AISTATS 2017, section 4 (recall at a fixed rate), with the constraint solved for exactly.
"""

import torch
from torch import Tensor

from rareloss import checks, metrics
from rareloss.distributed import ProcessGroup
from rareloss.losses.ranking import RankingLoss, Support
from rareloss.ops import SoftMetric, evaluate, margin_over_threshold
from rareloss.pool import PerClass, Pool, make_pool, safe_ratio

__all__ = ["RecallAtQuantileLoss", "soft_recall_at_quantile"]


def soft_recall_at_quantile(
    scores: Tensor,
    positive: Tensor,
    weight: Tensor | None = None,
    *,
    quantile: float = 0.005,
    among: str = "all",
    temperature: float = 0.01,
    iid_mask: Tensor | None = None,
) -> PerClass:
    r"""Compute the recall in the top ``quantile`` with a soft threshold.

    .. math:: \frac{1}{P} \sum_{i \in \text{positives}} w_i \, \sigma\big((s_i - \theta) / t\big),
              \qquad C(\theta) = \sum_j w_j \, \sigma\big((s_j - \theta) / t\big) = q \sum_j w_j

    The sums over j run over the iid rows (``among="all"``) or the iid negatives (``among="negatives"``). The threshold
    carries its gradient, so a shift of all scores changes nothing.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative, taken as constant; 1 by default.
        quantile: q in (0, 1): the review capacity as a share of all rows, or the false-positive rate.
        among: ``"all"`` or ``"negatives"``.
        temperature: in units of the scores, above 0.
        iid_mask: bool, same shape or ``[M]``: the rows that set the threshold; all by default.

    Returns:
        the value per class, in [0, 1]; NaN with gradient 0 for a class without positives or without iid negatives.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a weight that is negative or not finite, or an argument out of range.

    Example:
        >>> scores, positive = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, False])
        >>> soft_recall_at_quantile(scores, positive, quantile=0.5).value
        tensor(0.5000)
    """
    checks.probability("quantile", quantile, open_low=True, open_high=True)
    checks.choice("among", among, ("all", "negatives"))
    checks.positive_number("temperature", temperature)
    pool = make_pool(scores, positive, weight, iid_mask)
    return evaluate(_metric(quantile, among), pool, temperature, like=scores)


def _recall(pool: Pool, temperature: float, quantile: float, among_negatives: float) -> Tensor:
    indices, weight = pool.positives()
    sets_threshold = pool.negative_weight if among_negatives else pool.threshold_weight
    margin, _ = margin_over_threshold(pool.scores, sets_threshold, quantile, temperature, indices)
    return safe_ratio((weight * torch.sigmoid(margin).to(weight.dtype)).sum(1), weight.sum(1))


def _metric(quantile: float, among: str) -> SoftMetric:
    return SoftMetric("recall", (quantile, float(among == "negatives")), _recall)


class RecallAtQuantileLoss(RankingLoss):
    r"""One minus the soft recall in the top ``quantile`` of the pool.

    See :func:`rareloss.functional.soft_recall_at_quantile` for the equation and
    :class:`~rareloss.losses.ranking.RankingLoss` for the queue and the shapes. A capacity
    below the base rate caps the recall at ``quantile`` over the rate.

    Args:
        num_classes: 1 for binary, else the number of classes or labels.
        quantile: q in (0, 1). The pool should hold at least 10 / q rows.
        among: ``"all"`` (review capacity) or ``"negatives"`` (false-positive rate).
        queue_size: rows remembered from earlier training calls, 0 for none.
        temperature: in the unit of ``temperature_unit``, above 0.
        temperature_unit: ``"std"``, standard deviations of the pool's iid scores, or ``"logit"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: the target that means absent.
        queue_in_eval: read the queue in other calls than training calls too.
        gather_distributed: whether to rank the rows of all ranks; None: in training calls.
        process_group: the ranks that take part.
        check_values: whether to look into targets and weights off the CPU too.
        persistent_queue: whether the remembered rows are part of ``state_dict``.

    Example:
        >>> loss = RecallAtQuantileLoss(num_classes=1, quantile=0.25, queue_size=0, temperature=0.01)
        >>> round(loss(torch.arange(80.0), torch.arange(80) >= 70).item(), 4)
        0.0
    """

    has_threshold = True
    metric_arguments = ("quantile", "among")

    @checks.known_keywords
    def __init__(
        self,
        num_classes: int,
        quantile: float = 0.005,
        among: str = "all",
        queue_size: int = 16384,
        temperature: float = 0.05,
        temperature_unit: str = "std",
        reduction: str = "mean",
        ignore_index: float = -100,
        queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        process_group: ProcessGroup | None = None,
        check_values: bool | None = None,
        persistent_queue: bool = True,
    ) -> None:
        super().__init__(
            *(num_classes, queue_size, temperature, temperature_unit, reduction, ignore_index, queue_in_eval),
            *(gather_distributed, process_group, check_values, persistent_queue),
        )
        self.quantile = checks.probability("quantile", quantile, open_low=True, open_high=True)
        self.among = checks.choice("among", among, ("all", "negatives"))

    @property
    def metric(self) -> SoftMetric:
        """The soft recall."""
        return _metric(self.quantile, self.among)

    def hard(self, pool: Pool) -> PerClass:
        """Compute the recall of a pool."""
        return metrics.recall_at_quantile_of(pool, self.quantile, self.among)

    def threshold(self, pool: Pool, temperature: float) -> Tensor:
        """Compute the soft threshold ``[C]`` of a pool, in units of its scores."""
        sets_threshold = metrics.threshold_weight(pool, self.among)
        return margin_over_threshold(pool.scores, sets_threshold, self.quantile, temperature)[1]

    def cap(self, pool: Pool) -> Tensor:
        """Compute the best reachable recall ``[C]``: the capacity over the weight of positives, at most 1."""
        if self.among == "negatives":
            return torch.ones_like(pool.scores[:, 0])
        capacity = self.quantile * pool.threshold_weight.sum(1)
        return safe_ratio(capacity, pool.positive_weight.sum(1)).clamp(max=1.0)

    def support(self, rows: Tensor, negatives: Tensor) -> Support:
        """Compute how many rows of the pool lie above the threshold."""
        counted, of = (rows, "rows") if self.among == "all" else (negatives, "negatives")
        return Support(counted * self.quantile, 10.0, f"quantile={self.quantile} of the pool's {of}")
