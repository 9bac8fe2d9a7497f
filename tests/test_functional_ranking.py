"""What holds for every ranking function: it equals its oracle, and changes with nothing that it should not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from pools import RANKINGS, WITH_IID, Pool, Ranking, gradient, make_pool, pools
from rareloss import functional, metrics

every_ranking = pytest.mark.parametrize("ranking", RANKINGS.values(), ids=RANKINGS.keys())
every_ranking_with_iid = pytest.mark.parametrize("ranking", WITH_IID.values(), ids=WITH_IID.keys())
temperatures = st.sampled_from([0.02, 0.1, 0.5])


@every_ranking
@given(pool=pools(), temperature=temperatures)
def test_value_equals_the_oracle(ranking: Ranking, pool: Pool, temperature: float) -> None:
    value, defined = ranking.soft(*pool, temperature=temperature)
    assert defined
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(ranking.oracle(*pool.arrays(), temperature), abs=1e-9)


@every_ranking
@given(pool=pools(), temperature=temperatures)
def test_value_in_float32_equals_the_oracle(ranking: Ranking, pool: Pool, temperature: float) -> None:
    value, _ = ranking.soft(pool.scores.float(), pool.positive, pool.weight.float(), temperature=temperature)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(ranking.oracle(*pool.arrays(), temperature), abs=2e-5)


@every_ranking
@pytest.mark.parametrize("law", ["normal", "wide", "clusters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_equals_differences_of_the_oracle(ranking: Ranking, law: str, dtype: torch.dtype) -> None:
    for seed in range(4):
        pool = make_pool(seed, 18, law)
        scores, positive, weight = pool.arrays()
        expected = reference.central_differences(lambda s: ranking.oracle(s, positive, weight, 0.1), scores)  # noqa: B023
        _, got = gradient(ranking.soft, pool.scores.to(dtype), pool.positive, pool.weight.to(dtype))
        bound = (2e-5 if dtype == torch.float32 else 1e-7) * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(got.double().numpy(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["ap", "recall_top_23", "recall_fpr_17"])
def test_gradient_at_ties_equals_differences_of_the_oracle(name: str) -> None:
    for seed in range(4):
        pool = make_pool(seed, 18, "ties")
        scores, positive, weight = pool.arrays()
        oracle = RANKINGS[name].oracle
        expected = reference.central_differences(lambda s: oracle(s, positive, weight, 0.1), scores)  # noqa: B023
        _, got = gradient(RANKINGS[name].soft, *pool)
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-7 * max(1.0, np.abs(expected).max()))


@every_ranking
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(ranking: Ranking, weighted: bool) -> None:
    pool = make_pool(3, 14, weighted=weighted)
    leaf = pool.scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: ranking.soft(s, pool.positive, pool.weight, temperature=0.3).value, leaf, eps=1e-6, atol=1e-6
    )


@every_ranking
def test_gradcheck_of_many_classes(ranking: Ranking) -> None:
    leaf = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    positive = torch.arange(36).reshape(12, 3) % 4 == 0
    weight = torch.rand(12, 3, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(lambda s: ranking.soft(s, positive, weight, temperature=0.3).value, leaf)


@every_ranking
@given(pool=pools())
def test_gradient_sums_to_zero(ranking: Ranking, pool: Pool) -> None:
    _, got = gradient(ranking.soft, *pool)
    assert abs(got.sum().item()) <= 1e-9 * max(1.0, got.abs().sum().item())
    _, got = gradient(ranking.soft, pool.scores.float(), pool.positive, pool.weight.float())
    assert abs(got.double().sum().item()) <= 1e-6 * max(1.0, got.abs().sum().item())


@every_ranking
@given(pool=pools(), shift=st.sampled_from([-1000.0, -3.0, 0.5, 64.0]))
def test_shift_of_all_scores_changes_nothing(ranking: Ranking, pool: Pool, shift: float) -> None:
    before, slope = gradient(ranking.soft, *pool)
    after, shifted_slope = gradient(ranking.soft, pool.scores + shift, pool.positive, pool.weight)
    assert after.item() == pytest.approx(before.item(), abs=1e-9)
    torch.testing.assert_close(shifted_slope, slope, rtol=1e-6, atol=1e-8)


@every_ranking
@given(pool=pools(), scale=st.sampled_from([0.125, 2.0, 1024.0]))
def test_scale_of_scores_and_temperature_changes_nothing(ranking: Ranking, pool: Pool, scale: float) -> None:
    before = ranking.soft(*pool, temperature=0.1).value
    after = ranking.soft(pool.scores * scale, pool.positive, pool.weight, temperature=0.1 * scale).value
    assert after.item() == pytest.approx(before.item(), abs=1e-9)


@every_ranking
@given(pool=pools(), seed=st.integers(0, 1000))
def test_order_of_rows_changes_nothing(ranking: Ranking, pool: Pool, seed: int) -> None:
    order = torch.randperm(pool.scores.numel(), generator=torch.Generator().manual_seed(seed))
    before, slope = gradient(ranking.soft, *pool)
    after, permuted = gradient(ranking.soft, *(column[order] for column in pool))
    assert after.item() == pytest.approx(before.item(), abs=1e-12)
    torch.testing.assert_close(permuted, slope[order], rtol=1e-9, atol=1e-10)
    assert ranking.hard(*(column[order] for column in pool)).value.item() == pytest.approx(
        ranking.hard(*pool).value.item(), abs=1e-12
    )


@every_ranking
@pytest.mark.parametrize("held", [float("nan"), float("inf"), -float("inf"), 0.0, 1e30])
@pytest.mark.parametrize("label", [True, False])
def test_weight_zero_equals_the_row_deleted(ranking: Ranking, held: float, label: bool) -> None:
    pool = make_pool(5, 16)
    extra = torch.cat([pool.scores, torch.tensor([held], dtype=torch.float64)])
    positive = torch.cat([pool.positive, torch.tensor([label])])
    weight = torch.cat([pool.weight, torch.zeros(1, dtype=torch.float64)])
    value, slope = gradient(ranking.soft, *pool)
    padded_value, padded_slope = gradient(ranking.soft, extra, positive, weight)
    assert padded_value.item() == pytest.approx(value.item(), abs=1e-12)
    torch.testing.assert_close(padded_slope[:-1], slope, rtol=1e-9, atol=1e-12)
    assert padded_slope[-1].item() == 0.0
    hard, padded_hard = ranking.hard(*pool), ranking.hard(extra, positive, weight)
    assert padded_hard.value.item() == pytest.approx(hard.value.item(), abs=1e-12)


@every_ranking
@given(pool=pools(), row=st.integers(0, 100))
def test_negative_of_weight_two_equals_the_row_twice(ranking: Ranking, pool: Pool, row: int) -> None:
    negatives = torch.nonzero(~pool.positive & (pool.weight > 0))[:, 0]
    row = int(negatives[row % negatives.numel()])
    heavy = pool.weight.clone()
    heavy[row] *= 2
    twice = [torch.cat([column, column[row : row + 1]]) for column in pool]
    value, slope = gradient(ranking.soft, pool.scores, pool.positive, heavy)
    value_twice, slope_twice = gradient(ranking.soft, *twice)
    assert value_twice.item() == pytest.approx(value.item(), abs=1e-9)
    assert (slope_twice[row] + slope_twice[-1]).item() == pytest.approx(slope[row].item(), rel=1e-6, abs=1e-8)
    hard, hard_twice = ranking.hard(pool.scores, pool.positive, heavy), ranking.hard(*twice)
    assert hard_twice.value.item() == pytest.approx(hard.value.item(), abs=1e-9)


@every_ranking_with_iid
@given(pool=pools())
def test_positive_of_weight_two_equals_the_row_twice(ranking: Ranking, pool: Pool) -> None:
    # Not so for average precision, where a positive is compared with itself as a whole row.
    heavy = pool.weight.clone()
    heavy[0] *= 2
    twice = [torch.cat([column, column[:1]]) for column in pool]
    value, value_twice = ranking.soft(pool.scores, pool.positive, heavy).value, ranking.soft(*twice).value
    assert value_twice.item() == pytest.approx(value.item(), abs=1e-9)


@every_ranking
@given(pool=pools(), factor=st.sampled_from([0.5, 7.0, 1e6]))
def test_scale_of_all_weights_changes_nothing(ranking: Ranking, pool: Pool, factor: float) -> None:
    value, slope = gradient(ranking.soft, *pool)
    scaled_value, scaled_slope = gradient(ranking.soft, pool.scores, pool.positive, pool.weight * factor)
    assert scaled_value.item() == pytest.approx(value.item(), abs=1e-9)
    torch.testing.assert_close(scaled_slope, slope, rtol=1e-7, atol=1e-9)


@every_ranking
@given(pool=pools())
def test_value_is_a_share(ranking: Ranking, pool: Pool) -> None:
    for value in (ranking.soft(*pool).value, ranking.hard(*pool).value):
        assert -1e-12 <= value.item() <= 1 + 1e-12


@every_ranking
@pytest.mark.parametrize("seed", range(6))
def test_soft_tends_to_hard_without_ties(ranking: Ranking, seed: int) -> None:
    pool = make_pool(seed, 40)
    scores = torch.argsort(torch.argsort(pool.scores)).double()
    soft = ranking.soft(scores, pool.positive, pool.weight, temperature=1e-3).value
    hard = ranking.hard(scores, pool.positive, pool.weight).value
    assert soft.item() == pytest.approx(hard.item(), abs=1e-9)


@every_ranking
@pytest.mark.parametrize("seed", range(3))
def test_soft_tends_to_hard_where_an_edge_falls_between_rows(ranking: Ranking, seed: int) -> None:
    # With 100 negatives, 400 rows in all, every operating point here is a whole number of rows.
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randperm(400, generator=generator).double()
    positive = torch.arange(400) >= 100
    soft = ranking.soft(scores, positive, temperature=1e-3).value
    assert soft.item() == pytest.approx(ranking.hard(scores, positive).value.item(), abs=1e-9)


@every_ranking
def test_classes_are_independent(ranking: Ranking) -> None:
    columns = [make_pool(seed, 20) for seed in range(3)]
    together = [torch.stack(parts, dim=1) for parts in zip(*columns, strict=True)]
    value, slope = gradient(ranking.soft, *together)
    for c, pool in enumerate(columns):
        alone, slope_alone = gradient(ranking.soft, *pool)
        assert value[c].item() == pytest.approx(alone.item(), abs=1e-12)
        torch.testing.assert_close(slope[:, c], slope_alone, rtol=1e-9, atol=1e-12)
        assert ranking.hard(*together).value[c].item() == pytest.approx(ranking.hard(*pool).value.item(), abs=1e-12)


@every_ranking
def test_weight_of_a_row_serves_every_class(ranking: Ranking) -> None:
    scores, positive = torch.randn(20, 3), torch.arange(60).reshape(20, 3) % 4 == 0
    weight = torch.rand(20)
    for function in (ranking.soft, ranking.hard):
        one, full = function(scores, positive, weight), function(scores, positive, weight[:, None].expand(20, 3))
        torch.testing.assert_close(one.value, full.value)


@every_ranking
@pytest.mark.parametrize(
    ("positive", "weight"),
    [
        ([False, False, False], [1.0, 1.0, 1.0]),
        ([True, True, True], [1.0, 1.0, 1.0]),
        ([True, False, False], [0.0, 1.0, 1.0]),
        ([True, True, False], [1.0, 1.0, 0.0]),
        ([True, True, False], [0.0, 0.0, 0.0]),
    ],
    ids=["no positive", "no negative", "positive absent", "negative absent", "all absent"],
)
def test_class_that_lacks_a_side_is_undefined(ranking: Ranking, positive: list[bool], weight: list[float]) -> None:
    scores = torch.tensor([1.0, 2.0, 3.0])
    value, slope = gradient(ranking.soft, scores, torch.tensor(positive), torch.tensor(weight))
    assert torch.isnan(value)
    assert slope.tolist() == [0.0, 0.0, 0.0]
    for function in (ranking.soft, ranking.hard):
        result = function(scores, torch.tensor(positive), torch.tensor(weight))
        assert torch.isnan(result.value)
        assert not result.defined
        assert result.value.shape == result.defined.shape == ()


@every_ranking
def test_undefined_class_leaves_the_others_alone(ranking: Ranking) -> None:
    pool = make_pool(1, 20)
    scores = torch.stack([pool.scores, pool.scores], dim=1)
    positive = torch.stack([pool.positive, torch.zeros(20, dtype=torch.bool)], dim=1)
    leaf = scores.clone().requires_grad_()
    value, defined = ranking.soft(leaf, positive, pool.weight)
    assert defined.tolist() == [True, False]
    torch.where(defined, value, 0.0).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[:, 0], gradient(ranking.soft, *pool)[1])
    assert leaf.grad[:, 1].abs().sum().item() == 0.0


@every_ranking
def test_empty_pool_is_undefined(ranking: Ranking) -> None:
    for function in (ranking.soft, ranking.hard):
        value, defined = function(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.bool))
        assert torch.isnan(value).tolist() == [True, True]
        assert defined.tolist() == [False, False]


@every_ranking
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arithmetic_is_in_float32_at_least(ranking: Ranking, dtype: torch.dtype) -> None:
    pool = make_pool(2, 40)
    low = pool.scores.to(dtype)
    leaf = low.clone().requires_grad_()
    value, _ = ranking.soft(leaf, pool.positive, pool.weight)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = ranking.oracle(low.double().numpy(), pool.positive.numpy(), pool.weight.numpy(), 0.1)
    assert value.item() == pytest.approx(expected, abs=2e-5)
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert ranking.hard(low, pool.positive).value.item() == pytest.approx(
        ranking.hard(low.double(), pool.positive).value.item(), abs=1e-12
    )


@every_ranking
def test_autocast_changes_nothing(ranking: Ranking) -> None:
    pool = make_pool(2, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ranking.soft(pool.scores.float(), pool.positive, pool.weight).value
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(ranking.oracle(*pool.arrays(), 0.1), abs=2e-5)


@every_ranking
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_hostile_scores_keep_value_and_gradient_right(ranking: Ranking, dtype: torch.dtype, temperature: float) -> None:
    normal = torch.randn(30)
    hostile = {
        "outliers": torch.cat([normal[:27], torch.tensor([1e30, -1e30, 9e29])]),
        "clusters": torch.cat([normal[:15], normal[15:] + 2e4]),
        "equal": torch.full((30,), 3.0),
        "heavy tails": normal / torch.randn(30).abs().clamp(min=1e-6),
        "tiny": normal * 1e-30,
    }
    positive = torch.arange(30) % 4 == 0
    for scores in hostile.values():
        value, slope = gradient(ranking.soft, scores.to(dtype), positive, temperature=temperature)
        expected = ranking.oracle(scores.double().numpy(), positive.numpy(), np.ones(30), temperature)
        assert value.item() == pytest.approx(expected, abs=2e-5)
        assert torch.isfinite(slope).all()
        assert abs(slope.double().sum().item()) <= 1e-6 * max(1.0, slope.double().abs().sum().item())


@every_ranking
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_present_row_that_is_not_finite_gives_nan(ranking: Ranking, wrong: float) -> None:
    scores = torch.tensor([1.0, wrong, 0.5, 0.2])
    value, defined = ranking.soft(scores, torch.tensor([True, False, True, False]))
    assert torch.isnan(value)
    assert defined


@every_ranking_with_iid
@given(pool=pools(), seed=st.integers(0, 1000))
def test_iid_mask_equals_the_oracle(ranking: Ranking, pool: Pool, seed: int) -> None:
    iid = torch.rand(pool.scores.numel(), generator=torch.Generator().manual_seed(seed)) < 0.6
    iid[1] = True
    value = ranking.soft(*pool, iid_mask=iid).value
    assert value.item() == pytest.approx(ranking.oracle(*pool.arrays(), 0.1, iid.numpy()), abs=1e-9)


@pytest.mark.parametrize("name", [name for name in WITH_IID if name.startswith("recall")])
def test_negative_that_is_not_iid_has_no_part_in_recall(name: str) -> None:
    ranking, pool = RANKINGS[name], make_pool(4, 30)
    mined = torch.cat([pool.scores, torch.tensor([50.0, -50.0, 0.1], dtype=torch.float64)])
    positive = torch.cat([pool.positive, torch.zeros(3, dtype=torch.bool)])
    weight = torch.cat([pool.weight, torch.ones(3, dtype=torch.float64)])
    iid = torch.arange(33) < 30
    value, slope = gradient(ranking.soft, mined, positive, weight, iid_mask=iid)
    alone, slope_alone = gradient(ranking.soft, *pool)
    assert value.item() == pytest.approx(alone.item(), abs=1e-12)
    torch.testing.assert_close(slope[:30], slope_alone, rtol=1e-9, atol=1e-12)
    assert slope[30:].tolist() == [0.0, 0.0, 0.0]
    assert ranking.hard(mined, positive, weight, iid_mask=iid).value.item() == pytest.approx(
        ranking.hard(*pool).value.item(), abs=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mined_negative_joins_the_band_and_moves_no_edge(dtype: torch.dtype) -> None:
    # iid negatives 4, 3, 2, 1 and the band from .25 to .75: 3 and 2 are in it, and what is mined between 3 and 2.
    scores = torch.tensor([3.5, 4.0, 3.0, 2.0, 1.0, 2.5, 50.0, 0.5], dtype=dtype)
    positive = torch.arange(8) == 0
    iid = torch.arange(8) < 5
    leaf = scores.clone().requires_grad_()
    soft = functional.soft_partial_auc(leaf, positive, alpha=0.25, beta=0.75, temperature=1.0, iid_mask=iid).value
    expected = torch.sigmoid(3.5 - torch.tensor([3.0, 2.0, 2.5], dtype=dtype)).mean()
    assert soft.item() == pytest.approx(expected.item(), abs=1e-6)
    soft.backward()
    assert leaf.grad is not None
    assert (leaf.grad[[2, 3, 5]] < 0).all()
    assert leaf.grad[[1, 4, 6, 7]].tolist() == [0.0, 0.0, 0.0, 0.0]
    exact = metrics.partial_auc(scores, positive, alpha=0.25, beta=0.75, iid_mask=iid).value
    assert exact.item() == pytest.approx(1.0)


@every_ranking_with_iid
def test_positive_that_is_not_iid_still_counts(ranking: Ranking) -> None:
    # Far below everything: it is never found, so it lowers the value by its share of the positives.
    scores, positive = torch.arange(20.0, dtype=torch.float64), torch.arange(20) >= 10
    iid = torch.ones(21, dtype=torch.bool)
    iid[20] = False
    more = torch.cat([scores, torch.tensor([-100.0], dtype=torch.float64)])
    more_positive = torch.cat([positive, torch.tensor([True])])
    for function in (ranking.soft, ranking.hard):
        before, after = function(scores, positive).value, function(more, more_positive, iid_mask=iid).value
        assert after.item() == pytest.approx(before.item() * 10 / 11, abs=1e-9)


@every_ranking_with_iid
def test_without_iid_negatives_the_class_is_undefined(ranking: Ranking) -> None:
    scores, positive = torch.randn(6), torch.tensor([True, True, True, False, False, False])
    value, slope = gradient(ranking.soft, scores, positive, iid_mask=positive)
    assert torch.isnan(value)
    assert slope.abs().sum().item() == 0.0
    assert not ranking.soft(scores, positive, iid_mask=positive).defined
    assert not ranking.hard(scores, positive, iid_mask=positive).defined


@every_ranking_with_iid
@given(pool=pools(laws=("normal", "ties", "clusters")), seed=st.integers(0, 1000))
def test_gradient_sums_to_zero_with_an_iid_mask(ranking: Ranking, pool: Pool, seed: int) -> None:
    iid = torch.rand(pool.scores.numel(), generator=torch.Generator().manual_seed(seed)) < 0.5
    iid[1] = True
    _, slope = gradient(ranking.soft, *pool, iid_mask=iid)
    assert abs(slope.sum().item()) <= 1e-9 * max(1.0, slope.abs().sum().item())


@every_ranking
def test_weights_carry_no_gradient(ranking: Ranking) -> None:
    pool = make_pool(2, 20)
    weight = pool.weight.clone().requires_grad_()
    scores = pool.scores.clone().requires_grad_()
    ranking.soft(scores, pool.positive, weight).value.backward()
    assert weight.grad is None


@pytest.mark.parametrize("name", ["ap", "recall_top_23", "recall_fpr_17", "pauc_13_57", "auc"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_graph_stays_whole_under_compile(name: str) -> None:
    ranking, pool = RANKINGS[name], make_pool(2, 40)
    torch.compiler.reset()
    compiled = torch.compile(ranking.soft, fullgraph=True, backend="aot_eager")
    value, slope = gradient(compiled, *pool)
    expected, expected_slope = gradient(ranking.soft, *pool)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-9, atol=1e-12)


@every_ranking
def test_func_transforms_agree_with_autograd(ranking: Ranking) -> None:
    columns = [make_pool(seed, 20) for seed in range(3)]
    scores, positive, weight = (torch.stack(parts) for parts in zip(*columns, strict=True))

    def value(s: torch.Tensor, p: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return ranking.soft(s, p, w).value

    slopes = torch.func.vmap(torch.func.grad(value))(scores, positive, weight)
    for slope, pool in zip(slopes, columns, strict=True):
        torch.testing.assert_close(slope, gradient(ranking.soft, *pool)[1], rtol=1e-9, atol=1e-12)
