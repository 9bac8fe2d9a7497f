"""Measure ``rareloss report`` on many rows: peak memory, and time as a ratio to reading the columns once.

Both are processes of their own, start included. Seconds of the processor are printed beside those of the clock, which
other work on the machine lengthens.

python -m benchmarks.report --rows 100000000
python -m benchmarks.report --rows 20000000 --ending csv
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

CHUNK = 1_000_000

SCAN = """
import duckdb, sys
duckdb.connect(config={"memory_limit": "768MB"}).execute(
    f"SELECT sum(s), sum(y) FROM '{sys.argv[1]}'").fetchall()
"""
REPORT = """
import sys
from rareloss.decisions import report
made = report(sys.argv[1], sys.argv[2], label="y", score="s", objective="recall@top=0.5%")
print(made["rows"], made["average_precision"], len(made["curve"]["tp"]))
"""


def make(path: Path, rows: int, rate: float = 0.001) -> None:
    """Write scores that are normal, two standard deviations higher for positives, a chunk at a time."""
    generator = np.random.default_rng(0)
    schema = pa.schema([("y", pa.int8()), ("s", pa.float32())])
    with (pa.csv.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter)(path, schema) as writer:
        for start in range(0, rows, CHUNK):
            size = min(CHUNK, rows - start)
            y = generator.random(size, dtype=np.float32) < rate
            s = generator.standard_normal(size, dtype=np.float32) + np.float32(2) * y
            writer.write_table(pa.table({"y": y.astype(np.int8), "s": s}, schema=schema))


class Cost(NamedTuple):
    """What a process took: seconds of the clock and of the processor, and the peak of its resident memory in GiB."""

    seconds: float
    processor: float
    peak: float


def measure(*command: str) -> Cost:
    """Run Python in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", *command])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"it failed with exit code {process.returncode}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--ending", choices=("parquet", "csv"), default="parquet")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scores.{asked.ending}"
        make(path, asked.rows)
        print(f"{asked.rows:,} rows, {path.stat().st_size / 2**20:,.0f} MiB of {asked.ending}", flush=True)
        scan = measure(SCAN, str(path))
        print(f"reading both columns once: {scan.seconds:.1f} s, {scan.processor:.1f} s of the processor", flush=True)
        made = measure(REPORT, str(path), str(Path(folder) / "report"))
        print(
            f"report: {made.seconds:.1f} s, {made.seconds / scan.seconds:.1f} times as long; {made.processor:.1f} s of "
            f"the processor, {made.processor / scan.processor:.1f} times; peak {made.peak:.2f} GiB"
        )


if __name__ == "__main__":
    main()
