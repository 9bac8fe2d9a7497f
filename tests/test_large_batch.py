"""In chunks or in one piece: the same scores, gradients, queue and state; and what cannot be the same is refused."""

import copy
import datetime
import random
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from processes import SHARDS_ON_CPU, start_ranks
from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
    large_batch,
)

ROWS, FEATURES, CHUNK = 50, 4, 16


class TorchCrossEntropy(nn.Module):
    """Torch's own binary cross-entropy, which wants float targets of the scores' shape."""

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype).reshape(scores.shape))


LOSSES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "AP": ("binary", lambda: SmoothAPLoss(1, queue_size=70)),
    "AP without queue": ("indices", lambda: SmoothAPLoss(3, queue_size=0)),
    "AP by class": ("labels", lambda: SmoothAPLoss(3, queue_size=70, reduction="none")),
    "recall": ("binary", lambda: RecallAtQuantileLoss(1, 0.23, queue_size=70)),
    "recall among negatives": ("labels", lambda: RecallAtQuantileLoss(3, 0.17, "negatives", queue_size=70)),
    "partial AUC": ("indices", lambda: PAUCAtBudgetLoss(3, 0.05, 0.4, queue_size=500)),
    "sigmoid focal": ("labels", SigmoidFocalLoss),
    "softmax focal": ("indices", SoftmaxFocalLoss),
    "warm-up": (
        "binary",
        lambda: LossWarmupWrapper(
            nn.BCEWithLogitsLoss(), SmoothAPLoss(1, queue_size=70), warmup_steps=1, blend_steps=1
        ),
    ),
    "torch": ("binary", TorchCrossEntropy),
}


def data(kind: str, step: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, targets and weights, some of them 0."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.rand(ROWS, generator=generator, dtype=torch.float64) + 0.1
    weight[::11] = 0.0
    targets = torch.randint(0, 3, (ROWS,), generator=generator)
    if kind == "labels":
        targets = (torch.rand(ROWS, 3, generator=generator) < 0.3).long()
    elif kind == "binary":
        targets = (targets == 1).long()
    return inputs, targets, weight


def scorer(kind: str = "binary", *layers: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(5)
    outputs = 1 if kind == "binary" else 3
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), *layers, nn.Linear(8, outputs)).to(dtype)


def gradients(model: nn.Module) -> Tensor:
    """Return all gradients of a model in one vector."""
    found = [parameter.grad for parameter in model.parameters()]
    return torch.cat(
        [grad.full_tensor().flatten() if hasattr(grad, "full_tensor") else grad.flatten() for grad in found]
    )


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def by_hand(model: nn.Module, inputs: Tensor) -> Tensor:
    """Score chunk by chunk and keep the whole graph: what the function replaces, with the same random numbers."""
    return torch.cat([model(chunk) for chunk in inputs.split(CHUNK)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_value_and_state_are_those_of_one_big_batch(name: str, dtype: torch.dtype) -> None:
    kind, make = LOSSES[name]
    model, alone = scorer(kind, dtype=dtype), scorer(kind, dtype=dtype)
    loss, whole = make().to(dtype), make().to(dtype)
    in_chunks = large_batch(model, chunk_size=CHUNK)
    for step in range(3):
        inputs, targets, weight = data(kind, step, dtype)
        options: dict[str, Tensor] = {} if name in ("torch", "warm-up") else {"sample_weight": weight}
        if name in ("recall", "recall among negatives", "partial AUC"):
            options["iid_mask"] = torch.arange(ROWS) % 4 != 1
        model.zero_grad()
        alone.zero_grad()
        value = loss(in_chunks(inputs), targets, **options)
        expected = whole(alone(inputs), targets, **options)
        value.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(value, expected)
        assert error(gradients(model), gradients(alone)) < (1e-12 if dtype == torch.float64 else 1e-5)
    for key, buffer in whole.state_dict().items():
        torch.testing.assert_close(loss.state_dict()[key], buffer)


def test_warm_up_counts_one_call() -> None:
    inputs, targets, _ = data("binary")
    loss = LossWarmupWrapper(SigmoidFocalLoss(), SmoothAPLoss(1), warmup_steps=10)
    loss(large_batch(scorer(), chunk_size=CHUNK)(inputs), targets).backward()
    assert loss.step == 1


@pytest.mark.parametrize("rows", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_any_number_of_rows(rows: int) -> None:
    inputs = data("binary")[0][:rows]
    model, alone = scorer(), scorer()
    scores = large_batch(model, chunk_size=CHUNK)(inputs)
    assert scores.shape == (rows, 1)
    scores.square().sum().backward()
    alone(inputs).square().sum().backward()
    torch.testing.assert_close(gradients(model), gradients(alone))


class Rows(NamedTuple):
    """How the model gets its rows, and how it gives its scores."""

    values: Tensor
    more: dict[str, Any]


class Structured(nn.Module):
    """Take and give tuples, dicts and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 2, dtype=torch.float64)
        self.second = nn.Linear(FEATURES, 3, dtype=torch.float64)
        self.unused = nn.Linear(FEATURES, 3, dtype=torch.float64)

    def forward(self, rows: Rows, scale: Tensor, *, shift: list[Tensor], negate: bool) -> dict[str, Any]:
        sign = -1.0 if negate else 1.0
        scores = sign * (self.first(rows.values) * scale + shift[0] * rows.more["factor"])
        return {
            "scores": scores,
            "pair": (self.second(rows.values), self.unused(rows.values)),
            "winner": scores.argmax(1),
            "said": "as ever",
        }


def test_inputs_and_outputs_in_tuples_and_dicts() -> None:
    inputs, _, weight = data("binary")
    model, alone = Structured(), None
    alone = copy.deepcopy(model)

    def call(function: Callable[..., Any]) -> Any:
        scale = torch.tensor(2.0, dtype=torch.float64)
        return function(Rows(inputs, {"factor": weight[:, None]}), scale, shift=[weight[:, None]], negate=True)

    got, expected = call(large_batch(model, chunk_size=CHUNK)), call(alone)
    assert got["said"] == "as ever"
    assert torch.equal(got["winner"], expected["winner"])
    assert not got["winner"].requires_grad
    for output in (got, expected):
        (output["scores"].std() + output["pair"][0].std()).backward()
    for layer, other in ((model.first, alone.first), (model.second, alone.second)):
        torch.testing.assert_close(layer.weight.grad, other.weight.grad)
    # The head that the loss does not use gets no gradient, rather than one of zeros that an optimizer would act on.
    assert model.unused.weight.grad is None


def test_inputs_that_require_grad_get_it() -> None:
    inputs, targets, _ = data("binary")
    found = []
    for chunked in (True, False):
        model = scorer()
        leaf, scale = inputs.clone().requires_grad_(), torch.ones((), dtype=torch.float64, requires_grad=True)

        class Scaled(nn.Module):
            def forward(self, inputs: Tensor, scale: Tensor, model: nn.Module) -> Tensor:
                return model(inputs * scale)

        scaled = Scaled()
        scores = (large_batch(scaled, chunk_size=CHUNK) if chunked else scaled)(leaf, scale, model)
        SmoothAPLoss(1, queue_size=0)(scores, targets).backward()
        found.append((leaf.grad, scale.grad, gradients(model)))
    torch.testing.assert_close(found[0], found[1])


def test_frozen_parts_stay_without_gradient() -> None:
    inputs, targets, _ = data("binary")
    model = scorer()
    model[0].requires_grad_(False)
    SmoothAPLoss(1)(large_batch(model, chunk_size=CHUNK)(inputs), targets).backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None
    model.requires_grad_(False)
    assert not large_batch(model, chunk_size=CHUNK)(inputs).requires_grad


def test_gradients_add_up_over_calls_losses_and_factors() -> None:
    model, alone = scorer(), scorer()
    in_chunks = large_batch(model, chunk_size=CHUNK)
    ap, recall = SmoothAPLoss(1, queue_size=0), RecallAtQuantileLoss(1, 0.2, queue_size=0)
    for step in range(2):
        inputs, targets, _ = data("binary", step)
        for scores in (in_chunks, alone):
            total = ap(scores(inputs), targets) + 3.0 * recall(scores(inputs), targets)
            both = scores(inputs)
            total = (
                total
                + ap(both, targets) * recall(both, targets)
                + 0.01 * (model if scores is in_chunks else alone)[0].weight.square().sum()
            )
            (total / 2).backward()
    assert error(gradients(model), gradients(alone)) < 1e-12


def test_no_forward_with_a_graph_sees_more_than_a_chunk() -> None:
    seen: list[tuple[int, bool]] = []
    model = scorer()
    model.register_forward_hook(lambda _, inputs, __: seen.append((len(inputs[0]), torch.is_grad_enabled())))
    inputs, targets, _ = data("binary")
    scores = large_batch(model, chunk_size=CHUNK)(inputs)
    assert seen == [(16, False), (16, False), (16, False), (2, False)]
    seen.clear()
    SmoothAPLoss(1)(scores, targets).backward()
    assert seen == [(16, True), (16, True), (16, True), (2, True)]


@contextmanager
def counting_saved() -> Iterator[dict[str, int]]:
    """Count the bytes that graphs hold, now and at most."""
    count = {"now": 0, "most": 0}

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.size = tensor, tensor.nbytes
            count["now"] += self.size
            count["most"] = max(count["most"], count["now"])

        def __del__(self) -> None:
            count["now"] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        yield count


def test_graphs_hold_one_chunk() -> None:
    model = nn.Sequential(nn.Linear(1, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))
    inputs, targets = torch.randn(1_024, 1), torch.arange(1_024) % 10 == 0
    loss = SigmoidFocalLoss()
    most = []
    for scores in (model, large_batch(model, chunk_size=64)):
        with counting_saved() as count:
            loss(scores(inputs)[:, 0], targets).backward()
        most.append(count["most"])
    assert most[0] > 1_024 * 256 * 4 * 2
    assert most[1] < most[0] / 4


def test_dropout_masks_are_the_same_in_both_passes() -> None:
    inputs, targets, _ = data("binary")
    model, alone = scorer("binary", nn.Dropout(0.5)), scorer("binary", nn.Dropout(0.5))
    torch.manual_seed(7)
    scores = large_batch(model, chunk_size=CHUNK)(inputs)
    after = torch.get_rng_state()
    torch.rand(100)  # whatever is drawn in between
    between = torch.get_rng_state()
    SmoothAPLoss(1)(scores, targets).backward()
    assert torch.equal(torch.get_rng_state(), between)

    torch.manual_seed(7)
    expected = by_hand(alone, inputs)
    assert torch.equal(torch.get_rng_state(), after)
    SmoothAPLoss(1)(expected, targets).backward()
    assert torch.equal(scores, expected)
    assert error(gradients(model), gradients(alone)) < 1e-12


class Noisy(nn.Module):
    """Draw from a generator that nobody knows of."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + random.random())


def test_model_that_does_not_repeat_itself_is_refused() -> None:
    inputs, targets, _ = data("binary")
    scores = large_batch(scorer("binary", Noisy()), chunk_size=CHUNK)(inputs)
    with pytest.raises(RuntimeError, match="other scores in the second pass"):
        SmoothAPLoss(1)(scores, targets).backward()


def test_model_that_changed_before_backward_is_refused() -> None:
    inputs, targets, _ = data("binary")
    model = scorer()
    scores = large_batch(model, chunk_size=CHUNK)(inputs)
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"call backward\(\) first"):
        SmoothAPLoss(1)(scores, targets).backward()
    scores = large_batch(model, chunk_size=CHUNK)(inputs)
    model.eval()
    with pytest.raises(RuntimeError, match=r"call backward\(\) first"):
        SmoothAPLoss(1)(scores, targets).backward()


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(8),
        nn.SyncBatchNorm(8),
        nn.BatchNorm1d(8, track_running_stats=False).eval(),
        nn.InstanceNorm1d(8, track_running_stats=True),
    ],
    ids=repr,
)
def test_statistics_of_the_batch_are_refused(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 8), layer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"1 \({type(layer).__name__}\)"):
        large_batch(model, chunk_size=CHUNK)(torch.randn(ROWS, FEATURES))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8)], ids=repr)
def test_statistics_that_stand_or_belong_to_a_row_are_taken(layer: nn.Module) -> None:
    if isinstance(layer, nn.BatchNorm1d):
        layer.eval()
        layer.running_mean += 1.0
    inputs, targets, _ = data("binary")
    model = scorer("binary", layer)
    alone = copy.deepcopy(model)
    for scored, net in ((large_batch(model, chunk_size=CHUNK), model), (alone, alone)):
        SmoothAPLoss(1)(scored(inputs), targets).backward()
        assert net[2].weight.grad is not None
    assert error(gradients(model), gradients(alone)) < 1e-12


class Counting(nn.Module):
    """Count the calls, in place or by a new tensor, and scale by their number."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls.add_(1)
        else:
            self.calls = self.calls + 1
        return x * float(self.calls)


@pytest.mark.parametrize("layer", ["spectral norm", "in place", "new tensor"])
def test_state_that_does_not_depend_on_the_rows_moves_as_in_one_big_batch(layer: str) -> None:
    def make() -> nn.Module:
        torch.manual_seed(3)
        if layer == "spectral norm":
            return nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        return Counting(in_place=layer == "in place")

    inputs, targets, _ = data("binary")
    model, alone = scorer("binary", make()), scorer("binary", make())
    for _ in range(3):
        model.zero_grad()
        alone.zero_grad()
        scores, expected = large_batch(model, chunk_size=CHUNK)(inputs), alone(inputs)
        model(inputs), alone(inputs)  # state goes on between a call and its backward
        SmoothAPLoss(1, queue_size=0)(scores, targets).backward()
        if layer == "spectral norm":  # one big batch cannot: the state that its graph needs has moved
            torch.testing.assert_close(scores, expected)
        else:
            SmoothAPLoss(1, queue_size=0)(expected, targets).backward()
            assert error(gradients(model), gradients(alone)) < 1e-12
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-12, atol=0.0)


def test_spectral_norm_has_the_gradient_of_one_big_batch() -> None:
    inputs, targets, _ = data("binary")
    model = scorer("binary", nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)))
    alone = copy.deepcopy(model)
    for scores in (large_batch(model, chunk_size=CHUNK), alone):
        SmoothAPLoss(1)(scores(inputs), targets).backward()
    assert error(gradients(model), gradients(alone)) < 1e-12


class RunningMean(nn.Module):
    """Keep a mean of what was seen, as quantisation observers do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return x


def test_state_that_depends_on_the_rows_is_refused_and_put_back() -> None:
    model = scorer("binary", RunningMean())
    with pytest.raises(ValueError, match="'mean' of RunningMean changes with the rows"):
        large_batch(model, chunk_size=CHUNK)(data("binary")[0])
    assert torch.equal(model[2].mean, torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_is_the_same_in_both_passes(backward_inside: bool) -> None:
    inputs, targets, _ = data("binary", dtype=torch.float32)
    model, alone = scorer(dtype=torch.float32), scorer(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scores, expected = large_batch(model, chunk_size=CHUNK)(inputs), by_hand(alone, inputs)
        value, other = SmoothAPLoss(1)(scores, targets), SmoothAPLoss(1)(expected, targets)
        if backward_inside:
            value.backward()
    if not backward_inside:
        value.backward()
    other.backward()
    assert scores.dtype == torch.bfloat16
    assert torch.equal(scores, expected)
    assert error(gradients(model), gradients(alone)) < 1e-2


def test_scaler_scales_once_and_skips_what_is_not_finite() -> None:
    model, alone = scorer(dtype=torch.float32), scorer(dtype=torch.float32)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.5) for net in (model, alone)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**12) for _ in optimizers]
    losses = [SmoothAPLoss(1, queue_size=70) for _ in optimizers]
    for step in range(4):
        inputs, targets, _ = data("binary", step, torch.float32)
        if step == 2:
            inputs[20, 0] = torch.nan
        for scores, loss, optimizer, scaler in zip(
            (large_batch(model, chunk_size=CHUNK), alone), losses, optimizers, scalers, strict=True
        ):
            optimizer.zero_grad()
            scaler.scale(loss(scores(inputs), targets)).backward()
            scaler.step(optimizer)
            scaler.update()
        torch.testing.assert_close(list(model.parameters()), list(alone.parameters()), rtol=1e-5, atol=1e-6)
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**11
    for key, value in losses[1].state_dict().items():
        torch.testing.assert_close(losses[0].state_dict()[key], value)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradient_there_is_one_pass_and_the_value(context: Callable[[], Any]) -> None:
    inputs, targets, _ = data("binary")
    model = scorer("binary", nn.BatchNorm1d(8), nn.Dropout()).eval()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(0))
    with context():
        scores = large_batch(model, chunk_size=CHUNK)(inputs)
        assert not scores.requires_grad
        assert len(calls) == 4
        torch.testing.assert_close(scores, model(inputs))
        assert torch.isfinite(SmoothAPLoss(1).eval()(scores, targets))


def test_second_backward_needs_retain_graph_and_adds_the_same_again() -> None:
    inputs, targets, _ = data("binary")
    model = scorer("binary", nn.Dropout())
    value = SmoothAPLoss(1)(large_batch(model, chunk_size=CHUNK)(inputs), targets)
    value.backward(retain_graph=True)
    once = gradients(model)
    value.backward()
    torch.testing.assert_close(gradients(model), 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_what_autograd_cannot_be_given_is_refused() -> None:
    inputs = data("binary")[0]
    model = scorer()
    leaf = inputs.clone().requires_grad_()
    value = large_batch(model, chunk_size=CHUNK)(leaf).square().sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        value.backward(create_graph=True)
    value = large_batch(model, chunk_size=CHUNK)(leaf).square().sum()
    with pytest.raises(RuntimeError, match=r"call backward\(\) and read \.grad"):
        torch.autograd.grad(value, leaf)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(large_batch(model, chunk_size=CHUNK)(inputs).sum(), list(model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_chunks_are_moved_where_the_model_is() -> None:
    seen: list[str] = []
    model = nn.Linear(FEATURES, 1).to("meta")
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].device.type))
    scores = large_batch(model, chunk_size=CHUNK)(torch.randn(ROWS, FEATURES))
    scores.sum().backward()
    assert scores.device.type == "meta"
    assert model.weight.grad.device.type == "meta"
    assert set(seen) == {"meta"}
    seen.clear()
    large_batch(model, chunk_size=CHUNK, device="cpu")(torch.randn(ROWS, FEATURES, device="meta"))
    assert set(seen) == {"meta"}
    seen.clear()
    model.register_forward_pre_hook(lambda _, inputs: inputs[0].to("meta"))
    large_batch(model, chunk_size=CHUNK, device="cpu")(torch.randn(ROWS, FEATURES))
    assert set(seen) == {"cpu"}


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"mean": x.mean(), "one": x.mean(0), "none": None, "first": x.sum(1)}[self.what]

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what


def test_bad_input_is_refused_in_words() -> None:
    rows = torch.randn(ROWS, FEATURES)
    with pytest.raises(TypeError, match="wrap a function in a module"):
        large_batch(torch.sigmoid, chunk_size=4)  # type: ignore[arg-type]
    for wrong, kind in ((0, ValueError), (2.5, TypeError), (None, TypeError)):
        with pytest.raises(kind, match="chunk_size"):
            large_batch(nn.Linear(FEATURES, 1), chunk_size=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got shapes \[\(50, 4\), \(3, 4\)\]"):
        large_batch(nn.Bilinear(4, 4, 1), chunk_size=CHUNK)(rows, rows[:3])
    with pytest.raises(ValueError, match="nothing to cut"):
        large_batch(nn.Linear(FEATURES, 1), chunk_size=CHUNK)(torch.tensor(1.0))
    for what in ("mean", "one", "none"):
        with pytest.raises(ValueError, match="must have the batch as their first dimension"):
            large_batch(Summed(what), chunk_size=CHUNK)(rows)
    assert large_batch(Summed("first"), chunk_size=CHUNK)(rows).shape == (ROWS,)


Case = Callable[[int, int], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Register a case that two ranks run; each raises where something is wrong."""
    CASES[function.__name__] = function
    return function


def shares(rank: int) -> Iterator[slice]:
    """Give the ranks ragged rows, so that they have 1 and 6 chunks, and then one of them none."""
    for cut in (3, ROWS):
        yield slice(0, cut) if rank == 0 else slice(cut, ROWS)


def whole_gradient(loss: nn.Module, kind: str, *, steps: int = 1) -> Tensor:
    """Return the gradient that one process computes, without other ranks."""
    alone = scorer(kind)
    for step in range(steps):
        inputs, targets, _ = data(kind, step)
        loss(alone(inputs), targets).backward()
    return gradients(alone)


@case
def one_reduction_of_gradients_under_ddp(rank: int, ranks: int) -> None:
    for name in ("AP", "recall among negatives", "warm-up"):
        kind, make = LOSSES[name]
        alone = make()
        for module in alone.modules():
            if hasattr(module, "gather_distributed"):
                module.gather_distributed = False
        expected = whole_gradient(alone, kind)
        for mine in shares(rank):
            inputs, targets, _ = data(kind)
            model = DistributedDataParallel(scorer(kind))
            make()(large_batch(model, chunk_size=9)(inputs[mine]), targets[mine]).backward()
            assert error(gradients(model), expected) < 1e-12, (name, mine)


@case
def accumulation_and_sums_under_ddp(rank: int, ranks: int) -> None:
    for mine in shares(rank):
        model = DistributedDataParallel(scorer(), broadcast_buffers=True)
        model.module.register_buffer("table", torch.ones(3))
        loss = SmoothAPLoss(1, queue_size=0)
        for step in range(2):
            inputs, targets, _ = data("binary", step)
            with model.no_sync() if step == 0 else nullcontext():
                loss(large_batch(model, chunk_size=9)(inputs[mine]), targets[mine]).backward()
            averaged = gradients(model)
            dist.all_reduce(averaged)
            assert (error(averaged / ranks, gradients(model)) > 1e-3) == (step == 0)  # no_sync keeps it on the rank
        expected = whole_gradient(SmoothAPLoss(1, queue_size=0, gather_distributed=False), "binary", steps=2)
        assert error(gradients(model), expected) < 1e-12

        model.zero_grad()
        scores = large_batch(model, chunk_size=9)
        (loss(scores(inputs[mine]), targets[mine]) + loss(scores(inputs[mine]), targets[mine])).backward()
        loss.gather_distributed = False
        alone = scorer()
        (2 * loss(alone(inputs), targets)).backward()
        assert error(gradients(model), gradients(alone)) < 1e-12


@case
def wrappers_that_chunks_do_not_suit_are_refused(rank: int, ranks: int) -> None:
    with pytest.raises(ValueError, match="static_graph"):
        large_batch(DistributedDataParallel(scorer(), static_graph=True), chunk_size=9)(data("binary")[0])
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(scorer(), device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match="use fully_shard"):
        large_batch(model, chunk_size=9)(data("binary")[0])


@case
def equally_many_calls_under_fully_shard(rank: int, ranks: int) -> None:
    if not SHARDS_ON_CPU:
        return
    from torch.distributed.fsdp import fully_shard

    expected = whole_gradient(SmoothAPLoss(1, gather_distributed=False), "binary")
    for mine, nested in zip(shares(rank), (False, True), strict=True):
        model = scorer()
        if nested:
            fully_shard(model[0])
        fully_shard(model)
        inputs, targets, _ = data("binary")
        scores = large_batch(model, chunk_size=9)
        with torch.no_grad():
            scores(inputs[mine])  # leaves the root unsharded, which the next call must see through
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for synchronised in (False, True):
            model.set_requires_gradient_sync(synchronised)
            SmoothAPLoss(1)(scores(inputs[mine]), targets[mine]).backward()
        assert error(gradients(model), 2 * expected) < 1e-12
        stale = scores(inputs[mine])
        optimizer.step()
        with pytest.raises(RuntimeError, match="changed between"):
            stale.sum().backward()


@case
def gradients_averaged_by_hand(rank: int, ranks: int) -> None:
    expected = whole_gradient(SmoothAPLoss(1, gather_distributed=False), "binary")
    for mine in shares(rank):
        model = scorer()
        inputs, targets, _ = data("binary")
        SmoothAPLoss(1)(large_batch(model, chunk_size=9)(inputs[mine]), targets[mine]).backward()
        averaged = gradients(model)
        dist.all_reduce(averaged)
        assert error(averaged / ranks, expected) < 1e-12


def run_rank(rank: int, ranks: int, folder: str) -> None:
    """Run every case on this rank; after a failure the ranks may be out of step, so it is the last."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(Path(folder) / "meeting").as_uri(),
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    said = dict.fromkeys(CASES, "not run: an earlier case failed\n")
    for name, function in CASES.items():
        try:
            function(rank, ranks)
        except BaseException:
            said[name] = f"rank {rank}:\n{traceback.format_exc()}"
            break
        said[name] = ""
    torch.save(said, Path(folder) / f"said_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcome() -> dict[str, list[str]]:
    """Start two processes once, and return what each case said on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        start_ranks(run_rank, args=(2, folder), nprocs=2)
        by_rank = [torch.load(Path(folder) / f"said_{rank}.pt") for rank in range(2)]
    return {name: [said[name] for said in by_rank] for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_case_holds_on_every_rank(outcome: dict[str, list[str]], name: str) -> None:
    said = "".join(outcome[name])
    if said:
        pytest.fail(said, pytrace=False)
