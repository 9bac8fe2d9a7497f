"""What a feature adds to a score: by row, and as a curve."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from rareloss.cli import app
from rareloss.table import DataError
from rareloss.tabular.model import Model, fit, score_file
from rareloss.tabular.model.effects import contributions

OPTIONS: dict[str, Any] = {"target": "y", "objective": "recall@top=10%", "trials": 1}


def make_frame(rows: int = 1_500) -> pd.DataFrame:
    """A number that matters much, one with gaps that matters little, a category, a number that says nothing."""
    rng = np.random.default_rng(0)
    x, z, noise = rng.normal(size=(3, rows))
    town = rng.choice(["north", "south", "west"], rows)
    score = 2 * x + 0.6 * z + np.where(town == "west", 1.5, 0) + rng.logistic(size=rows)
    frame = pd.DataFrame({"x": x, "z": z, "noise": noise, "town": town, "y": (score > 2.5).astype(int)})
    frame.loc[rng.random(rows) < 0.1, "z"] = np.nan
    return frame


@pytest.fixture(scope="module", params=["linear", "additive"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(make_frame(), out=tmp_path_factory.mktemp("models") / "model", model=request.param, **OPTIONS)


def test_contributions_sum_to_the_score(model: Model) -> None:
    frame = make_frame(700)
    inputs = model.inputs.transform(model.features(frame.drop(columns="y")))
    added = contributions(model.network, model.inputs, model.profile.centre, inputs)
    assert sorted(added) == ["noise", "town", "x", "z"]
    scores = model.score(frame)["score"]
    difference = scores - added.sum(axis=1)
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-4)
    assert added.mean().abs().max() < 0.2
    assert added["x"].std() > 2 * added["z"].std() > added["noise"].std()


def test_reasons_are_the_largest_contributions(model: Model, tmp_path: Path) -> None:
    frame = make_frame(700)
    inputs = model.inputs.transform(model.features(frame.drop(columns="y")))
    added = contributions(model.network, model.inputs, model.profile.centre, inputs)
    score_file(model, frame, tmp_path / "s.parquet", reasons=2, rows_at_once=99)
    found = pd.read_parquet(tmp_path / "s.parquet")
    assert list(found.columns) == ["score", "probability", "decision", "reason_1", "reason_2"]
    for row in (0, 5, 350, 699):
        first, second = added.iloc[row].abs().sort_values(ascending=False).index[:2]
        assert found["reason_1"][row] == f"{first} {added[first][row]:+.2f}"
        assert found["reason_2"][row] == f"{second} {added[second][row]:+.2f}"


def test_curves_stand_in_the_card_and_on_its_page(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    effects = json.loads((tmp_path / "model" / "card.json").read_text())["effects"]
    assert next(iter(effects)) == "x"
    values, added = zip(*effects["x"]["points"], strict=True)
    assert list(values) == sorted(values)
    assert added[1] < added[3] - 1 < added[-2] - 2  # more of it, more risk
    towns = dict(effects["town"]["points"])
    assert towns["west"] > towns["north"] + 0.7
    assert effects["z"]["points"][-1][0] is None
    row = make_frame().assign(x=values[-1]).iloc[:1].drop(columns="y")
    inputs = model.inputs.transform(model.features(row))
    assert contributions(model.network, model.inputs, model.profile.centre, inputs)["x"][0] == pytest.approx(added[-1])
    assert "| x | " in (tmp_path / "model" / "README.md").read_text()


def test_other_models_have_no_reasons(tmp_path: Path) -> None:
    frame = make_frame()
    made = fit(frame, out=tmp_path / "trees", model="trees", **OPTIONS)
    assert made.card["effects"] is None
    frame.to_csv(tmp_path / "a.csv", index=False)
    out = tmp_path / "s.parquet"
    words = ["score", str(tmp_path / "trees"), str(tmp_path / "a.csv"), "--out", str(out), "--reasons", "3"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 2
    assert "is no sum over features" in told.stderr
    assert not out.exists()


def test_more_reasons_than_features_are_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reasons must be 0 to 4"):
        score_file(model, make_frame(), tmp_path / "s.parquet", reasons=5)
