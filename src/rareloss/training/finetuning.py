"""Fine-tuning on a ranking loss: from a trained model's parameters, only as far as validation gains."""

import copy
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rareloss import checks, distributed
from rareloss.losses import RankingLoss
from rareloss.objectives import Objective
from rareloss.training.batches import Batch, PoolSampler, as_batch, is_batch
from rareloss.training.early_stopping import call_model, train_with_early_stopping
from rareloss.training.large_batch import large_batch
from rareloss.training.regularization_path import fit_regularization_path
from rareloss.training.restarts import find_restart
from rareloss.training.validation import Evaluation, TrainingHistory, ValidationMetric, Validator
from rareloss.training.whitening import Whitening

__all__ = ["TEMPERATURES", "FineTuned", "finetune", "ranking_losses", "repeat_finetune"]

# In standard deviations of the scores. A network ranks well already, and gains from a wider sigmoid.
TEMPERATURES = {
    "smooth_ap": {"linear": (0.03,), "network": (0.1, 0.3)},
    "recall": {"linear": (0.1,), "network": (0.03, 0.1)},
    "pauc": {"linear": (0.3,), "network": (0.3, 1.0)},
}
_CHUNK_SIZE = 65_536
_LEARNING_RATES = {"linear": 3e-2, "network": 3e-4}
# By how many standard errors on validation a checkpoint has to be better than the best so far. Of many looks at few
# positives the best is otherwise luck: half a standard error costs on some sets (``python -m benchmarks.keeping``).
_MARGIN = 1.0


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model, and its evaluations.

    Args:
        model: the best on validation; a copy, the given model is as it was.
        objective: the metric of validation.
        before: the objective of the given model on validation.
        best: the evaluation of ``model``.
        loss: the loss that was minimised; None if nothing was better than the given model.
        evaluations: of each loss in turn, all evaluations.
    """

    model: nn.Module
    objective: Objective
    before: float
    best: Evaluation
    loss: nn.Module | None
    evaluations: list[list[Evaluation]]

    @property
    def after(self) -> float:
        """The objective of ``model`` on validation."""
        return self.best.validation

    @property
    def step(self) -> int:
        """The steps (of L-BFGS: gradients) from the given model to ``model``; 0 if nothing was better."""
        return self.best.step

    @property
    def changed(self) -> bool:
        """Whether ``model`` differs from the given one."""
        return self.step > 0

    def __str__(self) -> str:
        name = self.objective.name
        if self.loss is None:
            return f"nothing changed: {name} on validation stays {self.before:.4f}, no step was better"
        temperature = getattr(self.loss, "temperature", None)
        loss = type(self.loss).__name__ + ("" if temperature is None else f", temperature {temperature:g}")
        return f"{name} on validation from {self.before:.4f} to {self.after:.4f} ({loss}, step {self.step})"


def finetune(
    model: nn.Module,
    objective: Objective | str,
    train: Any,
    validation: Any,
    *,
    losses: Sequence[nn.Module] | None = None,
    optimizer: str | Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    steps: int = 200,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    pool_size: int | None = None,
    chunk_size: int | None = None,
    eval_every: int = 10,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> FineTuned:
    r"""Fine-tune a trained model on its objective, and return the best model on validation, the given one included.

    From the given parameters on the ranking loss alone is minimised; a blend with cross-entropy gives the gain away.
    Validation is by the objective itself, and the best parameters are returned: so fine-tuning never ends below its
    start on validation, and says when nothing changed. It pays where the model cannot fit everything: scorecards, small
    networks.

    * A linear model on all rows follows a regularization path of L-BFGS solutions, see
      :func:`~rareloss.training.fit_regularization_path`; validation chooses the penalty. For one output the path is
      followed in reverse too, where :func:`~rareloss.training.find_restart` finds a lower minimum.
    * Everything else takes ``steps`` AdamW steps with cosine decay, evaluated every ``eval_every`` steps.

    A checkpoint takes the place of the best one only if it is better by one standard error of their difference over
    the Bayesian bootstrap of the validation rows (of a linear model: by :math:`\sqrt{10 w / P}` standard errors where
    the rarest class has fewer than ten rows P for each of its w weights).

    What a step ranks:

    * ``train`` and ``validation`` as ``(inputs, targets)`` or ``(inputs, targets, weight)``: a step ranks all rows, in
      the memory of ``chunk_size`` rows of the model (see :func:`rareloss.large_batch`), or a pool of ``pool_size``
      rows: all of rare classes, a weighted sample of common ones.
    * ``train`` as an iterable of such batches, for example a ``DataLoader``: a step ranks a batch and the remembered
      rows of earlier ones.

    Dropout is as in training; statistics of batch norm are kept. One process: on several ranks, write the loop.

    Args:
        model: a trained model; logits ``[n]`` or ``[n, 1]`` for binary, else ``[n, C]``. It is not changed.
        objective: an operating point such as ``"ap"`` or ``"recall@top=0.5%"``.
        train: the rows to learn from. Inputs are a tensor, or a tuple of tensors for a model of several arguments.
        validation: the rows that choose; none of ``train``.
        losses: tried in turn; by default the objective's own at one or two temperatures, see :func:`ranking_losses`.
        optimizer: ``"lbfgs"``, which needs all rows in every step, or ``"adamw"``; by default the first for a model of
            one weight matrix where ``train`` is a batch and ``pool_size`` None. Or a function of the parameters that
            makes an optimizer for each penalty of the path, which its one ``step(closure)`` is to minimise over, for
            example under bounds.
        steps: of AdamW, for each loss.
        learning_rate: of AdamW at its peak; by default 3e-2 for a model of one weight matrix (for inputs of about unit
            variance), 3e-4 for a network.
        weight_decay: of AdamW, decoupled.
        pool_size: rows of a step; None for all.
        chunk_size: rows that the model scores at once; by default all for a model of one weight matrix, whose scores
            are all that it keeps, and 65,536 for a network.
        eval_every: steps between evaluations on validation.
        tolerance: of L-BFGS, the change of the loss at which a search ends.
        seed: of the pools.

    Returns:
        the model, and its evaluations.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an argument out of range; rows, targets or weights that do not fit; validation on which the
            objective is not defined, or the given model's scores are not finite; more than one rank.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(4_000, 2, generator=generator)
        >>> y = (x[:, 0] + 2 * (x[:, 1] > 1)) > 2.5  # no straight line finds these
        >>> model = nn.Linear(2, 1)
        >>> fit = torch.optim.LBFGS(model.parameters(), max_iter=50)
        >>> def cross_entropy():
        ...     fit.zero_grad()
        ...     value = nn.functional.binary_cross_entropy_with_logits(model(x[:2_000, :])[:, 0], y[:2_000].float())
        ...     value.backward()
        ...     return value
        >>> _ = fit.step(cross_entropy)
        >>> finetuned = finetune(model, "ap", (x[:2_000], y[:2_000]), (x[2_000:], y[2_000:]), steps=50)
        >>> finetuned.after >= finetuned.before
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}; wrap a function in a module")
    objective = Objective.of(objective)
    if distributed.world_size(None) > 1:
        raise ValueError("finetune runs in one process, got several ranks; train with objective.loss(...) there")
    if chunk_size is not None:
        checks.integer("chunk_size", chunk_size, least=1)
    rows, kind = _all_rows(train, pool_size), _kind(model)
    chunk_size = chunk_size or (_CHUNK_SIZE if kind == "network" else sys.maxsize)
    ranks_all = rows is not None and (pool_size is None or pool_size >= len(rows.targets))
    optimizer = _optimizer(optimizer, kind, ranks_all)
    rate = _LEARNING_RATES[kind] if learning_rate is None else learning_rate
    adamw: dict[str, Any] = {
        "steps": checks.integer("steps", steps, least=1),
        "eval_every": checks.integer("eval_every", eval_every, least=1),
        "learning_rate": checks.positive_number("learning_rate", rate),
        "weight_decay": checks.non_negative("weight_decay", weight_decay),
        "margin": _MARGIN,
    }
    path: dict[str, Any] = {
        "make_optimizer": None if isinstance(optimizer, str) else optimizer,
        "tolerance": checks.non_negative("tolerance", tolerance),
        "objective": objective,
    }
    validator = Validator(as_batch("validation", validation), objective, partial(_forward, chunk_size))
    before, losses = _start(model, validator, losses, kind, queue_size=16_384 if rows is None else 0)
    best = FineTuned(copy.deepcopy(model), objective, before, Evaluation(0, math.nan, before), None, [])
    for loss in losses:
        tuned = copy.deepcopy(model)
        evaluate, forward = partial(validator, tuned), _chunked(tuned, chunk_size)
        if rows is not None and optimizer != "adamw":
            history = _fit_path(tuned, loss, rows, evaluate, forward, **path)
        else:
            batches = train if rows is None else PoolSampler(rows, pool_size, seed)
            history = train_with_early_stopping(tuned, loss, batches, evaluate, forward=forward, **adamw)
        best.evaluations.append(history.evaluations)
        if history.best.validation > best.after:
            best = replace(best, model=tuned, best=history.best, loss=loss)
    return best


def ranking_losses(objective: Objective, num_classes: int, kind: str, **options: Any) -> list[RankingLoss]:
    """Make the losses that :func:`finetune` tries in turn: the objective's own, for a network at two temperatures.

    Args:
        objective: what is to be optimised.
        num_classes: 1 for binary, else the number of classes or labels.
        kind: ``"linear"`` for a model of one weight matrix, or ``"network"``.
        options: as in :class:`~rareloss.losses.ranking.RankingLoss`.
    """
    temperatures = TEMPERATURES[objective.loss_name][kind]
    return [objective.loss(num_classes, temperature=temperature, **options) for temperature in temperatures]


def repeat_finetune(finetuned: FineTuned, model: nn.Module, train: Any, *, tolerance: float = 1e-6) -> nn.Module:
    """Repeat fine-tuning by L-BFGS on other rows: the loss and penalty that validation chose, from another model.

    For a refit on all rows after validation has chosen, and for a bootstrap. There is no validation.

    Args:
        finetuned: what was chosen.
        model: the start, of the same kind as ``finetuned.model``; it is not changed.
        train: ``(inputs, targets)`` or ``(inputs, targets, weight)``.
        tolerance: as in :func:`finetune`.

    Returns:
        the solution; a copy of ``model`` where fine-tuning had changed nothing, or the solution is not finite.
    """
    tuned = copy.deepcopy(model)
    if finetuned.loss is not None:
        count = itertools.count()
        _fit_path(
            tuned,
            finetuned.loss,
            as_batch("train", train),
            lambda: float(next(count)),  # later is better: the solution is kept
            _chunked(tuned, sys.maxsize),
            warm_start=finetuned.model,
            penalties=[finetuned.best.penalty],
            tolerance=tolerance,
        )
    return tuned


def _all_rows(train: Any, pool_size: int | None) -> Batch | None:
    # None for an iterable of batches.
    rows = as_batch("train", train) if is_batch(train) else None
    if rows is None and (isinstance(train, Tensor) or not isinstance(train, Iterable) or isinstance(train, Iterator)):
        raise TypeError(
            "train must be (inputs, targets) or (inputs, targets, weight), or an iterable of such batches that starts "
            f"anew, got {type(train).__name__}"
        )
    if pool_size is not None:
        checks.integer("pool_size", pool_size, least=2)
        if rows is None:
            raise ValueError("pool_size samples rows of tensors, got an iterable of batches; leave it out")
    return rows


def _kind(model: nn.Module) -> str:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter that requires a gradient; unfreeze what is to be trained")
    return "linear" if sum(parameter.ndim > 1 for parameter in parameters) <= 1 else "network"


def _optimizer(optimizer: Any, kind: str, ranks_all: bool) -> Any:
    if optimizer is None:
        return "lbfgs" if kind == "linear" and ranks_all else "adamw"
    if isinstance(optimizer, str) or not callable(optimizer):
        checks.choice("optimizer", optimizer, ("lbfgs", "adamw"))
    if optimizer != "adamw" and not ranks_all:
        raise ValueError(
            f"optimizer={optimizer!r} needs all rows in every step; give train as tensors, without pool_size"
        )
    return optimizer


def _start(
    model: nn.Module, validator: Validator, losses: Sequence[nn.Module] | None, kind: str, queue_size: int
) -> tuple[float, Sequence[nn.Module]]:
    # The objective of the given model, and the losses, by default for as many outputs as it has.
    scores, objective = validator.scores(model), validator.objective
    before = validator.metric(scores).value
    if not math.isfinite(before):
        raise ValueError(
            f"{objective.name} of the given model on validation is {before}; validation needs positives and negatives, "
            "and the scores must be finite"
        )
    if losses is not None and not losses:
        raise ValueError("losses is empty; name at least one, or leave it out for those of the objective")
    outputs = 1 if scores.ndim == 1 else scores.shape[1]
    return before, losses or ranking_losses(objective, outputs, kind, queue_size=queue_size)


def _chunked(model: nn.Module, chunk_size: int) -> Callable[..., Tensor]:
    in_chunks = large_batch(model, chunk_size=chunk_size)
    device = next(model.parameters()).device

    def forward(*inputs: Any) -> Tensor:
        if len(inputs[0]) > chunk_size:
            scores: Tensor = in_chunks(*inputs)
        else:
            scores = model(*pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs))
        return scores

    return forward


def _forward(chunk_size: int, model: nn.Module, inputs: Any) -> Tensor:
    return call_model(_chunked(model, chunk_size), inputs)


def _fit_path(
    model: nn.Module,
    loss: nn.Module,
    batch: Batch,
    evaluate: Callable[[], ValidationMetric | float],
    forward: Callable[..., Tensor],
    *,
    warm_start: nn.Module | None = None,
    objective: Objective | None = None,
    **options: Any,
) -> TrainingHistory:
    # A linear layer is solved over whitened inputs, where the penalty is on how far the scores move.
    options["margin"] = _margin(model, batch.targets)
    if not (isinstance(model, nn.Linear) and isinstance(batch.inputs, Tensor) and batch.inputs.ndim == 2):
        options |= {"forward": forward, "warm_start": warm_start}
        return fit_regularization_path(model, loss, batch, evaluate, **options)
    whitening = Whitening(batch.inputs.to(model.weight.device), batch.weight)
    whitened, state = whitening.whiten_layer(model), copy.deepcopy(model.state_dict())
    start = whitened.weight.detach().clone()
    whitened_batch = batch._replace(inputs=whitening.inputs.to(start.dtype).to(start.device))
    if isinstance(warm_start, nn.Linear):
        options["warm_start"] = whitening.whiten_layer(warm_start)
    elif objective is not None and model.out_features == 1:
        near = whitening.whiten_layer(model)
        options["find_restart"] = partial(find_restart, near, copy.deepcopy(loss), whitened_batch, objective)

    def evaluate_plain() -> ValidationMetric | float:
        if not torch.equal(whitened.weight, start):  # the start is evaluated as it was given, to the last bit
            whitening.unwhiten_layer(whitened, model)
        return evaluate()

    history = fit_regularization_path(whitened, loss, whitened_batch, evaluate_plain, **options)
    whitening.unwhiten_layer(whitened, model)
    if not history.best.step:
        model.load_state_dict(state)
    return history


def _margin(model: nn.Module, targets: Tensor) -> float:
    # A ranking learns from the positives. With fewer than ten of them for each weight (the rule of thumb for logistic
    # regression: Peduzzi et al., J. Clin. Epidemiol. 1996) chance is stronger, on validation too.
    weights = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1
    )
    if targets.ndim > 1 and targets.shape[-1] > 1:
        rarest, outputs = int((targets == 1).sum(0).amin()), targets.shape[-1]
    else:
        counts = targets.long().reshape(-1).clamp(min=0).bincount(minlength=2)
        rarest, outputs = int(counts[counts > 0].amin()), 1 if len(counts) == 2 else len(counts)
    return _MARGIN * math.sqrt(max(1.0, 10 * weights / outputs / max(rarest, 1)))
