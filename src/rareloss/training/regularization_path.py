"""Regularization path: minima of a loss of all rows under ever smaller penalties, of which validation chooses one."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rareloss.ops import in_float64
from rareloss.training.batches import Batch
from rareloss.training.early_stopping import freeze_batch_norm, loss_of
from rareloss.training.validation import BestCheckpoint, TrainingHistory, ValidationMetric, preserve_modes

__all__ = ["PENALTIES", "fit_regularization_path", "lbfgs"]

# On the squared relative change of the weights, in units of the loss.
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# Penalties in a row that may bring no gain on validation before the path ends.
_PATIENCE = 3


def fit_regularization_path(
    model: nn.Module,
    loss: nn.Module,
    batch: Batch,
    evaluate: Callable[[], ValidationMetric | float],
    *,
    penalties: Sequence[float] = PENALTIES,
    margin: float = 0.5,
    forward: Callable[..., Tensor] | None = None,
    warm_start: nn.Module | None = None,
    tolerance: float = 1e-6,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    find_restart: Callable[[], nn.Module | None] | None = None,
) -> TrainingHistory:
    r"""Minimise a loss of all rows under ever smaller penalties, and keep what is best on validation, start included.

    .. math:: L(\theta) + \lambda \, \frac{\lVert \theta - \theta_0 \rVert^2}{\lVert \theta_0 \rVert^2}

    over weights :math:`\theta` (biases are free) from the given ones :math:`\theta_0`, for each penalty
    :math:`\lambda` in turn by L-BFGS, warm-started at the last minimum. So the path leads from the start to the minimum
    of the loss, and there is no learning rate. Three penalties in a row without a gain on validation end the path.

    Args:
        model: the start; it is changed.
        loss: called with scores and targets, and with ``sample_weight`` where the batch has weights.
        batch: all rows.
        evaluate: computes the model's metric on validation, see :class:`BestCheckpoint`.
        penalties: :math:`\lambda`, from the largest to the smallest.
        margin: in standard errors, see :class:`BestCheckpoint`.
        forward: computes the scores of the inputs with their graph; the model itself by default.
        warm_start: a model of the same kind, from whose parameters the first search starts; the given one by default.
        tolerance: change of the loss (or of every parameter) at which a search ends.
        make_optimizer: makes the optimizer whose one ``step(closure)`` minimises; L-BFGS by default.
        find_restart: makes a model near another minimum, or None; called at the end of the path. From there the path
            is followed in reverse: under the smallest penalty first.

    Returns:
        the history; ``step`` counts gradients.
    """
    search = _Search(model, loss, batch, forward or model, make_optimizer or partial(lbfgs, tolerance=tolerance))
    checkpoint = BestCheckpoint(model, evaluate, margin)
    if warm_start is not None:
        model.load_state_dict(warm_start.state_dict())
    with preserve_modes(model):
        model.train()
        freeze_batch_norm(model)
        search.follow(penalties, checkpoint)
        restart = None if find_restart is None else find_restart()
        if restart is not None:
            model.load_state_dict(restart.state_dict())
            search.follow(penalties[::-1], checkpoint)
    return checkpoint.restore()


def lbfgs(parameters: list[nn.Parameter], steps: int = 30, tolerance: float = 1e-6) -> torch.optim.Optimizer:
    """Make L-BFGS with a strong Wolfe line search, for one ``step`` of at most ``steps`` iterations."""
    return torch.optim.LBFGS(
        parameters, max_iter=steps, history_size=10, tolerance_change=tolerance, line_search_fn="strong_wolfe"
    )


class _Search:
    """The penalised loss of one model, minimised for one penalty after another."""

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        batch: Batch,
        forward: Callable[..., Tensor],
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        self.loss, self.batch, self.forward, self.make_optimizer = loss, batch, forward, make_optimizer
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.start = [(weight, weight.detach().clone()) for weight in self.parameters if weight.ndim > 1]
        # Weights that are all 0 have no norm to be measured by.
        self.squared_norm = sum(in_float64(weight).square().sum().item() for _, weight in self.start) or 1.0
        self.gradients, self.last_loss = 0, math.nan

    def follow(self, penalties: Sequence[float], checkpoint: BestCheckpoint) -> None:
        """Minimise under each penalty in turn, until validation gains no more or a search fails."""
        without_gain = 0
        for penalty in penalties:
            optimizer: Any = self.make_optimizer(self.parameters)
            optimizer.step(partial(self._closure, penalty))
            if not (math.isfinite(self.last_loss) and all(bool(p.isfinite().all()) for p in self.parameters)):
                return
            without_gain = 0 if checkpoint.update(self.gradients, self.last_loss, penalty) else without_gain + 1
            if without_gain == _PATIENCE:
                return

    def _closure(self, penalty: float) -> Tensor:
        self.gradients += 1
        for parameter in self.parameters:
            parameter.grad = None
        value = loss_of(self.loss, self.forward, self.batch)
        self.last_loss = value.item()
        change = torch.stack([(weight - start).square().sum() for weight, start in self.start]).sum()
        value = value + penalty * change / self.squared_norm
        value.backward()
        return value
