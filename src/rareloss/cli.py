"""The command line: thin, and every refusal one sentence on standard error with exit code 2."""

import importlib
import json
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

import rareloss

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing.name} is missing, which the command needs: pip install "rareloss[study]"') from missing

__all__ = ["app", "main"]

FAILED = 1
REFUSED = 2
INTERRUPTED = 130  # what shells give for Ctrl-C: 128 and the signal's number

# What says how a table is read: the same for every command that reads one.
Target = Annotated[str | None, typer.Option(help="Column to predict.")]
Positive = Annotated[str | None, typer.Option(help="Value of the target that is the positive class.")]
Group = Annotated[str | None, typer.Option(help="Column whose equal values stay in one fold; 'none': rows.")]
Time = Annotated[str | None, typer.Option(help="Column to split by: train, then validation, then test.")]
Without = Annotated[list[str] | None, typer.Option(help="Column to leave out; repeat it, or join names by commas.")]


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
    target: Target = None,
    positive: Positive = None,
    group: Group = None,
    time: Time = None,
    without: Without = None,
    objective: Annotated[
        str, typer.Option(help="What scorers are judged by, such as ap, recall@top=200/40000 or recall@precision=50%.")
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
            without=without or (),
            objective=objective,
            seeds=seeds,
            trials=trials,
            network=_names(network),
            arms=_names(arms) or None,
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
        if scorer in comparison.forecasts:
            say.print(f"  {comparison.forecasts[scorer]}", markup=False)
    say.print(results["overall"], markup=False)
    if not stopped and not comparison.verdicts:
        typer.echo("Nothing could be compared: see what failed above.", err=True)
        raise typer.Exit(1)
    if stopped:
        left = len(results["unfinished"])
        typer.echo(f"Stopped with {left} units left; what is finished is kept in {out}: same command, go on.", err=True)
        raise typer.Exit(INTERRUPTED)
    say.print(f"Written: {out / 'results.json'} and {out / 'report.html'}", markup=False)
    if len(results["data"]["classes"]) == 2:
        words = ["rareloss", "fit", str(options["data"]), "--from", str(out), "--out", "model"]
        say.print(f"Next: {shlex.join(words)}", markup=False)


@app.command()
def advise(
    data: Annotated[str | None, typer.Argument(help="A csv, parquet or npz file, flights or digits.")] = None,
    target: Target = None,
    positive: Positive = None,
    group: Group = None,
    time: Time = None,
    without: Without = None,
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
    say = Console(soft_wrap=True, highlight=False)
    with _refusing():
        if out is not None and not out.parent.is_dir():
            raise ValueError(f"there is no folder {out.parent} to write {out.name} into")
        try:
            from rareloss.study.advise import advise as advised
            from rareloss.study.writing import refuse_overwriting
        except ModuleNotFoundError as error:
            raise ValueError(f'{error.name} is missing: pip install "rareloss[study]"') from error
        if out is not None:
            refuse_overwriting(out, data)
        advice = advised(
            data,
            target=target,
            positive=positive,
            group=group,
            time=time,
            without=without or (),
            objective=objective,
            rows=rows,
            rate=None if rate is None else _rate(rate),
            batch=batch,
            per_period=per_period,
            plausible=plausible,
            width=width,
        )
        if out is not None:
            out.write_text(advice.to_json() + "\n", encoding="utf-8")
    title = f"{advice.objective}: {advice.rows:,} rows, {advice.positives:,} positives"
    say.print(title, markup=False, style="bold")
    for finding in advice.findings:
        for sentence in finding.value if finding.name == "data" else [finding.sentence]:
            say.print(f"- {sentence}", markup=False)
    say.print(f"Next: {advice.command}", markup=False)


def _rate(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"rate must be a share such as 0.1% or 0.001, got {text!r}") from None


@app.command()
def verify(
    loss: Annotated[str, typer.Argument(help="module:name of a loss: a class, a function that makes one, or itself.")],
    arguments: Annotated[
        str, typer.Option(help="What the class or function is called with, as JSON: '{\"num_classes\": 1}'.")
    ] = "{}",
    call: Annotated[
        str | None, typer.Option(help="module:function that calls the loss: (loss, logits, targets, rows) -> value.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="module:name of a model, or of a function that makes one.")] = None,
    batch: Annotated[
        Path | None, typer.Option(help="A pt or npz file: inputs (or logits) and targets. Drawn by default.")
    ] = None,
    ranks: Annotated[list[str], typer.Option(help="Numbers of processes, by commas or repeated; 'none'.")] = ["1,2"],  # noqa: B006
    device: Annotated[str, typer.Option(help="Where to try it, such as cpu or cuda.")] = "cpu",
    rows: Annotated[int, typer.Option(min=16, help="Rows of a batch that is drawn.")] = 256,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Checks to run, by commas or repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the report as JSON.")] = None,
) -> None:
    """Check any loss for what its users rely on: the same gradient however the work is cut. Exit code 1: it failed."""
    from rareloss.testing import verify as verified

    say = Console(soft_wrap=True, highlight=False)
    with _refusing():
        numbers = [_number("ranks", name) for name in _names(ranks) if name != "none"]
        made = _found(loss)
        options = _json_arguments(arguments)
        if options and isinstance(made, nn.Module):
            raise ValueError(f"{loss} is a loss already, which takes no arguments, got {arguments}")
        if not isinstance(made, nn.Module):
            made = partial(made, **options)
        scorer = None if model is None else _found(model)
        if scorer is not None and not isinstance(scorer, nn.Module):
            scorer = scorer()
        if out is not None and not out.parent.is_dir():
            raise ValueError(f"there is no folder {out.parent} to write {out.name} into")
        with say.status("") as status:
            report = verified(
                made,
                scorer,
                None if batch is None else _read_batch(batch),
                call=None if call is None else _found(call),
                ranks=numbers,
                device=device,
                rows=rows,
                seed=seed,
                only=_names(only) if only else None,
                progress=lambda name: status.update(name),
            )
        if out is not None:
            out.write_text(report.to_json() + "\n", encoding="utf-8")
    table = Table("check", "variant", title=escape(report.loss), title_justify="left")
    for heading in ("measured", "tolerance", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    for outcome in report.checks:
        table.add_row(*outcome.cells(), style=_STYLES.get(outcome.verdict))
    say.print(table)
    for remark in report.remarks():
        say.print(f"- {remark}", markup=False)
    say.print(report.verdict, markup=False)
    if out is not None:
        say.print(f"Written: {out}", markup=False)
    if not report.passed:
        raise typer.Exit(FAILED)


@app.command()
def check(
    before: Annotated[Path, typer.Argument(help="The scores that the threshold was cut on: csv or parquet.")],
    after: Annotated[Path, typer.Argument(help="The new scores: csv or parquet.")],
    threshold: Annotated[float, typer.Option(help="Rows above it are alerts.")],
    score: Annotated[str, typer.Option(help="Column of the scores.")] = "score",
) -> None:
    """Compare new scores with those that a threshold was cut on. Exit code 1: the alerts are not what they were."""
    from rareloss.decide.drift import check_drift

    with _refusing():
        drift = check_drift(_read_scores(before, score), _read_scores(after, score), threshold)
    typer.echo(f"{drift.sentence}.")
    typer.echo(f"Alerts: {drift.got}, expected {drift.expected:.4g}, p = {drift.p_value:.3g}.")
    typer.echo(f"Scores: Kolmogorov-Smirnov {drift.distance:.3g}, p = {drift.distance_p_value:.3g}.")
    if drift.drifted:
        raise typer.Exit(FAILED)


def _read_scores(path: Path, column: str) -> Any:
    from rareloss.study.data import source_frame

    frame = source_frame(path)
    if column not in frame:
        raise ValueError(f"{path} has no column {column!r}; it has {', '.join(map(str, frame.columns))}")
    if frame[column].dtype.kind not in "iuf":
        raise ValueError(f"column {column!r} of {path} holds {frame[column].dtype}, where numbers were expected")
    return frame[column].to_numpy()


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
    drop_missing_scores: Annotated[bool, typer.Option(help="Leave out rows without a score, and count them.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("rareloss-report"),
) -> None:
    """Show what any model's alerts catch, miss and cost, on a page where the threshold is dragged."""
    try:
        from rareloss.decide import report as reported
    except ModuleNotFoundError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(REFUSED) from None
    with _refusing():
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
            drop_missing_scores=drop_missing_scores,
        )
    for what, number in made["left_out"].items():
        if number:
            typer.echo(
                f"- {number:,} rows left out: {what.replace('_', ' ')}{'' if what == 'weight_0' else ' missing'}"
            )
    curve, start = made["curve"], made["start"]
    typer.echo(
        f"{curve['alerts'][start]:,.10g} alerts (score at least {curve['threshold'][start]:.6g}) catch "
        f"{curve['tp'][start]:,.10g} of {made['positives']:,.10g}: {made['start_is']}."
    )
    typer.echo(f"Written: {out / 'report.html'} and {out / 'report.json'}")


_STYLES = {"fail": "bold red", "not applicable": "dim", "skipped": "dim"}


@contextmanager
def _refusing() -> Iterator[None]:
    """Say what is wrong with what was given in one sentence, and end with the exit code for it."""
    try:
        yield
    except (TypeError, ValueError, OSError) as error:
        typer.echo(f"rareloss: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(REFUSED) from None


def _found(name: str) -> Any:
    module, found, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # an installed command does not look into the current folder by itself
    try:
        if not found:
            raise AttributeError("there is no colon")
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{name!r} cannot be imported ({error}); write module:name, the module in the current folder or installed"
        ) from error


def _number(option: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{option} must be whole numbers, got {text!r}")
    return int(text)


def _json_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"arguments must be JSON, such as '{{\"num_classes\": 1}}', got {text!r} ({error})") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments must be a JSON object, such as '{{\"num_classes\": 1}}', got {text!r}")
    return arguments


def _read_batch(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    try:
        content: Any = _read_npz(path) if path.suffix == ".npz" else torch.load(path, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a batch: {error}") from error
    if isinstance(content, dict):
        for inputs, targets in (("inputs", "targets"), ("logits", "targets"), ("X", "y")):
            if inputs in content and targets in content:
                return content[inputs], content[targets]
        raise ValueError(f"{path} holds {', '.join(map(str, content)) or 'nothing'}; name the two inputs and targets")
    pair: tuple[torch.Tensor, torch.Tensor] = content
    return pair


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    import numpy as np  # of the extra that the command line needs anyway

    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _names(texts: list[str] | None) -> list[str]:
    return [name.strip() for text in texts or () for name in text.split(",") if name.strip()]


@app.command()
def fit(
    data: Annotated[
        str, typer.Argument(help="A csv, parquet or npz file (X, y); or built-in: flights.", show_default=True)
    ] = "flights",
    out: Annotated[Path, typer.Option(help="Folder to write, which must not exist.")] = Path("rareloss-model"),
    held_out: Annotated[
        Path | None, typer.Option(help="A parquet or csv file for the rows that the model has not seen.")
    ] = None,
    target: Target = None,
    positive: Positive = None,
    group: Group = None,
    time: Time = None,
    without: Without = None,
    objective: Annotated[str | None, typer.Option(help="As in compare; ap by default.")] = None,
    arm: Annotated[
        str | None, typer.Option(help="How to train, as compare names it: tuned_ce (the default), smooth_ap_stage.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="linear (the default), additive, mlp, or module:function of your own.")
    ] = None,
    compared: Annotated[
        Path | None, typer.Option("--from", help="Folder of a comparison of these data: train what it found best.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the split and all after it; 0 by default.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Draws of hyper-parameters; 8 by default.")] = None,
) -> None:
    """Train one model and save it as a folder; the same command goes on where one was killed."""
    say = Console(soft_wrap=True, highlight=False)
    with _needing("deploy"):
        from rareloss.deploy import fit as fitted
        from rareloss.deploy.card import named
    try:
        with _refusing():
            model = fitted(
                data,
                out=out,
                held_out=held_out,
                target=target,
                positive=positive,
                group=group,
                time=time,
                without=without or (),
                objective=objective,
                arm=arm,
                network=network,
                compared=compared,
                seed=seed,
                trials=trials,
                say=lambda sentence: say.print(f"- {sentence}", markup=False),
            )
    except KeyboardInterrupt:
        typer.echo(f"Stopped; trials that were finished are kept beside {out}: same command, go on.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    held = model.card["held_out"]
    chosen = model.card["chosen"]
    say.print(
        f"{chosen['scorer']} under {chosen['arm']}: on {held['rows']:,} held-out rows {held['alerts']:,} alerts "
        f"({held['alerts'] / held['rows']:.2%}), with {held['caught']:,} of {held['positives']:,} positives",
        markup=False,
    )
    words = named(model.card)
    for name, found in held["metrics"].items():
        if found:
            say.print(f"  {words[name]}: {found['value']:.4f}, {found['low']:.4f} to {found['high']:.4f}", markup=False)
    say.print(f"Written: {out}, described in {out / 'README.md'}", markup=False)
    labelled = ["FILE"] if held_out is None else [str(held_out), "--keep", model.target]
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
) -> None:
    """Write score, probability and decision of each row, in the memory of one batch."""
    with _needing("deploy"):
        from rareloss.deploy import Model, score_file
    with _refusing():
        loaded = Model.load(model)
        scored = score_file(loaded, data, out, keep=keep or ())
    share = scored.alerts / max(scored.rows, 1)
    typer.echo(f"{scored.rows:,} rows, {scored.alerts:,} alerts ({share:.3%}). Written: {out}")
    for name, rows in scored.unseen.items():
        typer.echo(f"check {name!r}: {rows:,} rows have a value that the fit did not see; it counts for nothing")
    if loaded.target in scored.kept:
        typer.echo(
            "A report is too good if the model was fitted on some of these rows: fit --held-out writes the others."
        )
        words = ["rareloss", "report", str(out), "--label", loaded.target, "--positive", loaded.classes[1]]
        words += ["--score", "probability", "--probability", "probability", "--objective", str(loaded.objective)]
        typer.echo(f"Next: {shlex.join(words)}")


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="The folder that fit wrote.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The onnx file to write.", show_default=False)],
) -> None:
    """Write a model's network as an ONNX graph: from preprocessed inputs to the raw score."""
    with _needing("deploy"):
        from rareloss.deploy import Model, to_onnx
    with _refusing():
        to_onnx(Model.load(model), out)
    typer.echo(f"Written: {out}")


@contextmanager
def _needing(extra: str) -> Iterator[None]:
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
