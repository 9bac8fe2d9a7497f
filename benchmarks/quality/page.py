"""Turn the results into docs/evidence.md; every number on it comes from the results file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from benchmarks.quality.analysis import LEAST_ERROR, Effect, Overall, effects, overall
from benchmarks.quality.grid import SCORECARDS

from rareloss.tabular.comparison.runs import TREES
from rareloss.tabular.comparison.statistics import Interval
from rareloss.tabular.methods import BASELINE

__all__ = ["CONTROL", "OWN_STAGE", "machines", "markdown_table", "not_run", "page", "ranged", "signed", "spoken"]

Results = Mapping[str, Any]
Pair = tuple[str, str]
OBJECTIVES = {
    "ap": "average precision",
    "recall@top=rate": "recall in the top base rate",
    "recall@top=0.5%": "recall in the top .5 %",
    "recall@fpr=0.5%": "recall at a false-positive rate of .5 %",
}
MODELS = {
    "linear": "Linear scorecard",
    "linear_normal": "Linear scorecard on quantile-normal inputs",
    "additive": "Additive scorecard",
    "trees": "Boosted trees",
    "mlp": "Network 128-64",
    "mlp8": "Network of 8 hidden units",
    "mlp32": "Network of 32 hidden units",
}
CONTROL = "ce_continued"
OWN_STAGE = {"ap": "smooth_ap_stage", "recall@top=rate": "recall_stage"}
# The protocol's bars: least mean gain, where there is one.
PROMISES = (
    ("linear", "ap", 0.03),
    ("linear_normal", "ap", 0.03),
    ("additive", "ap", 0.01),
    ("linear", "recall@top=rate", None),
    ("linear_normal", "recall@top=rate", None),
    ("additive", "recall@top=rate", None),
    ("mlp", "ap", None),
    ("mlp", "recall@top=rate", None),
)
# Other splits of these were looked at while the stage's defaults were made.
LOOKED_AT = ("fdh", "fdh_early", "mammography", "us_crime", "ozone")
LEAST_OF_A_SET = -0.003
MANY_POSITIVES = 200


def page(results: Results, ceilings: Results | None = None) -> str:
    """Write docs/evidence.md.

    Args:
        results: what ``quality.json`` holds.
        ceilings: what ``headroom.json`` holds.
    """
    pairs = list(dict.fromkeys((row["model"], row["objective"]) for row in results["plan"] if row["model"] != TREES))
    found = {pair: effects(results["runs"], *pair) for pair in pairs}
    done, planned = (sum(row[key] for row in results["plan"]) for key in ("done", "planned"))
    lines = [
        "# Evidence",
        "",
        "What each loss is worth, where, and how sure that is: every method of a grid that was written down before it "
        "was run (`benchmarks/quality/PROTOCOL.md`). One command runs it, another writes this page:",
        "",
        "```bash",
        'pip install -c constraints.txt -e ".[bench]"',
        "python -m benchmarks.quality --data DIR --core --out FOLDER --minutes 90 --workers 2   # again to go on",
        "python -m benchmarks.quality --data DIR --full --out FOLDER --minutes 90 --workers 2   # the rest of the grid",
        "python -m benchmarks.quality --data DIR --full --out FOLDER --page --add   # results file and this page",
        "```",
        "",
        f"{done} of {planned} units (a model on one split of one set, under all methods) ran until "
        f"{results['measured']} UTC: {machines(results)}. {results['trials']} random draws for each method. "
        "What did not run stands [below](#what-did-not-run).",
        "",
        "**How to read it.** Every difference is to *tuned cross-entropy* of the same model on the same split. In "
        "brackets, the 95 % interval of that one comparison, which allows for splits sharing rows (Nadeau and Bengio). "
        "An asterisk: still beyond chance at 5 % after Holm's adjustment for all methods and sets of the table. Over "
        "sets: *these* takes the sets as given, and only the splits as chance; *like these* is a random-effects model "
        "(REML, Hartung and Knapp), for a set not seen yet. "
        "*Cross-entropy continued* is the control: what it gains, further steps gain. Of *20 (5)* splits, the further "
        "methods have 5.",
        "",
        "## In short",
        "",
        *_in_short(results, found),
        "",
        "## What was promised",
        "",
        *_promised(results, found),
        *_promised_of_peers(results, pairs),
        *(_headroom(results, ceilings) if ceilings else ()),
        "",
        "## Over all sets",
        "",
        *_over_all(results, found),
    ]
    lines += _peer_tables(results, pairs)
    for (model, objective), mine in found.items():
        lines += ["", f"## {MODELS.get(model, model)}, {spoken(objective)}", ""]
        lines += _by_set(results, model, objective, mine) if mine else ["Nothing of it has run."]
    lines += ["", "## What did not run", "", *not_run(results)]
    lines += ["", "## The sets", "", *_sets(results), "", "## The methods", "", *_methods(results)]
    lines += ["", "The scripts: `benchmarks/quality/`; the numbers: `benchmarks/results/quality.json`.", ""]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- parts


def machines(results: Results) -> str:
    """Say on which processors the units of a results file ran, how long, and by which versions."""
    seconds: dict[str, list[float | None]] = {}
    versions: dict[str, None] = {}
    for unit in results["units"]:
        machine = results["machines"][unit["machine"]]
        seconds.setdefault(machine["cpu"], []).append(unit["cpu_seconds"])
        named = {"torch": machine["torch"], "Python": machine["python"], "rareloss": machine["rareloss"]}
        named |= {name: version for name, version in machine.get("peers", {}).items() if version}
        versions |= dict.fromkeys(f"{name} {version}" for name, version in named.items())
    ran = (
        f"{len(each)} on {cpu}" + ("" if None in each else f" ({sum(filter(None, each)) / 60:.0f} minutes of one core)")
        for cpu, each in seconds.items()
    )
    return f"{'; '.join(ran)}; {', '.join(versions)}"


def _in_short(results: Results, found: Mapping[Pair, Sequence[Effect]]) -> list[str]:
    label, kind = _of_methods(results, "label"), _of_methods(results, "kind")
    lines = []
    for (model, objective), mine in found.items():
        every = {one.method: one for one in overall(mine)}
        ours = [one for one in every.values() if kind[one.method] == "ranking"]
        if not ours:
            continue
        best = every.get(OWN_STAGE.get(objective, "")) or max(ours, key=lambda one: one.these.mean)
        low, high = best.these.low, best.these.high
        if low is not None and low > 0:
            said = "pays"
        elif high is not None and high < 0:
            said = "costs"
        else:
            said = "is not told from nothing"
        text = (
            f"- **{MODELS.get(model, model)}, {spoken(objective)}** ({_sets_of(best.sets)}): {label[best.method]} "
            f"{said}, {ranged(best.these)} over these sets, {ranged(best.like)} over sets like these; the worst set is "
            f"{best.worst[0]} with {signed(best.worst[1])}"
        )
        text += f"; better beyond chance on {', '.join(best.better)}" if best.better else ""
        text += f"; worse beyond chance on {', '.join(best.worse)}" if best.worse else ""
        fresh = [one for one in mine if one.method == best.method and one.data not in LOOKED_AT]
        if fresh:
            each = ", ".join(f"{one.data} {ranged(one.interval)}" for one in fresh)
            text += f". On sets that took no part in making the defaults: {each}"
        if control := every.get(CONTROL):
            text += f". Cross-entropy continued: {ranged(control.these)}"
        others = [one for one in every.values() if one is not best and kind[one.method] != "control"]
        if others:
            text += ". Others: " + "; ".join(f"{label[one.method]} {ranged(one.these)}" for one in others)
        lines.append(text + ".")
    return lines or ["Nothing can be said yet: no model has two splits of any set."]


def _promised(results: Results, found: Mapping[Pair, Sequence[Effect]]) -> list[str]:
    """Say which of the protocol's bars are met by what ran."""
    positives = {run["data"]: run["test_positives"] for run in results["runs"]}
    lines = []
    for model, objective, least in PROMISES:
        mine = [effect for effect in found.get((model, objective), ()) if effect.method == OWN_STAGE[objective]]
        (one,) = overall(mine) or (None,)
        if one is None:
            continue
        parts = []
        if least is not None:
            met = one.these.low is not None and one.these.low > 0 and one.these.mean >= least
            parts.append((f"mean at least {signed(least)}, interval above 0", met, ranged(one.these)))
            large = [effect for effect in mine if positives[effect.data] > MANY_POSITIVES]
            above = [effect.data for effect in large if effect.interval.low is not None and effect.interval.low > 0]
            name = f"interval above 0 on half of the sets of more than {MANY_POSITIVES} test positives"
            parts.append((name, 2 * len(above) >= len(large), f"{len(above)} of {len(large)}"))
        met = one.worst[1] >= LEAST_OF_A_SET
        worst = f"{one.worst[0]} {signed(one.worst[1]) if met else f'{one.worst[1]:+.4f}'}"  # a miss may be a hair's
        parts.append((f"no set below {signed(LEAST_OF_A_SET)}", met, worst))
        said = "; ".join(f"{name}: {'met' if met else '**missed**'} ({value})" for name, met, value in parts)
        lines.append(f"- {MODELS[model]}, {spoken(objective)}: {said}.")
    return lines or ["Nothing of it can be judged yet."]


def _headroom(results: Results, ceilings: Results) -> list[str]:
    """Say how much a stage could gain at most, beside what it gains and what the choice of inputs does."""
    seeds = {one["seed"] for one in ceilings["runs"]}
    table: dict[str, dict[str, float]] = {}
    for data in ceilings["sets"]:
        tested = {
            (run["model"], run["method"], run["seed"]): run["test"]
            for run in results["runs"]
            if (run["data"], run["objective"]) == (data, "ap") and run["seed"] in seeds
        }
        stages = {
            (model, method, seed) for model in SCORECARDS for method in (BASELINE, OWN_STAGE["ap"]) for seed in seeds
        }
        if not stages <= tested.keys() or not any(model == TREES for model, _, _ in tested):
            continue  # other results than those that the ceilings stand beside
        row = {"trees": np.mean([test for (model, _, _), test in tested.items() if model == TREES])}
        for model in SCORECARDS:
            mine = [one for one in ceilings["runs"] if (one["data"], one["model"]) == (data, model)]
            row[model] = np.mean([one["tuned_ce"] for one in mine])
            row[f"{model} at best"] = np.mean([one["best_place"] - one["tuned_ce"] for one in mine])
            row[f"{model} stage"] = np.mean(
                [tested[model, OWN_STAGE["ap"], seed] - tested[model, BASELINE, seed] for seed in seeds]
            )
        table[data] = {name: float(value) for name, value in row.items()}
    if not table:
        return []
    mean = {name: float(np.mean([row[name] for row in table.values()])) for name in next(iter(table.values()))}
    most = ", ".join(f"{signed(mean[f'{model} at best'])} ({MODELS[model].lower()})" for model in SCORECARDS)
    said = (
        "*Best place* is a ceiling and no method: the place on the stage's path that the test rows themselves prefer. "
        "No rule by which validation keeps a place gains more than that on average over these sets: "
        f"{most}. More has to come from the model: boosted trees have {mean['trees']:.3f}. The choice of inputs, which "
        "needs no ranking loss, takes tuned cross-entropy of a linear scorecard from "
        f"{mean['linear_normal']:.3f} on quantile-normal inputs to {mean['linear']:.3f}."
    )
    heads = [head for model in SCORECARDS for head in (f"{MODELS[model].lower()}: tuned CE", "stage", "best place")]
    rows = []
    for name, row in (*table.items(), ("mean", mean)):
        cells = [
            cell
            for model in SCORECARDS
            for cell in (f"{row[model]:.3f}", signed(row[f"{model} stage"]), signed(row[f"{model} at best"]))
        ]
        rows.append((name, *cells, f"{row['trees']:.3f}"))
    return [
        "",
        "## How much there is to gain",
        "",
        f"Means over {len(seeds)} splits, average precision (`python -m benchmarks.quality.headroom --data DIR`). "
        + said,
        "",
        *markdown_table(("set", *heads, "(boosted trees)"), rows),
    ]


def _over_all(results: Results, found: Mapping[Pair, Sequence[Effect]]) -> list[str]:
    label = _of_methods(results, "label")
    rows = []
    for (model, objective), mine in found.items():
        rows += [
            (
                MODELS.get(model, model),
                spoken(objective),
                label[one.method],
                str(one.sets),
                ranged(one.these),
                "" if one.like.low is None else ranged(one.like),
                f"{one.worst[0]} {signed(one.worst[1])}",
                f"{len(one.better)} / {len(one.worse)}",
            )
            for one in _in_order(overall(mine), label)
        ]
    heads = ("model", "judged by", "method", "sets", "these sets", "sets like these", "worst set", "better / worse*")
    return markdown_table(heads, rows) if rows else ["Nothing has two splits of any set yet."]


def _against_peers(results: Results, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, str, list[Effect], Overall]]:
    """Compare our loss of the same name with each peer's, on the same splits."""
    kind, loss = (_of_methods(results, key) for key in ("kind", "loss"))
    for model, objective in pairs:
        for own in (method for method in kind if kind[method] == "ranking" and method.endswith("_stage")):
            for peer in (method for method in kind if kind[method] == "peer" and loss[method] == loss[own]):
                mine = effects(results["runs"], model, objective, against=peer, only=own)
                for one in overall(mine):
                    yield (model, objective), peer, mine, one


def _promised_of_peers(results: Results, pairs: Iterable[Pair]) -> list[str]:
    label = _of_methods(results, "label")
    found: dict[str, list[tuple[Pair, Overall]]] = {}
    for pair, peer, _, one in _against_peers(results, pairs):
        found.setdefault(peer, []).append((pair, one))
    lines = []
    for peer, every in found.items():
        worse = sorted({data for _, one in every for data in one.worse})
        behind = [
            f"{MODELS.get(model, model).lower()}, {spoken(objective)} {signed(one.these.mean)}"
            for (model, objective), one in every
            if one.these.mean <= 0
        ]
        parts = (("on no set worse beyond chance", worse), ("better on average", behind))
        said = "; ".join(
            f"{name}: **missed** ({'; '.join(wrong)})" if wrong else f"{name}: met" for name, wrong in parts
        )
        lines.append(f"- Against {label[peer]}, over each model and objective that ran ({len(every)}): {said}.")
    return lines


def _peer_tables(results: Results, pairs: Iterable[Pair]) -> list[str]:
    label = _of_methods(results, "label")
    rows = []
    for (model, objective), peer, mine, one in _against_peers(results, pairs):
        each = ", ".join(f"{effect.data} {signed(effect.interval.mean)}{'*' if effect.sure else ''}" for effect in mine)
        rows.append((MODELS.get(model, model), spoken(objective), label[peer], ranged(one.these), each))
    if not rows:
        return []
    heads = ("model", "judged by", "against", "ours less theirs, these sets", "by set")
    return ["", "## Against other libraries' loss of the same name", "", *markdown_table(heads, rows)]


def _by_set(results: Results, model: str, objective: str, mine: Sequence[Effect]) -> list[str]:
    label = _of_methods(results, "label")
    positives = {
        run["data"]: run["test_positives"]
        for run in results["runs"]
        if (run["model"], run["objective"]) == (model, objective)
    }
    methods = [method for method in label if any(effect.method == method for effect in mine)]
    trees: dict[str, list[float]] = {}
    for run in results["runs"]:
        if (run["model"], run["objective"]) == (TREES, objective):
            trees.setdefault(run["data"], []).append(run["test"])
    rows = []
    for data in dict.fromkeys(effect.data for effect in mine):
        by_method = {effect.method: effect for effect in mine if effect.data == data}
        most = max(by_method.values(), key=lambda effect: len(effect.differences))
        cells = [
            f"{ranged(by_method[method].interval)}{'*' if by_method[method].sure else ''}"
            if method in by_method
            else ""
            for method in methods
        ]
        fewer = min(len(effect.differences) for effect in by_method.values())
        splits = f"{len(most.differences)}" + (f" ({fewer})" if fewer < len(most.differences) else "")
        rows.append((data, splits, str(positives[data]), f"{most.base:.3f}", *cells))
        if trees:
            rows[-1] = (*rows[-1], f"{np.mean(trees[data]):.3f}" if data in trees else "")
    heads = ("set", "splits", "test positives", "tuned CE", *(label[method] for method in methods))
    return markdown_table((*heads, "(boosted trees)") if trees else heads, rows)


def not_run(results: Results) -> list[str]:
    """Name what of the plan has not run, and what failed, a line each."""
    missing = [row for row in results["plan"] if row["done"] < row["planned"]]
    lines = []
    for pair in dict.fromkeys((row["block"], row["model"], row["objective"]) for row in missing):
        mine = [row for row in missing if (row["block"], row["model"], row["objective"]) == pair]
        _, model, objective = pair
        each = ", ".join(f"{row['data']} {row['done']} of {row['planned']} splits" for row in mine)
        name = f"{MODELS.get(model, model)}, {spoken(objective)}"
        whole = [row for row in results["plan"] if (row["block"], row["model"], row["objective"]) == pair]
        nothing = len(mine) == len(whole) and not any(row["done"] for row in whole)
        more = ", the further methods" if pair[0] == "methods" else ""
        lines.append(f"- {name}{more}: {'nothing' if nothing else each}.")
    failed = dict.fromkeys(
        f"- {failure['method']} failed on {failure['data']} ({MODELS.get(failure['model'], failure['model'])}, "
        f"{spoken(failure['objective'])}, split {failure['seed']}): {failure['error']}"
        for failure in results["failed"]
    )
    if not any(method["kind"] == "peer" for method in results["methods"]):
        lines.append("- The methods of other libraries: they were not installed.")
    return [*lines, *failed] or ["Everything of this plan has run."]


def _sets(results: Results) -> list[str]:
    rows = [
        (
            name,
            f"{one['rows']:,}",
            str(one["features"]),
            f"{one['positives']:,} ({100 * one['positives'] / one['rows']:.2g} %)"
            if one["positives"] is not None
            else f"{one['classes']} classes",
            one["split_by"],
            f"`{one['sha256']}`",
        )
        for name, one in results["sets"].items()
    ]
    lines = markdown_table(("set", "rows", "inputs", "positives", "split by", "hash"), rows)
    if seen := [name for name in results["sets"] if name in LOOKED_AT]:
        lines += [
            "",
            f"Of {', '.join(seen)}, other splits were looked at while the defaults of the stage were made; the splits "
            "here are fresh, the sets are not.",
        ]
    if {"fdh", "fdh_early"} <= set(results["sets"]):
        lines += ["", "`fdh` and `fdh_early` come from one simulator, so they count for less than two sets."]
    return lines


def _methods(results: Results) -> list[str]:
    rows = [(method["label"], method["kind"], method["about"]) for method in results["methods"]]
    floor = (
        f"In the model over sets, no set's standard error is taken below {LEAST_ERROR}: a method that kept its start "
        "on every split has none at all. Such sets weigh most there, which pulls *like these* towards 0."
    )
    return [*markdown_table(("method", "kind", "what it is"), rows), "", floor]


# ------------------------------------------------------------------------------------------------------------- wording


def _of_methods(results: Results, key: str) -> dict[str, str]:
    return {method["name"]: str(method[key]) for method in results["methods"] if method["name"] != BASELINE}


def _in_order(every: Iterable[Overall], label: Mapping[str, str]) -> list[Overall]:
    place = list(label)
    return sorted(every, key=lambda one: place.index(one.method))


def spoken(objective: str) -> str:
    """Say an objective of the grid in words."""
    return OBJECTIVES.get(objective, objective)


def _sets_of(many: int) -> str:
    return f"{many} sets" if many != 1 else "1 set"


def signed(value: float) -> str:
    """Write a difference with its sign and three decimals, and 0 as 0."""
    text = f"{value:+.3f}"
    return "0" if float(text) == 0 else text


def ranged(interval: Interval) -> str:
    """Write a mean difference and, where there is one, its interval in brackets."""
    if interval.low is None or interval.high is None:
        return signed(interval.mean)
    return f"{signed(interval.mean)} [{signed(interval.low)}, {signed(interval.high)}]"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return [
        f"| {' | '.join(heads)} |",
        f"| {' | '.join('---' for _ in heads)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
