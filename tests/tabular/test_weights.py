"""Weights of rows: a sample of the negatives, weighted, stands for all of them in every command."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from typer.testing import CliRunner

from rareloss import Objective
from rareloss.cli import app
from rareloss.table import DataError, load
from rareloss.table.folds import split
from rareloss.tabular import advise, compare
from rareloss.tabular.models import find_model
from rareloss.tabular.training import Task, descend, new_model

ONE_IN = 5


def everybody(rows: int = 6_000) -> pd.DataFrame:
    """Return two numbers, a third that holds the second's square, and a target of 4 %."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, 2))
    y = draw.random(rows) < 1 / (1 + np.exp(4.2 - 1.2 * x[:, 0] - 0.5 * x[:, 1]))
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y.astype(int)})


def sampled(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the positives and one negative in five, weighted."""
    kept = (frame["y"] == 1) | (np.random.default_rng(1).random(len(frame)) < 1 / ONE_IN)
    return frame[kept].assign(w=lambda f: np.where(f["y"] == 1, 1.0, ONE_IN)).reset_index(drop=True)


class TestTable:
    def test_weights_are_read_and_no_feature(self) -> None:
        frame = sampled(everybody()).sample(frac=1, random_state=0)
        table = load(frame, target="y", weight="w")
        assert list(table.frame.columns) == ["a", "b"]
        assert table.weight is not None
        np.testing.assert_array_equal(table.weight, frame["w"])
        assert table.rate == pytest.approx(np.average(frame["y"], weights=frame["w"]))
        assert table.sha256 != load(frame, target="y", without=["w"]).sha256

    def test_rows_of_weight_0_are_absent(self) -> None:
        frame = everybody().assign(w=1.0)
        frame.loc[::7, "w"] = 0
        frame.loc[::70, "y"] = 1 - frame["y"]
        table, without = load(frame, target="y", weight="w"), load(frame[frame["w"] > 0], target="y", weight="w")
        assert table.sha256 == without.sha256
        assert table.kept is not None
        np.testing.assert_array_equal(table.kept, np.flatnonzero(frame["w"]))
        assert any("of weight 0" in note for note in table.notes)

    def test_the_rarer_class_is_rarer_by_weight(self) -> None:
        frame = sampled(everybody())
        frame = pd.concat([frame[frame["y"] == 1]] * 9 + [frame])  # by rows the ones are common
        frame["w"] = np.where(frame["y"] == 1, 0.1, ONE_IN)
        assert load(frame, target="y").classes[1] == "0"
        assert load(frame, target="y", weight="w").classes[1] == "1"

    @pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, "heavy"])
    def test_what_is_no_weight_is_refused(self, bad: Any) -> None:
        frame = everybody().assign(w=1.0)
        frame["w"] = frame["w"].astype(object)
        frame.loc[3, "w"] = bad
        with pytest.raises(DataError, match=r"weights? (in )?'w'"):
            load(frame, target="y", weight="w")

    def test_weights_that_are_all_0_are_refused(self) -> None:
        with pytest.raises(DataError, match="all weights in 'w' are 0"):
            load(everybody().assign(w=0), target="y", weight="w")


def test_a_comparison_judges_by_weights() -> None:
    options: dict[str, Any] = {
        "target": "y",
        "seeds": 1,
        "trials": 1,
        "models": ["linear"],
        "methods": ["recall_stage"],
    }
    frame = sampled(everybody(30_000))
    once = compare(frame, weight="w", objective="recall@top=10%", **options).results
    plain = compare(frame, without=["w"], objective="recall@top=10%", **options).results
    whole = compare(everybody(30_000), objective="recall@top=10%", **options).results
    value = {
        name: {run["method"]: run["test"] for run in found["runs"]}
        for name, found in {"weighted": once, "plain": plain, "whole": whole}.items()
    }
    assert once["data"]["rate"] == pytest.approx(whole["data"]["rate"], rel=0.1)
    # One in ten of the sampled rows holds fewer positives than one in ten of all.
    for method in value["whole"]:
        assert abs(value["weighted"][method] - value["whole"][method]) < 0.1
        assert value["plain"][method] < value["whole"][method] - 0.05
    # The forecast was learned on rows that count alike.
    assert once["forecasts"] == []
    assert plain["forecasts"] != []


def test_a_factor_on_all_weights_changes_nothing() -> None:
    options: dict[str, Any] = {"target": "y", "weight": "w", "seeds": 1, "trials": 1, "methods": ["smooth_ap_stage"]}
    light = sampled(everybody(2_000))
    found = [
        {(run["model"], run["method"]): run["test"] for run in compare(frame, **options).results["runs"]}
        for frame in (light, light.assign(w=1024 * light["w"]))
    ]
    assert found[0] == found[1]


def test_a_step_multiplies_the_weights_of_row_draw_and_class() -> None:
    table = load(sampled(everybody()), target="y", weight="w")
    task = Task(table, split(table, 0), Objective.parse("ap"), 0)
    rows = torch.arange(40)
    seen: list[Tensor] = []

    def noted(logits: Tensor, targets: Tensor, sample_weight: Tensor) -> Tensor:
        seen.append(sample_weight)
        return logits.sum()

    descend(
        task,
        new_model(task, find_model("linear"), "normal"),
        "normal",
        noted,
        [(rows, torch.full((40,), 3.0)), (rows, None)],
        class_weight=torch.tensor([1.0, 7.0]),
        steps=2,
        learning_rate=0.1,
        chosen={},
    )
    assert task.train_weight is not None
    expected = task.train_weight[rows] * torch.where(task.train_target[rows] == 1, 7.0, 1.0)
    assert len(set(expected.tolist())) == 2
    torch.testing.assert_close(seen, [3 * expected, expected])


def test_advice_is_of_the_weighted_rate() -> None:
    weighted, whole = advise(sampled(everybody()), target="y", weight="w", fits=False), advise(everybody(), target="y")
    assert weighted["empty_batch"].value["positives"] == pytest.approx(whole["empty_batch"].value["positives"], rel=0.1)
    assert "--weight w" in weighted.command


def test_a_model_of_a_weighted_sample_is_one_of_all_rows(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("duckdb")
    sampled(everybody(20_000)).to_parquet(tmp_path / "sample.parquet")
    everybody(20_000).to_parquet(tmp_path / "all.parquet")

    def run(*words: object) -> str:
        found = CliRunner().invoke(app, list(map(str, words)))
        assert found.exit_code == 0, found.output
        return found.output

    table = ["--target", "y", "--weight", "w", "--objective", "recall@top=10%"]
    held = tmp_path / "held.parquet"
    run("fit", tmp_path / "sample.parquet", *table, "--trials", 1, "--out", tmp_path / "m", "--held-out", held)
    run("score", tmp_path / "m", tmp_path / "all.parquet", "--out", tmp_path / "s.parquet", "--keep", "y")
    scored = pd.read_parquet(tmp_path / "s.parquet")
    assert scored["decision"].mean() == pytest.approx(0.1, abs=0.02)
    assert scored["probability"].mean() == pytest.approx(scored["y"].mean(), rel=0.15)
    told = run("score", tmp_path / "m", held, "--out", tmp_path / "h.parquet", "--keep", "y", "--keep", "w")
    assert "--weight w" in told
    held_out = pd.read_parquet(tmp_path / "h.parquet")
    value = average_precision_score(held_out["y"], held_out["score"], sample_weight=held_out["w"])
    whole = average_precision_score(scored["y"], scored["score"])
    assert value == pytest.approx(whole, abs=0.06)
