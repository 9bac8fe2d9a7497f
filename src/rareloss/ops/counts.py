r"""The soft count: a sum of sigmoids over rows, the primitive of every ranking loss, with its gradient.

For each of B pools, K sets of weights and each point a,

.. math:: C_{bk}(a) = \sum_m w_{bkm} \, \sigma\big((s_{bm} - a) / t\big), \qquad
          S_{bk}(a) = \frac{1}{t} \sum_m w_{bkm} \, \sigma'\big((s_{bm} - a) / t\big)

The gradient is made of the same sums: with g the gradient of the counts, a point gets
:math:`-\sum_k g_{bk}(a) S_{bk}(a)`, and a score gets :math:`\sum_k w_{bkm} S^*_{bk}(s_{bm})`, where :math:`S^*` takes
the points for scores and g for weights.

The native kernel counts on the CPU. Elsewhere few pairs are summed up one by one (:mod:`rareloss.ops.pairs`), many by
:mod:`rareloss.ops.exponentials`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rareloss import checks
from rareloss.eager import is_plain
from rareloss.ops import native
from rareloss.ops.exponentials import count_by_exponentials, locate, swapped
from rareloss.ops.functions import eager_twin, fold_into_batch, without_second_derivative
from rareloss.ops.pairs import CountRequest, count_by_pairs

__all__ = ["count_above", "few_pairs", "soft_count"]

# The pairs that take as long as a call of the exponentials does on an empty pool, and those that take as long as one
# more row.
_PAIRS_OF_A_CALL, _PAIRS_OF_A_ROW = 2**20, 64


def soft_count(scores: Tensor, weights: Tensor, *, at: Tensor | None = None, temperature: float) -> Tensor:
    r"""Count, softly, the weight of the scores above each point.

    .. math:: C(a) = \sum_m w_m \, \sigma\big((s_m - a) / t\big)

    A score counts half its weight at its own place. The gradient reaches ``scores``, ``at`` and ``weights``; a second
    derivative is refused by autograd.

    Args:
        scores: ``[M]``, or ``[M, C]`` for C independent pools; float.
        weights: the shape of ``scores``; or ``[K, M]`` or ``[K, M, C]`` for K counts in one pass over the scores.
        at: the points, ``[A]`` or ``[A, C]``; the scores themselves by default.
        temperature: above 0, in units of the scores.

    Returns:
        ``[A]`` or ``[A, C]``, behind ``K`` where ``weights`` has it; in float32 at least.

    Raises:
        TypeError: ``scores`` or ``at`` are not floats, or ``weights`` no tensor.
        ValueError: shapes do not fit, or ``temperature`` is not a finite number above 0.

    Example:
        >>> scores = torch.tensor([3.0, 1.0, 2.0])
        >>> soft_count(scores, torch.ones(3), temperature=0.01)  # rank from the top, less one half
        tensor([0.5000, 2.5000, 1.5000])
    """
    checks.floating("scores", scores)
    checks.positive_number("temperature", temperature)
    if scores.ndim not in (1, 2):
        raise ValueError(
            f"scores must have shape [M] or [M, C], got {tuple(scores.shape)}; flatten the leading dimensions"
        )
    checks.is_tensor("weights", weights)
    stacked = weights.ndim == scores.ndim + 1
    checks.same_shape("weights", weights, scores.shape, (weights.shape[0] if weights.ndim else 0, *scores.shape))
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if at is not None:
        checks.floating("at", at)
        if at.ndim != scores.ndim or at.shape[1:] != scores.shape[1:]:
            wanted = "[A]" if scores.ndim == 1 else f"[A, {scores.shape[1]}]"
            raise ValueError(f"at must have shape {wanted} beside scores {tuple(scores.shape)}, got {tuple(at.shape)}")
        dtype = torch.promote_types(dtype, at.dtype)
    # Upcast once: what reaches a score as a row and as a point nearly cancels, and is not rounded to half before.
    scores = scores.to(dtype)

    def by_class(x: Tensor) -> Tensor:
        return (x[..., None] if scores.ndim == 1 else x).to(dtype).movedim(-1, 0)

    stack = weights if stacked else weights[None]
    points = None if at is None else by_class(at)
    counts = count_above(by_class(scores), by_class(stack), points, temperature=temperature).movedim(0, -1)
    counts = counts[..., 0] if scores.ndim == 1 else counts
    return counts if stacked else counts[0]


def count_above(scores: Tensor, weights: Tensor, at: Tensor | None = None, *, temperature: float) -> Tensor:
    """Count softly the weight above each point.

    Args:
        scores: ``[B, M]``, float32 or float64.
        weights: ``[B, K, M]``, same dtype.
        at: ``[B, A]``, same dtype; the scores themselves by default. Then the gradient leaves out a row's pair with
            itself, which is constant.
        temperature: in units of the scores.

    Returns:
        ``[B, K, A]``, with gradient to scores, weights and points.
    """
    # Another view, since the points may be the scores: dynamo refuses one tensor in two places.
    at = None if at is None else at.view_as(at)
    eager = is_plain(scores, weights, *([] if at is None else [at]))
    needs_slopes = torch.is_grad_enabled() and (not eager or (scores if at is None else at).requires_grad)
    function: Any = _EagerSoftCount if eager else _SoftCount
    values: Tensor = function.apply(scores, weights, at, temperature, needs_slopes)[0]
    return values


def few_pairs(pools: int, rows: int, points: int) -> bool:
    """Say whether pairs are few enough to be faster than exponentials.

    Only sizes count, so that no device has to wait, and rows and points alike, so that forward and backward agree.
    """
    return pools * rows * points <= _PAIRS_OF_A_CALL + _PAIRS_OF_A_ROW * pools * (rows + points)


def _count(
    scores: Tensor,
    weights: Tensor,
    at: Tensor | None,
    order: Tensor | None,
    temperature: float,
    values: bool,
    slopes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # Values, slopes and the order in which the exponentials have scores and points: ``[B, 0]`` where that is not new.
    no_order = scores.new_empty(len(scores), 0, dtype=torch.int32)
    if native.serves(scores):
        return *_count_natively(scores, weights, at, temperature, values, slopes), no_order
    request = CountRequest(scores, weights, at, temperature, values, slopes)
    with _without_autocast(scores):
        if few_pairs(len(scores), scores.shape[1], request.points.shape[1]):
            return *count_by_pairs(request), no_order
        if order is not None and order.numel():
            return *count_by_exponentials(request, order), no_order
        order = locate(scores, request.points)
        return *count_by_exponentials(request, order), order


_count_op = torch.library.custom_op("rareloss::soft_count", _count, mutates_args=())


@_count_op.register_fake
def _(
    scores: Tensor,
    weights: Tensor,
    at: Tensor | None,
    order: Tensor | None,
    temperature: float,
    values: bool,
    slopes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (pools, sets, rows), points = weights.shape, (scores if at is None else at).shape[1]
    no_order = native.serves(scores) or few_pairs(pools, rows, points) or (order is not None and order.shape[1] > 0)
    return (
        weights.new_empty(pools, sets if values else 0, points),
        weights.new_empty(pools, sets if slopes else 0, points),
        weights.new_empty(pools, 0 if no_order else rows + points, dtype=torch.int32),
    )


fold_into_batch(_count_op)


def _count_natively(
    scores: Tensor, weights: Tensor, at: Tensor | None, temperature: float, values: bool, slopes: bool
) -> tuple[Tensor, Tensor]:
    # A row weighs nothing or more there. Gradients, which count points above scores, have either sign.
    sets = weights.shape[1]
    if weights.numel() and weights.amin() < 0:
        weights = torch.cat([weights.clamp(min=0), weights.clamp(max=0).neg_()], 1)
    counted = native.soft_count(scores, weights, at, temperature, values, slopes)
    by_sign = [weights.new_empty(len(weights), 0, 0) if x is None else x for x in counted]
    count, slope = (x[:, :sets] - x[:, sets:] if x.shape[1] > sets else x for x in by_sign)
    return count, slope


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    # To enter and leave takes longer than the work on a small pool.
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class _SoftCount(torch.autograd.Function):
    # A function around the op, not a formula registered on it: torch.func transforms see through the former alone.
    generate_vmap_rule = True

    @staticmethod
    def forward(
        scores: Tensor, weights: Tensor, at: Tensor | None, temperature: float, with_slopes: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = _count if is_plain(scores, weights, *([] if at is None else [at])) else _count_op
        values, slopes, order = count(scores, weights, at, None, temperature, True, with_slopes)
        return values, slopes, order

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        scores, weights, at, ctx.temperature, _ = inputs
        _, slopes, order = output
        ctx.mark_non_differentiable(slopes, order)
        # Without a None, which torch 2.6 does not save under vmap.
        ctx.save_for_backward(scores, weights, slopes, order, *([] if at is None else [at]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        scores, weights, slopes, order, *at = ctx.saved_tensors
        saved = (scores, weights, at[0] if at else None, slopes, order)
        results = _vjp_once(gradients[0], *saved, ctx.temperature, *needs)
        return (*(one if needed else None for one, needed in zip(results, needs, strict=True)), None, None)


def _vjp(
    grad_output: Tensor,
    scores: Tensor,
    weights: Tensor,
    at: Tensor | None,
    slopes: Tensor,
    order: Tensor,
    temperature: float,
    to_scores: bool,
    to_weights: bool,
    to_at: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scores_gradient = at_gradient = weights_gradient = scores.new_zeros(())
    if slopes.shape[1]:
        at_gradient = -(grad_output * slopes).sum(1)
    if to_scores or to_weights:
        points, swapped_at = (scores, None) if at is None else (at, scores)
        count = _count if is_plain(grad_output, scores, weights, points, order) else _count_op
        known = swapped(order, scores.shape[1]) if order.shape[1] else None
        values, pair_slopes, _ = count(points, grad_output, swapped_at, known, temperature, to_weights, to_scores)
        if to_scores:
            scores_gradient = (pair_slopes * weights).sum(1)
        if to_weights:
            # sigmoid((s - a) / t) is one minus the sigmoid that counts the points above the score.
            weights_gradient = grad_output.sum(2, keepdim=True) - values
    if at is None:
        scores_gradient = scores_gradient + at_gradient
    return _over(scores_gradient, temperature), weights_gradient, _over(at_gradient, temperature)


def _over(gradient: Tensor, temperature: float) -> Tensor:
    # Divided at the end, and to a finite number: 0 times what overflows would be NaN, and so would a sum over pools.
    largest = torch.finfo(gradient.dtype).max / 16
    return (gradient * min(1 / temperature, largest)).clamp(-largest, largest)


_vjp_once = without_second_derivative(_vjp, "the soft count has")
_EagerSoftCount = eager_twin(_SoftCount)
