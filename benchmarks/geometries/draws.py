"""The distributions: rows, labels, and the log-odds that no model can beat."""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logsumexp
from scipy.stats import norm

__all__ = ["Drawn", "bent", "best_line", "contested", "with_noise"]

WHERE_IT_BENDS = 1.5
STEEP, BACKWARD = 4.0, 0.7
CUE, SHIFT = 1.7, 2.5
POSITIVES, DECOYS = 0.0015, 0.012


class Drawn(NamedTuple):
    """Rows of which everything is known.

    Args:
        x: inputs ``[n, d]``.
        y: labels ``[n]`` in {0, 1}.
        truth: log-odds of the label given the inputs, ``[n]``: the best ranking there is.
    """

    x: np.ndarray
    y: np.ndarray
    truth: np.ndarray


def bent(rows: int, bend: float, rate: float, rng: np.random.Generator, *, conflict: bool = True) -> Drawn:
    r"""Draw rows whose log-odds turn around at the top by a known amount.

    .. math:: z = a + x_0 + \text{bend} \, (4 \max(x_1 - 1.5, 0) \mp 0.7 \min(x_1, 1.5))

    For bend 0 logistic regression is right. Else x_1 speaks against the class in the bulk and for it at the top, so
    that no slope of x_1 serves both, and a linear model has to choose. Without the conflict it speaks for the class in
    the bulk too, only less, and one slope serves both.

    Args:
        rows: how many.
        bend: from 0, where a line is right.
        rate: share of positives in expectation; sets a.
        rng: draws.
        conflict: whether the bulk says the opposite of the top.
    """
    x = rng.standard_normal((rows, 5))
    z = _bent(x, bend, conflict) + _offset(bend, rate, conflict)
    return Drawn(x.astype(np.float32), (rng.random(rows) < expit(z)).astype(np.int64), z)


def _bent(x: np.ndarray, bend: float, conflict: bool) -> np.ndarray:
    top, bulk = np.maximum(x[:, 1] - WHERE_IT_BENDS, 0.0), np.minimum(x[:, 1], WHERE_IT_BENDS)
    turned: np.ndarray = x[:, 0] + bend * (STEEP * top + (-BACKWARD if conflict else BACKWARD) * bulk)
    return turned


@cache
def _offset(bend: float, rate: float, conflict: bool) -> float:
    z = _bent(np.random.default_rng(0).standard_normal((500_000, 5)), bend, conflict)
    return float(brentq(lambda a: expit(z + a).mean() - rate, -40.0, 40.0))


@cache
def best_line(bend: float, rate: float, conflict: bool) -> float:
    """Compute the average precision of the best line, by a search over its angle in the plane of the first two inputs.

    Rows count as positives by their probability, so that no luck of labels is in it. The other inputs are noise.
    """
    drawn = bent(200_000, bend, rate, np.random.default_rng(1), conflict=conflict)
    chance = expit(drawn.truth)

    def value(angle: float) -> float:
        p = chance[np.argsort(-(drawn.x[:, 0] * np.cos(angle) + drawn.x[:, 1] * np.sin(angle)))]
        return float((p * np.cumsum(p) / np.arange(1, len(p) + 1)).sum() / p.sum())

    step = np.pi / 60
    coarse = max(np.arange(-np.pi / 2, np.pi / 2 + step, step), key=value)
    return max(value(angle) for angle in np.linspace(coarse - step, coarse + step, 17))


def contested(rows: int, rng: np.random.Generator) -> Drawn:
    """Draw rows whose positives share the top with eight times as many decoys.

    Of 20 normal inputs, positives (.15 %) and decoys (1.2 %) share a shift of 2.5 in three; positives alone have a
    cue of 1.7 in two more, up in both or down in both. So what tells them apart is bent, and matters at the top alone.
    """
    kind = rng.choice(3, rows, p=[1 - POSITIVES - DECOYS, DECOYS, POSITIVES])
    x = rng.standard_normal((rows, 20))
    x[kind > 0, :3] += SHIFT
    x[kind == 2, 3:5] += CUE * rng.choice([-1.0, 1.0], int((kind == 2).sum()))[:, None]
    shifted = norm.logpdf(x[:, :3], SHIFT).sum(1) - norm.logpdf(x[:, :3]).sum(1)
    cue = [norm.logpdf(x[:, 3:5], sign * CUE).sum(1) - norm.logpdf(x[:, 3:5]).sum(1) for sign in (-1, 1)]
    positive = np.log(POSITIVES) + shifted + logsumexp(cue, axis=0) - np.log(2)
    others = np.logaddexp(np.log(1 - POSITIVES - DECOYS), np.log(DECOYS) + shifted)
    return Drawn(x.astype(np.float32), (kind == 2).astype(np.int64), positive - others)


def with_noise(y: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Take the label from a share of the positives and give it to as many negatives, at random."""
    noisy = y.copy()
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    many = round(share * len(positives))
    noisy[rng.choice(positives, many, replace=False)] = 0
    noisy[rng.choice(negatives, many, replace=False)] = 1
    return noisy
