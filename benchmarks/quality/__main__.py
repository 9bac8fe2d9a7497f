"""Run the grid of PROTOCOL.md, and write what it found.

python -m benchmarks.quality --data DIR --core --out FOLDER --minutes 90 --workers 2   # the same command resumes
python -m benchmarks.quality --data DIR --full --out FOLDER --part 1/4                 # a quarter of the units
python -m benchmarks.quality --data DIR --core --out FOLDER --page   # benchmarks/results/quality.json, docs/evidence.md
python -m benchmarks.quality --data DIR --core --out FOLDER --add          # only what quality.json does not hold
python -m benchmarks.quality --data DIR --core --out FOLDER --page --add   # what FOLDER lacks stays as it was
python -m benchmarks.quality --page                                  # docs/evidence.md from quality.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality import grid, methods
from benchmarks.quality.page import page
from benchmarks.quality.runner import collect, lacking, run, save

from rareloss.tabular import DataError

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE.parent / "results", HERE.parents[1] / "docs"
CEILINGS = RESULTS / "headroom.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of npz files with X and y")
    parser.add_argument(
        "--sets",
        action="append",
        metavar="NAME",
        help="only this set, or NAME=CLASS: one class against the others; may be repeated",
    )
    parser.add_argument("--model", action="append", metavar="NAME", help="only this model; may be repeated")
    parser.add_argument("--objective", action="append", metavar="NAME", help="only this objective; may be repeated")
    parser.add_argument("--block", action="append", metavar="NAME", help="only this part of the grid; may be repeated")
    parser.add_argument("--splits", type=int, metavar="N", help="no set has more than so many splits")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--core", action="store_true", help="the core of the grid (the default)")
    size.add_argument("--full", action="store_true", help="all of it")
    parser.add_argument("--trials", type=int, default=grid.TRIALS, help="random draws of each method")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="the K-th of N parts, for several machines")
    parser.add_argument("--minutes", type=float, help="begin no unit later than this")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="folder of the finished units")
    parser.add_argument("--list", action="store_true", help="print the units and leave")
    parser.add_argument("--page", action="store_true", help="write the results file from --out, and the page from it")
    parser.add_argument(
        "--add", action="store_true", help="units of the results file do not run again; with --page they stay"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "quality.json", help="the results file")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where --page writes evidence.md")
    given = parser.parse_args(arguments)
    try:
        return _run(given)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2


def _run(given: argparse.Namespace) -> int:
    if given.page and given.out is None:
        return _write_page(given)
    if given.data is not None and not given.data.is_dir():
        raise DataError(f"{given.data} is no folder; --data is where the npz files are")
    part, parts = _part(given.part)
    every = grid.sets(given.data)
    chosen = list(dict.fromkeys(given.sets or every))
    if unknown := {name.partition("=")[0] for name in chosen} - set(every):
        raise DataError(f"there is no set {sorted(unknown)[0]!r}; there are {', '.join(every)}")
    sizes = {}
    for name in chosen:
        try:
            sizes[name] = grid.size_of(grid.open_set(name, given.data))
        except DataError as error:
            if given.sets:
                raise
            print(f"- {name} is left out: {error}")
    wanted = list(grid.units(grid.FULL if given.full else grid.CORE, sizes, given.splits))
    for what, asked, of in (
        ("model", given.model, lambda unit: unit.model),
        ("objective", given.objective, lambda unit: unit.objective),
        ("block", given.block, lambda unit: unit.block.name),
    ):
        if unknown := set(asked or ()) - {of(unit) for unit in wanted}:
            raise DataError(f"no unit of this grid has the {what} {sorted(unknown)[0]!r}")
        wanted = [unit for unit in wanted if not asked or of(unit) in asked]
    if given.add and not given.results.is_file():
        raise DataError(f"there is no results file {given.results} to add to; leave --add out")
    before = json.loads(given.results.read_text("utf-8")) if given.add else None
    if given.page:
        save(collect(given.out, wanted, before), given.results)
        return _write_page(given)
    if before is not None:
        wanted = lacking(before, wanted)
    mine = grid.part_of(wanted, part, parts)
    if given.list:
        print(*(f"{unit.folder}, split {unit.seed}" for unit in mine), sep="\n")
        return 0
    if given.out is None:
        raise DataError("name a folder for the finished units: --out FOLDER")
    for sentence in methods.missing():
        print(f"- {sentence}")
    left = run(mine, given.data, given.out, workers=given.workers, minutes=given.minutes, trials=given.trials, say=_say)
    print(f"{left} units are left; the same command goes on" if left else "all units are finished")
    return 0


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _part(text: str) -> tuple[int, int]:
    try:
        part, parts = (int(number) for number in text.split("/"))
    except ValueError:
        part, parts = 0, 0
    if not 1 <= part <= parts:
        raise DataError(f"--part is K/N, such as 1/4, with K from 1 to N; got {text!r}")
    return part, parts


def _write_page(given: argparse.Namespace) -> int:
    results = json.loads(given.results.read_text("utf-8"))
    ceilings = json.loads(CEILINGS.read_text("utf-8")) if CEILINGS.is_file() else None
    (given.docs / "evidence.md").write_text(page(results, ceilings), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
