"""Try on any loss, of this library or another, what its users rely on: the same gradient however the work is cut."""

from rareloss.testing.report import Check, Report
from rareloss.testing.verification import verify

__all__ = ["Check", "Report", "verify"]
