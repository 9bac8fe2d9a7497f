"""The fitted inputs of a model as names and arrays: what is saved is data, and loading it runs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import QuantileTransformer, SplineTransformer

from rareloss.table import DataError
from rareloss.tabular.model.reading import listed, read
from rareloss.tabular.preprocess import KNOTS, LARGEST, MOST_CATEGORIES, Kind, single_precision

__all__ = ["Category", "Inputs"]

# Of a category, ten times what a fit keeps.
MOST_FREQUENT = 10 * MOST_CATEGORIES
KINDS: tuple[Kind, ...] = ("standard", "normal", "spline", "trees")


@dataclass(frozen=True)
class Category:
    """A category's values, as columns of 0 and 1 or as codes.

    Args:
        name: of the feature.
        frequent: values with a column, or a code, of their own; None is a missing one.
        rare: whether there is a last column, or code, for the rarer values.
        rarer: those that have it; none: every value that is not frequent has.
    """

    name: str
    frequent: tuple[str | None, ...]
    rare: bool
    rarer: tuple[str, ...] = ()

    def place(self, values: pd.Series) -> np.ndarray:
        """Return the place of each value among the frequent ones, ``[n]``; -1 where it is not among them."""
        text = values.astype("object")
        known = pd.Index(self.frequent, dtype="object")
        return np.asarray(known.get_indexer(pd.Index(text.where(text.notna(), None), dtype="object")))

    def transform(self, values: pd.Series) -> np.ndarray:
        """Compute the columns, ``[n, frequent + rare]``."""
        place = self.place(values)
        place = np.where(place < 0, len(self.frequent), place)
        hot = np.zeros((len(place), len(self.frequent) + 1), dtype=np.float32)
        hot[np.arange(len(place)), place] = 1
        return hot if self.rare else hot[:, :-1]

    def codes(self, values: pd.Series) -> np.ndarray:
        """Compute the codes, float64 ``[n]``; NaN of a value that is missing or new."""
        place = self.place(values)
        code = np.where(place < 0, np.nan, place)
        code[values.isin(self.rarer).to_numpy()] = len(self.frequent)
        return code

    def unlisted(self, values: pd.Series) -> np.ndarray:
        """Say in which rows there is a value that is not among the frequent ones, bool ``[n]``."""
        return np.asarray((self.place(values) < 0) & values.notna().to_numpy())

    def unseen(self, values: pd.Series) -> np.ndarray:
        """Say in which rows there is a value that the model knows nothing of, bool ``[n]``."""
        if self.rare and not self.rarer:
            return np.zeros(len(values), dtype=bool)
        return self.unlisted(values) & ~values.isin(self.rarer).to_numpy()

    @property
    def width(self) -> int:
        """Columns of what :meth:`transform` returns."""
        return len(self.frequent) + self.rare


@dataclass(frozen=True, eq=False)
class Inputs:
    """What :func:`rareloss.tabular.preprocess.pipeline` is once it is fitted: the same numbers, to the last bit.

    Args:
        kind: how numbers are transformed.
        numbers: features that are, in order.
        flags: features of two values, which are standardised whatever the kind.
        gaps: features with a column that says where they are missing.
        categories: features with one-hot columns.
        arrays: of ``numbers`` and ``flags``: ``median``, ``mean`` and ``scale``, ``[d]``; ``quantiles``, ``[q, d]``;
            each where it is needed, under names such as ``"numbers.median"``.
    """

    kind: Kind
    numbers: tuple[str, ...]
    flags: tuple[str, ...]
    gaps: tuple[str, ...]
    categories: tuple[Category, ...]
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, fitted: Pipeline, kind: Kind) -> "Inputs":
        """Take what is needed out of a fitted pipeline."""
        if kind not in KINDS:
            raise DataError(f"inputs of kind {kind!r} cannot be saved; {', '.join(KINDS)} can")
        columns = fitted[0]
        names = {name: tuple(chosen) for name, _, chosen in columns.transformers_ if name != "remainder"}
        arrays: dict[str, np.ndarray] = {}
        for part in () if kind == "trees" else ("numbers", "flags"):
            if names[part]:
                arrays |= {f"{part}.{name}": values for name, values in _arrays(columns.named_transformers_[part])}
        categories: list[Category] = []
        trees = kind == "trees"
        if names["categories"]:
            encoder = columns.named_transformers_["categories"]
            rare_ones = getattr(encoder, "infrequent_categories_", None) or [None] * len(encoder.categories_)
            for name, every, rare in zip(names["categories"], encoder.categories_, rare_ones, strict=True):
                frequent = every if rare is None else every[~pd.Index(every).isin(rare)]
                values = tuple(None if pd.isna(value) else str(value) for value in frequent)
                if trees:  # to which a missing value is no category
                    rarer = () if rare is None else tuple(map(str, rare))
                    categories.append(Category(name, tuple(filter(None, values)), rare is not None, rarer))
                else:
                    categories.append(Category(name, values, rare is not None))
        flags, gaps = (names.get(part, ()) for part in ("flags", "missing"))
        return cls(kind, names["numbers"], flags, gaps, tuple(categories), arrays)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features."""
        return (*self.numbers, *self.flags, *(category.name for category in self.categories))

    @property
    def width(self) -> int:
        """Columns of what :meth:`transform` returns."""
        if self.kind == "trees":
            return len(self.numbers) + len(self.categories)
        curves = len(self.numbers) * (len(KNOTS) + 1 if self.kind == "spline" else 1)
        return curves + len(self.flags) + len(self.gaps) + sum(category.width for category in self.categories)

    @property
    def owners(self) -> list[str]:
        """The feature that each column of what :meth:`transform` returns comes from."""
        many = len(KNOTS) + 1 if self.kind == "spline" else 1
        curves = [name for name in self.numbers for _ in range(many)]
        hot = [each.name for each in self.categories for _ in range(1 if self.kind == "trees" else each.width)]
        return [*curves, *self.flags, *self.gaps, *hot]

    def transform(self, features: pd.DataFrame) -> np.ndarray:
        """Compute the inputs of a model, ``[n, width]``: float32, of trees float64."""
        if len(features) == 0:
            return np.zeros((0, self.width), dtype=np.float64 if self.kind == "trees" else np.float32)
        if self.kind == "trees":
            codes = [each.codes(features[each.name])[:, None] for each in self.categories]
            return np.hstack([single_precision(features[list(self.numbers)]), *codes])
        parts = [np.zeros((len(features), 0))]
        for part, names in (("numbers", self.numbers), ("flags", self.flags)):
            if names:
                parts.append(self._numbers(part, single_precision(features[list(names)])))
        if self.gaps:
            parts.append(features[list(self.gaps)].isna().to_numpy())
        parts += [category.transform(features[category.name]) for category in self.categories]
        largest = LARGEST[self.kind]
        found: np.ndarray = np.clip(np.hstack(parts), -largest, largest).astype(np.float32)
        return found

    def unseen(self, features: pd.DataFrame) -> dict[str, int]:
        """Count the rows in which a category has a value that the model knows nothing of, where there are any."""
        found = {each.name: int(each.unseen(features[each.name]).sum()) for each in self.categories}
        return {name: rows for name, rows in found.items() if rows}

    def unlisted(self, features: pd.DataFrame) -> dict[str, int]:
        """Count the rows in which a category's value has no column, or code, of its own."""
        return {each.name: int(each.unlisted(features[each.name]).sum()) for each in self.categories}

    def _numbers(self, part: str, values: np.ndarray) -> np.ndarray:
        own = {name: self.arrays[f"{part}.{name}"] for name in _needed(self.kind, part)}
        values = np.where(np.isnan(values), own["median"], values)
        if "quantiles" in own:
            many, width = own["quantiles"].shape
            normal = QuantileTransformer(n_quantiles=many, output_distribution="normal")
            normal.quantiles_, normal.n_quantiles_ = own["quantiles"], many
            normal.references_, normal.n_features_in_ = np.linspace(0, 1, many), width
            values = normal.transform(values)
            if self.kind == "spline":
                knots = np.repeat(KNOTS[:, None], width, axis=1)
                curves = SplineTransformer(degree=3, knots=knots, include_bias=False).fit(np.zeros((2, width)))
                return np.asarray(curves.transform(values))
        return np.asarray((values - own["mean"]) / own["scale"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, as plain lists and strings."""
        return {
            "kind": self.kind,
            "numbers": list(self.numbers),
            "flags": list(self.flags),
            "gaps": list(self.gaps),
            "categories": [
                {
                    "name": each.name,
                    "frequent": list(each.frequent),
                    "rare": each.rare,
                    "rarer": list(each.rarer),
                }
                for each in self.categories
            ],
        }

    @classmethod
    def from_dict(cls, given: Any, arrays: Mapping[str, np.ndarray]) -> "Inputs":
        """Read what :meth:`to_dict` wrote.

        Raises:
            DataError: something is missing, unknown, or of another type or shape.
        """
        found = read("inputs", given, {"kind": str, "numbers": list, "flags": list, "gaps": list, "categories": list})
        if found["kind"] not in KINDS:
            raise DataError(f"inputs: kind must be one of {', '.join(KINDS)}, got {found['kind']!r:.60}")
        names = {part: listed(f"inputs, {part}", found[part]) for part in ("numbers", "flags", "gaps")}
        categories = []
        for each in found["categories"]:
            own = read("inputs, categories", each, {"name": str, "frequent": list, "rare": bool, "rarer": list})
            frequent = listed(f"category {own['name']!r:.60}", own["frequent"], missing=True)
            if len(frequent) > MOST_FREQUENT:
                raise DataError(f"category {own['name']!r:.60}: at most {MOST_FREQUENT} frequent values were expected")
            rarer = listed(f"category {own['name']!r:.60}", own["rarer"])
            categories.append(Category(own["name"], frequent, own["rare"], rarer))
        made = cls(found["kind"], names["numbers"], names["flags"], names["gaps"], tuple(categories), arrays)
        listed("inputs, features", list(made.features))
        if not set(made.gaps) <= {*made.numbers, *made.flags}:
            raise DataError("inputs: gaps name features that are no numbers")
        expected = {
            f"{part}.{name}"
            for part, columns in (("numbers", made.numbers), ("flags", made.flags))
            for name in (_needed(made.kind, part) if columns and made.kind != "trees" else ())
        }
        if set(arrays) != expected:
            raise DataError(f"inputs: arrays {sorted(expected)} were expected, got {sorted(arrays)!r:.200}")
        for name, values in arrays.items():
            width = len(names[name.split(".")[0]])
            shape = (max(2, len(values)), width) if name.endswith("quantiles") else (width,)
            if values.dtype != np.float64 or values.shape != shape or not np.isfinite(values).all():
                raise DataError(
                    f"inputs: {name} must be finite float64 of shape {shape}, got {values.dtype} {values.shape}"
                )
            if name.endswith("scale") and not (values > 0).all():
                raise DataError(f"inputs: {name} must be above 0")
        return made


def _needed(kind: Kind, part: str) -> tuple[str, ...]:
    if kind == "standard" or part == "flags":
        return ("median", "mean", "scale")
    return ("median", "quantiles") if kind == "spline" else ("median", "quantiles", "mean", "scale")


def _arrays(steps: Pipeline) -> Any:
    for step in steps:
        for name, attribute in (
            ("median", "statistics_"),
            ("quantiles", "quantiles_"),
            ("mean", "mean_"),
            ("scale", "scale_"),
        ):
            if hasattr(step, attribute):
                yield name, np.ascontiguousarray(getattr(step, attribute), dtype=np.float64)
