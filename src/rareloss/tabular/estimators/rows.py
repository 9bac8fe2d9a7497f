"""What the two estimators check of their labels, and their rows as batches.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

try:
    import sklearn  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error.name} is missing, which the estimators need: pip install "rareloss[study]"', name=error.name
    ) from error

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor, nn

from rareloss.tabular.logistic import in_log_odds, relative_weight
from rareloss.tabular.preprocess import single_precision
from rareloss.training import Batch

__all__ = [
    "Array",
    "as_batch",
    "as_inputs",
    "as_numbers",
    "check_labels",
    "check_numbers",
    "check_weight",
    "log_odds_of",
    "present_rows",
    "scores_of",
    "two_classes",
]

Array = np.ndarray[Any, np.dtype[np.float64]]


def check_labels(y: np.ndarray) -> None:
    """Check that labels are classes, and all there.

    Raises:
        ValueError: missing labels among objects, or numbers that are measured.
    """
    if y.dtype == object and (missing := sum(label is None for label in y.tolist())):
        raise ValueError(f"y holds {missing} missing label(s) in {len(y)} rows; drop those rows")
    check_classification_targets(y)


def check_numbers(X: np.ndarray) -> Array:
    """Return inputs as float32 holds them.

    Raises:
        ValueError: numbers beyond float32.
    """
    if odd := np.flatnonzero((np.abs(X) > np.finfo(np.float32).max).any(axis=0)).tolist():
        raise ValueError(
            f"column(s) {odd} of X hold numbers up to {np.abs(X[:, odd]).max():.2g}, which float32 cannot hold: "
            "divide them, or take their logarithm"
        )
    return single_precision(X)


def check_weight(sample_weight: Any, y: np.ndarray) -> Array:
    """Return the weights of rows, of mean 1 over those of some weight.

    Raises:
        ValueError: a negative or missing weight, or another number of them.
    """
    return relative_weight(_check_sample_weight(sample_weight, y[:, None], dtype=np.float64, ensure_non_negative=True))


def present_rows(
    columns: Sequence[np.ndarray], y: np.ndarray, sample_weight: Any
) -> tuple[list[np.ndarray], np.ndarray, Array]:
    """Return columns, labels and weights of the rows of some weight: a row of weight 0 is absent."""
    weight = check_weight(sample_weight, y)
    some = weight > 0
    return [column[some] for column in columns], y[some], weight[some]


def two_classes(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two classes of rows of some weight, and the place of each row's among them.

    Raises:
        ValueError: more or fewer than two.
    """
    classes, target = np.unique(y, return_inverse=True)
    if len(classes) != 2:
        raise ValueError(
            f"Only binary classification is supported. The type of the target is {type_of_target(y)}; "
            f"got {len(classes)} class(es) among rows of some weight; of several classes, fit one against all others "
            "(y == label), or all in turn by scikit-learn's OneVsRestClassifier"
        )
    return classes, target


def as_inputs(x: np.ndarray) -> Tensor:
    """Return numbers as float32."""
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def as_batch(x: np.ndarray, target: np.ndarray, weight: np.ndarray | None, rows: np.ndarray) -> Batch:
    """Return rows as a batch; ``x`` and ``target`` are theirs, ``weight`` is that of all rows."""
    own = None if weight is None else torch.from_numpy(weight[rows].astype(np.float32))
    return Batch(as_inputs(x), torch.from_numpy(target), own)


def as_numbers(weight: Tensor | None) -> np.ndarray | None:
    """Return weights as scikit-learn takes them."""
    return None if weight is None else weight.double().numpy()


@torch.no_grad()
def scores_of(model: nn.Module, rows: Batch) -> np.ndarray:
    """Compute the scores of a model of one output, ``[n]``."""
    return np.asarray(model(rows.inputs)[:, 0].double().numpy())


def log_odds_of(model: nn.Module, rows: Batch) -> tuple[float, float]:
    """Find slope and offset that make a model's scores log-odds on these rows."""
    return in_log_odds(scores_of(model, rows), rows.targets.numpy(), as_numbers(rows.weight))
