"""Compare losses on a table of data: plan, run, resume, and say what came out."""

import contextlib
import json
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

import joblib
import numpy as np
from joblib.parallel import get_active_backend
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from rareloss import Objective
from rareloss.table import Data, DataError, Fold, Table, TableOptions, load, split, windows
from rareloss.tabular.comparison.choice import choose
from rareloss.tabular.comparison.forecast import forecasts
from rareloss.tabular.comparison.report import html_summary, write_report
from rareloss.tabular.comparison.runs import TREES, Store, run_unit, unit_name, write_atomically
from rareloss.tabular.comparison.statistics import LEVEL, judge
from rareloss.tabular.methods import RECIPE, Method, choose_methods
from rareloss.tabular.models import MODELS, find_model
from rareloss.training import TEMPERATURES

TOO_GOOD = 0.99
__all__ = ["Comparison", "Interrupted", "compare", "versions"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a comparison; what was finished is in ``comparison``, and kept where ``out`` was given."""

    def __init__(self, comparison: "Comparison") -> None:
        super().__init__("the comparison was interrupted")
        self.comparison = comparison


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        results: everything, as ``results.json`` holds it.
    """

    results: dict[str, Any]

    @classmethod
    def from_json(cls, path: str | Path) -> "Comparison":
        """Read a ``results.json``."""
        return cls(json.loads(Path(path).read_text("utf-8")))

    @property
    def verdicts(self) -> dict[str, str]:
        """One plain sentence per model."""
        return {row["model"]: row["sentence"] for row in self.results["verdicts"]}

    @property
    def suspicion(self) -> str | None:
        """A sentence where a model is better than models of real data are, as where a column gives the answer away."""
        best = max(self.results["runs"], key=lambda run: run["test"], default=None)
        if best is None or best["test"] < TOO_GOOD or len(self.results["data"]["classes"]) > 2:
            return None
        name = "boosted trees" if best["method"] == TREES else f"{best['method']} of {best['model']}"
        return (
            f"{name} reached {best['test']:.3f}, which few real problems allow: look for a column that gives the "
            "answer away (rareloss advise), or rows that are in two folds (--group)"
        )

    @property
    def forecasts(self) -> dict[str, str]:
        """One plain sentence per scorecard: what was expected of a ranking stage, and what came out."""
        return {row["model"]: row["sentence"] for row in self.results["forecasts"]}

    def save(self, folder: str | Path) -> None:
        """Write ``results.json`` and ``report.html`` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "results.json", json.dumps(self.results, indent=1, allow_nan=False))
        write_report(self.results, folder / "report.html")

    def table(self) -> RichTable:
        """Return the table that the command line prints: test means over seeds, and differences with intervals."""
        results = self.results
        data = results["data"]
        title = f"{data['name']}: {results['objective']['name']}, mean over test folds"
        if data["rate"] is not None:
            title += f" of {data['folds']['test_positives']:,} positives ({data['rate']:.2%} of all rows)"
        table = RichTable("method", title=title, title_justify="left")
        for heading in ("test", "difference", f"{LEVEL:.0%} interval"):
            table.add_column(heading, justify="right", no_wrap=True)
        gaps = {(gap["model"], gap["method"]): gap for gap in results["differences"]}
        for family in results["models"]:
            table.add_section()
            table.add_row(f"[bold]{family['name']}[/bold]")
            for method in results["methods"]:
                key = family["name"], method["name"]
                tests = [run["test"] for run in results["runs"] if (run["model"], run["method"]) == key]
                row = [f"  {method['label']}", f"{np.mean(tests):.3f}" if tests else "–"]
                if gap := gaps.get(key):
                    row.append(f"{gap['mean']:+.3f}{'*' if gap['supported'] else ' '}")
                    if gap["low"] is not None:
                        row.append(f"{gap['low']:+.3f} to {gap['high']:+.3f}")
                table.add_row(*row)
        if any(gap["supported"] for gap in results["differences"]):
            table.caption = "* better than tuned cross-entropy beyond its interval"
        return table

    def _repr_html_(self) -> str:
        return html_summary(self.results)

    def __repr__(self) -> str:
        data, objective = self.results["data"]["name"], self.results["objective"]["text"]
        return f"Comparison({data!r}, {objective!r}): {self.results['overall']}"


def compare(
    data: Data | None = None,
    *,
    objective: str = "ap",
    seeds: int | Sequence[int] = 5,
    trials: int = 8,
    models: Sequence[str] = tuple(MODELS),
    methods: Sequence[str] | None = None,
    out: str | Path | None = None,
    workers: int | None = 1,
    progress: bool = False,
    say: Callable[[str], None] | None = None,
    command: str | None = None,
    **table_options: Unpack[TableOptions],
) -> Comparison:
    """Train the same models under every loss that fits an objective, and judge each on held-out rows.

    Everything is chosen on validation; each test fold is scored once per method. Each seed is a split of its own,
    shared by all methods. With ``workers``, units (a seed of a model) run in joblib's processes; inside
    ``joblib.parallel_config("dask")`` or another backend they run there. The numbers are the same in every case.

    Args:
        data: as :func:`rareloss.table.load` takes them.
        objective: ``"ap"``, ``"recall@top=0.5%"``, ``"recall@fpr=0.1%"`` or ``"pauc@fpr=0-0.5%"``.
        seeds: how many splits, or which.
        trials: draws of hyper-parameters for tuned cross-entropy.
        models: ``linear``, ``additive``, ``mlp``, or ``module:function``.
        methods: names of methods; all that fit by default. Tuned and weighted cross-entropy and the trees always run.
        out: folder for ``results.json``, ``report.html`` and finished units; the same call resumes from it.
        workers: processes; None: one per core, or as many as an active joblib backend has.
        progress: show progress bars.
        say: called with each sentence that a user should read: what was sampled, kept or dropped.
        command: how this was called, for the record.
        table_options: which column is what: ``target``, ``positive`` and the others of
            :class:`rareloss.table.TableSpec`.

    Returns:
        the results, with table, verdicts and report.

    Raises:
        DataError: the data or an argument cannot be used; nothing was written.
        Interrupted: Ctrl-C; it carries what was finished.
    """
    say = say or (lambda sentence: None)
    try:
        judged = Objective.parse(objective)
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from error
    chosen = choose_methods(judged, methods)
    numbers = _seeds(seeds)
    if trials < 1 or (workers is not None and workers < 1):
        raise DataError(f"trials and workers must be at least 1, got {trials} and {workers}")
    families = [find_model(name) for name in dict.fromkeys(models)]
    if not families:
        raise DataError(f"no model was named; use {', '.join(MODELS)} or module:function of your own")
    table = load(data, **table_options)
    for sentence in table.notes:
        say(sentence)
    folds = {seed: split(table, seed) for seed in numbers}  # refuses what cannot be split before any work
    if table.time is not None:
        said = "; ".join(f"seed {seed}: {windows(table, fold)}" for seed, fold in list(folds.items())[:3])
        say(f"split by time: {said}")
    own = {"trials": trials, "methods": [method.name for method in chosen], "objective": str(judged), "recipe": RECIPE}
    own |= {"temperatures": TEMPERATURES}
    identity = {**own, "data": table.sha256, "split_by": table.split_by, "versions": versions()}
    identity["group_and_time"] = table.split_sha256
    store = Store(None if out is None else Path(out), identity)

    wanted = [(family.name, seed) for seed in numbers for family in sorted(families, key=lambda s: s.scorecard)]
    wanted += [(TREES, seed) for seed in numbers]
    units = {key: unit for key in wanted if (unit := store.find(*key)) is not None}
    if units:
        say(f"{len(units)} of {len(wanted)} units were finished before and are taken over from {out}")

    names = [family.name for family in families]
    described: dict[str, Any] = {
        "schema": 1,
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": command or "rareloss.tabular.compare(...)",
        "data": _described(table, folds[numbers[0]]),
        "objective": {"text": str(judged), "name": judged.name, "cap": _cap(judged, table)},
        "settings": {"seeds": numbers, "models": names, "workers": workers, **table.spec.to_dict(), **own},
        "models": [{"name": family.name, "about": family.about} for family in families],
        "methods": [{key: getattr(method, key) for key in ("name", "label", "about", "kind")} for method in chosen],
    }

    def found() -> Comparison:
        finished = [units[key] for key in wanted if key in units]
        unfinished = [{"seed": seed, "model": name} for name, seed in wanted if (name, seed) not in units]
        ratio = float(np.mean([len(fold.test) / len(fold.train) for fold in folds.values()]))
        judged_runs = judge(finished, described, ratio, shared=TREES)
        expected = forecasts(
            judged_runs["runs"],
            [family.name for family in families if family.scorecard],
            described["methods"],
            float(np.mean(np.bincount(table.target[folds[numbers[0]].train])[0 if table.multiclass else 1 :])),
        )
        results = {**described, **judged_runs, "forecasts": expected, "unfinished": unfinished}
        deploy = None
        if judged_runs["verdicts"] and not table.multiclass:
            deploy = asdict(choose(results))
        return Comparison({**results, "deploy": deploy})

    try:
        with _bars(progress, wanted, units, chosen) as (finished, ticks):
            left = [key for key in wanted if key not in units]
            for unit in _all(left, partial(run_unit, table, judged, chosen, trials=trials, ticks=ticks), workers):
                store.keep(unit)
                units[unit["model"], unit["seed"]] = unit
                finished(unit)
    except KeyboardInterrupt:
        stopped = found()
        if out is not None and stopped.results["runs"]:
            stopped.save(out)
        raise Interrupted(stopped) from None
    comparison = found()
    if out is not None:
        comparison.save(out)
    return comparison


def _all(
    left: Sequence[tuple[str, int]], run: Callable[..., dict[str, Any]], workers: int | None
) -> Iterator[dict[str, Any]]:
    """Run units here or in joblib's workers, and yield each as it is finished."""
    backend, _ = get_active_backend()
    elsewhere = type(backend).__name__ not in ("LokyBackend", "SequentialBackend")
    jobs = workers or (None if elsewhere else os.cpu_count() or 1)
    if jobs == 1 and not elsewhere:
        yield from (run(*key) for key in left)
        return
    parallel = joblib.Parallel(n_jobs=None if elsewhere else jobs, return_as="generator_unordered", pre_dispatch="all")
    yield from parallel(joblib.delayed(run)(*key, in_process=False) for key in left)


@contextlib.contextmanager
def _bars(
    shown: bool, wanted: Sequence[tuple[str, int]], units: Mapping[Any, Any], methods: Sequence[Method]
) -> Iterator[tuple[Callable[[dict[str, Any]], None], str | None]]:
    """Show a bar for all units and one for each that runs, which moves method by method; yield what moves them."""
    if not shown:
        yield lambda unit: None, None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as ticks, Progress(*columns, transient=True) as bars:
        whole = bars.add_task("splits and models", total=len(wanted), completed=len(units))
        rows = {}
        for name, seed in (key for key in wanted if key not in units):
            total = len([method for method in methods if (method.kind == "reference") == (name == TREES)])
            rows[name, seed] = bars.add_task(f"{name}, seed {seed}: methods", total=total, visible=False)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.3):
                for key, row in list(rows.items()):
                    ticked = len(list(Path(ticks).glob(f"{unit_name(*key)}.*")))
                    if ticked and not bars.tasks[row].visible:
                        bars.reset(row, visible=True)
                    bars.update(row, completed=max(0, ticked - 1))

        def finished(unit: dict[str, Any]) -> None:
            bars.update(rows.pop((unit["model"], unit["seed"])), visible=False)
            bars.advance(whole)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield finished, ticks
        finally:
            done.set()
            watcher.join()


# -------------------------------------------------------------------------------------------------------------- results


def _described(table: Table, fold: Fold) -> dict[str, Any]:
    counts = np.bincount(table.target, minlength=len(table.classes))
    test = np.bincount(table.target[fold.test], minlength=len(table.classes))
    return {
        "name": table.name,
        "sha256": table.sha256,
        "split_sha256": table.split_sha256,
        "rows": len(table.target),
        "features": table.frame.shape[1],
        "classes": list(table.classes),
        "rate": None if table.multiclass else table.rate,
        "class_counts": counts.tolist(),
        "split_by": table.split_by,
        "notes": list(table.notes),
        "folds": {
            **{name: len(rows) for name, rows in fold._asdict().items()},
            "test_positives": int(test.min() if table.multiclass else test[1]),
        },
    }


def _cap(objective: Objective, table: Table) -> float | None:
    sums = np.bincount(table.target, table.weight, len(table.classes))
    shares = (sums / sums.sum()).tolist()[0 if table.multiclass else 1 :]
    best = float(np.mean([objective.best_value(share) for share in shares]))
    return best if best < 1 else None


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in dict.fromkeys(seeds)]
    if not numbers or min(numbers) < 0:
        raise DataError(f"seeds must be a number of splits above 0, or a list of whole numbers, got {seeds!r}")
    return numbers


def versions() -> dict[str, str]:
    """Name the versions that numbers depend on."""
    packages = {name: version(name) for name in ("rareloss", "torch", "scikit-learn", "numpy")}
    return {**packages, "python": ".".join(map(str, sys.version_info[:3]))}
