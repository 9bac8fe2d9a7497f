"""Targets that are no label make a loss NaN where nobody may look at them; NaN itself may mean unknown."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rareloss import LossWarmupWrapper, SigmoidFocalLoss, SmoothAPLoss, SoftmaxFocalLoss
from test_pool import LOSSES, slope_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # dynamo's own
]

Make = Callable[..., nn.Module]


def warming(warmup_loss: nn.Module, classes: int, blend_steps: int = 0, **options: Any) -> nn.Module:
    main = SmoothAPLoss(classes, queue_size=0, **options)
    return LossWarmupWrapper(warmup_loss, main, warmup_steps=0 if blend_steps else 9, blend_steps=blend_steps)


MAKE: dict[str, Make] = {
    **{name: partial(make, queue_size=0) for name, make in LOSSES.items()},
    "focal": lambda classes, **kw: (SigmoidFocalLoss if classes == 1 else SoftmaxFocalLoss)(**kw),
    "warm-up": lambda classes, **kw: warming(
        nn.BCEWithLogitsLoss() if classes == 1 else nn.CrossEntropyLoss(), classes, **kw
    ),
    "warm-up sum": lambda classes, **kw: warming(
        nn.BCEWithLogitsLoss(reduction="sum")
        if classes == 1
        else nn.CrossEntropyLoss(torch.ones(classes), reduction="sum"),
        classes,
        **kw,
    ),
    "blend": lambda classes, **kw: warming(SmoothAPLoss(classes, queue_size=0, **kw), classes, blend_steps=3, **kw),
}
every_loss = pytest.mark.parametrize("name", MAKE)
WRONG: dict[int, list[Tensor]] = {
    1: [torch.tensor(wrong) for wrong in (math.nan, -1.0, 0.95, math.inf, 2, -1)],
    3: [torch.tensor(wrong) for wrong in (math.nan, -1.0, 1.5, math.inf, 3, -1, 10**6)],
}


class Device(TorchDispatchMode):
    """Changes nothing: values may not be looked at under a mode, as on a device that would have to wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@contextmanager
def unseen(loss: nn.Module, way: str) -> Iterator[Callable[..., Any]]:
    """Yield the loss, called in a way that may not look at values."""
    if way == "compiled":
        torch.compiler.reset()
        yield torch.compile(loss, fullgraph=True, backend="aot_eager")
    else:
        with Device():
            yield loss


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("way", [pytest.param("compiled", marks=pytest.mark.slow), "device"])
def test_targets_that_are_none_make_the_loss_nan_where_nobody_looks(name: str, classes: int, way: str) -> None:
    logits, targets = torch.randn(40, classes), torch.arange(40) % max(classes, 2)
    expected = MAKE[name](classes)(logits, targets)
    for wrong in WRONG[classes]:
        if way == "compiled" and not wrong.is_floating_point():
            continue  # another graph, of the same lines
        spoilt = targets.to(wrong.dtype).index_fill(0, torch.tensor([7, 9]), wrong)
        with pytest.raises(ValueError, match="targets must hold"):
            MAKE[name](classes)(logits, spoilt)
        loss = MAKE[name](classes)
        with unseen(loss, way) as called:
            value, slope = slope_of(called, logits, spoilt)  # type: ignore[arg-type]
            assert value.isnan(), wrong
            assert slope.isnan().any(), wrong  # an AMP scaler skips the step
            good = called(logits, targets.to(wrong.dtype).index_fill(0, torch.tensor([3]), -100))
            assert good.isfinite()
            torch.testing.assert_close(called(logits, targets.to(wrong.dtype)), expected, msg=str(wrong))
    with unseen(MAKE[name](classes), way) as called:
        torch.testing.assert_close(called(logits, targets), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("way", [pytest.param("compiled", marks=pytest.mark.slow), "device"])
def test_rows_whose_target_is_none_are_not_remembered(name: str, way: str) -> None:
    loss = LOSSES[name](1, queue_size=32)
    targets = (torch.arange(16) % 3 == 0).float()
    targets[[2, 5]] = torch.tensor([math.nan, 0.5])
    with unseen(loss, way) as called:
        called(torch.randn(16), targets)
    assert loss.queue.weight[0].count_nonzero() == 14
    assert loss(torch.randn(16), torch.arange(16) % 2).isfinite()


@every_loss
@pytest.mark.parametrize(
    ("way", "dtype", "labels"),
    [
        pytest.param("compiled", torch.float32, torch.float32, marks=pytest.mark.slow),
        *((way, torch.float16, torch.float32) for way in ("eager", "device")),
        *((way, torch.float32, torch.float64) for way in ("eager", "device")),
        *((way, torch.float64, torch.float16) for way in ("eager", "device")),
    ],
)
def test_unknown_labels_may_be_nan(name: str, way: str, dtype: torch.dtype, labels: torch.dtype) -> None:
    # As chest X-ray sets mark them. What a model says of them, NaN included, changes nothing.
    logits, targets = torch.randn(40, dtype=dtype), (torch.arange(40) % 4 == 0).to(labels)
    unknown = torch.arange(40) % 5 == 0
    spoilt, holed = logits.masked_fill(unknown, torch.nan), targets.masked_fill(unknown, torch.nan)
    expected, expected_slope = slope_of(MAKE[name](1), logits[~unknown], targets[~unknown])
    loss = MAKE[name](1, ignore_index=math.nan)
    if way == "eager":
        value, slope = slope_of(loss, spoilt, holed)
    else:
        with unseen(loss, way) as called:
            value, slope = slope_of(called, spoilt, holed)  # type: ignore[arg-type]
    tolerance = 2e-3 if dtype == torch.float16 else 2e-5
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope[~unknown], expected_slope, rtol=tolerance, atol=tolerance)
    assert slope[unknown].abs().sum() == 0
    # No integer is NaN: with such targets nothing is ignored.
    torch.testing.assert_close(
        MAKE[name](1, ignore_index=math.nan)(logits, targets.long()), MAKE[name](1)(logits, targets)
    )
