"""Testing: check any loss, of this library or another, for what its users rely on."""

from rareloss.testing.report import Check, Report
from rareloss.testing.verification import verify

__all__ = ["Check", "Report", "verify"]
