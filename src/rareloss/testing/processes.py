"""The same batch cut over real processes: every rank's gradient after DDP, beside the one of a single process."""

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

from rareloss.testing.case import Run, Subject, describe_error, of_dtype, relative_error

__all__ = ["CUTS", "Outcome", "cut_batch", "over_ranks", "refuse_what_cannot_travel"]

Plan = tuple[int, str, list[list[Tensor]]]  # ranks, cut, and at each step the rows of each rank

CUTS = ("even", "ragged", "a rank without positives", "an empty rank")
_ENDED = "it ended without an answer"
PATIENCE = 30  # seconds that a rank waits for another one
STARTING = 120  # seconds that all ranks may take to start, beside what the cuts take


class Outcome(NamedTuple):
    """What one cut over so many ranks gave.

    Attributes:
        ranks: how many processes.
        cut: one of ``CUTS``.
        error: of the gradient, relative; None where a rank raised.
        scale: the gradient's length along the one of a single process, 1 where they are the same.
        said: what was raised, on which rank.
    """

    ranks: int
    cut: str
    error: float | None
    scale: float | None
    said: str


class _Scorer(nn.Module):
    """Score rows by their places: by a model of their inputs, or as a table whose entries are the parameters."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model: nn.Module | None = None
        if subject.model is None:
            self.scores = nn.Parameter(subject.scores.detach().cpu().to(subject.exact))
        else:
            self.model = copy.deepcopy(subject.model).cpu().to(subject.exact).eval()
            self.inputs = of_dtype(subject.inputs.detach().cpu(), subject.exact)

    def forward(self, rows: Tensor) -> Tensor:
        if self.model is None:
            return self.scores[rows]
        scores: Tensor = self.model(self.inputs[rows])
        return scores


def refuse_what_cannot_travel(subject: Subject) -> None:
    """Refuse what a started process could not be sent.

    Raises:
        TypeError: the loss, the model or ``call`` cannot be pickled.
    """
    sent = {"loss": (subject.loss, subject.make), "model": subject.model, "call": subject.call}
    for name, thing in sent.items():
        try:
            pickle.dumps(thing)
        except Exception as error:
            raise TypeError(
                f"ranks={subject.ranks} starts processes, which must be sent the {name}, but it cannot be pickled "
                f"({describe_error(error)}); define it at the top of a module, not as a lambda or inside a function, "
                "or give ranks=()"
            ) from error


def cut_batch(rows: Tensor, rare: Tensor, ranks: int, cut: str) -> list[Tensor]:
    """Divide the rows of a step over ranks.

    Args:
        rows: ``[n]``.
        rare: bool ``[n]``, whether a row is not of the most frequent kind.
        ranks: how many.
        cut: one of ``CUTS``.
    """
    n = len(rows)
    if cut == "a rank without positives" and ranks > 1:
        plain = rows[~rare]
        last = plain[: max(1, n // (2 * ranks))]
        others = rows[~torch.isin(rows, last)]
        return [*cut_batch(others, torch.zeros_like(others, dtype=torch.bool), ranks - 1, "even"), last]
    edges = {
        "even": [n * rank // ranks for rank in range(ranks + 1)],
        "ragged": [n * rank * (rank + 1) // (ranks * (ranks + 1)) for rank in range(ranks + 1)],
        "an empty rank": [n * min(rank, ranks - 1) // max(ranks - 1, 1) for rank in range(ranks + 1)],
    }.get(cut, [0, n])
    edges[-1] = n
    return [rows[start:stop] for start, stop in itertools.pairwise(edges)]


def over_ranks(subject: Subject) -> list[Outcome]:
    """Start as many processes as the most ranks ask for, once, and run every cut on each number of ranks."""
    batches = [rows.cpu() for rows in subject.batches(3)]
    is_rare = torch.zeros(len(subject.targets), dtype=torch.bool)
    is_rare[subject.rare_and_plain()[0]] = True
    plans = [
        (ranks, cut, [cut_batch(rows, is_rare[rows], ranks, cut) for rows in batches])
        for ranks in sorted(set(subject.ranks))
        for cut in (CUTS if ranks > 1 else CUTS[:1])
    ]
    said: list[dict[int, Any]] = [{} for _ in range(max(subject.ranks))]
    todo = dict(enumerate(plans))
    while todo:
        with tempfile.TemporaryDirectory() as folder:
            _start(subject, todo, folder)
            for rank, answers in enumerate(said):
                answers.update(_read(Path(folder), rank, next(iter(todo))))
        # A cut that killed a process is answered for; those after it are tried in new processes.
        todo = {number: plan for number, plan in todo.items() if not any(number in answers for answers in said)}
    return [_outcome(subject, plan, number, said) for number, plan in enumerate(plans)]


def _outcome(subject: Subject, plan: Plan, number: int, said: list[dict[int, Any]]) -> Outcome:
    ranks, cut, steps = plan
    answers = [said[rank].get(number, _ENDED) for rank in range(ranks)]
    errors = [(rank, answer) for rank, answer in enumerate(answers) if isinstance(answer, str)]
    if errors:
        rank, raised = min(errors, key=lambda answer: _how_likely_a_consequence(answer[1]))
        return Outcome(ranks, cut, None, None, f"rank {rank}: {raised}.")
    # One process is given the rows in the order of ranks: which of them a short queue keeps depends on it.
    expected = _train(_Scorer(subject), subject, [torch.cat(shares) for shares in steps])
    error = max(relative_error(answer, expected.gradients) for answer in answers)
    found = torch.cat([gradient.double().flatten() for gradient in answers[0]])
    wanted = torch.cat([gradient.double().flatten() for gradient in expected.gradients])
    scale = float(found @ wanted / (wanted @ wanted)) if bool((wanted != 0).any()) else 1.0
    return Outcome(ranks, cut, error, scale, "")


def _how_likely_a_consequence(error: str) -> int:
    # Of the errors of one cut one is the cause; the others lost their partner, or were ended for want of it.
    if any(word in error.lower() for word in ("connection", "timed out", "timeout")):
        return 3
    return (2 if error == _ENDED else 1) if error.startswith(_ENDED) else 0


def _train(scorer: nn.Module, subject: Subject, batches: Sequence[Tensor]) -> Run:
    # The gradients of the parameters at each step, without a step of an optimizer.
    loss = subject.fresh() if subject.make is None else subject.make().train()
    loss, targets = loss.cpu().to(subject.exact), of_dtype(subject.targets.cpu(), subject.exact)
    run = Run([], [])
    torch.manual_seed(subject.seed)
    for rows in batches:
        scorer.zero_grad()
        value = subject.call(loss, scorer(rows), targets[rows], rows)
        value.sum().backward()
        run.values.append(value.detach().clone())
        gradients = [
            torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
            for parameter in scorer.parameters()
        ]
        run.gradients.append(torch.cat(gradients).clone())
    return run


def _start(subject: Subject, plans: dict[int, Plan], folder: str) -> None:
    started: Any = spawn(_run_rank, args=(subject, plans, folder), nprocs=max(subject.ranks), join=False)
    deadline = time.monotonic() + STARTING + PATIENCE * len(plans)
    while any(process.is_alive() for process in started.processes) and time.monotonic() < deadline:
        connection.wait([process.sentinel for process in started.processes if process.is_alive()], timeout=1)
        if any(process.exitcode for process in started.processes):
            break  # the others would wait for it
    for process in started.processes:
        process.join(1)
        if process.is_alive():
            process.kill()
            process.join()


def _run_rank(rank: int, subject: Subject, plans: dict[int, Plan], folder: str) -> None:
    # What the runtime says when it ends the process goes into a file; exceptions are answers.
    with (Path(folder) / f"words_{rank}.txt").open("w") as words:
        os.dup2(words.fileno(), 2)
    torch.set_num_threads(1)
    said: dict[int, Any] = {}
    for number, (ranks, _, steps) in plans.items():
        if rank >= ranks:
            continue
        (Path(folder) / f"at_{rank}.txt").write_text(str(number))
        try:
            # A group of its own for each cut: after an error the ranks may be out of step.
            dist.init_process_group(
                "gloo",
                init_method=(Path(folder) / f"meeting_{number}").as_uri(),
                rank=rank,
                world_size=ranks,
                timeout=datetime.timedelta(seconds=PATIENCE),
            )
            said[number] = _train_among_ranks(subject, [shares[rank] for shares in steps]).gradients
        except Exception as error:
            said[number] = describe_error(error)
        finally:
            torch.save(said, Path(folder) / f"rank_{rank}.pt")
            if dist.is_initialized():
                dist.destroy_process_group()


def _train_among_ranks(subject: Subject, batches: Sequence[Tensor]) -> Run:
    # Outside of here nothing refers to what DDP made. Its reducer, where it is the last to hold a group, ends it under
    # Python's lock, for which the group's own thread may wait: for ever. And other ranks would not see that it ended.
    return _train(DistributedDataParallel(_Scorer(subject)), subject, batches)


def _read(folder: Path, rank: int, first: int) -> dict[int, Any]:
    """Return the answers of a rank by cut, with its last words for the one in which it was ended."""
    file, at, words = folder / f"rank_{rank}.pt", folder / f"at_{rank}.txt", folder / f"words_{rank}.txt"
    said: dict[int, Any] = torch.load(file) if file.exists() else {}
    number = int(at.read_text()) if at.exists() else first
    if number not in said:
        lines = words.read_text(errors="replace").split("\n") if words.exists() else []
        lines = [line.strip() for line in lines if "what():" in line] or [
            line.strip() for line in lines if line.strip()
        ]
        said[number] = f"it ended without an answer{': ' if lines else ''}{lines[-1][:200] if lines else ''}"
    return said
