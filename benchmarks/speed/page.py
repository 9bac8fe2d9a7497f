"""Turn the results into a table on the terminal, a picture of growth, and docs/performance.md."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.laws import LAWS
from benchmarks.speed.rows import OURS, TEMPERATURES, slug
from benchmarks.speed.runner import verdict
from rich.table import Table

__all__ = ["draw_growth", "page", "table"]

Results = Mapping[str, Any]
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
    "replay": "A real training run",
}
COLOURS = ("#1b6ca8", "#c2571a", "#7b2d8b", "#5f6b76", "#2e8b57", "#b8860b", "#a83246")


def table(records: Iterable[Mapping[str, Any]]) -> Table:
    """Return what the command prints."""
    shown = Table("what", title="Forward and backward; median (quartiles)", title_justify="left")
    for heading in ("bar", "stretch", "measured", "", "beside it"):
        shown.add_column(heading, justify="left" if heading == "beside it" else "right")
    for section in SECTIONS:
        shown.add_section()
        for record in records:
            if _section(record) == section:
                colour = {"missed": "red", "": "dim"}.get(verdict(record), "green")
                shown.add_row(
                    record["what"],
                    _figure(record, record["bar"]),
                    _figure(record, record["stretch"]),
                    _measured(record),
                    f"[{colour}]{verdict(record)}[/{colour}]",
                    _beside(record),
                )
    return shown


def page(results: Results, remarks: Mapping[str, str]) -> str:
    """Write docs/performance.md; every number on it comes from ``results``.

    Args:
        results: what ``results.json`` holds; a ``note`` in it stands on top, until the next run leaves it out.
        remarks: by key of a row, what a reader should know about it.
    """
    records = results["rows"]
    judged = [record for record in records if verdict(record)]
    missed = [record for record in judged if verdict(record) == "missed"]
    dates = sorted(record["measured"] for record in records)
    machine = results["machine"]
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items() if version)
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    lines = [
        "# Performance",
        "",
        "What the losses cost, in time, memory and digits, beside what was promised. One command measures, another "
        "writes this page from what the first found:",
        "",
        "```bash",
        'pip install -c constraints.txt -e ".[bench]"',
        "python -m benchmarks.speed --large --data DATA.npz   # writes benchmarks/results/results.json",
        "python -m benchmarks.speed --page benchmarks/results/results.json   # writes this page",
        "```",
        "",
        f"Measured from {dates[0]} to {dates[-1]} UTC on {where}, {threads}, {machine['memory_gib']} GiB of memory, "
        f"torch {machine['torch']}, Python {machine['python']}, rareloss {machine['rareloss']}; beside it {peers}.",
        "",
        *([f"**{results['note']}**", ""] if "note" in results else []),
        "**How to read it.** Times are forward and backward with a fresh gradient, as CPU time of one process. "
        "Contestants take turns within a round; a ratio is taken within a round, and its median stands here with the "
        "quartiles over all rounds in brackets. Memory is the peak above what was there before, of a fresh process, "
        "the gradient included. The *bar* is what was promised before it was measured, the *stretch* what was hoped "
        "for. Scores are float32, normal unless another law is named; 1 % of the rows are positive; the temperature is "
        ".01 in units of the scores. *module* is the loss as users call it, with its defaults, which ranks in spreads.",
        "",
        f"Of {len(judged)} bars, {len(judged) - len(missed)} are met and {len(missed)} missed"
        + (": " + "; ".join(f"{record['what']} ({_measured(record)})" for record in missed) if missed else "")
        + ".",
    ]
    for section, title in SECTIONS.items():
        within = [record for record in records if _section(record) == section]
        if not within:
            continue
        lines += ["", f"## {title}", ""]
        lines += _special.get(section, _plain)(within)
        lines += [f"\n{remarks[record['key']]}" for record in within if record["key"] in remarks]
    lines += ["", "The scripts: `benchmarks/speed/`; the numbers: `benchmarks/results/results.json`.", ""]
    return "\n".join(lines)


def draw_growth(results: Results, path: Path) -> None:
    """Draw time over rows, log-log: Smooth-AP by law on the left, the losses and others on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "growth", "font.size": 9})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    rows = {record["key"]: record["cases"][""] for record in results["rows"] if record["kind"] == "growth"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True, dpi=150)

    def line(axes: Any, found: Mapping[str, Any], name: str, **style: Any) -> None:
        slope = found["exponent"]
        label = name if slope is None else f"{name}: exponent {slope:.2f}"
        axes.loglog(found["sizes"], found["ms"], label=label, linewidth=1.6, **style)

    named = {slug(law): law for law in LAWS}
    laws = [(named[key.split("/")[1]], case) for key, case in rows.items() if key.split("/")[1] in named]
    for (law, case), colour in zip(laws, COLOURS, strict=False):
        line(left, case[OURS], law, color=colour, marker="o", markersize=3)
    normal = rows.get("growth/normal", {})
    if normal:
        line(left, normal["torch.sort"], "torch.sort, normal", color="black", linestyle="--")
    left.set_title("Smooth-AP, by the law of the scores", loc="left", fontsize=11)
    others = [(key.split("/")[1], case) for key, case in rows.items() if key.split("/")[1] not in named]
    titles = {"recall": "Recall", "pauc": "Partial AUC", "focal": "Sigmoid focal"}
    drawn = [("Smooth-AP", normal[OURS])] if normal else []
    drawn += [(titles.get(name, name), case[OURS]) for name, case in others]
    for (name, found), colour in zip(drawn, COLOURS, strict=False):
        line(right, found, name, color=colour, marker="o", markersize=3)
    for style, (name, found) in zip(("--", ":", "-."), _references(normal, others), strict=False):
        line(right, found, name, color="black", linestyle=style)
    for (name, found), colour in zip(_peers(normal), COLOURS[4:], strict=False):
        line(right, found, f"{name}, Smooth-AP", color=colour, linestyle="--", marker="s", markersize=3)
    right.set_title("The losses, normal scores", loc="left", fontsize=11)
    for axes in (left, right):
        axes.set_xlabel("rows")
        if axes.lines:
            axes.legend(fontsize=7, loc="upper left", framealpha=0.9)
        axes.grid(alpha=0.25)
    left.set_ylabel("forward and backward, ms")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _references(normal: Mapping[str, Any], others: list[Any]) -> list[tuple[str, Any]]:
    found = [("torch.sort", normal["torch.sort"])] if normal else []
    return found + [("BCE", case["BCE"]) for _, case in others[:1]]


def _peers(normal: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, found) for name, found in normal.items() if name not in (OURS, "torch.sort")]


def _section(record: Mapping[str, Any]) -> str:
    return str(record["key"].split("/")[0])


def _figure(record: Mapping[str, Any], value: float | None) -> str:
    if value is None:
        return ""
    kind = record["kind"]
    if kind in ("value", "gradient"):
        return f"{value:.2g}"
    unit = {"added": " ms", "memory": " B", "growth": ""}.get(kind, " x")
    return f"{value:.3g}{unit}"


def _measured(record: Mapping[str, Any]) -> str:
    value = record["value"]
    if value["median"] is None:
        return "not measured"
    text = _figure(record, value["median"])
    return text if value["low"] == value["high"] else f"{text} ({value['low']:.3g} to {value['high']:.3g})"


def _beside(record: Mapping[str, Any]) -> str:
    """Say what the others took, in the worst case."""
    parts = []
    kind = record["kind"]
    if kind in ("value", "gradient"):
        return str(record["worst"])
    for who, found in record["cases"][record["worst"]].items():
        if kind == "growth":
            if who != OURS and found["exponent"] is not None:
                parts.append(f"{who} {found['exponent']:.2f}")
        elif kind == "memory":
            if who != OURS:
                parts.append(f"{who} {_size(found['median'])}")
        elif kind == "replay":
            parts.append(f"{found['ms']:.3g} ms, {found['rows']} rows")
        else:
            ratio = "" if who in (OURS, record["against"]) else f" ({_figure(record, found['median'])})"
            parts.append(f"{who} {_time(found['ms'])}{ratio}")
    if record["worst"] and kind == "ratio":
        parts.append(f"at {record['worst']}")
    if "syncs" in record:
        parts.append(f"{record['syncs']} waits for the GPU")
    return ", ".join(parts)


def _size(value: float | None) -> str:
    return "failed" if value is None else f"{value:,.0f} B" if value >= 1000 else f"{value:.3g} B"


def _time(ms: float) -> str:
    return f"{ms / 1e3:.3g} s" if ms >= 1e3 else f"{ms:.3g} ms"


def _plain(records: list[Any]) -> list[str]:
    lines = ["| what | bar | stretch | measured | | times |", "| --- | --- | --- | --- | --- | --- |"]
    for record in records:
        amounts = (_figure(record, record["bar"]) or "–", _figure(record, record["stretch"]) or "–")
        lines.append(
            f"| {record['what']} | {amounts[0]} | {amounts[1]} | {_measured(record)} | {verdict(record) or '–'} | "
            f"{_beside(record)} |"
        )
    return lines


def _smooth_ap(records: list[Any]) -> list[str]:
    lines = _plain(records)
    hostile = [record for record in records if len(record["cases"]) > 1]
    if hostile:
        names = list(hostile[0]["cases"])
        lines += [
            "",
            f"The hostile laws at each temperature, over `torch.sort` of the same {hostile[0]['rows']:,} scores:",
        ]
        lines += ["", "| law | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
        for record in hostile:
            law = next(law for law in LAWS if record["key"].endswith(slug(law)))
            lines.append(
                f"| {law} | " + " | ".join(f"{c[OURS]['median']:.2f}" for c in record["cases"].values()) + " |"
            )
    return lines


def _memory(records: list[Any]) -> list[str]:
    lines = ["Bytes a row, or an element of logits.", ""]
    return lines + [line.replace("| times |", "| beside it |") for line in _plain(records)]


def _accuracy(records: list[Any]) -> list[str]:
    lines = [
        "Against a float64 sum over all pairs of the same float32 scores, written apart from the library. The error of "
        "the gradient is that of its norm, relative to the true norm. In the chain the true gradient is all but 0: "
        "below 1e-8 of the parts that cancel in it, whose norm is 1 / (4 t sqrt P); there, and nowhere else, the error "
        "is relative to those parts.",
        "",
        *[line.replace("| times |", "| worst case |") for line in _plain(records)],
        "",
        "Worst of 4,096 rows at 10 % positives and 16,384 at 1 %, value / gradient:",
        "",
        "| law | " + " | ".join(f"t = {t}" for t in TEMPERATURES) + " |",
        "| --- |" + " --- |" * len(TEMPERATURES),
    ]
    for law in LAWS:
        cells = []
        for t in TEMPERATURES:
            start = f"{law}, temperature {t},"
            both = [
                max((c[OURS]["median"] for name, c in record["cases"].items() if name.startswith(start)), default=None)
                for record in records
            ]
            cells.append(" / ".join("–" if each is None else f"{each:.1e}" for each in both))
        lines.append(f"| {law} | " + " | ".join(cells) + " |")
    return lines


def _growth(records: list[Any]) -> list[str]:
    lines = ["![Time over rows on logarithmic axes, with the fitted exponents in the legend](pictures/growth.svg)", ""]
    lines += ["*The exponent is the slope of log time over log rows, by least squares from 64,000 rows on.*", ""]
    sizes = max((record["cases"][""][OURS]["sizes"] for record in records), key=len)
    lines += ["| what | bar | exponent | | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
    lines += ["| --- |" + " --- |" * (len(sizes) + 3)]
    for record in records:
        ms = record["cases"][""][OURS]["ms"]
        cells = [_time(each) for each in ms] + ["–"] * (len(sizes) - len(ms))
        what = record["what"].replace(", growth with the rows", "").replace(", growth with the logits", "")
        bar, reached = _figure(record, record["bar"]) or "–", verdict(record) or "–"
        lines.append(f"| {what} | {bar} | {_measured(record)} | {reached} | " + " | ".join(cells) + " |")
    return lines


def _replay(records: list[Any]) -> list[str]:
    (record,) = records
    pools = [case[OURS] for case in record["cases"].values()]
    spans = [pool["range"] for pool in pools]
    sizes = sorted({pool["rows"] for pool in pools})
    return [
        f"The pools that the Smooth-AP arms of a `rareloss compare` rank, every tenth step: {len(pools)} pools of "
        f"{' and '.join(f'{size:,}' for size in sizes)} rows, their scores {min(spans):,.0f} to {max(spans):,.0f} "
        "temperatures wide. Each is ranked again in interleaved rounds, and its median time set against the median of "
        "all pools of its size.",
        "",
        *_plain(records),
    ]


_special = {
    "smooth_ap": _smooth_ap,
    "memory": _memory,
    "accuracy": _accuracy,
    "growth": _growth,
    "replay": _replay,
}
