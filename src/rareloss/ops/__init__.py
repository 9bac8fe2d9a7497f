"""What the losses are computed with: soft counts and ranks, thresholds, log-odds, focal terms; no idea of modules."""

from rareloss.ops.counts import count_above, soft_count
from rareloss.ops.exponentials import exponential_count, order_together
from rareloss.ops.focal import SigmoidFocal, SoftmaxFocal, focal_loss
from rareloss.ops.functions import eager_twin, fold_into_batch, is_eager, without_second_derivative
from rareloss.ops.grid import grid_count, grid_nodes
from rareloss.ops.one_vs_rest import log_odds
from rareloss.ops.pairs import dense_pairs
from rareloss.ops.selection import Top, hard_count, top
from rareloss.ops.soft_rank import soft_ranks
from rareloss.ops.standardization import standardize
from rareloss.ops.threshold import margin_over_threshold

__all__ = [
    "SigmoidFocal",
    "SoftmaxFocal",
    "Top",
    "count_above",
    "dense_pairs",
    "eager_twin",
    "exponential_count",
    "focal_loss",
    "fold_into_batch",
    "grid_count",
    "grid_nodes",
    "hard_count",
    "is_eager",
    "log_odds",
    "margin_over_threshold",
    "order_together",
    "soft_count",
    "soft_ranks",
    "standardize",
    "top",
    "without_second_derivative",
]
