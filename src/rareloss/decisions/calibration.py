"""Scores to probabilities by a map that keeps their order, chosen by nested validation.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.special import expit, log_expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from rareloss import checks
from rareloss.objectives import Objective, RecallAtTop

__all__ = ["METHODS", "Calibration", "Calibrator", "Estimate", "Quality", "calibrate", "quality"]

# With fewer positives than this a step function is noise, and maps of at most two numbers are tried alone.
FEW_POSITIVES = 30
# Venn-Abers is exact at this many scores where the class changes and as many others, and linear between them.
MOST_KNOTS = 100
BINS = 10
RESAMPLES = 200
LEVEL = 0.95
# What scikit-learn's log_loss clips at.
TINY = float(np.finfo(np.float64).eps)
# Log-odds beyond this are certain in float64.
CERTAIN = 700.0
# Sums and slopes of larger scores overflow.
LARGEST = 1e100


@dataclass(frozen=True)
class Calibrator:
    r"""A map from scores to probabilities that never decreases; plain numbers, so it is written as JSON.

    A formula, where ``scores`` is empty:

    .. math::
        z = \text{slope} \cdot s + \text{offset}, \qquad
        \operatorname{logit} p = \text{left} \log \sigma(z) - \text{right} \log \sigma(-z)
        + \text{constant} + \text{shift}

    else a table: ``probabilities`` at ``scores``, linear between them and constant beyond, and then the shift. Platt's
    map has left = right = 1 and constant = 0, the sigmoid also slope 1 and offset 0.

    Args:
        method: what it was fitted by.
        slope: not negative.
        offset: added to the scaled score.
        left: exponent on the side of low scores, not negative.
        right: exponent on the side of high scores, not negative.
        constant: added to the log-odds.
        scores: increasing, ``[k]``.
        probabilities: not decreasing, in [0, 1], ``[k]``.
        shift: of the log-odds, from the rows that it was fitted on to deployment.

    Raises:
        ValueError: a number that is not finite or out of range, or a table that is not in order.

    Example:
        >>> platt = Calibrator("platt", slope=2.0, offset=-1.0)
        >>> platt([0.5, 3.0]).round(4)
        array([0.5   , 0.9933])
        >>> Calibrator.from_json(platt.to_json()) == platt
        True
    """

    method: str
    slope: float = 1.0
    offset: float = 0.0
    left: float = 1.0
    right: float = 1.0
    constant: float = 0.0
    scores: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.method, str):
            raise ValueError(f"method of a calibrator must be a string, got {self.method!r:.60}")
        for name in ("slope", "offset", "left", "right", "constant", "shift"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name} of a calibrator must be a finite number, got {value!r:.60}")
            if value < 0 and name in ("slope", "left", "right"):
                raise ValueError(f"{name} of a calibrator must not be negative, got {value}")
        for name in ("scores", "probabilities"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or not all(type(value) in (int, float) for value in values):
                raise ValueError(f"{name} of a calibrator must be numbers, got {values!r:.60}")
            object.__setattr__(self, name, tuple(map(float, values)))
        if len(self.scores) != len(self.probabilities):
            raise ValueError(
                f"a calibrator needs as many probabilities as scores, got {len(self.probabilities)} and "
                f"{len(self.scores)}"
            )
        at, values = np.array(self.scores), np.array(self.probabilities)
        if not (np.isfinite(at).all() and np.isfinite(values).all() and (np.diff(at) > 0).all()):
            raise ValueError("scores of a calibrator must be finite and increasing, and its probabilities finite")
        if len(values) and not (values[0] >= 0 and values[-1] <= 1 and (np.diff(values) >= 0).all()):
            raise ValueError("probabilities of a calibrator must be in [0, 1] and must not decrease")

    def __call__(self, scores: Any) -> np.ndarray:
        """Compute probabilities, float64, of the shape of ``scores``; NaN stays NaN."""
        s = _array(scores, np.float64)
        if self.scores:
            found = np.where(np.isnan(s), s, np.interp(s, self.scores, self.probabilities))
            return np.asarray(found if not self.shift else expit(logit(found) + self.shift))
        with np.errstate(over="ignore"):
            scaled = self.slope * s if self.slope else np.where(np.isnan(s), s, 0.0)
            z = np.clip(scaled + self.offset, -CERTAIN, CERTAIN)
        odds = self.left * log_expit(z) - self.right * log_expit(-z) + self.constant + self.shift
        return np.asarray(expit(odds))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Calibrator":
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: unknown or missing names, or numbers that make no calibrator.
        """
        known = set(cls.__dataclass_fields__)
        if not isinstance(given, Mapping) or not {"method"} <= set(given) <= known:
            raise ValueError(f"a calibrator has {', '.join(sorted(known))}, got {given!r:.60}")
        return cls(**given)

    def to_json(self) -> str:
        """Write it as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Calibrator":
        """Read it from JSON."""
        return cls.from_dict(json.loads(text))


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Quality(NamedTuple):
    """How good probabilities are on some rows.

    Args:
        rows: how many.
        expected: positives, by the sum of the probabilities (weighted, as everything here).
        observed: positives that there were.
        log_loss: mean of ``-log p`` of what was observed.
        ece: expected calibration error: mean distance of probability and share in ten bins of equal weight.
    """

    rows: int
    expected: float
    observed: float
    log_loss: Estimate
    ece: Estimate

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, {self.expected:.4g} positives expected and {self.observed:.4g} observed, "
            f"log-loss {self.log_loss}, ECE {self.ece}"
        )


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` found.

    Args:
        calibrator: the map, fitted on all rows.
        candidates: cross-validated log-loss of each method.
        threshold: the score that ``near`` refers to.
        before: the sigmoid of the scores; ``"all"`` rows, and those ``"near"`` the threshold.
        after: the same for probabilities of rows that neither chose nor fitted their map.
    """

    calibrator: Calibrator
    candidates: dict[str, float]
    threshold: float
    before: dict[str, Quality]
    after: dict[str, Quality]

    @property
    def method(self) -> str:
        """Which one was chosen."""
        return self.calibrator.method

    def __call__(self, scores: Any) -> np.ndarray:
        """Compute probabilities of scores."""
        return self.calibrator(scores)

    def __str__(self) -> str:
        lines = [f"calibrated by {self.method}, of {', '.join(self.candidates)}"]
        for where, title in (("near", f"near the threshold {self.threshold:.4g}"), ("all", "all rows")):
            lines += [f"{title}, before: {self.before[where]}", f"{title}, after: {self.after[where]}"]
        return "\n".join(lines)


def calibrate(
    scores: Any,
    labels: Any,
    weight: Any = None,
    *,
    methods: Sequence[str] | None = None,
    objective: Objective | str | None = None,
    threshold: float | None = None,
    sampling_rate: float | None = None,
    prior: float | None = None,
    groups: Any = None,
    folds: int = 5,
    seed: int = 0,
) -> Calibration:
    r"""Map scores to probabilities by the simplest method that cross-validation does not refuse.

    Scores of focal and ranking losses are no log-odds. Five maps that keep their order, from simple to free:

    * ``"sigmoid"``: :math:`\sigma(s)`, for scores that are log-odds already.
    * ``"platt"``: logistic regression on the score, with Platt's targets: a positive counts
      :math:`(P + 1) / (P + 2)`, a negative :math:`1 / (N + 2)`.
    * ``"beta"``: logistic regression on :math:`\log q` and :math:`-\log(1 - q)`, q being Platt's probability.
    * ``"isotonic"``: the best step function, linear between steps.
    * ``"venn_abers"``: isotonic regression with the row itself added as a negative (:math:`p_0`) and as a positive
      (:math:`p_1`); :math:`p = p_1 / (1 - p_0 + p_1)`.

    Each is judged by the weighted log-loss of rows that did not fit it. The simplest is taken whose loss is within one
    standard error, over rows, of the smallest. With fewer than 30 positives the first two are tried alone.

    A sample of the negatives is undone by weights, or by :math:`\operatorname{logit} p + \log r`: r is
    ``sampling_rate``, or what takes the share of positives among the rows to ``prior``. What is reported, and what
    chooses, then counts each negative :math:`1 / r` times.

    Args:
        scores: ``[n]``, finite; rows that the model was not trained on.
        labels: ``[n]`` in {0, 1}.
        weight: ``[n]``, not negative; 1 by default. A row of weight 0 is absent.
        methods: which to try; one name forces it.
        objective: whose threshold "near" refers to; by default as many rows as there are positives are above it.
        threshold: the score itself, in place of an objective.
        sampling_rate: share of the negatives that were kept, in (0, 1].
        prior: share of positives in deployment, in (0, 1), in place of a rate.
        groups: ``[n]``; rows of one group are never on both sides of a fold, and are resampled together.
        folds: of the cross-validation, at both levels.
        seed: of folds and resampling.

    Returns:
        the calibrator, and what it changed: on all rows, and on the rows near the threshold, which rank from half to
        twice as high. Probabilities "after" are of rows that neither chose nor fitted their map. Intervals are from
        the Bayesian bootstrap.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: wrong shapes, labels, weights or numbers; fewer than two rows (or groups) of a class.

    References:
        Platt, "Probabilistic outputs for support vector machines", 1999. Zadrozny and Elkan, KDD 2002. Kull et al.,
        "Beta calibration", AISTATS 2017. Vovk and Petej, "Venn-Abers predictors", UAI 2014. Saerens et al., "Adjusting
        the outputs of a classifier to new a priori probabilities", Neural Computation 2002.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.random(4_000) < 0.1
        >>> scores = 7 * (rng.standard_normal(4_000) + 2 * labels)
        >>> found = calibrate(scores, labels)
        >>> found.method, bool(found.after["all"].log_loss.value < 0.3 * found.before["all"].log_loss.value)
        ('platt', True)
    """
    rows = _rows(scores, labels, weight, groups)
    checks.integer("folds", folds, least=2)
    names = _candidates(methods, rows)
    shift = _shift(rows, sampling_rate, prior)
    # Each negative stands for this many of deployment.
    judged = rows.weight * np.where(rows.labels, 1.0, math.exp(-shift))
    at = _threshold(rows, judged, objective, threshold)

    parts = list(_folds(rows, folds, seed))
    probabilities = np.empty(len(rows.scores))
    tried = {name: np.empty(len(rows.scores)) for name in names}
    for kept, held in parts:
        inner = rows.take(kept)
        fits = {name: _fit(name, inner, shift) for name in names}
        for name, fitted in fits.items():
            tried[name][held] = fitted(rows.scores[held])
        chosen = names[0] if len(names) == 1 else _chosen(inner, judged[kept], names, shift, folds, seed)
        probabilities[held] = tried[chosen][held]
    losses = {name: _loss(found, rows.labels) for name, found in tried.items()}
    winner = _simplest(losses, judged)
    near = _near(rows.scores, judged, at)
    before, after = (
        {
            name: quality(found[part], rows.labels[part], judged[part], _part(rows.groups, part), seed)
            for name, part in (("all", slice(None)), ("near", near))
        }
        for found in (expit(rows.scores), probabilities)
    )
    means = {name: float(np.average(loss, weights=judged)) for name, loss in losses.items()}
    return Calibration(_fit(winner, rows, shift), means, at, before, after)


# ------------------------------------------------------------------------------------------------------------- methods


class _Rows(NamedTuple):
    scores: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    groups: np.ndarray | None

    def take(self, places: np.ndarray) -> "_Rows":
        return _Rows(*(None if column is None else column[places] for column in self))  # type: ignore[arg-type]


def _sigmoid(rows: _Rows) -> Calibrator:
    return Calibrator("sigmoid")


def _platt(rows: _Rows) -> Calibrator:
    largest = max(float(np.abs(rows.scores).max()), 1 / LARGEST)  # so that nothing overflows
    slope, offset = _logistic(rows.scores[:, None] / largest, rows)
    if slope[0] <= 0:  # ranks the wrong way round: the share of positives is all there is to say
        return Calibrator("platt", slope=0.0, offset=_logistic(np.empty((len(rows.scores), 0)), rows)[1])
    return Calibrator("platt", slope=float(slope[0]) / largest, offset=offset)


def _beta(rows: _Rows) -> Calibrator:
    platt = _platt(rows)
    z = platt.slope * rows.scores + platt.offset
    sides = np.stack([log_expit(z), -log_expit(-z)], axis=1)
    free = [0, 1]
    exponents = np.zeros(2)
    while True:
        found, constant = _logistic(sides[:, free], rows)
        if len(free) == 0 or found.min() >= 0:
            break
        free.remove(free[int(found.argmin())])  # a negative exponent would turn the order
    exponents[free] = found
    left, right = map(float, exponents)
    return Calibrator("beta", platt.slope, platt.offset, left, right, constant)


def _isotonic(rows: _Rows) -> Calibrator:
    least = 1 / (len(rows.scores) + 2)  # the rule of succession: n rows cannot tell a probability from 0 any nearer
    fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    fitted.fit(rows.scores, rows.labels.astype(float), rows.weight)
    return _table("isotonic", fitted.X_thresholds_, fitted.y_thresholds_)


def _venn_abers(rows: _Rows) -> Calibrator:
    at, place = np.unique(rows.scores, return_inverse=True)
    weight = np.bincount(place, rows.weight)
    positive = np.bincount(place, rows.weight * rows.labels)
    # The map is looked at where the class changes, and at other rows while there are few.
    share = positive / weight
    same = (share[1:] == share[:-1]) & ((share[1:] == 0) | (share[1:] == 1))
    end = np.append(True, ~same) | np.append(~same, True)
    ends = np.flatnonzero(end)
    knots = np.union1d(ends[_from_the_top(len(ends))], _from_the_top(len(at)))
    # Neighbours of one class are pooled by any isotonic regression, so what lies between two knots is one block there.
    alone = np.append(True, ~same) | np.isin(np.arange(len(at)), np.append(knots, knots + 1))
    block = np.cumsum(alone) - 1
    weight, positive = np.bincount(block, weight), np.bincount(block, positive)
    own = [float(rows.weight[rows.labels == label].mean()) for label in (0, 1)]  # a row more is a row of its class
    found = np.array([[_added(weight, positive, block[knot], label, own[label]) for label in (0, 1)] for knot in knots])
    merged = found[:, 1] / (1 - found[:, 0] + found[:, 1])
    return _table("venn_abers", at[knots], merged)


def _from_the_top(many: int) -> np.ndarray:
    # Every place near the top, where the rare class is, and ever fewer further down.
    if many <= MOST_KNOTS:
        return np.arange(many)
    return many - np.unique(
        np.append(np.geomspace(1, many, MOST_KNOTS).round().astype(int), np.arange(1, MOST_KNOTS // 2))
    )


def _added(weight: np.ndarray, positive: np.ndarray, place: int, label: int, own: float) -> float:
    weight, positive = weight.copy(), positive.copy()
    weight[place] += own
    positive[place] += own * label
    return float(isotonic_regression(positive / weight, weights=weight).x[place])


def _table(method: str, at: np.ndarray, values: np.ndarray) -> Calibrator:
    # Rounding may undo the order in the last digit.
    values = np.maximum.accumulate(values.clip(0, 1))
    return Calibrator(method, scores=tuple(at.tolist()), probabilities=tuple(values.tolist()))


# From simple to free.
METHODS: dict[str, Callable[[_Rows], Calibrator]] = {
    "sigmoid": _sigmoid,
    "platt": _platt,
    "beta": _beta,
    "isotonic": _isotonic,
    "venn_abers": _venn_abers,
}


def _fit(name: str, rows: _Rows, shift: float) -> Calibrator:
    found = METHODS[name](rows)
    # A sigmoid is not fitted on these rows: it says log-odds of whatever the model was trained on.
    return Calibrator(**{**asdict(found), "shift": shift})


def _logistic(x: np.ndarray, rows: _Rows) -> tuple[np.ndarray, float]:
    """Fit logistic regression to Platt's targets: each row is a positive and a negative in these shares."""
    positives, negatives = int(rows.labels.sum()), int((~rows.labels).sum())
    target = np.where(rows.labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weight = np.concatenate([rows.weight * target, rows.weight * (1 - target)]) / rows.weight.mean()
    if x.shape[1] == 0:
        half = len(target)
        return np.empty(0), float(np.log(weight[:half].sum() / weight[half:].sum()))
    middle, spread = x.mean(0), x.std(0)
    spread[spread <= 1e-12 * np.abs(middle)] = np.inf  # alike but for rounding
    solver = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000, solver="newton-cholesky")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where all scores are alike, the Hessian is singular and the slope 0
        scaled = (x - middle) / spread
        solver.fit(np.concatenate([scaled, scaled]), np.repeat([1, 0], len(target)), weight)
    found = solver.coef_[0] / spread
    return found, float(solver.intercept_[0] - found @ middle)


# -------------------------------------------------------------------------------------------------------------- choice


def _chosen(rows: _Rows, judged: np.ndarray, names: Sequence[str], shift: float, folds: int, seed: int) -> str:
    if min(rows.labels.sum(), (~rows.labels).sum()) < 2:
        return names[0]  # one row cannot be on both sides of a fold, so nothing refuses the simplest
    losses = {name: np.empty(len(rows.scores)) for name in names}
    for kept, held in _folds(rows, folds, seed):
        inner = rows.take(kept)
        for name in names:
            losses[name][held] = _loss(_fit(name, inner, shift)(rows.scores[held]), rows.labels[held])
    return _simplest(losses, judged)


def _simplest(losses: Mapping[str, np.ndarray], weight: np.ndarray) -> str:
    means = {name: float(np.average(loss, weights=weight)) for name, loss in losses.items()}
    best = min(means, key=lambda name: means[name])
    for name, loss in losses.items():
        behind = loss - losses[best]
        gap = means[name] - means[best]
        if gap <= math.sqrt(float(np.sum(weight**2 * (behind - gap) ** 2))) / float(weight.sum()):
            return name
    return best


def _loss(probability: np.ndarray, labels: np.ndarray) -> np.ndarray:
    inside = probability.clip(TINY, 1 - TINY)
    return np.asarray(-np.log(np.where(labels, inside, 1 - inside)))


def _folds(rows: _Rows, folds: int, seed: int) -> Any:
    if rows.groups is None:
        many = min(folds, int(rows.labels.sum()), int((~rows.labels).sum()))
        return StratifiedKFold(many, shuffle=True, random_state=seed).split(rows.scores, rows.labels)
    groups = [len(np.unique(rows.groups[rows.labels == label])) for label in (False, True)]
    splitter = StratifiedGroupKFold(max(2, min(folds, *groups)), shuffle=True, random_state=seed)
    parts = list(splitter.split(rows.scores, rows.labels, rows.groups)) if min(groups) > 1 else []
    if not parts or any(len(np.unique(rows.labels[kept])) < 2 for kept, _ in parts):
        raise ValueError(
            f"a fold without one of the classes: positives lie in {groups[1]} groups and negatives in {groups[0]}; "
            "give more groups, or none"
        )
    return parts


def _candidates(methods: Sequence[str] | None, rows: _Rows) -> list[str]:
    if methods is None:
        few = rows.labels.sum() < FEW_POSITIVES
        return list(METHODS)[:2] if few else list(METHODS)
    asked = [methods] if isinstance(methods, str) else list(methods)
    for name in asked:
        checks.choice("methods", name, tuple(METHODS))
    if not asked:
        raise ValueError(f"methods is empty; give some of {', '.join(METHODS)}")
    return [name for name in METHODS if name in asked]


def _shift(rows: _Rows, rate: float | None, prior: float | None) -> float:
    if rate is not None and prior is not None:
        raise ValueError("give sampling_rate or prior, not both: each says what share of positives deployment has")
    if rate is not None:
        checks.probability("sampling_rate", rate, open_low=True)
        return math.log(rate)
    if prior is not None:
        checks.probability("prior", prior, open_low=True, open_high=True)
        return float(logit(prior) - logit(np.average(rows.labels, weights=rows.weight)))
    return 0.0


# ------------------------------------------------------------------------------------------------------------- quality


def _threshold(rows: _Rows, judged: np.ndarray, objective: Objective | str | None, threshold: float | None) -> float:
    if threshold is not None:
        if objective is not None:
            raise ValueError("give threshold or objective, not both")
        if math.isnan(threshold):
            raise ValueError("threshold must be a score, inf (alert nobody) or -inf (alert everybody), got NaN")
        return float(threshold)
    rate = float(np.average(rows.labels, weights=judged))
    point = Objective.of("ap" if objective is None else objective)
    if not point.sets_threshold:
        point = RecallAtTop(rate)
    columns = (torch.from_numpy(column) for column in (rows.scores, rows.labels, judged))
    return float(point.threshold(*columns))


def _near(scores: np.ndarray, weight: np.ndarray, threshold: float) -> np.ndarray:
    """Choose the rows that rank from half to twice as high as the threshold: what a capacity might come to be."""
    order = np.argsort(-scores, kind="stable")
    above = np.cumsum(weight[order])
    cut = float(weight[scores > threshold].sum())
    inside = order[(above >= cut / 2) & (above <= 2 * cut)]
    return inside if len(inside) else order[: max(1, len(order) // 100)]


def quality(
    probability: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Quality:
    """Measure probabilities of rows that neither fitted nor chose them.

    Intervals are from 200 Bayesian bootstraps of rows, or of groups where they are given: with v the value and d the
    quantiles of the draws, from ``2 v - d[97.5 %]`` to ``2 v - d[2.5 %]``, since a draw adds to an error what chance
    has added before.

    Args:
        probability: of the positive class, ``[n]``.
        labels: bool, ``[n]``.
        weight: ``[n]``, above 0; 1 by default.
        groups: ``[n]``; rows of one group are drawn together.
        seed: of the draws.

    Example:
        >>> found = quality(np.array([0.1, 0.1, 0.9, 0.9]), np.array([False, False, True, False]))
        >>> found.observed, round(found.ece.value, 3)
        (1.0, 0.25)
    """
    weight = np.ones(len(labels)) if weight is None else weight
    loss = _loss(probability, labels)
    edges = np.quantile(probability, np.linspace(0, 1, BINS + 1)[1:-1], weights=weight, method="inverted_cdf")
    bins = np.searchsorted(np.unique(edges), probability)
    gap = weight * (probability - labels)

    def measured(factor: np.ndarray) -> tuple[float, float]:
        whole = float(factor @ weight)
        error = np.abs(np.bincount(bins, factor * gap)).sum()
        return float(factor @ (weight * loss)) / whole, float(error) / whole

    value = np.array(measured(np.ones(len(loss))))
    rng = np.random.default_rng(seed)
    codes = np.arange(len(loss)) if groups is None else np.unique(groups, return_inverse=True)[1]
    drawn = np.array([measured(rng.exponential(size=codes.max() + 1)[codes]) for _ in range(RESAMPLES)])
    tail = (1 - LEVEL) / 2
    low, high = (np.maximum(0, 2 * value - np.quantile(drawn, share, axis=0)) for share in (1 - tail, tail))
    high = np.maximum(high, value)  # an ECE is what it is by chance in part, so that all of it may lie below
    estimates = [Estimate(*map(float, each)) for each in zip(value, low, high, strict=True)]
    return Quality(len(loss), float(weight @ probability), float(weight[labels].sum()), *estimates)


def _part(groups: np.ndarray | None, part: Any) -> np.ndarray | None:
    return None if groups is None else groups[part]


# -------------------------------------------------------------------------------------------------------------- checks


def _rows(scores: Any, labels: Any, weight: Any, groups: Any) -> _Rows:
    s = _array(scores, np.float64)
    if s.ndim != 1 or not len(s):
        raise ValueError(f"scores must have shape [n] with n above 0, got {list(s.shape)}; flatten them")
    columns = {"labels": _array(labels), "weight": None if weight is None else _array(weight, np.float64)}
    columns["groups"] = None if groups is None else _array(groups)
    for name, column in columns.items():
        if column is not None and column.shape != s.shape:
            raise ValueError(f"{name} must have the shape of scores, {list(s.shape)}, got {list(column.shape)}")
    y, w, g = columns.values()
    w = np.ones(len(s)) if w is None else w
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise ValueError("weight must be finite and not negative; use 0 for a row that is absent")
    present = w > 0
    s, w = s[present], w[present]
    y = y[present]  # type: ignore[index]
    useless = int((~(np.abs(s) < LARGEST)).sum())
    if useless:
        raise ValueError(f"{useless} of {len(s)} scores are not finite (or beyond 1e100); give such rows weight 0")
    s = np.where(np.abs(s) < 1 / LARGEST, 0.0, s)
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(y[~np.isin(y, (0, 1))])[0]!r}")
    positive: np.ndarray = y.astype(np.bool_)
    many = int(positive.sum())
    if min(many, len(s) - many) < 2:
        raise ValueError(f"{many} positives and {len(s) - many} negatives; two of each are the least to calibrate on")
    g = None if g is None else g[present]
    if g is not None and g.dtype == object and (missing := sum(group is None for group in g)):
        raise ValueError(
            f"groups holds {missing} missing values; give such rows a group, of their own or of all of them"
        )
    return _Rows(s, positive, w, g)


def _array(values: Any, dtype: Any = None) -> np.ndarray:
    # Scores come from a model: with a gradient, on a device, in a type that numpy lacks.
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    return np.asarray(values, dtype=dtype)
