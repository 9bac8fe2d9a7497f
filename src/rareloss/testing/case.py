"""The loss under test, the rows that it is tried on, and runs of it over some steps."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "Call",
    "Run",
    "Subject",
    "call_plainly",
    "describe_error",
    "draw_batch",
    "make_subject",
    "of_dtype",
    "relative_error",
]

Call = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""How to call a loss: the loss, logits, targets and the rows' places in the batch ``[n]`` give the value."""

STEPS = 6


def call_plainly(loss: nn.Module, logits: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """Call a loss as ``loss(logits, targets)``."""
    value: Tensor = loss(logits, targets)
    return value


class Run(NamedTuple):
    """What some steps gave: the value of each, and its gradient as a table over all rows, 0 at rows not in the step."""

    values: list[Tensor]
    gradients: list[Tensor]

    def equals(self, other: "Run") -> bool:
        """Say whether the other run is the same, bit for bit."""
        pairs = zip([*self.values, *self.gradients], [*other.values, *other.gradients], strict=True)
        return all(torch.equal(mine, its) for mine, its in pairs)

    def then(self, other: "Run") -> "Run":
        """Return the steps of both."""
        return Run(self.values + other.values, self.gradients + other.gradients)

    def after(self, step: int) -> "Run":
        """Return the steps from ``step`` on."""
        return Run(self.values[step:], self.gradients[step:])


@dataclass(frozen=True)
class Subject:
    """A loss, and rows to try it on.

    Args:
        loss: as it was given; only copies of it are called.
        call: how it is called.
        scores: the logits of all rows, ``[N, ...]``, float32 at least.
        targets: ``[N, ...]``.
        model: what gave the scores; None if they were given.
        inputs: the model's, ``[N, ...]``.
        exact: the finest dtype that the loss runs in, float64 or float32.
        why_not_finer: what it says in float64, where it does not run.
        seed: of the rows that a step draws, and of random numbers that the loss draws.
        ranks: numbers of processes to try.
        make: makes the loss anew, where a function was given: some look for other ranks when they are made.
    """

    loss: nn.Module
    call: Call
    scores: Tensor
    targets: Tensor
    model: nn.Module | None
    inputs: Tensor
    exact: torch.dtype
    why_not_finer: str
    seed: int
    ranks: tuple[int, ...]
    make: Callable[[], nn.Module] | None

    @property
    def rounding(self) -> float:
        """The relative error that rounding may leave in the finest dtype, with room for another order of summation."""
        return 1e-8 if self.exact == torch.float64 else 1e-4

    def fresh(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return a copy of the loss as it was given, in training mode."""
        loss = copy.deepcopy(self.loss).train()
        return loss if dtype is None or dtype == torch.float32 else loss.to(dtype)

    def batches(self, count: int = STEPS) -> list[Tensor]:
        """Draw the rows of each step: half of all, and half of those that are not of the most frequent kind."""
        generator = torch.Generator().manual_seed(self.seed)
        rare, plain = self.rare_and_plain()
        drawn = []
        for _ in range(count):
            halves = [
                rows[torch.randperm(len(rows), generator=generator)][: -(-len(rows) // 2)] for rows in (rare, plain)
            ]
            rows = torch.cat(halves)
            drawn.append(rows[torch.randperm(len(rows), generator=generator)].to(self.scores.device))
        return drawn

    def rare_and_plain(self) -> tuple[Tensor, Tensor]:
        """Divide the rows into those of the most frequent label (or row of labels), and the others."""
        labels = self.targets.detach().cpu().reshape(len(self.targets), -1)
        _, kind, number = labels.unique(dim=0, return_inverse=True, return_counts=True)
        plain = kind == number.argmax()
        return (~plain).nonzero()[:, 0], plain.nonzero()[:, 0]

    def run(
        self,
        loss: nn.Module,
        batches: Sequence[Tensor],
        *,
        dtype: torch.dtype | None = None,
        scores: Tensor | None = None,
        targets: Tensor | None = None,
        call: Call | None = None,
        scale: float = 1.0,
    ) -> Run:
        """Call ``loss`` on each batch of rows, and collect values and gradients of the scores.

        Args:
            loss: a copy from :meth:`fresh`.
            batches: the rows of each step.
            dtype: of the logits; ``exact`` by default.
            scores: instead of the subject's own.
            targets: instead of the subject's own.
            call: instead of the subject's own.
            scale: multiplies the value before the backward pass and is divided out of the gradient.
        """
        scores = self.scores if scores is None else scores
        targets = self.targets if targets is None else targets
        call = self.call if call is None else call
        run = Run([], [])
        torch.manual_seed(self.seed)
        for rows in batches:
            leaf = scores[rows].detach().to(self.exact if dtype is None else dtype).requires_grad_()
            value = call(loss, leaf, of_dtype(targets[rows], leaf.dtype), rows)
            if not isinstance(value, Tensor):
                raise TypeError(f"the loss must give a tensor, got {type(value).__name__}; see the argument call")
            if value.requires_grad:
                (value.sum() * scale).backward()
            run.values.append(value.detach())
            gradient = torch.zeros_like(scores, dtype=torch.float64 if leaf.dtype == torch.float64 else torch.float32)
            if leaf.grad is not None:
                gradient[rows] = leaf.grad.to(gradient.dtype) / scale
            run.gradients.append(gradient)
        return run

    def reference(self, batches: Sequence[Tensor]) -> Run:
        """Run a fresh copy in the finest dtype."""
        return self.run(self.fresh(self.exact), batches)


def of_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of floats in a dtype, and any other as it is: targets and inputs follow the logits."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor], *, least: float = 0.0) -> float:
    """Compute the largest norm of a difference over the largest norm of what was expected; inf if not finite.

    A step whose gradient is next to nothing beside the others' is measured by theirs; ``least`` is what is divided by
    at least.
    """
    gap, size = 0.0, least
    for one, other in zip(found, expected, strict=True):
        one, other = one.detach().double().cpu(), other.detach().double().cpu()
        distance = float((one - other).norm())
        gap = max(gap, math.inf if math.isnan(distance) else distance)
        size = max(size, float(other.norm()))
    return 0.0 if gap == 0 else gap / size if size > 0 else math.inf


def describe_error(error: BaseException) -> str:
    """Return the kind of an exception and the first two lines of what it says, without a stop at the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *([" ".join(lines[:2])] if lines else [])])[:240].rstrip(".:!? ")


def draw_batch(loss: nn.Module, seed: int, rows: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw logits and targets in each of the shapes that losses take, the likeliest first.

    One row in twenty is positive, its logit 1 higher on average; of C classes all but the first are as rare.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = getattr(loss, "num_classes", None)
    if not isinstance(classes, int):
        main = getattr(loss, "main_loss", None)
        classes = getattr(main, "num_classes", None)
    several = classes if isinstance(classes, int) and classes > 1 else 3
    each = max(1, rows // max(20, 2 * several))
    index = torch.zeros(rows, dtype=torch.int64)
    for class_ in range(1, several):
        index[(class_ - 1) * each : class_ * each] = class_
    order = torch.randperm(rows, generator=generator)
    index, binary = index[order], (torch.arange(rows) < max(1, rows // 20))[order].long()
    labels = (torch.rand(rows, several, generator=generator) < 0.05).long()
    labels[:several] = torch.maximum(labels[:several], torch.eye(several, dtype=torch.int64)[: len(labels)])
    noise = torch.randn(rows, several, generator=generator)
    one = noise[:, :1] + binary[:, None]
    of_index = noise + nn.functional.one_hot(index, several)
    shapes = [
        (one, binary),
        (one, binary[:, None].float()),
        (one[:, 0], binary.float()),
        (of_index, index),
        (noise + labels, labels),
        (noise + labels, labels.float()),
    ]
    yield from shapes[3:] if isinstance(classes, int) and classes > 1 else shapes


def make_subject(
    loss: nn.Module,
    call: Call,
    scores: Tensor,
    targets: Tensor,
    *,
    model: nn.Module | None,
    inputs: Tensor,
    seed: int,
    ranks: tuple[int, ...],
    make: Callable[[], nn.Module] | None,
) -> Subject:
    """Find the finest dtype that the loss runs in, and raise what it raises if it runs in none."""
    scores = scores.detach()
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    fine = Subject(loss, call, scores, targets, model, inputs, torch.float64, "", seed, ranks, make)
    try:
        fine.run(fine.fresh(torch.float64), fine.batches(2))
    except Exception as error:
        said = describe_error(error)
    else:
        return fine
    coarse = replace(fine, exact=torch.float32, why_not_finer=said)
    coarse.run(coarse.fresh(), coarse.batches(2))
    return coarse
