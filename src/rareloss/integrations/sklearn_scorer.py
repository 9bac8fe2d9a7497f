"""An operating point as a scikit-learn scorer."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.metadata_routing import UNCHANGED, MetadataRequest

from rareloss.objectives import Objective

__all__ = ["ObjectiveScorer"]


class ObjectiveScorer:
    """Score an estimator by an objective's metric, exactly; use it as ``scoring=``.

    It ranks by ``decision_function`` where there is one, else by the logarithm of ``predict_proba``. Of two classes the
    positive one is ranked; of several it is the mean over those that have positives and negatives.

    Args:
        objective: an operating point.
        positive: the positive one of two classes. None: the estimator's ``positive_`` where it has one, as ours do;
            else the second of ``classes_``, as for scikit-learn's own scorers.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> X = np.arange(8.0)[:, None]
        >>> y = np.array(["no"] * 5 + ["yes"] * 3)
        >>> ObjectiveScorer("recall@precision=90%")(LogisticRegression().fit(X, y), X, y)
        1.0
    """

    def __init__(self, objective: Objective | str, *, positive: Any = None) -> None:
        self.objective = Objective.of(objective)
        self.positive = positive
        self._weight_request: bool | str | None = None

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the value of a fitted estimator on rows; NaN where no class has positives and negatives.

        Raises:
            ValueError: classes that the estimator was not fitted on, or ``positive`` is none of its two.
        """
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
        if scores.ndim == 1 and self._positive_place(estimator, known) == 0:
            scores, place = -scores, 1 - place
        weight = None if sample_weight is None else torch.as_tensor(np.asarray(sample_weight, dtype=np.float64))
        value, defined = self.objective.metric(torch.as_tensor(scores), torch.as_tensor(place), weight)
        return float(value[defined].mean())

    def set_score_request(self, *, sample_weight: bool | str | None = UNCHANGED) -> "ObjectiveScorer":
        """Say whether scikit-learn's metadata routing passes weights to this scorer.

        Args:
            sample_weight: True: ``sample_weight`` of whoever calls. A name: what is passed under it. False: not. None:
                not, and an error where it is passed.

        Returns:
            the scorer itself.
        """
        if sample_weight is not UNCHANGED:
            self._weight_request = sample_weight
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Return what scikit-learn's metadata routing may pass to this scorer."""
        request = MetadataRequest(owner=self)
        request.score.add_request(param="sample_weight", alias=self._weight_request)
        return request

    def _positive_place(self, estimator: Any, known: np.ndarray) -> int:
        positive = getattr(estimator, "positive_", known[1]) if self.positive is None else self.positive
        places = [place for place, label in enumerate(known.tolist()) if label == positive]
        if not places:
            raise ValueError(f"positive={positive!r} is none of the estimator's classes {known.tolist()}")
        return places[0]

    def __repr__(self) -> str:
        named = "" if self.positive is None else f", positive={self.positive!r}"
        return f"ObjectiveScorer({str(self.objective)!r}{named})"
