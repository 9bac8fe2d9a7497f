"""Which rule of keeping costs nothing: fine-tuning's candidates on real sets, judged by many rules at once.

``python -m benchmarks.keeping --data DIR --out FILE.npz`` trains, ``python -m benchmarks.keeping FILE.npz`` prints the
table. DIR holds npz files with ``X`` and ``y``; without it, sets that scikit-learn makes or brings.

Each unit is one set, split, model and objective: cross-entropy tuned on validation, then every point of the
regularization path, with its objective on validation, on bootstrap samples of it, and on test rows. Rules only choose
among these, so that all of them are compared on the same models.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits, make_classification
from sklearn.model_selection import train_test_split

from rareloss import Objective
from rareloss.tabular.logistic import logistic_draws, search, solve_logistic
from rareloss.tabular.preprocess import pipeline
from rareloss.training import Batch, Whitening, find_restart, fit_regularization_path, ranking_losses

ROWS, TEST_ROWS, RESAMPLES, DRAWS = 6000, 12_000, 200, 6
OBJECTIVES = ("ap", "recall@top=2%", "recall@top=5%", "pauc@fpr=0-2%")
MODELS = {"linear": "normal", "additive": "spline"}
# At most so many inputs of splines: beyond, the path takes minutes.
MOST_INPUTS = {"linear": 400, "additive": 60}


class Candidates(NamedTuple):
    """The path of one unit, the start first.

    Args:
        unit: set, model, objective, seed.
        weights: of the model.
        positives: of the train rows.
        value: objective on validation ``[k]``.
        resampled: on bootstrap samples of it, ``[B, k]``.
        test: on test rows ``[k]``.
    """

    unit: tuple[str, str, str, int]
    weights: int
    positives: int
    value: np.ndarray
    resampled: np.ndarray
    test: np.ndarray


def sets(folder: Path | None) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, inputs and labels of each set; of several classes, the rare ones against all others."""
    for path in sorted(folder.glob("*.npz")) if folder else ():
        with np.load(path) as stored:
            x, y = stored["X"], stored["y"]
        classes, counts = np.unique(y, return_counts=True)
        if len(classes) == 2:
            yield path.stem, x, (y == 1).astype(np.int64)
            continue
        rare = classes[(counts >= 120) & (counts < 0.1 * len(y))]
        for label in rare[:5]:
            yield f"{path.stem}={label}", x, (y == label).astype(np.int64)
    x, y = load_digits(return_X_y=True)
    yield "digits=8", x, (y == 8).astype(np.int64)
    for seed in (0, 1):  # logistic regression is right here, so that fine-tuning can only cost
        random = np.random.default_rng(seed)
        x = random.normal(size=(20_000, 8))
        odds = x @ random.normal(0, 0.7, 8) - 4.5
        yield f"logistic-{seed}", x, (random.random(20_000) < 1 / (1 + np.exp(-odds))).astype(np.int64)
        x, y = make_classification(20_000, 12, n_informative=5, weights=[0.97], class_sep=0.7, random_state=seed)
        yield f"clusters-{seed}", x, y.astype(np.int64)


def train(x: np.ndarray, y: np.ndarray, unit: tuple[str, str, str, int]) -> Candidates:
    """Tune cross-entropy, follow the path to its end, and judge each point of it."""
    _, model, name, seed = unit
    objective = Objective.of(name)
    size = min(ROWS, len(y) // 2)
    seen, test = train_test_split(np.arange(len(y)), train_size=size, stratify=y, random_state=seed)
    rows, held = train_test_split(seen, test_size=0.25, stratify=y[seen], random_state=seed)
    frame = pd.DataFrame(x).rename(columns=str)
    inputs = pipeline(frame.iloc[seen], MODELS[model], seed=seed).fit(frame.iloc[rows])
    train, held, test = (
        Batch(torch.from_numpy(inputs.transform(frame.iloc[part])), torch.from_numpy(y[part]), None)
        for part in (rows, held, test[:TEST_ROWS])
    )

    def solved(draw: Any) -> torch.nn.Linear:
        classes = {0: 1.0, 1: draw["class_weight"]}
        return solve_logistic(train.inputs, train.targets.numpy(), classes, draw["C"], tolerance=1e-4)[0]

    def judge(layer: torch.nn.Module, part: Batch) -> float:
        with torch.no_grad():
            return float(objective.metric(layer(part.inputs), part.targets).value)

    _, layer = search(logistic_draws(DRAWS, seed), solved, lambda found: judge(found, held))
    loss = ranking_losses(objective, 1, "linear", queue_size=0)[0]
    whitening = Whitening(train.inputs, None)
    moved, plain = whitening.whiten_layer(layer), torch.nn.Linear(train.inputs.shape[1], 1)
    whitened = train._replace(inputs=whitening.inputs.float())
    scores, tested, count = [], [], itertools.count()

    def evaluate() -> float:
        whitening.unwhiten_layer(moved, plain)
        with torch.no_grad():
            scores.append(plain(held.inputs)[:, 0])
        tested.append(judge(plain, test))
        return float(next(count))  # later is better: the whole path is walked

    restart = partial(find_restart, whitening.whiten_layer(layer), loss, whitened, objective)
    fit_regularization_path(moved, loss, whitened, evaluate, find_restart=restart, tolerance=3e-5)
    weights = torch.empty(len(held.targets), RESAMPLES).exponential_(generator=torch.Generator().manual_seed(0))
    labels = held.targets[:, None].expand(-1, RESAMPLES)
    resampled = [objective.metric(s[:, None].expand(-1, RESAMPLES), labels, weights).value for s in scores]
    value = [float(objective.metric(s, held.targets).value) for s in scores]
    positives = int(train.targets.sum())
    return Candidates(
        unit, layer.weight.numel(), positives, np.array(value), torch.stack(resampled, 1).numpy(), np.array(tested)
    )


def collect(folder: Path | None, seeds: range, out: Path, only: str) -> None:
    """Train every unit, and store what rules need; what is there already is not trained again."""
    units: list[Candidates] = list(load(out)) if out.exists() else []
    done = {each.unit for each in units}
    for seed in seeds:
        for (name, x, y), model in itertools.product(sets(folder), MODELS):
            if only not in name or x.shape[1] > MOST_INPUTS[model]:
                continue
            objective = OBJECTIVES[(seed + len(name)) % len(OBJECTIVES)]
            unit = (name, model, objective, seed)
            if unit in done:
                continue
            begun = time.time()
            units.append(train(x, y, unit))
            print(*unit, f"{time.time() - begun:.1f} s", flush=True)
            np.savez(out, units=np.array([tuple(each) for each in units], dtype=object))


def load(path: Path) -> list[Candidates]:
    """Read what :func:`collect` stored."""
    with np.load(path, allow_pickle=True) as stored:
        return [Candidates(*row) for row in stored["units"]]
