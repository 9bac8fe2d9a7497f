"""What is reported of a model's test fold: metrics, and the curves of the report."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve
from torch import Tensor

from rareloss.functional import log_odds
from rareloss.objectives import AveragePrecision, Objective, RecallAtFPR, RecallAtTop
from rareloss.table import Table

__all__ = ["evaluate"]

POINTS = 160
HISTOGRAM_BINS = 60
CALIBRATION_BINS = 15


def evaluate(
    scores: Tensor, target: np.ndarray, table: Table, objective: Objective, weight: Tensor | None = None
) -> dict[str, Any]:
    """Compute everything that is reported of one run's test fold.

    Args:
        scores: raw logits, ``[n]`` or ``[n, C]``.
        target: class of each row, ``[n]``.
        table: names the classes.
        objective: what the study judges by.
        weight: of each row, ``[n]``.

    Returns:
        by name: ``test``, the objective; ``metrics``; ``per_class``; ``curves``, and with more than two classes
        ``curves_class``, the class that they show.
    """
    labels = torch.from_numpy(target)
    value, defined = objective.metric(scores, labels, weight)
    found: dict[str, Any] = {"test": _mean(value, defined), "metrics": {}, "per_class": []}
    budget = objective.budget if objective.budget is not None and objective.alpha is None else 0.01
    for other in (AveragePrecision(), RecallAtTop(budget), RecallAtFPR(budget)):
        found["metrics"][str(other)] = _mean(*other.metric(scores, labels, weight))
    margin, positive = scores.double().numpy(), target == 1
    weights = None if weight is None else weight.double().numpy()
    if table.multiclass:
        found["per_class"] = [
            {"class": name, "test": float(each) if known else None}
            for name, each, known in zip(table.classes, value, defined, strict=True)
        ]
        ranked = log_odds(scores).double().numpy()
        present = [index for index in range(len(table.classes)) if 0 < np.sum(target == index) < len(target)]
        found["metrics"]["roc_auc"] = float(
            np.mean([roc_auc_score(target == i, ranked[:, i], sample_weight=weights) for i in present])
        )
        rarest = int(np.argmin(np.bincount(table.target, minlength=len(table.classes))))
        found["curves_class"] = table.classes[rarest]
        margin, positive = ranked[:, rarest], target == rarest
    else:
        found["metrics"]["roc_auc"] = float(roc_auc_score(positive, margin, sample_weight=weights))
    found["curves"] = curves(margin, positive, weights) if positive.any() and not positive.all() else {}
    return found


def _mean(value: Tensor, defined: Tensor) -> float:
    return float(value[defined].mean())


def curves(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None) -> dict[str, Any]:
    """Compute the curves of one class, thinned, with most points near the top of the ranking."""
    weight = np.ones(len(scores)) if weight is None else weight
    false_rate, true_rate, _ = roc_curve(positive, scores, sample_weight=weight)
    precision, recall, _ = precision_recall_curve(positive, scores, sample_weight=weight)
    order = np.argsort(-scores, kind="stable")
    gained = np.cumsum((weight * positive)[order]) / weight[positive].sum()
    share = np.cumsum(weight[order]) / weight.sum()
    edges = np.linspace(scores.min(), scores.max() + 1e-9, HISTOGRAM_BINS + 1)
    return {
        "roc": _thinned(np.maximum(false_rate, 1 / len(scores)), fpr=false_rate, tpr=true_rate),
        "pr": _thinned(np.maximum(recall, 1 / len(scores)), linear=True, recall=recall, precision=precision),
        "gain": _thinned(share, share=share, recall=gained),
        "scores": {
            "edges": _plain(edges),
            "negative": np.histogram(scores[~positive], edges)[0].tolist(),
            "positive": np.histogram(scores[positive], edges)[0].tolist(),
        },
        "calibration": _calibration(scores, positive, weight),
    }


def _thinned(at: np.ndarray, linear: bool = False, **columns: np.ndarray) -> dict[str, list[float]]:
    """Keep points that lie evenly on the logarithm of ``at``, half of them evenly on ``at`` itself; ends included."""
    low, high = at.min(), at.max()
    wanted = np.linspace(low, high, POINTS if linear else POINTS // 2)
    if not linear:
        wanted = np.concatenate([wanted, np.geomspace(low, high, POINTS // 2)])
    order = np.argsort(at, kind="stable")
    kept = np.unique(order[np.searchsorted(at[order], wanted).clip(0, len(at) - 1)])
    kept = np.unique(np.concatenate([kept, [0, len(at) - 1]]))
    return {name: _plain(column[kept]) for name, column in columns.items()}


def _calibration(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> dict[str, list[float]]:
    """Compare probabilities with shares in bins that are even in score, where rare classes have rows to show."""
    probability = 1 / (1 + np.exp(-np.clip(scores, -50, 50)))
    edges = np.linspace(scores.min(), scores.max(), CALIBRATION_BINS + 1)[1:-1]
    place = np.searchsorted(edges, scores)
    count = np.bincount(place, minlength=CALIBRATION_BINS)
    filled = count > 0
    whole = np.bincount(place, weight, CALIBRATION_BINS)[filled]
    predicted = np.bincount(place, weight * probability, CALIBRATION_BINS)[filled] / whole
    observed = np.bincount(place, weight * positive, CALIBRATION_BINS)[filled] / whole
    return {"predicted": _plain(predicted), "observed": _plain(observed), "count": count[filled].tolist()}


def _plain(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
