"""A whole comparison on a small table: results, resuming, Ctrl-C, and the same numbers on any backend."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn")
from rareloss.tabular import Comparison, DataError, Interrupted, compare
from rareloss.tabular.comparison.runs import unit_name

OPTIONS: dict[str, Any] = {
    "target": "y",
    "seeds": 2,
    "trials": 1,
    "models": ["linear"],
    "methods": ["smooth_ap_stage"],
}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    target = rng.random(300) < 0.15
    columns = {name: rng.standard_normal(300) + target for name in "ab"}
    return pd.DataFrame({**columns, "kind": rng.choice(["x", "y"], 300), "y": target.astype(int)})


@pytest.fixture(scope="module")
def finished(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("study")
    return compare(frame, **OPTIONS, out=folder), folder


def numbers(comparison: Comparison) -> list[tuple[Any, ...]]:
    """What must not depend on where a comparison ran."""
    runs = [
        (run["model"], run["method"], run["seed"], run["validation"], run["test"]) for run in comparison.results["runs"]
    ]
    return sorted(runs)


def test_results_have_every_run_and_its_difference(finished: tuple[Comparison, Path]) -> None:
    results = finished[0].results
    methods = ["tuned_ce", "ce_continued", "weighted_ce", "smooth_ap_stage", "trees"]
    assert sorted((run["seed"], run["method"]) for run in results["runs"]) == sorted(
        (s, a) for s in (0, 1) for a in methods
    )
    assert {row["method"] for row in results["differences"]} == set(methods[1:])
    assert not results["failed"]
    assert not results["unfinished"]
    for row in results["differences"]:
        assert row["low"] <= row["mean"] <= row["high"]
        assert np.mean(row["per_seed"]) == pytest.approx(row["mean"])


def test_written_results_are_those_returned(finished: tuple[Comparison, Path]) -> None:
    comparison, folder = finished
    assert Comparison.from_json(folder / "results.json").results == json.loads(json.dumps(comparison.results))
    assert (folder / "report.html").stat().st_size > 0
    assert not list(folder.rglob("*.part"))


def test_same_call_takes_over_what_is_finished(finished: tuple[Comparison, Path], frame: pd.DataFrame) -> None:
    said: list[str] = []
    again = compare(frame, **OPTIONS, out=finished[1], say=said.append)
    assert numbers(again) == numbers(finished[0])
    assert any(sentence.startswith("4 of 4 units were finished before") for sentence in said)


def test_more_seeds_add_to_what_is_finished(finished: tuple[Comparison, Path], frame: pd.DataFrame) -> None:
    said: list[str] = []
    more = compare(frame, **{**OPTIONS, "seeds": 3}, out=finished[1], say=said.append)
    assert set(numbers(finished[0])) <= set(numbers(more))
    assert any(sentence.startswith("4 of 6 units were finished before") for sentence in said)


def test_a_unit_in_which_a_method_failed_is_run_again(
    finished: tuple[Comparison, Path], frame: pd.DataFrame, tmp_path: Path
) -> None:
    shutil.copytree(finished[1], tmp_path / "again")
    path = tmp_path / "again" / "runs" / "linear-seed1.json"
    unit = json.loads(path.read_text())
    lost = unit["runs"].pop()
    unit["failed"] = [{"seed": 1, "model": "linear", "method": lost["method"], "error": "MemoryError: "}]
    path.write_text(json.dumps(unit))
    said: list[str] = []
    again = compare(frame, **OPTIONS, out=tmp_path / "again", say=said.append)
    assert any(sentence.startswith("3 of 4 units were finished before") for sentence in said)
    assert not again.results["failed"]
    assert numbers(again) == numbers(finished[0])
    assert not json.loads(path.read_text())["failed"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"trials": 2}, "trials 1 there, 2 now"), ({"objective": "recall@top=10%", "methods": None}, "methods")],
)
def test_other_settings_in_the_same_folder_are_refused(
    finished: tuple[Comparison, Path], frame: pd.DataFrame, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        compare(frame, **{**OPTIONS, **changed}, out=finished[1])


def test_other_data_in_the_same_folder_are_refused(finished: tuple[Comparison, Path], frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"other settings \(data"):
        compare(frame.assign(a=frame["a"] + 1), **OPTIONS, out=finished[1])


def test_ctrl_c_keeps_what_is_finished(frame: pd.DataFrame, finished: tuple[Comparison, Path], tmp_path: Path) -> None:
    def press(*arguments: object, **options: object) -> None:
        # One unit is finished; the user presses Ctrl-C in the next.
        raise KeyboardInterrupt

    kept = sorted((finished[1] / "runs").glob("*.json"))
    (tmp_path / "runs").mkdir()
    for path in kept:
        if path.name in ("linear-seed0.json", "settings.json"):
            (tmp_path / "runs" / path.name).write_bytes(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rareloss.tabular.comparison.comparison.run_unit", press)
        with pytest.raises(Interrupted) as stopped:
            compare(frame, **OPTIONS, out=tmp_path)
    partial = stopped.value.comparison
    assert {run["seed"] for run in partial.results["runs"]} == {0}
    assert len(partial.results["unfinished"]) == 3
    assert numbers(compare(frame, **OPTIONS, out=tmp_path)) == numbers(finished[0])


def test_two_workers_give_the_same_numbers(frame: pd.DataFrame, finished: tuple[Comparison, Path]) -> None:
    assert numbers(compare(frame, **OPTIONS, workers=2)) == numbers(finished[0])


@pytest.mark.slow
def test_dask_cluster_gives_the_same_numbers(frame: pd.DataFrame, finished: tuple[Comparison, Path]) -> None:
    distributed = pytest.importorskip("dask.distributed")
    with (  # one worker: the test before has two at once
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        assert numbers(compare(frame, **OPTIONS)) == numbers(finished[0])


def test_table_and_notebook_show_every_method(finished: tuple[Comparison, Path]) -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(finished[0].table())
    text = console.export_text()
    for method in finished[0].results["methods"]:
        assert method["label"] in text
        assert method["label"] in finished[0]._repr_html_()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objective": "accuracy"}, "an objective is 'ap'"),
        ({"methods": ["magic"]}, "no method 'magic'"),
        ({"models": ["magic"]}, "no model 'magic'"),
        ({"models": []}, "no model was named"),
        ({"seeds": 0}, "seeds must be"),
        ({"trials": 0}, "at least 1"),
        ({"target": "z"}, "no column 'z'"),
    ],
)
def test_bad_argument_is_refused_before_anything_is_written(
    frame: pd.DataFrame, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        compare(frame, **{**OPTIONS, **changed}, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_folder_that_cannot_be_made_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be used as output folder"):
        compare(frame, **OPTIONS, out=tmp_path / "file" / "new")


def test_units_of_own_code_are_told_apart_by_name_and_by_what_the_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nets_a").mkdir()
    for module in ("nets_a_b", "nets_a/b"):
        (tmp_path / f"{module}.py").write_text("c = 1")
    names = {unit_name(name, 0) for name in ("nets_a_b:c", "nets_a.b:c", "nets_a.b:d", "linear")}
    assert len(names) == 4
    (tmp_path / "nets_a_b.py").write_text("c = 2")
    assert unit_name("nets_a_b:c", 0) not in names


def test_what_is_too_good_is_said() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=400), "y": np.arange(400) % 5 == 0})
    options: dict[str, Any] = {"target": "y", "seeds": 1, "trials": 1, "models": ["linear"], "methods": ["tuned_ce"]}
    assert compare(frame, **options).suspicion is None
    made = compare(frame.assign(after=frame["y"] + 0.1 * rng.normal(size=400)), **options)
    assert made.suspicion is not None
    assert "reached 1.000" in made.suspicion
    assert made.table().title.endswith("of 16 positives (20.00% of all rows)")
