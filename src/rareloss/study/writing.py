"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rareloss.study.data import DataError

__all__ = ["whole_file", "writable"]


def writable(path: str | Path) -> Path:
    """Return the path of a table that can be written.

    Raises:
        DataError: it ends on something else than parquet or csv, or its folder is missing.
    """
    path = Path(path)
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
