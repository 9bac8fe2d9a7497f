"""What needs an extra is imported when it is first asked for; a missing package is named with its extra."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["late"]


def late(package: str, homes: Mapping[str, str], needed_by: str, extra: str) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package whose names are looked up late.

    Args:
        package: its ``__name__``.
        homes: the module that has each name.
        needed_by: who needs the extra, with its verb; ``{name}`` stands for the name that was asked for.
        extra: what to install.

    Returns:
        a function that raises AttributeError for any other name, and ModuleNotFoundError for a missing package.
    """

    def look_up(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == "rareloss":
                raise
            raise ModuleNotFoundError(
                f'{error.name} is missing, which {needed_by.format(name=name)}: pip install "rareloss[{extra}]"',
                name=error.name,
            ) from error

    return look_up
