"""Pools to rank, drawn by hypothesis, and the ranking functions with their oracles side by side."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import reference
from rareloss import functional, metrics

LAWS = ("normal", "ties", "wide", "clusters", "equal")


class Pool(NamedTuple):
    """One class: scores float64 ``[M]``, positives, weights."""

    scores: Tensor
    positive: Tensor
    weight: Tensor

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
        return self.scores.detach().double().numpy(), self.positive.numpy(), self.weight.double().numpy()


def make_pool(seed: int, rows: int, law: str = "normal", *, weighted: bool = True) -> Pool:
    """Draw a pool with a present positive and a present negative; a fifth of the rows of weighted ones are absent."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, generator=generator, dtype=torch.float64)
    if law == "ties":
        scores = (2 * scores).round() / 2
    elif law == "wide":
        scores = scores * 10.0 ** torch.randint(-2, 4, (rows,), generator=generator).double()
    elif law == "clusters":
        scores = scores / 10 + 50.0 * torch.randint(0, 3, (rows,), generator=generator).double()
    elif law == "equal":
        scores = torch.full_like(scores, 0.75)
    positive = torch.rand(rows, generator=generator) < 0.3
    weight = torch.ones(rows, dtype=torch.float64)
    if weighted:
        weight = 0.25 + 2 * torch.rand(rows, generator=generator, dtype=torch.float64)
        weight[torch.rand(rows, generator=generator) < 0.2] = 0.0
        weight[:2] = torch.tensor([1.0, 0.5], dtype=torch.float64)
    positive[0], positive[1] = True, False
    # Float32 holds these scores and weights exactly, so that both precisions rank the same pool.
    return Pool(scores.float().double(), positive, weight.float().double())


@st.composite
def pools(draw: st.DrawFn, laws: tuple[str, ...] = LAWS, most: int = 24) -> Pool:
    seed = draw(st.integers(0, 2**31))
    return make_pool(seed, draw(st.integers(2, most)), draw(st.sampled_from(laws)), weighted=draw(st.booleans()))


class Ranking(NamedTuple):
    """A soft metric, its hard twin and its oracle, at one operating point."""

    soft: Callable[..., functional.PerClass]
    hard: Callable[..., functional.PerClass]
    oracle: Callable[..., float]
    takes_iid: bool


def _recall(quantile: float, among: str) -> Ranking:
    return Ranking(
        lambda s, p, w=None, *, temperature=0.1, **kw: functional.soft_recall_at_quantile(
            s, p, w, quantile=quantile, among=among, temperature=temperature, **kw
        ),
        lambda s, p, w=None, **kw: metrics.recall_at_quantile(s, p, w, quantile=quantile, among=among, **kw),
        lambda s, p, w, t, iid=None: reference.soft_recall_at_quantile(s, p, w, quantile, among, t, iid),
        takes_iid=True,
    )


def _partial_auc(alpha: float, beta: float) -> Ranking:
    return Ranking(
        lambda s, p, w=None, *, temperature=0.1, **kw: functional.soft_partial_auc(
            s, p, w, alpha=alpha, beta=beta, temperature=temperature, **kw
        ),
        lambda s, p, w=None, **kw: metrics.partial_auc(s, p, w, alpha=alpha, beta=beta, **kw),
        lambda s, p, w, t, iid=None: reference.soft_partial_auc(s, p, w, alpha, beta, t, iid),
        takes_iid=True,
    )


RANKINGS = {
    "ap": Ranking(
        lambda s, p, w=None, *, temperature=0.1: functional.smooth_average_precision(s, p, w, temperature=temperature),
        metrics.average_precision,
        reference.smooth_average_precision,
        takes_iid=False,
    ),
    "recall_top_23": _recall(0.23, "all"),
    "recall_fpr_17": _recall(0.17, "negatives"),
    "pauc_0_31": _partial_auc(0.0, 0.31),
    "pauc_13_57": _partial_auc(0.13, 0.57),
    "auc": _partial_auc(0.0, 1.0),
}
WITH_IID = {name: ranking for name, ranking in RANKINGS.items() if ranking.takes_iid}


def gradient(
    soft: Callable[..., functional.PerClass], scores: Tensor, *rest: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    """Return value and gradient of a soft metric."""
    leaf = scores.detach().clone().requires_grad_()
    value = soft(leaf, *rest, **options).value
    value.nansum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad
