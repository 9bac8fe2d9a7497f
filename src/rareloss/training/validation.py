"""Model selection on validation rows: the objective with its Bayesian bootstrap, and the best checkpoint so far."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rareloss.objectives import Objective
from rareloss.training.batches import Batch

__all__ = [
    "BestCheckpoint",
    "Evaluation",
    "TrainingHistory",
    "ValidationMetric",
    "Validator",
    "bootstrap_weights",
    "preserve_modes",
]

# Bootstrap samples of the validation rows, and how many weights are computed with at once.
_BOOTSTRAP_SAMPLES = 100
_WEIGHTS_AT_ONCE = 2**18


class Evaluation(NamedTuple):
    """One evaluation on validation.

    Args:
        step: optimizer steps so far (on a regularization path: gradients so far).
        loss: of the last step; NaN before the first.
        validation: the metric; more is better.
        penalty: the regularization strength, on a path; NaN elsewhere.
    """

    step: int
    loss: float
    validation: float
    penalty: float = math.nan


class TrainingHistory(NamedTuple):
    """The evaluations of one training run.

    Args:
        best: the evaluation of the parameters that the model has now; step 0 is the start.
        evaluations: all of them, in order.
    """

    best: Evaluation
    evaluations: list[Evaluation]


@dataclass(frozen=True)
class ValidationMetric:
    """A metric of validation rows, and its bootstrap.

    Args:
        value: more is better, NaN is worst.
        bootstrap: computes the metric on B bootstrap samples, ``[B]``; called only where ``value`` is better than the
            best so far.
    """

    value: float
    bootstrap: Callable[[], Tensor]

    @cached_property
    def bootstrap_values(self) -> Tensor:
        """The metric on the bootstrap samples, computed once."""
        return self.bootstrap()


class BestCheckpoint:
    """The parameters that are best on validation so far, the start included.

    Args:
        model: what is trained.
        evaluate: computes the metric of the model now: a :class:`ValidationMetric`, or a
            number, which has no bootstrap.
        margin: by how many standard errors of the paired difference, over the bootstrap, parameters have to be better
            than the best so far.
    """

    def __init__(self, model: nn.Module, evaluate: Callable[[], ValidationMetric | float], margin: float) -> None:
        self.model, self.evaluate, self.margin = model, evaluate, margin
        self.metric = self._evaluated()
        self.best = Evaluation(0, math.nan, self.metric.value)
        self.evaluations, self.state = [self.best], copy.deepcopy(model.state_dict())

    def update(self, step: int, loss: float, penalty: float = math.nan) -> bool:
        """Evaluate the model, and keep its parameters where they are the best; return whether they are."""
        metric = self._evaluated()
        self.evaluations.append(Evaluation(step, loss, metric.value, penalty))
        if not self._is_better(metric):
            return False
        self.best, self.metric, self.state = self.evaluations[-1], metric, copy.deepcopy(self.model.state_dict())
        return True

    def restore(self) -> TrainingHistory:
        """Load the best parameters into the model, and return the history."""
        self.model.load_state_dict(self.state)
        return TrainingHistory(self.best, self.evaluations)

    def _evaluated(self) -> ValidationMetric:
        metric = self.evaluate()
        return (
            metric if isinstance(metric, ValidationMetric) else ValidationMetric(float(metric), lambda: torch.zeros(0))
        )

    def _is_better(self, metric: ValidationMetric) -> bool:
        if math.isnan(self.metric.value):
            return True
        gain = metric.value - self.metric.value
        if not gain > 0:
            return False
        paired = metric.bootstrap_values - self.metric.bootstrap_values
        return gain > self.margin * (float(paired.std()) if len(paired) > 1 else 0.0)


def bootstrap_weights(rows: int) -> Tensor:
    """Draw the row weights of the Bayesian bootstrap ``[B, rows]``: exponential, the same at every call."""
    seeds = (torch.Generator().manual_seed(seed) for seed in range(1, _BOOTSTRAP_SAMPLES + 1))
    return torch.stack([torch.ones(rows).exponential_(generator=seed) for seed in seeds])


class Validator:
    """Compute the objective of a model, or of scores, on validation rows.

    Args:
        batch: the validation rows.
        objective: the metric.
        forward: computes ``model``'s scores of inputs, as ``forward(model, inputs)``.
    """

    def __init__(self, batch: Batch, objective: Objective, forward: Callable[[nn.Module, Any], Tensor]) -> None:
        self.batch, self.objective, self.forward = batch, objective, forward

    def __call__(self, model: nn.Module) -> ValidationMetric:
        """Compute the metric of a model."""
        return self.metric(self.scores(model))

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Tensor:
        """Compute the scores of a model in eval mode."""
        with preserve_modes(model):
            return self.forward(model.eval(), self.batch.inputs)

    def metric(self, scores: Tensor) -> ValidationMetric:
        """Compute the metric of scores ``[n]`` or ``[n, C]``; over several classes, their mean where defined."""
        targets, rows = self.batch.targets.to(scores.device), len(self.batch.targets)
        weight = torch.ones(rows) if self.batch.weight is None else self.batch.weight
        weight = weight.to(scores.device)

        def under(factors: Tensor) -> Tensor:
            # The metric [B] under each column of row weights [n, B]. One column of scores is sorted once for all.
            if scores.ndim == 1 or scores.shape[1] == 1:
                column, labels = (tensor.reshape(-1, 1).expand_as(factors) for tensor in (scores, targets))
                return self.objective.metric(column, labels, weight.reshape(-1, 1) * factors).value.reshape(-1)
            shape = (-1, *[1] * (weight.ndim - 1))
            per_sample = [self.objective.metric(scores, targets, weight * row.reshape(shape)) for row in factors.mT]
            return torch.stack([value[defined].mean() for value, defined in per_sample])

        def bootstrap() -> Tensor:
            chunks = self._bootstrap_weights.split(max(1, _WEIGHTS_AT_ONCE // rows))
            return torch.cat([under(chunk.mT.to(scores.device)) for chunk in chunks])

        return ValidationMetric(float(under(torch.ones(rows, 1, device=scores.device))), bootstrap)

    @cached_property
    def _bootstrap_weights(self) -> Tensor:
        return bootstrap_weights(len(self.batch.targets))


@contextlib.contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Restore training or eval mode of every submodule at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
