"""From scores to a decision."""

from importlib import import_module
from typing import Any

__all__ = ["report"]


def __getattr__(name: str) -> Any:
    # Looked up late, so that what a part needs is loaded with that part.
    if name != "report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(f"{__name__}.reporting").report
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "rareloss":
            raise
        raise ModuleNotFoundError(
            f'{error.name} is missing, which reports need: pip install "rareloss[report]"', name=error.name
        ) from error
