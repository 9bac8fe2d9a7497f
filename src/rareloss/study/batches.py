"""Which train rows a step sees: small batches for cross-entropy, pools for a ranking loss."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["PAIRS", "Batches", "batches", "pool_sizes", "pools"]

# A pool for a ranking loss: at most so many pairs of a positive and a row.
PAIRS = 5_000_000
# Of a rare class so many rows are in a pool at most: more add less than the negatives that they displace.
MOST_POSITIVES = 400
# The largest pool, whatever the pairs: recall needs rows around its threshold, not more.
MOST_ROWS = 16_384

Batches = Iterator[tuple[Tensor, Tensor]]


def batches(target: Tensor, size: int, seed: int) -> Batches:
    """Yield rows and weights for ever: shuffled passes over all rows, ``size`` at a time."""
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(size)
    while True:
        order = torch.randperm(len(target), generator=generator)
        for rows in torch.split(order, size):
            if len(rows) == size:
                yield rows, ones


def pools(target: Tensor, seed: int) -> Batches:
    """Yield rows and weights of pools for a ranking loss, for ever.

    Everything where that is affordable; else a sample by class, weighted so that it stands for all train rows.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(target)
    sizes = pool_sizes(counts)
    strata = [(target == index).nonzero()[:, 0] for index in range(len(counts))]
    if sizes == counts.tolist():
        everything = torch.arange(len(target)), torch.ones(len(target))
        while True:
            yield everything
    stands_for = [len(rows) / max(size, 1) for rows, size in zip(strata, sizes, strict=True)]
    weight = torch.tensor(stands_for).repeat_interleave(torch.tensor(sizes))
    weight = weight / weight.mean()
    while True:
        drawn = [
            rows[torch.randperm(len(rows), generator=generator)[:size]]
            for rows, size in zip(strata, sizes, strict=True)
        ]
        yield torch.cat(drawn), weight


def pool_sizes(counts: Tensor) -> list[int]:
    """Compute how many rows of each class a pool holds; see :data:`PAIRS`, :data:`MOST_POSITIVES`."""
    if len(counts) == 2:
        if int(counts[1]) * int(counts.sum()) <= PAIRS:
            return [int(count) for count in counts]
        positives = min(int(counts[1]), MOST_POSITIVES)
        return [min(int(counts[0]), max(1, min(PAIRS // positives, MOST_ROWS) - positives)), positives]
    rows = min(int(counts.sum()), math.isqrt(PAIRS))
    # Each class is positive in its turn: the rare ones whole, and the common ones cut to one level.
    level = rows
    while int(counts.clamp(max=level).sum()) > rows:
        level -= max(1, (int(counts.clamp(max=level).sum()) - rows) // len(counts))
    return [min(int(count), level) for count in counts]
