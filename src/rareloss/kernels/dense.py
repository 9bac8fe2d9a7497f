r"""The soft count by blocks of pairs: exact, for any scores, time ``points x pool``, memory one block.

For each of ``B`` independent pools, ``K`` sets of weights and each point that is asked for,

.. math:: C_{bk}(a) = \sum_m w_{bkm} \, \sigma\big((s_{bm} - a) / t\big).

A custom op, since how many points are asked for depends on the data: compiled graphs stay whole around it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rareloss.kernels.batching import fold_into_batch

__all__ = ["dense_count"]

# Pairs worked on at once: a block of float32 (1 MiB) and what is derived from it stay in a core's cache.
_BLOCK = 2**18


@torch.library.custom_op("rareloss::dense_count", mutates_args=())
def _count(scores: Tensor, weights: Tensor, at: Tensor, where: Tensor, temperature: float) -> Tensor:
    counts = weights.new_zeros(weights.shape[0], weights.shape[1], at.shape[1])
    with torch.autocast(scores.device.type, enabled=False):
        for pool, point in _blocks(where, scores.shape[1]):
            above = _above(scores, at, pool, point, temperature)
            if scores.shape[0] == 1:
                counts[0, :, point] = weights[0] @ above.mT
            else:
                counts[pool, :, point] = torch.einsum("nm,nkm->nk", above, weights[pool])
    return counts


@torch.library.custom_op("rareloss::dense_count_backward", mutates_args=())
def _count_backward(
    gradient: Tensor, scores: Tensor, weights: Tensor, at: Tensor, where: Tensor, temperature: float, to_weights: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry ``gradient[B, K, A]`` back to the scores, the weights (if ``to_weights``, else zeros) and the points."""
    scores_gradient, at_gradient = torch.zeros_like(scores), torch.zeros_like(at)
    weights_gradient = torch.zeros_like(weights)
    with torch.autocast(scores.device.type, enabled=False):
        for pool, point in _blocks(where, scores.shape[1]):
            above = _above(scores, at, pool, point, temperature)
            arriving = gradient[pool, :, point]  # [n, K]
            if scores.shape[0] == 1:
                if to_weights:
                    weights_gradient[0] += arriving.mT @ above
                pull = arriving @ weights[0]
            else:
                if to_weights:
                    weights_gradient.index_add_(0, pool, torch.einsum("nk,nm->nkm", arriving, above))
                pull = torch.einsum("nk,nkm->nm", arriving, weights[pool])
            pull.mul_(above).mul_(above.neg_().add_(1)).div_(temperature)  # sigmoid' = sigmoid (1 - sigmoid)
            if scores.shape[0] == 1:
                scores_gradient[0] += pull.sum(0)
            else:
                scores_gradient.index_add_(0, pool, pull)
            at_gradient[pool, point] = -pull.sum(1)
    return scores_gradient, weights_gradient, at_gradient


def _blocks(where: Tensor, pool_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    points = where.nonzero()
    if points.numel() and pool_size:
        for block in points.split(max(1, _BLOCK // pool_size)):
            pool, point = block.unbind(1)
            yield pool, point


def _above(scores: Tensor, at: Tensor, pool: Tensor, point: Tensor, temperature: float) -> Tensor:
    # Subtract first: near scores differ exactly in floating point, their quotients by the temperature do not.
    rows = scores if scores.shape[0] == 1 else scores[pool]
    return (rows - at[pool, point, None]).div_(temperature).sigmoid_()


@_count.register_fake
def _(scores: Tensor, weights: Tensor, at: Tensor, where: Tensor, temperature: float) -> Tensor:
    return weights.new_empty(weights.shape[0], weights.shape[1], at.shape[1])


@_count_backward.register_fake
def _(
    gradient: Tensor, scores: Tensor, weights: Tensor, at: Tensor, where: Tensor, temperature: float, to_weights: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(scores), torch.empty_like(weights), torch.empty_like(at)


class _DenseCount(torch.autograd.Function):
    # A function around the op, not a formula registered on it: torch.func transforms see through the former alone.
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, weights: Tensor, at: Tensor, where: Tensor, temperature: float) -> Tensor:
        counts: Tensor = _count(scores, weights, at, where, temperature)
        return counts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.temperature = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_weights = ctx.needs_input_grad[1]
        found = _DenseCountBackward.apply(gradients[0].contiguous(), *ctx.saved_tensors, ctx.temperature, to_weights)  # type: ignore[no-untyped-call]
        return found[0], found[1] if to_weights else None, found[2], None, None


class _DenseCountBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor,
        scores: Tensor,
        weights: Tensor,
        at: Tensor,
        where: Tensor,
        temperature: float,
        to_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _count_backward(
            gradient, scores, weights, at, where, temperature, to_weights
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("the soft count has no second derivative here; call backward without create_graph=True")


def dense_count(scores: Tensor, weights: Tensor, at: Tensor, where: Tensor, temperature: float) -> Tensor:
    """Count softly the weight above ``at[b, a]`` wherever ``where[b, a]``; 0 elsewhere.

    Args:
        scores: ``[B, M]``, float32 or float64.
        weights: ``[B, K, M]``, same dtype.
        at: ``[B, A]``, same dtype.
        where: ``[B, A]``, bool: the points whose count is wanted. Only they cost time.
        temperature: in units of the scores.

    Returns:
        ``[B, K, A]``, with gradient to the first three.
    """
    counts: Tensor = _DenseCount.apply(scores, weights, at, where, temperature)  # type: ignore[no-untyped-call]
    return counts


fold_into_batch(_count)
fold_into_batch(_count_backward)
