"""From runs to effects: paired differences with intervals, their adjustment, and the mean effect over sets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rareloss.tabular.comparison.statistics import (
    LEVEL,
    Interval,
    corrected_error,
    holm,
    over_sets,
    over_these_sets,
    paired_interval,
    paired_p,
)
from rareloss.tabular.methods import BASELINE

__all__ = ["LEAST_ERROR", "Effect", "Overall", "effects", "overall"]

Runs = Sequence[Mapping[str, Any]]
# A method that kept its start on every split has no spread at all; nothing here is known more finely than this.
LEAST_ERROR = 0.001


@dataclass(frozen=True)
class Effect:
    """What a method changes on one set.

    Args:
        data: the set.
        method: what is judged.
        base: mean test value of what it is judged against.
        test: its own mean test value.
        differences: by split.
        interval: of the mean difference, at 95 %, of this comparison alone.
        error: standard error of the mean difference, corrected for shared rows; None for one split.
        p: two-sided, of this comparison alone.
        adjusted: by Holm, over all methods and sets of one model and objective.
    """

    data: str
    method: str
    base: float
    test: float
    differences: tuple[float, ...]
    interval: Interval
    error: float | None
    p: float
    adjusted: float

    @property
    def sure(self) -> bool:
        """Whether it stands beyond chance after the adjustment."""
        return self.adjusted < 1 - LEVEL


@dataclass(frozen=True)
class Overall:
    """What a method changes on average over sets.

    Args:
        method: what is judged.
        sets: how many have at least two splits.
        these: mean over these sets, chance being the splits.
        like: mean over sets like these, by a random-effects model.
        worst: the set with the least mean difference, and that difference.
        better: sets where it is better beyond chance after Holm's adjustment.
        worse: sets where it is worse.
    """

    method: str
    sets: int
    these: Interval
    like: Interval
    worst: tuple[str, float]
    better: tuple[str, ...]
    worse: tuple[str, ...]


def effects(runs: Runs, model: str, objective: str, against: str = BASELINE, only: str | None = None) -> list[Effect]:
    """Compute the effect of every method on every set, for one model and objective.

    Args:
        runs: of the results.
        model: its name.
        objective: as the grid names it.
        against: the method that the others are judged against.
        only: judge this method alone.
    """
    tests: dict[tuple[str, str], dict[int, float]] = {}
    ratio: dict[str, float] = {}
    for run in runs:
        if (run["model"], run["objective"]) == (model, objective):
            tests.setdefault((run["data"], run["method"]), {})[run["seed"]] = run["test"]
            ratio[run["data"]] = run["test_over_train"]
    found = []
    for (data, method), mine in tests.items():
        base = tests.get((data, against), {})
        shared = sorted(set(mine) & set(base))
        if method == against or not shared or (only is not None and method != only):
            continue
        gaps = [mine[seed] - base[seed] for seed in shared]
        found.append(
            Effect(
                data,
                method,
                float(np.mean([base[seed] for seed in shared])),
                float(np.mean([mine[seed] for seed in shared])),
                tuple(gaps),
                paired_interval(gaps, test_over_train=ratio[data]),
                corrected_error(gaps, test_over_train=ratio[data]) if len(gaps) > 1 else None,
                paired_p(gaps, test_over_train=ratio[data]),
                1.0,
            )
        )
    adjusted = holm([effect.p for effect in found])
    return [Effect(**{**vars(effect), "adjusted": p}) for effect, p in zip(found, adjusted, strict=True)]


def overall(every: Iterable[Effect]) -> list[Overall]:
    """Compute each method's mean effect over the sets that have at least two splits."""
    by_method: dict[str, list[Effect]] = {}
    for effect in every:
        if effect.error is not None:
            by_method.setdefault(effect.method, []).append(effect)
    found = []
    for method, mine in by_method.items():
        means = [effect.interval.mean for effect in mine]
        errors = [effect.error or 0.0 for effect in mine]
        worst = min(mine, key=lambda effect: effect.interval.mean)
        found.append(
            Overall(
                method,
                len(mine),
                over_these_sets(means, errors, [len(effect.differences) for effect in mine]),
                over_sets(means, [max(error, LEAST_ERROR) for error in errors]),
                (worst.data, worst.interval.mean),
                tuple(effect.data for effect in mine if effect.sure and effect.interval.mean > 0),
                tuple(effect.data for effect in mine if effect.sure and effect.interval.mean < 0),
            )
        )
    return found
