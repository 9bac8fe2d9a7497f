r"""Soft ranks of chosen rows, among themselves and among all rows of their pool, with one gradient for both.

.. math:: Q_i = \frac{w_i}{2} + \sum_{j \text{ chosen}} w_j \, \sigma\big((s_j - s_i) / t\big), \qquad
          R_i = \frac{w_i}{2} + \sum_j w_j \, \sigma\big((s_j - s_i) / t\big)

These are two counts of :mod:`rareloss.ops.counting`, at points that are rows themselves. So both ends of a pair are in
one gradient, and one pass over the pairs makes it.
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor

from rareloss.ops import grid
from rareloss.ops.counting import cheapest, count_now, count_pairs, everywhere, without_autocast
from rareloss.ops.exponentials import swapped
from rareloss.ops.functions import eager_twin, fold_into_batch, is_eager, without_second_derivative
from rareloss.ops.pairs import NANOSECONDS as NANOSECONDS_PER_PAIR
from rareloss.ops.pairs import NANOSECONDS_PER_RANKED_PAIR, RankedPairs, least_nanoseconds

__all__ = ["soft_ranks"]

# What a forward pass leaves for the backward pass. Of a small pool: the slopes of its pairs [A, M], and the weights of
# the rows chosen and of all [2, M]; else, unless pairs find theirs again, slopes [B, 2, A] and the orders of both.
_Left: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]


def soft_ranks(
    scores: Tensor, weight: Tensor, rows: Tensor | None, own: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Rank the rows ``rows[b, a]`` wherever ``own[b, a] > 0``; elsewhere anything above 0, without gradient.

    Args:
        scores: ``[B, M]``, float32 or float64.
        weight: ``[B, M]``, same dtype, taken as constant.
        rows: ``[B, A]``, int64, no row chosen twice; None for all rows in their order.
        own: the weights of those rows, ``[B, A]``, 0 for an entry that stands for none.
        temperature: in units of the scores.

    Returns:
        the ranks among the rows chosen and among all, ``[B, A]`` each, with gradient to the scores.
    """
    if rows is None:
        rows = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    plain = is_eager(scores, weight, rows, own)
    function: Any = _EagerSoftRanks if plain else _SoftRanks
    with_slopes = not plain or (scores.requires_grad and torch.is_grad_enabled())
    among_chosen, among_all, *_ = function.apply(scores, weight, rows, own, temperature, with_slopes)
    return among_chosen, among_all


def _rank(
    scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, temperature: float, with_slopes: bool
) -> tuple[Tensor, *_Left]:
    with without_autocast(scores):
        counts, slopes, first, second = _count(scores, weight, rows, own, temperature, with_slopes)
        # Weights that are too light to be halved would leave a rank of 0, by which nobody can divide.
        ranks = counts.to(scores.dtype).add_(own[:, None] / 2).clamp_(min=torch.finfo(scores.dtype).tiny)
    return ranks, slopes, first, second


def _count(
    scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, temperature: float, with_slopes: bool
) -> tuple[Tensor, *_Left]:
    if _is_small(scores, rows):
        return _count_small(scores, weight, rows, own, temperature)
    at, wanted = scores.gather(1, rows), own > 0
    pairs, one_grid = _pairs_or_one_grid(scores, weight, rows, own, at, temperature)
    if pairs is not None:
        return torch.stack([one.counts() for one in pairs], 1), None, None, None
    if one_grid is not None:
        both = torch.stack([torch.zeros_like(weight).scatter_add_(1, rows, own), weight], 1)
        counts, slopes = grid.grid_count(scores, both, at, temperature, True, with_slopes, *one_grid)
        assert counts is not None
        return counts, slopes, None, None
    asked = (wanted, temperature, True, with_slopes)
    # A row's pair with itself is in two sums of slopes, which cancel in float64 where they were summed up in it.
    fine = (None, torch.float64)
    chosen, slopes_chosen, order_chosen = count_now(at, own[:, None], at, everywhere(at), *asked, *fine)
    every, slopes_every, order_every = count_now(scores, weight[:, None], at, everywhere(scores), *asked, *fine)
    slopes = torch.cat([slopes_chosen, slopes_every], 1) if with_slopes else None
    return torch.cat([chosen, every], 1), slopes, order_chosen, order_every


def _count_small(
    scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, None]:
    both = torch.stack([torch.zeros_like(weight).index_add_(1, rows[0], own), weight], 1)
    counts, slopes = count_pairs(scores, both, scores.index_select(1, rows[0]), temperature)
    # A row's pair with itself pulls it both ways alike, and is left out.
    return counts, slopes.scatter_(1, rows.mT, 0.0), both[0], None


def _pull(
    grad_output: Tensor,
    scores: Tensor,
    weight: Tensor,
    rows: Tensor,
    own: Tensor,
    slopes: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
    temperature: float,
) -> Tensor:
    # The gradient grad_output at the ranks, carried back to the scores. A chosen row is pulled as row and as point.
    with without_autocast(scores):
        if _is_small(scores, rows):
            assert slopes is not None
            assert first is not None
            grad_output = grad_output[0] * min(1 / temperature, torch.finfo(scores.dtype).max)
            found = (grad_output @ slopes).mul_(first).sum(0, keepdim=True)
            return found.index_add_(1, rows[0], (first @ slopes.mT).mul_(grad_output).sum(0, keepdim=True), alpha=-1)
        at, wanted = scores.gather(1, rows), own > 0
        grad_output = grad_output.masked_fill(~wanted[:, None], 0.0)
        pairs, one_grid = _pairs_or_one_grid(scores, weight, rows, own, at, temperature)
        if pairs is not None:
            (to_chosen, at_chosen), (to_every, at_every) = (one.pulls(grad_output[:, k]) for k, one in enumerate(pairs))
            return to_every.scatter_add_(1, rows, to_chosen + at_chosen + at_every)
        if one_grid is not None:
            _, both = grid.grid_count(at, grad_output, scores, temperature, False, True, *one_grid)
            assert both is not None
            pulls = [both[:, 0].gather(1, rows), both[:, 1]]
        else:
            pulls = []
            for k, (among, order) in enumerate(((at, first), (scores, second))):
                back = None if order is None else swapped(order, among.shape[1])
                asked = (wanted, everywhere(among), temperature, False, True, back, torch.float64)
                pulls.append(count_now(at, grad_output[:, k, None], among, *asked)[1][:, 0])
        assert slopes is not None
        at_rows = own * pulls[0] - (grad_output * slopes).sum(1)
        return (weight * pulls[1]).scatter_add_(1, rows, at_rows.to(pulls[1].dtype)).to(scores.dtype)


def _is_small(scores: Tensor, rows: Tensor) -> bool:
    # What pairs do in the time of any grid is done by pairs, all at once.
    return len(scores) == 1 and NANOSECONDS_PER_RANKED_PAIR * scores.numel() * rows.numel() <= grid.NANOSECONDS


def _pairs_or_one_grid(
    scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, at: Tensor, temperature: float
) -> tuple[tuple[RankedPairs, RankedPairs] | None, tuple[Tensor, int] | None]:
    # The pairs among the chosen and among all where they are the fastest; a grid that both counts share where one is
    # faster than one each; else neither. Forward and backward pass decide alike.
    (pools, points), among = rows.shape, scores.shape[1]
    on_cpu = scores.device.type == "cpu"
    if not on_cpu and pools > 1:
        return None, None  # which rows are chosen would have to be waited for
    wanted = own > 0
    least = least_nanoseconds(int(wanted.count_nonzero()) if on_cpu else points, among)
    engine, low, nodes = cheapest(scores, at, temperature, least)
    if engine == "pairs":
        among_every = RankedPairs(scores, weight, rows, wanted, temperature)
        engine, low, nodes = cheapest(scores, at, temperature, among_every.nanoseconds)
        if engine == "pairs":
            numbers = torch.arange(points, device=rows.device).expand(pools, points)
            return (RankedPairs(at, own, numbers, wanted, temperature), among_every), None
    # On one grid the chosen cost what all rows do; on one of their own, or by pairs, there are fewer of them.
    shared = grid.NANOSECONDS_PER_ROW * (among + points) + grid.NANOSECONDS_PER_NODE * nodes
    apart = grid.NANOSECONDS + pools * (grid.NANOSECONDS_PER_ROW * 2 * points + grid.NANOSECONDS_PER_NODE * nodes)
    by_pairs = NANOSECONDS_PER_PAIR * pools * points**2
    return None, (low, nodes) if engine == "grid" and pools * shared < min(apart, by_pairs) else None


@torch.library.custom_op("rareloss::soft_ranks", mutates_args=())
def _rank_op(scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, temperature: float) -> Tensor:
    return _rank(scores, weight, rows, own, temperature, False)[0]


@_rank_op.register_fake
def _(scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, temperature: float) -> Tensor:
    return scores.new_empty(rows.shape[0], 2, rows.shape[1])


@torch.library.custom_op("rareloss::soft_ranks_pull", mutates_args=())
def _pull_op(
    grad_output: Tensor, scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, temperature: float
) -> Tensor:
    # What the forward pass may leave has a shape that depends on the engine, which a graph cannot hold.
    left = _rank(scores, weight, rows, own, temperature, True)[1:]
    return _pull(grad_output, scores, weight, rows, own, *left, temperature)


@_pull_op.register_fake
def _(grad_output: Tensor, scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, temperature: float) -> Tensor:
    return torch.empty_like(scores)


fold_into_batch(_rank_op)
fold_into_batch(_pull_op)


class _SoftRanks(torch.autograd.Function):
    # A function around the op, not a formula registered on it: torch.func transforms see through the former alone.
    generate_vmap_rule = True

    @staticmethod
    def forward(
        scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, temperature: float, with_slopes: bool
    ) -> tuple[Tensor | None, ...]:
        if is_eager(scores, weight, rows, own):
            ranks, *left = _rank(scores, weight, rows, own, temperature, with_slopes)
        else:
            ranks, left = _rank_op(scores, weight, rows, own, temperature), [None, None, None]
        among_chosen, among_all = ranks.unbind(1)
        return among_chosen, among_all, *left

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.temperature, _ = inputs
        left = output[2:]
        ctx.mark_non_differentiable(*(tensor for tensor in left if tensor is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *left)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [gradient for gradient in gradients[:2] if gradient is not None]
        if not given:
            return (None,) * 6
        grad_output = torch.stack([torch.zeros_like(given[0]) if one is None else one for one in gradients[:2]], 1)
        return (_carry_back_once(grad_output, *ctx.saved_tensors, ctx.temperature), None, None, None, None, None)


def _carry_back(
    grad_output: Tensor, scores: Tensor, weight: Tensor, rows: Tensor, own: Tensor, *left_and_temperature: Any
) -> Tensor:
    if is_eager(grad_output, scores, weight, rows, own):
        return _pull(grad_output, scores, weight, rows, own, *left_and_temperature)
    pulled: Tensor = _pull_op(grad_output, scores, weight, rows, own, left_and_temperature[-1])
    return pulled


_carry_back_once = without_second_derivative(_carry_back, "soft ranks have")
_EagerSoftRanks = eager_twin(_SoftRanks)
