"""The command line: thin, and every refusal one sentence on standard error with exit code 2."""

try:
    import rich  # noqa: F401
    import typer  # noqa: F401
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing.name} is missing, which the command needs: pip install "rareloss[study]"') from missing

from rareloss.cli import advise, compare, model, report, verify  # noqa: F401 (in this order in --help)
from rareloss.cli.app import app, main

__all__ = ["app", "main"]
