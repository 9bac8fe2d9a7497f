"""Refusals of a folder that is no model, in words."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rareloss.table import DataError

__all__ = ["listed", "read", "read_bytes", "read_json", "threshold_of", "written_threshold"]

MOST_DIGITS = 20
# Far beyond any model of a table.
MOST_BYTES = {".json": 64 * 2**20, ".safetensors": 2**30}


def read_bytes(path: Path) -> bytes:
    """Read a file of a model.

    Raises:
        DataError: there is no such file, it is a pipe or a device, or it is larger than any model's.
    """
    if not path.is_file():
        raise DataError(f"{path.parent} is no saved model: it has no file {path.name}; rareloss fit writes one")
    if path.stat().st_size > MOST_BYTES[path.suffix]:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes; at most {MOST_BYTES[path.suffix]:,} were expected")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file: numbers, strings, lists and objects, no NaN, every key once.

    Raises:
        DataError: as in :func:`read_bytes`, or it is no such file.
    """
    content = read_bytes(path)
    try:
        return json.loads(
            content.decode("utf-8"), parse_constant=_refuse, parse_int=_whole, object_pairs_hook=_each_once
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0][:120]
        raise DataError(f"{path} is not the JSON that rareloss fit writes: {said}") from error


def _refuse(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(text)} digits")
    return int(text)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def read(where: str, given: Any, expected: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return an object that has exactly these keys, of these types.

    Raises:
        DataError: it has not.
    """
    if not isinstance(given, dict) or set(given) != set(expected):
        got = sorted(given) if isinstance(given, dict) else type(given).__name__
        raise DataError(f"{where}: {', '.join(expected)} were expected, got {got!r:.200}")
    for key, kinds in expected.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if type(given[key]) not in kinds:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise DataError(f"{where}: {key} must be {names}, got {given[key]!r:.60}")
    return given


def listed(where: str, given: Sequence[Any], *, missing: bool = False) -> tuple[Any, ...]:
    """Return names, each once; None is one where ``missing``.

    Raises:
        DataError: something else is among them, or a name comes twice.
    """
    if not all(isinstance(name, str) or (missing and name is None) for name in given):
        raise DataError(f"{where}: names were expected, got {list(given)!r:.60}")
    if len(set(given)) < len(given):
        raise DataError(f"{where}: a name comes twice")
    return tuple(given)


def written_threshold(threshold: float) -> float | str:
    """Write a threshold for JSON, which has no infinity: ``"inf"`` alerts nobody, ``"-inf"`` everybody."""
    return threshold if math.isfinite(threshold) else str(threshold)


def threshold_of(where: str, given: float | str) -> float:
    """Read what :func:`written_threshold` wrote.

    Raises:
        DataError: it is neither a finite number nor one of the two texts.
    """
    if isinstance(given, str) and given in ("inf", "-inf"):
        return float(given)
    if isinstance(given, str) or not abs(given) <= sys.float_info.max:
        raise DataError(f"{where}: threshold must be a finite number, 'inf' or '-inf', got {given!r:.60}")
    return float(given)
