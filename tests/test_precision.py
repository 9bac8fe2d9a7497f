"""Whatever the precision of the inputs, the gradient is that of float64 on the same rounded numbers."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
    functional,
    metrics,
)

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


ALPHA = [0.3, 0.6, 0.1]
FOCAL: dict[str, Callable[[str], Any]] = {
    "sigmoid": lambda reduction: SigmoidFocalLoss(reduction=reduction),
    "sigmoid, alpha of classes": lambda reduction: SigmoidFocalLoss(torch.tensor(ALPHA), 0.5, reduction),
    "softmax": lambda reduction: SoftmaxFocalLoss(reduction=reduction),
    "softmax, smoothed": lambda reduction: SoftmaxFocalLoss(ALPHA, 3.0, reduction, label_smoothing=0.1),
}
every_focal = pytest.mark.parametrize("name", FOCAL)


def focal_targets(name: str, rows: int) -> Tensor:
    return torch.arange(rows) % 3 if name.startswith("softmax") else torch.rand(rows, 3) < 0.2


@every_focal
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("reduction", ["mean", "mean_positive", "sum"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch's own tracing
def test_focal_gradient_in_half_is_rounded_once(name: str, dtype: torch.dtype, reduction: str) -> None:
    loss, factor = FOCAL[name](reduction), 65536.0 if dtype == torch.float16 and reduction == "mean" else 1.0
    # Easy rows as well, whose slopes float16 holds only once a scaler has lifted them.
    logits = (torch.randn(60, 3) * torch.tensor([[1.0], [4.0]]).repeat(30, 1)).to(dtype)
    targets, weight = focal_targets(name, 60), (0.5 + torch.rand(60)).to(dtype)
    exact = logits.double().requires_grad_()
    expected = factor * loss(exact, targets, sample_weight=weight)
    expected.backward()
    compiled = torch.compile(copy.deepcopy(loss), fullgraph=True, backend="aot_eager")
    # Compiling takes its time: once for each of the two formulas.
    once = factor != 1.0 and name in ("sigmoid", "softmax, smoothed")
    for inside, called in ((False, loss), (True, loss), (False, compiled))[: 3 if once else 2]:
        half = logits.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=inside):
            value = factor * called(half, targets, sample_weight=weight)
        value.backward()
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
        assert half.grad.dtype == dtype
        # A number that lies midway between two of the half precision may go to either.
        rounded = exact.grad.to(dtype).double()
        assert (half.grad.double() - rounded).norm() <= 1e-4 * rounded.norm()
        assert ((half.grad == 0) == (rounded == 0)).all()


@every_focal
def test_skipped_steps_of_a_focal_loss_leave_no_trace(name: str) -> None:
    model, loss = nn.Linear(4, 3), FOCAL[name]("mean")
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", growth_interval=2)
    targets = focal_targets(name, 16)

    def step(inputs: Tensor, factor: float = 1.0) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            value = factor * loss(model(inputs), targets)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()

    inputs = torch.randn(16, 4)
    before = copy.deepcopy(model.state_dict())
    for wrong, factor in ((torch.nan, 1.0), (torch.inf, 1.0), (1.0, 1e30)):
        kept = scaler.get_scale()
        step(wrong * inputs, factor)
        assert scaler.get_scale() == kept / 2
        assert all(torch.equal(model.state_dict()[key], number) for key, number in before.items())
    kept = scaler.get_scale()
    for _ in range(2):
        step(inputs)
    assert scaler.get_scale() == 2 * kept
    assert not torch.equal(model.weight, before["weight"])
    assert torch.isfinite(model.weight).all()


LARGE: dict[str, Callable[[], Any]] = {
    name: lambda make=make: make(1, queue_size=0, temperature=0.3) for name, make in LOSSES.items()
} | {"sigmoid focal": SigmoidFocalLoss, "softmax focal": SoftmaxFocalLoss}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", HALVES)
def test_gradient_of_a_large_pool_in_half_is_held_once_it_is_scaled(name: str, dtype: torch.dtype) -> None:
    rows, scale, loss = 200_000, 65536.0, LARGE[name]()
    logits = torch.randn(rows, 2 if name == "softmax focal" else 1).to(dtype)
    targets = torch.arange(rows) % 500 == 0
    targets = targets.long() if name == "softmax focal" else targets[:, None]
    leaf, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    value, expected = loss(leaf, targets), loss(exact, targets)
    (scale * value).backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    error = (leaf.grad.double() / scale - exact.grad).norm() / exact.grad.norm()
    assert error <= torch.finfo(dtype).eps / 2  # half a unit in the last place of each number
    assert (leaf.grad[exact.grad.abs() > 1e-12] != 0).all()


@every_loss
@pytest.mark.parametrize("clip", [False, True])
def test_scaler_with_two_losses_and_clipping_steps_as_without_it(name: str, clip: bool) -> None:
    def trained(enabled: bool) -> tuple[dict[str, Tensor], float]:
        torch.manual_seed(1)
        model = nn.Linear(4, 1)
        ranking, focal = LOSSES[name](1, queue_size=64), SigmoidFocalLoss()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3, enabled=enabled)
        for number in range(6):
            inputs, targets = torch.randn(16, 4), (torch.arange(16) % 4 == 0).long()[:, None]
            optimizer.zero_grad()
            logits = model(inputs)
            scaler.scale(ranking(logits, targets)).backward(retain_graph=True)
            scaler.scale(
                1e35 * focal(logits, targets) if number == 2 and enabled else focal(logits, targets)
            ).backward()
            scaler.unscale_(optimizer)
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 0.02)
            if number != 2:  # where the scaler finds what overflowed, and skips by itself
                scaler.step(optimizer)
            elif enabled:
                before = copy.deepcopy(model.state_dict())
                scaler.step(optimizer)
                torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
            scaler.update()
        assert torch.isfinite(ranking.queue.scores).all()
        assert ranking.queue.pointer == 6 * 16 % 64
        return model.state_dict() | {"queue": ranking.queue.scores}, scaler.get_scale()

    scaled, scale = trained(True)
    plain, _ = trained(False)
    assert scale == 2.0**12  # halved by the skipped step, doubled after three good ones
    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-6)


@pytest.fixture
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


DEFAULT: dict[str, Callable[[], Any]] = {
    **{name: lambda make=make: make(3, queue_size=40) for name, make in LOSSES.items()},
    "warm-up": lambda: LossWarmupWrapper(
        nn.CrossEntropyLoss(), SmoothAPLoss(3, queue_size=40), warmup_steps=1, blend_steps=2
    ),
    **{name: lambda make=make: make("mean") for name, make in FOCAL.items()},
}


@pytest.mark.parametrize("name", DEFAULT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("double_by_default")
def test_default_dtype_of_float64_changes_no_precision(name: str, dtype: torch.dtype) -> None:
    loss, wide = DEFAULT[name](), DEFAULT[name]()
    targets = focal_targets(name, 24) if name.startswith("sigmoid") else torch.arange(24) % 3
    assert {buffer.dtype for key, buffer in loss.named_buffers() if "scores" in key} <= {torch.float64}
    for _ in range(4):
        logits = torch.randn(24, 3).to(dtype)
        leaf, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
        value, expected = loss(leaf, targets), wide(exact, targets)
        value.backward()
        expected.backward()
        assert value.dtype == torch.promote_types(dtype, torch.float32)
        assert leaf.grad.dtype == dtype
        # Of float32 what is promised; of bfloat16 half a unit in the last place.
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2.0**-8}[dtype]
        assert (leaf.grad.double() - exact.grad).norm() <= tolerance * exact.grad.norm()
    assert all(torch.isfinite(buffer).all() for buffer in loss.buffers())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.usefixtures("double_by_default")
def test_functions_and_metrics_keep_their_precision_whatever_the_default(dtype: torch.dtype) -> None:
    scores, positive = torch.randn(50).to(dtype), torch.arange(50) % 5 == 0
    one_hot = torch.stack([~positive, positive], 1).to(dtype)
    called: list[Callable[[Tensor], Tensor]] = [
        lambda s: functional.smooth_average_precision(s, positive, temperature=0.1).value,
        lambda s: functional.soft_recall_at_quantile(s, positive, quantile=0.2, temperature=0.1).value,
        lambda s: functional.soft_partial_auc(s, positive, alpha=0.0, beta=0.3, temperature=0.1).value,
        lambda s: functional.sigmoid_focal_loss(s, positive),
        lambda s: functional.softmax_focal_loss(one_hot.to(s.dtype) * s[:, None], positive.long()),
        lambda s: metrics.average_precision(s, positive).value,
        lambda s: metrics.recall_at_quantile(s, positive, quantile=0.2).value,
        lambda s: metrics.partial_auc(s, positive, alpha=0.0, beta=0.3).value,
    ]
    for call in called:
        value = call(scores)
        assert value.dtype in (torch.float64, torch.promote_types(dtype, torch.float32))
        assert value.item() == pytest.approx(call(scores.double()).item(), rel=1e-5)
