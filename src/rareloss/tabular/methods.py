"""The ways of training that are compared: what each is, which fit an objective, and the numbers they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rareloss.objectives import Objective, PartialAUC
from rareloss.table import DataError
from rareloss.tabular.network import NETWORK

__all__ = ["BASELINE", "RECIPE", "Method", "choose_methods", "methods_for", "ranking_objectives"]

BASELINE = "tuned_ce"
ALWAYS = (BASELINE, "weighted_ce", "trees")

# Every number that the methods share; results.json repeats it.
RECIPE: dict[str, Any] = {
    "network_steps": NETWORK["steps"],
    "network_batch": NETWORK["batch"],
    "network_warm_up_steps": NETWORK["warm_up"],
    "network_look_every": NETWORK["every"],
    "stage_steps": 100,
    "stage_pool": {"linear": None, "network": 16_384},
    "stage_look_every": 10,
    "stage_learning_rate": {"linear": 3e-2, "network": 3e-4},
    "warmup_cross_entropy_steps": {"linear": 80, "network": 200},
    "warmup_blend_steps": 20,
    "tree_trials": 3,
    "tree_rounds": 400,
}
LABELS = {"smooth_ap": "Smooth-AP", "recall": "Recall", "pauc": "Partial AUC"}


@dataclass(frozen=True)
class Method:
    """One way of training.

    Args:
        name: how it is called on the command line.
        label: how tables call it.
        about: one sentence for the report.
        kind: "baseline", "control", "reweight", "ranking" or "reference".
        loss: the ranking loss, if it has one.
        fit: trains a method that comes from outside; called with the ``Task``, the ``Model``, tuned cross-entropy's
            ``Fitted`` and the number of trials, it returns a ``Fitted``. A function of a module, so that it can be
            sent to other processes. None for the methods of this package.
    """

    name: str
    label: str
    about: str
    kind: str
    loss: str | None = None
    fit: Callable[..., Any] | None = None


def methods_for(objective: Objective) -> tuple[Method, ...]:
    """Return every method that fits an objective."""
    methods = [
        Method(
            BASELINE,
            "Tuned cross-entropy",
            "scorecards: logistic regression solved to convergence, penalty, class weight and inputs chosen on "
            "validation; networks: AdamW, learning rate and weight decay from random draws, best checkpoint",
            "baseline",
        ),
        Method(
            "ce_continued",
            "Cross-entropy continued",
            "the control: a ranking stage's path or steps, on the same rows, with cross-entropy",
            "control",
        ),
        Method(
            "weighted_ce",
            "Weighted cross-entropy",
            "the first half of the draws; scorecards: all classes weigh the same; networks: weighted by inverse share "
            "or its square root",
            "reweight",
        ),
        Method(
            "focal",
            "Focal loss",
            "gamma 1 or 2; scorecards: steps from the tuned solution; networks: from the start, the first half of the "
            "draws",
            "reweight",
        ),
    ]
    for loss in ranking_objectives(objective):
        methods += [
            Method(
                f"{loss}_stage",
                f"{LABELS[loss]}, stage",
                f"{LABELS[loss]} loss alone, from tuned cross-entropy; validation chooses how far a scorecard goes, "
                "temperature and step of a network, and keeps the start where nothing is better",
                "ranking",
                loss,
            ),
            Method(
                f"{loss}_warmup",
                f"{LABELS[loss]}, warm-up",
                f"{LABELS[loss]} loss in LossWarmupWrapper, from the start",
                "ranking",
                loss,
            ),
        ]
    reference = "histogram gradient boosting, stopped early on the objective; no loss of this library takes part"
    return (*methods, Method("trees", "Boosted trees", reference, "reference"))


def choose_methods(objective: Objective, names: Sequence[str] | None) -> tuple[Method, ...]:
    """Return the methods that are asked for, with the baselines that always run, and the control beside any stage.

    Raises:
        DataError: a name that is no method of this objective.
    """
    every = methods_for(objective)
    if names is None:
        return every
    known = [method.name for method in every]
    for name in names:
        if name not in known:
            raise DataError(f"there is no method {name!r} for the objective {objective}; there are {', '.join(known)}")
    wanted = {*names, *ALWAYS}
    if any(name.endswith("_stage") for name in wanted):
        wanted.add("ce_continued")
    return tuple(method for method in every if method.name in wanted)


def ranking_objectives(objective: Objective) -> dict[str, Objective]:
    """Return the objectives whose losses are trained, by the loss: its own, and partial AUC for a budget."""
    losses = {objective.loss_name: objective.surrogate}
    if objective.budget is not None:
        losses.setdefault("pauc", PartialAUC(0.0, objective.budget))
    return losses
