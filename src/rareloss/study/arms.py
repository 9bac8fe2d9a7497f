"""The ways of training that are compared: what each is, which fit an objective, and the numbers they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rareloss import Objective, PAUCAtBudgetLoss, RecallAtQuantileLoss, SmoothAPLoss
from rareloss.study.data import DataError

__all__ = ["BASELINE", "RECIPE", "TEMPERATURES", "Arm", "arms_for", "choose_arms", "ranking_loss"]

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
LABELS = {"smooth_ap": "Smooth-AP", "recall": "Recall", "pauc": "Partial AUC"}


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
            "Weighted cross-entropy",
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


def ranking_loss(arm: Arm, objective: Objective, outputs: int, temperature: float) -> nn.Module:
    """Make the loss of a ranking arm."""
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
