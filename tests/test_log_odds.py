"""One-vs-rest log-odds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from rareloss.functional import log_odds


def test_three_classes_by_hand() -> None:
    got = log_odds(torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64))
    expected = [
        1.0 - math.log(math.exp(0) + math.exp(-2)),
        0.0 - math.log(math.exp(1) + math.exp(-2)),
        -2.0 - math.log(math.exp(1) + math.exp(0)),
    ]
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


def test_two_classes_are_one_difference() -> None:
    logits = torch.randn(5, 2)
    difference = logits[:, 0] - logits[:, 1]
    torch.testing.assert_close(log_odds(logits), torch.stack([difference, -difference], dim=1))


@given(seed=st.integers(0, 1000), classes=st.integers(2, 8), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_equals_the_logit_of_the_probability(seed: int, classes: int, scale: float) -> None:
    logits = scale * torch.randn(4, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_p = torch.log_softmax(logits, dim=-1)
    others = torch.stack(
        [torch.logsumexp(torch.cat([log_p[:, :c], log_p[:, c + 1 :]], dim=1), dim=1) for c in range(classes)], dim=1
    )
    torch.testing.assert_close(log_odds(logits), log_p - others, rtol=1e-10, atol=1e-10)


def test_offset_of_a_row_changes_nothing() -> None:
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(log_odds(logits + 7 * torch.randn(3, 4, 1, dtype=torch.float64)), log_odds(logits))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_gradcheck(classes: int) -> None:
    logits = torch.randn(3, classes, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_odds, logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_certain_rows_stay_apart(dtype: torch.dtype) -> None:
    # Where a softmax saturates to a tie, log-odds still rank.
    logits = torch.tensor([[200.0, 0.0, 0.0], [400.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    got = log_odds(logits)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got[:, 0].tolist() == pytest.approx([200 - math.log(2), 400 - math.log(2)], rel=1e-6)
    got.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_order_within_a_class_differs_from_the_raw_logits() -> None:
    # Raw, the second row has more of class 0; by probability it has less.
    logits = torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]])
    ranked = log_odds(logits)[:, 0]
    assert ranked[0] > ranked[1]
    assert ranked.argsort().tolist() == torch.softmax(logits, dim=1)[:, 0].argsort().tolist()


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_gradient_equals_that_of_logsumexp(classes: int, scale: float) -> None:
    logits = (scale * torch.randn(40, classes, dtype=torch.float64)).requires_grad_()
    without_own = logits[:, None].expand(-1, classes, -1).masked_fill(torch.eye(classes, dtype=torch.bool), -torch.inf)
    arriving = torch.randn(40, classes, dtype=torch.float64)
    (expected,) = torch.autograd.grad(logits - without_own.logsumexp(-1), logits, arriving)
    (got,) = torch.autograd.grad(log_odds(logits), logits, arriving)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    single = logits.detach().float().requires_grad_()
    (got,) = torch.autograd.grad(log_odds(single), single, arriving.float())
    assert (got.double() - expected).norm() <= 1e-5 * expected.norm()


def test_second_derivative() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(log_odds, logits)


def test_function_transforms() -> None:
    logits, arriving = torch.randn(3, 5, 4), torch.randn(5, 4)
    leaf = logits.clone().requires_grad_()
    (log_odds(leaf) * arriving).sum().backward()
    got = vmap(grad(lambda z: (log_odds(z) * arriving).sum()))(logits)
    torch.testing.assert_close(got, leaf.grad)
    torch.testing.assert_close(vmap(log_odds)(logits), log_odds(logits))


def test_rows_beyond_a_chunk_and_leading_dimensions() -> None:
    logits = torch.randn(2, 50_000, 3, dtype=torch.float64, requires_grad=True)
    got = log_odds(logits)
    torch.testing.assert_close(got[1, 49_990:], log_odds(logits[1, 49_990:]))
    got[1, 49_999, 0].backward()
    assert logits.grad is not None
    assert logits.grad.count_nonzero() == 3


def test_no_rows() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    log_odds(logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 3)
