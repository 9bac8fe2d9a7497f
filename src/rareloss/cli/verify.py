"""``rareloss verify``: put any loss to the checks of its users."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table
from torch import nn

from rareloss.cli.app import FAILED, Say, app, refusing
from rareloss.cli.options import split_names

_STYLES = {"fail": "bold red", "not applicable": "dim", "skipped": "dim"}


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
    from rareloss.table import refuse_overwriting
    from rareloss.testing import verify as verified

    say = Say()
    with refusing():
        numbers = [_number("ranks", name) for name in split_names(ranks) if name != "none"]
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
        if out is not None and batch is not None:
            refuse_overwriting(out, batch)
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
                only=split_names(only) if only else None,
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
