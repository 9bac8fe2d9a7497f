"""What is run on frozen embeddings: the part of PROTOCOL.md of that name, as code."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmarks.quality.grid import AT_BASE_RATE, Block, Size, Unit, units

__all__ = ["PLAN", "Part", "not_made", "planned"]


class Part(NamedTuple):
    """Some tasks under some model.

    Args:
        tasks: ``NAME=CLASS``, that class of the file ``NAME.npz`` against all others.
        model: its name.
        splits: of each task.
        objectives: as the grid names them.
    """

    tasks: tuple[str, ...]
    model: str
    splits: int
    objectives: tuple[str, ...] = ("ap", AT_BASE_RATE)


REUTERS = ("interest", "ship", "gnp")
TASKS = (*(f"reuters={topic}" for topic in REUTERS), "newsgroups=talk.religion.misc", "digits_head=8")
PLAN = (
    Part(TASKS, "linear", 10),
    Part(TASKS, "trees", 3),
    Part(tuple(f"reuters_pc{many}={topic}" for many in (8, 32) for topic in REUTERS), "linear", 5, ("ap",)),
    Part(TASKS, "mlp", 2, ("ap",)),
    Part(
        tuple(f"reuters={topic}" for topic in ("money-supply", "gold", "cpi", "sugar", "coffee", "cocoa")), "linear", 10
    ),
)


def planned(folder: Path) -> Iterator[Unit]:
    """Yield the units whose data are in a folder, in the order of the plan."""
    for part in PLAN:
        sizes = {task: Size(_rows(_path(task, folder))) for task in part.tasks if _path(task, folder).exists()}
        yield from units([Block("core", part.objectives, (part.model,), "core")], sizes, part.splits)


def not_made(folder: Path) -> list[str]:
    """Return the tasks of the plan whose data are not in a folder."""
    tasks = dict.fromkeys(task for part in PLAN for task in part.tasks)
    return [task for task in tasks if not _path(task, folder).exists()]


def _path(task: str, folder: Path) -> Path:
    return folder / f"{task.partition('=')[0]}.npz"


def _rows(path: Path) -> int:
    # Without reading the table: that looks at each column against each class.
    with np.load(path) as arrays:
        return len(arrays["y"])
