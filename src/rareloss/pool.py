"""The rows that are ranked, class by class: scores, positives and weights, and the value that a metric gives them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import threshold

from rareloss import checks
from rareloss.eager import is_eager

__all__ = [
    "PerClass",
    "Pool",
    "constant_weight",
    "gather_indices",
    "make_pool",
    "one_or_nan",
    "or_one",
    "per_class",
    "safe_ratio",
    "select",
    "where_absent",
]


class PerClass(NamedTuple):
    """A value per class, and whether the class has what the value needs.

    A result of one class is a number to ``float`` and in f-strings; of several, a format goes to each value.

    Attributes:
        value: ``[C]``, or 0-d for scores ``[M]``; NaN where not defined.
        defined: bool, same shape.

    Example:
        >>> f"{PerClass(torch.tensor(0.8333), torch.tensor(True)):.2f}"
        '0.83'
        >>> f"{PerClass(torch.tensor([0.8333, 0.5]), torch.tensor([True, True])):.1%}"
        '[83.3%, 50.0%]'
    """

    value: Tensor
    defined: Tensor

    def __float__(self) -> float:
        if self.value.numel() != 1:
            raise TypeError(f"only the value of one class is a number, got {self.value.numel()} classes; take .value")
        return float(self.value.detach())

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        if self.value.numel() == 1:
            return format(float(self), spec)
        return "[" + ", ".join(format(value, spec) for value in self.value.detach().tolist()) + "]"

    def like(self, scores: Tensor) -> "PerClass":
        """Return the same, 0-d for scores ``[M]``."""
        if scores.ndim != 1 or self.value.ndim == 0:
            return self
        return PerClass(self.value.squeeze(0), self.defined.squeeze(0))


@dataclass(frozen=True)
class Pool:
    """Rows by class, ``[C, M]``; weight 0 means absent.

    Attributes:
        scores: ``[C, M]`` in float32 at least, finite where absent.
        is_positive: ``[C, M]``, bool.
        weight: ``[C, M]``, the scores' dtype, without gradient. Where every row weighs 1 it is one number, expanded.
        iid: ``[C, M]``, bool: rows drawn like deployment data; None if all are.
        eager: whether values may be looked at without breaking a graph or making a device wait.
        live: ``[C, n]``, the scores of the first n rows with their gradient, where the other rows are remembered ones
            and ``scores`` carries no gradient; None where ``scores`` does.
    """

    scores: Tensor
    is_positive: Tensor
    weight: Tensor
    iid: Tensor | None
    eager: bool
    live: Tensor | None = None

    @property
    def unweighted(self) -> bool:
        """Whether every weight is known to be 1."""
        return is_expanded(self.weight)

    @property
    def threshold_weight(self) -> Tensor:
        """The weight of the iid rows, which set thresholds and the standard deviation, ``[C, M]``; 0 at others."""
        return self.weight if self.iid is None else torch.where(self.iid, self.weight, 0.0)

    @property
    def negative_weight(self) -> Tensor:
        """The weight of the iid negatives, ``[C, M]``; 0 at others."""
        return torch.where(self.is_positive, 0.0, self.threshold_weight)

    @property
    def positive_weight(self) -> Tensor:
        """The weight of the positives, iid or not, ``[C, M]``; 0 at others."""
        return torch.where(self.is_positive, self.weight, 0.0)

    def positives(self) -> tuple[Tensor | None, Tensor]:
        """Return the indices of the positives and their weights; see :func:`gather_indices`."""
        return gather_indices(self.weight, self.is_positive, self.eager)

    def pack(self) -> Tensor:
        """Lay the rows out as ``[M, 3 C + 1]``, so that one exchange between ranks carries them."""
        iid = self.is_positive.new_ones(1, self.scores.shape[1]) if self.iid is None else self.iid[:1]
        dtype = self.scores.dtype
        return torch.cat([self.scores, self.is_positive.to(dtype), self.weight, iid.to(dtype)]).mT

    @staticmethod
    def unpack(packed: Tensor, check_values: bool | None = None) -> "Pool":
        """Undo :meth:`pack`."""
        classes = (packed.shape[1] - 1) // 3
        scores, is_positive, weight, iid = packed.mT.contiguous().split([classes, classes, classes, 1])
        iid = iid.detach() > 0.5
        pool = pool_of(scores, is_positive.detach() > 0.5, weight.detach(), iid.expand(classes, -1), check_values)
        if pool.iid is None or not (pool.eager and bool(iid.all())):
            return pool
        return Pool(pool.scores, pool.is_positive, pool.weight, None, pool.eager)

    def joined(self) -> "Pool":
        """Return the pool with the gradient of the live rows in its scores."""
        if self.live is None:
            return self
        return self.with_scores(torch.cat([self.live, self.scores[:, self.live.shape[1] :]], 1))

    def with_scores(self, scores: Tensor) -> "Pool":
        """Return the same rows with other scores ``[C, M]``, which carry the gradient."""
        return Pool(scores, self.is_positive, self.weight, self.iid, self.eager)


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
        weight = constant_weight(weight, dtype)
    if iid_mask is not None:
        checks.boolean("iid_mask", checks.same_shape("iid_mask", iid_mask, scores.shape, scores.shape[:1]))
    classes = 1 if scores.ndim == 1 else scores.shape[1]
    pool = pool_of(
        _by_class(scores if scores.dtype == dtype else scores.to(dtype), classes),
        _by_class(positive, classes),
        None if weight is None else _by_class(weight, classes),
        None if iid_mask is None else _by_class(iid_mask, classes),
    )
    absent = None if weight is None else where_absent(pool.weight, pool.eager)
    return pool if absent is None else pool.with_scores(pool.scores.masked_fill(absent, 0.0))


def pool_of(
    scores: Tensor, is_positive: Tensor, weight: Tensor | None, iid: Tensor | None, check_values: bool | None = None
) -> Pool:
    """Make a pool of rows ``[C, M]`` that have been checked; an empty one gets one absent row.

    So every reduction has something to reduce.
    """
    eager = is_eager(scores, is_positive, check_values=check_values)
    if not scores.shape[1]:
        row = scores.new_zeros(len(scores), 1)
        return Pool(torch.cat([scores, row], 1), row > 0, row, None, eager)
    weight = scores.new_ones(1, 1).expand(scores.shape) if weight is None else weight
    return Pool(scores, is_positive, weight, iid, eager)


def _by_class(tensor: Tensor, classes: int) -> Tensor:
    # [M] or [M, C] as [C, M]; one number for all classes of a row stays one, one for all rows does not.
    if tensor.ndim == 1 and classes == 1:
        return tensor.contiguous()[None]  # its backward pass is a view, that of expand a sum
    if tensor.ndim == 1:
        return tensor.contiguous().expand(classes, -1)
    if classes > 1 and tensor.stride(1) == 0:
        return tensor[:, 0].contiguous().expand(classes, -1)
    return tensor.mT.contiguous()


def is_expanded(tensor: Tensor) -> bool:
    """Say whether ``[C, M]`` is one number, expanded."""
    return tensor.stride(1) == 0 and (tensor.shape[0] == 1 or tensor.stride(0) == 0)


def constant_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weights without gradient in ``dtype``; 0 for those too light to be divided by."""
    return threshold(weight.detach().to(dtype), checks.LIGHTEST, 0.0)


def where_absent(weight: Tensor, eager: bool) -> Tensor | None:
    """Find where ``weight`` is 0, in a shape that broadcasts to its own; None where a free look says nowhere."""
    for dim, size in enumerate(weight.shape):
        if size > 1 and weight.stride(dim) == 0:
            weight = weight.narrow(dim, 0, 1)
    if eager and weight.numel() and weight.amin().item() > 0:
        return None
    return weight <= 0


def gather_indices(weight: Tensor, among: Tensor, eager: bool) -> tuple[Tensor | None, Tensor]:
    """Find the rows ``among[C, M]`` that have weight, where they may be looked at.

    Returns:
        their indices and weights, ``[C, n]``, with n the most that a class has; shorter classes are padded with weight
        0. Where they may not be looked at: None for all rows, and ``[C, M]`` weights, 0 outside of ``among``.
    """
    if not eager:
        return None, torch.where(among, weight, 0.0)
    absent = where_absent(weight, eager)
    among = among if absent is None else among & ~absent
    if len(among) == 1:
        indices = among[0].nonzero()[None, :, 0]
        return indices, weight.index_select(1, indices[0])
    class_, row = among.nonzero(as_tuple=True)
    count = torch.bincount(class_, minlength=len(among))
    most = max(count.tolist(), default=0)
    column = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count).index_select(0, class_)
    indices = torch.zeros(len(among), most, dtype=torch.int64, device=row.device).index_put((class_, column), row)
    filled = torch.arange(most, device=row.device) < count[:, None]
    return indices, weight.gather(1, indices) * filled


def select(scores: Tensor, indices: Tensor | None) -> Tensor:
    """Select the scores ``[C, n]`` at indices of :func:`gather_indices`."""
    if indices is None:
        return scores
    return scores.index_select(1, indices[0]) if len(scores) == 1 else scores.gather(1, indices)


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 0 (and gradient 0) where ``denominator`` is 0."""
    return (numerator / or_one(denominator)).masked_fill(denominator == 0, 0.0)


def or_one(total: Tensor) -> Tensor:
    """Return ``total``, 1 where it is 0."""
    return total.masked_fill(total == 0, 1.0)


def per_class(pool: Pool, value: Tensor) -> PerClass:
    """Say which values ``[C]`` are defined: those of classes with positives, and with iid negatives.

    Returns:
        the values; NaN with gradient 0 where undefined; where a score is not finite, value and gradient are NaN.
    """
    undefined = ~(_any(pool.is_positive, pool.weight, pool) & _any(~pool.is_positive, pool.threshold_weight, pool))
    return PerClass((value * one_or_nan(pool.scores)).masked_fill(undefined, torch.nan), ~undefined)


def _any(rows: Tensor, weight: Tensor, pool: Pool) -> Tensor:
    # Whether some of the rows [C, M] of each class have weight.
    if pool.eager and is_expanded(weight):
        return rows.view(torch.uint8).amax(1) > 0  # ten times as fast as any() of bools
    return (rows & (weight > 0)).any(1)


def one_or_nan(scores: Tensor) -> Tensor:
    """Return 1 for each class of ``scores[C, M]`` that are finite, else NaN, without gradient."""
    scores = scores.detach()
    return torch.addcmul(scores.amin(1) * 0.0 + 1.0, scores.amax(1), scores.new_zeros(()))
