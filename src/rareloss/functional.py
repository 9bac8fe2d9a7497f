"""The equations as pure functions: tensors in, tensors out, no state."""

from rareloss.losses import (
    sigmoid_focal_loss,
    smooth_average_precision,
    soft_partial_auc,
    soft_recall_at_quantile,
    softmax_focal_loss,
)
from rareloss.ops import log_odds, soft_count
from rareloss.pool import PerClass

__all__ = [
    "PerClass",
    "log_odds",
    "sigmoid_focal_loss",
    "smooth_average_precision",
    "soft_count",
    "soft_partial_auc",
    "soft_recall_at_quantile",
    "softmax_focal_loss",
]
