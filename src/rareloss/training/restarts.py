"""Another minimum of a ranking loss than the one that cross-entropy leads to."""

import copy
import math
import warnings
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from rareloss.objectives import Objective
from rareloss.training.descent import Batch, lbfgs, part_of, pools, value_of

__all__ = ["start_elsewhere"]

# Rows that choose among the directions, and rows of the steps.
_ROWS, _ROWS_OF_STEPS = 8192, 4096
# Axes of the positives, random directions, and how many starts take the steps.
_AXES, _RANDOM, _STEPPED, _STEPS = 8, 16, 3, 15
# Starts of which one is enough, by their cosine.
_ALIKE = 0.9
# A minimum is another one where its loss is lower by this part of the known one's.
_LOWER = 0.002


def start_elsewhere(model: nn.Linear, loss: nn.Module, whole: Batch, objective: Objective) -> nn.Linear | None:
    r"""Look for a minimum of a loss that the search from a model does not find.

    A ranking loss is not convex: where the class bends away at the top, the slopes that serve the bulk are a local
    minimum. The positives of bulk and top then lie apart. So directions are tried on a sample of 8,192 rows along the
    eight axes on which the variance of the positives differs most from that of all rows: to either side, alone, and
    together with the half or the whole of the model's own direction; and 16 random ones. Where the objective prefers
    some to the model's own, the best three, of which none is like another, take 15 steps of L-BFGS on 4,096 rows, and
    so does the model.

    Args:
        model: of one output, in uncorrelated coordinates.
        loss: as in :func:`~rareloss.training.descent.follow_path`.
        whole: all rows.
        objective: orders the directions.

    Returns:
        the best of them after its steps; None where none is preferred, or the model's own steps ended about as low.
    """
    generator = torch.Generator().manual_seed(0)
    labelled = (whole.targets.reshape(-1) == 0) | (whole.targets.reshape(-1) == 1)
    if not bool(labelled.all()):
        whole = part_of(whole, labelled)
    some, few = (part_of(whole, *next(pools(whole.targets, size, generator))) for size in (_ROWS, _ROWS_OF_STEPS))
    size = model.weight.detach().norm() or torch.ones(())
    own = model.weight.detach()[0] / size
    directions = [own * share + sign * axis for axis in _axes(some) for sign in (1, -1) for share in (0, 0.5, 1)]
    directions += list(torch.randn(_RANDOM, len(own), generator=generator).to(own))
    units = nn.functional.normalize(torch.stack([own, *directions]))
    labels = some.targets.reshape(-1, 1).expand(-1, len(units))
    found = objective.metric(some.inputs @ units.mT, labels, some.weight).value
    chosen = [own]
    for unit in units[found.argsort(descending=True)][: int((found > found[0]).sum())]:
        if len(chosen) <= _STEPPED and all(unit @ other < _ALIKE for other in chosen):
            chosen.append(unit)
    if len(chosen) == 1:
        return None

    def stepped(start: Tensor) -> tuple[float, nn.Linear]:
        walker = copy.deepcopy(model)
        with torch.no_grad():
            walker.weight.copy_(size * start)

        def closure() -> Tensor:
            walker.zero_grad()
            now = value_of(loss, walker, few)
            now.backward()
            return now

        search: Any = lbfgs(list(walker.parameters()), _STEPS, 1e-6)
        search.step(closure)
        with torch.no_grad():
            found = float(value_of(loss, walker, few))
        return math.inf if math.isnan(found) else found, walker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a pool is small is said of all rows
        (known, _), *others = map(stepped, chosen)
        lowest, best = min(others, key=itemgetter(0))
    return best if lowest < known - _LOWER * abs(known) else None


def _axes(rows: Batch) -> list[Tensor]:
    # Of unit length, those first along which the variance of the positives is furthest from 1, that of all rows.
    positive = rows.inputs[rows.targets.reshape(-1) == 1].double()
    if len(positive) < 2:
        return []
    centred = positive - positive.mean(0)
    variance, axes = torch.linalg.eigh(centred.mT @ centred / len(positive))
    first = (variance - 1).abs().argsort(descending=True)[:_AXES]
    return [axes[:, place].to(rows.inputs.dtype) for place in first.tolist()]
