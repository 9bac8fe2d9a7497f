"""The table of what is measured: one row for each line, with what it is compared with, its bar and its stretch."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.speed import contestants as of
from benchmarks.speed.contestants import OURS
from benchmarks.speed.laws import HOSTILE, LAWS
from benchmarks.speed.measure import Build, Clock

from rareloss import PAUCAtBudgetLoss, RecallAtQuantileLoss, SmoothAPLoss

__all__ = ["GROWTH", "OURS", "TEMPERATURES", "Row", "all_rows"]

TEMPERATURES = (0.005, 0.01, 0.1, 1.0)
K, M = 1_000, 1_000_000
SIZES = {
    f"{number}{unit}": number * rows
    for unit, rows, numbers in (("k", K, (1, 4, 16, 64, 256)), ("M", M, (1, 10, 16, 20, 100)))
    for number in numbers
}
GROWTH = (K, 4 * K, 16 * K, 64 * K, 256 * K, M, 4 * M, 10 * M)
# Rows that a peer is given at most: a pairs matrix, or torch.quantile, which takes 2**24 elements.
MOST = {"imbalanced-losses": M, "libauc": 16 * K}
QUADRATIC = {"imbalanced-losses": 16 * K, "libauc": 16 * K}

Make = Callable[[], Mapping[str, Build]]
Cases = Mapping[str, Make]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        key: how it is called on the command line and in the results.
        what: in words.
        kind: ``"ratio"`` of times to those of ``over``, ``"added"`` milliseconds over it, ``"ms"``, ``"memory"`` in
            bytes a row or element, ``"growth"``, ``"value"`` or ``"gradient"`` error, or ``"replay"``.
        rows: rows, or elements of logits.
        cases: what makes the contestants, by case; ``OURS`` is judged, and the worst case counts.
        over: the contestant that times are compared with.
        bar: what must be reached at most, None where nothing is promised.
        stretch: what is hoped for.
        most: the rows that a contestant is given at most, where its cost is not linear.
        clock: what times are measured by.
        torch_alone: measured in a process that has no native kernel.
        large: measured on request only.
    """

    key: str
    what: str
    kind: str
    rows: int
    cases: Cases = field(default_factory=dict)
    over: str = ""
    bar: float | None = None
    stretch: float | None = None
    most: Mapping[str, int] = field(default_factory=dict)
    clock: Clock = time.process_time
    torch_alone: bool = False
    large: bool = False

    @property
    def section(self) -> str:
        """The part of the page that it belongs to."""
        return self.key.split("/")[0]


def all_rows() -> list[Row]:
    """Return every line, in the order of the table."""
    return [*_ranking(), *_steps(), *_focal(), *_metrics(), *_accuracy(), *_memory(), *_growth(), *_torch_alone()]


def _one(make: Make) -> Cases:
    return {"": make}


def _ranking() -> list[Row]:
    def row(family: str, size: str, over: str, bar: float, stretch: float) -> Row:
        what, make, most = families[family]
        what, cases = f"{what}, {size} rows", _one(make)
        return Row(f"{family}/{size}", what, "ratio", SIZES[size], cases, over, bar, stretch, most)

    def hostile(law: str) -> Row:
        what = f"Smooth-AP, 1M rows, {law}, worst temperature"
        cases = {f"temperature {t}": partial(of.smooth_ap, law, t) for t in TEMPERATURES}
        return Row(f"smooth_ap/hostile-{slug(law)}", what, "ratio", M, cases, "torch.sort", 1.0, 0.5)

    def classes(number: int, bar: float, stretch: float) -> Row:
        what, cases = f"Smooth-AP, class indices, 4096 x {number}", _one(partial(of.class_indices, number))
        return Row(f"multiclass/{number}", what, "ratio", 4096 * number, cases, "BCE", bar, stretch)

    families = {
        "smooth_ap": ("Smooth-AP", of.smooth_ap, QUADRATIC),
        "recall": ("Recall at the top .5 %", of.recall, MOST),
        "pauc": ("Partial AUC up to a false-positive rate of .5 %", of.partial_auc, MOST),
    }
    return [
        row("smooth_ap", "1k", "imbalanced-losses", 0.15, 0.09),
        row("smooth_ap", "4k", "imbalanced-losses", 0.12, 0.08),
        row("smooth_ap", "16k", "torch.sort", 0.4, 0.25),
        row("smooth_ap", "64k", "torch.sort", 0.2, 0.13),
        row("smooth_ap", "256k", "torch.sort", 0.15, 0.09),
        row("smooth_ap", "1M", "torch.sort", 0.12, 0.07),
        row("smooth_ap", "10M", "torch.sort", 0.12, 0.08),
        *(hostile(law) for law in HOSTILE),
        _two_threads(),
        *(row(family, "16k", "BCE", 1.5, 0.9) for family in ("recall", "pauc")),
        *(row(family, "1M", "BCE", 1.0, 0.6) for family in ("recall", "pauc")),
        *(row(family, "20M", "BCE", 0.7, 0.5) for family in ("recall", "pauc")),
        classes(1000, 3.0, 2.0),
        classes(100, 9.0, 6.0),
    ]


def _two_threads() -> Row:
    what = "Smooth-AP, 10M rows, two threads over one, in wall time of an idle machine"
    cases = _one(of.two_threads)
    return Row("smooth_ap/threads", what, "ratio", 10 * M, cases, "one thread", 1 / 1.6, clock=time.perf_counter)


def _steps() -> list[Row]:
    return [
        *_step("recall", RecallAtQuantileLoss, 0.6, 0.35),
        *_step("pauc", PAUCAtBudgetLoss, 0.6, 0.35),
        *_step("smooth_ap", SmoothAPLoss, 0.9, 0.5),
        Row("step/compiled-1k", "Compiled Smooth-AP, 1k rows", "ms", K, _one(of.compiled), bar=0.3),
        Row("step/compiled-16k", "Compiled Smooth-AP, 16k rows", "ms", 16 * K, _one(of.compiled), bar=0.8),
    ]


def _step(name: str, loss: type, bar: float, stretch: float | None = None, section: str = "step") -> list[Row]:
    return [
        Row(
            f"{section}/{name}-{rate:.0%}",
            f"Training step, batch 1024, queue 16384, {rate:.0%} positives: {name}",
            "added",
            of.QUEUE,
            _one(partial(of.training_step, loss, rate)),
            "network alone",
            bar,
            stretch,
        )
        for rate in (0.01, 0.1)
    ]


def _focal() -> list[Row]:
    def sigmoid(size: str, bar: float, stretch: float) -> Row:
        what, cases = f"Sigmoid focal, {size} logits", _one(of.sigmoid_focal)
        return Row(f"focal/sigmoid-{size}", what, "ratio", SIZES[size], cases, "BCE", bar, stretch)

    def softmax(rows: int, classes: int, bar: float, stretch: float) -> Row:
        what, cases = f"Softmax focal, {rows} x {classes}", _one(partial(of.softmax_focal, classes))
        return Row(f"focal/softmax-{classes}", what, "ratio", rows * classes, cases, "cross-entropy", bar, stretch)

    return [
        sigmoid("16k", 1.0, 0.7),
        sigmoid("1M", 0.9, 0.6),
        sigmoid("16M", 0.6, 0.5),
        softmax(65536, 100, 0.6, 0.4),
        softmax(2048, 32000, 0.4, 0.3),
        Row("focal/compiled", "Compiled sigmoid focal, 1M logits", "ratio", M, _one(of.fused_focal), "compiled BCE"),
    ]


def _metrics() -> list[Row]:
    what, cases = "Exact average precision", _one(of.exact_average_precision)
    return [
        Row("metric/ap-1M", f"{what}, 1M scores", "ratio", M, cases, "torch.sort", 0.25, 0.15),
        Row("metric/ap-100M", f"{what}, 100M scores", "ratio", 100 * M, cases, "torch.sort", 0.25, 0.15, large=True),
    ]


def _accuracy() -> list[Row]:
    what = "Smooth-AP against float64, worst law and temperature"
    return [
        Row("accuracy/value", f"{what}: value", "value", 16384, bar=1e-6, stretch=1e-7),
        Row("accuracy/gradient", f"{what}: gradient", "gradient", 16384, bar=5e-6, stretch=1e-6),
    ]


def _memory() -> list[Row]:
    def memory(key: str, what: str, rows: int, make: Make, bar: float | None = None) -> Row:
        stretch = None if bar is None else 4.1
        return Row(f"memory/{key}", f"{what}, extra memory", "memory", rows, _one(make), "", bar, stretch, MOST)

    return [
        memory("smooth_ap-16k", "Smooth-AP, 16k rows", 16 * K, of.smooth_ap),
        memory("smooth_ap-1M", "Smooth-AP, 1M rows", M, of.smooth_ap, 8.0),
        memory("recall-1M", "Recall, 1M rows", M, of.recall, 8.0),
        memory("pauc-1M", "Partial AUC, 1M rows", M, of.partial_auc, 8.0),
        memory("focal-1M", "Sigmoid focal, 1M logits", M, of.sigmoid_focal, 8.0),
        memory("softmax-100", "Softmax focal, 65536 x 100", 65536 * 100, partial(of.softmax_focal, 100)),
        memory("softmax-32000", "Softmax focal, 2048 x 32000", 2048 * 32000, partial(of.softmax_focal, 32000)),
        replace(memory("ap-100M", "Exact average precision, 100M", 100 * M, of.exact_average_precision), large=True),
    ]


def _growth() -> list[Row]:
    def growth(name: str, what: str, cases: Cases) -> Row:
        return Row(f"growth/{name}", f"{what}, growth with the rows", "growth", GROWTH[-1], cases, most=QUADRATIC)

    return [
        growth("smooth_ap", "Smooth-AP, worst law", {law: partial(of.smooth_ap, law) for law in LAWS}),
        growth("recall", "Recall", _one(of.recall)),
        growth("pauc", "Partial AUC", _one(of.partial_auc)),
        growth("focal", "Sigmoid focal", _one(of.sigmoid_focal)),
    ]


def _torch_alone() -> list[Row]:
    laws: Cases = {law: partial(of.smooth_ap, law) for law in LAWS}
    rows = [
        Row("torch/1M", "Smooth-AP, 1M rows", "ratio", M, _one(of.smooth_ap), "torch.sort", 1.2),
        Row("torch/laws", "Smooth-AP, 1M rows, worst law", "ratio", M, laws, "torch.sort"),
        Row("torch/growth", "Smooth-AP, growth with the rows, worst law", "growth", GROWTH[-1], laws, bar=1.1),
        # What a step took before there was a native kernel.
        *_step("recall", RecallAtQuantileLoss, 2.9, section="torch"),
        *_step("pauc", PAUCAtBudgetLoss, 4.0, section="torch"),
        *_step("smooth_ap", SmoothAPLoss, 5.0, section="torch"),
        *(replace(row, key=row.key.replace("accuracy", "torch")) for row in _accuracy()),
    ]
    return [replace(row, what=f"Torch alone: {row.what}", torch_alone=True) for row in rows]


def slug(law: str) -> str:
    """Make a law's name fit for a key."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in law).split())
