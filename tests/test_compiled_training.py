"""A whole training step is one graph, and stays the same one: network, loss, queue and schedule."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)

# Torch warns of itself when it traces an autograd function.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
STEPS = 50


def warmed() -> LossWarmupWrapper:
    main = RecallAtQuantileLoss(1, 0.1, queue_size=100)
    temperature = {"temp_start": 0.5, "temp_end": 0.05, "temp_decay_steps": 30}
    return LossWarmupWrapper(SigmoidFocalLoss(), main, warmup_steps=12, blend_steps=12, **temperature)


# By name: the loss, the number of its outputs, and the number of graphs that it may take.
LOSSES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "focal": (SigmoidFocalLoss, 1, 1),
    "softmax_focal": (SoftmaxFocalLoss, 3, 1),
    "ap": (lambda: SmoothAPLoss(1, queue_size=100), 1, 1),
    "ap_classes": (lambda: SmoothAPLoss(3, queue_size=100), 3, 1),
    "recall": (lambda: RecallAtQuantileLoss(1, 0.1, queue_size=100), 1, 1),
    "pauc": (lambda: PAUCAtBudgetLoss(1, 0.1, 0.4, queue_size=100), 1, 1),
    "warm_up": (warmed, 1, 4),  # warm-up, its last call (which empties the queue), blend, after
}


def batch(step: int, outputs: int, loss: str) -> tuple[Tensor, Tensor]:
    """Draw a batch whose number of positives changes from step to step, and is 0 at some."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(32, 4, generator=generator, dtype=torch.float64)
    if outputs > 1:
        return inputs, torch.randint(0, outputs, (32,), generator=generator)
    positive = torch.rand(32, 1, generator=generator) < 0.04 * (step % 7)
    return inputs, positive.double() if loss == "focal" else positive.long()


def train(net: nn.Module, loss: nn.Module, name: str, outputs: int, backend: str | None) -> list[float]:
    """Train for some steps and return the value at each."""

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = loss(net(inputs), targets)
        return value

    taken = torch.compile(step, fullgraph=True, backend=backend) if backend else step
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    values = []
    for number in range(STEPS):
        value = taken(*batch(number, outputs, name))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("name", LOSSES)
def test_training_step_is_one_graph(name: str) -> None:
    make, outputs, graphs = LOSSES[name]
    torch.manual_seed(0)
    net, loss = nn.Linear(4, outputs).double(), make().double()
    other_net, other_loss = copy.deepcopy(net), copy.deepcopy(loss)
    torch._dynamo.reset()
    counters.clear()
    values = train(net, loss, name, outputs, "eager")
    assert counters["stats"]["unique_graphs"] <= graphs
    expected = train(other_net, other_loss, name, outputs, None)
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(net.state_dict(), other_net.state_dict(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss.state_dict(), other_loss.state_dict(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ap", "recall"])
def test_evaluation_is_one_graph(name: str) -> None:
    loss = LOSSES[name][0]().eval()
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    for step in range(3, 7):
        logits, targets = torch.randn(32, 1), batch(step, 1, name)[1]
        torch.testing.assert_close(compiled(logits, targets), loss(logits, targets), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_compiled_schedule_is_where_the_counted_one_is() -> None:
    loss = warmed()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    loss.step = 10
    for number in range(4):
        compiled(torch.randn(32, 1), batch(number, 1, "ap")[1])
    assert loss.step == 14
    assert loss.main_weight == pytest.approx(3 / 13)
    with torch.no_grad():
        compiled(torch.randn(32, 1), batch(1, 1, "ap")[1])
    with loss.frozen_queue():
        compiled(torch.randn(32, 1), batch(1, 1, "ap")[1])
    assert loss.step == 14
    twin = copy.deepcopy(loss)
    twin(torch.randn(32, 1), batch(1, 1, "ap")[1])
    assert (loss.step, twin.step) == (14, 15)


@pytest.mark.parametrize("loss", [SoftmaxFocalLoss(), SmoothAPLoss(3, queue_size=16)], ids=["focal", "ap"])
def test_weights_that_come_after_batches_of_many_sizes(loss: nn.Module) -> None:
    # By then a graph takes the rows of the logits for a number that may change, and those of the weights for one that
    # may not.
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(loss), fullgraph=True, backend="eager")
    for rows, weighted in ((20, False), (17, False), (20, True), (11, True)):
        logits, targets = torch.randn(rows, 3), torch.arange(rows) % 3
        given = {"sample_weight": torch.rand(rows) + 0.1} if weighted else {}
        torch.testing.assert_close(compiled(logits, targets, **given), loss(logits, targets, **given))
