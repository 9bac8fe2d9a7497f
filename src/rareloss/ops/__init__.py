"""What the losses are computed with: soft counts and ranks, thresholds, log-odds, focal terms; no idea of modules."""

from rareloss.ops import native
from rareloss.ops.counts import count_above, few_pairs, soft_count
from rareloss.ops.exponentials import SLOPE_COEFFICIENTS, VALUE_COEFFICIENTS, count_by_exponentials, locate
from rareloss.ops.focal import SigmoidFocal, SoftmaxFocal, focal_loss
from rareloss.ops.functions import accumulator, eager_twin, fold_into_batch, in_float64, without_second_derivative
from rareloss.ops.one_vs_rest import log_odds, log_odds_by_class
from rareloss.ops.pairs import CountRequest, Counts, count_by_pairs
from rareloss.ops.selection import Top, band_fraction, hard_count, top
from rareloss.ops.soft_metric import SoftMetric, average_precision_in_one_call, evaluate
from rareloss.ops.soft_rank import soft_ranks
from rareloss.ops.standardization import standardize
from rareloss.ops.threshold import margin_over_threshold

__all__ = [
    "SLOPE_COEFFICIENTS",
    "VALUE_COEFFICIENTS",
    "CountRequest",
    "Counts",
    "SigmoidFocal",
    "SoftMetric",
    "SoftmaxFocal",
    "Top",
    "accumulator",
    "average_precision_in_one_call",
    "band_fraction",
    "count_above",
    "count_by_exponentials",
    "count_by_pairs",
    "eager_twin",
    "evaluate",
    "few_pairs",
    "focal_loss",
    "fold_into_batch",
    "hard_count",
    "in_float64",
    "locate",
    "log_odds",
    "log_odds_by_class",
    "margin_over_threshold",
    "native",
    "soft_count",
    "soft_ranks",
    "standardize",
    "top",
    "without_second_derivative",
]
