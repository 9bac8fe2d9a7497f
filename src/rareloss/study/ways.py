"""How each arm trains a scorer, all with the same split, batches and initialisation; validation makes every choice."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from scipy.stats import qmc
from torch import Tensor, nn

from rareloss import LossWarmupWrapper
from rareloss.study.arms import BASELINE, RECIPE, TEMPERATURES, Arm, ranking_loss
from rareloss.study.batches import batches, pools
from rareloss.study.data import DataError
from rareloss.study.fitting import (
    Fitted,
    Task,
    class_weights,
    cross_entropy,
    descend,
    logistic,
    new_model,
    trees,
)
from rareloss.study.scorers import Scorer

__all__ = ["fit_arms", "fit_trees"]


def fit_arms(task: Task, scorer: Scorer, arms: Sequence[Arm], trials: int) -> Iterator[tuple[Arm, Fitted | Exception]]:
    """Train a scorer under each arm but the trees, and yield each as it is done, or the error that ended it."""
    draws = _draws(scorer, task, trials)
    try:
        tuned = (logistic if scorer.scorecard else _network)(task, scorer, draws)
    except DataError:
        raise
    except Exception as error:  # whatever a user's network raises; the other scorers go on
        yield from ((arm, error) for arm in arms if arm.kind != "reference")
        return
    ways: dict[str, Callable[[Arm], Fitted]] = {
        BASELINE: lambda arm: tuned,
        "ce_continued": lambda arm: _continued(task, scorer, tuned),
        "weighted_ce": lambda arm: _weighted(task, scorer, draws),
        "focal": lambda arm: _focal(task, scorer, draws, tuned),
    }
    for arm in arms:
        if arm.kind == "reference":
            continue
        ranking = _stage if arm.name.endswith("_stage") else _warmup
        way = ways.get(arm.name) or ranking(task, scorer, tuned)
        try:
            yield arm, way(arm)
        except DataError:
            raise
        except Exception as error:  # the other arms do not depend on this one; it is kept with the results
            yield arm, error


def fit_trees(task: Task, trials: int) -> Fitted:
    """Fit the outside reference: the usual setting and a few random ones."""
    # scikit-learn's own setting; with many classes its boosting diverges on the small ones unless it is slowed.
    usual = (0.1, 0.0) if task.outputs == 1 else (0.06, 1.0)
    draws: list[dict[str, Any]] = [
        {"learning_rate": usual[0], "max_leaf_nodes": 31, "min_samples_leaf": 20, "l2_regularization": usual[1]}
    ]
    # With C classes each round grows C trees, so one draw takes the time of C.
    most = RECIPE["tree_trials"] if task.outputs == 1 else 1
    for rate, leaves, rows, penalty in _cube(min(trials, most) - 1, 4, task.seed):
        draws.append(
            {
                "learning_rate": _between(rate, 0.03, 0.15),
                "max_leaf_nodes": round(_between(leaves, 6, 40)),
                "min_samples_leaf": round(_between(rows, 10, 200)),
                "l2_regularization": _between(penalty, 1e-2, 30),
            }
        )
    return trees(task, draws, most=RECIPE["tree_rounds"])


# --------------------------------------------------------------------------------------------------------------- ways


def _draws(scorer: Scorer, task: Task, trials: int) -> list[dict[str, Any]]:
    """The usual setting first, then random ones, spread evenly over their ranges."""
    if not scorer.scorecard:
        usual = {"learning_rate": 3e-3, "weight_decay": 1e-2}
        cube = _cube(trials - 1, 2, task.seed)
        return [usual] + [
            {"learning_rate": _between(rate, 3e-4, 3e-2), "weight_decay": _between(decay, 1e-3, 1.0)}
            for rate, decay in cube
        ]
    binary = task.outputs == 1
    draws = [{"kind": scorer.kinds[0], "C": 1.0, "class_weight": 1.0 if binary else 0.0}]
    for kind, penalty, weight in _cube(trials - 1, 3, task.seed):
        draws.append(
            {
                "kind": scorer.kinds[int(kind * len(scorer.kinds))],
                "C": _between(penalty, 0.1, 1000),
                "class_weight": _between(weight, 0.3, 100) if binary else weight,
            }
        )
    return draws


def _cube(draws: int, dimensions: int, seed: int) -> list[list[float]]:
    cube: list[list[float]] = qmc.LatinHypercube(dimensions, rng=seed).random(draws).tolist() if draws > 0 else []
    return cube


def _between(share: float, low: float, high: float) -> float:
    return float(f"{low * (high / low) ** share:.3g}")


def _best(candidates: Iterator[Fitted]) -> Fitted:
    return max(candidates, key=lambda fitted: fitted.validation)


def _network(
    task: Task,
    scorer: Scorer,
    draws: Sequence[Mapping[str, Any]],
    variants: Sequence[Mapping[str, float]] = ({},),
) -> Fitted:
    """Train from the start under each draw; the variants (class weight, gamma) take turns."""
    target, kind = task.train_target, scorer.kinds[0]
    size = max(1, min(RECIPE["network_batch"], len(target) // 8))

    def tried() -> Iterator[Fitted]:
        for index, draw in enumerate(draws):
            variant = variants[index % len(variants)]
            rows = batches(target, size, task.seed)
            yield descend(
                task,
                new_model(task, scorer, kind),
                kind,
                cross_entropy(task.outputs, variant.get("gamma", 0.0)),
                lambda step, rows=rows: next(rows),  # type: ignore[misc]
                steps=RECIPE["network_steps"],
                warm_up=RECIPE["network_warm_up_steps"],
                every=RECIPE["network_look_every"],
                class_weight=class_weights(task.counts, variant["class_weight"]) if "class_weight" in variant else None,
                chosen={**draw, **variant},
                **draw,
            )

    return _best(tried())


def _weighted(task: Task, scorer: Scorer, draws: Sequence[Mapping[str, Any]]) -> Fitted:
    balanced = float(task.counts[0] / task.counts[1]) if task.outputs == 1 else 1.0
    if scorer.scorecard:
        return logistic(task, scorer, [{**draw, "class_weight": balanced} for draw in _half(draws)])
    root = math.sqrt(balanced) if task.outputs == 1 else 0.5
    return _network(task, scorer, _half(draws), [{"class_weight": root}, {"class_weight": balanced}])


def _focal(task: Task, scorer: Scorer, draws: Sequence[Mapping[str, Any]], tuned: Fitted) -> Fitted:
    if not scorer.scorecard:
        return _network(task, scorer, _half(draws), [{"gamma": 2.0}, {"gamma": 1.0}])
    return _best(
        _further(task, scorer, tuned, cross_entropy(task.outputs, gamma), {"gamma": gamma}) for gamma in (1.0, 2.0)
    )


def _half(draws: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return draws[: (len(draws) + 1) // 2]


def _continued(task: Task, scorer: Scorer, tuned: Fitted) -> Fitted:
    # As many chances as a ranking stage has temperatures.
    loss = cross_entropy(task.outputs)
    return _best(_further(task, scorer, tuned, loss, {"learning_rate_factor": factor}, factor) for factor in (1.0, 0.3))


def _stage(task: Task, scorer: Scorer, tuned: Fitted) -> Callable[[Arm], Fitted]:
    return lambda arm: _best(
        _further(task, scorer, tuned, _loss(arm, task, temperature), {"temperature": temperature})
        for temperature in _temperatures(arm, scorer)
    )


def _further(
    task: Task, scorer: Scorer, tuned: Fitted, loss: nn.Module, chosen: Mapping[str, Any], factor: float = 1.0
) -> Fitted:
    """Take the steps of a stage from the tuned solution."""
    rows = pools(task.train_target, task.seed)
    rate = factor * RECIPE["stage_learning_rate"][_size(scorer)]
    return descend(
        task,
        copy.deepcopy(tuned.model),  # type: ignore[arg-type]
        tuned.kind,
        loss,
        lambda step: next(rows),
        steps=RECIPE["stage_steps"],
        every=RECIPE["stage_look_every"],
        learning_rate=rate,
        chosen={"kind": tuned.kind, "learning_rate": rate, **chosen},
    )


def _warmup(task: Task, scorer: Scorer, tuned: Fitted) -> Callable[[Arm], Fitted]:
    """Train from the start: cross-entropy on small batches, a blend, then the ranking loss on pools."""
    first = RECIPE["warmup_cross_entropy_steps"][_size(scorer)]
    target = task.train_target
    rate, decay = RECIPE["stage_learning_rate"]["scorecard"], 0.0
    if not scorer.scorecard:
        rate, decay = tuned.chosen["learning_rate"], tuned.chosen["weight_decay"]

    def fitted(arm: Arm) -> Iterator[Fitted]:
        for temperature in _temperatures(arm, scorer):
            size = max(1, min(RECIPE["network_batch"], len(target) // 8))
            small, large = batches(target, size, task.seed), pools(target, task.seed)
            loss = LossWarmupWrapper(
                cross_entropy(task.outputs),
                _loss(arm, task, temperature),
                warmup_steps=first,
                blend_steps=RECIPE["warmup_blend_steps"],
            )

            def draw(step: int, small: Any = small, large: Any = large) -> tuple[Tensor, Tensor]:
                batch: tuple[Tensor, Tensor] = next(small if step < first else large)
                return batch

            yield descend(
                task,
                new_model(task, scorer, tuned.kind),
                tuned.kind,
                loss,
                draw,
                steps=first + RECIPE["stage_steps"],
                warm_up=RECIPE["network_warm_up_steps"],
                every=RECIPE["network_look_every"],
                learning_rate=rate,
                weight_decay=decay,
                chosen={"kind": tuned.kind, "learning_rate": rate, "weight_decay": decay, "temperature": temperature},
            )

    return lambda arm: _best(fitted(arm))


def _size(scorer: Scorer) -> str:
    return "scorecard" if scorer.scorecard else "network"


def _temperatures(arm: Arm, scorer: Scorer) -> tuple[float, ...]:
    assert arm.loss is not None
    return TEMPERATURES[arm.loss][_size(scorer)]


def _loss(arm: Arm, task: Task, temperature: float) -> nn.Module:
    return ranking_loss(arm, task.objective, task.outputs, temperature)
