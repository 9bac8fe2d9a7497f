import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier

from rareloss.tabular.preprocess import Kind, pipeline, single_precision, tree_categories

KINDS: tuple[Kind, ...] = ("standard", "normal", "spline", "trees")


def frame(rows: int = 400) -> pd.DataFrame:
    """Return features of every awkward kind: skewed, two-valued, mostly zero, with gaps, constant, twice the same."""
    rng = np.random.default_rng(0)
    amount = np.exp(rng.normal(size=rows))
    return pd.DataFrame(
        {
            "amount": amount,
            "again": amount,
            "flag": (rng.random(rows) < 0.02).astype(float),
            "visits": np.maximum(rng.poisson(0.5, rows), 0).astype(float),
            "gaps": np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows)),
            "constant": 1.0,
            "country": pd.Series(rng.choice(["de", "fr", "it"], size=rows)).astype("category"),
            "shop": pd.Series(rng.choice([f"s{i}" for i in range(150)], size=rows))
            .where(rng.random(rows) < 0.9)
            .astype("category"),
        }
    )


@pytest.mark.parametrize("kind", ["standard", "normal", "spline"])
def test_output_is_dense_finite_float32(kind: Kind) -> None:
    data = frame()
    steps = pipeline(data, kind, seed=0)
    train, test = steps.fit_transform(data.iloc[:240]), steps.transform(data.iloc[240:])
    for part in (train, test):
        assert type(part) is np.ndarray
        assert part.dtype == np.float32
        assert np.isfinite(part).all()
    assert train.shape[1] == test.shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_and_categories_that_training_never_saw(kind: Kind) -> None:
    data = frame()
    steps = pipeline(data, kind, seed=0).fit(data.iloc[:240])
    strange = data.iloc[240:].assign(
        amount=np.nan,
        flag=0.5,
        gaps=1e30,
        constant=7.0,
        country=pd.Series(["xx"] * 400).astype("category"),
        visits=-1e12,
    )
    out = steps.transform(strange)
    assert out.shape == (160, steps.transform(data).shape[1])
    if kind == "trees":
        assert np.isnan(out[:, ~np.isfinite(out).all(axis=0)]).any()
        assert not np.isinf(out).any()
    else:
        assert np.isfinite(out).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_empty_in_training_is_no_obstacle(kind: Kind) -> None:
    data = frame().assign(late=lambda f: f.amount.where(f.index >= 240))
    steps = pipeline(data, kind, seed=0)
    steps.fit(data.iloc[:240])
    assert not np.isinf(steps.transform(data.iloc[240:])).any()


@pytest.mark.parametrize("kind", KINDS)
def test_only_numbers_or_only_categories_will_do(kind: Kind) -> None:
    for columns in (["amount"], ["country", "shop"]):
        data = frame()[columns]
        assert pipeline(data, kind, seed=0).fit_transform(data).shape[0] == len(data)


def test_standard_is_centred_and_scaled() -> None:
    data = frame()[["amount", "visits"]]
    out = pipeline(data, "standard", seed=0).fit_transform(data)
    np.testing.assert_allclose(out, (data - data.mean()) / data.std(ddof=0), rtol=1e-5, atol=1e-6)


def test_normal_has_the_quantiles_of_a_normal() -> None:
    data = pd.DataFrame({"x": np.exp(np.random.default_rng(0).normal(size=20_000))})
    out = pipeline(data, "normal", seed=0).fit_transform(data)[:, 0]
    shares = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    np.testing.assert_allclose(np.quantile(out, shares), norm.ppf(shares), atol=0.02)


def test_normal_bounds_a_rare_flag() -> None:
    data = pd.DataFrame({"x": (np.arange(5000) < 2).astype(float)})
    out = pipeline(data, "normal", seed=0).fit_transform(data)
    assert out.max() == 10.0


def test_spline_has_seven_columns_a_number_and_one_a_flag() -> None:
    # Six knots of cubic pieces: 6 + 3 - 1 = 8 functions, one of which the bias makes superfluous.
    data = frame()[["amount", "visits", "flag"]]
    assert pipeline(data, "spline", seed=0).fit_transform(data).shape == (400, 7 + 7 + 1)


def test_spline_is_additive_and_local() -> None:
    data = pd.DataFrame({"x": np.random.default_rng(0).normal(size=2000)})
    out = pipeline(data, "spline", seed=0).fit_transform(data)
    assert (out >= 0).all()
    assert (out.sum(axis=1) <= 1 + 1e-6).all()
    assert ((out > 0).sum(axis=1) <= 4).all()


def test_a_gap_is_marked_by_a_column_of_its_own() -> None:
    data = frame()[["amount", "gaps"]]
    out = pipeline(data, "standard", seed=0).fit_transform(data)
    np.testing.assert_array_equal(out[:, 2], data["gaps"].isna())


def test_rare_categories_share_a_column_and_missing_ones_have_one() -> None:
    shop = pd.Series(["a"] * 50 + ["b"] * 40 + ["c"] * 3 + ["d"] * 2 + [None] * 20).astype("category")
    data = pd.DataFrame({"shop": shop})
    steps = pipeline(data, "standard", seed=0)
    out = steps.fit_transform(data)
    assert sorted(out.sum(axis=0)) == [5, 20, 40, 50]
    unseen = steps.transform(pd.DataFrame({"shop": pd.Series(["zzz"], dtype="category")}))
    np.testing.assert_array_equal(unseen[0], out[90])


def test_trees_keep_gaps_and_read_the_mask() -> None:
    data = frame()
    steps = pipeline(data, "trees", seed=0)
    out = steps.fit_transform(data)
    categories = tree_categories(data)
    assert out.shape[1] == len(categories) == 8
    assert categories.sum() == 2
    np.testing.assert_array_equal(np.isnan(out[:, ~categories]), data.drop(columns=["country", "shop"]).isna())
    trees = HistGradientBoostingClassifier(max_iter=5, categorical_features=categories)
    trees.fit(out, data["amount"] > 1)
    assert trees.score(out, data["amount"] > 1) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_numbers_and_survives_pickling(kind: Kind) -> None:
    data = frame()
    one, other = (pipeline(data, kind, seed=3).fit(data.iloc[:240]) for _ in range(2))
    np.testing.assert_array_equal(one.transform(data), other.transform(data))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).transform(data), other.transform(data))


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(
        st.one_of(st.just(np.nan), st.just(0.0), st.floats(-3e38, 3e38, allow_nan=False)), min_size=12, max_size=40
    ),
    kind=st.sampled_from(["standard", "normal", "spline"]),
)
def test_any_finite_numbers_become_finite(values: list[float], kind: Kind) -> None:
    data = pd.DataFrame({"x": values, "y": np.arange(len(values), dtype=float)})
    steps = pipeline(data, kind, seed=0).fit(data.iloc[: len(data) // 2])
    assert np.isfinite(steps.transform(data)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["float32", "decimal", "text"])
def test_inputs_do_not_depend_on_how_a_number_is_stored(kind: Kind, stored: str) -> None:
    random = np.random.default_rng(0)
    rate = random.choice([0.1, 0.2, 0.3, 0.7], 2_000, p=[0.5, 0.3, 0.15, 0.05])  # none of them is a float32
    data = pd.DataFrame({"rate": rate, "x": random.normal(size=2_000).round(3), "flag": (rate > 0.25) * 0.1 + 0.6})
    # A third value that float64 alone tells from another makes no curve of a flag.
    data.loc[0, "flag"] = data["flag"].iloc[0] + 1e-12
    other = data.round(9)
    if stored == "float32":
        other = other.astype("float32").astype("float64")
    elif stored == "decimal":
        other = other.map(lambda value: float(Decimal(f"{value:.9f}")))
    else:
        other = other.map(lambda value: float(f"{value:.9g}"))
    assert not other.equals(data)
    fitted = pipeline(data, kind, seed=0).fit(data)
    np.testing.assert_array_equal(fitted.transform(other), fitted.transform(data))
    np.testing.assert_array_equal(pipeline(other, kind, seed=0).fit(other).transform(data), fitted.transform(data))
    # The value of half of the rows lies in the middle of its quantiles.
    if kind == "normal":
        assert np.unique(fitted.transform(other)[:, 0]).shape == (4,)


def test_numbers_beyond_single_precision_are_its_largest() -> None:
    largest = np.finfo(np.float32).max
    found = single_precision([1e300, -1e300, np.nan, 16_777_217.0])
    np.testing.assert_array_equal(found, [largest, -largest, np.nan, 16_777_216.0])
    assert found.dtype == np.float64
