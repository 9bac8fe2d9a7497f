"""Second derivatives: of a ranking they are refused, whatever asks for them; those of the other functions are right."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from rareloss import functional
from rareloss.ops import log_odds_by_class, native
from test_pool import LOSSES, SOFT

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # dynamo's own
    pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning"),
]

Function = Callable[[Tensor], Tensor]
POSITIVE, CLASSES = torch.arange(60) % 5 == 0, torch.arange(20) % 3


def module(make: Callable[..., nn.Module], classes: int = 1, queue_size: int = 0, unit: str = "std") -> Function:
    loss = make(classes, queue_size=queue_size, temperature=0.3, temperature_unit=unit)
    if classes > 1:
        return lambda s: loss(s.reshape(20, 3), CLASSES)
    if queue_size:
        loss(torch.randn(60), POSITIVE)
    return lambda s: loss(s, POSITIVE)


def function_of(soft: Callable[..., functional.PerClass]) -> Function:
    return lambda s: soft(s, POSITIVE, temperature=0.3).value


RANKINGS: dict[str, Callable[[], Function]] = {
    **{f"soft {name}": lambda soft=soft: function_of(soft) for name, soft in SOFT.items()},
    **{name: lambda make=make: module(make) for name, make in LOSSES.items()},
    **{f"{name}, logit": lambda make=make: module(make, unit="logit") for name, make in LOSSES.items()},
    **{f"{name}, queue": lambda make=make: module(make, queue_size=90) for name, make in LOSSES.items()},
    **{f"{name}, classes": lambda make=make: module(make, classes=3) for name, make in LOSSES.items()},
    "soft count": lambda: lambda s: functional.soft_count(s, torch.ones_like(s), temperature=0.3).square().sum(),
}


def twice(function: Function, scores: Tensor) -> None:
    slope = torch.func.grad(function)
    torch.func.grad(lambda s: slope(s).square().sum())(scores)


def by_inputs(function: Function, scores: Tensor) -> None:
    leaf = scores.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    torch.autograd.grad(slope.square().sum(), leaf)


def by_backward(function: Function, scores: Tensor) -> None:
    leaf = scores.clone().requires_grad_()
    function(leaf).backward(create_graph=True, inputs=[leaf])
    slope, leaf.grad = leaf.grad, None
    assert slope is not None
    slope.square().sum().backward(inputs=[leaf])


def penalty(function: Function, scores: Tensor) -> None:
    # As gradient penalties do: a part of the sum has a second derivative.
    leaf = scores.clone().requires_grad_()
    value = function(leaf)
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    (value + (leaf * slope).sum()).backward()


def through_a_network(function: Function, scores: Tensor) -> None:
    network = nn.Linear(1, 1).to(scores.dtype)
    value = function(network(scores[:, None])[:, 0])
    slopes = torch.autograd.grad(value, list(network.parameters()), create_graph=True)
    sum(slope.square().sum() for slope in slopes).backward()  # type: ignore[union-attr]


def hvp(function: Function, scores: Tensor) -> None:
    torch.autograd.functional.hvp(function, scores, torch.ones_like(scores))


WAYS = {"inputs": by_inputs, "backward": by_backward, "penalty": penalty, "network": through_a_network, "hvp": hvp}


@pytest.mark.parametrize("name", RANKINGS)
@pytest.mark.parametrize("way", [*WAYS, "func"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivative_of_a_ranking_is_refused(name: str, way: str, dtype: torch.dtype) -> None:
    function, scores = RANKINGS[name](), torch.randn(60, dtype=dtype)
    if way == "func" and "soft" not in name:
        pytest.skip("a module keeps state, which torch.func refuses")
    with pytest.raises(RuntimeError, match="no second derivative"):
        (WAYS | {"func": twice})[way](function, scores)


@pytest.mark.parametrize("name", RANKINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kept_graph_gives_the_same_gradient_whatever_became_of_the_first(name: str, dtype: torch.dtype) -> None:
    scores = torch.randn(60, dtype=dtype, requires_grad=True)
    value = RANKINGS[name]()(scores)
    (first,) = torch.autograd.grad(4 * value, scores, retain_graph=True)
    expected = first / 2
    first.zero_()
    value.backward(retain_graph=True)
    value.backward()  # adds in place
    torch.testing.assert_close(scores.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in RANKINGS if "classes" not in name])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_a_ranking_come_in_batches_too(name: str, dtype: torch.dtype) -> None:
    scores, factors = torch.randn(60, dtype=dtype, requires_grad=True), torch.tensor([1, -3], dtype=dtype)
    value = RANKINGS[name]()(scores)
    (one,) = torch.autograd.grad(value, scores, retain_graph=True)
    (batch,) = torch.autograd.grad(value, scores, factors, is_grads_batched=True)
    torch.testing.assert_close(batch, factors[:, None] * one, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ap", "recall_top", "pauc", "soft ap", "soft recall_fpr"])
@pytest.mark.parametrize("way", ["inputs", "penalty", "network"])
def test_compiled_it_is_refused_too(name: str, way: str) -> None:
    # In torch's words, whose graphs have none; where it asks leniently, as hvp does, it answers 0 for any function.
    if way == "penalty" and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 leaves it out without a word, as docs/native.md says")
    torch.compiler.reset()
    function = torch.compile(RANKINGS[name](), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError):
        WAYS[way](function, torch.randn(60))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_of_the_kernel_refuse_and_those_for_users_do_not(way: str, dtype: torch.dtype) -> None:
    scores = torch.randn(60, dtype=dtype)
    refused = pytest.raises(RuntimeError, match="no second derivative") if native.available() else nullcontext()
    with refused:
        WAYS[way](lambda s: log_odds_by_class(s.reshape(20, 3)).square().sum(), scores)
    WAYS[way](lambda s: functional.log_odds(s.reshape(20, 3)).square().sum(), scores)


FOCAL: dict[str, Function] = {
    "sigmoid": lambda s: functional.sigmoid_focal_loss(s, POSITIVE),
    "sigmoid, each": lambda s: functional.sigmoid_focal_loss(s, POSITIVE, reduction="none"),
    "softmax": lambda s: functional.softmax_focal_loss(s.reshape(20, 3), CLASSES, label_smoothing=0.1),
    "log-odds": lambda s: functional.log_odds(s.reshape(20, 3)),
}


@pytest.mark.parametrize("name", FOCAL)
def test_others_have_a_second_derivative(name: str) -> None:
    scores = torch.randn(60, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(FOCAL[name], scores)
