"""From scores to a decision."""

from rareloss.extras import late

__all__ = ["report"]

__getattr__ = late(__name__, {"report": "rareloss.decide.reporting"}, "reports need", "report")
