"""The benchmarks measure what they say: laws, brute force, ratios, growth, page. No test asserts a time."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import verified
from benchmarks.speed import accuracy, measure, replay
from benchmarks.speed.__main__ import main
from benchmarks.speed.laws import HOSTILE, LAWS, draw, draw_positive
from benchmarks.speed.page import page
from benchmarks.speed.rows import OURS, Row, all_rows
from benchmarks.speed.runner import Options, select, verdict
from benchmarks.speed.runner import measure as measure_row
from torch import Tensor

from rareloss import SigmoidFocalLoss, SmoothAPLoss
from rareloss.testing import verify


@pytest.mark.parametrize("law", LAWS)
def test_law_draws_finite_float32_scores(law: str) -> None:
    scores = draw(law, 1000)
    assert scores.shape == (1000,)
    assert scores.dtype == torch.float32
    assert bool(torch.isfinite(scores).all())
    assert torch.equal(scores, draw(law, 1000))


def test_hostile_laws_are_as_named() -> None:
    assert len(HOSTILE) == 6
    gaps = draw("chain of gaps of 30 temperatures", 100, temperature=0.1).sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 30 * 0.1), rtol=1e-4, atol=0)
    assert int((draw("five outliers at 1e30", 100).abs() > 1e29).sum()) == 5
    assert draw("all equal", 100).unique().numel() == 1


def test_rate_of_positives() -> None:
    assert int(draw_positive(1000, 0.1).sum()) == 100
    assert int(draw_positive(10, 0.01).sum()) == 1


def test_brute_force_by_hand() -> None:
    scores, positive = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True])
    value, _ = accuracy.brute_force(scores, positive, 0.001)
    assert value == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_brute_force_gradient_is_that_of_its_value() -> None:
    scores, positive = torch.randn(12, dtype=torch.float64), draw_positive(12, 0.3)
    _, gradient = accuracy.brute_force(scores, positive, 0.5)
    for index in range(12):
        step = 1e-6 * torch.nn.functional.one_hot(torch.tensor(index), 12)
        above, below = (accuracy.brute_force(scores + sign * step, positive, 0.5)[0] for sign in (1, -1))
        assert (above - below) / 2e-6 == pytest.approx(float(gradient[index]), abs=1e-8)


def test_errors_of_the_library_are_small() -> None:
    found = accuracy.errors("normal", 0.1, 256, 0.1)
    assert found["value"] < 1e-5
    assert found["gradient"] < 1e-5


def test_exponent_of_a_power_law_is_its_power() -> None:
    sizes = [1_000, 64_000, 256_000, 1_000_000]
    seconds = [99.0, *(3e-9 * size**1.25 for size in sizes[1:])]  # the small size takes no part
    assert measure.exponent(sizes, seconds) == pytest.approx(1.25)
    assert measure.exponent(sizes[:2], seconds[:2]) is None


def test_runs_take_turns_and_are_in_every_round() -> None:
    order: list[str] = []
    clock = iter(range(1000))

    def run(name: str) -> measure.Run:
        return lambda: order.append(name)

    times = measure.interleave(run("a"), run("b"), seconds=9.0, fewest=3, clock=lambda: float(next(clock)))
    assert times == [[1.0] * 9, [1.0] * 9]  # each call lasts as long as the clock says, 9 rounds take 9 seconds
    assert order == ["a", "a", "b", "b", *["a", "b"] * 9]  # to warm up and to learn the cost; then in turn


def test_short_run_is_repeated_within_its_round() -> None:
    calls: list[int] = []
    seconds = measure.SHORTEST / 4
    clock = lambda: seconds * len(calls)  # noqa: E731
    (times,) = measure.interleave(lambda: calls.append(1), seconds=0.1, fewest=3, clock=clock)
    assert times == pytest.approx([seconds] * 5)  # 5 rounds of .02 s
    assert len(calls) == 2 + 5 * (1 + 4)  # one more in each round, which is not timed, brings back its data


def test_every_contestant_runs_beside_the_reference_alone() -> None:
    order: list[str] = []

    def build(name: str) -> measure.Build:
        return lambda device, rows: lambda: (order.append(name), sum(range(20_000)))

    builds = {OURS: build("ours"), "alone": build("alone"), "peer": build("peer")}
    row = Row("x/y", "x", "added", 7, {"": lambda: builds}, "alone")
    record = measure_row(row, Options(seconds=0.01, fewest=3))
    assert set(record["cases"][""]) == {OURS, "alone", "peer"}
    peers_turn = order.index("peer")
    assert "peer" not in order[:peers_turn]
    assert OURS not in order[peers_turn:]
    assert "alone" in order[peers_turn:]
    judged = measure_row(row, Options(seconds=0.01, fewest=3, bars=True))
    assert set(judged["cases"][""]) == {OURS, "alone"}


def test_quartiles() -> None:
    assert measure.quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert measure.quartiles([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_keys_are_unique_and_the_promises_are_there() -> None:
    rows = {row.key: row for row in all_rows()}
    assert len(rows) == len(all_rows())
    assert (rows["smooth_ap/1M"].bar, rows["smooth_ap/1M"].stretch) == (0.12, 0.07)
    assert {row.key for row in select(rows.values(), Options(rows=16_000), ["recall/"])} == {"recall/16k"}
    assert not any(row.large for row in select(rows.values(), Options()))
    assert all(row.bar is not None for row in select(rows.values(), Options(bars=True)))
    assert not any(row.torch_alone for row in select(rows.values(), Options("cuda")))


@pytest.mark.parametrize("row", [row for row in all_rows() if row.cases], ids=lambda row: row.key)
def test_row_has_our_loss_and_what_it_is_compared_with(row: Row) -> None:
    builds = next(iter(row.cases.values()))()
    assert OURS in builds
    assert row.over in {"", "imbalanced-losses", *builds}


def test_row_whose_peer_is_not_installed_is_not_measured() -> None:
    row = Row("x/y", "x", "ratio", 7, {"": lambda: {OURS: lambda device, rows: lambda: None}}, "no such library")
    with pytest.raises(ImportError, match="no such library is not installed"):
        measure_row(row, Options())


def test_worst_case_of_a_row_is_judged() -> None:
    def build(times: int) -> measure.Build:
        return lambda device, rows: lambda: [torch.arange(rows).sum() for _ in range(times)]

    def case(times: int) -> Any:
        return lambda: {"reference": build(1), OURS: build(times)}

    row = Row("x/y", "x", "ratio", 2000, {"light": case(1), "heavy": case(60)}, "reference", bar=1e6)
    record = measure_row(row, Options(seconds=0.01, fewest=3))
    assert record["worst"] == "heavy"
    assert record["value"]["median"] == record["cases"]["heavy"][OURS]["median"]
    assert verdict(record) == "met"
    assert verdict({**record, "bar": 0.0}) == "missed"
    assert verdict({**record, "bar": None}) == ""


def test_command_measures_writes_and_turns_results_into_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rows", "4000", "--seconds", "0.1", "--out", str(tmp_path)]
    assert main([*arguments, "--only", "growth/focal"]) == 0
    assert main([*arguments, "--only", "growth/recall"]) == 0
    assert "Sigmoid focal" in capsys.readouterr().out  # what was measured before stays
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [row["key"] for row in results["rows"]] == ["growth/recall", "growth/focal"]
    assert "growth.svg" in {path.name for path in tmp_path.iterdir()}
    assert str(Path.home()) not in json.dumps(results)

    assert main(["--page", str(tmp_path / "results.json"), "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "pictures" / "growth.svg").exists()
    assert results["machine"]["torch"] in (tmp_path / "performance.md").read_text("utf-8")


def test_page_shows_what_the_results_hold() -> None:
    found = {"median": 0.123, "low": 0.12, "high": 0.13, "ms": 12.3, "rounds": 5}
    row = {
        "key": "smooth_ap/1M",
        "what": "Smooth-AP",
        "kind": "ratio",
        "rows": 1_000_000,
        "bar": 0.6,
        "stretch": 0.3,
        "over": "torch.sort",
        "cases": {"": {"torch.sort": {**found, "median": 1.0, "ms": 100.0}, OURS: found}},
        "worst": "",
        "value": {"median": 0.123, "low": 0.12, "high": 0.13},
        "measured": "2030-01-02 03:04",
    }
    machine = {"cpu": "a processor", "cores": 2, "threads": 1, "memory_gib": 8.0, "torch": "2", "python": "3"}
    machine |= {"rareloss": "0", "kernel": "torch alone", "peers": {"kornia": "1", "monai": None}}
    text = page({"rows": [row], "machine": machine, "note": "A note."})
    assert "| Smooth-AP, over torch.sort | 0.6 x | 0.3 x | 0.123 x (0.12 to 0.13) | met, stretch too |" in text
    assert "Of 1 bars, 1 are met and 0 missed" in text
    assert "**A note.**" in text
    assert "torch alone" in text
    assert "monai" not in text
    missed = page({"rows": [{**row, "bar": 0.1, "stretch": 0.05}], "machine": machine})
    assert "Of 1 bars, 0 are met and 1 missed: Smooth-AP, over torch.sort (0.123 x" in missed


def test_bars_are_printed_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bars", "--rows", "20000", "--seconds", "0.02", "--only", "recall/", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Recall at the top .5 %, 16k rows, over BCE" in printed
    assert "bar 1.5 x, stretch 0.9 x" in printed
    assert "Of 1 bars" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_torch_alone_is_measured_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RARELOSS_NATIVE", raising=False)
    (row,) = (row for row in all_rows() if row.key == "torch/recall-1%")
    record = measure_row(row, Options(seconds=0.01, fewest=3, bars=True))
    assert record["key"] == "torch/recall-1%"
    assert set(record["cases"][""]) == {OURS, "network alone"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it says where there is no GPU")
def test_cuda_is_refused_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda"]) == 2
    assert "no CUDA device here" in capsys.readouterr().err


def test_replayed_pools_are_compared_within_their_size() -> None:
    def pool(rows: int) -> replay.Pool:
        return {"scores": draw("normal", rows)[:, None], "positive": draw_positive(rows)[:, None], "weight": None}

    pools = [{**pool(rows), "temperature": 0.1} for rows in (300, 300, 500)]
    record = replay.replay(pools, rounds=2)
    ratios = [case[OURS]["median"] for case in record["cases"].values()]
    assert ratios[2] == 1.0  # alone in its size
    assert record["value"]["median"] == max(ratios)
    assert all(math.isfinite(ratio) for ratio in ratios)


@pytest.mark.slow
def test_pools_of_a_comparison_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "record", partial(replay.record, trials=1, networks=("linear",)))
    random = np.random.default_rng(0)
    label = random.random(600) < 0.2
    inputs = random.normal(size=(600, 3)) + label[:, None]
    np.savez(tmp_path / "data.npz", X=inputs, y=label.astype(int))
    pools = replay.load_or_record(str(tmp_path / "data.npz"), tmp_path / "pools.pt")
    assert pools
    assert all(pool["scores"].shape == pool["positive"].shape for pool in pools)
    again = replay.load_or_record("nothing here", tmp_path / "pools.pt")
    assert len(again) == len(pools)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux")
def test_peak_memory_holds_the_gradient() -> None:
    assert measure.command_output("--peak", "memory/focal-1M", "BCE") > 4.0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux")
def test_memory_that_was_freed_before_counts_as_extra() -> None:
    # Its gradient alone is 4 bytes a row, and drawing the scores left more than that to the allocator.
    assert measure.command_output("--peak", "memory/recall-1M", OURS) > 4.0


class StandIn(SmoothAPLoss):
    """A peer of a few lines, with what peers get wrong: a diluted queue, and a NaN that stays."""

    def __init__(self) -> None:
        super().__init__(1, queue_size=100)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = super().forward(logits, targets)
        pool = (self.queue.weight > 0).sum() if self.training else len(targets)
        if self.training:
            self.seen += logits.detach().float().sum()
        share = len(targets) / pool
        return loss.detach() + (loss - loss.detach()) * share + 0 * self.seen


def not_there() -> SmoothAPLoss:
    raise ImportError("no such library here")


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    only = ["queue gradient scale", "NaN poisoning", "resume"]

    def shortened(make: Any, **given: Any) -> Any:
        return verify(make, ranks=(), rows=64, only=only, **given)

    monkeypatch.setattr(verified, "verify", shortened)


@pytest.mark.usefixtures("few_checks")
def test_page_of_what_verify_finds_names_each_defect_of_a_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = verified.Case("rareloss", "SigmoidFocalLoss()", SigmoidFocalLoss)
    peer = verified.Case("imbalanced-losses", "StandIn()", StandIn)
    monkeypatch.setattr(verified, "CASES", (ours, peer, verified.Case("libauc", "Absent()", not_there)))
    assert verified.main([]) == 0  # a peer's failure is what the page is for
    text = capsys.readouterr().out
    assert "libauc is not installed here" in text
    own, other = text.split("## imbalanced-losses")
    assert "fails" not in own
    rows = {line.split(" | ")[0].strip("| "): line for line in other.splitlines() if line.startswith("| ")}
    for check in ("queue gradient scale", "NaN poisoning"):
        assert "**fails**" in rows[check]
        assert f"- {check} failed" in other
    assert "fails" not in rows["resume"]


@pytest.mark.usefixtures("few_checks")
def test_page_of_a_broken_loss_of_our_own_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verified, "CASES", (verified.Case("rareloss", "StandIn()", StandIn),))
    assert verified.main(["--only", "standin"]) == 1
    assert "**fails**" in capsys.readouterr().out
    assert verified.main(["--only", "no such loss"]) == 2
    assert "No loss holds 'no such loss'" in capsys.readouterr().err


def test_every_loss_of_our_own_on_the_page_can_be_called() -> None:
    for case in verified.CASES:
        if case.library in ("rareloss", "torch") and case.batch is not None:
            assert torch.isfinite(case.make()(*case.batch()))
