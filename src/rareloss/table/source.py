"""Any table as it is found, a batch at a time: csv, parquet, npz and Excel files, and data frames, all by Arrow."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rareloss.table.numbers import decimal_mark, trimmed, without_marks
from rareloss.table.text_file import ENDINGS, PACKED, TextFile, refuse_duplicates
from rareloss.table.words import DataError, listed

__all__ = ["Data", "Source", "decimal_marks", "open_source", "plain"]

Data = Any  # a path, a pandas, polars or Arrow data frame, or the name of built-in data
PARQUET = (".parquet", ".pq")
# Bytes of a column that are read at once, where a parquet file has one large row group.
BUFFER = 1 << 20
ROWS_AT_ONCE = 65_536
KNOWN = "csv, parquet, npz and xlsx files"


@dataclass(frozen=True)
class Source:
    """A table that can be read again and again, some columns and some rows at a time.

    Args:
        name: of the data.
        names: of its columns.
        read: yields batches of some columns, so many rows each.
        text: whether all values are text, as in a csv, so that numbers are to be found among them.
        quoted: columns of a csv that are text although they may hold digits.
        notes: what was guessed, one sentence each.
        target, group: columns that the data know by themselves.
        separator: of a csv.
        headless: whether all names of a csv are numbers.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[Sequence[str], int], Generator[pa.Table]]
    text: bool = False
    quoted: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    target: str | None = None
    group: str | None = None
    separator: str = ","
    headless: bool = False

    def batches(self, columns: Sequence[str] | None = None, rows: int = ROWS_AT_ONCE) -> Generator[pa.Table]:
        """Yield tables of some columns, as they are found; see :func:`plain`.

        Raises:
            DataError: the file is broken.
        """
        try:
            yield from self.read(self.names if columns is None else list(columns), rows)
        except DataError:
            raise
        except Exception as error:  # pyarrow, numpy, zipfile and zlib have no common kind of error for a broken file
            raise DataError(_unreadable(self.name, error)) from error

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return columns whole, as they are found."""
        names = list(self.names if columns is None else columns)
        batches = list(self.batches(names, 1 << 20))
        if not batches:
            return pa.table({name: pa.array([], pa.string()) for name in names})
        return pa.concat_tables(batches).combine_chunks()


def decimal_marks(table: pa.Table) -> tuple[dict[str, str], str]:
    """Find the decimal marks of numbers in text.

    Returns:
        by the name of the column, where it shows one: a comma counts where it is no mark between thousands; and the one
        that more of these columns have, a point where none has.
    """
    own = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_string(column.type):
            continue
        text = without_marks(trimmed(column.combine_chunks()))
        if pc.any(pc.match_substring_regex(text, r"\d,\d|\d\.\d")).as_py() and (mark := decimal_mark(text)):
            own[name] = mark
    marks = list(own.values())
    return own, "," if marks.count(",") > marks.count(".") else "."


def open_source(data: Data, *, header: bool = True, keys: Sequence[str | None] = ()) -> Source:
    """Open a file or a data frame.

    Args:
        data: the path of a csv (between commas, semicolons, tabs or bars; UTF-8, UTF-16 or Latin-1; also .gz, .bz2,
            .xz, .zst, .zip), parquet, npz (``X``, ``y``) or xlsx file; or a data frame of pandas, polars or Arrow.
        header: whether the first row of a csv holds the names; else they are ``x0, x1, ...``.
        keys: further arrays of an npz file to read as columns.

    Raises:
        DataError: there is no such file, it cannot be read, or names come twice.
    """
    if not isinstance(data, (str, Path)):
        return _frame(data)
    path = Path(data)
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the path of a file: {KNOWN} are read")
    if not path.is_file():
        raise DataError(f"there is no file {path}; {KNOWN} are read")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; a table with a header and one row per case was expected")
    kinds = [suffix.lower() for suffix in path.suffixes]
    ending = kinds[-1] if kinds else ""
    try:
        if ending in PARQUET:
            return _parquet(path)
        if ending == ".npz":
            return _npz(path, [key for key in keys if key is not None])
        if ending in (".xlsx", ".xls"):
            return _excel(path, header)
        if ending in ENDINGS or (ending in PACKED and set(kinds) & set(ENDINGS)):
            return _csv(path, header)
    except DataError:
        raise
    except Exception as error:  # pyarrow, numpy, zipfile and zlib have no common kind of error for a broken file
        raise DataError(_unreadable(str(path), error)) from error
    raise DataError(f"{path} has an unknown ending; {KNOWN} are read")


def _unreadable(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{name} cannot be read: {reason}; a whole file was expected ({KNOWN} are read)"


def _csv(path: Path, header: bool) -> Source:
    file = TextFile.of(path, header=header)
    return Source(
        path.name.split(".")[0],
        file.names,
        file.batches,
        text=True,
        quoted=file.quoted,
        notes=file.notes,
        separator=file.separator,
        headless=file.headless,
    )


def _parquet(path: Path) -> Source:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    refuse_duplicates(schema.names)
    # An index without a name only numbers the rows.
    names = [name for name in schema.names if not _numbers_rows(name)]
    stripped = _stripped(names)

    def read(columns: Sequence[str], rows: int) -> Generator[pa.Table]:
        wanted = [stripped[name] for name in columns]
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            for batch in file.iter_batches(rows, columns=wanted):
                table = pa.Table.from_batches([batch])
                yield table.select(wanted).rename_columns(list(columns))
            if not file.metadata.num_rows:
                yield schema.empty_table().select(wanted).rename_columns(list(columns))

    return Source(path.name.split(".")[0], tuple(stripped), read)


def _numbers_rows(name: str) -> bool:
    return name.startswith("__index_level_") and name.endswith("__")


def _stripped(names: Sequence[str]) -> dict[str, str]:
    """Map names without blanks around them to the names."""
    found = [str(name).strip() for name in names]
    refuse_duplicates(found)
    return dict(zip(found, names, strict=True))


def _npz(path: Path, keys: Sequence[str]) -> Source:
    arrays = np.load(path, allow_pickle=False)
    if isinstance(arrays, np.ndarray):
        raise DataError(f"{path} holds one array without a name; save it with numpy.savez(path, X=X, y=y)")
    with arrays:
        missing = {"X", "y"} - set(arrays.files)
        if missing:
            raise DataError(
                f"{path} has no array {' and '.join(sorted(missing))}, but {listed(arrays.files)}; "
                "save it with numpy.savez(path, X=X, y=y), X of shape [rows, features] and y of shape [rows]"
            )
        x, y = arrays["X"], arrays["y"]
        extra = {key: arrays[key] for key in keys if key in arrays.files and key not in ("X", "y")}
    if x.ndim != 2:
        raise DataError(f"X in {path} must have shape [rows, features], got {list(x.shape)}")
    for key, values in {"y": y, **extra}.items():
        if values.shape != x.shape[:1]:
            raise DataError(
                f"{key} in {path} must have shape [{x.shape[0]}], one value per row of X, got {list(values.shape)}"
            )
    if x.shape[1] == 0:
        raise DataError(f"X in {path} has no columns; shape [rows, features] was expected")
    columns = {f"x{place}": np.ascontiguousarray(x[:, place]) for place in range(x.shape[1])}
    return _whole(path.name.split(".")[0], pa.table({**columns, "y": y, **extra}), target="y")


def _excel(path: Path, header: bool) -> Source:
    try:
        import pandas as pd

        import_module("openpyxl")  # which pandas reads it with
    except ModuleNotFoundError as error:
        raise DataError(f'{path} needs the package {error.name}: pip install "rareloss[excel]"') from error
    frame = pd.read_excel(path, header=0 if header else None, keep_default_na=False, na_values=[""])
    if not header:
        frame.columns = [f"x{place}" for place in range(frame.shape[1])]
    source = _frame(frame)
    return _whole(path.name.split(".")[0], source.table())


def _frame(data: Any) -> Source:
    """Take a data frame: pandas' as it is used, any other by Arrow's interface or the dataframe interchange."""
    if isinstance(data, pa.Table):
        return _whole("frame", data)
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "columns"):
        from rareloss.table.frames import arrow_of

        return _whole("frame", arrow_of(data))
    if hasattr(data, "columns") and hasattr(data, "__arrow_c_stream__"):
        return _whole("frame", pa.table(data))
    if hasattr(data, "columns") and hasattr(data, "__dataframe__"):
        return _whole("frame", pa.interchange.from_dataframe(data))
    raise DataError(
        f"data must be a data frame (pandas, polars, Arrow), a path, 'flights' or 'digits', got {type(data).__name__}"
    )


def _whole(name: str, table: pa.Table, **known: Any) -> Source:
    refuse_duplicates(table.column_names)
    stripped = _stripped(table.column_names)
    table = table.rename_columns(list(stripped))

    def read(columns: Sequence[str], rows: int) -> Generator[pa.Table]:
        part = table.select(list(columns))
        for start in range(0, max(len(part), 1), rows):
            yield part.slice(start, rows)

    return Source(name, tuple(stripped), read, **known)


def plain(table: pa.Table) -> pa.Table:
    """Turn what columns may be into few types: whole numbers, float, bool, string, timestamp, duration.

    Dictionaries are looked up, decimals are float64 or, without decimal places, whole; lists and objects are text.
    """
    for place, kind in enumerate(table.schema.types):
        column = table.column(place)
        if (made := _column(column, kind)) is not column:
            table = table.set_column(place, table.schema.names[place], made)
    return table


def _column(column: Any, kind: pa.DataType) -> Any:
    if pa.types.is_dictionary(kind):
        return _column(pc.cast(column, kind.value_type), kind.value_type)
    if pa.types.is_decimal(kind):
        if kind.scale > 0:  # by way of text, which is rounded to the nearest float64
            return pc.cast(pc.cast(column, pa.string()), pa.float64())
        return pc.cast(column, pa.int64() if kind.precision < 19 else pa.string())
    if pa.types.is_float16(kind):
        return pc.cast(column, pa.float32())
    if pa.types.is_date(kind):
        return pc.cast(column, pa.timestamp("s"))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pc.cast(column, pa.string())
    if pa.types.is_time(kind):
        return pc.cast(column, pa.string())
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or isinstance(kind, pa.BaseExtensionType):
        values = column.to_pylist()
        return pa.chunked_array([pa.array([None if value is None else str(value) for value in values], pa.string())])
    return column
