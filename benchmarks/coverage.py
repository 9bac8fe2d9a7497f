"""How often the 95 % intervals of a threshold hold what they are of, and how wide they are beside the bootstrap's.

The bootstrap draws rows with replacement, 400 times in each of the first 500 draws, and takes percentiles. Where the
interval is of the population's threshold, each resample is cut anew. All else is of the cut that was returned, on
future rows, so each resample is cut where the rows were. A bootstrap that cuts anew there as well has a false-positive
rate that hardly moves, though that of the returned cut is not known so well: its intervals are of something else, and
its numbers stand in the last two columns.

python -m benchmarks.coverage [--draws 2000] [--only "0.1%"]
python -m benchmarks.coverage --chosen [--draws 500]

The second command cuts where labels choose, and tries the usual intervals beside those of all thresholds at once.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from rareloss import Objective
from rareloss.decisions.thresholds import find_threshold

SHIFT = 2.5  # of the positives' normal scores
LEVEL = 0.01
OBJECTIVES = ("recall@fpr=1%", "recall@top=1%")
CHOSEN = ("recall@precision=80%", "precision@recall=50%", "cost@fn=5,fp=1")
NAMES = ("threshold", "recall", "precision", "fpr", "alerts")
RESAMPLES, BOOTSTRAPPED = 400, 500
# The chances at which negatives are kept, each for as many of them, by something that the score knows nothing of.
KEPT = {"all": (1.0,), "1 in 10": (0.1,), "1 in 20 or 7": (0.05, 0.15)}
# Of more negatives only those in this upper share have a score: no cut, and no end of an interval, lies below it.
MOST_SCORED, SCORED = 20_000, 0.03

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Cell:
    """What came out under one setting.

    Args:
        name: of the setting.
        held: ``[draws, 5]``, whether our intervals hold the truth.
        widths: ``[b, 5]``, ours in the first b draws, those that are bootstrapped.
        fixed, anew: what :func:`resample` gives there: ``[b, 5]`` each, whether it holds the truth, and its width.
    """

    name: str
    held: list[np.ndarray] = field(default_factory=list)
    widths: list[np.ndarray] = field(default_factory=list)
    fixed: tuple[list[np.ndarray], list[np.ndarray]] = field(default_factory=lambda: ([], []))
    anew: tuple[list[np.ndarray], list[np.ndarray]] = field(default_factory=lambda: ([], []))


def draw(random: np.random.Generator, positives: int, rate: float, kept: tuple[float, ...]) -> Rows:
    """Draw scores downwards, labels and weights: negatives kept with a probability, and weighted by its inverse."""
    rows = round(positives / rate)
    hits = max(1, int(random.binomial(rows, rate)))
    drawn = random.multinomial(rows - hits, np.full(len(kept), 1 / len(kept)))
    others = random.binomial(drawn, kept)
    scored = 1.0 if others.sum() <= MOST_SCORED else SCORED
    upper = random.binomial(others, scored)
    tail = norm.isf(random.random(int(upper.sum())) * scored)
    deep = np.repeat(1 / np.array(kept), others - upper)
    scores = np.concatenate([random.normal(SHIFT, size=hits), tail])
    labels = np.arange(len(scores)) < hits
    weight = np.concatenate([np.ones(hits), np.repeat(1 / np.array(kept), upper)])
    # Positives below the scored share go to the top of the others: their order there changes nothing.
    scores = np.maximum(scores, norm.isf(scored)) if scored < 1 else scores
    order = np.argsort(-scores)
    return (
        np.concatenate([scores[order], np.full(len(deep), norm.isf(scored) - 1 if len(deep) else 0.0)]),
        np.concatenate([labels[order], np.zeros(len(deep), bool)]),
        np.concatenate([weight[order], deep]),
    )


def best_cut(objective: str, rate: float) -> float:
    """Return the population's threshold."""
    if "top" not in objective:
        return float(norm.isf(LEVEL))
    return float(brentq(lambda at: rate * norm.sf(at - SHIFT) + (1 - rate) * norm.sf(at) - LEVEL, -10, 10))


def truth(best: float, rate: float, cut: float) -> np.ndarray:
    """Return what each interval is of: the population's threshold, and what the cut achieves in the population."""
    recall, fpr = norm.sf(cut - SHIFT), norm.sf(cut)
    alerts = rate * recall + (1 - rate) * fpr
    return np.array([best, recall, rate * recall / alerts, fpr, alerts])


def resample(
    random: np.random.Generator, objective: str, rows: Rows, cut: float, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Draw what each interval is of, ``[5, resamples]``: cut where the rows were but for the threshold, and cut anew.

    How often rows near the cut are drawn is counted row by row, of all others by label and weight.
    """
    scores, labels, weight = rows
    counted = weight if "top" in objective else weight * ~labels
    until, budget = np.cumsum(counted), LEVEL * counted.sum()
    reach = 6 * np.sqrt(budget * weight.max()) + 6 * weight.max()  # six standard deviations of the heaviest rows
    first, last = np.searchsorted(until, [budget - reach, budget + reach])
    last = min(last + 1, len(scores))
    near, number, each = slice(first, last), last - first, np.arange(resamples)
    heavy = np.unique(weight)
    groups = [
        (part, label, w) for part in (slice(0, first), slice(last, None)) for label in (True, False) for w in heavy
    ]
    sizes = [int(((labels[part] == label) & (weight[part] == w)).sum()) for part, label, w in groups]
    drawn = random.multinomial(len(scores), np.array([number, *sizes]) / len(scores), resamples)
    places = np.repeat(each * number, drawn[:, 0]) + random.integers(0, number, int(drawn[:, 0].sum()))
    counts = np.bincount(places, minlength=resamples * number).reshape(resamples, number)
    sums, whole = [], []
    for label in (True, False):
        above, below = (
            sum(
                w * many
                for (part, of, w), many in zip(groups, drawn.T[1:], strict=True)
                if of == label and part == side
            )
            for side in (slice(0, first), slice(last, None))
        )
        found = np.zeros((resamples, number + 1))
        np.cumsum(counts * (weight * (labels == label))[near], axis=1, out=found[:, 1:])
        sums.append(found + np.reshape(above, (-1, 1)))
        whole.append(sums[-1][:, -1] + below)
    spent, total = (sums[0] + sums[1], whole[0] + whole[1]) if "top" in objective else (sums[1], whole[1])
    place = np.minimum((spent[:, 1:] < (LEVEL * total)[:, None]).sum(1), number - 1)

    def achieved(above: np.ndarray) -> list[np.ndarray]:
        caught, alarms = (part[each, above] for part in sums)
        return [
            caught / np.maximum(whole[0], 1e-9),
            caught / np.maximum(caught + alarms, 1e-9),
            alarms / whole[1],
            (caught + alarms) / (whole[0] + whole[1]),
        ]

    fixed = np.full(resamples, np.searchsorted(-scores, -cut) - first)  # so many of the rows near it lie above
    cut_there, cut_anew = (np.stack([scores[near][place], *achieved(above)]) for above in (fixed, place))
    return cut_there, cut_anew


def cells(draws: int, only: str, seed: int = 0) -> Iterator[Cell]:
    """Yield what came out under each setting, small ones first."""
    settings = list(itertools.product(KEPT.items(), OBJECTIVES, (10, 100, 1000), (0.01, 0.001)))
    for (kind, kept), objective, positives, rate in sorted(
        settings, key=lambda each: (len(each[0][1]), each[2] / each[3] * sum(each[0][1]))
    ):
        cell = Cell(f"{objective} | {rate:.1%} | {positives} | {kind}")
        if only not in cell.name:
            continue
        random, best = np.random.default_rng([seed, positives]), best_cut(objective, rate)
        for number in range(draws):
            rows = draw(random, positives, rate, kept)
            cut = find_threshold(*rows[:2], objective, rows[2])
            values = truth(best, rate, cut.threshold.value)
            ends = np.array([[end.low, end.high] for end in (getattr(cut, name) for name in NAMES)]).T
            if len(rows[0]) > MOST_SCORED and ends[0, 0] < norm.isf(SCORED):
                raise AssertionError(f"{cell.name}: an end lies below the rows that have a score")
            cell.held.append((ends[0] <= values) & (values <= ends[1]))
            if number >= BOOTSTRAPPED:
                continue
            cell.widths.append(ends[1] - ends[0])
            kinds = (cell.fixed, cell.anew)
            for found, into in zip(resample(random, objective, rows, cut.threshold.value), kinds, strict=True):
                low, high = np.percentile(found, [2.5, 97.5], axis=1)
                into[0].append((low <= values) & (values <= high))
                into[1].append(high - low)
        yield cell


def _ratio(ours: np.ndarray, theirs: np.ndarray) -> str:
    endless = np.isinf(ours).mean()
    ours, theirs = np.median(ours), np.median(theirs)
    # All of the bootstrap's draws can be the same, and then its interval has no width to compare with.
    ratio = "no width" if theirs < 1e-9 else f"{ours / theirs:.2f}"
    return f"{ratio} (no end in {endless:.0%})" if endless else ratio


def line(cell: Cell) -> str:
    """Write a row of the table."""
    held, fixed, anew = (np.mean(each, 0) for each in (cell.held, cell.fixed[0], cell.anew[0]))
    ours, theirs, others = (np.transpose(each) for each in (cell.widths, cell.fixed[1], cell.anew[1]))
    parts = [f"{held[at]:.1%}, {fixed[at]:.1%}, {_ratio(ours[at], theirs[at])}" for at in range(3)]
    parts += [f"{held[at]:.1%}" for at in (3, 4)]
    parts += [f"{anew[at]:.1%}, {_ratio(ours[at], others[at])}" for at in (1, 2)]
    return f"| {cell.name} | {' | '.join(parts)} |"


def chosen_best(objective: str, rate: float) -> float:
    """Return the population's threshold of an objective whose cut labels choose: the lowest, for a precision."""
    read = Objective.parse(objective)
    cuts = np.linspace(-4, 8, 1_200_001)
    recall, fpr = norm.sf(cuts - SHIFT), norm.sf(cuts)
    if read.fn is not None and read.fp is not None:
        return float(cuts[np.argmin(read.fn * rate * (1 - recall) + read.fp * (1 - rate) * fpr)])
    if read.precision is not None:
        return float(cuts[rate * recall / (rate * recall + (1 - rate) * fpr) >= read.precision].min())
    return float(norm.isf(read.recall or 0.0) + SHIFT)


def _ratio_of(usual: float, at_once: float) -> str:
    # Of the median widths.
    if np.isinf(usual):
        return "both open"
    return "open" if np.isinf(at_once) else f"{at_once / usual:.2f}"


def chosen(draws: int, only: str, seed: int = 0) -> Iterator[str]:
    """Yield rows of the table of cuts that labels choose, at a prevalence of 1 %."""
    # Few enough positives that all rows have a score: cuts may lie anywhere.
    for kind, objective, positives in itertools.product(("all", "1 in 20 or 7"), CHOSEN, (10, 100)):
        name = f"{objective} | {positives} | {kind}"
        if only not in name:
            continue
        random, held, widths = np.random.default_rng([seed, positives]), [], []
        best = chosen_best(objective, 0.01)
        for _ in range(draws):
            rows = draw(random, positives, 0.01, KEPT[kind])
            both = [find_threshold(*rows[:2], objective, rows[2], simultaneous=each) for each in (False, True)]
            with np.errstate(invalid="ignore"):  # where nothing is above there is no precision, and [0, 1] holds
                values = np.nan_to_num(truth(best, 0.01, both[0].threshold.value)[:4])
                ends = np.array([[(getattr(c, n).low, getattr(c, n).high) for n in NAMES[:4]] for c in both])
                held.append((ends[..., 0] <= values) & (values <= ends[..., 1]))
                wide = ends[..., 1] - ends[..., 0]  # not a number from infinity to infinity
                widths.append(np.where(np.isnan(wide), np.inf, wide))
        (usual, at_once), wide = np.mean(held, 0), np.median(widths, 0)
        parts = [f"{usual[at]:.1%}, {at_once[at]:.1%}, {_ratio_of(*wide[:, at])}" for at in range(4)]
        yield f"| {name} | {' | '.join(parts)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--only", default="", help="settings whose name has this in it")
    parser.add_argument("--chosen", action="store_true", help="cuts that labels choose")
    asked = parser.parse_args()
    if asked.chosen:
        print(
            "Coverage of the usual intervals, of those of all thresholds at once, and their median width over theirs.\n"
        )
        print("| objective | positives | negatives kept |", " | ".join(NAMES[:4]), "|")
        print("| --- " * 7 + "|")
        for row in chosen(asked.draws, asked.only):
            print(row, flush=True)
        return
    print(
        "Coverage of ours, of the bootstrap's, and our median width over its; two columns of ours alone; last, the "
        "bootstrap's with each resample cut anew, and our width over its.\n"
    )
    names = [*NAMES, "recall, cut anew", "precision, cut anew"]
    print("| objective | prevalence | positives | negatives kept |", " | ".join(names), "|")
    print("| --- " * (4 + len(names)) + "|")
    start = time.process_time()
    for cell in cells(asked.draws, asked.only):
        print(line(cell), flush=True)
        print(f"{time.process_time() - start:.0f} s of CPU", file=sys.stderr)


if __name__ == "__main__":
    main()
