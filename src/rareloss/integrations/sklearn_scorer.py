"""An operating point as a scikit-learn scorer."""

from typing import Any

import numpy as np
import torch

from rareloss.objectives import Objective

__all__ = ["ObjectiveScorer"]


class ObjectiveScorer:
    """Score an estimator by an objective's metric, exactly; use it as ``scoring=``.

    It ranks by ``decision_function`` where there is one, else by the logarithm of ``predict_proba``. Of several classes
    it is the mean over those that have positives and negatives.

    Args:
        objective: an operating point.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> X = np.arange(8.0)[:, None]
        >>> y = np.array(["no"] * 5 + ["yes"] * 3)
        >>> ObjectiveScorer("recall@precision=90%")(LogisticRegression().fit(X, y), X, y)
        1.0
    """

    def __init__(self, objective: Objective | str) -> None:
        self.objective = Objective.of(objective)

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the value of a fitted estimator on rows; NaN where no class has positives and negatives."""
        if hasattr(estimator, "decision_function"):
            scores = np.asarray(estimator.decision_function(X), dtype=np.float64)
        else:
            with np.errstate(divide="ignore"):
                logs = np.log(np.asarray(estimator.predict_proba(X), dtype=np.float64))
            logs = np.maximum(logs, -1e4)  # of a probability of 0, finite
            scores = logs[:, 1] - logs[:, 0] if logs.shape[1] == 2 else logs
        known = np.asarray(estimator.classes_)
        y = np.asarray(y)
        place = np.searchsorted(known, y).clip(0, len(known) - 1)
        if (known[place] != y).any():
            raise ValueError(f"y holds classes that the estimator was not fitted on; it knows {known.tolist()}")
        weight = None if sample_weight is None else torch.as_tensor(np.asarray(sample_weight, dtype=np.float64))
        value, defined = self.objective.metric(torch.as_tensor(scores), torch.as_tensor(place), weight)
        return float(value[defined].mean())

    def __repr__(self) -> str:
        return f"ObjectiveScorer({str(self.objective)!r})"
