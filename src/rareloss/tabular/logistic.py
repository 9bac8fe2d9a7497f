"""Logistic regression solved to convergence, the draws that tune it, and samples of rows that stand for all.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any, TypeVar, cast

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from rareloss.tabular.tuning import between, cube
from rareloss.training import Batch, select_rows

__all__ = [
    "in_log_odds",
    "logistic_draws",
    "mean_weight",
    "platt",
    "relative_weight",
    "sample",
    "search",
    "solve_logistic",
]

# The Hessian of so many weights is solved whole; beyond this, by conjugate gradients, which is faster and as exact.
MOST_UNKNOWNS = 1000
# Of a search beyond the draws: the factor on C, and where it ends.
STEP, LEAST_C = 0.3, 1e-5

Draw = TypeVar("Draw", bound=Mapping[str, Any])
Found = TypeVar("Found")


def relative_weight(weight: Any) -> np.ndarray:
    """Divide the weights of rows by their mean, so that a factor on all of them changes nothing.

    Every way from rows to a model calls this once, before rows are split or sampled.

    Args:
        weight: ``[n]``, not negative. Rows of weight 0 are absent, and have no part in the mean.

    Returns:
        float64 ``[n]``; what float32, in which models are trained, takes for 0 is 0.

    Example:
        >>> relative_weight([1e155, 3e155, 0.0]).tolist()
        [0.5, 1.5, 0.0]
    """
    weight = np.asarray(weight, dtype=np.float64)
    relative = weight / mean_weight(weight)
    return np.where(relative < np.finfo(np.float32).tiny, 0.0, relative)


def mean_weight(weight: np.ndarray) -> float:
    """Compute the mean of the weights above 0; 1 where there is none."""
    largest = float(weight.max(initial=0.0)) or 1.0
    present = weight[weight > 0] / largest  # first, since a sum of large weights overflows
    return largest * float(present.mean()) if len(present) else 1.0


def logistic_draws(trials: int, seed: int) -> list[dict[str, float]]:
    """Draw penalties (C) and class weights for logistic regression: the usual setting, then random ones."""
    drawn = cube(trials - 1, 2, seed)
    return [{"C": 1.0, "class_weight": 1.0}] + [
        {"C": between(penalty, 0.1, 1000), "class_weight": between(weight, 0.3, 100)} for penalty, weight in drawn
    ]


def search(draws: Iterable[Draw], fit: Callable[[Draw], Found], judge: Callable[[Found], float]) -> tuple[Draw, Found]:
    """Fit each draw, then ever larger penalties for as long as the largest one tried is the best.

    Small tables of many inputs ask for more than any range foresees, and an end of the range that is chosen says so.

    Args:
        draws: each with a ``"C"``, and a ``"kind"`` where inputs are chosen too: penalties of one kind compare.
        fit: makes what is judged.
        judge: says how good it is; more is better.

    Returns:
        the best draw, and what it made.
    """
    tried = [(judge(found), draw, found) for draw in draws for found in [fit(draw)]]
    while True:
        _, draw, found = max(tried, key=itemgetter(0))
        alike = [other["C"] for _, other, _ in tried if other.get("kind") == draw.get("kind")]
        if draw["C"] > min(alike) or draw["C"] <= LEAST_C:
            return draw, found
        further = cast(Draw, {**draw, "C": float(f"{STEP * draw['C']:.3g}")})
        found = fit(further)
        tried.append((judge(found), further, found))


def solve_logistic(
    x: Tensor,
    target: np.ndarray,
    class_weight: Mapping[int, float],
    C: float,
    weight: Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    dtype: torch.dtype = torch.float64,
    start: nn.Linear | None = None,
) -> tuple[nn.Linear, bool]:
    """Solve logistic regression to convergence.

    Args:
        x: inputs ``[n, d]``.
        target: class indices ``[n]``.
        class_weight: by class.
        C: inverse penalty.
        weight: of the rows.
        tolerance: largest entry of the gradient of the mean loss.
        dtype: of the arithmetic.
        start: the solution of a similar problem, to start from.

    Returns:
        the model, with one output for two classes, else one a class; and whether the solver converged.
    """
    classes = len(class_weight)
    outputs = 1 if classes == 2 else classes
    solver = LogisticRegression(
        C=C,
        class_weight=dict(class_weight),
        solver="newton-cholesky" if (x.shape[1] + 1) * outputs <= MOST_UNKNOWNS else "newton-cg",
        tol=tolerance,
        max_iter=1000,
        warm_start=start is not None,
    )
    if start is not None:
        solver.coef_, solver.intercept_ = (one.detach().to(dtype).numpy() for one in (start.weight, start.bias))
    with warnings.catch_warnings(record=True) as caught:
        # An ill-conditioned Hessian makes scikit-learn go on with lbfgs, which is what is wanted.
        warnings.simplefilter("always")
        solver.fit(x.to(dtype).numpy(), target, None if weight is None else weight.to(dtype).numpy())
        converged = not any(issubclass(each.category, ConvergenceWarning) for each in caught)
    model = nn.Linear(x.shape[1], outputs)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(solver.coef_))
        model.bias.copy_(torch.from_numpy(solver.intercept_))
    return model, converged


def in_log_odds(scores: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> tuple[float, float]:
    """Find slope and offset that make scores ``[n]`` log-odds on these rows, by logistic regression.

    A score that ranks the wrong way round would be turned; it is flattened at least.
    """
    centre, spread = float(scores.mean()), float(scores.std())
    if not spread:
        rate = float(np.average(target, weights=weight))
        return 1.0, float(np.log(rate / (1 - rate))) - centre
    solver = LogisticRegression(C=np.inf, tol=1e-8, solver="newton-cholesky")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above, or the classes are told apart without fault
        solver.fit((scores[:, None] - centre) / spread, target, weight)
    slope = max(float(solver.coef_[0, 0]) / spread, 1e-12)
    return slope, float(solver.intercept_[0]) - slope * centre


def platt(scores: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> tuple[float, float]:
    r"""Find slope and offset that make scores log-odds, from rows that the scores were not fitted on.

    As :func:`in_log_odds`, with the targets :math:`\frac{P + 1}{P + 2}` and :math:`\frac{1}{N + 2}` for P positives
    and N negatives, so that rows which are told apart without fault do not make the slope infinite.

    Reference:
        Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    own = np.ones(len(scores)) if weight is None else weight
    positives = int((target == 1).sum())
    soft = np.where(target == 1, (positives + 1) / (positives + 2), 1 / (len(target) - positives + 2))
    both = np.repeat([1, 0], len(scores))
    return in_log_odds(np.tile(scores, 2), both, np.append(own * soft, own * (1 - soft)))


@torch.no_grad()
def sample(whole: Batch, size: int, generator: torch.Generator, model: nn.Module | None = None) -> Batch:
    """Draw rows of a binary problem that stand for all by their weights, those which decide a ranking among them.

    Positives whole (at most half of the sample); of the room that is left, one half for the negatives which the model
    scores highest, whole, and one for a random sample of the others.

    Args:
        whole: all rows.
        size: of the sample; no more rows than this are returned as they are.
        generator: draws them.
        model: scores the rows; without one, all negatives are drawn at random.
    """
    if len(whole.targets) <= size:
        return whole
    positive, negative = (whole.targets == 1).nonzero()[:, 0], (whole.targets == 0).nonzero()[:, 0]
    room = size - min(len(positive), size // 2)
    top = negative[:0]
    if model is not None and len(negative) > room:
        highest = torch.zeros(len(negative), dtype=torch.bool)
        highest[model(whole.inputs)[negative, 0].topk(room // 2).indices] = True
        top, negative = negative[highest], negative[~highest]
    rows, weights = [top], [torch.ones(len(top))]
    for stratum, many in ((positive, size // 2), (negative, room - len(top))):
        some = stratum[torch.randperm(len(stratum), generator=generator)[:many]]
        rows.append(some)
        weights.append(torch.full((len(some),), len(stratum) / max(1, len(some))))
    return select_rows(whole, torch.cat(rows), torch.cat(weights))
