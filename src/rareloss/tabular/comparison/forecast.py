"""What a ranking stage will bring, from what is known before it: how much a model misfits, and where."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import Tensor

from rareloss import Objective
from rareloss.functional import log_odds

__all__ = ["FEATURES", "Forecast", "Signals", "features", "fit", "forecast", "forecasts", "signals"]

# The top of the list: so many times the base rate, or the operating point's share where that is larger.
TOP = 3.0
LARGEST_SLOPE = 10.0


class Signals(NamedTuple):
    r"""What the validation scores of a trained model say of its misfit.

    Scores s are first mapped to log-odds :math:`z = a + b s` by logistic regression, since a class weight or a focal
    loss shifts and stretches them.

    Args:
        explained: the share of the entropy of the labels that z explains, :math:`1 - L(z) / L_0` (McFadden); the
            difference of two models' is how much the one misfits where the other does not.
        slope: that of a logistic regression of the labels on z among the rows at the top alone: three times the base
            rate, or the operating point's share. 1 where the model is right there; below 1, z tells less at the top
            than it does elsewhere.
        slope_error: its standard error.
    """

    explained: float
    slope: float
    slope_error: float


def signals(scores: Tensor, labels: np.ndarray, objective: Objective) -> Signals:
    """Compute the signals of a model, the mean over the classes that have both labels.

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
    found = [_signals(*column, objective.budget or 0.0) for column in columns if 0 < column[1].sum() < len(labels)]
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


# ------------------------------------------------------------------------------------------------------------ forecast

FEATURES = ("misfit", "gap", "misfit x gap")
# Below so many train positives a ranking learns little that validation could tell from chance.
ENOUGH = 100.0


class Forecast(NamedTuple):
    """What a ranking stage is expected to add to the objective on unseen rows.

    Args:
        gain: expected.
        low: four of five forecasts for sets that took no part in the fit were above this,
        high: and below this, as far as the sets tell.
    """

    gain: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.gain:+.3f}, between {self.low:+.3f} and {self.high:+.3f} on four of five sets"


def features(
    model: Signals, reference: Signals, *, value: float, reference_value: float, positives: float
) -> list[float]:
    r"""Compute what the forecast is linear in; all are 0 for a model that fits as well as the reference.

    With m the misfit, the difference of what both explain, g the gap between their objectives on validation, both cut
    at 0, and s = :math:`P / (P + 100)` for P train positives: s m, s g and s m g.

    Args:
        model: signals of the model under tuned cross-entropy.
        reference: of a flexible model, boosted trees, on the same rows.
        value: the model's objective on validation.
        reference_value: that of the reference.
        positives: in train.
    """
    misfit, gap = max(0.0, reference.explained - model.explained), max(0.0, reference_value - value)
    support = positives / (positives + ENOUGH)
    return [support * misfit, support * gap, support * misfit * gap]


def fit(rows: Sequence[Sequence[float]], gains: Sequence[float], sample_weight: Sequence[float]) -> np.ndarray:
    """Fit the factors of the features by least squares, none below 0."""
    model = LinearRegression(positive=True, fit_intercept=False)
    return np.asarray(model.fit(np.asarray(rows), np.asarray(gains), np.asarray(sample_weight)).coef_)


def forecast(model: Signals, reference: Signals, *, value: float, reference_value: float, positives: float) -> Forecast:
    """Forecast what a ranking stage adds to a scorecard; see :func:`features`."""
    known = _known()
    row = features(model, reference, value=value, reference_value=reference_value, positives=positives)
    gain = float(np.dot(list(known["factors"].values()), row))
    return Forecast(gain, gain - known["below"], gain + known["above"])


def forecasts(
    runs: Sequence[Mapping[str, Any]], scorecards: Sequence[str], methods: Sequence[Mapping[str, Any]], positives: float
) -> list[dict[str, Any]]:
    """Forecast the ranking stage of each scorecard of a comparison, and put what came out beside it.

    Args:
        runs: as in results.json.
        scorecards: names of the models that are scorecards; of others nothing is forecast.
        methods: as in results.json.
        positives: train rows of the positive class, or of one class on average.

    Returns:
        rows with ``model``, ``gain``, ``low``, ``high``, ``method``, ``observed`` (None where the stage did not run)
        and ``sentence``.
    """
    stage = next(
        (method for method in methods if method["kind"] == "ranking" and method["name"].endswith("_stage")), None
    )
    found = []
    for name in scorecards:
        of = {
            method: [run for run in runs if (run["model"], run["method"]) == (name, method) and "signals" in run]
            for method in ("tuned_ce", "trees")
        }
        if not all(of.values()):
            continue
        known = {
            method: Signals(*np.mean([list(run["signals"].values()) for run in of[method]], axis=0)) for method in of
        }
        value, reference = (float(np.mean([run["validation"] for run in of[method]])) for method in of)
        expected = forecast(
            known["tuned_ce"], known["trees"], value=value, reference_value=reference, positives=positives
        )
        sentence = f"expected of a ranking stage before it ran: {expected}"
        base = {run["seed"]: run["test"] for run in of["tuned_ce"]}
        gaps = [
            run["test"] - base[run["seed"]]
            for run in runs
            if stage is not None and (run["model"], run["method"]) == (name, stage["name"]) and run["seed"] in base
        ]
        observed = float(np.mean(gaps)) if gaps else None
        if stage is not None and observed is not None:
            sentence += f"; {stage['label']} gave {observed:+.3f}"
        method = None if stage is None else stage["name"]
        found.append(
            {"model": name, **expected._asdict(), "method": method, "observed": observed, "sentence": sentence}
        )
    return found


@cache
def _known() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(
        files("rareloss.tabular.comparison").joinpath("forecast.json").read_text("utf-8")
    )
    return found
