"""How each arm trains a scorer, all with the same split, batches and initialisation; validation makes every choice."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rareloss import LossWarmupWrapper
from rareloss.losses import RankingLoss
from rareloss.table import DataError
from rareloss.tabular.arms import BASELINE, RECIPE, Arm, ranking_objectives
from rareloss.tabular.models import Scorer
from rareloss.tabular.network import batches
from rareloss.tabular.training import (
    Fitted,
    Task,
    class_weights,
    cross_entropy,
    descend,
    fitted,
    logistic,
    new_model,
    trees,
)
from rareloss.tabular.tuning import between, cube, network_draws
from rareloss.training import finetune, ranking_losses, sample_pools

__all__ = ["best_of", "draws_for", "fit_arms", "fit_trees", "further", "network"]


def fit_arms(task: Task, scorer: Scorer, arms: Sequence[Arm], trials: int) -> Iterator[tuple[Arm, Fitted | Exception]]:
    """Train a scorer under each arm but the trees, and yield each as it is done, or the error that ended it."""
    draws = draws_for(scorer, task, trials)
    try:
        tuned = (logistic if scorer.scorecard else network)(task, scorer, draws)
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
            yield arm, way(arm) if arm.fit is None else arm.fit(task, scorer, tuned, trials)
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
    for rate, leaves, rows, penalty in cube(min(trials, most) - 1, 4, task.seed):
        draws.append(
            {
                "learning_rate": between(rate, 0.03, 0.15),
                "max_leaf_nodes": round(between(leaves, 6, 40)),
                "min_samples_leaf": round(between(rows, 10, 200)),
                "l2_regularization": between(penalty, 1e-2, 30),
            }
        )
    return trees(task, draws, most=RECIPE["tree_rounds"])


# --------------------------------------------------------------------------------------------------------------- ways


def draws_for(scorer: Scorer, task: Task, trials: int) -> list[dict[str, Any]]:
    """Return the hyper-parameters of each trial: the usual setting, then random ones, spread evenly over their ranges.

    A scorecard's are the kind of its inputs, ``C`` and the class weight; a network's, learning rate and weight decay.
    """
    if not scorer.scorecard:
        return list(network_draws(trials, task.seed))
    binary = task.outputs == 1
    draws = [{"kind": scorer.kinds[0], "C": 1.0, "class_weight": 1.0 if binary else 0.0}]
    for kind, penalty, weight in cube(trials - 1, 3, task.seed):
        draws.append(
            {
                "kind": scorer.kinds[int(kind * len(scorer.kinds))],
                "C": between(penalty, 0.1, 1000),
                "class_weight": between(weight, 0.3, 100) if binary else weight,
            }
        )
    return draws


def best_of(candidates: Iterable[Fitted]) -> Fitted:
    """Return what validation prefers."""
    return max(candidates, key=lambda fitted: fitted.validation)


def network(
    task: Task,
    scorer: Scorer,
    draws: Sequence[Mapping[str, Any]],
    variants: Sequence[Mapping[str, float]] = ({},),
    make_loss: Callable[..., nn.Module] = cross_entropy,
) -> Fitted:
    """Train a network from the start under each draw, and return what validation prefers.

    Args:
        task: the split.
        scorer: the network.
        draws: learning rate and weight decay of each trial.
        variants: what the draws take in turn: ``class_weight``, and arguments of the loss.
        make_loss: called with the number of outputs and the variant's arguments.
    """
    target, kind = task.train_target, scorer.kinds[0]
    size = max(1, min(RECIPE["network_batch"], len(target) // 8))

    def tried() -> Iterator[Fitted]:
        for index, draw in enumerate(draws):
            variant = variants[index % len(variants)]
            loss = make_loss(task.outputs, **{name: value for name, value in variant.items() if name != "class_weight"})
            key = {"scorer": scorer.name, "loss": repr(loss), **draw, **variant}
            yield task.remember(key, partial(trained, draw, variant, loss))

    def trained(draw: Mapping[str, Any], variant: Mapping[str, float], loss: nn.Module) -> Fitted:
        return descend(
            task,
            new_model(task, scorer, kind),
            kind,
            loss,
            batches(target, size, task.seed),
            steps=RECIPE["network_steps"],
            warmup_steps=RECIPE["network_warm_up_steps"],
            eval_every=RECIPE["network_look_every"],
            class_weight=class_weights(task.counts, variant["class_weight"]) if "class_weight" in variant else None,
            chosen={**draw, **variant},
            **draw,
        )

    return best_of(tried())


def _weighted(task: Task, scorer: Scorer, draws: Sequence[Mapping[str, Any]]) -> Fitted:
    balanced = float(task.counts[0] / task.counts[1]) if task.outputs == 1 else 1.0
    if scorer.scorecard:
        return logistic(task, scorer, [{**draw, "class_weight": balanced} for draw in _half(draws)])
    root = math.sqrt(balanced) if task.outputs == 1 else 0.5
    return network(task, scorer, _half(draws), [{"class_weight": root}, {"class_weight": balanced}])


def _focal(task: Task, scorer: Scorer, draws: Sequence[Mapping[str, Any]], tuned: Fitted) -> Fitted:
    if not scorer.scorecard:
        return network(task, scorer, _half(draws), [{"gamma": 2.0}, {"gamma": 1.0}])
    losses = {gamma: cross_entropy(task.outputs, gamma) for gamma in (1.0, 2.0)}
    return further(task, scorer, tuned, list(losses.values()), [{"gamma": gamma} for gamma in losses])


def _half(draws: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return draws[: (len(draws) + 1) // 2]


def _continued(task: Task, scorer: Scorer, tuned: Fitted) -> Fitted:
    # As many chances as a ranking stage has temperatures. The path of a scorecard has no learning rate.
    loss, factors = cross_entropy(task.outputs), (1.0,) if scorer.scorecard else (1.0, 0.3)
    return best_of(further(task, scorer, tuned, [loss], [{}], factor) for factor in factors)


def _stage(task: Task, scorer: Scorer, tuned: Fitted) -> Callable[[Arm], Fitted]:
    def staged(arm: Arm) -> Fitted:
        losses = _losses(arm, task, scorer)
        return further(task, scorer, tuned, losses, [{"temperature": loss.temperature} for loss in losses])

    return staged


def further(
    task: Task,
    scorer: Scorer,
    tuned: Fitted,
    losses: Sequence[nn.Module],
    chosen: Sequence[Mapping[str, Any]],
    factor: float = 1.0,
) -> Fitted:
    """Take the steps of a stage from the tuned solution with each loss, and return what validation prefers.

    Args:
        task: the split.
        scorer: what was tuned.
        tuned: where to start.
        losses: what to try in turn.
        chosen: what to record of each loss.
        factor: on the learning rate of a network's stage.
    """
    x, x_validation = task.inputs(tuned.kind)
    size = _size(scorer)
    rate = factor * RECIPE["stage_learning_rate"][size]
    assert tuned.model is not None
    finetuned = finetune(
        tuned.model,
        task.objective,
        _rows(x, task.train_target, task.train_weight),
        _rows(x_validation, task.validation_target, task.validation_weight),
        losses=losses,
        steps=RECIPE["stage_steps"],
        eval_every=RECIPE["stage_look_every"],
        learning_rate=rate,
        pool_size=RECIPE["stage_pool"][size],
        seed=task.seed,
    )
    won = 0 if finetuned.loss is None else list(losses).index(finetuned.loss)
    record = {"kind": tuned.kind, **({} if scorer.scorecard else {"learning_rate": rate}), **chosen[won]}
    return fitted(task, tuned.kind, finetuned.model, finetuned.best, finetuned.evaluations[won], record)


def _rows(x: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    return (x, target) if weight is None else (x, target, weight)


def _warmup(task: Task, scorer: Scorer, tuned: Fitted) -> Callable[[Arm], Fitted]:
    """Train from the start: cross-entropy on small batches, a blend, then the ranking loss on pools."""
    first = RECIPE["warmup_cross_entropy_steps"][_size(scorer)]
    target = task.train_target
    rate, decay = RECIPE["stage_learning_rate"]["linear"], 0.0
    if not scorer.scorecard:
        rate, decay = tuned.chosen["learning_rate"], tuned.chosen["weight_decay"]

    def tried(arm: Arm) -> Iterator[Fitted]:
        for main in _losses(arm, task, scorer):
            size = max(1, min(RECIPE["network_batch"], len(target) // 8))
            large = sample_pools(target, RECIPE["stage_pool"][_size(scorer)], torch.Generator().manual_seed(task.seed))
            loss = LossWarmupWrapper(
                cross_entropy(task.outputs), main, warmup_steps=first, blend_steps=RECIPE["warmup_blend_steps"]
            )
            yield descend(
                task,
                new_model(task, scorer, tuned.kind),
                tuned.kind,
                loss,
                itertools.chain(itertools.islice(batches(target, size, task.seed), first), large),
                steps=first + RECIPE["stage_steps"],
                warmup_steps=RECIPE["network_warm_up_steps"],
                eval_every=RECIPE["stage_look_every"],
                learning_rate=rate,
                weight_decay=decay,
                chosen={
                    "kind": tuned.kind,
                    "learning_rate": rate,
                    "weight_decay": decay,
                    "temperature": main.temperature,
                },
            )

    return lambda arm: best_of(tried(arm))


def _size(scorer: Scorer) -> str:
    return "linear" if scorer.scorecard else "network"


def _losses(arm: Arm, task: Task, scorer: Scorer) -> list[RankingLoss]:
    # The processes of a study train apart, and a pool stands for the whole train fold: nothing is remembered.
    assert arm.loss is not None
    objective = ranking_objectives(task.objective)[arm.loss]
    return ranking_losses(objective, task.outputs, _size(scorer), queue_size=0, gather_distributed=False)
