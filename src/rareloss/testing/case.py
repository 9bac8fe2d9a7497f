"""Test case: the loss under test, a batch for it, and training runs of it over some steps."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "Call",
    "Case",
    "Run",
    "default_call",
    "describe_error",
    "draw_batch",
    "make_case",
    "relative_error",
    "to_dtype",
]

Call = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""How to call a loss: the loss, logits, targets and the rows' indices in the batch ``[n]`` give the value."""

STEPS = 6


def default_call(loss: nn.Module, logits: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
    """Call a loss as ``loss(logits, targets)``."""
    value: Tensor = loss(logits, targets)
    return value


class Run(NamedTuple):
    """The values of some steps, and their gradients as tables over all rows, 0 at rows that are not in the step."""

    values: list[Tensor]
    gradients: list[Tensor]

    def equals(self, other: "Run") -> bool:
        """Whether the other run is the same, bit for bit."""
        pairs = zip([*self.values, *self.gradients], [*other.values, *other.gradients], strict=True)
        return all(torch.equal(mine, its) for mine, its in pairs)

    def from_step(self, step: int) -> "Run":
        """Return the steps from ``step`` on."""
        return Run(self.values[step:], self.gradients[step:])


@dataclass(frozen=True)
class Case:
    """A loss, and a batch for it.

    Args:
        loss: as it was given; only copies of it are called.
        call: how it is called.
        logits: of all rows, ``[N, ...]``, float32 at least.
        targets: ``[N, ...]``.
        model: computes the logits; None if they were given.
        inputs: of the model, ``[N, ...]``.
        dtype: the finest dtype that the loss runs in, float64 or float32.
        float64_error: what it raises in float64, where it does not run.
        seed: of the rows of a step, and of random numbers that the loss draws.
        ranks: numbers of processes.
        make_loss: makes the loss anew, where a function was given: some look for other ranks when they are made.
    """

    loss: nn.Module
    call: Call
    logits: Tensor
    targets: Tensor
    model: nn.Module | None
    inputs: Tensor
    dtype: torch.dtype
    float64_error: str
    seed: int
    ranks: tuple[int, ...]
    make_loss: Callable[[], nn.Module] | None

    @property
    def rounding(self) -> float:
        """The relative error of rounding in the finest dtype, with room for another order of summation."""
        return 1e-8 if self.dtype == torch.float64 else 1e-4

    def new_loss(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return a copy of the loss as it was given, in training mode."""
        loss = copy.deepcopy(self.loss).train()
        return loss if dtype == torch.float32 else loss.to(dtype)

    def draw_batches(self, count: int = STEPS) -> list[Tensor]:
        """Draw the row indices of each step: half of all rows, and half of the rare ones."""
        generator = torch.Generator().manual_seed(self.seed)
        batches = []
        for _ in range(count):
            halves = [
                rows[torch.randperm(len(rows), generator=generator)][: -(-len(rows) // 2)] for rows in self.split_rare()
            ]
            rows = torch.cat(halves)
            batches.append(rows[torch.randperm(len(rows), generator=generator)].to(self.logits.device))
        return batches

    def split_rare(self) -> tuple[Tensor, Tensor]:
        """Split the row indices into rare rows and those of the most frequent label (or row of labels)."""
        labels = self.targets.detach().cpu().reshape(len(self.targets), -1)
        _, label, count = labels.unique(dim=0, return_inverse=True, return_counts=True)
        frequent = label == count.argmax()
        return (~frequent).nonzero()[:, 0], frequent.nonzero()[:, 0]

    def run(
        self,
        loss: nn.Module,
        batches: Sequence[Tensor],
        *,
        dtype: torch.dtype | None = None,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        call: Call | None = None,
        scale: float = 1.0,
    ) -> Run:
        """Call ``loss`` on each batch, and collect values and gradients of the logits.

        Args:
            loss: a copy from :meth:`new_loss`.
            batches: row indices of each step.
            dtype: of the logits; ``self.dtype`` by default.
            logits: instead of the case's own.
            targets: instead of the case's own.
            call: instead of the case's own.
            scale: of the loss, as a GradScaler's.
        """
        logits = self.logits if logits is None else logits
        targets = self.targets if targets is None else targets
        call = self.call if call is None else call
        run = Run([], [])
        torch.manual_seed(self.seed)
        for rows in batches:
            leaf = logits[rows].detach().to(self.dtype if dtype is None else dtype).requires_grad_()
            value = call(loss, leaf, to_dtype(targets[rows], leaf.dtype), rows)
            if not isinstance(value, Tensor):
                raise TypeError(f"the loss must give a tensor, got {type(value).__name__}; see the argument call")
            if value.requires_grad:
                (value.sum() * scale).backward()
            run.values.append(value.detach())
            gradient = torch.zeros_like(logits, dtype=torch.float64 if leaf.dtype == torch.float64 else torch.float32)
            if leaf.grad is not None:
                gradient[rows] = leaf.grad.to(gradient.dtype) / scale
            run.gradients.append(gradient)
        return run

    def reference(self, batches: Sequence[Tensor]) -> Run:
        """Run a new copy in the finest dtype."""
        return self.run(self.new_loss(self.dtype), batches)


def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor of floats; leave integers and bools as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor], *, least_norm: float = 0.0) -> float:
    """Compute the largest norm of a difference over the largest norm of ``expected``; inf if not finite.

    So a step whose gradient almost vanishes is measured by the others'. ``least_norm`` is the least divisor.
    """
    difference, norm = 0.0, least_norm
    for one, other in zip(actual, expected, strict=True):
        one, other = one.detach().double().cpu(), other.detach().double().cpu()
        distance = float((one - other).norm())
        difference = max(difference, math.inf if math.isnan(distance) else distance)
        norm = max(norm, float(other.norm()))
    return 0.0 if difference == 0 else difference / norm if norm > 0 else math.inf


def describe_error(error: BaseException) -> str:
    """Return the type of an exception and the first two lines of its message, without a stop at the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *([" ".join(lines[:2])] if lines else [])])[:240].rstrip(".:!? ")


def draw_batch(loss: nn.Module, seed: int, rows: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw logits and targets in each of the shapes that losses take, the likeliest first.

    One row in twenty is positive, its logit 1 higher on average; of C classes all but the first are as rare.
    """
    generator = torch.Generator().manual_seed(seed)
    num_classes = getattr(loss, "num_classes", getattr(getattr(loss, "main_loss", None), "num_classes", None))
    is_multiclass = isinstance(num_classes, int) and num_classes > 1
    classes = num_classes if isinstance(num_classes, int) and is_multiclass else 3
    count = max(1, rows // max(20, 2 * classes))
    index = torch.zeros(rows, dtype=torch.int64)
    for class_ in range(1, classes):
        index[(class_ - 1) * count : class_ * count] = class_
    order = torch.randperm(rows, generator=generator)
    index, binary = index[order], (torch.arange(rows) < max(1, rows // 20))[order].long()
    labels = (torch.rand(rows, classes, generator=generator) < 0.05).long()
    labels[:classes] = torch.maximum(labels[:classes], torch.eye(classes, dtype=torch.int64)[: len(labels)])
    noise = torch.randn(rows, classes, generator=generator)
    column = noise[:, :1] + binary[:, None]
    of_index = noise + nn.functional.one_hot(index, classes)
    shapes = [
        (column, binary),
        (column, binary[:, None].float()),
        (column[:, 0], binary.float()),
        (of_index, index),
        (noise + labels, labels),
        (noise + labels, labels.float()),
    ]
    yield from shapes[3:] if is_multiclass else shapes


def make_case(
    loss: nn.Module,
    call: Call,
    logits: Tensor,
    targets: Tensor,
    *,
    model: nn.Module | None,
    inputs: Tensor,
    seed: int,
    ranks: tuple[int, ...],
    make_loss: Callable[[], nn.Module] | None,
) -> Case:
    """Find the finest dtype that the loss runs in, and raise what it raises if it runs in none."""
    logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    case = Case(loss, call, logits, targets, model, inputs, torch.float64, "", seed, ranks, make_loss)
    try:
        case.reference(case.draw_batches(2))
    except Exception as error:
        case = replace(case, dtype=torch.float32, float64_error=describe_error(error))
        case.reference(case.draw_batches(2))
    return case
