"""Count a file of scores above a few thousand thresholds, exactly, in bounded memory.

DuckDB reads csv and parquet in batches, orders only what it must and spills to disk; NumPy counts each batch.
"""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

__all__ = ["Counts", "count"]

Array = NDArray[np.float64]

TOP = 2_000  # of the highest scores every one is a threshold
SPREAD = 1_500  # thresholds over the other ranks, in equal ratios
AT_POSITIVES = 4_000  # up to so many distinct scores of positives are all thresholds, which makes the AP exact
SAMPLE = 200_000  # distinct scores, of which the thresholds over the other ranks are chosen
BATCH = 1_000_000
MOST_GROUPS = 200
MEMORY = "768MB"  # of DuckDB; beside it stand Python, the batch and its copies


@dataclass(frozen=True, eq=False)
class Counts:
    """Hold what lies at or above each threshold; ties are whole.

    Attributes:
        thresholds: kept scores, downwards, ``[K]``; the last one is the least score.
        tp, fp: weight of the positives and negatives at or above each, ``[K]``.
        tp_squared, fp_squared: the same sums of squared weights, for the effective number of rows.
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
) -> Counts:
    """Count positives and negatives above thresholds of the scores.

    Args:
        data: path of a csv or parquet file, or a data frame.
        label, score, group, weight: columns.
        positive: value of the label that is positive, where labels are not 0 and 1.
        drop_missing_scores: leave out rows whose score is missing or NaN, and count them; refused by default.
        probability: ``"probability"`` or ``"logit"``: what the score is; None: neither.

    Raises:
        ValueError: a file, column or value that cannot be used; the message says which and what to do.
    """
    with _connected(data) as (connection, source):
        return _count(connection, source, label, score, group, weight, positive, drop_missing_scores, probability)


@contextmanager
def _connected(data: Any) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.is_file():
            raise ValueError(f"there is no file {path}; give a csv or parquet file of scores")
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty; a header and one row per case were expected")
        reader = {".parquet": "read_parquet", ".pq": "read_parquet"}.get(path.suffix.lower())
        if reader is None and not {".csv", ".tsv", ".txt"} & {suffix.lower() for suffix in path.suffixes}:
            raise ValueError(f"{path} has an unknown ending; csv and parquet files are read")
        options = "" if reader else ", header = true, sample_size = 200000"
        name = str(path).replace("'", "''")
        source = f"{reader or 'read_csv'}('{name}'{options})"
    elif hasattr(data, "columns"):
        source = "given"
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
                yield connection, source
            except duckdb.Error as error:
                reason = str(error).strip().splitlines()[0]
                raise ValueError(f"the scores cannot be read: {reason}") from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


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
) -> Counts:
    kinds = {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    for role, name in (("label", label), ("score", score), ("group", group), ("weight", weight)):
        if name is not None and name not in kinds:
            raise ValueError(f"there is no column {name!r} ({role}); the columns are {', '.join(kinds)}")
    for role, name in (("score", score), ("weight", weight)):
        if name is not None and kinds[name] in ("VARCHAR", "DATE", "TIMESTAMP", "BOOLEAN"):
            raise ValueError(f"column {name!r} ({role}) holds {kinds[name]}; numbers were expected")

    negative, positive, is_positive = _labels(connection, source, label, kinds[label], positive)
    s = f"{_quoted(score)}::DOUBLE"
    w = "1::DOUBLE" if weight is None else f"{_quoted(weight)}::DOUBLE"
    labelled = f"{_quoted(label)} IS NOT NULL" + (f" AND NOT isnan({_quoted(label)})" if _real(kinds[label]) else "")
    known = f"({s} IS NOT NULL AND NOT isnan({s}))"
    view = (
        f"SELECT {s} + 0.0 AS s, ({is_positive}) AS y, {w} AS w FROM {source} WHERE {labelled} AND {known} AND {w} > 0"
    )
    facts = connection.execute(
        f"""SELECT count(*), count(*) FILTER (NOT ({labelled})),
            count(*) FILTER ({labelled} AND NOT {known}), count(*) FILTER ({labelled} AND isinf({s})),
            count(*) FILTER ({w} IS NULL OR NOT isfinite({w}) OR {w} < 0),
            count(*) FILTER ({labelled} AND {known} AND {w} = 0),
            approx_count_distinct({s}), approx_count_distinct({s}) FILTER ({labelled} AND {is_positive}),
            min({s}) FILTER ({labelled} AND {known} AND {w} > 0), max({s}) FILTER ({labelled} AND {known} AND {w} > 0),
            count(*) FILTER ({labelled} AND {known} AND {w} > 0 AND {is_positive}) FROM {source}"""
    ).fetchone()
    assert facts is not None
    rows, unlabelled, unknown, infinite, bad_weights, absent, distinct, distinct_positives, least, most, hits = facts
    if rows == 0:
        raise ValueError("there are no rows; one row per case was expected")
    if bad_weights:
        raise ValueError(f"{bad_weights:,} weights are missing, negative or infinite; weights must be 0 or more")
    if unknown and not drop:
        raise ValueError(f"{unknown:,} scores are missing or NaN; mend them, or leave the rows out on purpose")
    if infinite:
        raise ValueError(f"{infinite:,} scores are infinite; finite scores were expected")
    kept = rows - unlabelled - unknown - absent
    if hits == 0 or hits == kept:
        raise ValueError(
            f"{kept:,} rows are left with {hits:,} positives ({label} = {positive}); both classes are needed"
        )
    if probability == "probability" and (least < 0 or most > 1):
        raise ValueError(f"scores reach from {least:g} to {most:g}, so they are no probabilities; say logit")

    thresholds, every_positive = _thresholds(connection, view, distinct, distinct_positives, least)
    names = [] if group is None else _group_names(connection, source, group)
    columns = f"s, y, w{'' if group is None else ', g'}"
    if group is not None:
        listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
        which = f"coalesce(list_position([{listed}], coalesce({_quoted(group)}::VARCHAR, 'missing')), 0)::INTEGER"
        view = view.replace(" AS w FROM", f" AS w, {which} AS g FROM", 1)
    return _counted(
        connection.sql(f"SELECT {columns} FROM ({view})"),
        thresholds,
        names,
        probability,
        {
            "rows": kept, "missing_labels": unlabelled, "missing_scores": unknown, "absent": absent,
            "every_positive": every_positive,
            "negative": negative, "positive": positive,
        },
    )  # fmt: skip


def _real(kind: str) -> bool:
    return kind in ("FLOAT", "DOUBLE")


def _labels(
    connection: duckdb.DuckDBPyConnection, source: str, label: str, kind: str, positive: str | None
) -> tuple[str, str, str]:
    """Find what the two labels are called, and the SQL that says which rows are positive."""
    column = f"{_quoted(label)}::VARCHAR"
    found = connection.execute(
        f"""SELECT {column} FROM (SELECT DISTINCT {_quoted(label)} FROM {source})
            WHERE {column} IS NOT NULL AND {column} <> 'nan' LIMIT 21"""
    ).fetchall()
    values = sorted(str(row[0]) for row in found)
    if positive is None:
        truths = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}
        if any(value.lower() not in truths for value in values):
            raise ValueError(
                f"labels other than 0 and 1 in {label!r}: {', '.join(values[:5])}; say which is positive (positive=...)"
            )
        ones = [value for value in values if truths[value.lower()] == 1]
        zeros = [value for value in values if truths[value.lower()] == 0]
        chosen = ones[0] if ones else "1"
        if kind != "VARCHAR":  # comparing numbers is faster than comparing text
            return zeros[0] if zeros else "0", chosen, f"{_quoted(label)}::DOUBLE = 1"
        return zeros[0] if zeros else "0", chosen, f"lower({column}) IN ('1', '1.0', 'true')"
    if positive not in values and len(values) <= 20:
        raise ValueError(f"no label in {label!r} is {positive!r}; the labels are {', '.join(values[:5])}")
    name = positive.replace("'", "''")
    others = [value for value in values if value != positive]
    return others[0] if len(others) == 1 else "the rest", positive, f"{column} = '{name}'"


def _group_names(connection: duckdb.DuckDBPyConnection, source: str, group: str) -> list[str]:
    name = f"coalesce({_quoted(group)}::VARCHAR, 'missing')"
    rows = connection.execute(f"SELECT DISTINCT {name} FROM {source} LIMIT {MOST_GROUPS + 1}").fetchall()
    if len(rows) > MOST_GROUPS:
        raise ValueError(f"column {group!r} has more than {MOST_GROUPS} values; name one with fewer groups")
    return sorted(str(row[0]) for row in rows)


def _thresholds(
    connection: duckdb.DuckDBPyConnection, view: str, distinct: int, distinct_positives: int, least: float
) -> tuple[Array, bool]:
    """Choose scores: all of the top, all of the positives where they are few, and ranks in equal ratios."""

    def scores(query: str) -> Array:
        return np.asarray(connection.execute(query).fetchnumpy()["s"], dtype=np.float64)

    chosen = [scores(f"SELECT s FROM ({view}) ORDER BY s DESC LIMIT {TOP}"), np.array([least])]
    # A hash takes the same scores whatever the number of threads, and equal ones together.
    for where, number, most in (("TRUE", distinct, SPREAD), ("y", distinct_positives, AT_POSITIVES)):
        one_of = 1 if number < 0.9 * most else max(1, math.ceil(number / SAMPLE))
        drawn = connection.execute(
            f"SELECT s, count(*) AS n FROM ({view}) WHERE {where} AND hash(s) % {one_of} = 0 GROUP BY s ORDER BY s DESC"
        ).fetchnumpy()
        values, ranks = np.asarray(drawn["s"], dtype=np.float64), np.cumsum(np.asarray(drawn["n"], dtype=np.float64))
        if len(values) > most:
            if where == "y":
                places = np.linspace(0, len(values) - 1, most).astype(int)
            else:
                places = np.searchsorted(ranks, np.geomspace(ranks[0], ranks[-1], most)).clip(max=len(values) - 1)
            values = values[places]
        chosen.append(values)
        whole = one_of == 1 and len(values) == len(ranks)
    return np.unique(np.concatenate(chosen))[::-1].copy(), whole  # of the positives, which come last


def _counted(
    result: Any, thresholds: Array, names: list[str], probability: str | None, facts: dict[str, Any]
) -> Counts:
    kept, groups, bins = len(thresholds), len(names) + 1, 20
    upwards = thresholds[::-1]
    sums = np.zeros((4, groups * kept))
    alerts = np.zeros(kept, dtype=np.int64)
    reliability = np.zeros((3, bins))
    for batch in result.to_arrow_reader(BATCH):
        columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}
        s, y, w = columns["s"], columns["y"].astype(np.float64), columns["w"]
        # The place of the highest threshold that a score reaches, from the top.
        place = kept - np.searchsorted(upwards, s, side="right")
        alerts += np.bincount(place, minlength=kept)
        where = place + kept * columns["g"] if names else place
        for row, value in zip(sums, (w * y, w * (1 - y), w * w * y, w * w * (1 - y)), strict=True):
            row += np.bincount(where, value, minlength=groups * kept)
        if probability is not None:
            p = s if probability == "probability" else 1 / (1 + np.exp(-s.clip(-700, 700)))
            bin_of = np.minimum((p * bins).astype(int), bins - 1)
            for row, value in zip(reliability, (w, w * y, w * p), strict=True):
                row += np.bincount(bin_of, value, minlength=bins)
    above = sums.reshape(4, groups, kept).cumsum(axis=2)
    tp, fp, tp_squared, fp_squared = above.sum(axis=1)
    by_group = {name: tuple(above[:, place + 1]) for place, name in enumerate(names)}
    return Counts(
        thresholds, tp, fp, tp_squared, fp_squared, alerts.cumsum(), by_group,
        None if probability is None else reliability.T, **facts,
    )  # fmt: skip
