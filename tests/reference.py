"""Slow, obvious oracles in float64: plain loops over rows, one class at a time, no gradient, no shortcuts."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def step(x: float) -> float:
    """Return the sigmoid of ``x``."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x)) if x < 700 else 1.0
    return math.exp(x) / (1.0 + math.exp(x)) if x > -700 else 0.0


def central_differences(value: Callable[[Vector], float], at: Vector, width: float = 1e-6) -> Vector:
    """Return the gradient of ``value``, one coordinate after the other."""
    gradient = np.zeros_like(at)
    for m in range(at.size):
        above, below = at.copy(), at.copy()
        above.flat[m] += width
        below.flat[m] -= width
        gradient.flat[m] = (value(above) - value(below)) / (2.0 * width)
    return gradient


# Focal losses of one element, one row


def sigmoid_focal(logit: float, target: int, alpha: float | None, gamma: float) -> float:
    """Return ``-alpha_t (1 - p_t)^gamma log p_t``."""
    margin = logit if target == 1 else -logit
    log_p = -math.log1p(math.exp(-margin)) if margin > 0 else margin - math.log1p(math.exp(margin))
    one_minus_p = step(-margin)
    alpha_t = 1.0 if alpha is None else alpha if target == 1 else 1.0 - alpha
    return -alpha_t * one_minus_p**gamma * log_p


def softmax_focal(
    logits: Sequence[float], target: int, alpha: Sequence[float] | None, gamma: float, label_smoothing: float = 0.0
) -> float:
    """Return ``-alpha_y (1 - p_y)^gamma [(1 - e) log p_y + e / C sum_k log p_k]``."""
    largest = max(logits)
    total = sum(math.exp(z - largest) for z in logits)
    log_p = [z - largest - math.log(total) for z in logits]
    others = sum(math.exp(z - largest) for k, z in enumerate(logits) if k != target)
    smoothed = (1.0 - label_smoothing) * log_p[target] + label_smoothing / len(logits) * sum(log_p)
    alpha_y = 1.0 if alpha is None else alpha[target]
    return -alpha_y * (others / total) ** gamma * smoothed


# What soft metrics stand on


def soft_count(scores: Vector, weights: Vector, at: float, temperature: float) -> float:
    """Return ``sum_j w_j sigmoid((s_j - at) / t)``."""
    return sum(w * step((s - at) / temperature) for s, w in zip(scores, weights, strict=True) if w > 0)


def soft_threshold(scores: Vector, counted: Vector, share: float, temperature: float) -> float:
    """Return the root of ``C(theta) = share * W``: bisection until no float lies between the ends."""
    present = scores[counted > 0]
    reach = 60.0 * temperature
    low, high = float(present.min()) - reach, float(present.max()) + reach
    target = share * float(counted.sum())
    while True:
        middle = low + (high - low) / 2.0
        if middle <= low or middle >= high:
            return middle
        if soft_count(scores, counted, middle, temperature) > target:
            low = middle
        else:
            high = middle


def band_weights(scores: Vector, negative: Vector, alpha: float, beta: float) -> Vector:
    """Return how much of each negative's weight lies between ``alpha N`` and ``beta N``, counted from the top."""
    total = negative.sum()
    included = np.zeros_like(negative)
    before = 0.0
    for score in sorted(set(scores[negative > 0]), reverse=True):
        tied = (scores == score) & (negative > 0)
        weight = negative[tied].sum()
        inside = max(0.0, min(before + weight, beta * total) - max(before, alpha * total))
        included[tied] = negative[tied] * inside / weight
        before += weight
    return included


def mined_weights(scores: Vector, negative: Vector, mined: Vector, alpha: float, beta: float) -> Vector:
    """Return how much of each mined negative's weight lies in the band whose edges ``negative`` sets."""
    total = negative.sum()
    fractions = band_weights(scores, negative, alpha, beta)
    included = np.zeros_like(mined)
    for j in np.flatnonzero(mined):
        tied = np.flatnonzero((scores == scores[j]) & (negative > 0))
        above = negative[scores > scores[j]].sum()
        inside = (
            fractions[tied[0]] / negative[tied[0]]
            if len(tied)
            else float(alpha * total <= above and (above < beta * total or beta == 1))
        )
        included[j] = mined[j] * inside
    return included


def band_of(
    scores: Vector,
    positive: NDArray[np.bool_],
    weight: Vector,
    alpha: float,
    beta: float,
    iid: NDArray[np.bool_] | None,
) -> Vector:
    """Return the weight of every negative in the band, iid or mined."""
    iid = np.ones_like(positive) if iid is None else iid
    negative = weight * ~positive
    return band_weights(scores, negative * iid, alpha, beta) + mined_weights(
        scores, negative * iid, negative * ~iid, alpha, beta
    )


# Soft metrics of one class


def smooth_average_precision(scores: Vector, positive: NDArray[np.bool_], weight: Vector, temperature: float) -> float:
    """Return the weighted mean over positives of their rank among positives over their rank among all."""
    total = 0.0
    for i in np.flatnonzero(positive & (weight > 0)):
        among_positives = weight[i] / 2 + soft_count(scores, weight * positive, scores[i], temperature)
        among_all = weight[i] / 2 + soft_count(scores, weight, scores[i], temperature)
        total += weight[i] * among_positives / among_all
    return total / float((weight * positive).sum())


def soft_recall_at_quantile(
    scores: Vector,
    positive: NDArray[np.bool_],
    weight: Vector,
    quantile: float,
    among: str,
    temperature: float,
    iid: NDArray[np.bool_] | None = None,
) -> float:
    """Return the soft share of positives above the soft threshold."""
    counted = weight * (np.ones_like(positive) if iid is None else iid)
    if among == "negatives":
        counted = counted * ~positive
    theta = soft_threshold(scores, counted, quantile, temperature)
    return soft_count(scores, weight * positive, theta, temperature) / float((weight * positive).sum())


def soft_partial_auc(
    scores: Vector,
    positive: NDArray[np.bool_],
    weight: Vector,
    alpha: float,
    beta: float,
    temperature: float,
    iid: NDArray[np.bool_] | None = None,
) -> float:
    """Return the mean of ``sigmoid((s_i - s_j) / t)`` over positives i and negatives j of the band."""
    band = band_of(scores, positive, weight, alpha, beta, iid)
    total = 0.0
    for i in np.flatnonzero(positive & (weight > 0)):
        for j in np.flatnonzero(band):
            total += weight[i] * band[j] * step((scores[i] - scores[j]) / temperature)
    return total / float((weight * positive).sum() * band.sum())


def soft_partial_auc_gradient(
    scores: Vector,
    positive: NDArray[np.bool_],
    weight: Vector,
    alpha: float,
    beta: float,
    temperature: float,
    iid: NDArray[np.bool_] | None = None,
) -> Vector:
    """Return the gradient at fixed membership of the band, which is exact where no tie lies on an edge."""
    band = band_of(scores, positive, weight, alpha, beta, iid)
    gradient = np.zeros_like(scores)
    for i in np.flatnonzero(positive & (weight > 0)):
        for j in np.flatnonzero(band):
            at = step((scores[i] - scores[j]) / temperature)
            slope = weight[i] * band[j] * at * (1.0 - at) / temperature
            gradient[i] += slope
            gradient[j] -= slope
    return gradient / float((weight * positive).sum() * band.sum())


# Hard metrics of one class


def average_precision(scores: Vector, positive: NDArray[np.bool_], weight: Vector) -> float:
    """Return the sum over distinct scores, downwards, of precision times the gain of recall."""
    total = 0.0
    for score in set(scores[weight > 0]):
        above = scores >= score
        precision = (weight * positive * above).sum() / (weight * above).sum()
        total += precision * (weight * positive * (scores == score)).sum()
    return float(total / (weight * positive).sum())


def recall_at_quantile(
    scores: Vector,
    positive: NDArray[np.bool_],
    weight: Vector,
    quantile: float,
    among: str = "all",
    iid: NDArray[np.bool_] | None = None,
) -> float:
    """Return the share of positives above the score that ``quantile`` of the counted weight lies above."""
    counted = weight * (np.ones_like(positive) if iid is None else iid)
    if among == "negatives":
        counted = counted * ~positive
    capacity = quantile * counted.sum()
    taken = 0.0
    levels = sorted(set(scores[counted > 0]), reverse=True)
    theta, share = -math.inf, 0.0
    for place, score in enumerate(levels):
        tied = counted[scores == score].sum()
        if math.isclose(taken + tied, capacity, rel_tol=1e-12):
            theta = (score + levels[place + 1]) / 2.0
            break
        if taken + tied > capacity:
            theta, share = score, (capacity - taken) / tied
            break
        taken += tied
    found = (weight * positive * (scores > theta)).sum() + share * (weight * positive * (scores == theta)).sum()
    return float(found / (weight * positive).sum())


def partial_auc(
    scores: Vector,
    positive: NDArray[np.bool_],
    weight: Vector,
    alpha: float,
    beta: float,
    iid: NDArray[np.bool_] | None = None,
) -> float:
    """Return the area under the ROC's straight segments between two false-positive rates, over the width.

    Mined negatives in the band join as pairs, of which a tie counts one half.
    """
    negative = weight * ~positive * (np.ones_like(positive) if iid is None else iid)
    positives = weight * positive
    fpr, tpr = [0.0], [0.0]
    for score in sorted(set(scores[(negative > 0) | (positives > 0)]), reverse=True):
        fpr.append(float((negative * (scores >= score)).sum() / negative.sum()))
        tpr.append(float((positives * (scores >= score)).sum() / positives.sum()))
    area = 0.0
    for left in range(len(fpr) - 1):
        width = fpr[left + 1] - fpr[left]
        start, end = max(fpr[left], alpha), min(fpr[left + 1], beta)
        if width > 0 and end > start:
            middle = ((start + end) / 2.0 - fpr[left]) / width
            area += (end - start) * (tpr[left] + middle * (tpr[left + 1] - tpr[left]))
    if iid is None:
        return area / (beta - alpha)
    mined = mined_weights(scores, negative, weight * ~positive * ~iid, alpha, beta)
    pairs = sum(
        positives[i] * mined[j] * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
        for i in np.flatnonzero(positives)
        for j in np.flatnonzero(mined)
    )
    of_iid, width = area * negative.sum(), (beta - alpha) * negative.sum()
    return float((of_iid + pairs / positives.sum()) / (width + mined.sum()))
