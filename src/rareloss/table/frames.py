"""pandas' data frames as Arrow tables."""

from typing import Any

import pandas as pd
import pyarrow as pa
from pandas.api import types

from rareloss.table.words import DataError, listed

__all__ = ["arrow_of", "series_of"]


def arrow_of(frame: pd.DataFrame) -> pa.Table:
    """Turn a data frame into an Arrow table, each level of an index that has a name into a column.

    Raises:
        DataError: a name is both a column's and the index's, comes twice, or a column holds complex numbers.
    """
    named = [name for name in frame.index.names if name is not None]
    if taken := [name for name in named if name in frame.columns]:
        raise DataError(f"{listed(taken)} names both a column and the index; drop the index (reset_index(drop=True))")
    frame = frame.reset_index(level=named) if named else frame
    names = [str(name) for name in frame.columns]
    arrays = [_array(names[place], frame.iloc[:, place]) for place in range(frame.shape[1])]
    return pa.Table.from_arrays(arrays, names)


def _array(name: str, column: pd.Series) -> Any:
    column = column.infer_objects()
    if types.is_complex_dtype(column):
        raise DataError(f"column {name!r} holds complex numbers; give their two parts as two columns")
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    elif isinstance(column.dtype, pd.SparseDtype):
        column = pd.Series(column.to_numpy(), column.index)
    elif types.is_object_dtype(column):
        # True and False with gaps are flags; whatever else differs within a column is text.
        if types.infer_dtype(column, skipna=True) == "boolean":
            return pa.array(column, pa.bool_(), from_pandas=True)
        return pa.array(column.map(written, na_action="ignore").astype("str"), from_pandas=True)
    elif isinstance(column.dtype, (pd.IntervalDtype,)) or (
        isinstance(column.dtype, pd.CategoricalDtype) and isinstance(column.cat.categories.dtype, pd.IntervalDtype)
    ):
        column = column.astype("object").map(str, na_action="ignore").astype("str")
    return pa.array(column, from_pandas=True)


def written(value: Any) -> str:
    """Write a value as a user would: 1.0 is read from a column of whole numbers with gaps, and is 1.

    Example:
        >>> written(1.0), written(True), written("a")
        ('1', 'True', 'a')
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def series_of(name: str, column: Any) -> pd.Series:
    """Turn a column of Arrow into pandas' own types; whole numbers keep their digits where some are missing."""
    kind = column.type
    if pa.types.is_string(kind):
        return pd.Series(pd.array(column, dtype="str"), name=name)
    if pa.types.is_boolean(kind) and column.null_count:
        return pd.Series(pd.array(column.to_pandas(), dtype="boolean"), name=name)
    if pa.types.is_integer(kind) and column.null_count:
        return pd.Series(column.to_pandas(types_mapper={kind: pd.Int64Dtype()}.get), name=name)
    return pd.Series(column.to_pandas(), name=name)
