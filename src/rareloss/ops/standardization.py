"""Standardization (z-scores): a pool's scores with mean 0 and standard deviation 1, both functions of the pool."""

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
    r"""Put scores in units of their standard deviation: :math:`(s - \bar s) / \mathrm{std}`, with all of its gradient.

    Returns:
        the pool with standardized scores (0 where absent), the mean and the weighted standard deviation, 1
        where that is 0, both ``[C]`` and without gradient.
    """
    function = _EagerStandardize if is_eager(pool.scores, pool.weight) else _Standardize
    scores, mean, std = function.apply(pool.scores, pool.weight)
    return pool._replace(scores=scores), mean, std


class _Standardize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        standard, mean, std = _some_classes_at_once(_standardized, scores, weight)
        return standard, mean, std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        standard, mean, std = output
        ctx.mark_non_differentiable(mean, std)
        ctx.save_for_backward(inputs[1], standard, std)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _some_classes_at_once(_standardized_backwards, gradients[0], *ctx.saved_tensors)[0], None


_EagerStandardize = eager_twin(_Standardize)


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
    std = torch.where(variance == 0, 1.0 / largest, variance.sqrt())
    standard = torch.div(centred, std, out=out)
    standard = standard if absent is None else standard.masked_fill_(absent, 0.0)
    # A deviation too small for its dtype would leave a division by 0 to the gradient.
    std = (std * largest).clamp(min=torch.finfo(std.dtype).tiny)
    return standard, ((mean + anchor) * largest)[:, 0], std[:, 0]


def _standardized_backwards(
    grad_output: Tensor, weight: Tensor, standard: Tensor, std: Tensor, *, out: Tensor | None
) -> tuple[Tensor, ...]:
    # With z the standardized scores, w their shares of the weight and g what arrives, the gradient of s is
    # (g - w (sum(g) + z sum(g z))) / std: the mean and the deviation move with the scores.
    share = weight / or_one(weight.sum(1, keepdim=True))
    moved = grad_output.sum(1, keepdim=True) + standard * (grad_output * standard).sum(1, keepdim=True)
    return (torch.div(grad_output - share * moved, std[:, None], out=out),)


def _some_classes_at_once(function: Callable[..., tuple[Tensor, ...]], *by_class: Tensor) -> tuple[Tensor, ...]:
    # So many classes that what is derived from them stays in a core's cache; the first result goes where it belongs.
    classes, rows = by_class[0].shape
    together = max(1, _IN_CACHE // rows)
    if classes <= together or not is_eager(*by_class):
        return function(*by_class, out=None)
    first = torch.empty_like(by_class[0], memory_format=torch.contiguous_format)
    blocks = zip(*(tensor.split(together) for tensor in (*by_class, first)), strict=True)
    results = [function(*block, out=out) for *block, out in blocks]
    return first, *(torch.cat(rest) for rest in list(zip(*results, strict=True))[1:])
