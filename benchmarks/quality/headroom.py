"""How much a ranking stage could gain at most: the place on its path that the test rows themselves prefer.

That is no method, since it looks at what it is judged by. It is a ceiling: no rule by which validation keeps a place,
or keeps the start, gains more on these paths. `docs/evidence.md` shows it beside what the stage gains and what boosted
trees do.

python -m benchmarks.quality.headroom --data DIR --workers 2   # benchmarks/results/headroom.json; --splits 5
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
from benchmarks.quality.__main__ import CEILINGS
from benchmarks.quality.grid import FIRST_SEED, SCORECARDS, TRIALS, describe, objective_of, open_set, sets
from benchmarks.speed.machine import describe as describe_machine
from benchmarks.speed.machine import now

from rareloss.table.folds import split
from rareloss.tabular import DataError
from rareloss.tabular.comparison.runs import one_thread, write_atomically
from rareloss.tabular.models import find_model
from rareloss.tabular.training import Fitted, Task, logistic
from rareloss.tabular.ways import draws_for, further
from rareloss.training import ranking_losses

__all__ = ["ceiling", "main"]


def ceiling(name: str, folder: Path | None, model: str, seed: int) -> dict[str, Any]:
    """Tune cross-entropy as the grid does; then let the test rows choose the place on the stage's path.

    Args:
        name: of a set of two classes.
        folder: of the npz files.
        model: a scorecard.
        seed: of the split.

    Returns:
        average precision on test of the start (``"tuned_ce"``), and the largest at any place, the start among them
        (``"best_place"``).
    """
    table = open_set(name, folder)
    objective, model = objective_of("ap", table), find_model(model)
    fold = split(table, seed)
    with one_thread():
        task = Task(table, fold, objective, seed)
        tuned = logistic(task, model, draws_for(model, task, TRIALS))
        peeking = Task(table, fold._replace(validation=fold.test), objective, seed)
        losses = ranking_losses(objective, 1, "linear", queue_size=0)
        found: Fitted = further(peeking, model, tuned, losses, [{}] * len(losses))
    seen = [look["validation"] for look in found.history]
    return {
        "data": name,
        "model": model,
        "seed": seed,
        "tuned_ce": round(seen[0], 6),
        "best_place": round(max(seen), 6),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.headroom",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="a folder of npz files with X and y")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--results", type=Path, default=CEILINGS, help="the results file")
    given = parser.parse_args(arguments)
    try:
        names = list(_binary(given.data))
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    wanted = [
        (name, given.data, model, FIRST_SEED + number)
        for name in names
        for model in SCORECARDS
        for number in range(given.splits)
    ]
    run = joblib.Parallel(given.workers, verbose=5)
    found = run(joblib.delayed(ceiling)(*each) for each in wanted)
    results = {
        "measured": now(),
        "machine": describe_machine("cpu"),
        "sets": {name: describe(open_set(name, given.data)) for name in names},
        "runs": found,
    }
    write_atomically(given.results, json.dumps(results, indent=1) + "\n")
    return 0


def _binary(folder: Path | None) -> Iterator[str]:
    for name in sets(folder):
        if not open_set(name, folder).multiclass:
            yield name


if __name__ == "__main__":
    sys.exit(main())
