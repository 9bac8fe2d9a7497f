r"""Pairwise sigmoids in blocks: the soft count by its definition; time ``rows x points``, memory one block."""

from typing import NamedTuple

import torch
from torch import Tensor

from rareloss.ops.functions import chunks

__all__ = ["CountRequest", "Counts", "count_by_pairs"]

# Pairs worked on at once: a block of float32 (512 KiB) and what is derived from it stay in a core's cache.
_BLOCK = 2**17


class CountRequest(NamedTuple):
    """What is to be counted above which points.

    Attributes:
        scores: ``[B, M]``, float32 or float64.
        weights: ``[B, K, M]``, same dtype.
        at: the points, ``[B, A]``, same dtype. None for the scores themselves; then no slope has a row's pair with
            itself, which as a function of the scores is constant.
        temperature: in units of the scores.
        values: whether counts are wanted.
        slopes: whether slopes are wanted.
    """

    scores: Tensor
    weights: Tensor
    at: Tensor | None
    temperature: float
    values: bool = True
    slopes: bool = True

    @property
    def points(self) -> Tensor:
        """The points, ``[B, A]``."""
        return self.scores if self.at is None else self.at


class Counts(NamedTuple):
    r"""Counts and slopes, ``[B, K, A]`` each, ``[B, 0, A]`` where not wanted.

    Attributes:
        values: :math:`\sum_m w_m \sigma((s_m - a) / t)`.
        slopes: :math:`\sum_m w_m \sigma'((s_m - a) / t)`: not yet divided by the temperature.
    """

    values: Tensor
    slopes: Tensor


def count_by_pairs(request: CountRequest) -> Counts:
    """Count pair by pair."""
    # Contiguous, so that sums have one order, however their input is laid out.
    scores, weights, points = (x.contiguous() for x in (request.scores, request.weights, request.points))
    pools, sets, rows = weights.shape
    values = weights.new_zeros(pools, sets if request.values else 0, points.shape[1])
    slopes = weights.new_zeros(pools, sets if request.slopes else 0, points.shape[1])
    per_temperature = min(1 / request.temperature, torch.finfo(scores.dtype).max)
    for pool, point in chunks(pools, points.shape[1], max(1, _BLOCK // max(rows, 1))):
        # Scores are subtracted before they are divided: near ones differ exactly in floating point.
        distance = (scores[pool, None] - points[pool, point, None]).mul_(per_temperature)
        if request.values:
            values[pool, :, point] = weights[pool] @ distance.sigmoid().mT
        if request.slopes:
            # sigmoid' from the lower tail, which keeps its digits on either side.
            tail = distance.abs_().neg_().sigmoid_()
            slope = (1 - tail).mul_(tail)
            if request.at is None:
                slope.diagonal(point.start, 1, 2).zero_()
            slopes[pool, :, point] = weights[pool] @ slope.mT
    return Counts(values, slopes)
