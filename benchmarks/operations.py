"""Count the torch operations of one forward and backward pass, by the function of rareloss that asks for them.

Small pools and training steps are not slow by what an operation works on but by how many there are, at some
microseconds each. What autograd runs by itself stands under "autograd".

python -m benchmarks.operations                     # the rows of the speed benchmark that small operations decide
python -m benchmarks.operations smooth_ap/1k
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.rows import OURS, Row, all_rows
from torch.utils._python_dispatch import TorchDispatchMode

import rareloss

__all__ = ["main", "operations"]

PACKAGE = str(Path(rareloss.__file__).parent)
ROWS = ("smooth_ap/1k", "recall/16k", "step/recall-1%", "step/pauc-1%", "step/smooth_ap-1%", "step/smooth_ap-10%")


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.by_place: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        frame, place = sys._getframe(1), "autograd"
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                place = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
                break
            frame = frame.f_back  # type: ignore[assignment]
        self.by_place[place] += 1
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], None]) -> Counter[str]:
    """Count the operations of one call, after one that is not counted."""
    run()
    with _Counting() as counting:
        run()
    return counting.by_place


def main(keys: Sequence[str]) -> None:
    """Print the counts of each row, the largest first."""
    rows: dict[str, Row] = {row.key: row for row in all_rows()}
    for key in keys:
        row = rows[key]
        found = operations(next(iter(row.cases.values()))()[OURS]("cpu", row.rows))
        most = ", ".join(f"{place} {number}" for place, number in found.most_common(8))
        print(f"{key}: {found.total()} operations; {most}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:] or ROWS)
