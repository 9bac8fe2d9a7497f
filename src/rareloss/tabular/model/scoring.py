"""Score a file of any size, a batch at a time, and write what was found whole or not at all."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from rareloss.table import Data, DataError, TableSpec, columns_named, source_of, whole_file, writable
from rareloss.tabular.model.model import Model
from rareloss.tabular.model.profile import Watch

__all__ = ["Scored", "kept_name", "score_file"]

ROWS_AT_ONCE = 65_536
INPUTS_AT_ONCE = 1 << 26  # so that a batch of a wide model takes half a gigabyte, not ten
WRITTEN = (("score", pa.float32()), ("probability", pa.float64()), ("decision", pa.bool_()))


class Scored(NamedTuple):
    """What was scored.

    Args:
        rows: how many.
        alerts: how many of them are above the threshold.
        kept: columns of the data that stand beside the scores.
        unseen: of categories, in how many rows there is a value that the model was not fitted on and knows nothing of.
        remarks: how the rows differ from those of the fit, one sentence each.
    """

    rows: int
    alerts: int
    kept: tuple[str, ...]
    unseen: dict[str, int]
    remarks: tuple[str, ...]


def score_file(
    model: Model | str | Path,
    data: Data,
    out: str | Path,
    *,
    keep: Sequence[str] = (),
    header: bool = True,
    reasons: int = 0,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Scored:
    """Score the rows of a file in order, in the memory of one batch, and write ``score, probability, decision``.

    Args:
        model: a model, or its folder.
        data: what a model is fitted on; csv and parquet files are read in batches.
        out: another parquet or csv file, which is replaced where it exists.
        keep: columns of the data to copy before the scores, such as an id, called as :func:`kept_name` says; see
            :func:`rareloss.table.columns_named`.
        header: whether the first row of a csv holds the names.
        reasons: how many features to name by row, those that add to or take from its score most, as ``reason_1``, ...
        rows_at_once: of a batch.

    Raises:
        DataError: columns are missing, unknown or of another type; a file cannot be read or written. ``out`` is as it
            was.
    """
    model = model if isinstance(model, Model) else Model.load(model)
    out, names = writable(out, data), [*(name for name, _ in WRITTEN), *(f"reason_{1 + i}" for i in range(reasons))]
    if reasons:
        model.reasons(np.zeros((0, model.inputs.width)), reasons)  # refused before any row is scored
    if not 0 <= reasons <= len(model.inputs.features):
        raise DataError(f"reasons must be 0 to {len(model.inputs.features)}, one a feature at most, got {reasons}")
    if rows_at_once < 1:
        raise DataError(f"rows_at_once must be at least 1, got {rows_at_once}")
    source = source_of(data, TableSpec(header=header))
    copied = _kept(source.names, model, keep)
    schema = model.schema.of_source(source)
    columns = list(dict.fromkeys([*schema.names, *copied]))
    rows_at_once = max(1, min(rows_at_once, INPUTS_AT_ONCE // max(1, model.inputs.width)))
    kinds = next(source.batches(columns, 1), None)
    if kinds is not None:
        schema.features(kinds.slice(0, 0))  # types are refused before any row is scored
    unseen: Counter[str] = Counter()
    watch = Watch(model.profile, model.threshold)
    with whole_file(out) as file, contextlib.ExitStack() as stack:
        writer = None
        # Closed also where a batch is refused, and with it the file that it reads.
        batches = stack.enter_context(contextlib.closing(source.batches(columns, rows_at_once)))
        for batch in batches:
            try:
                features = schema.features(batch)
            except DataError as error:
                raise DataError(f"rows {watch.rows + 1:,} to {watch.rows + len(batch):,}: {error}") from error
            inputs = model.inputs.transform(features)
            found = model.score_inputs(inputs)
            watch.add(features, int(found["decision"].sum()), model.inputs.unlisted(features))
            unseen.update(model.inputs.unseen(features))
            kept = batch.select(copied)
            scores = [pa.array(found[name], kind) for name, kind in WRITTEN]
            scores += [pa.array(each, pa.string()) for each in model.reasons(inputs, reasons)] if reasons else []
            table = pa.Table.from_arrays([*kept.columns, *scores], [*map(kept_name, copied), *names])
            nested = [field.name for field in kept.schema if pa.types.is_nested(field.type)]
            if nested and out.suffix.lower() == ".csv":
                raise DataError(f"{', '.join(map(repr, nested))} cannot be kept in a csv; write a parquet file")
            if writer is None:
                make = pa.csv.CSVWriter if out.suffix.lower() == ".csv" else pq.ParquetWriter
                writer = stack.enter_context(make(file, table.schema))
            writer.write_table(table)
    kept_as = tuple(map(kept_name, copied))
    return Scored(watch.rows, watch.alerts, kept_as, dict(unseen), tuple(watch.remarks()))


def kept_name(name: str) -> str:
    """Return what a kept column is called beside the scores: ``score_kept`` where it is called as one of them."""
    return f"{name}_kept" if name in [written for written, _ in WRITTEN] else name


def _kept(names: Sequence[str], model: Model, keep: Sequence[str]) -> list[str]:
    """Return the columns to copy, where they and those of the model are there."""
    kept = columns_named(keep, names)
    if len(set(map(kept_name, kept))) < len(kept):
        raise DataError(f"columns to keep must differ from each other, got {', '.join(kept)}")
    model.schema.check_names(names, kept)
    lacking = [name for name in kept if name not in names]
    if lacking:
        raise DataError(f"there is no column {', '.join(map(repr, lacking))} to keep")
    return kept
