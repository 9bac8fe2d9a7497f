"""Time a fit of ``RareClassifier`` against scikit-learn's ``LogisticRegression`` on the same rows, in one thread.

    python benchmarks/rare_classifier.py --rows 100000 --features 50 --rounds 3 --bend 4

The rows are normal, and the 2 % that are positive lie beyond a boundary that bends. The more it bends, the further the
stage moves, and the longer it takes. Between the two stands what the fit takes without its stage: cross-entropy, tuned.
"""

import argparse
import resource
import time

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from rareloss.integrations.sklearn import RareClassifier
from rareloss.study.runs import one_thread


def drawn(rows: int, features: int, bend: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of which one in fifty is positive."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features), dtype=np.float32)
    margin = x[:, :5].sum(1) / 2 + bend * (x[:, 5] > 1.5) * x[:, 6] + rng.logistic(size=rows)
    return x, margin > np.quantile(margin, 0.98)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved; medians are printed")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--bend", type=float, default=1.5, help="of the boundary; 0: a line is right")
    asked = parser.parse_args()
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
    print(models['RareClassifier("ap")'].stage_)
    print(f"largest resident size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
