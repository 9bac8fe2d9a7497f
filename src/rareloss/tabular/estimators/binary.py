"""What both estimators share: which of two classes is positive, and what log-odds say of it.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import logging
import warnings
from typing import Any

# First, since it says which extra is missing.
from rareloss.tabular.estimators.rows import Array

# isort: split
import numpy as np
from scipy.special import logit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from rareloss import Objective
from rareloss.decisions import FEW_POSITIVES, METHODS, Calibrator, calibrate

__all__ = ["BinaryRanker", "choose_positive", "even_odds", "probabilities_of"]

# Log-odds beyond this are certain.
LARGEST = 1e6

log = logging.getLogger("rareloss")


class BinaryRanker(ClassifierMixin, BaseEstimator):
    """A classifier that ranks one class to the top, with the outputs that scikit-learn expects.

    Attributes:
        classes_: the two classes, sorted.
        positive_: the one that is ranked to the top.
        threshold_: the log-odds of the positive class strictly above which :meth:`predict` says it.
        calibrator_: from these log-odds to its probability.
    """

    classes_: np.ndarray
    positive_: Any
    threshold_: float
    calibrator_: Calibrator

    def log_odds(self, X: Any) -> Array:
        """Compute the log-odds of the positive class, ``[n]``: higher is more likely positive."""
        raise NotImplementedError

    def decision_function(self, X: Any) -> Array:
        """Compute the log-odds of ``classes_[1]``, ``[n]``, as scikit-learn and its scorers have it.

        They are :meth:`log_odds` where ``classes_[1]`` is the positive class, and their negative where it is not.
        """
        check_is_fitted(self, "threshold_")
        return self._sign * self.log_odds(X)

    def predict_proba(self, X: Any) -> Array:
        """Compute calibrated probabilities of both classes, ``[n, 2]``, in the order of ``classes_``.

        The map from log-odds is the one that :func:`rareloss.decisions.calibration.calibrate` chooses on the
        validation rows; where none is better than the share of positives there, that share.
        """
        check_is_fitted(self, "threshold_")
        positive = self.calibrator_(self.log_odds(X))
        return np.stack([1 - positive, positive][:: int(self._sign)], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Say the positive class above ``threshold_``."""
        check_is_fitted(self, "threshold_")
        alert = self.log_odds(X) > self.threshold_
        return np.asarray(self.classes_[np.where(alert, self._positive_place, 1 - self._positive_place)])

    @property
    def _positive_place(self) -> int:
        return int(self.classes_[1] == self.positive_)

    @property
    def _sign(self) -> float:
        return 1.0 if self._positive_place == 1 else -1.0

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


def choose_positive(classes: np.ndarray, weights: np.ndarray, positive: Any) -> Any:
    """Choose the positive one of two classes, and say which in the log ``rareloss``.

    Args:
        classes: the two.
        weights: of the rows of each.
        positive: the one that was named; None for the rarer, the second of two that are as rare.

    Raises:
        ValueError: the named one is neither of the two.

    Warns:
        UserWarning: the positive class is more common than the other.
    """
    place = int(weights[0] >= weights[1])
    if positive is not None:
        matches = [where for where, label in enumerate(classes.tolist()) if label == positive]
        if not matches:
            raise ValueError(f"positive={positive!r} is none of the classes {classes.tolist()}")
        place = matches[0]
    label, other = classes.tolist()[place], classes.tolist()[1 - place]
    share = 100 * float(weights[place] / weights.sum()) if weights.sum() else 0.0
    log.info("the positive class is %r, %.3g %% of the rows", label, share)
    if weights[place] > weights[1 - place]:
        warnings.warn(
            f"the positive class {label!r} is more common than {other!r}, {share:.3g} % of the rows; "
            f"positive={other!r} ranks the rare one to the top",
            UserWarning,
            stacklevel=3,
        )
    return classes[place]


def probabilities_of(
    log_odds: Array, target: np.ndarray, weight: Array | None, objective: Objective, seed: int
) -> Calibrator:
    """Choose the map from log-odds to probabilities, on rows that the model was not trained on.

    Args:
        log_odds: of these rows, ``[n]``.
        target: 0 or 1, ``[n]``.
        weight: of the rows; None for 1.
        objective: whose threshold is reported on.
        seed: of the folds.

    Returns:
        the choice of :func:`~rareloss.decisions.calibration.calibrate`; the share of positives for all rows, where the
        cross-validated log-loss of that choice is no smaller.
    """
    rate = float(np.average(target, weights=weight))
    share = Calibrator("base rate", slope=0.0, offset=float(logit(rate)))
    if min(np.bincount(target, minlength=2)) < 2:
        return share  # one row cannot both fit a map and judge it
    # Log-odds are Platt's on these very rows already, so that the sigmoid would be judged by rows which it has seen.
    few = int(target.sum()) < FEW_POSITIVES
    methods = ("platt",) if few else tuple(name for name in METHODS if name != "sigmoid")
    found = calibrate(log_odds, target, weight, methods=methods, objective=objective, seed=seed)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return found.calibrator if found.candidates[found.method] < entropy else share


def even_odds(calibrator: Calibrator) -> float:
    """Find the log-odds strictly above which the probability is more than one half; infinite where none or all are."""
    low, high = -LARGEST, LARGEST
    if calibrator([high])[0] <= 0.5:
        return np.inf
    if calibrator([low])[0] > 0.5:
        return -np.inf
    while low < (middle := low + (high - low) / 2) < high:
        low, high = (low, middle) if calibrator([middle])[0] > 0.5 else (middle, high)
    return low
