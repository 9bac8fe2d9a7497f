"""Whatever the precision of the inputs, the gradient is that of float64 on the same rounded numbers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rareloss import LossWarmupWrapper, PAUCAtBudgetLoss, RecallAtQuantileLoss, SmoothAPLoss

pytestmark = pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning")

LOSSES: dict[str, Callable[..., Any]] = {
    "ap": SmoothAPLoss,
    "recall_top": lambda num_classes, **kw: RecallAtQuantileLoss(num_classes, 0.23, **kw),
    "recall_fpr": lambda num_classes, **kw: RecallAtQuantileLoss(num_classes, 0.17, "negatives", **kw),
    "pauc": lambda num_classes, **kw: PAUCAtBudgetLoss(num_classes, 0.05, 0.4, **kw),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
HALVES = (torch.float16, torch.bfloat16)


def gradient(loss: nn.Module, logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    leaf = logits.detach().clone().requires_grad_()
    loss(leaf, targets, **options).backward()
    assert leaf.grad is not None
    return leaf.grad


@every_loss
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["binary", "indices", "labels"])
def test_half_logits_have_the_gradient_of_float64(name: str, dtype: torch.dtype, kind: str) -> None:
    classes = 1 if kind == "binary" else 3
    logits = torch.randn(60, classes).to(dtype)
    shape = (60,) if kind == "indices" else (60, classes)
    targets = torch.arange(60) % 3 if kind == "indices" else (torch.rand(shape) < 0.3).to(dtype)
    weight = (0.5 + torch.rand(60)).to(dtype)
    exact = gradient(LOSSES[name](classes, queue_size=0), logits.double(), targets, sample_weight=weight.double())
    single = gradient(LOSSES[name](classes, queue_size=0), logits.float(), targets, sample_weight=weight)
    assert (single.double() - exact).norm() <= 1e-5 * exact.norm()
    for inside in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=inside):
            half = gradient(LOSSES[name](classes, queue_size=0), logits, targets, sample_weight=weight)
        assert torch.equal(half, single.to(dtype))


@every_loss
def test_skipped_steps_leave_no_trace(name: str) -> None:
    model = nn.Linear(4, 1)
    loss = LossWarmupWrapper(nn.BCEWithLogitsLoss(), LOSSES[name](1, queue_size=64), warmup_steps=1)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu")
    targets = (torch.arange(16) % 4 == 0).long()

    def step(inputs: Tensor, factor: float = 1.0) -> None:
        optimizer.zero_grad()
        scaler.scale(factor * loss(model(inputs), targets)).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(3):
        step(torch.randn(16, 4))
    before, kept, queue = copy.deepcopy(model.state_dict()), scaler.get_scale(), copy.deepcopy(loss.main_loss.queue)
    step(torch.full((16, 4), torch.nan))  # the loss is NaN: nothing is remembered
    assert scaler.get_scale() == kept / 2
    assert torch.equal(loss.main_loss.queue.scores, queue.scores)
    scaler.update(1e38)  # a finite loss whose scaled gradients overflow: its finite rows are remembered
    step(torch.randn(16, 4), factor=1e30)
    assert scaler.get_scale() < 1e38
    assert all(torch.equal(model.state_dict()[key], number) for key, number in before.items())
    assert torch.isfinite(loss.main_loss.queue.scores).all()
    assert loss.step == 5
    scaler.update(1.0)
    step(torch.randn(16, 4))
    assert not torch.equal(model.weight, before["weight"])


@every_loss
def test_large_pools_in_half_are_counted_beyond_its_range(name: str) -> None:
    rows = 200_000
    logits = torch.randn(rows).half()
    targets = torch.arange(rows) % 500 == 0
    loss = LOSSES[name](1, queue_size=0, temperature=0.3)
    exact = loss(logits.double(), targets).item()
    assert loss(logits, targets).item() == pytest.approx(exact, rel=1e-5)


@every_loss
def test_what_float32_does_not_hold_is_not_remembered(name: str) -> None:
    loss = LOSSES[name](1, queue_size=64)
    targets = (torch.arange(16) % 4 == 0).long()
    loss(torch.randn(16, dtype=torch.float64) * 1e300, targets)
    assert not loss.queue.weight.any()
    assert torch.isfinite(loss(torch.randn(16), targets))


@every_loss
def test_queue_of_another_precision(name: str) -> None:
    targets = (torch.arange(16) % 4 == 0).long()
    loss = LOSSES[name](1, queue_size=64).double()
    exact = LOSSES[name](1, queue_size=64).double()
    for _ in range(3):
        logits = torch.randn(16)
        got, expected = gradient(loss, logits, targets), gradient(exact, logits.double(), targets)
        assert got.dtype == torch.float32
        assert (got.double() - expected).norm() <= 1e-5 * expected.norm()
    other = LOSSES[name](1, queue_size=64)
    other.load_state_dict(loss.state_dict())
    assert other.queue.scores.dtype == torch.float32
    torch.testing.assert_close(other.queue.scores.double(), loss.queue.scores)


@every_loss
def test_row_offset_changes_no_class_where_labels_are_missing(name: str) -> None:
    logits, targets = torch.randn(40, 3, dtype=torch.float64), torch.arange(40) % 3
    weight = (torch.rand(40, 3) < 0.7).double()
    loss = LOSSES[name](3, queue_size=0)
    moved = logits + torch.randn(40, 1, dtype=torch.float64)
    assert loss(moved, targets, sample_weight=weight).item() == pytest.approx(
        loss(logits, targets, sample_weight=weight).item(), abs=1e-9
    )
