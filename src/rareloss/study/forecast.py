"""What is known of a scorer before its ranking stage: how much it misfits, and where."""

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from rareloss import Objective
from rareloss.functional import log_odds

__all__ = ["Signals", "signals"]

# The top of the list: so many times the base rate, or the operating point's share where that is larger.
TOP = 3.0
LARGEST_SLOPE = 10.0


class Signals(NamedTuple):
    r"""What the validation scores of a trained scorer say of its misfit.

    Scores s are first mapped to log-odds :math:`z = a + b s` by logistic regression, since a class weight or a focal
    loss shifts and stretches them.

    Args:
        explained: the share of the entropy of the labels that z explains, :math:`1 - L(z) / L_0` (McFadden); the
            difference of two scorers' is how much the one misfits where the other does not.
        slope: that of a logistic regression of the labels on z among the rows at the top alone: three times the base
            rate, or the operating point's share. 1 where the model is right there; below 1, z tells less at the top
            than it does elsewhere.
        slope_error: its standard error.
    """

    explained: float
    slope: float
    slope_error: float


def signals(scores: Tensor, labels: np.ndarray, objective: Objective) -> Signals:
    """Compute the signals of a scorer, the mean over the classes that have both labels.

    Args:
        scores: raw logits ``[n]``, or ``[n, C]``, of rows that trained nothing.
        labels: class of each row, ``[n]``.
        objective: says where the top is.
    """
    if scores.ndim == 1:
        columns = [(scores.double().numpy(), labels == 1)]
    else:
        ranked = log_odds(scores.double()).numpy()
        columns = [(ranked[:, index], labels == index) for index in range(ranked.shape[1])]
    found = [_signals(*column, objective.share or 0.0) for column in columns if 0 < column[1].sum() < len(labels)]
    return Signals(*np.mean(found, axis=0).tolist()) if found else Signals(math.nan, math.nan, math.nan)


def _signals(scores: np.ndarray, positive: np.ndarray, level: float) -> Signals:
    rate = positive.mean()
    z = _slope(scores, positive)[2]
    lost = np.logaddexp(0.0, np.where(positive, -z, z)).mean()
    entropy = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
    top = np.argsort(-z, kind="stable")[: math.ceil(max(TOP * rate, level) * len(z))]
    slope, error, _ = _slope(z[top], positive[top])
    return Signals(float(1 - lost / entropy), slope, error)


def _slope(x: np.ndarray, positive: np.ndarray) -> tuple[float, float, np.ndarray]:
    # Slope, its standard error, and the log-odds that they give; a weak penalty keeps separated rows finite.
    spread, centre = x.std(), x.mean()
    if spread == 0 or positive.all() or not positive.any():
        return 1.0, LARGEST_SLOPE, np.zeros_like(x)
    unit = ((x - centre) / spread)[:, None]
    solved = LogisticRegression(C=1e4, tol=1e-8, solver="newton-cholesky").fit(unit, positive)
    z = solved.decision_function(unit)
    certain = torch.special.expit(torch.from_numpy(z)).numpy()
    weight = certain * (1 - certain)
    middle = np.average(unit[:, 0], weights=weight + 1e-12)
    error = 1 / np.sqrt((weight * (unit[:, 0] - middle) ** 2).sum() + 1e-12)
    return (
        float(np.clip(solved.coef_[0, 0] / spread, -LARGEST_SLOPE, LARGEST_SLOPE)),
        float(min(error / spread, LARGEST_SLOPE)),
        z,
    )
