"""The hard metrics: by hand, against the oracle, against scikit-learn with ties and weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

import reference
from pools import Pool, make_pool, pools
from rareloss import functional, metrics


def found(scores: list[float], positive: str, **options: object) -> float:
    flags = torch.tensor([letter == "p" for letter in positive])
    return metrics.recall_at_quantile(torch.tensor(scores, dtype=torch.float64), flags, **options).value.item()


@given(pool=pools())
def test_average_precision_equals_scikit_learn(pool: Pool) -> None:
    scores, positive, weight = pool.arrays()
    expected = sklearn_metrics.average_precision_score(positive, scores, sample_weight=weight)
    assert metrics.average_precision(*pool).value.item() == pytest.approx(expected, abs=1e-12)
    assert metrics.average_precision(*pool).value.item() == pytest.approx(
        reference.average_precision(scores, positive, weight), abs=1e-12
    )


@given(pool=pools(), seed=st.integers(0, 9))
def test_average_precision_of_one_column_under_many_weights(pool: Pool, seed: int) -> None:
    scores, positive, weight = pool
    many = weight[:, None] * torch.empty(len(weight), 4).exponential_(generator=torch.Generator().manual_seed(seed))
    columns = (scores[:, None].expand(-1, 4), positive[:, None].expand(-1, 4), many)
    one_by_one = [metrics.average_precision(scores, positive, column).value.item() for column in many.unbind(1)]
    assert metrics.average_precision(*columns).value.tolist() == pytest.approx(one_by_one, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_one_column_with_a_score_that_is_not_finite_has_no_average_precision(wrong: float) -> None:
    scores = torch.tensor([1.0, wrong, 0.0])[:, None].expand(-1, 2)
    positive = torch.tensor([True, False, False])[:, None].expand(-1, 2)
    value, defined = metrics.average_precision(scores, positive, torch.rand(3, 2) + 0.1)
    assert bool(value.isnan().all())
    assert bool(defined.all())


@given(pool=pools(), beta=st.sampled_from([0.01, 0.2, 0.5, 0.99]))
def test_partial_auc_equals_scikit_learn(pool: Pool, beta: float) -> None:
    scores, positive, weight = pool.arrays()
    corrected = sklearn_metrics.roc_auc_score(positive, scores, sample_weight=weight, max_fpr=beta)
    # McClish: 1/2 (1 + (area - least) / (most - least)), with the areas of chance and of perfection.
    least, most = beta**2 / 2, beta
    area = least + (2 * corrected - 1) * (most - least)
    assert metrics.partial_auc(*pool, beta=beta).value.item() == pytest.approx(area / beta, abs=1e-10)


@given(pool=pools())
def test_whole_auc_equals_scikit_learn(pool: Pool) -> None:
    scores, positive, weight = pool.arrays()
    expected = sklearn_metrics.roc_auc_score(positive, scores, sample_weight=weight)
    assert metrics.partial_auc(*pool, beta=1.0).value.item() == pytest.approx(expected, abs=1e-12)


@given(pool=pools(), band=st.sampled_from([(0.0, 0.3), (0.1, 0.11), (0.4, 1.0)]))
def test_partial_auc_equals_the_oracle(pool: Pool, band: tuple[float, float]) -> None:
    got = metrics.partial_auc(*pool, alpha=band[0], beta=band[1]).value.item()
    assert got == pytest.approx(reference.partial_auc(*pool.arrays(), *band), abs=1e-12)


@given(pool=pools(), fpr=st.sampled_from([0.0137, 0.1931, 0.6173]))
def test_recall_at_fpr_lies_on_the_roc_of_scikit_learn(pool: Pool, fpr: float) -> None:
    scores, positive, weight = pool.arrays()
    rates, recalls, _ = sklearn_metrics.roc_curve(positive, scores, sample_weight=weight, drop_intermediate=False)
    # On a vertical step of the ROC any recall of the step would do; no operating point here lies on one.
    if np.abs(rates - fpr).min() > 1e-9:
        got = metrics.recall_at_fpr(*pool, fpr=fpr).value.item()
        assert got == pytest.approx(float(np.interp(fpr, rates, recalls)), abs=1e-10)


@given(pool=pools(), quantile=st.sampled_from([0.004, 0.13, 0.5, 0.93]), among=st.sampled_from(["all", "negatives"]))
def test_recall_at_quantile_equals_the_oracle(pool: Pool, quantile: float, among: str) -> None:
    got = metrics.recall_at_quantile(*pool, quantile=quantile, among=among).value.item()
    assert got == pytest.approx(reference.recall_at_quantile(*pool.arrays(), quantile, among), abs=1e-9)


@given(pool=pools(), quantile=st.sampled_from([0.13, 0.5]))
def test_recall_at_fpr_is_recall_among_negatives(pool: Pool, quantile: float) -> None:
    one = metrics.recall_at_fpr(*pool, fpr=quantile)
    other = metrics.recall_at_quantile(*pool, quantile=quantile, among="negatives")
    assert one.value.item() == other.value.item()


@pytest.mark.parametrize("iid_seed", range(4))
def test_iid_rows_alone_set_what_is_counted(iid_seed: int) -> None:
    pool = make_pool(iid_seed, 40, "ties")
    iid = torch.rand(40, generator=torch.Generator().manual_seed(iid_seed)) < 0.5
    iid[1] = True
    scores, positive, weight = pool.arrays()
    for among in ("all", "negatives"):
        got = metrics.recall_at_quantile(*pool, quantile=0.37, among=among, iid_mask=iid).value.item()
        expected = reference.recall_at_quantile(scores, positive, weight, 0.37, among, iid.numpy())
        assert got == pytest.approx(expected, abs=1e-9)
    got = metrics.partial_auc(*pool, alpha=0.1, beta=0.4, iid_mask=iid).value.item()
    assert got == pytest.approx(reference.partial_auc(scores, positive, weight, 0.1, 0.4, iid.numpy()), abs=1e-12)


def test_average_precision_by_hand() -> None:
    scores = torch.tensor([4.0, 3.0, 3.0, 2.0, 1.0])
    positive = torch.tensor([True, True, False, False, True])
    expected = (1 * 1 / 1 + 1 * 2 / 3 + 1 * 3 / 5) / 3
    assert metrics.average_precision(scores, positive).value.item() == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_equal_scores_is_the_base_rate() -> None:
    value, _ = metrics.average_precision(torch.zeros(50), torch.arange(50) < 6)
    assert value.item() == pytest.approx(6 / 50, abs=1e-12)


def test_partial_auc_by_hand() -> None:
    # ROC: up to 1/2, across to (1/4, 1/2), diagonal over the tie to (1/2, 1), across.
    scores = torch.tensor([5.0, 4.0, 3.0, 3.0, 2.0, 1.0])
    positive = torch.tensor([True, False, True, False, False, False])
    value, _ = metrics.partial_auc(scores, positive, beta=0.5)
    assert value.item() == pytest.approx((0.25 * 0.5 + 0.25 * (0.5 + 1.0) / 2) / 0.5, abs=1e-12)
    value, _ = metrics.partial_auc(scores, positive, alpha=0.25, beta=0.375)
    assert value.item() == pytest.approx((0.5 + 0.75) / 2, abs=1e-12)


def test_recall_by_hand() -> None:
    scores = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert found(scores, "pnpnn", quantile=0.4) == pytest.approx(1 / 2)
    assert found(scores, "pnpnn", quantile=0.6) == pytest.approx(2 / 2)
    # Half of the third row.
    assert found(scores, "pnpnn", quantile=0.5) == pytest.approx((1 + 0.5) / 2)
    # The first positive costs nothing, the second lies below the first negative, of which half is taken.
    assert found(scores, "pnpnn", quantile=1 / 6, among="negatives") == pytest.approx(1 / 2)
    assert found(scores, "pnpnn", quantile=1 / 2, among="negatives") == pytest.approx(2 / 2)


def test_tie_at_the_threshold_is_shared_in_proportion() -> None:
    # A capacity of 2: the first row, and 1 of the 3 that tie.
    assert found([2.0, 1.0, 1.0, 1.0, 0.0], "nppnn", quantile=0.4) == pytest.approx(2 * (1 / 3) / 2)
    # A budget of 1 of 4 negatives: half of the 2 that tie with the positive.
    assert found([1.0, 1.0, 1.0, 0.0, 0.0], "pnnnn", quantile=0.25, among="negatives") == pytest.approx(1 / 2)


def test_between_two_negatives_the_threshold_lies_halfway() -> None:
    positive_high, positive_low = [5.0, 0.0, 4.0], [5.0, 0.0, 1.0]
    assert found(positive_high, "nnp", quantile=0.5, among="negatives") == 1.0
    assert found(positive_low, "nnp", quantile=0.5, among="negatives") == 0.0


def test_capacity_below_the_base_rate_caps_recall() -> None:
    scores = torch.arange(200.0)
    value, _ = metrics.recall_at_quantile(scores, scores >= 180, quantile=0.05)
    assert value.item() == pytest.approx(0.05 / 0.1, abs=1e-12)


def test_share_that_rounds_is_a_whole_number_of_rows() -> None:
    # 0.1 + 0.2 is not 0.3 in floating point, and 0.07 * 100 is not 7: no sliver of an eighth row is taken.
    scores = torch.arange(100.0)
    for quantile, rows in ((0.07, 7), (0.29, 29), (0.57, 57), (0.1 + 0.2, 30)):
        top = scores >= 100 - rows
        assert metrics.recall_at_quantile(scores, top, quantile=quantile).value.item() == pytest.approx(1.0, abs=1e-9)
        first_below = scores == 99 - rows
        assert metrics.recall_at_quantile(scores, first_below, quantile=quantile).value.item() < 1e-9


def test_sums_are_in_float64() -> None:
    # In float32 a running sum of ones stops at 2 ** 24.
    scores = -torch.arange(52.0)
    weight = torch.ones(52)
    weight[0] = 2.0**24
    value, _ = metrics.average_precision(scores, scores == -51, weight)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(1 / (2**24 + 51), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_of_logits(dtype: torch.dtype) -> None:
    scores, positive = torch.randn(500).to(dtype), torch.arange(500) % 9 == 0
    expected = sklearn_metrics.average_precision_score(positive.numpy(), scores.double().numpy())
    assert metrics.average_precision(scores, positive).value.item() == pytest.approx(expected, abs=1e-12)


def test_neighbours_in_float64_are_no_tie() -> None:
    scores = torch.tensor([1.0, math.nextafter(1.0, 2.0)], dtype=torch.float64)
    assert metrics.average_precision(scores, torch.tensor([False, True])).value.item() == 1.0


def test_no_gradient_is_kept() -> None:
    scores = torch.randn(10, requires_grad=True)
    for value in (
        metrics.average_precision(scores, torch.arange(10) < 3).value,
        metrics.recall_at_quantile(scores, torch.arange(10) < 3, quantile=0.3).value,
        metrics.partial_auc(scores, torch.arange(10) < 3, beta=0.3).value,
    ):
        assert not value.requires_grad


@pytest.mark.parametrize("rate", [0.01, 0.4])
@pytest.mark.parametrize("weighted", [False, True])
def test_large_pools_with_ties_equal_scikit_learn(rate: float, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    rows = 400_000
    positive = torch.rand(rows, generator=generator) < rate
    scores = ((torch.randn(rows, generator=generator) + positive) * 4096).round() / 4096
    weight = torch.rand(rows, generator=generator) if weighted else torch.ones(rows)
    arrays = (positive.numpy(), scores.double().numpy())
    drawn = weight.double().numpy()
    expected = sklearn_metrics.average_precision_score(*arrays, sample_weight=drawn)
    assert metrics.average_precision(scores, positive, weight).value.item() == pytest.approx(expected, abs=1e-10)
    rates, recalls, _ = sklearn_metrics.roc_curve(*arrays, sample_weight=drawn, drop_intermediate=False)
    got = metrics.recall_at_fpr(scores, positive, weight, fpr=0.005).value.item()
    assert got == pytest.approx(float(np.interp(0.005, rates, recalls)), abs=1e-8)
    corrected = sklearn_metrics.roc_auc_score(*arrays, sample_weight=drawn, max_fpr=0.005)
    area = 0.005**2 / 2 + (2 * corrected - 1) * (0.005 - 0.005**2 / 2)
    got = metrics.partial_auc(scores, positive, weight, beta=0.005).value.item()
    assert got == pytest.approx(area / 0.005, abs=1e-8)


def test_a_value_of_one_class_is_printed_and_converted_as_a_number() -> None:
    scores, positive = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True])
    one = metrics.average_precision(scores, positive)
    column = metrics.average_precision(scores[:, None], positive[:, None])
    undefined = metrics.average_precision(scores, torch.zeros_like(positive))
    assert f"{one:.3f}" == f"{column:.3f}" == "0.833"
    assert f"AP {one:.1%}" == "AP 83.3%"
    assert f"{undefined:.3f}" == "nan"
    assert float(one) == float(column) == pytest.approx(5 / 6)
    assert f"{one}" == str(one) == repr(one)
    assert one == (one.value, one.defined)  # a tuple still
    soft = functional.smooth_average_precision(scores.clone().requires_grad_(), positive, temperature=1e-3)
    assert f"{soft:.3f}" == "0.833"


def test_values_of_several_classes_are_printed_each() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.3], [0.8, 0.2, 0.2], [0.7, 0.3, 0.1]])
    positive = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    several = metrics.average_precision(scores, positive)
    assert f"{several:.2f}" == "[0.83, 0.33, nan]"
    assert f"{several}" == repr(several)
    with pytest.raises(TypeError, match="3 classes"):
        float(several)
    with pytest.raises(ValueError, match="format"):
        f"{several:no format}"
