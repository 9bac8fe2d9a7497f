"""Replay the pools of a real training run: does a step get slow as scores grow and their tails get heavy?

A ``rareloss compare`` is run, its Smooth-AP methods seen by a recorder around ``SmoothAPLoss.soft``; then every
recorded pool is ranked again, in interleaved rounds, and its time set against the median of the pools of its size.
"""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.speed.machine import now
from benchmarks.speed.measure import quartiles, time_of

from rareloss import functional
from rareloss.losses import ranking
from rareloss.ops import standardize

__all__ = ["load_or_record", "record", "replay"]

Pool = dict[str, Any]


def record(data: str, *, every: int = 10, trials: int = 2, networks: tuple[str, ...] = ("linear", "mlp")) -> list[Pool]:
    """Train by ``compare`` for average precision and keep each ``every``-th pool that a Smooth-AP step ranks.

    Args:
        data: what ``compare`` reads.
        every: in steps; each stage of ``compare`` has about a hundred.
        trials: of cross-entropy, from which the stages start.
        networks: the models.

    Returns:
        pools as ``scores``, ``positive``, ``weight`` (each ``[M, C]``) and ``temperature``, in the order of training.
    """
    from rareloss.tabular import compare

    kept: list[Pool] = []
    original, steps = ranking.evaluate, 0

    def recorder(metric: Any, pool: Any, temperature: float, *options: Any, **more: Any) -> Any:
        nonlocal steps
        rows = pool.joined()
        if metric.name == "average_precision" and rows.scores.requires_grad:
            if steps % every == 0:
                standard, _, _ = standardize(rows)
                scores, positive, weight = (
                    each.detach().mT.clone() for each in (standard.scores, standard.is_positive, standard.weight)
                )
                kept.append({"scores": scores, "positive": positive, "weight": weight, "temperature": temperature})
            steps += 1
        return original(metric, pool, temperature, *options, **more)

    methods = ["smooth_ap_stage", "smooth_ap_warmup"]
    with patch.object(ranking, "evaluate", recorder):
        compare(data, objective="ap", seeds=1, trials=trials, models=networks, methods=methods, workers=1)
    return kept


def replay(pools: list[Pool], *, device: str = "cpu", rounds: int = 9) -> dict[str, Any]:
    """Time every pool's forward and backward, and return the row of the table.

    Pools of one size are compared with each other, whatever method and temperature they come from: ``value`` is the
    largest ratio of a pool's median time to the median over all pools of its size.
    """
    runs = [_step(pool, device) for pool in pools]
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for index, run in enumerate(runs):
            times[index].append(time_of(run, device, 3))
    medians = [quartiles(each)["median"] for each in times]
    sizes = [len(pool["scores"]) for pool in pools]
    usual = {
        size: quartiles([m for m, s in zip(medians, sizes, strict=True) if s == size])["median"] for size in set(sizes)
    }
    ratios = [median / usual[size] for median, size in zip(medians, sizes, strict=True)]
    slowest = max(range(len(ratios)), key=ratios.__getitem__)
    spread = quartiles([each / usual[sizes[slowest]] for each in times[slowest]])
    return {
        "key": "replay/smooth_ap",
        "what": "Smooth-AP on the pools of a training run: the slowest step over the median",
        "kind": "replay",
        "rows": max(sizes),
        "bar": 2.0,
        "stretch": None,
        "over": "",
        "cases": {
            str(index): {
                "rareloss": {
                    "median": ratio,
                    "ms": 1e3 * median,
                    "rows": size,
                    "temperature": pool["temperature"],
                    "range": _range(pool),
                }
            }
            for index, (pool, ratio, median, size) in enumerate(zip(pools, ratios, medians, sizes, strict=True))
        },
        "worst": str(slowest),
        "value": {"median": ratios[slowest], "low": spread["low"], "high": spread["high"]},
        "measured": now(),
    }


def load_or_record(data: str, kept: Path) -> list[Pool]:
    """Read the pools that an earlier run left at ``kept``, or record and leave them there."""
    if kept.exists():
        pools: list[Pool] = torch.load(kept)
        return pools
    pools = record(data)
    torch.save(pools, kept)
    return pools


def _step(pool: Pool, device: str) -> Any:
    scores = pool["scores"].to(device).clone().requires_grad_()
    positive = pool["positive"].to(device)
    weight = None if pool["weight"] is None else pool["weight"].to(device)

    def run() -> None:
        scores.grad = None
        value = functional.smooth_average_precision(scores, positive, weight, temperature=pool["temperature"]).value
        value.sum().backward()

    return run


def _range(pool: Pool) -> float:
    # In temperatures: what a grid has to span.
    scores = pool["scores"]
    return float((scores.max() - scores.min()) / pool["temperature"])
