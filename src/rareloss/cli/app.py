"""The application: its errors and exit codes, and what every command needs of it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

import rareloss

__all__ = ["FAILED", "INTERRUPTED", "REFUSED", "app", "main", "needing", "refusing"]

FAILED = 1
REFUSED = 2
INTERRUPTED = 130  # what shells give for Ctrl-C: 128 and the signal's number

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"rareloss {rareloss.__version__}")
        raise typer.Exit


@app.callback()
def _rareloss(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Losses that optimise the ranking of a rare class."""


@contextmanager
def refusing() -> Iterator[None]:
    """Say what is wrong with what was given in one sentence, and end with the exit code for it."""
    try:
        yield
    except (TypeError, ValueError, OSError) as error:
        typer.echo(f"rareloss: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(REFUSED) from None


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Name the extra where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        told = (
            str(error) if "pip install" in str(error) else f'{error.name} is missing: pip install "rareloss[{extra}]"'
        )
        typer.echo(told, err=True)
        raise typer.Exit(REFUSED) from None


def _without_noise(raised: threading.ExceptHookArgs) -> None:
    # Ctrl-C ends joblib's processes under the thread that minds them, whose surprise is no news to a user.
    if raised.thread is None or raised.thread.name != "ExecutorManagerThread":
        threading.__excepthook__(raised)


def main() -> None:
    """Run the command ``rareloss``."""
    threading.excepthook = _without_noise
    app()
