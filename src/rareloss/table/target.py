"""The target as classes, and which of them is positive."""

import shlex
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from rareloss.table.frames import written
from rareloss.table.words import DataError, counted, listed, nearest

__all__ = ["LEAST_ROWS_OF_A_CLASS", "classes_of"]

# Train, validation and test must each hold a few rows of every class: 6, 2 and 2 at 60/20/20.
LEAST_ROWS_OF_A_CLASS = 10
MOST_CLASSES = 100
# A number with more distinct values than this, not all of them whole, is measured rather than named.
MOST_FRACTIONAL_CLASSES = 20
# Labels that people write where they do not know.
UNKNOWN = (
    "?",
    "-",
    "--",
    ".",
    "na",
    "n/a",
    "none",
    "null",
    "unknown",
    "pending",
    "missing",
    "undecided",
    "open",
    "tbd",
)


def classes_of(
    column: pd.Series, name: str, positive: str | None, weight: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Turn the target into class indices; two classes become negative (0) and positive (1).

    Args:
        column: a label in every row.
        name: what it is called.
        positive: the positive class, against all others; without it, the rarer one of two.
        weight: of the rows, by which the rarer one is found.

    Returns:
        the index of each row's class; what the classes are called; what to say of it.

    Raises:
        DataError: there are too few rows of a class, one class alone, or numbers that look like a quantity.
    """
    codes, found = pd.factorize(column, sort=False)
    values = [written(value) for value in found]
    if positive is None:
        _refuse_measurements(column, name, found)
    if len(values) == 1:
        raise DataError(
            f"target {name!r} holds one class alone ({values[0]!r} in all {len(column):,} rows); two or more are needed"
        )
    numeric = all(isinstance(value, (int, float, np.number)) for value in found)
    order = sorted(range(len(values)), key=lambda index: found[index] if numeric else values[index])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    target, classes = rank[codes], tuple(values[index] for index in order)
    counts = np.bincount(target, minlength=len(classes))
    notes = _odd_labels(classes, counts, name)
    if positive is not None or len(classes) == 2:
        if positive is None:
            # The last of two equally frequent classes: 1 of 0 and 1.
            weights = np.bincount(target, weight, minlength=2)
            index = 1 if weights[1] <= weights[0] else 0
            notes.append(f"the positive class is {classes[index]!r}, the rarer value of {name!r}")
        else:
            index = _positive(positive, classes, name)
            if len(classes) > 2:
                notes.append(f"{_counts(classes, counts)}: all but {classes[index]!r} are negative")
        other = classes[1 - index] if len(classes) == 2 else f"not {classes[index]}"
        target, classes = (target == index).astype(np.int64), (other, classes[index])
        counts = np.bincount(target, minlength=2)
        share = float(np.average(target, weights=weight))
        if share > 0.5:
            notes.append(f"the positive class {classes[1]!r} holds {share:.1%} of the rows: it is not the rare one")
    for label, count in zip(classes, counts, strict=True):
        if count < LEAST_ROWS_OF_A_CLASS:
            what = counted(int(count), "positive") if classes[1:] == (label,) else counted(int(count), "row")
            mend = "" if len(classes) == 2 else ", merge the class with another, or drop its rows"
            raise DataError(
                f"target {name!r} has {what} of class {label!r}; at least {LEAST_ROWS_OF_A_CLASS} are needed, so that "
                f"train, validation and test each hold some: gather more{mend}"
            )
    return target, classes, notes


def _counts(classes: tuple[str, ...], counts: np.ndarray, most: int = 8) -> str:
    by_size = np.argsort(-counts, kind="stable")
    said = ", ".join(f"{classes[index]!r} {counts[index]:,}" for index in by_size[:most])
    return said + (f" and {len(classes) - most} more" if len(classes) > most else "")


def _odd_labels(classes: tuple[str, ...], counts: np.ndarray, name: str) -> list[str]:
    """Say which labels may mean that there is none, and which are spelt in two ways."""
    notes = []
    for label, count in zip(classes, counts, strict=True):
        if len(classes) > 2 and label.casefold() in UNKNOWN:
            notes.append(
                f"label {label!r} of {counted(int(count), 'row')} may mean that {name!r} is not known; if so, say it "
                f"(--missing {shlex.quote(label)})"
            )
    spelt: dict[str, list[str]] = {}
    for label in classes:
        spelt.setdefault(label.casefold(), []).append(label)
    return notes + [
        f"labels {listed(same)} differ in case alone, and count as different"
        for same in spelt.values()
        if len(same) > 1
    ]


def _refuse_measurements(column: pd.Series, name: str, found: Iterable[Any]) -> None:
    distinct = list(found)
    measured = types.is_numeric_dtype(column) and not types.is_bool_dtype(column)
    fractional = measured and any(float(value) != np.floor(float(value)) for value in distinct)
    if len(distinct) > (MOST_FRACTIONAL_CLASSES if fractional else MOST_CLASSES):
        what = "numbers, which looks like a quantity" if measured else "values, which looks like a name or free text"
        raise DataError(
            f"target {name!r} holds {len(distinct):,} distinct {what}; classes were expected: name one value as "
            "positive, or cut it into classes first"
        )


def _positive(positive: str, classes: tuple[str, ...], name: str) -> int:
    wanted = written(positive)
    for same in (str.__eq__, lambda a, b: a.casefold() == b.casefold(), _same_number):
        matches = [index for index, label in enumerate(classes) if same(label, wanted)]
        if len(matches) == 1:
            return matches[0]
    raise DataError(f"target {name!r} has no value {wanted!r}; {nearest(wanted, classes)}")


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False
