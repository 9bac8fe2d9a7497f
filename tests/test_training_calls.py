"""What a training call leaves behind, and that no other call leaves anything: validation, closures, checkpoints."""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from rareloss import LossWarmupWrapper, SigmoidFocalLoss, SmoothAPLoss, SoftmaxFocalLoss, distributed
from rareloss.eager import is_checkpointed
from rareloss.losses.queue import MemoryQueue
from test_pool import LOSSES, every_loss, slope_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # dynamo's own
]
# Torch 2.6 cannot tell whether it will compute a call again, so there the loss refuses.
tells_checkpoints = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"), reason="needs a newer torch"
)


def batch(rows: int = 16, classes: int = 1) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, classes), torch.arange(rows) % max(classes, 2)


def state(loss: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(loss.state_dict())


def assert_same(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    for key, buffer in state.items():
        assert torch.equal(buffer, other[key]), key


# Validation


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_validation_in_training_mode_leaves_no_trace(
    name: str, classes: int, compiled: bool, mode: Callable[[], Any]
) -> None:
    loss = LOSSES[name](classes, queue_size=64)
    loss(*batch(classes=classes))
    before = state(loss)
    logits, targets = batch(40, classes)
    torch.compiler.reset()
    called = torch.compile(loss, fullgraph=True, backend="eager") if compiled else loss
    with mode():
        for _ in range(3):
            value = called(logits, targets)
    torch.testing.assert_close(value, LOSSES[name](classes, queue_size=0).eval()(logits, targets))
    assert_same(state(loss), before)


def test_only_training_calls_exchange_rows_or_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    exchanged = []

    def count(*_: object, **__: object) -> None:
        exchanged.append(1)
        raise RuntimeError("exchanged")

    monkeypatch.setattr(distributed, "world_size", lambda group=None: 2)
    for name in ("agree", "sum_over_ranks"):
        monkeypatch.setattr(distributed, name, count)
    losses: list[nn.Module] = [make(3) for make in LOSSES.values()]
    losses += [SoftmaxFocalLoss(), SoftmaxFocalLoss(reduction="mean_positive"), SigmoidFocalLoss()]
    losses += [LossWarmupWrapper(nn.CrossEntropyLoss(), SmoothAPLoss(3), warmup_steps=1)]
    for loss in losses:
        logits, targets = batch(classes=3)
        targets = nn.functional.one_hot(targets, 3) if isinstance(loss, SigmoidFocalLoss) else targets
        with torch.no_grad():
            loss(logits, targets)
        loss.eval()(logits, targets)
        assert not exchanged
        with pytest.raises(RuntimeError, match="exchanged"):
            loss.train()(logits, targets)
        exchanged.clear()


# More than one call in a step


@every_loss
def test_frozen_queue_is_read_and_not_written(name: str) -> None:
    loss, (logits, targets) = LOSSES[name](1, queue_size=64), batch()
    loss(*batch())
    twin, before = copy.deepcopy(loss), state(loss)
    with loss.frozen_queue():
        with loss.frozen_queue():
            first = slope_of(loss, logits, targets)
        second = slope_of(loss, logits, targets)
        with torch.no_grad():
            assert loss(logits, targets) == first[0]  # the line search of LBFGS may evaluate without gradients
    assert_same(state(loss), before)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(slope_of(loss, logits, targets), first, rtol=0, atol=0)
    with pytest.raises(ValueError, match="targets"), twin.frozen_queue():
        twin(logits, targets[:3])
    twin(logits, targets)
    assert_same(state(twin), state(loss))


@every_loss
def test_closures_of_lbfgs_see_one_pool(name: str) -> None:
    torch.manual_seed(3)
    model, loss = nn.Linear(4, 1), LOSSES[name](1, queue_size=64, temperature=0.5)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=8, line_search_fn="strong_wolfe")
    inputs, targets = torch.randn(3, 40, 4), (torch.arange(40) % 4 == 0).long()
    for step in range(3):
        before, values = state(loss), []

        def closure(step: int = step, values: list[float] = values) -> Tensor:
            optimizer.zero_grad()
            value: Tensor = loss(model(inputs[step]), targets)
            value.backward()
            values.append(value.item())
            return value

        with loss.frozen_queue():
            optimizer.step(closure)
        assert len(values) > 2
        assert values[-1] <= values[0]
        assert_same(state(loss), before)
        loss(model(inputs[step]), targets)
        remembered = loss.queue.weight[0, :-1].count_nonzero().item()
        assert remembered == min(64, 40 * (step + 1))


# torch.utils.checkpoint


@tells_checkpoints
@every_loss
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("queue_size", [0, 20, 100])
def test_checkpointed_call_is_the_plain_one(name: str, classes: int, queue_size: int) -> None:
    loss = LOSSES[name](classes, queue_size=queue_size)
    twin = copy.deepcopy(loss)
    for _ in range(4):
        logits, targets = batch(classes=classes)
        expected = slope_of(twin, logits, targets)
        got = slope_of(lambda z, y: checkpoint(loss, z, y, use_reentrant=False), logits, targets)  # type: ignore[arg-type]
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert_same(state(loss), state(twin))


@every_loss
def test_checkpointed_call_that_cannot_be_repeated_is_refused(name: str) -> None:
    loss = LOSSES[name](1, queue_size=64)
    total = torch.zeros(())
    for _ in range(2):
        logits, targets = batch()
        total = total + checkpoint(loss, logits.requires_grad_(), targets, use_reentrant=False)
    before = state(loss)
    with pytest.raises(RuntimeError, match="outside of the checkpointed function"):
        total.backward()
    assert_same(state(loss), before)


@every_loss
def test_reentrant_checkpoint_trains_in_its_second_call(name: str) -> None:
    loss = LOSSES[name](1, queue_size=64)
    twin = copy.deepcopy(loss)
    for _ in range(3):
        logits, targets = batch()
        _, expected = slope_of(twin, logits, targets)
        _, got = slope_of(lambda z, y: checkpoint(loss, z, y, use_reentrant=True), logits, targets)  # type: ignore[arg-type]
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert_same(state(loss), state(twin))


@tells_checkpoints
def test_calls_outside_of_a_checkpoint_are_told_from_those_within() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(is_checkpointed())
        return x.exp()

    look(torch.zeros(1, requires_grad=True))
    checkpoint(look, torch.zeros(1, requires_grad=True), use_reentrant=False)
    assert seen == [False, True]


# Interrupts


class Device(TorchDispatchMode):
    """Changes nothing: values may not be looked at under a mode, as on a device that would have to wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@contextmanager
def interrupted_at(line: int, module: str) -> Iterator[None]:
    """Raise KeyboardInterrupt before so many lines of a file have run, as Ctrl-C does between two of them."""
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(module):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def rows_of(queue: MemoryQueue) -> list[tuple[float, ...]]:
    """Return each slot of one class, (0,) if it is empty."""
    slots = torch.stack([queue.weight[0], queue.scores[0], queue.is_positive[0].float(), queue.iid[0].float()])
    return [tuple(slot) if slot[0] else (0.0,) for slot in slots.T.tolist()]


@pytest.mark.parametrize("kind", ["plain", "weighted", "longer than the queue", "NaN", "device", "empty"])
def test_interrupt_leaves_no_row_half_written(kind: str) -> None:
    rows = 50 if kind == "longer than the queue" else 12
    logits, weight = torch.randn(rows), torch.ones(rows)
    logits[3] = torch.nan if kind == "NaN" else 0.5
    weight[::3] = 1.0 if kind in ("plain", "empty") else 0.0
    fresh = LOSSES["recall_top"](1, queue_size=20)
    if kind != "empty":
        for _ in range(2):
            fresh(torch.randn(13), torch.arange(13) % 2)
    done, line = False, 0
    while not done:
        loss = copy.deepcopy(fresh)
        before = rows_of(loss.queue)
        whole = copy.deepcopy(fresh)
        whole(logits, torch.arange(rows) % 3 == 0, sample_weight=weight)
        after = rows_of(whole.queue)
        try:
            with interrupted_at(line, "losses/queue.py"):
                if kind == "device":
                    with Device():
                        loss(logits, torch.arange(rows) % 3 == 0, sample_weight=weight)
                else:
                    loss(logits, torch.arange(rows) % 3 == 0, sample_weight=weight)
            done = True
        except KeyboardInterrupt:
            line += 1
        for slot, old, new in zip(rows_of(loss.queue), before, after, strict=True):
            assert slot in (old, new, (0.0,)), line
        assert torch.isfinite(loss(torch.randn(16), torch.arange(16) % 2))
    assert line > 5
    assert rows_of(loss.queue)[-1] == (0.0,)
