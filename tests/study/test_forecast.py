"""What is read off the validation scores of a scorer before any ranking stage."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rareloss import Objective
from rareloss.study.forecast import signals

AP = Objective("ap")


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
