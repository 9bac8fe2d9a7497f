"""From scores to a decision."""

from rareloss.extras import late

__all__ = ["report"]

__getattr__ = late(__name__, {"report": "rareloss.decisions.reporting.page"}, "reports need", "report")
