"""Partial AUC over a band of false-positive rates around a budget.

Reference: Narasimhan and Agarwal, "SVM_pAUC^tight: A New Support Vector Method for Optimizing Partial AUC", KDD 2013,
equation 2, with a sigmoid for each comparison.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from rareloss import checks, metrics
from rareloss.distributed import ProcessGroup
from rareloss.losses.ranking import RankingLoss, Support
from rareloss.ops import SoftMetric, band_fraction, count_above, evaluate
from rareloss.pool import PerClass, Pool, gather_indices, make_pool, safe_ratio, select

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

    .. math:: \frac{1}{P \sum_j b_j} \sum_{i \in \text{positives}} w_i \sum_{j \in \text{negatives}} b_j \,
              \sigma\big((s_i - s_j) / t\big)

    The iid negatives, of weight N, are sorted downwards; :math:`b_j` is what of row j's weight lies between
    :math:`\alpha N` and :math:`\beta N`, tied rows sharing alike, so they add up to :math:`(\beta - \alpha) N`. Rows
    that swap at an edge have equal scores, so the value is continuous and no term for the moving edge is missing. A
    negative that is not iid (a mined one) sets no edge, but joins the pairs where it scores inside the band, by as much
    of its weight as an iid row of that score.

    Args:
        scores: ``[M]`` or ``[M, C]``, raw logits.
        positive: bool, same shape.
        weight: same shape or ``[M]``, not negative, taken as constant; 1 by default.
        alpha: lower edge of the band, false-positive rate.
        beta: upper edge; ``0 <= alpha < beta <= 1``.
        temperature: in units of the scores, above 0.
        iid_mask: bool, same shape or ``[M]``: the rows that set the edges of the band; all by default.

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
    pool = make_pool(scores, positive, weight, iid_mask)
    return evaluate(_metric(alpha, beta), pool, temperature, like=scores)


def _partial_auc(pool: Pool, temperature: float, alpha: float, beta: float) -> Tensor:
    negatives, band = band_rows(pool, alpha, beta)
    indices, weight = pool.positives()
    of_positives = safe_ratio(weight, weight.sum(1, keepdim=True))
    of_band = safe_ratio(band, band.sum(1, keepdim=True))
    positives = select(pool.scores, indices)
    above = count_above(positives, of_positives[:, None], negatives, temperature=temperature)[:, 0]
    return (of_band * above).sum(1)


def band_rows(pool: Pool, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Find the negatives in the band: their scores, and what of each weight lies in it, both ``[C, n]``."""
    fraction = band_fraction(pool.scores, pool.negative_weight, alpha, beta)
    weight = torch.where(pool.is_positive, 0.0, pool.weight) * fraction.to(pool.weight.dtype)
    indices, inside = gather_indices(weight, weight > 0, pool.eager)
    return select(pool.scores, indices), inside


def _metric(alpha: float, beta: float) -> SoftMetric:
    return SoftMetric("partial_auc", (alpha, beta), _partial_auc)


class PAUCAtBudgetLoss(RankingLoss):
    r"""One minus the soft partial AUC of the pool over the band ``[alpha, beta]`` of false-positive rates.

    See :func:`rareloss.functional.soft_partial_auc` for the equation and
    :class:`~rareloss.losses.ranking.RankingLoss` for the queue and the shapes.

    Args:
        num_classes: 1 for binary, else the number of classes or labels.
        alpha: lower edge of the band, false-positive rate.
        beta: upper edge, the budget; the pool's negatives times the smallest edge above 0 should be 10 at least.
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
        >>> loss = PAUCAtBudgetLoss(num_classes=1, beta=0.5, queue_size=0, temperature=0.01)
        >>> round(loss(torch.arange(80.0), torch.arange(80) >= 40).item(), 4)
        0.0
    """

    has_threshold = True
    metric_arguments = ("alpha", "beta")

    @checks.known_keywords
    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.0,
        beta: float = 0.005,
        queue_size: int = 16384,
        temperature: float = 0.3,
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
        self.alpha, self.beta = checks.between(alpha, beta)

    @property
    def metric(self) -> SoftMetric:
        """The soft partial AUC."""
        return _metric(self.alpha, self.beta)

    def hard(self, pool: Pool) -> PerClass:
        """Compute the partial AUC of a pool."""
        return metrics.partial_auc_of(pool, self.alpha, self.beta)

    def threshold(self, pool: Pool, temperature: float) -> Tensor:
        """Compute the lowest score ``[C]`` of the band, in units of the pool's scores."""
        negatives, band = band_rows(pool, self.alpha, self.beta)
        return pad(torch.where(band > 0, negatives, torch.inf), (0, 1), value=torch.inf).amin(1)

    def support(self, rows: Tensor, negatives: Tensor) -> Support:
        """Compute how many negatives of the pool lie above the smallest edge of the band."""
        edge, value = ("alpha", self.alpha) if self.alpha > 0 else ("beta", self.beta)
        return Support(negatives * value, 10.0, f"{edge}={value} of the pool's negatives")
