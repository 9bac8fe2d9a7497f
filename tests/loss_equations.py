"""The equations of rareloss's own losses, written out as plain loops over rows: slow, obvious, and nothing shared.

Only the equations are here: no tensors, no gradients by hand. They take complex numbers, so that a derivative is the
imaginary part of the value at ``z + i h`` over h, exact as nothing is subtracted (Squire and Trapp, "Using Complex
Variables to Estimate Derivatives of Real Functions", SIAM Review 1998).
"""

import cmath
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rareloss.losses import (
    PAUCAtBudgetLoss,
    RankingLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
)

__all__ = ["value_and_gradient"]

STEP = 1e-30  # h, in logits


class Row(NamedTuple):
    """A row, one entry for each class; what is not present is absent."""

    scores: list[complex]
    positive: list[bool]
    present: list[bool]


def value_and_gradient(
    loss: nn.Module, steps: Sequence[tuple[Tensor, Tensor]]
) -> tuple[list[float], list[list[float]]]:
    """Compute the value and the gradient of the logits at each step by the equation.

    Args:
        loss: one of rareloss's own, with a value in one number and nothing remembered.
        steps: logits ``[n, ...]`` and targets of each.

    Returns:
        values, and gradients as flat lists.
    """
    values, gradients = [], []
    remembered: list[Row] = []
    for logits, targets in steps:
        numbers = [complex(number) for number in logits.detach().double().reshape(-1).tolist()]
        if isinstance(loss, RankingLoss):
            value, weighted = _ranking(loss, targets, remembered, numbers)
            rows = _rows(loss, numbers, targets)
            valid = [row for row in rows if any(row.present)]
            remembered = (remembered + valid)[-loss.queue.size :] if loss.queue.size else []
        else:
            equation = _focal(loss, logits.shape, targets)
            value, weighted = equation(numbers), equation
        values.append(value.real)
        gradients.append(_derivatives(weighted, numbers))
    return values, gradients


def _derivatives(value: Callable[[list[complex]], complex], at: list[complex]) -> list[float]:
    found = []
    for place, number in enumerate(at):
        moved = list(at)
        moved[place] = number + 1j * STEP
        found.append(value(moved).imag / STEP)
    return found


# ---------------------------------------------------------------------------------------------------- ranking losses


def _ranking(
    loss: RankingLoss, targets: Tensor, remembered: list[Row], numbers: list[complex]
) -> tuple[complex, Callable[[list[complex]], complex]]:
    # The value; and what its gradient is the derivative of: each class over its live share f.
    def mean(numbers: list[complex], by_share: bool) -> complex:
        live = _rows(loss, numbers, targets)
        total, defined = 0j, 0
        for class_ in range(loss.num_classes):
            pool = [row for row in [*live, *remembered] if row.present[class_]]
            positive = [row.positive[class_] for row in pool]
            if len(set(positive)) < 2:
                continue
            share = sum(row.present[class_] for row in live) / len(pool) if by_share else 1.0
            if share:
                total += (1 - _metric(loss, [row.scores[class_] for row in pool], positive)) / share
            defined += 1
        return total / max(defined, 1) if loss.reduction == "mean" else total

    return mean(numbers, False), lambda moved: mean(moved, True)


def _rows(loss: RankingLoss, numbers: list[complex], targets: Tensor) -> list[Row]:
    classes, ignored = loss.num_classes, loss.ignore_index
    flat: list[float] = targets.reshape(-1).tolist()
    cut = [numbers[start : start + classes] for start in range(0, len(numbers), classes)]
    if len(flat) == len(numbers):  # a label for each logit
        labels = [flat[start : start + classes] for start in range(0, len(flat), classes)]
        return [
            Row(scores, [label == 1 for label in row], [label != ignored for label in row])
            for scores, row in zip(cut, labels, strict=True)
        ]
    return [
        Row(_log_odds(scores), [class_ == label for class_ in range(classes)], [label != ignored] * classes)
        for scores, label in zip(cut, flat, strict=True)
    ]


def _log_odds(logits: list[complex]) -> list[complex]:
    found = []
    for class_, logit in enumerate(logits):
        others = [other for k, other in enumerate(logits) if k != class_]
        top = max(other.real for other in others)
        found.append(logit - top - cmath.log(sum(cmath.exp(other - top) for other in others)))
    return found


def _metric(loss: RankingLoss, scores: list[complex], positive: list[bool]) -> complex:
    if loss.temperature_unit == "std":
        mean = sum(scores) / len(scores)
        spread = cmath.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores)) or 1.0
        scores = [(score - mean) / spread for score in scores]
    positives = [score for score, is_positive in zip(scores, positive, strict=True) if is_positive]
    negatives = [score for score, is_positive in zip(scores, positive, strict=True) if not is_positive]
    t = float(loss.temperature)
    if isinstance(loss, RecallAtQuantileLoss):
        counted = scores if loss.among == "all" else negatives
        theta = _threshold(counted, loss.quantile * len(counted), t)
        return _count(positives, theta, t) / len(positives)
    if isinstance(loss, PAUCAtBudgetLoss):
        return _partial_auc(positives, negatives, loss.alpha, loss.beta, t)
    precision = [(0.5 + _count(positives, at, t)) / (0.5 + _count(scores, at, t)) for at in positives]
    return sum(precision) / len(positives)


def _step(x: complex) -> complex:
    return 1 / (1 + cmath.exp(-x)) if x.real >= 0 else cmath.exp(x) / (1 + cmath.exp(x))


def _count(scores: list[complex], at: complex, t: float) -> complex:
    return sum((_step((score - at) / t) for score in scores), 0j)


def _threshold(counted: list[complex], wanted: float, t: float) -> complex:
    # Bisection of the real part, until no number lies between the ends.
    real = [complex(score.real) for score in counted]
    low, high = min(score.real for score in real) - 50 * t, max(score.real for score in real) + 50 * t
    while low < (middle := (low + high) / 2) < high:
        if _count(real, middle, t).real > wanted:
            low = middle
        else:
            high = middle
    # How the root moves with the scores: the means of their moves, by the slopes of their steps (as logs, which a gap
    # between two scores would round to 0).
    logs = [
        -abs((score.real - middle) / t) - 2 * math.log1p(math.exp(-abs((score.real - middle) / t))) for score in real
    ]
    slopes = [math.exp(log - max(logs)) for log in logs]
    moved = sum(slope * score.imag for slope, score in zip(slopes, counted, strict=True)) / sum(slopes)
    return complex(middle, moved)


def _partial_auc(positives: list[complex], negatives: list[complex], alpha: float, beta: float, t: float) -> complex:
    first, last = alpha * len(negatives), beta * len(negatives)
    total, before = 0j, 0
    for level in sorted({score.real for score in negatives}, reverse=True):
        tied = [score for score in negatives if score.real == level]
        inside = max(0.0, min(before + len(tied), last) - max(before, first)) / len(tied)
        if inside:
            total += inside * sum(_count(positives, score, t) for score in tied)
        before += len(tied)
    return total / (len(positives) * (last - first))


# ------------------------------------------------------------------------------------------------------ focal losses


def _focal(loss: nn.Module, shape: torch.Size, targets: Tensor) -> Callable[[list[complex]], complex]:
    flat: list[float] = targets.reshape(-1).tolist()
    classes = shape[1] if isinstance(loss, SoftmaxFocalLoss) and len(shape) > 1 else shape[-1] if shape else 1
    inner = math.prod(shape[2:])

    def equation(numbers: list[complex]) -> complex:
        total, counted, positives = 0j, 0, 0
        for place, label in enumerate(flat):
            if label == loss.ignore_index:
                continue
            counted += 1
            if isinstance(loss, SigmoidFocalLoss):
                total += _sigmoid_focal(numbers[place], label == 1, _of_class(loss.alpha, place % classes), loss.gamma)
                positives += label == 1
            elif isinstance(loss, SoftmaxFocalLoss):
                row, rest = divmod(place, inner)
                logits = [numbers[(row * classes + class_) * inner + rest] for class_ in range(classes)]
                alpha = _of_class(loss.alpha, int(label))
                total += _softmax_focal(logits, int(label), alpha, loss.gamma, loss.label_smoothing)
                positives += label != loss.background_class
        divisor = {"mean": counted, "mean_positive": positives, "sum": 1}[str(loss.reduction)]
        return total / max(divisor, 1)

    return equation


def _of_class(alpha: float | Tensor | None, class_: int) -> float | None:
    if not isinstance(alpha, Tensor):
        return alpha
    return float(alpha.expand(max(alpha.numel(), class_ + 1)).reshape(-1)[class_])


def _sigmoid_focal(logit: complex, positive: bool, alpha: float | None, gamma: float) -> complex:
    margin = logit if positive else -logit
    log_p = -cmath.log(1 + cmath.exp(-margin)) if margin.real > 0 else margin - cmath.log(1 + cmath.exp(margin))
    weight = 1.0 if alpha is None else alpha if positive else 1.0 - alpha
    return -weight * _step(-margin) ** gamma * log_p


def _softmax_focal(logits: list[complex], label: int, alpha: float | None, gamma: float, smoothing: float) -> complex:
    top = max(logit.real for logit in logits)
    exps = [cmath.exp(logit - top) for logit in logits]
    logs = [logit - top - cmath.log(sum(exps)) for logit in logits]
    rest = sum(exp for class_, exp in enumerate(exps) if class_ != label) / sum(exps)
    smoothed = (1 - smoothing) * logs[label] + smoothing / len(logits) * sum(logs)
    return -(1.0 if alpha is None else alpha) * rest**gamma * smoothed
