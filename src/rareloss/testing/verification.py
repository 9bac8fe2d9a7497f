"""Verification: run all checks on a loss, and report."""

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rareloss import checks
from rareloss.testing.case import Call, Case, default_call, describe_error, draw_batch, make_case
from rareloss.testing.checks import CHECKS, run_check
from rareloss.testing.processes import refuse_unpicklable
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
    """Check a loss, of this library or of any other, for what its users rely on.

    Copies of the loss and of the model are called; those given are left as they are. The model runs in eval mode,
    so that a second call gives the same scores. ``ranks`` starts processes, so a script must call this under
    ``if __name__ == "__main__":``.

    Args:
        loss: the loss as it is at the start of training; or a function without arguments that makes one, which
            processes then call themselves, for a loss that looks for other ranks when it is made.
        model: maps inputs ``[n, ...]`` to logits, row by row; without one the gradient is that of the logits.
        batch: the model's inputs and targets, or without a model logits and targets, each ``[N, ...]``. By default
            drawn, logits of 256 rows with 5 % positives (with C classes, each but the first as rare), in the shape that
            the loss takes.
        call: ``call(loss, logits, targets, rows)`` calls the loss and returns its value, ``rows`` being the indices
            ``[n]`` of the rows in the batch; by default ``loss(logits, targets)``.
        ranks: numbers of processes; ``()`` for none.
        device: of loss and batch; processes are on the CPU.
        rows: of a batch that is drawn.
        seed: of all random numbers.
        only: names of checks; all by default.
        progress: called with the name of each check before it runs.

    Returns:
        the report; :attr:`~rareloss.testing.Report.passed` says whether nothing failed.

    Raises:
        TypeError: the loss or the model is no module, the batch no pair of tensors, or what processes must be sent
            cannot be pickled.
        ValueError: a batch of too few rows or of rows that differ in number, an unknown check, or a loss that cannot
            be called on the batch.

    Example:
        >>> from rareloss.losses import SmoothAPLoss
        >>> report = verify(SmoothAPLoss(num_classes=1), ranks=(), only=["resume", "queue gradient scale"])
        >>> report.passed
        True
    """
    make_loss = None if isinstance(loss, nn.Module) else loss
    loss = _make_loss(loss)
    for name in only or ():
        checks.choice("only", name, [check.name for check in CHECKS])
    selected = [check for check in CHECKS if only is None or check.name in only]
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}; wrap a function in a module")
    if model is not None and batch is None:
        raise ValueError("a model needs a batch of its inputs and targets; give batch=(inputs, targets)")
    ranks = tuple(checks.integer("ranks", number, least=1) for number in ranks)
    device = _usable(device)
    call = default_call if call is None else call
    checks.integer("rows", rows, least=LEAST_ROWS)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks find what losses warn of
        loss = loss.to(device)
        model = None if model is None else copy.deepcopy(model).to(device).eval()
        build = partial(make_case, loss, call, model=model, seed=seed, ranks=ranks, make_loss=make_loss)
        batches = list(draw_batch(loss, seed, rows)) if batch is None else [_pair(batch)]
        case = _first_that_fits(build, batches, model, device)
        if ranks and any(check.name == "ranks" for check in selected):
            refuse_unpicklable(case)
        outcomes: list[Check] = []
        for check in selected:
            if progress is not None:
                progress(check.name)
            outcomes += run_check(check, case)
    return Report(" ".join(repr(loss).split()), _settings(case, device, batch is None), tuple(outcomes))


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here: {describe_error(error)}") from error


def _make_loss(loss: nn.Module | Callable[[], nn.Module]) -> nn.Module:
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
    build: Callable[..., Case],
    batches: Sequence[tuple[Tensor, Tensor]],
    model: nn.Module | None,
    device: torch.device,
) -> Case:
    refused = ""
    for inputs, targets in batches:
        inputs, targets = inputs.detach().to(device), targets.detach().to(device)
        with torch.no_grad():
            logits = inputs if model is None else model(inputs)
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or len(logits) != len(targets):
            raise ValueError(
                "logits must be floats, a row for each target; got "
                + (f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__)
            )
        try:
            case = build(logits, targets, inputs=inputs)
        except Exception as error:
            refused = refused or describe_error(error)
            continue
        # A loss may take a shape that is not meant for it, such as one class of which all are members.
        if len(batches) == 1 or any(
            bool(gradient.any()) for gradient in case.reference(case.draw_batches(2)).gradients
        ):
            return case
        refused = refused or "every gradient is 0"
    raise ValueError(
        f"the loss cannot be called on {'any batch that was drawn' if len(batches) > 1 else 'the batch'}: {refused}; "
        "give a batch of the shapes that it takes, and say by call how it is called"
    )


def _settings(case: Case, device: torch.device, drawn: bool) -> dict[str, Any]:
    return {
        "seed": case.seed,
        "rows": len(case.targets),
        "logits": list(case.logits.shape),
        "targets": list(case.targets.shape),
        "batch": "drawn" if drawn else "given",
        "model": None if case.model is None else type(case.model).__name__,
        "ranks": list(case.ranks),
        "device": str(device),
        "compared in": str(case.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
