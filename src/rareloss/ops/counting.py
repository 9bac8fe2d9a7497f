r"""The soft count and its slope, by whichever of three engines is predicted to be the fastest, with their gradient.

For each of B pools, K sets of weights and each point a,

.. math:: C_{bk}(a) = \sum_m w_{bkm} \, \sigma\big((s_{bm} - a) / t\big), \qquad
          S_{bk}(a) = \frac{1}{t} \sum_m w_{bkm} \, \sigma'\big((s_{bm} - a) / t\big)

The gradient needs nothing else: with :math:`g_{bk}(a)` arriving, a point gets :math:`-\sum_k g_{bk}(a) S_{bk}(a)`, and
a score gets :math:`\sum_k w_{bkm} S^*_{bk}(s_{bm})`, where :math:`S^*` takes the points for scores and g for weights.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rareloss.ops import exponentials, grid
from rareloss.ops.exponentials import exponential_count, order_together, swapped
from rareloss.ops.functions import eager_twin, fold_into_batch, is_eager, without_second_derivative
from rareloss.ops.grid import grid_count, grid_nodes
from rareloss.ops.pairs import NANOSECONDS as NANOSECONDS_PER_PAIR
from rareloss.ops.pairs import dense_count, dense_pairs

__all__ = ["cheapest", "count_now", "count_pairs", "everywhere", "soft_count_at", "without_autocast"]


@torch.library.custom_op("rareloss::soft_count", mutates_args=())
def _count(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    present: Tensor,
    wanted: Tensor,
    temperature: float,
    value: bool,
    slope: bool,
) -> tuple[Tensor, Tensor]:
    counts, slopes, _ = count_now(scores, weights, at, present, wanted, temperature, value, slope)
    return counts, slopes


def count_now(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    present: Tensor,
    wanted: Tensor,
    temperature: float,
    value: bool,
    slope: bool,
    order: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Count now, with no graph.

    Returns:
        counts and slopes ``[B, K, A]`` at the points wanted (elsewhere: anything finite), empty where not asked for, in
        ``dtype`` where they were summed up in it, else in that of the weights; and the order of scores and points if it
        had to be found.
    """
    with without_autocast(scores):
        asked = (scores, weights, at, present, wanted, temperature, value, slope, order, dtype or weights.dtype)
        (counts, slopes), order = _by_cheapest(*asked)
    return weights.new_empty(0) if counts is None else counts, weights.new_empty(0) if slopes is None else slopes, order


def _by_cheapest(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    present: Tensor,
    wanted: Tensor,
    temperature: float,
    value: bool,
    slope: bool,
    order: Tensor | None,
    dtype: torch.dtype,
) -> tuple[tuple[Tensor | None, Tensor | None], Tensor | None]:
    pools, sets, rows = weights.shape
    points = at.shape[1]
    if not (value or slope):
        return (None, None), order
    if not pools * sets * rows * points:
        nothing = weights.new_zeros(pools, sets, points)
        return (nothing, nothing.clone()), None
    # Off the CPU it is not asked how many pairs of many pools are wanted, which the device would have to wait for.
    known = scores.device.type == "cpu" or pools == 1
    by_pairs = NANOSECONDS_PER_PAIR * dense_pairs(present, wanted) if known else math.inf
    engine, low, nodes = cheapest(scores, at, temperature, by_pairs, sets)
    if engine == "grid":
        return grid_count(scores, weights, at, temperature, value, slope, low, nodes), None
    if engine == "pairs":
        return dense_count(scores, weights, at, present, wanted, temperature, value, slope), None
    order = order_together(scores, at) if order is None else order
    return exponential_count(scores, weights, at, temperature, value, slope, order, dtype), order


def cheapest(scores: Tensor, at: Tensor, temperature: float, by_pairs: float, sets: int = 1) -> tuple[str, Tensor, int]:
    """Choose the engine for scores ``[B, M]`` and points ``[B, A]``, given what the pairs are predicted to take.

    The prediction, in nanoseconds, is alike from both sides: forward and backward must take the same engine, or what a
    row does to itself, as a score and as a point, would not cancel. The grid is left out where its error would show
    (float64), and off the CPU, where the device would have to wait for the range of the scores.

    Returns:
        ``"pairs"``, ``"grid"`` or ``"exponentials"``, and for a grid the lowest of each pool and how many nodes it has.
    """
    (pools, rows), points = scores.shape, at.shape[1]
    by_exponentials = exponentials.NANOSECONDS + exponentials.NANOSECONDS_PER_ROW * sets * pools * (rows + points)
    if by_pairs > grid.NANOSECONDS and scores.dtype == torch.float32 and scores.device.type == "cpu":
        low, nodes = grid_nodes(scores, at, temperature)
        each = grid.NANOSECONDS_PER_ROW * (rows + points) + grid.NANOSECONDS_PER_NODE * nodes
        if grid.NANOSECONDS + sets * pools * each < min(by_pairs, by_exponentials):
            return "grid", low, int(nodes)
    return "pairs" if by_pairs <= by_exponentials else "exponentials", scores, 0


@_count.register_fake
def _(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    present: Tensor,
    wanted: Tensor,
    temperature: float,
    value: bool,
    slope: bool,
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
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        asked = (scores, weights, at, everywhere(scores), wanted, temperature, True, with_slope)
        if is_eager(scores, weights, at, wanted):
            return count_now(*asked)
        return (*_count(*asked), None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor | None]) -> None:
        scores, weights, at, wanted, ctx.temperature, _ = inputs
        _, slopes, order = output
        ctx.mark_non_differentiable(slopes, *([] if order is None else [order]))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scores, weights, at, wanted, slopes, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return (None,) * 6
        needs = ctx.needs_input_grad[:3]
        found = _pull_once(gradients[0], *ctx.saved_tensors, ctx.temperature, *needs)
        return (*(one if needed else None for one, needed in zip(found, needs, strict=True)), None, None, None)


def _pull(
    grad_output: Tensor,
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    wanted: Tensor,
    slopes: Tensor,
    order: Tensor | None,
    temperature: float,
    to_scores: bool,
    to_weights: bool,
    to_at: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # The gradient grad_output at the counts, carried back to scores, weights and points.
    grad_output = grad_output.masked_fill(~wanted[:, None], 0.0)
    asked = (at, grad_output, scores, wanted, everywhere(scores), temperature, to_weights, to_scores)
    if is_eager(at, grad_output, scores, wanted):
        counts, pulls, _ = count_now(*asked, None if order is None else swapped(order, scores.shape[1]))
    else:
        counts, pulls = _count(*asked)
    scores_gradient = (pulls * weights).sum(1) if to_scores else torch.zeros_like(scores)
    # sigmoid((s - a) / t) is one minus the sigmoid that counts the points above the score.
    weights_gradient = grad_output.sum(2, keepdim=True) - counts if to_weights else torch.zeros_like(weights)
    at_gradient = -(grad_output * slopes).sum(1) if to_at else torch.zeros_like(at)
    return scores_gradient, weights_gradient, at_gradient


def count_pairs(scores: Tensor, weights: Tensor, at: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Count one small pool by pairs, whatever is marked as absent.

    Returns:
        counts ``[1, K, A]``, and what each pair adds to the slopes, for a weight and temperature of 1, ``[A, M]``.
    """
    slopes, everything = scores.new_empty(at.shape[1], scores.shape[1]), everywhere(scores[:, :1])
    counts, _ = dense_count(scores, weights, at, everything, everything, temperature, True, False, slopes)
    assert counts is not None
    return counts, slopes


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Keep the arithmetic in the dtype that comes in."""
    device = tensor.device.type
    # To enter and leave takes longer than the work on a small pool.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def everywhere(scores: Tensor) -> Tensor:
    """Mark every place of ``scores[B, M]``."""
    return torch.ones((1, 1), dtype=torch.bool, device=scores.device).expand(scores.shape)


_pull_once = without_second_derivative(_pull, "the soft count has")
_EagerSoftCount = eager_twin(_SoftCount)


def soft_count_at(scores: Tensor, weights: Tensor, at: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Count softly the weight above ``at[b, a]`` wherever ``wanted[b, a]``; elsewhere anything, without gradient.

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
    if is_eager(scores, weights, at, wanted):
        with_slope = at.requires_grad and torch.is_grad_enabled()
        counts, _, _ = _EagerSoftCount.apply(scores, weights, at, wanted, temperature, with_slope)
    else:
        counts, _, _ = _SoftCount.apply(scores, weights, at, wanted, temperature, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return counts
