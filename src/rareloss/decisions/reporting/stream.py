"""Count a file of scores above a few thousand thresholds, exactly, in bounded memory and three passes over its rows.

DuckDB reads csv and parquet in batches. The first pass finds what is wrong with the rows and which scores to cut at;
the second sorts each batch and looks the thresholds up in it; the third, where a budget is to be met, reads the few
rows between the two thresholds on its sides.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rareloss.table import (
    MISSING,
    NOT_A_NUMBER,
    DataError,
    Source,
    as_numbers,
    decimal_marks,
    open_source,
    plain,
    trimmed,
    without_marks,
)

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
LIGHTEST, HEAVIEST = 1e-100, 1e100  # sums of squares of such weights neither vanish nor overflow
MOST_GROUPS = 200
MEMORY = "768MB"  # of DuckDB; beside it stand Python, the batch and its copies
MOST_LABELS = 20  # so many are looked at before a label is called unknown
TRUE, FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")
# 1.0 is 1, as labels are called everywhere.
_LABEL_TEXT = "CASE WHEN label = floor(label) THEN label::HUGEINT::VARCHAR ELSE label::VARCHAR END"
UNLABELLED, OTHER = 2, 3  # codes of rows without a label, and with one that is neither; 0 is negative, 1 positive


@dataclass(frozen=True, eq=False)
class Counts:
    """Hold what lies at or above each kept score; ties are whole.

    Attributes:
        thresholds: a number above all scores, then kept scores, downwards, ``[K]``; the last one is the least score.
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
        """The lowest threshold that keeps within the budget; 0, which alerts nobody, always does."""
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
    header: bool = True,
) -> Counts:
    """Count positives and negatives above thresholds of the scores.

    Args:
        data: a file or a data frame, as :func:`rareloss.table.open_source` takes them.
        label, score, group, weight: columns.
        positive: value of the label that is positive, where labels are not 0 and 1.
        drop_missing_scores: leave out rows whose score is missing or NaN, and count them; refused by default.
        probability: ``"probability"`` or ``"logit"``: what the score is; None: neither.
        budget: the lowest score that keeps within it becomes a threshold too.
        header: whether the first row of a csv holds the names.
        threshold: so does the least number above this one, which need be nobody's score: rows above it are alerts.

    Raises:
        ValueError: a file, column or value that cannot be used; the message says which and what to do.
    """
    columns = {"label": label, "score": score, "group": group, "weight": weight}
    with _connected(data, {role: name for role, name in columns.items() if name is not None}, header) as scores:
        return _count(scores, label, positive, drop_missing_scores, probability, budget, threshold)


class _Scores:
    """The columns of a file as DuckDB reads them: ``s`` and ``w`` float64, ``label`` float64 or text, ``g`` text.

    Each query reads the file anew, a batch at a time.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, source: Source, columns: dict[str, str]) -> None:
        self.connection, self.source, self.columns = connection, source, columns
        self.failed: DataError | None = None
        first = next(source.batches(list(dict.fromkeys(columns.values()))), None)
        if first is None:
            raise ValueError("there are no rows; one row per case was expected")
        first = plain(first)
        own, usual = decimal_marks(first)
        self.decimal = {name: own.get(name, usual if source.text else ".") for name in columns.values()}
        kind = first.schema.field(columns["label"]).type
        self.number_labels = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        fields = {"label": pa.float64() if self.number_labels else pa.string(), "s": pa.float64()}
        fields |= {"w": pa.float64()} if "weight" in columns else {}
        fields |= {"g": pa.string()} if "group" in columns else {}
        self.schema = pa.schema(fields)

    def query(self, sql: str) -> duckdb.DuckDBPyRelation:
        """Ask of the table ``given``."""
        self.connection.register("given", pa.RecordBatchReader.from_batches(self.schema, self._read()))
        return self.connection.sql(sql)

    def _read(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self.source.batches(list(dict.fromkeys(self.columns.values())), BATCH):
                table = plain(batch)
                named = {role: table.column(name) for role, name in self.columns.items()}
                made = {"s": self._numbers("score", named["score"])}
                made["label"] = (
                    pc.cast(named["label"], pa.float64()) if self.number_labels else _text_of(named["label"])
                )
                if "weight" in named:
                    made["w"] = self._numbers("weight", named["weight"])
                if "group" in named:
                    made["g"] = without_marks(_text_of(named["group"]), NOT_A_NUMBER)
                yield from pa.table([made[name] for name in self.schema.names], self.schema).to_batches()
        except DataError as error:  # which DuckDB would wrap
            self.failed = error
            raise

    def _numbers(self, role: str, column: pa.ChunkedArray) -> Any:
        name = self.columns[role]
        return as_numbers(column, f"{name!r} ({role})", self.decimal[name])


def _text_of(column: pa.ChunkedArray) -> pa.Array:
    """Write values as text, flags as True and False, whole numbers without decimal places."""
    column = column.combine_chunks()
    if pa.types.is_boolean(column.type):
        return pc.if_else(column, "True", "False")
    if pa.types.is_floating(column.type) and pc.all(pc.equal(column, pc.floor(column))).as_py():
        column = pc.cast(column, pa.int64(), safe=False)
    return trimmed(pc.cast(column, pa.string()))


@contextmanager
def _connected(data: Any, columns: dict[str, str], header: bool) -> Iterator[_Scores]:
    source = open_source(data, header=header, keys=list(columns.values()))
    for role, name in columns.items():
        if name not in source.names:
            raise ValueError(f"there is no column {name!r} ({role}); the columns are {', '.join(source.names)}")
    with tempfile.TemporaryDirectory() as spill:
        settings: dict[str, Any] = {
            "memory_limit": MEMORY,
            "temp_directory": spill,
            "preserve_insertion_order": "false",
        }
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET enable_progress_bar = false")
            scores = _Scores(connection, source, columns)
            try:
                yield scores
            except duckdb.Error as error:
                if scores.failed is not None:
                    raise scores.failed from error
                reason = str(error).strip().splitlines()[0]
                raise ValueError(f"the scores cannot be read: {reason}") from error


@dataclass(frozen=True)
class _Rows:
    """How a row is read: its score ``s``, its ``code``, perhaps its weight ``w``.

    What is missing of scores and weights is NaN.
    """

    scores: _Scores
    columns: dict[str, str]

    def all(self) -> Iterator[dict[str, Any]]:
        """Yield batches of all rows, as arrays by name."""
        columns = ", ".join(f"{sql} AS {name}" for name, sql in self.columns.items())
        yield from self._batches(f"SELECT {columns} FROM given")

    def counted(self, more: dict[str, str], condition: str = "") -> Iterator[dict[str, Any]]:
        """Yield batches of the rows that count, with more columns."""
        columns = ", ".join(f"{sql} AS {name}" for name, sql in (self.columns | more).items())
        where = f"{' AND w > 0' if 'w' in self.columns else ''}{condition}"
        yield from self._batches(f"FROM (SELECT {columns} FROM given) WHERE code < 2 AND NOT isnan(s){where}")

    def _batches(self, query: str) -> Iterator[dict[str, Any]]:
        for batch in self.scores.query(query).to_arrow_reader(BATCH):
            # Nothing is missing and all are numbers, so that nothing is copied, and pandas need not be loaded for it.
            yield {name: np.from_dlpack(batch.column(name)) for name in batch.schema.names}


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _count(
    scores: _Scores,
    label: str,
    positive: str | None,
    drop: bool,
    probability: str | None,
    budget: Budget | None,
    threshold: float | None,
) -> Counts:
    negative, positive, code = _labels(scores, label, positive)
    number = "coalesce({}, 'nan'::DOUBLE) + 0.0".format  # the sum makes one zero of the two
    columns = {"s": number("s"), "code": f"({code})::UTINYINT"}
    if "weight" in scores.columns:
        columns["w"] = number("w")
    rows = _Rows(scores, columns)
    seen = _Seen()
    for batch in rows.all():
        seen.add(**batch)
    if seen.other:
        values, _ = _values(scores)
        raise ValueError(
            f"labels other than 0 and 1 in {label!r}: {', '.join(values[:5])}; say which is positive (positive=...)"
        )
    if seen.rows == 0:
        raise ValueError("there are no rows; one row per case was expected")
    if seen.bad_weights:
        raise ValueError(f"{seen.bad_weights:,} weights are missing, negative or infinite; weights must be 0 or more")
    if "weight" in scores.columns and not all(most == 0 or LIGHTEST <= most <= HEAVIEST for most in seen.heaviest):
        raise ValueError(
            f"the heaviest rows weigh {seen.heaviest[1]:g} (positives) and {seen.heaviest[0]:g} (negatives), whose "
            f"squares float64 cannot sum; divide all weights by their mean"
        )
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

    names: list[str] = []
    more: dict[str, str] = {}
    if "group" in scores.columns:
        names, none = _group_names(scores)
        listed = ", ".join(map(_text, names))
        more["part"] = f"enum_code(coalesce(g, {_text(none)})::ENUM({listed}))"
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


def _labels(scores: _Scores, label: str, positive: str | None) -> tuple[str, str, str]:
    """Find what the two labels are called, and the SQL of a row's code."""
    if positive is None and scores.number_labels:
        code = (
            f"CASE WHEN label = 0 THEN 0 WHEN label = 1 THEN 1 WHEN label IS NULL OR isnan(label) THEN {UNLABELLED} "
            f"ELSE {OTHER} END"
        )
        return "0", "1", code
    text = _LABEL_TEXT if scores.number_labels else "label"
    values, marks = _values(scores)
    missing = f"label IS NULL OR {text} IN ({', '.join(map(_text, marks))})"
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


def _values(scores: _Scores) -> tuple[list[str], list[str]]:
    """Return some labels, and which texts mean that there is none.

    Where all others are numbers or truth values these are all marks of a reader; else a class may be called None.
    """
    none = ", ".join(map(_text, MISSING))
    text = _LABEL_TEXT if scores.number_labels else "label"
    found = scores.query(
        f"""SELECT DISTINCT {text} FROM given
            WHERE label IS NOT NULL AND {text} NOT IN ({none}) LIMIT {MOST_LABELS + 1}"""
    ).fetchall()
    values = sorted(str(row[0]) for row in found)
    if all(_is_number_or_flag(value) for value in values):
        return values, list(MISSING)
    named = ", ".join(_text(mark) for mark in MISSING if mark not in NOT_A_NUMBER)
    more = scores.query(f"SELECT DISTINCT {text} FROM given WHERE {text} IN ({named})").fetchall()
    return sorted([*values, *(str(row[0]) for row in more)]), list(NOT_A_NUMBER)


def _is_number_or_flag(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True


def _group_names(scores: _Scores) -> tuple[list[str], str]:
    """Return the groups, and what rows without one are called: not as any group is."""
    group = scores.columns["group"]
    rows = scores.query(f"SELECT DISTINCT g FROM given LIMIT {MOST_GROUPS + 1}").fetchall()
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
        """Choose scores: all of the top, all of the positives where they are few, and ranks in equal ratios.

        Before them stands the next number above all of them, or above ``more`` where that is finite and no lower.
        """
        more = self.most if more is None or more == math.inf else more
        chosen = [self.top, np.array([self.least, lowest_alert(max(more, self.most), self.least)])]
        if more < self.most:
            chosen.append(np.array([lowest_alert(more, self.least)]))
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
        part = code if groups == 1 else code + np.uint16(2) * batch["part"]
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
    between = f" AND s > {_exact(thresholds[place + 1])} AND s < {_exact(thresholds[place])}"
    batches = list(rows.counted(more, between))
    if not batches:
        return thresholds, above
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    s, w = found["s"], found.get("w", np.ones(len(found["s"])))
    order = np.argsort(-s)
    cost = w * (found["code"] == 0) if budget.negatives else w
    spent = budget.spent(tp, fp)[place] + np.cumsum(cost[order])
    ends = np.flatnonzero(np.diff(s[order], append=-np.inf))  # of equal scores, which are above a cut together
    within = ends[spent[ends] <= budget.amount(tp, fp)]
    if not len(within):
        return thresholds, above
    cut = s[order[within[-1:]]]
    added, _ = _counted([found], cut, above.shape[1], None)
    at = place + 1
    there = above[..., place:at] + added
    return np.insert(thresholds, at, cut), np.concatenate([above[..., :at], there, above[..., at:]], axis=-1)


def _exact(number: np.float64) -> str:
    return f"'{float(number)!r}'::DOUBLE"
