r"""Soft ranks (Smooth-AP): how much weight stands above each positive, among the positives and among the negatives.

.. math:: Q_i = w_i + \sum_{j \text{ positive}, j \ne i} w_j \, \sigma\big((s_j - s_i) / t\big), \qquad
          N_i = \sum_{j \text{ negative}} w_j \, \sigma\big((s_j - s_i) / t\big)

The precision at i is :math:`Q_i / (Q_i + N_i)`.
"""

import torch
from torch import Tensor

from rareloss.ops.counts import count_above

__all__ = ["soft_ranks"]


def soft_ranks(
    scores: Tensor, weight: Tensor, indices: Tensor | None, own_weight: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Rank the rows ``indices[b, a]`` wherever ``own_weight[b, a] > 0``; elsewhere 1 and anything, without gradient.

    Args:
        scores: ``[B, M]``, float32 or float64.
        weight: ``[B, M]``, same dtype, taken as constant.
        indices: of the positives, ``[B, A]``, int64, no row twice; None for all rows in their order.
        own_weight: the weights of those rows, ``[B, A]``, 0 for an entry that stands for none.
        temperature: in units of the scores.

    Returns:
        the ranks among the positives and among the negatives, ``[B, A]`` each, with gradient to the scores.
    """
    if indices is None:
        at, negative_weight = scores, weight - own_weight
    else:
        at, negative_weight = scores.gather(1, indices), weight.scatter_add(1, indices, -own_weight)
    among_positives = count_above(at, own_weight[:, None], temperature=temperature)[:, 0] + own_weight / 2
    among_negatives = count_above(scores, negative_weight[:, None], at, temperature=temperature)[:, 0]
    present = own_weight > 0
    return torch.where(present, among_positives, 1.0), torch.where(present, among_negatives, 0.0)
