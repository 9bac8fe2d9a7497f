"""Score a file of any size, a batch at a time, and write what was found whole or not at all."""

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from rareloss.table import (
    NOT_A_NUMBER,
    TEXT_AS_IT_IS,
    DataError,
    columns_named,
    separator,
    source_frame,
    whole_file,
    writable,
)
from rareloss.tabular.model.model import Model

__all__ = ["Scored", "kept_name", "score_file"]

ROWS_AT_ONCE = 65_536
# Bytes of a column that are read at once, where a parquet file has one large row group.
BUFFER = 1 << 20
WRITTEN = (("score", pa.float32()), ("probability", pa.float64()), ("decision", pa.bool_()))


class Scored(NamedTuple):
    """What was scored.

    Args:
        rows: how many.
        alerts: how many of them are above the threshold.
        kept: columns of the data that stand beside the scores.
        unseen: of categories, in how many rows there is a value that the model was not fitted on and knows nothing of.
    """

    rows: int
    alerts: int
    kept: tuple[str, ...]
    unseen: dict[str, int]


def score_file(
    model: Model | str | Path,
    data: str | Path | pd.DataFrame,
    out: str | Path,
    *,
    keep: Sequence[str] = (),
    rows_at_once: int = ROWS_AT_ONCE,
) -> Scored:
    """Score the rows of a file in order, in the memory of one batch, and write ``score, probability, decision``.

    Args:
        model: a model, or its folder.
        data: csv or parquet, which are read in batches; also what else a model is fitted on, which is read whole.
        out: another parquet or csv file, which is replaced where it exists.
        keep: columns of the data to copy before the scores, such as an id, called as :func:`kept_name` says; see
            :func:`rareloss.table.source.columns_named`.
        rows_at_once: of a batch.

    Raises:
        DataError: columns are missing, unknown or of another type; a file cannot be read or written. ``out`` is as it
            was.
    """
    model = model if isinstance(model, Model) else Model.load(model)
    out, names = writable(out, data), [name for name, _ in WRITTEN]
    copied: tuple[str, ...] = ()
    if rows_at_once < 1:
        raise DataError(f"rows_at_once must be at least 1, got {rows_at_once}")
    rows = alerts = 0
    unseen: Counter[str] = Counter()
    with whole_file(out) as file, contextlib.ExitStack() as stack:
        writer = None
        # Closed also where a batch is refused, and with it the file that it reads.
        batches = stack.enter_context(contextlib.closing(_batches(data, model, keep, rows_at_once)))
        for batch, kept in batches:
            try:
                inputs = model.inputs.transform(model.features(batch))
            except DataError as error:
                raise DataError(f"rows {rows + 1:,} to {rows + len(batch):,}: {error}") from error
            found = model.score_inputs(inputs)
            unseen.update(model.inputs.unseen(inputs))
            columns = [pa.array(found[name], kind) for name, kind in WRITTEN]
            copied = tuple(map(kept_name, kept.column_names))
            nested = [field.name for field in kept.schema if pa.types.is_nested(field.type)]
            if nested and out.suffix.lower() == ".csv":
                raise DataError(f"{', '.join(map(repr, nested))} cannot be kept in a csv; write a parquet file")
            table = pa.Table.from_arrays([*kept.columns, *columns], [*copied, *names])
            if writer is None:
                make = pa.csv.CSVWriter if out.suffix.lower() == ".csv" else pq.ParquetWriter
                writer = stack.enter_context(make(file, table.schema))
            writer.write_table(table)
            rows += len(batch)
            alerts += int(found["decision"].sum())
    return Scored(rows, alerts, copied, dict(unseen))


def _batches(
    data: str | Path | pd.DataFrame, model: Model, keep: Sequence[str], size: int
) -> Generator[tuple[pd.DataFrame, pa.Table]]:
    """Yield rows with the columns of the model, and the columns to keep."""
    endings = [] if isinstance(data, pd.DataFrame) else [ending.lower() for ending in Path(data).suffixes]
    if not isinstance(data, pd.DataFrame) and Path(data).is_file():
        try:
            if endings[-1:] in ([".parquet"], [".pq"]):
                yield from _parquet(Path(data), model, keep, size)
                return
            if {".csv", ".tsv", ".txt"} & set(endings):
                yield from _csv(Path(data), model, keep, size)
                return
        except DataError:
            raise
        except (OSError, ValueError, pa.ArrowException, EOFError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(f"{data} cannot be read: {reason}") from error
    frame = source_frame(data)
    kept = pa.Table.from_pandas(frame[_kept(list(frame.columns), model, keep)], preserve_index=False)
    for start in range(0, max(len(frame), 1), size):
        yield frame[_needed(model)].iloc[start : start + size], kept.slice(start, size)


def kept_name(name: str) -> str:
    """Return what a kept column is called beside the scores: ``score_kept`` where it is called as one of them."""
    return f"{name}_kept" if name in [written for written, _ in WRITTEN] else name


def _needed(model: Model) -> list[str]:
    return [column.name for column in model.columns]


def _kept(names: Sequence[str], model: Model, keep: Sequence[str]) -> list[str]:
    """Return the columns to copy, where they and those of the model are there."""
    kept = columns_named(keep, names)
    if len(set(map(kept_name, kept))) < len(kept):
        raise DataError(f"columns to keep must differ from each other, got {', '.join(kept)}")
    model.check_names(names, kept)
    lacking = [name for name in kept if name not in names]
    if lacking:
        raise DataError(f"there is no column {', '.join(map(repr, lacking))} to keep")
    return kept


def _parquet(path: Path, model: Model, keep: Sequence[str], size: int) -> Generator[tuple[pd.DataFrame, pa.Table]]:
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        schema = file.schema_arrow
        # An index without a name only numbers the rows.
        names = [name for name in schema.names if not re.fullmatch(r"__index_level_\d+__", name)]
        keep = _kept(names, model, keep)
        needed = _needed(model)
        empty = schema.empty_table()
        model.features(empty.select(needed).to_pandas())  # types are refused before any row is scored
        columns = list(dict.fromkeys([*needed, *keep]))
        for batch in file.iter_batches(size, columns=columns):
            table = pa.Table.from_batches([batch])
            yield table.select(needed).to_pandas(), table.select(keep)
        if not file.metadata.num_rows:
            yield empty.select(needed).to_pandas(), empty.select(keep)


def _csv(path: Path, model: Model, keep: Sequence[str], size: int) -> Generator[tuple[pd.DataFrame, pa.Table]]:
    mark, names = separator(path)
    keep = _kept(names, model, keep)
    needed = _needed(model)
    numbers = [column.name for column in model.columns if column.reads in ("number", "text", "loose")]
    with warnings.catch_warnings():
        # A row with more fields than the header would shift its values into other columns.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        with pd.read_csv(path, sep=mark, dtype=str, index_col=False, chunksize=size, **TEXT_AS_IT_IS) as reader:
            for frame in reader:
                kept = [pa.array(frame[name], pa.string(), from_pandas=True) for name in keep]
                frame = frame[needed].mask(frame[needed].isin(NOT_A_NUMBER))
                if mark == ";":  # which often stands where the comma is the decimal mark
                    for name in numbers:
                        frame[name] = frame[name].str.replace(",", ".", regex=False)
                yield frame, pa.Table.from_arrays(kept, keep)
