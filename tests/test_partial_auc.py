"""Soft partial AUC by hand: which negatives are in the band, and by how much."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given

import reference
from pools import Pool, gradient, pools
from rareloss.functional import soft_partial_auc


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_edges_take_rows_by_fractions() -> None:
    # Four negatives and the band 0.125 to 0.625: half of the first, all of the second, half of the third.
    scores = torch.tensor([0.5, 3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    positive = torch.tensor([True, False, False, False, False])
    value, _ = soft_partial_auc(scores, positive, alpha=0.125, beta=0.625, temperature=1.0)
    expected = (0.5 * sigmoid(0.5 - 3) + sigmoid(0.5 - 2) + 0.5 * sigmoid(0.5 - 1)) / 2
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_band_narrower_than_one_row_is_the_highest_negative() -> None:
    scores = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    positive = torch.tensor([True, False, False])
    value, _ = soft_partial_auc(scores, positive, beta=0.01, temperature=1.0)
    assert value.item() == pytest.approx(sigmoid(1.0 - 0.5), abs=1e-12)


def test_weights_stretch_the_band() -> None:
    # Of negatives of weight 3 and 1 the band to one half holds 2 of the first.
    scores = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    positive = torch.tensor([True, True, False, False])
    weight = torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64)
    value, _ = soft_partial_auc(scores, positive, weight, beta=0.5, temperature=1.0)
    assert value.item() == pytest.approx((2 * sigmoid(0.5) + 1 * sigmoid(-1.5)) / 3, abs=1e-12)
    value, _ = soft_partial_auc(scores, positive, weight, beta=1.0, temperature=1.0)
    expected = (2 * (3 * sigmoid(0.5) + sigmoid(1.0)) + (3 * sigmoid(-1.5) + sigmoid(-1.0))) / (3 * 4)
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_tied_rows_share_an_edge_alike() -> None:
    scores = torch.tensor([1.0, 0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    soft_partial_auc(scores, torch.tensor([True, False, False, False]), beta=1 / 3, temperature=1.0).value.backward()
    slope = sigmoid(0.5) * (1 - sigmoid(0.5))
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([slope, -slope / 2, -slope / 2, 0.0], abs=1e-12)


def test_value_is_continuous_where_rows_swap_at_an_edge() -> None:
    positive = torch.tensor([True, False, False])
    values = []
    for lower in (0.5 - 1e-9, 0.5, 0.5 + 1e-9):
        scores = torch.tensor([0.0, 0.5, lower], dtype=torch.float64)
        values.append(soft_partial_auc(scores, positive, beta=0.5, temperature=0.1).value.item())
    assert values[1] == pytest.approx(values[0], abs=1e-7)
    assert values[2] == pytest.approx(values[1], abs=1e-7)


@given(pool=pools())
def test_gradient_equals_the_oracle_ties_or_none(pool: Pool) -> None:
    _, slope = gradient(lambda s, *rest: soft_partial_auc(s, *rest, alpha=0.1, beta=0.4, temperature=0.1), *pool)
    expected = reference.soft_partial_auc_gradient(*pool.arrays(), 0.1, 0.4, 0.1)
    np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-7, atol=1e-9)


def test_rows_outside_the_band_get_no_gradient() -> None:
    scores = torch.randn(101, requires_grad=True)
    positive = torch.arange(101) == 0
    soft_partial_auc(scores, positive, alpha=0.1, beta=0.3, temperature=1.0).value.backward()
    assert scores.grad is not None
    order = scores.detach()[1:].argsort(descending=True) + 1
    assert (scores.grad[order[:10]] == 0).all()
    assert (scores.grad[order[10:30]] < 0).all()
    assert (scores.grad[order[30:]] == 0).all()
    assert scores.grad[0] > 0


@pytest.mark.parametrize("band", [(0.0, 0.005), (0.002, 0.01), (0.3, 0.9), (0.0, 1.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_large_pool_equals_the_sum_over_its_pairs(band: tuple[float, float], weighted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = (torch.randn(20_000, generator=generator, dtype=torch.float64) * 64).round() / 64
    positive = torch.rand(20_000, generator=generator) < 0.005
    weight = torch.rand(20_000, generator=generator).double() if weighted else torch.ones(20_000).double()
    weight[::7] = 0.0
    share = torch.from_numpy(reference.band_weights(scores.numpy(), (weight * ~positive).numpy(), *band))
    found = weight * positive

    def pairs(s: torch.Tensor) -> torch.Tensor:
        rows = found.nonzero()[:, 0]
        return (found[rows, None] * share * torch.sigmoid((s[rows, None] - s) / 0.1)).sum() / (
            found.sum() * share.sum()
        )

    leaf, twin = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    value, _ = soft_partial_auc(leaf, positive, weight, alpha=band[0], beta=band[1], temperature=0.1)
    value.backward()
    expected = pairs(twin)
    expected.backward()
    assert leaf.grad is not None
    assert twin.grad is not None
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-8, atol=1e-12)
