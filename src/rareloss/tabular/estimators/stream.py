"""Learning from a stream: one step a batch, each batch scored before its step.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import torch
from torch import nn

from rareloss import LossWarmupWrapper, SigmoidFocalLoss
from rareloss.training import Batch

__all__ = ["QUEUE", "Stream"]

# Remembered rows, and the constant learning rates.
QUEUE, RATES = 16_384, {"linear": 1e-2, "network": 1e-3}


class Stream:
    """Steps on batches as they come, and the last scores that no step had seen.

    Args:
        model: of one output; it is changed.
        losses: the first of them is minimised; cross-entropy where there is none.
        warm_up: steps of cross-entropy that come first.
    """

    def __init__(self, model: nn.Module, losses: list[nn.Module] | None, warm_up: int) -> None:
        cross_entropy = SigmoidFocalLoss(alpha=None, gamma=0.0)
        self.model, self.loss = model, cross_entropy if not losses else losses[0]
        if losses and warm_up:
            self.loss = LossWarmupWrapper(cross_entropy, losses[0], warmup_steps=warm_up)
        rate = RATES["linear" if isinstance(model, nn.Linear) else "network"]
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
        self.recent: Batch | None = None

    def step(self, rows: Batch) -> Batch:
        """Score a batch, take one step on it, and return the remembered scores with their targets and weights."""
        scores = self.model(rows.inputs)[:, 0]
        weight = torch.ones(len(scores)) if rows.weight is None else rows.weight
        value = self.loss(scores, rows.targets, sample_weight=weight)
        if bool(torch.isfinite(value)):
            self.optimiser.zero_grad()
            value.backward()
            self.optimiser.step()
        seen = [Batch(scores.detach(), rows.targets, weight)]
        if self.recent is not None:
            seen.insert(0, self.recent)
        self.recent = Batch(*(torch.cat(parts)[-QUEUE:] for parts in zip(*seen, strict=True)))
        return self.recent
