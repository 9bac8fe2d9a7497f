"""A table: read from a file or a data frame, typed, cleaned, checked for leakage, split.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

from typing import TYPE_CHECKING

from rareloss.extras import late

if TYPE_CHECKING:
    from rareloss.table.files import refuse_overwriting, whole_file, writable
    from rareloss.table.folds import Fold, split
    from rareloss.table.missing import MISSING, NOT_A_NUMBER
    from rareloss.table.source import (
        TEXT_AS_IT_IS,
        Column,
        DataError,
        Table,
        columns_named,
        is_date,
        load,
        read_column,
        separator,
        source_frame,
        source_text,
        text_for_objects,
    )

__all__ = [
    "MISSING",
    "NOT_A_NUMBER",
    "TEXT_AS_IT_IS",
    "Column",
    "DataError",
    "Fold",
    "Table",
    "columns_named",
    "is_date",
    "load",
    "read_column",
    "refuse_overwriting",
    "separator",
    "source_frame",
    "source_text",
    "split",
    "text_for_objects",
    "whole_file",
    "writable",
]

_HOME = {
    "NOT_A_NUMBER": "rareloss.table.missing",
    "TEXT_AS_IT_IS": "rareloss.table.source",
    "MISSING": "rareloss.table.missing",
    "Column": "rareloss.table.source",
    "DataError": "rareloss.table.source",
    "Fold": "rareloss.table.folds",
    "Table": "rareloss.table.source",
    "columns_named": "rareloss.table.source",
    "is_date": "rareloss.table.source",
    "load": "rareloss.table.source",
    "read_column": "rareloss.table.source",
    "refuse_overwriting": "rareloss.table.files",
    "separator": "rareloss.table.source",
    "source_frame": "rareloss.table.source",
    "source_text": "rareloss.table.source",
    "split": "rareloss.table.folds",
    "text_for_objects": "rareloss.table.source",
    "whole_file": "rareloss.table.files",
    "writable": "rareloss.table.files",
}

if not TYPE_CHECKING:  # which would take any name for one that is there
    __getattr__ = late(__name__, _HOME, "rareloss.table needs", "study")
