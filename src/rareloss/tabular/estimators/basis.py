"""The curve of one input: its basis, and the coordinates in which its penalty is a ridge."""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import block_diag
from scipy.special import expit
from sklearn.preprocessing import OneHotEncoder, SplineTransformer

from rareloss.tabular.estimators.rows import Array
from rareloss.tabular.preprocess import LEAST_ROWS_OF_A_CATEGORY, MOST_CATEGORIES, single_precision

__all__ = ["Basis", "CategoryBasis", "NumberBasis", "as_names", "weighted_mean"]

# Share of the rows beyond the outer knots but one. A rare class lies at the ends, so the knots do.
TAIL = 0.005


class Basis:
    """The basis of one input.

    Attributes:
        named: whether its values are names.
        directions: from coordinates to the coefficients of the basis, ``[m, k]``.
        rough: which coordinates the smoothness is on, ``[k]``.
        steps: from coordinates to the steps from one coefficient to the next, ``[k, k]``.
        bounded: which steps may not be negative, ``[k]``.
    """

    named = False
    directions: Array
    rough: np.ndarray
    steps: Array
    bounded: np.ndarray

    def basis(self, values: np.ndarray) -> Array:
        """Compute the basis, ``[n, m]``."""
        raise NotImplementedError

    def values(self, grid: Any) -> np.ndarray:
        """Return a grid as values of this input."""
        raise NotImplementedError

    def histogram(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return edges (or names), and how many rows lie between them (or have them)."""
        raise NotImplementedError

    def in_order(self, coefficients: Array) -> Array:
        """Make steps that rounding has left below a bound keep to it."""
        return coefficients


class NumberBasis(Basis):
    """A cubic spline, a straight line for a number of two values, and a weight of its own where it is missing.

    Args:
        values: of the train rows, NaN where missing.
        weight: of the rows.
        n_knots: at most.
        order: 1 where the curve may not fall, -1 where it may not rise, else 0.
    """

    def __init__(self, values: Array, weight: Array, n_knots: int, order: int) -> None:
        there = ~np.isnan(values)
        seen, of = (values[there], weight[there]) if there.any() else (np.zeros(1), np.ones(1))
        self.gaps, self.order = not there.all(), order
        self.median = float(np.quantile(seen, 0.5, weights=of, method="inverted_cdf"))
        self.spline = _spline(seen, of, n_knots)
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
        """Compute the basis, ``[n, m]``; a missing row has the median's place on the curve."""
        gone = np.isnan(values)
        curve = self._curve(np.where(gone, self.median, values))
        return np.column_stack([curve, gone]) if self.gaps else curve

    def values(self, grid: Any) -> Array:
        """Return a grid as numbers."""
        return single_precision(grid).reshape(-1)

    def in_order(self, coefficients: Array) -> Array:
        """Make steps that rounding has left below 0 be 0."""
        if self.order and self.spline is not None:
            many = len(coefficients) - self.gaps
            rises = np.maximum(self.order * np.diff(coefficients[:many]), 0.0)
            coefficients[1:many] = coefficients[0] + self.order * np.cumsum(rises)
        elif self.order:
            coefficients[0] = self.order * max(self.order * coefficients[0], 0.0)
        return coefficients

    def histogram(self, values: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return the edges of forty bins from the 0.1 % to the 99.9 % quantile, and their rows."""
        there = values[~np.isnan(values)]
        if not len(there):
            return np.array([0, 1]), np.zeros(1)
        counts, edges = np.histogram(there, bins=40, range=tuple(np.quantile(there, [0.001, 0.999])))
        return edges, counts


class CategoryBasis(Basis):
    """One weight a level; rare levels share one.

    Args:
        values: names of the train rows, None where missing.
    """

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
        """Compute the basis, ``[n, levels]``."""
        return np.asarray(self.encoder.transform(values[:, None]))

    def values(self, grid: Any) -> np.ndarray:
        """Return a grid as names."""
        return as_names(grid)

    def histogram(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the levels, one of the rare ones for all of them, and their rows."""
        names = self.encoder.categories_[0]
        rare = self.encoder.infrequent_categories_[0]
        if rare is not None:
            names = np.array([*(name for name in names if name not in set(rare)), rare[0]], object)
        return names, self.basis(values).sum(axis=0)


def as_names(values: Any) -> np.ndarray:
    """Return values as names, None where missing; numbers that are not whole as float32 holds them."""
    column = pd.Series(values).infer_objects()
    if pd.api.types.is_float_dtype(column):
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        # A code of sixteen digits is whole, and keeps them.
        column = pd.Series(np.where(numbers == np.rint(numbers), numbers, single_precision(numbers)))
    column = column.astype(object)
    return column.where(column.notna(), None).to_numpy(dtype=object)


def weighted_mean(basis: Array, weight: Array) -> Array:
    """Compute the mean of each column, ``[m]``."""
    return np.asarray(np.average(basis, axis=0, weights=weight))


def _spread(values: Array, weight: Array) -> float:
    return math.sqrt(float(np.average((values - np.average(values, weights=weight)) ** 2, weights=weight)))


def _spline(seen: Array, weight: Array, n_knots: int) -> SplineTransformer | None:
    # None for a number of two values.
    different = np.unique(seen)
    if len(different) <= 2:
        return None
    levels = [0.0, *expit(math.log(1 / TAIL - 1) * np.linspace(-1, 1, n_knots - 2)), 1.0]
    knots = np.unique(np.quantile(seen, levels, weights=weight, method="inverted_cdf"))
    knots = knots if len(knots) > 1 else different[[0, -1]]
    return SplineTransformer(knots=knots[:, None], degree=3, extrapolation="constant").fit(knots[:, None])
