"""The equations as pure functions: tensors in, tensors out, no state."""

from rareloss.losses.average_precision import smooth_average_precision
from rareloss.losses.focal import sigmoid_focal_loss, softmax_focal_loss
from rareloss.losses.partial_auc import soft_partial_auc
from rareloss.losses.recall import soft_recall_at_quantile
from rareloss.ranking.log_odds import log_odds
from rareloss.ranking.pool import PerClass
from rareloss.ranking.soft_count import soft_count

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
