"""``rareloss fit``, ``score`` and ``export``: one model as a folder."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from rareloss.cli.app import FAILED, INTERRUPTED, Say, app, echo, needing, refusing
from rareloss.cli.options import NoHeader, reads_table


@app.command()
@reads_table
def fit(
    *,
    table: dict[str, Any],
    data: Annotated[
        str, typer.Argument(help="A csv, parquet or npz file (X, y); or built-in: flights.", show_default=True)
    ] = "flights",
    out: Annotated[Path, typer.Option(help="Folder to write, which must not exist.")] = Path("rareloss-model"),
    held_out: Annotated[
        Path | None, typer.Option(help="A parquet or csv file for the rows that the model has not seen.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="As in compare; ap by default.")] = None,
    method: Annotated[
        str | None, typer.Option(help="How to train, as compare names it: tuned_ce (the default), smooth_ap_stage.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="linear (the default), additive, mlp, or module:function of your own.")
    ] = None,
    compared: Annotated[
        Path | None, typer.Option("--from", help="Folder of a comparison of these data: train what it found best.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the split and all after it; 0 by default.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Draws of hyper-parameters; 8 by default.")] = None,
) -> None:
    """Train one model and save it as a folder; the same command goes on where one was killed."""
    say = Say()
    with needing("deploy"):
        from rareloss.tabular import fit as fitted
        from rareloss.tabular import metric_names
    try:
        with refusing():
            made = fitted(
                data,
                out=out,
                held_out=held_out,
                **table,
                objective=objective,
                method=method,
                model=model,
                compared=compared,
                seed=seed,
                trials=trials,
                say=lambda sentence: say.print(f"- {sentence}", markup=False),
            )
    except KeyboardInterrupt:
        echo(f"Stopped; trials that were finished are kept beside {out}: same command, go on.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    held = made.card["held_out"]
    chosen = made.card["chosen"]
    how = chosen["model"] if chosen["model"] == chosen["method"] else f"{chosen['model']} by {chosen['method']}"
    say.print(
        f"{how}: on {held['rows']:,} held-out rows {held['alerts']:,} alerts "
        f"({held['alerts'] / held['rows']:.2%}), with {held['caught']:,} of {held['positives']:,} positives",
        markup=False,
    )
    words = metric_names(made.card)
    for name, found in held["metrics"].items():
        if found:
            say.print(f"  {words[name]}: {found['value']:.4f}, {found['low']:.4f} to {found['high']:.4f}", markup=False)
    say.print(f"Written: {out}, described in {out / 'README.md'}", markup=False)
    labelled = ["FILE"] if held_out is None else [str(held_out), "--keep", made.target]
    weight = made.card["settings"]["weight"]
    labelled += [] if held_out is None or weight is None else ["--keep", weight]
    following = ["rareloss", "score", str(out), *labelled, "--out", "scores.parquet"]
    say.print(f"Next: {shlex.join(following)}", markup=False)


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="The folder that fit wrote.", show_default=False)],
    data: Annotated[str, typer.Argument(help="A csv or parquet file of any size.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The parquet or csv file to write.")] = Path("scores.parquet"),
    keep: Annotated[
        list[str] | None, typer.Option(help="Column to copy beside the scores; repeat it, or join names by commas.")
    ] = None,
    reasons: Annotated[
        int, typer.Option(min=0, help="How many features to name by row, of a linear or additive model.")
    ] = 0,
    no_header: NoHeader = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where the rows differ from those of the fit.")
    ] = False,
) -> None:
    """Write score, probability and decision of each row, in the memory of one batch."""
    with needing("deploy"):
        from rareloss.tabular import Model, kept_name, score_file
    with refusing():
        loaded = Model.load(model)
        scored = score_file(loaded, data, out, keep=keep or (), header=not no_header, reasons=reasons)
    share = scored.alerts / max(scored.rows, 1)
    echo(f"{scored.rows:,} rows, {scored.alerts:,} alerts ({share:.3%}). Written: {out}")
    for name, rows in scored.unseen.items():
        echo(f"check {name!r}: {rows:,} rows have a value that the fit did not see; it counts for nothing")
    for remark in scored.remarks:
        echo(f"check: {remark}")
    label = kept_name(loaded.target)
    if label in scored.kept:
        echo("A report is too good if the model was fitted on some of these rows: fit --held-out writes the others.")
        words = ["rareloss", "report", str(out), "--label", label, "--positive", loaded.classes[1]]
        # Of the scores, since two of them may have one probability, which the threshold would not tell apart.
        words += ["--score", "score", "--threshold", repr(loaded.threshold)]
        weight = (loaded.card.get("settings") or {}).get("weight")
        if weight is not None and kept_name(weight) in scored.kept:
            words += ["--weight", kept_name(weight)]
        echo(f"Next: {shlex.join(words)}")
    if strict and scored.remarks:
        raise typer.Exit(FAILED)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="The folder that fit wrote.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The onnx file to write.", show_default=False)],
) -> None:
    """Write a model's network as an ONNX graph: from preprocessed inputs to the raw score."""
    with needing("deploy"):
        from rareloss.tabular import Model, to_onnx
    with refusing():
        to_onnx(Model.load(model), out)
    echo(f"Written: {out}")
