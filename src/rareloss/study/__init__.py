"""Compare losses on a table of data, and report what came out.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rareloss.study.advise import Advice, Finding
    from rareloss.study.comparison import Comparison, Interrupted, compare
    from rareloss.study.data import DataError

__all__ = ["Advice", "Comparison", "DataError", "Finding", "Interrupted", "compare"]

_HOME = dict.fromkeys(("Comparison", "Interrupted", "compare"), "comparison") | {
    "Advice": "advise",
    "DataError": "data",
    "Finding": "advise",
}


def __getattr__(name: str) -> Any:
    # Looked up late, so that what a part needs is loaded with that part.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "rareloss":
            raise
        raise ModuleNotFoundError(
            f'{error.name} is missing, which comparisons need: pip install "rareloss[study]"', name=error.name
        ) from error
