"""Data parallelism over real gloo processes: every rank's gradient after DDP, beside that of a single process."""

import copy
import datetime
import itertools
import os
import pickle
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from rareloss.testing.case import Case, Run, describe_error, relative_error, to_dtype

__all__ = ["SPLITS", "RankResult", "refuse_unpicklable", "run_ranks", "split_batch"]

Plan = tuple[int, str, list[list[Tensor]]]  # ranks, split, and at each step the row indices of each rank

SPLITS = ("even", "ragged", "a rank without positives", "an empty rank")
_NO_ANSWER = "it ended without an answer"
TIMEOUT = 30  # seconds that a rank waits for another one
START_TIMEOUT = 120  # seconds that all ranks may take to start, beside what the splits take


class RankResult(NamedTuple):
    """The gradient of a batch that is split over ranks.

    Attributes:
        ranks: how many processes.
        split: one of ``SPLITS``.
        error: of the gradient, relative; None where a rank raised.
        scale: the gradient's length along the one of a single process, 1 where they are the same.
        message: what was raised, on which rank.
    """

    ranks: int
    split: str
    error: float | None
    scale: float | None
    message: str


class _Model(nn.Module):
    """The logits of row indices: from the model's inputs, or a table whose entries are the parameters."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model: nn.Module | None = None
        if case.model is None:
            self.logits = nn.Parameter(case.logits.detach().cpu().to(case.dtype))
        else:
            self.model = copy.deepcopy(case.model).cpu().to(case.dtype).eval()
            self.inputs = to_dtype(case.inputs.detach().cpu(), case.dtype)

    def forward(self, rows: Tensor) -> Tensor:
        if self.model is None:
            return self.logits[rows]
        logits: Tensor = self.model(self.inputs[rows])
        return logits


def refuse_unpicklable(case: Case) -> None:
    """Refuse what cannot be sent to a process.

    Raises:
        TypeError: the loss, the model or ``call`` cannot be pickled.
    """
    sent = {"loss": (case.loss, case.make_loss), "model": case.model, "call": case.call}
    for name, thing in sent.items():
        try:
            pickle.dumps(thing)
        except Exception as error:
            raise TypeError(
                f"ranks={case.ranks} starts processes, which must be sent the {name}, but it cannot be pickled "
                f"({describe_error(error)}); define it at the top of a module, not as a lambda or inside a function, "
                "or give ranks=()"
            ) from error


def split_batch(rows: Tensor, rare: Tensor, ranks: int, split: str) -> list[Tensor]:
    """Split the rows of a step over ranks.

    Args:
        rows: ``[n]``.
        rare: bool ``[n]``, whether a row is not of the most frequent label.
        ranks: how many.
        split: one of ``SPLITS``.
    """
    n = len(rows)
    if split == "a rank without positives" and ranks > 1:
        last = rows[~rare][: max(1, n // (2 * ranks))]
        others = rows[~torch.isin(rows, last)]
        return [*split_batch(others, torch.zeros_like(others, dtype=torch.bool), ranks - 1, "even"), last]
    edges = {
        "even": [n * rank // ranks for rank in range(ranks + 1)],
        "ragged": [n * rank * (rank + 1) // (ranks * (ranks + 1)) for rank in range(ranks + 1)],
        "an empty rank": [n * min(rank, ranks - 1) // max(ranks - 1, 1) for rank in range(ranks + 1)],
    }.get(split, [0, n])
    edges[-1] = n
    return [rows[start:stop] for start, stop in itertools.pairwise(edges)]


def run_ranks(case: Case) -> list[RankResult]:
    """Start as many processes as the most ranks ask for, once, and run every split on each number of ranks."""
    batches = [rows.cpu() for rows in case.draw_batches(3)]
    is_rare = torch.zeros(len(case.targets), dtype=torch.bool)
    is_rare[case.split_rare()[0]] = True
    plans = [
        (ranks, split, [split_batch(rows, is_rare[rows], ranks, split) for rows in batches])
        for ranks in sorted(set(case.ranks))
        for split in (SPLITS if ranks > 1 else SPLITS[:1])
    ]
    answers: list[dict[int, Any]] = [{} for _ in range(max(case.ranks))]
    todo = dict(enumerate(plans))
    while todo:
        with tempfile.TemporaryDirectory() as folder:
            _start(case, todo, folder)
            for rank, of_rank in enumerate(answers):
                of_rank.update(_read(Path(folder), rank, next(iter(todo))))
        # A split that killed a process has an answer; those after it run in new processes.
        todo = {number: plan for number, plan in todo.items() if not any(number in of_rank for of_rank in answers)}
    return [
        _result(case, plan, [of_rank.get(number, _NO_ANSWER) for of_rank in answers])
        for number, plan in enumerate(plans)
    ]


def _result(case: Case, plan: Plan, answers: list[Any]) -> RankResult:
    ranks, split, steps = plan
    answers = answers[:ranks]
    errors = [(rank, answer) for rank, answer in enumerate(answers) if isinstance(answer, str)]
    if errors:
        rank, raised = min(errors, key=lambda answer: _likely_consequence(answer[1]))
        return RankResult(ranks, split, None, None, f"rank {rank}: {raised}.")
    # One process is given the rows in the order of ranks: which of them a short queue keeps depends on it.
    expected = _train(_Model(case), case, [torch.cat(parts) for parts in steps])
    error = max(relative_error(answer, expected.gradients) for answer in answers)
    actual, single = (
        torch.cat([gradient.double().flatten() for gradient in gradients])
        for gradients in (answers[0], expected.gradients)
    )
    scale = float(actual @ single / (single @ single)) if bool((single != 0).any()) else 1.0
    return RankResult(ranks, split, error, scale, "")


def _likely_consequence(error: str) -> int:
    # Of the errors of one split one is the cause; the others lost their partner, or were ended for want of it.
    if any(word in error.lower() for word in ("connection", "timed out", "timeout")):
        return 3
    return (2 if error == _NO_ANSWER else 1) if error.startswith(_NO_ANSWER) else 0


def _train(model: nn.Module, case: Case, batches: Sequence[Tensor]) -> Run:
    # The gradients of the parameters at each step, without a step of an optimizer.
    loss = case.new_loss() if case.make_loss is None else case.make_loss().train()
    loss, targets = loss.cpu().to(case.dtype), to_dtype(case.targets.cpu(), case.dtype)
    run = Run([], [])
    torch.manual_seed(case.seed)
    for rows in batches:
        model.zero_grad()
        value = case.call(loss, model(rows), targets[rows], rows)
        value.sum().backward()
        run.values.append(value.detach().clone())
        gradients = [
            torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
            for parameter in model.parameters()
        ]
        run.gradients.append(torch.cat(gradients).clone())
    return run


def _start(case: Case, plans: dict[int, Plan], folder: str) -> None:
    started: Any = spawn(_run_rank, args=(case, plans, folder), nprocs=max(case.ranks), join=False)
    deadline = time.monotonic() + START_TIMEOUT + TIMEOUT * len(plans)
    while any(process.is_alive() for process in started.processes) and time.monotonic() < deadline:
        connection.wait([process.sentinel for process in started.processes if process.is_alive()], timeout=1)
        if any(process.exitcode for process in started.processes):
            break  # the others would wait for it
    for process in started.processes:
        process.join(1)
        if process.is_alive():
            process.kill()
            process.join()


def _run_rank(rank: int, case: Case, plans: dict[int, Plan], folder: str) -> None:
    # The runtime's messages when it ends the process go into a file; exceptions are answers.
    with (Path(folder) / f"stderr_{rank}.txt").open("w") as stderr:
        os.dup2(stderr.fileno(), 2)
    torch.set_num_threads(1)
    answers: dict[int, Any] = {}
    for number, (ranks, _, steps) in plans.items():
        if rank >= ranks:
            continue
        (Path(folder) / f"at_{rank}.txt").write_text(str(number))
        try:
            # A group of its own for each split: after an error the ranks may be out of step.
            dist.init_process_group(
                "gloo",
                init_method=(Path(folder) / f"store_{number}").as_uri(),
                rank=rank,
                world_size=ranks,
                timeout=datetime.timedelta(seconds=TIMEOUT),
            )
            answers[number] = _train_distributed(case, [parts[rank] for parts in steps]).gradients
        except Exception as error:
            answers[number] = describe_error(error)
        finally:
            torch.save(answers, Path(folder) / f"rank_{rank}.pt")
            if dist.is_initialized():
                dist.destroy_process_group()


def _train_distributed(case: Case, batches: Sequence[Tensor]) -> Run:
    # Outside of here nothing refers to what DDP made. Its reducer, where it is the last to hold a group, ends it under
    # Python's lock, for which the group's own thread may wait: for ever. And other ranks would not see that it ended.
    return _train(DistributedDataParallel(_Model(case)), case, batches)


def _read(folder: Path, rank: int, first: int) -> dict[int, Any]:
    """Return the answers of a rank by split, with its last message for the one in which it was ended."""
    file, at, stderr = folder / f"rank_{rank}.pt", folder / f"at_{rank}.txt", folder / f"stderr_{rank}.txt"
    answers: dict[int, Any] = torch.load(file) if file.exists() else {}
    number = int(at.read_text()) if at.exists() else first
    if number not in answers:
        lines = stderr.read_text(errors="replace").split("\n") if stderr.exists() else []
        lines = [line.strip() for line in lines if line.strip()]
        lines = [line for line in lines if "what():" in line] or lines
        answers[number] = ": ".join([_NO_ANSWER, *(line[:200] for line in lines[-1:])])
    return answers
