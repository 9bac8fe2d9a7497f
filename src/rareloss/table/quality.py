"""What looks odd in columns and is left as it is: ids, numbers that stand for "missing", columns that are equal."""

import re

import numpy as np
import pandas as pd
from pandas.api import types

from rareloss.table.words import listed

__all__ = ["remarks"]

ID_NAME = re.compile(r"(^|[_ .])(id|key|uuid|guid|nr|no|number|account|iban|phone)$|[a-z](Id|ID|Key|Number|No|Nr)$")
MOSTLY_DISTINCT = 0.95
# A few values at one end that so many rows share, farther from the others than those are from each other.
MOST_SENTINELS = 3
LEAST_ROWS_OF_A_SENTINEL = 10
LEAST_DISTINCT = 5


def remarks(frame: pd.DataFrame, features: pd.DataFrame) -> list[str]:
    """Say what looks odd, one sentence each.

    Args:
        frame: columns as they were found.
        features: what became of them.
    """
    notes = []
    ids = [name for name in features.columns if name in frame.columns and _is_id(frame[name])]
    if ids:
        notes.append(f"check {listed(ids)}: a different whole number in nearly each row, such as an id; --without?")
    for name in features.select_dtypes("number").columns:
        if found := _sentinels(features[name]):
            values = ", ".join(f"{value:g}" for value in found)
            rows = int(features[name].isin(found).sum())
            notes.append(
                f"check {name!r}: {values} in {rows:,} rows stands far from all other values; if it means missing, say "
                f"so (--missing {found[0]:g})"
            )
    return notes + [f"{listed(names)} hold the same values" for names in _equal(features)]


def _is_id(column: pd.Series) -> bool:
    if not types.is_integer_dtype(column) or column.nunique() < MOSTLY_DISTINCT * column.count():
        return False
    return bool(ID_NAME.search(str(column.name))) or column.count() == column.nunique() >= 1000


def _sentinels(column: pd.Series) -> list[float]:
    values, counts = np.unique(column.dropna().to_numpy(), return_counts=True)
    if len(values) < LEAST_DISTINCT + MOST_SENTINELS:
        return []
    for sign in (1, -1):
        for many in range(1, MOST_SENTINELS + 1):
            ends, rest = (values[-many:], values[:-many]) if sign > 0 else (values[:many], values[many:])
            rows = counts[-many:] if sign > 0 else counts[:many]
            gap = ends[0] - rest[-1] if sign > 0 else rest[0] - ends[-1]
            if gap > rest[-1] - rest[0] and rows.max() >= LEAST_ROWS_OF_A_SENTINEL:
                return [float(value) for value in ends[np.argsort(-rows)]]
    return []


def _equal(features: pd.DataFrame) -> list[list[str]]:
    alike: dict[bytes, list[str]] = {}
    for name in features.columns:
        column = features[name]
        hashed = pd.util.hash_pandas_object(column, index=False).to_numpy().tobytes()
        alike.setdefault(hashed, []).append(str(name))
    return [names for names in alike.values() if len(names) > 1]
