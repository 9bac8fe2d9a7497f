"""The losses as modules: shapes, weights, reductions, the spread, and what diagnose says."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pools import make_pool
from rareloss import PAUCAtBudgetLoss, RecallAtQuantileLoss, SmoothAPLoss, functional, metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*nothing is learned:UserWarning"),
]

Make = Callable[..., Any]
LOSSES: dict[str, Make] = {
    "ap": SmoothAPLoss,
    "recall_top": lambda num_classes, **kw: RecallAtQuantileLoss(num_classes, 0.23, **kw),
    "recall_fpr": lambda num_classes, **kw: RecallAtQuantileLoss(num_classes, 0.17, "negatives", **kw),
    "pauc": lambda num_classes, **kw: PAUCAtBudgetLoss(num_classes, 0.05, 0.4, **kw),
}
SOFT: dict[str, Callable[..., functional.PerClass]] = {
    "ap": functional.smooth_average_precision,
    "recall_top": lambda *a, **kw: functional.soft_recall_at_quantile(*a, quantile=0.23, **kw),
    "recall_fpr": lambda *a, **kw: functional.soft_recall_at_quantile(*a, quantile=0.17, among="negatives", **kw),
    "pauc": lambda *a, **kw: functional.soft_partial_auc(*a, alpha=0.05, beta=0.4, **kw),
}
HARD: dict[str, Callable[..., functional.PerClass]] = {
    "ap": metrics.average_precision,
    "recall_top": lambda *a, **kw: metrics.recall_at_quantile(*a, quantile=0.23, **kw),
    "recall_fpr": lambda *a, **kw: metrics.recall_at_fpr(*a, fpr=0.17, **kw),
    "pauc": lambda *a, **kw: metrics.partial_auc(*a, alpha=0.05, beta=0.4, **kw),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def slope_of(loss: nn.Module, logits: Tensor, *rest: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, *rest, **options)
    value.nansum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def binary(rows: int = 40) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, dtype=torch.float64), (torch.arange(rows) % 4 == 0).long()


@every_loss
def test_loss_is_one_minus_the_soft_metric_in_spreads(name: str) -> None:
    logits, targets = binary()
    weight = torch.rand(40, dtype=torch.float64) + 0.1
    mean = (weight * logits).sum() / weight.sum()
    spread = ((weight * (logits - mean) ** 2).sum() / weight.sum()).sqrt()
    loss = LOSSES[name](1, queue_size=0, temperature=0.2)
    expected = SOFT[name](logits / spread, targets == 1, weight, temperature=0.2).value
    assert loss(logits, targets, sample_weight=weight).item() == pytest.approx(1 - expected.item(), abs=1e-9)


@every_loss
def test_loss_in_logits_is_one_minus_the_soft_metric(name: str) -> None:
    logits, targets = binary()
    loss = LOSSES[name](1, queue_size=0, temperature=0.2, temperature_unit="logit")
    expected = SOFT[name](logits, targets == 1, temperature=0.2).value
    assert loss(logits, targets).item() == pytest.approx(1 - expected.item(), abs=1e-12)


@every_loss
@given(
    seed=st.integers(0, 1000),
    law=st.sampled_from(["normal", "ties", "wide", "clusters"]),
    scale=st.sampled_from([1e-3, 0.5, 40.0, 1e5]),
    shift=st.sampled_from([-30.0, 0.0, 7.0]),
)
def test_scale_and_shift_change_nothing_and_the_gradient_says_so(
    name: str, seed: int, law: str, scale: float, shift: float
) -> None:
    pool = make_pool(seed, 24, law)
    loss = LOSSES[name](1, queue_size=0, temperature=0.1)
    rest = pool.positive.long()
    value, slope = slope_of(loss, pool.scores, rest, sample_weight=pool.weight)
    moved, moved_slope = slope_of(loss, scale * pool.scores + shift, rest, sample_weight=pool.weight)
    assert moved.item() == pytest.approx(value.item(), abs=1e-8)
    for slopes, scores in ((slope, pool.scores), (moved_slope, scale * pool.scores + shift)):
        size = slopes.abs().sum().item()
        assert abs(slopes.sum().item()) <= 1e-8 * size + 1e-12
        present = pool.weight > 0
        centred = torch.where(present, scores - scores[present].mean(), 0.0)
        assert abs((centred * slopes).sum().item()) <= 1e-8 * (centred * slopes).abs().sum().item() + 1e-12


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e18, 1e30])
def test_any_scale_is_finite(name: str, dtype: torch.dtype, scale: float) -> None:
    scores, targets = torch.randn(40).to(dtype), (torch.arange(40) % 4 == 0).long()
    loss = LOSSES[name](1, queue_size=0, temperature=0.2)
    value, _ = slope_of(loss, scores, targets)
    scaled, slope = slope_of(loss, scores * scale, targets)
    assert scaled.item() == pytest.approx(value.item(), abs=2e-5)
    assert torch.isfinite(slope).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hostile_scores_are_finite(name: str, dtype: torch.dtype) -> None:
    targets = (torch.arange(40) % 4 == 0).long()
    normal = torch.randn(40)
    outliers = normal.clone()
    outliers[[3, 8]] = torch.tensor([1e30, -2e30])
    for scores in (outliers, torch.full((40,), 3.0), torch.zeros(40), normal + 1e6, normal / torch.randn(40) ** 4):
        value, slope = slope_of(LOSSES[name](1, queue_size=0), scores.to(dtype), targets)
        assert 0 <= value.item() <= 1
        assert torch.isfinite(slope).all()
        assert abs(slope.double().sum().item()) <= 1e-5 * slope.double().abs().sum().item() + 1e-30


@every_loss
def test_gradcheck_through_the_spread(name: str) -> None:
    logits, targets = torch.randn(14, dtype=torch.float64, requires_grad=True), (torch.arange(14) % 4 == 0).long()
    weight = torch.rand(14, dtype=torch.float64) + 0.1
    loss = LOSSES[name](1, queue_size=0, temperature=0.5)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets, sample_weight=weight), logits)
    indices = torch.arange(14) % 3
    loss = LOSSES[name](3, queue_size=0, temperature=0.5)
    rows = torch.randn(14, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(z, indices, sample_weight=weight), rows)


@every_loss
def test_binary_shapes_are_one(name: str) -> None:
    logits, targets = torch.randn(4, 6), torch.arange(24).reshape(4, 6) % 3 == 0
    loss = LOSSES[name](1, queue_size=0)
    expected = loss(logits.reshape(-1), targets.reshape(-1)).item()
    for shape, target_shape in (
        ((24, 1), (24,)),
        ((24, 1), (24, 1)),
        ((24,), (24, 1)),
        ((4, 6), (4, 6)),
        ((4, 6, 1), (4, 6)),
        ((4, 6, 1), (4, 6, 1)),
        ((2, 2, 6), (2, 2, 6)),
    ):
        assert loss(logits.reshape(shape), targets.reshape(target_shape)).item() == pytest.approx(expected, abs=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64])
def test_targets_of_any_dtype(name: str, dtype: torch.dtype) -> None:
    logits, targets = binary()
    loss = LOSSES[name](1, queue_size=0)
    assert loss(logits, targets.to(dtype)).item() == loss(logits, targets).item()


@every_loss
def test_class_indices_are_ranked_by_their_log_odds(name: str) -> None:
    logits, targets = torch.randn(5, 8, 3, dtype=torch.float64), torch.arange(40).reshape(5, 8) % 3
    loss = LOSSES[name](3, queue_size=0, reduction="none", temperature_unit="logit", temperature=0.3)
    odds = functional.log_odds(logits.reshape(-1, 3))
    positive = torch.nn.functional.one_hot(targets.reshape(-1), 3) == 1
    expected = 1 - SOFT[name](odds, positive, temperature=0.3).value
    torch.testing.assert_close(loss(logits, targets), expected)
    offset = torch.randn(5, 8, 1, dtype=torch.float64)
    torch.testing.assert_close(loss(logits + offset, targets), expected)


@every_loss
def test_labels_of_many_classes_are_ranked_as_they_come(name: str) -> None:
    logits = torch.randn(5, 8, 3, dtype=torch.float64)
    targets = (torch.arange(120).reshape(5, 8, 3) % 4 == 0).float()
    loss = LOSSES[name](3, queue_size=0, reduction="none", temperature_unit="logit", temperature=0.3)
    expected = 1 - SOFT[name](logits.reshape(-1, 3), targets.reshape(-1, 3) == 1, temperature=0.3).value
    torch.testing.assert_close(loss(logits, targets), expected)


@every_loss
def test_ignored_targets_are_rows_deleted(name: str) -> None:
    logits, targets = binary()
    more = torch.cat([logits, torch.tensor([float("nan"), float("inf"), 3.0], dtype=torch.float64)])
    for ignore_index in (-100, 255):
        loss = LOSSES[name](1, queue_size=0, ignore_index=ignore_index)
        ignored = torch.cat([targets, torch.full((3,), ignore_index)])
        value, slope = slope_of(loss, more, ignored)
        expected, expected_slope = slope_of(loss, logits, targets)
        assert value.item() == pytest.approx(expected.item(), abs=1e-12)
        torch.testing.assert_close(slope[:40], expected_slope)
        assert slope[40:].tolist() == [0.0, 0.0, 0.0]


@every_loss
def test_ignored_class_indices_and_single_labels(name: str) -> None:
    rows, indices = torch.randn(43, 3, dtype=torch.float64), torch.arange(43) % 3
    loss = LOSSES[name](3, queue_size=0, reduction="none")
    ignored = indices.clone()
    ignored[40:] = -100
    held = rows.clone()
    held[41] = float("nan")
    value, slope = slope_of(loss, held, ignored)
    torch.testing.assert_close(value, loss(rows[:40], indices[:40]))
    assert torch.isfinite(slope).all()
    labels = (torch.arange(129).reshape(43, 3) % 4 == 0).long()
    partly = labels.clone()
    partly[40:, 1] = -100
    got = loss(rows, partly)
    torch.testing.assert_close(got[[0, 2]], loss(rows, labels)[[0, 2]])
    torch.testing.assert_close(got[1], loss(rows[:40], labels[:40])[1])


@every_loss
def test_weights_by_row_and_by_label(name: str) -> None:
    rows, labels = torch.randn(40, 3), (torch.arange(120).reshape(40, 3) % 4 == 0).long()
    weight = torch.rand(40)
    loss = LOSSES[name](3, queue_size=0, reduction="none")
    by_row = loss(rows, labels, sample_weight=weight)
    torch.testing.assert_close(loss(rows, labels, sample_weight=weight[:, None].expand(40, 3).contiguous()), by_row)
    single = LOSSES[name](1, queue_size=0)
    for c in range(3):
        alone = single(rows[:, c], labels[:, c], sample_weight=weight)
        assert by_row[c].item() == pytest.approx(alone.item(), abs=1e-5)


@every_loss
def test_reductions_run_over_the_defined_classes(name: str) -> None:
    rows, labels = torch.randn(40, 3), (torch.arange(120).reshape(40, 3) % 4 == 0).long()
    labels[:, 1] = 0
    by_class, slope = slope_of(LOSSES[name](3, queue_size=0, reduction="none"), rows, labels)
    assert torch.isnan(by_class).tolist() == [False, True, False]
    assert slope[:, 1].abs().sum() == 0
    mean, mean_slope = slope_of(LOSSES[name](3, queue_size=0), rows, labels)
    total, sum_slope = slope_of(LOSSES[name](3, queue_size=0, reduction="sum"), rows, labels)
    assert mean.shape == total.shape == ()
    assert total.item() == pytest.approx(by_class.nansum().item(), abs=1e-6)
    assert mean.item() == pytest.approx(by_class.nanmean().item(), abs=1e-6)
    torch.testing.assert_close(sum_slope, slope)
    torch.testing.assert_close(mean_slope, slope / 2)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_defined_is_zero_in_training_and_nan_in_eval(name: str, reduction: str) -> None:
    loss = LOSSES[name](1, queue_size=0, reduction=reduction)
    for rows, targets in (
        (torch.randn(6), torch.zeros(6)),
        (torch.randn(6), torch.full((6,), -100)),
        (torch.zeros(0), torch.zeros(0)),
    ):
        value, slope = slope_of(loss.train(), rows, targets)
        assert value.item() == 0.0
        assert slope.abs().sum().item() == 0.0
        assert torch.isnan(loss.eval()(rows, targets))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arithmetic_is_in_float32_at_least(name: str, dtype: torch.dtype) -> None:
    logits, targets = torch.randn(40).to(dtype), (torch.arange(40) % 4 == 0).long()
    loss = LOSSES[name](1, queue_size=64)
    for _ in range(2):
        value, slope = slope_of(loss, logits, targets)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert slope.dtype == dtype
    exact = LOSSES[name](1, queue_size=0)(logits.double(), targets)
    assert LOSSES[name](1, queue_size=0)(logits, targets).item() == pytest.approx(exact.item(), abs=2e-5)


@every_loss
def test_autocast_and_mixed_weights(name: str) -> None:
    model = nn.Linear(5, 1)
    inputs, targets = torch.randn(40, 5), (torch.arange(40) % 4 == 0).long()
    loss = LOSSES[name](1, queue_size=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            value = loss(model(inputs), targets, sample_weight=torch.rand(40, dtype=torch.float64))
    assert value.dtype == torch.float32
    value.backward()
    assert model.weight.grad is not None
    assert torch.isfinite(model.weight.grad).all()


with_threshold = pytest.mark.parametrize("name", ["recall_top", "recall_fpr", "pauc"])


@with_threshold
@pytest.mark.parametrize("unit", ["std", "logit"])
@pytest.mark.parametrize("queue_size", [0, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_mined_negatives_move_neither_budget_nor_temperature(
    name: str, unit: str, queue_size: int, dtype: torch.dtype, tolerance: float
) -> None:
    logits, targets = binary()
    mined = torch.cat([logits, torch.full((30,), 9.0, dtype=torch.float64)]).to(dtype)
    labels = torch.cat([targets, torch.zeros(30, dtype=torch.long)])
    iid = torch.arange(70) < 40

    def value(*rows: Tensor, **options: Any) -> float:
        loss = LOSSES[name](1, queue_size=queue_size, temperature_unit=unit, temperature=0.2)
        return float(loss(*rows, **options))

    expected = value(logits.to(dtype), targets)
    assert value(mined, labels, iid_mask=iid) == pytest.approx(expected, abs=tolerance)
    assert value(mined, labels) != pytest.approx(expected, abs=1e-3)
    assert value(mined[:, None], labels, iid_mask=iid[:, None]) == pytest.approx(expected, abs=tolerance)


@with_threshold
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("remembered", [False, True])
def test_mined_negatives_of_any_score_are_ranked_in_deviations_of_the_iid_rows(
    name: str, dtype: torch.dtype, remembered: bool
) -> None:
    logits, targets, iid = torch.randn(400, dtype=dtype), torch.arange(400) % 4 == 0, torch.arange(400) % 3 > 0
    iid = iid | targets
    loss = LOSSES[name](1, queue_size=300 if remembered else 0, temperature=0.3).to(dtype)
    if remembered:
        loss(logits[100:], targets[100:], iid_mask=iid[100:])
    live = 100 if remembered else 400
    value, slope = slope_of(loss, logits[:live], targets[:live], iid_mask=iid[:live])
    leaf = logits.double().requires_grad_()
    std = (leaf[iid] - leaf[iid].mean()).square().mean().sqrt()
    expected = 1 - SOFT[name](leaf / std, targets, temperature=0.3, iid_mask=iid).value
    (gradient,) = torch.autograd.grad(expected, leaf)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    assert value.item() == pytest.approx(expected.item(), abs=tolerance)
    gradient = gradient[:live] * 400 / live
    assert (slope - gradient).norm() <= 10 * tolerance * gradient.norm()
    mined = ~iid[:live]
    assert slope[mined].abs().sum() > 0 if name == "pauc" else slope[mined].abs().sum() == 0


@every_loss
def test_temperature_can_be_set(name: str) -> None:
    logits, targets = binary()
    loss = LOSSES[name](1, queue_size=0, temperature=0.5)
    loss.temperature = 0.1
    assert loss(logits, targets).item() == LOSSES[name](1, queue_size=0, temperature=0.1)(logits, targets).item()


@every_loss
@pytest.mark.parametrize("unit", ["std", "logit"])
@pytest.mark.parametrize("rows", [2, 40, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 2e-8, 1e38, 1e45, 1e100, 1e300])
def test_temperatures_of_any_size_have_a_value_and_no_nan_gradient(
    name: str, unit: str, rows: int, dtype: torch.dtype, temperature: float
) -> None:
    drawn, targets = torch.randn(rows, dtype=torch.float64), torch.arange(rows) % 7 == 0
    loss = LOSSES[name](1, queue_size=16, temperature=temperature, temperature_unit=unit)
    # Also scores that are equal but for rounding: their standard deviation is what a temperature is a multiple of.
    for scores in (drawn, (2 * drawn).round(), 1 + 2e-8 * drawn, 1 + 2e-16 * drawn):
        value, slope = slope_of(loss, scores.to(dtype), targets)
        assert 0 <= value.item() <= 1 + 1e-6
        assert not slope.isnan().any()


@every_loss
def test_low_temperature_gives_the_metric(name: str) -> None:
    logits, targets = torch.randperm(40).double(), (torch.arange(40) % 4 == 0).long()
    loss = LOSSES[name](1, queue_size=0, temperature=1e-5)
    assert 1 - loss(logits, targets).item() == pytest.approx(HARD[name](logits, targets == 1).value.item(), abs=1e-9)


@every_loss
def test_copies_and_pickles_are_the_same_loss(name: str) -> None:
    logits, targets = binary()
    loss = LOSSES[name](1, queue_size=32)
    loss(logits, targets)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin(logits, targets).item() == copy.deepcopy(loss)(logits, targets).item()


@every_loss
def test_gradient_descent_improves_the_metric(name: str) -> None:
    inputs = torch.randn(400, 5)
    targets = (inputs[:, 0] + 0.3 * torch.randn(400) > 1.2).long()
    model = nn.Linear(5, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    loss = LOSSES[name](1, queue_size=0, temperature=0.3)
    with torch.no_grad():
        before = HARD[name](model(inputs)[:, 0], targets == 1).value.item()
    for _ in range(60):
        optimiser.zero_grad()
        loss(model(inputs), targets).backward()
        optimiser.step()
    with torch.no_grad():
        after = HARD[name](model(inputs)[:, 0], targets == 1).value.item()
    assert after > max(before, 0.8)


# diagnose

NAMES = {
    "soft", "hard", "positives_live", "positives_pool", "rows_pool", "live_share", "threshold", "temperature",
    "saturated", "rows_above", "cap", "supported",
}  # fmt: skip


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
def test_diagnose_describes_the_pool_and_changes_nothing(name: str, classes: int) -> None:
    rows = torch.randn(40, classes, requires_grad=True)
    targets = torch.arange(40) % 4 == 0 if classes == 1 else torch.arange(40) % 3
    loss = LOSSES[name](classes, queue_size=100, reduction="none")
    loss(torch.randn(60, classes), torch.arange(60) % 5 == 0 if classes == 1 else torch.arange(60) % 3)
    before = copy.deepcopy(loss.state_dict())
    said = loss.diagnose(rows, targets)
    assert set(said) >= NAMES
    for key, value in said.items():
        assert value.shape == (classes,), key
        assert not value.requires_grad
    for key, value in loss.state_dict().items():
        assert torch.equal(value, before[key])
    torch.testing.assert_close(1 - said["soft"], loss(rows, targets).detach())
    live = targets.long() == 1 if classes == 1 else torch.nn.functional.one_hot(targets, 3).T
    assert said["positives_live"].tolist() == live.reshape(classes, 40).sum(1).tolist()
    assert said["rows_pool"].tolist() == [100] * classes
    assert said["live_share"].tolist() == pytest.approx([0.4] * classes)


def test_diagnose_of_average_precision_by_hand() -> None:
    loss = SmoothAPLoss(1, queue_size=0, temperature=0.1)
    logits = torch.tensor([30.0, 20.0, 10.0, 0.0], dtype=torch.float64)
    said = loss.diagnose(logits, torch.tensor([1, 0, 1, 0]))
    spread = ((15.0**2 + 5.0**2) / 2) ** 0.5
    assert said["temperature"].item() == pytest.approx(0.1 * spread)
    assert said["hard"].item() == pytest.approx((1 + 2 / 3) / 2)
    # Of the pairs 30-20, 30-0, 10-20, 10-0 one is further apart than 8 temperatures, 8.94 logits each 1.118: all are.
    assert said["saturated"].item() == pytest.approx(4 / 4)
    assert torch.isnan(said["threshold"]).all()
    assert said["cap"].item() == 1.0


def test_diagnose_of_recall_by_hand() -> None:
    loss = RecallAtQuantileLoss(1, 0.05, queue_size=0, temperature=1e-3)
    logits = torch.arange(100.0, dtype=torch.float64)
    said = loss.diagnose(logits, logits >= 80)
    assert said["threshold"].item() == pytest.approx(94.5, abs=0.1)
    assert said["rows_above"].item() == 5
    assert said["cap"].item() == pytest.approx(0.05 / 0.2)
    assert said["hard"].item() == pytest.approx(5 / 20)
    assert not said["supported"].item()
    assert RecallAtQuantileLoss(1, 0.2, queue_size=0).diagnose(logits, logits >= 80)["supported"].item()


def test_diagnose_counts_weighted_rows() -> None:
    loss = RecallAtQuantileLoss(1, 0.5, queue_size=0)
    said = loss.diagnose(
        torch.arange(6.0), torch.tensor([0, 1, 0, 1, 1, -100]), sample_weight=torch.tensor([1.0, 2, 1, 0, 4, 1])
    )
    assert said["rows_pool"].item() == 4
    assert said["positives_live"].item() == 2


def test_unsupported_operating_point_warns_once_with_number_and_remedy() -> None:
    logits, targets = binary(100)
    for loss in (
        RecallAtQuantileLoss(1, 0.05, queue_size=0),
        RecallAtQuantileLoss(1, 0.05, "negatives", queue_size=0),
        PAUCAtBudgetLoss(1, beta=0.05, queue_size=0),
        PAUCAtBudgetLoss(1, alpha=0.02, beta=0.6, queue_size=0),
    ):
        with pytest.warns(UserWarning, match="queue_size"):
            loss(logits, targets)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(logits, targets)


@every_loss
def test_supported_operating_point_does_not_warn(name: str) -> None:
    loss = LOSSES[name](1, queue_size=1000)
    logits, targets = binary(100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(logits, targets)


@every_loss
@pytest.mark.parametrize(("classes", "queue_size"), [(1, 0), (1, 64), (3, 64)])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_graph_stays_whole_under_compile(name: str, classes: int, queue_size: int) -> None:
    torch.compiler.reset()
    loss = LOSSES[name](classes, queue_size=queue_size)
    twin = copy.deepcopy(loss)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    targets = torch.arange(40) % 4 == 0 if classes == 1 else torch.arange(40) % 3
    for _ in range(3):
        logits = torch.randn(40, classes)
        value, slope = slope_of(loss, logits, targets)
        got, got_slope = slope_of(compiled, logits, targets)
        torch.testing.assert_close(got, value)
        torch.testing.assert_close(got_slope, slope)
    for key, buffer in loss.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[key], buffer)


@every_loss
def test_spread_below_the_least_number_leaves_a_gradient(name: str) -> None:
    logits = torch.tensor([-1.6e-31, 5.5e-31, 0.0], requires_grad=True)
    weight = torch.tensor([1e17, 1e-17, 0.0])
    for targets in (torch.tensor([1, 1, 0]), torch.tensor([1, 0, 0])):
        logits.grad = None
        LOSSES[name](1, queue_size=0)(logits, targets, sample_weight=weight).backward()
        assert not torch.isnan(logits.grad).any()
