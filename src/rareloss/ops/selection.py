"""Weighted selection: the rows that hold the top share of the weight, and the weight above given scores.

Sums are float64, or float32 on a device that has no other.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rareloss.eager import is_eager
from rareloss.ops.functions import accumulator
from rareloss.pool import gather_indices, safe_ratio, select

__all__ = ["Top", "band_fraction", "hard_count", "top"]

# Rows of a class that are sorted faster than they are searched.
_SORTED_ROWS = 4096
# Sampled standard deviations on either side of a share: of a million brackets one fails, and all rows are sorted.
_DEVIATIONS = 5.0
# A sort of a part takes a part of the memory and less time, but each point is looked up in each part.
_MOST_PARTS = 8
_PART = 131072
_ROWS_OF_A_POINT = 8


class Top(NamedTuple):
    """The rows that hold the top of the weight, down to the group of equal scores where it reaches its target.

    Attributes:
        scores: ``[C, n]``, of every row with weight down to that group, and perhaps of others.
        weight: ``[C, n]``, theirs.
        score: ``[C, 1]``, the group's; -inf where all the weight falls short by rounding.
        above: ``[C, 1]``, the weight of higher scores.
        tied: ``[C, 1]``, the weight of the group.
        target: ``[C, 1]``, the weight to be reached.
    """

    scores: Tensor
    weight: Tensor
    score: Tensor
    above: Tensor
    tied: Tensor
    target: Tensor

    def part(self, scores: Tensor) -> Tensor:
        """Compute how much of a row at each of ``scores[C, n]`` lies in the top: tied rows share alike."""
        share = safe_ratio(self.target - self.above, self.tied).clamp(0.0, 1.0)
        return torch.where(scores > self.score, 1.0, torch.where(scores == self.score, share, 0.0))


def top(scores: Tensor, weight: Tensor, share: float) -> Top:
    """Find the rows that hold the top ``share`` of the weight.

    Where values can be looked at, large classes are not sorted: a sample brackets the edge, one pass over the rows
    makes sure of it, and only rows inside the bracket are sorted.

    Args:
        scores: ``[C, M]``, float32 or float64.
        weight: ``[C, M]``, not negative; 0 means absent.
        share: of the weight, in (0, 1].

    Example:
        >>> found = top(torch.tensor([[4.0, 3.0, 3.0, 1.0]]), torch.ones(1, 4), 0.5)
        >>> found.score, found.part(torch.tensor([[5.0, 3.0, 2.0]]))
        (tensor([[3.]]), tensor([[1.0000, 0.5000, 0.0000]], dtype=torch.float64))
    """
    total = _sum(weight)
    target = share * total
    fixed = scores.detach()
    if scores.shape[1] > _SORTED_ROWS and is_eager(scores, weight):
        low, high = _bracket(fixed, weight, share)
        indices, heavy = gather_indices(weight, fixed >= low, True)
        rows = select(scores, indices)
        inside, already = (rows.detach(), heavy), torch.zeros_like(total)
        if rows.shape[1] > _SORTED_ROWS:
            beyond = rows.detach() > high
            already = _sum(torch.where(beyond, heavy, 0.0))
            indices, rest = gather_indices(heavy, ~beyond, True)
            inside = select(rows.detach(), indices), rest
        sure = (already < target) & ((_sum(heavy) >= target) | (low == -torch.inf)) | (total == 0)
        if bool(sure.all()):
            return Top(rows, heavy, *_edge(*inside, target, already), target)
    return Top(scores, weight, *_edge(fixed, weight, target, torch.zeros_like(total)), target)


def band_fraction(scores: Tensor, weight: Tensor, low: float, high: float) -> Tensor:
    """Compute how much of a row at each of ``scores[C, M]`` lies between two fractions of the weight, from the top."""
    # All of the weight is also all that scores lower, whatever a running sum misses by rounding.
    inside = top(scores, weight, high).part(scores) if high < 1 else torch.ones_like(scores)
    return inside - top(scores, weight, low).part(scores) if low > 0 else inside


def _sum(weight: Tensor) -> Tensor:
    return weight.sum(1, keepdim=True, dtype=accumulator(weight))


def _bracket(scores: Tensor, weight: Tensor, share: float) -> tuple[Tensor, Tensor]:
    # Two scores of each class, [C, 1], that very likely have the edge between them, by about 4 sqrt(M) of the rows.
    step = int(scores.shape[1] ** 0.5 / 4)
    sample, order = scores[:, ::step].sort(dim=1, descending=True)
    heavy = weight[:, ::step].gather(1, order).to(accumulator(weight))
    until = heavy.cumsum(1)
    deviation = (share * (1.0 - share) * heavy.square().sum(1, keepdim=True)).sqrt()
    margin = _DEVIATIONS * (deviation + heavy.amax(1, keepdim=True))
    middle = share * until[:, -1:]
    low = pad(sample, (0, 1), value=-torch.inf).gather(1, (until < middle + margin).sum(1, keepdim=True))
    high = pad(sample, (1, 0), value=torch.inf).gather(1, (until < middle - margin).sum(1, keepdim=True))
    return low, high


def _edge(scores: Tensor, weight: Tensor, target: Tensor, already: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Score, weight above and weight of the tied group where these rows, below so much other weight, reach the target.
    ordered, order = scores.sort(dim=1, descending=True)
    until = weight.gather(1, order).cumsum(1, dtype=accumulator(weight)) + already
    score = pad(ordered, (0, 1), value=-torch.inf).gather(1, (until < target).sum(1, keepdim=True))
    above = already + _sum(torch.where(scores > score, weight, 0.0))
    return score, above, _sum(torch.where(scores == score, weight, 0.0))


def hard_count(
    scores: Tensor, weight: Tensor, at: Tensor, with_ties: tuple[bool, ...] = (False, True)
) -> tuple[Tensor, ...]:
    """Count the weight of scores above each point, and of those at or above it: what the soft count tends to.

    Counts add up over any parts of the rows, so few points let a large class be sorted part by part.

    Args:
        scores: ``[C, M]``.
        weight: ``[C, M]``.
        at: ``[C, A]``.
        with_ties: for each count wanted, whether scores at the point are in it.

    Returns:
        the counts, each ``[C, A]``.

    Example:
        >>> above, or_at = hard_count(torch.tensor([[3.0, 1.0, 2.0]]), torch.ones(1, 3), torch.tensor([[2.0]]))
        >>> above.item(), or_at.item()
        (1.0, 2.0)
    """
    rows, points = scores.shape[1], at.shape[1]
    parts = max(1, min(_MOST_PARTS, rows // _PART, rows // (_ROWS_OF_A_POINT * max(1, points))))
    # Points in order look up neighbours.
    at, place = at.sort(dim=1, descending=True)
    dtype = accumulator(weight)
    counts = [torch.zeros_like(at, dtype=dtype) for _ in with_ties]
    size = -(-rows // parts)
    alike = weight.stride(1) == 0  # one number seen everywhere: the rows are counted
    for some, heavy in zip(scores.split(size, 1), weight.split(size, 1), strict=True):
        ordered, order = some.sort(dim=1, descending=True)
        until = None if alike else pad(heavy.gather(1, order).cumsum(1, dtype=dtype), (1, 0))
        upwards = ordered.neg_()
        for count, ties in zip(counts, with_ties, strict=True):
            reached = torch.searchsorted(upwards, -at, right=ties)
            count += reached * heavy[:, :1].to(dtype) if until is None else until.gather(1, reached)
    return tuple(torch.empty_like(count).scatter_(1, place, count) for count in counts)
