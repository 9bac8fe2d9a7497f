"""Boosted trees are a model like any other: saved without pickle, scored, reported, exported."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.ensemble import HistGradientBoostingClassifier
from typer.testing import CliRunner, Result

from rareloss.cli import app
from rareloss.table import DataError, load, split
from rareloss.tabular import compare, to_onnx
from rareloss.tabular.model import Model, fit, score_file
from rareloss.tabular.trees import Trees

OPTIONS: dict[str, Any] = {"target": "y", "objective": "recall@top=10%", "trials": 1, "seed": 1}


def make_frame(rows: int = 1_500) -> pd.DataFrame:
    """Two numbers that matter together, one with gaps, a category of many values, some rare, and a target of 10 %."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, rows))
    town = rng.choice([f"t{i}" for i in range(30)], rows, p=np.arange(30, 0, -1) / 465)
    score = 2.5 * x * z + np.where(np.isin(town, ["t1", "t4"]), 1.5, 0)
    frame = pd.DataFrame({"x": x, "z": z, "town": town, "y": (score > np.quantile(score, 0.9)).astype(int)})
    frame.loc[rng.random(rows) < 0.1, "z"] = np.nan
    frame.loc[rng.random(rows) < 0.05, "town"] = None
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "trees"
    fit(make_frame(), out=path, model="trees", **OPTIONS)
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def test_scores_are_those_of_the_comparison(folder: Path) -> None:
    frame = make_frame()
    options = {name: value for name, value in OPTIONS.items() if name != "seed"}
    made = compare(frame, seeds=[1], models=["linear"], methods=["tuned_ce"], **options)
    (run,) = (run for run in made.results["runs"] if run["method"] == "trees")
    model = Model.load(folder)
    test = split(load(frame, target="y"), 1).test
    scores = torch.from_numpy(model.score(frame)["score"].to_numpy()[test])
    value = model.objective.metric(scores, torch.from_numpy(frame["y"].to_numpy()[test])).value
    assert value.item() == pytest.approx(run["test"], abs=1e-12)
    assert model.card["chosen"]["model"] == model.card["chosen"]["method"] == "trees"
    assert {name: model.card["chosen"][name] for name in run["chosen"]} == run["chosen"]


@pytest.mark.parametrize("categories", [0, 1, 2])
def test_stored_trees_score_as_the_fitted_ones_to_the_last_bit(categories: int) -> None:
    rng = np.random.default_rng(categories)
    x = rng.normal(size=(2_000, 4)).round(2)
    x[:, 4 - categories :] = rng.integers(0, 9, (2_000, categories))
    x[rng.random(x.shape) < 0.1] = np.nan
    y = np.nansum(x, axis=1) + rng.normal(size=2_000) > 2
    model = HistGradientBoostingClassifier(
        max_iter=15, categorical_features=np.arange(4) >= 4 - categories, early_stopping=False
    ).fit(x, y)
    new = rng.normal(size=(500, 4)) * 3
    new[:, 4 - categories :] = rng.integers(0, 12, (500, categories))  # with new ones
    new[rng.random(new.shape) < 0.2] = np.nan
    trees = Trees.of(model, 15)
    assert (trees.count, trees.width) == (15, 4)
    again = Trees(trees.state_dict())
    np.testing.assert_array_equal(again(torch.from_numpy(new)).numpy(), model.decision_function(new))
    fewer = next(value for place, value in enumerate(model.staged_decision_function(new), 1) if place == 7)
    np.testing.assert_array_equal(Trees.of(model, 7)(torch.from_numpy(new)).numpy(), fewer)


def test_a_model_of_trees_is_scored_and_reported_as_any_other(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    frame, model = make_frame(), Model.load(folder)
    frame.to_csv(tmp_path / "today.csv", index=False)
    told = run("score", folder, tmp_path / "today.csv", "--out", tmp_path / "s.parquet", "--keep", "y")
    assert told.exit_code == 0, told.output
    scored = pd.read_parquet(tmp_path / "s.parquet")
    whole = model.score(frame)
    pd.testing.assert_frame_equal(scored[["score", "probability", "decision"]], whole, check_exact=True)
    assert whole["probability"].is_monotonic_increasing == whole["score"].is_monotonic_increasing
    assert 0.05 < whole["decision"].mean() < 0.2
    again = score_file(model, frame.astype({"x": "float32", "z": "float32"}), tmp_path / "f.parquet")
    assert again.alerts == whole["decision"].sum()
    words = shlex.split(told.output.splitlines()[-1].removeprefix("Next: rareloss "))
    reported = run(*words, "--out", tmp_path / "report")
    assert reported.exit_code == 0, reported.output
    assert f"{whole['decision'].sum()} alerts" in reported.output
    assert "`trees`" in (folder / "README.md").read_text()


def test_a_killed_fit_takes_over_the_trees_that_were_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**OPTIONS, "trials": 3}
    first = fit(make_frame(), out=tmp_path / "whole", model="trees", **options)
    grown = HistGradientBoostingClassifier.fit
    calls: list[int] = []

    def stops(self: Any, *rows: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return grown(self, *rows, **more)

    monkeypatch.setattr(HistGradientBoostingClassifier, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(make_frame(), out=tmp_path / "stopped", model="trees", **options)
    said: list[str] = []
    second = fit(make_frame(), out=tmp_path / "stopped", model="trees", say=said.append, **options)
    assert any(sentence.startswith("taken over") for sentence in said)
    pd.testing.assert_frame_equal(first.score(make_frame()), second.score(make_frame()), check_exact=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("left", lambda t: t.clamp(max=0)),
        ("left", lambda t: t + 10_000),
        ("right", lambda t: -t),
        ("feature", lambda t: t + 7),
        ("feature", lambda t: t - 1),
        ("bitset", lambda t: t + 10_000),
        ("bitset", lambda t: t.double()),
        ("categorical", lambda t: 1 - t),
        ("value", lambda t: t * float("nan")),
        ("threshold", lambda t: t * float("nan")),
        ("value", lambda t: t[:-1]),
        ("leaf", lambda t: t * 0),
        ("nodes_before", lambda t: t * 2),
        ("nodes_before", lambda t: t[:1]),
        ("bitsets_before", lambda t: t[:-1]),
        ("bitsets", lambda t: t - 1),
        ("known", lambda t: t[:, :4]),
        ("order", lambda t: t * 0),
        ("baseline", lambda t: t.repeat(2)),
        ("baseline", None),
    ],
)
def test_arrays_that_point_at_nothing_are_refused(
    folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor] | None
) -> None:
    arrays = Model.load(folder).network.state_dict()
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    with pytest.raises(DataError, match=r"^trees: "):
        Trees(arrays)


def test_a_folder_of_other_trees_is_refused(folder: Path, tmp_path: Path) -> None:
    import hashlib
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "weights.safetensors")
    tensors["network.left"] = tensors["network.left"] * 0
    save_file(tensors, copy / "weights.safetensors")
    with pytest.raises(DataError, match="is not the file that was written"):
        Model.load(copy)
    given = json.loads((copy / "model.json").read_text())
    given["weights_sha256"] = hashlib.sha256((copy / "weights.safetensors").read_bytes()).hexdigest()
    (copy / "model.json").write_text(json.dumps(given))
    with pytest.raises(DataError, match="a child that does not come after it"):
        Model.load(copy)


def test_trees_of_numbers_are_exported(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    frame = make_frame().drop(columns="town")
    model = fit(frame, out=tmp_path / "model", model="trees", **OPTIONS)
    to_onnx(model, tmp_path / "model.onnx")
    inputs = model.inputs.transform(model.features(frame.drop(columns="y"))).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (scores,) = session.run(None, {"inputs": inputs})
    np.testing.assert_allclose(scores[:, 0], model.score(frame)["score"], rtol=1e-5, atol=1e-5)


def test_trees_of_categories_are_not(folder: Path, tmp_path: Path) -> None:
    told = run("export", folder, tmp_path / "model.onnx")
    assert told.exit_code == 2
    assert "trees that ask for categories" in told.stderr
    assert not list(tmp_path.iterdir())


def test_other_ways_to_grow_trees_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="grown in one way"):
        fit(make_frame(), out=tmp_path / "model", model="trees", method="focal", **OPTIONS)
    assert fit(make_frame(), out=tmp_path / "model", method="trees", **OPTIONS).card["chosen"]["model"] == "trees"


def test_the_best_of_everything_is_said_and_the_printed_command_fits_it(tmp_path: Path) -> None:
    make_frame().to_csv(tmp_path / "data.csv", index=False)
    options = ["--target", "y", "--objective", "recall@top=10%", "--seeds", 2, "--trials", 1, "--workers", 1]
    told = run(
        "compare",
        tmp_path / "data.csv",
        *options,
        "--models",
        "linear",
        "--methods",
        "tuned_ce",
        "--out",
        tmp_path / "c",
    )
    assert told.exit_code == 0, told.output
    (sentence,) = re.findall(
        r"To deploy: trees, the simplest within one standard error \(.*\) of the best.*", told.output
    )
    assert re.search(r"linear 0\.\d{4}, trees 0\.\d{4}", sentence)
    assert sentence in (tmp_path / "c" / "report.html").read_text()
    words = shlex.split(told.output.splitlines()[-1].removeprefix("Next: rareloss "))
    words[words.index("model")] = str(tmp_path / "model")
    fitted = run(*words)
    assert fitted.exit_code == 0, fitted.output
    assert sentence.rstrip(".") in fitted.output
    assert Model.load(tmp_path / "model").card["chosen"]["method"] == "trees"
    other = run(*words[:-1], tmp_path / "linear", "--model", "linear")
    assert other.exit_code == 0, other.output
    assert Model.load(tmp_path / "linear").card["chosen"]["model"] == "linear"
