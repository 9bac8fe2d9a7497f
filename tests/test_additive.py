"""AdditiveRareClassifier: curves that are near the truth, as smooth and as monotone as asked, and never worse."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
import pandas as pd
from scipy.special import expit
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.utils.estimator_checks import estimator_checks_generator

from rareloss.tabular.estimators.additive import AdditiveRareClassifier
from rareloss.tabular.estimators.monotone import solve_monotone

Rows = tuple[np.ndarray, np.ndarray]


def curves(x: np.ndarray) -> np.ndarray:
    """Compute the true contributions of :func:`drawn`, not centred, ``[n, 3]``."""
    return np.column_stack([2 * np.sin(1.5 * x[:, 0]), x[:, 1] ** 2 / 2, -0.8 * x[:, 2]])


def drawn(rows: int, seed: int) -> Rows:
    """Draw rows whose log-odds are a sum of curves; about a tenth is positive."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (rows, 3))
    return x, (rng.random(rows) < expit(curves(x).sum(axis=1) - 3.5)).astype(int)


def bent(rows: int, seed: int) -> Rows:
    """Draw rows whose positives lie in a corner and at an end, so that no sum of curves is right for all of them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 3))
    y = (x[:, 0] > 2) | ((x[:, 1] > 1) & (x[:, 0] < -1.3))
    return x, (y ^ (rng.random(rows) < 0.002)).astype(int)


def short(**given: Any) -> AdditiveRareClassifier:
    return AdditiveRareClassifier(**{"objective": "ap", "trials": 2, "random_state": 0, **given})


@pytest.fixture(scope="module")
def known() -> tuple[AdditiveRareClassifier, Rows]:
    rows = drawn(8_000, 0)
    return short().fit(*rows), rows


@pytest.fixture(scope="module")
def misfit() -> tuple[AdditiveRareClassifier, Rows]:
    rows = bent(4_000, 0)
    return short(monotonic_cst=[0, 1, -1]).fit(*rows), rows


def test_curves_are_near_the_true_ones(known: tuple[AdditiveRareClassifier, Rows]) -> None:
    model, (x, _) = known
    inner = np.repeat(np.linspace(-1.8, 1.8, 50)[:, None], 3, axis=1)
    truth = curves(inner) - curves(x).mean(axis=0)
    for place in range(3):
        found = model.shape(place, inner[:, place], of=model.cross_entropy_)
        assert np.abs(found - truth[:, place]).max() < 0.6
        assert np.sqrt(np.mean((found - truth[:, place]) ** 2)) < 0.25
    ideal = drawn(20_000, 1)
    best = average_precision_score(ideal[1], curves(ideal[0]).sum(axis=1))
    assert average_precision_score(ideal[1], model.decision_function(ideal[0])) > best - 0.02


def test_contributions_are_centred_and_sum_to_the_log_odds(known: tuple[AdditiveRareClassifier, Rows]) -> None:
    model, (x, y) = known
    added = model.contributions(x)
    np.testing.assert_allclose(added.mean(axis=0), 0.0, atol=1e-10)
    np.testing.assert_allclose(added.std(axis=0), model.importance_)
    np.testing.assert_allclose(added.sum(axis=1) + model.points_.intercept, model.decision_function(x))
    np.testing.assert_allclose(model.shape(1, x[:9, 1]), added[:9, 1])
    again = LogisticRegression(C=np.inf).fit(model.decision_function(x)[:, None], y)
    assert again.coef_[0, 0] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("order", [0, 1])
def test_limit_of_smoothness_is_a_straight_line(order: int) -> None:
    x, y = drawn(1_500, 2)
    model = short(smoothness=1e12, trials=1, monotonic_cst=[0, order, 0]).fit(x, y)
    for points in (model.points_, model.cross_entropy_):
        for coefficients in points.coefficients:
            steps = np.diff(coefficients)
            np.testing.assert_allclose(np.diff(steps), 0.0, atol=1e-4 * max(1e-2, np.abs(steps).max()))
    rough = short(smoothness=0.1, trials=1).fit(x, y).cross_entropy_.coefficients[0]
    assert np.abs(np.diff(rough, n=2)).max() > 0.3


def test_penalties_beyond_the_draws_are_tried_where_rows_are_few() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((400, 8)), (np.arange(400) % 8 == 0).astype(int)
    x[y == 1, 0] += 1.5  # 50 positives, and one curve of eight that says something
    model = short(trials=1, smoothness=0.1).fit(x, y)
    assert model.chosen_["C"] < 0.1  # 1 was drawn
    assert model.chosen_["converged"]


def test_more_smoothness_leaves_less_bend_and_a_worse_fit() -> None:
    x, y = drawn(1_500, 3)
    bends, losses = [], []
    for smoothness in (0.1, 10.0, 1e3, 1e5):
        model = short(trials=1, smoothness=smoothness).fit(x, y)
        bends.append(sum(np.sum(np.diff(each, n=2) ** 2) for each in model.cross_entropy_.coefficients))
        scores = model.cross_entropy_.intercept + sum(
            model.shape(place, x[:, place], of=model.cross_entropy_) for place in range(3)
        )
        losses.append(np.mean(np.logaddexp(0, scores) - y * scores))
    assert (np.diff(bends) < 0).all()
    assert (np.diff(losses) > -1e-3).all()
    assert losses[-1] > losses[0] + 0.02


def test_monotone_curves_are_so_everywhere_before_and_after_the_stage(
    misfit: tuple[AdditiveRareClassifier, Rows],
) -> None:
    model, (x, _) = misfit
    assert model.finetuned_.changed
    for place, order in ((1, 1), (2, -1)):
        grid = np.linspace(x[:, place].min() - 3, x[:, place].max() + 3, 20_001)
        for points in (model.points_, model.cross_entropy_):
            curve = model.shape(place, grid, of=points)
            assert (order * np.diff(curve) >= -1e-12 * np.ptp(curve)).all()
    free = np.diff(model.shape(0, np.linspace(-3, 3, 100)))
    assert free.min() < 0 < free.max()


def test_the_stage_gains_under_bounds_and_without(misfit: tuple[AdditiveRareClassifier, Rows]) -> None:
    bounded, rows = misfit
    x, y = bent(12_000, 1)
    for model in (bounded, short().fit(*rows)):
        start = sum(model.shape(place, x[:, place], of=model.cross_entropy_) for place in range(3))
        assert model.finetuned_.after > model.finetuned_.before
        assert average_precision_score(y, model.decision_function(x)) > average_precision_score(y, start) + 0.005


def test_bounds_that_do_not_bind_change_nothing() -> None:
    x, y = drawn(1_500, 4)
    x = x[:, 1:] ** [2, 1]
    free = short(trials=1, smoothness=1e4).fit(x, y).cross_entropy_
    bounded = short(trials=1, smoothness=1e4, monotonic_cst=[1, -1]).fit(x, y).cross_entropy_
    for one, other in zip(free.coefficients, bounded.coefficients, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


def test_bounded_cross_entropy_meets_the_conditions_of_its_minimum() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((800, 8))
    y = (rng.random(800) < expit(x @ rng.standard_normal(8) - 1)).astype(float)
    steps, bounded = rng.standard_normal((8, 8)), np.arange(8) < 6
    weight = rng.exponential(size=800)
    found, intercept, converged = solve_monotone(x, y, weight, 0.5, steps, bounded)
    assert converged
    residual = weight * (expit(x @ found + intercept) - y)
    slope = np.linalg.solve(steps.T, (x.T @ residual + found / 0.5) / weight.sum())  # per step
    taken = steps @ found
    free = ~bounded | (taken > 1e-9)
    assert 0 < (~free).sum() < 6
    assert (taken[bounded] > -1e-12).all()
    np.testing.assert_allclose(slope[free], 0.0, atol=1e-6)
    assert (slope[~free] > 0).all()
    assert abs(residual.sum()) / weight.sum() < 1e-6
    loose = LogisticRegression(C=0.5, tol=1e-10, solver="newton-cholesky").fit(x, y, weight)
    np.testing.assert_allclose(
        solve_monotone(x, y, weight, 0.5, steps, np.zeros(8, bool))[0], loose.coef_[0], atol=1e-6
    )


@pytest.fixture(scope="module")
def framed() -> tuple[AdditiveRareClassifier, pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(6)
    x = pd.DataFrame(
        {
            "amount": rng.lognormal(3, 2, 2_500),
            "age": rng.integers(18, 90, 2_500),
            "country": pd.Categorical(rng.choice(["at", "de", "fr"], 2_500)),
            "shop": rng.choice(["web", "till", None], 2_500, p=[0.6, 0.3, 0.1]),
            "night": rng.random(2_500) < 0.3,
        }
    )
    score = np.log(x["amount"]) - 7 + 1.5 * (x["country"] == "fr") + 1.0 * x["shop"].isna() + 1.0 * x["night"]
    gone = rng.random(2_500) < 0.1
    x.loc[gone, "amount"] = np.nan
    y = pd.Series(np.where(rng.random(2_500) < expit(score), "fraud", "fine"))
    model = short(monotonic_cst={"amount": 1, "night": 1, "age": -1}).fit(x, y)
    return model.resample(x, y, resamples=2, random_state=0), x, y


def test_frame_of_names_and_gaps(framed: tuple[AdditiveRareClassifier, pd.DataFrame, pd.Series]) -> None:
    model, x, _ = framed
    countries = model.shape("country", ["at", "de", "fr", "never seen"])
    assert countries[2] > countries[:2].max() + 0.7
    assert model.shape("shop", [None])[0] > model.shape("shop", ["web"])[0] + 0.4
    assert np.isfinite(model.shape("amount", [np.nan, -1e300, 1e300])).all()
    amounts = model.shape("amount", np.geomspace(0.01, 1e5, 3_000))
    assert (np.diff(amounts) >= -1e-12 * np.ptp(amounts)).all()
    assert np.diff(model.shape("night", [0, 1]))[0] > 0.3
    np.testing.assert_allclose(model.contributions(x).mean(axis=0), 0.0, atol=1e-10)
    assert set(model.predict(x)) <= {"fine", "fraud"}
    with pytest.raises(ValueError, match="was a number"):
        model.predict(x.assign(age="old"))
    with pytest.raises(ValueError, match=r"[Ff]eature names"):
        model.predict(x.rename(columns={"age": "years"}))


def test_bands_hold_the_curve_and_are_wide_where_rows_are_few(
    framed: tuple[AdditiveRareClassifier, pd.DataFrame, pd.Series],
) -> None:
    model, x, y = framed
    low, high = model.band("amount", [1.0, 20.0, 1e5], level=0.9)
    assert (low <= high).all()
    middle = model.shape("amount", [20.0])[0]
    assert low[1] - 0.5 < middle < high[1] + 0.5
    assert 0 < high[1] - low[1] < 2
    with pytest.raises(ValueError, match="2500 rows"):
        model.resample(x[:100], y[:100])


def test_figure_shows_both_scorecards_of_every_input(
    framed: tuple[AdditiveRareClassifier, pd.DataFrame, pd.Series],
) -> None:
    model, _, _ = framed
    figure = model.plot_shapes(["country", "amount"], columns=2)
    drawn = [(trace.legendgroup, trace.type) for trace in figure.data]
    assert drawn.count(("start", "scatter")) == drawn.count(("final", "scatter")) == 2
    assert sum(trace.showlegend for trace in figure.data) == len({group for group, _ in drawn})
    titles = [text.text for text in figure.layout.annotations]
    assert titles[0] == "country"
    assert titles[1].startswith("amount (missing: ")
    curve = next(trace for trace in figure.data if trace.legendgroup == "final" and trace.mode == "lines")
    np.testing.assert_allclose(curve.y, model.shape("amount", curve.x))
    assert len(model.plot_shapes().layout.annotations) == 5


def test_numbers_asked_to_be_names_and_rows_of_weight_zero() -> None:
    rng = np.random.default_rng(7)
    code = rng.choice([3.0, 7.0, 11.0, np.nan], 3_000)
    x = np.column_stack([code, rng.standard_normal(3_000), np.full(3_000, 5.0)])
    y = (rng.random(3_000) < expit(2.0 * (code == 7) - 3)).astype(int)
    model = short(trials=1, categorical_features=[0]).fit(x, y)
    assert model.shape(0, [7.0])[0] > model.shape(0, [3.0, 11.0, np.nan]).max() + 1
    assert model.importance_[2] == 0  # a constant
    longer = np.vstack([x, np.full((20, 3), 1e6)]), np.append(y, np.ones(20, dtype=int))
    other = clone(model).fit(*longer, sample_weight=np.append(np.ones(3_000), np.zeros(20)))
    np.testing.assert_allclose(other.decision_function(x), model.decision_function(x), atol=1e-6)


@pytest.mark.parametrize("stored", ["float32", "object"])
def test_scores_do_not_depend_on_how_a_number_is_stored(stored: str) -> None:
    rng = np.random.default_rng(3)
    x = pd.DataFrame({"rate": rng.choice([0.1, 0.2, 0.3, 0.7], 2_000), "x": rng.normal(size=2_000).round(3)})
    y = (rng.random(2_000) < expit(4 * x["rate"] + x["x"] - 4)).astype(int)
    x["code"] = rng.choice([0.1, 1.5, 2.0**53], 2_000)  # numbers as names: what is whole keeps its digits
    other = x.astype("float32") if stored == "float32" else x.astype({"code": object})
    model = short(objective="recall@top=5%", trials=1, categorical_features=["code"]).fit(x, y)
    np.testing.assert_array_equal(model.decision_function(other), model.decision_function(x))
    again = clone(model).fit(other, y)
    np.testing.assert_array_equal(again.decision_function(x), model.decision_function(x))
    assert again.threshold_ == model.threshold_
    np.testing.assert_array_equal(again.predict(other), model.predict(x))
    assert model.shape("rate", [np.float32(0.1)]) == model.shape("rate", [0.1])


def test_same_seed_gives_the_same_scorecard() -> None:
    x, y = bent(1_000, 8)
    model = short(monotonic_cst=[0, 1, -1]).fit(x, y)
    np.testing.assert_array_equal(clone(model).fit(x, y).decision_function(x), model.decision_function(x))


def test_threshold_keeps_the_capacity() -> None:
    model = short(objective="recall@top=5%").fit(*bent(4_000, 2))
    assert 0.02 < model.predict(bent(12_000, 3)[0]).mean() < 0.1


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"objective": "auc"}, ValueError, "objective"),
        ({"trials": 0}, ValueError, "trials"),
        ({"n_knots": 3}, ValueError, "n_knots"),
        ({"smoothness": 0.0}, ValueError, "smoothness"),
        ({"smoothness": float("nan")}, ValueError, "smoothness"),
        ({"monotonic_cst": [2, 0, 0]}, ValueError, "monotonic_cst"),
        ({"monotonic_cst": [1]}, ValueError, "monotonic_cst"),
        ({"monotonic_cst": {"age": 1}}, ValueError, "feature names"),
        ({"monotonic_cst": [1, 0, 0], "categorical_features": [0]}, ValueError, "order of names"),
        ({"categorical_features": [3]}, ValueError, "no input 3"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction"),
    ],
)
def test_refuses(change: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        AdditiveRareClassifier(**change).fit(*drawn(100, 0))


@pytest.mark.parametrize("far", [np.inf, 1e200])
def test_refuses_numbers_without_end(far: float) -> None:
    x, y = drawn(100, 0)
    x[0, 1] = far
    with pytest.raises(ValueError, match=r"infinity|reaches from"):
        short().fit(x, y)


def test_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, known: tuple[AdditiveRareClassifier, Rows]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    monkeypatch.delitem(sys.modules, "rareloss.tabular.estimators.plots", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'plot_shapes needs: pip install "rareloss\[study\]"'):
        known[0].plot_shapes()


def test_not_fitted() -> None:
    model = AdditiveRareClassifier()
    for call in (model.decision_function, model.contributions, lambda x: model.shape(0, x), lambda x: model.band(0, x)):
        with pytest.raises(NotFittedError):
            call(np.zeros((3, 3)))
    with pytest.raises(NotFittedError):
        model.plot_shapes()


def contract() -> list[Any]:
    """Return scikit-learn's checks, less the one on weights: the split is by row, so a weight of 2 is not two rows."""
    every = estimator_checks_generator(AdditiveRareClassifier(trials=1, n_knots=5))
    named = [(estimator, check, getattr(check, "func", check).__name__) for estimator, check in every]
    left_out = ("check_sample_weight_equivalence", "check_array_api_input")
    return [pytest.param(*case, id=name) for *case, name in named if not name.startswith(left_out)]


@pytest.mark.parametrize(("estimator", "check"), contract())
def test_estimator_contract(estimator: AdditiveRareClassifier, check: Callable[[Any], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)
