"""A table: read from a file or a data frame, typed, cleaned, checked for leakage, split.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

from typing import TYPE_CHECKING

from rareloss.extras import late

if TYPE_CHECKING:
    from rareloss.table.files import refuse_overwriting, whole_file, writable
    from rareloss.table.folds import Fold, split, windows
    from rareloss.table.missing import MISSING, NOT_A_NUMBER
    from rareloss.table.numbers import as_numbers, trimmed, without_marks
    from rareloss.table.schema import Column, Schema
    from rareloss.table.source import Data, Source, decimal_marks, open_source, plain
    from rareloss.table.spec import TableOptions, TableSpec
    from rareloss.table.table import Table, as_found, is_date, load, source_of
    from rareloss.table.words import DataError, columns_named, counted, listed, nearest

_HOME = {
    "MISSING": "missing",
    "NOT_A_NUMBER": "missing",
    "Column": "schema",
    "Data": "source",
    "DataError": "words",
    "Fold": "folds",
    "Schema": "schema",
    "Source": "source",
    "Table": "table",
    "TableOptions": "spec",
    "TableSpec": "spec",
    "as_found": "table",
    "as_numbers": "numbers",
    "columns_named": "words",
    "counted": "words",
    "decimal_marks": "source",
    "is_date": "table",
    "listed": "words",
    "load": "table",
    "nearest": "words",
    "open_source": "source",
    "plain": "source",
    "refuse_overwriting": "files",
    "source_of": "table",
    "split": "folds",
    "trimmed": "numbers",
    "whole_file": "files",
    "windows": "folds",
    "without_marks": "numbers",
    "writable": "files",
}
__all__ = [
    "MISSING",
    "NOT_A_NUMBER",
    "Column",
    "Data",
    "DataError",
    "Fold",
    "Schema",
    "Source",
    "Table",
    "TableOptions",
    "TableSpec",
    "as_found",
    "as_numbers",
    "columns_named",
    "counted",
    "decimal_marks",
    "is_date",
    "listed",
    "load",
    "nearest",
    "open_source",
    "plain",
    "refuse_overwriting",
    "source_of",
    "split",
    "trimmed",
    "whole_file",
    "windows",
    "without_marks",
    "writable",
]

if not TYPE_CHECKING:  # which would take any name for one that is there
    __getattr__ = late(
        __name__, {name: f"rareloss.table.{home}" for name, home in _HOME.items()}, "rareloss.table needs", "study"
    )
