"""Whitening: coordinates in which the inputs of a linear layer are uncorrelated and of unit variance."""

import copy
from functools import cached_property

import torch
from torch import Tensor, nn

from rareloss.ops import in_float64

__all__ = ["Whitening", "unwhiten"]


class Whitening:
    r"""Cholesky whitening of the inputs of a linear layer, and of its weights.

    With mean :math:`\mu` and covariance :math:`\Sigma + \rho I = F F^\top` of the rows, an input x becomes
    :math:`F^{-1} (x - \mu)` and weights w become :math:`F^\top w`, where :math:`\rho` is a thousandth of the mean
    variance. The norm of a change of the whitened weights is how far the scores move. Splines and dummies are strongly
    correlated, and a search converges slowly over them.

    All is float64: on the CPU, for a device without it.

    Args:
        x: inputs ``[n, d]``.
        weight: sample weights ``[n]`` or ``[n, C]``; None for equal ones. A row of weight 0 may hold anything.

    Raises:
        ValueError: a row of positive weight holds NaN or infinity.
    """

    def __init__(self, x: Tensor, weight: Tensor | None) -> None:
        x = in_float64(x)
        weight = in_float64(torch.ones(len(x)) if weight is None else weight).to(x.device).reshape(len(x), -1).sum(1)
        x = torch.where(weight[:, None] > 0, x, 0.0)
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                "inputs of train hold NaN or infinite numbers; fill or drop them, or give their rows weight 0"
            )
        weight = (weight / weight.sum())[:, None]
        self.mean = (weight * x).sum(0)
        self._centred = x - self.mean
        covariance = (weight * self._centred).mT @ self._centred
        ridge = 1e-3 * covariance.diagonal().mean() + torch.finfo(x.dtype).tiny
        self.factor: Tensor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(x))

    @cached_property
    def inputs(self) -> Tensor:
        """The whitened rows ``[n, d]``, in float64."""
        inputs: Tensor = torch.linalg.solve_triangular(self.factor, self._centred.mT, upper=False).mT
        return inputs

    @torch.no_grad()
    def whiten_layer(self, layer: nn.Linear) -> nn.Linear:
        """Return a layer that gives whitened inputs the scores that ``layer`` gives the plain ones."""
        whitened = copy.deepcopy(layer).to(torch.promote_types(layer.weight.dtype, torch.float32))
        weight = in_float64(layer.weight)
        whitened.weight.copy_(weight @ self.factor)
        if layer.bias is not None:
            whitened.bias.copy_(in_float64(layer.bias) + weight @ self.mean)
        return whitened

    @torch.no_grad()
    def unwhiten_layer(self, whitened: nn.Linear, layer: nn.Linear) -> None:
        """Write the parameters into ``layer`` that give plain inputs the scores of ``whitened``."""
        weights = unwhiten(self.factor, whitened.weight)
        layer.weight.copy_(weights)
        if layer.bias is not None:
            layer.bias.copy_(in_float64(whitened.bias) - weights @ self.mean)


def unwhiten(factor: Tensor, weights: Tensor) -> Tensor:
    r"""Return the weights of plain inputs for whitened weights ``[C, d]``: :math:`w F^{-1}`, in float64."""
    plain: Tensor = torch.linalg.solve_triangular(factor, in_float64(weights), upper=False, left=False)
    return plain
