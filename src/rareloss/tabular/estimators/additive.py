"""A scorecard of curves, one an input, with the face of a scikit-learn estimator.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

# First, since it says which extra is missing.
from rareloss.tabular.estimators.rows import as_batch, check_labels, log_odds_of, two_classes

# isort: split
try:
    import pandas as pd
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error.name} is missing, which AdditiveRareClassifier needs: pip install "rareloss[study]"', name=error.name
    ) from error

import numpy as np
import torch
from scipy.linalg import block_diag
from scipy.optimize import lsq_linear, minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, SplineTransformer
from sklearn.utils import assert_all_finite, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.validation import _check_monotonic_cst, _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from rareloss import Objective, checks, finetune
from rareloss.tabular.logistic import logistic_draws, search, solve_logistic
from rareloss.training import Batch, Whitening, unwhiten

__all__ = ["SMOOTHNESS", "AdditiveRareClassifier", "Points", "solve_monotone"]

Array = np.ndarray[Any, np.dtype[np.float64]]

# What validation chooses from: multiples of the squared second differences of a curve's coefficients.
SMOOTHNESS = (0.1, 1.0, 10.0, 100.0)
# Rarer categories share one level: fewer rows than this teach a weight nothing.
LEAST_ROWS_OF_A_CATEGORY = 10
MOST_CATEGORIES = 100
# Share of the rows beyond the outer knots but one. A rare class lies at the ends, so the knots do.
TAIL = 0.005
# Numbers beyond it cannot be squared safely.
LARGEST = 1e100
# In units of the mean cross-entropy: the largest slope along which the bounds would still let it fall.
TOLERANCE = 1e-8
FINAL, START, ROWS = "#0072b2", "#8a8f98", "rgba(138, 143, 152, 0.35)"


class Points(NamedTuple):
    """A scorecard.

    Args:
        coefficients: of each input's curve (B-splines, then the missing rows' if there were any) or categories.
        intercept: log-odds where every input contributes what it does on average.
    """

    coefficients: list[Array]
    intercept: float


class AdditiveRareClassifier(ClassifierMixin, BaseEstimator):
    r"""Rank a rare class by a sum of one smooth curve an input, trained for its operating point.

    .. math:: \text{log-odds} = b + f_1(x_1) + \dots + f_d(x_d)

    A number has a cubic spline, with a weight of its own where it is missing; a number of two values a straight line; a
    category one weight a level. The steps are those of
    :class:`~rareloss.tabular.estimators.classifier.RareClassifier`: validation chooses penalty, class weight and
    smoothness of a cross-entropy that is solved to convergence, and how far fine-tuning on the ranking loss leads from
    there.

    With the coefficients :math:`c` of a curve's B-splines, the penalty is that of P-splines,

    .. math:: \frac{1}{2C} \Big( s \sum_k (c_{k+1} - 2 c_k + c_{k-1})^2 + a^2 \Big)

    with :math:`a` the slope of the straight line through the coefficients, in log-odds per standard deviation of what
    it adds. In coordinates in which it is a plain ridge it is solved by logistic regression; fine-tuning moves in the
    same coordinates, so what is rough is dear there too. As the smoothness s grows, what is left is that line: equal
    steps from knot to knot, straight in x where the knots are evenly spaced.

    Beyond the rows it was fitted on, a curve stays at its last value.

    Args:
        objective: an operating point such as ``"ap"`` or ``"recall@top=0.5%"``.
        n_knots: of a curve, at quantiles of its input; fewer where values coincide.
        smoothness: s; None: validation chooses among 0.1, 1, 10 and 100.
        monotonic_cst: 1 for an input along which the log-odds may not fall, -1 for one along which they may not rise,
            0 for a free one: an array of them, or a dictionary by name. Categories are free.
        categorical_features: inputs, by place or name, whose values are names; in a frame, all inputs that hold no
            numbers are added.
        trials: draws of hyper-parameters for cross-entropy; larger penalties than were drawn are tried while they are
            better.
        validation_fraction: share of the rows that choose.
        random_state: of the split and the draws; an integer, a generator, or None.

    Attributes:
        classes_: the two classes; the second one is ranked to the top.
        points_: the :class:`Points` of the scorecard.
        cross_entropy_: those of the start, which cross-entropy led to; both in log-odds on the train rows.
        importance_: standard deviation over the rows of what each input adds, ``[d]``.
        threshold_: the log-odds above which :meth:`predict` says the second class: the objective's on validation, 0 for
            average precision.
        finetuned_: the result of fine-tuning, see :class:`rareloss.FineTuned`; its model takes coordinates, not inputs.
        chosen_: the hyper-parameters of cross-entropy that validation chose.
        n_features_in_: d.
        feature_names_in_: of a frame.

    Reference:
        Eilers and Marx, "Flexible Smoothing with B-splines and Penalties", Statistical Science 1996.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.uniform(-2, 2, (4_000, 2))
        >>> y = rng.random(4_000) < expit(x[:, 0] ** 2 + x[:, 1] - 5)
        >>> model = AdditiveRareClassifier("ap", monotonic_cst=[0, 1], trials=4, random_state=0).fit(x, y)
        >>> ends_and_middle = model.shape(0, [-2.0, 0.0, 2.0])
        >>> bool(ends_and_middle[1] < ends_and_middle[[0, 2]].min())
        True
        >>> bool((np.diff(model.shape(1, np.linspace(-3, 3, 100))) >= 0).all())
        True
    """

    def __init__(
        self,
        objective: str | Objective = "ap",
        *,
        n_knots: int = 10,
        smoothness: float | None = None,
        monotonic_cst: Any = None,
        categorical_features: Sequence[int | str] = (),
        trials: int = 12,
        validation_fraction: float = 0.25,
        random_state: Any = None,
    ) -> None:
        self.objective = objective
        self.n_knots = n_knots
        self.smoothness = smoothness
        self.monotonic_cst = monotonic_cst
        self.categorical_features = categorical_features
        self.trials = trials
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "AdditiveRareClassifier":
        """Fit the scorecard.

        Args:
            X: ``[n, d]``, numbers (NaN: missing), or a pandas frame of numbers and names.
            y: ``[n]``, two classes.
            sample_weight: ``[n]``, not negative; 1 by default.

        Raises:
            TypeError: an argument of a wrong type.
            ValueError: an argument out of range, more or fewer than two classes, or too few rows of one.
        """
        objective = Objective.of(self.objective)
        checks.integer("trials", self.trials, least=1)
        checks.integer("n_knots", self.n_knots, least=4)
        if self.smoothness is not None:
            checks.positive_number("smoothness", self.smoothness)
        checks.probability("validation_fraction", self.validation_fraction, open_low=True, open_high=True)
        columns, y = self._columns(X, y, fit=True)
        named = self._named(columns)
        monotone = _check_monotonic_cst(self, self.monotonic_cst)
        if wrong := [self._name(place) for place in np.flatnonzero(named & (monotone != 0))]:
            raise ValueError(f"monotonic_cst asks for an order of names: {', '.join(map(str, wrong))}; make it 0")
        check_labels(y)
        columns, y, weight = _present(columns, y, sample_weight)
        self.classes_, target = two_classes(y)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        train, _ = self._split(target)
        self._inputs: list[_Input] = [
            _Category(column[train])
            if is_name
            else _Number(column[train], weight[train], self.n_knots, int(order), self._name(place))
            for place, (column, is_name, order) in enumerate(zip(columns, named, monotone, strict=True))
        ]
        self._means = [_mean(one.basis(column), weight) for one, column in zip(self._inputs, columns, strict=True)]
        self._monotone, self._many = bool(monotone.any()), len(target)

        start, self.chosen_, parts = self._cross_entropy(columns, target, weight, objective)
        self.finetuned_ = self._rank(start, objective, parts, None)
        self.points_ = self._points(self.finetuned_.model, parts[0])
        self.cross_entropy_ = self._points(start, parts[0])
        added = self._added(columns)
        self.importance_ = np.sqrt(np.average(added**2, axis=0, weights=weight))
        self._rows = [one.rows(column) for one, column in zip(self._inputs, columns, strict=True)]
        scores = torch.from_numpy(added[self._split(target)[1]].sum(1) + self.points_.intercept)
        self.threshold_ = float(objective.threshold(scores, *parts[1][1:])) if objective.sets_threshold else 0.0
        return self

    def contributions(self, X: Any) -> Array:
        """Compute what each input adds to the log-odds, ``[n, d]``: on average over the rows of the fit, 0."""
        check_is_fitted(self, "points_")
        return self._added(self._columns(X)[0])

    def decision_function(self, X: Any) -> Array:
        """Compute the log-odds of the second class, ``[n]``."""
        return np.asarray(self.contributions(X).sum(axis=1) + self.points_.intercept)

    def predict(self, X: Any) -> np.ndarray:
        """Say the second class above ``threshold_``."""
        scores = self.decision_function(X)
        return np.asarray(self.classes_[(scores > self.threshold_).astype(int)])

    def shape(self, feature: int | str, grid: Any, *, of: Points | None = None) -> Array:
        """Compute the curve of one input.

        Args:
            feature: its place, or its name in a frame.
            grid: values of it, ``[g]``.
            of: another scorecard on the same inputs, for example ``cross_entropy_``.

        Returns:
            what the values add to the log-odds, ``[g]``.

        Raises:
            ValueError: there is no such input.
        """
        check_is_fitted(self, "points_")
        place = self._place(feature)
        return self._curve(place, self._inputs[place].values(grid), of)

    def _added(self, columns: Sequence[np.ndarray]) -> Array:
        return np.stack([self._curve(place, column) for place, column in enumerate(columns)], axis=1)

    def _curve(self, place: int, values: np.ndarray, of: Points | None = None) -> Array:
        coefficients = (of or self.points_).coefficients[place]
        return np.asarray(self._inputs[place].basis(values) @ coefficients - self._means[place] @ coefficients)

    def resample(
        self, X: Any, y: Any, sample_weight: Any = None, *, resamples: int = 20, random_state: Any = None
    ) -> "AdditiveRareClassifier":
        """Fit the scorecard again to resampled rows, for the bands of :meth:`band` and :meth:`plot_shapes`.

        The Bayesian bootstrap: each time all rows get weights from an exponential distribution, so that no positive is
        lost. Knots, split, penalty, class weight and smoothness stay; cross-entropy, fine-tuning (where there was any)
        and the place that validation chooses on it are found anew. The scorecards are kept in ``resampled_``.

        Args:
            X: the rows that the scorecard was fitted on.
            y: their targets.
            sample_weight: as in :meth:`fit`.
            resamples: how many.
            random_state: of the weights.

        Returns:
            the scorecard itself.

        Raises:
            ValueError: another number of rows than in the fit; or as in :meth:`fit`.

        Reference:
            Rubin, "The Bayesian Bootstrap", Annals of Statistics 1981.
        """
        check_is_fitted(self, "points_")
        checks.integer("resamples", resamples, least=2)
        columns = self._columns(X)[0]
        y = column_or_1d(y)
        check_consistent_length(X, y)
        columns, y, weight = _present(columns, y, sample_weight)
        if len(y) != self._many:
            raise ValueError(
                f"the scorecard was fitted on {self._many} rows of some weight, got {len(y)}; give the same"
            )
        random, target = check_random_state(random_state), (y == self.classes_[1]).astype(int)
        plain, found = self._coordinates(columns), []
        for _ in range(resamples):
            drawn = weight * random.exponential(size=len(y))
            parts = self._parts(plain, target, drawn, self.chosen_["smoothness"])
            model: Any = self._solve(parts[0], self.chosen_)[0]
            if self.finetuned_.loss is not None:
                model = self._rank(model, self.finetuned_.objective, parts, [self.finetuned_.loss]).model
            found.append(self._points(model, parts[0]))
        self.resampled_ = found
        return self

    def band(self, feature: int | str, grid: Any, *, level: float = 0.9) -> tuple[Array, Array]:
        """Compute within which the curve of one input lies, value by value, after :meth:`resample`.

        Args:
            feature: as in :meth:`shape`.
            grid: as in :meth:`shape`.
            level: share of the resampled curves between the two.

        Returns:
            the lower and the upper end, ``[g]`` each.
        """
        check_is_fitted(self, "resampled_", msg="call resample with the rows of the fit first")
        checks.probability("level", level, open_low=True, open_high=True)
        curves = [self.shape(feature, grid, of=points) for points in self.resampled_]
        low, high = np.quantile(curves, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def plot_shapes(self, features: Sequence[int | str] | None = None, *, columns: int = 3) -> go.Figure:
        """Draw one panel an input: what its values add to the log-odds, cross-entropy's in grey behind.

        The bars below are the rows of the fit. Numbers are drawn from their 0.1 % to their 99.9 % quantile. Bands are
        there after :meth:`resample`.

        Args:
            features: which, in this order; by default the twelve that matter most, see ``importance_``.
            columns: panels in a row.

        Returns:
            a plotly figure; ``figure.write_html(path)`` makes a file that needs no network.
        """
        check_is_fitted(self, "points_")
        checks.integer("columns", columns, least=1)
        shown = np.argsort(-self.importance_)[:12] if features is None else [self._place(one) for one in features]
        return _figure(self, [int(place) for place in shown], min(columns, max(1, len(shown))))

    # ------------------------------------------------------------------------------------------------------- the rows

    def _columns(self, X: Any, y: Any = None, *, fit: bool = False) -> tuple[list[np.ndarray], Any]:
        # Each input as numbers with NaN, or as names with None; and y, in a fit.
        given = {"X": X, "y": y} if fit else {"X": X}
        if not isinstance(X, pd.DataFrame):
            checked = validate_data(self, **given, dtype=np.float64, ensure_all_finite="allow-nan", reset=fit)
            x, y = checked if fit else (checked, None)
            named = self._named(list(x.T))
            return [_names(column) if name else column for column, name in zip(x.T, named, strict=True)], y
        validate_data(self, **given, skip_check_array=True, reset=fit)
        if not len(X):
            raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
        if fit:
            y = column_or_1d(y, warn=True)
            check_consistent_length(X, y)
            assert_all_finite(y, input_name="y")
        types = [X.iloc[:, place].dtype for place in range(X.shape[1])]
        numbers = [pd.api.types.is_numeric_dtype(each) or pd.api.types.is_bool_dtype(each) for each in types]
        named = ~np.array(numbers) if fit else np.array([one.named for one in self._inputs])
        named[[self._place(feature) for feature in self.categorical_features]] = True
        columns = []
        for place, name in enumerate(X.columns):
            column = X.iloc[:, place]
            if pd.api.types.is_datetime64_any_dtype(column):
                raise ValueError(f"input {name!r} holds dates; give it as a number, for example of days")
            if not (named[place] or numbers[place]):
                raise ValueError(f"input {name!r} was a number in the fit, got {column.dtype}")
            columns.append(_names(column) if named[place] else column.to_numpy(dtype=np.float64, na_value=np.nan))
            if not named[place]:
                assert_all_finite(columns[-1], allow_nan=True, input_name=str(name))
        return columns, y

    def _named(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        named = np.array([column.dtype == object for column in columns])
        named[[self._place(feature) for feature in self.categorical_features]] = True
        return named

    def _name(self, place: Any) -> Any:
        return self.feature_names_in_[place] if hasattr(self, "feature_names_in_") else int(place)

    def _place(self, feature: int | str) -> int:
        names = list(getattr(self, "feature_names_in_", []))
        if isinstance(feature, str) and feature in names:
            return names.index(feature)
        if not isinstance(feature, (int, np.integer)) or not 0 <= feature < self.n_features_in_:
            raise ValueError(f"there is no input {feature!r}; there are {names or self.n_features_in_}")
        return int(feature)

    def _split(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        train, held = train_test_split(
            np.arange(len(target)), test_size=self.validation_fraction, stratify=target, random_state=self._seed
        )
        return train, held

    # ------------------------------------------------------------------------------------------------------ the fit

    def _cross_entropy(
        self, columns: list[np.ndarray], target: np.ndarray, weight: Array, objective: Objective
    ) -> tuple[nn.Linear, dict[str, Any], list[Batch]]:
        # The scorecard that validation prefers, how it was found, and the rows in its coordinates.
        plain = self._coordinates(columns)

        def solved(draw: Mapping[str, float]) -> tuple[float, nn.Linear, bool]:
            train, held = self._parts(plain, target, weight, draw["smoothness"])
            model, converged = self._solve(train, draw)
            with torch.no_grad():
                judged = objective.metric(model(held.inputs), held.targets, held.weight).value
            return float(judged), model, converged

        draw, (_, model, converged) = search(self._draws(), solved, itemgetter(0))
        parts = self._parts(plain, target, weight, draw["smoothness"])
        return model, {**draw, "converged": converged}, parts

    def _parts(self, plain: Array, target: np.ndarray, weight: Array, smoothness: float) -> list[Batch]:
        # Train and validation.
        scale = self._scale(smoothness)
        return [as_batch(plain[rows] * scale, target[rows], weight, rows) for rows in self._split(target)]

    def _draws(self) -> Iterator[dict[str, float]]:
        smoothness = SMOOTHNESS[1:] + SMOOTHNESS[:1] if self.smoothness is None else (self.smoothness,)
        for place, draw in enumerate(logistic_draws(self.trials, self._seed)):
            yield {**draw, "smoothness": smoothness[place % len(smoothness)]}

    def _solve(self, rows: Batch, draw: Mapping[str, float]) -> tuple[nn.Linear, bool]:
        classes = {0: 1.0, 1: draw["class_weight"]}
        if not self._monotone:
            return solve_logistic(rows.inputs, rows.targets.numpy(), classes, draw["C"], rows.weight)
        target = rows.targets.numpy()
        weight = rows.weight.double().numpy() * np.where(target == 1, classes[1], 1.0)  # type: ignore[union-attr]
        bounded, steps = self._steps(draw["smoothness"])
        x = rows.inputs.double().numpy()
        coefficients, intercept, converged = solve_monotone(x, target, weight, draw["C"], steps, bounded)
        model = nn.Linear(x.shape[1], 1)
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(coefficients))
            model.bias.fill_(intercept)
        return model, converged

    def _rank(self, start: Any, objective: Objective, parts: list[Batch], losses: Any) -> Any:
        if not self._monotone:
            return finetune(start, objective, *parts, losses=losses, seed=self._seed)
        # The same path, over the same whitened inputs; the search is one that knows bounds.
        bounded, steps = self._steps(self.chosen_["smoothness"])
        factor = Whitening(parts[0].inputs, parts[0].weight).factor
        whitened = _Whitened(start, factor)
        inverse = torch.linalg.inv(factor).numpy()
        solver = partial(_Bounded, steps=steps @ inverse.T, bounded=bounded)
        return finetune(whitened, objective, *parts, losses=losses, optimizer=solver, seed=self._seed)

    def _coordinates(self, columns: Sequence[np.ndarray]) -> Array:
        # Every input's basis in coordinates in which its penalty is a ridge, at smoothness 1.
        return np.hstack(
            [
                (one.basis(column) - mean) @ one.directions
                for one, column, mean in zip(self._inputs, columns, self._means, strict=True)
            ]
        )

    def _scale(self, smoothness: float) -> Array:
        rough = np.concatenate([one.rough for one in self._inputs])
        return np.where(rough, 1 / math.sqrt(smoothness), 1.0)

    def _steps(self, smoothness: float) -> tuple[np.ndarray, Array]:
        # The matrix from coordinates to steps, and which steps may not be negative.
        steps = block_diag(*(one.steps for one in self._inputs)) * self._scale(smoothness)
        return np.concatenate([one.bounded for one in self._inputs]), steps

    def _points(self, model: Any, train: Batch) -> Points:
        layer = model.plain() if isinstance(model, _Whitened) else model
        slope, offset = log_odds_of(layer, train)
        weights = layer.weight.detach().double().numpy()[0] * self._scale(self.chosen_["smoothness"])
        ends = np.cumsum([one.directions.shape[1] for one in self._inputs])[:-1]
        coefficients = [
            slope * one.in_order(one.directions @ part)
            for one, part in zip(self._inputs, np.split(weights, ends), strict=True)
        ]
        return Points(coefficients, float(slope * layer.bias.item() + offset))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.allow_nan = True
        return tags


def solve_monotone(
    x: Array,
    target: np.ndarray,
    weight: Array,
    C: float,
    steps: Array,
    bounded: np.ndarray,
    *,
    iterations: int = 100,
) -> tuple[Array, float, bool]:
    r"""Solve logistic regression with a ridge under bounds, by Newton steps each of which is a bounded least-squares.

    .. math:: \min_\beta \; C \sum_i w_i \, \mathrm{CE}_i(x_i \beta + b) + \tfrac12 \lVert \beta \rVert^2
        \quad \text{with} \quad (S \beta)_k \ge 0 \text{ for bounded } k

    It is convex. The steps end where no direction inside the bounds lowers the mean loss by a slope above 1e-8, or
    nothing is lower in float64; a slope above 1e-6 is then no convergence.

    Args:
        x: inputs ``[n, k]``.
        target: 0 or 1, ``[n]``.
        weight: of the rows.
        C: inverse penalty.
        steps: S, invertible ``[k, k]``.
        bounded: which of S beta may not be negative, ``[k]``.
        iterations: at most.

    Returns:
        coefficients ``[k]``, intercept, and whether it converged.
    """
    back = np.linalg.inv(steps)
    design = np.column_stack([x @ back, np.ones(len(x))])
    total = weight.sum()
    ridge = np.zeros((design.shape[1],) * 2)
    ridge[:-1, :-1] = back.T @ back / (C * total)
    low = np.append(np.where(bounded, 0.0, -np.inf), -np.inf)
    share = weight / total

    def value(at: Array) -> float:
        scores = design @ at
        return float(share @ (np.logaddexp(0, scores) - target * scores) + at @ ridge @ at / 2)

    at = np.zeros(len(low))
    at[-1] = np.log((share @ target) / (share @ (1 - target)))
    now, converged = value(at), False
    for _ in range(iterations):
        probability = expit(design @ at)
        slope = design.T @ (share * (probability - target)) + ridge @ at
        converged = bool(np.abs(at - np.maximum(low, at - slope)).max() <= TOLERANCE)
        if converged:
            break
        curvature = design.T @ ((share * probability * (1 - probability))[:, None] * design) + ridge
        root = np.linalg.cholesky(curvature + 1e-12 * np.trace(curvature) / len(low) * np.eye(len(low)))
        aim = root.T @ at - np.linalg.solve(root, slope)
        to = np.maximum(low, lsq_linear(root.T, aim, (low, np.inf), method="bvls").x)
        length = 1.0
        while (found := value(at + length * (to - at))) > now + 1e-4 * length * slope @ (to - at) and length > 1e-8:
            length /= 2
        if found >= now:
            # Nothing is lower in the arithmetic of float64.
            converged = bool(np.abs(at - np.maximum(low, at - slope)).max() <= 100 * TOLERANCE)
            break
        at, now = at + length * (to - at), found
    return back @ at[:-1], float(at[-1]), converged


class _Input:
    # One input of the scorecard: its basis, and the coordinates in which the penalty is a ridge.
    named = False
    directions: Array  # [m, k], from coordinates to the coefficients of the basis
    rough: np.ndarray  # [k], which coordinates the smoothness is on
    steps: Array  # [k, k], from coordinates to steps
    bounded: np.ndarray  # [k], which steps may not be negative

    def basis(self, values: np.ndarray) -> Array:
        raise NotImplementedError

    def values(self, grid: Any) -> np.ndarray:
        raise NotImplementedError

    def rows(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def in_order(self, coefficients: Array) -> Array:
        return coefficients


class _Number(_Input):
    def __init__(self, values: Array, weight: Array, n_knots: int, order: int, name: Any) -> None:
        there = ~np.isnan(values)
        seen, of = (values[there], weight[there]) if there.any() else (np.zeros(1), np.ones(1))
        if np.abs(seen).max() > LARGEST:
            raise ValueError(f"input {name!r} reaches from {seen.min():g} to {seen.max():g}; scale it")
        self.gaps, self.order = not there.all(), order
        self.median = float(np.quantile(seen, 0.5, weights=of, method="inverted_cdf"))
        levels = [0.0, *expit(math.log(1 / TAIL - 1) * np.linspace(-1, 1, n_knots - 2)), 1.0]
        knots = np.unique(np.quantile(seen, levels, weights=of, method="inverted_cdf"))
        self.spline = None
        if len(np.unique(seen)) > 2:
            knots = knots if len(knots) > 1 else np.unique(seen)[[0, -1]]
            self.spline = SplineTransformer(knots=knots[:, None], degree=3, extrapolation="constant").fit(
                knots[:, None]
            )
        curve = self._curve(seen)
        if self.spline is None:
            directions = np.array([[1 / (_spread(curve[:, 0], of) or 1.0)]])
            self.rough = np.array([False])
            differences = np.ones((1, 1))
        else:
            splines = curve.shape[1]
            line = np.arange(splines) - (splines - 1) / 2
            second = np.diff(np.eye(splines), n=2, axis=0)
            strength, turned = np.linalg.eigh(second.T @ second)
            # The two without strength are the constant, which the intercept holds, and the line.
            bends = turned[:, 2:] / np.sqrt(strength[2:])
            directions = np.column_stack([line / (_spread(curve @ line, of) or 1.0), bends])
            self.rough = np.arange(splines - 1) > 0
            differences = np.diff(np.eye(splines), axis=0)
        steps = (order or 1) * differences @ directions
        bounded = np.full(len(steps), bool(order))
        if self.gaps:
            directions, steps = block_diag(directions, 1.0), block_diag(steps, 1.0)
            self.rough, bounded = np.append(self.rough, False), np.append(bounded, False)
        self.directions, self.steps, self.bounded = directions, steps, bounded

    def _curve(self, values: Array) -> Array:
        column = values[:, None]
        return column if self.spline is None else np.asarray(self.spline.transform(column))

    def basis(self, values: Array) -> Array:
        gone = np.isnan(values)
        curve = self._curve(np.where(gone, self.median, values))
        return np.column_stack([curve, gone]) if self.gaps else curve

    def values(self, grid: Any) -> Array:
        values: Array = np.asarray(grid, dtype=np.float64).reshape(-1)
        return values

    def in_order(self, coefficients: Array) -> Array:
        # A step that rounding has left below 0 is 0.
        if self.order and self.spline is not None:
            many = len(coefficients) - self.gaps
            rises = np.maximum(self.order * np.diff(coefficients[:many]), 0.0)
            coefficients[1:many] = coefficients[0] + self.order * np.cumsum(rises)
        elif self.order:
            coefficients[0] = self.order * max(self.order * coefficients[0], 0.0)
        return coefficients

    def rows(self, values: Array) -> tuple[np.ndarray, np.ndarray]:
        there = values[~np.isnan(values)]
        if not len(there):
            return np.array([0, 1]), np.zeros(1)
        counts, edges = np.histogram(there, bins=40, range=tuple(np.quantile(there, [0.001, 0.999])))
        return edges, counts


class _Category(_Input):
    named = True

    def __init__(self, values: np.ndarray) -> None:
        self.encoder = OneHotEncoder(
            handle_unknown="infrequent_if_exist",
            min_frequency=LEAST_ROWS_OF_A_CATEGORY,
            max_categories=MOST_CATEGORIES,
            sparse_output=False,
        ).fit(values[:, None])
        levels = self.encoder.transform(values[:1, None]).shape[1]
        self.directions = self.steps = np.eye(levels)
        self.rough = self.bounded = np.zeros(levels, dtype=bool)

    def basis(self, values: np.ndarray) -> Array:
        return np.asarray(self.encoder.transform(values[:, None]))

    def values(self, grid: Any) -> np.ndarray:
        return _names(grid)

    def rows(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        names = self.encoder.categories_[0]
        rare = self.encoder.infrequent_categories_[0]
        shown = (
            names if rare is None else np.array([*(name for name in names if name not in set(rare)), rare[0]], object)
        )
        counts = self.basis(values).sum(axis=0)
        return shown, counts


class _Whitened(nn.Module):
    # A linear layer that is searched over whitened inputs: ``weight`` is the whitened one.

    factor: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.register_buffer("bias", layer.bias.detach().clone())
        self.weight = nn.Parameter((layer.weight.detach().double() @ factor).float())

    def plain(self) -> nn.Linear:
        layer = nn.Linear(self.weight.shape[1], 1)
        with torch.no_grad():
            layer.weight.copy_(self._weights())
            layer.bias.copy_(self.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._weights().to(x.dtype), self.bias)

    def _weights(self) -> Tensor:
        return unwhiten(self.factor, self.weight)


class _Bounded(torch.optim.Optimizer):
    # L-BFGS-B over what ``steps`` makes of the one weight matrix.

    def __init__(self, parameters: Any, *, steps: Array, bounded: np.ndarray) -> None:
        super().__init__(parameters, {})
        self.steps, self.back, self.bounded = steps, np.linalg.inv(steps), bounded

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        (weight,) = self.param_groups[0]["params"]
        size = np.linalg.norm(self.back, axis=0)  # steps of about the same effect

        @torch.no_grad()
        def put(at: Array) -> None:
            weight.copy_(torch.from_numpy(self.back @ (at / size))[None])

        def value(at: Array) -> tuple[float, Array]:
            put(at)
            with torch.enable_grad():
                found = closure()
            return float(found.detach()), self.back.T @ weight.grad[0].double().numpy() / size

        start = size * (self.steps @ weight.detach()[0].double().numpy())
        start = np.where(self.bounded, np.maximum(start, 0.0), start)
        bounds = [(0.0 if one else None, None) for one in self.bounded]
        found = minimize(
            value, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40, "ftol": 1e-7}
        )
        value(found.x)


def _present(
    columns: Sequence[np.ndarray], y: np.ndarray, sample_weight: Any
) -> tuple[list[np.ndarray], np.ndarray, Array]:
    # A row of weight 0 is absent.
    weight = _check_sample_weight(sample_weight, y[:, None], dtype=np.float64, ensure_non_negative=True)
    some = weight > 0
    return [column[some] for column in columns], y[some], weight[some]


def _names(values: Any) -> np.ndarray:
    column = pd.Series(values).astype(object)
    return column.where(column.notna(), None).to_numpy(dtype=object)


def _mean(basis: Array, weight: Array) -> Array:
    return np.asarray(np.average(basis, axis=0, weights=weight))


def _spread(values: Array, weight: Array) -> float:
    return math.sqrt(float(np.average((values - np.average(values, weights=weight)) ** 2, weights=weight)))


def _figure(model: AdditiveRareClassifier, places: Sequence[int], columns: int) -> go.Figure:
    panels = [_panel(model, place) for place in places]
    many = math.ceil(len(places) / columns)
    figure = make_subplots(
        many,
        columns,
        subplot_titles=[panel["title"] for panel in panels],
        specs=[[{"secondary_y": True}] * columns] * many,
        horizontal_spacing=0.06,
        vertical_spacing=min(0.3, 90 / (90 + 250 * many)) if many > 1 else 0,
    )
    # One scale for all panels, so that what matters more is drawn larger; the bars have its lowest part.
    ends = np.concatenate([panel[name] for panel in panels for name in ("final", "start", "low", "high")])
    low, high = float(ends.min()), float(ends.max())
    height = (high - low) or 1.0
    for place, panel in enumerate(panels):
        row, column = place // columns + 1, place % columns + 1
        here = {"row": row, "col": column}
        x, curve = panel["x"], panel["mode"] == "lines"
        figure.add_bar(
            x=panel["at"], y=panel["counts"], width=panel["width"], marker={"color": ROWS, "line": {"width": 0}},
            name="rows", legendgroup="rows", secondary_y=True, **here,
        )  # fmt: skip
        if len(panel["low"]) and curve:
            figure.add_scatter(
                x=np.concatenate([x, x[::-1]]), y=np.concatenate([panel["low"], panel["high"][::-1]]),
                fill="toself", fillcolor="rgba(0, 114, 178, 0.18)", line={"width": 0}, mode="lines", hoverinfo="skip",
                name="90 % of resamples", legendgroup="band", **here,
            )  # fmt: skip
        error = {"type": "data", "symmetric": False, "thickness": 1.5}
        if not curve and len(panel["low"]):
            error |= {"array": panel["high"] - panel["final"], "arrayminus": panel["final"] - panel["low"]}
        figure.add_scatter(
            x=x, y=panel["start"], mode=panel["mode"], line={"color": START, "width": 4},
            marker={"color": START, "size": 10, "symbol": "circle-open", "line": {"width": 2}},
            name="cross-entropy", legendgroup="start", **here,
        )  # fmt: skip
        figure.add_scatter(
            x=x, y=panel["final"], mode=panel["mode"], line={"color": FINAL, "width": 2},
            marker={"color": FINAL, "size": 7}, error_y=None if curve else error,
            name="trained for " + model.finetuned_.objective.name, legendgroup="final", **here,
        )  # fmt: skip
        top = float(np.max(panel["counts"], initial=1.0))
        figure.update_yaxes(range=[0, 7 * top], visible=False, secondary_y=True, **here)
        figure.update_yaxes(range=[low - 0.22 * height, high + 0.06 * height], secondary_y=False, **here)
        figure.update_yaxes(showticklabels=column == 1, title="adds to the log-odds" if column == 1 else None,
                            secondary_y=False, **here)  # fmt: skip
        figure.update_xaxes(range=panel["range"], type="linear" if curve else "category", showgrid=False, **here)
    seen: set[str] = set()  # one entry in the legend for each kind of drawing
    for trace in figure.data:
        trace.showlegend = trace.legendgroup not in seen
        seen.add(trace.legendgroup)
    figure.update_yaxes(gridcolor="#e3e6ea", zerolinecolor="#8a8f98", zerolinewidth=1)
    figure.update_layout(
        template="plotly_white", height=90 + 250 * many, width=60 + 340 * columns, bargap=0.05,
        title={"text": html.escape(str(model.finetuned_)), "x": 0, "xref": "paper", "font": {"size": 14}},
        legend={"orientation": "h", "y": 1 + 30 / (250 * many), "yanchor": "bottom", "x": 0},
        margin={"l": 60, "r": 20, "t": 120, "b": 40},
    )  # fmt: skip
    return figure


def _panel(model: AdditiveRareClassifier, place: int) -> dict[str, Any]:
    one, (at, counts) = model._inputs[place], model._rows[place]
    name = html.escape(str(model._name(place))) if hasattr(model, "feature_names_in_") else f"input {place}"
    mode = "lines"
    if isinstance(one, _Number):
        low, high = float(at[0]), float(at[-1])
        x = np.linspace(low, high, 200)
        panel = {"at": (at[1:] + at[:-1]) / 2, "width": np.diff(at), "range": [low, high]}
        if one.gaps:
            name += f" (missing: {model.shape(place, [np.nan])[0]:+.2f})"
    else:
        x, mode = at, "markers"
        panel = {"at": _labels(at), "width": None, "range": None}
    panel |= {
        "title": name,
        "mode": mode,
        "counts": counts,
        "x": x if mode == "lines" else _labels(at),
        "final": model.shape(place, x),
        "start": model.shape(place, x, of=model.cross_entropy_),
        "low": np.zeros(0),
        "high": np.zeros(0),
    }
    if hasattr(model, "resampled_"):
        panel["low"], panel["high"] = model.band(place, x)
    return panel


def _labels(names: Any) -> list[str]:
    # Long names are cut where they can still be told apart.
    whole = ["missing" if name is None else str(name) for name in names]
    short = [name if len(name) <= 14 else name[:13] + "…" for name in whole]
    return [html.escape(name) for name in (short if len(set(short)) == len(short) else whole)]
