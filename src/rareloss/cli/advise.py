"""``rareloss advise``: what an operating point needs and what the data can show, before any training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rareloss.cli.app import Say, app, refusing
from rareloss.cli.options import reads_table


@app.command()
@reads_table
def advise(
    *,
    table: dict[str, Any],
    data: Annotated[str | None, typer.Argument(help="A csv, parquet or npz file, flights or digits.")] = None,
    objective: Annotated[str, typer.Option(help="The operating point, as in compare.")] = "ap",
    rows: Annotated[float | None, typer.Option(help="Without data: how many rows, such as 1e6.")] = None,
    rate: Annotated[str | None, typer.Option(help="Without data: share of positives, such as 0.1%.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a training step.")] = 1024,
    per_period: Annotated[float | None, typer.Option(help="Rows that come in a day, or any period.")] = None,
    plausible: Annotated[float, typer.Option(help="Value at which the interval is stated.")] = 0.5,
    width: Annotated[float, typer.Option(help="Width of the 95 % interval that is wanted.")] = 0.1,
    out: Annotated[Path | None, typer.Option(help="Where to write the findings as JSON.")] = None,
) -> None:
    """Say what an operating point needs and what these data can show of it, before any training."""
    say = Say()
    with refusing():
        if out is not None and not out.parent.is_dir():
            raise ValueError(f"there is no folder {out.parent} to write {out.name} into")
        try:
            from rareloss.table import refuse_overwriting
            from rareloss.tabular import advise as advised
        except ModuleNotFoundError as error:
            raise ValueError(f'{error.name} is missing: pip install "rareloss[study]"') from error
        if out is not None:
            refuse_overwriting(out, data)
        with say.status("reading") as status:
            advice = advised(
                data,
                **table,
                objective=objective,
                rows=rows,
                rate=None if rate is None else _rate(rate),
                batch=batch,
                per_period=per_period,
                plausible=plausible,
                width=width,
                say=status.update,
            )
        if out is not None:
            out.write_text(advice.to_json() + "\n", encoding="utf-8")
    title = f"{advice.objective}: {advice.rows:,} rows, {advice.positives:,} positives"
    say.print(title, markup=False, style="bold")
    answered = ("leaks", "interval", "ranking_loss", "codes")
    say.print(advice.answer, markup=False)
    for finding in advice.findings:
        if finding.name == "data":
            say.print("What was read:", markup=False)
        if finding.name not in answered:
            for sentence in finding.value if finding.name == "data" else [finding.sentence]:
                say.print(f"- {sentence}", markup=False)
    say.print(f"Next: {advice.command}", markup=False)


def _rate(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"rate must be a share such as 0.1% or 0.001, got {text!r}") from None
