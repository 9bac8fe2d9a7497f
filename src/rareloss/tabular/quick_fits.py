"""Quick fits before a comparison: how well simple models do, and which whole numbers are names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rareloss import Objective
from rareloss.table import Table, split
from rareloss.tabular.comparison.forecast import forecast, signals
from rareloss.tabular.models import find_model
from rareloss.tabular.preprocess import Kind
from rareloss.tabular.training import Fitted, Task, logistic, trees

__all__ = ["Finding", "fit_quickly", "read_as_names"]

MOST_TRAIN_ROWS = 50_000
MOST_TRAIN_POSITIVES = 10_000
# A column of so many distinct whole numbers may hold codes; so many are tried, where there are not too many columns.
FEW_CODES, MOST_CODES, MOST_CANDIDATES, MOST_COLUMNS = 3, 5_000, 12, 200
# And by so many standard errors names must rank better.
SURE = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is known: a name, its value, the formula it comes from, and a sentence."""

    name: str
    value: Any
    formula: str
    sentence: str


def _task(table: Table, goal: Objective) -> Task:
    fold = split(table, 0)
    return Task(table, fold._replace(train=_sample(table.target, fold.train)), goal, 0)


def _line(task: Task, kinds: Sequence[Kind]) -> Fitted:
    return logistic(task, find_model("linear"), [{"kind": kind, "C": 1.0, "class_weight": 1.0} for kind in kinds])


def read_as_names(table: Table, goal: Objective, say: Callable[[str], None] | None) -> Finding | None:
    """Find columns of whole numbers by which a line ranks better if they are names than if they are quantities."""
    candidates = []
    for column in table.columns:
        if column.reads != "number" or column.features != (column.name,):
            continue
        values = table.frame[column.name].dropna()
        if FEW_CODES <= values.nunique() <= MOST_CODES and (values == np.floor(values)).all():
            candidates.append(column.name)
    if not candidates or table.frame.shape[1] > MOST_COLUMNS:
        return None
    task = _task(table, goal)
    as_numbers, known = _scored(task)
    better = {}
    for name in candidates[:MOST_CANDIDATES]:
        if say:
            say(f"is {name} a quantity or a name?")
        codes = table.frame[name].astype("Int64").astype("object").map(str, na_action="ignore").astype("category")
        value, scores = _scored(_task(replace(table, frame=table.frame.assign(**{name: codes})), goal))
        if value > as_numbers + SURE * _error_of_gain(task, known, scores):
            better[name] = value
    if not better:
        return None
    told = ", ".join(f"{name} ({value:.3f})" for name, value in better.items())
    return Finding(
        "codes",
        better,
        "validation value of logistic regression with the column as a category, over that with it as a number",
        f"Codes read as quantities? With these as names logistic regression reaches more than {as_numbers:.3f}: "
        f"{told}. The command below says so (--category).",
    )


def _scored(task: Task) -> tuple[float, Tensor]:
    line = _line(task, ("normal",))
    return line.validation, line.score(task.inputs("normal")[1])


def _error_of_gain(task: Task, one: Tensor, other: Tensor) -> float:
    """Return the standard error of a gain on validation: of 50 Bayesian bootstraps of its rows."""
    rng, target = np.random.default_rng(0), task.validation_target
    own = torch.ones(len(target)) if task.validation_weight is None else task.validation_weight
    gains = []
    for _ in range(50):
        weight = own * torch.from_numpy(rng.exponential(size=len(target))).float()
        gains.append([float(task.objective.metric(scores, target, weight).value) for scores in (one, other)])
    return float(np.std(np.diff(gains, axis=1), ddof=1))


def fit_quickly(table: Table, goal: Objective, say: Callable[[str], None] | None) -> Finding:
    """Fit logistic regression and boosted trees on one split, and say what a ranking stage may bring."""
    task = _task(table, goal)
    fold = task.fold
    if say:
        say("fitting logistic regression and boosted trees")
    line = _line(task, ("standard", "normal"))
    usual = {"learning_rate": 0.1, "max_leaf_nodes": 31, "min_samples_leaf": 20, "l2_regularization": 0.0}
    forest = trees(task, [usual], most=100)
    labels = table.target[fold.validation]
    scores = [one.score(task.inputs(one.kind)[1]) for one in (line, forest)]
    known = [signals(one, labels, goal) for one in scores]
    value: dict[str, dict[str, float]] = {
        "logistic": {"validation": line.validation, **known[0]._asdict()},
        "trees": {"validation": forest.validation, **known[1]._asdict()},
    }
    sentence = (
        f"Quick fits, judged on validation rows: logistic regression {line.validation:.3f}, boosted trees "
        f"{forest.validation:.3f}."
    )
    told = forecast(
        known[0],
        known[1],
        value=line.validation,
        reference_value=forest.validation,
        positives=int((table.target[split(table, 0).train] == 1).sum()),
    )
    value["forecast"] = told._asdict()
    sentence += f" Expected of a ranking stage of the linear model: {told} (docs/forecast.md)."
    return Finding("ranking_loss", value, "logistic regression and boosted trees on one split", sentence)


def _sample(target: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # All positives up to a bound; validation stays whole, so that what is measured has the true rate.
    rng = np.random.default_rng(0)
    positives, negatives = rows[target[rows] == 1], rows[target[rows] != 1]
    if len(rows) <= MOST_TRAIN_ROWS:
        return rows
    positives = rng.permutation(positives)[:MOST_TRAIN_POSITIVES]
    return np.sort(np.concatenate([positives, rng.permutation(negatives)[: MOST_TRAIN_ROWS - len(positives)]]))
