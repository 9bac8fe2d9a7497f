"""A file that is not like that of the fit is scored, and said to be odd."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from rareloss.cli import app
from rareloss.decisions import check_drift
from rareloss.tabular.model import Model, fit, score_file


def run(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def remarks(model: Model, frame: pd.DataFrame, folder: Path, **options: Any) -> tuple[str, ...]:
    return score_file(model, frame, folder / "scores.parquet", **options).remarks


def test_the_rows_of_the_fit_are_not_odd(model: Model, frame: pd.DataFrame, tmp_path: Path) -> None:
    assert remarks(model, frame, tmp_path) == ()
    assert remarks(model, frame, tmp_path, rows_at_once=7) == ()
    assert remarks(model, frame.iloc[:20].assign(age=500.0), tmp_path) == ()  # too few to say anything


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.assign(age=12 * f["age"]), "'age' is outside of .* to .*, which the fit saw, in 100.0% of the"),
        (lambda f: f.assign(amount=np.nan), "'amount' is missing in 100.0% of the rows, where the fit lacked it never"),
        (lambda f: f.assign(age=np.nan), r"'age' is missing in 100.0% .*, where the fit lacked it in \d"),
        (lambda f: f.assign(age=f["age"].clip(upper=35.0)), "'age' is below .*, the median of the fit, in 100.0% of"),
        (
            lambda f: f.assign(country="es"),
            r"'country' has a rare or new value in 100.0% of the rows, and had in \d",
        ),
        (lambda f: f.assign(amount=f["amount"].max()), r"9\d.\d*% of the rows are alerts, where .* chance gives"),
    ],
)
def test_what_differs_is_said(model: Model, frame: pd.DataFrame, tmp_path: Path, change: Any, said: str) -> None:
    odd = change(frame)
    for rows in (65_536, 77):
        found = remarks(model, odd, tmp_path, rows_at_once=rows)
        assert any(re.search(said, remark) for remark in found), found


def test_strict_ends_with_1_after_writing(folder: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "same.parquet")
    frame.assign(age=12 * frame["age"]).to_parquet(tmp_path / "months.parquet")
    out = tmp_path / "scores.parquet"
    assert run("score", folder, tmp_path / "same.parquet", "--out", out, "--strict").exit_code == 0
    out.unlink()
    odd = run("score", folder, tmp_path / "months.parquet", "--out", out)
    assert odd.exit_code == 0
    assert "check: 'age' is outside of" in odd.output
    out.unlink()
    assert run("score", folder, tmp_path / "months.parquet", "--out", out, "--strict").exit_code == 1
    assert len(pd.read_parquet(out)) == len(frame)


def test_check_takes_a_model_for_the_scores_of_its_fit(
    folder: Path, model: Model, frame: pd.DataFrame, tmp_path: Path
) -> None:
    frame.to_parquet(tmp_path / "data.parquet")
    out = tmp_path / "scores.parquet"
    assert run("score", folder, tmp_path / "data.parquet", "--out", out).exit_code == 0
    checked = run("check", folder, out)
    assert checked.exit_code == 0, checked.output
    scores = pd.read_parquet(out)["score"].to_numpy()
    assert check_drift(model.profile.scores, scores, model.threshold).sentence in checked.output
    pd.read_parquet(out).assign(score=lambda f: f["score"] + 3).to_parquet(out)
    assert run("check", folder, out).exit_code == 1
    assert "since the threshold inf alerts nobody" in run("check", folder, out, "--threshold", "inf").output
    refused = run("check", out, out)
    assert refused.exit_code == 2
    assert "--threshold is missing" in refused.stderr


def test_weighted_rows_are_profiled_by_weight(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=4_000)
    everybody = pd.DataFrame({"x": x, "y": (rng.random(4_000) < 1 / (1 + np.exp(3 - 2 * x))).astype(int)})
    kept = everybody[(everybody["y"] == 1) | (np.arange(4_000) % 10 == 0)]
    kept = kept.assign(w=np.where(kept["y"] == 1, 1, 10))
    options: dict[str, Any] = {"target": "y", "objective": "recall@top=10%", "trials": 1}
    weighted = fit(kept, out=tmp_path / "weighted", weight="w", **options)
    plain = fit(kept.drop(columns="w"), out=tmp_path / "plain", **options)
    # The sample is what the fit saw, and all rows are what it stands for.
    assert remarks(weighted, everybody, tmp_path) == ()
    assert any("are alerts" in remark for remark in remarks(plain, everybody, tmp_path))


def test_the_printed_report_has_the_alerts_of_the_model(
    folder: Path, model: Model, frame: pd.DataFrame, tmp_path: Path
) -> None:
    pytest.importorskip("duckdb")
    frame.to_parquet(tmp_path / "data.parquet")
    out = tmp_path / "scores.parquet"
    told = run("score", folder, tmp_path / "data.parquet", "--out", out, "--keep", "outcome").output
    words = told.splitlines()[-1].removeprefix("Next: rareloss ").split()
    assert float(words[words.index("--threshold") + 1]) == model.threshold  # all its digits
    reported = run(*words, "--out", tmp_path / "report")
    assert reported.exit_code == 0, reported.output
    scored = pd.read_parquet(out).dropna(subset="outcome")
    assert f"{scored['decision'].sum()} alerts" in reported.output
