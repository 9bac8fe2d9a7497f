"""One unit of work, a model on one split under every method, and where finished ones are kept."""

import contextlib
import hashlib
import importlib
import inspect
import json
import math
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from rareloss import Objective
from rareloss.table import DataError, Table, split, whole_file
from rareloss.tabular.comparison.evaluation import evaluate
from rareloss.tabular.comparison.forecast import signals
from rareloss.tabular.methods import Method
from rareloss.tabular.models import find_model
from rareloss.tabular.training import Fitted, Task
from rareloss.tabular.ways import fit_methods, fit_trees

__all__ = ["TREES", "Store", "one_thread", "run_unit", "unit_name", "write_atomically"]

# The trees are no model's own: they are fitted once per seed.
TREES = "trees"


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, so that the numbers do not depend on how many workers there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def run_unit(
    table: Table,
    objective: Objective,
    methods: Sequence[Method],
    family: str,
    seed: int,
    trials: int,
    *,
    in_process: bool = True,
    ticks: str | None = None,
) -> dict[str, Any]:
    """Train a model on one split under each method, and score each one's test fold, once, in one thread.

    Args:
        table: the data.
        objective: what is judged by.
        methods: what to train; the trees are left to the unit of that name.
        family: a model's name, or :data:`TREES`.
        seed: of the split and everything after it.
        trials: draws of hyper-parameters.
        in_process: whether this is the caller's own process.
        ticks: a folder where a file appears at the start and for each finished method, for whoever shows progress.

    Returns:
        ``seed``, ``model``, ``runs`` and ``failed``, as in results.json.
    """
    if not in_process:
        with contextlib.suppress(ValueError):  # not the main thread of a worker: nothing would reach it anyway
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to answer
    unit: dict[str, Any] = {"seed": seed, "model": family, "runs": [], "failed": []}
    with one_thread(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = Task(table, split(table, seed), objective, seed)
        _tick(ticks, family, seed, "start")
        last = time.perf_counter()
        for method, fitted in _fitted(task, methods, family, trials):
            found = fitted if isinstance(fitted, Exception) else _run(task, method, family, fitted)
            if isinstance(found, Exception):
                error = f"{type(found).__name__}: {found}"
                unit["failed"].append({"seed": seed, "model": family, "method": method.name, "error": error})
            else:
                # Of what is said, a user needs what the losses say of their operating point.
                said = {str(each.message) for each in caught if "are needed for a stable gradient" in str(each)}
                seconds = round(time.perf_counter() - last, 2)
                unit["runs"].append({**found, "seconds": seconds, "warnings": sorted(said)})
            caught.clear()
            last = time.perf_counter()
            _tick(ticks, family, seed, method.name)
    return unit


def _fitted(
    task: Task, methods: Sequence[Method], family: str, trials: int
) -> Iterator[tuple[Method, Fitted | Exception]]:
    if family != TREES:
        yield from fit_methods(task, find_model(family), methods, trials)
        return
    for method in methods:
        if method.kind == "reference":
            yield method, fit_trees(task, trials)


def _run(task: Task, method: Method, family: str, fitted: Fitted) -> dict[str, Any] | Exception:
    scores = fitted.score(task.test_inputs(fitted.kind))
    if not bool(torch.isfinite(scores).all()):
        return FloatingPointError("its scores of the test fold are not finite")
    known: dict[str, Any] = {}
    # What a forecast of the ranking methods knows; it was learned on rows that count alike.
    if method.kind in ("baseline", "reference") and task.table.weight is None:
        x = task.inputs(fitted.kind)[1]
        known = {"signals": signals(fitted.score(x), task.validation_target.numpy(), task.objective)._asdict()}
    history = [{key: None if math.isnan(value) else value for key, value in row.items()} for row in fitted.history]
    return {
        "seed": task.seed,
        "model": family,
        "method": method.name,
        "validation": fitted.validation,
        **evaluate(scores, task.table.target[task.fold.test], task.table, task.objective, task.test_weight),
        "chosen": fitted.chosen,
        "kept": fitted.kept,
        "history": history,
        **known,
    }


def _tick(folder: str | None, family: str, seed: int, name: str) -> None:
    if folder is not None:
        with contextlib.suppress(OSError):  # another machine of a cluster has no such folder
            (Path(folder) / f"{unit_name(family, seed)}.{name}").touch()


def unit_name(family: str, seed: int) -> str:
    """Name a unit's file; of the user's own code (``module:function``) by what its file holds too."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in family)
    if ":" in family:
        module = importlib.import_module(family.partition(":")[0])
        source = Path(inspect.getsourcefile(module) or "")
        held = source.read_bytes() if source.is_file() else b""
        plain += "-" + hashlib.sha256(family.encode() + b"\0" + held).hexdigest()[:12]
    return f"{plain}-seed{seed}"


class Store:
    """Keep finished units in a folder, each written whole or not at all.

    Args:
        folder: where; made if missing. None keeps nothing.
        settings: everything that a unit's numbers depend on.

    Raises:
        DataError: the folder cannot be written, or holds units of other settings.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.runs = None if folder is None else folder / "runs"
        if self.runs is None or folder is None:
            return
        kept = self.runs / "settings.json"
        wanted = json.loads(json.dumps(settings))
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            # Of two that are begun together one writes it, and both read that one.
            write_atomically(kept, json.dumps(wanted, indent=1), first=True)
            found = json.loads(kept.read_text("utf-8"))
            other = [
                f"{key} {_shown(found.get(key))} there, {_shown(wanted.get(key))} now"
                for key in sorted({*found, *wanted})
                if found.get(key) != wanted.get(key)
            ]
            if other:
                raise DataError(
                    f"{folder} holds work with other settings ({'; '.join(other)}); name another folder, "
                    "or delete this one"
                )
        except (OSError, json.JSONDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its settings.json is broken"
            raise DataError(f"{folder} cannot be used as output folder: {reason}; name another one") from error

    def find(self, family: str, seed: int) -> dict[str, Any] | None:
        """Return a finished unit; None where it is missing, or where a method failed and deserves another try."""
        path = self._path(family, seed)
        if path is None or not path.exists():
            return None
        unit: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return None if unit["failed"] else unit

    def keep(self, unit: Mapping[str, Any]) -> None:
        """Write a finished unit."""
        path = self._path(unit["model"], unit["seed"])
        if path is not None:
            write_atomically(path, json.dumps(unit))

    def _path(self, family: str, seed: int) -> Path | None:
        return None if self.runs is None else self.runs / f"{unit_name(family, seed)}.json"


def write_atomically(path: Path, text: str, *, first: bool = False) -> None:
    """Write a text file that appears whole or not at all; with ``first`` one that is there stays."""
    with whole_file(path, first=first) as file:
        file.write(text.encode())


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
