"""How often the 95 % intervals of a threshold hold what they are of, and how wide they are beside the bootstrap's.

python -m benchmarks.coverage [--draws 2000] [--most-rows 120000]
"""

import argparse
from collections.abc import Iterator

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from rareloss.decide.thresholds import find_threshold

SHIFT = 2.5  # of the positives' normal scores
LEVEL = 0.01
OBJECTIVES = ("recall@fpr=1%", "recall@top=1%")
NAMES = ("threshold", "recall", "precision", "fpr", "alerts")


def draw(
    random: np.random.Generator, positives: int, rate: float, keep: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw scores, labels and weights: negatives kept with a probability, and weighted by its inverse."""
    rows = round(positives / rate)
    hits = max(1, int(random.binomial(rows, rate)))
    others = int(random.binomial(rows - hits, keep))
    labels = np.arange(hits + others) < hits
    return random.normal(size=len(labels)) + SHIFT * labels, labels, np.where(labels, 1.0, 1 / keep)


def truth(objective: str, rate: float, cut: float) -> tuple[float, ...]:
    """Return what each interval is of: the population's threshold, and what the cut achieves in the population."""
    recall, fpr = float(norm.sf(cut - SHIFT)), float(norm.sf(cut))
    alerts = rate * recall + (1 - rate) * fpr
    best = norm.isf(LEVEL)
    if "top" in objective:
        best = brentq(lambda at: rate * norm.sf(at - SHIFT) + (1 - rate) * norm.sf(at) - LEVEL, -10, 10)
    return float(best), recall, rate * recall / alerts, fpr, alerts


def bootstrap(
    random: np.random.Generator, objective: str, rows: tuple[np.ndarray, ...], resamples: int = 200
) -> np.ndarray:
    """Compute the widths of percentile intervals of threshold, recall and precision."""
    order = np.argsort(-rows[0])
    scores, labels, weight = (each[order] for each in rows)
    found = []
    for _ in range(resamples):
        own = weight * random.multinomial(len(scores), np.full(len(scores), 1 / len(scores)))
        counted = own if "top" in objective else own * ~labels
        until = np.cumsum(counted)
        place = int(np.searchsorted(until, LEVEL * until[-1]))
        hits = own[:place][labels[:place]].sum()
        found.append((scores[place], hits / max(own[labels].sum(), 1e-9), hits / max(own[:place].sum(), 1e-9)))
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    return high - low


def cells(draws: int, most_rows: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield for each cell its name, the coverages and the widths over the bootstrap's."""
    for objective in OBJECTIVES:
        for rate in (0.01, 0.001):
            for keep in (1.0, 0.1):
                for positives in (10, 100, 1000):
                    if positives / rate * keep > most_rows:
                        continue
                    random = np.random.default_rng([seed, positives])
                    held, widths, theirs = [], [], []
                    for number in range(draws):
                        rows = draw(random, positives, rate, keep)
                        cut = find_threshold(*rows[:2], objective, rows[2])
                        values = truth(objective, rate, cut.threshold.value)
                        ends = [getattr(cut, name) for name in NAMES]
                        held.append([end.low <= value <= end.high for end, value in zip(ends, values, strict=True)])
                        widths.append([end.high - end.low for end in ends[:3]])
                        if number < 20:
                            theirs.append(bootstrap(random, objective, rows))
                    name = f"| {objective} | {rate:.1%} | {positives} | {'all' if keep == 1 else '1 in 10'} |"
                    yield name, np.mean(held, 0), np.median(widths, 0) / np.maximum(np.median(theirs, 0), 1e-12)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--most-rows", type=int, default=120_000)
    asked = parser.parse_args()
    print("| objective | prevalence | positives | negatives | " + " | ".join(NAMES) + " | width over the bootstrap's |")
    print("| --- " * (5 + len(NAMES)) + "|")
    for name, held, ratio in cells(asked.draws, asked.most_rows):
        # All of the bootstrap's draws can have a precision of 1, and then its interval has no width to compare with.
        widths = [f"{each:.2f}" if each < 1e6 or np.isinf(each) else "the bootstrap's has none" for each in ratio]
        print(name, " | ".join(f"{each:.1%}" for each in held), "|", ", ".join(widths), "|")


if __name__ == "__main__":
    main()
