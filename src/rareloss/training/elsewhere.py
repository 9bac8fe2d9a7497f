"""Another minimum of a ranking loss than the one that cross-entropy leads to."""

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rareloss.training.descent import Batch, lbfgs, part_of, pools, value_of

__all__ = ["start_elsewhere"]

# Rows that choose among the starts, axes of the positives, random directions, and how many starts take the steps.
_ROWS, _AXES, _RANDOM, _STEPPED, _STEPS = 4096, 8, 16, 3, 15
# Starts of which one is enough, by their cosine.
_ALIKE = 0.9
# A minimum is another one where its loss is lower by this part of the known one's.
_LOWER = 0.002


def start_elsewhere(model: nn.Linear, loss: nn.Module, whole: Batch) -> nn.Linear | None:
    r"""Look for a minimum of a loss that the search from a model does not find.

    A ranking loss is not convex: where the class bends away at the top, the slopes that serve the bulk are a local
    minimum. The positives of bulk and top then lie apart. So directions are tried on a sample of 4,096 rows along the
    eight axes on which the variance of the positives differs most from that of all rows: to either side, alone, and
    together with the half or the whole of the model's own direction; and 16 random ones. The three of the lowest loss
    that are not alike take 15 steps of L-BFGS on the sample, and so does the model.

    Args:
        model: of one output, in uncorrelated coordinates.
        loss: as in :func:`~rareloss.training.descent.follow_path`.
        whole: all rows.

    Returns:
        the best of them after its steps; None where the model's own steps ended about as low.
    """
    generator = torch.Generator().manual_seed(0)
    rows, weight = next(pools(whole.targets, _ROWS, generator))
    some = part_of(whole, rows, weight)
    size = model.weight.detach().norm() or torch.ones(())

    own_direction = model.weight.detach() / size
    directions = [
        own_direction * share + sign * axis for axis in _axes(some) for sign in (1, -1) for share in (0, 0.5, 1)
    ]
    drawn = torch.randn(_RANDOM, *model.weight.shape, generator=generator).to(model.weight)
    directions += [direction / direction.norm() for direction in drawn]

    def turned(direction: Tensor) -> nn.Linear:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.weight.copy_(size * direction / direction.norm())
        return other

    def value(other: nn.Linear) -> float:
        with torch.no_grad():
            found = float(value_of(loss, other, some))
        return math.inf if math.isnan(found) else found

    def stepped(other: nn.Linear) -> float:
        def closure() -> Tensor:
            other.zero_grad()
            now = value_of(loss, other, some)
            now.backward()
            return now

        search: Any = lbfgs(list(other.parameters()), _STEPS, 1e-6)
        search.step(closure)
        return value(other)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a pool is small is said of all rows
        others: list[nn.Linear] = []
        for other in sorted(map(turned, directions), key=value):
            alike = (float((other.weight * chosen.weight).sum()) / size**2 for chosen in others)
            if len(others) < _STEPPED and all(cosine < _ALIKE for cosine in alike):
                others.append(other)
        known = stepped(copy.deepcopy(model))
        lowest, best = min(((stepped(other), place) for place, other in enumerate(others)))
    return others[best] if lowest < known - _LOWER * abs(known) else None


def _axes(rows: Batch) -> list[Tensor]:
    # Of unit length, those first along which the variance of the positives is furthest from 1, that of all rows.
    positive = rows.inputs[rows.targets.reshape(-1) == 1].double()
    if len(positive) < 2:
        return []
    centred = positive - positive.mean(0)
    variance, axes = torch.linalg.eigh(centred.mT @ centred / len(positive))
    first = (variance - 1).abs().argsort(descending=True)[:_AXES]
    return [axes[:, place][None].to(rows.inputs.dtype) for place in first.tolist()]
