"""Turn the scores of any model into a page on which a threshold can be moved, and a file with every number."""

import json
import math
import os
import tempfile
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from rareloss.decisions.intervals import Sums, at_all_cuts, share_of_weight
from rareloss.decisions.reporting.stream import Budget, Counts, count, lowest_alert
from rareloss.objectives import Objective

__all__ = ["report"]

Array = NDArray[np.float64]

SCHEMA = 1
LEVEL = 0.95
TINY = 1e-300  # divides where nothing is above a threshold
GROUP_NUMBERS = 100_000  # groups times thresholds
LEAST_KEPT = 300  # thresholds, however many groups there are
SHARES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def report(
    data: Any,
    out: str | Path | None = None,
    *,
    label: str,
    score: str,
    group: str | None = None,
    weight: str | None = None,
    positive: str | None = None,
    objective: Objective | str = "ap",
    threshold: float | None = None,
    fn_cost: float | None = None,
    fp_cost: float | None = None,
    probability: str | None = None,
    drop_missing_scores: bool = False,
    header: bool = True,
) -> dict[str, Any]:
    """Report on scores: counts at a few thousand thresholds, each exact on all rows, and what follows from them.

    Args:
        data: path of a csv or parquet file of any size, or a data frame.
        out: folder for ``report.html`` and ``report.json``; None writes nothing.
        label, score, group, weight: columns; rows without a label are left out and counted.
        positive: value of the label that is positive, where labels are not 0 and 1.
        objective: the operating point where the page opens.
        threshold: the score where it opens instead, such as that of a model in use; rows above it are alerts. -inf
            alerts everybody, inf nobody.
        fn_cost, fp_cost: cost of a missed positive and of a false alarm; given together.
        probability: ``"probability"`` or ``"logit"``, for calibration; None: scores are neither.
        drop_missing_scores: leave out rows without a score, and count them; they are refused by default.
        header: whether the first row of a csv holds the names of columns.

    Returns:
        what ``report.json`` holds. The first of its curve alerts nobody: it stands at the highest score, and its
        precision is None.

    Raises:
        ValueError: what was given cannot be used; the message says why.

    Example:
        >>> import pandas as pd
        >>> made = report(pd.DataFrame({"y": [1, 0, 1, 0], "s": [4.0, 3.0, 2.0, 1.0]}), label="y", score="s")
        >>> round(made["average_precision"]["value"], 4), made["curve"]["tp"]
        (0.8333, [0.0, 1.0, 1.0, 2.0, 2.0])
    """
    point = Objective.of(objective)
    if fn_cost is None and fp_cost is None:
        fn_cost, fp_cost = point.fn, point.fp
    if probability not in (None, "probability", "logit"):
        raise ValueError(f"probability must be 'probability' or 'logit', got {probability!r}")
    if (fn_cost is None) != (fp_cost is None):
        raise ValueError("give both costs, fn_cost and fp_cost, or neither")
    for name, cost in (("fn_cost", fn_cost), ("fp_cost", fp_cost)):
        if cost is not None and not 0 <= cost < float("inf"):
            raise ValueError(f"{name} must be a finite number of at least 0, got {cost}")
    if threshold is not None and math.isnan(threshold):
        raise ValueError("threshold must be a score, inf (alert nobody) or -inf (alert everybody), got NaN")
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    counts = count(
        data, label=label, score=score, group=group, weight=weight, positive=positive,
        drop_missing_scores=drop_missing_scores, probability=probability,
        budget=_budget(point, fn_cost) if threshold is None else None, threshold=threshold, header=header,
    )  # fmt: skip
    results = _results(counts, point, threshold, fn_cost, fp_cost)
    results["columns"] = {"label": label, "score": score, "group": group, "weight": weight}
    if folder is not None:
        _write(folder, results)
    return results


def _share(inside: Sums, outside: Sums, rows: tuple[Array, Array], level: float = LEVEL) -> dict[str, Array]:
    """A share of weight with its interval."""
    low, high = share_of_weight(inside, outside, rows, level)
    with np.errstate(invalid="ignore"):
        return {"value": inside.weight / (inside.weight + outside.weight), "low": low, "high": high}


def _part(above: Sums, level: float = LEVEL) -> dict[str, Array]:
    """The part of a class that is above each threshold; above the last one is all of it."""
    whole = above.at(-1)
    return _share(above, whole.without(above), (whole.row, whole.row), level)


def _shares(hits: Sums, false: Sums, level: float = LEVEL) -> dict[str, dict[str, Array]]:
    rows = hits.row[-1], false.row[-1]
    return {
        "precision": _share(hits, false, rows, level),
        "recall": _part(hits, level),
        "fpr": _part(false, level),
    }


def _results(
    counts: Counts,
    point: Objective,
    threshold: float | None,
    fn_cost: float | None,
    fp_cost: float | None,
) -> dict[str, Any]:
    start, how = _start(counts, point, fn_cost, fp_cost)
    if threshold is not None:
        lowest = lowest_alert(threshold, counts.thresholds[-1])
        start, how = int(np.searchsorted(-counts.thresholds, -lowest)), "the threshold that was given"
    if not start:
        how += ", which alerts nobody"
    precise = _average_precision(counts)
    spent = counts.tp + counts.fp
    at = np.searchsorted(spent, spent[-1] * np.array(SHARES) * (1 + 1e-12), side="right") - 1
    rows = np.unique([start, *at[at > 0]])
    counts, kept = _thinned(counts, rows)
    start, rows = (np.searchsorted(kept, places).tolist() for places in (start, rows))
    tp, fp = counts.tp, counts.fp
    hits, false = Sums(tp, counts.tp_squared), Sums(fp, counts.fp_squared)
    shares = _shares(hits, false)
    curve = {
        # Rows above it are alerts: the next number below the lowest of them.
        "threshold": np.nextafter(counts.thresholds, -np.inf), "rows": counts.alerts,
        "alerts": tp + fp, "tp": tp, "fp": fp,
        "lift": shares["precision"]["value"] / (tp[-1] / (tp[-1] + fp[-1])),
        **{f"{name}{end}": share[key] for name, share in shares.items()
           for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))},
    }  # fmt: skip
    anywhere = at_all_cuts((hits, false), (hits.at(-1), false.at(-1)), counts.heaviest, LEVEL)
    curve |= {
        f"{name}_anywhere_{end}": anywhere[name][place] for name in shares for place, end in ((1, "low"), (2, "high"))
    }
    if fn_cost is not None and fp_cost is not None:
        wider = _shares(hits, false, (1 + LEVEL) / 2)
        curve["cost"] = fn_cost * (tp[-1] - tp) + fp_cost * fp
        for end, other in (("low", "high"), ("high", "low")):
            missed = 1 - wider["recall"][other]
            curve[f"cost_{end}"] = fn_cost * tp[-1] * missed + fp_cost * fp[-1] * wider["fpr"][end]
    results = {
        "schema": SCHEMA,
        "level": LEVEL,
        "rows": counts.rows,
        "left_out": {"label": counts.missing_labels, "score": counts.missing_scores, "weight_0": counts.absent},
        "labels": {"positive": counts.positive, "negative": counts.negative},
        "positives": tp[-1],
        "negatives": fp[-1],
        "rate": tp[-1] / (tp[-1] + fp[-1]),
        "objective": str(point),
        "costs": {"fn": fn_cost, "fp": fp_cost},
        "start": start,
        "start_is": how,
        "average_precision": precise,
        "curve": curve,
        "table": [{name: values[row] for name, values in curve.items()} for row in rows],
        "groups": {name: _group(*sums) for name, sums in counts.groups.items()},
        "calibration": None if counts.reliability is None else [
            {"weight": w, "mean_probability": p / w, "observed": y / w} for w, y, p in counts.reliability if w > 0
        ],
    }  # fmt: skip
    plain: dict[str, Any] = _plain(results)
    return plain


def _thinned(counts: Counts, rows: NDArray[np.int64]) -> tuple[Counts, NDArray[np.int64]]:
    """Keep fewer thresholds where many groups would make a page too large to open, and say which; ``rows`` stay."""
    most = max(LEAST_KEPT, GROUP_NUMBERS // max(1, len(counts.groups)))
    everything = np.arange(len(counts.thresholds))
    if not counts.groups or len(everything) <= most:
        return counts, everything
    kept = np.unique(np.concatenate([np.linspace(0, len(everything) - 1, most).astype(np.int64), rows]))
    names = ("thresholds", "tp", "fp", "tp_squared", "fp_squared", "alerts")
    groups = {name: tuple(values[kept] for values in sums) for name, sums in counts.groups.items()}
    return replace(counts, **{name: getattr(counts, name)[kept] for name in names}, groups=groups), kept


def _group(tp: Array, fp: Array, tp_squared: Array, _: Array) -> dict[str, Any]:
    recall = _part(Sums(tp, tp_squared))
    return {
        "positives": tp[-1], "negatives": fp[-1], "tp": tp, "fp": fp,
        "recall": recall["value"], "recall_low": recall["low"], "recall_high": recall["high"],
    }  # fmt: skip


_NONE_FITS = "the highest score, since no threshold keeps within the budget"


def _start(counts: Counts, point: Objective, fn_cost: float | None, fp_cost: float | None) -> tuple[int, str]:
    """The threshold where the page opens, and why that one."""
    tp, fp = counts.tp, counts.fp
    if fn_cost is not None and fp_cost is not None:
        budget, how = _budget(point, fn_cost), "the least cost on these rows"
        place = len(tp) - 1 if budget is None else budget.place(tp, fp)
        if not place:
            return 1, _NONE_FITS
        within = slice(0, place + 1)
        if budget is not None:
            how += f" within {100 * (point.budget or 0):g} % {_of(point)}"
        return int(np.argmin((fn_cost * (tp[-1] - tp) + fp_cost * fp)[within])), how
    recall, precision = tp / tp[-1], tp / np.maximum(tp + fp, TINY)
    if point.recall is not None:
        return int(np.argmax(recall >= point.recall)), f"the fewest alerts kept that catch {100 * point.recall:g} %"
    if point.precision is not None:
        enough = np.flatnonzero(precision >= point.precision)
        how = f"a precision of {100 * point.precision:g} %"
        if not len(enough):
            return int(np.argmax(precision)), f"the highest precision, since no threshold gives {how}"
        return int(enough[-1]), f"the most alerts kept at {how}"
    budget = _budget(point, None)
    if budget is None:
        utility = point.utility(torch.from_numpy(tp), torch.from_numpy(fp))
        return int(utility.argmax()), f"the highest {point.name}"
    how = "the most alerts that are no more than there are positives"
    if point.budget is not None:
        how = f"the most alerts within {100 * point.budget:g} % {_of(point)}"
        best = point.best_value(tp[-1] / (tp[-1] + fp[-1]))
        if best < 1:
            how += f", which can catch {100 * best:.3g} % of the positives at most"
    place = budget.place(tp, fp)
    return (place, how) if place else (1, _NONE_FITS)


def _budget(point: Objective, fn_cost: float | None) -> Budget | None:
    """What may be alerted, where the objective says; for average precision as many as there are positives.

    Costs choose among what a capacity allows; average precision allows all.
    """
    if not point.sets_threshold:
        return Budget(None) if fn_cost is None else None
    return None if point.budget is None else Budget(point.budget, negatives=point.quantile is None)


def _of(point: Objective) -> str:
    return "of the negatives" if point.quantile is None else "of the rows"


def _average_precision(counts: Counts) -> dict[str, Any]:
    """The average precision over kept thresholds, and how far the ties that they make can move it.

    A positive between two thresholds has at least the precision of none of its fellows and all negatives before it,
    and at most that of all fellows and none of the negatives.
    """
    tp, fp = counts.tp, counts.fp
    before_tp, before_fp = np.concatenate([[0], tp[:-1]]), np.concatenate([[0], fp[:-1]])
    gained = tp - before_tp
    single = counts.every_positive | (np.diff(counts.alerts, prepend=0) <= 1)
    pure = (gained == 0) | single
    precision = tp / np.maximum(tp + fp, TINY)
    value = float(np.sum(gained * precision) / tp[-1])
    least = np.where(pure, precision, before_tp / np.maximum(before_tp + fp, TINY))
    most = np.where(pure, precision, tp / np.maximum(tp + before_fp, TINY))
    low, high = (float(np.sum(gained * bound) / tp[-1]) for bound in (least, most))
    return {"value": value, "bound_low": min(low, value), "bound_high": max(high, value)}


def _plain(value: Any) -> Any:
    """Lists and numbers that JSON has; what is not defined is null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        plain: list[Any] = value.tolist()
        return plain if np.isfinite(value).all() else [_plain(part) for part in plain]
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _write(folder: Path, results: dict[str, Any]) -> None:
    here = files("rareloss.decisions.reporting")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(here.joinpath("report.html.j2").read_text("utf-8"))
    script = here.joinpath("report.js").read_text("utf-8")
    pages = {
        "report.json": json.dumps(results, allow_nan=False) + "\n",
        "report.html": template.render(results=results, script=script),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A new folder appears with both files in it; in an old one both are whole before either has its name.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        part = Path(scratch) / "report"
        part.mkdir()
        for name, text in pages.items():
            (part / name).write_text(text, encoding="utf-8", newline="\n")
        if folder.exists():
            for name in pages:
                os.replace(part / name, folder / name)
        else:
            os.replace(part, folder)
