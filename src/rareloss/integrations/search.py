"""Draws of hyper-parameters, spread evenly over their ranges."""

from scipy.stats import qmc

__all__ = ["between", "cube"]


def cube(draws: int, dimensions: int, seed: int) -> list[list[float]]:
    """Draw points of a Latin hypercube in [0, 1]."""
    points: list[list[float]] = qmc.LatinHypercube(dimensions, rng=seed).random(draws).tolist() if draws > 0 else []
    return points


def between(share: float, low: float, high: float) -> float:
    """Return the number that lies so far from ``low`` to ``high`` on a logarithmic scale, to three digits."""
    return float(f"{low * (high / low) ** share:.3g}")
