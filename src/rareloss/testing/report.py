"""Report: the outcome of every check of a loss, as a table and as JSON."""

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["HEADINGS", "Check", "Report", "Verdict"]

Verdict = Literal["pass", "fail", "not applicable", "skipped"]

HEADINGS = ("check", "variant", "measured", "tolerance", "verdict")


@dataclass(frozen=True)
class Check:
    """The outcome of one variant of a check.

    Args:
        name: of the check.
        variant: of the check.
        verdict: ``"pass"``, ``"fail"``, ``"not applicable"`` or ``"skipped"``.
        measured: the error, or the number counted; None where there is none.
        tolerance: the most that passes; None where there is none.
        message: what went wrong, why it did not run, or a remark.
        meaning: what a failure means for training.
    """

    name: str
    variant: str
    verdict: Verdict
    measured: float | None = None
    tolerance: float | None = None
    message: str = ""
    meaning: str = ""

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return the row of a table with the columns ``HEADINGS``."""
        numbers = ("" if number is None else f"{number:.2g}" for number in (self.measured, self.tolerance))
        return (self.name, self.variant, *numbers, self.verdict)  # type: ignore[return-value]


@dataclass(frozen=True)
class Report:
    """All checks of one loss.

    Args:
        loss: its ``repr``.
        settings: seed, rows, device, ranks, versions.
        checks: in the order in which they ran.
    """

    loss: str
    settings: Mapping[str, Any]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict == "fail")

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        ran = sum(check.verdict in ("pass", "fail") for check in self.checks)
        failed = len(self.failures)
        outcome = f"{failed} of {ran} checks failed" if failed else f"{ran} checks passed"
        return f"{outcome}, {len(self.checks) - ran} did not apply or were skipped."

    def to_json(self) -> str:
        """Return everything as JSON; a number that is not finite is written as a string."""
        content = {
            "loss": self.loss,
            "passed": self.passed,
            "verdict": self.verdict,
            "settings": dict(self.settings),
            "checks": [{key: _jsonable(value) for key, value in asdict(check).items()} for check in self.checks],
        }
        return json.dumps(content, indent=2, allow_nan=False)

    def remarks(self) -> list[str]:
        """Return the messages: of each check that failed, how and what it means; then why others did not run."""
        remarks = []
        for name, failures in _grouped(self.failures, lambda check: check.name).items():
            messages = _grouped(failures, lambda check: check.message)
            how = [f"{'; '.join(check.variant for check in alike)}: {text}" for text, alike in messages.items()]
            remarks.append(" ".join([f"{name} failed. {failures[0].meaning}", *how]))
        left = [check for check in self.checks if check.verdict in ("skipped", "not applicable")]
        for text, alike in _grouped(left, lambda check: check.message).items():
            remarks.append(f"{'; '.join(f'{check.name} ({check.variant})' for check in alike)}: {text}")
        return remarks

    def __str__(self) -> str:
        rows = [HEADINGS, *(check.cells() for check in self.checks)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        remarks = [textwrap.fill(remark, 110, initial_indent="- ", subsequent_indent="  ") for remark in self.remarks()]
        return "\n".join([self.loss, "", *lines, "", *remarks, self.verdict])


def _grouped(checks: Iterable[Check], key: Callable[[Check], str]) -> dict[str, list[Check]]:
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(key(check), []).append(check)
    return groups


def _jsonable(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
