"""The command line: thin, and every refusal one sentence on standard error with exit code 2."""

import os
import shlex
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import rareloss

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing.name} is missing, which the command needs: pip install "rareloss[study]"') from missing

__all__ = ["app", "main"]

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


@app.command()
def compare(
    data: Annotated[
        str, typer.Argument(help="A csv, parquet or npz file (X, y); or built-in: flights, digits.", show_default=True)
    ] = "flights",
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    positive: Annotated[str | None, typer.Option(help="Value of the target that is the positive class.")] = None,
    group: Annotated[str | None, typer.Option(help="Column whose equal values stay in one fold; 'none': rows.")] = None,
    time: Annotated[str | None, typer.Option(help="Column to split by: train, then validation, then test.")] = None,
    objective: Annotated[
        str, typer.Option(help="ap, recall@top=0.5%, recall@fpr=0.1% or pauc@fpr=0-0.5%: what scorers are judged by.")
    ] = "ap",
    seeds: Annotated[int, typer.Option(min=1, help="How many splits; an interval needs 2, a narrow one more.")] = 3,
    trials: Annotated[int, typer.Option(min=1, help="Draws of hyper-parameters for tuned cross-entropy.")] = 8,
    network: Annotated[
        list[str],
        typer.Option(help="Scorers: linear, additive, mlp, or module:function of your own; by commas or repeated."),
    ] = ["linear", "additive", "mlp"],  # noqa: B006
    arms: Annotated[
        list[str] | None,
        typer.Option(help="Arms, by commas or repeated; all that fit by default. Baselines always run."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.html and what is finished.")] = Path(
        "rareloss-compare"
    ),
) -> None:
    """Train the same scorers under cross-entropy and every loss that fits, and say which is worth it."""
    say = Console(soft_wrap=True, highlight=False)
    try:
        _compare(
            say,
            data=data,
            target=target,
            positive=positive,
            group=group,
            time=time,
            objective=objective,
            seeds=seeds,
            trials=trials,
            network=_names(network),
            arms=_names(arms) if arms else None,
            workers=workers or os.cpu_count() or 1,
            out=out,
        )
    except KeyboardInterrupt:
        typer.echo("Stopped before anything was finished; run the same command again.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _compare(say: Console, *, out: Path, **options: Any) -> None:
    try:
        from rareloss.study import DataError, Interrupted
        from rareloss.study import compare as compared
    except ModuleNotFoundError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(REFUSED) from None
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    stopped = False
    try:
        comparison = compared(
            **options,
            out=out,
            progress=say.is_terminal,
            say=lambda sentence: say.print(f"- {sentence}", markup=False),
            command=command,
        )
    except DataError as error:
        typer.echo(f"rareloss: {error}", err=True)
        raise typer.Exit(REFUSED) from None
    except Interrupted as interrupted:
        stopped, comparison = True, interrupted.comparison
    results = comparison.results
    if results["runs"]:
        say.print(comparison.table())
    for failure in results["failed"]:
        where = f"{failure['arm']} of {failure['scorer']}, seed {failure['seed']}"
        typer.echo(f"{where} failed and is left out: {failure['error']}", err=True)
    for warning in sorted({text for run in results["runs"] for text in run["warnings"]}):
        say.print(f"- {warning}", markup=False)
    for scorer, sentence in comparison.verdicts.items():
        say.print(f"{scorer}: {sentence}", markup=False)
    say.print(results["overall"], markup=False)
    if not stopped and not comparison.verdicts:
        typer.echo("Nothing could be compared: see what failed above.", err=True)
        raise typer.Exit(1)
    if stopped:
        left = len(results["unfinished"])
        typer.echo(f"Stopped with {left} units left; what is finished is kept in {out}: same command, go on.", err=True)
        raise typer.Exit(INTERRUPTED)
    say.print(f"Written: {out / 'results.json'} and {out / 'report.html'}", markup=False)


def _names(texts: list[str]) -> list[str]:
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def _without_noise(raised: threading.ExceptHookArgs) -> None:
    # Ctrl-C ends joblib's processes under the thread that minds them, whose surprise is no news to a user.
    if raised.thread is None or raised.thread.name != "ExecutorManagerThread":
        threading.__excepthook__(raised)


def main() -> None:
    """Run the command ``rareloss``."""
    threading.excepthook = _without_noise
    app()
