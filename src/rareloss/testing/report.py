"""What was found: one finding for each thing that was tried, and the report that holds them."""

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Check", "Report", "Verdict"]

Verdict = Literal["pass", "fail", "not applicable", "skipped"]

_HEADINGS = ("promise", "case", "measured", "tolerance", "verdict")


@dataclass(frozen=True)
class Check:
    """One promise in one case.

    Args:
        promise: its name.
        case: what was tried.
        verdict: ``"pass"``, ``"fail"``, ``"not applicable"`` or ``"skipped"``.
        measured: the error, or the number counted; None where there is none.
        tolerance: the most that passes; None where there is none.
        said: why it was not tried, what went wrong, or what else was seen.
        meaning: what a failure means for training.
    """

    promise: str
    case: str
    verdict: Verdict
    measured: float | None = None
    tolerance: float | None = None
    said: str = ""
    meaning: str = ""

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return the finding as a row of a table: promise, case, measured, tolerance, verdict."""
        return (self.promise, self.case, _short(self.measured), _short(self.tolerance), self.verdict)


@dataclass(frozen=True)
class Report:
    """All findings on one loss.

    Args:
        loss: how the loss shows itself.
        settings: what it was tried with: seed, rows, device, ranks, versions.
        findings: in the order in which they were made.
    """

    loss: str
    settings: Mapping[str, Any]
    findings: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The findings that failed."""
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        tried = [finding for finding in self.findings if finding.verdict in ("pass", "fail")]
        left = len(self.findings) - len(tried)
        outcome = (
            f"{len(self.failures)} of {len(tried)} checks failed" if self.failures else f"{len(tried)} checks passed"
        )
        return f"{outcome}, {left} did not apply or were skipped."

    def to_json(self) -> str:
        """Return everything as JSON; a number that is not finite is written as a string."""
        content = {
            "loss": self.loss,
            "passed": self.passed,
            "verdict": self.verdict,
            "settings": dict(self.settings),
            "findings": [
                {name: _jsonable(value) for name, value in asdict(finding).items()} for finding in self.findings
            ],
        }
        return json.dumps(content, indent=2, allow_nan=False)

    def remarks(self) -> list[str]:
        """Return what rows of a table cannot say: of each promise that failed how and what it means, then reasons."""
        remarks = []
        for promise, failures in _grouped(self.failures, lambda finding: finding.promise).items():
            ways = _grouped(failures, lambda finding: finding.said)
            how = [f"{'; '.join(finding.case for finding in alike)}: {said}" for said, alike in ways.items()]
            remarks.append(" ".join([f"{promise} failed. {failures[0].meaning}", *how]))
        left = [finding for finding in self.findings if finding.verdict in ("skipped", "not applicable")]
        for said, alike in _grouped(left, lambda finding: finding.said).items():
            remarks.append(f"{'; '.join(f'{finding.promise} ({finding.case})' for finding in alike)}: {said}")
        return remarks

    def __str__(self) -> str:
        rows = [_HEADINGS, *(finding.cells() for finding in self.findings)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        remarks = [textwrap.fill(remark, 110, initial_indent="- ", subsequent_indent="  ") for remark in self.remarks()]
        return "\n".join([self.loss, "", *lines, "", *remarks, self.verdict])


def _grouped(findings: Iterable[Check], by: Callable[[Check], str]) -> dict[str, list[Check]]:
    groups: dict[str, list[Check]] = {}
    for finding in findings:
        groups.setdefault(by(finding), []).append(finding)
    return groups


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.2g}"


def _jsonable(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
