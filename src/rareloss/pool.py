"""The pool that rows are ranked in: its checks, its weights, its spread, and the value it gives per class."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import threshold

from rareloss import checks

__all__ = [
    "PerClass",
    "Pool",
    "chosen",
    "constant_weight",
    "lay_out",
    "make_pool",
    "one_or_nan",
    "or_one",
    "per_class",
    "picked",
    "safe_ratio",
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
        return PerClass(self.value[0], self.defined[0]) if scores.ndim == 1 else self


class Pool(NamedTuple):
    """Rows by class, weight 0 standing for absent.

    Attributes:
        scores: ``[C, M]`` in float32 at least, finite where absent.
        is_positive: ``[C, M]``, bool.
        weight: ``[C, M]``, of all rows, without gradient; one number seen everywhere where none was given.
        iid: ``[C, M]``, bool: rows drawn like deployment data; None if all are.
    """

    scores: Tensor
    is_positive: Tensor
    weight: Tensor
    iid: Tensor | None

    def by_row(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, positives and weights as ``[M, C]``."""
        return self.scores.mT, self.is_positive.mT, self.weight.mT

    @property
    def counted(self) -> Tensor:
        """The weight of rows drawn like deployment data, ``[C, M]``, 0 at others."""
        return self.weight if self.iid is None else torch.where(self.iid, self.weight, 0.0)

    @property
    def negative(self) -> Tensor:
        """The weight of negatives among them, ``[C, M]``, 0 at positives."""
        return torch.where(self.is_positive, 0.0, self.counted)

    def positive(self) -> tuple[Tensor | None, Tensor]:
        """Choose the positives: their places and their weights; see :func:`chosen`."""
        return chosen(self.weight, self.is_positive)


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
    column: Callable[[Tensor], Tensor] = lambda tensor: tensor[:, None] if tensor.ndim == 1 else tensor  # noqa: E731
    pool = lay_out(
        column(scores.to(dtype)),
        column(positive),
        None if weight is None else column(constant_weight(weight, dtype)),
        None if iid_mask is None else column(iid_mask),
    )
    absent = None if weight is None else where_absent(pool.weight)
    return pool if absent is None else pool._replace(scores=pool.scores.masked_fill(absent, 0.0))


def lay_out(scores: Tensor, positive: Tensor, weight: Tensor | None, iid: Tensor | None) -> Pool:
    """Lay rows out by class.

    Args:
        scores: ``[M, C]``.
        positive: ``[M, C]``.
        weight: ``[M, C]`` or ``[M, 1]``; 1 by default.
        iid: ``[M, C]`` or ``[M, 1]``; all true by default.
    """
    rows, classes = scores.shape
    if not rows:
        # An empty pool gets one absent row, so that every reduction has something to reduce.
        one = scores.new_zeros(1, classes)
        return lay_out(torch.cat([scores, one]), one > 0, one, None)

    def by_class(tensor: Tensor) -> Tensor:
        # One number for all classes of a row stays one.
        alike = tensor.shape[1] != classes or (classes > 1 and tensor.stride(1) == 0)
        return tensor[:, :1].expand(rows, classes).mT if alike else tensor.mT.contiguous()

    # One number seen everywhere costs no memory.
    return Pool(
        by_class(scores),
        by_class(positive),
        scores.new_ones(1, 1).expand(classes, rows) if weight is None else by_class(weight),
        None if iid is None else by_class(iid),
    )


def constant_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weights without gradient in ``dtype``; 0 for those too light to be divided by."""
    return threshold(weight.detach().to(dtype), checks.LIGHTEST, 0.0)


def where_absent(weight: Tensor) -> Tensor | None:
    """Find where ``weight`` is 0, in a shape that broadcasts to its own; None where a free look says nowhere."""
    for dim, size in enumerate(weight.shape):
        if size > 1 and weight.stride(dim) == 0:  # one number seen everywhere
            weight = weight.narrow(dim, 0, 1)
    if checks.values_readable(weight) and weight.numel() and weight.amin().item() > 0:
        return None
    return weight <= 0


def chosen(weight: Tensor, among: Tensor) -> tuple[Tensor | None, Tensor]:
    """Choose rows that hold all weight of the rows ``among[C, M]``, where they can be looked up for free.

    Returns:
        their places and their weights, ``[C, n]``, with n the most rows that a class has; shorter classes are filled up
        with rows of weight 0. Where they cannot be looked up: None for all rows, and their weights.
    """
    if not (checks.values_readable(among) and checks.values_readable(weight)):
        return None, torch.where(among, weight, 0.0)
    absent = where_absent(weight)
    among = among if absent is None else among & ~absent
    if len(among) == 1:
        places = among[0].nonzero()[None, :, 0]
        return places, weight.index_select(1, places[0])
    class_, row = among.nonzero(as_tuple=True)
    number = torch.bincount(class_, minlength=len(among))
    most = max(number.tolist(), default=0)
    place = torch.arange(len(row)) - (number.cumsum(0) - number).index_select(0, class_)
    places = torch.zeros(len(among), most, dtype=torch.int64).index_put((class_, place), row)
    filled = torch.arange(most) < number[:, None]
    return places, weight.gather(1, places) * filled


def picked(scores: Tensor, places: Tensor | None) -> Tensor:
    """Pick the scores ``[C, n]`` at places that :func:`chosen` chose."""
    if places is None:
        return scores
    return scores.index_select(1, places[0]) if len(scores) == 1 else scores.gather(1, places)


def safe_ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Divide, with 0 (and gradient 0) where ``whole`` is 0."""
    empty = whole == 0
    return (part / or_one(whole)).masked_fill(empty, 0.0)


def per_class(pool: Pool, value: Tensor, positive: Tensor) -> PerClass:
    """Say which values are defined: those of classes with positives, and negatives drawn like deployment data.

    Args:
        pool: what was ranked.
        value: ``[C]``.
        positive: the weight of the positives, ``[C]``.

    Returns:
        the values; NaN with gradient 0 where undefined; where a score is not finite, value and gradient are NaN.
    """
    absent = where_absent(pool.counted)
    no_negative = pool.is_positive if absent is None else pool.is_positive | absent
    undefined = (positive <= 0) | no_negative.all(1)
    return PerClass((value * one_or_nan(pool.scores)).masked_fill(undefined, torch.nan), ~undefined)


def one_or_nan(scores: Tensor) -> Tensor:
    """Return 1 for each class of ``scores[C, M]`` that are finite, else NaN, without gradient."""
    scores = scores.detach()
    return torch.addcmul(scores.amin(1) * 0.0 + 1.0, scores.amax(1), scores.new_zeros(()))


def or_one(total: Tensor) -> Tensor:
    """Return ``total``, 1 where it is 0."""
    return total.masked_fill(total == 0, 1.0)
