"""One table written in forty ways is read as one table."""

import bz2
import csv
import gzip
import lzma
import re
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rareloss.cli import app
from rareloss.decisions import report
from rareloss.table import load
from rareloss.tabular import Model, advise, fit, score_file

ROWS = 400
Write = Callable[[pd.DataFrame, Path], Any]


def rows() -> pd.DataFrame:
    """Return numbers with gaps, whole numbers, text beyond ASCII, a category called NA, and a target of 40 in 400."""
    draw = np.random.default_rng(0)
    amount = np.exp(draw.normal(7, 1.5, ROWS)).round(2)
    amount[draw.random(ROWS) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "amount": amount,
            "age": draw.integers(18, 90, ROWS),
            "city": draw.choice(["Köln", "Zürich", "NA"], ROWS),
            "y": (draw.permutation(ROWS) < 40).astype(int),
        }
    )


def as_csv(name: str = "t.csv", *, index: bool = False, **options: Any) -> Write:
    def write(frame: pd.DataFrame, folder: Path) -> Path:
        frame.to_csv(folder / name, index=index, **options)
        return folder / name

    return write


def as_bytes(name: str, pack: Callable[[bytes], bytes]) -> Write:
    def write(frame: pd.DataFrame, folder: Path) -> Path:
        (folder / name).write_bytes(pack(frame.to_csv(index=False).encode()))
        return folder / name

    return write


def zipped(frame: pd.DataFrame, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "t.csv.zip", "w") as file:
        file.writestr("t.csv", frame.to_csv(index=False))
    return folder / "t.csv.zip"


def amounts(form: Callable[[float], str], **options: Any) -> Write:
    """Write amounts as people do; an empty cell is missing."""

    def write(frame: pd.DataFrame, folder: Path) -> Path:
        text = ["" if np.isnan(value) else form(value) for value in frame.amount]
        return as_csv(**options)(frame.assign(amount=text), folder)

    return write


def missing_as(mark: str) -> Write:
    def write(frame: pd.DataFrame, folder: Path) -> Path:
        return as_csv()(frame.assign(amount=[mark if np.isnan(v) else f"{v:.2f}" for v in frame.amount]), folder)

    return write


def labels(negative: Any, positive: Any) -> Write:
    return lambda frame, folder: as_csv()(
        frame.assign(y=[positive if value else negative for value in frame.y]), folder
    )


def as_parquet(change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame) -> Write:
    def write(frame: pd.DataFrame, folder: Path) -> Path:
        change(frame).to_parquet(folder / "t.parquet")
        return folder / "t.parquet"

    return write


def decimals(frame: pd.DataFrame, folder: Path) -> Path:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    exact = [None if np.isnan(value) else Decimal(f"{value:.2f}") for value in frame.amount]
    pq.write_table(table.set_column(0, "amount", pa.array(exact)), folder / "t.parquet")
    return folder / "t.parquet"


def dictionary(frame: pd.DataFrame, folder: Path) -> Path:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.set_column(1, "age", table["age"].dictionary_encode())
    pq.write_table(table.set_column(2, "city", table["city"].dictionary_encode()), folder / "t.parquet")
    return folder / "t.parquet"


def german(value: float) -> str:
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_axis(np.random.default_rng(1).permutation(ROWS), axis=0)


WAYS: dict[str, Write] = {
    "frame": lambda frame, folder: frame,
    "frame of float32 ages": lambda frame, folder: frame.astype({"age": "float32"}),
    "frame of nullable types": lambda frame, folder: frame.convert_dtypes(),
    "frame of objects": lambda frame, folder: frame.astype(object),
    "frame of categories": lambda frame, folder: frame.astype({"city": "category"}),
    "frame, shuffled index": lambda frame, folder: shuffled(frame),
    "frame of arrow types": lambda frame, folder: frame.convert_dtypes(dtype_backend="pyarrow"),
    "arrow table": lambda frame, folder: pa.Table.from_pandas(frame, preserve_index=False),
    "csv": as_csv(),
    "csv ;": as_csv(sep=";"),
    "csv tab": as_csv("t.tsv", sep="\t"),
    "csv |": as_csv(sep="|"),
    "csv ; decimal comma": as_csv(sep=";", decimal=","),
    "csv quoted": as_csv(quoting=csv.QUOTE_ALL),
    "csv CRLF": as_csv(lineterminator="\r\n"),
    "csv UTF-8 BOM": as_csv(encoding="utf-8-sig"),
    "csv Latin-1": as_csv(encoding="latin-1"),
    "csv Windows-1252": as_csv(encoding="cp1252"),
    "csv UTF-16": as_csv(encoding="utf-16"),
    "csv with row numbers": as_csv(index=True),
    "csv with shuffled row numbers": lambda frame, folder: as_csv(index=True)(shuffled(frame), folder),
    "csv blank in name": lambda frame, folder: as_csv()(frame.rename(columns={"age": "age "}), folder),
    "gz": as_bytes("t.csv.gz", gzip.compress),
    "bz2": as_bytes("t.csv.bz2", bz2.compress),
    "xz": as_bytes("t.csv.xz", lzma.compress),
    "zip": zipped,
    "zstd": as_bytes("t.csv.zst", lambda body: pa.compress(body, "zstd", asbytes=True)),
    "missing ?": missing_as("?"),
    "missing -": missing_as("-"),
    "missing na": missing_as("na"),
    "missing NULL": missing_as("NULL"),
    "1,234.50": amounts(lambda value: f"{value:,.2f}"),
    "$1,234.50": amounts(lambda value: f"${value:,.2f}"),
    "1,234.50 between ;": amounts(lambda value: f"{value:,.2f}", sep=";"),
    "1.234,50 between ;": amounts(german, sep=";"),
    "labels no/yes": labels("no", "yes"),
    "labels False/True": labels(False, True),
    "labels 0.0/1.0": labels(0.0, 1.0),
    "parquet": as_parquet(),
    "parquet shuffled index": as_parquet(shuffled),
    "parquet decimal": decimals,
    "parquet dictionary": dictionary,
}


LABELS = ("labels no/yes", "labels False/True")  # whose classes have other names


class ByArrow:
    """A data frame of a library that is not known, which gives its columns by Arrow's interface."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.table = pa.Table.from_pandas(frame, preserve_index=False)
        self.columns = list(frame.columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def excel(frame: pd.DataFrame, folder: Path) -> Path:
    pytest.importorskip("openpyxl")
    frame.to_excel(folder / "t.xlsx", index=False)
    return folder / "t.xlsx"


WAYS |= {"frame by Arrow's interface": lambda frame, folder: ByArrow(frame), "xlsx": excel}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("models") / "model"
    fit(rows(), target="y", trials=1, out=path)
    return path


@pytest.mark.parametrize("way", WAYS)
def test_one_table_however_it_is_written(way: str, tmp_path: Path) -> None:
    frame = rows()
    table, expected = load(WAYS[way](frame, tmp_path), target="y"), load(frame, target="y")
    pd.testing.assert_frame_equal(table.frame, expected.frame, check_exact=True)
    np.testing.assert_array_equal(table.target, frame.y)
    # What a comparison and a fit start from: the same numbers come of it.
    assert (table.sha256 == expected.sha256) == (way not in LABELS)


@pytest.mark.parametrize("way", WAYS)
def test_its_scores_are_the_same_however_it_is_written(way: str, folder: Path, tmp_path: Path) -> None:
    frame = rows()
    data = WAYS[way](frame, tmp_path)
    # A mark that the fit has not seen is refused: it might mean anything.
    marked = way.startswith("missing") and way != "missing NULL"
    model = fit(data, target="y", trials=1, out=tmp_path / "model") if marked else Model.load(folder)
    expected = Model.load(folder).score(frame)
    pd.testing.assert_frame_equal(model.score(data).reset_index(drop=True), expected, check_exact=True)
    score_file(model, data, tmp_path / "scores.parquet", keep=["y"])
    scored = pd.read_parquet(tmp_path / "scores.parquet")
    np.testing.assert_array_equal(scored["score"], expected["score"])


@pytest.mark.parametrize("way", WAYS)
def test_its_report_and_advice_are_the_same_however_it_is_written(way: str, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    frame = rows()
    data = WAYS[way](frame, tmp_path)
    options = {"score": "age", "group": "city", "objective": "recall@top=10%"}
    positive = {"labels no/yes": "yes"}.get(way)
    made = report(data, label="y", positive=positive, **options)
    expected = report(frame, label="y", **options)
    for name in ("average_precision", "curve", "groups", "start"):
        assert made[name] == expected[name]
    told, known = (advise(each, target="y", fits=False) for each in (data, frame))
    assert told.answer == known.answer
    values = [{each.name: each.value for each in advice.findings if each.name != "data"} for advice in (told, known)]
    assert values[0] == values[1]


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith(("frame", "arrow"))])
def test_its_drift_is_the_same_however_it_is_written(way: str, tmp_path: Path) -> None:
    frame = rows()
    path = WAYS[way](frame, tmp_path)
    frame.assign(age=frame.age + 2).to_parquet(tmp_path / "before.parquet")
    options = ["--score", "age", "--threshold", "80"]
    found = CliRunner().invoke(app, ["check", str(tmp_path / "before.parquet"), str(path), *options])
    frame.to_parquet(tmp_path / "after.parquet")
    expected = CliRunner().invoke(
        app, ["check", str(tmp_path / "before.parquet"), str(tmp_path / "after.parquet"), *options]
    )
    assert (found.exit_code, found.output) == (expected.exit_code, expected.output)
    assert "alerts" in found.output


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            lambda text: text.replace("\n", ",1\n", 3).replace(",1\n", "\n", 1),
            "row 2 of .* has 5 fields, where its header has 4",
        ),
        (lambda text: text.replace("age", "amount"), "'amount' named more than one column"),
        (lambda text: text.replace("age", "amount "), "'amount' named more than one column"),
        (lambda text: "", "is empty"),
        (lambda text: "\0" + text, "no text"),
    ],
)
def test_what_cannot_be_read_is_refused_alike_by_all(
    write: Callable[[str], str], said: str, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("duckdb")
    path = tmp_path / "t.csv"
    path.write_bytes(write(rows().to_csv(index=False)).encode())
    out = ["--out", str(tmp_path / "out")]
    commands = [
        ["advise", str(path), "--target", "y"],
        ["compare", str(path), "--target", "y", *out],
        ["fit", str(path), "--target", "y", *out],
        ["score", str(folder), str(path), "--out", str(tmp_path / "s.parquet")],
        ["report", str(path), "--label", "y", "--score", "age", *out],
        ["check", str(path), str(path), "--score", "age", "--threshold", "1"],
    ]
    sentences = {(found := CliRunner().invoke(app, command)).stderr for command in commands}
    assert len(sentences) == 1
    assert found.exit_code == 2
    assert re.search(said, sentences.pop())
