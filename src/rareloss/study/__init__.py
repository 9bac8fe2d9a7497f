"""Compare losses on a table of data, and report what came out.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

from typing import TYPE_CHECKING

from rareloss.extras import late

if TYPE_CHECKING:
    from rareloss.study.advise import Advice, Finding
    from rareloss.study.comparison import Comparison, Interrupted, compare
    from rareloss.study.data import DataError

__all__ = ["Advice", "Comparison", "DataError", "Finding", "Interrupted", "compare"]

_HOME = {
    "Advice": "rareloss.study.advise",
    "Comparison": "rareloss.study.comparison",
    "DataError": "rareloss.study.data",
    "Finding": "rareloss.study.advise",
    "Interrupted": "rareloss.study.comparison",
    "compare": "rareloss.study.comparison",
}

__getattr__ = late(__name__, _HOME, "comparisons need", "study")
