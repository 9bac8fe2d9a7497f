"""The model of a fit is the one that a comparison judges, and every number of its card can be found again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from deploy_table import OPTIONS
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, log_loss, recall_score
from torch import nn

from rareloss import Objective
from rareloss.table import load
from rareloss.table.folds import split
from rareloss.tabular import compare, training
from rareloss.tabular.methods import methods_for
from rareloss.tabular.model import DataError, Model, fit, score_file
from rareloss.tabular.models import MODELS, find_model
from rareloss.tabular.preprocess import pipeline
from rareloss.tabular.training import Task
from rareloss.tabular.ways import fit_methods

FILES = {"model.json", "weights.safetensors", "card.json", "README.md"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def held_out(csv: Path, folder: Path, tmp_path: Path) -> tuple[pd.DataFrame, np.ndarray, Any]:
    """Return the written scores of the test rows, their labels, and all of the split."""
    score_file(folder, csv, tmp_path / "scores.parquet", keep=["outcome"])
    written = pd.read_parquet(tmp_path / "scores.parquet").dropna(subset="outcome").reset_index(drop=True)
    fold = split(load(csv, target="outcome"), OPTIONS["seed"])
    return written, (written["outcome"] == "bad").to_numpy(), fold


def test_every_number_of_the_card_is_found_again_from_the_written_scores(
    csv: Path, folder: Path, model: Model, tmp_path: Path
) -> None:
    written, labels, fold = held_out(csv, folder, tmp_path)
    rows, y = written.iloc[fold.test], labels[fold.test]
    s, p, alert = (rows[name].to_numpy() for name in ("score", "probability", "decision"))
    held = model.card["held_out"]
    (tn, fp), (fn, tp) = confusion_matrix(y, alert)
    assert (held["rows"], held["positives"], held["alerts"], held["caught"]) == (len(y), tp + fn, tp + fp, tp)

    def recall_in_top(weight: np.ndarray) -> float:
        order = np.argsort(-s, kind="stable")
        above = np.cumsum(weight[order])
        inside = np.clip(1 - (above - 0.1 * weight.sum()) / weight[order], 0, 1)  # the edge row by its share
        return float((inside * weight[order] * y[order]).sum() / weight[y].sum())

    expected = {
        "recall@top=10%": recall_in_top,
        "ap": lambda weight: average_precision_score(y, s, sample_weight=weight),
        "log_loss": lambda weight: log_loss(y, p, sample_weight=weight),
        "brier": lambda weight: brier_score_loss(y, p, sample_weight=weight),
    }
    rng = np.random.default_rng(0)
    weights = [rng.exponential(size=len(y)) for _ in range(200)]
    assert len(np.unique(s)) == len(s)  # so that no tie has to be shared
    for name, judge in expected.items():
        found = held["metrics"][name]
        assert found["value"] == pytest.approx(judge(np.ones(len(y))), rel=1e-6)
        low, high = np.quantile([judge(weight) for weight in weights], [0.025, 0.975])
        assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-6)
    assert held["metrics"]["recall"]["value"] == recall_score(y, alert)
    for name, part, whole in (
        ("recall", tp, tp + fn),
        ("precision", tp, tp + fp),
        ("false_positive_rate", fp, fp + tn),
    ):
        interval = binomtest(int(part), int(whole)).proportion_ci(0.95, method="exact")
        found = held["metrics"][name]
        assert (found["value"], found["low"], found["high"]) == pytest.approx((part / whole, *interval))
    assert set(held["metrics"]) == {*expected, "ece", "recall", "precision", "false_positive_rate"}

    edges = np.unique(np.quantile(p, np.linspace(0.1, 0.9, 9), method="inverted_cdf"))
    bins = np.digitize(p, edges, right=True)
    gaps = [(bins == number).mean() * abs((p - y)[bins == number].mean()) for number in np.unique(bins)]
    ece = held["metrics"]["ece"]
    assert ece["value"] == pytest.approx(sum(gaps), rel=1e-6)
    errors = [np.abs(np.bincount(bins, weight * (p - y))).sum() / weight.sum() for weight in weights]
    low, high = 2 * ece["value"] - np.quantile(errors, [0.975, 0.025])
    assert (ece["low"], ece["high"]) == pytest.approx((max(low, 0), max(high, ece["value"])), rel=1e-6)

    page = (folder / "README.md").read_text()
    assert f"| average precision | {average_precision_score(y, s):.4f} |" in page

    val, z = labels[fold.validation], written["score"].to_numpy()[fold.validation]
    before = model.card["calibration"]["before"]["all"]
    assert before["log_loss"]["value"] == pytest.approx(log_loss(val, expit(z.astype(float))), rel=1e-9)
    assert (z > model.threshold).sum() == int(0.1 * len(z))
    least, most = z[z > model.threshold].min(), z[z <= model.threshold].max()
    assert model.threshold == pytest.approx((float(least) + float(most)) / 2, abs=1e-6 * float(least - most))
    assert model.card["data"]["rate"] == pytest.approx(labels.mean())


def test_scores_are_those_of_a_comparison_with_the_same_seed(
    csv: Path, folder: Path, frame: pd.DataFrame, tmp_path: Path
) -> None:
    compared = tmp_path / "compared"
    results = compare(
        csv,
        target="outcome",
        objective="recall@top=10%",
        seeds=[3],
        trials=1,
        models=["linear"],
        methods=["recall_stage"],
        out=compared,
    ).results
    run = next(run for run in results["runs"] if run["method"] == "recall_stage")
    model = Model.load(folder)
    assert model.card["held_out"]["metrics"]["recall@top=10%"]["value"] == run["test"]
    assert model.card["chosen"]["validation"] == run["validation"]

    winner = fit(csv, compared=compared, out=tmp_path / "winner")  # of one seed: tuned cross-entropy
    base = next(run for run in results["runs"] if run["method"] == "tuned_ce")
    assert winner.card["chosen"]["method"] == "tuned_ce"
    assert winner.card["held_out"]["metrics"]["recall@top=10%"]["value"] == base["test"]
    assert "none" in winner.card["compared"] or "Keep cross-entropy" in winner.card["compared"]
    with pytest.raises(DataError, match="were compared; run"):
        fit(frame.iloc[:400], compared=compared, out=tmp_path / "other")
    with pytest.raises(DataError, match="objective come from the comparison"):
        fit(csv, compared=compared, objective="ap", out=tmp_path / "other")
    named = fit(csv, compared=compared, method="recall_stage", out=tmp_path / "named")
    assert named.card["chosen"]["method"] == "recall_stage"
    with pytest.raises(DataError, match=r"no results.json"):
        fit(csv, compared=tmp_path, out=tmp_path / "other")


def results_of(folder: Path, validation: dict[str, list[float]]) -> Path:
    """Write the results of a comparison in which tuned cross-entropy had these values on validation, by network."""
    settings = {"target": "outcome", "positive": None, "group": None, "time": None, "trials": 1, "objective": "ap"}
    results = {
        "schema": 1,
        "settings": {**settings, "seeds": list(range(3))},
        "data": {"sha256": "of other data"},
        "verdicts": [{"model": network, "winner": None} for network in validation],
        "runs": [
            {"model": network, "method": "tuned_ce", "seed": seed, "validation": value}
            for network, values in validation.items()
            for seed, value in enumerate(values)
        ],
        "overall": "Keep cross-entropy.",
    }
    path = folder / "results.json"
    path.write_text(json.dumps(results))
    return path


@pytest.mark.parametrize(
    ("mlp", "chosen"),
    [
        ([0.50, 0.56, 0.53], "linear"),  # .53 with a standard error of .017; linear has .52
        ([0.54, 0.56, 0.55], "mlp"),  # .55 with one of .006
    ],
)
def test_the_simplest_network_within_a_standard_error_is_taken(
    csv: Path, tmp_path: Path, mlp: list[float], chosen: str
) -> None:
    compared, said = results_of(tmp_path, {"mlp": mlp, "linear": [0.50, 0.54, 0.52]}), []
    with pytest.raises(DataError, match="were compared; run"):
        fit(csv, compared=compared, out=tmp_path / "model", say=said.append)
    assert said[0].startswith(f"To deploy: {chosen} by tuned_ce, the simplest within one standard error")


@pytest.mark.parametrize(
    ("objective", "threshold", "words"),
    [
        ("recall@precision=99.99%", np.inf, "nobody is alerted; the highest precision is"),
        ("cost@fn=1,fp=1000000", np.inf, "nobody is alerted"),
        ("cost@fn=1000000,fp=1", -np.inf, "everybody is alerted"),
        ("pauc@fpr=0-100%", -np.inf, "everybody is alerted"),
    ],
)
def test_an_infinite_threshold_is_an_answer(
    frame: pd.DataFrame, tmp_path: Path, objective: str, threshold: float, words: str
) -> None:
    noise = frame.assign(outcome=frame["outcome"].sample(frac=1, random_state=0).to_numpy())
    fit(noise, target="outcome", objective=objective, trials=1, out=tmp_path / "model")
    model = Model.load(tmp_path / "model")
    assert model.threshold == threshold
    assert words in model.card["threshold"]["about"]
    assert words in (tmp_path / "model" / "README.md").read_text("utf-8")
    scored = score_file(model, noise, tmp_path / "scores.parquet")
    assert scored.alerts == (scored.rows if threshold < 0 else 0)


def test_a_file_of_results_runs_no_code(csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.py").write_text("raise SystemExit('the code ran')")
    compared = results_of(tmp_path, {"payload:go": [0.9, 0.9, 0.9], "linear": [0.1, 0.1, 0.1]})
    with pytest.raises(DataError, match="--model payload:go"):
        fit(csv, compared=compared, out=tmp_path / "model")
    with pytest.raises(SystemExit, match="the code ran"):
        fit(csv, compared=compared, model="payload:go", out=tmp_path / "model")


def test_a_comparison_of_rows_grouped_otherwise_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    grouped, other = (frame.assign(day=days) for days in (np.arange(len(frame)) // 5, np.arange(len(frame)) % 100))
    options: dict[str, Any] = {"target": "outcome", "group": "day", "seeds": [3], "trials": 1}
    compare(grouped, models=["linear"], methods=["weighted_ce"], out=tmp_path / "compared", **options)
    with pytest.raises(DataError, match="were compared; run"):
        fit(other, compared=tmp_path / "compared", out=tmp_path / "model")
    fit(grouped, compared=tmp_path / "compared", out=tmp_path / "model")


@pytest.mark.parametrize(("network", "kind"), [("linear", "standard"), ("mlp8", "normal"), ("additive", "spline")])
def test_loaded_model_scores_as_the_engine_does_to_the_last_bit(
    frame: pd.DataFrame, tmp_path: Path, network: str, kind: str
) -> None:
    options = {**OPTIONS, "method": "tuned_ce", "objective": "ap"}
    model = fit(frame, out=tmp_path / "model", model=network, **options)
    table = load(frame, target="outcome")
    task = Task(table, split(table, 3), Objective.parse("ap"), 3)
    ((_, found),) = fit_methods(task, find_model(network), methods_for(Objective.parse("ap"))[:1], 1)
    assert found.kind == kind
    rows = frame[frame["outcome"].notna()].iloc[task.fold.test]
    np.testing.assert_array_equal(model.score(rows)["score"], found.score(task.test_inputs(kind)).numpy())


@pytest.mark.parametrize("kind", ["standard", "normal", "spline"])
def test_saved_inputs_equal_the_pipeline_on_rows_it_has_not_seen(frame: pd.DataFrame, kind: Any) -> None:
    from rareloss.tabular.model.inputs import Inputs

    features = load(frame, target="outcome").frame
    fitted = pipeline(features, kind, seed=0).fit(features.iloc[:300])
    inputs = Inputs.of(fitted, kind)
    new = features.copy()
    new.loc[::3, "age"] = np.nan
    new["country"] = pd.Series(np.where(np.arange(len(new)) % 2, "unseen", "de")).astype("category")
    new.loc[1, "amount"] = 1e30
    read = Inputs.from_dict(inputs.to_dict(), inputs.arrays)
    for rows in (features, new, new.iloc[:1]):
        np.testing.assert_array_equal(read.transform(rows), fitted.transform(rows))
    assert read.transform(new.iloc[:0]).shape == (0, read.width)


def test_a_killed_fit_goes_on_and_ends_the_same(csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**OPTIONS, "trials": 3}
    whole, out, work = (tmp_path / name for name in ("whole", "model", "model.unfinished"))
    real, calls, last = training.solve_logistic, [], None

    def solve(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "solve_logistic", solve)
    fit(csv, out=whole, **options)
    needed, last = len(calls), 3
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        fit(csv, out=out, **options)
    assert not out.exists()
    assert len(list((work / "runs").glob("*.safetensors"))) == 2
    with pytest.raises(DataError, match="other settings"):
        fit(csv, out=out, **{**options, "seed": 4})
    said: list[str] = []
    fit(csv, out=out, say=said.append, **options)
    assert len(calls) == needed + 1
    assert sum("taken over from before" in sentence for sentence in said) == 2
    assert contents(out) == contents(whole)
    assert not work.exists()


def test_a_killed_fit_does_not_go_on_where_rows_are_grouped_otherwise(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "method": "tuned_ce", "group": "day"}

    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "solve_logistic", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(frame.assign(day=np.arange(len(frame)) // 5), out=tmp_path / "model", **options)
    with pytest.raises(DataError, match=r"other settings \(group_and_time"):
        fit(frame.assign(day=np.arange(len(frame)) % 100), out=tmp_path / "model", **options)


@pytest.mark.slow
def test_a_fit_that_the_system_kills_leaves_no_model_and_goes_on(csv: Path, tmp_path: Path) -> None:
    out, runs = tmp_path / "model", tmp_path / "model.unfinished" / "runs"
    command = [sys.executable, "-c", "from rareloss.cli import main; main()", "fit", csv, "--target", "outcome"]
    command += ["--model", "mlp8", "--trials", "2", "--out", out]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    try:
        while not list(runs.glob("*.safetensors")):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not out.exists()
    kept = len(list(runs.glob("*.safetensors")))
    said: list[str] = []
    fit(csv, target="outcome", model="mlp8", trials=2, out=out, say=said.append)
    assert sum("taken over" in sentence for sentence in said) == kept
    assert set(contents(out)) == FILES


@pytest.mark.parametrize("fails", range(6))
def test_a_half_written_folder_is_never_left_behind(
    csv: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == fails + 1:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if fails < 5:  # four files and the folder; the sixth comes after the folder has its name
        with pytest.raises(DataError, match="No space left"):
            model.save(tmp_path / "model")
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(DataError, match="No space left"):
            model.save(tmp_path / "model")
        assert set(contents(tmp_path / "model")) == FILES


def test_model_that_is_saved_again_is_the_same_and_replaces_nothing(model: Model, folder: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(folder)
    with pytest.raises(DataError, match="exists"):
        model.save(tmp_path / "copy")
    with pytest.raises(DataError, match="cannot be written"):
        model.save(tmp_path / "nowhere" / "model")


class Odd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "trees", "model": "linear"}, "grown in one way"),
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"model": "mlp9"}, "no model 'mlp9'"),
        ({"objective": "precision"}, "an objective is"),
        ({"seed": -1}, "seed must be"),
        ({"trials": 0}, "trials must be"),
        ({"target": "country"}, r"3 classes \('de', 'fr', 'it'\).* name one as positive"),
        ({"without": ["outcome"]}, "cannot be one to leave out"),
        ({"without": ["nothing"]}, "no column 'nothing' to leave out"),
        ({"held_out": "rows.txt"}, "unknown ending"),
        ({"held_out": "nowhere/rows.csv"}, "no folder"),
    ],
)
def test_what_makes_no_model_is_refused_before_anything_is_written(
    frame: pd.DataFrame, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    frame = frame[frame["country"] != "rare"]
    with pytest.raises(DataError, match=said):
        fit(frame, out=tmp_path / "model", **{**OPTIONS, **change})
    assert list(tmp_path.iterdir()) == []


def test_rows_held_out_never_replace_the_data(frame: pd.DataFrame, tmp_path: Path) -> None:
    path, link = tmp_path / "data.csv", tmp_path / "link.csv"
    frame.to_csv(path, index=False)
    link.symlink_to(path)
    before = path.read_bytes()
    for held_out in (path, link):
        with pytest.raises(DataError, match="holds the data that are read"):
            fit(path, out=tmp_path / "model", held_out=held_out, **OPTIONS)
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"data.csv", "link.csv"}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_held_out_are_written_as_they_were_found(frame: pd.DataFrame, tmp_path: Path, ending: str) -> None:
    frame = frame.set_index(frame.index[::-1] * 7)
    frame.loc[frame.index[5], "opened"] = None  # without a time, as some are without a target
    rows = tmp_path / f"rows.{ending}"
    options = {**OPTIONS, "time": "opened", "method": "tuned_ce"}
    model = fit(frame, out=tmp_path / "model", held_out=rows, **options)
    fold = split(load(frame, target="outcome", time="opened"), OPTIONS["seed"])
    expected = frame.dropna(subset=["outcome", "opened"]).iloc[fold.test].reset_index(drop=True)
    found = pd.read_csv(rows) if ending == "csv" else pd.read_parquet(rows)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    score_file(model, rows, tmp_path / "scores.parquet")
    assert pd.read_parquet(tmp_path / "scores.parquet")["decision"].sum() == model.card["held_out"]["alerts"]
    assert {path.name for path in tmp_path.iterdir()} == {"model", rows.name, "scores.parquet"}


def test_rows_of_a_csv_are_held_out_letter_by_letter(frame: pd.DataFrame, tmp_path: Path) -> None:
    path, rows = tmp_path / "data.csv", tmp_path / "rows.csv"
    amount = frame["amount"].map("{:.2f}".format).str.replace(".", ",").mask(frame.index % 40 == 0, "?")
    odd = {"zip": [f"{number:05d}" for number in range(len(frame))], "new": frame["new"].map({True: "TRUE"})}
    number = pd.array(range(2**60 + 1, 2**60 + 1 + len(frame)), dtype="Int64")
    odd["number"] = pd.Series(number).mask(frame.index % 3 == 0)
    frame.assign(amount=amount, **odd).to_csv(path, sep=";", decimal=",", index=False)
    model = fit(path, out=tmp_path / "model", held_out=rows, **{**OPTIONS, "method": "tuned_ce"})
    header, *lines = path.read_text().splitlines()
    written = rows.read_text().splitlines()
    assert written[0] == header
    assert len(written) == model.card["held_out"]["rows"] + 1
    assert set(written[1:]) <= set(lines)
    score_file(model, rows, tmp_path / "scores.parquet")
    assert pd.read_parquet(tmp_path / "scores.parquet")["decision"].sum() == model.card["held_out"]["alerts"]


def test_network_that_needs_its_code_is_refused(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = find_model("linear")
    monkeypatch.setitem(MODELS, "odd", type(odd)("odd", "", ("normal",), False, lambda n, k: Odd()))
    with pytest.raises(DataError, match="cannot be saved without its code"):
        fit(frame, out=tmp_path / "model", model="odd", **OPTIONS)
    with pytest.raises(DataError, match="exists"):
        fit(frame, out=tmp_path, **OPTIONS)
    with pytest.raises(DataError, match="no folder"):
        fit(frame, out=tmp_path / "a" / "b", **OPTIONS)


def test_average_precision_cuts_as_many_as_there_are_positives(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = fit(frame, out=tmp_path / "model", **{**OPTIONS, "objective": "ap", "method": "tuned_ce"})
    table = load(frame, target="outcome")
    rows = split(table, 3).validation
    found = model.score(frame[frame["outcome"].notna()].iloc[rows])["decision"]
    assert int(found.sum()) == int(table.target[rows].sum())


def test_a_fit_that_another_has_overtaken_says_so(csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from rareloss.tabular.model import fitting

    replaced, options = fitting.replace_folder, {**OPTIONS, "method": "tuned_ce"}

    def overtaken(whole: Path, folder: Path) -> None:
        monkeypatch.setattr(fitting, "replace_folder", replaced)
        shutil.copytree(whole, folder)
        shutil.rmtree(whole.parent)
        replaced(whole, folder)

    monkeypatch.setattr(fitting, "replace_folder", overtaken)
    with pytest.raises(DataError, match="was written meanwhile by another fit"):
        fit(csv, out=tmp_path / "model", **options)
    assert Model.load(tmp_path / "model").card["chosen"]["method"] == "tuned_ce"
