"""Every way to join the ranks' gradients gives the gradient of one float64 process; what is exchanged; who fails."""

import contextlib
import copy
import datetime
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from distributed_cases import FEATURES, case, data, ranking_losses, share
from processes import SHARDS_ON_CPU
from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)
from rareloss.distributed import gather_rows

ROWS = 36
# Relative to the norm of the whole gradient; promised is 1e-5 in float32.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class Way(NamedTuple):
    """A network wrapped by a strategy, how to read its gradient, and by what to divide the loss."""

    model: nn.Module
    gradient: Callable[[], Tensor]
    divide_by: int = 1
    unsynchronised: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


def network(outputs: int, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(7)
    # Drawn in float32, so that a network of either precision has the same parameters.
    return nn.Linear(FEATURES, outputs).to(dtype)


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])


def ddp(outputs: int, dtype: torch.dtype) -> Way:
    model = DistributedDataParallel(network(outputs, dtype))
    return Way(model, lambda: flat_gradient(model), unsynchronised=model.no_sync)


def fsdp(outputs: int, dtype: torch.dtype, *, summed: bool = False) -> Way:
    model = network(outputs, dtype)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    if summed:
        model.set_gradient_divide_factor(1.0)
        model.set_force_sum_reduction_for_comms(True)  # gloo has no sum that multiplies first

    def gradient() -> Tensor:
        return torch.cat([parameter.grad.full_tensor().reshape(-1) for parameter in model.parameters()])

    @contextlib.contextmanager
    def unsynchronised() -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)

    return Way(model, gradient, dist.get_world_size() if summed else 1, unsynchronised)


def by_hand(outputs: int, dtype: torch.dtype, *, summed: bool) -> Way:
    model = network(outputs, dtype)

    def gradient() -> Tensor:
        joined = flat_gradient(model)
        dist.all_reduce(joined)
        return joined if summed else joined / dist.get_world_size()

    return Way(model, gradient, dist.get_world_size() if summed else 1)


STRATEGIES: dict[str, Callable[[int, torch.dtype], Way]] = {
    "ddp": ddp,
    **({"fsdp2": fsdp} if SHARDS_ON_CPU else {}),
    **({"fsdp2 sum": partial(fsdp, summed=True)} if hasattr(FSDPModule, "set_force_sum_reduction_for_comms") else {}),
    "mean by hand": lambda outputs, dtype: by_hand(outputs, dtype, summed=False),
    "sum by hand": lambda outputs, dtype: by_hand(outputs, dtype, summed=True),
}


def losses(queue_size: int) -> dict[str, tuple[str, Callable[[bool | None], nn.Module]]]:
    """Return by name the kind of targets, and how to make the loss; gathering or, for the one process, not."""
    rows: dict[str, Any] = {"queue_size": queue_size}

    def warmup(gather: bool | None) -> nn.Module:
        main = PAUCAtBudgetLoss(1, 0.05, 0.4, gather_distributed=gather, **rows)
        options = {"warmup_steps": 2, "blend_steps": 3, "temp_start": 0.6, "temp_end": 0.2, "temp_decay_steps": 4}
        return LossWarmupWrapper(nn.BCEWithLogitsLoss(), main, **options)

    ranking: dict[str, tuple[str, Callable[[bool | None], nn.Module]]] = {
        "ap": ("indices", lambda gather: SmoothAPLoss(3, gather_distributed=gather, **rows)),
        "recall": ("labels", lambda gather: RecallAtQuantileLoss(3, 0.23, gather_distributed=gather, **rows)),
        "recall at fpr": (
            "binary",
            lambda gather: RecallAtQuantileLoss(1, 0.17, "negatives", gather_distributed=gather, **rows),
        ),
        "pauc": ("indices", lambda gather: PAUCAtBudgetLoss(3, 0.05, 0.4, gather_distributed=gather, **rows)),
        "warm-up": ("binary", warmup),
    }
    if queue_size:
        return ranking
    # In eval mode a focal loss looks at its own rows alone, as one process does.
    return ranking | {
        "sigmoid focal": ("labels", lambda gather: SigmoidFocalLoss().train(gather is None)),
        "softmax focal": ("indices", lambda gather: SoftmaxFocalLoss(reduction="mean_positive").train(gather is None)),
    }


class Batch(NamedTuple):
    """Rows of all ranks, and how they are cut; ``ends`` where gradients accumulated since the last end are joined."""

    inputs: Tensor
    targets: Tensor
    sizes: str
    ends: bool = True

    def of(self, rank: int, ranks: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        mine = share(rank, ranks, len(self.inputs), self.sizes)
        return self.inputs[mine].to(dtype), self.targets[mine]


def batches(kind: str) -> list[Batch]:
    drawn, cut = [data(step, ROWS, kind) for step in range(6)], "ragged"
    inputs, targets = [rows[0].float() for rows in drawn], [rows[1] for rows in drawn]
    order = targets[1].reshape(ROWS, -1)[:, 0].argsort(descending=True)
    return [
        Batch(inputs[0], targets[0], cut),
        Batch(inputs[1][order], targets[1][order], "even"),  # positives on some ranks alone
        Batch(inputs[2], torch.where(targets[2] == -100, -100, 0), cut),  # on none
        Batch(inputs[3], targets[3], "even", ends=False),
        Batch(inputs[4], targets[4], "one empty"),
        Batch(inputs[5][:0], targets[5][:0], "even"),
    ]


def gradients(
    loss: nn.Module, ways: dict[str, Way], kind: str, rank: int, ranks: int, dtype: torch.dtype
) -> list[dict[str, Tensor]]:
    """Return the gradient by strategy at each end of an accumulation.

    A loss meets a strategy through the gradient of the logits alone, so it is called once for all of them.
    """
    found = []
    scorer = network(1 if kind == "binary" else 3, dtype)
    for batch in batches(kind):
        inputs, targets = batch.of(rank, ranks, dtype)
        logits = scorer(inputs).detach().requires_grad_()
        loss(logits, targets).backward()
        for way in ways.values():
            with contextlib.nullcontext() if batch.ends else way.unsynchronised():
                way.model(inputs).backward(logits.grad / way.divide_by)
        if batch.ends:
            found.append({name: way.gradient().detach().clone().double() for name, way in ways.items()})
            for way in ways.values():
                way.model.zero_grad()
    return found


def one_process(kind: str, make: Callable[[bool | None], nn.Module]) -> list[Tensor]:
    model = network(1 if kind == "binary" else 3, torch.float64)
    alone = {"alone": Way(model, lambda: flat_gradient(model))}
    return [found["alone"] for found in gradients(make(False).double(), alone, kind, 0, 1, torch.float64)]


def expected_gradients(rank: int, ranks: int) -> dict[tuple[int, str], list[Tensor]]:
    """Compute what one process does, the work shared among ranks."""
    wanted = [(queue_size, name) for queue_size in (0, 50) for name in losses(queue_size)]
    mine = {key: one_process(*losses(key[0])[key[1]]) for key in wanted[rank::ranks]}
    received: list[Any] = [None] * ranks
    dist.all_gather_object(received, mine)
    everything = {key: found for part in received for key, found in part.items()}
    return {key: everything[key] for key in wanted}


def largest_errors(rank: int, ranks: int, dtype: torch.dtype) -> dict[str, float]:
    """Return by strategy, loss and queue the largest relative error of a gradient."""
    expected = expected_gradients(rank, ranks)
    # More ranks are slow to shard for: the sum that is as the mean but for its factor is left to fewer.
    chosen = [name for name in STRATEGIES if ranks < 3 or name != "fsdp2 sum"]
    ways = {outputs: {name: STRATEGIES[name](outputs, dtype) for name in chosen} for outputs in (1, 3)}
    errors: dict[str, float] = {}
    for (queue_size, name), exact in expected.items():
        kind, make = losses(queue_size)[name]
        got = gradients(make(None).to(dtype), ways[1 if kind == "binary" else 3], kind, rank, ranks, dtype)
        for found, wanted in zip(got, exact, strict=True):
            for strategy, gradient in found.items():
                # Where the exact gradient is 0, the one that was found must be as well.
                error = ((gradient - wanted).norm() / wanted.norm().clamp(min=1e-6)).item()
                key = f"{strategy}, {name}, queue {queue_size}"
                errors[key] = max(errors.get(key, 0.0), error)
    return errors


@case
def gradient_of_every_strategy_is_that_of_one_float64_process(rank: int, ranks: int) -> None:
    for dtype, tolerance in TOLERANCE.items():
        if dtype == torch.float32 or ranks == 2:
            errors = largest_errors(rank, ranks, dtype)
            assert {name: error for name, error in errors.items() if not error <= tolerance} == {}


class Exchanges(TorchDispatchMode):
    """Write down every collective and how many numbers it sends."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            sent = args[1][0] if "allgather" in func.name() else args[0][0]
            self.seen.append((func.name().split("::")[1], sent.numel()))
        return func(*args, **(kwargs or {}))


def exchanged(loss: nn.Module, logits: Tensor, targets: Tensor) -> list[tuple[str, int]]:
    """Return what a loss exchanges forward; backward it exchanges nothing."""
    leaf = logits.clone().requires_grad_()
    with Exchanges() as forward:
        value = loss(leaf, targets)
    with Exchanges() as backward:
        value.sum().backward()
    assert backward.seen == []
    return forward.seen


@case
def exchanges_are_counted(rank: int, ranks: int) -> None:
    logits, targets = torch.randn(rank + 5, 3), torch.arange(rank + 5) % 3
    most, columns = ranks + 4, 3 * 3 + 1  # rows of the largest rank; a score, a label and a weight a class, and iid
    sizes, payload, number = ("allgather_", 5), ("allgather_", most * columns), ("allreduce_", 2)  # with "I refuse"
    among = ranks > 1
    for queue_size in (0, 20):
        for loss in ranking_losses(3, queue_size=queue_size):
            assert exchanged(loss, logits, targets) == [sizes, payload] * among
            assert exchanged(loss, logits[:0], targets[:0]) == [sizes] * among
            assert exchanged(loss.eval(), logits, targets) == []
    for reduction in ("mean", "mean_positive", "sum"):
        for loss, y in (
            (SigmoidFocalLoss(reduction=reduction), nn.functional.one_hot(targets, 3)),
            (SoftmaxFocalLoss(reduction=reduction), targets),
        ):
            assert exchanged(loss, logits, y) == [number] * among
            assert exchanged(loss.eval(), logits, y) == []
    main = SmoothAPLoss(3, queue_size=20)
    wrapper = LossWarmupWrapper(nn.CrossEntropyLoss(), main, warmup_steps=1, blend_steps=1)
    for expected in ([number], [number, sizes, payload], [sizes, payload]):
        assert exchanged(wrapper, logits, targets) == expected * among


def failing(make: Callable[..., nn.Module], rank: int, ranks: int, seconds: float = 1.0) -> None:
    """Let the last rank raise before it reaches the loss; the others must not wait longer than their group does."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=seconds))
    loss = make(process_group=group)
    logits, targets = torch.randn(9, 3), torch.arange(9) % 3
    loss(logits, targets)
    if rank < ranks - 1:
        with pytest.raises(RuntimeError):
            loss(logits, targets)
    dist.barrier()


@case
def rank_that_raises_before_the_loss_ends_the_others(rank: int, ranks: int) -> None:
    if ranks == 2:
        failing(lambda **group: SmoothAPLoss(3, queue_size=20, **group), rank, ranks)
        failing(lambda **group: SoftmaxFocalLoss(**group), rank, ranks)


@case
def error_of_any_kind_in_the_loss_raises_on_every_rank(rank: int, ranks: int) -> None:
    losses: list[nn.Module] = [
        SoftmaxFocalLoss(),
        SmoothAPLoss(3, queue_size=20),
        LossWarmupWrapper(nn.CrossEntropyLoss(), SmoothAPLoss(3, queue_size=20), warmup_steps=9),
    ]
    for loss in losses:
        logits, targets = torch.randn(9, 3), torch.arange(9) % 3
        loss(logits, targets)
        before = copy.deepcopy(loss.state_dict())
        elsewhere = targets.to("meta") if rank == ranks - 1 else targets
        with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
            loss(logits, elsewhere)
        assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
        loss(logits, targets)


@case
def process_that_is_no_rank_of_the_group_is_told_so(rank: int, ranks: int) -> None:
    group = dist.new_group([0])
    logits, targets = torch.randn(9, 3), torch.arange(9) % 3
    for loss in (SmoothAPLoss(3, queue_size=20, process_group=group), SoftmaxFocalLoss(process_group=group)):
        if rank == 0:
            assert torch.isfinite(loss(logits, targets))
        else:
            for call in (lambda loss=loss: loss(logits, targets), lambda: gather_rows(logits, group)):
                with pytest.raises(ValueError, match="process_group"):
                    call()
        assert torch.isfinite(loss.eval()(logits, targets))  # which asks nobody
    dist.barrier()


class WithLoss(nn.Module):
    """A model that holds its loss, as in a training framework's module."""

    def __init__(self, kind: str, loss: nn.Module) -> None:
        super().__init__()
        self.scorer = network(1 if kind == "binary" else 3, torch.float64)
        self.loss = loss

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.scorer(inputs), targets)


@case
def loss_inside_of_a_wrapped_parent_trains_as_one_process_does(rank: int, ranks: int) -> None:
    mesh = init_device_mesh("cpu", (ranks,))
    for name, (kind, make) in (losses(0) | losses(50)).items():  # with a queue, those that have one
        alone = WithLoss(kind, make(False).double())
        ddp, sharded = (WithLoss(kind, make(None).double()) for _ in range(2))
        ways = [alone, DistributedDataParallel(ddp)]
        if SHARDS_ON_CPU:
            fully_shard(sharded, mesh=mesh)
            ways.append(sharded)
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9) for model in ways]
        for batch in (batch for batch in batches(kind) if batch.ends):
            inputs, targets = batch.inputs.double(), batch.targets
            mine = batch.of(rank, ranks, torch.float64)
            for model, optimizer in zip(ways, optimizers, strict=True):
                optimizer.zero_grad()
                model(*((inputs, targets) if model is alone else mine)).backward()
                optimizer.step()
        expected = alone.state_dict()
        for inner in (ddp, sharded)[: len(ways) - 1]:
            assert inner.state_dict().keys() == expected.keys()
            for key, value in inner.state_dict().items():
                found = value.full_tensor() if isinstance(value, DTensor) else value
                said = f"{type(inner).__name__}, {name}, {key}"
                torch.testing.assert_close(found, expected[key], rtol=1e-9, atol=1e-12, msg=said)


@case
def checkpoint_of_every_rank_resumes_bit_for_bit(rank: int, ranks: int) -> None:
    def made() -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        # After its first step DDP lays its buckets out anew, and more than two numbers then add up in another order.
        model = DistributedDataParallel(network(3, torch.float32)) if ranks <= 2 else network(3, torch.float32)
        main = RecallAtQuantileLoss(3, 0.3, queue_size=100)
        options: dict[str, Any] = {"temp_start": 0.3, "temp_end": 0.1, "temp_decay_steps": 4}
        loss = LossWarmupWrapper(nn.CrossEntropyLoss(), main, warmup_steps=2, blend_steps=2, **options)
        return model, loss, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def train(parts: Any, first: int, last: int) -> list[float]:
        model, loss, optimizer = parts
        values = []
        for step in range(first, last):
            inputs, targets, _ = data(step, ROWS, "indices")
            mine = share(rank, ranks, ROWS, ("even", "ragged", "one empty")[step % 3])
            optimizer.zero_grad()
            value = loss(model(inputs[mine].float()), targets[mine])
            value.backward()
            if ranks > 2:
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad)
            optimizer.step()
            values.append(value.item())
        return values

    def held(parts: Any) -> dict[str, Any]:
        model, loss, optimizer = parts
        of_model, of_optimizer = get_state_dict(model, optimizer)
        return {"model": of_model, "optimizer": of_optimizer, "loss": loss.state_dict()}

    straight = made()
    expected = train(straight, 0, 8)
    for stop in (1, 3, 6):
        interrupted = made()
        train(interrupted, 0, stop)
        with tempfile.TemporaryDirectory() as folder:
            shared = [folder]
            dist.broadcast_object_list(shared)
            dcp.save(held(interrupted), checkpoint_id=shared[0])
            resumed = made()
            state = held(resumed)
            dcp.load(state, checkpoint_id=shared[0])
            dist.barrier()
        model, loss, optimizer = resumed
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        loss.load_state_dict(state["loss"])
        assert train(resumed, stop, 8) == expected[stop:]
        for part, other in zip(resumed[:2], straight[:2], strict=True):
            for key, value in part.state_dict().items():
                assert torch.equal(value, other.state_dict()[key]), key
