"""Try every promise on a loss, and certify what was found."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rareloss import checks
from rareloss.testing.case import Call, Subject, call_plainly, describe_error, draw_batch, make_subject
from rareloss.testing.checks import PROMISES
from rareloss.testing.processes import refuse_what_cannot_travel
from rareloss.testing.report import Check, Report

__all__ = ["verify"]

LEAST_ROWS = 16


def verify(
    loss: nn.Module | Callable[[], nn.Module],
    model: nn.Module | None = None,
    batch: tuple[Tensor, Tensor] | None = None,
    *,
    call: Call | None = None,
    ranks: Sequence[int] = (1, 2),
    device: str | torch.device = "cpu",
    rows: int = 256,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Try on a loss, of this library or of any other, what its users rely on, and certify what was found.

    Copies of the loss and of the model are called; those given are left as they are. The model is tried in eval mode,
    so that a second call gives the same scores. ``ranks`` starts processes, so a script must call this under
    ``if __name__ == "__main__":``.

    Args:
        loss: the loss as it is at the start of training; or a function without arguments that makes one, which
            processes then call themselves, for a loss that looks for other ranks when it is made.
        model: maps inputs ``[n, ...]`` to logits, row by row; without one the gradient is that of the logits.
        batch: the model's inputs and targets, or without a model logits and targets, each ``[N, ...]``. By default
            drawn, logits of 256 rows with 5 % positives (with C classes, each but the first as rare), in the shape that
            the loss takes.
        call: ``call(loss, logits, targets, rows)`` calls the loss and returns its value, ``rows`` being the places
            ``[n]`` of the rows in the batch; by default ``loss(logits, targets)``.
        ranks: numbers of processes to try; ``()`` for none.
        device: where to try it; processes are on the CPU.
        rows: of a batch that is drawn.
        seed: of all that is drawn.
        only: names of promises to try; all by default.
        progress: told the name of each promise before it is tried.

    Returns:
        all findings; :attr:`~rareloss.testing.Report.passed` says whether nothing failed.

    Raises:
        TypeError: the loss or the model is no module, the batch no pair of tensors, or what processes must be sent
            cannot be pickled.
        ValueError: a batch of too few rows or of rows that differ in number, an unknown promise, or a loss that cannot
            be called on the batch.

    Example:
        >>> from rareloss.losses import SmoothAPLoss
        >>> report = verify(SmoothAPLoss(num_classes=1), ranks=(), only=["resume", "undiluted queue"])
        >>> report.passed
        True
    """
    make = None if isinstance(loss, nn.Module) else loss
    loss = _made(loss)
    chosen = _chosen(only)
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}; wrap a function in a module")
    if model is not None and batch is None:
        raise ValueError("a model needs a batch of its inputs and targets; give batch=(inputs, targets)")
    numbers = tuple(checks.integer("ranks", number, least=1) for number in ranks)
    place = _place(device)
    call = call_plainly if call is None else call
    checks.integer("rows", rows, least=LEAST_ROWS)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what losses warn of is found here by other means
        loss = loss.to(place)
        model = None if model is None else copy.deepcopy(model).to(place).eval()
        build = partial(make_subject, loss, call, model=model, seed=seed, ranks=numbers, make=make)
        offers = list(draw_batch(loss, seed, rows)) if batch is None else [_pair(batch)]
        subject = _first_that_fits(build, offers, model, place)
        if any(promise.name == "ranks" for promise in chosen) and numbers:
            refuse_what_cannot_travel(subject)
        findings: list[Check] = []
        for promise in chosen:
            if progress is not None:
                progress(promise.name)
            try:
                found = list(promise.find(subject))
            except Exception as error:
                found = [Check("", "all", "fail", said=f"It raised {describe_error(error)}.")]
            findings += [replace(finding, promise=promise.name, meaning=promise.meaning) for finding in found]
    return Report(" ".join(repr(loss).split()), _settings(subject, place, batch is None), tuple(findings))


def _place(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here: {describe_error(error)}") from error


def _made(loss: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    if isinstance(loss, nn.Module):
        return copy.deepcopy(loss)
    if not callable(loss):
        raise TypeError(f"loss must be an nn.Module or a function that makes one, got {type(loss).__name__}")
    try:
        made = loss()
    except TypeError as error:
        raise TypeError(
            f"loss must be an nn.Module, or make one without arguments, but {error}; give the module itself, and wrap "
            "a function of logits and targets in one"
        ) from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"loss must make an nn.Module, got {type(made).__name__}")
    return made


def _chosen(only: Sequence[str] | None) -> list[Any]:
    known = [promise.name for promise in PROMISES]
    for name in only or ():
        checks.choice("only", name, known)
    return [promise for promise in PROMISES if only is None or promise.name in only]


def _pair(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(x, Tensor) for x in batch):
        raise TypeError("batch must be a pair of tensors: inputs (or logits) and targets")
    inputs, targets = batch
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or len(targets) < LEAST_ROWS:
        raise ValueError(
            f"batch must hold at least {LEAST_ROWS} rows of inputs and as many targets, got shapes "
            f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    return inputs, targets


def _first_that_fits(
    build: Callable[..., Subject],
    offers: Sequence[tuple[Tensor, Tensor]],
    model: nn.Module | None,
    device: torch.device,
) -> Subject:
    refused = ""
    for inputs, targets in offers:
        inputs, targets = inputs.detach().to(device), targets.detach().to(device)
        with torch.no_grad():
            scores = inputs if model is None else model(inputs)
        if not isinstance(scores, Tensor) or not scores.is_floating_point() or len(scores) != len(targets):
            raise ValueError(
                "logits must be floats, a row for each target; got "
                + (f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__)
            )
        try:
            subject = build(scores, targets, inputs=inputs)
        except Exception as error:
            refused = refused or describe_error(error)
            continue
        # A loss may take a shape that is not meant for it, such as one class of which all are members.
        if len(offers) == 1 or any(
            bool((gradient != 0).any()) for gradient in subject.reference(subject.batches(2))[1]
        ):
            return subject
        refused = refused or "every gradient is 0"
    raise ValueError(
        f"the loss cannot be called on {'any batch that was drawn' if len(offers) > 1 else 'the batch'}: {refused}; "
        "give a batch of the shapes that it takes, and say by call how it is called"
    )


def _settings(subject: Subject, device: torch.device, drawn: bool) -> dict[str, Any]:
    return {
        "seed": subject.seed,
        "rows": len(subject.targets),
        "logits": list(subject.scores.shape),
        "targets": list(subject.targets.shape),
        "batch": "drawn" if drawn else "given",
        "model": None if subject.model is None else type(subject.model).__name__,
        "ranks": list(subject.ranks),
        "device": str(device),
        "compared in": str(subject.exact).removeprefix("torch."),
        "torch": torch.__version__,
    }
