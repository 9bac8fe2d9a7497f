"""Run `rareloss verify` on losses of several libraries, and print the page of what it found.

pip install --no-deps imbalanced-losses==0.6.0 libauc==2.0.1 tqdm
python -m benchmarks.verified > docs/verified.md        # a few minutes
python -m benchmarks.verified --only libauc             # losses whose library or name holds the text
"""

import argparse
import importlib
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)
from rareloss.testing import Check, Report, verify

__all__ = ["CASES", "Case", "main", "page"]

QUEUE = 1024


@dataclass(frozen=True)
class Case:
    """A loss of a library, and how it is called.

    Args:
        library: the distribution's name.
        shown: as a user would write it.
        make: makes it.
        call: calls it; None for ``loss(logits, targets)``.
        batch: draws logits and targets; None for what `rareloss verify` draws.
    """

    library: str
    shown: str
    make: Callable[[], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] | None = None
    batch: Callable[[], tuple[Tensor, Tensor]] | None = None


def on_probabilities(loss: nn.Module, logits: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """Call a loss of LibAUC, which takes probabilities, and identifies rows by their index in the training data."""
    value: Tensor = loss(torch.sigmoid(logits), targets, index=rows)
    return value


def labels() -> tuple[Tensor, Tensor]:
    """Draw logits and labels of three classes."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(256, 3, generator=generator) < 0.1).long()
    return torch.randn(256, 3, generator=generator) + targets, targets


def warmup() -> nn.Module:
    """Make a schedule whose phases all lie within the steps of a check."""
    return LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(1, QUEUE), warmup_steps=2, blend_steps=2)


def late(module: str, name: str, *arguments: Any, **named: Any) -> nn.Module:
    """Import a library's loss only when it is made, since the library may not be there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, at import
        loss: nn.Module = getattr(importlib.import_module(module), name)(*arguments, **named)
    return loss


def _imbalanced(shown: str, name: str, *arguments: Any, **named: Any) -> Case:
    return Case("imbalanced-losses", shown, partial(late, "imbalanced_losses", name, *arguments, **named))


def _libauc(shown: str, name: str, **named: Any) -> Case:
    return Case("libauc", shown, partial(late, "libauc.losses", name, **named), on_probabilities)


CASES = (
    Case("rareloss", "SmoothAPLoss(1)", partial(SmoothAPLoss, 1, QUEUE)),
    Case("rareloss", "SmoothAPLoss(3), class indices", partial(SmoothAPLoss, 3, QUEUE)),
    Case("rareloss", "SmoothAPLoss(3), labels", partial(SmoothAPLoss, 3, QUEUE), batch=labels),
    Case("rareloss", "RecallAtQuantileLoss(1, .05)", partial(RecallAtQuantileLoss, 1, 0.05, queue_size=QUEUE)),
    Case(
        "rareloss",
        'RecallAtQuantileLoss(1, .05, "negatives")',
        partial(RecallAtQuantileLoss, 1, 0.05, "negatives", queue_size=QUEUE),
    ),
    Case("rareloss", "PAUCAtBudgetLoss(1, 0, .05)", partial(PAUCAtBudgetLoss, 1, 0.0, 0.05, queue_size=QUEUE)),
    Case("rareloss", "PAUCAtBudgetLoss(3, .05, .5), no queue, labels",
         partial(PAUCAtBudgetLoss, 3, 0.05, 0.5, queue_size=0), batch=labels),
    Case("rareloss", "SigmoidFocalLoss()", SigmoidFocalLoss),
    Case("rareloss", "SoftmaxFocalLoss()", SoftmaxFocalLoss),
    Case("rareloss", "LossWarmupWrapper(BCE, SmoothAPLoss(1))", warmup),
    _imbalanced("SmoothAPLoss(1)", "SmoothAPLoss", 1),
    _imbalanced("SmoothAPLoss(3)", "SmoothAPLoss", 3),
    _imbalanced("RecallAtQuantileLoss(1, .05)", "RecallAtQuantileLoss", 1, quantile=0.05),
    _imbalanced("PAUCAtBudgetLoss(1, beta=.05)", "PAUCAtBudgetLoss", 1, beta=0.05),
    _imbalanced("SigmoidFocalLoss()", "SigmoidFocalLoss"),
    _imbalanced("SoftmaxFocalLoss()", "SoftmaxFocalLoss"),
    _libauc("APLoss(data_len=256)", "APLoss", data_len=256),
    _libauc("pAUCLoss(mode=\"1w\", data_len=256)", "pAUCLoss", mode="1w", data_len=256),
    _libauc("tpAUC_KL_Loss(data_len=256)", "tpAUC_KL_Loss", data_len=256),
    _libauc("AUCMLoss()", "AUCMLoss"),
    Case("torch", "nn.BCEWithLogitsLoss()", nn.BCEWithLogitsLoss),
    Case("torch", "nn.CrossEntropyLoss()", nn.CrossEntropyLoss),
)  # fmt: skip

OF_LIBRARY = {
    "rareloss": "",
    "imbalanced-losses": (
        "Called as they are documented, with the queue that they have by default. Their gather keeps the gradient of "
        "each rank's own rows alone, so that DDP's mean is 1 / ranks of the gradient."
    ),
    "libauc": (
        "Called with `torch.sigmoid(logits)` and the rows' indices, and made by each process after the process group "
        "exists, since they look for it when they are made. Their running averages are tensors, no buffers."
    ),
    "torch": (
        "A mean over ranks of means over rows is that of all rows where ranks have as many rows, and only there: "
        "weight each rank's loss by its rows, as `LossWarmupWrapper` does for these two."
    ),
}


def page(reports: Sequence[tuple[Case, Report]], missing: Sequence[str]) -> Iterator[str]:
    """Write the page line by line."""
    settings = reports[0][1].settings
    found = {case.library: _version(case.library) for case, _ in reports}
    yield "# Verified"
    yield ""
    yield (
        "What [`rareloss verify`](verify.md) finds on the losses of this library and of others. This page is printed "
        "by `python -m benchmarks.verified`; nothing on it is written by hand, but a sentence on how each library was "
        "called."
    )
    yield ""
    yield (
        f"{', '.join(f'{library} {number}' for library, number in found.items())}; Python "
        f"{platform.python_version()}, {settings['device']}, {' and '.join(map(str, settings['ranks']))} ranks, "
        f"batches of {settings['rows']} rows, seed {settings['seed']}."
    )
    for name in missing:
        yield ""
        yield f"{name} is not installed here and is left out."
    yield ""
    yield (
        "A number is the measured error of the variant that is worst by its tolerance, or a count: graph breaks; "
        "values, gradients and numbers in the state that are not finite; rows behind the operating point. *raised* "
        "stands where the loss raised an exception. A dash: it did not apply, the reason is in the report."
    )
    for library in found:
        several = [(case, report) for case, report in reports if case.library == library]
        yield ""
        yield f"## {library}"
        yield ""
        if OF_LIBRARY[library]:
            yield OF_LIBRARY[library]
            yield ""
        yield from _table(several)
        yield ""
        for case, report in several:
            failed = len(report.failures)
            yield f"**`{case.shown}`**: {report.verdict}"
            if failed:
                yield ""
                yield from (f"- {remark}" for remark in report.remarks()[: _failing_checks(report)])
            yield ""


def _failing_checks(report: Report) -> int:
    return len({check.name for check in report.failures})


def _table(several: Sequence[tuple[Case, Report]]) -> Iterator[str]:
    names = list(dict.fromkeys(check.name for check in several[0][1].checks))
    yield f"| check | {' | '.join(f'`{case.shown}`' for case, _ in several)} |"
    yield f"| --- |{' --- |' * len(several)}"
    for name in names:
        cells = [_cell([check for check in report.checks if check.name == name]) for _, report in several]
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(checks: Sequence[Check]) -> str:
    ran = [check for check in checks if check.verdict in ("pass", "fail")]
    if not ran:
        return "–"
    failed = [check for check in ran if check.verdict == "fail"]
    measured = [check for check in failed or ran if check.measured is not None]
    number = "raised"
    if measured:
        worst = max(measured, key=lambda check: (check.measured or 0) / (check.tolerance or 1e-300))
        number = f"{worst.measured:.2g}"
    return f"**fails**, {number}" if failed else number


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "(not installed)"


def _installed(case: Case) -> bool:
    try:
        case.make()
    except ImportError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if one of this library's own losses failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verified", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="losses whose library or name holds TEXT")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    asked = [case for case in CASES if given.only.lower() in f"{case.library} {case.shown}".lower()]
    if not asked:
        print(f"No loss holds {given.only!r}.", file=sys.stderr)
        return 2
    cases = [case for case in asked if _installed(case)]
    missing = dict.fromkeys(case.library for case in asked if case not in cases)
    reports = []
    for case in cases:
        print(f"{case.library}: {case.shown}", file=sys.stderr)
        batch = None if case.batch is None else case.batch()
        reports.append((case, verify(case.make, batch=batch, call=case.call)))
    if reports:
        print(*page(reports, list(missing)), sep="\n")
    return int(any(case.library == "rareloss" and not report.passed for case, report in reports))


if __name__ == "__main__":
    sys.exit(main())
