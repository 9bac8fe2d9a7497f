"""Run the units one by one, each kept when it is finished, so that a run can be stopped and taken up again."""

import json
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from benchmarks.quality.grid import TRIALS, Unit, describe, methods_of, objective_of, open_set
from benchmarks.speed.machine import describe as describe_machine
from benchmarks.speed.machine import now

from rareloss.table.folds import split
from rareloss.tabular.comparison.runs import Store, run_unit, write_atomically
from rareloss.tabular.methods import RECIPE
from rareloss.training import TEMPERATURES

__all__ = ["collect", "lacking", "run", "save"]

SCHEMA = 2
LONG = ("units", "runs")
Record = dict[str, Any]


def run(
    wanted: Sequence[Unit],
    data: Path | None,
    out: Path,
    *,
    workers: int = 1,
    minutes: float | None = None,
    trials: int = TRIALS,
    say: Callable[[str], None] = print,
) -> int:
    """Run the units that are not finished, in order; stop before the next one when the time is over.

    Args:
        wanted: what to run.
        data: the folder of the npz files.
        out: where finished units are kept.
        workers: processes.
        minutes: no unit begins later; None: no limit.
        trials: random draws of each method.
        say: called with a sentence for each finished unit.

    Returns:
        how many of the units are still left.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    left = [unit for unit in wanted if _store(unit, data, out, trials).find(unit.model, unit.seed) is None]
    say(f"{len(wanted) - len(left)} of {len(wanted)} units are finished")

    def in_time() -> Iterator[Unit]:
        for unit in left:
            if end is not None and time.monotonic() > end:
                return
            yield unit

    done = 0
    if workers == 1:
        finished: Iterator[tuple[Unit, Record]] = (_run(unit, data, out, trials) for unit in in_time())
    else:
        # Workers take a unit when they are free, so that none begins after the end.
        parallel = joblib.Parallel(workers, return_as="generator_unordered", pre_dispatch=workers, batch_size=1)
        finished = parallel(joblib.delayed(_run)(unit, data, out, trials, in_process=False) for unit in in_time())
    for unit, found in finished:
        done += 1
        failed = "".join(f"; {failure['method']} failed: {failure['error']}" for failure in found["failed"])
        say(f"{done} of {len(left)}: {unit.folder}, split {unit.seed}, {found['cpu_seconds']:.0f} s{failed}")
    return len(left) - done


def _run(unit: Unit, data: Path | None, out: Path, trials: int, in_process: bool = True) -> tuple[Unit, Record]:
    table = open_set(unit.data, data)
    objective = objective_of(unit.objective, table)
    start = time.process_time()
    found = run_unit(table, objective, methods_of(unit, table), unit.model, unit.seed, trials, in_process=in_process)
    found["cpu_seconds"] = round(time.process_time() - start, 1)
    for one in found["runs"]:
        for key in ("curves", "history", "per_class"):  # what a report shows of one run; nothing here reads it
            one.pop(key, None)
    fold = split(table, unit.seed)
    found["test_over_train"] = len(fold.test) / len(fold.train)
    counts = np.bincount(table.target[fold.test], minlength=len(table.classes))
    found["test_positives"] = int(counts.min() if table.multiclass else counts[1])
    _store(unit, data, out, trials).keep(found)
    return unit, found


def _store(unit: Unit, data: Path | None, out: Path, trials: int) -> Store:
    return Store(out / unit.folder, _settings(replace(unit, seed=0), data, trials))


@cache
def _settings(unit: Unit, data: Path | None, trials: int) -> Record:
    """Everything that the numbers of a unit depend on, and what names it; the same for all its splits."""
    table = open_set(unit.data, data)
    objective = objective_of(unit.objective, table)
    methods = methods_of(unit, table)
    return {
        "grid": unit.named,
        "judged_by": str(objective),
        "methods": [
            {key: getattr(method, key) for key in ("name", "label", "about", "kind", "loss")} for method in methods
        ],
        "trials": trials,
        "recipe": RECIPE,
        "temperatures": TEMPERATURES,
        "set": describe(table),
        "machine": describe_machine("cpu"),
    }


# ------------------------------------------------------------------------------------------------------------- results


def collect(out: Path, wanted: Sequence[Unit], before: Record | None = None) -> Record:
    """Put the finished units of a folder together, and count what of the plan is not there.

    Args:
        out: where they are.
        wanted: the plan.
        before: results of an earlier run, whose units stay where the folder does not hold them.

    Returns:
        what ``quality.json`` holds.
    """
    sets: Record = {}
    methods: Record = {}
    machines: list[Record] = []
    units: list[Record] = []
    failed: list[Record] = []
    runs: list[Record] = []
    trials = TRIALS
    for path in sorted(out.glob("*/*/*/*/runs/settings.json")):
        settings = json.loads(path.read_text("utf-8"))
        named, trials = settings["grid"], settings["trials"]
        sets[named["data"]] = settings["set"]
        methods |= {method["name"]: method for method in settings["methods"]}
        for file in sorted(path.parent.glob("*-seed*.json")):
            found = json.loads(file.read_text("utf-8"))
            unit = {**named, "seed": found["seed"]}
            units.append(
                {**unit, "cpu_seconds": found["cpu_seconds"], "machine": _index(machines, settings["machine"])}
            )
            failed += [{**unit, **failure} for failure in found["failed"]]
            runs += [_short(one, found, unit) for one in found["runs"]]
    if before is not None:
        anew = {_key(unit) for unit in units}
        old = {name: [one for one in before[name] if _key(one) not in anew] for name in ("units", "failed", "runs")}
        units += [{**one, "machine": _index(machines, before["machines"][one["machine"]])} for one in old["units"]]
        failed, runs = failed + old["failed"], runs + old["runs"]
        sets = {one["data"]: before["sets"][one["data"]] for one in old["units"]} | sets
        methods = {
            one["name"]: one for one in before["methods"] if any(run["method"] == one["name"] for run in runs)
        } | methods
    done = {_key(unit) for unit in units}
    return {
        "schema": SCHEMA,
        "measured": now(),
        "trials": trials,
        "machines": machines,
        "sets": dict(sorted(sets.items())),
        "methods": list(methods.values()),
        "plan": _plan(wanted, done),
        "units": units,
        "failed": failed,
        # Tuned cross-entropy is trained anew, and alike, in every block.
        "runs": list({(*_key(one)[1:], one["method"]): one for one in reversed(runs)}.values())[::-1],
    }


def lacking(results: Record, wanted: Sequence[Unit]) -> list[Unit]:
    """Return the units that results do not hold."""
    done = {_key(unit) for unit in results["units"]}
    return [unit for unit in wanted if _key({**unit.named, "seed": unit.seed}) not in done]


def _index(machines: list[Record], machine: Record) -> int:
    if machine not in machines:
        machines.append(machine)
    return machines.index(machine)


def _key(one: Record) -> tuple[Any, ...]:
    return tuple(one[name] for name in ("block", "data", "objective", "model", "seed"))


def _plan(wanted: Sequence[Unit], done: Set[tuple[Any, ...]]) -> list[Record]:
    rows: dict[tuple[Any, ...], Record] = {}
    for unit in wanted:
        row = rows.setdefault(tuple(unit.named.values()), {**unit.named, "planned": 0, "done": 0})
        row["planned"] += 1
        row["done"] += _key({**unit.named, "seed": unit.seed}) in done
    return list(rows.values())


def _short(one: Record, found: Record, unit: Record) -> Record:
    return {
        **unit,
        "method": one["method"],
        "test": round(one["test"], 6),
        "validation": round(one["validation"], 6),
        "kept": one["kept"],
        "chosen": one["chosen"],
        "seconds": one["seconds"],
        "test_over_train": round(found["test_over_train"], 4),
        "test_positives": found["test_positives"],
        **({"signals": one["signals"]} if "signals" in one else {}),
    }


def save(results: Record, path: Path) -> None:
    """Write results, a unit and a run a line, so that a difference between two files can be read."""
    text = json.dumps({name: value for name, value in results.items() if name not in LONG}, indent=1).removesuffix(
        "\n}"
    )
    for name in LONG:
        text += f',\n "{name}": [\n' + ",\n".join("  " + json.dumps(one) for one in results[name]) + "\n ]"
    write_atomically(path, text + "\n}\n")
