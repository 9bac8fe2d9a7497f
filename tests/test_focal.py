"""Focal losses: cross-entropy at gamma 0, the oracle elsewhere, finite everywhere."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import reference
from rareloss import SigmoidFocalLoss, SoftmaxFocalLoss
from rareloss.functional import sigmoid_focal_loss, softmax_focal_loss

GAMMAS = [0.0, 0.1, 0.5, 1.0, 2.0, 5.0]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DIGITS = {torch.float32: 1e-6, torch.float64: 1e-12}


def test_sigmoid_by_hand() -> None:
    # At logit log(3) the probability is 3/4.
    logits = torch.tensor([math.log(3.0), math.log(3.0)], dtype=torch.float64)
    got = sigmoid_focal_loss(logits, torch.tensor([1, 0]), alpha=0.25, gamma=2.0, reduction="none")
    expected = [0.25 * (1 / 4) ** 2 * -math.log(3 / 4), 0.75 * (3 / 4) ** 2 * -math.log(1 / 4)]
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


def test_softmax_by_hand() -> None:
    # Logits log(1), log(2), log(5) are probabilities 1/8, 2/8, 5/8.
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64)).expand(3, 3)
    got = softmax_focal_loss(logits, torch.arange(3), alpha=[1.0, 2.0, 3.0], gamma=1.0, reduction="none")
    expected = [1 * (7 / 8) * -math.log(1 / 8), 2 * (6 / 8) * -math.log(2 / 8), 3 * (3 / 8) * -math.log(5 / 8)]
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_sigmoid_gamma_zero_equals_binary_cross_entropy(dtype: torch.dtype, reduction: str) -> None:
    logits = torch.cat([torch.randn(400), torch.tensor([0.0, 50.0, -50.0, 1e4, -1e4])]).to(dtype)
    targets = (torch.arange(405) % 3 == 0).to(dtype)
    mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    got = sigmoid_focal_loss(mine, targets, alpha=None, gamma=0.0, reduction=reduction)
    expected = F.binary_cross_entropy_with_logits(theirs, targets, reduction=reduction)
    torch.testing.assert_close(got, expected, rtol=DIGITS[dtype], atol=DIGITS[dtype])
    got.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=DIGITS[dtype], atol=DIGITS[dtype])


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(40, 7), (4, 7, 5), (2, 7, 3, 4)])
def test_softmax_gamma_zero_equals_cross_entropy(
    dtype: torch.dtype, reduction: str, smoothing: float, shape: tuple[int, ...]
) -> None:
    logits = 5 * torch.randn(shape, dtype=dtype)
    targets = torch.randint(0, 7, (shape[0], *shape[2:]))
    targets.flatten()[::9] = -100
    mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    got = softmax_focal_loss(mine, targets, gamma=0.0, label_smoothing=smoothing, reduction=reduction)
    expected = F.cross_entropy(theirs, targets, label_smoothing=smoothing, reduction=reduction)
    torch.testing.assert_close(got, expected, rtol=DIGITS[dtype], atol=DIGITS[dtype])
    got.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=DIGITS[dtype], atol=DIGITS[dtype])


def test_softmax_alpha_weighs_as_the_weight_of_cross_entropy() -> None:
    logits, targets = torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 4, (30,))
    alpha = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
    for reduction in ("none", "sum"):
        got = softmax_focal_loss(logits, targets, alpha=alpha, gamma=0.0, reduction=reduction)
        torch.testing.assert_close(got, F.cross_entropy(logits, targets, weight=alpha, reduction=reduction))
    # In the mean it is no part of the divisor.
    got = softmax_focal_loss(logits, targets, alpha=alpha, gamma=0.0)
    torch.testing.assert_close(got, F.cross_entropy(logits, targets, weight=alpha, reduction="sum") / 30)


@given(
    logit=st.floats(-60, 60),
    target=st.sampled_from([0, 1]),
    alpha=st.sampled_from([None, 0.0, 0.25, 0.9, 1.0]),
    gamma=st.floats(0, 8),
)
def test_sigmoid_equals_the_oracle(logit: float, target: int, alpha: float | None, gamma: float) -> None:
    got = sigmoid_focal_loss(
        torch.tensor([logit], dtype=torch.float64), torch.tensor([target]), alpha=alpha, gamma=gamma
    )
    assert got.item() == pytest.approx(reference.sigmoid_focal(logit, target, alpha, gamma), rel=1e-10, abs=1e-300)


@given(
    logits=st.lists(st.floats(-40, 40), min_size=2, max_size=5),
    target=st.integers(0, 1),
    weighted=st.booleans(),
    gamma=st.floats(0, 8),
    smoothing=st.sampled_from([0.0, 0.2]),
)
def test_softmax_equals_the_oracle(
    logits: list[float], target: int, weighted: bool, gamma: float, smoothing: float
) -> None:
    alpha = [0.5 + c for c in range(len(logits))] if weighted else None
    got = softmax_focal_loss(
        torch.tensor([logits], dtype=torch.float64),
        torch.tensor([target]),
        alpha=alpha,
        gamma=gamma,
        label_smoothing=smoothing,
    )
    expected = reference.softmax_focal(logits, target, alpha, gamma, smoothing)
    # The oracle's own log-probability near 0 is a difference of numbers around 40.
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("target", [0, 1])
def test_sigmoid_gradient_equals_differences_of_the_oracle(gamma: float, alpha: float | None, target: int) -> None:
    at = np.array([-6.0, -1.5, 0.0, 0.3, 4.0])

    def total(logits: reference.Vector) -> float:
        return sum(reference.sigmoid_focal(logit, target, alpha, gamma) for logit in logits)

    logits = torch.tensor(at, requires_grad=True)
    sigmoid_focal_loss(logits, torch.full((5,), target), alpha=alpha, gamma=gamma, reduction="sum").backward()
    assert logits.grad is not None
    np.testing.assert_allclose(
        logits.grad.numpy(), reference.central_differences(total, at, 1e-5), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradcheck(gamma: float) -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    labels, classes = torch.randint(0, 2, (6, 3)), torch.randint(0, 3, (6,))
    weight = torch.rand(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: sigmoid_focal_loss(z, labels, gamma=gamma, weight=weight), logits)
    assert torch.autograd.gradcheck(
        lambda z: softmax_focal_loss(
            z, classes, alpha=[1.0, 2.0, 0.5], gamma=gamma, label_smoothing=0.1, weight=weight
        ),
        logits,
    )
    assert torch.autograd.gradcheck(lambda z: softmax_focal_loss(z, classes, gamma=gamma, reduction="none"), logits)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_have_finite_gradients(gamma: float, dtype: torch.dtype) -> None:
    values = [0.0, 50.0, -50.0, 1e4, -1e4]
    for target in (0, 1):
        logits = torch.tensor(values, dtype=dtype, requires_grad=True)
        loss = sigmoid_focal_loss(logits, torch.full((5,), target), gamma=gamma, reduction="none")
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(loss).all()
        loss.sum().backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()
        # A wrong answer is pushed back however certain it is.
        wrong = 4 if target == 1 else 3
        assert logits.grad[wrong].item() == pytest.approx((0.25 if target else -0.75) * -1, rel=1e-2)
    for target in (0, 1):
        rows = torch.tensor([[value, 0.0, 1.0] for value in values], dtype=dtype, requires_grad=True)
        loss = softmax_focal_loss(rows, torch.full((5,), target), gamma=gamma, reduction="none")
        assert torch.isfinite(loss).all()
        loss.sum().backward()
        assert rows.grad is not None
        assert torch.isfinite(rows.grad).all()


def test_certain_and_right_in_float32_keeps_its_last_digits() -> None:
    # 1 - p would round to 0 here; in log space the loss of a confident row is not lost.
    got = sigmoid_focal_loss(torch.tensor([25.0]), torch.tensor([1]), alpha=None, gamma=1.0)
    assert got.item() == pytest.approx(reference.sigmoid_focal(25.0, 1, None, 1.0), rel=1e-5)
    got = softmax_focal_loss(torch.tensor([[25.0, 0.0]]), torch.tensor([0]), gamma=1.0)
    assert got.item() == pytest.approx(reference.sigmoid_focal(25.0, 1, None, 1.0), rel=1e-5)


def test_softmax_of_two_classes_equals_sigmoid_of_the_difference() -> None:
    logits, targets = torch.randn(50, 2, dtype=torch.float64), torch.randint(0, 2, (50,))
    got = softmax_focal_loss(logits, targets, alpha=[0.75, 0.25], gamma=2.0)
    torch.testing.assert_close(got, sigmoid_focal_loss(logits[:, 1] - logits[:, 0], targets, alpha=0.25, gamma=2.0))


def reductions(loss: Any, *args: Tensor, **options: Any) -> dict[str, Tensor]:
    return {name: loss(*args, reduction=name, **options) for name in ("none", "sum", "mean", "mean_positive")}


def test_sigmoid_reductions_divide_by_weight() -> None:
    logits, targets = torch.randn(5, 2, dtype=torch.float64), torch.tensor([[1, 0]] * 4 + [[-100, -100]])
    weight = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    got = reductions(sigmoid_focal_loss, logits, targets, weight=weight)
    terms = [
        w * reference.sigmoid_focal(z, y, 0.25, 2.0)
        for w, row in zip([1.0, 2.0, 0.5], logits[[0, 1, 3]].tolist(), strict=True)
        for z, y in zip(row, (1, 0), strict=True)
    ]
    assert got["none"].shape == (5, 2)
    assert got["none"][[2, 4]].abs().sum() == 0
    assert got["sum"].item() == pytest.approx(sum(terms), abs=1e-12)
    assert got["mean"].item() == pytest.approx(sum(terms) / (2 * (1.0 + 2.0 + 0.5)), abs=1e-12)
    assert got["mean_positive"].item() == pytest.approx(sum(terms) / (1.0 + 2.0 + 0.5), abs=1e-12)


def test_softmax_mean_positive_divides_by_the_foreground() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    targets = torch.tensor([[0, 0, 1, 0], [2, 0, -100, 0]])
    got = reductions(softmax_focal_loss, logits, targets)
    assert got["none"].shape == (2, 4)
    assert got["mean"].item() == pytest.approx(got["sum"].item() / 7, abs=1e-12)
    assert got["mean_positive"].item() == pytest.approx(got["sum"].item() / 2, abs=1e-12)
    by_other = softmax_focal_loss(logits, targets, background_class=2, reduction="mean_positive")
    assert by_other.item() == pytest.approx(got["sum"].item() / 6, abs=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "mean_positive", "sum"])
def test_nothing_counted_is_zero_with_gradient_zero(reduction: str) -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    for loss in (
        sigmoid_focal_loss(logits, torch.full((3, 2), -100), reduction=reduction),
        softmax_focal_loss(logits, torch.full((3,), -100), reduction=reduction),
        sigmoid_focal_loss(logits, torch.ones(3, 2), weight=torch.zeros(3), reduction=reduction),
    ):
        logits.grad = None
        loss.backward()
        assert loss.item() == 0.0
        assert logits.grad is not None
        assert logits.grad.abs().sum().item() == 0.0


@pytest.mark.parametrize("held", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_absent_elements_hold_whatever_they_like(held: float) -> None:
    base, labels = torch.randn(4, 3), torch.randint(0, 2, (4, 3))
    expected = sigmoid_focal_loss(base[:3], labels[:3])
    for targets, weight in ((labels, torch.tensor([1.0, 1.0, 1.0, 0.0])), (labels.clone(), torch.ones(4))):
        if weight[3] == 1:
            targets[3] = -100
        logits = base.clone()
        logits[3] = held
        logits.requires_grad_()
        loss = sigmoid_focal_loss(logits, targets, weight=weight)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()
        assert logits.grad[3].abs().sum() == 0
    classes = torch.tensor([0, 2, 1, -100])
    logits = base.clone()
    logits[3] = held
    logits.requires_grad_()
    loss = softmax_focal_loss(logits, classes)
    torch.testing.assert_close(loss, softmax_focal_loss(base[:3], classes[:3]))
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[3].abs().sum() == 0


def test_weight_two_equals_the_row_twice() -> None:
    logits, labels, classes = torch.randn(4, 3), torch.randint(0, 2, (4, 3)), torch.tensor([0, 1, 2, 1])
    twice, heavy = [0, 1, 2, 3, 3], torch.tensor([1.0, 1.0, 1.0, 2.0])
    for reduction in ("mean", "mean_positive", "sum"):
        torch.testing.assert_close(
            sigmoid_focal_loss(logits, labels, weight=heavy, reduction=reduction),
            sigmoid_focal_loss(logits[twice], labels[twice], reduction=reduction),
        )
        torch.testing.assert_close(
            softmax_focal_loss(logits, classes, weight=heavy, reduction=reduction),
            softmax_focal_loss(logits[twice], classes[twice], reduction=reduction),
        )


def test_alpha_per_class_serves_each_column() -> None:
    logits, labels = torch.randn(6, 3), torch.randint(0, 2, (6, 3))
    together = sigmoid_focal_loss(logits, labels, alpha=torch.tensor([0.1, 0.5, 0.9]), reduction="none")
    for c, alpha in enumerate((0.1, 0.5, 0.9)):
        torch.testing.assert_close(
            together[:, c], sigmoid_focal_loss(logits[:, c], labels[:, c], alpha=alpha, reduction="none")
        )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float64])
def test_labels_of_any_dtype(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(8), torch.arange(8) % 2
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels.to(dtype)), sigmoid_focal_loss(logits, labels))


def test_one_column_takes_flat_labels() -> None:
    logits, labels = torch.randn(8, 1), torch.arange(8) % 2
    expected = sigmoid_focal_loss(logits[:, 0], labels)
    torch.testing.assert_close(SigmoidFocalLoss()(logits, labels), expected)
    torch.testing.assert_close(SigmoidFocalLoss()(logits, labels[:, None]), expected)


def test_unbatched_softmax() -> None:
    logits = torch.randn(5)
    torch.testing.assert_close(
        softmax_focal_loss(logits, torch.tensor(3)), softmax_focal_loss(logits[None], torch.tensor([3]))
    )


def test_modules_store_their_arguments() -> None:
    logits, labels, classes = torch.randn(6, 3), torch.randint(0, 2, (6, 3)), torch.tensor([0, 1, 2, 7, 0, 1])
    weight = torch.rand(6)
    torch.testing.assert_close(
        SigmoidFocalLoss(alpha=0.6, gamma=1.5, reduction="sum")(logits, labels, sample_weight=weight),
        sigmoid_focal_loss(logits, labels, alpha=0.6, gamma=1.5, weight=weight, reduction="sum"),
    )
    options: dict[str, Any] = {"gamma": 0.5, "label_smoothing": 0.1, "ignore_index": 7, "background_class": 1}
    torch.testing.assert_close(
        SoftmaxFocalLoss(alpha=[1.0, 2.0, 3.0], reduction="mean_positive", **options)(
            logits, classes, sample_weight=weight
        ),
        softmax_focal_loss(logits, classes, alpha=[1.0, 2.0, 3.0], weight=weight, reduction="mean_positive", **options),
    )


def test_alpha_moves_with_the_module() -> None:
    loss = SoftmaxFocalLoss(alpha=torch.tensor([1.0, 2.0])).double()
    logits = torch.randn(4, 2, dtype=torch.float64)
    assert loss(logits, torch.tensor([0, 1, 0, 1])).dtype == torch.float64


@pytest.mark.parametrize("reduction", ["none", "mean_positive"])  # the mean is compiled with a whole training step
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
def test_graph_stays_whole_under_compile(reduction: str) -> None:
    logits, labels, classes = torch.randn(6, 3), torch.randint(0, 2, (6, 3)), torch.tensor([0, 1, 2, -100, 0, 1])
    for loss, targets in (
        (SigmoidFocalLoss(reduction=reduction), labels),
        (SoftmaxFocalLoss(reduction=reduction), classes),
    ):
        torch.compiler.reset()
        slopes = []
        for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
            leaf = logits.clone().requires_grad_()
            function(leaf, targets).sum().backward()
            slopes.append(leaf.grad)
        torch.testing.assert_close(slopes[0], slopes[1])


def test_func_transforms_agree_with_autograd() -> None:
    logits, labels, classes = torch.randn(6, 3), torch.randint(0, 2, (6, 3)), torch.tensor([0, 1, 2, 2, 0, 1])
    for loss, targets in ((sigmoid_focal_loss, labels), (softmax_focal_loss, classes)):
        leaf = logits.clone().requires_grad_()
        loss(leaf, targets).backward()
        torch.testing.assert_close(torch.func.grad(lambda z: loss(z, targets))(logits), leaf.grad)  # noqa: B023


@pytest.mark.parametrize("wrong", [-1.0, 1.5, math.nan, math.inf])
def test_alpha_out_of_range_is_refused_in_a_tensor_too(wrong: float) -> None:
    logits, labels = torch.randn(4, 3), torch.randint(2, (4, 3))
    for alpha in (torch.tensor(wrong), torch.tensor([0.5, wrong, 0.5]), torch.full((4, 3), wrong, requires_grad=True)):
        with pytest.raises(ValueError, match="alpha"):
            sigmoid_focal_loss(logits, labels, alpha=alpha)
    if wrong != 1.5:
        with pytest.raises(ValueError, match="alpha"):
            softmax_focal_loss(logits, torch.arange(4) % 3, alpha=torch.tensor([1.0, wrong, 1.0]))


@pytest.mark.parametrize("shape", [(4, 3), (3,), (1,), (4, 1), (1, 3), ()])
def test_alpha_of_any_shape_that_broadcasts(shape: tuple[int, ...]) -> None:
    logits, labels, alpha = torch.randn(4, 3), torch.randint(2, (4, 3)), torch.rand(shape)
    expected = sigmoid_focal_loss(logits, labels, alpha=alpha.expand(4, 3).clone())
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels, alpha=alpha), expected)
    for other in ((*shape, 2, 2), (4,), (1, *logits.shape), (0,)):
        with pytest.raises(ValueError, match="broadcast"):
            sigmoid_focal_loss(logits, labels, alpha=torch.rand(other))


@pytest.mark.parametrize("module", [False, True])
def test_unknown_labels_may_be_nan(module: bool) -> None:
    logits, labels = torch.randn(6, requires_grad=True), torch.tensor([1.0, 0.0, math.nan, 0.0, math.nan, 1.0])
    known = ~labels.isnan()
    loss: Any = SigmoidFocalLoss(ignore_index=math.nan) if module else sigmoid_focal_loss
    options = {} if module else {"ignore_index": math.nan}
    got = loss(logits, labels, **options)
    torch.testing.assert_close(got, sigmoid_focal_loss(logits[known], labels[known]))
    got.backward()
    assert logits.grad is not None
    assert logits.grad[~known].tolist() == [0.0, 0.0]
    assert logits.grad[known].isfinite().all()
    # Whole numbers hold no NaN, so that none of them is absent; and -100 no longer means it.
    torch.testing.assert_close(
        loss(logits[:2], torch.tensor([1, 0]), **options), loss(logits[:2], labels[:2], **options)
    )
    with pytest.raises(ValueError, match=r"0 and 1 \(or nan, ignored\), got -100"):
        loss(logits[:2], torch.tensor([1.0, -100.0]), **options)
    with pytest.raises(ValueError, match="got nan"):
        sigmoid_focal_loss(logits, labels)


def test_alpha_per_class_of_images_is_for_dimension_one() -> None:
    # As many columns as classes: what broadcast alone would weigh by column.
    logits, labels, alpha = torch.randn(2, 3, 4, 3), torch.randint(0, 2, (2, 3, 4, 3)), torch.tensor([0.1, 0.5, 0.9])
    got = sigmoid_focal_loss(logits, labels, alpha=alpha, reduction="none")
    torch.testing.assert_close(SigmoidFocalLoss(alpha, reduction="none")(logits, labels), got)
    for c in range(3):
        expected = sigmoid_focal_loss(logits[:, c], labels[:, c], alpha=alpha[c].item(), reduction="none")
        torch.testing.assert_close(got[:, c], expected)
    by_column = sigmoid_focal_loss(logits, labels, alpha=alpha.view(1, 1, 1, 3), reduction="none")
    torch.testing.assert_close(
        by_column[..., 2], sigmoid_focal_loss(logits, labels, alpha=0.9, reduction="none")[..., 2]
    )
    with pytest.raises(ValueError, match=r"each of the 3 classes on dimension 1 .* got 4"):
        sigmoid_focal_loss(logits, labels, alpha=torch.rand(4))
    with pytest.raises(ValueError, match=r"each of the 3 classes on dimension 1 .* got 4"):
        SigmoidFocalLoss(torch.rand(4))(logits, labels)


@pytest.mark.parametrize("alpha", [{0: 0.5, 1: 1.0}, "balanced", {0.5}, ["a", "b"], 0.25, True, [[1.0, 2.0]], [None]])
def test_alpha_of_a_wrong_type_is_refused(alpha: Any) -> None:
    with pytest.raises(TypeError, match="alpha must"):
        SoftmaxFocalLoss(alpha=alpha)
    with pytest.raises((TypeError, ValueError), match="alpha must"):
        softmax_focal_loss(torch.zeros(2, 3), torch.tensor([0, 1]), alpha=alpha)
    if alpha != 0.25:
        with pytest.raises(TypeError, match="alpha must"):
            SigmoidFocalLoss(alpha=alpha)
        with pytest.raises(TypeError, match="alpha must"):
            sigmoid_focal_loss(torch.zeros(2), torch.tensor([0, 1]), alpha=alpha)


def test_background_class_out_of_range_is_refused() -> None:
    logits, classes = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="background_class must be at least 0"):
        SoftmaxFocalLoss(background_class=-1)
    with pytest.raises(ValueError, match="background_class must be at least 0"):
        softmax_focal_loss(logits, classes, background_class=-1)
    for call in (SoftmaxFocalLoss(background_class=3), lambda z, y: softmax_focal_loss(z, y, background_class=3)):
        with pytest.raises(ValueError, match="background_class must be one of the 3 classes of the logits, got 3"):
            call(logits, classes)


@pytest.mark.parametrize(
    "weight", [torch.ones(7), torch.tensor([1.0, -1.0]), torch.tensor([1.0, math.nan]), [1.0, 1.0]]
)
def test_weights_are_refused_by_the_name_that_the_caller_used(weight: Any) -> None:
    logits, labels, classes = torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1])
    for module, targets in ((SigmoidFocalLoss(), labels), (SoftmaxFocalLoss(), classes)):
        with pytest.raises((TypeError, ValueError), match=r"^sample_weight must"):
            module(logits, targets, sample_weight=weight)
    for function, targets in ((sigmoid_focal_loss, labels), (softmax_focal_loss, classes)):
        with pytest.raises((TypeError, ValueError), match=r"^weight must"):
            function(logits, targets, weight=weight)
