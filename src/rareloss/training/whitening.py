"""Coordinates in which the inputs of a linear layer are uncorrelated."""

import copy
from functools import cached_property

import torch
from torch import Tensor, nn

__all__ = ["Uncorrelated", "carry_back"]


class Uncorrelated:
    r"""Coordinates in which inputs have covariance about I and mean 0, and weights say how far scores move.

    With mean :math:`\mu` and covariance :math:`\Sigma + \rho I = F F^\top` of the rows, an input x becomes
    :math:`F^{-1} (x - \mu)` and weights w become :math:`F^\top w`, where :math:`\rho` is a thousandth of the mean
    variance. Splines and dummies are far from uncorrelated, and a search converges slowly over them.

    Args:
        x: inputs ``[n, d]``.
        weight: of the rows, ``[n]`` or ``[n, C]``; None for equal ones. A row of weight 0 may hold anything.

    Raises:
        ValueError: a row of some weight holds NaN or infinity.
    """

    def __init__(self, x: Tensor, weight: Tensor | None) -> None:
        x = x.double()
        share = (torch.ones(len(x)) if weight is None else weight).to(x).reshape(len(x), -1).sum(1)
        x = torch.where(share[:, None] > 0, x, 0.0)
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                "inputs of train hold NaN or infinite numbers; fill or drop them, or give their rows weight 0"
            )
        share = (share / share.sum())[:, None]
        self.centre = (share * x).sum(0)
        self._centred = x - self.centre
        covariance = (share * self._centred).mT @ self._centred
        ridge = 1e-3 * covariance.diagonal().mean() + torch.finfo(x.dtype).tiny
        self.factor: Tensor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(x))

    @cached_property
    def inputs(self) -> Tensor:
        """The rows in these coordinates, ``[n, d]``."""
        inputs: Tensor = torch.linalg.solve_triangular(self.factor, self._centred.mT, upper=False).mT
        return inputs

    @torch.no_grad()
    def into(self, layer: nn.Linear) -> nn.Linear:
        """Return a layer of these coordinates with the scores of the given one."""
        into = copy.deepcopy(layer).to(torch.promote_types(layer.weight.dtype, torch.float32))
        into.weight.copy_(layer.weight.double() @ self.factor)
        if layer.bias is not None:
            into.bias.add_(layer.weight.double() @ self.centre)
        return into

    @torch.no_grad()
    def back(self, into: nn.Linear, layer: nn.Linear) -> None:
        """Give a layer of the plain inputs the scores of one of these coordinates."""
        weights = carry_back(self.factor, into.weight)
        layer.weight.copy_(weights)
        if layer.bias is not None:
            layer.bias.copy_(into.bias - weights @ self.centre)


def carry_back(factor: Tensor, weights: Tensor) -> Tensor:
    r"""Carry weights of uncorrelated coordinates ``[C, d]`` back to the plain inputs: :math:`w F^{-1}`, in float64."""
    plain: Tensor = torch.linalg.solve_triangular(factor, weights.double(), upper=False, left=False)
    return plain
