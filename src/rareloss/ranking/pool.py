"""The pool that rows are ranked in: its checks, its weights, its spread, and the value it gives per class."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rareloss import checks
from rareloss.kernels.batching import eager_twin, is_plain

__all__ = [
    "PerClass",
    "Pool",
    "chosen",
    "make_pool",
    "per_class",
    "safe_ratio",
    "standardise",
    "where_absent",
]


class PerClass(NamedTuple):
    """A value per class, and whether the class has what the value needs.

    Attributes:
        value: ``[C]``, or 0-d for scores ``[M]``; NaN where not defined.
        defined: bool, same shape.
    """

    value: Tensor
    defined: Tensor


class Pool(NamedTuple):
    """Rows by class, weight 0 standing for absent.

    Attributes:
        scores: ``[C, M]`` in float32 at least, 0 where absent.
        is_positive: ``[C, M]``, bool.
        weight: ``[C, M]``, of all rows; one number seen everywhere where none was given.
        iid: ``[C, M]``, bool: rows drawn like deployment data.
    """

    scores: Tensor
    is_positive: Tensor
    weight: Tensor
    iid: Tensor

    @property
    def positive(self) -> Tensor:
        """The weight of positives, ``[C, M]``, 0 at negatives."""
        return torch.where(self.is_positive, self.weight, 0.0)  # several times as fast as a product with a bool

    @property
    def negative(self) -> Tensor:
        """The weight of negatives, ``[C, M]``, 0 at positives."""
        return torch.where(self.is_positive, 0.0, self.weight)

    @property
    def iid_negative(self) -> Tensor:
        """The weight of negatives drawn like deployment data, ``[C, M]``."""
        return torch.where(self.is_positive | ~self.iid, 0.0, self.weight)


def make_pool(scores: Tensor, positive: Tensor, weight: Tensor | None = None, iid_mask: Tensor | None = None) -> Pool:
    """Check rows and lay them out by class.

    Args:
        scores: ``[M]`` or ``[M, C]``; float.
        positive: bool, same shape.
        weight: same shape, or ``[M]``; 1 by default.
        iid_mask: bool, same shape, or ``[M]``; all true by default.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or a weight that is negative or not finite.
    """
    checks.floating("scores", scores)
    if scores.ndim not in (1, 2):
        raise ValueError(
            f"scores must have shape [M] or [M, C], got {tuple(scores.shape)}; flatten the leading dimensions"
        )
    checks.boolean("positive", checks.same_shape("positive", positive, scores.shape))
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if weight is not None:
        checks.same_shape("weight", weight, scores.shape, scores.shape[:1])
        checks.finite_weights("weight", weight)
    if iid_mask is not None:
        checks.boolean("iid_mask", checks.same_shape("iid_mask", iid_mask, scores.shape, scores.shape[:1]))
    rows, classes = scores.shape[0], 1 if scores.ndim == 1 else scores.shape[1]

    def by_class(tensor: Tensor) -> Tensor:
        columns = (tensor if tensor.ndim == 2 else tensor[:, None]).expand(rows, classes).mT
        # An empty pool gets one absent row, so that every reduction below has something to reduce.
        return columns if rows else torch.nn.functional.pad(columns, (0, 1))

    present = by_class(scores.to(dtype))
    if weight is None:
        # One number seen everywhere costs no memory.
        weight = present.new_full((1, 1), float(rows > 0)).expand(present.shape)
    else:
        weight = by_class(weight.detach().to(dtype))
        absent = where_absent(weight)
        present = present if absent is None else present.masked_fill(absent, 0.0)
    iid = positive.new_ones((1, 1)).expand(present.shape) if iid_mask is None else by_class(iid_mask)
    return Pool(present.contiguous(), by_class(positive).contiguous(), weight, iid)


def where_absent(weight: Tensor) -> Tensor | None:
    """Find where ``weight`` is 0, in a shape that broadcasts to its own; None where a free look says nowhere."""
    for dim in range(weight.ndim):
        if weight.shape[dim] and weight.stride(dim) == 0:  # one number seen everywhere
            weight = weight.narrow(dim, 0, 1)
    if checks.values_readable(weight) and weight.numel() and bool(weight.amin() > 0):
        return None
    return weight <= 0


def chosen(scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the rows ``[C, M]`` of weight above 0, where that can be looked up for free; otherwise keep them all.

    Returns:
        their scores and weights, ``[C, n]``, with n the most rows that a class has; shorter classes are filled up with
        rows of weight 0.
    """
    if not (checks.values_readable(scores) and checks.values_readable(weight)):
        return scores, weight
    class_, row = (weight > 0).nonzero(as_tuple=True)
    if len(scores) == 1:
        return scores.index_select(1, row), weight.index_select(1, row)
    number = torch.bincount(class_, minlength=len(scores))
    most = max(number.tolist(), default=0)
    place = torch.arange(len(row)) - (number.cumsum(0) - number).index_select(0, class_)
    rows = torch.zeros(len(scores), most, dtype=torch.int64).index_put((class_, place), row)
    filled = torch.arange(most) < number[:, None]
    return scores.gather(1, rows), weight.gather(1, rows) * filled


def safe_ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Divide, with 0 (and gradient 0) where ``whole`` is 0."""
    empty = whole == 0
    return (part / _or_one(whole)).masked_fill(empty, 0.0)


def per_class(pool: Pool, value: Tensor, negative: Tensor, like: Tensor) -> PerClass:
    """Say which values are defined: those of classes with positives and, by the weights ``negative[C, M]``, negatives.

    An undefined value is NaN with gradient 0; where a present row is not finite, value and gradient are NaN.
    ``like`` is the caller's scores: for ``[M]`` the result is 0-d.
    """
    defined = (pool.positive.amax(1) > 0) & (negative.amax(1) > 0)
    nan_if_infinite = (pool.scores.detach() * 0).sum(1)
    value = (value * (1 + nan_if_infinite)).masked_fill(~defined, torch.nan)
    return PerClass(value[0], defined[0]) if like.ndim == 1 else PerClass(value, defined)


def standardise(scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Compute :math:`(s - \bar s) / \mathrm{spread}` per class, with the gradient through all three.

    Args:
        scores: ``[M, C]``.
        weight: ``[M, C]``, without gradient; scores of weight 0 change nothing.

    Returns:
        the standardised scores ``[M, C]`` (0 where absent), the mean and the spread, both ``[C]`` and without gradient.
        The spread is the weighted standard deviation, 1 where that is 0.
    """
    if not scores.shape[0]:
        return scores, scores.new_zeros(scores.shape[1]), scores.new_ones(scores.shape[1])
    if is_plain(scores, weight):
        standard, mean, spread = _EagerStandardise.apply(scores, weight)
    else:
        standard, mean, spread = _Standardise.apply(scores, weight)  # type: ignore[no-untyped-call]
    return standard, mean, spread


class _Standardise(torch.autograd.Function):
    # With z the standardised scores, w their shares of the weight and g what arrives, the gradient of s is
    # (g - w (sum(g) + z sum(g z))) / spread: the mean and the spread move with the scores.
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        absent = where_absent(weight)
        low, high = _lowest_and_highest(scores, absent)
        # The largest comes out first, so that nothing overflows; then the middle, so that equal scores are exactly 0.
        largest = torch.maximum(low.abs(), high.abs())
        largest = largest.masked_fill(largest < torch.finfo(largest.dtype).tiny, 1.0)
        scaled = scores / largest - (low / largest / 2 + high / largest / 2)
        scaled = scaled if absent is None else scaled.masked_fill(absent, 0.0)
        share = weight / _or_one(weight.sum(0))
        mean = (share * scaled).sum(0)
        centred = scaled - mean
        centred = centred if absent is None else centred.masked_fill(absent, 0.0)
        variance = (share * centred * centred).sum(0)
        spread = torch.where(variance == 0, 1.0 / largest, variance.sqrt())
        return centred / spread, mean * largest + (low / 2 + high / 2), spread * largest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        standard, mean, spread = output
        ctx.mark_non_differentiable(mean, spread)
        ctx.save_for_backward(inputs[1], standard, spread)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weight, standard, spread = ctx.saved_tensors
        absent = where_absent(weight)
        arriving = gradients[0] if absent is None else gradients[0].masked_fill(absent, 0.0)
        share = weight / _or_one(weight.sum(0))
        moved = arriving.sum(0) + standard * (arriving * standard).sum(0)
        return (arriving - share * moved) / spread, None


def _or_one(total: Tensor) -> Tensor:
    return total.masked_fill(total == 0, 1.0)


_EagerStandardise = eager_twin(_Standardise)


def _lowest_and_highest(scores: Tensor, absent: Tensor | None) -> tuple[Tensor, Tensor]:
    if absent is None:
        return scores.amin(0), scores.amax(0)
    low = scores.masked_fill(absent, torch.inf).amin(0)
    high = scores.masked_fill(absent, -torch.inf).amax(0)
    nothing = low > high
    return low.masked_fill(nothing, 0.0), high.masked_fill(nothing, 0.0)
