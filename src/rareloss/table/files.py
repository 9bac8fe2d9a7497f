"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rareloss.table.source import DataError

__all__ = ["refuse_overwriting", "whole_file", "writable"]


def refuse_overwriting(path: Path, source: object) -> None:
    """Refuse to write over the file that is read from.

    Raises:
        DataError: both are one file, under whatever names.
    """
    if isinstance(source, (str, Path)) and path.exists() and Path(source).exists() and path.samefile(source):
        raise DataError(f"{path} holds the data that are read, which would be lost; name another file to write")


def writable(path: str | Path, source: object) -> Path:
    """Return the path of a table that can be written.

    Raises:
        DataError: it ends on something else than parquet or csv, its folder is missing, or it is the file that is read
            from, ``source``.
    """
    path = Path(path)
    refuse_overwriting(path, source)
    if path.suffix.lower() not in (".parquet", ".pq", ".csv"):
        raise DataError(f"{path} has an unknown ending; parquet and csv files are written")
    if not path.absolute().parent.is_dir():
        raise DataError(f"there is no folder {path.absolute().parent} to write {path.name} into")
    return path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets its name when all is written, and is gone where something is raised."""
    handle, part = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
