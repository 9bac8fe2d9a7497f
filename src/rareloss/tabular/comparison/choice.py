"""Which trained model of a comparison is worth deploying: the simplest of those that nothing beats on validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rareloss.table import DataError
from rareloss.tabular.comparison.runs import TREES
from rareloss.tabular.methods import BASELINE
from rareloss.tabular.models import MODELS

__all__ = ["Choice", "choose"]


@dataclass(frozen=True)
class Choice:
    """What to deploy.

    Args:
        model: what is trained.
        method: how.
        sentence: why, with the numbers.
    """

    model: str
    method: str
    sentence: str


def choose(results: Mapping[str, Any], *, model: str | None = None, method: str | None = None) -> Choice:
    """Choose the simplest model within one standard error of the best on validation.

    Of each model its verdict's winner, or else tuned cross-entropy, is a candidate; boosted trees are one too. A
    network chooses its checkpoint on the rows that it is compared on, so its lead there is partly luck.

    Args:
        results: of a comparison, with ``verdicts`` and ``runs``.
        model: what to deploy, where it is not to be chosen.
        method: how to train, where it is not to be chosen.

    Raises:
        DataError: nothing of what is asked for was run.
    """
    winners = {row["model"]: method or row["winner"] or BASELINE for row in results["verdicts"]}
    if method in (None, TREES):
        winners[TREES] = TREES
    if model is not None:
        return Choice(model, winners.get(model, BASELINE), "")
    # The trees of a split stand beside every model.
    found = {
        name: list(
            {
                run["seed"]: run["validation"]
                for run in results["runs"]
                if run["method"] == by and name in (run["model"], TREES)
            }.values()
        )
        for name, by in winners.items()
    }
    means = {name: float(np.mean(values)) for name, values in found.items() if values}
    if not means:
        raise DataError(f"the comparison has no run of {', '.join(map(str, winners.values()))}; name another method")
    best = max(means, key=lambda name: means[name])
    splits = len(found[best])
    error = float(np.std(found[best], ddof=1)) / splits**0.5 if splits > 1 else 0.0
    order = [*MODELS, *(name for name in means if name not in MODELS and name != TREES), TREES]
    simplest = next(name for name in order if name in means and means[name] >= means[best] - error)
    others = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    how = "" if simplest == TREES else f" by {winners[simplest]}"
    sentence = (
        f"To deploy: {simplest}{how}, the simplest within one standard error ({error:.4f}, of {splits} splits) of the "
        f"best on validation ({others})"
    )
    return Choice(simplest, winners[simplest], sentence)
