"""Measure the rows one by one; what was measured is kept, so that a run can be stopped and taken up again."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.speed import accuracy
from benchmarks.speed.machine import now
from benchmarks.speed.measure import FITTED, command_output, count_syncs, exponent, interleave, quartiles, sample
from benchmarks.speed.rows import GROWTH, OURS, Row

__all__ = ["Options", "measure", "select", "verdict"]

Record = dict[str, Any]
SWITCH = "RARELOSS_NATIVE"


@dataclass(frozen=True)
class Options:
    """How thoroughly to measure.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        rows: leave out what is larger.
        seconds: about how long each contestant runs in a row of the table.
        fewest: the rounds that even a slow one gets.
        large: measure what needs many GiB too.
        bars: only what has a bar, only the loss and what it is compared with.
    """

    device: str = "cpu"
    rows: int = 200_000_000
    seconds: float = 2.0
    fewest: int = 5
    large: bool = False
    bars: bool = False


def select(rows: Iterable[Row], options: Options, only: Iterable[str] = ()) -> list[Row]:
    """Return the rows whose key contains one of ``only`` (all if empty) and that ``options`` do not leave out.

    Growth and accuracy stay, however few the rows: they are cut to them.
    """
    names = list(only)
    return [
        row
        for row in rows
        if (not names or any(name in row.key for name in names))
        and (options.large or not row.large)
        and (row.bar is not None or not options.bars)
        and (row.rows <= options.rows or row.kind in ("growth", "value", "gradient"))
        and (options.device == "cpu" or not (row.torch_alone or row.over == "one thread"))
    ]


def measure(row: Row, options: Options) -> Record:
    """Measure one row; ``value`` holds what is judged: of the worst case, with quartiles where it was repeated.

    Raises:
        ImportError: the row compares with a library that is not installed.
    """
    if row.torch_alone and os.environ.get(SWITCH) != "0":
        return _measure_in_process_without_kernel(row, options)
    kinds = {"value": _accuracy, "gradient": _accuracy, "memory": _memory, "growth": _growth}
    result = kinds.get(row.kind, _time)(row, options)
    described = {"key": row.key, "what": row.what, "kind": row.kind, "rows": row.rows, "over": row.over}
    return {**described, "bar": row.bar, "stretch": row.stretch, **result, "measured": now()}


def verdict(record: Mapping[str, Any]) -> str:
    """Return whether the bar is met by what is judged, nothing where there is none."""
    value = record["value"]["median"]
    if record["bar"] is None or value is None:
        return ""
    if record["stretch"] is not None and value <= record["stretch"]:
        return "met, stretch too"
    return "met" if value <= record["bar"] else "missed"


def _measure_in_process_without_kernel(row: Row, options: Options) -> Record:
    arguments = ["--record", row.key, "--rows", str(options.rows), "--seconds", str(options.seconds)]
    arguments += ["--fewest", str(options.fewest), *(["--bars"] if options.bars else [])]
    record: Record = command_output(*arguments, **{SWITCH: "0"})
    return record


def _contestants(row: Row, case: str, options: Options) -> Record:
    # The judged one and the reference first, then who else takes part with as many rows.
    builds = dict(row.cases[case]())
    if row.over and row.over not in builds:
        raise ImportError(f"{row.over} is not installed")
    first = {name: builds.pop(name) for name in (OURS, row.over) if name in builds}
    if options.bars:
        return first
    others = {name: build for name, build in builds.items() if name != "module" or row.kind not in ("growth", "memory")}
    if row.kind == "growth":
        return first | others
    return first | {name: build for name, build in others.items() if row.rows <= row.most.get(name, row.rows)}


def _time(row: Row, options: Options) -> Record:
    cases = {case: _times_of_case(row, case, options) for case in row.cases}
    worst = max(cases, key=lambda case: cases[case][OURS]["median"])
    result = {"cases": cases, "worst": worst, "value": _quartiles(cases[worst][OURS])}
    if options.device == "cuda":
        result["syncs"] = count_syncs(row.cases[worst]()[OURS](options.device, row.rows))
    return result


def _times_of_case(row: Row, case: str, options: Options) -> Record:
    how: Record = {"device": options.device, "seconds": options.seconds, "fewest": options.fewest, "clock": row.clock}
    builds = _contestants(row, case, options)
    reference = builds.pop(row.over)(options.device, row.rows) if row.over else None
    times: Record = {}
    for name, build in builds.items():
        run = build(options.device, row.rows)
        if reference is None:
            (own,) = interleave(run, **how)
            times[name] = {**quartiles([1e3 * each for each in own]), "ms": 1e3 * quartiles(own)["median"]}
            continue
        base, own = interleave(reference, run, **how)
        pairs = list(zip(own, base, strict=True))
        compared = [1e3 * (a - b) for a, b in pairs] if row.kind == "added" else [a / b for a, b in pairs]
        times[name] = {**quartiles(compared), "ms": 1e3 * quartiles(own)["median"], "rounds": len(own)}
        if name == OURS:  # the reference's time is the one beside ours
            times[row.over] = {"ms": 1e3 * quartiles(base)["median"], "rounds": len(base)}
    return times


def _memory(row: Row, options: Options) -> Record:
    case: Record = {}
    for name in _contestants(row, "", options):
        repeats = 3 if name == OURS else 1
        try:
            peaks = [command_output("--peak", row.key, name, "--device", options.device) for _ in range(repeats)]
        except RuntimeError as error:
            if name == OURS:
                raise
            case[name] = {"median": None, "failed": str(error)}
        else:
            case[name] = quartiles(peaks)
    return {"cases": {"": case}, "worst": "", "value": _quartiles(case[OURS])}


def _growth(row: Row, options: Options) -> Record:
    cases: Record = {}
    # The exponent is fitted to large pools alone; the others are for the picture.
    sizes = [size for size in GROWTH if size <= options.rows and (size >= FITTED or not options.bars)]
    for case in row.cases:
        cases[case] = {}
        for name, build in _contestants(row, case, options).items():
            reached = [size for size in sizes if size <= row.most.get(name, size)]
            seconds = [sample(build, options.device, size, seconds=options.seconds / 4) for size in reached]
            slope = exponent(reached, seconds)
            cases[case][name] = {"sizes": reached, "ms": [1e3 * each for each in seconds], "exponent": slope}
    worst = max(cases, key=lambda case: cases[case][OURS]["exponent"] or 0.0)
    slope = cases[worst][OURS]["exponent"]
    return {"cases": cases, "worst": worst, "value": {"median": slope, "low": slope, "high": slope}}


def _accuracy(row: Row, options: Options) -> Record:
    cases: Record = {}
    for law, temperature, size, rate in accuracy.cases():
        if size <= options.rows:
            error = accuracy.errors(law, temperature, size, rate, options.device)[row.kind]
            cases[f"{law}, temperature {temperature}, {size} rows"] = {OURS: quartiles([error])}
    worst = max(cases, key=lambda name: cases[name][OURS]["median"])
    return {"cases": cases, "worst": worst, "value": _quartiles(cases[worst][OURS])}


def _quartiles(result: Mapping[str, float]) -> Record:
    return {name: result[name] for name in ("median", "low", "high")}
