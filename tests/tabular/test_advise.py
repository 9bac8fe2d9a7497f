"""Advice before training: its formulas against simulations, its refusals, and what it finds in a file."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

pytest.importorskip("typer")
from typer.testing import CliRunner

from rareloss import Objective
from rareloss.cli import app
from rareloss.table import DataError
from rareloss.tabular.advice import advise, logit_interval, noise_that_shrinks

KINDS = ["ap", "recall@top=0.5%", "recall@fpr=0.1%", "pauc@fpr=0.1-0.5%"]


def test_logit_interval_covers_the_average_precision_of_normal_scores() -> None:
    rng = np.random.default_rng(0)

    def drawn(positives: int) -> float:
        labels = np.arange(50 * positives) < positives
        return float(average_precision_score(labels, rng.standard_normal(len(labels)) + 2.0 * labels))

    truth = drawn(5_000)
    inside = [low <= truth <= high for low, high in (logit_interval(drawn(100), 100) for _ in range(300))]
    assert 0.90 <= np.mean(inside) <= 0.99  # 95 % asked; the page says what more draws gave


@pytest.mark.parametrize("text", KINDS)
def test_pool_is_the_least_that_the_loss_does_not_warn_of(text: str) -> None:
    goal, rate = Objective.parse(text), 0.01
    rows = advise(rows=1e6, rate=rate, objective=goal)["pool"].value["rows"]
    if goal.budget is None:
        assert rows * rate == pytest.approx(10)
        return
    loss = goal.loss(1)
    supported = []
    for size in (rows, rows - 10):
        found = loss.support(torch.tensor(size), torch.tensor(size * (1 - rate), dtype=torch.float64))
        supported.append(bool(found.rows >= found.needed * (1 - 1e-6)))
    assert supported == [True, False]


def test_more_positives_reach_the_width() -> None:
    for text in KINDS:
        advice = advise(rows=1e5, rate=0.001, objective=text, width=0.08)
        enough = advice["more_positives"].value["positives"]
        then = advise(rows=enough * 1000, rate=0.001, objective=text, width=0.08)
        found = then["interval"].value
        assert found["high"] - found["low"] <= 0.08 + 1e-3, text
        assert advice["more_positives"].value["more"] == enough - 100


def test_chance_of_an_empty_batch_and_alerts() -> None:
    advice = advise(rows=1e6, rate=0.001, objective="recall@top=0.05%", batch=100, per_period=40_000)
    assert advice["empty_batch"].value["chance"] == pytest.approx(0.999**100)
    assert advice["empty_batch"].value["positives"] == pytest.approx(0.1)
    assert advice["alerts"].value["per_period"] == pytest.approx(20)
    assert advice["cap"].value == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["ap", "recall@top=2%", "recall@fpr=2%", "pauc@fpr=0-4%"])
@pytest.mark.parametrize("shrink", [0.1, 0.5])
def test_noise_shrinks_differences_by_what_is_said(text: str, shrink: float) -> None:
    goal, rng = Objective.parse(text), np.random.default_rng(1)
    labels = np.arange(300_000) < 6_000
    normal = rng.standard_normal(len(labels))
    better, worse = (torch.from_numpy(normal + shift * labels) for shift in (2.5, 1.5))
    share, missed = noise_that_shrinks(goal, float(labels.mean()), shrink)

    def difference(given: np.ndarray) -> float:
        target = torch.from_numpy(given)
        return float(goal.metric(better, target).value - goal.metric(worse, target).value)

    true = difference(labels)
    noisy = difference(labels | (rng.random(len(labels)) < share))
    assert noisy / true == pytest.approx(1 - shrink, abs=0.05)
    if goal.budget is None:
        assert difference(labels & (rng.random(len(labels)) >= missed)) / true == pytest.approx(1 - shrink, abs=0.05)
    elif goal.quantile is not None:
        assert math.isnan(missed)
        assert difference(labels & (rng.random(len(labels)) >= 0.3)) / true == pytest.approx(1, abs=0.05)


def test_missed_positives_use_up_the_budget_as_said() -> None:
    rng, budget = np.random.default_rng(2), 0.005
    labels = np.arange(1_000_000) < 10_000
    scores = rng.standard_normal(len(labels)) + 2.5 * labels
    # Near half of the budget the recall is about what the cut at that half gives.
    cut = np.quantile(scores[~labels], 1 - budget / 2)
    missed = noise_that_shrinks(Objective.parse("recall@fpr=0.5%"), 0.01, 0.5, float((scores[labels] > cut).mean()))[1]
    given = labels & (rng.random(len(labels)) >= missed)
    measured = np.quantile(scores[~given], 1 - budget)
    assert (scores[~labels] > measured).mean() == pytest.approx(budget / 2, rel=0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": 1e6, "rate": 0}, "rate"),
        ({"rows": 1e6, "rate": 1}, "rate"),
        ({"rows": 1e6, "rate": math.nan}, "rate"),
        ({"rows": 9, "rate": 0.5}, "at least 10"),
        ({"rows": math.inf, "rate": 0.5}, "at least 10"),
        ({"rows": 1000, "rate": 1e-6}, "0 positives"),
        ({"rows": 1000}, "both rows and rate"),
        ({"rows": 1000, "rate": 0.1, "data": "flights"}, "not both"),
        ({"rows": 1000, "rate": 0.1, "batch": 0}, "batch"),
        ({"rows": 1000, "rate": 0.1, "per_period": -1}, "per_period"),
        ({"rows": 1000, "rate": 0.1, "width": 0}, "width"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        advise(**options)  # type: ignore[arg-type]


def make_frame(rows: int = 3000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    target = (rng.random(rows) < 0.05).astype(int)
    return pd.DataFrame(
        {
            "a": rng.standard_normal(rows) + target,
            "b": rng.standard_normal(rows),
            "customer_id": rng.integers(10**6, 10**6 + rows // 4, rows),
            "day": pd.Series(pd.date_range("2024-01-01", periods=rows, freq="h")).dt.strftime("%Y-%m-%d"),
            "after": np.where(target == 1, 5.0, 1.0) + 0.1 * rng.standard_normal(rows),
            "y": np.where(target == 1, "yes", "no"),
        }
    )


def test_findings_never_replace_the_data(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    pd.DataFrame({"x": range(100), "y": [0, 1] * 50}).to_csv(path, index=False)
    before = path.read_bytes()
    refused = CliRunner().invoke(app, ["advise", str(path), "--target", "y", "--out", str(path)])
    assert refused.exit_code == 2
    assert "holds the data that are read" in refused.stderr
    assert path.read_bytes() == before


def test_columns_of_lists_and_arrays_are_looked_at_as_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=300), "y": np.arange(300) % 5 == 0})
    frame["tags"] = [[float(i % 70)] for i in range(300)]
    frame["parts"] = [{"a": i} for i in range(300)]
    frame.to_parquet(tmp_path / "a.parquet")
    advice = advise(tmp_path / "a.parquet", target="y", fits=False)
    assert advice["split"].value["groups"] == ["tags"]


def test_file_is_searched_for_time_groups_copies_and_leaks() -> None:
    frame = make_frame()
    frame = pd.concat([frame, frame.iloc[:7]], ignore_index=True)
    frame.loc[100:104, "y"] = None
    advice = advise(frame, target="y", fits=False)
    assert advice.rows == 3002
    assert advice["split"].value == {"time": ["day"], "groups": ["customer_id"], "duplicates": 7}
    assert list(advice["leaks"].value) == ["after"]
    assert advice.command == (
        "rareloss compare DATA --target y --group customer_id --time day --without after --objective ap"
    )
    without = advise(frame, target="y", without=["after", "day"], fits=False)
    assert without["leaks"].value == {}
    assert without["split"].value["time"] == []
    assert without.command == (
        "rareloss compare DATA --target y --group customer_id --without after --without day --objective ap"
    )


def test_quick_fits_tell_what_they_saw() -> None:
    frame = make_frame().drop(columns="after")
    found = advise(frame, target="y")["ranking_loss"]
    assert 0.05 < found.value["logistic"]["validation"] < 0.6
    assert 0 < found.value["trees"]["explained"] < 1
    assert "Quick fits" in found.sentence


@pytest.mark.parametrize(
    ("frame", "said"),
    [(make_frame().drop(columns="y"), "no column 'y'"), (make_frame().assign(y=1), "one class alone")],
)
def test_bad_target_is_refused(frame: pd.DataFrame, said: str) -> None:
    with pytest.raises(DataError, match=said):
        advise(frame, target="y")


def test_command_prints_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "advice.json"
    arguments = ["advise", "--rows", "1e6", "--rate", "0.1%", "--objective", "recall@top=0.5%", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Next: rareloss compare" in result.output
    assert json.loads(out.read_text("utf-8"))["positives"] == 1000
    refused = CliRunner().invoke(app, ["advise", "--rows", "1e6", "--rate", "much"])
    assert refused.exit_code == 2
    assert "rate must be a share" in refused.stderr


def clicks(rows: int = 6_000) -> pd.DataFrame:
    """Apps whose numbers say nothing of their size, ages that do, and clicks that depend on both."""
    rng = np.random.default_rng(0)
    app, age = rng.integers(0, 60, rows), rng.integers(18, 80, rows)
    good = rng.permutation(60)[:6]
    chance = 1 / (1 + np.exp(4.5 - 4 * np.isin(app, good) - 0.03 * (age - 40)))
    return pd.DataFrame({"app": app, "age": age, "y": (rng.random(rows) < chance).astype(int)})


def test_codes_that_are_read_as_quantities_are_found_and_the_command_names_them() -> None:
    said: list[str] = []
    advice = advise(clicks(), target="y", say=said.append)
    assert list(advice["codes"].value) == ["app"]
    assert advice["codes"].value["app"] > advice["ranking_loss"].value["logistic"]["validation"] + 0.05
    assert "--category app" in advice.command
    assert "age" not in advice["codes"].sentence
    assert any("app" in step for step in said)
    named = advise(clicks(), target="y", category="app")
    assert "codes" not in {finding.name for finding in named.findings}
    assert named["ranking_loss"].value["logistic"]["validation"] == pytest.approx(
        advice["codes"].value["app"], abs=0.08
    )


def test_the_answer_is_said_first(tmp_path: Path) -> None:
    clicks(3_000).to_csv(tmp_path / "a.csv", index=False)
    told = CliRunner().invoke(app, ["advise", str(tmp_path / "a.csv"), "--target", "y"])
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert lines[0].startswith("ap: 3,000 rows")
    assert "The test fold" in lines[1]
    assert "Quick fits" in lines[1]
    assert lines[-1].startswith("Next: rareloss compare")
    assert lines.index("What was read:") > 3
