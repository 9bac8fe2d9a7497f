"""Train one model: what is fitted on the train fold, and what validation chooses. The test fold is out of reach."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from torch import Tensor, nn

from rareloss import Objective, SigmoidFocalLoss, SoftmaxFocalLoss
from rareloss.table import Fold, Table
from rareloss.tabular.logistic import search, solve_logistic
from rareloss.tabular.models import Family, logits_of, start_at_base_rate
from rareloss.tabular.preprocess import Kind, pipeline, tree_categories
from rareloss.tabular.trees import Trees
from rareloss.training import Batch, Evaluation
from rareloss.training import train_with_early_stopping as core_train

__all__ = [
    "Fitted",
    "Task",
    "cross_entropy",
    "descend",
    "fitted",
    "logistic",
    "new_model",
    "score_with",
    "trees",
]


def _make(key: Mapping[str, Any], make: Callable[[], "Fitted"]) -> "Fitted":
    return make()


@dataclass
class Task:
    """One split of one table, with what may be looked at while training.

    Args:
        table: the data.
        fold: train, validation and test rows.
        objective: what validation judges by.
        seed: chooses initialisation, batches and draws.
        remember: returns what was kept of a trial, or makes it; called with what tells the trials of this task apart,
            and a function that makes one. It keeps nothing by default.
    """

    table: Table
    fold: Fold
    objective: Objective
    seed: int
    remember: Callable[[Mapping[str, Any], Callable[[], "Fitted"]], "Fitted"] = _make
    _inputs: dict[Kind, tuple[Any, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """1 for two classes, else their number."""
        return len(self.table.classes) if self.table.multiclass else 1

    @property
    def train_target(self) -> Tensor:
        """Classes of the train rows."""
        return torch.from_numpy(self.table.target[self.fold.train])

    @property
    def validation_target(self) -> Tensor:
        """Classes of the validation rows."""
        return torch.from_numpy(self.table.target[self.fold.validation])

    @property
    def train_weight(self) -> Tensor | None:
        """Weights of the train rows, 1 on average; None where all rows count once."""
        return self._weight(self.fold.train)

    @property
    def validation_weight(self) -> Tensor | None:
        """Weights of the validation rows, 1 on average; None where all rows count once."""
        return self._weight(self.fold.validation)

    @property
    def test_weight(self) -> Tensor | None:
        """Weights of the test rows, 1 on average; None where all rows count once."""
        return self._weight(self.fold.test)

    def _weight(self, rows: np.ndarray) -> Tensor | None:
        if self.table.weight is None:
            return None
        weight = self.table.weight[rows]
        return torch.from_numpy(weight / weight.mean()).float()

    @property
    def counts(self) -> Tensor:
        """Train rows of each class, by weight."""
        return torch.bincount(self.train_target, self.train_weight, minlength=len(self.table.classes))

    def inputs(self, kind: Kind) -> tuple[Tensor, Tensor]:
        """Return the inputs of train and validation; the pipeline sees the train rows alone."""
        if kind not in self._inputs:
            frame, fold = self.table.frame, self.fold
            fitted = pipeline(frame, kind, seed=self.seed).fit(frame.iloc[fold.train])
            train, validation = (torch.from_numpy(fitted.transform(frame.iloc[rows])) for rows in fold[:2])
            self._inputs[kind] = (fitted, train, validation)
        return self._inputs[kind][1:]

    def test_inputs(self, kind: Kind) -> Tensor:
        """Return the inputs of the test rows, through the pipeline fitted on train."""
        return torch.from_numpy(self.fitted_inputs(kind).transform(self.table.frame.iloc[self.fold.test]))

    def fitted_inputs(self, kind: Kind) -> Pipeline:
        """Return the pipeline that was fitted on the train rows."""
        self.inputs(kind)
        return self._inputs[kind][0]

    def judge(self, scores: Tensor) -> float:
        """Compute the objective of validation scores: its mean over the classes where it is defined; -1 if NaN."""
        value, defined = self.objective.metric(scores, self.validation_target, self.validation_weight)
        mean = float(value[defined].mean())
        return mean if math.isfinite(mean) else -1.0


@dataclass
class Fitted:
    """A trained model and how validation chose it.

    Args:
        kind: the inputs that it takes.
        score: computes raw logits of inputs.
        validation: the objective on validation.
        chosen: the hyper-parameters that won.
        kept: which step was kept.
        history: objective on validation, and loss, by step.
        model: the module, where there is one.
    """

    kind: Kind
    score: Callable[[Tensor], Tensor]
    validation: float
    chosen: dict[str, Any]
    kept: str = "solution"
    history: list[dict[str, float]] = field(default_factory=list)
    model: nn.Module | None = None


# ----------------------------------------------------------------------------------------------------------- gradient


def cross_entropy(outputs: int, gamma: float = 0.0) -> nn.Module:
    """Make cross-entropy, or focal loss for ``gamma`` above 0; both take weights of rows."""
    return SigmoidFocalLoss(alpha=None, gamma=gamma) if outputs == 1 else SoftmaxFocalLoss(gamma=gamma)


def descend(
    task: Task,
    model: nn.Module,
    kind: Kind,
    loss: nn.Module,
    rows: Iterable[tuple[Tensor | slice, Tensor | None]],
    *,
    class_weight: Tensor | None = None,
    chosen: Mapping[str, Any],
    **schedule: Any,
) -> Fitted:
    """Train from the start, and keep the best checkpoint, as :func:`rareloss.training.train_with_early_stopping`.

    Args:
        task: the split.
        model: where to start; it is changed.
        kind: its inputs.
        loss: called with logits, targets and ``sample_weight``.
        rows: those of each step, and their weights.
        class_weight: factor on the weight of each class's rows.
        chosen: what to record as the choice.
        schedule: steps and rates, as there.
    """
    x, x_validation = task.inputs(kind)
    target, own = task.train_target, task.train_weight

    def batches() -> Iterator[Batch]:
        for places, weight in rows:
            labels = target[places]
            if own is not None:
                weight = own[places] if weight is None else weight * own[places]
            if class_weight is not None:
                weight = class_weight[labels] if weight is None else weight * class_weight[labels]
            yield Batch(x[places], labels, weight)

    score = partial(score_with, model, task.outputs)
    history = core_train(
        model,
        loss,
        batches(),
        lambda: task.judge(score(x_validation)),
        forward=lambda inputs: logits_of(model, inputs, task.outputs),
        **schedule,
    )
    return fitted(task, kind, model, history.best, history.evaluations, chosen)


def fitted(
    task: Task,
    kind: Kind,
    model: nn.Module,
    kept: Evaluation,
    evaluations: Sequence[Evaluation],
    chosen: Mapping[str, Any],
) -> Fitted:
    """Describe a model that took steps."""
    name = f"step {kept.step}" if kept.step else "start"
    history: list[dict[str, float]] = [evaluation._asdict() for evaluation in evaluations]
    return Fitted(kind, partial(score_with, model, task.outputs), kept.validation, dict(chosen), name, history, model)


@torch.no_grad()
def score_with(model: nn.Module, outputs: int, x: Tensor) -> Tensor:
    """Compute the logits of all rows, a part at a time."""
    model.eval()
    return torch.cat([logits_of(model, part, outputs) for part in torch.split(x, 65_536)])


def new_model(task: Task, family: Family, kind: Kind) -> nn.Module:
    """Build the model as every method of a seed starts it: the same weights, and the bias at the base rate."""
    torch.manual_seed(task.seed)
    model = family.build(task.inputs(kind)[0].shape[1], task.outputs)
    start_at_base_rate(model, task.counts, task.outputs)
    return model


# --------------------------------------------------------------------------------------------------------- scikit-learn


def logistic(task: Task, family: Family, draws: Sequence[Mapping[str, Any]]) -> Fitted:
    """Solve logistic regression to convergence for each draw of (kind, C, class weight); validation chooses.

    Larger penalties than were drawn are tried while they are better, see
    :func:`rareloss.tabular.logistic.search`.
    """
    target = task.train_target.numpy()

    def solved(draw: Mapping[str, Any]) -> Fitted:
        x, x_validation = task.inputs(draw["kind"])
        weights = class_weights(task.counts, draw["class_weight"])
        model, converged = solve_logistic(x, target, dict(enumerate(weights.tolist())), draw["C"], task.train_weight)
        score = partial(score_with, model, task.outputs)
        return Fitted(
            draw["kind"], score, task.judge(score(x_validation)), {**draw, "converged": converged}, model=model
        )

    def remembered(draw: Mapping[str, Any]) -> Fitted:
        return task.remember({"model": family.name, **draw}, partial(solved, draw))

    return search(draws, remembered, lambda found: found.validation)[1]


def class_weights(counts: Tensor, weight: float) -> Tensor:
    """Compute each class's weight: ``weight`` for the positive one; inverse share to its power with more classes."""
    if len(counts) == 2:
        return torch.tensor([1.0, weight])
    return (counts.double().mean() / counts.clamp(min=1)).pow(weight).float()


def trees(task: Task, draws: Sequence[Mapping[str, Any]], *, most: int = 400, chunk: int = 20) -> Fitted:
    """Fit boosted trees, ``chunk`` rounds at a time, until validation has not improved for three looks."""
    fits = (
        task.remember({"model": "trees", "most": most, **draw}, partial(_grown, task, draw, most, chunk))
        for draw in draws
    )
    return max(fits, key=lambda found: found.validation)


def _grown(task: Task, draw: Mapping[str, Any], most: int, chunk: int) -> Fitted:
    x, x_validation = task.inputs("trees")
    target = task.train_target.numpy()
    weight = None if task.train_weight is None else task.train_weight.double().numpy()
    model = HistGradientBoostingClassifier(
        **draw,
        max_iter=0,
        early_stopping=False,
        warm_start=True,
        categorical_features=tree_categories(task.table.frame),
        random_state=task.seed,
    )
    looks: list[dict[str, float]] = []
    rounds, validation = 0, -math.inf
    while model.max_iter < most and model.max_iter - rounds < 3 * chunk:
        model.set_params(max_iter=model.max_iter + chunk).fit(x.numpy(), target, weight)
        value = task.judge(torch.from_numpy(model.decision_function(x_validation.numpy())))
        looks.append({"step": model.max_iter, "loss": math.nan, "validation": value})
        if value > validation:
            rounds, validation = model.max_iter, value
    chosen, kept = dict(draw), f"round {rounds}"
    if task.outputs > 1:
        return Fitted("trees", partial(_staged, model, rounds), validation, chosen, kept, looks)
    grown = Trees.of(model, rounds)
    return Fitted("trees", partial(score_with, grown, 1), validation, chosen, kept, looks, grown)


def _staged(model: HistGradientBoostingClassifier, rounds: int, x: Tensor) -> Tensor:
    staged = model.staged_decision_function(x.numpy())
    return torch.from_numpy(np.array(next(itertools.islice(staged, rounds - 1, None))))
