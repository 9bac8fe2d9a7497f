"""Intervals of paired differences over repeated splits, and the sentences that they support."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

__all__ = ["LEVEL", "Interval", "judge", "overall", "paired_interval", "verdict"]

LEVEL = 0.95
BASELINE = "tuned_ce"


class Interval(NamedTuple):
    """The mean of paired differences and where the true one lies; the ends are None for a single split."""

    mean: float
    low: float | None
    high: float | None


def paired_interval(differences: Sequence[float], *, test_over_train: float, comparisons: int = 1) -> Interval:
    r"""Compute the corrected interval of a mean difference over repeated random splits.

    .. math:: \bar d \pm t_{n-1, \, 1 - (1 - 0.95) / (2k)} \;
              s_d \sqrt{\frac{1}{n} + \frac{n_\text{test}}{n_\text{train}}}

    Splits of one table share most of their rows, so their results agree more than independent ones would; the second
    term under the root allows for it. Bonferroni's correction for ``k`` comparisons makes all the intervals of a table
    hold at once.

    Args:
        differences: one per split.
        test_over_train: rows of test over rows of train.
        comparisons: k, the number of intervals that are read together.

    Returns:
        mean and ends; one split has no ends.

    Reference:
        Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003.

    Example:
        >>> mean, low, high = paired_interval([0.01, 0.02, 0.03], test_over_train=1 / 3)
        >>> round(mean, 3), round(low, 3), round(high, 3)
        (0.02, -0.015, 0.055)
    """
    mean = float(np.mean(differences))
    n = len(differences)
    if n < 2:
        return Interval(mean, None, None)
    quantile = float(stats.t.ppf(1 - (1 - LEVEL) / (2 * comparisons), n - 1))
    half = quantile * float(np.std(differences, ddof=1)) * math.sqrt(1 / n + test_over_train)
    return Interval(mean, mean - half, mean + half)


def verdict(
    scorer: str,
    arms: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    test: Mapping[str, Sequence[float]],
    *,
    test_over_train: float,
    cap: float | None,
) -> dict[str, Any]:
    """Say in one sentence what a scorer's results support.

    Args:
        scorer: its name.
        arms: as in results.json.
        differences: this scorer's, to tuned cross-entropy.
        test: by arm, the objective on test, one per seed, paired.
        test_over_train: rows of test over rows of train.
        cap: the best reachable value, where it is below 1.

    Returns:
        ``scorer``, ``sentence`` and ``winner``, an arm that is better beyond its interval, or None.
    """
    label = {arm["name"]: arm["label"] for arm in arms}
    kind = {arm["name"]: arm["kind"] for arm in arms}
    seeds = len(test[BASELINE])
    by_arm = {row["arm"]: row for row in differences}
    candidates = [row for row in differences if kind[row["arm"]] in ("reweight", "ranking")]
    won = [row for row in candidates if row["supported"]]
    winner = max(won, key=lambda row: float(row["mean"])) if won else None
    control = next((by_arm[name] for name in by_arm if kind[name] == "control"), None)
    base = float(np.mean(test[BASELINE]))
    if seeds < 2:
        sentence = f"none: one seed has no interval, so keep cross-entropy ({base:.3f}); run at least 3"
    elif winner is not None:
        sentence = (
            f"{label[winner['arm']]}: {winner['mean']:+.3f} over tuned cross-entropy ({base:.3f}), interval "
            f"[{winner['low']:+.3f}, {winner['high']:+.3f}] over {seeds} seeds"
        )
        if control is not None and abs(control["mean"]) >= 0.0005:
            sentence += f"; further steps of cross-entropy give {control['mean']:+.3f}"
    else:
        sentence = f"none: keep cross-entropy ({base:.3f}); of no other loss does the interval lie above 0"
        best = max(candidates, key=lambda row: float(row["mean"]), default=None)
        if best is not None and best["mean"] > 0:
            sentence += f" (the nearest is {label[best['arm']]}, {_range(best)})"
        if seeds < 5:
            sentence += f"; {seeds} seeds make wide intervals, --seeds 10 would narrow them"
    if "trees" in test:
        sentence += f". {_trees(test, test_over_train)}"
    if cap is not None and cap < 1:
        sentence += f". No scorer can exceed {cap:.3f} here, since the capacity is below the base rate"
    return {"scorer": scorer, "sentence": sentence + ".", "winner": winner["arm"] if winner else None}


def overall(
    verdicts: Sequence[Mapping[str, Any]], means: Mapping[str, Mapping[str, float]], arms: Sequence[Mapping[str, Any]]
) -> str:
    """Say in one sentence what all scorers' results support together.

    Args:
        verdicts: one per scorer.
        means: test means by scorer and arm.
        arms: as in results.json.
    """
    label = {arm["name"]: arm["label"] for arm in arms}
    winners = [f"{label[row['winner']]} for {row['scorer']}" for row in verdicts if row["winner"]]
    sentence = f"Use {' and '.join(winners)}" if winners else "Keep cross-entropy: no other loss is better beyond doubt"
    kept = [row["scorer"] for row in verdicts if not row["winner"]]
    if winners and kept:
        sentence += f"; keep cross-entropy for {' and '.join(kept)}"
    scorers = {name: found[BASELINE] for name, found in means.items() if BASELINE in found}
    if len(scorers) > 1:
        listed = ", ".join(f"{name} {value:.3f}" for name, value in scorers.items())
        reference = next((found["trees"] for found in means.values() if "trees" in found), None)
        listed += "" if reference is None else f"; boosted trees {reference:.3f}"
        sentence += f". Under tuned cross-entropy the scorers reach: {listed}"
    return sentence + "."


def judge(
    units: Sequence[Mapping[str, Any]], described: Mapping[str, Any], test_over_train: float, *, shared: str
) -> dict[str, Any]:
    """Put the units' runs together, and judge what they support.

    Args:
        units: each with its ``seed``, ``scorer``, ``runs`` and ``failed``.
        described: ``scorers``, ``arms`` and ``objective``, as in results.json.
        test_over_train: rows of test over rows of train.
        shared: the name of the units whose runs stand beside every scorer's.

    Returns:
        ``runs``, ``differences``, ``verdicts``, ``overall`` and ``failed``, as in results.json.
    """
    scorers, arms = [scorer["name"] for scorer in described["scorers"]], described["arms"]
    reference = [run for unit in units if unit["scorer"] == shared for run in unit["runs"]]
    runs = [run for unit in units if unit["scorer"] != shared for run in unit["runs"]]
    runs += [{**run, "scorer": scorer} for scorer in scorers for run in reference]
    differences, verdicts, means = [], [], {}
    for scorer in scorers:
        test = _paired(runs, scorer, [arm["name"] for arm in arms])
        if BASELINE not in test:
            continue
        seeds, others = len(test[BASELINE]), [name for name in test if name != BASELINE]
        method = f"corrected resampled t (Nadeau and Bengio), {seeds} paired splits, Bonferroni over {len(others)} arms"
        mine = []
        for name in others:
            gaps = np.subtract(test[name], test[BASELINE]).tolist()
            interval = paired_interval(gaps, test_over_train=test_over_train, comparisons=len(others))
            row = {"scorer": scorer, "arm": name, **interval._asdict(), "level": LEVEL, "method": method}
            supported = interval.low is not None and interval.low > 0
            mine.append({**row, "per_seed": gaps, "supported": supported})
        differences += mine
        means[scorer] = {name: float(np.mean(values)) for name, values in test.items()}
        cap = described["objective"]["cap"]
        verdicts.append(verdict(scorer, arms, mine, test, test_over_train=test_over_train, cap=cap))
    return {
        "runs": runs,
        "differences": differences,
        "verdicts": verdicts,
        "overall": overall(verdicts, means, arms) if verdicts else "Nothing is finished yet.",
        "failed": [failure for unit in units for failure in unit["failed"]],
    }


def _paired(runs: Sequence[Mapping[str, Any]], scorer: str, arms: Sequence[str]) -> dict[str, list[float]]:
    """Return each arm's test values over the seeds that all arms with any run share."""
    by_arm = {
        arm: {run["seed"]: run["test"] for run in runs if (run["scorer"], run["arm"]) == (scorer, arm)} for arm in arms
    }
    by_arm = {arm: tests for arm, tests in by_arm.items() if tests}
    shared = sorted(set.intersection(*map(set, by_arm.values()))) if by_arm else []
    return {arm: [tests[seed] for seed in shared] for arm, tests in by_arm.items()} if shared else {}


def _trees(test: Mapping[str, Sequence[float]], test_over_train: float) -> str:
    others = {arm: values for arm, values in test.items() if arm != "trees"}
    gaps = {
        arm: paired_interval(
            np.subtract(test["trees"], values).tolist(), test_over_train=test_over_train, comparisons=len(others)
        )
        for arm, values in others.items()
    }
    mean = float(np.mean(test["trees"]))
    if all(gap.low is not None and gap.low > 0 for gap in gaps.values()):
        return f"Boosted trees beat every arm here ({mean:.3f})"
    if all(gap.high is not None and gap.high < 0 for gap in gaps.values()):
        return f"Every arm beats boosted trees here ({mean:.3f})"
    if (low := gaps[BASELINE].low) is not None and low > 0:
        return f"Boosted trees beat tuned cross-entropy here ({mean:.3f}), though not every arm beyond its interval"
    return f"Boosted trees reach {mean:.3f}; whether they beat every arm here, or none, these seeds do not say"


def _range(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:+.3f}" + ("" if row["low"] is None else f", interval [{row['low']:+.3f}, {row['high']:+.3f}]")
