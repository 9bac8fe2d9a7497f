r"""The soft count by blocks of pairs: exact, for any scores; time ``scores x points``, memory one block.

The work goes through the smaller side, the points or the scores, one block of it against the whole of the other.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "NANOSECONDS",
    "NANOSECONDS_PER_RANKED_PAIR",
    "RankedPairs",
    "dense_count",
    "dense_pairs",
    "least_nanoseconds",
]

# Pairs worked on at once: a block of float32 (256 KiB) and what is derived from it stay in a core's cache.
_BLOCK = 2**16
# Of many pools more, since each block has some twenty small operations of its own.
_BLOCK_OF_MANY = 2**18
# Predicted cost of a pair, for its sigmoid or for its slope.
NANOSECONDS = 1.6
# The same among ranked rows: a pair with an exponential of its own, one that shares it, and an exponential to share.
NANOSECONDS_PER_RANKED_PAIR, _NANOSECONDS_SHARING, _NANOSECONDS_SHARED = 2.4, 1.3, 8.0
# Odds are powers of two. What lies so many doublings away counts as infinitely far: 1e-18 is nothing beside any row,
# and powers that overflow or underflow take several times as long.
_FAR = 60.0
_NEAR = 2**-_FAR, 2**_FAR
# How many doublings the ranked rows that share an exponential may lie apart, and what float32 holds.
_STRETCH, _WIDEST = 130.0, 125.0


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
    pair_slopes: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Count as :mod:`rareloss.ops.counting` says, pair by pair.

    Given ``pair_slopes[A, M]`` of one pool, leave there what each pair adds to the slopes, for a weight and temperature
    of 1.
    """
    if pair_slopes is not None:
        odds = _odds(torch.sub(at[0, :, None], scores, out=pair_slopes), _doublings(at, temperature))
        step = (odds + 1).reciprocal_()
        of_pairs = weights @ step.mT
        odds.mul_(step.square_())
        return of_pairs, None
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


def least_nanoseconds(ranked: int, rows: int) -> float:
    """Predict what so many ranked rows cost :class:`RankedPairs` at the very least, before their order is known."""
    return min(NANOSECONDS_PER_RANKED_PAIR, _NANOSECONDS_SHARING) * ranked * rows


class RankedPairs:
    r"""The pairs of each ranked row with all rows of its pool.

    With the odds :math:`e_{ij} = 2^{(s_i - s_j) / u}`, u the temperature times the logarithm of 2, the step of a pair
    is :math:`1 / (1 + e)`, and its slope :math:`e / (1 + e)^2 / t`. The odds are a product,
    :math:`2^{(s_i - r) / u} 2^{(r - s_j) / u}`: where many ranked rows lie within a stretch around one r, they share
    the exponentials of all rows j.

    Args:
        scores: ``[B, M]``.
        weight: ``[B, M]``.
        rows: which rows are ranked, ``[B, A]``.
        wanted: which of ``rows`` are meant, ``[B, A]``; if ``B > 1`` this is looked up, which a GPU would wait for.
        temperature: in units of the scores.
    """

    def __init__(self, scores: Tensor, weight: Tensor, rows: Tensor, wanted: Tensor, temperature: float) -> None:
        self.scores, self.shape = scores.detach(), rows.shape
        self.per_temperature = min(1 / temperature, torch.finfo(scores.dtype).max)
        self.doublings = _doublings(scores, temperature)
        # One weight of each row for all pools makes a product with a vector.
        alike = len(weight) == 1 or (len(weight) and weight.stride(0) == 0)
        self.weight = weight[0].contiguous() if alike else weight
        on_cpu = scores.device.type == "cpu"
        marked = wanted if on_cpu or len(scores) > 1 else torch.ones_like(wanted)
        self.pool, self.place = marked.nonzero(as_tuple=True)
        self.row = rows[self.pool, self.place]
        self.at = self.scores[self.pool, self.row]
        self.nanoseconds = NANOSECONDS_PER_RANKED_PAIR * len(self.pool) * scores.shape[1]
        self.reference: Tensor | None = None
        if on_cpu and scores.dtype == torch.float32:
            self._share()

    def _share(self) -> None:
        order = self.at.argsort()
        order = order[self.pool[order].argsort(stable=True)] if len(self.scores) > 1 else order
        pool, at = self.pool[order], self.at[order].double()
        # Two float32 are never put in one stretch by rounding, whatever their size.
        stretch = (at * (self.doublings / _STRETCH)).floor()
        new = torch.ones_like(pool, dtype=torch.bool)
        new[1:] = (pool[1:] != pool[:-1]) | (stretch[1:] != stretch[:-1])
        first = new.nonzero()[:, 0]
        cost = (_NANOSECONDS_SHARING * len(pool) + _NANOSECONDS_SHARED * len(first)) * self.scores.shape[1]
        if cost < self.nanoseconds and bool(stretch.isfinite().all()):
            self.nanoseconds = cost
            self.pool, self.place, self.row, self.at = pool, self.place[order], self.row[order], self.at[order]
            self.stretch, self.pool_of_stretch = new.cumsum(0) - 1, pool[first]
            self.reference = at[first] + _STRETCH / 2 / self.doublings
            self.own_factor = (at - self.reference[self.stretch]).mul_(self.doublings).exp2_().float()

    def counts(self) -> Tensor:
        """Count the weight above each ranked row, ``[B, A]``; 0 where none is meant."""
        found = torch.empty_like(self.at)
        for block, odds, spare in self._blocks():
            found[block] = self._weigh(odds.add_(1).reciprocal_(), block, spare)
        return self._laid_out(found)

    def pulls(self, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        """Carry gradients ``[B, A]`` of the counts to the rows, ``[B, M]``, and to the ranked ones, ``[B, A]``.

        A row's pair with itself pulls it both ways alike, and is left out.
        """
        to_rows, to_ranked = torch.zeros_like(self.scores), torch.empty_like(self.at)
        grad_output = grad_output[self.pool, self.place] * self.per_temperature
        for block, odds, spare in self._blocks():
            torch.add(odds.clamp_(*_NEAR), 1, out=spare)
            slope = odds.div_(spare.square_()).scatter_(1, self.row[block, None], 0.0)
            to_ranked[block] = self._weigh(slope, block, spare)
            if len(to_rows) == 1:
                to_rows[0].addmv_(slope.mT, grad_output[block])
            else:
                to_rows.index_add_(0, self.pool[block], slope.mul_(grad_output[block, None]))
        return to_rows.mul_(self.weight), self._laid_out(-grad_output * to_ranked)

    def _laid_out(self, found: Tensor) -> Tensor:
        return found.new_zeros(self.shape).index_put_((self.pool, self.place), found)

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        # Block by block of ranked rows: the odds of their pairs, and memory of the same size. It is the same memory
        # for all blocks: new memory takes longer than what is written to it.
        rows = self.scores.shape[1]
        memory: tuple[Tensor, Tensor] | None = None
        for block in _blocks(len(self.pool), rows, _BLOCK_OF_MANY):
            number = block.stop - block.start
            memory = memory or (self.scores.new_empty(number, rows), self.scores.new_empty(number, rows))
            odds, spare = memory[0][:number], memory[1][:number]
            if self.reference is None:
                torch.index_select(self.scores, 0, self.pool[block], out=odds)
                _odds(torch.sub(self.at[block, None], odds, out=odds), self.doublings)
            else:
                self._share_odds(block, odds)
            yield block, odds, spare

    def _share_odds(self, block: slice, odds: Tensor) -> None:
        stretch = self.stretch[block]
        assert self.reference is not None
        low, high = int(stretch[0]), int(stretch[-1]) + 1
        below = self.reference[low:high, None] - self.scores.index_select(0, self.pool_of_stretch[low:high]).double()
        below.mul_(self.doublings).clamp_(-2 * _WIDEST, _WIDEST)
        # The widest is still far from all that share it. Numbers too small to be normal are slow.
        shared = torch.threshold_(below.exp2_(), 2**-_WIDEST, 0.0).float()
        torch.index_select(shared, 0, stretch - low, out=odds)
        odds.mul_(self.own_factor[block, None])

    def _weigh(self, kernel: Tensor, block: slice, spare: Tensor) -> Tensor:
        if self.weight.ndim == 1:
            return kernel @ self.weight
        torch.index_select(self.weight, 0, self.pool[block], out=spare)
        return spare.mul_(kernel).sum(1)


def _odds(apart: Tensor, doublings: float) -> Tensor:
    # In the memory of what is given, how far the points lie above the scores.
    return apart.mul_(doublings).clamp_(-_FAR, _FAR).exp2_()


def _doublings(scores: Tensor, temperature: float) -> float:
    # Per unit of the scores.
    return min(1 / (temperature * math.log(2)), torch.finfo(scores.dtype).max)
