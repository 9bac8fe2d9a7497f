"""Columns that give the answer away."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from rareloss.table.frames import written
from rareloss.table.schema import LEAST_ROWS_OF_A_CATEGORY
from rareloss.table.target import LEAST_ROWS_OF_A_CLASS

__all__ = ["best_alone", "by_column", "giveaways"]

# A gap, or a value, this pure in a class that is not the common one gives the answer away.
PURE = 0.95
# And so does a column that ranks a class by itself this well; looked for on so many rows.
GIVEN_AWAY = 0.95
# Values of such a column are looked at one by one.
FEW_VALUES = 10
MOST_ROWS_TO_LOOK_AT = 200_000


def giveaways(
    features: pd.DataFrame, target: np.ndarray, classes: tuple[str, ...], leaks: Mapping[str, tuple[int, float]]
) -> list[tuple[str, str]]:
    """Name features that may give the answer away, and say why.

    They are missing, present, or of one value for one class alone, as what is filled after the fact; or rank a class by
    themselves.
    """
    found = []
    shares = np.bincount(target) / len(target)
    for name in features.columns[features.isna().any()]:
        missing = features[name].isna().to_numpy()
        for rows, state in ((missing, "missing"), (~missing, "present")):
            counts = np.bincount(target[rows], minlength=len(classes))
            often = int(counts.argmax())
            alone = counts[often] >= PURE * counts.sum() and counts.sum() >= LEAST_ROWS_OF_A_CLASS
            if alone and shares[often] < 0.5:
                of = f"{counts[often]:,} of {counts.sum():,} rows are of class {classes[often]!r}"
                found.append((name, f"where it is {state}, {of}"))
    for name in features.columns:
        for common, counts in _common_values(features[name], target, len(classes)):
            often = int(counts.argmax())
            if counts[often] >= PURE * counts.sum() and shares[often] < 0.5:
                of = f"{counts[often]:,} of {counts.sum():,} rows are of class {classes[often]!r}"
                found.append((name, f"where it is {common}, {of}"))
                break  # one sentence a column
    for name, (index, value) in leaks.items():
        found.append((name, f"it ranks {classes[index]!r} by itself, with an average precision of {value:.3f}"))
    return found


def _common_values(column: pd.Series, target: np.ndarray, classes: int) -> list[tuple[str, np.ndarray]]:
    """Return the values of a column that has few, and the rows of each class with each of them, ``[classes]``."""
    codes, values = pd.factorize(column)
    if len(values) > FEW_VALUES:
        return []
    rows = np.bincount((codes * classes + target)[codes >= 0], minlength=len(values) * classes).reshape(-1, classes)
    often = rows.sum(axis=1) >= LEAST_ROWS_OF_A_CLASS
    return [(written(value), rows[place]) for place, value in enumerate(values) if often[place]]


def best_alone(features: pd.DataFrame, target: np.ndarray, classes: int) -> dict[str, tuple[int, float]]:
    """Find features that rank a class of less than half of the rows almost perfectly: that class and how well."""
    rare = np.flatnonzero(np.bincount(target, minlength=classes) < 0.5 * len(target))
    some = slice(None, None, -(-len(target) // MOST_ROWS_TO_LOOK_AT))
    found: dict[str, tuple[int, float]] = {}
    for name in features.columns if len(rare) else ():
        values = _alone(features[name].iloc[some], target[some], classes)[rare]
        value, index = max(zip(values.tolist(), rare.tolist(), strict=True))
        if value > GIVEN_AWAY:
            found[str(name)] = index, value
    return found


def by_column(leaks: Mapping[str, tuple[int, float]], home: Mapping[str, str]) -> dict[str, float]:
    """Return the average precision by the column that a feature comes from."""
    found: dict[str, float] = {}
    for name, (_, value) in leaks.items():
        found[home[name]] = max(value, found.get(home[name], 0.0))
    return found


def _alone(column: pd.Series, target: np.ndarray, classes: int) -> np.ndarray:
    """Compute the average precision of a column by itself, for each class, ``[classes]``.

    Numbers rank upwards or downwards, whichever is better; a category by the share of the class in it. A tie counts
    whole. A class without rows has 0.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _alone_by_category(column.cat.codes.to_numpy().astype(np.int64) + 1, target, classes)
    return _alone_by_number(column.to_numpy(), target, classes)


def _alone_by_category(codes: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    counts = np.bincount(codes * classes + target, minlength=(int(codes.max()) + 1) * classes).reshape(-1, classes)
    rows, positives = counts.sum(axis=1), counts.sum(axis=0)
    share = counts / np.maximum(rows, 1)[:, None]
    # A few rows of a category cannot say what the next one will be.
    share[rows < LEAST_ROWS_OF_A_CATEGORY] = positives / len(target)
    order = np.argsort(-share, axis=0)
    share, hits = np.take_along_axis(share, order, 0), np.take_along_axis(counts, order, 0)
    precision = hits.cumsum(axis=0) / np.maximum(rows[order].cumsum(axis=0), 1)
    # Of each category, the last one that is tied with it.
    last = np.full(share.shape, len(share) - 1)
    last[:-1] = np.where(share[1:] < share[:-1], np.arange(len(share) - 1)[:, None], len(share) - 1)
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
    found: np.ndarray = (hits * np.take_along_axis(precision, last, 0)).sum(axis=0) / np.maximum(positives, 1)
    return found


def _alone_by_number(values: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    # One sort serves all classes: each positive adds the precision at the end of its tie, and those who are tied with
    # another of their class are one run. Where a number is missing it says nothing, and such rows come last.
    positives = np.bincount(target, minlength=classes)
    present = np.flatnonzero(~np.isnan(values))
    order = present[np.argsort(values[present])]
    ranked, label = values[order], target[order].astype(np.int16)  # which is what numpy sorts in linear time
    first = _starts(ranked)
    tie = np.repeat(np.arange(len(first)), np.diff(first, append=len(order)))
    by_class = np.argsort(label, kind="stable")
    label, tie = label[by_class], tie[by_class]
    begin = _starts(label, tie)
    end = np.append(begin[1:], len(order))[: len(begin)]
    label, tie = label[begin], tie[begin]
    there = np.bincount(label, end - begin, minlength=classes)
    before = (there.cumsum() - there)[label]
    upwards = (there[label] - (begin - before)) / (len(order) - first[tie])
    downwards = (end - before) / np.append(first[1:], len(order))[tie]
    best = np.maximum(*(np.bincount(label, (end - begin) * each, minlength=classes) for each in (upwards, downwards)))
    found: np.ndarray = (best + (positives - there) * positives / len(target)) / np.maximum(positives, 1)
    return found


def _starts(*sorted_values: np.ndarray) -> np.ndarray:
    """Return where a run of equal values begins."""
    length = len(sorted_values[0])
    new = np.ones(length, dtype=bool)
    new[1:] = np.any([values[1:] != values[:-1] for values in sorted_values], axis=0)
    return np.flatnonzero(new)
