"""Boosted trees as arrays: what scikit-learn has grown, kept without pickle, and scored by its own code."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor, nn

from rareloss.table import DataError

__all__ = ["Trees"]

# A field of a node here, its type, and what scikit-learn calls it.
_NODE = {
    "value": (torch.float64, "value"),
    "feature": (torch.int64, "feature_idx"),
    "threshold": (torch.float64, "num_threshold"),
    "missing_left": (torch.uint8, "missing_go_to_left"),
    "left": (torch.int64, "left"),
    "right": (torch.int64, "right"),
    "leaf": (torch.uint8, "is_leaf"),
    "categorical": (torch.uint8, "is_categorical"),
    "bitset": (torch.int64, "bitset_idx"),
}
_REST = {
    "nodes_before": (torch.int64, 1),
    "bitsets_before": (torch.int64, 1),
    "bitsets": (torch.int64, 2),
    "known": (torch.int64, 2),
    "order": (torch.int64, 1),
    "baseline": (torch.float64, 1),
}
WORDS = 8  # of 32 bits: a bitset of 256 categories


class Trees(nn.Module):
    r"""Boosted trees of two classes, :math:`s(x) = b + \sum_t v_t(x)`, the log-odds; float64.

    At a node a row goes left where its number is at most the threshold, or where its category is in the node's set; a
    missing number, or a category that is not known, goes where the node says.

    Args:
        arrays: of all nodes of all trees, one after another, ``[N]``: ``value`` (of a leaf), ``feature``,
            ``threshold``, ``missing_left``, ``left`` and ``right`` (places in the tree, after its own), ``leaf``,
            ``categorical``, ``bitset`` (place among the tree's); how many nodes and bitsets there are before each tree
            and after the last, ``nodes_before`` and ``bitsets_before``, ``[T + 1]``; ``bitsets [B, 8]``, the categories
            that go left, 32 in a number; ``known [K, 8]``, those of each category; ``order [d]``, the inputs as the
            trees count them, categories first; ``baseline [1]``.

    Raises:
        DataError: an array is missing or of another type or shape, or a number in it points at nothing.
    """

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        super().__init__()
        _check(arrays)
        for name, values in arrays.items():
            self.register_buffer(name, values.clone())
        self._predictors = self._built()

    @classmethod
    def of(cls, model: HistGradientBoostingClassifier, rounds: int) -> "Trees":
        """Take the first rounds of a fitted model of two classes; categories among its inputs are codes 0, 1, ..."""
        grown = [each for (each,) in model._predictors[:rounds]]
        known, _ = model._bin_mapper.make_known_categories_bitsets()
        categorical = np.zeros(model.n_features_in_, dtype=bool)
        if model.is_categorical_ is not None:
            categorical = model.is_categorical_
            (codes,) = (each for name, each, _ in model._preprocessor.transformers_ if name == "encoder")
            assert all((np.isnan(c) | (c == np.arange(len(c)))).all() for c in codes.categories_)
        arrays = {
            name: torch.from_numpy(np.concatenate([each.nodes[theirs] for each in grown]).astype(_numpy(kind)))
            for name, (kind, theirs) in _NODE.items()
        }
        sets = [each.raw_left_cat_bitsets.reshape(-1, WORDS).astype(np.int64) for each in grown]
        arrays |= {
            "nodes_before": torch.tensor(np.cumsum([0, *(len(each.nodes) for each in grown)])),
            "bitsets_before": torch.tensor(np.cumsum([0, *map(len, sets)])),
            "bitsets": torch.from_numpy(np.concatenate(sets)),
            "known": torch.from_numpy(known.reshape(-1, WORDS).astype(np.int64)),
            "order": torch.from_numpy(np.argsort(~categorical, kind="stable")),
            "baseline": torch.from_numpy(model._baseline_prediction.reshape(-1).astype(np.float64)),
        }
        return cls(arrays)

    @property
    def width(self) -> int:
        """Inputs of a row."""
        return len(self.get_buffer("order"))

    @property
    def count(self) -> int:
        """Trees."""
        return len(self.get_buffer("nodes_before")) - 1

    def forward(self, x: Tensor) -> Tensor:
        """Compute the scores, float64 ``[n]``, of inputs ``[n, d]``: the sums in the order in which they were grown."""
        rows = np.ascontiguousarray(x.double().numpy()[:, self.get_buffer("order").numpy()])
        known = self.get_buffer("known").numpy().astype(np.uint32)
        places = np.arange(self.width, dtype=np.uint32)  # categories are first
        scores = np.zeros(len(rows)) + self.get_buffer("baseline").numpy()
        for each in self._predictors:
            scores += each.predict(rows, known, places, torch.get_num_threads())
        return torch.from_numpy(scores)

    def _built(self) -> list[Any]:
        try:
            from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE
            from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
        except ImportError as error:  # it is no public part of scikit-learn
            raise DataError("this scikit-learn cannot score stored trees; scikit-learn 1.6 to 1.9 can") from error
        nodes = np.zeros(len(self.get_buffer("value")), dtype=PREDICTOR_RECORD_DTYPE)
        for name, (_, theirs) in _NODE.items():
            nodes[theirs] = self.get_buffer(name).numpy()
        starts, sets = (self.get_buffer(name).tolist() for name in ("nodes_before", "bitsets_before"))
        bits = self.get_buffer("bitsets").numpy().astype(np.uint32)
        return [
            TreePredictor(nodes[starts[tree] : starts[tree + 1]], part, part)
            for tree in range(len(starts) - 1)
            for part in [bits[sets[tree] : sets[tree + 1]]]
        ]


def _numpy(kind: torch.dtype) -> np.dtype[np.generic]:
    return torch.empty(0, dtype=kind).numpy().dtype


def _check(arrays: Mapping[str, Tensor]) -> None:
    kinds = {**{name: (kind, 1) for name, (kind, _) in _NODE.items()}, **_REST}
    if set(arrays) != set(kinds):
        raise DataError(f"trees: {', '.join(kinds)} were expected, got {sorted(arrays)!r:.200}")
    for name, (kind, dimensions) in kinds.items():
        if arrays[name].dtype != kind or arrays[name].ndim != dimensions:
            raise DataError(f"trees: {name} must be {kind} of {dimensions} dimensions")
    own = {name: values.numpy() for name, values in arrays.items()}
    nodes, width, categories = len(own["value"]), len(own["order"]), len(own["known"])
    for name in _NODE:
        if len(own[name]) != nodes:
            raise DataError(f"trees: {name} must have {nodes} numbers, one a node, got {len(own[name])}")
    if own["bitsets"].shape[1] != WORDS or own["known"].shape[1] != WORDS or len(own["baseline"]) != 1:
        raise DataError(f"trees: bitsets of {WORDS} numbers, and one baseline, were expected")
    for name, whole in (("nodes_before", nodes), ("bitsets_before", len(own["bitsets"]))):
        before = own[name]
        if len(before) < 2 or before[0] != 0 or before[-1] != whole or (np.diff(before) < (name[0] == "n")).any():
            raise DataError(f"trees: {name} does not count the {whole} there are")
    if len(own["nodes_before"]) != len(own["bitsets_before"]):
        raise DataError("trees: nodes and bitsets are of different numbers of trees")
    sizes = np.diff(own["nodes_before"])
    tree = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(nodes) - own["nodes_before"][tree]
    inner, numbered = own["leaf"] == 0, own["categorical"] == 0
    right_children = all(
        ((own[side] > place) & (own[side] < sizes[tree]))[inner].all() for side in ("left", "right")
    )  # which come after their parent, so that every way ends
    sets = np.diff(own["bitsets_before"])[tree]
    if not right_children:
        raise DataError("trees: a node has a child that does not come after it in its tree")
    if not ((own["feature"] >= 0) & (own["feature"] < np.where(numbered, width, categories)))[inner].all():
        raise DataError(f"trees: a node asks for an input that is not there, of {width} ({categories} categories)")
    if not ((own["bitset"] >= 0) & (own["bitset"] < sets))[inner & ~numbered].all():
        raise DataError("trees: a node asks for a set of categories that is not there")
    if categories > width or not np.array_equal(np.sort(own["order"]), np.arange(width)):
        raise DataError(f"trees: order must name each of the {width} inputs once")
    words = np.concatenate([own["bitsets"].ravel(), own["known"].ravel()])
    if not ((words >= 0) & (words < 2**32)).all():
        raise DataError("trees: a set of categories is no number of 32 bits")
    if not (np.isfinite(own["value"]).all() and np.isfinite(own["baseline"]).all()) or np.isnan(own["threshold"]).any():
        raise DataError("trees: values must be finite, and thresholds numbers")
