"""Devices without float64, such as Apple's: nothing asks them for it, and what they give is right.

The stand-in for one is a tensor that says it is there, with numbers, under a mode that refuses it float64. It takes the
way of such a device through the library. For training there are the meta device and a dispatch mode too, which sees
what autograd calls.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rareloss import (
    LossWarmupWrapper,
    Objective,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
    finetune,
    functional,
    metrics,
)
from test_pool import LOSSES

pytestmark = pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning")

MPS = torch.device("mps")
OBJECTIVES = (
    *("ap", "recall@top=7%", "recall@fpr=7%", "pauc@fpr=0-7%", "pauc@fpr=1-7%"),
    *("recall@precision=20%", "precision@recall=50%", "cost@fn=20,fp=1"),
)


def refuse(function: object, output: Any) -> Any:
    for tensor in output if isinstance(output, (tuple, list)) else [output]:
        if isinstance(tensor, Tensor) and tensor.dtype == torch.float64 and tensor.device.type != "cpu":
            raise TypeError(f"float64 from {function}")
    return output


class NoDouble(TorchDispatchMode):
    """Refuse float64 off the CPU, in backward passes too."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return refuse(function, function(*args, **(kwargs or {})))


class There(Tensor):
    """A tensor of the CPU that says it is on Apple's GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().as_subclass(Tensor).clone().as_subclass(There)
        return nn.Parameter(copied) if isinstance(self, nn.Parameter) else copied


class Apple(TorchFunctionMode):
    """Make and move tensors there, and refuse them float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") == MPS:
            output = function(*args, **{**kwargs, "device": "cpu"}).as_subclass(There)
        elif function is Tensor.to and MPS in args[1:]:
            output = args[0].to("cpu", *(x for x in args[1:] if x != MPS)).as_subclass(There)
        else:
            output = function(*args, **kwargs)
        return refuse(function, output)


def rows(classes: int = 1, count: int = 300) -> tuple[Tensor, Tensor]:
    targets = torch.arange(count) % 7
    return torch.randn(count, classes), targets.clamp(max=1) if classes == 1 else targets.clamp(max=classes - 1)


CALLS: dict[str, Callable[[int], nn.Module]] = {
    **{name: lambda c, make=make: make(c, queue_size=0) for name, make in LOSSES.items()},
    **{f"{name}, queue": lambda c, make=make: make(c, queue_size=64) for name, make in LOSSES.items()},
    "in logits": lambda c: LOSSES["recall_top"](c, queue_size=64, temperature_unit="logit"),
    "focal": lambda c: SigmoidFocalLoss() if c == 1 else SoftmaxFocalLoss(alpha=[1.0] * c),
    "warm-up": lambda c: LossWarmupWrapper(
        nn.BCEWithLogitsLoss() if c == 1 else nn.CrossEntropyLoss(), SmoothAPLoss(c, 64), warmup_steps=0, blend_steps=3
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_training_asks_for_no_float64(
    name: str, classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rareloss.ops.functions.WITHOUT_FLOAT64", {"meta"})
    logits, targets = (x.to("meta") for x in rows(classes))
    logits = logits.to(dtype).requires_grad_()
    loss = CALLS[name](classes).to("meta")
    with NoDouble():
        loss(logits, targets).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("classes", [1, 3])
def test_training_gives_what_the_cpu_gives(name: str, classes: int) -> None:
    loss, twin = CALLS[name](classes), CALLS[name](classes)
    for _ in range(3):
        logits, targets = rows(classes)
        expected = twin(leaf := logits.clone().requires_grad_(), targets)
        expected.backward()
        with Apple():
            there = logits.as_subclass(There).requires_grad_()
            value = loss(there, targets.as_subclass(There))
            value.backward()
        assert value.item() == pytest.approx(expected.item(), abs=2e-6)
        assert there.grad is not None
        assert leaf.grad is not None
        assert (there.grad.as_subclass(Tensor) - leaf.grad).norm() <= 5e-5 * leaf.grad.norm()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [1, 3])
def test_diagnosing_gives_what_the_cpu_gives(name: str, classes: int) -> None:
    logits, targets = rows(classes)
    loss = LOSSES[name](classes, queue_size=64)
    expected = loss.diagnose(logits, targets)
    with Apple():
        said = loss.diagnose(logits.as_subclass(There), targets.as_subclass(There))
    for key, value in expected.items():
        got = said[key].as_subclass(Tensor)
        torch.testing.assert_close(got.float(), value.float(), rtol=2e-5, atol=2e-6, equal_nan=True, msg=key)


@pytest.mark.parametrize("text", OBJECTIVES)
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_and_thresholds_are_those_of_the_cpu(text: str, classes: int, weighted: bool) -> None:
    given = (*rows(classes, 2000), *([torch.rand(2000)] if weighted else []))
    objective = Objective.parse(text)
    expected = objective.metric(*given).value
    threshold = objective.threshold(*given) if objective.sets_threshold else None
    with Apple():
        there = [x.as_subclass(There) for x in given]
        value = objective.metric(*there).value
        cut = objective.threshold(*there) if objective.sets_threshold else None
        cap = objective.cap(there[1], classes)
    assert value.dtype == torch.float32
    assert value.device == cap.device == MPS
    torch.testing.assert_close(value.as_subclass(Tensor).double(), expected, rtol=0, atol=1e-6)
    if threshold is not None:
        assert cut.device == MPS
        # Log-odds differ in their last digit; scores as they come do not.
        torch.testing.assert_close(cut.as_subclass(Tensor), threshold, rtol=0 if classes == 1 else 1e-5, atol=0)


@pytest.mark.parametrize("size", [100, 1000, 20_000])
@pytest.mark.parametrize("percent", [1, 5, 7, 29, 57])
def test_capacity_is_used_to_the_last_row(size: int, percent: int) -> None:
    # 7 % of 100 rows are 7 rows, though .07 times 100 is not 7 in float32.
    scores, labels = torch.randn(size), torch.rand(size) < 0.1
    with Apple():
        there = scores.as_subclass(There), labels.as_subclass(There)
        threshold = Objective.parse(f"recall@top={percent}%").threshold(*there)
    assert (scores > threshold.item()).sum() == size * percent // 100


def test_counts_are_those_of_the_cpu() -> None:
    scores, positive = torch.randn(500), torch.arange(500) % 9 == 0
    with Apple():
        there = scores.as_subclass(There), positive.as_subclass(There)
        count = functional.soft_count(there[0], there[0].new_ones(500), temperature=0.1)
        exact = float(metrics.average_precision(*there))
    expected = functional.soft_count(scores, torch.ones(500), temperature=0.1)
    torch.testing.assert_close(count.as_subclass(Tensor), expected, rtol=1e-5, atol=1e-4)
    assert exact == pytest.approx(float(metrics.average_precision(scores, positive)), abs=1e-6)


@pytest.mark.filterwarnings("ignore:at..frobenius_norm is deprecated:UserWarning")  # torch's own
def test_fine_tuning_ends_where_it_ends_on_the_cpu() -> None:
    inputs = torch.randn(400, 4)
    targets = ((inputs[:, 0] + 0.5 * inputs[:, 1] ** 2 + 0.3 * torch.randn(400)) > 1.5).long()
    parts = (inputs[:200], targets[:200]), (inputs[200:], targets[200:])
    model = nn.Linear(4, 1)
    expected = finetune(model, "ap", *parts)
    with Apple():
        for name, parameter in list(model.named_parameters()):
            setattr(model, name, nn.Parameter(parameter.detach().as_subclass(There)))
        tuned = finetune(model, "ap", *(tuple(x.as_subclass(There) for x in part) for part in parts))
    assert isinstance(tuned.model, nn.Linear)
    assert tuned.model.weight.device == MPS
    torch.testing.assert_close(tuned.model.weight.as_subclass(Tensor), expected.model.weight, rtol=1e-3, atol=1e-4)
    assert tuned.best.validation == pytest.approx(expected.best.validation, abs=1e-5)


def test_both_stand_ins_refuse_float64() -> None:
    with NoDouble(), pytest.raises(TypeError, match="float64 from"):
        torch.zeros(2, device="meta").double()
    with Apple(), pytest.raises(TypeError, match="float64 from"):
        torch.zeros(2).as_subclass(There).double()
    with Apple(), pytest.raises(TypeError, match="float64 from"):
        torch.zeros(2, dtype=torch.float64, device=MPS)
