"""Time a fit of ``RareClassifier`` against scikit-learn's ``LogisticRegression`` on the same rows, in one thread.

    python benchmarks/rare_classifier.py --rows 100000 --features 50 --rounds 3 --bend 4
    python benchmarks/rare_classifier.py --data DIR

The rows are normal, and the 2 % that are positive lie beyond a boundary that bends. The more it bends, the further the
stage moves, and the longer it takes. Between the two stands what the fit takes without its stage: cross-entropy, tuned.

With ``--data``, what is given up for that time: on real rows, the test average precision of a fit, and how much less it
is where all rows choose, not a sample, and where the last model is not fitted on the validation rows too.
"""

import argparse
import resource
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import sem
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import train_test_split

from rareloss.tabular.comparison.runs import one_thread
from rareloss.tabular.estimators import classifier as estimator
from rareloss.tabular.estimators.classifier import RareClassifier

SPLITS = 5


def drawn(rows: int, features: int, bend: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of which one in fifty is positive."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features), dtype=np.float32)
    margin = x[:, :5].sum(1) / 2 + bend * (x[:, 5] > 1.5) * x[:, 6] + rng.logistic(size=rows)
    return x, margin > np.quantile(margin, 0.98)


def sampled(path: Path) -> list[np.ndarray]:
    """Compute the test average precision of a fit, where all rows choose, and without the refit; ``[SPLITS]`` each."""
    with np.load(path) as arrays:
        x, y = arrays["X"], arrays["y"]
    found = []
    for seed in range(SPLITS):
        x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)

        def score(**options: bool) -> float:
            model = RareClassifier("ap", random_state=seed, **options).fit(x_train, y_train)  # noqa: B023
            return float(average_precision_score(y_test, model.decision_function(x_test)))  # noqa: B023

        with patch.multiple(estimator, POOL=len(x), LAST_POOL=len(x)):
            whole = score()
        found.append((score(), whole, score(refit=False)))
    return list(np.array(found).T)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved; medians are printed")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--bend", type=float, default=1.5, help="of the boundary; 0: a line is right")
    parser.add_argument("--data", type=Path, metavar="DIR", help="npz files with X and y: what the sample costs there")
    asked = parser.parse_args()
    if asked.data is not None:
        table = Table("set", "rows", "average precision", "more than with all rows", "more than without the refit")
        for path in sorted(asked.data.glob("*.npz")):
            with np.load(path) as arrays:
                rows = len(arrays["y"]) if "y" in arrays and len(np.unique(arrays["y"])) == 2 else 0
            if rows > estimator.POOL:
                own, *others = sampled(path)
                more = [f"{(own - other).mean():+.4f} ({sem(own - other):.4f})" for other in others]
                table.add_row(path.stem, f"{rows:,}", f"{own.mean():.4f}", *more)
        Console().print(table, f"Means over {SPLITS} splits, in brackets their standard errors.")
        return
    x, y = drawn(asked.rows, asked.features, asked.bend, 0)
    x_test, y_test = drawn(asked.rows, asked.features, asked.bend, 1)
    models = {
        "LogisticRegression()": LogisticRegression(),
        "without the stage": RareClassifier("ap", loss="cross_entropy", trials=asked.trials, random_state=0),
        'RareClassifier("ap")': RareClassifier("ap", trials=asked.trials, random_state=0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with one_thread():  # more of them would wait for one another at their own cost
        for _ in range(asked.rounds):
            for name, model in models.items():
                start = time.process_time()
                model.fit(x, y)
                seconds[name].append(time.process_time() - start)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    table = Table(
        "fit", "CPU seconds", "ratio", "AP on fresh rows", title=f"{len(x):,} x {x.shape[1]}, bend {asked.bend:g}"
    )
    first = next(iter(medians.values()))
    for name, model in models.items():
        found = average_precision_score(y_test, model.decision_function(x_test))
        table.add_row(name, f"{medians[name]:.2f}", f"{medians[name] / first:.1f}", f"{found:.4f}")
    Console().print(table)
    print(models['RareClassifier("ap")'].finetuned_)
    print(f"largest resident size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
