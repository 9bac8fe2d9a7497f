"""Soft recall by hand: where the threshold lies, and how it moves."""

import math

import numpy as np
import pytest
import torch

import reference
from rareloss.functional import soft_recall_at_quantile
from rareloss.ops import margin_over_threshold


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


def laws(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    normal = torch.randn(rows, dtype=torch.float64, generator=generator)
    place = torch.randperm(rows, generator=generator).double()
    heavy = normal / torch.rand(rows, dtype=torch.float64, generator=generator).sqrt()
    return {
        "normal": normal,
        "wide": 5 * normal,
        "heavy tails": heavy,
        "two clusters": normal + 1e4 * (place < rows / 2),
        "a cluster of the share": normal / 1000 + 10 * (place < rows / 200),
        "outliers": torch.where(place < 50, 1e30, torch.where(place > rows - 50, -1e30, normal)),
        "all equal": torch.full_like(normal, 2.5),
        "few values": (4 * normal).round(),
        "gaps": 30 * 0.005 * place,
        "sorted": normal.sort().values,
    }


def counted_by(kind: str, rows: int) -> torch.Tensor:
    drawn = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return {"one": torch.ones_like(drawn), "some": drawn * (drawn < 0.3), "heavy": drawn**-1.5}[kind]


@pytest.mark.parametrize("law", laws(1))
@pytest.mark.parametrize("kind", ["one", "some", "heavy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_share_above_the_threshold_of_a_large_pool_is_the_quantile(law: str, kind: str, dtype: torch.dtype) -> None:
    rows = 20000
    scores, counted = laws(rows)[law].to(dtype)[None], counted_by(kind, rows).to(dtype)[None]
    tail = 1e-6 if dtype == torch.float32 else 1e-10
    for quantile, temperature in ((0.005, 0.005), (0.005, 1.0), (0.6, 0.05)):
        leaf = scores.clone().requires_grad_()
        margin, theta = margin_over_threshold(leaf, counted, quantile, temperature)
        whole = counted.double().sum()
        above = (counted.double() * torch.sigmoid(margin)).sum()
        assert (above / whole).item() == pytest.approx(quantile, rel=tail)
        # The mean of the rows' gradients, weighted by their slopes; logs where these underflow.
        slope = torch.nn.functional.logsigmoid(margin) + torch.nn.functional.logsigmoid(-margin)
        pull = torch.softmax(counted.double().log() + slope.detach(), 1)
        margin[0, 0].backward()
        assert leaf.grad is not None
        expected = -pull / temperature
        expected[0, 0] += 1 / temperature
        bound = {torch.float32: 1e-5, torch.float64: 1e-7}[dtype] / temperature
        assert (leaf.grad - expected).abs().max().item() <= bound
        assert theta.dtype == torch.float64


def test_margins_at_other_points_and_of_many_classes() -> None:
    scores = torch.randn(3, 5000, dtype=torch.float64)
    counted = torch.rand(3, 5000, dtype=torch.float64)
    margin, theta = margin_over_threshold(scores, counted, 0.02, 0.1)
    at = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    elsewhere, _ = margin_over_threshold(scores, counted, 0.02, 0.1, at=at)
    torch.testing.assert_close(elsewhere[:, 0], (at[:, 0] - theta) / 0.1)
    for c in range(3):
        alone, _ = margin_over_threshold(scores[c : c + 1], counted[c : c + 1], 0.02, 0.1)
        torch.testing.assert_close(alone[0], margin[c])
        few, _ = margin_over_threshold(scores[:, :50], counted[:, :50], 0.02, 0.1)
        alone, _ = margin_over_threshold(scores[c : c + 1, :50], counted[c : c + 1, :50], 0.02, 0.1)
        torch.testing.assert_close(alone[0], few[c])


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_scale_of_weights_in_float32_changes_nothing_in_a_large_pool(factor: float) -> None:
    scores, positive, weight = torch.randn(30000), torch.arange(30000) % 100 == 0, torch.rand(30000) + 0.1
    results = []
    for scale in (1.0, factor):
        leaf = scores.clone().requires_grad_()
        value, _ = soft_recall_at_quantile(leaf, positive, weight * scale, quantile=0.01, among="negatives")
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-7)


def test_non_finite_score_of_a_large_pool_shows_everywhere() -> None:
    for wrong in (math.nan, math.inf, -math.inf):
        scores = torch.randn(5000)
        scores[7] = wrong
        scores.requires_grad_()
        value, _ = soft_recall_at_quantile(scores, torch.arange(5000) % 50 == 0)
        value.backward()
        assert math.isnan(value.item())
        assert scores.grad is not None
        assert bool(scores.grad.isnan().all())


@pytest.mark.parametrize("classes", [(), (3,)])
@pytest.mark.parametrize("rows", [100, 10_000])
def test_second_derivative_is_refused(rows: int, classes: tuple[int, ...]) -> None:
    scores = torch.randn(rows, *classes, requires_grad=True)
    positive = (torch.arange(rows) < rows // 10).view(-1, *[1 for _ in classes]).expand_as(scores)

    def slope_of(value: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(value.sum(), scores, create_graph=True)
        return slope.square().sum()

    value, _ = soft_recall_at_quantile(scores, positive, quantile=0.1, temperature=0.5)
    by_class = scores.reshape(rows, -1).mT
    margin, _ = margin_over_threshold(by_class, torch.ones_like(by_class), 0.1, 0.5)
    for linear_or_not in (value, margin[:, 0]):
        slope = slope_of(linear_or_not)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(slope, scores, retain_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            slope.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            slope.backward(inputs=[scores])
    twice = torch.func.grad(lambda s: torch.func.grad(lambda r: recall_of(r, positive))(s).square().sum())
    with pytest.raises(RuntimeError, match="no second derivative"):
        twice(scores.detach())


def recall_of(scores: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    return soft_recall_at_quantile(scores, positive, quantile=0.1, temperature=0.5).value.sum()


@pytest.mark.parametrize("rows", [2, 17, 3000])
@pytest.mark.parametrize("quantile", [0.005, 0.6])
def test_scores_near_the_end_of_float64_have_a_gradient(rows: int, quantile: float) -> None:
    positive = torch.arange(rows) % 2 == 0
    scores = (
        torch.randn(rows, dtype=torch.float64).sign() * torch.rand(rows, dtype=torch.float64) * 2e307
    ).requires_grad_()
    value, _ = soft_recall_at_quantile(scores, positive, quantile=quantile, temperature=1e-3)
    (gradient,) = torch.autograd.grad(value, scores)
    assert torch.isfinite(gradient).all()
    by_class = scores.detach()[:, None].expand(rows, 2).clone().requires_grad_()  # small classes go another way
    values, _ = soft_recall_at_quantile(
        by_class, positive[:, None].expand(rows, 2), quantile=quantile, temperature=1e-3
    )
    (gradients,) = torch.autograd.grad(values.sum(), by_class)
    assert values[0].item() == pytest.approx(value.item(), abs=1e-9)
    assert torch.isfinite(gradients).all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
@pytest.mark.parametrize("way", ["eager", "vmap", "compiled", "classes"])
@pytest.mark.parametrize("above", [7, 14, 28, 29, 55, 57, 58])
@pytest.mark.parametrize("copies", [1, 100])
def test_share_between_two_rows_but_for_rounding_lies_halfway(above: int, way: str, copies: int) -> None:
    # above / 100 times 100 is not always above in floating point: the threshold would lie 33 temperatures from a row.
    quantile = above / 100
    scores = 100.0 * torch.arange(100.0, dtype=torch.float64).repeat_interleave(copies)[None]
    weight = torch.ones_like(scores)

    def offset(scores: torch.Tensor) -> torch.Tensor:
        return margin_over_threshold(scores, weight.expand_as(scores), quantile, 1.0)[0]

    expected = scores - 100.0 * (99.5 - above)
    if way == "vmap":
        margin = torch.vmap(offset)(scores[None])[0]
    elif way == "compiled":
        torch.compiler.reset()
        margin = torch.compile(offset, fullgraph=True, backend="aot_eager")(scores)
    elif way == "classes":
        margin = offset(scores.expand(2, -1).contiguous())[1:]
    else:
        margin = offset(scores)
    torch.testing.assert_close(margin, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("above", [7, 14, 28, 29, 55, 57, 58])
@pytest.mark.parametrize("copies", [1, 100])
def test_positive_halfway_between_two_negatives_is_half_found(above: int, copies: int, dtype: torch.dtype) -> None:
    negatives = 100.0 * torch.arange(100.0, dtype=dtype).repeat_interleave(copies)
    scores = torch.cat([negatives, torch.tensor([100.0 * (99.5 - above)], dtype=dtype)])
    positive = torch.arange(len(scores)) == len(negatives)
    value, _ = soft_recall_at_quantile(scores, positive, quantile=above / 100, among="negatives", temperature=1.0)
    assert value.item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [40, 9000])
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30, 2e-8, 1e30, 1e45, 1e100, 1e300])
def test_temperatures_of_any_size_have_a_value_and_a_gradient(
    rows: int, temperature: float, dtype: torch.dtype
) -> None:
    drawn = torch.randn(rows, dtype=torch.float64)
    positive = torch.arange(rows) % 7 == 0
    for scores in (drawn, 1 + 2e-8 * drawn, (2 * drawn).round()):
        for quantile in (0.1, 0.3, 1 / 3):
            leaf = scores.to(dtype).requires_grad_()
            value, _ = soft_recall_at_quantile(leaf, positive, quantile=quantile, temperature=temperature)
            (gradient,) = torch.autograd.grad(value, leaf)
            assert -1e-9 <= value.item() <= 1 + 1e-6
            assert torch.isfinite(gradient).all()
            if temperature >= 1e30:  # every row is found with the quantile, and nothing can change that
                assert value.item() == pytest.approx(quantile, rel=1e-6)
                assert not gradient.abs().max() > 1e-29


@pytest.mark.parametrize("rows", [30, 20_000])
@pytest.mark.parametrize("quantile", [1e-300, 1e-14, 1 - 1e-14, 1 - 2**-53])
def test_quantiles_at_either_end(rows: int, quantile: float) -> None:
    scores, positive = torch.randn(rows, dtype=torch.float64), torch.arange(rows) % 3 == 0
    weight = torch.rand(rows, dtype=torch.float64) + 0.01
    scores.requires_grad_()
    value, _ = soft_recall_at_quantile(scores, positive, weight, quantile=quantile, temperature=0.1)
    value.backward()
    assert value.item() == pytest.approx(quantile, abs=1e-9)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
