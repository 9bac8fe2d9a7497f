"""What rows were like when a model was fitted, and what is odd about the rows that it scores."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from rareloss.decisions import likely_alerts
from rareloss.table import DataError
from rareloss.tabular.model.reading import read

__all__ = ["FeatureProfile", "Profile", "Watch"]

MOST_SCORES = 100_000
# Shares of the new rows: so many more lack something, or any at all, or are outside of what the fit saw.
MUCH_MORE, FROM_NONE, OUTSIDE = 0.05, 0.01, 0.01
ON_ONE_SIDE = 0.75  # of the median, where half are expected
FEW_ROWS = 30


@dataclass(frozen=True)
class FeatureProfile:
    """A feature of the train rows.

    Args:
        missing: share of rows without it.
        low, median, high: of a number, the least, the middle and the largest; None for a category.
        unlisted: of a category, share of rows whose value is too rare for a column of its own; 0 for a number.
    """

    missing: float
    low: float | None = None
    median: float | None = None
    high: float | None = None
    unlisted: float = 0.0


@dataclass(frozen=True, eq=False)
class Profile:
    """What the rows of a fit were like.

    Args:
        scores: of the validation rows, which cut the threshold, float32 ``[n]``, upwards; of very many rows, or of
            weighted ones, as many evenly spaced quantiles.
        features: of the train rows, by name.
        centre: mean of the inputs of a linear layer over the train rows, float64 ``[width]``; None of other models.
    """

    scores: np.ndarray
    features: Mapping[str, FeatureProfile]
    centre: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        features: pd.DataFrame,
        weight: np.ndarray | None,
        unlisted: Mapping[str, float],
        scores: np.ndarray,
        score_weight: np.ndarray | None,
        inputs: np.ndarray | None = None,
    ) -> "Profile":
        """Look at the train rows, by weight, with the unlisted share of each category; and at validation scores.

        ``inputs`` are those of the train rows where the model is linear.
        """
        many = min(len(scores), MOST_SCORES)
        if score_weight is not None or many < len(scores):
            score_weight = np.ones(len(scores)) if score_weight is None else score_weight
            places = (np.arange(many) + 0.5) / many
            scores = np.quantile(scores, places, weights=score_weight, method="inverted_cdf")
        weight = np.ones(len(features)) if weight is None else weight
        found = {str(name): _profile(features[name], weight, unlisted.get(str(name), 0.0)) for name in features}
        centre = None if inputs is None else np.average(inputs.astype(np.float64), axis=0, weights=weight)
        return cls(np.sort(scores).astype(np.float32), found, centre)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the scores, and the centre where there is one."""
        return {"scores": self.scores} | ({} if self.centre is None else {"centre": self.centre})

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON holds it."""
        return {name: asdict(feature) for name, feature in self.features.items()}

    @classmethod
    def from_dict(cls, given: Any, arrays: Mapping[str, np.ndarray], expected: list[str], width: int) -> "Profile":
        """Read what :meth:`to_dict` and :meth:`arrays` wrote, of these features and so many inputs.

        Raises:
            DataError: it is no such thing.
        """
        if not isinstance(given, dict) or sorted(given) != sorted(expected):
            raise DataError("profile: one entry for each feature was expected")
        kinds: dict[str, tuple[type, ...]] = dict.fromkeys(("low", "median", "high"), (float, int, type(None)))
        kinds["missing"] = kinds["unlisted"] = (float, int)
        features = {name: FeatureProfile(**read("profile", each, kinds)) for name, each in given.items()}
        scores, centre = arrays.get("scores"), arrays.get("centre")
        if set(arrays) - {"scores", "centre"}:
            raise DataError(f"profile: scores and centre were expected, got {sorted(arrays)!r:.200}")
        odd = centre is not None and (centre.dtype != np.float64 or centre.shape != (width,))
        if centre is not None and (odd or not np.isfinite(centre).all()):
            raise DataError(f"profile: centre must be finite float64 of shape ({width},)")
        if scores is None or scores.dtype != np.float32 or scores.ndim != 1 or not 0 < len(scores) <= MOST_SCORES:
            raise DataError(f"profile: 1 to {MOST_SCORES:,} scores in float32 were expected")
        if not np.isfinite(scores).all() or (np.diff(scores) < 0).any():
            raise DataError("profile: finite scores in order were expected")
        return cls(scores, features, centre)


def _profile(column: pd.Series, weight: np.ndarray, unlisted: float) -> FeatureProfile:
    gone = column.isna().to_numpy()
    missing = float(np.average(gone, weights=weight))
    if isinstance(column.dtype, pd.CategoricalDtype) or gone.all():
        return FeatureProfile(missing, unlisted=unlisted)
    values = column.to_numpy(dtype=np.float64)[~gone]
    median = float(np.quantile(values, 0.5, weights=weight[~gone], method="inverted_cdf"))
    return FeatureProfile(missing, float(values.min()), median, float(values.max()))


class Watch:
    """Count what is odd about rows, a batch at a time.

    Args:
        profile: what they should be like.
        threshold: a row scored above it is an alert.
    """

    def __init__(self, profile: Profile, threshold: float) -> None:
        self.profile, self.threshold = profile, threshold
        self.rows = self.alerts = 0
        self.counts: dict[str, np.ndarray] = {}

    def add(self, features: pd.DataFrame, alerts: int, unlisted: Mapping[str, int]) -> None:
        """Take a batch in: its features, its alerts, and the rows with an unlisted value of each category."""
        self.rows += len(features)
        self.alerts += alerts
        for name, profile in self.profile.features.items():
            column = features[name]
            missing = int(column.isna().sum())
            counts = np.array([missing, unlisted.get(name, 0), 0, 0])
            if profile.median is not None:
                values = column.to_numpy(dtype=np.float64)
                outside = (values < profile.low) | (values > profile.high)
                counts[1:] = outside.sum(), (values < profile.median).sum(), (values > profile.median).sum()
            self.counts[name] = self.counts.get(name, np.zeros(4, dtype=np.int64)) + counts

    def remarks(self) -> list[str]:
        """Say what differs from the fit, one sentence each; nothing of fewer than 30 rows."""
        if self.rows < FEW_ROWS:
            return []
        above = int((self.profile.scores > self.threshold).sum())
        low, high, p_value = likely_alerts(above, len(self.profile.scores), self.alerts, self.rows)
        notes = []
        if p_value < 0.01:
            was = above / len(self.profile.scores)
            notes.append(
                f"{self.alerts / self.rows:.2%} of the rows are alerts, where the validation rows of the fit had "
                f"{was:.2%}; chance gives {low / self.rows:.2%} to {high / self.rows:.2%}"
            )
        for name, (missing, outside, below, beyond) in self.counts.items():
            notes += self._of_feature(name, missing, outside, below, beyond)
        return notes

    def _of_feature(self, name: str, missing: int, outside: int, below: int, beyond: int) -> list[str]:
        profile, present = self.profile.features[name], self.rows - missing
        share = missing / self.rows
        if _more(share, profile.missing):
            was = f"in {profile.missing:.1%}" if profile.missing else "never"
            return [f"{name!r} is missing in {share:.1%} of the rows, where the fit lacked it {was}"]
        if profile.median is None and _more(outside / self.rows, profile.unlisted):
            now, was = f"{outside / self.rows:.1%}", f"{profile.unlisted:.1%}"
            return [f"{name!r} has a rare or new value in {now} of the rows, and had in {was} at the fit"]
        if profile.median is None or present < FEW_ROWS:
            return []
        if outside > OUTSIDE * present:
            limits = f"{profile.low:g} to {profile.high:g}"
            return [f"{name!r} is outside of {limits}, which the fit saw, in {outside / present:.1%} of the rows"]
        for side, rows in (("below", below), ("above", beyond)):
            if rows > ON_ONE_SIDE * present:
                return [
                    f"{name!r} is {side} {profile.median:g}, the median of the fit, in {rows / present:.1%} of the rows"
                ]
        return []


def _more(share: float, was: float) -> bool:
    return share > was + MUCH_MORE or (not was and share > FROM_NONE)
