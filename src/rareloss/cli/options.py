"""The options that say how a table is read: the same for every command that reads one."""

from typing import Annotated

import typer

__all__ = ["Group", "Positive", "Target", "Time", "Without", "split_names"]

Target = Annotated[str | None, typer.Option(help="Column to predict.")]
Positive = Annotated[str | None, typer.Option(help="Value of the target that is the positive class.")]
Group = Annotated[str | None, typer.Option(help="Column whose equal values stay in one fold; 'none': rows.")]
Time = Annotated[str | None, typer.Option(help="Column to split by: train, then validation, then test.")]
Without = Annotated[list[str] | None, typer.Option(help="Column to leave out; repeat it, or join names by commas.")]


def split_names(texts: list[str] | None) -> list[str]:
    return [name.strip() for text in texts or () for name in text.split(",") if name.strip()]
