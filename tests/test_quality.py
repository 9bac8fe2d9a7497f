"""The grid of comparisons: planned, resumable, counted, and turned into a page. No data folder, no other library."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from benchmarks.quality import grid, methods
from benchmarks.quality.__main__ import main
from benchmarks.quality.analysis import effects, overall
from benchmarks.quality.grid import CORE, FULL, Size, Unit
from benchmarks.quality.headroom import ceiling
from benchmarks.quality.page import page
from benchmarks.quality.runner import collect, run
from torch import nn

from rareloss import SmoothAPLoss
from rareloss.tabular.methods import RECIPE
from rareloss.tabular.training import cross_entropy

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a small set of two classes and one of three; training is short, and no other library is there."""
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.2).astype(np.int64)
    x = (rng.standard_normal((300, 3)) + y[:, None]).astype(np.float32)
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "small.npz", X=x, y=y)
    np.savez(data / "three.npz", X=x, y=y + (x[:, 0] > 1))
    for name in ("network_steps", "stage_steps"):
        monkeypatch.setitem(RECIPE, name, 10)
    monkeypatch.setattr("benchmarks.quality.peers.load", lambda name: None)
    yield tmp_path
    grid.open_set.cache_clear()


def first_units(many: int) -> list[Unit]:
    return list(grid.units(CORE, {"small": Size(300)}))[:many]


def test_sets_are_the_files_with_inputs_and_target_and_what_ships_with_packages(folder: Path) -> None:
    np.savez(folder / "data" / "other.npz", Z=np.zeros(3))
    assert grid.sets(folder / "data") == ["small", "three", "flights", "digits"]
    assert grid.sets(None) == ["flights", "digits"]


def test_plan_holds_what_the_protocol_says() -> None:
    sizes = {"small": Size(2_000), "middle": Size(50_000), "large": Size(120_000)}
    core, full = list(grid.units(CORE, sizes)), list(grid.units(FULL, sizes))
    assert len(core) == 2 * 3 * (20 + 10 + 5) + 2 * 2 * (10 + 5 + 5)
    assert len(list(grid.units(CORE, {"many classes": Size(2_000, 10)}))) == 2 * 3 * 10 + 2 * 2 * 5
    assert full[: len(core)] == core
    assert len(set(full)) == len(full)
    # Average precision of the linear scorecard on every set comes first, a split of each set after another.
    assert {(unit.model, unit.objective) for unit in core[: 3 * 5]} == {("linear", "ap")}
    assert {unit.seed for unit in core[: 3 * 5 * 6]} == set(range(100, 105))
    assert [unit.data for unit in core[:4]] == ["small", "middle", "large", "small"]


def test_parts_hold_every_unit_once() -> None:
    core = list(grid.units(CORE, {"small": Size(2_000)}))
    parts = [grid.part_of(core, part, 3) for part in (1, 2, 3)]
    assert sorted(repr(unit) for part in parts for unit in part) == sorted(map(repr, core))


def test_interrupted_run_goes_on_where_it_was(folder: Path) -> None:
    said: list[str] = []

    def interrupt(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith("1 of"):
            raise KeyboardInterrupt

    wanted, data, out = first_units(2), folder / "data", folder / "out"
    with pytest.raises(KeyboardInterrupt):
        run(wanted, data, out, trials=1, say=interrupt)
    kept = sorted(out.rglob("*-seed*.json"))
    assert len(kept) == 1
    before = kept[0].read_bytes()
    assert run(wanted, data, out, trials=1, say=said.append) == 0
    assert said[-2] == "1 of 2 units are finished"
    assert kept[0].read_bytes() == before
    results = collect(out, wanted)
    assert [row["done"] for row in results["plan"]] == [2]
    assert {one["seed"] for one in results["runs"]} == {100, 101}
    assert {one["method"] for one in results["runs"]} == {"tuned_ce", "ce_continued", "smooth_ap_stage", "focal"}


def test_results_that_did_not_run_again_stay(folder: Path) -> None:
    wanted, data = first_units(2), folder / "data"
    for out, units in (("before", wanted), ("anew", wanted[1:])):
        run(units, data, folder / out, trials=1, say=lambda sentence: None)
    before = collect(folder / "before", wanted)
    for one in before["runs"]:
        one["test"] = -1.0
    before["machines"][0]["cpu"] = "another processor"
    before["failed"] = [{**before["units"][split], "method": f"method {split}", "error": "none"} for split in range(2)]
    both = collect(folder / "anew", wanted, before)
    assert {(one["seed"], one["test"] == -1) for one in both["runs"]} == {(100, True), (101, False)}
    assert len(both["runs"]) == len(before["runs"])
    machines = {unit["seed"]: both["machines"][unit["machine"]]["cpu"] for unit in both["units"]}
    assert machines[100] == "another processor"
    assert machines[101] != "another processor"
    assert [failure["method"] for failure in both["failed"]] == ["method 0"]
    assert (both["plan"], both["methods"], both["sets"]) == (before["plan"], before["methods"], before["sets"])


def test_no_unit_begins_after_the_time_is_over(folder: Path) -> None:
    wanted = first_units(3)
    assert run(wanted, folder / "data", folder / "out", minutes=0, trials=1, say=lambda sentence: None) == 3
    assert list((folder / "out").rglob("*-seed*.json")) == []


@pytest.mark.slow
def test_further_arms_of_a_scorecard_and_a_network_are_trained(folder: Path) -> None:
    every = list(grid.units(FULL[-1:], {"small": Size(300)}))
    wanted = [next(unit for unit in every if unit.model == model) for model in ("linear", "mlp8")]
    assert run(wanted, folder / "data", folder / "out", trials=2, say=lambda sentence: None) == 0
    results = collect(folder / "out", wanted)
    assert [failure["error"] for failure in results["failed"]] == []
    trained = {(one["model"], one["method"]) for one in results["runs"]}
    assert ("linear", "distilled") in trained
    assert ("mlp8", "distilled") not in trained
    assert {"logit_adjusted", "hard_examples", "smooth_ap_warmup"} <= {method for model, method in trained}
    assert ("mlp8", "class_weight") in trained
    assert ("linear", "class_weight") not in trained


class TheirWrapper(nn.Module):
    """Stands in for imbalanced-losses' wrapper: notes what it is told and given."""

    told: ClassVar[list[tuple[int, torch.Size]]] = []

    def __init__(self, warmup_loss: nn.Module, main_loss: nn.Module, *, warmup_steps: int, temp_decay_steps: int):
        super().__init__()
        self.loss, self.steps = main_loss, (warmup_steps, temp_decay_steps)

    def on_train_batch_start(self, step: int) -> None:
        self.step = step

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.told.append((self.step, logits.shape))
        value: torch.Tensor = self.loss(logits, targets)
        return value


def test_peers_arm_is_told_of_every_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = SimpleNamespace(SmoothAPLoss=SmoothAPLoss, LossWarmupWrapper=TheirWrapper)
    monkeypatch.setattr("benchmarks.quality.peers.load", lambda name: theirs)
    monkeypatch.setattr(TheirWrapper, "told", [])
    (unit,) = first_units(1)
    run([unit], folder / "data", folder / "out", trials=1, say=lambda sentence: None)
    results = collect(folder / "out", [unit])
    assert [failure["error"] for failure in results["failed"]] == []
    assert "imbalanced_losses_smooth_ap" in {one["method"] for one in results["runs"]}
    # Two learning rates of ten steps, each from the tuned solution, on batches of an eighth of the rows.
    assert [step for step, _ in TheirWrapper.told] == [*range(10), *range(10)]
    assert {shape for _, shape in TheirWrapper.told} == {torch.Size([22, 1])}


def test_command_runs_lists_and_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(folder / "data"), "--sets", "small"]
    assert main([*data, "--list", "--part", "1/50"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "core/small/ap/linear, split 100"
    assert main([*data, "--out", str(folder / "out"), "--minutes", "0"]) == 0
    assert "160 units are left" in capsys.readouterr().out
    held = {"block": "core", "data": "small", "objective": "ap", "model": "linear", "seed": 100}
    (folder / "held.json").write_text(json.dumps({"units": [held]}), "utf-8")
    assert main([*data, "--add", "--results", str(folder / "held.json"), "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "core/small/ap/linear, split 101"
    for wrong, said in (
        (["--part", "3/2"], "--part is K/N"),
        (["--sets", "none"], "there is no set 'none'"),
        (["--model", "none"], "no unit of this grid has the model 'none'"),
        (["--sets", "three=7"], "three has no class '7'; there are 0, 1, 2"),
        (["--add", "--results", str(folder / "none.json")], "there is no results file"),
        ([], "name a folder"),
    ):
        assert main([*data, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_one_class_against_the_others_is_a_set(folder: Path) -> None:
    assert main(["--data", str(folder / "data"), "--sets", "three=2", "--model", "linear", "--list"]) == 0
    whole, one = (grid.open_set(name, folder / "data") for name in ("three", "three=2"))
    assert one.classes == ("others", "2")
    assert np.array_equal(one.target == 1, whole.target == 2)
    assert grid.size_of(one) == Size(300, 2)


def made_up() -> dict[str, Any]:
    """A results file of two sets and three splits: the stage gains .05 on one and nothing on the other."""
    runs = []
    for data, gain in (("one", 0.05), ("other", 0.0)):
        for seed in range(3):
            base = 0.4 + 0.01 * seed
            shift = {"tuned_ce": 0.0, "ce_continued": 0.001 * seed, "smooth_ap_stage": gain + 0.001 * seed * (gain > 0)}
            for method, added in shift.items():
                runs.append({"data": data, "objective": "ap", "model": "linear", "seed": seed, "method": method})
                runs[-1] |= {"test": base + added, "test_over_train": 1 / 3, "test_positives": 250}
    kinds = {"tuned_ce": "baseline", "ce_continued": "control", "smooth_ap_stage": "ranking"}
    named = {"rows": 1000, "features": 3, "classes": 2, "positives": 100, "split_by": "rows", "sha256": "0a"}
    return {
        "schema": 2,
        "measured": "2030-01-02 03:04",
        "machines": [
            {"cpu": cpu, "torch": "2", "python": "3", "rareloss": "0", "peers": {}}
            for cpu in ("one processor", "another")
        ],
        "trials": 8,
        "units": [
            {"block": "core", "data": data, "objective": "ap", "model": "linear", "seed": seed, **where}
            for data, where in (
                ("one", {"cpu_seconds": 200.0, "machine": 0}),
                ("other", {"cpu_seconds": None, "machine": 1}),
            )
            for seed in range(3)
        ],
        "sets": {"one": named, "other": named},
        "methods": [{"name": name, "label": name, "about": "-", "kind": kinds[name], "loss": None} for name in kinds],
        "plan": [
            {"block": "core", "model": "linear", "objective": "ap", "data": data, "planned": 20, "done": 3}
            for data in ("one", "other")
        ]
        + [{"block": "core", "model": "mlp", "objective": "ap", "data": "one", "planned": 5, "done": 0}],
        "failed": [],
        "runs": runs,
    }


def test_effects_of_made_up_results() -> None:
    found = {(one.data, one.method): one for one in effects(made_up()["runs"], "linear", "ap")}
    assert found["one", "smooth_ap_stage"].interval.mean == pytest.approx(0.051)
    assert found["one", "smooth_ap_stage"].sure
    assert found["other", "smooth_ap_stage"].adjusted == 1
    (ours,) = (one for one in overall(found.values()) if one.method == "smooth_ap_stage")
    assert ours.these.mean == pytest.approx(0.0255)
    assert ours.better == ("one",)
    assert ours.worst == ("other", pytest.approx(0.0))


def test_page_says_what_ran_and_what_did_not() -> None:
    said = page(made_up())
    assert "6 of 45 units" in said
    assert "3 on one processor (10 minutes of one core); 3 on another; torch 2, Python 3, rareloss 0." in said
    assert "| one | 3 | 250 | 0.410 | +0.001 [-0.003, +0.005] | +0.051 [+0.047, +0.055]* |" in said
    assert "- Linear scorecard, average precision: one 3 of 20 splits, other 3 of 20 splits." in said
    assert "- Network 128-64, average precision: nothing." in said
    assert "mean at least +0.030, interval above 0: **missed** (+0.025" in said
    assert "no set below -0.003: met (other 0)" in said


def test_page_compares_a_peer_with_our_loss_of_the_same_name() -> None:
    results = made_up()
    peer = {"name": "theirs", "label": "Smooth-AP of theirs", "about": "-", "kind": "peer", "loss": "smooth_ap"}
    results["methods"] = [*results["methods"][:2], {**results["methods"][2], "loss": "smooth_ap"}, peer]
    results["runs"] += [{**one, "method": "theirs"} for one in results["runs"] if one["method"] == "tuned_ce"]
    assert "| Smooth-AP of theirs | +0.025 [+0.024, +0.027] | one +0.051*, other 0 |" in page(results)


def test_page_says_how_much_there_was_to_gain() -> None:
    results = made_up()
    linear = [one for one in results["runs"] if one["method"] != "ce_continued"]
    results["runs"] = [{**one, "model": model} for model in grid.SCORECARDS for one in linear]
    results["runs"] += [{**one, "model": "trees", "method": "trees"} for one in linear]
    at_best = {"linear": 0.06, "additive": 0.03, "linear_normal": 0.09}
    ceilings = {
        "sets": dict.fromkeys(("one", "other")),
        "runs": [
            {"data": data, "model": model, "seed": seed, "tuned_ce": 0.4, "best_place": 0.4 + gain * (data == "one")}
            for data in ("one", "other")
            for model, gain in at_best.items()
            for seed in (0, 2)
        ],
    }
    said = page(results, ceilings)
    assert "+0.030 (linear scorecard), +0.015 (additive scorecard), +0.045 (linear scorecard on" in said
    assert "| one | 0.400 | +0.051 | +0.060 | 0.400 | +0.051 | +0.030 |" in said
    assert "| mean | 0.400 | " in said
    results["runs"] = [one for one in results["runs"] if one["data"] == "one"]
    assert "| mean | 0.400 | +0.051 | +0.060 |" in page(results, ceilings)  # over what both have
    assert "How much there is to gain" not in page(made_up(), ceilings)


def test_ceiling_starts_at_what_the_grid_tunes_and_lies_no_lower(folder: Path) -> None:
    found = ceiling("small", folder / "data", "linear", 100)
    (unit,) = (unit for unit in first_units(1))
    assert (unit.objective, unit.model, unit.seed) == ("ap", "linear", 100)
    run([unit], folder / "data", folder / "out", trials=grid.TRIALS, say=lambda sentence: None)
    runs = {one["method"]: one["test"] for one in collect(folder / "out", [unit])["runs"]}
    assert found["tuned_ce"] == pytest.approx(runs["tuned_ce"], abs=1e-6)
    assert found["best_place"] >= found["tuned_ce"]


def test_page_in_the_documentation_is_that_of_the_results() -> None:
    results, ceilings = (
        json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))
        for name in ("quality.json", "headroom.json")
    )
    assert page(results, ceilings) == (ROOT / "docs" / "evidence.md").read_text("utf-8")


def test_set_that_cannot_be_used_stops_no_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder / "data" / "few.npz", X=np.zeros((300, 2)), y=np.arange(300) < 3)
    data = ["--data", str(folder / "data"), "--out", str(folder / "out"), "--minutes", "0"]
    assert main(data) == 0
    printed = capsys.readouterr().out
    assert "- few is left out: target 'y' has 3 positives" in printed
    assert "units are left" in printed
    assert main([*data, "--sets", "few"]) == 2
    assert "has 3 positives" in capsys.readouterr().err


def test_logit_adjustment_of_strength_0_is_cross_entropy() -> None:
    counts, logits, target = torch.tensor([90, 10]), torch.randn(8), torch.tensor([0, 1] * 4)
    plain = cross_entropy(1)(logits, target)
    torch.testing.assert_close(methods.LogitAdjusted(counts, 0.0, 1)(logits, target), plain)
    shifted = cross_entropy(1)(logits + np.log(10 / 90), target)
    torch.testing.assert_close(methods.LogitAdjusted(counts, 1.0, 1)(logits, target), shifted)


@pytest.mark.parametrize("outputs", [1, 3])
def test_hard_examples_of_all_rows_are_cross_entropy(outputs: int) -> None:
    logits, target = torch.randn(8, 3), torch.arange(8) % 3
    if outputs == 1:
        logits, target = logits[:, 0], target % 2
    every, half = methods.HardExamples(outputs, 1.0)(logits, target), methods.HardExamples(outputs, 0.5)(logits, target)
    torch.testing.assert_close(every, cross_entropy(outputs)(logits, target))
    assert half > every


def test_objective_at_the_base_rate_is_that_of_the_table(folder: Path) -> None:
    table = grid.open_set("small", folder / "data")
    found = grid.objective_of("recall@top=rate", table)
    assert found.quantile == pytest.approx(table.rate, rel=0.01)
