"""Measure the memory of ``rareloss score`` on a short and a long file of the same columns.

One model is fitted on 20,000 rows; each file is scored in a process of its own. A file of one row shows what
Python, torch and the model take by themselves.

python -m benchmarks.score --rows 100000 3000000
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from benchmarks.report import measure

from rareloss.tabular.model import fit

CHUNK = 100_000

SCORE = """
import sys
from rareloss.tabular.model import score_file
score_file(*sys.argv[1:4], keep=["id"])
"""


def payments(generator: np.random.Generator, rows: int) -> pd.DataFrame:
    """Draw rows as files have them: numbers with gaps, text, dates, an id; one in fifty is a fraud."""
    fraud = generator.random(rows) < 0.02
    amount = np.exp(generator.normal(size=rows) + fraud).round(2)
    day = pd.Timestamp("2024-01-01") + pd.to_timedelta(generator.integers(0, 700, rows), unit="D")
    return pd.DataFrame(
        {
            "id": [f"P-{number:012d}" for number in generator.integers(0, 10**12, rows)],
            "amount": np.where(generator.random(rows) < 0.1, np.nan, amount),
            "country": generator.choice(["de", "fr", "it", "es", "pl"], rows),
            "opened": day.strftime("%Y-%m-%d"),
            **{f"x{number}": generator.normal(size=rows).round(4) + fraud / 2 for number in range(8)},
            "fraud": np.where(fraud, "yes", "no"),
        }
    )


def write(path: Path, rows: int) -> None:
    """Write a file a chunk at a time."""
    generator = np.random.default_rng(1)
    writer = None
    for start in range(0, rows, CHUNK):
        frame = payments(generator, min(CHUNK, rows - start)).drop(columns="fraud")
        table = pa.Table.from_pandas(frame, preserve_index=False)
        if writer is None:
            writer = (pa.csv.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter)(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 3_000_000])
    asked = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        rows = payments(np.random.default_rng(0), 20_000)
        fit(rows, target="fraud", objective="recall@top=1%", trials=2, out=here / "model")
        for ending in ("csv", "parquet"):
            for number in (1, *asked):
                path = here / f"payments.{ending}"
                write(path, number)
                cost = measure(SCORE, str(here / "model"), str(path), str(here / "scores.parquet"))
                print(
                    f"{ending}, {number:,} rows, {path.stat().st_size / 2**20:,.0f} MiB: peak {cost.peak:.2f} GiB, "
                    f"{cost.seconds:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
