r"""The soft count on a grid: linear in the scores, for scores that lie densely.

:math:`C(a) = \sum_m w_m \, \sigma((s_m - a) / t)` is a convolution on a line. The line is cut into cells of
:math:`t / 16`. Within its cell, at offset d, a score acts through the four nodes around it with the weights of cubic
Lagrange interpolation, so four moments of d per cell, :math:`\sum w d^p`, say all about the scores of a cell. The
nodes' counts are a discrete convolution, and the count at a point is the cubic through the four nodes around it. Error:
5e-8 of the count, 5e-7 of its slope.

The kernel is a step and a remainder, :math:`\sigma(x) = [x > 0] + r(x)`, with r falling like :math:`e^{-|x|}`: the step
is a running sum, exact at any distance; the remainder is short and goes by FFT.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "MOST_CELLS",
    "NANOSECONDS",
    "NANOSECONDS_PER_NODE",
    "NANOSECONDS_PER_ROW",
    "chunks",
    "grid_count",
    "grid_nodes",
]

_CELLS_PER_TEMPERATURE = 16
# What is longer leaves the caches, where a node takes several times as long.
MOST_CELLS = 2**22
# Rows worked on at once: 256 KiB of float64.
_CHUNK = 2**15
# The nodes of a cell: one before, its two ends, one after.
_BEFORE, _AFTER = 1, 2
# Row: node; column: power of the offset. Cubic Lagrange interpolation.
_LAGRANGE = torch.tensor(
    [[0, -1 / 3, 1 / 2, -1 / 6], [1, -1 / 2, -1, 1 / 2], [0, 1, 1 / 2, -1 / 2], [0, -1 / 6, 0, 1 / 6]],
    dtype=torch.float64,
)
# Predicted cost: of any call, and what rows and nodes add.
NANOSECONDS, NANOSECONDS_PER_ROW, NANOSECONDS_PER_NODE = 1e6, 13.0, 150.0


def grid_nodes(scores: Tensor, at: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Find what grid each pool needs.

    Returns:
        the lowest of each pool's scores and points, ``[B]``, and how many nodes a grid over the widest pool has,
        infinite where it has no end or is too long to be quick.
    """
    low = torch.minimum(scores.amin(1), at.amin(1)).double()
    high = torch.maximum(scores.amax(1), at.amax(1)).double()
    cells = ((high - low).amax() * (_CELLS_PER_TEMPERATURE / temperature)).item()
    return low, cells + _BEFORE + _AFTER + 2 if cells <= MOST_CELLS else math.inf


def grid_count(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    temperature: float,
    value: bool,
    slope: bool,
    low: Tensor,
    length: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Count as :mod:`rareloss.ops.counting` says; ``low`` and ``length`` come from :func:`grid_nodes`."""
    pools, sets, rows = weights.shape
    scale = _CELLS_PER_TEMPERATURE / temperature
    moments = torch.zeros(sets, 4, pools * length, dtype=torch.float64, device=scores.device)
    for pool, row in chunks(pools, rows):
        cell, offset = _place(scores[pool, row], low[pool], scale, length, pool.start)
        for k in range(sets):
            term = weights[pool, k, row].double().flatten()
            moments[k, 0].scatter_add_(0, cell, term)
            term = term * offset
            moments[k, 1].scatter_add_(0, cell, term)
            moments[k, 2].scatter_add_(0, cell, term.mul_(offset))
            moments[k, 3].scatter_add_(0, cell, term.mul_(offset))
    lagrange = _LAGRANGE.to(scores.device)
    by_node = torch.matmul(lagrange, moments).unflatten(2, (pools, length))
    del moments
    on_nodes = torch.zeros(sets, pools, length, dtype=torch.float64, device=scores.device)
    for node in range(4):
        shift = node - _BEFORE  # nodes run from the cell's lower end
        start = max(shift, 0)
        on_nodes[..., start : length + min(shift, 0)] += by_node[:, node, :, start - shift : length - max(shift, 0)]
    del by_node

    # What is cut off, rows * exp(-reach), is below float64's rounding of one row of mean weight.
    reach = min(length - 1, math.ceil(_CELLS_PER_TEMPERATURE * (37 + rows.bit_length() * math.log(2))))
    size = _fast_length(length + reach)
    transformed = torch.fft.rfft(on_nodes, n=size)
    on_grid = []
    for kernel in ["remainder"] * value + ["slope"] * slope:
        near = torch.fft.irfft(transformed * _spectrum(kernel, reach, size).to(scores.device), n=size)[..., :length]
        if kernel == "remainder":
            near = near + (on_nodes.flip(-1).cumsum(-1).flip(-1) - on_nodes / 2)  # a node lies half above itself
        else:
            near = near / temperature
        on_grid.append(near)
    found = _interpolate(torch.cat(on_grid), lagrange, at, low, scale, weights.dtype)
    if value and slope:
        counts, slopes = found.split(sets, 1)
        return counts.clone(), slopes.clone()  # not two views of one tensor, which no op may return
    return (found, None) if value else (None, found)


def _interpolate(
    on_nodes: Tensor, lagrange: Tensor, at: Tensor, low: Tensor, scale: float, dtype: torch.dtype
) -> Tensor:
    sets, pools, length = on_nodes.shape
    padded = torch.nn.functional.pad(on_nodes, (_BEFORE, _AFTER))
    around = torch.stack([padded[..., node : node + length] for node in range(4)], 1)  # [K, node, B, length]
    by_power = torch.matmul(lagrange.mT, around.flatten(2)).to(dtype)
    result = torch.empty(pools, sets, at.shape[1], dtype=dtype, device=at.device)
    for pool, point in chunks(pools, at.shape[1]):
        cell, offset = _place(at[pool, point], low[pool], scale, length, pool.start)
        offset = offset.to(dtype)
        for k in range(sets):
            total = by_power[k, 3].index_select(0, cell)
            for power in (2, 1, 0):
                total.mul_(offset).add_(by_power[k, power].index_select(0, cell))
            result[pool, k, point] = total.unflatten(0, (pool.stop - pool.start, -1))
    return result


def chunks(pools: int, rows: int, size: int = _CHUNK) -> Iterator[tuple[slice, slice]]:
    """Cut ``[pools, rows]`` into blocks of ``size`` entries at most, of whole pools or of some rows of one pool."""
    together = max(1, size // max(rows, 1))
    for first in range(0, pools, together):
        for start in range(0, rows, size):
            yield slice(first, min(first + together, pools)), slice(start, min(start + size, rows))


def _place(scores: Tensor, low: Tensor, scale: float, length: int, first: int) -> tuple[Tensor, Tensor]:
    # Flat cell numbers and offsets within the cells. One cell stays free below, so that it has a node before it.
    place = (scores.double() - low[:, None]).mul_(scale).add_(_BEFORE)
    cell = place.long()
    place.sub_(cell)
    if first or len(low) > 1:
        cell += length * torch.arange(first, first + len(low), device=cell.device)[:, None]
    return cell.flatten(), place.flatten()


def _fast_length(least: int) -> int:
    power = 1 << max(least - 1, 1).bit_length()
    return min(size for size in (power // 8 * 5, power // 4 * 3, power // 8 * 7, power) if size >= least)


@lru_cache(maxsize=8)
def _spectrum(kernel: str, reach: int, size: int) -> Tensor:
    # The kernel at distances of -reach .. reach nodes, wrapped around; both kernels fall like exp(-|x|).
    apart = torch.arange(-reach, reach + 1, dtype=torch.float64) / _CELLS_PER_TEMPERATURE
    tail = torch.exp(-apart.abs())
    # A node's count takes what lies above it: the kernel of (other - own), which a convolution reads as (own - other).
    values = -torch.sign(-apart) * tail / (1 + tail) if kernel == "remainder" else tail / (1 + tail) ** 2
    around = torch.zeros(size, dtype=torch.float64)
    around[: reach + 1] = values[reach:]
    if reach:
        around[-reach:] = values[:reach]
    spectrum: Tensor = torch.fft.rfft(around)
    return spectrum
