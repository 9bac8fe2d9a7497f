"""Count a file of scores above a few thousand thresholds, exactly, in bounded memory and three passes over its rows.

DuckDB reads csv and parquet in batches. The first pass finds what is wrong with the rows and which scores to cut at;
the second sorts each batch and looks the thresholds up in it; the third, where a budget is to be met, reads the few
rows between the two thresholds on its sides.
"""

import glob
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

from rareloss.table import MISSING, NOT_A_NUMBER

__all__ = ["Budget", "Counts", "count", "lowest_alert"]

Array = NDArray[np.float64]

TOP = 2_000  # of the highest scores every one is a threshold
SPREAD = 1_500  # thresholds over the other ranks, in equal ratios
AT_POSITIVES = 4_000  # up to so many distinct scores of positives are all thresholds, which makes the AP exact
SAMPLE = 200_000  # distinct scores, of which the thresholds over the other ranks are chosen
BATCH = 1_000_000
FEW_PARTS = 8  # up to so many parts of a batch are taken by masks, and more by sorting their numbers
ROUNDING = 1e-9  # by so much a sum of probabilities may miss 0 or 1
BINS = 20  # of the reliability curve
MOST_GROUPS = 200
MEMORY = "768MB"  # of DuckDB; beside it stand Python, the batch and its copies
MOST_LABELS = 20  # so many are looked at before a label is called unknown
TRUE, FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")
NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
           "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL")  # fmt: skip
UNLABELLED, OTHER = 2, 3  # codes of rows without a label, and with one that is neither; 0 is negative, 1 positive


@dataclass(frozen=True, eq=False)
class Counts:
    """Hold what lies at or above each kept score; ties are whole.

    Attributes:
        thresholds: kept scores, downwards, ``[K]``; the last one is the least score.
        tp, fp: weight of the positives and negatives at or above each, ``[K]``.
        tp_squared, fp_squared: the same sums of squared weights, for the intervals.
        heaviest: the most that a positive and a negative weigh.
        alerts: rows at or above each, unweighted.
        groups: name -> (tp, fp, tp_squared, fp_squared), each ``[K]``.
        reliability: weight, weight of positives and weighted score per bin of the score read as a probability,
            ``[B, 3]``; None where scores are no probabilities.
        rows, missing_labels, missing_scores, absent: rows counted, and left out without a label, without a score, and
            of weight 0.
        every_positive: whether every score of a positive is a threshold.
        negative, positive: what the two labels are called.
    """

    thresholds: Array
    tp: Array
    fp: Array
    tp_squared: Array
    fp_squared: Array
    heaviest: tuple[float, float]
    alerts: NDArray[np.int64]
    groups: dict[str, tuple[Array, Array, Array, Array]]
    reliability: Array | None
    rows: int
    missing_labels: int
    missing_scores: int
    absent: int
    every_positive: bool
    negative: str
    positive: str


class Budget(NamedTuple):
    """How much weight may lie at or above a threshold.

    Args:
        share: of what is spent; None: the weight of the positives.
        negatives: whether negatives alone are spent, or all rows.
    """

    share: float | None
    negatives: bool = False

    def spent(self, tp: Array, fp: Array) -> Array:
        """What each threshold spends, of the weight of positives and negatives at or above it, ``[K]``."""
        return fp if self.negatives else tp + fp

    def amount(self, tp: Array, fp: Array) -> float:
        """What may be spent, with room for rounding."""
        whole = float(tp[-1]) if self.share is None else self.share * float(self.spent(tp, fp)[-1])
        return whole * (1 + 1e-12)

    def place(self, tp: Array, fp: Array) -> int:
        """The lowest threshold that keeps within the budget; -1: none does."""
        return int(np.searchsorted(self.spent(tp, fp), self.amount(tp, fp), side="right")) - 1


def count(
    data: Any,
    *,
    label: str,
    score: str,
    group: str | None = None,
    weight: str | None = None,
    positive: str | None = None,
    drop_missing_scores: bool = False,
    probability: str | None = None,
    budget: Budget | None = None,
    threshold: float | None = None,
) -> Counts:
    """Count positives and negatives above thresholds of the scores.

    Args:
        data: path of a csv or parquet file, or a data frame.
        label, score, group, weight: columns.
        positive: value of the label that is positive, where labels are not 0 and 1.
        drop_missing_scores: leave out rows whose score is missing or NaN, and count them; refused by default.
        probability: ``"probability"`` or ``"logit"``: what the score is; None: neither.
        budget: the lowest score that keeps within it becomes a threshold too.
        threshold: so does the least number above this one, which need be nobody's score: rows above it are alerts.

    Raises:
        ValueError: a file, column or value that cannot be used; the message says which and what to do.
    """
    with _connected(data, [label] if group is None else [label, group]) as (connection, source):
        return _count(
            connection,
            source,
            label,
            score,
            group,
            weight,
            positive,
            drop_missing_scores,
            probability,
            budget,
            threshold,
        )


@contextmanager
def _connected(data: Any, texts: list[str]) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.is_file():
            raise ValueError(f"there is no file {path}; give a csv or parquet file of scores")
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty; a header and one row per case were expected")
        reader = {".parquet": "read_parquet", ".pq": "read_parquet"}.get(path.suffix.lower())
        if reader is None and not {".csv", ".tsv", ".txt"} & {suffix.lower() for suffix in path.suffixes}:
            raise ValueError(f"{path} has an unknown ending; csv and parquet files are read")
        # The named file alone: no pattern, no home, no protocol, and no column from the name of a folder.
        name = _text(glob.escape(str(path.absolute())))
        source = f"{reader}({name}, hive_partitioning = false)" if reader else _csv(name)
    elif hasattr(data, "columns"):
        source = reader = "given"
    else:
        raise TypeError(f"data must be a path or a data frame, got {type(data).__name__}")
    with tempfile.TemporaryDirectory() as spill:
        settings: dict[str, Any] = {
            "memory_limit": MEMORY,
            "temp_directory": spill,
            "preserve_insertion_order": "false",
        }
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET enable_progress_bar = false")
            if source == "given":
                connection.register("given", data)
            try:
                if reader is None:
                    # Labels and groups stay text: 1e2 is no 100, and yes no true.
                    known = _columns(connection, source)
                    source = _csv(name, [column for column in texts if column in known])
                yield connection, source
            except duckdb.Error as error:
                reason = str(error).strip().splitlines()[0]
                raise ValueError(f"the scores cannot be read: {reason}") from error


def _csv(name: str, texts: Sequence[str] = ()) -> str:
    types = ", ".join(f"{_text(column)}: 'VARCHAR'" for column in texts)
    options = ["hive_partitioning = false", "header = true", "sample_size = 200000"]
    return f"read_csv({', '.join([name, *options, *([f'types = {{{types}}}'] if types else [])])})"


def _columns(connection: duckdb.DuckDBPyConnection, source: str) -> dict[str, str]:
    return {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}


@dataclass(frozen=True)
class _Rows:
    """How a row is read: its score ``s``, its ``code``, perhaps its weight ``w``.

    What is missing of scores and weights is NaN.
    """

    connection: duckdb.DuckDBPyConnection
    source: str
    columns: dict[str, str]

    def all(self) -> Iterator[dict[str, Any]]:
        """Yield batches of all rows, as arrays by name."""
        columns = ", ".join(f"{sql} AS {name}" for name, sql in self.columns.items())
        yield from self._batches(f"SELECT {columns} FROM {self.source}")

    def counted(self, more: dict[str, str], condition: str = "") -> Iterator[dict[str, Any]]:
        """Yield batches of the rows that count, with more columns."""
        columns = ", ".join(f"{sql} AS {name}" for name, sql in (self.columns | more).items())
        where = f"{' AND w > 0' if 'w' in self.columns else ''}{condition}"
        yield from self._batches(f"FROM (SELECT {columns} FROM {self.source}) WHERE code < 2 AND NOT isnan(s){where}")

    def _batches(self, query: str) -> Iterator[dict[str, Any]]:
        for batch in self.connection.sql(query).to_arrow_reader(BATCH):
            # Nothing is missing and all are numbers, so that nothing is copied, and pandas need not be loaded for it.
            yield {name: np.from_dlpack(batch.column(name)) for name in batch.schema.names}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _count(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    label: str,
    score: str,
    group: str | None,
    weight: str | None,
    positive: str | None,
    drop: bool,
    probability: str | None,
    budget: Budget | None,
    threshold: float | None,
) -> Counts:
    kinds = _columns(connection, source)
    for role, name in (("label", label), ("score", score), ("group", group), ("weight", weight)):
        if name is not None and name not in kinds:
            raise ValueError(f"there is no column {name!r} ({role}); the columns are {', '.join(kinds)}")
    for role, name in (("score", score), ("weight", weight)):
        if name is not None and kinds[name] in ("VARCHAR", "DATE", "TIMESTAMP", "BOOLEAN"):
            raise ValueError(f"column {name!r} ({role}) holds {kinds[name]}; numbers were expected")

    negative, positive, code = _labels(connection, source, label, kinds[label], positive)
    number = "coalesce({}::DOUBLE, 'nan'::DOUBLE) + 0.0".format  # the sum makes one zero of the two
    columns = {"s": number(_quoted(score)), "code": f"({code})::UTINYINT"}
    if weight is not None:
        columns["w"] = number(_quoted(weight))
    rows = _Rows(connection, source, columns)
    seen = _Seen()
    for batch in rows.all():
        seen.add(**batch)
    if seen.other:
        values, _ = _values(connection, source, label)
        raise ValueError(
            f"labels other than 0 and 1 in {label!r}: {', '.join(values[:5])}; say which is positive (positive=...)"
        )
    if seen.rows == 0:
        raise ValueError("there are no rows; one row per case was expected")
    if seen.bad_weights:
        raise ValueError(f"{seen.bad_weights:,} weights are missing, negative or infinite; weights must be 0 or more")
    if seen.unscored and not drop:
        raise ValueError(f"{seen.unscored:,} scores are missing or NaN; mend them, or leave the rows out on purpose")
    if seen.infinite:
        raise ValueError(f"{seen.infinite:,} scores are infinite; finite scores were expected")
    if seen.positives == 0 or seen.positives == seen.kept:
        raise ValueError(
            f"{seen.kept:,} rows are left with {seen.positives:,} positives ({label} = {positive}); both classes are "
            "needed"
        )
    if probability == "probability" and not -ROUNDING <= seen.least <= seen.most <= 1 + ROUNDING:
        raise ValueError(f"scores reach from {seen.least:g} to {seen.most:g}, so they are no probabilities; say logit")

    if threshold is not None and not threshold < seen.most:
        raise ValueError(
            f"no score is above the threshold {threshold:g}, so nobody is alerted; the scores reach from "
            f"{seen.least:g} to {seen.most:g}"
        )

    names: list[str] = []
    more: dict[str, str] = {}
    if group is not None:
        names, none = _group_names(connection, source, group)
        listed = ", ".join(map(_text, names))
        more["g"] = f"enum_code(coalesce({_quoted(group)}::VARCHAR, {_text(none)})::ENUM({listed}))"
    thresholds, parts = seen.thresholds(threshold), max(1, len(names))
    above, reliability = _counted(rows.counted(more), thresholds, parts, probability)
    if budget is not None:
        thresholds, above = _with_cut(rows, more, thresholds, above, budget)
    weights, squares = above[1:]
    number, whole, whole_squared = above.sum(axis=1)
    return Counts(
        thresholds, whole[1], whole[0], whole_squared[1], whole_squared[0],
        (seen.heaviest[1], seen.heaviest[0]), number.sum(axis=0).astype(np.int64),
        groups={
            name: (weights[place, 1], weights[place, 0], squares[place, 1], squares[place, 0])
            for place, name in enumerate(names)
        },
        reliability=None if probability is None else reliability,
        rows=seen.kept, missing_labels=seen.unlabelled, missing_scores=seen.unscored, absent=seen.absent,
        every_positive=seen.of_positives.whole(AT_POSITIVES), negative=negative, positive=positive,
    )  # fmt: skip


def _labels(
    connection: duckdb.DuckDBPyConnection, source: str, label: str, kind: str, positive: str | None
) -> tuple[str, str, str]:
    """Find what the two labels are called, and the SQL of a row's code."""
    column = _quoted(label)
    text = f"{column}::VARCHAR"
    if positive is None and (kind == "BOOLEAN" or kind.startswith(NUMBERS)):  # numbers are compared faster than text
        value = f"{column}::DOUBLE"
        code = (
            f"CASE WHEN {value} = 0 THEN 0 WHEN {value} = 1 THEN 1 WHEN {column} IS NULL OR isnan({value}) "
            f"THEN {UNLABELLED} ELSE {OTHER} END"
        )
        zero, one = connection.execute(f"SELECT 0::{kind}::VARCHAR, 1::{kind}::VARCHAR").fetchall()[0]
        return zero, one, code
    values, marks = _values(connection, source, label)
    missing = f"{column} IS NULL OR {text} IN ({', '.join(map(_text, marks))})"
    if positive is not None:
        alike = [value for value in values if _same(value, positive)]
        if not alike and len(values) <= MOST_LABELS:
            raise ValueError(f"no label in {label!r} is {positive!r}; the labels are {', '.join(values[:5])}")
        alike = alike or [positive]
        others = [value for value in values if value not in alike]
        code = f"CASE WHEN {missing} THEN {UNLABELLED} ELSE ({text} IN ({', '.join(map(_text, alike))}))::INTEGER END"
        return others[0] if len(others) == 1 else "the rest", alike[0], code
    ones, zeros = ([value for value in values if value.lower() in truths] for truths in (TRUE, FALSE))
    code = (
        f"CASE WHEN {missing} THEN {UNLABELLED} "
        f"WHEN lower({text}) IN {TRUE} THEN 1 WHEN lower({text}) IN {FALSE} THEN 0 ELSE {OTHER} END"
    )
    return zeros[0] if zeros else "0", ones[0] if ones else "1", code


def _same(value: str, positive: str) -> bool:
    """Whether two texts are one label: the same text, or one number or truth value written in two ways."""

    def plain(text: str) -> str | float:
        try:
            return float({"true": "1", "false": "0"}.get(text.lower(), text))
        except ValueError:
            return text

    return plain(value) == plain(positive)


def _values(connection: duckdb.DuckDBPyConnection, source: str, label: str) -> tuple[list[str], list[str]]:
    """Return some labels, and which texts mean that there is none.

    Where all others are numbers or truth values these are all marks of a reader; else a class may be called None.
    """
    column = f"{_quoted(label)}::VARCHAR"
    none = ", ".join(map(_text, MISSING))
    found = connection.execute(
        f"""SELECT {column} FROM (SELECT DISTINCT {_quoted(label)} FROM {source})
            WHERE {column} IS NOT NULL AND {column} NOT IN ({none}) LIMIT {MOST_LABELS + 1}"""
    ).fetchall()
    values = sorted(str(row[0]) for row in found)
    if all(_is_number(value) for value in values):
        return values, list(MISSING)
    named = ", ".join(_text(mark) for mark in MISSING if mark not in NOT_A_NUMBER)
    more = connection.execute(f"SELECT DISTINCT {column} FROM {source} WHERE {column} IN ({named})").fetchall()
    return sorted([*values, *(str(row[0]) for row in more)]), list(NOT_A_NUMBER)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True


def _group_names(connection: duckdb.DuckDBPyConnection, source: str, group: str) -> tuple[list[str], str]:
    """Return the groups, and what rows without one are called: not as any group is."""
    rows = connection.execute(
        f"SELECT DISTINCT {_quoted(group)}::VARCHAR FROM {source} LIMIT {MOST_GROUPS + 1}"
    ).fetchall()
    if len(rows) > MOST_GROUPS:
        raise ValueError(f"column {group!r} has more than {MOST_GROUPS} values; name one with fewer groups")
    names = [str(row[0]) for row in rows if row[0] is not None]
    none = "missing" if "missing" not in names else "missing (no value)"
    return sorted(names if len(names) == len(rows) else [*names, none]), none


def lowest_alert(threshold: float, least: float) -> float:
    """Return the lowest number that is an alert: strictly above the threshold, and no lower than the least score."""
    return max(float(np.nextafter(threshold, np.inf)), least)


# ---------------------------------------------------------------------------------------------------- the first pass


class _Sample:
    """Distinct scores and how often each came: all of them, or those of the least hashes where they are too many.

    A score is in where its hash is below a limit, which is halved whenever more than ``SAMPLE`` distinct scores are: so
    what is kept depends on the scores alone, never on their order, and equal ones stay together.
    """

    def __init__(self) -> None:
        self.limit = 1 << 64
        self.values: Array = np.empty(0)
        self.counts: Array = np.empty(0)
        self.waiting: list[Array] = []

    def add(self, s: Array) -> None:
        """Take scores in."""
        self.waiting.append(s if self.limit == 1 << 64 else s[_hash(s) < np.uint64(self.limit)])
        if sum(map(len, self.waiting)) > SAMPLE:
            self.merge()

    def merge(self) -> None:
        """Count what waits."""
        together = np.concatenate([self.values, *self.waiting])
        came = np.concatenate([self.counts, np.ones(len(together) - len(self.values))])
        self.values, where = np.unique(together, return_inverse=True)
        self.counts, self.waiting = np.bincount(where, came).astype(np.float64), []
        while len(self.values) > SAMPLE:
            self.limit //= 2
            kept = _hash(self.values) < np.uint64(self.limit)
            self.values, self.counts = self.values[kept], self.counts[kept]

    def whole(self, most: int) -> bool:
        """Whether every score that was added is here, and there are at most so many."""
        self.merge()
        return self.limit == 1 << 64 and len(self.values) <= most


def _hash(s: Array) -> NDArray[np.uint64]:
    bits = s.view(np.uint64)
    mixed = bits >> np.uint64(32)
    mixed ^= bits
    mixed *= np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd: multiples of it spread evenly
    return mixed


class _Seen:
    """What the first pass has seen: rows that cannot be used, and scores to cut at."""

    def __init__(self) -> None:
        self.rows = self.kept = self.positives = 0
        self.other = self.unlabelled = self.unscored = self.infinite = self.bad_weights = self.absent = 0
        self.least, self.most = np.inf, -np.inf
        self.heaviest = [0.0, 0.0]  # of each label
        self.top = np.empty(0)
        self.of_all, self.of_positives = _Sample(), _Sample()

    def add(self, s: Array, code: NDArray[np.uint8], w: Array | None = None) -> None:
        """Take a batch in."""
        self.rows += len(s)
        good = code < UNLABELLED
        usable = good & np.isfinite(s)
        if not usable.all():
            self.other += int((code == OTHER).sum())
            self.unlabelled += int((code == UNLABELLED).sum())
            self.unscored += int((good & np.isnan(s)).sum())
            self.infinite += int((good & np.isinf(s)).sum())
        if w is not None:
            self.bad_weights += int((~(np.isfinite(w) & (w >= 0))).sum())
            self.absent += int((usable & (w == 0)).sum())
            usable &= w > 0
        for label in (0, 1):
            most = 1.0 if w is None else float(w.max(where=usable & (code == label), initial=0.0))
            self.heaviest[label] = max(self.heaviest[label], most)
        if not usable.all():
            s, code = s[usable], code[usable]
        if not len(s):
            return
        hits = s[code == 1]
        self.kept += len(s)
        self.positives += len(hits)
        self.least, self.most = min(self.least, float(s.min())), max(self.most, float(s.max()))
        high = s if len(self.top) < TOP else s[s > self.top[0]]
        if len(high):
            top = np.concatenate([self.top, high])
            if len(top) > TOP:
                top = np.partition(top, len(top) - TOP)[-TOP:]
            self.top = np.sort(top)
        self.of_all.add(s)
        self.of_positives.add(hits)

    def thresholds(self, more: float | None) -> Array:
        """Choose scores: all of the top, all of the positives where they are few, and ranks in equal ratios."""
        chosen = [self.top, np.array([self.least] if more is None else [self.least, lowest_alert(more, self.least)])]
        for sample, most in ((self.of_all, SPREAD), (self.of_positives, AT_POSITIVES)):
            sample.merge()
            values = sample.values[::-1]
            if len(values) > most:
                if sample is self.of_positives:
                    places = np.linspace(0, len(values) - 1, most).astype(int)
                else:
                    ranks = np.cumsum(sample.counts[::-1])
                    places = np.searchsorted(ranks, np.geomspace(ranks[0], ranks[-1], most)).clip(max=len(values) - 1)
                values = values[places]
            chosen.append(values)
        return np.unique(np.concatenate(chosen))[::-1].copy()


# --------------------------------------------------------------------------------------------------- the second pass


def _counted(
    batches: Iterable[dict[str, Any]], thresholds: Array, groups: int, probability: str | None
) -> tuple[Array, Array]:
    """Count rows, weight and squared weight at or above each threshold.

    Returns:
        ``[3, groups, 2, K]``, of negatives and positives of each group; and what the reliability curve is made of,
        ``[B, 3]``.
    """
    upwards = thresholds[::-1].copy()
    above = np.zeros((3, groups, 2, len(upwards)))
    reliability = np.zeros((BINS, 3))
    weighted = False
    for batch in batches:
        s, code, w = batch["s"], batch["code"], batch.get("w")
        weighted = w is not None
        part = code if groups == 1 else code + np.uint16(2) * batch["g"]
        for number, rows in _parts(part, 2 * groups):
            group, label = divmod(number, 2)
            _add(above[:, group, label], s[rows], None if w is None else w[rows], upwards)
        if probability is not None:
            reliability += _reliability(s, code, w, probability)
    if not weighted:
        above[1:] = above[0]
    return above[..., ::-1], reliability


def _parts(part: NDArray[Any], number: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the number of each part that has rows, and which they are: a mask, or indices."""
    if number <= FEW_PARTS:
        for value in range(number):
            mask = part == value
            if mask.any():
                yield value, mask
        return
    order = np.argsort(part, kind="stable")  # of small numbers: a radix sort
    ends = np.cumsum(np.bincount(part, minlength=number))
    for value, (start, end) in enumerate(zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)):
        if end > start:
            yield value, order[start:end]


def _add(above: Array, s: Array, w: Array | None, upwards: Array) -> None:
    """Add what is at or above each threshold: rows, weight and squared weight, ``above [3, K]``.

    Thresholds are looked up in sorted scores: sorting costs a tenth of looking scores up among thresholds in disorder.
    """
    if w is None:
        above[0] += len(s) - np.searchsorted(np.sort(s), upwards)
        return
    order = np.argsort(s)
    number = len(s) - np.searchsorted(s, upwards, sorter=order)
    above[0] += number
    downwards = w[order][::-1]
    for row, value in ((1, downwards), (2, downwards**2)):
        above[row] += np.concatenate([[0.0], np.cumsum(value)])[number]


def _reliability(s: Array, code: NDArray[np.uint8], w: Array | None, probability: str) -> Array:
    """Sum weight, weight of positives and weighted probability per bin, ``[B, 3]``."""
    p = s.clip(0, 1) if probability == "probability" else 1 / (1 + np.exp(-s.clip(-700, 700)))
    bin_of = np.minimum((p * BINS).astype(int), BINS - 1)
    w = np.ones(len(s)) if w is None else w
    return np.stack([np.bincount(bin_of, value, minlength=BINS) for value in (w, w * code, w * p)], axis=1)


# ---------------------------------------------------------------------------------------------------- the third pass


def _with_cut(
    rows: _Rows, more: dict[str, str], thresholds: Array, above: Array, budget: Budget
) -> tuple[Array, Array]:
    """Add the lowest score that keeps within the budget to the thresholds, and what is at or above it."""
    fp, tp = above[1].sum(axis=0)
    place = budget.place(tp, fp)
    if place == len(thresholds) - 1:
        return thresholds, above
    between = f" AND s > {_exact(thresholds[place + 1])}"
    if place >= 0:
        between += f" AND s < {_exact(thresholds[place])}"
    batches = list(rows.counted(more, between))
    if not batches:
        return thresholds, above
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    s, w = found["s"], found.get("w", np.ones(len(found["s"])))
    order = np.argsort(-s)
    cost = w * (found["code"] == 0) if budget.negatives else w
    spent = (budget.spent(tp, fp)[place] if place >= 0 else 0.0) + np.cumsum(cost[order])
    ends = np.flatnonzero(np.diff(s[order], append=-np.inf))  # of equal scores, which are above a cut together
    within = ends[spent[ends] <= budget.amount(tp, fp)]
    if not len(within):
        return thresholds, above
    cut = s[order[within[-1:]]]
    added, _ = _counted([found], cut, above.shape[1], None)
    before = above[..., place : place + 1] if place >= 0 else 0.0
    at = place + 1
    return np.insert(thresholds, at, cut), np.concatenate([above[..., :at], before + added, above[..., at:]], axis=-1)


def _exact(number: np.float64) -> str:
    return f"'{float(number)!r}'::DOUBLE"
