"""The curves of a scorecard as a figure.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

try:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error.name} is missing, which plot_shapes needs: pip install "rareloss[study]"', name=error.name
    ) from error

import numpy as np

from rareloss.tabular.estimators.basis import NumberBasis

if TYPE_CHECKING:
    from rareloss.tabular.estimators.additive import AdditiveRareClassifier

__all__ = ["draw_shapes"]

FINAL, START, ROWS = "#0072b2", "#8a8f98", "rgba(138, 143, 152, 0.35)"


def draw_shapes(model: "AdditiveRareClassifier", places: Sequence[int], columns: int) -> go.Figure:
    """Draw one panel an input, see :meth:`AdditiveRareClassifier.plot_shapes`.

    Args:
        model: fitted.
        places: of the inputs, in order.
        columns: panels in a row.
    """
    panels = [_panel(model, place) for place in places]
    many = math.ceil(len(places) / columns)
    figure = make_subplots(
        many,
        columns,
        subplot_titles=[panel["title"] for panel in panels],
        specs=[[{"secondary_y": True}] * columns] * many,
        horizontal_spacing=0.06,
        vertical_spacing=min(0.3, 90 / (90 + 250 * many)) if many > 1 else 0,
    )
    # One scale for all panels, so that what matters more is drawn larger; the bars have its lowest part.
    ends = np.concatenate([panel[name] for panel in panels for name in ("final", "start", "low", "high")])
    low, high = float(ends.min()), float(ends.max())
    height = (high - low) or 1.0
    for place, panel in enumerate(panels):
        here = {"row": place // columns + 1, "col": place % columns + 1}
        _draw_rows(figure, panel, here)
        _draw_curves(figure, panel, model.finetuned_.objective.name, here)
        figure.update_yaxes(range=[low - 0.22 * height, high + 0.06 * height], secondary_y=False, **here)
        first = here["col"] == 1
        figure.update_yaxes(
            showticklabels=first, title="adds to the log-odds" if first else None, secondary_y=False, **here
        )
    seen: set[str] = set()  # one entry in the legend for each kind of drawing
    for trace in figure.data:
        trace.showlegend = trace.legendgroup not in seen
        seen.add(trace.legendgroup)
    figure.update_yaxes(gridcolor="#e3e6ea", zerolinecolor="#8a8f98", zerolinewidth=1)
    figure.update_layout(
        template="plotly_white", height=90 + 250 * many, width=60 + 340 * columns, bargap=0.05,
        title={"text": html.escape(str(model.finetuned_)), "x": 0, "xref": "paper", "font": {"size": 14}},
        legend={"orientation": "h", "y": 1 + 30 / (250 * many), "yanchor": "bottom", "x": 0},
        margin={"l": 60, "r": 20, "t": 120, "b": 40},
    )  # fmt: skip
    return figure


def _draw_rows(figure: go.Figure, panel: dict[str, Any], here: dict[str, int]) -> None:
    figure.add_bar(
        x=panel["at"], y=panel["counts"], width=panel["width"], marker={"color": ROWS, "line": {"width": 0}},
        name="rows", legendgroup="rows", secondary_y=True, **here,
    )  # fmt: skip
    top = float(np.max(panel["counts"], initial=1.0))
    figure.update_yaxes(range=[0, 7 * top], visible=False, secondary_y=True, **here)
    kind = "linear" if panel["mode"] == "lines" else "category"
    figure.update_xaxes(range=panel["range"], type=kind, showgrid=False, **here)


def _draw_curves(figure: go.Figure, panel: dict[str, Any], objective: str, here: dict[str, int]) -> None:
    x, curve = panel["x"], panel["mode"] == "lines"
    if len(panel["low"]) and curve:
        figure.add_scatter(
            x=np.concatenate([x, x[::-1]]), y=np.concatenate([panel["low"], panel["high"][::-1]]),
            fill="toself", fillcolor="rgba(0, 114, 178, 0.18)", line={"width": 0}, mode="lines", hoverinfo="skip",
            name="90 % of resamples", legendgroup="band", **here,
        )  # fmt: skip
    error = {"type": "data", "symmetric": False, "thickness": 1.5}
    if not curve and len(panel["low"]):
        error |= {"array": panel["high"] - panel["final"], "arrayminus": panel["final"] - panel["low"]}
    figure.add_scatter(
        x=x, y=panel["start"], mode=panel["mode"], line={"color": START, "width": 4},
        marker={"color": START, "size": 10, "symbol": "circle-open", "line": {"width": 2}},
        name="cross-entropy", legendgroup="start", **here,
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=panel["final"], mode=panel["mode"], line={"color": FINAL, "width": 2},
        marker={"color": FINAL, "size": 7}, error_y=None if curve else error,
        name="trained for " + objective, legendgroup="final", **here,
    )  # fmt: skip


def _panel(model: "AdditiveRareClassifier", place: int) -> dict[str, Any]:
    one, (at, counts) = model.bases_[place], model.histograms_[place]
    name = html.escape(str(model.feature_names_in_[place])) if hasattr(model, "feature_names_in_") else f"input {place}"
    mode = "lines"
    if isinstance(one, NumberBasis):
        low, high = float(at[0]), float(at[-1])
        x = np.linspace(low, high, 200)
        panel = {"at": (at[1:] + at[:-1]) / 2, "width": np.diff(at), "range": [low, high]}
        if one.gaps:
            name += f" (missing: {model.shape(place, [np.nan])[0]:+.2f})"
    else:
        x, mode = at, "markers"
        panel = {"at": _labels(at), "width": None, "range": None}
    panel |= {
        "title": name,
        "mode": mode,
        "counts": counts,
        "x": x if mode == "lines" else _labels(at),
        "final": model.shape(place, x),
        "start": model.shape(place, x, of=model.cross_entropy_),
        "low": np.zeros(0),
        "high": np.zeros(0),
    }
    if hasattr(model, "resampled_"):
        panel["low"], panel["high"] = model.band(place, x)
    return panel


def _labels(names: Any) -> list[str]:
    # Long names are cut where they can still be told apart.
    whole = ["missing" if name is None else str(name) for name in names]
    short = [name if len(name) <= 14 else name[:13] + "…" for name in whole]
    return [html.escape(name) for name in (short if len(set(short)) == len(short) else whole)]
