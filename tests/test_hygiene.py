"""A loss is a module like any other: copied, pickled, moved, shared, hooked, and part of a larger one."""

import copy
import io
import pickle
import threading
from collections.abc import Callable
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
)

pytestmark = pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning")

ALPHA = [0.3, 0.6, 0.1]
LOSSES: dict[str, Callable[[], Any]] = {
    "ap": lambda: SmoothAPLoss(3, 40),
    "recall": lambda: RecallAtQuantileLoss(3, 0.2, queue_size=40),
    "recall at fpr": lambda: RecallAtQuantileLoss(3, 0.2, "negatives", queue_size=40),
    "pauc": lambda: PAUCAtBudgetLoss(3, 0.05, 0.4, queue_size=40),
    "softmax focal": lambda: SoftmaxFocalLoss(alpha=ALPHA),
    "sigmoid focal": lambda: SigmoidFocalLoss(alpha=torch.tensor(ALPHA, device="cpu")),
    "warm-up": lambda: LossWarmupWrapper(SoftmaxFocalLoss(alpha=ALPHA), SmoothAPLoss(3, 40), warmup_steps=1),
}
WITH_QUEUE = ["ap", "recall", "recall at fpr", "pauc", "warm-up"]
every_loss = pytest.mark.parametrize("name", LOSSES)

Steps = list[tuple[Tensor, Tensor]]


def batch(name: str, step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device="cpu").manual_seed(step)
    logits = torch.randn(16, 3, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, 3, (16,), generator=generator)
    return logits, nn.functional.one_hot(targets, 3) if name == "sigmoid focal" else targets


def train(loss: nn.Module, name: str, first: int, last: int, dtype: torch.dtype = torch.float32) -> Steps:
    """Return value and gradient of each step."""
    seen = []
    for step in range(first, last):
        logits, targets = batch(name, step, dtype)
        value = loss(logits, targets)
        value.backward()
        seen.append((value.detach(), logits.grad))
    return seen


def assert_equal(steps: Steps, others: Steps) -> None:
    torch.testing.assert_close(steps, others, rtol=0, atol=0)


def pickled(loss: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(loss))


def saved(loss: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_loss
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_copy_goes_on_where_the_loss_is_and_shares_nothing(name: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    loss = LOSSES[name]()
    train(loss, name, 0, 2)
    twin, untouched = copied(loss), copied(loss)
    expected = train(loss, name, 2, 4)
    assert_equal(train(twin, name, 2, 4), expected)
    assert_equal(train(untouched, name, 2, 4), expected)


MOVES: dict[str, Callable[[nn.Module], object]] = {
    "half": lambda loss: loss.half(),
    "bfloat16": lambda loss: loss.bfloat16(),
    "to float16": lambda loss: loss.to(torch.float16),
    "to cpu, bfloat16": lambda loss: loss.to("cpu", torch.bfloat16),
    "type": lambda loss: loss.type(torch.float16),
    "half and back": lambda loss: loss.half().float(),
    "double and back": lambda loss: loss.double().float(),
    "share_memory": lambda loss: loss.share_memory(),
    "to_empty": lambda loss: loss.to_empty(device="cpu"),
    "apply": lambda loss: loss.apply(lambda module: None),
    "eval and back": lambda loss: loss.eval().train(),
    "frozen": lambda loss: loss.requires_grad_(False),
}


@every_loss
@pytest.mark.parametrize("move", MOVES)
def test_module_that_was_moved_has_lost_no_digit(name: str, move: str) -> None:
    loss, twin = LOSSES[name](), LOSSES[name]()
    for module in (loss, twin):
        train(module, name, 0, 3)
    before = {key: buffer.dtype for key, buffer in loss.named_buffers()}
    MOVES[move](loss)
    assert {key: buffer.dtype for key, buffer in loss.named_buffers()} == before
    assert_equal(train(loss, name, 3, 5), train(twin, name, 3, 5))


@every_loss
def test_half_does_not_narrow_what_is_held_in_float64(name: str) -> None:
    loss, twin = LOSSES[name]().double(), LOSSES[name]().double()
    for module in (loss, twin):
        train(module, name, 0, 3, torch.float64)
    loss.half()
    assert_equal(train(loss, name, 3, 5, torch.float64), train(twin, name, 3, 5, torch.float64))


@every_loss
def test_shared_memory_is_that_of_every_buffer(name: str) -> None:
    assert all(buffer.is_shared() for buffer in LOSSES[name]().share_memory().buffers())


@pytest.mark.parametrize("name", WITH_QUEUE)
def test_pointer_keeps_its_place_whatever_the_dtype(name: str) -> None:
    loss = LOSSES[name]()
    train(loss, name, 0, 2)
    kept = {key: value.clone() for key, value in loss.state_dict().items() if not value.is_floating_point()}
    for move in (torch.float16, torch.float64, torch.bfloat16, torch.float32):
        loss.type(move)
    for key, value in kept.items():
        assert loss.state_dict()[key].dtype == value.dtype
        assert torch.equal(loss.state_dict()[key], value)


@every_loss
def test_hooks_see_every_call_and_change_nothing(name: str) -> None:
    loss, seen = LOSSES[name](), []
    loss.register_forward_pre_hook(lambda module, given: seen.append("before"))
    loss.register_forward_hook(lambda module, given, value: seen.append("after"))
    loss.register_full_backward_pre_hook(lambda module, arriving: seen.append("backward"))
    loss.register_full_backward_hook(lambda module, leaving, arriving: seen.append("done"))
    assert_equal(train(loss, name, 0, 3), train(LOSSES[name](), name, 0, 3))
    assert seen == ["before", "after", "backward", "done"] * 3


@every_loss
def test_validation_between_steps_changes_nothing(name: str) -> None:
    loss, twin = LOSSES[name](), LOSSES[name]()
    for step in range(4):
        assert_equal(train(loss, name, step, step + 1), train(twin, name, step, step + 1))
        loss.eval()
        with torch.inference_mode() if step % 2 else torch.no_grad():
            assert torch.isfinite(loss(*batch(name, 99)))
        loss.train()


@every_loss
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_training_goes_on_after_a_call_without_gradient(name: str, mode: Callable[[], Any]) -> None:
    # A call without gradient is no training call: it remembers no row and counts no step, in training mode too.
    loss, twin = LOSSES[name](), LOSSES[name]()
    with mode():
        loss(*batch(name, 0))
    assert_equal(train(loss, name, 1, 4), train(twin, name, 1, 4))


@every_loss
def test_loss_made_or_moved_in_inference_mode_can_be_trained(name: str) -> None:
    expected = train(LOSSES[name](), name, 0, 3)
    with torch.inference_mode():
        made = LOSSES[name]()
        moved = LOSSES[name]().double().float()
    assert_equal(train(made, name, 0, 3), expected)
    assert_equal(train(moved, name, 0, 3), expected)


@every_loss
def test_meta_device_leaves_no_garbage(name: str) -> None:
    with torch.device("meta"):
        loss = LOSSES[name]()
    empty = loss.to_empty(device="cpu")
    assert not any(buffer.is_meta for buffer in empty.buffers())
    assert_equal(train(empty, name, 0, 4), train(LOSSES[name](), name, 0, 4))


@every_loss
def test_checkpoint_fills_a_loss_of_the_meta_device(name: str) -> None:
    loss = LOSSES[name]()
    train(loss, name, 0, 2)
    with torch.device("meta"):
        assigned, copied = LOSSES[name](), LOSSES[name]()
    assigned.load_state_dict(copy.deepcopy(loss.state_dict()), assign=True)
    copied.to_empty(device="cpu").load_state_dict(loss.state_dict())
    expected = train(loss, name, 2, 4)
    assert_equal(train(assigned, name, 2, 4), expected)
    assert_equal(train(copied, name, 2, 4), expected)


@every_loss
def test_shapes_can_be_propagated_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        loss = LOSSES[name]()
    for step in range(2):
        logits, targets = (tensor.to("meta") for tensor in batch(name, step))
        assert loss(logits, targets).shape == ()


@pytest.mark.parametrize("make", [SigmoidFocalLoss, SoftmaxFocalLoss])
def test_alpha_without_numbers_is_refused(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="meta device and holds no numbers"):
        make(alpha=torch.tensor(ALPHA, device="meta"))


@every_loss
def test_two_threads_train_two_losses(name: str) -> None:
    expected = train(LOSSES[name](), name, 0, 12)
    found: list[Steps] = [[], []]

    def work(place: int) -> None:
        found[place] = train(LOSSES[name](), name, 0, 12)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for steps in found:
        assert_equal(steps, expected)


class Task(nn.Module):
    """What a training framework makes users write: network and loss in one module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(3, 3)
        self.loss = LOSSES[name]()


@every_loss
def test_loss_inside_a_module_adds_no_parameter_and_moves_with_it(name: str) -> None:
    task, twin = Task(name), Task(name)
    assert nn.utils.parameters_to_vector(task.parameters()).numel() == 12
    assert list(task.loss.parameters()) == []
    assert {key.split(".")[0] for key in task.state_dict() if "loss" in key} <= {"loss"}
    for module in (task, twin):
        logits, targets = batch(name, 0)
        module.loss(module.network(logits.detach()), targets).backward()
    averaged = torch.optim.swa_utils.AveragedModel(task)
    averaged.update_parameters(task)
    assert_equal(train(task.loss, name, 1, 3), train(twin.loss, name, 1, 3))
    restored = Task(name)
    restored.load_state_dict(task.state_dict())
    assert_equal(train(restored.loss, name, 3, 5), train(twin.loss, name, 3, 5))


@pytest.mark.parametrize("name", WITH_QUEUE)
def test_reset_makes_any_loss_new(name: str) -> None:
    loss = LOSSES[name]()
    train(loss, name, 0, 3)
    loss.reset_queue()
    fresh = LOSSES[name]()
    if name == "warm-up":
        loss.step = fresh.step
    assert_equal(train(loss, name, 3, 6), train(fresh, name, 3, 6))
