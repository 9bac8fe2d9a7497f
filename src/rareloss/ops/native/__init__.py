"""The native kernel: ranking and focal losses with their gradients, each in one call of C++, on the CPU.

The functions take tensors, know nothing of autograd, and check nothing that their callers have checked. They are there
where :func:`available` says so; a wheel that was built without a compiler has no kernel.
"""

from rareloss.ops.native.library import (
    Focal,
    available,
    average_precision,
    exact_average_precision,
    log_odds,
    log_odds_backward,
    partial_auc,
    recall,
    serves,
    sigmoid_focal,
    soft_count,
    softmax_focal,
    sort,
    switched_off,
    why,
)

__all__ = [
    "Focal",
    "available",
    "average_precision",
    "exact_average_precision",
    "log_odds",
    "log_odds_backward",
    "partial_auc",
    "recall",
    "serves",
    "sigmoid_focal",
    "soft_count",
    "softmax_focal",
    "sort",
    "switched_off",
    "why",
]
