"""The options that say how a table is read: written once, the same for every command that reads one."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

__all__ = ["NoHeader", "reads_table", "split_names"]

Target = Annotated[str | None, typer.Option(help="Column to predict.")]
Positive = Annotated[str | None, typer.Option(help="Value of the target that is the positive class.")]
Group = Annotated[str | None, typer.Option(help="Column whose equal values stay in one fold; 'none': rows.")]
Time = Annotated[str | None, typer.Option(help="Column to split by: train, then validation, then test.")]
Without = Annotated[list[str] | None, typer.Option(help="Column to leave out; repeat it, or join names by commas.")]
Weight = Annotated[str | None, typer.Option(help="Column of weights, such as 100 where one row of 100 was kept.")]
Category = Annotated[
    list[str] | None, typer.Option(help="Column of whole numbers that are names; repeat it, or join names by commas.")
]
Missing = Annotated[list[str] | None, typer.Option(help="A further value that means missing, such as ? or -999.")]
NoHeader = Annotated[bool, typer.Option("--no-header", help="The first row of a csv holds data; columns are x0, x1.")]

_TABLE: dict[str, tuple[Any, Any]] = {
    "target": (Target, None),
    "positive": (Positive, None),
    "group": (Group, None),
    "time": (Time, None),
    "without": (Without, None),
    "weight": (Weight, None),
    "category": (Category, None),
    "missing": (Missing, None),
    "no_header": (NoHeader, False),
}


def reads_table(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a table; it gets them as ``table``, the fields of a ``TableSpec`` as keywords."""
    own = [each for each in inspect.signature(command).parameters.values() if each.name != "table"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _TABLE.items()
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        table = {name: given.pop(name) for name in _TABLE}
        table["header"] = not table.pop("no_header")
        lists = {name: tuple(table[name] or ()) for name in ("without", "category", "missing")}
        command(**given, table={**table, **lists})

    first = next((place for place, each in enumerate(own) if each.name == "objective"), len(own))
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    made = inspect.Signature([*keywords[:first], *options, *keywords[first:]])
    run.__signature__ = made  # type: ignore[attr-defined]
    run.__annotations__ = {name: each.annotation for name, each in made.parameters.items()}
    return run


def split_names(texts: list[str] | None) -> list[str]:
    """Split names by commas."""
    return [name.strip() for text in texts or () for name in text.split(",") if name.strip()]
