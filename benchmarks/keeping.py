"""Which rule of keeping costs nothing: the candidates of fine-tuning on real sets, judged by many rules at once.

``python -m benchmarks.keeping OUT.npz --data DIR --seeds 0 6`` trains what OUT.npz lacks, and prints the table; without
``--seeds`` it prints alone. DIR holds npz files with ``X`` and ``y``; more sets are made, or come with scikit-learn.

Each unit is one set, split, model and objective: cross-entropy tuned on validation, then every point of the
regularization path, with its objective on validation, on bootstrap samples of it, and on test rows. Rules only choose
among these, so that all of them are compared on the same models.
"""

import argparse
import itertools
import math
import time
import warnings
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
from rareloss.tabular.preprocess import Kind, pipeline
from rareloss.training import Batch, Whitening, find_restart, fit_regularization_path, ranking_losses

TEST_ROWS, RESAMPLES, DRAWS = 12_000, 200, 6
OBJECTIVES = ("ap", "recall@top=2%", "recall@top=5%", "pauc@fpr=0-2%")
MODELS: dict[str, Kind] = {"linear": "normal", "additive": "spline"}
# Points of the path to one side, the start among them; then it is followed in reverse.
WAY = 7
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


def train(x: np.ndarray, y: np.ndarray, unit: tuple[str, str, str, int], rows: int) -> Candidates:
    """Tune cross-entropy, follow the path to its end, and judge each point of it; test rows are all but ``rows``."""
    _, model, name, seed = unit
    objective = Objective.of(name)
    size = min(rows, len(y) // 2)
    seen, test = train_test_split(np.arange(len(y)), train_size=size, stratify=y, random_state=seed)
    own, held = train_test_split(seen, test_size=0.25, stratify=y[seen], random_state=seed)
    frame = pd.DataFrame(x).rename(columns=str)
    inputs = pipeline(frame.iloc[seen], MODELS[model], seed=seed).fit(frame.iloc[own])
    train, held, test = (
        Batch(torch.from_numpy(inputs.transform(frame.iloc[part])), torch.from_numpy(y[part]), None)
        for part in (own, held, test[:TEST_ROWS])
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


def collect(folder: Path | None, seeds: range, rows: int, out: Path) -> None:
    """Train every unit, and store what rules need; what is there already is not trained again."""
    units = load(out) if out.exists() else []
    done = {each.unit for each in units}
    for seed in seeds:
        for (name, x, y), model in itertools.product(sets(folder), MODELS):
            unit = (name, model, OBJECTIVES[(seed + len(name)) % len(OBJECTIVES)], seed)
            if unit in done or x.shape[1] > MOST_INPUTS[model]:
                continue
            begun = time.time()
            units.append(train(x, y, unit, rows))
            print(*unit, f"{time.time() - begun:.1f} s", flush=True)
            np.savez(out, units=np.array([tuple(each) for each in units], dtype=object))


def load(path: Path) -> list[Candidates]:
    """Read what :func:`collect` stored: a file of your own, since it is a pickle."""
    with np.load(path, allow_pickle=True) as stored:
        return [Candidates(*row) for row in stored["units"]]


def error(unit: Candidates, one: int, other: int) -> float:
    """Compute the standard error of the difference of two candidates on validation."""
    return float((unit.resampled[:, one] - unit.resampled[:, other]).std(ddof=1))


def shortage(unit: Candidates) -> float:
    """Compute the factor on the margin of ``finetune`` where there are fewer than ten positives a weight."""
    return math.sqrt(max(1.0, 10 * unit.weights / max(unit.positives, 1)))


def in_turn(unit: Candidates, margin: float) -> int:
    """Choose as ``finetune`` does: better than the best so far by a margin; three without a gain end either way."""
    best = 0
    for way in (range(1, min(WAY, len(unit.value))), range(WAY, len(unit.value))):
        without_gain = 0
        for each in way:
            gain = unit.value[each] - unit.value[best]
            better = gain > 0 and gain > margin * shortage(unit) * error(unit, each, best)
            best, without_gain = (each, 0) if better else (best, without_gain + 1)
            if without_gain == 3:
                break
    return best


def lower_bound(unit: Candidates, margin: float) -> int:
    """Choose the highest of what each surely gains on the start."""
    gains = [unit.value[each] - unit.value[0] - margin * error(unit, each, 0) for each in range(1, len(unit.value))]
    return int(np.argmax([0.0, *gains]))


def reality_check(unit: Candidates, level: float) -> int:
    """Choose as :func:`lower_bound`, with the margin that the best of so many looks needs (White, 2000)."""
    gains, values = unit.resampled[:, 1:] - unit.resampled[:, :1], unit.value[1:] - unit.value[0]
    errors = gains.std(axis=0, ddof=1) + 1e-12
    largest = ((gains - gains.mean(axis=0)) / errors).max(axis=1)
    return int(np.argmax([0.0, *(values - max(0.0, float(np.quantile(largest, level))) * errors)]))


RULES: dict[str, Callable[[Candidates], int]] = {
    "best on validation": lambda unit: int(np.argmax(unit.value)),
    "in turn, 0.5 standard errors": partial(in_turn, margin=0.5),
    "in turn, 1 standard error": partial(in_turn, margin=1.0),
    "in turn, 1.5 standard errors": partial(in_turn, margin=1.5),
    "lower bound, 1 standard error": partial(lower_bound, margin=1.0),
    "lower bound, 2 standard errors": partial(lower_bound, margin=2.0),
    "reality check, 84 %": partial(reality_check, level=0.84),
    "reality check, 95 %": partial(reality_check, level=0.95),
}


def table(units: list[Candidates]) -> str:
    """Compute what each rule gains on test rows, as a table in Markdown."""
    lines = [
        "| rule | mean gain | worst mean of a set | sets below -.003 | runs below -.003 | worst run | changed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = sorted({unit.unit[:2] for unit in units})
    for rule, choose in RULES.items():
        chosen = [choose(unit) for unit in units]
        gains = np.array([unit.test[each] - unit.test[0] for unit, each in zip(units, chosen, strict=True)])
        means = np.array([gains[[unit.unit[:2] == name for unit in units]].mean() for name in names])
        worst = f"{means.min():+.4f} ({'/'.join(names[int(means.argmin())])})"
        lines.append(
            f"| {rule} | {means.mean():+.4f} | {worst} | {(means < -0.003).sum()} of {len(names)} | "
            f"{(gains < -0.003).sum()} of {len(gains)} | {gains.min():+.4f} | {np.mean(np.array(chosen) > 0):.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stored", type=Path, nargs="+", help="files of units; --seeds writes into the first")
    parser.add_argument("--data", type=Path, help="folder of npz files")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FIRST", "END"), help="splits to train")
    parser.add_argument("--rows", type=int, default=6000, help="of train and validation together")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # small pools warn
            collect(given.data, range(*given.seeds), given.rows, given.stored[0])
    print(table([unit for path in given.stored for unit in load(path)]))


if __name__ == "__main__":
    main()
