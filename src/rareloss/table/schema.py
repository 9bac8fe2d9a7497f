"""How each column of a table becomes features: decided once, stored with a model, and read by ever after."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api import types

from rareloss.table.dates import ISO, as_dates, date_format, date_parts
from rareloss.table.frames import series_of
from rareloss.table.missing import MISSING, NOT_A_NUMBER
from rareloss.table.numbers import flags, is_whole, to_numbers, trimmed, without_marks
from rareloss.table.source import Source, decimal_marks, plain
from rareloss.table.words import DataError, counted, listed

__all__ = ["LEAST_ROWS_OF_A_CATEGORY", "NAMELESS", "Column", "Reads", "Schema", "decide", "values_of"]

Reads = Literal["number", "text", "loose", "date", "category", "code"]

# A number with more distinct values than this, not all of them whole, is measured rather than named.
MOST_FRACTIONAL_CATEGORIES = 20
# A text column with more distinct values than this is a category only if enough of its values come back.
FEW_CATEGORIES = 50
LEAST_ROWS_OF_A_CATEGORY = 10
LEAST_SHARE_IN_FREQUENT_ONES = 0.1
# Text that is a number this often is a number column with odd marks for "missing" in it.
SHARE_OF_NUMBERS = 0.9
# No number or date has more letters.
LONGEST_NUMBER = 50
NAMELESS = "Unnamed: "
# Beyond it float64 does not hold every whole number, so such a number is a name.
EXACT = 2**53


@dataclass(frozen=True)
class Column:
    """Say how a column of a file becomes features.

    Attributes:
        name: what the file calls it.
        reads: ``"number"``; ``"text"``, numbers in text, with marks without digits where they are missing; ``"loose"``,
            the same where a mark may hold digits, such as ``"<5"``; ``"date"``; ``"category"``, text; or ``"code"``, a
            category whose values are whole numbers.
        features: what it becomes: itself, or the parts of a date that are used.
        format: of dates written as text, as strptime takes it, or "ISO8601".
        decimal: the decimal mark of numbers written as text, where they show it: ``"."`` or ``","``, else ``""``.
        missing: further marks that mean "missing" in it.
    """

    name: str
    reads: Reads
    features: tuple[str, ...]
    format: str = ISO
    decimal: str = ""
    missing: tuple[str, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether it becomes one number."""
        return self.reads in ("number", "text", "loose")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {**asdict(self), "features": list(self.features), "missing": list(self.missing)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Column":
        """Read what :meth:`to_dict` wrote.

        Raises:
            DataError: it is no such thing.
        """
        name, features, missing = given["name"], tuple(given["features"]), tuple(given["missing"])
        if given["reads"] not in get_args(Reads):
            raise DataError(f"column {name!r:.60}: reads must be one of {', '.join(get_args(Reads))}")
        if given["decimal"] not in (".", ",", "") or not all(isinstance(mark, str) for mark in missing):
            raise DataError(f"column {name!r:.60}: a decimal mark and texts for what is missing were expected")
        parts = {f"{name}_{part}" for part in ("days", "month", "weekday", "hour")}
        if not features or not (set(features) <= parts if given["reads"] == "date" else features == (name,)):
            raise DataError(f"column {name!r:.60} cannot become {features!r:.60}")
        return cls(name, given["reads"], features, given["format"], given["decimal"], missing)


@dataclass(frozen=True)
class Schema:
    """How the columns of a table become features, and which other columns it may have.

    Args:
        columns: those that become features.
        unused: names of the others.
    """

    columns: tuple[Column, ...]
    unused: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the columns that become features."""
        return [column.name for column in self.columns]

    def check_names(self, names: Sequence[str], kept: Sequence[str] = ()) -> None:
        """Refuse columns that differ from those that it was made of.

        Raises:
            DataError: which are missing, and which are unknown.
        """
        known = {*self.names, *self.unused, *kept}
        missing = [name for name in self.names if name not in names]
        # An index that was written beside the columns has no name of its own.
        unknown = [name for name in names if name not in known and not name.startswith(NAMELESS)]
        said = [
            f"{what} {listed(found)}"
            for what, found in (("it lacks", missing), ("it has the unknown", unknown))
            if found
        ]
        if said:
            raise DataError(
                f"the columns are not those that the model was fitted on: {'; '.join(said)}; rename or add what is "
                "missing, and drop what is unknown or name it as one to keep"
            )

    def of_source(self, source: Source) -> "Schema":
        """Return it with the decimal marks by which a source's text is read.

        What the first rows of a column show comes first: 12,5 is written with a comma, whatever the fit has seen. Then
        what the fit saw, which tells what 1,234 is; and last what other columns of the file show.
        """
        first = next(source.batches([column.name for column in self.columns if column.numeric]), None)
        if first is None:
            return self
        own, usual = decimal_marks(plain(first))
        usual = usual if source.text else ""
        return replace(
            self,
            columns=tuple(
                replace(column, decimal=own.get(column.name) or column.decimal or usual) if column.numeric else column
                for column in self.columns
            ),
        )

    def features(self, table: pa.Table) -> pd.DataFrame:
        """Turn columns into features, by what was decided of each.

        Raises:
            DataError: a column holds values of another type.
        """
        found: dict[str, pd.Series] = {}
        table = plain(table.select(self.names))
        for column in self.columns:
            values = table.column(column.name)
            if pa.types.is_string(values.type):
                text = without_marks(trimmed(values.combine_chunks()), (*NOT_A_NUMBER, *column.missing))
                series = series_of(column.name, text)
            else:
                series = _without(series_of(column.name, values), column.missing)
            found |= read_column(column, series)
        return pd.DataFrame(found)


# ------------------------------------------------------------------------------------------------------------- types


def values_of(
    name: str, column: Any, *, decimal: str = "", by_type: bool = False, missing: Sequence[str] = ()
) -> pd.Series:
    """Return a column's values: numbers, flags, dates, durations or text. Text that is all numbers or flags is those.

    NA may be a country and None a class, so that such marks mean "missing" only where everything else is a number or a
    flag. Codes stay text: whole numbers with zeros before them, beyond what float64 holds, or text by type.

    Args:
        name: of the column.
        column: of Arrow.
        decimal: the decimal mark of numbers in text; ``""`` is a point.
        by_type: whether text is text by its type, not since all of a file is.
        missing: further marks that mean "missing".
    """
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_string(column.type):
        values = series_of(name, column)
        return _without(values, missing) if missing else values
    text = without_marks(trimmed(column), (*NOT_A_NUMBER, *missing))
    rest = without_marks(text)
    present = len(rest) - rest.null_count
    if not present:
        return series_of(name, text if text.null_count < len(text) else pc.cast(rest, pa.float64()))
    if by_type and rest.null_count == text.null_count and is_whole(rest):
        return series_of(name, text)
    numbers = to_numbers(rest, decimal or ".")
    if len(rest) - numbers.null_count == present:
        return series_of(name, text if _are_codes(rest) else _whole_where_possible(rest, numbers))
    found = flags(rest)
    if len(rest) - found.null_count == present:
        return series_of(name, found)
    return series_of(name, text)


def _without(values: pd.Series, missing: Sequence[str]) -> pd.Series:
    numbers = to_numbers(pa.array(list(missing), pa.string())).drop_null().to_pylist()
    numeric = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
    return values.mask(values.isin(numbers)) if numeric and numbers else values


def _are_codes(text: Any) -> bool:
    if pc.any(pc.match_substring_regex(text, r"^0\d+$")).as_py() and is_whole(text):
        return True
    long = pc.if_else(pc.greater(pc.utf8_length(text), 15), text, pa.scalar(None, text.type))
    if long.null_count == len(long) or not is_whole(long):
        return False
    return max(abs(int(value)) for value in long.unique().to_pylist() if value is not None) > EXACT


def _whole_where_possible(text: Any, numbers: Any) -> Any:
    return pc.cast(numbers, pa.int64()) if is_whole(text) else numbers


def is_text(values: pd.Series) -> bool:
    """Whether a column holds text."""
    return types.is_string_dtype(values) and not isinstance(values.dtype, pd.CategoricalDtype)


def is_number(values: pd.Series) -> bool:
    """Whether a column holds numbers, flags or durations."""
    return types.is_numeric_dtype(values) or types.is_bool_dtype(values) or types.is_timedelta64_dtype(values)


def _numbers_in(text: pd.Series, decimal: str) -> pd.Series:
    return pd.Series(
        to_numbers(pa.array(text, pa.string(), from_pandas=True), decimal or ".").to_numpy(False), text.index
    )


# ------------------------------------------------------------------------------------------------------------ decide


def decide(
    frame: pd.DataFrame,
    decimals: Mapping[str, str],
    categories: Iterable[str] = (),
    missing: Sequence[str] = (),
    trend: str | None = None,
) -> tuple[pd.DataFrame, tuple[Column, ...], list[str]]:
    """Make every column float64 or categorical, and drop what carries nothing or names single rows.

    Args:
        frame: columns as :func:`values_of` returns them.
        decimals: the decimal mark that a column's text shows, where it does.
        categories: columns that are categories, whatever they hold.
        missing: further marks that mean "missing".
        trend: the column of dates that rows are split by: of it the weekday and the hour come back, days and months
            do not.

    Returns:
        features; how columns become them; what to say of it.

    Raises:
        DataError: nothing is left, or a column cannot be read.
    """
    features: dict[str, pd.Series] = {}
    columns: list[Column] = []
    notes: list[str] = []
    constant: list[str] = []
    identities: list[str] = []
    for name in frame.columns:
        column, said = _how(frame[name], decimals.get(name, ""), name in categories)
        column = replace(column, missing=tuple(missing))
        notes += said
        found = read_column(column, frame[name])
        if column.reads in ("category", "code") and name not in categories and (told := _identity(found[name])):
            identities.append(name)
            notes += told[1:]
            continue
        twice = [part for part in found if part != name and part in frame.columns]
        if twice:
            raise DataError(
                f"dates in {name!r} become {listed(found)}, but {listed(twice)} named a column already: leave that "
                "out (--without), or give it another name"
            )
        # A part of a date that only ever is missing or one value says nothing that another part does not.
        dropna = column.reads == "date"
        if name == trend:
            found = {part: values for part, values in found.items() if part.endswith(("_weekday", "_hour"))}
        found = {part: values for part, values in found.items() if values.nunique(dropna=dropna) > 1}
        if not found:
            constant += [name] if name != trend else []
            continue
        if column.reads == "date":
            notes.append(f"dates in {name!r} became {listed(found)}")
        features |= found
        columns.append(replace(column, features=tuple(found)))
    commas = [each.name for each in columns if each.decimal == "," and not types.is_integer_dtype(frame[each.name])]
    if commas:
        notes.append(f"numbers in {listed(commas)} are read with a decimal comma")
    if constant:
        notes.append(f"dropped {listed(constant)}: empty, or the same in every row")
    if identities:
        notes.append(f"dropped {listed(identities)}: an id or free text, since few rows share a value")
    if not features:
        raise DataError("no column is left to predict from; one that is not constant, an id or free text was expected")
    table = pd.DataFrame(features)
    gaps = table.isna().any()
    if gaps.any():
        notes.append(
            f"values are missing in {listed(table.columns[gaps])}: filled from the train fold, and marked as missing"
        )
    return table, tuple(columns), notes


def _identity(values: pd.Series) -> list[str]:
    """Say whether a category names single rows: hardly any of them have a value that comes back often enough."""
    counts = values.value_counts()
    if len(counts) <= FEW_CATEGORIES:
        return []
    frequent = counts[counts >= LEAST_ROWS_OF_A_CATEGORY].sum()
    return [] if frequent >= LEAST_SHARE_IN_FREQUENT_ONES * counts.sum() else ["", *_mend(values)]


def _how(values: pd.Series, decimal: str, category: bool) -> tuple[Column, list[str]]:
    """Decide how a column is read."""
    name = str(values.name)
    if category:
        return Column(name, "code" if _whole_numbers(values) else "category", (name,)), []
    dates, said = date_format(values)
    if dates is not None:
        return Column(name, "date", (), dates), said
    if types.is_integer_dtype(values) and values.abs().max() > EXACT:
        return Column(name, "code", (name,)), []
    if is_number(values):
        return Column(name, "number", (name,), decimal=decimal), []
    as_numbers, said = _mostly_numbers(values, decimal)
    if not as_numbers:
        said = []
        if is_text(values) and is_whole(pa.array(values, pa.string(), from_pandas=True)):
            said = [f"{name!r} holds whole numbers as text: codes, read as a category"]
        return Column(name, "category", (name,)), said
    odd = _unread(values, _numbers_in(values, decimal))
    return Column(name, "loose" if len(odd) else "text", (name,), decimal=decimal), said


def _whole_numbers(values: pd.Series) -> bool:
    if not types.is_numeric_dtype(values) or types.is_bool_dtype(values):
        return False
    present = values.dropna().to_numpy(dtype=np.float64)
    return bool((present == np.floor(present)).all())


def _unread(text: pd.Series, numbers: pd.Series) -> pd.Series:
    """Return what is no number, though it holds digits."""
    rest = text[numbers.isna() & text.notna()]
    return rest[rest.str.contains(r"\d")]


def _mostly_numbers(column: pd.Series, decimal: str) -> tuple[bool, list[str]]:
    """Say whether text is nearly always a number, with a mark such as '?' where it is missing."""
    if not is_text(column):
        return False, []
    numbers = _numbers_in(column, decimal)
    junk = column[numbers.isna() & column.notna()]
    marks = junk[~junk.str.contains(r"\d")]
    few = numbers.count() < SHARE_OF_NUMBERS * column.count() or numbers.nunique() <= MOST_FRACTIONAL_CATEGORIES
    # A few texts among numbers, without a digit, are marks for "missing", however often they come.
    only_marks = numbers.count() > 0 and len(junk) > 0 and len(marks) == len(junk) and _few_marks(marks, numbers)
    if few and not only_marks:
        return False, []
    if junk.empty:
        return False, []
    said = counted(len(junk), "value")
    return True, [
        f"{said} of {column.name!r} are not numbers, such as {listed(junk.unique(), 3)}, and count as missing"
    ]


def _few_marks(marks: pd.Series, numbers: pd.Series) -> bool:
    distinct = marks.nunique()
    return distinct == 1 or (distinct <= 3 and numbers.nunique() > MOST_FRACTIONAL_CATEGORIES)


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
    plain = pd.to_numeric(some, errors="coerce").notna()
    for looks, odd, what, better in (
        (numbers, some[numbers & ~plain], "numbers", "1234.5"),
        (dates & ~plain, some if dates.all() else some[~dates], "dates", "2013-07-31 18:30"),
    ):
        if len(odd) and looks.mean() >= SHARE_OF_NUMBERS:
            return [
                f"{column.name!r} looks like {what}, but {odd.iloc[0]!r} cannot be read as one: write {better}, or "
                "leave the cell empty where it is missing"
            ]
    return []


# -------------------------------------------------------------------------------------------------------------- read


def read_column(column: Column, values: pd.Series) -> dict[str, pd.Series]:
    """Turn a column into its features, as they were when it was decided how; text may stand for numbers.

    Args:
        column: how it is read.
        values: of any rows, text or typed.

    Returns:
        each feature by name, float64 or category; all parts of a date where none was chosen yet.

    Raises:
        DataError: values of another type.
    """
    if column.reads in ("category", "code"):
        return {column.name: _categories(column, values)}
    if column.reads == "date":
        parts = date_parts(column.name, _dates(column, values))
        return {part: parts[part] for part in column.features or parts}
    numbers = _numbers(column, values)
    _refuse_infinite(column.name, numbers)
    return {column.name: numbers}


def _categories(column: Column, values: pd.Series) -> pd.Series:
    if column.reads == "code":
        if is_text(values):  # 12.0 is how a whole number is written where another is missing
            values = values.str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)
        elif types.is_float_dtype(values):
            odd = values[values.notna() & (values != np.floor(values))]
            if len(odd):
                raise DataError(f"column {column.name!r} holds {odd.iloc[0]!r}, where whole numbers were expected")
            values = values.astype("Int64")
    elif is_number(values) and not types.is_bool_dtype(values) and values.notna().any():
        raise DataError(f"column {column.name!r} holds numbers ({values.dtype}), where text was expected")
    text: pd.Series = values.astype("object").map(str, na_action="ignore").astype("str").astype("category")
    return text


def _dates(column: Column, values: pd.Series) -> pd.Series:
    if is_number(values) and values.notna().any():
        raise DataError(f"column {column.name!r} holds {values.dtype}, where dates were expected")
    dates = as_dates(values, column.format)
    odd = values[dates.isna() & values.notna()]
    if len(odd):
        raise DataError(
            f"column {column.name!r} holds {odd.iloc[0]!r}, where a date written as {column.format} was expected"
        )
    return dates


def _numbers(column: Column, values: pd.Series) -> pd.Series:
    """Return numbers, flags and durations as float64, also where they are written as text."""
    if types.is_timedelta64_dtype(values):
        return pd.Series(values.dt.total_seconds())
    if is_number(values):
        return values.astype("float64")
    if is_text(values):
        values = values.mask(values.isin(MISSING))
    if values.isna().all():
        return pd.Series(np.nan, values.index, name=values.name, dtype="float64")
    if not is_text(values):
        raise DataError(f"column {column.name!r} holds {values.dtype}, where numbers were expected")
    numbers = _numbers_in(values, column.decimal)
    odd = values.iloc[:0]
    if column.reads == "number":
        if numbers.count() < values.count():
            found = values.str.lower().map({"true": 1.0, "false": 0.0})
            numbers = numbers.fillna(found.astype("float64"))
        odd = values[numbers.isna() & values.notna()]
    elif column.reads == "text":  # 12,5 is no mark of a missing number
        odd = _unread(values, numbers)
    if len(odd):
        raise DataError(
            f"column {column.name!r} holds {odd.iloc[0]!r}, where a number was expected: write it as 1234.5, or leave "
            "the cell empty where it is missing"
        )
    return numbers


def _refuse_infinite(name: str, column: pd.Series) -> None:
    # What float32 cannot hold would be infinite as soon as a network sees it.
    infinite = int((column.abs() > np.finfo(np.float32).max).sum())
    if infinite:
        raise DataError(
            f"column {name!r} holds {counted(infinite, 'infinite value')} (or beyond 3e38); finite numbers were "
            "expected: leave the cell empty where the value is missing, or cap it"
        )
