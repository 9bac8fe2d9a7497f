"""Run the geometries, and write what they show.

python -m benchmarks.geometries --out FILE.json --minutes 20   # the same command goes on
python -m benchmarks.geometries --out FILE.json --page         # benchmarks/results/geometries.json, docs/geometries.md
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from benchmarks.geometries.draws import Drawn, bent, best_line, contested, with_noise
from benchmarks.geometries.page import page
from torch.utils.data import DataLoader, TensorDataset

from rareloss import Objective, SmoothAPLoss, finetune
from rareloss.table import load
from rareloss.table.folds import Fold
from rareloss.tabular.comparison.runs import write_atomically
from rareloss.tabular.methods import methods_for
from rareloss.tabular.models import find_model
from rareloss.tabular.training import Task
from rareloss.tabular.ways import fit_methods

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("tuned_ce", "ce_continued", "smooth_ap_stage", "recall_stage")
TEST_ROWS = 150_000
TRIALS = 4
Record = dict[str, Any]


def cells() -> Iterator[Record]:
    """Yield what is run, seed by seed, so that a run that is stopped has some of everything."""
    bent_by = {"bend": 1.0, "rate": 0.01, "rows": 60_000}
    for seed in range(8):
        for bend in (0.0, 0.5, 0.75, 1.0, 1.25, 1.5):
            for rate in (0.1, 0.03, 0.01, 0.003):
                yield {"name": "dial", "bend": bend, "rate": rate, "rows": 60_000, "seed": seed}
            yield {"name": "dial", "bend": bend, "rate": 0.0005, "rows": 200_000, "seed": seed}
        for bend in (0.5, 1.0, 1.5):
            yield {"name": "agree", **bent_by, "bend": bend, "conflict": False, "seed": seed}
        for rows in (4_000, 12_000, 40_000, 130_000, 400_000):
            yield {"name": "positives", **bent_by, "rows": rows, "seed": seed}
        for noise in (0.0, 0.05, 0.1, 0.2):
            yield {"name": "noise", **bent_by, "noise": noise, "seed": seed}
        for pool in (256, 1024, 4096, 16_384, 0):
            yield {"name": "pool", **bent_by, "pool": pool, "seed": seed}
        for queue in (0, 4096, 16_384):
            yield {"name": "queue", **bent_by, "queue": queue, "seed": seed}
        for model in ("linear", "additive", "mlp8", "mlp"):
            yield {"name": "contested", "model": model, "rows": 240_000, "seed": seed}


def run(cell: Record) -> Record:
    """Draw a cell's rows, train, and judge on fresh rows of the same distribution.

    Returns:
        the cell with ``positives`` of train, ``bayes``, the best ``line`` where it is known, and test values by method.
    """
    # Cells of one distribution share their rows, whatever is done with them.
    shape = {key: cell.get(key) for key in ("bend", "rate", "rows", "conflict")}
    rng = np.random.default_rng([cell["seed"], *json.dumps(shape).encode()])
    rows = cell["rows"]
    train, validation = round(0.75 * rows), rows - round(0.75 * rows)
    line = {}
    if cell["name"] == "contested":
        drawn = contested(rows + TEST_ROWS, rng)
    else:
        by = (cell["bend"], cell["rate"])
        drawn = bent(rows + TEST_ROWS, *by, rng, conflict=cell.get("conflict", True))
        line = {"line": round(best_line(*by, cell.get("conflict", True)), 5)}
    y = drawn.y.copy()
    y[:rows] = with_noise(y[:rows], cell.get("noise", 0.0), rng)
    task = _task(drawn, y, train, validation, cell)
    model = find_model(cell.get("model", "linear"))
    methods = [method for method in methods_for(task.objective) if method.name in METHODS]
    if cell["name"] in ("pool", "queue"):
        methods = methods[:1]
    test: Record = {}
    kept: Record = {}
    for method, fitted in fit_methods(task, model, methods, TRIALS):
        if isinstance(fitted, Exception):
            raise fitted
        test[method.name] = _value(task, fitted.score(task.test_inputs(fitted.kind)))
        kept[method.name] = fitted.kept
        if method.name == "tuned_ce" and cell["name"] in ("pool", "queue"):
            model = _stepped(task, fitted, cell)
            with torch.no_grad():
                test["steps"] = _value(task, model(task.test_inputs(fitted.kind))[:, 0])
    positives = int(task.train_target.sum())
    return {
        **cell,
        "positives": positives,
        "objective": str(task.objective),
        "bayes": _value(task, torch.from_numpy(drawn.truth[rows:])),
        **line,
        "test": test,
        "kept": kept,
    }


def _task(drawn: Drawn, y: np.ndarray, train: int, validation: int, cell: Record) -> Task:
    frame = pd.DataFrame(drawn.x, columns=[f"x{index}" for index in range(drawn.x.shape[1])]).assign(y=y)
    table = load(frame, target="y", positive="1")
    places = np.arange(len(y))
    fold = Fold(places[:train], places[train : train + validation], places[train + validation :])
    objective = Objective.parse("recall@top=0.5%" if cell["name"] == "contested" else "ap")
    return Task(table, fold, objective, cell["seed"])


def _value(task: Task, scores: torch.Tensor) -> float:
    labels = torch.from_numpy(task.table.target[task.fold.test])
    return round(float(task.objective.metric(scores.double(), labels).value), 5)


def _stepped(task: Task, fitted: Any, cell: Record) -> torch.nn.Module:
    # AdamW steps of Smooth-AP from the tuned solution: on a pool, or on batches of 1,024 with a queue.
    x, held = task.inputs(fitted.kind)
    validation = (held, task.validation_target)
    steps: Record = {"optimizer": "adamw", "steps": 200, "seed": cell["seed"]}
    if cell["name"] == "pool":
        pool = cell["pool"] or None
        return finetune(fitted.model, "ap", (x, task.train_target), validation, pool_size=pool, **steps).model
    generator = torch.Generator().manual_seed(cell["seed"])
    batches = DataLoader(TensorDataset(x, task.train_target), 1024, shuffle=True, generator=generator, drop_last=True)
    loss = SmoothAPLoss(1, queue_size=cell["queue"], temperature=0.03)
    return finetune(fitted.model, "ap", batches, validation, losses=[loss], **steps).model


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not there yet, or write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geometries",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, kept cell by cell")
    parser.add_argument("--minutes", type=float, help="begin no cell later than this")
    parser.add_argument("--only", action="append", help="cells of this name; may be repeated")
    parser.add_argument("--page", action="store_true", help="write the results file, the page and its pictures")
    parser.add_argument("--root", type=Path, default=ROOT, help="where --page writes")
    given = parser.parse_args(arguments)
    found: list[Record] = json.loads(given.out.read_text("utf-8")) if given.out.exists() else []
    if given.page:
        lines = ",\n".join(json.dumps(one) for one in found)
        write_atomically(given.root / "benchmarks" / "results" / "geometries.json", f"[\n{lines}\n]\n")
        page(found, given.root / "docs")
        return
    done = [cell for cell in cells() if any(cell.items() <= one.items() for one in found)]
    end = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # the pool is what it is here
    for cell in cells():
        if cell in done or (given.only and cell["name"] not in given.only):
            continue
        if end is not None and time.monotonic() > end:
            break
        found.append(run(cell))
        write_atomically(given.out, json.dumps(found))
        print(json.dumps(found[-1]), flush=True)


if __name__ == "__main__":
    main()
