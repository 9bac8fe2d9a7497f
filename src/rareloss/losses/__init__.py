"""The losses that users train with, one file a family, and the base class of the ranking losses."""

from rareloss.losses.average_precision import SmoothAPLoss, smooth_average_precision
from rareloss.losses.encode import encode
from rareloss.losses.focal import SigmoidFocalLoss, SoftmaxFocalLoss, sigmoid_focal_loss, softmax_focal_loss
from rareloss.losses.partial_auc import PAUCAtBudgetLoss, soft_partial_auc
from rareloss.losses.queue import MemoryQueue
from rareloss.losses.ranking import RankingLoss, Support
from rareloss.losses.recall import RecallAtQuantileLoss, soft_recall_at_quantile

__all__ = [
    "MemoryQueue",
    "PAUCAtBudgetLoss",
    "RankingLoss",
    "RecallAtQuantileLoss",
    "SigmoidFocalLoss",
    "SmoothAPLoss",
    "SoftmaxFocalLoss",
    "Support",
    "encode",
    "sigmoid_focal_loss",
    "smooth_average_precision",
    "soft_partial_auc",
    "soft_recall_at_quantile",
    "softmax_focal_loss",
]
