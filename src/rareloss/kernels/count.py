r"""The soft count and its slope, by whichever of three engines is predicted to be the fastest, with their gradient.

For each of B pools, K sets of weights and each point a,

.. math:: C_{bk}(a) = \sum_m w_{bkm} \, \sigma\big((s_{bm} - a) / t\big), \qquad
          S_{bk}(a) = \frac{1}{t} \sum_m w_{bkm} \, \sigma'\big((s_{bm} - a) / t\big)

The gradient needs nothing else: with :math:`g_{bk}(a)` arriving, a point gets :math:`-\sum_k g_{bk}(a) S_{bk}(a)`, and
a score gets :math:`\sum_k w_{bkm} S^*_{bk}(s_{bm})`, where :math:`S^*` takes the points for scores and g for weights.
"""

import math
from typing import Any

import torch
from torch import Tensor

from rareloss.kernels import exponentials, grid
from rareloss.kernels.batching import fold_into_batch
from rareloss.kernels.dense import NANOSECONDS as NANOSECONDS_PER_PAIR
from rareloss.kernels.dense import dense_count, dense_pairs
from rareloss.kernels.exponentials import exponential_count
from rareloss.kernels.grid import grid_count, grid_nodes

__all__ = ["soft_count_at"]


@torch.library.custom_op("rareloss::soft_count", mutates_args=())
def _count(
    scores: Tensor, weights: Tensor, at: Tensor, wanted: Tensor, temperature: float, value: bool, slope: bool
) -> tuple[Tensor, Tensor]:
    # Counts and slopes [B, K, A] at the points wanted (elsewhere: anything finite); empty where not asked for.
    with torch.autocast(scores.device.type, enabled=False):
        found = _by_cheapest(scores, weights, at, wanted, temperature, value, slope)
    counts, slopes = (weights.new_empty(0) if one is None else one for one in found)
    return counts, slopes


def _by_cheapest(
    scores: Tensor, weights: Tensor, at: Tensor, wanted: Tensor, temperature: float, value: bool, slope: bool
) -> tuple[Tensor | None, Tensor | None]:
    pools, sets, rows = weights.shape
    points = at.shape[1]
    if not pools * sets * rows * points:
        nothing = weights.new_zeros(pools, sets, points)
        return nothing, nothing.clone()
    # Predicted nanoseconds. By pairs is exact and right for all that is small; off the CPU the others, which look at the
    # data, would make the device wait.
    by_pairs = NANOSECONDS_PER_PAIR * dense_pairs(weights, wanted)
    by_exponentials = exponentials.NANOSECONDS_PER_ROW * sets * pools * (rows + points)
    if scores.device.type == "cpu" and by_pairs > 1e5:
        if weights.dtype == torch.float32:  # the grid's error is above float64's rounding
            low, _, nodes = grid_nodes(scores, at, temperature)
            by_grid = sets * pools * (grid.NANOSECONDS_PER_ROW * (rows + points) + grid.NANOSECONDS_PER_NODE * nodes)
            if by_grid < min(by_pairs, by_exponentials):
                return grid_count(scores, weights, at, temperature, value, slope, low, nodes)
    if by_pairs <= by_exponentials or not math.isfinite(by_pairs):
        return dense_count(scores, weights, at, wanted, temperature, value, slope)
    return exponential_count(scores, weights, at, temperature, value, slope)


@_count.register_fake
def _(
    scores: Tensor, weights: Tensor, at: Tensor, wanted: Tensor, temperature: float, value: bool, slope: bool
) -> tuple[Tensor, Tensor]:
    shape = (weights.shape[0], weights.shape[1], at.shape[1])
    return weights.new_empty(shape if value else 0), weights.new_empty(shape if slope else 0)


fold_into_batch(_count)


class _SoftCount(torch.autograd.Function):
    # A function around the op, not a formula registered on it: torch.func transforms see through the former alone.
    generate_vmap_rule = True

    @staticmethod
    def forward(
        scores: Tensor, weights: Tensor, at: Tensor, wanted: Tensor, temperature: float, with_slope: bool
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _count(scores, weights, at, wanted, temperature, True, with_slope)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        scores, weights, at, wanted, ctx.temperature, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scores, weights, at, wanted, output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return (None,) * 6
        needs = ctx.needs_input_grad[:3]
        found = _SoftCountBackward.apply(gradients[0], *ctx.saved_tensors, ctx.temperature, *needs)  # type: ignore[no-untyped-call]
        return (*(one if needed else None for one, needed in zip(found, needs, strict=True)), None, None, None)


class _SoftCountBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        arriving: Tensor,
        scores: Tensor,
        weights: Tensor,
        at: Tensor,
        wanted: Tensor,
        slopes: Tensor,
        temperature: float,
        to_scores: bool,
        to_weights: bool,
        to_at: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        arriving = torch.where(wanted[:, None], arriving, 0.0)
        everywhere = torch.ones_like(scores, dtype=torch.bool)
        counts, pulls = _count(at, arriving, scores, everywhere, temperature, to_weights, to_scores)
        scores_gradient = (weights * pulls).sum(1) if to_scores else torch.zeros_like(scores)
        # sigmoid((s - a) / t) is one minus the sigmoid that counts the points above the score.
        weights_gradient = arriving.sum(2, keepdim=True) - counts if to_weights else torch.zeros_like(weights)
        at_gradient = -(arriving * slopes).sum(1) if to_at else torch.zeros_like(at)
        return scores_gradient, weights_gradient, at_gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("the soft count has no second derivative here; call backward without create_graph=True")


def soft_count_at(scores: Tensor, weights: Tensor, at: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Count softly the weight above ``at[b, a]`` wherever ``wanted[b, a]``; elsewhere anything finite, without gradient.

    Args:
        scores: ``[B, M]``, float32 or float64.
        weights: ``[B, K, M]``, same dtype.
        at: ``[B, A]``, same dtype.
        wanted: ``[B, A]``, bool.
        temperature: in units of the scores.

    Returns:
        ``[B, K, A]``, with gradient to scores, weights and points.
    """
    counts: Tensor
    counts, _ = _SoftCount.apply(scores, weights, at, wanted, temperature, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return counts
