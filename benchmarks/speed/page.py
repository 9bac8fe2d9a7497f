"""Turn records into lines on the terminal, a picture of growth, and docs/performance.md."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.laws import LAWS
from benchmarks.speed.rows import OURS, TEMPERATURES
from benchmarks.speed.runner import verdict

__all__ = ["draw_growth", "line", "page"]

Record = Mapping[str, Any]
SECTIONS = {
    "smooth_ap": "Smooth-AP",
    "multiclass": "Many classes",
    "recall": "Recall at a review capacity",
    "pauc": "Partial AUC",
    "step": "A training step",
    "focal": "Focal losses",
    "metric": "Exact metrics",
    "memory": "Memory",
    "accuracy": "Accuracy",
    "growth": "Growth",
    "torch": "Without the native kernel",
    "replay": "A real training run",
}
UNITS = {"added": " ms", "ms": " ms", "memory": " B", "growth": "", "value": "", "gradient": ""}
COLOURS = ("#1b6ca8", "#c2571a", "#7b2d8b", "#5f6b76", "#2e8b57", "#b8860b", "#a83246")


def line(record: Record) -> str:
    """Return what the command prints of a record: what it is, measured, bar, stretch, verdict, the others."""
    bar, stretch = _figure(record, record["bar"]), _figure(record, record["stretch"])
    promised = f"bar {bar or '-'}, stretch {stretch or '-'}"
    return f"{_title(record):<86} {_measured(record):<28} {promised:<32} {verdict(record) or '-':<17} {_others(record)}"


def page(results: Mapping[str, Any]) -> str:
    """Write docs/performance.md; every number on it comes from ``results``, what ``results.json`` holds.

    A ``note`` in it stands on top, until the next run leaves it out.
    """
    records, machine = results["rows"], results["machine"]
    judged = [record for record in records if verdict(record)]
    missed = [f"{_title(record)} ({_measured(record)})" for record in judged if verdict(record) == "missed"]
    dates = sorted(record["measured"] for record in records)
    others = ", ".join(f"{name} {version}" for name, version in machine["peers"].items() if version)
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    lines = [
        "# Performance",
        "",
        "What the losses cost, in time, memory and digits, beside what was promised. One command measures, another "
        "writes this page from what the first measured:",
        "",
        "```bash",
        'pip install -c constraints.txt -e ".[bench]"',
        "python -m benchmarks.speed --large --data DATA.npz   # writes benchmarks/results/results.json",
        "python -m benchmarks.speed --page benchmarks/results/results.json   # writes this page",
        "```",
        "",
        f"Measured from {dates[0]} to {dates[-1]} UTC on {where}, one thread, {machine['memory_gib']} GiB of memory, "
        f"torch {machine['torch']}, Python {machine['python']}, rareloss {machine['rareloss']}, on this: "
        f"{machine['kernel']}. Beside it {others}.",
        "",
        *([f"**{results['note']}**", ""] if "note" in results else []),
        "**How to read it.** Times are forward and backward with a fresh gradient, as CPU time of one process with one "
        "thread. Each contestant takes turns with what it is compared with, and with nothing else; a ratio is taken "
        "within a round, and its median stands here with the quartiles over all rounds in brackets. Memory is the peak "
        "above what was there before, of a fresh process, the gradient included. The *bar* is what was promised before "
        "it was measured, the *stretch* what was hoped for. Scores are float32, normal unless another law is named; "
        "1 % of the rows are positive; the temperature is .01 in units of the scores. *module* is the loss as users "
        "call it, with its defaults, which ranks in standard deviations.",
        "",
        f"Of {len(judged)} bars, {len(judged) - len(missed)} are met and {len(missed)} missed"
        + (": " + "; ".join(missed) if missed else "")
        + ".",
    ]
    for section, title in SECTIONS.items():
        within = [record for record in records if record["key"].split("/")[0] == section]
        if within:
            lines += ["", f"## {title}", "", *_SPECIAL.get(section, _plain)(within)]
    lines += ["", "The scripts: `benchmarks/speed/`; the numbers: `benchmarks/results/results.json`.", ""]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- the figures


def _title(record: Record) -> str:
    return f"{record['what']}, over {record['over']}" if record["over"] else str(record["what"])


def _figure(record: Record, value: float | None) -> str:
    return "" if value is None else f"{value:.3g}{UNITS.get(record['kind'], ' x')}"


def _measured(record: Record) -> str:
    value = record["value"]
    if value["median"] is None:
        return "not measured"
    text = _figure(record, value["median"])
    return text if value["low"] == value["high"] else f"{text} ({value['low']:.3g} to {value['high']:.3g})"


def _others(record: Record) -> str:
    """Write what the others took, in the worst case."""
    kind, case, texts = record["kind"], record["cases"][record["worst"]], []
    for name, result in case.items():
        if kind == "memory" and name != OURS:
            texts.append(f"{name} {_size(result['median'])}")
        elif kind == "growth" and name != OURS and result["exponent"] is not None:
            texts.append(f"{name} {result['exponent']:.2f}")
        elif kind == "replay":
            texts.append(f"{result['ms']:.3g} ms, {result['rows']} rows")
        elif kind in ("ratio", "added"):
            compared = "" if name in (OURS, record["over"]) else f" ({_figure(record, result['median'])})"
            texts.append(f"{name} {_time(result['ms'])}{compared}")
    if record["worst"] and kind != "replay":
        texts.append(f"at {record['worst']}")
    if "syncs" in record:
        texts.append(f"{record['syncs']} waits for the GPU")
    return ", ".join(texts)


def _size(value: float | None) -> str:
    return "failed" if value is None else f"{value:,.0f} B" if value >= 1000 else f"{value:.3g} B"


def _time(ms: float) -> str:
    return f"{ms / 1e3:.3g} s" if ms >= 1e3 else f"{ms:.3g} ms"


# --------------------------------------------------------------------------------------------------------- the sections


def _plain(records: list[Record]) -> list[str]:
    lines = ["| what | bar | stretch | measured | | beside it |", "| --- | --- | --- | --- | --- | --- |"]
    for record in records:
        promised = f"{_figure(record, record['bar']) or '–'} | {_figure(record, record['stretch']) or '–'}"
        measured = f"{_measured(record)} | {verdict(record) or '–'} | {_others(record)}"
        lines.append(f"| {_title(record)} | {promised} | {measured} |")
    return lines


def _smooth_ap(records: list[Record]) -> list[str]:
    hostile = [record for record in records if len(record["cases"]) > 1]
    if not hostile:
        return _plain(records)
    names = list(hostile[0]["cases"])
    lines = ["", "The hostile laws at each temperature, over `torch.sort` of the same million scores:", ""]
    lines += ["| row | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for record in hostile:
        cells = [f"{case[OURS]['median']:.2f}" for case in record["cases"].values()]
        lines.append(f"| {record['what']} | " + " | ".join(cells) + " |")
    return _plain(records) + lines


def _memory(records: list[Record]) -> list[str]:
    return ["Bytes a row, or an element of logits.", "", *_plain(records)]


def _accuracy(records: list[Record]) -> list[str]:
    lines = [
        "Against a float64 sum over all pairs of the same float32 scores, written apart from the library. The error of "
        "the gradient is that of its norm, relative to the true norm. In the chain the true gradient is all but 0: "
        "below 1e-8 of the terms that cancel in it, whose norm is 1 / (4 t sqrt P); there, and nowhere else, the error "
        "is relative to those terms.",
        "",
        *_plain(records),
        "",
        "Worst of 4,096 rows at 10 % positives and 16,384 at 1 %, value / gradient:",
        "",
        "| law | " + " | ".join(f"t = {t}" for t in TEMPERATURES) + " |",
        "| --- |" + " --- |" * len(TEMPERATURES),
    ]
    for law in LAWS:
        cells = [[_worst_error(record, f"{law}, temperature {t},") for record in records] for t in TEMPERATURES]
        lines.append(f"| {law} | " + " | ".join(" / ".join(cell) for cell in cells) + " |")
    return lines


def _worst_error(record: Record, start: str) -> str:
    errors = [case[OURS]["median"] for name, case in record["cases"].items() if name.startswith(start)]
    return f"{max(errors):.1e}" if errors else "–"


def _growth(records: list[Record]) -> list[str]:
    lines = ["![Time over rows on logarithmic axes, with the fitted exponents in the legend](pictures/growth.svg)", ""]
    lines += ["*The exponent is the slope of log time over log rows, by least squares from 64,000 rows on.*", ""]
    drawn = [(record, name, case[OURS]) for record in records for name, case in record["cases"].items()]
    sizes = max((result["sizes"] for _, _, result in drawn), key=len)
    lines += ["| what | exponent | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
    lines += ["| --- |" + " --- |" * (len(sizes) + 1)]
    for record, name, result in drawn:
        cells = [_time(each) for each in result["ms"]] + ["–"] * (len(sizes) - len(result["ms"]))
        slope = _figure(record, result["exponent"]) or "–"
        lines.append(f"| {_loss(record)}{', ' * bool(name)}{name} | {slope} | " + " | ".join(cells) + " |")
    return lines


def _loss(record: Record) -> str:
    return str(record["what"]).split(",")[0]


def _replay(records: list[Record]) -> list[str]:
    (record,) = records
    pools = [case[OURS] for case in record["cases"].values()]
    widths, sizes = [pool["range"] for pool in pools], sorted({pool["rows"] for pool in pools})
    return [
        f"The pools that a `rareloss compare` ranks with Smooth-AP, every tenth step: {len(pools)} pools of "
        f"{' and '.join(f'{size:,}' for size in sizes)} rows, their scores {min(widths):,.0f} to {max(widths):,.0f} "
        "temperatures wide. Each is ranked again in interleaved rounds, and its median time set against the median of "
        "all pools of its size.",
        "",
        *_plain(records),
    ]


_SPECIAL: dict[str, Callable[[list[Record]], list[str]]] = {
    "smooth_ap": _smooth_ap,
    "memory": _memory,
    "accuracy": _accuracy,
    "growth": _growth,
    "replay": _replay,
}


# ---------------------------------------------------------------------------------------------------------- the picture


def draw_growth(results: Mapping[str, Any], path: Path) -> None:
    """Draw time over rows, log-log: Smooth-AP by law on the left, the losses and others on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "growth", "font.size": 9})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    records = [record for record in results["rows"] if record["key"].startswith("growth/")]
    laws = next((record["cases"] for record in records if record["key"] == "growth/smooth_ap"), {})
    others = {_loss(record): record["cases"][""] for record in records if "" in record["cases"]}
    if "normal" in laws:
        others = {"Smooth-AP": laws["normal"], **others}

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True, dpi=150)
    _draw_lines(axes[0], {law: case[OURS] for law, case in laws.items()}, linestyle="-", marker="o")
    _draw_lines(axes[1], {name: case[OURS] for name, case in others.items()}, linestyle="-", marker="o")
    # The others beside the first loss: torch.sort, BCE, and libraries.
    first = next(iter(others.values()), {})
    peers = {name: result for name, result in first.items() if name not in (OURS, "module") and result["ms"]}
    _draw_lines(axes[1], peers, linestyle="--", marker="s")
    axes[0].set_title("Smooth-AP, by the law of the scores", loc="left", fontsize=11)
    axes[1].set_title("The losses, normal scores", loc="left", fontsize=11)
    for each in axes:
        each.set_xlabel("rows")
        if each.lines:
            each.legend(fontsize=7, loc="upper left", framealpha=0.9)
        each.grid(alpha=0.25)
    axes[0].set_ylabel("forward and backward, ms")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_lines(axes: Any, results: Mapping[str, Record], **style: str) -> None:
    first = len(axes.lines)
    for index, (name, result) in enumerate(results.items(), first):
        label = name if result["exponent"] is None else f"{name}: exponent {result['exponent']:.2f}"
        colour = COLOURS[index % len(COLOURS)]
        axes.loglog(result["sizes"], result["ms"], label=label, color=colour, linewidth=1.6, markersize=3, **style)
