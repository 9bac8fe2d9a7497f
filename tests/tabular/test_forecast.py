"""What is read off validation scores before a ranking stage, and the forecast that is made of it."""

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.quality.forecasting import left_out, observed, shipped, summary
from torch import Tensor

from rareloss import Objective
from rareloss.tabular.comparison.forecast import Signals, forecast, forecasts, signals

AP = Objective.parse("ap")


def drawn(rows: int = 40_000, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Log-odds, and labels that have them."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.standard_normal(rows) - 4
    return torch.from_numpy(z), (rng.random(rows) < 1 / (1 + np.exp(-z))).astype(np.int64)


def test_right_log_odds_explain_what_can_be_explained_and_have_slope_1_at_the_top() -> None:
    z, y = drawn()
    found = signals(z, y, AP)
    rate, p = y.mean(), z.sigmoid().numpy()
    lost = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
    assert found.explained == pytest.approx(1 + lost / (rate * np.log(rate) + (1 - rate) * np.log1p(-rate)), abs=1e-3)
    assert abs(found.slope - 1) < 3 * found.slope_error < 0.5


def test_shift_and_scale_of_the_scores_change_nothing() -> None:
    z, y = drawn(4_000)
    assert signals(100 * z + 7, y, AP) == pytest.approx(signals(z, y, AP), rel=1e-4)


def test_scores_that_say_nothing_at_the_top_have_slope_0_there() -> None:
    z, y = drawn()
    top = z > z.quantile(0.8)
    shuffled = z.clone()
    shuffled[top] = z[top][torch.randperm(int(top.sum()), generator=torch.Generator().manual_seed(0))]
    worse = signals(shuffled, y, AP)
    assert abs(worse.slope) < 3 * worse.slope_error
    assert worse.explained < signals(z, y, AP).explained


def test_classes_are_judged_by_their_log_odds_and_averaged() -> None:
    z, y = drawn(4_000)
    both = torch.stack([torch.zeros_like(z), z], 1)
    assert signals(both, y, AP).explained == pytest.approx(signals(z, y, AP).explained, rel=1e-6)


@pytest.mark.parametrize("scores", [torch.zeros(20), torch.tensor([0.0, 1e30] * 10), torch.arange(20.0)])
def test_constant_huge_and_separating_scores_stay_finite(scores: Tensor) -> None:
    y = (torch.arange(20) >= 17).long().numpy()
    assert all(np.isfinite(signals(scores, y, AP)))


def test_one_class_has_no_signals() -> None:
    assert all(np.isnan(signals(torch.arange(5.0), np.zeros(5, dtype=np.int64), AP)))


def run(model: str, method: str, seed: int, test: float, explained: float, validation: float) -> dict[str, Any]:
    """A run as results.json holds it, of which a forecast reads these."""
    known = {"signals": Signals(explained, 1.0, 0.1)._asdict()} if method in ("tuned_ce", "trees") else {}
    return {"model": model, "method": method, "seed": seed, "test": test, "validation": validation, **known}


def test_no_misfit_means_no_gain_and_more_of_it_more() -> None:
    def gain(explained: float, value: float, positives: float) -> float:
        model, reference = Signals(explained, 1.0, 0.1), Signals(0.6, 1.0, 0.1)
        return forecast(model, reference, value=value, reference_value=0.7, positives=positives).gain

    assert gain(0.6, 0.7, 500) == gain(0.8, 0.9, 500) == 0
    assert 0 < gain(0.5, 0.6, 500) < gain(0.3, 0.4, 500)
    assert gain(0.3, 0.4, 50) < gain(0.3, 0.4, 5_000)


def test_forecast_of_a_comparison_stands_beside_what_came_out() -> None:
    methods = [{"name": "smooth_ap_stage", "label": "Smooth-AP, stage", "kind": "ranking"}]
    runs = [
        run("linear", method, seed, test + 0.01 * seed, explained, validation)
        for seed in range(2)
        for method, test, explained, validation in (
            ("tuned_ce", 0.3, 0.3, 0.3),
            ("trees", 0.6, 0.6, 0.7),
            ("smooth_ap_stage", 0.36, 0.0, 0.4),
        )
    ]
    (row,) = forecasts(runs, ["linear", "additive"], methods, positives=300)
    expected = forecast(Signals(0.3, 1.0, 0.1), Signals(0.6, 1.0, 0.1), value=0.3, reference_value=0.7, positives=300)
    assert row["gain"] == pytest.approx(expected.gain)
    assert row["low"] < row["gain"] < row["high"]
    assert row["observed"] == pytest.approx(0.06)
    assert row["sentence"].endswith("; Smooth-AP, stage gave +0.060")
    (alone,) = forecasts(
        [one for one in runs if one["method"] != "smooth_ap_stage"], ["linear"], methods, positives=300
    )
    assert alone["observed"] is None
    assert forecasts([one for one in runs if one["method"] != "trees"], ["linear"], methods, positives=300) == []


def test_factors_are_found_again_and_a_set_left_out_is_forecast_by_the_others() -> None:
    runs, sets = [], {}
    for number in range(4):
        name, gap = f"set{number}", 0.1 * number
        sets[name] = {"positives": 10_000, "rows": 100_000, "classes": 2}
        for seed in range(3):
            made = [
                run("linear", "tuned_ce", seed, 0.5 - gap, 0.5, 0.5 - gap),
                run("trees", "trees", seed, 0.5, 0.5, 0.5),
                run("linear", "smooth_ap_stage", seed, 0.5 - gap + 0.3 * gap, 0.5, 0.5),
            ]
            runs += [{**one, "data": name, "objective": "ap"} for one in made]
    rows = observed([{"runs": runs, "sets": sets}])
    found = summary(left_out(rows))
    assert found["rows"] == found["families"] == 4
    assert found["error"] < 1e-6 < found["error_of_mean"]
    assert (found["sign_right"], found["large"]) == (3, 3)
    support = 6_000 / (6_000 + 100)
    assert shipped(rows, left_out(rows))["factors"]["gap"] == pytest.approx(0.3 / support, abs=1e-3)
