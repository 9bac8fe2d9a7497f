"""Batches that nobody should send: drawn by hypothesis, and spoilt one by one."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from torch import Tensor, nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SCORES = ("normal", "ties", "equal", "huge", "largest", "outlier", "tiny", "subnormal", "zero", "nan", "inf", "-inf")
LABELS = ("mixed", "alike", "last", "ignored", "some ignored")
WEIGHTS = (None, "ones", "some", "none", "light", "heavy", "any", "by label")
LAYOUTS = ("plain", "strided", "transposed", "leading", "expanded")
NAMED = ("logits", "targets", "sample_weight", "iid_mask", "scores", "positive", "weight")


class Batch(NamedTuple):
    """What a loss is called with."""

    logits: Tensor
    targets: Tensor
    options: dict[str, Tensor]

    def call(self, loss: nn.Module) -> Tensor:
        return loss(self.logits, self.targets, **self.options)


def draw_scores(law: str, rows: int, columns: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw scores that ``dtype`` holds: finite ones, but for one entry of the laws that are named after it."""
    most = torch.finfo(dtype).max
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if law == "ties":
        x = x.round()
    elif law in ("equal", "zero"):
        x = torch.full_like(x, 0.75 if law == "equal" else 0.0)
    elif law == "huge":
        x = x * min(1e30, most / 8)
    elif law == "largest":
        x = x.sign() * most / 8
    elif law in ("tiny", "subnormal"):
        x = x * (1e-30 if law == "tiny" else 1e-40)
    x = x.clamp(-most, most).to(dtype)
    if law in ("outlier", "nan", "inf", "-inf") and x.numel():
        x.view(-1)[int(torch.randint(x.numel(), (), generator=generator))] = (
            min(1e30, most) if law == "outlier" else float(law)
        )
    return x


def draw_weights(law: str, rows: int, columns: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw weights, one a row, or one a label where the law is named so."""
    shape = (rows, columns) if law == "by label" else (rows,)
    x = 0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)
    if law in ("ones", "none"):
        x = torch.full_like(x, float(law == "ones"))
    elif law in ("some", "by label"):
        x = x * (torch.rand(shape, generator=generator) < 0.6)
    elif law == "light":
        x = x * 1e-30
    elif law == "heavy":
        x = x * 1e30
    elif law == "any":
        power = torch.randint(-45, 31, shape, generator=generator)
        # 1e-32 itself, from which on a weight counts, is above or below it by rounding.
        x = 10.0 ** torch.where(power == -32, -31, power).double()
    return (
        x.clamp(max=torch.finfo(dtype).max).to(dtype) if dtype.is_floating_point else x.round().clamp(max=9).to(dtype)
    )


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return the same numbers in another memory."""
    if layout == "strided":
        return torch.stack([x, x], dim=-1)[..., 0]
    if layout == "transposed" and x.ndim == 2:
        return x.mT.contiguous().mT
    return x


@st.composite
def batches(
    draw: st.DrawFn,
    classes: int,
    ignore_index: int = -100,
    *,
    takes_iid: bool = False,
    kind: str = "any",
    weights: Sequence[str | None] = WEIGHTS,
    layouts: Sequence[str] = LAYOUTS,
) -> Batch:
    """Draw rows of so many classes; with class indices, with labels, or with either."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    rows = draw(st.sampled_from([0, 1, 2, 3, 8, 17]))
    dtype, layout = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(layouts))
    logits = draw_scores(draw(st.sampled_from(SCORES)), rows, classes, dtype, generator)
    if layout == "expanded":
        logits = logits[:1].expand(logits.shape)
    indices = classes > 1 and (draw(st.booleans()) if kind == "any" else kind == "indices")
    law = draw(st.sampled_from(LABELS))
    high = classes if indices else 2
    targets = torch.randint(high, (rows,) if indices else (rows, classes), generator=generator)
    if law in ("alike", "last"):
        targets = torch.full_like(targets, 0 if law == "alike" else high - 1)
    dtypes = [torch.int64, torch.int32, torch.float32, torch.float64, torch.float16]
    if "ignored" in law:
        ignored = torch.rand(targets.shape, generator=generator) < (1.0 if law == "ignored" else 0.3)
        targets = targets.masked_fill(ignored, ignore_index)
    else:
        dtypes += [torch.int8, torch.uint8, torch.int16]
        dtypes += [] if indices else [torch.bool]
    targets = targets.to(draw(st.sampled_from(dtypes)))
    options = {}
    law_of_weights = draw(st.sampled_from(weights))
    if law_of_weights is not None:
        of_weights = draw(st.sampled_from([*FLOATS, torch.int64, torch.bool]))
        options["sample_weight"] = laid_out(draw_weights(law_of_weights, rows, classes, of_weights, generator), layout)
    if takes_iid and draw(st.booleans()):
        options["iid_mask"] = torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.7, 1.0]))
    if classes == 1:
        logits = logits[:, 0] if draw(st.booleans()) else logits
        targets = targets[:, 0] if logits.ndim == 1 or draw(st.booleans()) else targets
    logits, targets = laid_out(logits, layout), laid_out(targets, layout)
    if layout == "leading" and rows % 2 == 0:
        half = (rows // 2, 2)
        logits, targets = (x.reshape(*half, *x.shape[1:]) for x in (logits, targets))
        options = {name: x.reshape(*half, *x.shape[1:]) for name, x in options.items()}
    return Batch(logits.detach().requires_grad_(draw(st.booleans())), targets, options)


def _with(batch: Batch, **options: Any) -> Batch:
    return batch._replace(options={**batch.options, **options})


def _set(x: Tensor, number: float) -> Tensor:
    x = x.detach().to(x.dtype if x.is_floating_point() else torch.float64).clone(memory_format=torch.contiguous_format)
    x.view(-1)[-1:] = number
    return x


# Each spoils a batch in one way, and names what the error has to name.
FAULTS: dict[str, tuple[Callable[[Batch, tuple[int, ...]], Batch], str]] = {
    "integer logits": (lambda b, _: b._replace(logits=b.logits.detach().nan_to_num().clamp(-9, 9).long()), "logits"),
    "complex logits": (lambda b, _: b._replace(logits=b.logits.detach().to(torch.complex64)), "logits"),
    "no logits": (lambda b, _: b._replace(logits=None), "logits"),
    "a list of logits": (lambda b, _: b._replace(logits=[0.0, 1.0]), "logits"),
    "no targets": (lambda b, _: b._replace(targets=None), "targets"),
    "a list of targets": (lambda b, _: b._replace(targets=[0, 1]), "targets"),
    "complex targets": (lambda b, _: b._replace(targets=b.targets.to(torch.complex64)), "targets"),
    "label out of range": (lambda b, _: b._replace(targets=_set(b.targets, 77)), "targets"),
    "label below range": (lambda b, _: b._replace(targets=_set(b.targets, -7)), "targets"),
    "label between": (lambda b, _: b._replace(targets=_set(b.targets, 0.5)), "targets"),
    "label that is NaN": (lambda b, _: b._replace(targets=_set(b.targets, math.nan)), "targets"),
    "label that is infinite": (lambda b, _: b._replace(targets=_set(b.targets, math.inf)), "targets"),
    "targets too long": (lambda b, _: b._replace(targets=torch.cat([b.targets.reshape(-1)] * 2)), "targets"),
    "targets too deep": (lambda b, _: b._replace(targets=b.targets[..., None, None, None]), "targets"),
    "logits too deep": (
        lambda b, _: b._replace(logits=b.logits[..., None, None].expand(*b.logits.shape, 2, 2)),
        "logits",
    ),
    "negative weight": (lambda b, rows: _with(b, sample_weight=_set(torch.ones(rows), -1.0)), "sample_weight"),
    "weight that is NaN": (lambda b, rows: _with(b, sample_weight=_set(torch.ones(rows), math.nan)), "sample_weight"),
    "infinite weight": (lambda b, rows: _with(b, sample_weight=_set(torch.ones(rows), math.inf)), "sample_weight"),
    "overflowing weight": (
        lambda b, rows: _with(b, sample_weight=_set(torch.ones(rows).double(), 1e300)),
        "sample_weight",
    ),
    "one weight": (lambda b, _: _with(b, sample_weight=torch.tensor(1.0)), "sample_weight"),
    "no tensor of weights": (lambda b, _: _with(b, sample_weight=2.0), "sample_weight"),
    "complex weights": (
        lambda b, rows: _with(b, sample_weight=torch.ones(rows, dtype=torch.complex64)),
        "sample_weight",
    ),
    "too many weights": (lambda b, rows: _with(b, sample_weight=torch.ones(*rows, 9)), "sample_weight"),
    "flags that are numbers": (lambda b, rows: _with(b, iid_mask=torch.ones(rows)), "iid_mask"),
    "too many flags": (lambda b, rows: _with(b, iid_mask=torch.ones(*rows, 9) > 0), "iid_mask"),
    "no tensor of flags": (lambda b, _: _with(b, iid_mask=True), "iid_mask"),
}


def lead_lives(machine: Any, examples: int, steps: int) -> int:
    """Lead so many lives of so many steps, and return the number of batches that the machine says it was fed."""
    machine.fed = 0
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*are needed for a stable gradient")
        run_state_machine_as_test(machine, settings=chosen)
    return int(machine.fed)
