"""Measure the rows one by one and keep what was found, so that a run can be stopped and taken up again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.speed import accuracy
from benchmarks.speed.machine import now
from benchmarks.speed.measure import (
    count_syncs,
    exponent,
    interleave,
    peak_of_fresh_process,
    quartiles,
    sample,
)
from benchmarks.speed.rows import GROWTH, OURS, Row

__all__ = ["Options", "chosen_rows", "measure", "verdict"]

Record = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How thoroughly to measure.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        rows: leave out what is larger.
        seconds: about how long each contestant runs in a row of the table.
        fewest: the rounds that even a slow one gets.
        large: measure what needs many GiB too.
    """

    device: str = "cpu"
    rows: int = 200_000_000
    seconds: float = 2.0
    fewest: int = 5
    large: bool = False


def chosen_rows(rows: Iterable[Row], options: Options, only: Iterable[str] = ()) -> list[Row]:
    """Choose the rows whose key contains one of ``only`` (all if empty) and that are small enough.

    The growth rows and the accuracy stay: they are cut to fewer rows.
    """
    names = list(only)
    return [
        row
        for row in rows
        if (not names or any(name in row.key for name in names))
        and (options.large or not row.large)
        and (row.rows <= options.rows or row.kind in ("growth", "value", "gradient"))
    ]


def measure(row: Row, options: Options) -> Record:
    """Measure one row; ``value`` holds what is judged: of the worst case, with quartiles where it was repeated."""
    if row.kind in ("value", "gradient"):
        found = _accuracy(row, options)
    elif row.kind == "memory":
        found = _memory(row, options)
    elif row.kind == "growth":
        found = _growth(row, options)
    else:
        found = _time(row, options)
    described = {"key": row.key, "what": row.what, "kind": row.kind, "rows": row.rows}
    return {**described, "bar": row.bar, "stretch": row.stretch, **found, "measured": now()}


def verdict(record: Mapping[str, Any]) -> str:
    """Say whether the bar is met by what is judged."""
    value = record["value"]["median"]
    if record["bar"] is None or value is None:
        return ""
    if record["stretch"] is not None and value <= record["stretch"]:
        return "met, stretch too"
    return "met" if value <= record["bar"] else "missed"


def _time(row: Row, options: Options) -> Record:
    cases: Record = {}
    for name, contestants in row.cases.items():
        times = interleave(contestants, options.device, row.rows, seconds=options.seconds, fewest=options.fewest)
        base = times[row.reference]
        cases[name] = {}
        for who, seconds in times.items():
            # A round's own reference: the lists begin with the same round.
            if row.kind == "added":
                compared = [1e3 * (each - other) for each, other in zip(seconds, base, strict=False)]
            else:
                compared = [each / other for each, other in zip(seconds, base, strict=False)]
            cases[name][who] = {**quartiles(compared), "ms": 1e3 * quartiles(seconds)["median"], "rounds": len(seconds)}
    worst = max(cases, key=lambda name: cases[name][OURS]["median"])
    found = {"against": row.reference, "cases": cases, "worst": worst, "value": _three(cases[worst][OURS])}
    if options.device == "cuda":
        found["syncs"] = count_syncs(row.cases[worst][OURS](options.device, row.rows))
    return found


def _memory(row: Row, options: Options) -> Record:
    case: Record = {}
    for who in row.cases[""]:
        repeats = 3 if who == OURS else 1
        try:
            peaks = [peak_of_fresh_process(row.key, who, options.device) for _ in range(repeats)]
        except RuntimeError as error:
            if who == OURS:
                raise
            case[who] = {"median": None, "failed": str(error)}
        else:
            case[who] = quartiles(peaks)
    return {"against": None, "cases": {"": case}, "worst": "", "value": _three(case[OURS])}


def _growth(row: Row, options: Options) -> Record:
    sizes = [size for size in GROWTH if size <= options.rows]
    seconds: dict[str, list[float]] = {
        who: [
            sample(build, options.device, size, seconds=options.seconds / 4)
            for size in sizes
            if size <= row.most.get(who, size)
        ]
        for who, build in row.cases[""].items()
    }
    case = {}
    for who, each in seconds.items():
        reached = sizes[: len(each)]
        case[who] = {"sizes": reached, "ms": [1e3 * s for s in each], "exponent": exponent(reached, each)}
    slope = case[OURS]["exponent"]
    return {
        "against": None,
        "cases": {"": case},
        "worst": "",
        "value": {"median": slope, "low": slope, "high": slope},
    }


def _accuracy(row: Row, options: Options) -> Record:
    cases: Record = {}
    for law, temperature, size, share in accuracy.cases():
        if size <= options.rows:
            error = accuracy.errors(law, temperature, size, share, options.device)[row.kind]
            cases[f"{law}, temperature {temperature}, {size} rows"] = {OURS: quartiles([error])}
    worst = max(cases, key=lambda name: cases[name][OURS]["median"])
    return {"against": "float64, pair by pair", "cases": cases, "worst": worst, "value": _three(cases[worst][OURS])}


def _three(found: Mapping[str, float]) -> Record:
    return {name: found[name] for name in ("median", "low", "high")}
