"""Intervals of paired differences over repeated splits, and the sentences that they support."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

__all__ = [
    "LEVEL",
    "Interval",
    "corrected_error",
    "holm",
    "judge",
    "over_sets",
    "over_these_sets",
    "overall",
    "paired_interval",
    "paired_p",
    "verdict",
]

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
    half = quantile * corrected_error(differences, test_over_train=test_over_train)
    return Interval(mean, mean - half, mean + half)


def corrected_error(differences: Sequence[float], *, test_over_train: float) -> float:
    """Compute the standard error of a mean difference over splits that share rows; see :func:`paired_interval`."""
    n = len(differences)
    return float(np.std(differences, ddof=1)) * math.sqrt(1 / n + test_over_train)


def paired_p(differences: Sequence[float], *, test_over_train: float) -> float:
    """Compute the two-sided p-value that belongs to :func:`paired_interval`; 1 for a single split.

    Example:
        >>> round(paired_p([0.01, 0.02, 0.03], test_over_train=1 / 3), 3)
        0.134
    """
    if len(differences) < 2:
        return 1.0
    mean, error = float(np.mean(differences)), corrected_error(differences, test_over_train=test_over_train)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that all that are below a level hold at once.

    Reference:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    found: list[float] = adjusted.tolist()
    return found


def over_these_sets(means: Sequence[float], errors: Sequence[float], splits: Sequence[int]) -> Interval:
    r"""Compute the interval of the mean effect over these very sets: only the splits are chance.

    .. math:: \frac{1}{k} \sum_i \bar d_i \pm t_\nu \frac{1}{k} \sqrt{\sum_i e_i^2}

    with the degrees of freedom of Welch and Satterthwaite.

    Args:
        means: effect on each set.
        errors: standard error of each.
        splits: how many each rests on.
    """
    mean, variances = float(np.mean(means)), np.square(np.asarray(errors, dtype=float))
    if min(splits, default=0) < 2:
        return Interval(mean, None, None)
    if not variances.any():
        return Interval(mean, mean, mean)
    freedom = variances.sum() ** 2 / np.sum(variances**2 / (np.asarray(splits) - 1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variances.sum()) / len(means)
    return Interval(mean, mean - half, mean + half)


def over_sets(means: Sequence[float], errors: Sequence[float]) -> Interval:
    r"""Compute the interval of the mean effect over sets like these, by a random-effects model.

    Set i's effect is normal around the mean with variance :math:`\tau^2`, and what was measured of it is normal around
    it with variance :math:`e_i^2`. Restricted maximum likelihood finds :math:`\tau^2`; the interval is that of Hartung
    and Knapp, whose error allows for the few sets that :math:`\tau^2` was found from, and never below the model's own.

    Args:
        means: effect on each set.
        errors: standard error of each, above 0.

    Reference:
        Hartung and Knapp, "A refined method for the meta-analysis of controlled clinical trials with binary outcome",
        Statistics in Medicine 20, 2001.
    """
    effect, variance = np.asarray(means, dtype=float), np.square(np.asarray(errors, dtype=float))
    sets = len(effect)
    if sets < 2:
        return Interval(float(effect.mean()), None, None)

    def weighted(between: float) -> tuple[np.ndarray, float]:
        weight = 1 / (variance + between)
        return weight, float(np.sum(weight * effect) / np.sum(weight))

    def unlikely(between: float) -> float:
        weight, mean = weighted(between)
        return float(np.sum(weight * (effect - mean) ** 2) - np.log(weight).sum() + math.log(weight.sum()))

    most = 10 * float(effect.var()) + float(variance.max())
    # The likelihood can have two peaks: the best of a grid first, then the best near it.
    grid = np.concatenate([[0.0], most * np.logspace(-6, 0, 60)])
    place = int(np.argmin([unlikely(between) for between in grid]))
    ends = float(grid[max(place - 1, 0)]), float(grid[min(place + 1, len(grid) - 1)])
    near = optimize.minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12})
    between = min((float(grid[place]), float(near.x)), key=unlikely)
    weight, mean = weighted(between)
    # Sets that agree more closely than their errors allow do so by luck: never narrower than those say.
    scatter = max(1.0, float(np.sum(weight * (effect - mean) ** 2)) / (sets - 1))
    error = math.sqrt(scatter / float(weight.sum()))
    half = float(stats.t.ppf((1 + LEVEL) / 2, sets - 1)) * error
    return Interval(mean, mean - half, mean + half)


def verdict(
    model: str,
    methods: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    test: Mapping[str, Sequence[float]],
    *,
    test_over_train: float,
    cap: float | None,
) -> dict[str, Any]:
    """Say in one sentence what a model's results support.

    Args:
        model: its name.
        methods: as in results.json.
        differences: this model's, to tuned cross-entropy.
        test: by method, the objective on test, one per seed, paired.
        test_over_train: rows of test over rows of train.
        cap: the best reachable value, where it is below 1.

    Returns:
        ``model``, ``sentence`` and ``winner``, a method that is better beyond its interval, or None.
    """
    label = {method["name"]: method["label"] for method in methods}
    kind = {method["name"]: method["kind"] for method in methods}
    seeds = len(test[BASELINE])
    by_method = {row["method"]: row for row in differences}
    candidates = [row for row in differences if kind[row["method"]] in ("reweight", "ranking")]
    won = [row for row in candidates if row["supported"]]
    winner = max(won, key=lambda row: float(row["mean"])) if won else None
    control = next((by_method[name] for name in by_method if kind[name] == "control"), None)
    base = float(np.mean(test[BASELINE]))
    if seeds < 2:
        sentence = f"none: one seed has no interval, so keep cross-entropy ({base:.3f}); run at least 3"
    elif winner is not None:
        sentence = (
            f"{label[winner['method']]}: {winner['mean']:+.3f} over tuned cross-entropy ({base:.3f}), interval "
            f"[{winner['low']:+.3f}, {winner['high']:+.3f}] over {seeds} seeds"
        )
        if control is not None and abs(control["mean"]) >= 0.0005:
            sentence += f"; further steps of cross-entropy give {control['mean']:+.3f}"
    else:
        sentence = f"none: keep cross-entropy ({base:.3f}); of no other loss does the interval lie above 0"
        best = max(candidates, key=lambda row: float(row["mean"]), default=None)
        if best is not None and best["mean"] > 0:
            sentence += f" (the nearest is {label[best['method']]}, {_range(best)})"
        if seeds < 5:
            sentence += f"; {seeds} seeds make wide intervals, --seeds 10 would narrow them"
    if "trees" in test:
        sentence += f". {_trees(test, test_over_train)}"
    if cap is not None and cap < 1:
        sentence += f". No model can exceed {cap:.3f} here, since the capacity is below the base rate"
    return {"model": model, "sentence": sentence + ".", "winner": winner["method"] if winner else None}


def overall(
    verdicts: Sequence[Mapping[str, Any]],
    means: Mapping[str, Mapping[str, float]],
    methods: Sequence[Mapping[str, Any]],
) -> str:
    """Say in one sentence what all models' results support together.

    Args:
        verdicts: one per model.
        means: test means by model and method.
        methods: as in results.json.
    """
    label = {method["name"]: method["label"] for method in methods}
    winners = [f"{label[row['winner']]} for {row['model']}" for row in verdicts if row["winner"]]
    sentence = f"Use {' and '.join(winners)}" if winners else "Keep cross-entropy: no other loss is better beyond doubt"
    kept = [row["model"] for row in verdicts if not row["winner"]]
    if winners and kept:
        sentence += f"; keep cross-entropy for {' and '.join(kept)}"
    models = {name: found[BASELINE] for name, found in means.items() if BASELINE in found}
    if len(models) > 1:
        listed = ", ".join(f"{name} {value:.3f}" for name, value in models.items())
        reference = next((found["trees"] for found in means.values() if "trees" in found), None)
        listed += "" if reference is None else f"; boosted trees {reference:.3f}"
        sentence += f". Under tuned cross-entropy the models reach: {listed}"
    return sentence + "."


def judge(
    units: Sequence[Mapping[str, Any]], described: Mapping[str, Any], test_over_train: float, *, shared: str
) -> dict[str, Any]:
    """Put the units' runs together, and judge what they support.

    Args:
        units: each with its ``seed``, ``model``, ``runs`` and ``failed``.
        described: ``models``, ``methods`` and ``objective``, as in results.json.
        test_over_train: rows of test over rows of train.
        shared: the name of the units whose runs stand beside every model's.

    Returns:
        ``runs``, ``differences``, ``verdicts``, ``overall`` and ``failed``, as in results.json.
    """
    models, methods = [model["name"] for model in described["models"]], described["methods"]
    reference = [run for unit in units if unit["model"] == shared for run in unit["runs"]]
    runs = [run for unit in units if unit["model"] != shared for run in unit["runs"]]
    runs += [{**run, "model": model} for model in models for run in reference]
    differences, verdicts, means = [], [], {}
    for model in models:
        test = _paired(runs, model, [method["name"] for method in methods])
        if BASELINE not in test:
            continue
        seeds, others = len(test[BASELINE]), [name for name in test if name != BASELINE]
        how = f"corrected resampled t (Nadeau and Bengio), {seeds} paired splits, Bonferroni over {len(others)} methods"
        mine = []
        for name in others:
            gaps = np.subtract(test[name], test[BASELINE]).tolist()
            interval = paired_interval(gaps, test_over_train=test_over_train, comparisons=len(others))
            row = {"model": model, "method": name, **interval._asdict(), "level": LEVEL, "interval": how}
            supported = interval.low is not None and interval.low > 0
            mine.append({**row, "per_seed": gaps, "supported": supported})
        differences += mine
        means[model] = {name: float(np.mean(values)) for name, values in test.items()}
        cap = described["objective"]["cap"]
        verdicts.append(verdict(model, methods, mine, test, test_over_train=test_over_train, cap=cap))
    return {
        "runs": runs,
        "differences": differences,
        "verdicts": verdicts,
        "overall": overall(verdicts, means, methods) if verdicts else "Nothing is finished yet.",
        "failed": [failure for unit in units for failure in unit["failed"]],
    }


def _paired(runs: Sequence[Mapping[str, Any]], model: str, methods: Sequence[str]) -> dict[str, list[float]]:
    """Return each method's test values over the seeds that all methods with any run share."""
    by_method = {
        method: {run["seed"]: run["test"] for run in runs if (run["model"], run["method"]) == (model, method)}
        for method in methods
    }
    by_method = {method: tests for method, tests in by_method.items() if tests}
    shared = sorted(set.intersection(*map(set, by_method.values()))) if by_method else []
    return {method: [tests[seed] for seed in shared] for method, tests in by_method.items()} if shared else {}


def _trees(test: Mapping[str, Sequence[float]], test_over_train: float) -> str:
    others = {method: values for method, values in test.items() if method != "trees"}
    gaps = {
        method: paired_interval(
            np.subtract(test["trees"], values).tolist(), test_over_train=test_over_train, comparisons=len(others)
        )
        for method, values in others.items()
    }
    mean = float(np.mean(test["trees"]))
    if all(gap.low is not None and gap.low > 0 for gap in gaps.values()):
        return f"Boosted trees beat every method here ({mean:.3f})"
    if all(gap.high is not None and gap.high < 0 for gap in gaps.values()):
        return f"Every method beats boosted trees here ({mean:.3f})"
    if (low := gaps[BASELINE].low) is not None and low > 0:
        return f"Boosted trees beat tuned cross-entropy here ({mean:.3f}), though not every method beyond its interval"
    return f"Boosted trees reach {mean:.3f}; whether they beat every method here, or none, these seeds do not say"


def _range(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:+.3f}" + ("" if row["low"] is None else f", interval [{row['low']:+.3f}, {row['high']:+.3f}]")
