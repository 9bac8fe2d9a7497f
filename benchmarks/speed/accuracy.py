"""Smooth-AP's value and gradient against a float64 sum over all pairs, written apart from the library.

The error of a gradient is that of its norm, relative to the true norm. Where scores lie far apart, as in a chain, the
true gradient is all but 0, while each row's gradient is a sum of terms of the size ``1 / (4 t P)`` that cancel. A
truth below 1e-8 of their norm, ``1 / (4 t sqrt(P))``, counts as 0, and its error is taken relative to that norm.
"""

import math
from functools import cache

import torch
from benchmarks.speed.laws import LAWS, draw, draw_positive
from benchmarks.speed.rows import TEMPERATURES
from torch import Tensor

from rareloss import functional

__all__ = ["brute_force", "cases", "errors"]

# A truth that small beside the terms that cancel in it is 0.
NEGLIGIBLE = 1e-8
# Rows and rate of positives.
POOLS = ((4096, 0.1), (16384, 0.01))


def brute_force(scores: Tensor, positive: Tensor, temperature: float) -> tuple[float, Tensor]:
    """Compute smooth average precision and its gradient, pair by pair in float64.

    AP is the mean over positives i of ``Q_i / R_i``, sums of ``sigmoid((s_j - s_i) / t)`` over the positives and over
    all rows, each row counting itself with 1. So ``d AP / d sigmoid_ij = (y_j / R_i - Q_i / R_i**2) / P``.
    """
    s, y = scores.double(), positive.double()
    indices = positive.nonzero()[:, 0]
    value, gradient = 0.0, torch.zeros_like(s)
    for block in indices.split(max(1, 2**21 // len(s))):
        above = torch.sigmoid((s - s[block, None]) / temperature)
        among_positives, among_all = 0.5 + above @ y, 0.5 + above.sum(1)
        value += float((among_positives / among_all).sum()) / len(indices)
        slope = (y - (among_positives / among_all)[:, None]) / among_all[:, None] / len(indices)
        # sigmoid' from the tail that does not cancel
        slope = slope * above * torch.sigmoid((s[block, None] - s) / temperature) / temperature
        gradient += slope.sum(0)
        gradient[block] -= slope.sum(1)
    return value, gradient


def cases() -> list[tuple[str, float, int, float]]:
    """Return law, temperature, rows and rate of positives of every case."""
    return [(law, t, *pool) for law in LAWS for t in TEMPERATURES for pool in POOLS]


@cache
def errors(law: str, temperature: float, rows: int, rate: float, device: str = "cpu") -> dict[str, float]:
    """Compute the relative errors of ``value`` and ``gradient`` for float32 scores."""
    scores, positive = draw(law, rows, temperature=temperature), draw_positive(rows, rate)
    value, gradient = brute_force(scores, positive, temperature)
    tried = scores.to(device).requires_grad_()
    result = functional.smooth_average_precision(tried, positive.to(device), temperature=temperature).value
    (ours,) = torch.autograd.grad(result, tried)
    distance, norm = float((ours.cpu().double() - gradient).norm()), float(gradient.norm())
    terms = 1 / (4 * temperature * math.sqrt(int(positive.sum())))
    return {
        "value": abs(float(result.detach()) - value) / value,
        "gradient": distance / (norm if norm > NEGLIGIBLE * terms else terms),
    }
