r"""The soft count by exponentials: linear in the scores, a sort aside, whatever they look like.

With :math:`u = e^{-x}` in (0, 1], x the distance in temperatures, the tail of the sigmoid is a sum of powers,

.. math:: \sigma(-x) = \frac{u}{1 + u} \approx \sum_{k=1}^K c_k u^k, \qquad
          \sigma'(x) = \frac{u}{(1 + u)^2} \approx \sum_{k=1}^K d_k u^k

and over sorted scores each power is a recurrence, :math:`A_k \leftarrow e^{-k \, \mathrm{gap} / t} A_k + w`, whose
factors lie in [0, 1]: nothing overflows, no gap is too wide and no cluster too narrow.

The polynomials come from the Chebyshev polynomial :math:`T` of degree K on [0, 1], whose value at -1 is large:
:math:`(1 - T(u) / T(-1)) / (1 + u)` is a polynomial, and as an estimate of :math:`1 / (1 + u)` its relative error is
:math:`|T(u) / T(-1)| \le 2 \cdot 5.83^{-K}`.
"""

from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

__all__ = ["NANOSECONDS_PER_ROW", "exponential_count", "order_together", "swapped"]

# Predicted cost of a row, its share of the sort included.
NANOSECONDS_PER_ROW = 250.0
_TERMS = {torch.float32: 10, torch.float64: 22}
# Runs of sorted rows that are scanned side by side.
_RUNS = 2048


def order_together(scores: Tensor, at: Tensor) -> Tensor:
    """Find the order of each pool's scores and points, the points numbered behind the scores, ``[B, M + A]``."""
    return torch.cat([scores, at], 1).argsort(1)


def swapped(order: Tensor, rows: int) -> Tensor:
    """Number the points before the ``rows`` scores in what :func:`order_together` found."""
    points = order.shape[1] - rows
    return torch.where(order < rows, order + points, order - rows)


def exponential_count(
    scores: Tensor, weights: Tensor, at: Tensor, temperature: float, value: bool, slope: bool, order: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Count as :mod:`rareloss.kernels.count` says; ``order`` comes from :func:`order_together`."""
    pools, sets, rows = weights.shape
    points = at.shape[1]
    ordered = torch.cat([scores, at], 1).gather(1, order)
    # Runs of consecutive rows, which advance together: [steps, B, runs]. The last runs are filled up with absent rows.
    total = rows + points
    log_steps = max(4, (total * pools // _RUNS).bit_length())
    steps = 2**log_steps
    runs = -(-total // steps)

    def by_step(x: Tensor) -> Tensor:
        return x.reshape(pools, runs, steps).permute(2, 0, 1).contiguous()

    filled = ordered[:, -1:].expand(pools, runs * steps - total)
    place = by_step(torch.cat([ordered, filled], 1)).double().div_(temperature)
    del ordered, filled
    # Where the points went; they have no weight of their own.
    went = torch.empty_like(order).scatter_(1, order, torch.arange(total, device=order.device).expand_as(order))
    where = went[:, rows:]
    run = (where >> log_steps) + torch.arange(0, pools * runs, runs, device=order.device)[:, None]
    at_step = ((where & (steps - 1)) * (pools * runs) + run).flatten()

    terms = _TERMS[weights.dtype]
    asked = ([_value_terms(terms)] if value else []) + ([_slope_terms(terms)] if slope else [])
    series = torch.stack(asked).to(scores.device)
    counts = weights.new_empty(pools, sets, points) if value else None
    slopes = weights.new_empty(pools, sets, points) if slope else None
    order = order.clamp(max=rows)
    for k in range(sets):
        weight = torch.nn.functional.pad(weights[:, k], (0, 1)).gather(1, order)
        if counts is not None:
            # What lies above counts whole less its tail, what lies below by its tail.
            until = weight.cumsum(1, dtype=torch.float64)
            whole = until[:, -1:] - until.gather(1, where)
        weight = by_step(torch.nn.functional.pad(weight, (0, runs * steps - total))).double()
        below, above = (_scan(place, weight, series, upward, at_step) for upward in (True, False))
        if counts is not None:
            counts[:, k] = whole + (below[0] - above[0]).view_as(whole)
        if slopes is not None:
            slopes[:, k] = ((below[-1] + above[-1]) / temperature).view(pools, points)
    return counts, slopes


def _scan(place: Tensor, weight: Tensor, series: Tensor, upward: bool, wanted: Tensor) -> list[Tensor]:
    # For each place [steps, B, runs]: the sum over the rows up to it, or down to it, of w p(exp(-distance)), for each
    # series p of powers; at the flat places wanted.
    steps, pools, runs = place.shape
    terms = series.shape[1]
    places, weights = place.flatten(1), weight.flatten(1)
    first, last = (places[0], places[-1]) if upward else (places[-1], places[0])
    state = torch.zeros(terms, pools * runs, dtype=torch.float64, device=place.device)
    sums = torch.empty(len(series), steps, pools * runs, dtype=torch.float64, device=place.device)
    before = first
    together = max(1, _RUNS * 8 // (pools * runs))
    for start in range(0, steps, together):
        stop = min(start + together, steps)
        block = slice(start, stop) if upward else slice(steps - stop, steps - start)
        here = places[block]
        neighbour = torch.cat([before[None], here[:-1]] if upward else [here[1:], before[None]])
        before = here[-1 if upward else 0]
        decay = (here - neighbour).abs_().neg_().exp_()
        powers = torch.empty(terms, *decay.shape, dtype=torch.float64, device=place.device)
        by_power = powers.unbind()
        by_power[0].copy_(decay)
        for k in range(1, terms):
            torch.mul(by_power[k - 1], decay, out=by_power[k])
        advance = zip(weights[block].unbind(), powers.unbind(1), sums[:, block].unbind(1), strict=True)
        for row, power, out in advance if upward else reversed(list(advance)):
            torch.addcmul(row, state, power, out=state)
            torch.mm(series, state, out=out)

    # Each run began from nothing. What the runs before it send, by doubling the distance it comes from:
    sent, end = state.view(terms, pools, runs), last.view(pools, runs)
    if not upward:
        sent, end = sent.flip(-1), end.flip(-1)
    exponents = torch.arange(1, terms + 1, dtype=torch.float64, device=place.device)[:, None, None]
    factor = torch.exp(-(end - torch.cat([end[:, :1], end[:, :-1]], 1)).abs()) ** exponents
    distance = 1
    while distance < runs:
        sent[..., distance:] += factor[..., distance:] * sent[..., :-distance].clone()
        factor[..., distance:] *= factor[..., :-distance].clone()
        distance *= 2
    sent = torch.nn.functional.pad(sent[..., :-1], (1, 0))
    end = torch.cat([end[:, :1], end[:, :-1]], 1)
    if not upward:
        sent, end = sent.flip(-1), end.flip(-1)
    run = wanted % (pools * runs)
    decay = (places.flatten().index_select(0, wanted) - end.flatten().index_select(0, run)).abs_().neg_().exp_()
    found = []
    for coefficients, own in zip(series, sums, strict=True):
        arriving = (coefficients[:, None] * sent.flatten(1)).unbind()
        total = torch.zeros_like(decay)
        for of_power in reversed(arriving):
            total.add_(of_power.index_select(0, run)).mul_(decay)
        found.append(total.add_(own.flatten().index_select(0, wanted)))
    return found


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
