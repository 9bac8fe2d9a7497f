r"""The soft count by blocks of pairs: exact, for any scores; time ``scores x points``, memory one block.

The work goes through the smaller side, the points or the scores, one block of it against the whole of the other.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["NANOSECONDS", "dense_count", "dense_pairs"]

# Pairs worked on at once: a block of float32 (256 KiB) and what is derived from it stay in a core's cache.
_BLOCK = 2**16
# Of many pools more, since each block has some twenty small operations of its own.
_BLOCK_OF_MANY = 2**18
# Predicted cost of a pair, for its sigmoid or for its slope.
NANOSECONDS = 1.6


def dense_pairs(present: Tensor, wanted: Tensor) -> int:
    """Count the pairs of rows ``present[B, M]`` and points ``wanted[B, A]`` that :func:`dense_count` works through."""
    rows, points = present.shape[1], wanted.shape[1]
    if len(wanted) == 1:
        return rows * points
    return min(int(wanted.count_nonzero()) * rows, int(present.count_nonzero()) * points)


def dense_count(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    present: Tensor,
    wanted: Tensor,
    temperature: float,
    value: bool,
    slope: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Count as :mod:`rareloss.kernels.count` says, pair by pair."""
    shape = (weights.shape[0], weights.shape[1], at.shape[1])
    counts = weights.new_zeros(shape) if value else None
    slopes = weights.new_zeros(shape) if slope else None
    if scores.shape[0] > 1:
        _many_pools(scores, weights, at, present, wanted, temperature, counts, slopes)
    elif at.shape[1] <= scores.shape[1]:
        weight = weights[0].contiguous()
        for block in _blocks(at.shape[1], scores.shape[1]):
            for found, kernel in _kernels(scores - at[0, block, None], temperature, counts, slopes):
                torch.mm(weight, kernel.mT, out=found[0, :, block])
    else:
        for block in _blocks(scores.shape[1], at.shape[1]):
            for found, kernel in _kernels(scores[0, block, None] - at, temperature, counts, slopes):
                found[0].addmm_(weights[0, :, block], kernel)
    return counts, slopes


def _many_pools(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    present: Tensor,
    wanted: Tensor,
    temperature: float,
    counts: Tensor | None,
    slopes: Tensor | None,
) -> None:
    shared = weights[0] if weights.stride(0) == 0 else None
    if int(wanted.count_nonzero()) * scores.shape[1] <= int(present.count_nonzero()) * at.shape[1]:
        pools, points = wanted.nonzero(as_tuple=True)
        for block in _blocks(len(pools), scores.shape[1], _BLOCK_OF_MANY):
            pool, point = pools[block], points[block]
            apart = scores.index_select(0, pool).sub_(at[pool, point, None])
            for found, kernel in _kernels(apart, temperature, counts, slopes):
                found[pool, :, point] = (
                    kernel @ shared.mT if shared is not None else torch.einsum("nm,nkm->nk", kernel, weights[pool])
                )
    else:
        pools, rows = present.nonzero(as_tuple=True)
        for block in _blocks(len(pools), at.shape[1], _BLOCK_OF_MANY):
            pool, row = pools[block], rows[block]
            apart = at.index_select(0, pool).neg_().add_(scores[pool, row, None])
            for found, kernel in _kernels(apart, temperature, counts, slopes):
                for k in range(found.shape[1]):
                    found[:, k].index_add_(0, pool, kernel * weights[pool, k, row, None])


def _blocks(count: int, against: int, most: int = _BLOCK) -> Iterator[slice]:
    size = max(1, most // max(against, 1))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _kernels(
    apart: Tensor, temperature: float, counts: Tensor | None, slopes: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    # Scores are subtracted first: near ones differ exactly in floating point, their quotients do not.
    per_temperature = min(1 / temperature, torch.finfo(apart.dtype).max)
    distance = apart.mul_(per_temperature)
    if counts is not None:
        yield counts, distance.sigmoid()
    if slopes is not None:
        # sigmoid' from the lower tail, which keeps its digits on either side.
        tail = distance.abs_().neg_().sigmoid_()
        yield slopes, (1 - tail).mul_(tail).mul_(per_temperature)
