"""Methods of other libraries, each optional: trained as their own pages start them, chosen like every method."""

import copy
import importlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from benchmarks.speed.peers import load, versions
from torch import Tensor, nn

from rareloss import Objective
from rareloss.tabular.methods import RECIPE, Method
from rareloss.tabular.models import Family, logits_of
from rareloss.tabular.network import batches
from rareloss.tabular.training import Fitted, Task, cross_entropy, descend, fitted, new_model
from rareloss.tabular.ways import best_of, draws_for
from rareloss.training import Evaluation

__all__ = ["imbalanced_losses", "libauc", "missing"]

NAMES = ("imbalanced-losses", "libauc")
# What a scorecard tries from the tuned solution: the rate of our own stage, and a tenth, since batches are small.
RATES = (3e-2, 3e-3)
NETWORK_RATES = (1e-3, 1e-4)
# What stands in for recall in LibAUC: its one-way partial AUC, and the optimiser that goes with it.
DRO = ("pAUC_DRO_Loss", "SOPAs")
# Its documentation: above the share in the data, for example .05 to .2.
SHARE_OF_POSITIVES = 0.1


def missing() -> list[str]:
    """Return a sentence for each library that is not here."""
    found = versions()
    return [f"{name} is not installed, and its methods are left out" for name in NAMES if found[name] is None]


def imbalanced_losses(objective: Objective) -> tuple[Method, ...]:
    """Return the method of imbalanced-losses that fits the objective, if it is installed and has one."""
    if load("imbalanced-losses") is None:
        return ()
    if objective.quantile is not None:
        loss, label, name = "recall", "Recall", "RecallAtQuantileLoss"
    elif objective.fpr is not None:
        loss, label, name = "pauc", "Partial AUC", "PAUCAtBudgetLoss"
    elif not objective.sets_threshold:
        loss, label, name = "smooth_ap", "Smooth-AP", "SmoothAPLoss"
    else:
        return ()
    return (
        Method(
            f"imbalanced_losses_{loss}",
            f"{label} of imbalanced-losses",
            f"its {name} with its own temperature schedule and queue, in its LossWarmupWrapper; batches of 1024; "
            "scorecards: from the tuned solution, two learning rates; networks: from the start, half the steps warm-up",
            "peer",
            loss,
            fit=_imbalanced_losses,
        ),
    )


def _imbalanced_losses(task: Task, family: Family, tuned: Fitted, trials: int) -> Fitted:
    size = max(1, min(RECIPE["network_batch"], len(task.train_target) // 8))
    steps, warm_up = RECIPE["network_steps"], 0 if family.scorecard else RECIPE["network_steps"] // 2

    def tried() -> Iterator[Fitted]:
        for model, draw in _starts(task, family, tuned, trials):
            yield descend(
                task,
                model,
                tuned.kind,
                _Told(_their_loss(task, warm_up, steps)),
                batches(task.train_target, size, task.seed),
                steps=steps,
                warmup_steps=RECIPE["network_warm_up_steps"],
                eval_every=RECIPE["network_look_every"],
                chosen={"kind": tuned.kind, **draw},
                **draw,
            )

    return best_of(tried())


def _starts(task: Task, family: Family, tuned: Fitted, trials: int) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Yield where each trial begins, and its learning rate and weight decay."""
    if not family.scorecard:
        for draw in draws_for(family, task, trials):
            yield new_model(task, family, tuned.kind), draw
        return
    for rate in RATES:
        yield _copy_of(task, family, tuned), {"learning_rate": rate, "weight_decay": 0.0}


def _copy_of(task: Task, family: Family, tuned: Fitted) -> nn.Module:
    assert tuned.model is not None
    model = new_model(task, family, tuned.kind)
    model.load_state_dict(tuned.model.state_dict())
    return model


def _their_loss(task: Task, warm_up: int, steps: int) -> nn.Module:
    theirs: Any = load("imbalanced-losses")
    objective = task.objective
    if objective.quantile is not None:
        main = theirs.RecallAtQuantileLoss(task.outputs, quantile=objective.quantile)
    elif objective.fpr is not None:
        main = theirs.PAUCAtBudgetLoss(task.outputs, beta=objective.fpr)
    else:
        main = theirs.SmoothAPLoss(task.outputs)
    # The wrapper's schedule is for temperatures in logits; that of its pAUC loss, in standard deviations, stays.
    ends = {} if objective.fpr is None else {"temp_start": main.temperature, "temp_end": main.temperature}
    loss: nn.Module = theirs.LossWarmupWrapper(
        _CrossEntropy(task.outputs), main, warmup_steps=warm_up, temp_decay_steps=steps - warm_up, **ends
    )
    return loss


class _CrossEntropy(nn.Module):
    # Of logits [n, 1] for two classes, as the peer's losses take them.

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.loss = cross_entropy(outputs)
        self.outputs = outputs

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.loss(logits[:, 0] if self.outputs == 1 else logits, targets)
        return value


class _Told(nn.Module):
    # Tells the wrapper of each step before it, as its documentation asks. All weights are 1 here.

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.step = 0

    def forward(self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        self.loss.on_train_batch_start(self.step)
        self.step += 1
        value: Tensor = self.loss(logits if logits.ndim > 1 else logits[:, None], targets)
        return value


def libauc(objective: Objective) -> tuple[Method, ...]:
    """Return LibAUC's method: its AP loss for average precision, its partial AUC by KL-DRO for everything else."""
    if load("libauc") is None:
        return ()
    loss, name, optimiser = ("pauc", *DRO) if objective.sets_threshold else ("smooth_ap", "APLoss", "SOAP")
    return (
        Method(
            f"libauc_{loss}",
            f"{name} of LibAUC",
            f"its {name} of sigmoid scores under its optimiser {optimiser}, from the tuned solution, as its tutorials "
            "start from cross-entropy; batches of 1024 of which a tenth are positives, by the rule of its DualSampler; "
            "two learning rates; binary only",
            "peer",
            loss,
            fit=_libauc,
        ),
    )


def _libauc(task: Task, family: Family, tuned: Fitted, trials: int) -> Fitted:
    losses: Any = load("libauc")
    optimisers = importlib.import_module("libauc.optimizers")
    name, optimiser = DRO if task.objective.sets_threshold else ("APLoss", "SOAP")
    x, x_validation = task.inputs(tuned.kind)
    target = task.train_target

    def tried() -> Iterator[Fitted]:
        for rate in RATES if family.scorecard else NETWORK_RATES:
            model = _copy_of(task, family, tuned)
            loss = getattr(losses, name)(data_len=len(target), device="cpu")
            steps = getattr(optimisers, optimiser)(model.parameters(), lr=rate, verbose=False, device="cpu")
            kept, best, looks = (
                copy.deepcopy(model.state_dict()),
                tuned.validation,
                [Evaluation(0, math.nan, tuned.validation)],
            )
            batch = _dual_batches(target, RECIPE["network_batch"], task.seed)
            for step in range(1, RECIPE["network_steps"] + 1):
                rows = next(batch)
                scores = logits_of(model, x[rows], 1).sigmoid()[:, None]
                value = loss(scores, target[rows][:, None], rows)
                steps.zero_grad()
                value.backward()
                steps.step()
                if step % RECIPE["network_look_every"] == 0:
                    with torch.no_grad():
                        looks.append(Evaluation(step, value.item(), task.judge(logits_of(model, x_validation, 1))))
                    if looks[-1].validation > best:
                        kept, best = copy.deepcopy(model.state_dict()), looks[-1].validation
            model.load_state_dict(kept)
            look = next(each for each in looks if each.validation == best)
            yield fitted(task, tuned.kind, model, look, looks, {"kind": tuned.kind, "learning_rate": rate})

    return best_of(tried())


def _dual_batches(target: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Yield rows of which a tenth are positives: both classes gone through in shuffled passes, for ever."""
    generator = torch.Generator().manual_seed(seed)
    size = max(2, min(size, len(target) // 8))
    many = max(1, round(SHARE_OF_POSITIVES * size))
    streams = [_passes((target == value).nonzero()[:, 0], generator) for value in (1, 0)]
    while True:
        taken = [
            list(itertools.islice(stream, rows)) for stream, rows in zip(streams, (many, size - many), strict=True)
        ]
        yield torch.tensor(taken[0] + taken[1])


def _passes(rows: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from rows[torch.randperm(len(rows), generator=generator)].tolist()
