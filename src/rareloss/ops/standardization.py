"""Standardization of a pool's scores: mean 0 and standard deviation 1, both functions of the pool."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rareloss.ops.functions import eager_twin, is_eager
from rareloss.pool import Pool, or_one, where_absent

__all__ = ["standardize"]

# Numbers worked on at once where there are many classes.
_IN_CACHE = 2**17


def standardize(pool: Pool) -> tuple[Pool, Tensor, Tensor]:
    r"""Put scores in units of their spread: :math:`(s - \bar s) / \mathrm{spread}`, with all of its gradient.

    Returns:
        the pool with standardized scores (0 where absent), the mean and the spread, both ``[C]`` and without gradient.
        The spread is the weighted standard deviation, 1 where that is 0.
    """
    function = _EagerStandardise if is_eager(pool.scores, pool.weight) else _Standardise
    scores, mean, spread = function.apply(pool.scores, pool.weight)
    return pool._replace(scores=scores), mean, spread


class _Standardise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        standard, mean, spread = _some_classes_at_once(_standardized, scores, weight)
        return standard, mean, spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        standard, mean, spread = output
        ctx.mark_non_differentiable(mean, spread)
        ctx.save_for_backward(inputs[1], standard, spread)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _some_classes_at_once(_standardized_backwards, gradients[0], *ctx.saved_tensors)[0], None


_EagerStandardise = eager_twin(_Standardise)


def _standardized(scores: Tensor, weight: Tensor, *, out: Tensor | None) -> tuple[Tensor, ...]:
    # The largest comes out first, so that nothing overflows; then a present row, so that equal scores are all 0.
    largest = scores.abs().amax(1, keepdim=True)
    largest = largest.masked_fill(largest < torch.finfo(largest.dtype).tiny, 1.0)
    scaled, absent = scores / largest, where_absent(weight)
    anchor = scaled[:, :1] if absent is None else scaled.gather(1, weight.argmax(1, keepdim=True))
    share = weight / or_one(weight.sum(1, keepdim=True))
    from_anchor = scaled - anchor
    mean = (share * from_anchor).sum(1, keepdim=True)
    centred = from_anchor - mean
    variance = (share * centred * centred).sum(1, keepdim=True)
    spread = torch.where(variance == 0, 1.0 / largest, variance.sqrt())
    standard = torch.div(centred, spread, out=out)
    standard = standard if absent is None else standard.masked_fill_(absent, 0.0)
    # A spread too small for its dtype would leave a division by 0 to the gradient.
    spread = (spread * largest).clamp(min=torch.finfo(spread.dtype).tiny)
    return standard, ((mean + anchor) * largest)[:, 0], spread[:, 0]


def _standardized_backwards(
    grad_output: Tensor, weight: Tensor, standard: Tensor, spread: Tensor, *, out: Tensor | None
) -> tuple[Tensor, ...]:
    # With z the standardized scores, w their shares of the weight and g what arrives, the gradient of s is
    # (g - w (sum(g) + z sum(g z))) / spread: the mean and the spread move with the scores.
    share = weight / or_one(weight.sum(1, keepdim=True))
    moved = grad_output.sum(1, keepdim=True) + standard * (grad_output * standard).sum(1, keepdim=True)
    return (torch.div(grad_output - share * moved, spread[:, None], out=out),)


def _some_classes_at_once(function: Callable[..., tuple[Tensor, ...]], *by_class: Tensor) -> tuple[Tensor, ...]:
    # So many classes that what is derived from them stays in a core's cache; the first result goes where it belongs.
    classes, rows = by_class[0].shape
    together = max(1, _IN_CACHE // rows)
    if classes <= together or not is_eager(*by_class):
        return function(*by_class, out=None)
    whole = torch.empty_like(by_class[0], memory_format=torch.contiguous_format)
    parts = zip(*(tensor.split(together) for tensor in (*by_class, whole)), strict=True)
    found = [function(*part, out=out) for *part, out in parts]
    return whole, *(torch.cat(rest) for rest in list(zip(*found, strict=True))[1:])
