"""What can be said of an operating point before any training; every formula stands in ``docs/advise.md``."""

import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import norm

from rareloss import Objective
from rareloss.decisions import clopper_pearson
from rareloss.table import (
    Data,
    DataError,
    Table,
    TableOptions,
    TableSpec,
    as_found,
    is_date,
    load,
    source_of,
)
from rareloss.tabular.comparison.runs import one_thread
from rareloss.tabular.quick_fits import Finding, fit_quickly, read_as_names

__all__ = ["Advice", "Finding", "advise", "logit_interval", "noise_that_shrinks"]

TEST_SHARE = 0.2  # of a 60/20/20 split
PLAUSIBLE = 0.5
NEEDED_ROWS = 10.0  # behind an operating point: what the losses warn of
NEEDED_POSITIVES = 10.0  # in the pool of average precision
GROUP_NAME = re.compile(
    r"(^|_)(id|key|uuid)$|customer|client|user|patient|account|card|device|merchant|household", re.IGNORECASE
)


@dataclass(frozen=True)
class Advice:
    """What is known of an operating point, and the command to run next."""

    objective: str
    rows: int
    positives: int
    findings: tuple[Finding, ...]
    command: str

    @property
    def answer(self) -> str:
        """What matters first: how well a value can be known, what quick models reach, and what looks wrong."""
        named = {finding.name: finding for finding in self.findings}
        told = [named[name].sentence for name in ("interval", "ranking_loss", "codes") if name in named]
        if "leaks" in named and named["leaks"].value:
            told.insert(0, named["leaks"].sentence)
        return " ".join(told)

    def __getitem__(self, name: str) -> Finding:
        """Return the finding of that name."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def to_json(self) -> str:
        """Write everything as JSON."""
        return json.dumps(asdict(self), indent=2)


def advise(
    data: Data | None = None,
    *,
    objective: Objective | str = "ap",
    rows: float | None = None,
    rate: float | None = None,
    batch: int = 1024,
    per_period: float | None = None,
    plausible: float = PLAUSIBLE,
    width: float = 0.1,
    fits: bool = True,
    say: Callable[[str], None] | None = None,
    **table_options: Unpack[TableOptions],
) -> Advice:
    """Say what an operating point needs, and what these data can show of it, before anything is trained.

    Args:
        data: as in :func:`rareloss.table.load`; or leave it out and give ``rows`` and ``rate``.
        objective: the operating point.
        rows: how many rows there are, where no data are given.
        rate: share of positives, in (0, 1), where no data are given.
        batch: rows of a training step.
        per_period: rows that come in a day, or whatever the period is.
        plausible: the value at which the interval is stated, in (0, 1).
        width: the width of a 95 % interval that is wanted.
        fits: whether to fit quick models on a file: one of each kind, and one for each column of codes.
        say: called with what is done now.
        table_options: which column is what: ``target``, ``positive`` and the others of
            :class:`rareloss.table.TableSpec`.

    Raises:
        DataError: the data cannot be used, or a number is out of range.

    Example:
        >>> advice = advise(rows=1e6, rate=0.001, objective="recall@top=0.05%")
        >>> advice["cap"].value, advice["pool"].value["rows"]
        (0.5, 20000)
    """
    goal = objective if isinstance(objective, Objective) else Objective.parse(objective)
    _between("plausible", plausible)
    _between("width", width)
    if batch < 1:
        raise DataError(f"batch must be at least 1 row, got {batch}")
    if per_period is not None and not (math.isfinite(per_period) and per_period > 0):
        raise DataError(f"per_period must be a positive number of rows, got {per_period}")
    table, spec = None, TableSpec.of(**table_options)
    if rows is not None or rate is not None:
        if data is not None:
            raise DataError("give data, or rows and rate, not both")
        if rows is None or rate is None:
            raise DataError("without data both rows and rate are needed, such as rows=1e6 and rate=0.001")
        if not (math.isfinite(rows) and rows >= 10):
            raise DataError(f"rows must be at least 10, got {rows:g}")
        _between("rate", rate)
        total, positives = int(rows), round(rows * rate)
        if not 0 < positives < total:
            raise DataError(
                f"{total:,} rows at a rate of {rate:g} hold {positives:,} positives; both classes are needed"
            )
    else:
        table = load(data, spec)
        counts = np.bincount(table.target)
        total, positives = len(table.target), int(counts[1] if len(counts) == 2 else counts.min())
        rate = table.rate if len(counts) == 2 else positives / total
    findings = [
        *_measurable(goal, positives, rate, plausible, width),
        *_pool(goal, rate, batch),
        _empty_batch(rate, batch),
        *_alerts(goal, rate, per_period),
        _noise(goal, rate, plausible),
    ]
    if table is None:
        findings.append(_measured_elsewhere())
        spec = replace(spec, target=spec.target or "COLUMN")
    else:
        found, advised = _split_advice(data, table)
        findings += found
        if fits and not table.multiclass:
            with one_thread():
                findings.append(fit_quickly(table, goal, say))
                coded = read_as_names(table, goal, say)
            findings += [coded] if coded else []
            advised = replace(advised, category=(*advised.category, *(coded.value if coded else ())))
        else:
            findings.append(_measured_elsewhere())
        # What the data know by themselves need not be said, but what was, and what is advised, must.
        spec = replace(
            advised, target=spec.target, group=None if spec.group is None and data is None else advised.group
        )
        if table.notes:
            findings.append(Finding("data", list(table.notes), "-", "Read: " + "; ".join(table.notes) + "."))
    name = str(data) if isinstance(data, (str, Path)) else "DATA" if table is None or data is not None else "flights"
    command = shlex.join(["rareloss", "compare", name, *spec.words(), "--objective", str(goal)])
    return Advice(str(goal), total, positives, tuple(findings), command)


# ------------------------------------------------------------------------------------------------------- measurable


def logit_interval(value: float, positives: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Compute the logit interval of an average precision (Boyd, Eng and Page 2013).

    .. math:: \mathrm{expit}(\mathrm{logit}\,\theta \pm z / \sqrt{n\theta(1-\theta)}), \quad n \text{ positives}

    Example:
        >>> [round(end, 3) for end in logit_interval(0.5, 100)]
        [0.403, 0.597]
    """
    reach = norm.ppf((1 + confidence) / 2) / math.sqrt(positives * value * (1 - value))
    return float(expit(logit(value) - reach)), float(expit(logit(value) + reach))


def _interval(goal: Objective, value: float, positives: int) -> tuple[float, float]:
    if goal.budget is None:
        return logit_interval(value, positives)
    return clopper_pearson(round(value * positives), positives)


def _width(goal: Objective, value: float, positives: int) -> float:
    low, high = _interval(goal, value, positives)
    return high - low


def _needed(goal: Objective, value: float, width: float) -> int:
    # The fewest test positives with an interval no wider, by halving: the width shrinks with their number.
    low, high = 0, 1
    while _width(goal, value, high) > width:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _width(goal, value, middle) > width else (low, middle)
    return high


def _measurable(goal: Objective, positives: int, rate: float, plausible: float, width: float) -> list[Finding]:
    if goal.surrogate_reason:
        return [_unknown("interval", goal)]
    cap = goal.best_value(rate)
    value = min(plausible, cap * plausible) if cap < 1 else plausible
    test = max(1, round(TEST_SHARE * positives))
    low, high = _interval(goal, value, test)
    worst = max(_width(goal, share * cap, test) for share in np.linspace(0.01, 0.99, 99).tolist())
    needed = math.ceil(_needed(goal, value, width) / TEST_SHARE)
    more = max(0, needed - positives)
    formula = (
        "expit(logit(v) -+ 1.96 / sqrt(n v (1 - v))), n test positives (Boyd, Eng and Page 2013)"
        if goal.budget is None
        else "Clopper-Pearson: Beta quantiles of k of n test positives"
    )
    rough = " (a mean of recalls, so this interval is rather wide)" if goal.alpha is not None else ""
    verdict = "No model's value is known better than that; two models on the same rows compare somewhat closer."
    found = [
        Finding(
            "interval",
            {"test_positives": test, "at": value, "low": low, "high": high, "worst_width": worst},
            formula,
            f"The test fold (20 %) will hold about {test:,} positives. If the {goal.name} were {value:.2f}, its 95 % "
            f"interval would be [{low:.3f}, {high:.3f}], {high - low:.3f} wide; at worst {worst:.3f}{rough}. {verdict}",
        ),
        Finding(
            "more_positives",
            {"width": width, "positives": needed, "more": more},
            "the fewest n whose interval at the same value is no wider, over 20 %",
            f"For a width of {width:g}, {needed:,} positives are needed in all"
            + (f": {more:,} more than there are." if more else ", and there are as many."),
        ),
    ]
    if goal.quantile is not None:
        said = "the capacity is no limit"
        if cap < 1:
            said = "the capacity is below the base rate: no model can find more, so report it beside every recall"
        found.append(Finding("cap", cap, "min(1, q / rate)", f"The best reachable recall is {cap:.3g}; {said}."))
    return found


# --------------------------------------------------------------------------------------------------------- training


def _pool(goal: Objective, rate: float, batch: int) -> list[Finding]:
    if goal.surrogate_reason:
        return [_unknown("pool", goal)]
    edge = goal.alpha or goal.budget
    if edge is None:
        rows, formula = NEEDED_POSITIVES / rate, "10 / rate: ten positives in the pool on average"
    elif goal.quantile is not None:
        rows, formula = NEEDED_ROWS / edge, "10 / q: M q >= 10"
    else:
        rows, formula = (
            NEEDED_ROWS / (edge * (1 - rate)),
            "10 / (edge (1 - rate)): negatives times the least edge >= 10",
        )
    pool = math.ceil(rows * (1 - 1e-12))
    queue = max(0, pool - batch)
    return [
        Finding(
            "pool",
            {"rows": pool, "batch": batch, "queue_size": queue},
            f"{formula}; queue = pool - batch",
            f"The ranking loss needs a pool of at least {pool:,} rows: with batches of {batch:,}, "
            + (f"queue_size={queue} or more." if queue else "no queue."),
        )
    ]


def _empty_batch(rate: float, batch: int) -> Finding:
    empty = math.exp(batch * math.log1p(-rate))
    return Finding(
        "empty_batch",
        {"chance": empty, "positives": batch * rate},
        "(1 - rate)^B, and B rate",
        f"A batch of {batch:,} holds {batch * rate:.3g} positives on average, and none with a chance of {empty:.2g}.",
    )


def _alerts(goal: Objective, rate: float, per_period: float | None) -> list[Finding]:
    if goal.budget is None:
        return [_unknown("alerts", goal)]
    q = goal.budget
    if goal.quantile is not None:
        share, best = q, min(1.0, rate / q)
        formula = "q N; precision = recall rate / q <= min(1, rate / q)"
        trade = f"a recall of R means a precision of {rate / q:.3g} R"
    else:
        share, best = q * (1 - rate) + rate, rate / (rate + (1 - rate) * q)
        formula = "at recall R: N (f (1 - rate) + R rate); precision = R rate / (R rate + f (1 - rate))"
        trade = f"false alerts alone are {q * (1 - rate):.3g} of all rows"
    count = f"{share:.3g} of all rows"
    if per_period:
        number = share * per_period
        count = f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
        count += f" a period of {per_period:,.0f} rows"
    most = "" if goal.quantile is not None else " at most"
    return [
        Finding(
            "alerts",
            {"share": share, "per_period": None if per_period is None else share * per_period, "best_precision": best},
            formula,
            f"Alerts: {count}{most}. Their precision is at most {best:.3g}; {trade}.",
        )
    ]


def noise_that_shrinks(goal: Objective, rate: float, shrink: float, value: float = PLAUSIBLE) -> tuple[float, float]:
    """Compute how much label noise shrinks measured differences by ``shrink``.

    Returns:
        the share of negatives labelled positive at random; and of positives labelled negative, at most 1 (NaN where
        such rows shrink nothing). For a budget of false positives, the latter is what takes that share of the budget.
    """
    kept = 1 - shrink
    if goal.quantile is not None:
        return shrink * rate / (kept * (1 - rate) + rate), math.nan
    if goal.budget is None:
        linear = 2 * rate + kept * (1 - rate)
        return 2 * shrink * rate / (linear + math.sqrt(linear**2 - 4 * shrink * rate**2)), shrink
    edge = goal.alpha or goal.budget
    missed = shrink * edge * (1 - rate) / (rate * (value - edge)) if value > edge else 1.0
    return shrink / kept * rate / (1 - rate), min(1.0, missed)


def _noise(goal: Objective, rate: float, plausible: float) -> Finding:
    if goal.surrogate_reason:
        return _unknown("label_noise", goal)
    (tenth, tenth_missed), (half, half_missed) = (noise_that_shrinks(goal, rate, by, plausible) for by in (0.1, 0.5))
    if goal.quantile is not None:
        formula = "rate (1 - d) / (rate + (1 - rate) d); missed: none"
        missed = "Positives that were missed at random change no recall here, only how many are left to measure it on"
    elif goal.budget is None:
        formula = "rate (1 - d)^2 / (rate + (1 - rate) d); missed: 1 - m"
        missed = "Of the positives, 10 % and half may be missed at random for the same"
    else:
        formula = "rate / (rate + (1 - rate) d); missed: F = f - m rate (R - f) / (1 - rate)"
        missed = (
            f"Positives labelled negative use up 10 % of the budget at a share of {tenth_missed:.2g}, "
            f"half at {half_missed:.2g}, if the recall is {plausible:.2g}"
        )
    return Finding(
        "label_noise",
        {
            "negatives_tenth": tenth,
            "negatives_half": half,
            "positives_tenth": None if math.isnan(tenth_missed) else tenth_missed,
            "positives_half": None if math.isnan(half_missed) else half_missed,
        },
        "differences shrink by the factor " + formula,
        f"If {tenth:.2g} of the negatives were labelled positive at random, every difference between models would look "
        f"10 % smaller; at {half:.2g}, half as large. {missed}.",
    )


def _unknown(name: str, goal: Objective) -> Finding:
    return Finding(name, None, "none", f"{name.replace('_', ' ')}: not computed for {goal}.")


def _measured_elsewhere() -> Finding:
    return Finding(
        "ranking_loss",
        None,
        "docs/evidence.md",
        "Whether a ranking loss pays cannot be known from counts. Measured over the project's sets: small gains for "
        "linear scorecards, none on some sets; see docs/evidence.md and docs/choosing.md.",
    )


# ------------------------------------------------------------------------------------------------------------ a file


def _split_advice(data: Data | None, table: Table) -> tuple[list[Finding], TableSpec]:
    """Advise how to split, and what to leave out; return the spec with what is advised."""
    spec = table.spec
    frame, _ = as_found(source_of(data, spec), spec)
    free = [name for name in frame.columns if name not in spec.roles.values()]
    times = [name for name in free if is_date(frame[name])]
    groups = [name for name in free if name not in times and _repeats(frame[name])]
    said = [f"It is split by {table.split_by}."]
    if times and spec.time is None and not table.split_by.startswith("group"):
        spec = replace(spec, time=times[0])
        said.append(f"{', '.join(times)} looks like time: if the model is to score later rows, use --time {times[0]}.")
    if groups and spec.group is None:
        spec = replace(spec, group=groups[0])
        said.append(f"{', '.join(groups)} looks like an id that repeats: use --group {groups[0]}.")
    copies = int(table.frame.assign(**{"": table.target}).duplicated().sum())
    if copies:
        said.append(f"Rows that repeat another one, label and all, which may be coarse inputs or copies: {copies:,}.")
    found = [
        Finding("split", {"time": times, "groups": groups, "duplicates": copies}, "see docs/advise.md", " ".join(said))
    ]
    sentence = "No single column ranks the positives almost perfectly, so none looks like a leak."
    if table.leaks:
        alone = ", ".join(f"{name} ({value:.3f})" for name, value in table.leaks.items())
        spec = replace(spec, without=(*spec.without, *table.leaks))
        sentence = (
            f"A leak? By itself each of these ranks almost perfectly: {alone}. The command below leaves them out, as "
            "it must if they are not known when the score is needed."
        )
    found.append(Finding("leaks", dict(table.leaks), "average precision of one column above .95", sentence))
    return found, spec


def _repeats(column: pd.Series) -> bool:
    text = isinstance(column.dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(column)
    if not text and not (pd.api.types.is_integer_dtype(column) and GROUP_NAME.search(str(column.name))):
        return False
    distinct, present = column.nunique(), column.count()
    return bool(distinct > max(50, math.sqrt(present)) and present >= 1.5 * distinct)


def _between(name: str, number: float) -> None:
    if not 0 < number < 1:
        raise DataError(f"{name} must be a share above 0 and below 1, got {number:g}")
