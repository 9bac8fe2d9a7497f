"""How time, memory and growth are measured.

Time is compared in one process and with one thread, as CPU time. Every contestant runs beside the reference alone: the
two take turns, round after round, so that whatever slows the machine slows both, and no third one empties the caches
between them. A ratio or a difference is taken within a round; its median and quartiles over the rounds are reported.
"""

import ctypes
import gc
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "FITTED",
    "Build",
    "Clock",
    "Run",
    "command_output",
    "count_syncs",
    "exponent",
    "interleave",
    "peak_of",
    "quartiles",
    "sample",
    "time_of",
]

Run = Callable[[], object]
# Takes device and rows, and returns what is timed: one forward and backward pass, with a fresh gradient.
Build = Callable[[str, int], Run]
Clock = Callable[[], float]

# A shorter run is repeated within its round.
SHORTEST = 0.02
MOST_ROUNDS = 41
# Growth is fitted to pools of as many rows and more.
FITTED = 64_000
ROOT = Path(__file__).resolve().parents[2]


def time_of(run: Run, device: str = "cpu", times: int = 1, *, clock: Clock = time.process_time) -> float:
    """Measure seconds per call: on the CPU by ``clock``, on a GPU the time between two of its events."""
    if device == "cpu":
        started = clock()
        for _ in range(times):
            run()
        return (clock() - started) / times
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / times


def interleave(
    *runs: Run, device: str = "cpu", seconds: float, fewest: int = 5, clock: Clock = time.process_time
) -> list[list[float]]:
    """Time the runs in turn, round after round, for about ``seconds`` each; entry r of every list is of round r."""
    cost = []
    for run in runs:
        run()  # warms up
        cost.append(max(time_of(run, device, clock=clock), 1e-7))
    repeats = [math.ceil(SHORTEST / each) for each in cost]
    slowest = max(each * times for each, times in zip(cost, repeats, strict=True))
    rounds = 3 if slowest > seconds else min(MOST_ROUNDS, max(fewest, int(seconds / slowest)))
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for index, run in enumerate(runs):
            if repeats[index] > 1:
                run()  # brings back its data, after the other's
            times[index].append(time_of(run, device, repeats[index], clock=clock))
    return times


def sample(build: Build, device: str, rows: int, *, seconds: float) -> float:
    """Return the median time of a few calls in a row, of two where one takes longer than ``seconds``."""
    run = build(device, rows)
    run()  # warms up
    times = [time_of(run, device)]
    while len(times) < 2 or (sum(times) < seconds and len(times) < MOST_ROUNDS):
        times.append(time_of(run, device))
    return statistics.median(times)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def exponent(sizes: Sequence[int], seconds: Sequence[float], *, least: int = FITTED) -> float | None:
    """Fit the slope of log time over log rows by least squares, over ``least`` rows and more."""
    points = [(math.log(m), math.log(s)) for m, s in zip(sizes, seconds, strict=True) if m >= least]
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def peak_of(build: Build, device: str, rows: int) -> float:
    """Measure the peak of extra memory in bytes a row, the gradient included; call it in a fresh process only."""
    # A 64th of the rows first, so that what is loaded or planned once is not counted.
    build(device, max(1, min(rows, max(1024, rows // 64))))()
    run = build(device, rows)
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / rows
    _forget_peak()
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / rows


def command_output(*arguments: str, **environment: str) -> Any:
    """Run ``python -m benchmarks.speed`` in a process of its own and return the JSON of its last line.

    Raises:
        RuntimeError: the command failed; with its last line.
    """
    command = [sys.executable, "-m", "benchmarks.speed", *arguments]
    # This process may run elsewhere, and what it imports must be what the other imports.
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    if finished.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {finished.stderr.strip().splitlines()[-1:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def count_syncs(run: Run) -> int:
    """Count how often a call makes the host wait for the GPU, as torch reports it."""
    run()
    torch.cuda.synchronize()
    mode: Any = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum("synchroniz" in str(each.message) for each in caught)


def _forget_peak() -> None:
    # Memory that was freed while the inputs were made may still belong to the process, and would be used again unseen.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    # The inputs' own making has a peak too; Linux forgets it on request.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > 1.05 * _status("VmRSS"):
            raise RuntimeError("this system does not forget the memory of the inputs' making") from None


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
