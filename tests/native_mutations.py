"""Break the code on purpose, one line at a time, and see that a test notices.

``python -m tests.native_mutations`` copies the package, makes one change to the copy (a weight forgotten, an index off
by one, a part of a thread dropped), compiles the kernel where the change is in C++, and runs the tests that should
fail, ``tests/test_native.py`` as a rule. It prints, for each change, the first test that failed, or SURVIVED. First
the tests have to pass with no change at all. The real sources stay as they are. ``--only NAME`` tries one change.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from rareloss.ops import native

ROOT = Path(__file__).resolve().parent.parent
NATIVE = Path("rareloss", "ops", "native")
SECONDS = 300  # a change may let a loop run for ever


class Mutation(NamedTuple):
    """One change: of the text ``source``, which stands in the file once, to ``becomes``.

    Files without a folder are the kernel's.
    """

    name: str
    file: str
    source: str
    becomes: str
    tests: tuple[str, ...] = ("tests/test_native.py",)


MUTATIONS = (
    Mutation("the last cell's rows in the one before", "cells.h", "int32_t(cells - 1)", "int32_t(cells - 2)"),
    Mutation(
        "the expansion's last term missing",
        "cells.h",
        "for (int k = 0; k < Orders<T>::terms; k++)\n",
        "for (int k = 0; k < Orders<T>::terms - 1; k++)\n",
    ),
    Mutation(
        "sums decay by half a cell",
        "cells.h",
        "decay[k] = double(std::exp(-2 * half * (k + 1)))",
        "decay[k] = double(std::exp(-half * (k + 1)))",
    ),
    Mutation(
        "sums of light rows flushed to 0",
        "cells.h",
        "(sums.v[i] > 1e-190) | (sums.v[i] < -1e-190)",
        "(sums.v[i] > 1e-19) | (sums.v[i] < -1e-19)",
    ),
    Mutation("in cells, a row's half of its own pair forgotten", "cells.h", "kSelf = .5", "kSelf = 0"),
    Mutation(
        "the moments of the last thread dropped",
        "cells.h",
        "for (int64_t i = 2 * cells; i < 2 * cells * threads; i++)",
        "for (int64_t i = 2 * cells; i < 2 * cells * (threads - 1); i++)",
    ),
    Mutation("the walk's higher terms dropped too near", "cells.h", "e < 1e-13 ?", "e < 1e-3 ?"),
    Mutation(
        "in the walk, a negative's weight forgotten in its gradient",
        "average_precision.h",
        "narrow<T>(of.weight_of(j) * slope * -inverse)",
        "narrow<T>(slope * -inverse)",
    ),
    Mutation(
        "by pairs, a positive counts half at itself",
        "average_precision.h",
        "others.count + w_i",
        "others.count + w_i / 2",
    ),
    Mutation(
        "rows that are not live forgotten in the gradient through the standard deviation",
        "average_precision.h",
        "one.negatives * (near.moment + far.moment)",
        "one.negatives * near.moment",
    ),
    Mutation(
        "mined rows in the standard deviation",
        "pool.h",
        "ud = weighted ? weight.v[i] * iid.v[i] * d : d",
        "ud = weighted ? weight.v[i] * d : d",
    ),
    Mutation(
        "the variance about a row however far from the mean",
        "pool.h",
        "if (offset * offset <= 100 * variance || mean == anchor) break;",
        "break;",
    ),
    Mutation(
        "mined negatives in the weight that a rate is of",
        "pool.h",
        "rows.positive[j] || (iid && !iid[j]) ? 0.0 : weight",
        "rows.positive[j] ? 0.0 : weight",
    ),
    Mutation(
        "a thread takes its first part alone",
        "common.h",
        "for (int64_t part = first; part < parts; part += stride) work(part);",
        "if (first < parts) work(first);",
    ),
    Mutation(
        "the rows after the last whole chunk left out",
        "common.h",
        "parallel(threads, (n + chunk - 1) / chunk,",
        "parallel(threads, n / chunk,",
    ),
    Mutation(
        "a tie at the band's edge in it whole", "partial_auc.h", "other == score ? part : 0", "other == score ? 1 : 0"
    ),
    Mutation(
        "a tie at alpha in the band whole",
        "partial_auc.h",
        "top.of(of.score[j]) - left.of(of.score[j])",
        "top.of(of.score[j])",
    ),
    Mutation(
        "beta = 1 ends at the lowest iid negative", "partial_auc.h", "beta < 1 ? top_part", "beta <= 1 ? top_part"
    ),
    Mutation(
        "recall's share reached by the row below, but for rounding",
        "recall.h",
        "target * (1 - kRounding)",
        "target * (1 + kRounding)",
    ),
    Mutation(
        "the rows tied at recall's edge above it", "recall.h", "edge.above + edge.tied - target", "edge.above - target"
    ),
    Mutation(
        "a positive's pull on its own threshold forgotten",
        "recall.h",
        "in_both(rows) ? hit * share_of_both :",
        "in_both(rows) ? hit :",
    ),
    Mutation(
        "the weight above that other threads found", "select.h", "*above += beyond[part]", "*above = beyond[part]"
    ),
    Mutation("-0.0 sorted below 0.0", "sort.h", "    score += T(0);\n", ""),
    Mutation("negative scores sorted the wrong way", "sort.h", "bits & sign ? ~bits : bits | sign", "bits ^ sign"),
    Mutation(
        "exact: a negative tied with the lowest positive left out",
        "exact.h",
        "if (score[i] >= levels.score[0])",
        "if (score[i] > levels.score[0])",
    ),
    Mutation(
        "exact: the negatives of other threads dropped",
        "exact.h",
        "for (int64_t part = 0; part < parts; part++) misses",
        "for (int64_t part = 0; part < 1; part++) misses",
    ),
    Mutation(
        "the largest logit among its own rivals",
        "log_odds.h",
        "odds[top_class] = lead - log_positive(total)",
        "odds[top_class] = lead - log1p_positive(total)",
    ),
    Mutation("a class's own share in its gradient", "log_odds.h", "p * (shared - share[c])", "p * shared"),
    Mutation(
        "focal: no root but at gamma = 0.5",
        "focal.h",
        "const bool root = std::fmod(halves, 2) == 1",
        "const bool root = halves == 1",
    ),
    Mutation(
        "focal: smoothing forgotten in the target's slope",
        "focal.h",
        "scale * (s * p - (1 - s) * q[i]",
        "scale * ((s - 1) * q[i]",
    ),
    Mutation(
        "focal: an ignored label keeps its weight",
        "focal.h",
        "chunk.weight[i] = ignored ? T(0) : chunk.weight[i]",
        "chunk.weight[i] = chunk.weight[i]",
    ),
    Mutation(
        "focal: an ignored class index is a bad one", "focal.h", "sums.bad += !known && !ignored", "sums.bad += !known"
    ),
    Mutation("focal: alpha starts anew at each chunk", "focal.h", "at = start % alpha_period", "at = 0"),
    Mutation("soft counts: twice a row's own slope left out", "soft_count.h", "weight[a] / 4.0", "weight[a] / 2.0"),
    Mutation(
        "no gradient where less than 1% of the pool is live",
        "rareloss/losses/ranking.py",
        "share.masked_fill(share < 1e-12, 0.0)",
        "share.masked_fill(share < 1e-2, 0.0)",
        ("tests/test_queue.py",),
    ),
    Mutation(
        "by torch, the threshold's target not snapped to a sum of rows",
        "rareloss/ops/threshold.py",
        "target = torch.where(below_edge, with_edge, torch.where(above_edge, edge.above, edge.target))",
        "target = edge.target",
        ("tests/test_recall.py",),
    ),
    Mutation(
        "no search for another minimum",
        "rareloss/training/restarts.py",
        "return best if lowest < own_loss - _GAIN * abs(own_loss) else None",
        "return None",
        ("tests/test_finetune.py::test_another_minimum_is_found_where_the_path_ends_in_a_local_one",),
    ),
)


def variant() -> str:
    """Name the kernel's variant that this machine uses."""
    named = re.match(r"native kernel, variant (\w+):", native.why())
    if named is None:
        raise SystemExit(f"nothing to break: {native.why()}")
    return named[1]


def broken(mutation: Mutation, folder: Path) -> dict[str, str]:
    """Write the package with the change into a folder; return the settings of a process that uses it."""
    from hatch_build import compile_kernel

    package = folder / "src"
    shutil.copytree(ROOT / "src", package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / (NATIVE if "/" not in mutation.file else "") / mutation.file
    text = file.read_text()
    if (times := text.count(mutation.source)) != 1:
        raise SystemExit(f"{mutation.name}: {mutation.file} has its text {times} times, not once: {mutation.source!r}")
    file.write_text(text.replace(mutation.source, mutation.becomes))
    paths = [str(package), str(ROOT), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    if file.suffix != ".py":
        compile_kernel(package / NATIVE, folder, "-O1", only=variant())  # a third of the time that -O3 takes
        chosen = variant() if variant().startswith("v") else "1"
        settings |= {"RARELOSS_NATIVE": chosen, "RARELOSS_NATIVE_FOLDER": str(folder)}
    return settings


def caught(mutation: Mutation) -> str:
    """Name the first test that fails with the change; nothing where all pass."""
    with tempfile.TemporaryDirectory() as folder:
        settings = broken(mutation, Path(folder))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutation.tests]
        try:
            run = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"no end within {SECONDS} s"
    failed = re.search(r"^FAILED (\S+)", run.stdout, re.MULTILINE)
    if run.returncode == 1 and failed:
        return failed[1]
    if run.returncode < 0:
        return f"signal {-run.returncode}"
    if run.returncode:
        raise SystemExit(f"{mutation.name}: the tests did not run\n{run.stdout}{run.stderr}")
    return ""


def try_all(mutations: tuple[Mutation, ...], description: str) -> int:
    """Try mutations, or those that the command line names; return the number of those that no test noticed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [mutation.name for mutation in mutations]
    parser.add_argument("--only", choices=names, metavar="NAME", action="append", help="one change; may be repeated")
    only = parser.parse_args().only
    chosen = [mutation for mutation in mutations if only is None or mutation.name in only]
    tests = tuple(dict.fromkeys(test for mutation in chosen for test in mutation.tests))
    first = chosen[0]
    if failed := caught(first._replace(name="no change", becomes=first.source, tests=tests)):
        raise SystemExit(f"with no change at all there fails {failed}")
    survived = 0
    for mutation in chosen:
        found = caught(mutation)
        survived += not found
        where = mutation.file.rsplit("/", 1)[-1]
        print(f"{where:20} {mutation.name:80} {f'caught by {found}' if found else 'SURVIVED'}", flush=True)
    print(f"{len(chosen) - survived} caught, {survived} survived")
    return survived


if __name__ == "__main__":
    sys.exit(int(try_all(MUTATIONS, __doc__) > 0))
