"""Read a table of data and say in words what was done to it."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
import pandas as pd
from pandas.api import types

from rareloss.table.builtin import digits, flights
from rareloss.table.dates import as_dates, date_format
from rareloss.table.leakage import best_alone, by_column, giveaways
from rareloss.table.quality import remarks
from rareloss.table.schema import NAMELESS, Column, decide, values_of
from rareloss.table.source import Data, Source, decimal_marks, open_source, plain
from rareloss.table.spec import TableOptions, TableSpec
from rareloss.table.target import LEAST_ROWS_OF_A_CLASS, classes_of
from rareloss.table.words import DataError, counted, listed

__all__ = ["Table", "as_found", "is_date", "load", "source_of"]

# Rows that look alike are copies of one thing, unless so many do that they merely share a common value.
MOST_COPIES = 0.01


@dataclass(frozen=True, eq=False)
class Table:
    """Hold the features, the target and how rows belong together.

    Attributes:
        name: Short name of the data.
        frame: Features alone, ``[n, d]``: numbers are float64 (missing is NaN, none is infinite), all else is a pandas
            category.
        target: Class of each row, int64 ``[n]``; with two classes, 1 is the positive one.
        classes: What the classes are called, in the order of their index.
        group: Integer code of each row's group, ``[n]``; rows of one group never straddle two folds. ``None``: every
            row stands alone.
        time: Sortable number of each row's time, ``[n]``, or ``None``.
        notes: What was sampled, dropped or filled, one sentence each.
        sha256: Hash of features, target and weights.
        split_by: How rows are split, in words.
        weight: Weight of each row, float64 ``[n]``, above 0; ``None``: every row counts once.
        spec: What was said of the columns, with their names as the data have them.
        columns: Where the features come from.
        unused: Columns of the file that became no feature.
        leaks: Columns that rank a rare class almost perfectly by themselves, and the average precision.
        kept: Places of the rows in the data as they were found, int64 ``[n]``.
        split_sha256: Hash of the values by which rows are split, ``group`` and ``time``; ``None`` where none was named.
    """

    name: str
    frame: pd.DataFrame
    target: np.ndarray
    classes: tuple[str, ...]
    group: np.ndarray | None
    time: np.ndarray | None
    notes: tuple[str, ...]
    sha256: str
    split_by: str
    weight: np.ndarray | None = None
    spec: TableSpec = field(default_factory=TableSpec)
    columns: tuple[Column, ...] = ()
    unused: tuple[str, ...] = ()
    leaks: Mapping[str, float] = field(default_factory=dict)
    kept: np.ndarray | None = None
    split_sha256: str | None = None

    @property
    def target_name(self) -> str:
        """The column that the target was read from."""
        return self.spec.target or ""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Columns that were left out because that was asked for."""
        return self.spec.without

    @property
    def multiclass(self) -> bool:
        """Whether there are more than two classes."""
        return len(self.classes) > 2

    @property
    def rate(self) -> float:
        """Share of class 1 among the rows, by weight."""
        return float(np.average(self.target == 1, weights=self.weight))


def source_of(data: Data | None, spec: TableSpec) -> Source:
    """Open data, built-in ones by their name."""
    if data is not None and not (isinstance(data, str) and data in ("flights", "digits")):
        return open_source(data, header=spec.header, keys=list(spec.roles.values()))
    frame, target, group, notes = digits(spec.group) if data == "digits" else flights(spec.group, spec.time)
    found = open_source(frame)
    return Source(str(data or "flights"), found.names, found.read, notes=notes, target=target, group=group)


def load(data: Data | None = None, spec: TableSpec | None = None, /, **options: Unpack[TableOptions]) -> Table:
    """Read a table and clean it: whatever is dropped, sampled or decided is said in ``notes``.

    Args:
        data: A path or a data frame, as in :func:`rareloss.table.source.open_source`; ``"flights"`` (the default): will
            this scheduled flight be cancelled, grouped by day; or ``"digits"``: scikit-learn's ten handwritten digits.
        spec: Which column is what.
        options: The same as keywords: the fields of :class:`rareloss.table.spec.TableSpec`.

    Returns:
        The table. Without ``group`` and ``time``, identical rows form a group, so that no fold holds the copy of
        another's row.

    Raises:
        DataError: The data cannot be read or used as they are; the message says why and what to do.

    Example:
        >>> table = load("digits")
        >>> table.frame.shape, len(table.classes), table.split_by
        ((1797, 61), 10, 'rows')
        >>> table.notes
        ("dropped 'pixel_0_0', 'pixel_4_0', 'pixel_4_7': empty, or the same in every row",)
    """
    spec = spec or TableSpec.of(**options)
    source = source_of(data, spec)
    spec = spec.named(source.target, source.group).checked(source.name, source.names, headless=source.headless)
    notes = list(source.notes)
    if spec.without:
        notes.append(f"left out {listed(spec.without)}, as was asked for")
    frame, decimals = as_found(source, spec)
    if len(frame) == 0:
        raise DataError(f"{source.name} has no rows; a table with one row per case was expected")

    roles = spec.roles
    frame, said = _drop_row_numbers(frame, set(roles.values()))
    notes += said
    needed = [roles[role] for role in ("target", "time") if role in roles]
    kept = np.flatnonzero(frame[needed].notna().all(axis=1))
    frame, said = _drop_rows_without(frame, needed)
    notes += said
    weight = None
    if "weight" in roles:
        weight, said = _weights(frame[roles["weight"]])
        notes += said
        there = weight > 0
        frame, weight, kept = frame[there].reset_index(drop=True), weight[there], kept[there]
    labels, classes, said = classes_of(frame[roles["target"]], roles["target"], spec.positive, weight)
    notes += said
    groups = None
    if "group" in roles:
        groups, said = _groups(frame[roles["group"]])
        notes += said
    times = None if "time" not in roles else _times(frame[roles["time"]])

    # Of the time that rows are split by, weekday and hour are known when a later row comes.
    trend = roles["time"] if times is not None and times.dtype == np.int64 and not _shared(roles, "time") else None
    given = frame.drop(columns=list({*roles.values()} - {trend}))
    features, columns, said = decide(given, decimals, spec.category, spec.missing, trend)
    used = {column.name for column in columns}
    leaks = best_alone(features, labels, len(classes))
    home = {part: column.name for column in columns for part in column.features}
    notes += said + remarks(given, features)
    notes += [
        f"check {name!r}: {found}; leave it out (--without {shlex.quote(home[name])}) if that is not known when the "
        "score is needed"
        for name, found in giveaways(features, labels, classes, leaks)
    ]
    rows = pd.util.hash_pandas_object(features, index=False).to_numpy()
    groups, split_by, said = _split_by(spec, groups, times, rows)
    notes += said
    split_named = "group" in roles or "time" in roles
    return Table(
        name=source.name,
        frame=features,
        target=labels,
        classes=classes,
        group=groups,
        time=times,
        notes=tuple(notes),
        sha256=_sha256(features, rows, labels, classes, weight),
        split_by=split_by,
        weight=weight,
        spec=spec,
        columns=columns,
        unused=tuple(name for name in source.names if name not in used),
        leaks=by_column(leaks, home),
        kept=kept,
        split_sha256=_sha256_of_split(groups, times) if split_named else None,
    )


def as_found(source: Source, spec: TableSpec) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the columns that are not left out, typed, and the decimal marks that columns of text show.

    Text without blanks around it may stand for numbers; where it shows no decimal mark of its own, that of the others
    is taken.
    """
    names = [name for name in source.names if name not in spec.without]
    table = plain(source.table(names))
    own, usual = decimal_marks(table)
    marks = {name: own.get(name, usual if source.text else "") for name in table.column_names}
    frame = pd.DataFrame(
        {
            name: values_of(
                name,
                table.column(name),
                decimal=marks[name],
                by_type=not source.text or name in source.quoted,
                missing=spec.missing,
            )
            for name in names
        }
    )
    return frame, marks


def is_date(column: pd.Series) -> bool:
    """Say whether a column holds dates."""
    return date_format(column)[0] is not None


# ------------------------------------------------------------------------------------------------------------- rows


def _drop_row_numbers(frame: pd.DataFrame, kept: set[str]) -> tuple[pd.DataFrame, list[str]]:
    """Drop columns that number the rows: in data sorted by class they give the answer away.

    A column that had no name in a csv is an index, whose numbers may have gaps where rows were taken out.
    """
    numbers = []
    for name in frame.columns.difference(list(kept), sort=False):
        column = frame[name]
        if types.is_integer_dtype(column) and not column.isna().any() and len(frame) >= LEAST_ROWS_OF_A_CLASS:
            consecutive = int(column.max()) - int(column.min()) + 1 == len(frame)
            if (consecutive or name.startswith(NAMELESS)) and column.is_unique:
                numbers.append(name)
    notes = [f"dropped {listed(numbers)}: a number for each row, not a feature"] if numbers else []
    return frame.drop(columns=numbers), notes


def _drop_rows_without(frame: pd.DataFrame, needed: list[str]) -> tuple[pd.DataFrame, list[str]]:
    notes = []
    for name in needed:
        missing = frame[name].isna()
        if missing.all():
            raise DataError(f"column {name!r} is empty in all {len(frame):,} rows; a value in every row was expected")
        if missing.any():
            notes.append(f"dropped {counted(int(missing.sum()), 'row')} without a value of {name!r}")
            frame = frame[~missing]
    return frame.reset_index(drop=True), notes


def _weights(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return weights, of which none is missing, negative or infinite; a row of weight 0 is absent."""
    name = column.name
    if not types.is_numeric_dtype(column) or types.is_bool_dtype(column):
        raise DataError(f"weights {name!r} must be numbers, 0 or more, got {str(column.iloc[0])!r}")
    weight = column.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = weight[~(np.isfinite(weight) & (weight >= 0))]
    if len(bad):
        raise DataError(
            f"{counted(len(bad), 'weight')} in {name!r} are missing, negative or infinite; weights must be 0 or more"
        )
    absent = int((weight == 0).sum())
    if absent == len(weight):
        raise DataError(f"all weights in {name!r} are 0; a row of weight 0 is absent")
    notes = [f"dropped {counted(absent, 'row')} of weight 0"] if absent else []
    return weight, [*notes, f"each row counts as often as {name!r} says"]


def _shared(roles: Mapping[str, str], role: str) -> bool:
    return list(roles.values()).count(roles[role]) > 1


def _groups(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    codes, values = pd.factorize(column, use_na_sentinel=False)
    if len(values) < 3:
        raise DataError(
            f"group column {column.name!r} holds {counted(len(values), 'group')}; train, validation and test need "
            "at least one each, so name a column with more groups"
        )
    missing = int(column.isna().sum())
    notes = [f"{counted(missing, 'row')} without a value of {column.name!r} form one group"] if missing else []
    return codes.astype(np.int64), notes


def _times(column: pd.Series) -> np.ndarray:
    if types.is_numeric_dtype(column) and not types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64)
    form, _ = date_format(column)
    if form is None:
        raise DataError(
            f"time column {column.name!r} must hold numbers or dates, got {str(column.iloc[0])!r}; write dates as in "
            "2013-07-31 or 2013-07-31 18:30"
        )
    return as_dates(column, form).to_numpy(dtype="datetime64[us]").astype(np.int64)


def _split_by(
    spec: TableSpec, groups: np.ndarray | None, times: np.ndarray | None, rows: np.ndarray
) -> tuple[np.ndarray | None, str, list[str]]:
    """Return groups and how rows are split, in words; without groups and times, copies of a row form a group."""
    if groups is not None:
        by_time = f"time ({spec.time}), groups ({spec.group}) kept apart"
        return groups, f"group ({spec.group})" if times is None else by_time, []
    if times is not None:
        return None, f"time ({spec.time})", []
    copies, said = _copies(rows)
    return (None, "rows", []) if copies is None else (copies, "rows, identical ones together", said)


def _copies(rows: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
    """Group identical rows, given by their hashes; rows that are common rather than copied stand alone."""
    _, code, size = np.unique(rows, return_inverse=True, return_counts=True)
    common = size[code] > max(2, MOST_COPIES * len(rows))
    code[common] = len(size) + np.arange(common.sum())
    copied = (size[code[~common]] > 1).sum()
    if not copied:
        return None, []
    notes = [f"{copied:,} of {len(rows):,} rows are identical to another; such rows are kept in the same fold"]
    if common.any():
        notes.append(
            f"{counted(int(common.sum()), 'row')} share a pattern with more than {MOST_COPIES:.0%} of all rows; these "
            "count as common, not as copies, and are split freely"
        )
    return pd.factorize(code)[0].astype(np.int64), notes


# ------------------------------------------------------------------------------------------------------------ hashes


def _sha256(
    features: pd.DataFrame, rows: np.ndarray, target: np.ndarray, classes: tuple[str, ...], weight: np.ndarray | None
) -> str:
    digest = hashlib.sha256()
    digest.update(repr([list(features.columns), [str(dtype) for dtype in features.dtypes], classes]).encode())
    digest.update(rows.astype("<u8").tobytes())
    digest.update(target.astype("<i8").tobytes())
    if weight is not None:
        digest.update(weight.astype("<f8").tobytes())
    return digest.hexdigest()


def _sha256_of_split(*values: np.ndarray | None) -> str:
    digest = hashlib.sha256()
    for each in values:
        digest.update(b"-" if each is None else each.tobytes())
    return digest.hexdigest()
