"""A scorecard of curves, one an input, with the face of a scikit-learn estimator.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

# First, since it says which extra is missing.
from rareloss.tabular.estimators.rows import (
    Array,
    as_batch,
    as_numbers,
    check_labels,
    log_odds_of,
    present_rows,
    two_classes,
)

# isort: split
import numpy as np
import pandas as pd
import torch
from scipy.linalg import block_diag
from sklearn.model_selection import train_test_split
from sklearn.utils import assert_all_finite, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.validation import _check_monotonic_cst, check_is_fitted, validate_data
from torch import nn

from rareloss import Objective, checks, finetune
from rareloss.tabular.estimators.basis import Basis, CategoryBasis, NumberBasis, as_names, weighted_mean
from rareloss.tabular.estimators.binary import BinaryRanker, choose_positive, even_odds, probabilities_of
from rareloss.tabular.estimators.monotone import BoundedSearch, WhitenedLinear, solve_monotone
from rareloss.tabular.logistic import logistic_draws, relative_weight, search, solve_logistic
from rareloss.tabular.preprocess import single_precision
from rareloss.training import Batch, Whitening

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["SMOOTHNESS", "AdditiveRareClassifier", "Points"]

# What validation chooses from: multiples of the squared second differences of a curve's coefficients.
SMOOTHNESS = (0.1, 1.0, 10.0, 100.0)
# Inputs are taken as float32 holds them.
LARGEST = float(np.finfo(np.float32).max)


class Points(NamedTuple):
    """A scorecard.

    Args:
        coefficients: of each input's curve (B-splines, then the missing rows' if there were any) or categories.
        intercept: log-odds where every input contributes what it does on average.
    """

    coefficients: list[Array]
    intercept: float


class AdditiveRareClassifier(BinaryRanker):
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

    Beyond the rows it was fitted on, a curve stays at its last value. Numbers are taken as float32 holds them, so that
    the same rows score alike however they are stored. A factor on all weights changes nothing.

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
        positive: the class that is ranked to the top; None: the rarer one, the second of two that are as rare.
        random_state: of the split and the draws; an integer, a generator, or None.

    Attributes:
        classes_: the two classes, sorted.
        positive_: the one that is ranked to the top; all log-odds below are its own.
        points_: the :class:`Points` of the scorecard.
        cross_entropy_: those of the start, which cross-entropy led to; both in log-odds on the train rows.
        importance_: standard deviation over the rows of what each input adds, ``[d]``.
        threshold_: the log-odds strictly above which :meth:`predict` says the positive class: the objective's on
            validation; for average precision 0, where the intercept has been moved to a probability of one half.
        calibrator_: from log-odds to the probabilities of :meth:`predict_proba`, see
            :func:`rareloss.decisions.calibration.calibrate`.
        finetuned_: the result of fine-tuning, see :class:`rareloss.FineTuned`; its model takes coordinates, not inputs.
        chosen_: the hyper-parameters of cross-entropy that validation chose.
        n_features_in_: d.
        feature_names_in_: of a frame.

    Reference:
        Eilers and Marx, "Flexible Smoothing with B-splines and Penalties", Statistical Science 1996.

    Example:
        >>> from scipy.special import expit
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
        positive: Any = None,
        random_state: Any = None,
    ) -> None:
        self.objective = objective
        self.n_knots = n_knots
        self.smoothness = smoothness
        self.monotonic_cst = monotonic_cst
        self.categorical_features = categorical_features
        self.trials = trials
        self.validation_fraction = validation_fraction
        self.positive = positive
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
        objective = self._checked()
        columns, y = self._columns(X, y, fit=True)
        named = self._named(columns)
        monotone = _check_monotonic_cst(self, self.monotonic_cst)
        if wrong := [self._name(place) for place in np.flatnonzero(named & (monotone != 0))]:
            raise ValueError(f"monotonic_cst asks for an order of names: {', '.join(map(str, wrong))}; make it 0")
        check_labels(y)
        columns, y, weight = present_rows(columns, y, sample_weight)
        self.classes_, codes = two_classes(y)
        self.positive_ = choose_positive(self.classes_, np.bincount(codes, weight), self.positive)
        target = (y == self.positive_).astype(np.int64)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        train, held = self._split(target)
        self.bases_: list[Basis] = [
            CategoryBasis(column[train])
            if is_name
            else NumberBasis(column[train], weight[train], self.n_knots, int(order))
            for column, is_name, order in zip(columns, named, monotone, strict=True)
        ]
        self._means = [weighted_mean(one.basis(column), weight) for one, column in self._with(columns)]
        self._monotone, self._many = bool(monotone.any()), len(target)

        start, self.chosen_, parts = self._cross_entropy(columns, target, weight, objective)
        self.finetuned_ = self._rank(start, objective, parts, None)
        self.points_ = self._points(self.finetuned_.model, parts[0])
        self.cross_entropy_ = self._points(start, parts[0])
        added = self._added(columns)
        self.importance_ = np.sqrt(np.average(added**2, axis=0, weights=weight))
        self.histograms_ = [one.histogram(column) for one, column in self._with(columns)]
        scores = added[held].sum(1) + self.points_.intercept
        self._judge_by(scores, parts[1], objective)
        return self

    def _judge_by(self, scores: Array, held: Batch, objective: Objective) -> None:
        # Threshold and probabilities, on the validation rows.
        target, weight = held.targets.numpy(), as_numbers(held.weight)
        self.calibrator_ = probabilities_of(scores, target, weight, objective, self._seed)
        if objective.sets_threshold:
            self.threshold_ = float(objective.threshold(torch.from_numpy(scores), held.targets, held.weight))
            return
        even = even_odds(self.calibrator_)
        self.threshold_ = 0.0 if np.isfinite(even) else even
        if np.isfinite(even):  # log-odds of 0 are to be a probability of one half
            self.points_ = self.points_._replace(intercept=self.points_.intercept - even)
            self.calibrator_ = probabilities_of(scores - even, target, weight, objective, self._seed)

    def _checked(self) -> Objective:
        objective = Objective.of(self.objective)
        checks.integer("trials", self.trials, least=1)
        checks.integer("n_knots", self.n_knots, least=4)
        if self.smoothness is not None:
            checks.positive_number("smoothness", self.smoothness)
        checks.probability("validation_fraction", self.validation_fraction, open_low=True, open_high=True)
        return objective

    def contributions(self, X: Any) -> Array:
        """Compute what each input adds to the log-odds, ``[n, d]``: on average over the rows of the fit, 0."""
        check_is_fitted(self, "points_")
        return self._added(self._columns(X)[0])

    def log_odds(self, X: Any) -> Array:
        """Compute the log-odds of the positive class, ``[n]``."""
        return np.asarray(self.contributions(X).sum(axis=1) + self.points_.intercept)

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
        return self._curve(place, self.bases_[place].values(grid), of)

    def _added(self, columns: Sequence[np.ndarray]) -> Array:
        return np.stack([self._curve(place, column) for place, column in enumerate(columns)], axis=1)

    def _curve(self, place: int, values: np.ndarray, of: Points | None = None) -> Array:
        coefficients = (of or self.points_).coefficients[place]
        return np.asarray(self.bases_[place].basis(values) @ coefficients - self._means[place] @ coefficients)

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
        columns, y, weight = present_rows(columns, y, sample_weight)
        if len(y) != self._many:
            raise ValueError(
                f"the scorecard was fitted on {self._many} rows of some weight, got {len(y)}; give the same"
            )
        random, target = check_random_state(random_state), (y == self.positive_).astype(int)
        plain, found = self._coordinates(columns), []
        for _ in range(resamples):
            drawn = relative_weight(weight * random.exponential(size=len(y)))
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

    def plot_shapes(self, features: Sequence[int | str] | None = None, *, columns: int = 3) -> "go.Figure":
        """Draw one panel an input: what its values add to the log-odds, cross-entropy's in grey behind.

        The bars below are the rows of the fit. Numbers are drawn from their 0.1 % to their 99.9 % quantile. Bands are
        there after :meth:`resample`.

        Args:
            features: which, in this order; by default the twelve that matter most, see ``importance_``.
            columns: panels in a row.

        Returns:
            a plotly figure; ``figure.write_html(path)`` makes a file that needs no network.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        from rareloss.tabular.estimators.plots import draw_shapes  # needs plotly, which nothing else does

        check_is_fitted(self, "points_")
        checks.integer("columns", columns, least=1)
        shown = np.argsort(-self.importance_)[:12] if features is None else [self._place(one) for one in features]
        return draw_shapes(self, [int(place) for place in shown], min(columns, max(1, len(shown))))

    # ------------------------------------------------------------------------------------------------------- the rows

    def _columns(self, X: Any, y: Any = None, *, fit: bool = False) -> tuple[list[np.ndarray], Any]:
        # Each input as numbers with NaN, or as names with None; and y, in a fit.
        given = {"X": X, "y": y} if fit else {"X": X}
        if not isinstance(X, pd.DataFrame):
            checked = validate_data(self, **given, dtype=np.float64, ensure_all_finite="allow-nan", reset=fit)
            x, y = checked if fit else (checked, None)
            named = self._named(list(x.T))
            pairs = enumerate(zip(x.T, named, strict=True))
            return [as_names(column) if name else self._numbers(column, place) for place, (column, name) in pairs], y
        validate_data(self, **given, skip_check_array=True, reset=fit)
        if not len(X):
            raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
        if fit:
            y = column_or_1d(y, warn=True)
            check_consistent_length(X, y)
            assert_all_finite(y, input_name="y")
        types = [X.iloc[:, place].dtype for place in range(X.shape[1])]
        numbers = [pd.api.types.is_numeric_dtype(each) or pd.api.types.is_bool_dtype(each) for each in types]
        named = ~np.array(numbers) if fit else np.array([one.named for one in self.bases_])
        named[[self._place(feature) for feature in self.categorical_features]] = True
        columns = []
        for place, name in enumerate(X.columns):
            column = X.iloc[:, place]
            if pd.api.types.is_datetime64_any_dtype(column):
                raise ValueError(f"input {name!r} holds dates; give it as a number, for example of days")
            if not (named[place] or numbers[place]):
                raise ValueError(f"input {name!r} was a number in the fit, got {column.dtype}")
            if named[place]:
                columns.append(as_names(column))
            else:
                columns.append(self._numbers(column.to_numpy(dtype=np.float64, na_value=np.nan), place))
        return columns, y

    def _numbers(self, values: Array, place: int) -> Array:
        assert_all_finite(values, allow_nan=True, input_name=str(self._name(place)))
        if (np.abs(values) > LARGEST).any():
            raise ValueError(
                f"input {self._name(place)!r} reaches from {np.nanmin(values):g} to {np.nanmax(values):g}; scale it"
            )
        return single_precision(values)

    def _with(self, columns: Sequence[np.ndarray]) -> Iterator[tuple[Basis, np.ndarray]]:
        return zip(self.bases_, columns, strict=True)

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
        whitened = WhitenedLinear(start, factor)
        inverse = torch.linalg.inv(factor).numpy()
        solver = partial(BoundedSearch, steps=steps @ inverse.T, bounded=bounded)
        return finetune(whitened, objective, *parts, losses=losses, optimizer=solver, seed=self._seed)

    def _coordinates(self, columns: Sequence[np.ndarray]) -> Array:
        # Every input's basis in coordinates in which its penalty is a ridge, at smoothness 1.
        return np.hstack(
            [
                (one.basis(column) - mean) @ one.directions
                for (one, column), mean in zip(self._with(columns), self._means, strict=True)
            ]
        )

    def _scale(self, smoothness: float) -> Array:
        rough = np.concatenate([one.rough for one in self.bases_])
        return np.where(rough, 1 / math.sqrt(smoothness), 1.0)

    def _steps(self, smoothness: float) -> tuple[np.ndarray, Array]:
        # The matrix from coordinates to steps, and which steps may not be negative.
        steps = block_diag(*(one.steps for one in self.bases_)) * self._scale(smoothness)
        return np.concatenate([one.bounded for one in self.bases_]), steps

    def _points(self, model: Any, train: Batch) -> Points:
        layer = model.plain() if isinstance(model, WhitenedLinear) else model
        slope, offset = log_odds_of(layer, train)
        weights = layer.weight.detach().double().numpy()[0] * self._scale(self.chosen_["smoothness"])
        ends = np.cumsum([one.directions.shape[1] for one in self.bases_])[:-1]
        coefficients = [
            slope * one.in_order(one.directions @ part)
            for one, part in zip(self.bases_, np.split(weights, ends), strict=True)
        ]
        return Points(coefficients, float(slope * layer.bias.item() + offset))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
