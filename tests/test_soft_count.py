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
from rareloss.ops import soft_ranks


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_as_row_and_as_point_is_summed_before_it_is_rounded(dtype: torch.dtype) -> None:
    # The weights are nearly alike, so nearly all of it cancels.
    half, weights = torch.randn(64).to(dtype).requires_grad_(), 1 + 1e-3 * torch.rand(64)
    exact = half.detach().double().requires_grad_()
    soft_count(half, weights, temperature=1e-2).sum().backward()
    soft_count(exact, weights.double(), temperature=1e-2).sum().backward()
    assert half.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(half.grad.double(), exact.grad, rtol=1e-2, atol=1e-4)
    (gradient,) = torch.autograd.grad(soft_count(half, 1e30 * weights, temperature=1e-2).sum(), half)
    assert not torch.isnan(gradient).any()  # what float16 cannot hold is infinite


def test_no_rows_count_zero() -> None:
    assert soft_count(torch.zeros(0), torch.zeros(0), at=torch.zeros(2), temperature=1.0).tolist() == [0.0, 0.0]
    assert soft_count(torch.zeros(0), torch.zeros(0), temperature=1.0).shape == (0,)


def pools_to_rank(classes: int, rows: int, dtype: torch.dtype, law: str) -> tuple[torch.Tensor, ...]:
    """Draw scores, weights (one for all classes of a row), and a different number of ranked rows in each class."""
    scores = torch.randn(classes, rows, dtype=dtype)
    if law == "outliers":
        scores[:, ::7] = 1e30
        scores[:, 1::7] = -1e4
    weight = (0.1 + torch.rand(rows, dtype=dtype)).expand(classes, rows)
    number = rows // 4 - torch.arange(classes)
    ranked = torch.stack([torch.randperm(rows)[: rows // 4] for _ in range(classes)])
    own = weight.gather(1, ranked) * (torch.arange(rows // 4) < number[:, None])
    return scores, weight, ranked, own


@pytest.mark.parametrize("law", ["normal", "outliers"])
@pytest.mark.parametrize(("classes", "rows"), [(1, 40), (1, 1500), (2, 2800), (3, 600), (40, 60)])
@pytest.mark.parametrize("alike", [True, False])
def test_ranks_of_rows_equal_two_counts(classes: int, rows: int, alike: bool, law: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-6)):
        scores, weight, ranked, own = pools_to_rank(classes, rows, dtype, law)
        weight = weight if alike else weight.contiguous()
        leaf, exact = scores.clone().requires_grad_(), scores.double().requires_grad_()
        found = soft_ranks(leaf, weight, ranked, own, 0.05)
        at = exact.gather(1, ranked)
        halves = own.double() / 2
        negative = weight.double().scatter_add(1, ranked, -own.double())
        among_negatives = torch.sigmoid((exact[:, None] - at[..., None]) / 0.05) @ negative[..., None]
        among_own = torch.sigmoid((at[:, None] - at[..., None]) / 0.05) @ own.double()[..., None]
        expected = [halves + among_own[..., 0], among_negatives[..., 0]]
        grad_output = [torch.where(own > 0, torch.rand_like(rank) / sum(expected).detach(), 0.0) for rank in expected]
        for got, rank in zip(found, expected, strict=True):
            assert ((got.double() - rank).abs() <= tolerance * sum(expected))[own > 0].all()
        (slope,) = torch.autograd.grad(found, leaf, [one.to(dtype) for one in grad_output])
        (exact_slope,) = torch.autograd.grad(expected, exact, grad_output)
        assert (slope.double() - exact_slope).norm() <= 5 * tolerance * exact_slope.norm()


def test_ranks_have_no_second_derivative() -> None:
    scores = torch.randn(1, 9, requires_grad=True)
    weight = torch.ones(1, 9)
    _, among_negatives = soft_ranks(scores, weight, None, weight, 0.5)
    (slope,) = torch.autograd.grad(among_negatives.sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.square().sum().backward()


def test_one_kind_of_rank_alone_has_a_gradient() -> None:
    scores, weight, ranked, own = pools_to_rank(2, 30, torch.float64, "normal")
    leaf = scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_ranks(s, weight, ranked, own, 0.5)[0] * own, leaf)
    assert torch.autograd.gradcheck(lambda s: soft_ranks(s, weight, ranked, own, 0.5)[1] * own, leaf)
