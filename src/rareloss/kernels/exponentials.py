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

__all__ = ["NANOSECONDS_PER_ROW", "exponential_count"]

# Predicted cost of a row, its share of the sort included.
NANOSECONDS_PER_ROW = 330.0
_TERMS = {torch.float32: 12, torch.float64: 22}
# Runs of sorted rows that are scanned side by side.
_RUNS = 1024


def exponential_count(
    scores: Tensor, weights: Tensor, at: Tensor, temperature: float, value: bool, slope: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Count as :func:`rareloss.kernels.count.count` says, by sorting the scores and the points together."""
    pools, sets, rows = weights.shape
    points = at.shape[1]
    ordered, order = torch.cat([scores, at], 1).sort(1)
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
    pool, where = (order >= rows).nonzero(as_tuple=True)
    point = order[pool, where] - rows
    at_step = (where & (steps - 1)) * (pools * runs) + (where >> log_steps) + pool * runs

    terms = _TERMS[weights.dtype]
    asked = ([_value_terms(terms)] if value else []) + ([_slope_terms(terms)] if slope else [])
    series = torch.stack(asked).to(scores.device)
    counts = weights.new_empty(pools, sets, points) if value else None
    slopes = weights.new_empty(pools, sets, points) if slope else None
    order.clamp_(max=rows)
    for k in range(sets):
        weight = torch.nn.functional.pad(weights[:, k], (0, 1)).gather(1, order)
        if counts is not None:
            # What lies above counts whole less its tail, what lies below by its tail.
            until = weight.cumsum(1, dtype=torch.float64)
            whole = until[pool, -1] - until[pool, where]
        weight = by_step(torch.nn.functional.pad(weight, (0, runs * steps - total))).double()
        below, above = (_scan(place, weight, series, upward, at_step) for upward in (True, False))
        if counts is not None:
            counts[pool, k, point] = (whole + below[0] - above[0]).to(weights.dtype)
        if slopes is not None:
            slopes[pool, k, point] = ((below[-1] + above[-1]) / temperature).to(weights.dtype)
    return counts, slopes


def _scan(place: Tensor, weight: Tensor, series: Tensor, upward: bool, wanted: Tensor) -> list[Tensor]:
    # For each place [steps, B, runs]: the sum over the rows up to it, or down to it, of w p(exp(-distance)), for each
    # series p of powers; at the flat places wanted.
    steps, pools, runs = place.shape
    terms = series.shape[1]
    end = place[-1 if upward else 0]
    # How the state at the end of each run comes from its own rows; then from the runs before, by doubling the distance.
    exponents = torch.arange(1, terms + 1, dtype=torch.float64, device=place.device)[:, None, None]
    state = _own_states(place, weight, end, terms)
    behind = torch.zeros_like(end)
    behind[:, 1:] = (end[:, 1:] - end[:, :-1]).abs()
    if not upward:
        state = state.flip(-1)
        behind = torch.zeros_like(end)
        behind[:, 1:] = (end[:, 1:] - end[:, :-1]).flip(-1)
    factor = torch.exp(-behind) ** exponents
    distance = 1
    while distance < runs:
        state[..., distance:] += factor[..., distance:] * state[..., :-distance].clone()
        factor[..., distance:] *= factor[..., :-distance].clone()
        distance *= 2
    # Each run starts from the state at the end of the one before.
    state = torch.nn.functional.pad(state[..., :-1], (1, 0))
    before = torch.nn.functional.pad(end[:, :-1], (1, 0)) if upward else torch.nn.functional.pad(end[:, 1:], (0, 1))
    if upward:
        before[:, 0] = place[0, :, 0]
    else:
        state = state.flip(-1)
        before[:, -1] = place[-1, :, -1]
    state = state.reshape(terms, pools * runs).contiguous()
    places, weights = place.view(steps, -1), weight.view(steps, -1)
    sums = torch.empty(len(series), steps, pools * runs, dtype=torch.float64, device=place.device)
    together = max(1, _RUNS * 8 // (pools * runs))
    for start in range(0, steps, together):
        stop = min(start + together, steps)
        block = slice(start, stop) if upward else slice(steps - stop, steps - start)
        if upward:
            gaps = torch.cat([before.view(1, -1), places[block][:-1]]) - places[block]
            before = places[block][-1]
        else:
            gaps = places[block] - torch.cat([places[block][1:], before.reshape(1, -1)])
            before = places[block][0]
        decay = gaps.exp_()
        powers = torch.empty(terms, *decay.shape, dtype=torch.float64, device=place.device)
        by_power = powers.unbind()
        by_power[0].copy_(decay)
        for k in range(1, terms):
            torch.mul(by_power[k - 1], decay, out=by_power[k])
        advance = zip(weights[block].unbind(), powers.unbind(1), sums[:, block].unbind(1), strict=True)
        for row, power, out in advance if upward else reversed(list(advance)):
            torch.addcmul(row, state, power, out=state)
            torch.mm(series, state, out=out)
    return [of_series.flatten().index_select(0, wanted) for of_series in sums]


def _own_states(place: Tensor, weight: Tensor, end: Tensor, terms: int) -> Tensor:
    state = place.new_zeros(terms, *end.shape)
    states = state.unbind()
    together = max(1, _RUNS * 16 // end.numel())
    for start in range(0, len(place), together):
        block = slice(start, start + together)
        decay = (place[block] - end).abs_().neg_().exp_()
        power = weight[block] * decay
        for k in range(terms):
            states[k].add_(power.sum(0))
            if k + 1 < terms:
                power.mul_(decay)
    return state


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
