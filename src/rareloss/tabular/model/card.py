"""What is known of a model: held-out metrics with intervals, and a page that says so."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from rareloss.decisions import clopper_pearson, quality
from rareloss.objectives import AveragePrecision, Objective

__all__ = ["LEVEL", "RESAMPLES", "measure", "metric_names", "page"]

LEVEL = 0.95
RESAMPLES = 200
MOST_EFFECTS = 15


def measure(
    scores: np.ndarray,
    probability: np.ndarray,
    labels: np.ndarray,
    threshold: float,
    objective: Objective,
    groups: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute what the card says of held-out rows.

    Shares of rows have Clopper-Pearson intervals, which take rows as independent; all else has percentiles of the
    Bayesian bootstrap: 200 times weights from ``numpy.random.default_rng(0).exponential(size=n)``, or one weight a
    group. The calibration error is that of :func:`rareloss.decisions.calibration.quality`.

    Args:
        scores: raw, ``[n]``.
        probability: of the positive class, ``[n]``.
        labels: bool, ``[n]``.
        threshold: a row scored above it is an alert.
        objective: what the model was chosen by.
        groups: ``[n]``, rows of which belong together.
        weight: ``[n]``, above 0; then shares of weight have intervals of the bootstrap too.

    Returns:
        ``rows``, ``positives``, ``alerts``, ``caught``; ``cap``, the best value that the objective can have on these
        rows; and by name ``value``, ``low`` and ``high``, or None where a
        share is of no rows.
    """
    alert = scores.astype(np.float64) > threshold
    caught, alerts, positives = int((alert & labels).sum()), int(alert.sum()), int(labels.sum())
    y, s = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(scores.astype(np.float64))
    tiny = np.finfo(np.float64).eps
    loss = -np.log(np.where(labels, probability, 1 - probability).clip(tiny, 1 - tiny))
    squared = (probability - labels) ** 2

    own = np.ones(len(scores)) if weight is None else weight

    def by(judged: Objective) -> Callable[[np.ndarray], float]:
        return lambda weight: float(judged.metric(s, y, torch.from_numpy(weight)).value)

    means: dict[str, Callable[[np.ndarray], float]] = {str(objective): by(objective)}
    means["ap"] = by(AveragePrecision())
    means["log_loss"] = lambda weight: float(np.average(loss, weights=weight))
    means["brier"] = lambda weight: float(np.average(squared, weights=weight))
    rng = np.random.default_rng(0)
    codes = np.arange(len(scores)) if groups is None else np.unique(groups, return_inverse=True)[1]
    drawn = [own * rng.exponential(size=codes.max() + 1)[codes] for _ in range(RESAMPLES)]
    shares = {"recall": (alert, labels), "precision": (labels, alert), "false_positive_rate": (alert, ~labels)}
    if weight is not None:
        means |= {name: partial(_weighted_share, *rows) for name, rows in shares.items() if rows[1].any()}
    metrics: dict[str, Any] = {}
    for name, mean in means.items():
        low, high = np.nanquantile([mean(weight) for weight in drawn], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        metrics[name] = {"value": mean(own), "low": float(low), "high": float(high)}
    metrics["ece"] = quality(probability, labels, weight, groups=groups).ece._asdict()
    if weight is None:
        metrics |= {name: _share(int((part & whole).sum()), int(whole.sum())) for name, (part, whole) in shares.items()}
    counts = {"rows": len(labels), "positives": positives, "alerts": alerts, "caught": caught}
    return {**counts, "cap": objective.best_value(float(np.average(labels, weights=own))), "metrics": metrics}


def _weighted_share(part: np.ndarray, whole: np.ndarray, weight: np.ndarray) -> float:
    return float(weight[part & whole].sum() / weight[whole].sum())


def _share(part: int, whole: int) -> dict[str, float] | None:
    if not whole:
        return None
    low, high = clopper_pearson(part, whole, LEVEL)
    return {"value": part / whole, "low": low, "high": high}


def metric_names(card: Mapping[str, Any]) -> dict[str, str]:
    """Name each metric of the card in words."""
    words = {
        "ap": "average precision",
        "log_loss": "log-loss",
        "brier": "Brier score",
        "ece": "calibration error (ECE)",
        "recall": "recall of the alerts",
        "precision": "precision of the alerts",
        "false_positive_rate": "false-positive rate of the alerts",
    }
    cap = card["held_out"].get("cap", 1.0)
    most = f" (at most {cap:.3f})" if cap < 1 else ""
    return {card["objective"]["text"]: f"{card['objective']['name']}, ranked{most}", **words}


def _effects(effects: Mapping[str, Any] | None) -> list[str]:
    """Write the strongest features, and what they add at some of their values."""
    if not effects:
        return []
    lines = [
        "## What it looks at",
        "",
        "What a feature adds to the score, 0 on average over the train rows. Strength is its standard deviation; "
        "`card.json` has all of them, and `rareloss score --reasons 3` names the largest by row.",
        "",
        "| feature | strength | adds at its values |",
        "| --- | --- | --- |",
    ]
    for name, effect in list(effects.items())[:MOST_EFFECTS]:
        points = effect["points"] if len(effect["points"]) <= 8 else effect["points"][:8]
        told = ", ".join(f"{_value(value)}: {added:+.2f}" for value, added in points)
        lines.append(f"| {_cell(name)} | {effect['strength']:.2f} | {_cell(told)} |")
    return [*lines, ""]


def _value(value: Any) -> str:
    return "missing" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def page(card: Mapping[str, Any]) -> str:
    """Write the card as a page."""
    data, held, chosen = card["data"], card["held_out"], card["chosen"]
    words = metric_names(card)
    how = f"`{chosen['model']}`" + ("" if chosen["model"] == chosen["method"] else f" by `{chosen['method']}`")
    lines = [
        f"# {data['name']}: {card['classes'][1]}",
        "",
        f"Scores how likely a row is {card['classes'][1]!r}, by {how}, chosen "
        f"for {card['objective']['name']}. A score above {float(card['threshold']['value']):.6g} is an alert "
        f"({card['threshold']['about']}); probabilities are by {card['calibration']['method']}.",
        "",
        f"## On {held['rows']:,} held-out rows with {held['positives']:,} positives",
        "",
        f"{held['alerts']:,} alerts ({held['alerts'] / held['rows']:.2%} of the rows), {held['caught']:,} positives "
        "caught.",
        "",
        "| metric | value | 95 % interval |",
        "| --- | --- | --- |",
    ]
    for name, found in held["metrics"].items():
        row = (f"{found['value']:.4f}", f"{found['low']:.4f} to {found['high']:.4f}") if found else ("none", "")
        lines.append(f"| {words[name]} | {row[0]} | {row[1]} |")
    lines += [
        "",
        "Alerts are the rows above the kept threshold, cut on validation rows, so somewhat more or fewer than "
        "it was cut for may pass it here. What is ranked is judged without it.",
        "",
        f"Rows were split by {data['split_by']}, with seed {card['settings']['seed']}.",
        "",
    ]
    if data.get("grouped"):
        lines[-2] += (
            " Rows of one group were resampled together. The intervals of the alerts take rows as independent, so they "
            "are rather narrow."
        )
    lines += _effects(card.get("effects"))
    if card.get("compared"):
        lines += [card["compared"], ""]
    lines += ["## Data", "", f"{data['rows']:,} rows, sha256 `{data['sha256']}`.", ""]
    lines += [f"- {note}" for note in data["notes"]]
    lines += ["", "## Versions", "", ", ".join(f"{name} {number}" for name, number in card["versions"].items()), ""]
    return "\n".join(lines)
