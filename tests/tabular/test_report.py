"""The report: one file, no network, everything shown, nothing of the user's text taken for markup."""

import base64
import copy
import gzip
import html
import json
import math
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("plotly")
from rareloss.tabular.comparison.report import html_summary, write_report

HOSTILE = "<script>alert(1)</script> & \"co\" 'x' {{ 7 * 7 }} </script>"
METHODS = [
    ("tuned_ce", "Tuned cross-entropy", "baseline"),
    ("continued_ce", "Cross-entropy continued", "control"),
    ("weighted_ce", "Class-weighted cross-entropy", "reweight"),
    ("focal", "Focal", "reweight"),
    ("smooth_ap_stage", "Smooth-AP, stage", "ranking"),
    ("recall_stage", "Recall@quantile, stage", "ranking"),
    ("smooth_ap_warmup", "Smooth-AP, warm-up", "ranking"),
    ("recall_warmup", "Recall@quantile, warm-up", "ranking"),
    ("trees", "Boosted trees", "reference"),
]


def curves(scores: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """ROC, precision-recall, gain, histogram and calibration as a study stores them."""
    truth = positive[np.argsort(-scores, kind="stable")]
    keep = np.unique(np.geomspace(1, truth.size, 150).astype(int)) - 1
    found, missed = np.cumsum(truth)[keep], np.cumsum(~truth)[keep]
    recall, precision = found / truth.sum(), found / (found + missed)
    edges = np.linspace(scores.min(), scores.max(), 41)
    probability = 1 / (1 + np.exp(-scores))
    bins = np.array_split(np.argsort(probability), 12)
    return {
        "roc": {"fpr": (missed / (~truth).sum()).tolist(), "tpr": recall.tolist()},
        "pr": {"recall": recall.tolist(), "precision": precision.tolist()},
        "gain": {"share": ((keep + 1) / truth.size).tolist(), "recall": recall.tolist()},
        "scores": {
            "edges": edges.tolist(),
            "negative": np.histogram(scores[~positive], edges)[0].tolist(),
            "positive": np.histogram(scores[positive], edges)[0].tolist(),
        },
        "calibration": {
            "predicted": [float(probability[part].mean()) for part in bins],
            "observed": [float(positive[part].mean()) for part in bins],
            "count": [len(part) for part in bins],
        },
    }


def make_results(classes: tuple[str, ...] = ("on time", "cancelled"), seeds: int = 3) -> dict[str, Any]:
    """Results of a made-up study, with every field of results.json."""
    rng = np.random.default_rng(0)
    rows, rate = 6000, 0.0245
    runs, differences = [], []
    for model, skill in (("linear", 1.2), ("mlp", 1.9)):
        test: dict[str, list[float]] = {}
        for seed in range(seeds):
            positive = rng.random(rows) < rate
            noise = rng.standard_normal(rows)
            for index, (method, _, _) in enumerate(METHODS):
                scores = noise + (skill + 0.06 * index) * positive - 4 + 0.2 * rng.standard_normal(rows)
                drawn = curves(scores, positive)
                value = float(np.interp(0.005, drawn["gain"]["share"], drawn["gain"]["recall"]))
                test.setdefault(method, []).append(value)
                runs.append(
                    {
                        "seed": seed, "model": model, "method": method, "validation": value + 0.004, "test": value,
                        "metrics": {"ap": value, "recall@top=0.5%": value, "recall@fpr=0.5%": 0.1, "roc_auc": 0.8},
                        "per_class": [{"class": name, "test": value} for name in classes] if len(classes) > 2 else [],
                        "chosen": {"learning_rate": 0.01}, "kept": "start" if seed == 0 else "step 120", "seconds": 2.5,
                        "history": [
                            {"step": 20 * k, "loss": 1 / (k + 1), "validation": value * (1 - math.exp(-k / 2 - 0.4))}
                            for k in range(11)
                        ],
                        "curves": drawn,
                    }
                    | ({"curves_class": classes[-1]} if len(classes) > 2 else {})
                )  # fmt: skip
        for method, _, _ in METHODS[1:]:
            per_seed = np.array(test[method]) - np.array(test["tuned_ce"])
            mean, half = float(per_seed.mean()), float(2.5 * per_seed.std() + 0.004)
            differences.append(
                {
                    "model": model, "method": method, "mean": mean, "low": mean - half, "high": mean + half,
                    "level": 0.95, "interval": "t over paired seeds, Bonferroni over 8 methods",
                    "per_seed": per_seed.tolist(), "supported": mean - half > 0,
                }
            )  # fmt: skip
    counts = [rows - 147, 147] if len(classes) == 2 else [1000 - 90 * k for k in range(len(classes))]
    return {
        "schema": 1,
        "versions": {"rareloss": "0.1.0", "torch": "2.13.0", "scikit-learn": "1.6.1", "python": "3.11.9"},
        "machine": "2 cores, x86_64",
        "command": "rareloss compare --objective recall@top=0.5% --seeds 3 --out flights",
        "data": {
            "name": "flights", "sha256": "9f" * 32, "rows": sum(counts), "features": 27, "classes": list(classes),
            "rate": rate if len(classes) == 2 else None, "class_counts": counts, "split_by": "group (day)",
            "notes": ["120,000 of 336,776 flights: a fixed sample of whole days", "2 constant columns dropped"],
            "folds": {"train": 3600, "validation": 1200, "test": 1200, "test_positives": 29},
        },
        "objective": {"text": "recall@top=0.5%", "name": "recall in the top 0.5%", "cap": 0.204},
        "settings": {"seeds": list(range(seeds)), "trials": 8, "models": ["linear", "mlp"], "workers": 1,
                     "batch_size": 16384, "progress": False, "group": None},
        "models": [
            {"name": "linear", "about": "a linear scorecard on quantile-normal inputs"},
            {"name": "mlp", "about": "a network with hidden layers of 128 and 64"},
        ],
        "methods": [
            {"name": name, "label": label, "about": f"about {label}", "kind": kind} for name, label, kind in METHODS
        ],
        "runs": runs,
        "differences": differences,
        "verdicts": [
            {"model": "linear", "sentence": "Smooth-AP, stage, gains .021.", "winner": "smooth_ap_stage"},
            {"model": "mlp", "sentence": "None: keep cross-entropy; trees beat every method here.", "winner": None},
        ],
        "overall": "Boosted trees beat every method here; for a linear scorecard, a Smooth-AP stage is worth it.",
        "unfinished": [],
        "failed": [],
    }  # fmt: skip


class Page(HTMLParser):
    """What a browser would find in a page: tags, addresses that load something, text, open elements."""

    VOID = frozenset({"meta", "br", "line", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data


def parsed(results: dict[str, Any], folder: Path) -> Page:
    path = folder / "report.html"
    write_report(results, path)
    page = Page(path.read_text("utf-8"))
    assert page.open == []
    return page


def figures(page: Page) -> dict[str, Any]:
    """The figures of the page, read as its script reads them."""
    index = [attributes.get("id") for tag, attributes in page.tags if tag == "script"].index("figures")
    found: dict[str, Any] = json.loads(page.scripts[index])
    return found


def test_report_shows_verdicts_arms_and_facts(tmp_path: Path) -> None:
    results = make_results()
    page = parsed(results, tmp_path)
    for text in [results["overall"], *(row["sentence"] for row in results["verdicts"]), *results["data"]["notes"]]:
        assert text in page.text
    for method in results["methods"]:
        assert page.text.count(method["label"]) >= 1 + len(results["models"])
    for text in ("2.45 %", "0.204", "group (day)", results["data"]["sha256"], results["command"], "2.13.0"):
        assert text in page.text


def test_report_holds_every_figure_it_names(tmp_path: Path) -> None:
    page = parsed(make_results(), tmp_path)
    named = {attributes["data-figure"] for _, attributes in page.tags if "data-figure" in attributes}
    drawn = figures(page)
    assert named == set(drawn)
    for chart in ("differences", "pr", "roc", "gain", "calibration", "training"):
        assert f"{chart}/linear" in drawn
    assert drawn["roc/mlp"]["layout"]["xaxis"]["type"] == "log"
    assert drawn["scores/mlp/trees"]["layout"]["yaxis"]["type"] == "log"


def test_report_loads_nothing_from_outside(tmp_path: Path) -> None:
    page = parsed(make_results(), tmp_path)
    loads = ("src", "href", "data", "action", "poster", "srcset")
    assert [attributes for _, attributes in page.tags if any(name in attributes for name in loads)] == []
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    (packed,) = (script for script in page.scripts if script.startswith("H4sI"))
    assert b"plotly.js (basic - minified) v" in gzip.decompress(b64decode(packed))


def test_page_is_small_beside_its_data(tmp_path: Path) -> None:
    page = parsed(make_results(), tmp_path)
    (figures,) = (script for script in page.scripts if script.startswith("{"))
    assert len((tmp_path / "report.html").read_bytes()) - len(figures) < 1_000_000


def test_text_of_the_user_is_never_markup(tmp_path: Path) -> None:
    hostile = {place: HOSTILE + place for place in ("class", "method", "model", "verdict", "overall", "note", "error")}
    hostile |= {place: HOSTILE + place for place in ("name", "command")}
    results = make_results(classes=("on time", hostile["class"]))
    results["methods"][4]["label"] = hostile["method"]
    results = json.loads(json.dumps(results).replace('"mlp"', json.dumps(hostile["model"])))
    results["overall"], results["verdicts"][0]["sentence"] = hostile["overall"], hostile["verdict"]
    results["data"]["notes"], results["command"] = [hostile["note"]], hostile["command"]
    results["data"]["name"] = hostile["name"]
    error = {"seed": 0, "model": hostile["model"], "method": "focal", "error": hostile["error"]}
    page = parsed(results | {"failed": [error]}, tmp_path)
    for place, text in hostile.items():
        assert text in page.text, place
    assert len(page.scripts) == 3
    drawn = json.dumps(figures(page))
    for place in ("class", "method"):
        assert json.dumps(html.escape(hostile[place], quote=False))[1:-1] in drawn, place
    Page(html_summary(results))
    assert "<script" not in html_summary(results)


def test_missing_values_curves_and_runs_are_survived(tmp_path: Path) -> None:
    results = make_results()
    results["runs"] = [run for run in results["runs"] if run["model"] != "mlp"]
    results["unfinished"] = [{"seed": seed, "model": "mlp"} for seed in range(3)]
    results["differences"] = [row for row in results["differences"] if row["model"] != "mlp"]
    results["failed"] = [{"seed": 1, "model": "linear", "method": "focal", "error": "loss became NaN"}]
    results["runs"] = [run for run in results["runs"] if (run["seed"], run["method"]) != (1, "focal")]
    results["runs"][0] |= {"curves": None, "history": [], "test": None, "validation": float("nan"), "kept": None}
    results["runs"][1]["curves"] = {"roc": None, "pr": {"recall": [], "precision": []}}
    results["runs"][2]["curves"]["roc"]["tpr"][3] = None
    results["runs"][3]["metrics"] = {"ap": None}
    results["differences"][0] |= {"mean": None, "low": None, "high": float("nan"), "supported": False}
    results["objective"]["cap"] = None
    results["verdicts"].pop()
    page = parsed(results, tmp_path)
    assert "seed 0, 1, 2 unfinished" in page.text
    assert "loss became NaN" in page.text
    assert "nan" not in page.text.lower().replace("became nan", "")
    assert "None" not in page.text.replace("None: keep", "")
    assert "roc/linear" in figures(page)


def test_nothing_finished_still_gives_a_page(tmp_path: Path) -> None:
    results = make_results() | {"runs": [], "differences": [], "verdicts": [], "overall": "Nothing is finished yet."}
    page = parsed(results, tmp_path)
    assert "Nothing is finished yet." in page.text
    assert figures(page) == {}


def test_multiclass_shows_a_table_per_class_rarest_first(tmp_path: Path) -> None:
    classes = tuple(f"digit {k}" for k in range(5))
    page = parsed(make_results(classes), tmp_path)
    places = [page.text.index(name, page.text.index("rarest class first.")) for name in classes]
    assert places == sorted(places, reverse=True)


@pytest.mark.parametrize(
    ("objective", "marked"),
    [("ap", []), ("recall@top=0.5%", ["gain"]), ("recall@fpr=0.1%", ["roc"]), ("pauc@fpr=0-0.5%", ["roc"])],
)
def test_operating_point_is_marked_on_its_own_curve(objective: str, marked: list[str], tmp_path: Path) -> None:
    results = make_results()
    results["objective"]["text"] = objective
    drawn = figures(parsed(results, tmp_path))
    assert [chart for chart in ("roc", "gain") if drawn[f"{chart}/mlp"]["layout"].get("shapes")] == marked


@pytest.mark.parametrize(("objective", "drawn"), [("ap", 0), ("recall@fpr=0.1%", 1), ("recall@precision=50%", 0)])
def test_the_page_speaks_of_a_dotted_line_only_where_one_is_drawn(objective: str, drawn: int, tmp_path: Path) -> None:
    results = make_results()
    results["objective"]["text"] = objective
    page = parsed(results, tmp_path)
    assert ("The dotted line is the operating point" in page.text) == bool(drawn)
    assert sum(line.get("line", {}).get("dash") == "dot" for line in figures(page)["pr/mlp"]["data"]) == drawn


def test_a_capacity_below_the_rate_is_printed_with_its_cap(tmp_path: Path) -> None:
    results = make_results()
    assert "(cap 0.204)" in parsed(results, tmp_path).text  # 0.5 % reviewed of 2.45 % in the class
    results["objective"] |= {"text": "ap", "name": "average precision", "cap": None}
    text = parsed(results, tmp_path).text
    assert "(cap 0.204)" in text  # recall@top is now a further metric, and capped as before
    assert "No ranking can exceed" not in text


def test_warnings_of_the_runs_are_shown_once_with_their_number(tmp_path: Path) -> None:
    results = make_results()
    for run in results["runs"][:3]:
        run["warnings"] = ["the pool holds 4 rows above the threshold"]
    assert parsed(results, tmp_path).text.count("the pool holds 4 rows above the threshold (3 runs)") == 1


def test_an_arm_solved_without_steps_is_a_level_line(tmp_path: Path) -> None:
    results = make_results(seeds=1)
    for run in results["runs"]:
        if run["method"] == "tuned_ce":
            run |= {"history": [], "validation": 0.125}
    lines = figures(parsed(results, tmp_path))["training/linear"]["data"]
    line = next(line for line in lines if line["meta"] == "tuned_ce")
    values = np.frombuffer(base64.b64decode(line["y"]["bdata"]), dtype=line["y"]["dtype"])
    np.testing.assert_array_equal(values, np.float32(0.125))


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    results = make_results()
    before = copy.deepcopy(results)
    write_report(results, tmp_path / "a.html")
    write_report(json.loads(json.dumps(results)), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert results == before


def test_a_failed_write_leaves_the_old_report_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", "utf-8")
    results = make_results()
    results["overall"] = "\ud800"  # a lone surrogate cannot be written as UTF-8
    with pytest.raises(UnicodeEncodeError):
        write_report(results, path)
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_summary_holds_verdict_and_table_without_scripts() -> None:
    results = make_results()
    text = html_summary(results)
    page = Page(text)
    assert page.open == []
    assert {tag for tag, _ in page.tags} >= {"table", "caption", "th"}
    assert "script" not in {tag for tag, _ in page.tags}
    assert results["overall"] in page.text
    assert all(method["label"] in page.text for method in results["methods"])
    assert len(text) < 60_000
