"""Measure every loss against what it replaces, and print one table.

python -m benchmarks.speed --bars                     # what has a bar: measured, bar, met; writes nothing
python -m benchmarks.speed --large --data FILE.npz    # everything, into results.json
python -m benchmarks.speed --only recall --only step  # some rows; what was measured before stays
python -m benchmarks.speed --page benchmarks/results/results.json
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import peers, replay
from benchmarks.speed.machine import describe, kernel
from benchmarks.speed.measure import peak_of
from benchmarks.speed.page import draw_growth, line, page
from benchmarks.speed.rows import Row, all_rows
from benchmarks.speed.runner import Options, measure, select, verdict

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE.parent / "results", HERE.parents[1] / "docs"
REPLAY = "replay/smooth_ap"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = _parser().parse_args(arguments)
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
    options = Options(given.device, given.rows, given.seconds, given.fewest, given.large, given.bars)
    if given.peak or given.record:
        (row,) = (row for row in rows if row.key == (given.record or given.peak[0]))
        print(json.dumps(measure(row, options) if given.record else _peak(row, given.peak[1], options)))
        return 0
    print(f"On {given.device}, {kernel()}; CPU time of one thread, forward and backward, medians with quartiles.")
    selected = select(rows, options, given.only)
    if given.bars:
        _print_bars(selected, options)
    else:
        _write_results(selected, rows, options, given)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bars", action="store_true", help="only what has a bar, and without other contestants")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, default=Options.rows, help="leave out what is larger")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help="for each contestant of a row")
    parser.add_argument("--fewest", type=int, default=Options.fewest, help="rounds that even a slow one gets")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="rows whose key contains TEXT")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results.json and growth.svg")
    parser.add_argument("--large", action="store_true", help="also what needs several GiB")
    parser.add_argument("--data", help="an npz file with X and y, to record and replay the pools of a training run")
    parser.add_argument("--list", action="store_true", help="print the keys of all rows")
    parser.add_argument("--page", type=Path, metavar="RESULTS", help="write docs/performance.md from a results.json")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where --page writes")
    # What a process of its own measures for another: one contestant's memory, or one row.
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--record", help=argparse.SUPPRESS)
    return parser


def _peak(row: Row, contestant: str, options: Options) -> float:
    return peak_of(row.cases[""]()[contestant], options.device, row.rows)


def _measure_and_print(row: Row, options: Options) -> dict[str, Any] | None:
    started = time.perf_counter()
    try:
        record = measure(row, options)
    except ImportError as error:
        print(f"{row.what}: not measured, {error}", flush=True)
        return None
    print(f"{line(record)}  {time.perf_counter() - started:.0f} s", flush=True)
    return record


def _print_bars(rows: Sequence[Row], options: Options) -> None:
    started = time.perf_counter()
    records = [_measure_and_print(row, options) for row in rows]
    number = Counter("" if record is None else verdict(record) for record in records)
    stretch = number["met, stretch too"]
    print(
        f"Of {len(rows)} bars, {number['met'] + stretch} are met, {stretch} of them with their stretch; "
        f"{number['missed']} are missed, {number['']} not measured; {time.perf_counter() - started:.0f} s in all."
    )


def _write_results(selected: Sequence[Row], rows: Sequence[Row], options: Options, given: argparse.Namespace) -> None:
    for sentence in peers.missing():
        print(f"- {sentence}")
    given.out.mkdir(parents=True, exist_ok=True)
    path, machine = given.out / "results.json", describe(options.device)
    records = {record["key"]: record for record in _earlier(path, machine)}

    def keep(record: dict[str, Any]) -> None:
        records[record["key"]] = record
        kept = [records[key] for key in [*(row.key for row in rows), REPLAY] if key in records]
        path.write_text(json.dumps({"schema": 2, "machine": machine, "rows": kept}, indent=1) + "\n", "utf-8")

    for row in selected:
        if (record := _measure_and_print(row, options)) is not None:
            keep(record)
    if given.data and (not given.only or any(name in REPLAY for name in given.only)):
        record = replay.replay(replay.load_or_record(given.data, given.out / "pools.pt"), device=options.device)
        print(line(record))
        keep(record)
    if any(record["kind"] == "growth" for record in records.values()):
        draw_growth({"rows": list(records.values())}, given.out / "growth.svg")


def _earlier(path: Path, machine: dict[str, object]) -> list[dict[str, Any]]:
    # Rows of another machine, version or kernel do not belong beside these.
    if not path.exists():
        return []
    results = json.loads(path.read_text("utf-8"))
    return results["rows"] if results["machine"] == machine else []


def _write_page(path: Path, docs: Path) -> int:
    results = json.loads(path.read_text("utf-8"))
    (docs / "performance.md").write_text(page(results), "utf-8")
    if any(record["kind"] == "growth" for record in results["rows"]):
        (docs / "pictures").mkdir(exist_ok=True)
        draw_growth(results, docs / "pictures" / "growth.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
