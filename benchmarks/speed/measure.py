"""How time, memory and growth are measured.

Time is compared in one process: in every round each contestant runs once, in turn, so that whatever slows the machine
slows all of them; a ratio is taken within a round, and its median and quartiles over the rounds are what is reported.
"""

import gc
import json
import math
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "Build",
    "count_syncs",
    "exponent",
    "interleave",
    "peak_of",
    "peak_of_fresh_process",
    "quartiles",
    "sample",
    "time_of",
]

Run = Callable[[], object]
# Takes device and rows, and returns what is timed: one forward and backward, with a fresh gradient.
Build = Callable[[str, int], Run]

# A sample shorter than this is repeated within its round.
SHORTEST = 0.02
MOST_ROUNDS = 41


def time_of(run: Run, device: str, times: int = 1) -> float:
    """Measure seconds per call: CPU time of this process, or the time between two events of the GPU."""
    if device == "cpu":
        started = time.process_time()
        for _ in range(times):
            run()
        return (time.process_time() - started) / times
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / times


def interleave(
    builds: Mapping[str, Build], device: str, rows: int, *, seconds: float, fewest: int = 5
) -> dict[str, list[float]]:
    """Time the contestants in turn, round after round, each for about ``seconds`` in all and ``fewest`` rounds.

    The first is the reference and takes part in every round; one that is much slower leaves early, so its list is
    shorter. List entry r of every contestant is of the same round r.
    """
    runs = {name: build(device, rows) for name, build in builds.items()}
    cost = {}
    for name, run in runs.items():
        run()  # warms up
        cost[name] = max(time_of(run, device), 1e-7)
    times = {name: max(1, math.ceil(SHORTEST / each)) for name, each in cost.items()}
    rounds = {n: min(MOST_ROUNDS, max(fewest, int(seconds / (cost[n] * times[n])))) for n in runs}
    rounds |= {name: 3 for name in runs if cost[name] > seconds}  # minutes would tell no more
    reference, *others = runs
    rounds[reference] = max([rounds[name] for name in others], default=rounds[reference])
    found: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(max(rounds.values())):
        for name, run in runs.items():
            if index < rounds[name]:
                found[name].append(time_of(run, device, times[name]))
    return found


def sample(build: Build, device: str, rows: int, *, seconds: float) -> float:
    """Return the median time of a few calls in a row, of two where one takes longer than ``seconds``."""
    run = build(device, rows)
    found = [time_of(run, device)]
    while len(found) < 2 or (sum(found) < seconds and len(found) < MOST_ROUNDS):
        found.append(time_of(run, device))
    return statistics.median(found[1:])  # the first warms up


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def exponent(sizes: Sequence[int], seconds: Sequence[float], *, least: int = 64_000) -> float | None:
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


def peak_of_fresh_process(key: str, contestant: str, device: str) -> float:
    """Measure :func:`peak_of` one contestant of a row in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed", "--peak", key, contestant, "--device", device]
    finished = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[2]
    )
    if finished.returncode:
        raise RuntimeError(f"{contestant} of {key} failed: {finished.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(finished.stdout.splitlines()[-1]))


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
