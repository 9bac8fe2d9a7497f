"""``rareloss report`` and ``check``: what alerts catch, and whether they are still what they were."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rareloss.cli.app import FAILED, app, echo, needing, refusing
from rareloss.cli.options import NoHeader


@app.command()
def report(
    scores: Annotated[Path, typer.Argument(help="A csv or parquet file of scores, of any size.")],
    label: Annotated[str, typer.Option(help="Column of labels.")],
    score: Annotated[str, typer.Option(help="Column of scores; higher is more positive.")],
    group: Annotated[str | None, typer.Option(help="Column of groups, for the recall of each.")] = None,
    weight: Annotated[str | None, typer.Option(help="Column of weights.")] = None,
    positive: Annotated[str | None, typer.Option(help="Label that is positive, where they are not 0 and 1.")] = None,
    objective: Annotated[str, typer.Option(help="Operating point where the page opens.")] = "ap",
    threshold: Annotated[
        float | None, typer.Option(help="Score where it opens instead, such as that of a model in use.")
    ] = None,
    fn_cost: Annotated[float | None, typer.Option(help="Cost of a missed positive.")] = None,
    fp_cost: Annotated[float | None, typer.Option(help="Cost of a false alarm.")] = None,
    probability: Annotated[
        str | None, typer.Option(help="What the score is, for calibration: probability or logit.")
    ] = None,
    no_header: NoHeader = False,
    drop_missing_scores: Annotated[bool, typer.Option(help="Leave out rows without a score, and count them.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("rareloss-report"),
) -> None:
    """Show what any model's alerts catch, miss and cost, on a page where the threshold is dragged."""
    with needing("report"):
        from rareloss.decisions import report as reported
    with refusing():
        made = reported(
            scores,
            out,
            label=label,
            score=score,
            group=group,
            weight=weight,
            positive=positive,
            objective=objective,
            threshold=threshold,
            fn_cost=fn_cost,
            fp_cost=fp_cost,
            probability=probability,
            header=not no_header,
            drop_missing_scores=drop_missing_scores,
        )
    for what, number in made["left_out"].items():
        if number:
            echo(f"- {number:,} rows left out: {what.replace('_', ' ')}{'' if what == 'weight_0' else ' missing'}")
    curve, start = made["curve"], made["start"]
    echo(
        f"{curve['alerts'][start]:,.10g} alerts (score above {curve['threshold'][start]:.6g}) catch "
        f"{curve['tp'][start]:,.10g} of {made['positives']:,.10g}: {made['start_is']}."
    )
    echo(f"Written: {out / 'report.html'} and {out / 'report.json'}")


@app.command()
def check(
    before: Annotated[
        Path, typer.Argument(help="The folder of a model, or a file of the scores that the threshold was cut on.")
    ],
    after: Annotated[Path, typer.Argument(help="A file of new scores.")],
    threshold: Annotated[
        float | None, typer.Option(help="Rows above it are alerts; that of the model, where it is one.")
    ] = None,
    score: Annotated[str, typer.Option(help="Column of the scores.")] = "score",
    no_header: NoHeader = False,
) -> None:
    """Compare new scores with those that a threshold was cut on. Exit code 1: the alerts are not what they were."""
    from rareloss.decisions import check_drift

    with refusing():
        if before.is_dir():
            old, own = _scores_of_fit(before)
            threshold = own if threshold is None else threshold
        else:
            old = _read_scores(before, score, not no_header)
        if threshold is None:
            raise ValueError("--threshold is missing: rows above it are alerts; only the folder of a model has its own")
        drift = check_drift(old, _read_scores(after, score, not no_header), threshold)
    echo(f"{drift.sentence}.")
    echo(f"Alerts: {drift.got}, expected {drift.expected:.4g}, p = {drift.p_value:.3g}.")
    echo(f"Scores: Kolmogorov-Smirnov {drift.distance:.3g}, p = {drift.distance_p_value:.3g}.")
    if drift.drifted:
        raise typer.Exit(FAILED)


def _scores_of_fit(folder: Path) -> tuple[Any, float]:
    with needing("deploy"):
        from rareloss.tabular import Model
    model = Model.load(folder)
    return model.profile.scores, model.threshold


def _read_scores(path: Path, column: str, header: bool) -> Any:
    from rareloss.table import as_numbers, decimal_marks, open_source, plain

    source = open_source(path, header=header)
    if column not in source.names:
        raise ValueError(f"{path} has no column {column!r}; it has {', '.join(source.names)}")
    table = plain(source.table([column]))
    own, usual = decimal_marks(table)
    numbers = as_numbers(table.column(0), f"{column!r} of {path}", own.get(column, usual))
    return numbers.to_numpy(zero_copy_only=False)
