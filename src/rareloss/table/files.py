"""Files that appear whole or not at all."""

import contextlib
import glob
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rareloss.table.words import DataError

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
def whole_file(path: Path, *, first: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that gets its name when all is written, and is gone where something is raised.

    It has the permissions of the file that it replaces, or those that the umask leaves. Parts that a killed process
    left beside it are removed. With ``first`` a file that is there, or appears meanwhile, stays as it is.
    """
    folder = path.absolute().parent
    for left in folder.glob(f".{glob.escape(path.name)}.*.part"):
        if not _runs(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    part = folder / f".{path.name}.{threading.get_ident()}.{os.getpid()}.part"
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            part.chmod(path.stat().st_mode & 0o777)
        if first:
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
            part.unlink()
        else:
            os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True
