"""The soft count: the one primitive of every ranking loss, and the one door to its engines."""

import torch
from torch import Tensor

from rareloss import checks
from rareloss.ops.counting import soft_count_at

__all__ = ["count_above", "soft_count"]


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
    at = scores if at is None else at

    def by_class(x: Tensor) -> Tensor:
        return (x[..., None] if scores.ndim == 1 else x).to(dtype).movedim(-1, 0)

    stack = weights if stacked else weights[None]
    counts = count_above(by_class(scores), by_class(stack), by_class(at), temperature=temperature).movedim(0, -1)
    counts = counts[..., 0] if scores.ndim == 1 else counts
    return counts if stacked else counts[0]


def count_above(
    scores: Tensor, weights: Tensor, at: Tensor | None = None, *, temperature: float, where: Tensor | None = None
) -> Tensor:
    """Compute counts ``[C, K, A]`` of ``scores[C, M]``, ``weights[C, K, M]`` at ``at[C, A]``.

    Outside of ``where`` a count is anything finite and without gradient.
    """
    at = scores if at is None else at
    where = at.new_ones((1, 1), dtype=torch.bool).expand_as(at) if where is None else where
    # Another view, since the points may be the scores: dynamo refuses one tensor in two places.
    return soft_count_at(scores, weights, at.view_as(at), where, temperature)
