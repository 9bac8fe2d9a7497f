"""Standardization of a pool's scores: mean 0 and standard deviation 1, both functions of the pool."""

from typing import Any

import torch
from torch import Tensor

from rareloss.pool import Pool, or_one

__all__ = ["standardize"]


def standardize(pool: Pool) -> tuple[Pool, Tensor, Tensor]:
    r"""Standardize scores: :math:`(s - \bar s) / \mathrm{std}`, with all of its gradient.

    Mean and standard deviation are those of the iid rows, by weight.

    Returns:
        the pool with standardized scores (0 where absent), the mean and the standard deviation, both ``[C]`` and
        without gradient. A standard deviation of 0 counts as 1.
    """
    # Another view, since both weights may be one tensor: a graph refuses one tensor in two places.
    iid_weight = pool.threshold_weight.view_as(pool.weight)
    scores, mean, std = _Standardize.apply(pool.scores, pool.weight, iid_weight)  # type: ignore[no-untyped-call]
    return pool.with_scores(scores), mean, std


class _Standardize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, weight: Tensor, iid_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The largest comes out first, so that nothing overflows; then an iid row, so that equal scores are all 0.
        largest = scores.abs().amax(1, keepdim=True)
        largest = largest.masked_fill(largest < torch.finfo(largest.dtype).tiny, 1.0)
        scaled = scores / largest
        anchor = scaled.gather(1, iid_weight.argmax(1, keepdim=True))
        fraction = iid_weight / or_one(iid_weight.sum(1, keepdim=True))
        from_anchor = scaled - anchor
        mean = (fraction * from_anchor).sum(1, keepdim=True)
        centred = from_anchor - mean
        variance = (fraction * centred * centred).sum(1, keepdim=True)
        std = torch.where(variance == 0, 1.0 / largest, variance.sqrt())
        standard = (centred / std).masked_fill(weight <= 0, 0.0)
        # A standard deviation too small for its dtype would leave a division by 0 to the gradient.
        std = (std * largest).clamp(min=torch.finfo(std.dtype).tiny)
        return standard, ((mean + anchor) * largest)[:, 0], std[:, 0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        standard, mean, std = output
        ctx.mark_non_differentiable(mean, std)
        ctx.save_for_backward(inputs[2], standard, std)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # Mean and standard deviation move with the scores: with z the standardized scores and f the fractions of the
        # iid weight, the gradient g becomes (g - f (sum(g) + z sum(g z))) / std.
        iid_weight, standard, std = ctx.saved_tensors
        grad_output = gradients[0]
        fraction = iid_weight / or_one(iid_weight.sum(1, keepdim=True))
        moved = grad_output.sum(1, keepdim=True) + standard * (grad_output * standard).sum(1, keepdim=True)
        return (grad_output - fraction * moved) / std[:, None], None, None
