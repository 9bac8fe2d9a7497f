"""What the losses are computed with: soft counts and ranks, thresholds, log-odds, focal terms; no idea of modules."""

from rareloss.ops.counts import count_above, soft_count
from rareloss.ops.exponentials import exponential_count, order_together
from rareloss.ops.focal import Terms, fused, sigmoid_pass, sigmoid_slope, softmax_pass, softmax_slope
from rareloss.ops.functions import eager_twin, fold_into_batch, is_eager, without_second_derivative
from rareloss.ops.grid import grid_count, grid_nodes
from rareloss.ops.metric import SoftMetric, average_precision_in_one_call, evaluate
from rareloss.ops.one_vs_rest import log_odds, log_odds_by_class
from rareloss.ops.pairs import dense_pairs
from rareloss.ops.selection import Top, band_fraction, hard_count, top
from rareloss.ops.soft_rank import soft_ranks
from rareloss.ops.standardization import standardize
from rareloss.ops.threshold import margin_over_threshold

__all__ = [
    "SoftMetric",
    "Terms",
    "Top",
    "average_precision_in_one_call",
    "band_fraction",
    "count_above",
    "dense_pairs",
    "eager_twin",
    "evaluate",
    "exponential_count",
    "fold_into_batch",
    "fused",
    "grid_count",
    "grid_nodes",
    "hard_count",
    "is_eager",
    "log_odds",
    "log_odds_by_class",
    "margin_over_threshold",
    "order_together",
    "sigmoid_pass",
    "sigmoid_slope",
    "soft_count",
    "soft_ranks",
    "softmax_pass",
    "softmax_slope",
    "standardize",
    "top",
    "without_second_derivative",
]
