"""Logistic regression and fine-tuning under bounds, which keep a curve from falling.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import lsq_linear, minimize
from scipy.special import expit
from torch import Tensor, nn

from rareloss.tabular.estimators.rows import Array
from rareloss.training import unwhiten

__all__ = ["BoundedSearch", "WhitenedLinear", "solve_monotone"]

# In units of the mean cross-entropy: the largest slope along which the bounds would still let it fall.
TOLERANCE = 1e-8


def solve_monotone(
    x: Array,
    target: np.ndarray,
    weight: Array,
    C: float,
    steps: Array,
    bounded: np.ndarray,
    *,
    iterations: int = 100,
) -> tuple[Array, float, bool]:
    r"""Solve logistic regression with a ridge under bounds, by Newton steps each of which is a bounded least-squares.

    .. math:: \min_\beta \; C \sum_i w_i \, \mathrm{CE}_i(x_i \beta + b) + \tfrac12 \lVert \beta \rVert^2
        \quad \text{with} \quad (S \beta)_k \ge 0 \text{ for bounded } k

    It is convex. The steps end where no direction inside the bounds lowers the mean loss by a slope above 1e-8, or
    nothing is lower in float64; a slope above 1e-6 is then no convergence.

    Args:
        x: inputs ``[n, k]``.
        target: 0 or 1, ``[n]``.
        weight: of the rows.
        C: inverse penalty.
        steps: S, invertible ``[k, k]``.
        bounded: which of S beta may not be negative, ``[k]``.
        iterations: at most.

    Returns:
        coefficients ``[k]``, intercept, and whether it converged.
    """
    back = np.linalg.inv(steps)
    design = np.column_stack([x @ back, np.ones(len(x))])
    total = weight.sum()
    ridge = np.zeros((design.shape[1],) * 2)
    ridge[:-1, :-1] = back.T @ back / (C * total)
    low = np.append(np.where(bounded, 0.0, -np.inf), -np.inf)
    share = weight / total

    def value(at: Array) -> float:
        scores = design @ at
        return float(share @ (np.logaddexp(0, scores) - target * scores) + at @ ridge @ at / 2)

    at = np.zeros(len(low))
    at[-1] = np.log((share @ target) / (share @ (1 - target)))
    now, converged = value(at), False
    for _ in range(iterations):
        probability = expit(design @ at)
        slope = design.T @ (share * (probability - target)) + ridge @ at
        converged = bool(np.abs(at - np.maximum(low, at - slope)).max() <= TOLERANCE)
        if converged:
            break
        curvature = design.T @ ((share * probability * (1 - probability))[:, None] * design) + ridge
        to = _newton(at, slope, curvature, low)
        length = 1.0
        while (found := value(at + length * (to - at))) > now + 1e-4 * length * slope @ (to - at) and length > 1e-8:
            length /= 2
        if found >= now:
            # Nothing is lower in the arithmetic of float64.
            converged = bool(np.abs(at - np.maximum(low, at - slope)).max() <= 100 * TOLERANCE)
            break
        at, now = at + length * (to - at), found
    return back @ at[:-1], float(at[-1]), converged


def _newton(at: Array, slope: Array, curvature: Array, low: Array) -> Array:
    # The minimum of the quadratic model inside the bounds.
    root = np.linalg.cholesky(curvature + 1e-12 * np.trace(curvature) / len(low) * np.eye(len(low)))
    aim = root.T @ at - np.linalg.solve(root, slope)
    return np.asarray(np.maximum(low, lsq_linear(root.T, aim, (low, np.inf), method="bvls").x))


class WhitenedLinear(nn.Module):
    """A linear layer that is searched over whitened inputs: ``weight`` is the whitened one.

    Args:
        layer: of one output, over the plain inputs.
        factor: of :class:`rareloss.training.Whitening`.
    """

    factor: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.register_buffer("bias", layer.bias.detach().clone())
        self.weight = nn.Parameter((layer.weight.detach().double() @ factor).float())

    def plain(self) -> nn.Linear:
        """Return the layer over the plain inputs."""
        layer = nn.Linear(self.weight.shape[1], 1)
        with torch.no_grad():
            layer.weight.copy_(self._weights())
            layer.bias.copy_(self.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Compute the scores of plain inputs."""
        return nn.functional.linear(x, self._weights().to(x.dtype), self.bias)

    def _weights(self) -> Tensor:
        return unwhiten(self.factor, self.weight)


class BoundedSearch(torch.optim.Optimizer):
    """L-BFGS-B over what ``steps`` makes of the one weight matrix.

    Args:
        parameters: the weight, ``[1, k]``.
        steps: invertible, ``[k, k]``.
        bounded: which of the steps may not be negative, ``[k]``.
    """

    def __init__(self, parameters: Any, *, steps: Array, bounded: np.ndarray) -> None:
        super().__init__(parameters, {})
        self.steps, self.back, self.bounded = steps, np.linalg.inv(steps), bounded

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        """Minimise the closure's value."""
        (weight,) = self.param_groups[0]["params"]
        size = np.linalg.norm(self.back, axis=0)  # steps of about the same effect

        @torch.no_grad()
        def put(at: Array) -> None:
            weight.copy_(torch.from_numpy(self.back @ (at / size))[None])

        def value(at: Array) -> tuple[float, Array]:
            put(at)
            with torch.enable_grad():
                found = closure()
            return float(found.detach()), self.back.T @ weight.grad[0].double().numpy() / size

        start = size * (self.steps @ weight.detach()[0].double().numpy())
        start = np.where(self.bounded, np.maximum(start, 0.0), start)
        bounds = [(0.0 if one else None, None) for one in self.bounded]
        found = minimize(
            value, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40, "ftol": 1e-7}
        )
        value(found.x)
