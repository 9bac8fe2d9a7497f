"""Measure every loss against what it replaces, and print one table.

python -m benchmarks.speed --quick                    # a minute or two
python -m benchmarks.speed --large --data FILE.npz    # all of it
python -m benchmarks.speed --only recall --only step  # some rows; what was measured before stays
python -m benchmarks.speed --page benchmarks/results/results.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import peers, replay
from benchmarks.speed.machine import describe
from benchmarks.speed.measure import peak_of
from benchmarks.speed.page import draw_growth, page, table
from benchmarks.speed.rows import Row, all_rows
from benchmarks.speed.runner import Options, chosen_rows, measure
from rich.console import Console
from rich.progress import track

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE.parent / "results", HERE.parents[1] / "docs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, default=Options.rows, help="leave out what is larger")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help="for each contestant of a row")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="rows whose key contains TEXT")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results.json and growth.svg")
    parser.add_argument("--quick", action="store_true", help="at most a million rows, few rounds")
    parser.add_argument("--large", action="store_true", help="also what needs several GiB")
    parser.add_argument("--data", help="an npz file with X and y, to record and replay the pools of a training run")
    parser.add_argument("--list", action="store_true", help="print the keys of all rows")
    parser.add_argument("--page", type=Path, metavar="RESULTS", help="write docs/performance.md from a results.json")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where --page writes")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = 180  # a file has no width to fit

    if given.page:
        return _write_page(given.page, given.docs)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; run with --device cpu.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    rows = all_rows()
    if given.list:
        print(*(row.key for row in rows), sep="\n")
        return 0
    if given.peak:
        key, contestant = given.peak
        (row,) = (row for row in rows if row.key == key)
        print(peak_of(row.cases[""][contestant], given.device, row.rows))
        return 0

    options = Options(given.device, given.rows, given.seconds, large=given.large)
    if given.quick:
        options = Options(given.device, min(given.rows, 1_000_000), min(given.seconds, 0.4), 3, large=False)
    for sentence in peers.missing():
        console.print(f"- {sentence}", markup=False)
    given.out.mkdir(parents=True, exist_ok=True)
    _measure_all(chosen_rows(rows, options, given.only), rows, options, given, console)
    return 0


def _measure_all(
    chosen: list[Row], rows: list[Row], options: Options, given: argparse.Namespace, console: Console
) -> None:
    path = given.out / "results.json"
    machine = describe(options.device)
    found = {record["key"]: record for record in _earlier(path, machine)}

    def keep(record: dict[str, Any]) -> None:
        found[record["key"]] = record
        order = [row.key for row in rows] + ["replay/smooth_ap"]
        kept = [found[key] for key in order if key in found]
        path.write_text(json.dumps({"schema": 1, "machine": machine, "rows": kept}, indent=1) + "\n", "utf-8")

    for row in track(chosen, "measuring", console=console, disable=not console.is_terminal, transient=True):
        keep(measure(row, options))
    if given.data and (not given.only or any(name in "replay/smooth_ap" for name in given.only)):
        keep(replay.replay(replay.load_or_record(given.data, given.out / "pools.pt"), device=options.device))
    if any(record["kind"] == "growth" for record in found.values()):
        draw_growth({"rows": list(found.values())}, given.out / "growth.svg")
    console.print(table(found.values()))


def _earlier(path: Path, machine: dict[str, object]) -> list[dict[str, Any]]:
    # Rows of another machine or version do not belong beside these.
    if not path.exists():
        return []
    results = json.loads(path.read_text("utf-8"))
    return results["rows"] if results["machine"] == machine else []


def _write_page(path: Path, docs: Path) -> int:
    results = json.loads(path.read_text("utf-8"))
    remarks = path.with_name("remarks.json")
    said = json.loads(remarks.read_text("utf-8")) if remarks.exists() else {}
    (docs / "performance.md").write_text(page(results, said), "utf-8")
    if any(record["kind"] == "growth" for record in results["rows"]):
        (docs / "pictures").mkdir(exist_ok=True)
        draw_growth(results, docs / "pictures" / "growth.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
