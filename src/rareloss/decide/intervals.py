"""The interval of a share of rows that was seen."""

from typing import overload

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

__all__ = ["clopper_pearson"]

Array = NDArray[np.float64]


@overload
def clopper_pearson(hits: float, rows: float, confidence: float = 0.95) -> tuple[float, float]: ...
@overload
def clopper_pearson(hits: Array, rows: Array, confidence: float = 0.95) -> tuple[Array, Array]: ...
def clopper_pearson(
    hits: float | Array, rows: float | Array, confidence: float = 0.95
) -> tuple[float | Array, float | Array]:
    r"""Compute the interval of a share of which ``hits`` of ``rows`` were seen, exact for counts.

    With :math:`B_p(a, b)` the quantile at p of a Beta distribution, k hits of n rows and :math:`\alpha` the risk, it is

    .. math:: \big[B_{\alpha / 2}(k, n - k + 1),\; B_{1 - \alpha / 2}(k + 1, n - k)\big],

    from 0 where nothing was hit and to 1 where all was.

    Args:
        hits: numbers, or arrays of any one shape; effective ones need not be whole.
        rows: of how many; 0 rows tell nothing, so theirs is [0, 1].
        confidence: that the share lies within.

    Returns:
        the lower and the upper end, in the shape of ``hits``.

    Reference:
        Clopper and Pearson, "The Use of Confidence or Fiducial Limits", Biometrika 1934.

    Example:
        >>> low, high = clopper_pearson(8, 10)
        >>> round(low, 4), round(high, 4)
        (0.4439, 0.9748)
    """
    tail, misses = (1 - confidence) / 2, np.maximum(np.subtract(rows, hits, dtype=np.float64), 0.0)
    low = np.where(np.greater(hits, 0), betaincinv(np.maximum(hits, 1e-12), misses + 1, tail), 0.0)
    high = np.where(misses > 0, betaincinv(np.add(hits, 1.0), np.maximum(misses, 1e-12), 1 - tail), 1.0)
    return (low, high) if low.ndim else (float(low), float(high))
