"""A resumed run equals the uninterrupted one bit for bit, and a checkpoint of another loss is refused in words."""

import copy
import inspect
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning"),
    # Of torch itself, when it saves without a process group.
    pytest.mark.filterwarnings("ignore:.*torch.distributed is disabled:UserWarning"),
]

Parts = tuple[nn.Module, nn.Module, torch.optim.Optimizer]
STEPS, ROWS, CLASSES, QUEUE = 8, 12, 3, 30  # the queue is full after three steps
RESET_AT = 5


def warmup(warmup_loss: nn.Module, main_loss: nn.Module, **options: Any) -> LossWarmupWrapper:
    schedule = {"temp_start": 0.4, "temp_end": 0.1, "temp_decay_steps": 3}
    return LossWarmupWrapper(warmup_loss, main_loss, **({"warmup_steps": 2, "blend_steps": 3} | schedule | options))


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ap": lambda queue_size=QUEUE: SmoothAPLoss(CLASSES, queue_size),
    "recall": lambda queue_size=QUEUE: RecallAtQuantileLoss(CLASSES, 0.2, queue_size=queue_size),
    "recall at fpr": lambda queue_size=QUEUE: RecallAtQuantileLoss(CLASSES, 0.2, "negatives", queue_size=queue_size),
    "pauc": lambda queue_size=QUEUE: PAUCAtBudgetLoss(CLASSES, 0.05, 0.4, queue_size=queue_size),
    "softmax focal": lambda queue_size=QUEUE: SoftmaxFocalLoss(alpha=[0.2, 0.3, 0.5]),
    "sigmoid focal": lambda queue_size=QUEUE: SigmoidFocalLoss(),
    "cross-entropy, then ap": lambda queue_size=QUEUE: warmup(nn.CrossEntropyLoss(), SmoothAPLoss(CLASSES, queue_size)),
    "ap, then pauc": lambda queue_size=QUEUE: warmup(
        SmoothAPLoss(CLASSES, queue_size), PAUCAtBudgetLoss(CLASSES, 0.05, 0.4, queue_size=queue_size)
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def batch(name: str, step: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(rows, 4, generator=generator)
    targets = torch.randint(0, CLASSES, (rows,), generator=generator)
    return inputs, nn.functional.one_hot(targets, CLASSES) if name == "sigmoid focal" else targets


def made(name: str) -> Parts:
    torch.manual_seed(3)
    model = nn.Linear(4, CLASSES)
    return model, LOSSES[name](), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(parts: Parts, name: str, first: int, last: int) -> list[float]:
    model, loss, optimizer = parts
    values = []
    for step in range(first, last):
        if step == RESET_AT and hasattr(loss, "reset_queue"):
            loss.reset_queue()
        inputs, targets = batch(name, step)
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def same_bits(parts: Parts, others: Parts) -> bool:
    return all(
        torch.equal(value, other.state_dict()[key])
        for part, other in zip(parts[:2], others[:2], strict=True)
        for key, value in part.state_dict().items()
    )


@every_loss
def test_run_resumed_at_any_step_equals_the_uninterrupted_one(name: str) -> None:
    # In warm-up, blend and after; the queue empty, part full, full, and forgotten on the way.
    straight = made(name)
    expected = train(straight, name, 0, STEPS)
    for stop in range(STEPS):
        interrupted = made(name)
        train(interrupted, name, 0, stop)
        file = io.BytesIO()
        torch.save([part.state_dict() for part in interrupted], file)
        file.seek(0)
        resumed = made(name)
        for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        assert train(resumed, name, stop, STEPS) == expected[stop:]
        assert same_bits(resumed, straight)


@every_loss
@pytest.mark.filterwarnings(
    "ignore:torch.distributed is unavailable or uninitialized:UserWarning",  # torch 2.6 says so
    "ignore:TypedStorage is deprecated:UserWarning",  # which it uses itself
)
@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_distributed_checkpoint_of_one_process_resumes_bit_for_bit(name: str, stop: int, tmp_path: Path) -> None:
    def held(parts: Parts) -> dict[str, Any]:
        of_model, of_optimizer = get_state_dict(parts[0], parts[2])
        return {"model": of_model, "optimizer": of_optimizer, "loss": parts[1].state_dict()}

    straight, interrupted, resumed = made(name), made(name), made(name)
    expected = train(straight, name, 0, STEPS)
    train(interrupted, name, 0, stop)
    # Torch 2.6 finds out by itself that there is one process.
    alone = {"no_dist": True} if "no_dist" in inspect.signature(dcp.save).parameters else {}
    dcp.save(held(interrupted), checkpoint_id=tmp_path, **alone)
    state = held(resumed)
    dcp.load(state, checkpoint_id=tmp_path, **alone)
    model, loss, optimizer = resumed
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    loss.load_state_dict(state["loss"])
    assert train(resumed, name, stop, STEPS) == expected[stop:]
    assert same_bits(resumed, straight)


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_resumed_main_loss_has_the_temperature_of_its_step_before_the_next_call(stop: int) -> None:
    # What is looked at between two steps, as in a validation after resuming, must not be of the constructor.
    name = "cross-entropy, then ap"
    interrupted, resumed = made(name), made(name)
    train(interrupted, name, 0, stop)
    resumed[1].load_state_dict(interrupted[1].state_dict())
    logits, targets = torch.randn(ROWS, CLASSES), batch(name, 0)[1]
    found, expected = (parts[1].main_loss.diagnose(logits, targets) for parts in (resumed, interrupted))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert resumed[1].main_loss.temperature == resumed[1].temperature


def test_checkpoint_of_a_wrapper_counts_on_under_another_schedule() -> None:
    saved = made("cross-entropy, then ap")
    train(saved, "cross-entropy, then ap", 0, 4)
    other = warmup(nn.CrossEntropyLoss(), SmoothAPLoss(CLASSES, QUEUE), warmup_steps=6, blend_steps=0)
    other.load_state_dict(saved[1].state_dict())
    assert (other.step, other.main_weight, other.in_warmup) == (4, 0.0, True)
    other = warmup(nn.CrossEntropyLoss(), SmoothAPLoss(CLASSES, QUEUE), warmup_steps=0, blend_steps=7)
    other.load_state_dict(saved[1].state_dict())
    assert (other.step, other.main_weight) == (4, pytest.approx(5 / 8))


def rows_remembered(loss: nn.Module) -> int:
    said = loss.diagnose(torch.randn(ROWS, CLASSES), batch("ap", 0)[1])
    return int(said["rows_pool"][0]) - ROWS


@pytest.mark.parametrize("prefix", ["", "loss."])
@pytest.mark.parametrize(("queue_size", "classes"), [(80, 3), (30, 4), (0, 3)])
@pytest.mark.parametrize("strict", [True, False])
def test_checkpoint_of_another_queue_is_refused_with_both_numbers(
    prefix: str, queue_size: int, classes: int, strict: bool
) -> None:
    loss, other = SmoothAPLoss(CLASSES, QUEUE), SmoothAPLoss(classes, queue_size)
    loss(*batch_of_logits(0))
    before = copy.deepcopy(loss.state_dict())
    module, state = loss, other.state_dict()
    if prefix:
        module = nn.ModuleDict({"loss": loss})
        state = {prefix + key: value for key, value in state.items()}
    with pytest.raises(RuntimeError) as refused:
        module.load_state_dict(state, strict=strict)
    said = str(refused.value)
    for number in (f"queue_size={queue_size}", f"num_classes={classes}", "queue_size=30", "num_classes=3"):
        assert number in said
    assert f"{prefix}queue" in said
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


def batch_of_logits(step: int) -> tuple[Tensor, Tensor]:
    inputs, targets = batch("ap", step)
    return inputs[:, :CLASSES], targets


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("lost", ["scores", "is_positive", "weight", "iid", "pointer"])
def test_half_a_queue_is_refused_and_nothing_of_it_loaded(lost: str, strict: bool) -> None:
    saved, loss = SmoothAPLoss(CLASSES, QUEUE), SmoothAPLoss(CLASSES, QUEUE)
    saved(*batch_of_logits(0))
    state = saved.state_dict()
    del state[f"queue.{lost}"]
    with pytest.raises(RuntimeError, match=f"queue.{lost}"):
        loss.load_state_dict(state, strict=strict)
    assert rows_remembered(loss) == 0


def test_checkpoint_without_queue_leaves_the_queue_as_it_is() -> None:
    loss = SmoothAPLoss(CLASSES, QUEUE)
    loss(*batch_of_logits(0))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*queue.scores"):
        loss.load_state_dict({})
    loss.load_state_dict({}, strict=False)
    assert rows_remembered(loss) == ROWS


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # what has no deterministic way raises, and new memory is NaN
    yield
    torch.use_deterministic_algorithms(False)


@every_loss
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("rows", "queue_size"), [(300, 300), (20_000, 5_000), (300_000, 0)])
def test_deterministic_mode_gives_equal_bits_in_two_runs(name: str, rows: int, queue_size: int) -> None:
    # A small pool is ranked pair by pair, larger ones by sums over sorted rows and by a grid.
    runs = []
    for _ in range(2):
        loss, seen = LOSSES[name](queue_size), []
        for step in range(2 if rows < 300_000 else 1):
            inputs, targets = batch(name, step, rows)
            logits = inputs[:, :CLASSES].clone().requires_grad_()
            value = loss(logits, targets)
            value.backward()
            assert math.isfinite(value.item())
            assert torch.isfinite(logits.grad).all()
            seen += [value.detach(), logits.grad]
        runs.append([*seen, *loss.state_dict().values()])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)
