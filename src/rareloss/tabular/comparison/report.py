"""Write the results of a comparison as one HTML file that needs no network."""

import html
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
from jinja2 import Environment, StrictUndefined, Template
from numpy.typing import NDArray

from rareloss.objectives import Objective
from rareloss.tabular.comparison.runs import write_atomically

__all__ = ["html_summary", "write_report"]

Array = NDArray[np.float64]
Run = Mapping[str, Any]
Runs = Mapping[str, Sequence[Run]]  # of one model, by method

INK, GROUND = "#1b1f24", "#fffffe"  # the page replaces these by its own text and ground colours, light or dark
# Okabe and Ito's palette without its yellow, which vanishes on white: told apart under every common colour blindness.
BLUE, VERMILLION, PURPLE, SKY, GREEN, ORANGE, GREY = (
    "#0072b2", "#d55e00", "#cc79a7", "#56b4e9", "#009e73", "#e69f00", "#8a8f98",
)  # fmt: skip
PALETTE = {
    "baseline": [INK],
    "control": [GREY],
    "reference": [GREEN],
    "reweight": [ORANGE, SKY],
    "ranking": [BLUE, VERMILLION, PURPLE],
}
DASHES = ["solid", "dash", "dot", "dashdot"]
BASELINE = "tuned_ce"
# The bundle of scatter and bar charts (MIT), of the plotly.js that the figures are written for.
PLOTLY = Path(__file__).with_name("plotly") / "plotly-basic-4.1.1.min.js.gz"


class Method(NamedTuple):
    name: str
    label: str
    about: str
    kind: str
    colour: str
    dash: str


def write_report(results: Mapping[str, Any], path: str | Path) -> None:
    """Write one self-contained HTML page of the results of a comparison.

    The page holds plotly.js, packed (its basic bundle, half a megabyte), and asks the network for nothing. The same
    results give the same bytes. The file appears whole or not at all.

    Args:
        results: what `Comparison.results` holds, or what `json.load` reads from its `results.json`.
        path: the file to write.
    """
    page = _template().render(_view(results), plotly_js=b64encode(PLOTLY.read_bytes()).decode())
    write_atomically(Path(path), page)


def html_summary(results: Mapping[str, Any]) -> str:
    """Return the verdict and the table as a small piece of static HTML, for notebooks.

    Args:
        results: what `Comparison.results` holds.

    Returns:
        HTML without scripts, styles or links.
    """
    template = _template()
    context = template.new_context(_view(results, figures=False))
    return "".join(part for name in ("verdict", "table") for part in template.blocks[name](context))


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    environment.filters["signed"] = _signed
    environment.filters["setting"] = _setting
    environment.filters["words"] = _words
    environment.filters["capital"] = _capital
    return environment.from_string(files("rareloss.tabular.comparison").joinpath("report.html.j2").read_text("utf-8"))


def _view(results: Mapping[str, Any], figures: bool = True) -> dict[str, Any]:
    """Everything the template shows, in the order it shows it."""
    methods = _methods(results)
    runs: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(results["runs"], key=lambda run: run["seed"]):
        runs.setdefault((run["model"], run["method"]), []).append(run)
    models = _models_of(results)
    point = Objective.parse(results["objective"]["text"])
    cap = results["objective"]["cap"]
    view: dict[str, Any] = {
        "results": results,
        "overall": results["overall"].partition(". "),
        "data": results["data"],
        "objective": results["objective"],
        "cap": cap if cap is not None and cap < 1 else None,
        "methods": methods,
        "multiclass": len(results["data"]["classes"]) > 2,
        "models": [_panel(model, methods, runs, results) for model in models],
        "metrics": {metric: _metric_cap(metric, results) for metric in _metric_names(results)},
        "said": Counter(text for run in results["runs"] for text in run.get("warnings") or []),
        "positive": _positive_name(results),
        "point": point,
    }
    if figures:
        span, rate = _difference_span(results), _positive_rate(results)
        drawn: dict[str, Any] = {}
        for panel in view["models"]:
            name, mine = panel["name"], {method.name: runs.get((panel["name"], method.name), []) for method in methods}
            shown = [method for method in methods if mine[method.name]]
            charts = {
                "pr": _pr(shown, mine, point, rate, panel["default"]),
                "roc": _roc(shown, mine, point),
                "gain": _gain(shown, mine, point, rate),
                "calibration": _calibration(shown, mine, rate),
                "training": _training(shown, mine),
            }
            panel["charts"] = [chart for chart, figure in charts.items() if figure is not None]
            drawn |= {f"{chart}/{name}": _plain(figure) for chart, figure in charts.items() if figure is not None}
            panel["differences"] = [row for row in panel["rows"] if row["difference"] is not None]
            if panel["differences"]:
                drawn[f"differences/{name}"] = _plain(_differences(panel["differences"], span))
            panel["histograms"] = []
            for method in shown:
                figure, seed = _scores(mine[method.name], results)
                if figure is not None:
                    panel["histograms"].append((method, seed))
                    drawn[f"scores/{name}/{method.name}"] = _plain(figure)
        view["figures"] = drawn
    return view


# ------------------------------------------------------------------------------------------------------- what is shown


def _methods(results: Mapping[str, Any]) -> list[Method]:
    """The methods with a colour and a dash each: a kind has its own colours, methods of one loss share theirs."""
    members: dict[str, dict[str, int]] = {}  # of each kind, how many methods of each loss so far
    methods = []
    for method in results["methods"]:
        losses = members.setdefault(method["kind"], {})
        loss = method["name"].rpartition("_")[0] or method["name"]  # smooth_ap_stage and smooth_ap_warmup are one loss
        losses[loss] = losses.get(loss, -1) + 1
        palette = PALETTE.get(method["kind"], [GREY])
        turns, place = divmod(list(losses).index(loss), len(palette))
        dash = DASHES[(2 * turns + losses[loss]) % len(DASHES)]
        methods.append(Method(method["name"], method["label"], method["about"], method["kind"], palette[place], dash))
    return methods


def _models_of(results: Mapping[str, Any]) -> list[Run]:
    """The models of the results, and after them any that only a run names."""
    known = {model["name"]: model for model in results["models"]}
    for run in results["runs"]:
        known.setdefault(run["model"], {"name": run["model"], "about": ""})
    return list(known.values())


def _metric_names(results: Mapping[str, Any]) -> list[str]:
    """The metrics beside the objective, in the order in which the runs first name them."""
    named = dict.fromkeys(name for run in results["runs"] for name in run.get("metrics") or {})
    return [name for name in named if name != results["objective"]["text"]]


def _metric_cap(metric: str, results: Mapping[str, Any]) -> float | None:
    """The best value that a review capacity lets any ranking reach, where that is below 1."""
    if metric == "roc_auc":  # no objective, and every ranking may reach 1
        return None
    counts = torch.tensor(results["data"]["class_counts"])
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    cap = float(Objective.parse(metric).cap(labels, len(counts) if len(counts) > 2 else 1).mean())
    return cap if cap < 1 else None


def _panel(
    model: Mapping[str, Any],
    methods: Sequence[Method],
    runs: Mapping[tuple[str, str], Sequence[Run]],
    results: Mapping[str, Any],
) -> dict[str, Any]:
    name = model["name"]
    differences = {row["method"]: row for row in results["differences"] if row["model"] == name}
    rows = []
    for method in methods:
        mine = runs.get((name, method.name), [])
        failed = [row for row in results["failed"] if row["model"] == name and row["method"] == method.name]
        kept = [run.get("kept") for run in mine]
        rows.append(
            {
                "method": method,
                "seeds": len(mine),
                "failed": len(failed),
                "test": _mean(run.get("test") for run in mine),
                "validation": _mean(run.get("validation") for run in mine),
                "difference": differences.get(method.name),
                "metrics": {
                    metric: _mean((run.get("metrics") or {}).get(metric) for run in mine)
                    for metric in _metric_names(results)
                },
                "kept_start": kept.count("start"),
                "seconds": _mean(run.get("seconds") for run in mine),
            }
        )
    verdict = next((row["sentence"] for row in results["verdicts"] if row["model"] == name), None)
    forecast = next((row["sentence"] for row in results.get("forecasts", ()) if row["model"] == name), None)
    return {
        "name": name,
        "about": model["about"],
        "verdict": verdict,
        "forecast": forecast,
        "rows": rows,
        "default": _default_methods(rows),
        "per_class": _per_class(methods, runs, name, results),
    }


def _default_methods(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tuned cross-entropy, the ranking method that validation prefers, and the reference: what is compared first."""
    done = [row for row in rows if row["seeds"]]
    ranking = [row for row in done if row["method"].kind == "ranking" and np.isfinite(row["validation"])]
    best = max(ranking, key=lambda row: row["validation"])["method"].name if ranking else None
    chosen = [
        row["method"].name
        for row in done
        if row["method"].name in (BASELINE, best) or row["method"].kind == "reference"
    ]
    return chosen or [row["method"].name for row in done[:3]]


def _per_class(
    methods: Sequence[Method],
    runs: Mapping[tuple[str, str], Sequence[Run]],
    model: str,
    results: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Mean test value of every class under every method, the rarest class first."""
    values: dict[tuple[str, str], list[Any]] = {}
    for method in methods:
        for run in runs.get((model, method.name), []):
            for row in run.get("per_class") or []:
                values.setdefault((row["class"], method.name), []).append(row["test"])
    if not values:
        return None
    counts = dict(zip(results["data"]["classes"], results["data"]["class_counts"], strict=True))
    columns = [method for method in methods if any(name == method.name for _, name in values)]
    rows = [
        (label, counts[label], [_mean(values.get((label, method.name), [])) for method in columns])
        for label in sorted(counts, key=lambda label: counts[label])
    ]
    return {"columns": columns, "rows": rows}


def _curves_class(results: Mapping[str, Any]) -> str | None:
    """The class that curves are drawn for: the rare one, or with more classes the one that the runs name."""
    if len(results["data"]["classes"]) == 2:
        return str(results["data"]["classes"][1])
    return next((run["curves_class"] for run in results["runs"] if run.get("curves_class")), None)


def _positive_name(results: Mapping[str, Any]) -> str:
    name = _curves_class(results)
    return "the class" if name is None else f"“{name}”"


def _positive_rate(results: Mapping[str, Any]) -> float | None:
    """Share of the class that curves are drawn for."""
    data, name = results["data"], _curves_class(results)
    if name not in data["classes"]:
        return None
    return float(data["class_counts"][data["classes"].index(name)] / sum(data["class_counts"]))


# ------------------------------------------------------------------------------------------------------------- figures


def _differences(rows: Sequence[Mapping[str, Any]], span: tuple[float, float]) -> go.Figure:
    """Dot plot: one row per method, its label above it, so that nothing is cut off on a narrow screen."""
    figure = go.Figure()
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    for height, row in enumerate(reversed(rows)):
        method, difference = row["method"], row["difference"]
        mean, low, high = (_float(difference[key]) for key in ("mean", "low", "high"))
        per_seed = _floats(difference.get("per_seed"))
        style = {"showlegend": False, "hoverlabel": {"namelength": 0}}
        figure.add_scatter(
            x=per_seed, y=[height - 0.16] * len(per_seed), mode="markers", **style,
            marker={"symbol": "circle-open", "size": 7, "color": method.colour},
            hovertemplate="one seed: %{x:+.4f}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[low, high], y=[height, height], mode="lines", **style,
            line={"color": method.colour, "width": 3}, hovertemplate="interval: %{x:+.4f}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[mean], y=[height], mode="markers", **style,
            marker={
                "symbol": "diamond" if difference["supported"] else "diamond-open",
                "size": 12, "color": method.colour, "line": {"width": 2, "color": method.colour},
            },
            hovertemplate="mean: %{x:+.4f}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=height + 0.18, yanchor="bottom", showarrow=False,
            text=f"{_text(method.label)}  {_signed(mean)}", font={"size": 12, "color": INK},
            bgcolor=GROUND, borderpad=1,
        )  # fmt: skip
    figure.update_xaxes(title="difference in the test objective", range=list(span), tickformat="~g", nticks=6)
    figure.update_yaxes(visible=False, range=[-0.5, len(rows) - 0.2])
    figure.update_layout(height=46 * len(rows) + 64, margin={"l": 8, "r": 8})
    return figure


def _difference_span(results: Mapping[str, Any]) -> tuple[float, float]:
    """One axis for every model, so that their panels compare, with 0 inside."""
    rows = results["differences"]
    values = _floats([value for row in rows for value in (row["low"], row["high"], *(row.get("per_seed") or []))])
    values = np.append(values[np.isfinite(values)], 0.0)
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def _pr(
    methods: Sequence[Method],
    mine: Runs,
    point: Objective,
    rate: float | None,
    default: Sequence[str],
) -> go.Figure | None:
    end = 1.0
    if point.budget is not None:
        recalls = [_recall_at(run, point) for method in default for run in mine.get(method, [])]
        end = min(1.0, max([0.1, *(1.6 * found for found in recalls if found)])) if any(recalls) else 1.0
    grid = np.union1d(np.linspace(0, end, 121), np.linspace(0, 1, 61))  # finest where the plot opens
    figure = _banded(methods, mine, "pr", ("recall", "precision"), grid)
    if figure is None:
        return None
    if point.budget is not None and rate:
        recall = np.linspace(0, 1, 201)[1:]
        # Alerts are a fixed number, so the precision is a ray through the origin; or so many negatives and the hits.
        alerts = point.budget if point.quantile is not None else recall * rate + point.budget * (1 - rate)
        precision = recall * rate / alerts
        inside = precision <= 1
        figure.add_scatter(
            x=recall[inside], y=precision[inside], mode="lines", name=point.name, hoverinfo="name",
            line={"color": INK, "width": 1, "dash": "dot"},
        )  # fmt: skip
    figure.update_xaxes(title="recall", range=[0, end], tickformat="~g")
    figure.update_yaxes(title="precision", range=[0, 1.02], tickformat="~g")
    return figure


def _recall_at(run: Run, point: Objective) -> float | None:
    """Recall at the operating point, read from the curve that has it on its x axis."""
    curve, x, y = ("roc", "fpr", "tpr") if point.quantile is None else ("gain", "share", "recall")
    line = _curve(run, curve, x, y)
    return None if line is None or point.budget is None else float(np.interp(point.budget, *line))


def _roc(methods: Sequence[Method], mine: Runs, point: Objective) -> go.Figure | None:
    return _log_share(
        methods, mine, "roc", ("fpr", "tpr"), point if point.quantile is None else None,
        ("false-positive rate", "recall (true-positive rate)"),
    )  # fmt: skip


def _gain(
    methods: Sequence[Method],
    mine: Runs,
    point: Objective,
    rate: float | None,
) -> go.Figure | None:
    figure = _log_share(
        methods, mine, "gain", ("share", "recall"), None if point.quantile is None else point,
        ("share of all rows reviewed", "recall"),
    )  # fmt: skip
    if figure is not None and rate:
        share = np.geomspace(max(rate * 1e-3, 1e-6), 1, 200)
        figure.add_scatter(
            x=share, y=np.minimum(1, share / rate), mode="lines", name="the best there can be", hoverinfo="name",
            line={"color": GREY, "width": 1, "dash": "dot"},
        )  # fmt: skip
    return figure


def _log_share(
    methods: Sequence[Method],
    mine: Runs,
    curve: str,
    axes: tuple[str, str],
    mark: Objective | None,
    titles: tuple[str, str],
) -> go.Figure | None:
    """Recall against a share on a log axis, from the smallest share that any run resolves."""
    lines = [line for runs in mine.values() for run in runs if (line := _curve(run, curve, *axes)) is not None]
    shares = np.concatenate([x[x > 0] for x, _ in lines]) if lines else np.empty(0)
    if not shares.size:
        return None
    low = max(float(shares.min()), 1e-6)
    budget = mark.budget if mark else None
    low = min(low, 0.1, budget / 3 if budget else 1.0)
    figure = _banded(methods, mine, curve, axes, np.geomspace(low, 1, 161))
    if figure is None:
        return None
    if mark and budget:
        if mark.alpha is not None:
            figure.add_vrect(x0=max(mark.alpha, low), x1=budget, fillcolor=GREY, opacity=0.18, line_width=0)
        else:
            figure.add_vline(x=budget, line={"color": INK, "width": 1, "dash": "dot"})
        left = budget**2 > low  # the label goes where there is more room on the log axis
        figure.add_annotation(
            x=np.log10(budget), y=1.01, yref="paper", yanchor="bottom", xanchor="right" if left else "left",
            text=mark.name, font={"size": 11, "color": INK}, showarrow=False,
        )  # fmt: skip
    decades = [10.0**power for power in range(-6, 1)]
    figure.update_xaxes(
        title=titles[0], type="log", range=[np.log10(low), 0.02],
        tickvals=decades, ticktext=[f"{100 * share:g}%" for share in decades],
    )  # fmt: skip
    figure.update_yaxes(title=titles[1], range=[0, 1.02], tickformat="~g")
    return figure


def _calibration(methods: Sequence[Method], mine: Runs, rate: float | None) -> go.Figure | None:
    rare = rate is not None and rate < 0.1
    figure, lowest = go.Figure(), 1.0
    for method in methods:
        pooled = _pooled_calibration(mine[method.name], rare)
        if pooled is None:
            continue
        predicted, observed, count = pooled
        if rare:
            positive = (predicted > 0) & (observed > 0)
            predicted, observed, count = predicted[positive], observed[positive], count[positive]
        if not predicted.size:
            continue
        lowest = min(lowest, float(predicted.min()), float(observed.min()))
        wide = method.name == BASELINE  # it lies below the others, and shows where one equals it
        figure.add_scatter(
            x=predicted, y=observed, customdata=count, mode="lines+markers", name=_text(method.label), meta=method.name,
            line={"color": method.colour, "width": 3 if wide else 1.5, "dash": method.dash},
            marker={"size": 9 if wide else 6, "color": method.colour},
            hovertemplate="predicted %{x:.3g}, observed %{y:.3g} of %{customdata:,.0f} rows",
        )  # fmt: skip
    if not figure.data:
        return None
    low = max(lowest, 1e-6) if rare else 0.0
    figure.add_scatter(
        x=[low, 1], y=[low, 1], mode="lines", name="predicted as often as seen", hoverinfo="name",
        line={"color": GREY, "width": 1, "dash": "dot"},
    )  # fmt: skip
    scale: dict[str, Any] = {"tickformat": "~g"}
    scale |= {"type": "log", "range": [np.log10(low) - 0.1, 0.05], "dtick": 1} if rare else {"range": [-0.02, 1.02]}
    figure.update_xaxes(title="predicted probability", **scale)
    figure.update_yaxes(title="observed share", **scale)
    return figure


def _pooled_calibration(runs: Sequence[Run], rare: bool) -> tuple[Array, Array, Array] | None:
    """The bins of all seeds, merged where they predict alike: a quarter of a decade where rare, else a tenth."""
    parts = [
        [_floats(curve.get(key)) for key in ("predicted", "observed", "count")]
        for run in runs
        if (curve := (run.get("curves") or {}).get("calibration"))
    ]
    if not parts:
        return None
    predicted, observed, count = (np.concatenate(column) for column in zip(*parts, strict=True))
    valid = np.isfinite(predicted) & np.isfinite(observed) & (count > 0)
    predicted, observed, count = predicted[valid], observed[valid], count[valid]
    if not predicted.size:
        return None
    place = np.floor(4 * np.log10(np.maximum(predicted, 1e-9)) if rare else 10 * predicted)
    _, group = np.unique(place, return_inverse=True)
    total = np.bincount(group, count).astype(np.float64)
    return np.bincount(group, predicted * count) / total, np.bincount(group, observed * count) / total, total


def _training(methods: Sequence[Method], mine: Runs) -> go.Figure | None:
    looks = [look["step"] for runs in mine.values() for run in runs for look in run.get("history") or []]
    if not looks:
        return None
    last = max(looks)
    histories: dict[str, list[dict[str, Any]]] = {method.name: [] for method in methods}
    for method in methods:
        for run in mine[method.name]:
            # What was solved, not stepped towards, is a level line to compare with.
            level = [{"step": step, "validation": run.get("validation")} for step in (0, last)]
            history = run.get("history") or level
            line = {key: [look.get(key) for look in history] for key in ("step", "validation")}
            histories[method.name].append({"curves": {"history": line}})
    figure = _banded(methods, histories, "history", ("step", "validation"), np.linspace(0, max(last, 1), 161))
    if figure is not None:
        figure.update_xaxes(title="step (trees: boosting round)", rangemode="tozero")
        figure.update_yaxes(title="validation objective", tickformat="~g")
    return figure


def _scores(runs: Sequence[Run], results: Mapping[str, Any]) -> tuple[go.Figure | None, int | None]:
    """Histogram of the first seed that has one: the scales of different seeds' scores do not compare."""
    classes = results["data"]["classes"]
    names = classes if len(classes) == 2 else ("the rest", _positive_name(results))
    for run in runs:
        scores = (run.get("curves") or {}).get("scores")
        edges = _floats((scores or {}).get("edges"))
        if not scores or edges.size < 2 or not np.isfinite(edges).all():
            continue
        figure = go.Figure()
        for key, name, colour in (("negative", names[0], GREY), ("positive", names[1], VERMILLION)):
            count = _floats(scores[key])
            figure.add_scatter(
                x=np.repeat(edges, 2)[1:-1], y=np.repeat(np.where(count > 0, count, np.nan), 2), mode="lines",
                name=_text(name), line={"color": colour, "width": 1.8}, hovertemplate="score %{x:.3g}: %{y:,.0f} rows",
            )  # fmt: skip
        figure.update_xaxes(title="score (logit)", nticks=6)
        figure.update_yaxes(title="rows", type="log", dtick=1, tickformat="~s", rangemode="tozero")
        return figure, int(run["seed"])
    return None, None


def _banded(
    methods: Sequence[Method],
    mine: Runs,
    curve: str,
    axes: tuple[str, str],
    grid: Array,
) -> go.Figure | None:
    """One line per method, the mean over its seeds, in a band from the lowest to the highest seed."""
    figure = go.Figure()
    for method in methods:
        lines = [line for run in mine[method.name] if (line := _curve(run, curve, *axes)) is not None]
        if not lines:
            continue
        values = np.stack([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in lines])
        inside = np.isfinite(values).all(axis=0)  # where a seed has no value, the mean would jump
        if not inside.any():
            continue
        at, values = grid[inside].astype(np.float32), values[:, inside]
        if len(lines) > 1:
            figure.add_scatter(
                x=np.concatenate([at, at[::-1]]), y=_single([*values.max(axis=0), *values.min(axis=0)[::-1]]),
                fill="toself", fillcolor=method.colour, opacity=0.13, line={"width": 0}, mode="lines",
                meta=method.name, hoverinfo="skip",
            )  # fmt: skip
        figure.add_scatter(
            x=at, y=_single(values.mean(axis=0)), mode="lines", name=_text(method.label), meta=method.name,
            line={"color": method.colour, "width": 3.5 if method.name == BASELINE else 1.8, "dash": method.dash},
            hovertemplate="%{x:.4~g}: %{y:.3f}",
        )  # fmt: skip
    return figure if figure.data else None


def _curve(run: Run, curve: str, x: str, y: str) -> tuple[Array, Array] | None:
    """A run's curve as finite points with x rising, or None where it has none."""
    points = (run.get("curves") or {}).get(curve) or {}
    across, up = _floats(points.get(x)), _floats(points.get(y))
    if across.size != up.size:
        return None
    valid = np.isfinite(across) & np.isfinite(up)
    if curve == "pr":
        valid &= across > 0  # at recall 0 nothing is flagged, and the precision 1 often put there is no measurement
    across, up = across[valid], up[valid]
    if not across.size:
        return None
    order = np.argsort(across, kind="stable")
    return across[order], up[order]


def _plain(figure: go.Figure) -> dict[str, Any]:
    """The figure as JSON types, without plotly's default theme: the page sets fonts, grid and ground."""
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain


# ----------------------------------------------------------------------------------------------------- numbers and text


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _floats(values: Any) -> Array:
    return np.array([_float(value) for value in values or []], dtype=np.float64)


def _single(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)  # half the bytes of the page, and far finer than a pixel


def _mean(values: Any) -> float:
    found = [number for value in values if np.isfinite(number := _float(value))]
    return float(np.mean(found)) if found else float("nan")


def _number(value: Any, digits: int = 3) -> str:
    number = _float(value)
    return f"{number:.{digits}f}".replace("-", "−") if np.isfinite(number) else "–"


def _signed(value: Any) -> str:
    number = round(_float(value), 3)
    if number == 0:
        return "0.000"
    return f"{number:+.3f}".replace("-", "−") if np.isfinite(number) else "–"


def _setting(value: Any) -> str:
    """A setting in words, nested ones in brackets."""
    if isinstance(value, Mapping):
        return "; ".join(
            f"{_words(key)} ({_setting(part)})" if isinstance(part, Mapping) else f"{_words(key)} {_setting(part)}"
            for key, part in value.items()
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_setting(part) for part in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _text(text: str) -> str:
    """Text for plotly, which reads a small subset of HTML in every label."""
    return html.escape(str(text), quote=False)
