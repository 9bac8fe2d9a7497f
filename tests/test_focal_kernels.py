"""The fused pass of the focal losses against the plain formula, which ``torch.func`` transforms still take."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rareloss.functional import sigmoid_focal_loss, softmax_focal_loss

Loss = Callable[..., Tensor]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 2e-5, torch.float64: 1e-11}


def assert_same(loss: Callable[[Tensor], Tensor], logits: Tensor, tolerance: float) -> None:
    """Compare values and gradients of the pass and of the formula, under an arriving gradient that is not 1."""
    leaf = logits.clone().requires_grad_()
    got = loss(leaf)
    arriving = torch.rand_like(got)
    (slope,) = torch.autograd.grad(got, leaf, arriving)
    slope_expected, expected = torch.func.grad_and_value(lambda z: (loss(z) * arriving).sum())(logits)
    torch.testing.assert_close((got * arriving).sum(), expected, rtol=tolerance, atol=tolerance)
    assert slope.dtype == logits.dtype
    scale = slope_expected.abs().max().item()
    torch.testing.assert_close(slope, slope_expected, rtol=tolerance, atol=tolerance * scale)
    with torch.no_grad():
        torch.testing.assert_close(loss(logits), got.detach())


@pytest.mark.parametrize("reduction", ["mean", "mean_positive", "sum", "none"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 2.7])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sigmoid_pass_equals_the_formula(dtype: torch.dtype, gamma: float, reduction: str) -> None:
    logits = (4 * torch.randn(300, 7)).to(dtype)
    targets = torch.randint(0, 2, (300, 7))
    absent = targets.clone()
    absent[::5, 3] = -100
    options: list[dict[str, Any]] = [
        {"targets": targets.float()},
        {"targets": targets.bool(), "alpha": None},
        {"targets": absent, "alpha": torch.linspace(0, 1, 7)},
        {"targets": absent.double(), "weight": torch.rand(300)},
        {"targets": targets, "weight": torch.rand(300, 7).round(), "ignore_index": 0},
    ]
    for option in options:
        loss = partial(sigmoid_focal_loss, gamma=gamma, reduction=reduction, **option)
        assert_same(loss, logits, TOLERANCE[dtype])
        assert_same(loss, logits.T.contiguous().T, TOLERANCE[dtype])


@pytest.mark.parametrize("reduction", ["mean", "mean_positive", "sum", "none"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 2.7])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(50, 6), (3, 6, 4, 5)])
def test_softmax_pass_equals_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype, gamma: float, reduction: str
) -> None:
    logits = (4 * torch.randn(shape)).to(dtype)
    targets = torch.randint(0, 6, (shape[0], *shape[2:]))
    absent = targets.clone()
    absent.flatten()[::5] = -100
    options: list[dict[str, Any]] = [
        {"targets": targets},
        {"targets": absent.float(), "label_smoothing": 0.1},
        {"targets": absent.int(), "alpha": torch.linspace(0, 1, 6), "background_class": 2},
        {"targets": targets, "weight": torch.rand(shape[0]).round(), "label_smoothing": 0.3, "ignore_index": 0},
    ]
    for option in options:
        loss = partial(softmax_focal_loss, gamma=gamma, reduction=reduction, **option)
        assert_same(loss, logits, TOLERANCE[dtype])
        assert_same(loss, logits.movedim(1, -1).contiguous().movedim(-1, 1), TOLERANCE[dtype])


CASES: list[tuple[Loss, Tensor, Tensor]] = [
    (sigmoid_focal_loss, torch.linspace(-60, 60, 70_001), torch.arange(70_001) % 3 == 0),
    (softmax_focal_loss, torch.linspace(-9, 9, 7 * 60_001).view(7, 60_001).T, torch.arange(60_001) % 7),
    (softmax_focal_loss, torch.linspace(-9, 9, 2 * 3 * 100_003).view(2, 3, -1), torch.arange(200_006).view(2, -1) % 3),
    (softmax_focal_loss, torch.linspace(-9, 9, 3 * 140_000).sin().view(3, -1), torch.tensor([0, 139_999, 7])),
]


@pytest.mark.parametrize(("loss", "logits", "targets"), CASES)
def test_many_chunks_equal_the_formula(loss: Loss, logits: Tensor, targets: Tensor) -> None:
    for reduction in ("mean", "none"):
        assert_same(lambda z: loss(z, targets, reduction=reduction), logits, 2e-5)  # noqa: B023


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize(
    ("loss", "targets"), [(sigmoid_focal_loss, torch.eye(5)), (softmax_focal_loss, torch.arange(5))]
)
def test_second_backward_through_a_retained_graph(loss: Loss, targets: Tensor, reduction: str) -> None:
    logits = torch.randn(5, 5, requires_grad=True)
    total = loss(logits, targets, reduction=reduction).sum()
    (first,) = torch.autograd.grad(3 * total, logits, retain_graph=True)
    (second,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(first, 3 * second)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives(reduction: str) -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for loss, targets in ((sigmoid_focal_loss, torch.ones(4, 3)), (softmax_focal_loss, torch.arange(4) % 3)):
        assert torch.autograd.gradgradcheck(lambda z: loss(z, targets, reduction=reduction), logits)  # noqa: B023


@pytest.mark.parametrize("held", [float("nan"), float("inf"), -float("inf")])
def test_logit_that_is_not_finite_makes_the_loss_nan(held: float) -> None:
    for label in (0, 1):
        assert sigmoid_focal_loss(torch.tensor([0.0, held]), torch.tensor([0, label])).isnan()
    if held != -float("inf"):
        assert softmax_focal_loss(torch.tensor([[0.0, held]]), torch.tensor([0])).isnan()


def test_largest_floats_are_finite() -> None:
    largest = torch.finfo(torch.float32).max
    for label in (0, 1):
        logits = torch.tensor([largest, -largest, 1e30], requires_grad=True)
        loss = sigmoid_focal_loss(logits, torch.full((3,), label), reduction="none")
        loss.sum().backward()
        assert loss.isfinite().all()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_no_rows() -> None:
    for loss, targets in ((sigmoid_focal_loss, torch.zeros(0, 3)), (softmax_focal_loss, torch.zeros(0))):
        logits = torch.zeros(0, 3, requires_grad=True)
        value = loss(logits, targets)
        value.backward()
        assert value.item() == 0
        assert logits.grad is not None
        assert logits.grad.shape == (0, 3)


def test_alpha_that_learns_gets_its_gradient() -> None:
    alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    logits, labels = torch.randn(6, dtype=torch.float64), torch.arange(6) % 2
    assert torch.autograd.gradcheck(lambda a: sigmoid_focal_loss(logits, labels, alpha=a), alpha)


COMPILED: list[tuple[Loss, Tensor, dict[str, Any]]] = [
    (sigmoid_focal_loss, torch.eye(6, 4), {}),
    (sigmoid_focal_loss, torch.eye(6, 4).bool(), {"alpha": None, "gamma": 0.0}),
    (sigmoid_focal_loss, torch.eye(6, 4).long() - 100 * torch.eye(6, 4).flip(1).long(), {"ignore_index": -100}),
    (sigmoid_focal_loss, torch.eye(6, 4), {"alpha": torch.linspace(0, 1, 4), "gamma": 0.7, "weight": torch.arange(6)}),
    (softmax_focal_loss, torch.tensor([0, 1, 2, -100, 3, 3]), {}),
    (softmax_focal_loss, torch.arange(6) % 4, {"alpha": [1.0, 2.0, 0.5, 0.0], "gamma": 0.0, "label_smoothing": 0.1}),
    (softmax_focal_loss, torch.arange(6) % 4, {"weight": torch.arange(6), "gamma": 0.7, "background_class": 2}),
]


REDUCED = [("mean_positive", torch.bfloat16), ("none", torch.float32), ("mean", torch.float64)]


# A graph takes long to compile, so each of the options meets one way to reduce; every loss meets all three.
@pytest.mark.parametrize(
    ("loss", "targets", "options", "reduction", "dtype"),
    [(*case, *REDUCED[number % 3]) for number, case in enumerate(COMPILED)],
)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_compiled_equals_the_pass(
    loss: Loss, targets: Tensor, options: dict[str, Any], reduction: str, dtype: torch.dtype
) -> None:
    def of(logits: Tensor) -> Tensor:
        return loss(logits, targets, reduction=reduction, **options)

    torch.compiler.reset()
    compiled = torch.compile(of, fullgraph=True, backend="aot_eager")
    logits = torch.cat([4 * torch.randn(5, 4), torch.tensor([[0.0, 30.0, -30.0, 1e4]])]).to(dtype)
    results = []
    for function in (of, compiled):
        leaf = logits.clone().requires_grad_()
        value = function(leaf)
        (slope,) = torch.autograd.grad(value, leaf, torch.linspace(1, 2, value.numel()).view(value.shape).to(value))
        results.append((value.detach(), slope))
    torch.testing.assert_close(results[1], results[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    with torch.no_grad():
        torch.testing.assert_close(compiled(logits), results[1][0])


CLASSES_FIRST: list[tuple[tuple[int, ...], Tensor]] = [
    ((4,), torch.tensor(2)),
    ((2, 4, 3), torch.tensor([[0, 3, -100], [1, 2, 2]])),
]


@pytest.mark.parametrize(("shape", "targets"), CLASSES_FIRST)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_compiled_softmax_of_other_shapes(shape: tuple[int, ...], targets: Tensor) -> None:
    def of(logits: Tensor) -> Tensor:
        return softmax_focal_loss(logits, targets, label_smoothing=0.1, reduction="none").square().sum()

    torch.compiler.reset()
    logits = torch.randn(shape, dtype=torch.float64)
    slopes = []
    for function in (of, torch.compile(of, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        function(leaf).backward()
        slopes.append(leaf.grad)
    torch.testing.assert_close(slopes[1], slopes[0])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_compiled_transforms_and_second_derivatives() -> None:
    logits, labels = torch.randn(5, dtype=torch.float64), torch.arange(5) % 2

    def of(logits: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, labels)

    def steepness(logits: Tensor) -> Tensor:
        return torch.func.grad(of)(logits).square().sum()

    for transformed in (torch.func.grad(of), torch.func.grad(steepness)):
        torch.compiler.reset()
        compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(logits), transformed(logits))
    leaf = logits.clone().requires_grad_()
    torch.compiler.reset()
    value = torch.compile(of, fullgraph=True, backend="aot_eager")(leaf)
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    # Torch 2.6 refuses in other words: it gives the slope no graph.
    with pytest.raises(RuntimeError, match="does not currently support double backward|does not require grad"):
        slope.square().sum().backward()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_compiled_absent_and_missing_logits() -> None:
    torch.compiler.reset()
    compiled = torch.compile(sigmoid_focal_loss, fullgraph=True, backend="aot_eager")
    logits = torch.tensor([0.5, float("nan")], requires_grad=True)
    value = compiled(logits, torch.tensor([1, -100]))
    value.backward()
    torch.testing.assert_close(value, sigmoid_focal_loss(logits[:1], torch.tensor([1])))
    assert logits.grad is not None
    assert logits.grad[1] == 0
    assert compiled(logits, torch.tensor([1, 0])).isnan()
