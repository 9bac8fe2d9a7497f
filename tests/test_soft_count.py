"""The one primitive: the soft count of rows above a point."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from pools import Pool, pools
from rareloss.functional import soft_count


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_three_rows_by_hand() -> None:
    scores = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
    counts = soft_count(scores, weights, at=torch.tensor([0.0], dtype=torch.float64), temperature=0.5)
    assert counts.tolist() == pytest.approx([1 * sigmoid(4.0) + 4 * 0.5 + 2 * sigmoid(-2.0)], abs=1e-12)


@given(pool=pools(), temperature=st.sampled_from([0.01, 0.3]))
def test_count_at_each_score_equals_the_oracle(pool: Pool, temperature: float) -> None:
    scores, _, weight = pool.arrays()
    expected = [reference.soft_count(scores, weight, at, temperature) for at in scores]
    got = soft_count(pool.scores, pool.weight, temperature=temperature)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-12)
    single = soft_count(pool.scores.float(), pool.weight.float(), temperature=temperature)
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 255, 1025, 3001])
def test_any_size_equals_the_oracle(rows: int) -> None:
    scores, weights = torch.randn(rows), torch.rand(rows)
    at = torch.linspace(-4, 4, 13)
    exact = weights.double() @ torch.sigmoid((scores.double()[:, None] - at.double()) / 0.1)
    torch.testing.assert_close(
        soft_count(scores, weights, at=at, temperature=0.1).double(), exact, rtol=2e-5, atol=1e-5
    )
    exact = torch.sigmoid((scores.double() - scores.double()[:, None]) / 0.1) @ weights.double()
    torch.testing.assert_close(soft_count(scores, weights, temperature=0.1).double(), exact, rtol=2e-5, atol=1e-5)


def test_several_weights_count_in_one_pass() -> None:
    scores, weights = torch.randn(30, dtype=torch.float64), torch.rand(4, 30, dtype=torch.float64)
    together = soft_count(scores, weights, temperature=0.2)
    assert together.shape == (4, 30)
    for k in range(4):
        torch.testing.assert_close(together[k], soft_count(scores, weights[k], temperature=0.2))


def test_columns_are_independent_pools() -> None:
    scores, weights = torch.randn(20, 3, dtype=torch.float64), torch.rand(2, 20, 3, dtype=torch.float64)
    at = torch.randn(5, 3, dtype=torch.float64)
    together = soft_count(scores, weights, at=at, temperature=0.2)
    assert together.shape == (2, 5, 3)
    for c in range(3):
        alone = soft_count(scores[:, c], weights[:, :, c], at=at[:, c], temperature=0.2)
        torch.testing.assert_close(together[..., c], alone)
    torch.testing.assert_close(
        soft_count(scores, weights[0], temperature=0.2)[:, 1],
        soft_count(scores[:, 1], weights[0, :, 1], temperature=0.2),
    )


def test_gradcheck_to_scores_points_and_weights() -> None:
    scores = torch.randn(9, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 9, dtype=torch.float64, requires_grad=True)
    at = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, w, a: soft_count(s, w, at=a, temperature=0.4), (scores, weights, at))
    assert torch.autograd.gradcheck(lambda s, w: soft_count(s, w, temperature=0.4), (scores, weights))


def test_gradcheck_of_columns() -> None:
    scores = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, w: soft_count(s, w, temperature=0.4), (scores, weights))


def test_far_scores_count_exactly() -> None:
    scores = torch.tensor([1e30, 2e4, 0.0, -1e30], requires_grad=True)
    counts = soft_count(scores, torch.tensor([1.0, 2.0, 4.0, 8.0]), temperature=0.01)
    assert counts.tolist() == [0.5, 1 + 1, 1 + 2 + 2, 1 + 2 + 4 + 4]
    counts.sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_in_float32(dtype: torch.dtype) -> None:
    scores = torch.randn(3000).to(dtype)
    counts = soft_count(scores, torch.ones(3000, dtype=dtype), temperature=0.1)
    assert counts.dtype == torch.float32
    exact = soft_count(scores.double(), torch.ones(3000, dtype=torch.float64), temperature=0.1)
    torch.testing.assert_close(counts.double(), exact, rtol=2e-5, atol=1e-4)


def test_no_rows_count_zero() -> None:
    assert soft_count(torch.zeros(0), torch.zeros(0), at=torch.zeros(2), temperature=1.0).tolist() == [0.0, 0.0]
    assert soft_count(torch.zeros(0), torch.zeros(0), temperature=1.0).shape == (0,)
