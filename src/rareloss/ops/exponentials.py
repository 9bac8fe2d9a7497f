r"""The soft count by exponentials: linear in the scores, whatever they look like.

With :math:`u = e^{-x}` in (0, 1], x the distance in temperatures, the tail of the sigmoid is a sum of powers,

.. math:: \sigma(-x) = \frac{u}{1 + u} \approx \sum_{k=1}^K c_k u^k, \qquad
          \sigma'(x) = \frac{u}{(1 + u)^2} \approx \sum_{k=1}^K d_k u^k

and each power passes from place to place along the line: :math:`u(x + y)^k = u(x)^k u(y)^k`. So only the fewer of
scores and points are sorted, and stand as posts on the line:

- if the points are fewer, they are the posts: each score sends :math:`w u^k` to the post above it and to the one below,
  then the posts pass on what they hold;
- if the scores are fewer, they are the posts and pass on their weights, then each point reads from the post above it
  and from the one below, of either a polynomial in u.

Passing on is a recurrence, :math:`A_k \leftarrow u(\mathrm{gap})^k A_k + w`. All factors lie in [0, 1]: nothing
overflows, no gap is too wide and no cluster too narrow.

The polynomials come from the Chebyshev polynomial :math:`T` of degree K on [0, 1], whose value at -1 is large:
:math:`(1 - T(u) / T(-1)) / (1 + u)` is a polynomial, and as an estimate of :math:`1 / (1 + u)` its relative error is
:math:`|T(u) / T(-1)| \le 2 \cdot 5.83^{-K}`.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from rareloss.ops.grid import chunks

__all__ = ["NANOSECONDS", "NANOSECONDS_PER_ROW", "exponential_count", "order_together", "swapped"]

# Predicted cost: of any call, and what a row adds.
NANOSECONDS, NANOSECONDS_PER_ROW = 2e6, 120.0
_TERMS = {torch.float32: 10, torch.float64: 22}
# Rows worked on at once: 1 MiB of float64. The posts' sums, which outgrow the nearest cache, are fetched once for all.
_CHUNK = 2**17
# Numbers that the posts pass on at once.
_TOGETHER = 2**20


def order_together(scores: Tensor, at: Tensor) -> Tensor:
    """Find where each pool's scores and points stand among each other.

    Returns:
        ``[B, M + A]``, scores first: of the posts, which are the points unless the scores are fewer, their order; of
        the others, how many posts lie below each.
    """
    few_points = at.shape[1] <= scores.shape[1]
    posts, others = (at, scores) if few_points else (scores, at)
    places, order = posts.sort(1)
    below = _number_below(places, others)
    order = order.to(below.dtype)
    return torch.cat([below, order] if few_points else [order, below], 1)


def swapped(order: Tensor, rows: int) -> Tensor | None:
    """Turn what :func:`order_together` found for ``rows`` scores into what it finds where points and scores swap.

    Returns:
        None if there are as many points as scores: then the others become the posts.
    """
    scores, points = order.split([rows, order.shape[1] - rows], 1)
    return None if scores.shape == points.shape else torch.cat([points, scores], 1)


def _number_below(places: Tensor, others: Tensor) -> Tensor:
    # By halving, for all at once: unlike torch.searchsorted it has no branch to mispredict.
    pools, posts = places.shape
    size = 1 << posts.bit_length()
    dtype = torch.int32 if pools * size < 2**31 else torch.int64
    table = pad(places, (0, size - posts), value=torch.inf).flatten()
    below = torch.empty(others.shape, dtype=dtype, device=others.device)
    for pool, some in chunks(len(others), others.shape[1], _CHUNK):
        other = others[pool, some]
        first = size * torch.arange(pool.start, pool.stop, dtype=dtype, device=others.device)[:, None]
        here = first.expand(other.shape).flatten()
        half = size // 2
        while half:
            lower = table.index_select(0, here + (half - 1)) < other.flatten()
            here = here.add(lower, alpha=half)
            half //= 2
        below[pool, some] = here.view(other.shape) - first
    return below


def exponential_count(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    temperature: float,
    value: bool,
    slope: bool,
    order: Tensor,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Count as :mod:`rareloss.ops.counting` says, into ``dtype``, the weights' by default.

    ``order`` comes from :func:`order_together`.
    """
    terms = _TERMS[weights.dtype]
    asked = ([_value_terms(terms)] if value else []) + ([_slope_terms(terms)] if slope else [])
    below = torch.stack(asked).to(scores.device)
    # What lies below a point counts by its tail, what lies above whole less its tail.
    above = below.clone()
    if value:
        above[0].neg_()
    count = _at_posts if at.shape[1] <= scores.shape[1] else _from_posts
    found = count(scores, weights, at, temperature, value, below, above, order)
    if slope:
        found[-1].div_(temperature)
    found = [one.to(dtype or weights.dtype) for one in found]
    return found[0] if value else None, found[-1] if slope else None


def _at_posts(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    temperature: float,
    value: bool,
    below: Tensor,
    above: Tensor,
    order: Tensor,
) -> list[Tensor]:
    # Few points, which are the posts: [B, K, A] for each series, whose coefficients are one for below, one for above.
    posts_below, order = order[:, : scores.shape[1]], order[:, scores.shape[1] :].long()
    line = _line(at.gather(1, order))
    pools, sets, _ = weights.shape
    terms, posts = below.shape[1], at.shape[1]
    weight_in = torch.zeros(sets, line.numel(), dtype=torch.float64, device=at.device)
    up, down = torch.zeros(2, terms, sets, line.numel(), dtype=torch.float64, device=at.device)
    for pool, some in chunks(len(scores), scores.shape[1], _CHUNK):
        gap, to_below, to_above = _between_posts(line, posts_below, scores, temperature, pool, some)
        for k in range(sets):
            weight = weights[pool, k, some].double().flatten()
            if value:
                weight_in[k].scatter_add_(0, gap, weight)
            for sums, u in ((up, to_above), (down, to_below)):
                sent = weight * u
                for power in range(terms):
                    sums[power, k].scatter_add_(0, gap, sent)
                    sent *= u
    # A gap sends down to the post of its number, counted from 1, and up to the next.
    weight_in, up, down = (x.unflatten(-1, line.shape) for x in (weight_in, up, down))
    total = torch.zeros(len(below), sets, pools, posts, dtype=torch.float64, device=at.device)
    if value:
        total[0] = _from_above(weight_in)[..., 1 : posts + 1]
    for powers, state in _passed_on(up[..., :posts], line, temperature, terms, upward=True):
        total += torch.tensordot(below[:, powers], state, 1)
    for powers, state in _passed_on(down[..., 1 : posts + 1], line, temperature, terms, upward=False):
        total += torch.tensordot(above[:, powers], state, 1)
    order = order.expand(sets, pools, posts)
    return [torch.empty_like(x).scatter_(2, order, x).movedim(0, 1).contiguous() for x in total]


def _from_posts(
    scores: Tensor,
    weights: Tensor,
    at: Tensor,
    temperature: float,
    value: bool,
    below: Tensor,
    above: Tensor,
    order: Tensor,
) -> list[Tensor]:
    # Few scores, which are the posts: the same.
    order, posts_below = order[:, : scores.shape[1]].long(), order[:, scores.shape[1] :]
    line = _line(scores.gather(1, order))
    pools, sets, _ = weights.shape
    terms = below.shape[1]
    mass = weights.double().movedim(1, 0).gather(2, order.expand(sets, *order.shape))
    # By gap: the coefficients of a polynomial in the u of the post below, and of the post above.
    shape = (len(below), terms, sets, line.numel())
    up, down = torch.empty(2, *shape, dtype=torch.float64, device=at.device)
    for powers, state in _passed_on(mass[None], line, temperature, terms, upward=True):
        up[:, powers] = below[:, powers, None, None] * pad(state, (1, 1)).flatten(2)
    for powers, state in _passed_on(mass[None], line, temperature, terms, upward=False):
        down[:, powers] = above[:, powers, None, None] * pad(state, (0, 2)).flatten(2)
    whole = pad(_from_above(mass), (0, 2)).flatten(1)
    # Tensors of their own, not views of one, which no op may return.
    total = [torch.zeros(pools, sets, at.shape[1], dtype=torch.float64, device=at.device) for _ in below]
    for pool, some in chunks(len(at), at.shape[1], _CHUNK):
        gap, to_below, to_above = _between_posts(line, posts_below, at, temperature, pool, some)
        for k in range(sets):
            for of_series, coefficients in enumerate(zip(up[:, :, k], down[:, :, k], strict=True)):
                found = total[of_series][pool, k, some]
                if value and not of_series:
                    found += whole[k].index_select(0, gap).view_as(found)
                for by_power, u in zip(coefficients, (to_below, to_above), strict=True):
                    part = torch.zeros_like(u)
                    for coefficient in reversed(by_power.unbind()):
                        part.add_(coefficient.index_select(0, gap)).mul_(u)
                    found += part.view_as(found)
    return total


def _line(places: Tensor) -> Tensor:
    # Gap j lies between entries j and j + 1. The last one, behind the second infinity, stays empty.
    return pad(pad(places.double(), (1, 0), value=-torch.inf), (0, 1), value=torch.inf)


def _between_posts(
    line: Tensor, posts_below: Tensor, others: Tensor, temperature: float, pool: slice, some: slice
) -> tuple[Tensor, Tensor, Tensor]:
    # The numbers of the gaps that others stand in, over all pools, and u of the way to the posts below and above.
    first = line.shape[1] * torch.arange(pool.start, pool.stop, device=line.device)[:, None]
    gap, place = (posts_below[pool, some] + first).flatten(), others[pool, some].double().flatten()
    ends = line.flatten()
    to_below = ends.index_select(0, gap).sub_(place)
    to_above = place - ends[1:].index_select(0, gap)
    return gap, _exp(to_below.div_(temperature)), _exp(to_above.div_(temperature))


def _from_above(weight: Tensor) -> Tensor:
    return weight.flip(-1).cumsum(-1).flip(-1)


def _exp(x: Tensor) -> Tensor:
    # In place. The exponential of what underflows takes ten times as long.
    return torch.threshold_(x.clamp_(min=-700.0).exp_(), 1e-300, 0.0)


def _passed_on(
    mass: Tensor, line: Tensor, temperature: float, terms: int, upward: bool
) -> Iterator[tuple[slice, Tensor]]:
    # For some powers at a time, [powers, K, B, posts]: at each post, the mass of all posts up to it, or down to it, by
    # the power of u. The mass is [terms, K, B, posts], or [1, K, B, posts] if it is alike for all powers.
    apart = line[:, 1:-2] - line[:, 2:-1]
    steps = pad(apart if upward else apart.flip(-1), (1, 0)).div_(temperature)
    together = max(1, _TOGETHER // mass[0].numel())
    for first in range(0, terms, together):
        powers = slice(first, min(first + together, terms))
        exponents = torch.arange(powers.start + 1, powers.stop + 1, dtype=torch.float64, device=line.device)
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


def _chebyshev(degree: int) -> list[int]:
    # Coefficients of T(2u - 1), lowest power first: T_{n+1} = 2 (2u - 1) T_n - T_{n-1}.
    older, newer = [1], [-1, 2]
    for _ in range(degree - 1):
        following = [0] * (len(newer) + 1)
        for power, coefficient in enumerate(newer):
            following[power] -= 2 * coefficient
            following[power + 1] += 4 * coefficient
        for power, coefficient in enumerate(older):
            following[power] -= coefficient
        older, newer = newer, following
    return newer


def _at_minus_one(polynomial: list[Fraction] | list[int]) -> Fraction:
    return Fraction(sum(coefficient * (-1) ** power for power, coefficient in enumerate(polynomial)))


def _over_one_plus_u(polynomial: list[Fraction]) -> list[Fraction]:
    # Exact division by (1 + u) of a polynomial that is 0 at -1.
    quotient: list[Fraction] = []
    for coefficient in polynomial[:-1]:
        quotient.append(coefficient - (quotient[-1] if quotient else 0))
    return quotient


@cache
def _value_terms(terms: int) -> Tensor:
    bump = _chebyshev(terms)
    error = [Fraction(coefficient) / _at_minus_one(bump) for coefficient in bump]
    rest = [(1 if power == 0 else 0) - coefficient for power, coefficient in enumerate(error)]
    return torch.tensor([float(c) for c in _over_one_plus_u(rest)], dtype=torch.float64)


@cache
def _slope_terms(terms: int) -> Tensor:
    # The error (a + b (1 + u)) T(u) is 1 at -1 and flat there, so that (1 + u)^2 divides what is left.
    bump = _chebyshev(terms)
    flat = _at_minus_one([power * coefficient for power, coefficient in enumerate(bump)][1:]) / _at_minus_one(bump)
    a = 1 / _at_minus_one(bump)
    b = -a * flat
    error = [Fraction(0)] * (terms + 2)
    for power, coefficient in enumerate(bump):
        error[power] += (a + b) * coefficient
        error[power + 1] += b * coefficient
    rest = [(1 if power == 0 else 0) - coefficient for power, coefficient in enumerate(error)]
    return torch.tensor([float(c) for c in _over_one_plus_u(_over_one_plus_u(rest))], dtype=torch.float64)
