"""The ways of training that are compared, each with the same scorer, split, batches and initialisation."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import qmc
from torch import Tensor, nn

from rareloss import LossWarmupWrapper, Objective, PAUCAtBudgetLoss, RecallAtQuantileLoss, SmoothAPLoss
from rareloss.study.data import DataError
from rareloss.study.fitting import (
    Fitted,
    Task,
    batches,
    class_weights,
    cross_entropy,
    descend,
    logistic,
    new_model,
    pools,
    trees,
)
from rareloss.study.scorers import Scorer

__all__ = ["RECIPE", "Arm", "arms_for", "choose_arms", "fit_arms", "fit_trees"]

BASELINE = "tuned_ce"
ALWAYS = (BASELINE, "weighted_ce", "trees")

# Every number that the arms share; results.json repeats it.
RECIPE: dict[str, Any] = {
    "network_steps": 400,
    "network_batch": 1024,
    "network_warm_up_steps": 40,
    "network_look_every": 20,
    "stage_steps": 100,
    "stage_look_every": 10,
    "stage_learning_rate": {"scorecard": 3e-2, "network": 3e-4},
    "warmup_cross_entropy_steps": {"scorecard": 80, "network": 200},
    "warmup_blend_steps": 20,
    "tree_trials": 3,
    "tree_rounds": 400,
}
# Temperatures in spreads, tried in turn: a network ranks finely already, and follows a wider one.
TEMPERATURES = {
    "smooth_ap": {"scorecard": (0.03, 0.1), "network": (0.1, 0.3)},
    "recall": {"scorecard": (0.03, 0.1), "network": (0.03, 0.1)},
    "pauc": {"scorecard": (0.3, 1.0), "network": (0.3, 1.0)},
}
LABELS = {"smooth_ap": "Smooth-AP", "recall": "Recall at quantile", "pauc": "Partial AUC"}


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        name: how it is called on the command line.
        label: how tables call it.
        about: one sentence for the report.
        kind: "baseline", "control", "reweight", "ranking" or "reference".
        loss: the ranking loss, if it has one.
    """

    name: str
    label: str
    about: str
    kind: str
    loss: str | None = None


def arms_for(objective: Objective) -> tuple[Arm, ...]:
    """Return every arm that fits an objective."""
    ranking = {"ap": ("smooth_ap",), "pauc@fpr": ("pauc",)}.get(objective.kind, ("recall", "pauc"))
    arms = [
        Arm(
            BASELINE,
            "Tuned cross-entropy",
            "scorecards: logistic regression solved to convergence, penalty, class weight and inputs chosen on "
            "validation; networks: AdamW, learning rate and weight decay from random draws, best checkpoint",
            "baseline",
        ),
        Arm(
            "ce_continued",
            "Cross-entropy continued",
            "the control: the further steps of a ranking stage, on the same batches, with cross-entropy",
            "control",
        ),
        Arm(
            "weighted_ce",
            "Class-weighted cross-entropy",
            "the first half of the draws; scorecards: all classes weigh the same; networks: weighted by inverse share "
            "or its square root",
            "reweight",
        ),
        Arm(
            "focal",
            "Focal loss",
            "gamma 1 or 2; scorecards: steps from the tuned solution; networks: from the start, the first half of the "
            "draws",
            "reweight",
        ),
    ]
    for loss in ranking:
        arms += [
            Arm(
                f"{loss}_stage",
                f"{LABELS[loss]}, stage",
                f"{LABELS[loss]} loss alone, from tuned cross-entropy; validation chooses temperature and step, and "
                "keeps the start where nothing is better",
                "ranking",
                loss,
            ),
            Arm(
                f"{loss}_warmup",
                f"{LABELS[loss]}, warm-up",
                f"{LABELS[loss]} loss in LossWarmupWrapper, from the start",
                "ranking",
                loss,
            ),
        ]
    reference = "histogram gradient boosting, stopped early on the objective; no loss of this library takes part"
    return (*arms, Arm("trees", "Boosted trees", reference, "reference"))


def choose_arms(objective: Objective, names: Sequence[str] | None) -> tuple[Arm, ...]:
    """Return the arms that are asked for, with the baselines that always run, and the control beside any stage.

    Raises:
        DataError: a name that is no arm of this objective.
    """
    every = arms_for(objective)
    if names is None:
        return every
    known = [arm.name for arm in every]
    for name in names:
        if name not in known:
            raise DataError(f"there is no arm {name!r} for the objective {objective}; there are {', '.join(known)}")
    wanted = {*names, *ALWAYS}
    if any(name.endswith("_stage") for name in wanted):
        wanted.add("ce_continued")
    return tuple(arm for arm in every if arm.name in wanted)


def fit_arms(task: Task, scorer: Scorer, arms: Sequence[Arm], trials: int) -> Iterator[tuple[Arm, Fitted | Exception]]:
    """Train a scorer under each arm but the trees, and yield each as it is done, or the error that ended it."""
    draws = _draws(scorer, task, trials)
    tuned = (logistic if scorer.scorecard else _network)(task, scorer, draws)
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
        except (RuntimeError, ValueError, FloatingPointError) as error:
            # The other arms do not depend on this one; the error is kept with the results.
            yield arm, error


def fit_trees(task: Task, trials: int) -> Fitted:
    """Fit the outside reference: scikit-learn's own setting and a few random ones."""
    draws: list[dict[str, Any]] = [
        {"learning_rate": 0.1, "max_leaf_nodes": 31, "min_samples_leaf": 20, "l2_regularization": 0.0}
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
        _further(task, scorer, tuned, _ranking_loss(arm, task, temperature), {"temperature": temperature})
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
                _ranking_loss(arm, task, temperature),
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


def _ranking_loss(arm: Arm, task: Task, temperature: float) -> nn.Module:
    objective, outputs = task.objective, task.outputs
    # A pool stands for the whole train fold, so nothing is remembered; the processes of a study train apart.
    if arm.loss == "smooth_ap":
        return SmoothAPLoss(outputs, temperature=temperature, queue_size=0, gather_distributed=False)
    assert objective.level is not None
    if arm.loss == "pauc":
        return PAUCAtBudgetLoss(
            outputs, objective.low, objective.level, temperature=temperature, queue_size=0, gather_distributed=False
        )
    among = "all" if objective.kind == "recall@top" else "negatives"
    return RecallAtQuantileLoss(
        outputs, objective.level, among, temperature=temperature, queue_size=0, gather_distributed=False
    )
