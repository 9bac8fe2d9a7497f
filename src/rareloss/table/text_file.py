"""Text files of a table (csv): what separates their columns, how they are encoded, and their rows as text."""

import codecs
import contextlib
import csv
import io
import lzma
import re
import zipfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv

from rareloss.table.numbers import to_numbers
from rareloss.table.words import DataError, counted, listed

__all__ = ["ENDINGS", "PACKED", "TextFile", "refuse_duplicates"]

ENDINGS = (".csv", ".tsv", ".txt")
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".xz": "", ".zip": ""}
SEPARATORS = (",", ";", "\t", "|")
CHUNK = 1 << 20
# Of the beginning, for separator, names and quotes.
SAMPLE = 1 << 18
# A block of the reader must hold a row whole.
BLOCK = 1 << 23
# What Arrow says of a row with too many or too few fields. A function for it to call instead would be let go by one of
# its threads, which aborts the process where Python is ending meanwhile.
WRONG_ROW = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", re.DOTALL)
UNDEFINED = {0x81, 0x8D, 0x8F, 0x90, 0x9D}  # of Windows-1252


@dataclass(frozen=True)
class TextFile:
    """A csv file, not yet read.

    Args:
        path: of the file, packed or not.
        separator: what stands between columns.
        encoding: as Python names it.
        header: whether the first row holds the names.
        names: of the columns, as they are written, without blanks around them.
        quoted: columns whose values stand in quotes while others do not: they are text, also where they hold digits.
        notes: what was guessed.
    """

    path: Path
    separator: str
    encoding: str
    header: bool
    names: tuple[str, ...]
    quoted: frozenset[str]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, *, header: bool = True) -> "TextFile":
        """Look at a file: all of it for the encoding, its beginning for the rest.

        Raises:
            DataError: it has no rows, or names that come twice.
        """
        encoding, notes = _encoding(path)
        with _opened(path) as file:
            sample = codecs.getincrementaldecoder(encoding)().decode(file.read(SAMPLE)).removeprefix("\ufeff")
        first = sample.lstrip("\r\n")
        if not first.strip():
            raise DataError(f"{path} cannot be read: it holds no rows; a header and one row per case were expected")
        rows = {mark: next(csv.reader(io.StringIO(first), delimiter=mark)) for mark in SEPARATORS}
        separator = max(rows, key=lambda mark: len(rows[mark]))
        names = [name.strip() for name in rows[separator]]
        if header:
            names = _named(names)
            refuse_duplicates(names)
        else:
            names = [f"x{place}" for place in range(len(names))]
        quoted = _quoted(first, separator, len(names), header)
        return cls(
            path, separator, encoding, header, tuple(names), frozenset(names[place] for place in quoted), tuple(notes)
        )

    @property
    def headless(self) -> bool:
        """Whether what should be names are all numbers."""
        return self.header and to_numbers(pa.array(self.names)).null_count == 0

    def batches(self, columns: Sequence[str], rows: int) -> Generator[pa.Table]:
        """Yield rows of some columns as text, ``rows`` at a time, at least one table; an empty cell is missing.

        Raises:
            DataError: a row has more or fewer fields than the header.
        """
        kinds = dict.fromkeys(columns, pa.string())
        read = pa.csv.ReadOptions(
            encoding="utf8" if self.encoding in ("utf-8", "utf-8-sig") else self.encoding,
            column_names=list(self.names),
            skip_rows=int(self.header),
            block_size=BLOCK,
            use_threads=False,
        )
        parse = pa.csv.ParseOptions(delimiter=self.separator, newlines_in_values=True)
        convert = pa.csv.ConvertOptions(
            column_types=kinds,
            include_columns=list(columns),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            null_values=[""],
        )
        try:
            with _opened(self.path) as file:
                reader = pa.csv.open_csv(file, read_options=read, parse_options=parse, convert_options=convert)
                yield from _cut(reader, rows)
        except pa.ArrowInvalid as error:
            if row := WRONG_ROW.search(str(error)):
                number, expected, fields, text = row.groups()
                raise DataError(
                    f"row {int(number):,} of {self.path} has {counted(int(fields), 'field')}, where its header has "
                    f"{expected}: {text!r:.80}; make them alike, or put quotes around a {self.separator!r} within a "
                    "value"
                ) from error
            if "Empty CSV" not in str(error):
                raise
            yield pa.table({name: pa.array([], pa.string()) for name in columns})


def _cut(batches: Any, rows: int) -> Generator[pa.Table]:
    """Yield tables of ``rows`` rows, and a last one of what is left."""
    waiting: list[pa.RecordBatch] = []
    held, empty = 0, True
    for batch in batches:
        while held + len(batch) >= rows:
            taken = rows - held
            yield pa.Table.from_batches([*waiting, batch.slice(0, taken)])
            batch, waiting, held, empty = batch.slice(taken), [], 0, False
        if len(batch):
            waiting.append(batch)
            held += len(batch)
    if waiting or empty:
        yield pa.Table.from_batches(waiting, batches.schema)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file's bytes, unpacked."""
    ending = path.suffix.lower()
    with contextlib.ExitStack() as stack:
        if ending == ".xz":
            yield stack.enter_context(lzma.open(path))
        elif ending == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(path))
            inside = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            if len(inside) != 1:
                raise DataError(f"{path} holds {counted(len(inside), 'file')}; one csv file was expected in it")
            yield stack.enter_context(archive.open(inside[0]))
        else:
            yield stack.enter_context(pa.input_stream(str(path), compression=PACKED.get(ending)))


def _encoding(path: Path) -> tuple[str, list[str]]:
    """Find how a file is encoded: by its first bytes, or as UTF-8 where all of it can be, or by a guess."""
    with _opened(path) as file:
        start = file.read(CHUNK)
        for mark, name in (
            (codecs.BOM_UTF8, "utf-8-sig"),
            (codecs.BOM_UTF16_LE, "utf-16"),
            (codecs.BOM_UTF16_BE, "utf-16"),
        ):
            if start.startswith(mark):
                return name, []
        for name, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
            if zeros.count(0) > max(8, 0.2 * len(start)):
                return name, [f"{path.name} was read as UTF-16, which is a guess: it says so nowhere"]
        if b"\0" in start:
            raise DataError(f"{path} cannot be read: it holds bytes of 0, so it is no text; a csv was expected")
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while start:
                decoder.decode(start)
                start = file.read(CHUNK)
            decoder.decode(b"", final=True)
            return "utf-8", []
        except UnicodeDecodeError:
            pass
    said = f"{path.name} is not UTF-8, and was read as Latin-1 (Windows-1252), which is a guess: save it as UTF-8"
    return ("latin-1" if _undefined(path) else "cp1252"), [said]


def _undefined(path: Path) -> bool:
    """Whether a file holds bytes that Windows-1252 does not define."""
    with _opened(path) as file:
        while chunk := file.read(CHUNK):
            if set(chunk) & UNDEFINED:
                return True
    return False


def _named(names: Sequence[str]) -> list[str]:
    """Name columns without a name by their place, as pandas does: an index that was written beside the columns."""
    found = []
    for place, name in enumerate(names):
        own = name or f"Unnamed: {place}"
        again = 0
        while not name and own in names:
            again += 1
            own = f"Unnamed: {place}.{again}"
        found.append(own)
    return found


def refuse_duplicates(names: Sequence[str]) -> None:
    """Refuse names that come twice.

    Raises:
        DataError: which do.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(
            f"{listed(twice)} named more than one column; give every column a name of its own (is the header missing? "
            "then name --no-header)"
        )


def _quoted(sample: str, separator: str, width: int, header: bool) -> list[int]:
    """Return the places of columns in quotes, where others are without."""
    lines = sample.splitlines()[int(header) : -1][:1000]
    rows = [line.split(separator) for line in lines]
    rows = [row for row in rows if len(row) == width]  # a separator within quotes, or a row over two lines
    if not rows:
        return []
    shares = [
        [value[:1] == value[-1:] == '"' and len(value) > 1 for value in column if value not in ("", '""')]
        for column in map(list, zip(*rows, strict=True))
    ]
    quoted = [place for place, column in enumerate(shares) if column and all(column)]
    bare = any(column and not any(column) for column in shares)
    return quoted if bare else []
