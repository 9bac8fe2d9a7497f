"""Compare the additive scorecard with the linear one and with boosted trees, on tables that are given.

    python benchmarks/additive.py mammography.npz fdh_early.npz --splits 5

A table is an ``.npz`` with ``X`` and ``y`` of two classes. Folds keep rows that are equal together. What is printed is
the objective on the fold that was left out, and the difference to the additive scorecard after cross-entropy alone,
each with its standard error over the folds.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold

from rareloss import Objective
from rareloss.tabular.estimators.additive import AdditiveRareClassifier
from rareloss.tabular.estimators.classifier import RareClassifier

LINEAR, START, STAGE, TREES = (
    "linear scorecard",
    "additive, cross-entropy",
    "additive, after the stage",
    "boosted trees",
)


def folds(x: np.ndarray, y: np.ndarray, splits: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the first ``splits`` of five or more folds, as rows of train and test."""
    equal = np.unique(x, axis=0, return_inverse=True)[1].reshape(-1)
    every = StratifiedGroupKFold(max(5, splits), shuffle=True, random_state=0).split(x, y, equal)
    return [rows for rows, _ in zip(every, range(splits), strict=False)]


def measure(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, objective: Objective
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the objective on the rows of test and the CPU seconds of the fit, by model."""
    start = time.process_time()
    linear = RareClassifier(objective, random_state=0).fit(x[train], y[train])
    middle = time.process_time()
    additive = AdditiveRareClassifier(objective, random_state=0).fit(x[train], y[train])
    end = time.process_time()
    trees = HistGradientBoostingClassifier(random_state=0, learning_rate=0.06, max_iter=150).fit(x[train], y[train])
    last = time.process_time()
    places = range(x.shape[1])
    scores = {
        LINEAR: linear.decision_function(x[test]),
        START: sum(additive.shape(place, x[test, place], of=additive.cross_entropy_) for place in places),
        STAGE: additive.decision_function(x[test]),
        TREES: trees.decision_function(x[test]),
    }
    label = torch.from_numpy(y[test])
    found = {
        name: float(objective.metric(torch.from_numpy(np.asarray(each)), label).value) for name, each in scores.items()
    }
    print(additive.finetuned_, {name: round(value, 4) for name, value in found.items()}, flush=True)
    return found, {LINEAR: middle - start, STAGE: end - middle, TREES: last - end}


def main() -> None:
    """Print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--objective", default="ap")
    asked = parser.parse_args()
    objective = Objective.parse(asked.objective)
    for path in asked.tables:
        data = np.load(path)
        x, y = data["X"].astype(np.float64), data["y"]
        runs = [measure(x, y, train, test, objective) for train, test in folds(x, y, asked.splits)]
        title = f"{path.stem}: {len(x):,} x {x.shape[1]}, {y.mean():.2%}, {len(runs)} folds"
        table = Table("model", objective.name, "difference", "CPU seconds", title=title)
        for name in (LINEAR, START, STAGE, TREES):
            values = np.array([found[name] for found, _ in runs])
            against = values - np.array([found[START] for found, _ in runs])
            seconds = np.median([spent[name] for _, spent in runs]) if name != START else np.nan
            table.add_row(
                name,
                _with_error(values),
                "" if name == START else _with_error(against, sign="+"),
                "" if name == START else f"{seconds:.1f}",
            )
        Console(width=100).print(table)


def _with_error(values: np.ndarray, sign: str = "") -> str:
    error = f" ({values.std(ddof=1) / np.sqrt(len(values)):.3f})" if len(values) > 1 else ""
    return f"{values.mean():{sign}.3f}{error}"


if __name__ == "__main__":
    main()
