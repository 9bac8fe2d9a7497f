"""Dates in text, however people write them, and what they become."""

from collections.abc import Hashable

import pandas as pd
from pandas.api import types

__all__ = ["ISO", "as_dates", "date_format", "date_parts"]

ISO = "ISO8601"
# How people write dates where they do not write 2013-07-31.
_DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%d.%m.%y", "%d/%m/%y", "%m/%d/%y")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
FORMATS = [day + time for day in _DAYS for time in _TIMES] + ["%Y-%m-%d %I:%M %p", "%Y-%m-%d %I:%M:%S %p"]


def date_format(column: pd.Series) -> tuple[str | None, list[str]]:
    """Return how dates are written; ``None`` where the column holds anything else; and what to say of it."""
    if types.is_datetime64_any_dtype(column):
        return ISO, []
    if not types.is_string_dtype(column):
        return None, []
    text = column.dropna()
    if text.empty or not text.str.match(r"\d{1,4}[-./]\d{1,2}[-./]\d{2,4}").all():
        return None, []
    some = text.iloc[:1000]
    fitting = [
        form for form in (ISO, *FORMATS) if parsed(some, form).notna().all() and parsed(text, form).notna().all()
    ]
    if not fitting or fitting[0] == ISO:
        return (ISO if fitting else None), []
    said = [f"dates in {column.name!r} are read as {fitting[0]}"]
    if len(fitting) > 1:
        said = [f"dates in {column.name!r} are read as {fitting[0]}, though {fitting[1]} would fit: write 2013-07-31"]
    return fitting[0], said


def parsed(text: pd.Series, form: str) -> pd.Series:
    """Read dates written in one way, times of several zones in one; missing where a text is none."""
    return pd.to_datetime(text, errors="coerce", format=form, utc=True).dt.tz_localize(None)


def as_dates(values: pd.Series, form: str) -> pd.Series:
    """Return dates without a zone, of dates or of text in one way to write them."""
    if types.is_datetime64_any_dtype(values):
        # In one zone whatever the file's, as those that are written as text; and so that an hour never comes twice.
        return pd.to_datetime(values, utc=True).dt.tz_localize(None)
    return parsed(values.astype("str"), form)


def date_parts(name: Hashable, dates: pd.Series) -> dict[str, pd.Series]:
    """Return the days since 1970, month, weekday (Monday is 0) and hour of dates, float64."""
    parts = {
        # In the unit of the dates: nanoseconds end in 2262, and 9999-12-31 is what many write for "never".
        "days": (dates - pd.Timestamp(0).as_unit(dates.dt.unit)) / pd.Timedelta(days=1).as_unit(dates.dt.unit),
        "month": dates.dt.month,
        "weekday": dates.dt.day_of_week,
        "hour": dates.dt.hour,
    }
    return {f"{name}_{part}": values.astype("float64") for part, values in parts.items()}
