"""Soft recall by hand: where the threshold lies, and how it moves."""

import math

import numpy as np
import pytest
import torch

import reference
from rareloss.functional import soft_recall_at_quantile


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_half_of_two_rows_is_the_middle() -> None:
    # By symmetry the threshold of the top half of {0, 3} is 1.5.
    scores = torch.tensor([3.0, 0.0], dtype=torch.float64)
    value, _ = soft_recall_at_quantile(scores, torch.tensor([True, False]), quantile=0.5, temperature=1.0)
    assert value.item() == pytest.approx(sigmoid(1.5), abs=1e-12)


def test_one_negative_sets_the_threshold_alone() -> None:
    # sigmoid((0 - theta) / t) = f, so theta = -t logit(f).
    scores = torch.tensor([0.4, -0.1, 0.0], dtype=torch.float64)
    positive = torch.tensor([True, True, False])
    value, _ = soft_recall_at_quantile(scores, positive, quantile=0.2, among="negatives", temperature=0.5)
    theta = -0.5 * math.log(0.2 / 0.8)
    assert value.item() == pytest.approx((sigmoid((0.4 - theta) / 0.5) + sigmoid((-0.1 - theta) / 0.5)) / 2, abs=1e-12)


def test_equal_scores_are_found_in_proportion() -> None:
    scores, positive = torch.full((10,), 2.5, dtype=torch.float64), torch.arange(10) < 3
    for quantile in (0.005, 0.3, 0.9):
        value, _ = soft_recall_at_quantile(scores, positive, quantile=quantile)
        assert value.item() == pytest.approx(quantile, abs=1e-12)


def test_weights_of_positives_share_the_value() -> None:
    scores = torch.tensor([10.0, -10.0, 0.0], dtype=torch.float64)
    positive, weight = torch.tensor([True, True, False]), torch.tensor([3.0, 1.0, 1.0])
    value, _ = soft_recall_at_quantile(
        scores, positive, weight.double(), quantile=0.5, among="negatives", temperature=0.1
    )
    assert value.item() == pytest.approx(3 / (3 + 1), abs=1e-12)


def test_capacity_below_the_base_rate_caps_the_value() -> None:
    scores = torch.arange(100.0, dtype=torch.float64)
    value, _ = soft_recall_at_quantile(scores, scores >= 80, quantile=0.05, temperature=1e-3)
    assert value.item() == pytest.approx(5 / 20, abs=1e-9)


def test_threshold_moves_with_the_rows_that_set_it() -> None:
    # One negative at 0 sets theta = -t logit(f): the positive's gradient is taken back by the negative, all of it.
    scores = torch.tensor([0.3, 0.0], dtype=torch.float64, requires_grad=True)
    soft_recall_at_quantile(
        scores, torch.tensor([True, False]), quantile=0.2, among="negatives", temperature=0.5
    ).value.backward()
    found = sigmoid((0.3 + 0.5 * math.log(0.2 / 0.8)) / 0.5)
    slope = found * (1 - found) / 0.5
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([slope, -slope], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [10.0, 1e4, 1e12])
def test_in_a_gap_the_threshold_lies_halfway_and_moves_with_both_sides(dtype: torch.dtype, gap: float) -> None:
    # Half of the iid negatives on either side of a gap that no slope of a sigmoid survives; a mined positive halfway.
    scores = torch.tensor([0.0, 0.0, gap, gap, gap / 2], dtype=dtype, requires_grad=True)
    positive = torch.tensor([False, False, False, False, True])
    value, _ = soft_recall_at_quantile(
        scores, positive, quantile=0.5, among="negatives", temperature=0.01, iid_mask=~positive
    )
    value.backward()
    assert value.item() == pytest.approx(0.5, abs=1e-6)
    assert scores.grad is not None
    slope = 0.5 * (1 - 0.5) / 0.01
    assert scores.grad.tolist() == pytest.approx([-slope / 4] * 4 + [slope], rel=1e-4)


def test_in_a_gap_unequal_sides_pull_alike() -> None:
    # a e^(-(top - theta) / t) = b e^(-(theta - bottom) / t) with a = 1 row above and b = 3 below:
    # the threshold lies t log(3) / 2 above the middle.
    scores = torch.tensor([10.0, 0.0, 0.0, 0.0, 5.0], dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([False, False, False, False, True])
    value, _ = soft_recall_at_quantile(
        scores, positive, quantile=0.25, among="negatives", temperature=0.1, iid_mask=~positive
    )
    value.backward()
    found = sigmoid(math.log(1 / 3) / 2)
    assert value.item() == pytest.approx(found, abs=1e-9)
    slope = found * (1 - found) / 0.1
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-slope / 2, *[-slope / 6] * 3, slope], rel=1e-6)


@pytest.mark.parametrize("quantile", [1e-4, 0.005, 0.5, 0.999])
@pytest.mark.parametrize("among", ["all", "negatives"])
def test_any_quantile_equals_the_oracle(quantile: float, among: str) -> None:
    scores = torch.randn(60, dtype=torch.float64)
    positive = torch.arange(60) % 5 == 0
    value, _ = soft_recall_at_quantile(scores, positive, quantile=quantile, among=among, temperature=0.2)
    expected = reference.soft_recall_at_quantile(scores.numpy(), positive.numpy(), np.ones(60), quantile, among, 0.2)
    assert value.item() == pytest.approx(expected, rel=1e-7)


def test_raising_every_score_gains_nothing() -> None:
    scores = torch.randn(200, requires_grad=True)
    offset = torch.zeros((), requires_grad=True)
    soft_recall_at_quantile(scores + offset, torch.arange(200) < 20, quantile=0.1).value.backward()
    assert offset.grad is not None
    assert scores.grad is not None
    assert abs(offset.grad.item()) < 1e-6 * scores.grad.abs().sum().item()
