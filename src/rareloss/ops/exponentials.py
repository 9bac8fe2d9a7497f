r"""Sums of exponentials (a fast Gauss transform in one dimension): the soft count in linear time, for any scores.

With :math:`u = e^{-x}` in (0, 1], x the distance in temperatures, the tail of the sigmoid is a sum of powers,

.. math:: \sigma(-x) = \frac{u}{1 + u} \approx \sum_{k=1}^K c_k u^k, \qquad
          \sigma'(x) = \frac{u}{(1 + u)^2} \approx \sum_{k=1}^K d_k u^k

and each power passes along the line from one knot to the next: :math:`u(x + y)^k = u(x)^k u(y)^k`. Only the fewer of
scores and points are sorted; they are the knots, and all others look up the interval between two knots that they are
in:

- if the points are fewer, each score adds :math:`w u^k` to the knot above it and to the one below, then the knots pass
  on what they hold;
- if the scores are fewer, the knots pass on their weights, and each point evaluates two polynomials: one in its u to
  the knot above, one in its u to the knot below.

Passing on is a recurrence, :math:`A_k \leftarrow u(\mathrm{interval})^k A_k + w`. All factors lie in [0, 1]: nothing
overflows, no interval is too wide and no cluster too narrow.

The polynomials come from the Chebyshev polynomial :math:`T` of degree K on [0, 1], whose value at -1 is large:
:math:`(1 - T(u) / T(-1)) / (1 + u)` is a polynomial, and as an estimate of :math:`1 / (1 + u)` its relative error is
:math:`|T(u) / T(-1)| \le 2 \cdot 5.83^{-K}`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from rareloss.ops.functions import accumulator, chunks
from rareloss.ops.pairs import CountRequest, Counts

__all__ = ["SLOPE_COEFFICIENTS", "VALUE_COEFFICIENTS", "count_by_exponentials", "locate", "swapped"]

# By dtype, c_1 to c_K and d_1 to d_K of the equations above.
# fmt: off
VALUE_COEFFICIENTS = {
    torch.float32: (
        0.9999999557904302, -0.9999911138764688, 0.9996993307157437, -0.9959645062584614, 0.9716881472861271,
        -0.8810564071227452, 0.6750751794786958, -0.3853433427925603, 0.13907128160934507, -0.023178546934890843,
    ),
    torch.float64: (
        1.0, -0.9999999999999721, 0.9999999999954888, -0.9999999997085555, 0.9999999899733163, -0.9999997874803432,
        0.9999969709871713, -0.9999692393620948, 0.99976818508029, -0.9986643576507731, 0.9939818055024016,
        -0.9784138399182051, 0.9374633217510798, -0.8517822375860176, 0.7089804306442473, -0.5198911414523859,
        0.3224148273366919, -0.161899320675807, 0.06253257845716394, -0.01730162894085416, 0.0030364833241718456,
        -0.00025304027701432045,
    ),
}
SLOPE_COEFFICIENTS = {
    torch.float32: (
        0.9999996431815642, -1.9999282352848256, 2.997564347484721, -3.9671196567403264, 4.767148023507888,
        -5.00734125002799, 4.225909200864313, -2.562539079192878, 0.9602039160078271, -0.16389707715711965,
    ),
    torch.float64: (
        0.9999999999999996, -1.9999999999995384, 2.999999999925283, -3.999999995170203, 4.99999983369874,
        -5.999996471127686, 6.999949627763596, -7.999487464282502, 8.996127978749675, -9.977620811465684,
        10.898759200665875, -11.63499233183907, 11.935415093630452, -11.454312467300792, 9.941818124752244,
        -7.520170256183823, 4.770574585152013, -2.4354386344266836, 0.9521874734450494, -0.26586065769114464,
        0.04698355461158488, -0.003936382907383266,
    ),
}
# fmt: on
# Rows worked on at once: 1 MiB of float64.
_CHUNK = 2**17
# Numbers that the knots pass on at once.
_TOGETHER = 2**20


def locate(scores: Tensor, points: Tensor) -> Tensor:
    """Sort the fewer of scores ``[B, M]`` and points ``[B, A]``, the knots, and look up the others among them.

    Returns:
        ``[B, M + A]``, scores first: of the knots, which are the points unless the scores are fewer, their order; of
        the others, how many knots lie below each.
    """
    few_points = points.shape[1] <= scores.shape[1]
    knots, others = (points, scores) if few_points else (scores, points)
    knots, order = knots.sort(1)
    below = _number_below(knots, others)
    order = order.to(below.dtype)
    return torch.cat([below, order] if few_points else [order, below], 1)


def swapped(order: Tensor, rows: int) -> Tensor | None:
    """Turn what :func:`locate` returned for ``rows`` scores into what it returns where scores and points swap.

    Returns:
        None if there are as many points as scores: then the others become the knots.
    """
    scores, points = order.split([rows, order.shape[1] - rows], 1)
    return None if scores.shape == points.shape else torch.cat([points, scores], 1)


def _number_below(knots: Tensor, others: Tensor) -> Tensor:
    # Bisection of all at once: it has no branch to mispredict, which makes it twice as fast as torch.searchsorted.
    pools, number = knots.shape
    first, most = _cells(knots) if knots.device.type == "cpu" and number else (None, number)
    span = 1 << most.bit_length()
    size = number + span
    dtype = torch.int32 if pools * size < 2**31 else torch.int64
    table = pad(knots, (0, size - number), value=torch.inf).flatten()
    below = torch.empty(others.shape, dtype=dtype, device=others.device)
    for pool, some in chunks(len(others), others.shape[1], _CHUNK):
        other = others[pool, some]
        shape = other.shape
        start = size * torch.arange(pool.start, pool.stop, dtype=dtype, device=others.device)[:, None]
        here = start.expand(shape)
        if first is not None:
            here = here + first[pool].gather(1, _cell(knots[pool], other, first.shape[1] - 2).long()).to(dtype)
        here, other, half = here.flatten(), other.flatten(), span // 2
        while half:
            lower = table.index_select(0, here + (half - 1)) < other
            here = here.add(lower, alpha=half)
            half //= 2
        below[pool, some] = here.view(shape) - start
    return below


def _cells(knots: Tensor) -> tuple[Tensor, int]:
    # Of equal cells between the lowest and the highest of the sorted knots, how many knots lie before each; and how
    # many lie in one at most, which are all that is left to bisect. Not on a GPU, which would wait for that number.
    cells = 4 * knots.shape[1]
    numbers = torch.arange(cells + 2, device=knots.device).expand(len(knots), -1).contiguous()
    first = torch.searchsorted(_cell(knots, knots, cells).long().contiguous(), numbers)
    return first, int(first.diff().amax())


def _cell(knots: Tensor, x: Tensor, cells: int) -> Tensor:
    # Never falls where x rises, whatever the rounding: what lies in another cell needs no comparison.
    low, high = knots[:, :1], knots[:, -1:]
    per_score = (cells / (high - low)).nan_to_num(0.0, 0.0, 0.0)
    return torch.fmax((x - low) * per_score, low.new_zeros(())).clamp_(max=cells)


def count_by_exponentials(request: CountRequest, order: Tensor) -> Counts:
    """Count by sums of exponentials; ``order`` comes from :func:`locate`."""
    scores, weights, points, dtype = request.scores, request.weights, request.points, request.scores.dtype
    # One row of coefficients for each kernel wanted: of the tails of rows below the points, and of rows above.
    kernels = [VALUE_COEFFICIENTS[dtype]] * request.values + [SLOPE_COEFFICIENTS[dtype]] * request.slopes
    # Not waited for: a GPU gets the numbers in its stream.
    below = torch.tensor(kernels, dtype=accumulator(scores)).to(scores.device, non_blocking=True)
    above = below.clone()
    if request.values:
        above[0].neg_()  # what lies above a point counts as one, less its tail
    count = _at_knots if points.shape[1] <= scores.shape[1] else _from_knots
    sums = count(request, below, above, order)
    values, slopes = (weights.new_zeros(len(weights), 0, points.shape[1]) for _ in range(2))
    if request.values:
        values = sums[0].to(dtype)
    if request.slopes:
        slopes = sums[-1]
        if request.at is None:
            slopes = slopes - weights.to(below.dtype) * below[-1].sum()  # the kernel at distance 0 as it was summed up
        slopes = slopes.to(dtype)
    return Counts(values, slopes)


def _at_knots(request: CountRequest, below: Tensor, above: Tensor, order: Tensor) -> list[Tensor]:
    # Few points, which are the knots: [B, K, A] for each kernel.
    scores, weights = request.scores, request.weights
    (pools, sets, rows), terms, knots = weights.shape, below.shape[1], request.points.shape[1]
    knots_below, order = order[:, :rows], order[:, rows:].long()
    line = _line(request.points.gather(1, order), below.dtype)
    weight_in = line.new_zeros(sets, line.numel())
    up, down = line.new_zeros(2, terms, sets, line.numel())
    for pool, some in chunks(pools, rows, _CHUNK):
        interval, to_below, to_above = _between_knots(line, knots_below, scores, request.temperature, pool, some)
        for k in range(sets):
            weight = weights[pool, k, some].to(line.dtype).flatten()
            if request.values:
                weight_in[k].scatter_add_(0, interval, weight)
            for sums, u in ((up, to_above), (down, to_below)):
                term = weight * u
                for power in range(terms):
                    sums[power, k].scatter_add_(0, interval, term)
                    term *= u
    # An interval adds downwards to the knot of its number, counted from 1, and upwards to the next.
    weight_in, up, down = (x.unflatten(-1, line.shape) for x in (weight_in, up, down))
    total = line.new_zeros(len(below), sets, pools, knots)
    if request.values:
        total[0] = _cumulate_downwards(weight_in)[..., 1 : knots + 1]
    for powers, state in _pass_on(up[..., :knots], line, request.temperature, terms, upward=True):
        total += torch.tensordot(below[:, powers], state, 1)
    for powers, state in _pass_on(down[..., 1 : knots + 1], line, request.temperature, terms, upward=False):
        total += torch.tensordot(above[:, powers], state, 1)
    order = order.expand(sets, pools, knots)
    return [torch.empty_like(x).scatter_(2, order, x).movedim(0, 1).contiguous() for x in total]


def _from_knots(request: CountRequest, below: Tensor, above: Tensor, order: Tensor) -> list[Tensor]:
    # Few scores, which are the knots: the same.
    scores, weights, points = request.scores, request.weights, request.points
    (pools, sets, rows), terms = weights.shape, below.shape[1]
    order, knots_below = order[:, :rows].long(), order[:, rows:]
    line = _line(scores.gather(1, order), below.dtype)
    mass = weights.to(line.dtype).movedim(1, 0).gather(2, order.expand(sets, *order.shape))
    # By interval: the coefficients of a polynomial in the u to the knot below, and in the u to the knot above.
    up, down = line.new_empty(2, len(below), terms, sets, line.numel())
    for powers, state in _pass_on(mass[None], line, request.temperature, terms, upward=True):
        up[:, powers] = below[:, powers, None, None] * pad(state, (1, 1)).flatten(2)
    for powers, state in _pass_on(mass[None], line, request.temperature, terms, upward=False):
        down[:, powers] = above[:, powers, None, None] * pad(state, (0, 2)).flatten(2)
    weight_above = pad(_cumulate_downwards(mass), (0, 2)).flatten(1)
    totals = [line.new_zeros(pools, sets, points.shape[1]) for _ in below]
    for pool, some in chunks(pools, points.shape[1], _CHUNK):
        interval, to_below, to_above = _between_knots(line, knots_below, points, request.temperature, pool, some)
        for kernel, total in enumerate(totals):
            for k in range(sets):
                count = total[pool, k, some]
                if request.values and kernel == 0:
                    count += weight_above[k].index_select(0, interval).view_as(count)
                for coefficients, u in ((up[kernel, :, k], to_below), (down[kernel, :, k], to_above)):
                    tail = coefficients[-1].index_select(0, interval).mul_(u)
                    for coefficient in reversed(coefficients[:-1].unbind()):
                        tail.add_(coefficient.index_select(0, interval)).mul_(u)
                    count += tail.view_as(count)
    return totals


def _line(knots: Tensor, dtype: torch.dtype) -> Tensor:
    # Interval j lies between entries j and j + 1. The last one, behind the second infinity, stays empty.
    return pad(pad(knots.to(dtype), (1, 0), value=-torch.inf), (0, 1), value=torch.inf)


def _between_knots(
    line: Tensor, knots_below: Tensor, others: Tensor, temperature: float, pool: slice, some: slice
) -> tuple[Tensor, Tensor, Tensor]:
    # The numbers of the intervals that others are in, over all pools, and u of the way to the knots below and above.
    first = line.shape[1] * torch.arange(pool.start, pool.stop, device=line.device)[:, None]
    interval, other = (knots_below[pool, some] + first).flatten(), others[pool, some].to(line.dtype).flatten()
    ends = line.flatten()
    to_below = ends.index_select(0, interval).sub_(other)
    to_above = other - ends[1:].index_select(0, interval)
    return interval, _exp(to_below.div_(temperature)), _exp(to_above.div_(temperature))


def _cumulate_downwards(weight: Tensor) -> Tensor:
    return weight.flip(-1).cumsum(-1).flip(-1)


def _exp(x: Tensor) -> Tensor:
    # In place. What would be nearly too small for its dtype becomes 0: exponentials that underflow take ten times as
    # long.
    least, smallest = (-700.0, 1e-300) if x.dtype == torch.float64 else (-85.0, 1e-36)
    return torch.threshold_(x.clamp_(min=least).exp_(), smallest, 0.0)


def _pass_on(
    mass: Tensor, line: Tensor, temperature: float, terms: int, upward: bool
) -> Iterator[tuple[slice, Tensor]]:
    # For some powers at a time, [powers, K, B, knots]: at each knot, the mass of all knots up to it, or down to it, by
    # the power of u. The mass is [terms, K, B, knots], or [1, K, B, knots] if it is alike for all powers.
    apart = line[:, 1:-2] - line[:, 2:-1]
    steps = pad(apart if upward else apart.flip(-1), (1, 0)).div_(temperature)
    together = max(1, _TOGETHER // mass[0].numel())
    for first in range(0, terms, together):
        powers = slice(first, min(first + together, terms))
        exponents = torch.arange(powers.start + 1, powers.stop + 1, dtype=line.dtype, device=line.device)
        decay = _exp(steps * exponents[:, None, None, None])
        own = (mass if len(mass) == 1 else mass[powers]).expand(len(exponents), *mass.shape[1:])
        yield powers, _recurrence(own, decay) if upward else _recurrence(own.flip(-1), decay).flip(-1)


def _recurrence(added: Tensor, factor: Tensor) -> Tensor:
    # x[j] = factor[j] x[j - 1] + added[j]. Two steps make one, so every other x solves the same problem of half the
    # length.
    length = added.shape[-1]
    if length == 1:
        return added
    before, odd = slice(0, length - 1, 2), slice(1, None, 2)
    two_steps = factor[..., odd] * factor[..., before]
    at_odd = _recurrence(torch.addcmul(added[..., odd], factor[..., odd], added[..., before]), two_steps)
    x = torch.empty_like(added)
    x[..., 0], x[..., odd] = added[..., 0], at_odd
    last = (length - 1) // 2
    torch.addcmul(added[..., 2::2], factor[..., 2::2], at_odd[..., :last], out=x[..., 2::2])
    return x
