"""The closed form of the focal losses, in chunks and whole, against autograd of the value, as ``torch.func`` has it."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
    (sigmoid_focal_loss, torch.linspace(-60, 60, 220_001), torch.arange(220_001) % 3 == 0),
    (sigmoid_focal_loss, torch.linspace(-60, 60, 2 * 120_001).view(2, -1), torch.arange(240_002).view(2, -1) % 3 == 0),
    (softmax_focal_loss, torch.linspace(-9, 9, 7 * 160_001).view(7, 160_001).T, torch.arange(160_001) % 7),
    (softmax_focal_loss, torch.linspace(-9, 9, 2 * 3 * 200_003).view(2, 3, -1), torch.arange(400_006).view(2, -1) % 3),
    (softmax_focal_loss, torch.linspace(-9, 9, 3 * 540_000).sin().view(3, -1), torch.tensor([0, 539_999, 7])),
]


@pytest.mark.parametrize(("loss", "logits", "targets"), CASES)
def test_many_chunks_equal_the_formula(loss: Loss, logits: Tensor, targets: Tensor) -> None:
    for reduction in ("mean", "none"):
        assert_same(lambda z: loss(z, targets, reduction=reduction), logits, 2e-5)  # noqa: B023


@pytest.mark.parametrize("shape", [(70_001, 3), (2, 3, 40_003), (1, 150_001)])
def test_weights_and_alpha_follow_the_chunks(shape: tuple[int, ...]) -> None:
    logits, labels = 3 * torch.randn(shape, dtype=torch.float64), torch.rand(shape) < 0.3
    for weight in (torch.rand(shape[0]), torch.rand(shape), None):
        for alpha in (torch.rand(shape[1]), torch.rand(shape), torch.rand(shape[0], *[1] * (len(shape) - 1))):
            options: dict[str, Any] = {"weight": weight, "alpha": alpha, "reduction": "none"}
            assert_same(lambda z: sigmoid_focal_loss(z, labels, **options), logits, 1e-11)  # noqa: B023
            sums = sigmoid_focal_loss(logits, labels, alpha=alpha, weight=weight)
            mean = sigmoid_focal_loss(logits, labels, **options).sum() / (
                logits.numel() if weight is None else weight.double().sum() * logits.numel() / weight.numel()
            )
            torch.testing.assert_close(sums, mean)


def held_for_backward(loss: Callable[[Tensor], Tensor], logits: Tensor, *others: Tensor) -> int:
    """Count the bytes that are held between the passes and are in none of the inputs: by autograd or by any object."""

    def key(x: Tensor) -> int:
        return x.untyped_storage()._cdata

    def alive() -> dict[int, Tensor]:
        gc.collect()  # what a compiler leaves behind, tensors without a storage among them
        return {key(x): x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter) and x.ndim}

    held, before = {}, alive()

    def pack(x: Tensor) -> Tensor:
        if x.ndim:
            held[key(x)] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = loss(logits).sum()
    held |= {number: x.untyped_storage().nbytes() for number, x in alive().items() if number not in before}
    value.backward()
    return sum(nbytes for number, nbytes in held.items() if number not in {key(x) for x in (logits, *others)})


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_more_is_saved_than_the_inputs(reduction: str, device: str) -> None:
    logits = torch.zeros(300, 7, dtype=torch.bfloat16, device=device, requires_grad=True)
    weight, alpha = torch.ones(300, device=device, dtype=torch.float64), torch.ones(7, device=device)
    labels, indices = torch.ones(300, 7, device=device, dtype=torch.long), torch.ones(300, device=device)
    options: dict[str, Any] = {"alpha": alpha, "gamma": 1.5, "weight": weight, "reduction": reduction}
    # On the CPU the gradient itself is kept instead of a second pass, where there is one factor for all of it.
    most = 4 * logits.numel() if (device, reduction) == ("cpu", "mean") else 0
    of_labels = partial(sigmoid_focal_loss, targets=labels, **options)
    assert held_for_backward(of_labels, logits, labels, weight, alpha) <= most
    of_indices = partial(softmax_focal_loss, targets=indices, label_smoothing=0.1, **options)
    assert held_for_backward(of_indices, logits, indices, weight, alpha) <= most
    # What is counted of autograd's own way.
    plain = held_for_backward(lambda z: -z.float().sigmoid().log() * (1 - z.float().sigmoid()) ** 2, logits)
    assert plain > 3 * 4 * logits.numel()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_devices_without_a_look_at_values_give_gradients_of_the_logits(reduction: str) -> None:
    for loss, targets in ((sigmoid_focal_loss, torch.ones(5, 4)), (softmax_focal_loss, torch.ones(5))):
        logits = torch.zeros(5, 4, dtype=torch.float16, device="meta", requires_grad=True)
        value = loss(logits, targets.to("meta"), reduction=reduction)
        value.sum().backward()
        assert value.dtype == torch.float32
        assert logits.grad is not None
        assert (logits.grad.shape, logits.grad.dtype) == (logits.shape, logits.dtype)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transforms_have_finite_gradients_at_extreme_logits(dtype: torch.dtype, gamma: float) -> None:
    values = torch.tensor([0.0, 80.0, -80.0, 120.0, -120.0, 1e4, -1e4, 1e30], dtype=dtype)
    for label in (0, 1):
        labels = torch.full((8,), label)
        leaf = values.clone().requires_grad_()
        sigmoid_focal_loss(leaf, labels, gamma=gamma).backward()
        got = torch.func.grad(lambda z: sigmoid_focal_loss(z, labels, gamma=gamma))(values)  # noqa: B023
        torch.testing.assert_close(got, leaf.grad)
        rows = torch.stack([values, torch.zeros_like(values), torch.ones_like(values)], dim=1)
        leaf = rows.clone().requires_grad_()
        options = {"gamma": gamma, "label_smoothing": 0.1}
        softmax_focal_loss(leaf, labels, **options).backward()
        got = torch.func.grad(lambda z: softmax_focal_loss(z, labels, **options))(rows)  # noqa: B023
        assert got.isfinite().all()
        torch.testing.assert_close(got, leaf.grad)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_classes_masked_with_minus_infinity_are_out(gamma: float) -> None:
    logits = torch.tensor([[0.3, -torch.inf, 1.0], [0.5, -torch.inf, -torch.inf]], requires_grad=True)
    each = softmax_focal_loss(logits, torch.tensor([0, 0]), gamma=gamma, reduction="none")
    kept = softmax_focal_loss(logits[:1, [0, 2]], torch.tensor([0]), gamma=gamma)
    torch.testing.assert_close(each, torch.stack([kept, torch.tensor(0.0)]))
    each.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[logits == -torch.inf].tolist() == [0.0, 0.0, 0.0]


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
    with pytest.raises(RuntimeError, match=r"does not currently support double backward|does not require grad"):
        slope.square().sum().backward()


def unchecked(loss: Loss, logits: Tensor, targets: Tensor, way: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Return losses and the gradient of their sum, computed in a way that cannot look at targets."""
    if way == "vmap":
        of = torch.func.vmap(lambda z, y: loss(z[None], y[None], reduction="none", **options)[0])
        return of(logits, targets), torch.func.grad(lambda z: of(z, targets).sum())(logits)
    torch.compiler.reset()
    leaf = logits.clone().requires_grad_()
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf, targets, reduction="none", **options)
    value.sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("way", ["vmap", "compile"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_labels_that_are_none_make_the_loss_nan_where_nobody_looks(way: str) -> None:
    labels = torch.tensor([1.0, 0.0, -100.0, torch.nan, -1.0, 0.95, 2.0, torch.inf])
    logits = torch.randn(8)
    good = torch.tensor([True, True, True] + [False] * 5)
    loss, slope = unchecked(sigmoid_focal_loss, logits, labels, way)
    assert (loss.isnan() == ~good).all()
    assert slope[good].isfinite().all()
    leaf = logits[:3].clone().requires_grad_()
    expected = sigmoid_focal_loss(leaf, labels[:3], reduction="none")
    expected.sum().backward()
    torch.testing.assert_close((loss[:3], slope[:3]), (expected.detach(), leaf.grad))
    # NaN that means unknown is no fault; -100 then is.
    loss, _ = unchecked(sigmoid_focal_loss, logits, labels, way, ignore_index=torch.nan)
    assert loss.isnan().tolist() == [False, False, True, False, True, True, True, True]
    assert loss[3] == 0
    whole = torch.tensor([1, 0, -100, -1, 2, 255])
    loss, _ = unchecked(sigmoid_focal_loss, torch.randn(6), whole, way)
    assert loss.isnan().tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize("way", ["vmap", "compile"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_indices_that_are_no_class_make_the_loss_nan_where_nobody_looks(dtype: torch.dtype, way: str) -> None:
    indices = torch.tensor([0, 2, -100, 3, -1, 10**6]).to(dtype)
    if dtype == torch.float32:
        indices = torch.cat([indices, torch.tensor([1.5, torch.nan, torch.inf])])
    logits = torch.randn(len(indices), 3)
    good = torch.tensor([True, True, True] + [False] * (len(indices) - 3))
    loss, slope = unchecked(softmax_focal_loss, logits, indices, way, alpha=torch.tensor([1.0, 2.0, 0.5]))
    assert (loss.isnan() == ~good).all()
    assert slope[good].isfinite().all()
    assert loss[2] == 0
    with pytest.raises(ValueError, match="class indices 0 to 2"):
        softmax_focal_loss(logits, indices)


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
