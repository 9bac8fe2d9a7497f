"""The native kernel against plain torch on hostile pools; ``native_fuzz.py`` draws a million, and under sanitizers.

``native_mutations.py`` breaks the kernel, one line at a time, and asks whether one of these tests fails.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests import native_fuzz
from torch import Tensor

from rareloss.ops import native

needs_kernel = pytest.mark.skipif(not native.available(), reason=native.why())

RANKINGS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor | None]], tuple[Any, ...]]] = {
    "average_precision": (native.average_precision, ()),
    "recall": (native.recall, (0.1, False)),
    "recall at a rate": (native.recall, (0.1, True)),
    "partial_auc": (native.partial_auc, (0.02, 0.3)),
}


def rows_of(classes: int, rows: int, law: str = "normal") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw scores, positives, weights and iid flags, each ``[classes, rows]``; the last row is a positive."""
    generator = torch.Generator().manual_seed(rows)
    scores = native_fuzz.draw_scores(law, (classes, rows), torch.float32, generator)
    positive = torch.rand(classes, rows, generator=generator) < 0.05
    positive[:, -1] = True
    weight = torch.rand(classes, rows, generator=generator).clamp(min=0.1)
    iid = positive | (torch.rand(classes, rows, generator=generator) < 0.8)
    return scores, positive, weight, iid


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let the kernel use so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@needs_kernel
@pytest.mark.parametrize("name", native_fuzz.COMPARISONS)
def test_the_kernel_agrees_with_torch_on_hostile_pools(name: str) -> None:
    said = [f"seed {seed}: {found}" for seed in range(150) if (found := native_fuzz.disagreement(seed, name))]
    assert not said


@needs_kernel
@pytest.mark.parametrize("name", RANKINGS)
@pytest.mark.parametrize(("rows", "law"), [(200, "normal"), (6000, "normal"), (6000, "spread")])
@pytest.mark.parametrize("in_std", [False, True])
def test_rows_that_are_not_live_change_no_slope_of_those_that_are(name: str, rows: int, law: str, in_std: bool) -> None:
    # Few rows are summed by pairs, many by cells or, where they lie far apart, by a walk.
    pool, (function, options) = rows_of(1, rows, law), RANKINGS[name]
    value, whole = function(*pool, rows, 0.1, in_std, True, *options)
    assert whole is not None
    for live in (0, 1, rows // 100, rows // 2, rows - 1):
        value_of_all, slope = function(*pool, live, 0.1, in_std, True, *options)
        assert slope is not None
        torch.testing.assert_close(value_of_all, value, rtol=1e-6, atol=0)
        torch.testing.assert_close(slope, whole[:, :live], rtol=1e-4, atol=1e-5 * whole.abs().amax().item())


@needs_kernel
@pytest.mark.parametrize("name", RANKINGS)
@pytest.mark.parametrize("far", [1e4, 3e6])
def test_a_far_row_of_no_weight_to_speak_of_leaves_the_standard_deviation_its_digits(name: str, far: float) -> None:
    # The sums of squares are about the first row at first.
    (scores, positive, weight, _), (function, options) = rows_of(1, 500), RANKINGS[name]
    scores[0, 0], weight[0, 0], positive[0, 0] = far, 1e-25, False
    share = weight.double() / weight.double().sum()
    mean = (share * scores).sum()
    std = (share * (scores - mean).square()).sum().sqrt().item()
    value, _ = function(scores, positive, weight, None, 500, 0.1, True, False, *options)
    wanted, _ = function(scores, positive, weight, None, 500, 0.1 * std, False, False, *options)
    torch.testing.assert_close(value, wanted, rtol=1e-6, atol=0)


@needs_kernel
@pytest.mark.parametrize("above", [7, 14, 28, 29, 55, 57, 58])
def test_a_share_between_two_negatives_sets_the_threshold_halfway(above: int) -> None:
    # above / 100 times 100 is not always above in floating point; a positive lies halfway too.
    halfway = 100.0 * (99.5 - above)
    scores = torch.cat([100.0 * torch.arange(100.0), torch.tensor([halfway])])[None]
    positive, threshold = torch.arange(101)[None] == 100, torch.zeros(1, dtype=torch.float64)
    value, slope = native.recall(
        scores, positive, None, None, 101, 1.0, False, True, above / 100, True, threshold=threshold
    )
    assert slope is not None
    assert threshold.item() == pytest.approx(halfway, abs=1e-6)
    assert value.item() == pytest.approx(0.5, abs=1e-6)
    wanted = torch.zeros(101)
    wanted[-1], wanted[99 - above], wanted[100 - above] = 0.25, -0.125, -0.125
    torch.testing.assert_close(slope[0], wanted, rtol=1e-4, atol=1e-6)


@needs_kernel
def test_a_band_up_to_all_negatives_has_every_mined_one_in_it() -> None:
    # A mined negative below both iid ones, and a positive just above it.
    scores, iid = torch.tensor([[1.0, 2.0, -5.0, -2.0]]), torch.tensor([[True, True, False, True]])
    positive = torch.tensor([[False, False, False, True]])
    value, _ = native.partial_auc(scores, positive, None, iid, 4, 0.01, False, False, 0.0, 1.0)
    assert value.item() == pytest.approx(1 / 3, abs=1e-6)


@needs_kernel
@pytest.mark.parametrize("name", RANKINGS)
@pytest.mark.parametrize(("classes", "rows"), [(1, 2**19 + 5), (40, 9001)])
@pytest.mark.parametrize("law", ["normal", "spread"])
def test_threads_share_the_rows_of_a_ranking(name: str, classes: int, rows: int, law: str) -> None:
    # Of a large class each thread has some rows; of many small ones, some classes.
    pool, (function, options) = rows_of(classes, rows, law), RANKINGS[name]
    with threads(1):
        value, slope = function(*pool, rows, 0.1, True, True, *options)
    with threads(3):
        value_of_all, slope_of_all = function(*pool, rows, 0.1, True, True, *options)
    assert slope is not None
    torch.testing.assert_close(value_of_all, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(slope_of_all, slope, rtol=1e-4, atol=1e-5 * slope.abs().amax().item())


@needs_kernel
def test_threads_share_the_rows_of_exact_average_precision() -> None:
    scores, positive, weight, _ = rows_of(1, 2**20 + 5)
    with threads(1):
        value = native.exact_average_precision(scores, positive, weight)
    with threads(3):
        torch.testing.assert_close(native.exact_average_precision(scores, positive, weight), value, rtol=1e-9, atol=0)


@needs_kernel
def test_threads_share_the_sets_of_soft_counts() -> None:
    scores, _, weight, _ = rows_of(4, 70_001)
    weights = torch.stack([weight, weight.square()], 1)
    with threads(1):
        wanted = native.soft_count(scores, weights, None, 0.1, True, True)
    with threads(3):
        torch.testing.assert_close(native.soft_count(scores, weights, None, 0.1, True, True), wanted, rtol=0, atol=0)


@needs_kernel
def test_threads_share_the_rows_of_class_logits() -> None:
    torch.manual_seed(0)
    logits, grad = torch.randn(50_001, 17), torch.randn(17, 50_001)
    with threads(1):
        wanted = native.log_odds(logits), native.log_odds_backward(logits, grad)
    with threads(3):
        found = native.log_odds(logits), native.log_odds_backward(logits, grad)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@needs_kernel
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_threads_share_the_elements_of_a_focal_loss(kind: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(70_001, 9)
    targets = torch.randint(2 if kind == "sigmoid" else 9, logits.shape if kind == "sigmoid" else logits.shape[:1])
    targets[-1], targets[0] = -100, 99  # ignored; no label at all

    def compute() -> native.Focal:
        if kind == "sigmoid":
            return native.sigmoid_focal(logits, targets, None, torch.rand(9), 2.0, -100, True, True)
        return native.softmax_focal(logits, targets, None, torch.rand(9), 2.0, 0.1, -100, 0, True, True)

    found = []
    for number in (1, 3):
        torch.manual_seed(1)
        with threads(number):
            found.append(compute())
    assert found[0].bad == (9 if kind == "sigmoid" else 1)
    assert found[0].weight == targets.numel() - (9 if kind == "sigmoid" else 1)
    torch.testing.assert_close(tuple(found[1]), tuple(found[0]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.fuzz
@needs_kernel
def test_the_kernel_is_clean_under_sanitizers() -> None:
    assert native_fuzz.under_sanitizers(["--pools", "20000"]) == 0


@needs_kernel
def test_switched_off_it_is_not_available() -> None:
    with native.switched_off():
        assert not native.available()
    assert native.available()
