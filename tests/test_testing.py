"""The report finds what is broken, by the check that is meant to find it, and lets pass what is not."""

import copy
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss_equations import value_and_gradient
from processes import start_ranks
from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)
from rareloss.distributed import world_size
from rareloss.testing import Report, verify
from rareloss.testing.case import draw_batch

# ------------------------------------------------------------------------------- losses, each with one thing wrong


class Logistic(nn.Module):
    """Nothing wrong, on one process."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.softplus(-(2 * targets.reshape(logits.shape) - 1) * logits).mean()


class ByPlace(Logistic):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        place = torch.linspace(0.5, 1.5, len(logits), dtype=logits.dtype)[:, None]
        return super().forward(place * logits, targets)


class BreakingTheGraph(Logistic):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        scale = 2.0 if logits.max().item() > 0 else 1.0
        return scale * super().forward(logits, targets)


class CrashingInHalf(Logistic):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().forward(logits - torch.quantile(logits, 0.5), targets)


class CoarseInFloat32(Logistic):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().forward(logits + (1e-3 * logits if logits.dtype == torch.float32 else 0), targets)


class CountingUnsaved(Logistic):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(logits, targets) * (1 + self.calls)


class CountingInEval(Logistic):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(logits, targets) * self.calls


class KeepingNaN(Logistic):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.5).add_(logits.detach().float().mean(), alpha=0.5)
        return super().forward(logits - self.mean, targets)


class Diluted(SmoothAPLoss):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        live, remembered = (targets != self.ignore_index).sum(), (self.queue.weight > 0).sum()
        loss = super().forward(logits, targets)
        return loss.detach() + (loss - loss.detach()) * live / (live + remembered)


class CountingIgnored(SmoothAPLoss):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().forward(logits, targets) * len(targets)


class DividedByRanks(SmoothAPLoss):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not len(logits):
            os._exit(3)
        loss = super().forward(logits, targets)
        return loss.detach() + (loss - loss.detach()) / world_size()


class RefusingNoRows(Logistic):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not len(logits):
            raise ValueError("no rows")
        return super().forward(logits, targets)


BROKEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "the order of rows": (ByPlace, "row order"),
    "a break of the graph": (BreakingTheGraph, "compile"),
    "a crash in half": (CrashingInHalf, "precision"),
    "another loss in float32": (CoarseInFloat32, "accuracy"),
    "a count that is not saved": (CountingUnsaved, "resume"),
    "a count that goes on in eval mode": (CountingInEval, "copy and pickle"),
    "a NaN that stays": (KeepingNaN, "NaN poisoning"),
    "a diluted queue": (lambda: Diluted(1, queue_size=300), "queue gradient scale"),
    "ignored rows that count": (lambda: CountingIgnored(1, queue_size=0), "padding"),
    "a pool too small for the point": (lambda: RecallAtQuantileLoss(1, 0.01, queue_size=0), "support"),
}

OWN: dict[str, Callable[[], nn.Module]] = {
    "binary focal": SigmoidFocalLoss,
    "multi-label focal": lambda: SigmoidFocalLoss(torch.tensor([0.2, 0.5, 0.9]), 1.5, "mean_positive"),
    "class-index focal": lambda: SoftmaxFocalLoss([0.2, 0.3, 0.5], reduction="sum", label_smoothing=0.1),
    "binary ap": lambda: SmoothAPLoss(1),
    "class-index ap": lambda: SmoothAPLoss(3, queue_size=100),
    "recall": lambda: RecallAtQuantileLoss(1, 0.05, queue_size=300),
    "recall among negatives": lambda: RecallAtQuantileLoss(3, 0.5, "negatives", queue_size=0, temperature_unit="logit"),
    "pauc": lambda: PAUCAtBudgetLoss(1, 0.1, 0.6, queue_size=0),
    "multi-label pauc": lambda: PAUCAtBudgetLoss(3, 0.0, 0.3, queue_size=200, reduction="sum"),
    "warm-up": lambda: LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(1), warmup_steps=2, blend_steps=2),
}


def failed(report: Report) -> set[str]:
    return {check.name for check in report.failures}


def batch_of(name: str) -> tuple[Tensor, Tensor] | None:
    if not name.startswith("multi-label"):
        return None
    labels = (torch.rand(160, 3) < 0.2).long()
    return torch.randn(160, 3) + labels, labels


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found_by_its_check_alone(name: str) -> None:
    make, check = BROKEN[name]
    # The compiler is slow, and has little to say of the others.
    others = {
        "accuracy",
        "row order",
        "precision",
        "resume",
        "queue gradient scale",
        "NaN poisoning",
        "padding",
        "copy and pickle",
    }
    only = [check] if check in ("compile", "support") else sorted(others)
    report = verify(make, ranks=(), only=only)
    assert failed(report) == {check}, str(report)
    assert not report.passed


@pytest.mark.parametrize("name", OWN)
def test_own_losses_pass(name: str) -> None:
    every = [
        "accuracy",
        "row order",
        "precision",
        "resume",
        "queue gradient scale",
        "NaN poisoning",
        "padding",
        "copy and pickle",
    ]
    report = verify(OWN[name](), batch=batch_of(name), ranks=(), only=[*every, "support", "syncs", "chunks"])
    assert report.passed, str(report)


@pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning")
@pytest.mark.parametrize("name", [name for name in OWN if name != "warm-up"])
def test_own_losses_are_their_equations(name: str) -> None:
    loss = OWN[name]().double()
    of_classes = SmoothAPLoss(3) if name.startswith("class-index") else loss
    logits, targets = batch_of(name) or next(draw_batch(of_classes, 0))
    rare = (targets.reshape(len(targets), -1) != 0).any(1)
    few = torch.cat([rare.nonzero()[:8, 0], (~rare).nonzero()[:, 0]])[:24]
    steps = [(logits[rows].double(), targets[rows]) for rows in (few[::2], few[1::2], few)]
    values, gradients = value_and_gradient(copy.deepcopy(loss), steps)
    for (scores, labels), value, gradient in zip(steps, values, gradients, strict=True):
        scores.requires_grad_()
        actual = loss(scores, labels)
        actual.backward()
        expected = torch.tensor(gradient, dtype=torch.float64)
        assert actual.item() == pytest.approx(value, rel=1e-6, abs=1e-6 * expected.norm().item())
        assert (scores.grad.flatten() - expected).norm() <= 1e-6 * expected.norm()


def test_own_loss_compiles_in_one_graph() -> None:
    report = verify(SigmoidFocalLoss(), ranks=(), only=["compile"])
    assert [check.verdict for check in report.checks] == ["pass", "pass"]


@pytest.fixture
def quick_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes without torch's import in each; one test does without, and starts them as users do."""
    monkeypatch.setattr(sys.modules["rareloss.testing.processes"], "spawn", start_ranks)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_ranks")
def test_gradient_divided_by_ranks_is_found_and_so_is_a_rank_that_dies() -> None:
    report = verify(DividedByRanks(1, queue_size=50), ranks=(1, 2), only=["ranks"])
    assert [check.verdict for check in report.checks] == ["pass", "fail", "fail", "fail", "fail"]
    assert report.checks[1].measured == pytest.approx(0.5)
    assert "0.5 times" in report.checks[1].message
    assert report.checks[4].measured is None
    assert "rank 1: it ended without an answer" in report.checks[4].message


@pytest.mark.slow
@pytest.mark.usefixtures("quick_ranks")
def test_rank_that_raises_spoils_no_later_cut() -> None:
    report = verify(RefusingNoRows(), ranks=(2, 3), rows=32, only=["ranks"])
    raised = {check.variant: check.message for check in report.checks if check.measured is None}
    assert set(raised) == {"2 ranks, an empty rank", "3 ranks, an empty rank"}, str(report)
    assert all("ValueError: no rows" in message for message in raised.values())


@pytest.mark.slow
def test_own_loss_passes_with_a_model_over_ranks_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))
    before = copy.deepcopy(model.state_dict())
    batch = (torch.randn(64, 4), (torch.arange(64) % 5 == 0).long())
    report = verify(SmoothAPLoss(1), model, batch, ranks=[2], only=["accuracy", "ranks", "chunks"])
    assert report.passed, str(report)
    assert len(report.checks) == 7
    assert all(check.measured is not None for check in report.checks)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_loss_that_was_given_is_left_alone() -> None:
    loss = SmoothAPLoss(1, queue_size=20)
    loss(torch.randn(30), torch.arange(30) % 3 == 0)
    before = copy.deepcopy(loss.state_dict())
    state = torch.get_rng_state()
    assert verify(loss, ranks=(), only=["resume", "queue gradient scale"]).passed
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_same_seed_gives_the_same_report_and_another_one_another() -> None:
    def report(seed: int) -> str:
        return verify(CoarseInFloat32, ranks=(), only=["accuracy", "resume"], seed=seed).to_json()

    assert report(1) == report(1)
    assert report(1) != report(2)


def test_losses_that_are_called_otherwise_take_a_function_that_calls_them() -> None:
    class Remembering(nn.Module):
        """Keeps a number for each row, as the losses of LibAUC do, and saves none."""

        def __init__(self) -> None:
            super().__init__()
            self.seen = torch.zeros(256)

        def forward(self, probability: Tensor, targets: Tensor, places: Tensor) -> Tensor:
            self.seen[places] = 0.5 * self.seen[places] + 0.5 * probability.detach().float().flatten()
            return (self.seen[places] * F.binary_cross_entropy(probability, targets[:, None], reduction="none")).mean()

    with pytest.raises(ValueError, match="say by call how it is called"):
        verify(Remembering(), ranks=())
    report = verify(
        Remembering(),
        call=lambda loss, logits, targets, rows: loss(torch.sigmoid(logits), targets.to(logits.dtype), rows),
        ranks=(),
        only=["accuracy", "resume", "row order", "queue gradient scale"],
    )
    assert failed(report) == {"resume"}, str(report)


def test_checks_are_shown_with_reasons_and_written_as_json() -> None:
    report = verify(KeepingNaN, ranks=(), only=["ranks", "NaN poisoning", "padding"])
    shown = str(report)
    for expected in (
        "KeepingNaN()",
        "NaN poisoning failed. One overflow",
        "has no ignore_index",
        "2 of 2 checks failed",
    ):
        assert expected in shown
    content = json.loads(report.to_json())
    assert not content["passed"]
    assert content["settings"]["rows"] == 256
    verdicts = {check["variant"]: check["verdict"] for check in content["checks"]}
    assert verdicts["gloo processes"] == "skipped"
    assert verdicts["rows of ignore_index"] == "not applicable"
    assert verdicts["clean batches after a NaN logit"] == "fail"


def test_numbers_that_are_not_finite_are_valid_json() -> None:
    class Infinite(Logistic):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            return super().forward(logits, targets) / (logits.dtype == torch.float64)

    content = json.loads(verify(Infinite(), ranks=(), only=["accuracy"]).to_json())
    assert content["checks"][0]["measured"] == "inf"


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"loss": 3}, TypeError, "an nn.Module or a function that makes one, got int"),
        ({"loss": SmoothAPLoss}, TypeError, "num_classes"),
        ({"loss": lambda: 3}, TypeError, "must make an nn.Module, got int"),
        ({"model": lambda x: x}, TypeError, "wrap a function in a module"),
        ({"model": nn.Linear(3, 1)}, ValueError, "give batch=(inputs, targets)"),
        ({"batch": torch.zeros(20)}, TypeError, "pair of tensors"),
        ({"batch": (torch.zeros(20), torch.zeros(19))}, ValueError, "(20,) and (19,)"),
        ({"batch": (torch.zeros(5), torch.zeros(5))}, ValueError, "at least 16 rows"),
        ({"batch": (torch.zeros(20).long(), torch.zeros(20))}, ValueError, "logits must be floats"),
        ({"batch": (torch.zeros(20, 2), torch.zeros(20))}, ValueError, "cannot be called on the batch"),
        ({"only": ["magic"]}, ValueError, "only must be one of 'accuracy'"),
        ({"rows": 3}, ValueError, "rows must be at least 16"),
        ({"ranks": [0]}, ValueError, "ranks must be at least 1"),
        ({"call": lambda *_: 1, "ranks": [2], "only": ["ranks"]}, ValueError, "must give a tensor, got int"),
        ({"call": lambda loss, z, y, _: loss(z, y), "ranks": [2]}, TypeError, "the call, but it cannot be pickled"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        verify(**({"loss": SmoothAPLoss(1), "ranks": ()} | arguments))


# ---------------------------------------------------------------------------------------------------- the command

MODULE = """
from torch import nn
from rareloss import SmoothAPLoss

class Model(nn.Linear):
    def __init__(self):
        super().__init__(3, 1)

def make():
    return SmoothAPLoss(1, queue_size=40)

ready = SmoothAPLoss(1)

def call(loss, logits, targets, rows):
    return loss(-logits, targets)
"""


def run(*arguments: object) -> Any:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from rareloss.cli import app

    return CliRunner().invoke(app, ["verify", *(str(argument) for argument in arguments)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_losses.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_losses", None)


def test_command_that_passes_ends_with_0_and_writes_the_report(folder: Path) -> None:
    options = ["--arguments", '{"num_classes": 1, "queue_size": 30}', "--only", "resume,queue gradient scale"]
    result = run("rareloss:SmoothAPLoss", *options, "--ranks", "none", "--out", "report.json")
    assert result.exit_code == 0, result.output
    assert "4 checks passed" in result.stdout
    content = json.loads((folder / "report.json").read_text("utf-8"))
    assert content["passed"]
    assert content["settings"]["ranks"] == []


def test_command_that_finds_a_failure_ends_with_1_and_says_what_it_means(folder: Path) -> None:
    result = run("torch.nn:CrossEntropyLoss", "--only", "padding", "--out", "report.json")
    assert result.exit_code == 1, result.output
    assert "padding failed. Rows that should not count" in result.stdout
    assert not json.loads((folder / "report.json").read_text("utf-8"))["passed"]


@pytest.mark.parametrize("suffix", [".pt", ".npz", " pair.pt"])
def test_command_takes_a_model_a_batch_and_a_function_that_calls(folder: Path, suffix: str) -> None:
    inputs, targets = torch.randn(40, 3), (torch.arange(40) % 4 == 0).long()
    path = folder / f"batch{suffix}"
    if suffix == ".npz":
        np.savez(path, X=inputs.numpy(), y=targets.numpy())
    else:
        torch.save({"inputs": inputs, "targets": targets} if suffix == ".pt" else (inputs, targets), path)
    result = run("my_losses:make", "--model", "my_losses:Model", "--batch", path, "--only", "chunks")
    assert result.exit_code == 0, result.output
    result = run("my_losses:ready", "--call", "my_losses:call", "--only", "accuracy", "--ranks", "none", "--rows", "64")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["SmoothAPLoss"], "write module:name"),
        (["rareloss:NoLoss"], "cannot be imported"),
        (["nowhere:Loss"], "cannot be imported"),
        (["my_losses:make", "--arguments", "{"], "arguments must be JSON"),
        (["my_losses:make", "--arguments", "[1]"], "arguments must be a JSON object"),
        (["my_losses:make", "--arguments", '{"classes": 1}'], "classes"),
        (["my_losses:ready", "--arguments", '{"num_classes": 1}'], "takes no arguments"),
        (["my_losses:make", "--ranks", "two"], "whole numbers"),
        (["my_losses:make", "--batch", "none.pt"], "there is no file"),
        (["my_losses:make", "--batch", "my_losses.py"], "cannot be read as a batch"),
        (["my_losses:make", "--batch", "other.pt"], "name the two inputs and targets"),
        (["my_losses:make", "--model", "my_losses:Model"], "a model needs a batch"),
        (["my_losses:make", "--only", "magic"], "only must be one of"),
        (["my_losses:make", "--out", "nowhere/out.json"], "there is no folder"),
        (["my_losses:make", "--device", "magic"], "device"),
    ],
)
def test_command_refuses_bad_input_in_a_sentence(folder: Path, arguments: list[str], said: str) -> None:
    torch.save({"a": torch.zeros(3)}, folder / "other.pt")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
