"""The methods of the grid: those of ``rareloss compare``, cheap rivals, and the losses of other libraries."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmarks.quality import peers
from torch import Tensor, nn

from rareloss import Objective
from rareloss.tabular.logistic import solve_logistic
from rareloss.tabular.methods import Method, methods_for
from rareloss.tabular.models import Family, find_model, logits_of
from rareloss.tabular.training import Fitted, Task, cross_entropy
from rareloss.tabular.tuning import between, cube
from rareloss.tabular.ways import best_of, draws_for, fit_trees, further, network

__all__ = ["core", "missing", "more", "outside"]


def core(objective: Objective) -> tuple[Method, ...]:
    """Return tuned cross-entropy, its continuation, our pure stage, focal loss, and imbalanced-losses."""
    ours = {method.name: method for method in methods_for(objective)}
    chosen = [ours[name] for name in ("tuned_ce", "ce_continued", f"{objective.loss_name}_stage")]
    chosen.append(
        Method("focal", "Focal loss", "gamma 1 or 2; scorecards from the tuned solution", "reweight", fit=_focal)
    )
    return (*chosen, *peers.imbalanced_losses(objective))


def more(objective: Objective, family: str, multiclass: bool) -> tuple[Method, ...]:
    """Return the methods of the full grid, beside tuned cross-entropy, where they start."""
    ours = {method.name: method for method in methods_for(objective)}
    names = [f"{objective.loss_name}_warmup", *(["pauc_stage"] if "pauc_stage" in ours else [])]
    rivals = [
        Method(
            "logit_adjusted",
            "Logit-adjusted cross-entropy",
            "logits shifted by the log-odds of the base rate (Menon et al., 2021), strength .5 or 1",
            "reweight",
            fit=_logit_adjusted,
        ),
        Method(
            "hard_examples",
            "Hard-example cross-entropy",
            "the mean of the largest 10 or 30 % of the rows' losses",
            "reweight",
            fit=_hard_examples,
        ),
    ]
    if find_model(family).scorecard:
        about = "logistic regression on the probabilities of boosted trees, penalty and inputs chosen on validation"
        rivals.append(Method("distilled", "Distilled from trees", about, "reweight", fit=_distilled))
    else:
        # A scorecard's tuned cross-entropy has the class weight among its draws already.
        about = "cross-entropy, the positives' weight from .3 to 100 drawn beside rate and decay"
        rivals.append(Method("class_weight", "Class weight, tuned", about, "reweight", fit=_class_weight))
    return (
        ours["tuned_ce"],
        *(ours[name] for name in names),
        *rivals,
        *(peers.libauc(objective) if not multiclass else ()),
    )


def outside(objective: Objective) -> tuple[Method, ...]:
    """Return what no loss of this package takes part in: boosted trees."""
    return tuple(method for method in methods_for(objective) if method.kind == "reference")


def missing() -> list[str]:
    """Return a sentence for each library that is not installed, whose methods are left out."""
    return peers.missing()


# -------------------------------------------------------------------------------------------------------------- rivals


def _focal(task: Task, family: Family, tuned: Fitted, trials: int) -> Fitted:
    return _tried(task, family, tuned, trials, cross_entropy, [{"gamma": 2.0}, {"gamma": 1.0}])


def _logit_adjusted(task: Task, family: Family, tuned: Fitted, trials: int) -> Fitted:
    def make(outputs: int, strength: float) -> nn.Module:
        return LogitAdjusted(task.counts, strength, outputs)

    return _tried(task, family, tuned, trials, make, [{"strength": 1.0}, {"strength": 0.5}])


def _hard_examples(task: Task, family: Family, tuned: Fitted, trials: int) -> Fitted:
    return _tried(task, family, tuned, trials, HardExamples, [{"share": 0.1}, {"share": 0.3}])


def _class_weight(task: Task, family: Family, tuned: Fitted, trials: int) -> Fitted:
    weights = [between(share, 0.3, 100) for (share,) in cube(trials, 1, task.seed)]
    return network(task, family, draws_for(family, task, trials), [{"class_weight": weight} for weight in weights])


def _distilled(task: Task, family: Family, tuned: Fitted, trials: int) -> Fitted:
    """Teach a scorecard the probabilities of trees: every row counts once as each class, by its probability."""
    teacher = fit_trees(task, 1)
    scores = teacher.score(task.inputs("trees")[0]).double()
    taught = torch.stack([-scores, scores], 1).sigmoid() if task.outputs == 1 else scores.softmax(1)
    classes = np.repeat(np.arange(taught.shape[1]), len(taught))

    def tried() -> Iterator[Fitted]:
        for draw in draws_for(family, task, trials):
            x, x_validation = task.inputs(draw["kind"])
            model, converged = solve_logistic(
                x.repeat(taught.shape[1], 1),
                classes,
                dict.fromkeys(range(taught.shape[1]), 1.0),
                draw["C"],
                taught.T.reshape(-1),
            )
            score = partial(_scores, model, task.outputs)
            chosen = {"kind": draw["kind"], "C": draw["C"], "converged": converged}
            yield Fitted(draw["kind"], score, task.judge(score(x_validation)), chosen, model=model)

    return best_of(tried())


@torch.no_grad()
def _scores(model: nn.Module, outputs: int, x: Tensor) -> Tensor:
    return logits_of(model, x, outputs)


def _tried(
    task: Task,
    family: Family,
    tuned: Fitted,
    trials: int,
    make_loss: Callable[..., nn.Module],
    variants: Sequence[Mapping[str, Any]],
) -> Fitted:
    """Scorecards go on from the tuned solution, with each variant; networks train from the start, variants in turn."""
    if family.scorecard:
        losses = [make_loss(task.outputs, **variant) for variant in variants]
        return further(task, family, tuned, losses, variants)
    return network(task, family, draws_for(family, task, trials), variants, make_loss)


class LogitAdjusted(nn.Module):
    """Cross-entropy of logits that are shifted by the logs of the classes' shares.

    Args:
        counts: train rows of each class, ``[C]``.
        strength: factor on the shift.
        outputs: 1 for two classes, else C.

    Reference:
        Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
    """

    def __init__(self, counts: Tensor, strength: float, outputs: int) -> None:
        super().__init__()
        logs = (counts.double().clamp(min=1) / counts.sum()).log().float()
        self.shift = strength * (logs[1] - logs[0] if outputs == 1 else logs)
        self.loss = cross_entropy(outputs)

    def forward(self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the mean over the rows."""
        value: Tensor = self.loss(logits + self.shift, targets, sample_weight=sample_weight)
        return value


class HardExamples(nn.Module):
    """The mean cross-entropy of the rows where it is largest.

    Args:
        outputs: 1 for two classes, else their number.
        share: of the rows.
    """

    def __init__(self, outputs: int, share: float) -> None:
        super().__init__()
        self.outputs, self.share = outputs, share

    def forward(self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the mean over the hardest rows, whatever their weight is for."""
        if self.outputs == 1:
            logits = logits.reshape(targets.shape)
            rows = nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
        else:
            rows = nn.functional.cross_entropy(logits, targets, reduction="none")
        rows = rows if sample_weight is None else rows * sample_weight
        return torch.topk(rows, max(1, round(self.share * len(rows))), sorted=False).values.mean()
