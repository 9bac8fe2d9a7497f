r"""The soft quantile: the threshold that a share of the weight lies above, an implicit function of the scores.

:math:`\theta` is the root of :math:`C(\theta) = q W`. By the implicit function theorem

.. math:: \frac{\partial \theta}{\partial s_m} = \frac{w_m \, \sigma'_m}{\sum_j w_j \, \sigma'_j},
          \qquad \sigma'_m = \sigma'\big((s_m - \theta) / t\big),

weights that sum to one: the threshold moves with the scores, so raising all of them changes nothing.

It is kept as the sum of a score near it and an offset, since a gap between scores may be so wide that no float64 holds
both the place of its ends and a temperature.
"""

import math
from typing import Any

import torch
from torch import Tensor

from rareloss.eager import is_plain
from rareloss.ops.functions import accumulator, eager_twin, fold_into_batch, without_second_derivative
from rareloss.ops.selection import Top, top
from rareloss.pool import gather_indices, select

__all__ = ["margin_over_threshold"]

# Enough for the worst case of bisection from 1e38 down to rounding; a usual pool needs 3 to 6. Off the CPU, where the
# end is not waited for, all are taken.
_STEPS, _STEPS_OFF_CPU = 160, 48
# Newton's steps alone at first; every second one is a bisection once they have not been enough.
_NEWTON_STEPS = 12
# What a running sum may miss a share of the total by, in totals.
_ROUNDING = 1e-12
# Larger classes are solved for with the rows near the threshold alone, where that is seen to be enough.
_FEW_ROWS = 2**13
# How far rows are near at the first try and at the second, in temperatures, and the share of the count's slope that
# farther ones may change the count by: the threshold then moves by as much, in temperatures.
_NEAR = {torch.float32: ((36.0, 144.0), 1e-8), torch.float64: ((60.0, 240.0), 1e-16)}


def margin_over_threshold(
    scores: Tensor,
    threshold_weight: Tensor,
    share: float,
    temperature: float,
    indices: Tensor | None = None,
    at: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Compute :math:`(a - \theta) / t` at points a with the gradient through both.

    Args:
        scores: ``[C, M]``, float32 or float64.
        threshold_weight: ``[C, M]``, the weights that set the threshold, without gradient.
        share: q in (0, 1): the share of that weight that is to lie above.
        temperature: in units of the scores.
        indices: of the rows whose scores are the points, ``[C, A]``; all rows by default.
        at: other points, ``[C, A]``.

    Returns:
        the margins, ``[C, A]``, and :math:`\theta` without gradient, ``[C]`` (0 where no weight sets it), both in
        float64, or float32 on a device that has no other.
    """
    # Not so low that a gradient overflows: a sum of infinite ones would be NaN.
    temperature = max(temperature, 16 / torch.finfo(scores.dtype).max)
    # Where less than rounding is to lie below, no sum says which row is the last.
    share = min(share, 1 - 10 * _ROUNDING)
    function: Any = _EagerOffset if is_plain(scores, threshold_weight) else _Offset
    start, offset = function.apply(scores, threshold_weight, share, temperature)
    if at is None:
        at = scores if indices is None else scores.gather(1, indices)
    # Measured from a score near the root: what is left is small, and the difference keeps its digits.
    margin = (at.to(start.dtype) - start[:, None] - offset[:, None]) / temperature
    return margin, start + offset.detach()


class _Offset(torch.autograd.Function):
    # From a score that counts as constant to the threshold.
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, threshold_weight: Tensor, share: float, temperature: float) -> tuple[Tensor, Tensor]:
        solve = _solve if is_plain(scores, threshold_weight) else _solve_op
        start, offset = solve(scores, threshold_weight, share, temperature)
        return start, offset

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        scores, threshold_weight, _, ctx.temperature = inputs
        ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(scores, threshold_weight, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _vjp_once(gradients[1], *ctx.saved_tensors, ctx.temperature), None, None, None


def _vjp(
    grad_output: Tensor, scores: Tensor, threshold_weight: Tensor, start: Tensor, offset: Tensor, temperature: float
) -> Tensor:
    distance = (scores.to(start.dtype) - start[:, None] - offset[:, None]).abs()
    # In a gap of the scores every slope underflows while their ratios stay: relative to the nearest row's.
    nearest = torch.where(threshold_weight > 0, distance, torch.inf).amin(1, keepdim=True)
    beyond = torch.where(distance > nearest, (nearest - distance) / temperature, 0.0)
    slope = threshold_weight * beyond.exp() / (1 + (distance / -temperature).exp()).square()
    total = slope.sum(1, keepdim=True)
    return (grad_output[:, None] * slope / torch.where(total > 0, total, 1.0)).to(scores.dtype)


_vjp_once = without_second_derivative(_vjp, "soft recall has")


_EagerOffset = eager_twin(_Offset)


def _solve(scores: Tensor, threshold_weight: Tensor, share: float, temperature: float) -> tuple[Tensor, Tensor]:
    # A score near the threshold and the threshold's offset from it, [C] each.
    dtype = accumulator(scores)
    if dtype == torch.float64:
        return _solve_in_float64(scores, threshold_weight, share, temperature)
    # A root that is exact to rounding takes float64, which this device has not: the CPU finds it.
    start, offset = _solve_in_float64(scores.cpu(), threshold_weight.cpu(), share, temperature)
    return start.to(dtype).to(scores.device), offset.to(dtype).to(scores.device)


def _solve_in_float64(
    scores: Tensor, threshold_weight: Tensor, share: float, temperature: float
) -> tuple[Tensor, Tensor]:
    scores, on_cpu = scores.detach(), scores.device.type == "cpu"
    edge = top(scores, threshold_weight, share)
    nothing = edge.target <= 0
    start = edge.score.double().masked_fill(nothing, 0.0)
    far, negligible = _NEAR[scores.dtype]
    for near in far if on_cpu and scores.shape[1] > _FEW_ROWS else ():
        rows, weight = gather_indices(threshold_weight, (scores - start).abs() <= near * temperature, True)
        if weight.shape[1]:
            reach = torch.full_like(start, near * temperature)
            root, slope = _root(select(scores, rows).double() - start, weight, edge, share, temperature, -reach, reach)
            farther = edge.target / share * torch.exp(root.abs() / temperature - near)
            if bool(((farther <= negligible * slope) | nothing).all()):
                return start[:, 0], root.masked_fill(nothing, 0.0)[:, 0]
    # At the lowest score less t logit(q) every row is above with at least q; at the highest, with at most q.
    present, shift = threshold_weight > 0, temperature * (math.log(share) - math.log1p(-share))
    rows = scores.double() - start
    low = torch.where(present, rows, torch.inf).amin(1, keepdim=True) - shift
    high = torch.where(present, rows, -torch.inf).amax(1, keepdim=True) - shift
    root, _ = _root(rows, threshold_weight, edge, share, temperature, low, high)
    return start[:, 0], root.masked_fill(nothing, 0.0)[:, 0]


def _root(
    rows: Tensor, weight: Tensor, edge: Top, share: float, temperature: float, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    # The threshold between two bounds by Newton's steps and bisection, and the slope of the count there, in units of
    # 1 / t, [C, 1] each. The rows are differences from the edge's score; those left out are too far to matter.
    weight, on_cpu = weight.double(), rows.device.type == "cpu"
    target, upper, surplus = _snapped_target(rows, edge, share)
    rest = edge.target / share - target
    root = _first_guess(rows, weight, upper, surplus, edge, temperature).clamp(low, high)
    slope = root
    for step in range(_STEPS if on_cpu else _STEPS_OFF_CPU):
        # Rows count whole, as a difference from those above the edge, and the tails are added: so the sign stays right
        # in gaps, where tails are tiny.
        distance = (rows - root) / temperature
        above = distance > 0
        tail = (-distance.abs()).exp_()
        tail /= 1 + tail
        crossed = above.double() - upper.double()
        excess = surplus + (weight * (crossed + torch.where(above, -tail, tail))).sum(1, keepdim=True)
        slope = (weight * tail * (1 - tail)).sum(1, keepdim=True)
        low, high = torch.where(excess > 0, root, low), torch.where(excess < 0, root, high)
        # Newton's step for the log-odds of the share above: exact for equal scores, few for others.
        odds = torch.log1p(excess / target) - torch.log1p(-excess / rest)
        step_size = temperature * odds * ((target + excess) / (target + rest) * (rest - excess) / slope)
        newton = root + step_size
        trusted = (newton > low) & (newton < high) & ((step < _NEWTON_STEPS) | (step % 2 == 0))
        # Newton's error is squared at each step: what is taken at 1e-9 is exact to rounding. NaN ends the search too.
        tolerance = 1e-9 * temperature + 4e-16 * root.abs()
        inexact = excess.abs() > 0
        unfinished = inexact & ~(step_size.abs() <= tolerance) & (high - low > tolerance)
        last = torch.where(inexact & (newton >= low) & (newton <= high), newton, root)
        bisected = _middle(low, high, temperature)
        root = torch.where(unfinished, torch.where(trusted, newton, bisected), last)
        if on_cpu and not bool(unfinished.any()):
            break
    return root, slope


def _snapped_target(rows: Tensor, edge: Top, share: float) -> tuple[Tensor, Tensor, Tensor]:
    # The weight that is to lie above, which rows lie above the edge, and how much more weight than the target they are.
    # Where the share falls between two rows but for rounding, the target is the sum there: else the threshold would
    # not lie in the gap between them.
    total = edge.target / share
    with_edge = edge.above + edge.tied
    below_edge = (with_edge - edge.target).abs() <= _ROUNDING * total
    above_edge = ~below_edge & (edge.above > 0) & ((edge.above - edge.target).abs() <= _ROUNDING * total)
    upper = torch.where(above_edge, rows > 0, rows >= 0)
    target = torch.where(below_edge, with_edge, torch.where(above_edge, edge.above, edge.target))
    return target, upper, torch.where(above_edge, edge.above, with_edge) - target


def _first_guess(rows: Tensor, weight: Tensor, upper: Tensor, surplus: Tensor, edge: Top, temperature: float) -> Tensor:
    # At the edge, what of its rows lies above if there were no others.
    part = ((edge.tied - surplus) / edge.tied).clamp(1e-9, 1 - 1e-9)
    at_edge = -temperature * torch.logit(part)
    # In a gap, where the tails of both sides, relative to the nearest row of each, are equal.
    above, below = (weight > 0) & upper, (weight > 0) & ~upper
    lowest = torch.where(above, rows, torch.inf).amin(1, keepdim=True)
    highest = torch.where(below, rows, -torch.inf).amax(1, keepdim=True)
    of_above = (weight * torch.where(above, (lowest - rows) / temperature, -torch.inf).exp()).sum(1, keepdim=True)
    of_below = (weight * torch.where(below, (rows - highest) / temperature, -torch.inf).exp()).sum(1, keepdim=True)
    in_gap = lowest / 2 + highest / 2 + temperature / 2 * (of_below / of_above).log()
    return torch.where((surplus == 0) & torch.isfinite(in_gap), in_gap, at_edge)


def _middle(low: Tensor, high: Tensor, temperature: float) -> Tensor:
    # Halfway on a scale that is linear within a temperature and logarithmic beyond: 1e38 is 90 temperatures away.
    ends = torch.stack([low, high])
    beyond = ends.sign() * (ends.abs().log() - math.log(temperature) + math.log(2))
    middle = torch.where((ends / temperature).isfinite(), (ends / temperature).asinh(), beyond).mean(0)
    far = middle.sign() * (middle.abs() - math.log(2) + math.log(temperature)).exp()
    return torch.where(middle.abs() < 300, temperature * middle.sinh(), far)


_solve_op = torch.library.custom_op("rareloss::threshold", _solve, mutates_args=())


@_solve_op.register_fake
def _(scores: Tensor, threshold_weight: Tensor, share: float, temperature: float) -> tuple[Tensor, Tensor]:
    per_class = scores.new_empty(scores.shape[0], dtype=accumulator(scores))
    return per_class, torch.empty_like(per_class)


fold_into_batch(_solve_op)
