"""The report on scores: counts equal scikit-learn's, in Python, in the file and on the page as it is dragged."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, confusion_matrix, precision_score, recall_score
from typer.testing import CliRunner

from rareloss.cli import app
from rareloss.decisions import report
from rareloss.decisions.reporting import stream
from rareloss.decisions.thresholds import band, find_threshold


def drawn(rows: int = 20_000, rate: float = 0.02, ties: bool = False) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    y = generator.random(rows) < rate
    s = generator.normal(size=rows) + 2 * y
    return pd.DataFrame(
        {
            "y": y.astype(int),
            "s": s.round(1) if ties else s,
            "g": generator.choice(["north", "south"], rows),
            "w": generator.integers(0, 4, rows),
        }
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weight", [None, "w"])
def test_counts_equal_those_of_scikit_learn_on_all_rows(ties: bool, weight: str | None) -> None:
    data = drawn(ties=ties)
    curve = report(data, label="y", score="s", weight=weight)["curve"]
    weights = None if weight is None else data["w"]
    for at in np.linspace(0, len(curve["tp"]) - 1, 15).astype(int):
        alerts = data["s"] > curve["threshold"][at]
        (_, fp), (_, tp) = confusion_matrix(data["y"], alerts, sample_weight=weights)
        assert (curve["tp"][at], curve["fp"][at]) == (tp, fp)


@pytest.mark.parametrize("weight", [None, "w"])
def test_average_precision_is_exact_where_all_scores_of_positives_are_kept(weight: str | None) -> None:
    data = drawn(ties=True)
    made = report(data, label="y", score="s", weight=weight)["average_precision"]
    weights = None if weight is None else data["w"]
    expected = average_precision_score(data["y"], data["s"], sample_weight=weights)
    assert made["value"] == pytest.approx(expected, rel=1e-12)
    assert made["bound_low"] == pytest.approx(made["bound_high"], rel=1e-12)


def test_many_groups_and_small_batches_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn(5_000, rate=0.1, ties=True)
    data["g"] = [f"'{number % 12}" if number % 13 else None for number in range(len(data))]
    whole = report(data, label="y", score="s", weight="w", group="g")
    monkeypatch.setattr(stream, "BATCH", 700)
    assert report(data, label="y", score="s", weight="w", group="g") == whole
    assert len(whole["groups"]) == 13
    for at in (3, len(whole["curve"]["tp"]) // 2):
        alerts = data["s"] > whole["curve"]["threshold"][at]
        for name, group in whole["groups"].items():
            mine = data["g"].isna() if name == "missing" else data["g"] == name
            matrix = confusion_matrix(data["y"][mine], alerts[mine], sample_weight=data["w"][mine])
            assert (group["fp"][at], group["tp"][at]) == tuple(matrix[:, 1])


def test_many_groups_leave_a_page_that_opens(tmp_path: Path) -> None:
    data = drawn(60_000, rate=0.1)
    data["g"] = np.arange(len(data)) * 7919 % 150
    plain = report(data, label="y", score="s", objective="recall@top=4%")
    made = report(data, tmp_path, label="y", score="s", group="g", objective="recall@top=4%")
    assert (tmp_path / "report.html").stat().st_size < 15_000_000
    assert len(made["curve"]["tp"]) < 700 < len(plain["curve"]["tp"])
    for name in ("average_precision", "table", "start_is"):
        assert made[name] == plain[name]
    assert made["curve"]["threshold"][made["start"]] == plain["curve"]["threshold"][plain["start"]]
    for at in (0, made["start"], len(made["curve"]["tp"]) // 2):
        alerts = data["s"] > made["curve"]["threshold"][at]
        assert made["curve"]["tp"][at] == data["y"][alerts].sum()
        assert made["groups"]["17"]["tp"][at] == data["y"][alerts & (data["g"] == 17)].sum()


def test_thresholds_do_not_depend_on_the_order_of_rows() -> None:
    data = drawn(300_000, rate=0.3)  # more distinct scores than are kept
    made = report(data, label="y", score="s")
    upside_down = report(data.sort_values("s"), label="y", score="s")
    assert upside_down == made
    shares = np.array(made["curve"]["rows"]) / len(data)
    assert np.diff(np.log(shares[shares > 0.01])).max() < 0.02  # ranks in equal ratios, where they are not all kept


@pytest.mark.parametrize("weight", [None, "w"])
@pytest.mark.parametrize(
    ("objective", "share", "counted"),
    [("recall@top=13%", 0.13, "all"), ("recall@fpr=9%", 0.09, "negatives"), ("ap", None, "all")],
)
def test_page_opens_at_the_very_budget(
    objective: str, share: float | None, counted: str, weight: str | None, tmp_path: Path
) -> None:
    data = drawn(60_000, rate=0.3)  # so that the cut is far below the scores that are all kept
    data["s"] = data["s"].round(4)
    data.to_parquet(tmp_path / "scores.parquet")
    made = report(tmp_path / "scores.parquet", label="y", score="s", weight=weight, group="g", objective=objective)
    y, s, w = data["y"] == 1, data["s"], data["w"] if weight else np.ones(len(data))
    spent = w * ~y if counted == "negatives" else w
    budget = (w * y).sum() if share is None else share * spent.sum()
    above = pd.Series(spent)[w > 0].groupby(s).sum()[::-1].cumsum()  # a row of weight 0 is absent
    cut = above.index[above <= budget].min()
    curve, at = made["curve"], made["start"]
    assert curve["threshold"][at] == np.nextafter(cut, -np.inf)  # strictly above it
    (_, fp), (_, tp) = confusion_matrix(y, s >= cut, sample_weight=w)
    assert (curve["fp"][at], curve["tp"][at], curve["rows"][at]) == (fp, tp, ((s >= cut) & (w > 0)).sum())
    for name, group in made["groups"].items():
        mine = data["g"] == name
        (_, fp), (_, tp) = confusion_matrix(y[mine], s[mine] >= cut, sample_weight=w[mine])
        assert (group["fp"][at], group["tp"][at]) == (fp, tp)
    assert np.diff(curve["threshold"]).max() < 0
    for name in ("tp", "fp", "rows"):
        assert np.diff(curve[name]).min() >= 0


def test_bounds_of_average_precision_hold_where_thresholds_are_sparse() -> None:
    data = drawn(60_000, rate=0.3)
    made = report(data, label="y", score="s")["average_precision"]
    expected = average_precision_score(data["y"], data["s"])
    assert made["bound_low"] <= expected <= made["bound_high"]
    assert made["bound_high"] - made["bound_low"] < 0.002


def test_intervals_are_those_of_scipy() -> None:
    data = drawn()
    made = report(data, label="y", score="s", fn_cost=100, fp_cost=5)
    for row in made["table"]:
        for name, hits, trials in (
            ("precision", row["tp"], row["alerts"]),
            ("recall", row["tp"], made["positives"]),
            ("fpr", row["fp"], made["negatives"]),
        ):
            exact = stats.binomtest(int(hits), int(trials)).proportion_ci(0.95, method="exact")
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((exact.low, exact.high))
        assert row["cost_low"] <= row["cost"] <= row["cost_high"]


@pytest.mark.parametrize("weight", [None, "w"])
def test_intervals_that_hold_wherever_are_those_of_the_band(weight: str | None) -> None:
    data = drawn(3_000, ties=True)
    data.loc[7, "w"] = 9  # the heaviest
    curve = report(data, label="y", score="s", weight=weight)["curve"]
    found = band(data["s"].to_numpy(), data["y"].to_numpy(), None if weight is None else data["w"].to_numpy())
    # At least a score is above the next lower one, and all rows are above none.
    above = np.searchsorted(-found.thresholds, -np.nextafter(curve["threshold"][1:-1], np.inf), side="right")
    for name in ("recall", "precision", "fpr"):
        for end, row in (("low", 1), ("high", 2)):
            ours = np.array(curve[f"{name}_anywhere_{end}"])
            assert ours[1:-1] == pytest.approx(getattr(found, name)[row, above])
            assert (np.sign(row - 1.5) * (ours - np.array(curve[f"{name}_{end}"])) >= -1e-12).all()


def test_intervals_at_a_cut_are_those_of_a_threshold() -> None:
    data = drawn(3_000)
    made = report(data, label="y", score="s", weight="w")["curve"]
    at = find_threshold(data["s"].to_numpy(), data["y"].to_numpy(), "recall@fpr=5%", data["w"].to_numpy())
    place = int(np.flatnonzero(np.array(made["threshold"]) >= at.threshold.value)[-1])
    for name in ("recall", "precision", "fpr"):
        ours, theirs = [made[f"{name}{end}"][place] for end in ("", "_low", "_high")], getattr(at, name)
        assert ours == pytest.approx([theirs.value, theirs.low, theirs.high])


@pytest.mark.parametrize("at", [0.5, 0.123456789])
def test_page_opens_at_a_given_threshold(at: float) -> None:
    data = drawn(60_000, rate=0.3)  # so many that few scores are thresholds
    made = report(data, label="y", score="s", group="g", objective="recall@top=1%", threshold=at)
    curve, start = made["curve"], made["start"]
    assert (curve["threshold"][start], made["start_is"]) == (at, "the threshold that was given")
    (_, fp), (_, tp) = confusion_matrix(data["y"], data["s"] > at)
    assert (curve["fp"][start], curve["tp"][start]) == (fp, tp)
    most = data["s"].max()
    for beyond in (most, 1e9, np.inf):
        made = report(data, label="y", score="s", group="g", threshold=beyond)
        curve, start = made["curve"], made["start"]
        assert made["start_is"] == "the threshold that was given, which alerts nobody"
        assert (curve["threshold"][start], curve["alerts"][start]) == (most if beyond == np.inf else beyond, 0)
        assert np.count_nonzero(np.array(curve["alerts"]) == 0) == 1


def test_a_threshold_below_all_scores_alerts_everybody() -> None:
    data = drawn()
    for threshold in (-np.inf, data["s"].min() - 1):
        made = report(data, label="y", score="s", threshold=threshold)
        assert made["curve"]["rows"][made["start"]] == len(data)


def test_rows_at_the_threshold_itself_are_no_alerts() -> None:
    data = drawn(ties=True)
    at = float(data["s"].median())
    assert (data["s"] == at).sum() > 1
    made = report(data, label="y", score="s", threshold=at)
    assert made["curve"]["rows"][made["start"]] == (data["s"] > at).sum()


def test_costs_choose_within_a_capacity() -> None:
    data = drawn()
    free = report(data, label="y", score="s", fn_cost=1_000, fp_cost=1)
    bound = report(data, label="y", score="s", objective="recall@top=10%", fn_cost=1_000, fp_cost=1)
    alerts = [made["curve"]["rows"][made["start"]] for made in (free, bound)]
    assert alerts[0] > 0.1 * len(data) >= alerts[1]
    assert "within 10 % of the rows" in bound["start_is"]
    costs = np.array(bound["curve"]["cost"])[: bound["start"] + 1]
    assert costs.min() == costs[-1]


def test_costs_say_where_ties_leave_no_threshold_within_the_capacity() -> None:
    data = drawn()
    data["s"] = data["s"] > 0.5  # the higher of two scores is that of far more than 1 % of the rows
    data["s"] = data["s"].astype(float)
    for costs in ({}, {"fn_cost": 1_000, "fp_cost": 1}):
        made = report(data, label="y", score="s", objective="recall@top=1%", **costs)
        assert made["curve"]["rows"][made["start"]] > 0.01 * len(data)
        assert made["start_is"] == "the highest score, since no threshold keeps within the budget"


def test_page_opens_where_nobody_is_alerted_if_that_is_cheapest(tmp_path: Path) -> None:
    data = drawn(3_000)
    data.loc[data["s"].idxmax(), "y"] = 0
    for objective in ("ap", "recall@top=10%"):
        options: dict[str, Any] = {"objective": objective, "group": "g", "fn_cost": 7, "fp_cost": 1e6}
        made = report(data, tmp_path, label="y", score="s", **options)
        assert made["start"] == 0
        assert made["start_is"].endswith("which alerts nobody")
        found = {name: values[0] for name, values in made["curve"].items()}
        assert found["threshold"] == data["s"].max()
        assert (found["rows"], found["alerts"], found["tp"], found["fp"]) == (0, 0, 0, 0)
        assert found["cost"] == 7 * data["y"].sum()
        assert [found[name] for name in ("precision", "precision_low", "precision_high", "lift")] == [None, 0, 1, None]
        assert (found["recall"], found["recall_low"], found["fpr"], found["fpr_low"]) == (0, 0, 0, 0)
        assert json.loads((tmp_path / "report.json").read_text()) == made
    assert "nobody" not in report(data, label="y", score="s", fn_cost=1_000, fp_cost=1)["start_is"]


def test_infinite_thresholds_alert_nobody_or_everybody() -> None:
    data = drawn(3_000)
    everybody = report(data, label="y", score="s", threshold=-np.inf)
    assert everybody["curve"]["alerts"][everybody["start"]] == everybody["rows"]
    nobody = report(data, label="y", score="s", threshold=np.inf)
    assert nobody["curve"]["alerts"][nobody["start"]] == 0
    with pytest.raises(ValueError, match="got NaN"):
        report(data, label="y", score="s", threshold=np.nan)


@pytest.mark.parametrize("mark", ["", "NA", "NULL", "None", "n/a", "<NA>", "nan"])
def test_rows_without_a_label_are_left_out_however_that_is_marked(mark: str, tmp_path: Path) -> None:
    data = drawn(3_000)
    text = data["y"].astype(str).where(np.arange(3_000) % 3 > 0, mark)
    data.assign(y=text).to_csv(tmp_path / "scores.csv", index=False)
    made = report(tmp_path / "scores.csv", label="y", score="s")
    assert made["left_out"]["label"] == 1_000
    kept = data[np.arange(3_000) % 3 > 0]
    assert made["average_precision"]["value"] == pytest.approx(average_precision_score(kept["y"], kept["s"]))


def test_a_class_may_be_called_none(tmp_path: Path) -> None:
    data = drawn(3_000)
    data.assign(y=np.where(data["y"] == 1, "Fraud", "None")).to_csv(tmp_path / "scores.csv", index=False)
    made = report(tmp_path / "scores.csv", label="y", score="s", positive="Fraud")
    assert (made["left_out"]["label"], made["labels"]["negative"]) == (0, "None")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("no", "yes", "positive"),
    [(False, True, "True"), (False, True, "1"), (0.0, 1.0, "1"), (0, 1, "1.0"), ("no", "yes", "yes"), ("N", "Y", "Y")],
)
def test_the_positive_label_is_found_however_it_is_written(
    kind: str, no: Any, yes: Any, positive: str, tmp_path: Path
) -> None:
    data = drawn(3_000)
    path, labels = tmp_path / f"scores.{kind}", np.where(data["y"] == 1, yes, no)
    written = data.assign(y=labels)
    written.to_csv(path, index=False) if kind == "csv" else written.to_parquet(path)
    made = report(path, label="y", score="s", positive=positive)
    assert made["positives"] == data["y"].sum()


def test_the_named_file_is_read_whole_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = drawn(1_000), drawn(2_000)
    (tmp_path / "s=5").mkdir()
    for name in ("scores[1].csv", "a*b?.csv", "s=5/x.csv", "~.csv", "it's.csv"):
        own.to_csv(tmp_path / name, index=False)
    for name in ("scores1.csv", "aXbY.csv"):
        other.to_csv(tmp_path / name, index=False)
    monkeypatch.chdir(tmp_path)
    expected = report(own, label="y", score="s")["average_precision"]["value"]
    for name in ("scores[1].csv", "a*b?.csv", "s=5/x.csv", "~.csv", "it's.csv"):
        made = report(name, label="y", score="s")
        assert (made["rows"], made["average_precision"]["value"]) == (1_000, pytest.approx(expected, rel=1e-12))


def test_groups_that_look_alike_stay_apart(tmp_path: Path) -> None:
    data = drawn(4_000)
    names = np.array(["1e2", "100", "yes", "true", "missing", ""])
    data["g"] = names[np.arange(4_000) % 6]
    data.to_csv(tmp_path / "scores.csv", index=False)
    made = report(tmp_path / "scores.csv", label="y", score="s", group="g")
    assert sorted(made["groups"]) == sorted([*names[:5], "missing (no value)"])


def test_a_probability_may_miss_one_by_rounding() -> None:
    data = drawn(3_000)
    data["p"] = 1 / (1 + np.exp(-data["s"]))
    data.loc[:3, "p"] = [1 + 2e-16, -2e-16, 1.0, 0.0]
    assert report(data, label="y", score="p", probability="probability")["calibration"]
    data.loc[0, "p"] = 1.01
    with pytest.raises(ValueError, match="no probabilities"):
        report(data, label="y", score="p", probability="probability")


def test_groups_and_calibration_add_up() -> None:
    data = drawn()
    data["p"] = 1 / (1 + np.exp(-data["s"]))
    made = report(data, label="y", score="p", group="g", probability="probability", objective="recall@top=0.5%")
    at = made["start"]
    assert made["curve"]["alerts"][at] == 100
    alerts = data["p"] > made["curve"]["threshold"][at]
    for name, group in made["groups"].items():
        mine = data["g"] == name
        assert group["recall"][at] == pytest.approx(recall_score(data["y"][mine], alerts[mine]))
    assert sum(row["weight"] for row in made["calibration"]) == len(data)
    assert sum(row["weight"] * row["observed"] for row in made["calibration"]) == pytest.approx(data["y"].sum())


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_give_what_frames_give(ending: str, tmp_path: Path) -> None:
    data, path = drawn(3_000), tmp_path / f"it's.{ending}"
    data.to_csv(path, index=False) if ending == "csv" else data.to_parquet(path)
    assert report(path, label="y", score="s", group="g") == report(data, label="y", score="s", group="g")


def test_strings_name_the_positive_and_missing_labels_are_counted() -> None:
    data = drawn(3_000).assign(y=lambda frame: frame["y"].map({0: "good", 1: "bad"}))
    data.loc[:9, "y"] = None
    with pytest.raises(ValueError, match="say which is positive"):
        report(data, label="y", score="s")
    made = report(data, label="y", score="s", positive="bad")
    assert made["left_out"]["label"] == 10
    assert made["positives"] == (data["y"] == "bad").sum()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": 0}, "both classes"),
        ({"y": 1}, "both classes"),
        ({"y": 2}, "labels other than 0 and 1"),
        ({"s": np.nan}, "100 scores are missing"),
        ({"s": np.inf}, "100 scores are infinite"),
        ({"s": "high"}, "numbers were expected"),
        ({"w": -1.0}, "100 weights"),
        ({"w": np.nan}, "100 weights"),
    ],
)
def test_bad_values_are_refused_in_words(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    data = drawn(100, rate=0.5).assign(**change)
    with pytest.raises(ValueError, match=words):
        report(data, tmp_path / "out", label="y", score="s", weight="w")
    assert not (tmp_path / "out").exists()


def test_rows_without_a_score_are_left_out_on_request() -> None:
    data = drawn(1_000)
    data.loc[:4, "s"] = np.nan
    made = report(data, label="y", score="s", drop_missing_scores=True)
    assert (made["rows"], made["left_out"]["score"]) == (995, 5)


def test_files_that_cannot_be_used_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("y,s\n")
    (tmp_path / "broken.parquet").write_text("no parquet")
    drawn(100).to_csv(tmp_path / "good.csv")
    for name, words in (
        ("none.csv", "no file"),
        ("empty.csv", "is empty"),
        ("header.csv", "no rows|numbers were expected"),
        ("broken.parquet", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=words):
            report(tmp_path / name, label="y", score="s")
    with pytest.raises(ValueError, match="no column 'score'"):
        report(tmp_path / "good.csv", label="y", score="score")


def test_command_writes_both_files_and_refuses_with_code_2(tmp_path: Path) -> None:
    drawn(2_000).to_csv(tmp_path / "scores.csv", index=False)
    arguments = ["report", str(tmp_path / "scores.csv"), "--label", "y", "--score", "s", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows"] == 2_000
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", (tmp_path / "out" / "report.html").read_text())
    assert CliRunner().invoke(app, [*arguments, "--fn-cost", "3"]).exit_code == 2


def test_an_interrupted_run_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report(drawn(500), tmp_path / "out", label="y", score="s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_dragging_on_the_page_gives_the_numbers_of_scikit_learn(tmp_path: Path) -> None:
    data = drawn(5_000)
    made = report(data, tmp_path, label="y", score="s", group="g", fn_cost=100, fp_cost=5)
    steps = """<script>
    const seen = [];
    const read = () => seen.push([Number(document.body.dataset.at),
      ...["caught", "false", "missed", "precision", "recall", "cost", "recall-anywhere"].map(name =>
        document.getElementById(name).textContent)]);
    const input = (name, value) => { const it = document.getElementById(name); it.value = value;
      it.dispatchEvent(new Event("input", {bubbles: true})); read(); };
    read(); input("slider", 50); input("slider", 900); input("fn", 7);
    const box = document.getElementById("gain").getBoundingClientRect();
    for (const share of [0.3, 0.7]) {
      document.getElementById("gain").dispatchEvent(new PointerEvent(share < 0.5 ? "pointerdown" : "pointermove",
        {clientX: box.left + share * box.width, clientY: box.top + 0.5 * box.height, buttons: 1}));
      read();
    }
    input("fn", 0);
    document.getElementById("cheapest").click();
    read();
    document.title = JSON.stringify(seen);
    </script></body>"""
    page = tmp_path / "driven.html"
    page.write_text(
        (tmp_path / "report.html").read_text().replace("</body>", steps).replace("setPointerCapture?.", "none?.")
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r"<title>(\[.*?)</title>", done.stdout)
    assert found, done.stdout[:300]
    *seen, _, nobody = json.loads(found[1])
    assert nobody[:-1] == [0, "0", "0", f"{made['positives']:.0f}", "–", "0 %", "0"]
    assert [seen[0][0], seen[1][0], seen[2][0]] == [made["start"], 50, 900]
    assert len({row[0] for row in seen}) == 5  # the pointer moved it too, twice
    for number, (at, caught, false, missed, precision, recall, cost, anywhere) in enumerate(seen):
        alerts = data["s"] > made["curve"]["threshold"][at]
        (_, fp), (fn, tp) = confusion_matrix(data["y"], alerts)
        price = (100 if number < 3 else 7) * fn + 5 * fp
        assert [int(text.replace(",", "")) for text in (caught, false, missed, cost)] == [tp, fp, fn, price]
        for text, value in ((precision, precision_score(data["y"], alerts)), (recall, recall_score(data["y"], alerts))):
            assert float(text.removesuffix(" %")) == pytest.approx(100 * value, rel=6e-3)
        reach = np.sqrt(np.log(40) / (2 * data["y"].sum()))
        ends = np.clip([tp / (tp + fn) - reach, tp / (tp + fn) + reach], 0, 1)
        said = [float(text) for text in re.findall(r"[0-9.]+", anywhere)]
        assert said == pytest.approx(100 * ends, rel=6e-3)


def test_page_opens_where_the_objective_says() -> None:
    data = drawn(ties=True)
    y, s = data["y"].to_numpy(), data["s"].to_numpy()

    def opened(objective: str) -> tuple[float, str]:
        made = report(data, label="y", score="s", objective=objective)
        return np.nextafter(made["curve"]["threshold"][made["start"]], np.inf), made["start_is"]

    kept = np.unique(s)
    recalls = np.array([recall_score(y, s >= at) for at in kept])
    precisions = np.array([precision_score(y, s >= at) for at in kept])
    assert opened("precision@recall=80%")[0] == kept[recalls >= 0.8].max()
    assert opened("recall@precision=30%")[0] == kept[precisions >= 0.3].min()
    costs = np.array([50 * (y[s < at] == 1).sum() + (y[s >= at] == 0).sum() for at in kept])
    assert opened("cost@fn=50,fp=1") == (kept[np.argmin(costs)], "the least cost on these rows")
    assert opened("recall@top=200/20000") == opened("recall@top=1%")
    backwards = data.assign(s=-s)
    assert "highest precision" in report(backwards, label="y", score="s", objective="recall@precision=90%")["start_is"]


@pytest.mark.parametrize("size", [1e155, 1e-170, 1e-320])
def test_weights_whose_squares_float64_cannot_hold_are_refused(size: float) -> None:
    y = np.arange(200) % 10 == 0
    data = pd.DataFrame({"y": y.astype(int), "s": np.sin(np.arange(200)) + y, "w": size})
    with pytest.raises(ValueError, match="divide all weights by their mean"):
        report(data, label="y", score="s", weight="w")
    plain = report(data, label="y", score="s")["average_precision"]["value"]
    scaled = report(data.assign(w=1e90), label="y", score="s", weight="w")["average_precision"]["value"]
    assert scaled == pytest.approx(plain)
