"""The application: its errors and exit codes, and what every command needs of it."""

import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

import rareloss

__all__ = ["FAILED", "INTERRUPTED", "REFUSED", "Say", "app", "echo", "main", "needing", "refusing", "visible"]

FAILED = 1
REFUSED = 2
INTERRUPTED = 130  # what shells give for Ctrl-C: 128 and the signal's number

BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

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


def visible(text: str) -> str:
    r"""Write what would steer a terminal, or turn the direction of reading, as an escape.

    Example:
        >>> visible("no\x1b[31m")
        'no\\x1b[31m'
    """
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter in BIDIRECTIONAL or (letter not in "\n\t" and unicodedata.category(letter) == "Cc")
        else letter
        for letter in text
    )


def echo(text: str, *, err: bool = False) -> None:
    """Print a sentence, which may hold a user's labels and names."""
    typer.echo(visible(text), err=err)


class Say(Console):
    """A console that prints texts as :func:`visible` writes them."""

    def __init__(self) -> None:
        super().__init__(soft_wrap=True, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, as rich does."""
        super().print(*(visible(each) if isinstance(each, str) else each for each in objects), **options)


@contextmanager
def refusing() -> Iterator[None]:
    """Say what is wrong with what was given in one sentence, and end with the exit code for it."""
    try:
        yield
    except (TypeError, ValueError, OSError) as error:
        echo(f"rareloss: {' '.join(str(error).split())}", err=True)
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
        echo(told, err=True)
        raise typer.Exit(REFUSED) from None


def _without_noise(raised: threading.ExceptHookArgs) -> None:
    # Ctrl-C ends joblib's processes under the thread that minds them, whose surprise is no news to a user.
    if raised.thread is None or raised.thread.name != "ExecutorManagerThread":
        threading.__excepthook__(raised)


def main() -> None:
    """Run the command ``rareloss``."""
    threading.excepthook = _without_noise
    app()
