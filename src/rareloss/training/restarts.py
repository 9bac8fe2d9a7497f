"""Multi-start: a restart of the search where a ranking loss has another, lower minimum."""

import copy
import math
import warnings
from operator import itemgetter

import torch
from torch import Tensor, nn

from rareloss.objectives import Objective
from rareloss.ops import in_float64
from rareloss.training.batches import Batch, sample_pools, select_rows
from rareloss.training.early_stopping import loss_of
from rareloss.training.regularization_path import lbfgs

__all__ = ["find_restart"]

# Rows on which the objective orders the directions, and rows on which the best of them take steps.
_ROWS, _STEP_ROWS = 8192, 4096
# Principal axes of the positives, random directions, starts that take steps, and their steps.
_AXES, _RANDOM, _STARTS, _STEPS = 8, 16, 3, 15
# Of two starts with this cosine or more one is enough.
_ALIKE = 0.9
# The part by which another minimum's loss has to be lower.
_GAIN = 0.002


def find_restart(model: nn.Linear, loss: nn.Module, batch: Batch, objective: Objective) -> nn.Linear | None:
    r"""Search for a minimum of a ranking loss that is lower than the one near a linear model.

    A ranking loss is not convex. Where the direction that separates the highest positives is not the one that separates
    most of them, the solution of cross-entropy lies near a local minimum, and the positives have two clusters. So
    directions are tried on a sample of 8,192 rows along the eight principal axes on which the variance of the positives
    differs most from that of all rows: to either side, alone, and added to the model's weights or half of them; and 16
    random ones. Of those that the objective prefers to the model's own, the best three with cosines below .9 take 15
    steps of L-BFGS on 4,096 rows, and so does the model.

    Args:
        model: of one output, over whitened inputs.
        loss: as in :func:`fit_regularization_path`.
        batch: all rows.
        objective: orders the directions.

    Returns:
        the model of the lowest loss after its steps; None where no direction is preferred, or where no loss is lower
        than that of the model's own steps by .2 %.
    """
    generator = torch.Generator().manual_seed(0)
    labelled = (batch.targets.reshape(-1) == 0) | (batch.targets.reshape(-1) == 1)
    if not bool(labelled.all()):
        batch = select_rows(batch, labelled)
    sample, step_rows = (
        select_rows(batch, *next(sample_pools(batch.targets, size, generator))) for size in (_ROWS, _STEP_ROWS)
    )
    norm = model.weight.detach().norm() or torch.ones(())
    own = model.weight.detach()[0] / norm
    starts = [own, *_preferred(own, sample, objective, generator)]
    if len(starts) == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a small pool's warning; the path warns of the whole one
        (own_loss, _), *others = (_step(model, norm * start, loss, step_rows) for start in starts)
    lowest, best = min(others, key=itemgetter(0))
    return best if lowest < own_loss - _GAIN * abs(own_loss) else None


def _preferred(own: Tensor, sample: Batch, objective: Objective, generator: torch.Generator) -> list[Tensor]:
    # The best directions that the objective prefers to the model's own, no two alike.
    directions = [own * part + sign * axis for axis in _axes(sample) for sign in (1, -1) for part in (0, 0.5, 1)]
    directions += list(torch.randn(_RANDOM, len(own), generator=generator).to(own))
    units = nn.functional.normalize(torch.stack([own, *directions]))
    labels = sample.targets.reshape(-1, 1).expand(-1, len(units))
    values = objective.metric(sample.inputs @ units.mT, labels, sample.weight).value
    preferred = [own]
    for unit in units[values.argsort(descending=True)][: int((values > values[0]).sum())]:
        if len(preferred) <= _STARTS and all(unit @ other < _ALIKE for other in preferred):
            preferred.append(unit)
    return preferred[1:]


def _step(model: nn.Linear, weight: Tensor, loss: nn.Module, batch: Batch) -> tuple[float, nn.Linear]:
    # The loss and the model after some steps from ``weight``.
    stepped = copy.deepcopy(model)
    with torch.no_grad():
        stepped.weight.copy_(weight)

    def closure() -> float:
        stepped.zero_grad()
        value = loss_of(loss, stepped, batch)
        value.backward()
        return float(value)

    lbfgs(list(stepped.parameters()), _STEPS).step(closure)
    with torch.no_grad():
        value = float(loss_of(loss, stepped, batch))
    return math.inf if math.isnan(value) else value, stepped


def _axes(batch: Batch) -> list[Tensor]:
    # Of unit length, those first along which the variance of the positives is furthest from 1, that of all rows.
    positive = in_float64(batch.inputs[batch.targets.reshape(-1) == 1])
    if len(positive) < 2:
        return []
    centred = positive - positive.mean(0)
    variance, axes = torch.linalg.eigh(centred.mT @ centred / len(positive))
    order = (variance - 1).abs().argsort(descending=True)[:_AXES]
    axes = axes.to(batch.inputs.dtype).to(batch.inputs.device)
    return [axes[:, axis] for axis in order.tolist()]
