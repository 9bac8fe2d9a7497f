"""Smooth average precision by hand."""

import math

import pytest
import torch

from rareloss.functional import smooth_average_precision


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_one_positive_between_two_negatives() -> None:
    # Its rank among positives is 1; among all 1, plus one temperature below the upper, plus two above the lower.
    scores = torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64)
    value, _ = smooth_average_precision(scores, torch.tensor([False, True, False]), temperature=1.0)
    assert value.item() == pytest.approx(1 / (1 + sigmoid(3.0 - 2.0) + sigmoid(0.0 - 2.0)), abs=1e-12)


def test_two_weighted_positives_and_a_negative() -> None:
    scores = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    positive = torch.tensor([True, True, False])
    weight = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    upper = (2 + 3 * sigmoid(-1.0)) / (2 + 3 * sigmoid(-1.0) + 5 * sigmoid(-1.0))
    lower = (3 + 2 * sigmoid(1.0)) / (3 + 2 * sigmoid(1.0) + 5 * 0.5)
    value, _ = smooth_average_precision(scores, positive, weight, temperature=1.0)
    assert value.item() == pytest.approx((2 * upper + 3 * lower) / (2 + 3), abs=1e-12)


def test_gradient_of_one_pair() -> None:
    # AP = 1 / (1 + sigmoid(-d)) for a positive d above a negative.
    scores = torch.tensor([0.7, 0.0], dtype=torch.float64, requires_grad=True)
    smooth_average_precision(scores, torch.tensor([True, False]), temperature=1.0).value.backward()
    below = sigmoid(-0.7)
    slope = below * (1 - below) / (1 + below) ** 2
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([slope, -slope], abs=1e-12)


def test_equal_scores_give_half_of_everybody_else() -> None:
    scores, positive = torch.zeros(10, dtype=torch.float64), torch.arange(10) < 2
    value, _ = smooth_average_precision(scores, positive, temperature=0.01)
    assert value.item() == pytest.approx((1 + 1 * 0.5) / (1 + 9 * 0.5), abs=1e-12)


@pytest.mark.parametrize(
    ("order", "expected"), [("pnp", (1 / 1 + 2 / 3) / 2), ("npp", (1 / 2 + 2 / 3) / 2), ("ppn", 1.0)]
)
def test_low_temperature_gives_the_textbook_value(order: str, expected: float) -> None:
    positive = torch.tensor([letter == "p" for letter in order])
    value, _ = smooth_average_precision(-torch.arange(3.0, dtype=torch.float64), positive, temperature=1e-3)
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_perfect_order_has_almost_no_gradient_and_a_wrong_one_has() -> None:
    positive = torch.tensor([True, False, False])
    slopes = {}
    for name, values in {"right": [1.0, 0.0, -0.1], "wrong": [0.0, 0.05, -0.05]}.items():
        scores = torch.tensor(values, requires_grad=True)
        smooth_average_precision(scores, positive, temperature=0.05).value.backward()
        assert scores.grad is not None
        slopes[name] = scores.grad
    assert slopes["right"].abs().max() < 1e-6
    assert slopes["wrong"][0] > 1
    assert (slopes["wrong"][1:] < 0).all()


@pytest.mark.parametrize("rows", [60, 3000, 30_000])
@pytest.mark.parametrize("apart", [4.0, 10.0, 16.0])
def test_gradient_of_a_well_separated_pool_keeps_its_digits(rows: int, apart: float) -> None:
    # Precisions are 1 to the last digits, and so are the ranks of the positives among each other.
    generator = torch.Generator().manual_seed(rows)
    positive = torch.arange(rows) % 20 == 0
    scores = torch.where(positive, 1.0, 0.0) + 0.05 * torch.rand(rows, generator=generator)
    single, double = scores.requires_grad_(), scores.detach().double().requires_grad_()
    for leaf in (single, double):
        smooth_average_precision(leaf, positive, temperature=1 / apart).value.backward()
    assert single.grad is not None
    assert double.grad is not None
    assert (single.grad - double.grad).norm() <= 5e-6 * double.grad.norm()
