"""What each feature adds to the score of a linear or additive model: by row, and as a curve."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from rareloss.table import DataError
from rareloss.tabular.model.inputs import Inputs

__all__ = ["contributions", "curves", "reasons"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MOST_VALUES = 20  # of a category


def contributions(network: nn.Module, inputs: Inputs, centre: np.ndarray | None, x: np.ndarray) -> pd.DataFrame:
    r"""Compute what each feature adds to a row's score, :math:`\sum_j w_j (x_j - \bar x_j)` over the feature's inputs.

    Over the train rows each column's mean is 0; a row's sum is its score less the mean score.

    Args:
        network: one linear layer.
        inputs: what the layer takes.
        centre: mean of the inputs over the train rows, ``[width]``.
        x: inputs of rows, ``[n, width]``.

    Returns:
        float64 ``[n, features]``.

    Raises:
        DataError: the model is a network or trees, whose score is no sum over features.
    """
    if not isinstance(network, nn.Linear) or centre is None:
        raise DataError(
            "the score of a network or of trees is no sum over features; a linear or additive model has reasons"
        )
    parts = network.weight.detach().double().numpy()[0] * (x.astype(np.float64) - centre)
    owners = pd.Index(inputs.owners)
    names = list(dict.fromkeys(inputs.owners))
    return pd.DataFrame({name: parts[:, owners == name].sum(axis=1) for name in names})


def reasons(added: pd.DataFrame, many: int) -> list[np.ndarray]:
    """Write the features that add or take most, such as ``"amount +1.32"``, ``many`` arrays of text ``[n]``.

    Example:
        >>> [each.tolist() for each in reasons(pd.DataFrame({"age": [0.1, -2.0], "sum": [1.0, 0.5]}), 1)]
        [['sum +1.00', 'age -2.00']]
    """
    values, names = added.to_numpy(), np.asarray(added.columns, dtype=object)
    order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :many]
    rows = np.arange(len(values))
    return [
        np.array(
            [f"{name} {value:+.2f}" for name, value in zip(names[place], values[rows, place], strict=True)], object
        )
        for place in order.T
    ]


def curves(
    network: nn.Module, inputs: Inputs, centre: np.ndarray | None, features: pd.DataFrame
) -> dict[str, Any] | None:
    """Describe what each feature adds: its standard deviation over these rows, and at some of its values.

    Args:
        network: as in :func:`contributions`.
        inputs: what it takes.
        centre: mean of the inputs.
        features: the train rows.

    Returns:
        by feature, the strongest first: ``strength``; ``points``, pairs of a value (None where it is missing) and what
        it adds. None for a model whose score is no sum.
    """
    if not isinstance(network, nn.Linear) or centre is None:
        return None
    spread = contributions(network, inputs, centre, inputs.transform(features)).std(ddof=0)
    shown = {name: _values(features[name]) for name in spread.index}
    rows = max(map(len, shown.values()))
    frame = pd.DataFrame({name: _column(features[name], values, rows) for name, values in shown.items()})
    added = contributions(network, inputs, centre, inputs.transform(frame[list(features.columns)]))
    return {
        str(name): {
            "strength": float(spread[name]),
            "points": [[value, float(added[name].iloc[place])] for place, value in enumerate(shown[name])],
        }
        for name in spread.sort_values(ascending=False).index
    }


def _values(column: pd.Series) -> list[Any]:
    missing = [None] if column.isna().any() else []
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [*column.value_counts().index[:MOST_VALUES].tolist(), *missing]
    quantiles = np.quantile(column.dropna().to_numpy(), QUANTILES, method="inverted_cdf")
    return [*np.unique(quantiles).tolist(), *missing]


def _column(like: pd.Series, values: Sequence[Any], rows: int) -> pd.Series:
    padded = [*values, *[values[0]] * (rows - len(values))]
    if isinstance(like.dtype, pd.CategoricalDtype):
        return pd.Series(pd.Categorical(padded, categories=like.cat.categories))
    return pd.Series([np.nan if value is None else value for value in padded], dtype="float64")
