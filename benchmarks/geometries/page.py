"""Turn the cells into docs/geometries.md and its picture; every number on it comes from the results file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.quality.page import markdown_table
from scipy.stats import t

__all__ = ["page"]

Record = Mapping[str, Any]
STAGES = ("smooth_ap_stage", "recall_stage")
MEASURED = ("Bayes", "best line", "tuned CE", "gain of the stage", "worst", "turned")
# A gain by which a line has turned to the top: there is nothing between it and none.
TURNED = 0.05
COLOURS = ("#1b6ca8", "#c2571a", "#2f855a", "#7b2d8b", "#5f6b76")


def page(found: Sequence[Record], docs: Path) -> None:
    """Write ``geometries.md`` and ``pictures/geometries.svg`` into a folder.

    Args:
        found: the cells that ran.
        docs: the folder.
    """
    rows = pd.DataFrame([_row(one) for one in found])
    _draw(rows[rows.name == "dial"], docs / "pictures" / "geometries.svg")
    _draw_others(rows, docs / "pictures" / "geometries_more.svg")
    minutes = f"{len(rows)} cells ran, {rows.seed.nunique()} seeds at most."
    parts = [
        _HEAD.format(minutes=minutes),
        *_dial(rows[rows.name == "dial"]),
        *_agree(rows[rows.name == "agree"]),
        *_contested(rows[rows.name == "contested"]),
        *_positives(rows[rows.name == "positives"]),
        *_noise(rows[rows.name == "noise"]),
        *_pools(rows[rows.name.isin(["pool", "queue"])]),
    ]
    (docs / "geometries.md").write_text("\n".join(parts) + "\n", "utf-8")


_HEAD = """# Geometries

Where a ranking loss pays can be seen on data whose truth is known: rows are drawn from a distribution, so that the best
ranking there is (*Bayes*) is known too, and where inputs are few the *best line*; models are judged on 150,000 fresh
rows of it.

```bash
python -m benchmarks.geometries --out FILE.json --minutes 30   # the same command goes on
python -m benchmarks.geometries --out FILE.json --page         # benchmarks/results/geometries.json and this page
```

{minutes} All train by the engine of
`rareloss compare`: tuned cross-entropy, further steps of it as a control, and the stage of our loss from there. Gains
are means over seeds, with 95 % t intervals in brackets: every seed draws anew, and cells of one seed and distribution
share their rows.

![Contested top with its Bayes limit; gain over train positives; gain over wrong labels](pictures/geometries_more.svg)
"""


def _row(one: Record) -> dict[str, Any]:
    test = one["test"]
    stage = next((test[name] for name in STAGES if name in test), test.get("steps"))
    row = {key: value for key, value in one.items() if key not in ("test", "kept")}
    row |= {"tuned": test["tuned_ce"], "gain": stage - test["tuned_ce"]}
    row["line"] = one.get("line", np.nan)
    row["control"] = test["ce_continued"] - test["tuned_ce"] if "ce_continued" in test else np.nan
    row["positives_about"] = 0.75 * one["rows"] * one.get("rate", 0.0)
    row["kept_start"] = any(one["kept"].get(name) == "start" for name in STAGES)
    return row


def _dial(rows: pd.DataFrame) -> list[str]:
    if rows.empty:
        return []
    table = []
    for (rate, bend), mine in rows.groupby(["rate", "bend"]):
        room = mine.line.mean() - mine.tuned.mean()
        part = f"{mine.gain.mean() / room:.0%}" if room > 0.005 else "–"
        table.append([f"{rate:.2%}", f"{bend:g}", str(len(mine)), *_all(mine), part, f"{mine.control.mean():+.3f}"])
    heads = ["positives", "bend", "seeds", *MEASURED, "of the way to the best line", "control"]
    return [
        "\n## A dial of misfit\n",
        "Five normal inputs; the log-odds are a + x0 + bend (4 max(x1 - 1.5, 0) - .7 min(x1, 1.5)). With bend 0\n"
        "logistic regression is right. Else x1 speaks against the class in the bulk and for it at the top: no slope\n"
        "serves both, and the loss decides which is served. Average precision of a linear model:\n",
        "![Gain of the stage over the bend, one line a base rate, with standard errors](pictures/geometries.svg)\n",
        *markdown_table(heads, table),
        "\nWhere the line is right (bend 0) nothing is gained and nothing lost, whatever the rate. From a bend of\n"
        "about .75 on there are two lines to choose from, one for the bulk and one for the top. Cross-entropy takes\n"
        "the first until the top alone decides its likelihood, at .3 % and below and the strongest bends. The stage\n"
        "finds the second one, and ends near the best line there is wherever positives are enough: *turned* counts\n"
        f"the seeds that gained more than {TURNED:g}. With few of them (.05 %: some 75 in train) it can stay, or lose\n"
        "on test what it gained on validation: see *worst*. The best line is that of the distribution; test rows\n"
        "differ from it by luck, so a share of the way can pass 100 %.",
    ]


def _agree(rows: pd.DataFrame) -> list[str]:
    if rows.empty:
        return []
    table = [[f"{bend:g}", str(len(mine)), *_all(mine)] for bend, mine in rows.groupby("bend")]
    return [
        "\n## A bend without a conflict\n",
        "As the dial at 1 %, but x1 speaks for the class in the bulk too, only less:\n"
        "a + x0 + bend (4 max(x1 - 1.5, 0) + .7 min(x1, 1.5)).\n",
        *markdown_table(["bend", "seeds", *MEASURED], table),
        "\nOne slope serves both parts, cross-entropy comes near it, and little is left: it is the conflict between\n"
        "bulk and top that a ranking loss is paid for, not the bend.",
    ]


def _contested(rows: pd.DataFrame) -> list[str]:
    if rows.empty:
        return []
    table = [
        [model, str(len(mine)), *_all(mine), f"{mine.control.mean():+.3f}"]
        for model, mine in rows.groupby("model", sort=False)
    ]
    return [
        "\n## A contested top\n",
        "Twenty normal inputs; positives (.15 %) and decoys (1.2 %) share a shift of 2.5 in three of them; positives\n"
        "alone have a cue of 1.7 in two more, up in both or down in both. 240,000 rows to train and choose on.\n"
        "Recall in the top .5 %:\n",
        *markdown_table(["model", "seeds", *MEASURED, "control"], table),
        "\nA line can use the cue of one direction alone: it catches about half of the positives, and gives up the\n"
        "other half for them, or it leaves the cue. A sum of curves can use both directions, since positives lie far\n"
        "from 0 on either side, and so can networks, which had four draws of cross-entropy's settings. No gain of the\n"
        "stage can be told from chance for any of them.",
    ]


def _positives(rows: pd.DataFrame) -> list[str]:
    if rows.empty:
        return []
    table = [
        [f"{many:,}", f"{mine.positives.mean():.0f}", str(len(mine)), *_all(mine), f"{mine.kept_start.mean():.0%}"]
        for many, mine in rows.groupby("rows")
    ]
    return [
        "\n## Few positives and many\n",
        "Bend 1, 1 % positives; three quarters of the rows train, the others choose.\n",
        *markdown_table(["rows", "train positives", "seeds", *MEASURED, "kept the start"], table),
        "\nWith few positives validation often cannot tell the gain from chance, and the start is kept.",
    ]


def _noise(rows: pd.DataFrame) -> list[str]:
    if rows.empty:
        return []
    table = [[f"{share:.0%}", str(len(mine)), *_all(mine)] for share, mine in rows.groupby("noise")]
    return [
        "\n## Wrong labels\n",
        "Bend 1, 1 % positives. A share of the positives of train and validation gives its label to as many\n"
        "negatives, at random; test labels are right.\n",
        *markdown_table(["share", "seeds", *MEASURED], table),
        "\nUp to a tenth of wrong labels nothing is lost, and little at a fifth.",
    ]


def _pools(rows: pd.DataFrame) -> list[str]:
    if rows.empty:
        return []
    table = []
    for pool, mine in rows[rows.name == "pool"].groupby("pool"):
        named = f"a pool of {pool:,.0f}" if pool else "all 45,000 rows"
        table.append((pool or 1e9, [named, str(len(mine)), *_all(mine)]))
    for queue, mine in rows[rows.name == "queue"].groupby("queue"):
        table.append((1e10 + queue, [f"a batch of 1,024, queue of {queue:,.0f}", str(len(mine)), *_all(mine)]))
    return [
        "\n## Pool, queue and full batch\n",
        "Bend 1, 1 % positives, 200 AdamW steps of Smooth-AP from tuned cross-entropy. A pool holds the positives\n"
        "first, up to half of it, and a weighted sample of the negatives; batches are drawn at random, about ten\n"
        "positives in each.\n",
        *markdown_table(["a step ranks", "seeds", *MEASURED], [row for _, row in sorted(table)]),
        "\nAll of them turn in some draws and not in others, and these seeds tell none from another. What turns in\n"
        "every draw is the search of a linear model over all rows, in the tables above.",
    ]


def _all(rows: pd.DataFrame) -> list[str]:
    worst, turned = f"{rows.gain.min():+.3f}", str(int((rows.gain > TURNED).sum()))
    line = f"{rows.line.mean():.3f}" if rows.line.notna().any() else "–"
    return [f"{rows.bayes.mean():.3f}", line, f"{rows.tuned.mean():.3f}", _interval(rows.gain), worst, turned]


def _interval(values: pd.Series) -> str:
    mean = f"{values.mean():+.3f}"
    if len(values) < 2:
        return mean
    reach = t.ppf(0.975, len(values) - 1) * values.sem()
    return f"{mean} [{values.mean() - reach:+.3f}, {values.mean() + reach:+.3f}]"


def _draw(rows: pd.DataFrame, path: Path) -> None:
    figure, axes = _figure(1, (7, 3.6))
    for colour, (rate, mine) in zip(COLOURS, sorted(rows.groupby("rate"), reverse=True), strict=False):
        if mine.bend.nunique() < 3:  # a line through two points would tell what nobody measured
            continue
        _gains(axes[0], mine, "bend", colour, f"{rate:.2%}")
    axes[0].set(xlabel="bend: how far a line misfits", ylabel="gain of average precision")
    axes[0].legend(title="positives", frameon=False)
    _save(figure, path)


def _draw_others(rows: pd.DataFrame, path: Path) -> None:
    figure, (top, many, wrong) = _figure(3, (11, 3.4))
    contested = rows[rows.name == "contested"]
    models = list(contested.model.unique()) if "model" in contested else []
    for place, model in enumerate(models):
        mine = contested[contested.model == model]
        for shift, values, colour in ((-0.12, mine.tuned, COLOURS[4]), (0.12, mine.tuned + mine.gain, COLOURS[0])):
            top.errorbar(place + shift, values.mean(), values.sem() if len(values) > 1 else 0, color=colour, marker="o")
    top.axhline(contested.bayes.mean() if len(contested) else 0.0, color="#1f2933", linestyle="--", linewidth=1)
    top.set_xticks(range(len(models)), models)
    top.set(title="Contested top: recall in the top .5 %", ylim=(0, 1))
    top.legend(
        handles=[
            _handle(COLOURS[4], "tuned cross-entropy", marker="o"),
            _handle(COLOURS[0], "stage", marker="o"),
            _handle("#1f2933", "Bayes", linestyle="--"),
        ],
        frameon=False,
        loc="lower right",
    )
    _gains(many, rows[rows.name == "positives"], "positives_about", COLOURS[0], "")
    many.set(title="Gain of AP over train positives", xscale="log" if "positives" in set(rows.name) else "linear")
    _gains(wrong, rows[rows.name == "noise"], "noise", COLOURS[0], "")
    wrong.set(title="Gain of AP over the share of wrong labels", ylim=(0, None))
    _save(figure, path)


def _figure(panels: int, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "rareloss", "font.size": 10, "axes.titlesize": 10}
    figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _handle(colour: str, label: str, **options: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **{"linestyle": "none", **options})


def _gains(axes: Any, rows: pd.DataFrame, over: str, colour: str, label: str) -> None:
    gains = rows.groupby(over).gain
    at, error = gains.mean().index, gains.sem().fillna(0.0)
    axes.errorbar(at, gains.mean(), error, color=colour, marker="o", markersize=4, capsize=2, label=label)
    axes.axhline(0, color="#b8bec6", linewidth=1)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
