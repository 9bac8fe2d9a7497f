"""Turn a frame of numbers and categories into what a model takes, fitted on the train fold alone."""

from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
)

__all__ = ["KNOTS", "LARGEST", "MOST_CATEGORIES", "Kind", "pipeline", "single_precision", "tree_categories"]

Kind = Literal["standard", "normal", "spline", "trees"]

# Rarer categories share one column: fewer rows than this teach a weight nothing.
LEAST_ROWS_OF_A_CATEGORY = 10
MOST_CATEGORIES = 100
MOST_QUANTILES = 1000
MOST_ROWS_FOR_QUANTILES = 100_000
# The 0, 20, ..., 100 % quantiles of normal quantiles, of which scikit-learn's least and largest are at 5.2. Fixed,
# since the quantiles of a column in which one value is common would coincide, and splines need knots apart.
KNOTS = np.array([-5.2, *norm.ppf([0.2, 0.4, 0.6, 0.8]), 5.2])
# Largest number of standard deviations that a model sees. Normal quantiles end at 5.2, so what lies beyond 10 is the
# rare value of a nearly constant column; a standardised outlier is as far as it is, but stays finite in float32.
LARGEST = {"standard": 1e6, "normal": 10.0, "spline": 10.0}


def pipeline(frame: pd.DataFrame, kind: Kind, *, seed: int) -> Pipeline:
    r"""Build the unfitted pipeline from a table's features to a dense float32 array.

    * ``"standard"``: numbers filled with the median, centred and divided by their standard deviation.
    * ``"normal"``: numbers filled with the median, mapped to normal quantiles, then centred and scaled, so that a value
      which many rows share does not stand far from the rest.
    * ``"spline"``: the normal quantiles through cubic B-splines with knots at the 0, 20, ..., 100 % quantiles; numbers
      of two values stay one column, as in ``"standard"``.
    * ``"trees"``: numbers, then categories as codes; missing and unseen are NaN. This one is float64.

    Numbers are taken as float32 holds them, see :func:`single_precision`, so that the same rows give the same inputs
    whatever they are stored as. Except for trees, a 0/1 column follows for each number that is missing somewhere, and a
    one-hot column for each category. A category never seen in training falls to the rare ones, or to none.

    Args:
        frame: Features of all rows; only types, gaps and the number of values are looked at.
        kind: What the model wants.
        seed: Chooses the rows that quantiles of a large table are taken from.

    Returns:
        The pipeline; fit it on the train rows alone.

    Example:
        >>> frame = pd.DataFrame({"amount": [1.0, 2.0, 3.0, None]})
        >>> pipeline(frame, "standard", seed=0).fit_transform(frame).round(2)
        array([[-1.41,  0.  ],
               [ 0.  ,  0.  ],
               [ 1.41,  0.  ],
               [ 0.  ,  1.  ]], dtype=float32)
    """
    numbers, categories = _columns(frame)
    if kind == "trees":
        return make_pipeline(ColumnTransformer([("numbers", _single(), numbers), ("categories", _codes(), categories)]))
    gaps = [name for name in numbers if frame[name].isna().any()]
    flags = [name for name in numbers if kind == "spline" and _two_valued(frame[name])]
    curves = [name for name in numbers if name not in flags]
    return make_pipeline(
        ColumnTransformer(
            [
                ("numbers", _numbers(kind, frame[curves], seed), curves),
                ("flags", _numbers("standard", frame[flags], seed), flags),
                ("missing", MissingIndicator(features="all"), gaps),
                ("categories", _one_hot(), categories),
            ],
            # One dense array whatever the share of zeros.
            sparse_threshold=0.0,
        ),
        FunctionTransformer(_float32, kw_args={"largest": LARGEST[kind]}),
    )


def tree_categories(frame: pd.DataFrame) -> np.ndarray:
    """Return which columns of ``pipeline(frame, "trees")``'s output are categories, bool ``[d]``."""
    numbers, categories = _columns(frame)
    return np.repeat([False, True], [len(numbers), len(categories)])


def single_precision(values: Any) -> np.ndarray:
    """Round numbers to float32; the result is float64.

    A file may hold the same number as float32, float64, decimal or text. They differ from the eighth digit on, which is
    enough to take a value that many rows share out of the middle of its quantiles.

    Args:
        values: of any shape; what is beyond float32 becomes its largest number, NaN stays.

    Example:
        >>> float(single_precision(0.1)), bool(single_precision(np.float32(0.1)) == single_precision(0.1))
        (0.10000000149011612, True)
    """
    largest = float(np.finfo(np.float32).max)
    rounded = np.clip(np.asarray(values, dtype=np.float64), -largest, largest).astype(np.float32)
    return np.asarray(rounded, dtype=np.float64)


def _single() -> FunctionTransformer:
    return FunctionTransformer(single_precision)


def _two_valued(column: pd.Series) -> bool:
    return len(np.unique(single_precision(column.dropna()))) <= 2


def _columns(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    categories = [name for name in frame.columns if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    return [name for name in frame.columns if name not in categories], categories


def _numbers(kind: Kind, frame: pd.DataFrame, seed: int) -> Pipeline:
    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    if kind == "standard":
        return make_pipeline(_single(), fill, StandardScaler())
    # A quarter of the rows: the train fold always has more, and scikit-learn warns where it has fewer.
    quantiles = max(2, min(MOST_QUANTILES, len(frame) // 4))
    normal = QuantileTransformer(
        n_quantiles=quantiles, output_distribution="normal", subsample=MOST_ROWS_FOR_QUANTILES, random_state=seed
    )
    if kind == "normal":
        return make_pipeline(_single(), fill, normal, StandardScaler())
    knots = np.repeat(KNOTS[:, None], frame.shape[1], axis=1)
    return make_pipeline(_single(), fill, normal, SplineTransformer(degree=3, knots=knots, include_bias=False))


def _one_hot() -> OneHotEncoder:
    return OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        min_frequency=LEAST_ROWS_OF_A_CATEGORY,
        max_categories=MOST_CATEGORIES,
        sparse_output=False,
        dtype=np.float32,
    )


def _codes() -> OrdinalEncoder:
    return OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
        encoded_missing_value=np.nan,
        min_frequency=LEAST_ROWS_OF_A_CATEGORY,
        max_categories=MOST_CATEGORIES,
    )


def _float32(values: np.ndarray, largest: float) -> np.ndarray:
    clipped: np.ndarray = np.clip(values, -largest, largest).astype(np.float32)
    return clipped
