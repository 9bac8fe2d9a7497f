"""What is run: sets, objectives, models, methods and splits, cut into units that are finished one by one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmarks.quality import methods

from rareloss import Objective
from rareloss.table import DataError, Table, load
from rareloss.tabular.comparison.runs import TREES
from rareloss.tabular.methods import Method

__all__ = [
    "CORE",
    "FULL",
    "TRIALS",
    "Block",
    "Size",
    "Unit",
    "describe",
    "methods_of",
    "objective_of",
    "open_set",
    "part_of",
    "sets",
    "size_of",
    "splits_of",
    "units",
]

TRIALS = 8
BUILT_IN = ("flights", "digits")
SCORECARDS = ("linear", "additive", "linear_normal")
# The splits from 0 on were seen while the defaults were made.
FIRST_SEED = 100
# Below so many rows, so many splits: one of a small table says little, one of a large table takes long.
SPLITS = ((20_000, 20), (100_000, 10), (10**12, 5))
WAVES = (range(5), range(5, 20))
# A network's split takes several times as long as a scorecard's.
SPLITS_OF_NETWORKS = ((20_000, 10), (10**12, 5))


class Block(NamedTuple):
    """A part of the grid.

    Args:
        name: of its folder.
        objectives: ``"ap"``, ``"recall@top=rate"`` (the top base rate), or as :class:`rareloss.Objective` reads them.
        models: names.
        methods: what is trained beside tuned cross-entropy, which always is: ``"core"`` or ``"more"``.
    """

    name: str
    objectives: tuple[str, ...]
    models: tuple[str, ...]
    methods: str


class Size(NamedTuple):
    """How large a set is.

    Args:
        rows: all of them.
        classes: 2 for binary.
    """

    rows: int
    classes: int = 2


AT_BASE_RATE = "recall@top=rate"
CORE = (Block("core", ("ap", AT_BASE_RATE), (*SCORECARDS, TREES, "mlp"), "core"),)
FULL = (
    *CORE,
    Block("networks", ("ap", AT_BASE_RATE), ("mlp8", "mlp32"), "core"),
    Block("points", ("recall@top=0.5%", "recall@fpr=0.5%"), (*SCORECARDS, TREES, "mlp"), "core"),
    Block("methods", ("ap", AT_BASE_RATE), (*SCORECARDS, "mlp", "mlp8", "mlp32"), "more"),
)


@dataclass(frozen=True)
class Unit:
    """A model on one split of one set, under every method of a block.

    Args:
        block: the part of the grid.
        data: the set's name.
        objective: as the block names it.
        model: its name.
        seed: of the split.
    """

    block: Block
    data: str
    objective: str
    model: str
    seed: int

    @property
    def named(self) -> dict[str, str]:
        """What names it, but for its split."""
        return {"block": self.block.name, "data": self.data, "objective": self.objective, "model": self.model}

    @property
    def folder(self) -> str:
        """Where the finished unit lies, inside the output folder; units of other settings lie elsewhere."""
        objective = "".join(letter if letter.isalnum() else "-" for letter in self.objective)
        return f"{self.block.name}/{self.data}/{objective}/{self.model}"


def sets(folder: Path | None) -> list[str]:
    """Return the names of all sets: the npz files in a folder that hold ``X`` and ``y``, then those of packages."""
    found = []
    for path in sorted(folder.glob("*.npz")) if folder else ():
        with np.load(path) as arrays:
            if "X" in arrays and "y" in arrays:
                found.append(path.stem)
    return [*found, *BUILT_IN]


@cache
def open_set(name: str, folder: Path | None) -> Table:
    """Read a set; kept for the next unit of this process. ``name=class`` is that class against all others."""
    plain, one_class, positive = name.partition("=")
    if not one_class:
        return load(name) if name in BUILT_IN or folder is None else load(folder / f"{name}.npz")
    table = open_set(plain, folder)
    if positive not in table.classes:
        raise DataError(f"{plain} has no class {positive!r}; there are {', '.join(table.classes)}")
    target = (table.target == table.classes.index(positive)).astype(table.target.dtype)
    return replace(table, name=name, target=target, classes=("others", positive))


def objective_of(text: str, table: Table) -> Objective:
    """Read an objective; ``rate`` is the share of positives, of one class among many on average."""
    share = 1 / len(table.classes) if table.multiclass else table.rate
    return Objective.parse(text.replace("rate", f"{100 * share:.3g}%"))


def methods_of(unit: Unit, table: Table) -> tuple[Method, ...]:
    """Return what a unit trains; methods whose package is missing are left out."""
    objective = objective_of(unit.objective, table)
    if unit.model == TREES:
        return methods.outside(objective)
    return (
        methods.core(objective)
        if unit.block.methods == "core"
        else methods.more(objective, unit.model, table.multiclass)
    )


def size_of(table: Table) -> Size:
    """Return how large a table is."""
    return Size(len(table.target), len(table.classes))


def splits_of(size: Size, model: str) -> int:
    """Return how many splits a set has; half of them where a loss is computed for each of many classes."""
    plan = SPLITS if model in SCORECARDS else SPLITS_OF_NETWORKS
    splits = next(splits for most, splits in plan if size.rows < most)
    return splits if size.classes == 2 else max(1, splits // 2)


def units(blocks: Sequence[Block], sizes: Mapping[str, Size], most_splits: int | None = None) -> Iterator[Unit]:
    """Yield all units: five splits of everything before the sixth of anything, a split of every set before the next.

    Within that, scorecards and average precision come first. So a run that is stopped is a smaller run of this design.

    Args:
        blocks: the parts of the grid.
        sizes: of each set.
        most_splits: no set has more; None: as many as its size asks for.
    """
    for block in blocks:
        for seeds in WAVES:
            for model in block.models:
                for objective in block.objectives:
                    for seed in seeds:
                        for name, size in sizes.items():
                            if seed < splits_of(size, model) and (most_splits is None or seed < most_splits):
                                yield Unit(block, name, objective, model, FIRST_SEED + seed)


def part_of(every: Sequence[Unit], part: int, parts: int) -> list[Unit]:
    """Return the part'th of so many parts, 1 the first; each holds its share of every kind of unit."""
    return list(every[part - 1 :: parts])


def describe(table: Table) -> dict[str, object]:
    """Describe a set as the results hold it."""
    counts = np.bincount(table.target, minlength=len(table.classes))
    return {
        "rows": len(table.target),
        "features": table.frame.shape[1],
        "classes": len(table.classes),
        "positives": None if table.multiclass else int(counts[1]),
        "split_by": table.split_by,
        "sha256": table.sha256[:16],
    }
