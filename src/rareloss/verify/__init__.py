"""Try on any loss, of this library or another, what its users rely on: the same gradient however the work is cut."""

from rareloss.verify.certificate import Certificate, Finding
from rareloss.verify.verification import verify

__all__ = ["Certificate", "Finding", "verify"]
