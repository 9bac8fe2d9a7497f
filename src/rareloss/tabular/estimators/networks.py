"""Networks on cross-entropy, for each draw of learning rate and weight decay.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from rareloss import Objective, SigmoidFocalLoss
from rareloss.tabular.network import NETWORK, batches, perceptron
from rareloss.tabular.tuning import network_draws
from rareloss.training import Batch, select_rows, train_with_early_stopping

__all__ = ["descents", "judge", "new_model"]


@torch.no_grad()
def judge(objective: Objective, model: nn.Module, held: Batch) -> float:
    """Compute the objective of a model on rows."""
    return float(objective.metric(model(held.inputs), held.targets, held.weight).value)


def descents(
    objective: Objective, hidden: Sequence[int], train: Batch, held: Batch, trials: int, seed: int
) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Yield a trained network and its draw, for each of ``trials``; ``held`` chooses each one's checkpoint."""
    for draw in network_draws(trials, seed):
        model = new_model(train, hidden, seed)
        train_with_early_stopping(
            model,
            SigmoidFocalLoss(alpha=None, gamma=0.0),
            _shuffled(train, seed),
            partial(judge, objective, model, held),
            steps=NETWORK["steps"],
            warmup_steps=NETWORK["warm_up"],
            eval_every=NETWORK["every"],
            **draw,  # type: ignore[arg-type]
        )
        yield model, draw


def new_model(rows: Batch, hidden: Sequence[int], seed: int) -> nn.Module:
    """Make a network, or without hidden layers a linear model, that gives every row the base rate's log-odds."""
    features = rows.inputs.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = perceptron(features, 1, hidden) if hidden else nn.Linear(features, 1)
    last: Any = model[-1] if isinstance(model, nn.Sequential) else model
    if isinstance(model, nn.Linear):
        nn.init.zeros_(model.weight)
    positives = float(rows.targets.sum())
    nn.init.constant_(last.bias, math.log((positives + 0.5) / (len(rows.targets) - positives + 0.5)))
    return model


def _shuffled(whole: Batch, seed: int) -> Iterator[Batch]:
    size = max(1, min(NETWORK["batch"], len(whole.targets) // 8))
    return (select_rows(whole, rows) for rows, _ in batches(whole.targets, size, seed))
