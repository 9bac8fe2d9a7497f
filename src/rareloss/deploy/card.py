"""What is known of a model: held-out metrics with intervals, and a page that says so."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from rareloss import Objective
from rareloss.decide.intervals import clopper_pearson

__all__ = ["LEVEL", "RESAMPLES", "measure", "page"]

LEVEL = 0.95
RESAMPLES = 200


def measure(
    scores: np.ndarray, probability: np.ndarray, labels: np.ndarray, threshold: float, objective: Objective
) -> dict[str, Any]:
    """Compute what the card says of held-out rows.

    Shares of rows have Clopper-Pearson intervals; all else has percentiles of the Bayesian bootstrap: 200 times weights
    from ``numpy.random.default_rng(0).exponential(size=n)``.

    Args:
        scores: raw, ``[n]``.
        probability: of the positive class, ``[n]``.
        labels: bool, ``[n]``.
        threshold: a row scored above it is an alert.
        objective: what the model was chosen by.

    Returns:
        ``rows``, ``positives``, ``alerts``, ``caught``; and by name ``value``, ``low`` and ``high``, or None where a
        share is of no rows.
    """
    alert = scores.astype(np.float64) > threshold
    caught, alerts, positives = int((alert & labels).sum()), int(alert.sum()), int(labels.sum())
    y, s = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(scores.astype(np.float64))
    tiny = np.finfo(np.float64).eps
    loss = -np.log(np.where(labels, probability, 1 - probability).clip(tiny, 1 - tiny))
    squared = (probability - labels) ** 2

    def by(judged: Objective) -> Callable[[np.ndarray], float]:
        return lambda weight: float(judged.metric(s, y, torch.from_numpy(weight)).value)

    means: dict[str, Callable[[np.ndarray], float]] = {str(objective): by(objective)}
    means["ap"] = by(Objective("ap"))
    means["log_loss"] = lambda weight: float(np.average(loss, weights=weight))
    means["brier"] = lambda weight: float(np.average(squared, weights=weight))
    rng = np.random.default_rng(0)
    drawn = [rng.exponential(size=len(scores)) for _ in range(RESAMPLES)]
    metrics: dict[str, Any] = {}
    for name, mean in means.items():
        low, high = np.nanquantile([mean(weight) for weight in drawn], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        metrics[name] = {"value": mean(np.ones(len(scores))), "low": float(low), "high": float(high)}
    metrics["recall"] = _share(caught, positives)
    metrics["precision"] = _share(caught, alerts)
    metrics["false_positive_rate"] = _share(alerts - caught, len(labels) - positives)
    counts = {"rows": len(labels), "positives": positives, "alerts": alerts, "caught": caught}
    return {**counts, "metrics": metrics}


def _share(part: int, whole: int) -> dict[str, float] | None:
    if not whole:
        return None
    low, high = clopper_pearson(part, whole, LEVEL)
    return {"value": part / whole, "low": low, "high": high}


def page(card: Mapping[str, Any]) -> str:
    """Write the card as a page."""
    data, held, chosen = card["data"], card["held_out"], card["chosen"]
    words = {"log_loss": "log-loss", "brier": "Brier score", "false_positive_rate": "false-positive rate"}
    words["ap"] = "average precision"
    words[card["objective"]["text"]] = card["objective"]["name"]
    lines = [
        f"# {data['name']}: {card['classes'][1]}",
        "",
        f"Scores how likely a row is {card['classes'][1]!r}, by `{chosen['scorer']}` under `{chosen['arm']}`, chosen "
        f"for {card['objective']['name']}. A score above {card['threshold']['value']:.6g} is an alert "
        f"({card['threshold']['about']}); probabilities are by {card['calibration']['method']}.",
        "",
        f"## On {held['rows']:,} held-out rows with {held['positives']:,} positives",
        "",
        f"{held['alerts']:,} alerts, {held['caught']:,} positives caught.",
        "",
        "| metric | value | 95 % interval |",
        "| --- | --- | --- |",
    ]
    for name, found in held["metrics"].items():
        row = (f"{found['value']:.4f}", f"{found['low']:.4f} to {found['high']:.4f}") if found else ("none", "")
        lines.append(f"| {words.get(name, name)} | {row[0]} | {row[1]} |")
    lines += ["", f"Rows were split by {data['split_by']}, with seed {card['settings']['seed']}.", ""]
    if card.get("compared"):
        lines += [card["compared"], ""]
    lines += ["## Data", "", f"{data['rows']:,} rows, sha256 `{data['sha256']}`.", ""]
    lines += [f"- {note}" for note in data["notes"]]
    lines += ["", "## Versions", "", ", ".join(f"{name} {number}" for name, number in card["versions"].items()), ""]
    return "\n".join(lines)
