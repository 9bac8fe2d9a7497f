"""Early stopping: AdamW steps, of which validation chooses the checkpoint to keep."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rareloss.training.batches import Batch
from rareloss.training.validation import BestCheckpoint, TrainingHistory, ValidationMetric, preserve_modes

__all__ = ["call_model", "freeze_batch_norm", "loss_of", "train_with_early_stopping"]


def train_with_early_stopping(
    model: nn.Module,
    loss: nn.Module,
    batches: Iterable[Any],
    evaluate: Callable[[], ValidationMetric | float],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    eval_every: int = 10,
    margin: float = 0.0,
    forward: Callable[..., Tensor] | None = None,
) -> TrainingHistory:
    """Take AdamW steps with cosine decay, and keep the parameters that are best on validation, the start included.

    Batch norm keeps its statistics: the batch of a ranking loss is no sample of the rows they were collected from. A
    loss that is not finite ends the training; the best parameters until then are kept.

    Args:
        model: the start; it is changed.
        loss: called with scores and targets, and with ``sample_weight`` where a batch has weights.
        batches: inputs, targets and perhaps weights, one a step, see :class:`Batch`; iterated again when they end.
        evaluate: computes the model's metric on validation, see :class:`BestCheckpoint`.
        steps: how many.
        learning_rate: at its peak.
        weight_decay: decoupled.
        warmup_steps: steps of a linear rise to the peak.
        eval_every: steps between evaluations; the last step is always evaluated.
        margin: in standard errors, see :class:`BestCheckpoint`.
        forward: computes the scores of a batch's inputs with their graph; the model itself by default.

    Raises:
        ValueError: there are no batches.
    """
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate,
        weight_decay=weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_cosine, steps=steps, warmup_steps=warmup_steps))
    checkpoint = BestCheckpoint(model, evaluate, margin)
    with preserve_modes(model):
        for step, batch in enumerate(itertools.islice(_repeat(batches), steps), 1):
            model.train()
            freeze_batch_norm(model)
            value = loss_of(loss, forward or model, batch)
            if not math.isfinite(value.item()):
                break
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
            if step % eval_every == 0 or step == steps:
                checkpoint.update(step, value.item())
    return checkpoint.restore()


def freeze_batch_norm(model: nn.Module) -> None:
    """Put batch norm layers into eval mode, where they use and keep the statistics they have."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def loss_of(loss: nn.Module, forward: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Compute the loss of a batch; ``sample_weight`` is passed where the batch has weights."""
    scores = call_model(forward, batch.inputs)
    weight = {} if batch.weight is None else {"sample_weight": batch.weight.to(scores.device)}
    value: Tensor = loss(scores, batch.targets.to(scores.device), **weight)
    return value


def call_model(forward: Callable[..., Tensor], inputs: Any) -> Tensor:
    """Call a model with inputs, of which a tuple or list holds several arguments."""
    return forward(*inputs) if isinstance(inputs, (tuple, list)) else forward(inputs)


def _repeat(batches: Iterable[Any]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield Batch(*batch)
        if empty:
            raise ValueError("there is no batch to step on; give at least one, and an iterable that starts anew")


def _cosine(step: int, *, steps: int, warmup_steps: int) -> float:
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
