"""A table: read from a file or a data frame, typed, cleaned, checked for leakage, split.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

from typing import TYPE_CHECKING

from rareloss.extras import late

if TYPE_CHECKING:
    from rareloss.table.source import DataError, Table, load

__all__ = ["DataError", "Table", "load"]

_HOME = dict.fromkeys(__all__, "rareloss.table.source")

__getattr__ = late(__name__, _HOME, "rareloss.table needs", "study")
