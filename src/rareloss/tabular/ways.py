"""How each method trains a model, all with the same split, batches and start; validation makes every choice."""

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
from rareloss.tabular.methods import BASELINE, RECIPE, Method, ranking_objectives
from rareloss.tabular.models import Family
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

__all__ = ["best_of", "draws_for", "fit_methods", "fit_trees", "further", "network"]


def fit_methods(
    task: Task, family: Family, methods: Sequence[Method], trials: int
) -> Iterator[tuple[Method, Fitted | Exception]]:
    """Train a model under each method but the trees, and yield each as it is done, or the error that ended it."""
    draws = draws_for(family, task, trials)
    try:
        tuned = (logistic if family.scorecard else network)(task, family, draws)
    except DataError:
        raise
    except Exception as error:  # whatever a user's network raises; the other models go on
        yield from ((method, error) for method in methods if method.kind != "reference")
        return
    ways: dict[str, Callable[[Method], Fitted]] = {
        BASELINE: lambda method: tuned,
        "ce_continued": lambda method: _continued(task, family, tuned),
        "weighted_ce": lambda method: _weighted(task, family, draws),
        "focal": lambda method: _focal(task, family, draws, tuned),
    }
    for method in methods:
        if method.kind == "reference":
            continue
        ranking = _stage if method.name.endswith("_stage") else _warmup
        way = ways.get(method.name) or ranking(task, family, tuned)
        try:
            yield method, way(method) if method.fit is None else method.fit(task, family, tuned, trials)
        except DataError:
            raise
        except Exception as error:  # the other methods do not depend on this one; it is kept with the results
            yield method, error


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


def draws_for(family: Family, task: Task, trials: int) -> list[dict[str, Any]]:
    """Return the hyper-parameters of each trial: the usual setting, then random ones, spread evenly over their ranges.

    A scorecard's are the kind of its inputs, ``C`` and the class weight; a network's, learning rate and weight decay.
    """
    if not family.scorecard:
        return list(network_draws(trials, task.seed))
    binary = task.outputs == 1
    draws = [{"kind": family.kinds[0], "C": 1.0, "class_weight": 1.0 if binary else 0.0}]
    for kind, penalty, weight in cube(trials - 1, 3, task.seed):
        draws.append(
            {
                "kind": family.kinds[int(kind * len(family.kinds))],
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
    family: Family,
    draws: Sequence[Mapping[str, Any]],
    variants: Sequence[Mapping[str, float]] = ({},),
    make_loss: Callable[..., nn.Module] = cross_entropy,
) -> Fitted:
    """Train a network from the start under each draw, and return what validation prefers.

    Args:
        task: the split.
        family: the network.
        draws: learning rate and weight decay of each trial.
        variants: what the draws take in turn: ``class_weight``, and arguments of the loss.
        make_loss: called with the number of outputs and the variant's arguments.
    """
    target, kind = task.train_target, family.kinds[0]
    size = max(1, min(RECIPE["network_batch"], len(target) // 8))

    def tried() -> Iterator[Fitted]:
        for index, draw in enumerate(draws):
            variant = variants[index % len(variants)]
            loss = make_loss(task.outputs, **{name: value for name, value in variant.items() if name != "class_weight"})
            key = {"model": family.name, "loss": repr(loss), **draw, **variant}
            yield task.remember(key, partial(trained, draw, variant, loss))

    def trained(draw: Mapping[str, Any], variant: Mapping[str, float], loss: nn.Module) -> Fitted:
        return descend(
            task,
            new_model(task, family, kind),
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


def _weighted(task: Task, family: Family, draws: Sequence[Mapping[str, Any]]) -> Fitted:
    balanced = float(task.counts[0] / task.counts[1]) if task.outputs == 1 else 1.0
    if family.scorecard:
        return logistic(task, family, [{**draw, "class_weight": balanced} for draw in _half(draws)])
    root = math.sqrt(balanced) if task.outputs == 1 else 0.5
    return network(task, family, _half(draws), [{"class_weight": root}, {"class_weight": balanced}])


def _focal(task: Task, family: Family, draws: Sequence[Mapping[str, Any]], tuned: Fitted) -> Fitted:
    if not family.scorecard:
        return network(task, family, _half(draws), [{"gamma": 2.0}, {"gamma": 1.0}])
    losses = {gamma: cross_entropy(task.outputs, gamma) for gamma in (1.0, 2.0)}
    return further(task, family, tuned, list(losses.values()), [{"gamma": gamma} for gamma in losses])


def _half(draws: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return draws[: (len(draws) + 1) // 2]


def _continued(task: Task, family: Family, tuned: Fitted) -> Fitted:
    # As many chances as a ranking stage has temperatures. The path of a scorecard has no learning rate.
    loss, factors = cross_entropy(task.outputs), (1.0,) if family.scorecard else (1.0, 0.3)
    return best_of(further(task, family, tuned, [loss], [{}], factor) for factor in factors)


def _stage(task: Task, family: Family, tuned: Fitted) -> Callable[[Method], Fitted]:
    def staged(method: Method) -> Fitted:
        losses = _losses(method, task, family)
        return further(task, family, tuned, losses, [{"temperature": loss.temperature} for loss in losses])

    return staged


def further(
    task: Task,
    family: Family,
    tuned: Fitted,
    losses: Sequence[nn.Module],
    chosen: Sequence[Mapping[str, Any]],
    factor: float = 1.0,
) -> Fitted:
    """Take the steps of a stage from the tuned solution with each loss, and return what validation prefers.

    Args:
        task: the split.
        family: what was tuned.
        tuned: where to start.
        losses: what to try in turn.
        chosen: what to record of each loss.
        factor: on the learning rate of a network's stage.
    """
    x, x_validation = task.inputs(tuned.kind)
    size = _size(family)
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
    record = {"kind": tuned.kind, **({} if family.scorecard else {"learning_rate": rate}), **chosen[won]}
    return fitted(task, tuned.kind, finetuned.model, finetuned.best, finetuned.evaluations[won], record)


def _rows(x: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    return (x, target) if weight is None else (x, target, weight)


def _warmup(task: Task, family: Family, tuned: Fitted) -> Callable[[Method], Fitted]:
    """Train from the start: cross-entropy on small batches, a blend, then the ranking loss on pools."""
    first = RECIPE["warmup_cross_entropy_steps"][_size(family)]
    target = task.train_target
    rate, decay = RECIPE["stage_learning_rate"]["linear"], 0.0
    if not family.scorecard:
        rate, decay = tuned.chosen["learning_rate"], tuned.chosen["weight_decay"]

    def tried(method: Method) -> Iterator[Fitted]:
        for main in _losses(method, task, family):
            size = max(1, min(RECIPE["network_batch"], len(target) // 8))
            large = sample_pools(target, RECIPE["stage_pool"][_size(family)], torch.Generator().manual_seed(task.seed))
            loss = LossWarmupWrapper(
                cross_entropy(task.outputs), main, warmup_steps=first, blend_steps=RECIPE["warmup_blend_steps"]
            )
            yield descend(
                task,
                new_model(task, family, tuned.kind),
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

    return lambda method: best_of(tried(method))


def _size(family: Family) -> str:
    return "linear" if family.scorecard else "network"


def _losses(method: Method, task: Task, family: Family) -> list[RankingLoss]:
    # The processes of a study train apart, and a pool stands for the whole train fold: nothing is remembered.
    assert method.loss is not None
    objective = ranking_objectives(task.objective)[method.loss]
    return ranking_losses(objective, task.outputs, _size(family), queue_size=0, gather_distributed=False)
