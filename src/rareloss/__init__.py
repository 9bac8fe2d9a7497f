"""Losses that optimise the ranking of a rare class at its operating point, on plain PyTorch."""

from rareloss import distributed, functional, losses, metrics, native
from rareloss.losses import (
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)
from rareloss.objectives import Objective
from rareloss.training import FineTuned, LossWarmupWrapper, finetune, large_batch

__version__ = "0.1.0"

__all__ = [
    "FineTuned",
    "LossWarmupWrapper",
    "Objective",
    "PAUCAtBudgetLoss",
    "RecallAtQuantileLoss",
    "SigmoidFocalLoss",
    "SmoothAPLoss",
    "SoftmaxFocalLoss",
    "distributed",
    "finetune",
    "functional",
    "large_batch",
    "losses",
    "metrics",
    "native",
]
