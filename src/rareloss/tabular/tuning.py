"""Draws of hyper-parameters, spread evenly over their ranges."""

from scipy.stats import qmc

__all__ = ["between", "cube", "network_draws"]


def cube(draws: int, dimensions: int, seed: int) -> list[list[float]]:
    """Draw points of a Latin hypercube in [0, 1]."""
    points: list[list[float]] = qmc.LatinHypercube(dimensions, rng=seed).random(draws).tolist() if draws > 0 else []
    return points


def between(share: float, low: float, high: float) -> float:
    """Return the number that lies so far from ``low`` to ``high`` on a logarithmic scale, to three digits."""
    return float(f"{low * (high / low) ** share:.3g}")


def network_draws(trials: int, seed: int) -> list[dict[str, float]]:
    """Draw learning rates and weight decays of AdamW: the usual setting, then random ones."""
    return [{"learning_rate": 3e-3, "weight_decay": 1e-2}] + [
        {"learning_rate": between(rate, 3e-4, 3e-2), "weight_decay": between(decay, 1e-3, 1.0)}
        for rate, decay in cube(trials - 1, 2, seed)
    ]
