"""Split a table into train, validation and test rows without leaks."""

from typing import NamedTuple

import numpy as np

from rareloss.table.table import Table
from rareloss.table.words import DataError

__all__ = ["Fold", "split", "windows"]

OUTSIDE, TRAIN, VALIDATION, TEST = -1, 0, 1, 2
# 60/20/20: of every five groups that are alike, three train.
PARTS = np.array([TRAIN, TRAIN, TRAIN, VALIDATION, TEST])
# A split by time looks at this share of the timeline, so that seeds can differ in where it begins.
WINDOW = 0.8
LEAST_ROWS_OF_A_CLASS = 2


class Fold(NamedTuple):
    """Hold the rows of each part, as sorted indices into the table."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(table: Table, seed: int) -> Fold:
    """Split 60/20/20; the same seed gives the same fold.

    Rows, or whole groups, are dealt class by class: those that are alike (the same rarest class, as many rows of it,
    the same size) are taken five at a time, and chance sends three to train, one to validation and one to test. So
    every part holds its share of each class, and each row is tested by one seed in five.

    A split by time takes a window of four fifths of the rows in order of time, which begins where the seed says, and
    cuts it 60/20/20: train is before validation, and validation before test. Rows of one moment stay together. Where
    the table has groups too, rows of an earlier part whose group comes back in a later one are dropped.

    Args:
        table: What to split.
        seed: Chooses the fold.

    Returns:
        The row indices of train, validation and test.

    Raises:
        DataError: A part would hold fewer than two rows of a class.

    Example:
        >>> from rareloss.table import load
        >>> [len(rows) for rows in split(load("digits"), seed=0)]
        [1078, 358, 361]
    """
    rng = np.random.default_rng(seed)
    if table.time is not None:
        part = _by_time(table.time, rng)
        if table.group is not None:
            part = _without_later_groups(part, table.group)
    else:
        group = np.arange(len(table.target)) if table.group is None else table.group
        part = _by_group(table.target, group, rng)
    fold = Fold(*(np.flatnonzero(part == number) for number in (TRAIN, VALIDATION, TEST)))
    for name, rows in fold._asdict().items():
        counts = np.bincount(table.target[rows], minlength=len(table.classes))
        if counts.min() < LEAST_ROWS_OF_A_CLASS:
            rarest = table.classes[int(counts.argmin())]
            raise DataError(
                f"split by {table.split_by}, the {name} part holds {counts.min()} of class {rarest!r} among "
                f"{len(rows):,} rows; at least {LEAST_ROWS_OF_A_CLASS} are needed: gather more rows of it, or split by "
                "something finer"
            )
    return fold


def windows(table: Table, fold: Fold) -> str:
    """Say from when to when each part of a split by time reaches.

    Example:
        >>> import pandas as pd
        >>> from rareloss.table import load
        >>> days = pd.date_range("2024-01-01", periods=200).astype(str)
        >>> frame = pd.DataFrame({"day": days, "x": range(200), "y": [0, 1] * 100})
        >>> table = load(frame, target="y", time="day")
        >>> windows(table, split(table, 0))
        'train 2024-01-26 to 2024-04-30, validation 2024-05-01 to 2024-06-01, test 2024-06-02 to 2024-07-03'
    """
    assert table.time is not None
    said = []
    for name, rows in fold._asdict().items():
        ends = table.time[rows].min(), table.time[rows].max()
        dates = table.time.dtype == np.int64  # of microseconds
        first, last = (str(np.datetime64(int(end), "us")) if dates else f"{end:g}" for end in ends)
        if dates and first.endswith("T00:00:00.000000") and last.endswith("T00:00:00.000000"):
            first, last = first[:10], last[:10]
        said.append(f"{name} {first[:19].replace('T', ' ')} to {last[:19].replace('T', ' ')}")
    return ", ".join(said)


def _by_group(target: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    groups = int(group.max()) + 1
    size = np.bincount(group, minlength=groups)
    # Classes by how rare they are, the rarest first, since a group counts for the rarest class that it holds.
    rarity = np.argsort(np.argsort(np.bincount(target), kind="stable"), kind="stable")[target]
    rarest = np.full(groups, rarity.max())
    np.minimum.at(rarest, group, rarity)
    rows_of_rarest = np.bincount(group, weights=rarity == rarest[group], minlength=groups)
    part_of_group = np.empty(groups, dtype=np.int64)
    for stratum in np.unique(rarest):
        members = rng.permutation(np.flatnonzero(rarest == stratum))
        alike = members[np.lexsort((-size[members], -rows_of_rarest[members]))]
        deals = np.tile(PARTS, (-(-len(alike) // len(PARTS)), 1))
        part_of_group[alike] = rng.permuted(deals, axis=1).ravel()[: len(alike)]
    part: np.ndarray = part_of_group[group]
    return part


def _by_time(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, moment, rows = np.unique(time, return_inverse=True, return_counts=True)
    # Rows that come before each moment: the only places where a cut keeps the rows of one moment together.
    before = np.concatenate([[0], np.cumsum(rows)])
    edges = (rng.uniform(0, 1 - WINDOW) + WINDOW * np.array([0.0, 0.6, 0.8, 1.0])) * len(time)
    cuts = before[np.abs(before[:, None] - edges).argmin(axis=0)]
    part = np.searchsorted(cuts, before[moment], side="right") - 1
    return np.where(part > TEST, OUTSIDE, part)


def _without_later_groups(part: np.ndarray, group: np.ndarray) -> np.ndarray:
    last = np.full(int(group.max()) + 1, OUTSIDE)
    np.maximum.at(last, group, part)
    return np.where(part == last[group], part, OUTSIDE)
