"""Another minimum of a ranking loss than the one that cross-entropy leads to."""

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rareloss.training.descent import Batch, lbfgs, pools, value_of

__all__ = ["start_elsewhere"]

# Rows that choose among the starts, directions that are drawn, and how many of them take the steps.
_ROWS, _DRAWN, _STEPPED, _STEPS = 4096, 64, 3, 15
# A minimum is another one where its loss is lower by this part of the known one's.
_LOWER = 0.02


def start_elsewhere(model: nn.Linear, loss: nn.Module, whole: Batch) -> nn.Linear | None:
    r"""Look for a minimum of a loss that the search from a model does not find.

    A ranking loss is not convex: where the class bends away at the top, the slopes that serve the bulk are a local
    minimum. Of 64 random directions, half of them around the model's own, the three of the lowest loss take 15 steps of
    L-BFGS on a sample of 4,096 rows, and so does the model.

    Args:
        model: of one output, in uncorrelated coordinates.
        loss: as in :func:`~rareloss.training.descent.follow_path`.
        whole: all rows.

    Returns:
        the best of them after its steps; None where the model's own steps ended about as low.
    """
    generator = torch.Generator().manual_seed(0)
    rows, weight = next(pools(whole.targets, _ROWS, generator))
    own = whole.weight if whole.weight is None else whole.weight[rows]
    both = weight if own is None else own if weight is None else own * weight
    some = Batch(whole.inputs[rows], whole.targets[rows], both)
    size = model.weight.detach().norm() or torch.ones(())

    def drawn(place: int) -> nn.Linear:
        other = copy.deepcopy(model)
        direction = torch.randn(model.weight.shape, generator=generator).to(model.weight)
        direction = direction / direction.norm() + place % 2 * model.weight / size
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
        others = sorted((drawn(place) for place in range(_DRAWN)), key=value)[:_STEPPED]
        known = stepped(copy.deepcopy(model))
        lowest, best = min(((stepped(other), place) for place, other in enumerate(others)))
    return others[best] if lowest < known - _LOWER * abs(known) else None
