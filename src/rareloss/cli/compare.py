"""``rareloss compare``: train the same models by every method, and say which is worth it."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rareloss.cli.app import INTERRUPTED, REFUSED, Say, app, echo, needing
from rareloss.cli.options import reads_table, split_names


@app.command()
@reads_table
def compare(
    *,
    table: dict[str, Any],
    data: Annotated[
        str, typer.Argument(help="A csv, parquet or npz file (X, y); or built-in: flights, digits.", show_default=True)
    ] = "flights",
    objective: Annotated[
        str, typer.Option(help="What models are judged by, such as ap, recall@top=200/40000 or recall@precision=50%.")
    ] = "ap",
    seeds: Annotated[int, typer.Option(min=1, help="How many splits; an interval needs 2, a narrow one more.")] = 3,
    trials: Annotated[int, typer.Option(min=1, help="Draws of hyper-parameters for tuned cross-entropy.")] = 8,
    models: Annotated[
        list[str],
        typer.Option(help="Models: linear, additive, mlp, or module:function of your own; by commas or repeated."),
    ] = ["linear", "additive", "mlp"],  # noqa: B006
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Methods, by commas or repeated; all that fit by default. Baselines always run."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.html and what is finished.")] = Path(
        "rareloss-compare"
    ),
) -> None:
    """Train the same models under cross-entropy and every loss that fits, and say which is worth it."""
    say = Say()
    try:
        _compare(
            say,
            data=data,
            **table,
            objective=objective,
            seeds=seeds,
            trials=trials,
            models=split_names(models),
            methods=split_names(methods) or None,
            workers=workers or os.cpu_count() or 1,
            out=out,
        )
    except KeyboardInterrupt:
        echo("Stopped before anything was finished; run the same command again.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _compare(say: Say, *, out: Path, **options: Any) -> None:
    with needing("study"):
        from rareloss.tabular import DataError, Interrupted
        from rareloss.tabular import compare as compared
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
        echo(f"rareloss: {error}", err=True)
        raise typer.Exit(REFUSED) from None
    except Interrupted as interrupted:
        stopped, comparison = True, interrupted.comparison
    results = comparison.results
    if results["runs"]:
        say.print(comparison.table())
    for failure in results["failed"]:
        where = f"{failure['method']} of {failure['model']}, seed {failure['seed']}"
        echo(f"{where} failed and is left out: {failure['error']}", err=True)
    for warning in sorted({text for run in results["runs"] for text in run["warnings"]}):
        say.print(f"- {warning}", markup=False)
    for model, sentence in comparison.verdicts.items():
        say.print(f"{model}: {sentence}", markup=False)
        if model in comparison.forecasts:
            say.print(f"  {comparison.forecasts[model]}", markup=False)
    say.print(results["overall"], markup=False)
    if not stopped and not comparison.verdicts:
        echo("Nothing could be compared: see what failed above.", err=True)
        raise typer.Exit(1)
    if stopped:
        left = len(results["unfinished"])
        echo(f"Stopped with {left} units left; what is finished is kept in {out}: same command, go on.", err=True)
        raise typer.Exit(INTERRUPTED)
    if comparison.suspicion:
        say.print(f"check: {comparison.suspicion}", markup=False)
    if results["deploy"]:
        say.print(f"{results['deploy']['sentence']}.", markup=False)
    say.print(f"Written: {out / 'results.json'} and {out / 'report.html'}", markup=False)
    if results["deploy"]:
        words = ["rareloss", "fit", str(options["data"]), "--from", str(out), "--out", "model"]
        say.print(f"Next: {shlex.join(words)}", markup=False)
