"""RareClassifier: an estimator of scikit-learn's kind whose every choice is validation's."""

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
import pandas as pd
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, get_scorer, log_loss
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rareloss import Objective, SmoothAPLoss
from rareloss.tabular.estimators.additive import AdditiveRareClassifier
from rareloss.tabular.estimators.classifier import RareClassifier
from rareloss.tabular.logistic import search

Rows = tuple[np.ndarray, np.ndarray]


def bent(rows: int, seed: int) -> Rows:
    """Draw rows whose positives lie where no straight line is right for all of them, on scales far from one."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 3))
    y = (x[:, 0] > 1.8) | ((x[:, 1] > 1) & (x[:, 0] < -1.2))
    return x * [1.0, 100.0, 0.01] + [0.0, 1000.0, -5.0], np.where(y, "fraud", "fine")


@pytest.fixture(scope="module")
def fitted() -> tuple[RareClassifier, Rows]:
    train = bent(4_000, 0)
    model = RareClassifier("ap", trials=3, random_state=0)
    target = np.where(train[1] == "fraud", 1, 0)
    return model.fit(train[0], target), (train[0], target)


def test_ranks_better_than_logistic_regression_where_it_misfits(fitted: tuple[RareClassifier, Rows]) -> None:
    model, train = fitted
    x, y = bent(8_000, 1)
    plain = make_pipeline(QuantileTransformer(n_quantiles=100), LogisticRegression()).fit(*train)
    ours, theirs = (average_precision_score(y == "fraud", m.decision_function(x)) for m in (model, plain))
    assert ours > theirs + 0.02


def test_coefficients_are_those_of_the_decision_function_in_log_odds() -> None:
    x, y = bent(40_000, 0)
    model = RareClassifier("ap", trials=1, random_state=0).fit(x, y == "fraud")
    scores = model.decision_function(x)
    np.testing.assert_allclose(scores, x @ model.coef_[0] + model.intercept_[0], atol=1e-6)  # x as float32 holds it
    assert model.coef_.shape == (1, 3)
    assert model.intercept_.shape == (1,)
    again = LogisticRegression(C=np.inf).fit(scores[:, None], y)
    assert again.coef_[0, 0] == pytest.approx(1.0, abs=0.15)  # fitted on a quarter of the rows, 500 positives
    assert again.intercept_[0] == pytest.approx(0.0, abs=0.3)


def test_same_seed_gives_the_same_model_and_order_of_classes_is_numpys(fitted: tuple[RareClassifier, Rows]) -> None:
    model, (x, y) = fitted
    other = clone(model).fit(x, y)
    np.testing.assert_array_equal(other.coef_, model.coef_)
    named = clone(model).fit(x, np.where(y == 1, "fraud", "fine"))
    assert named.classes_.tolist() == ["fine", "fraud"]
    np.testing.assert_array_equal(named.coef_, model.coef_)
    assert set(named.predict(x)) <= {"fine", "fraud"}


@pytest.mark.parametrize("objective", ["recall@top=2%", "recall@fpr=1%", "pauc@fpr=0-2%"])
def test_threshold_keeps_the_capacity(objective: str) -> None:
    x, y = bent(4_000, 2)
    model = RareClassifier(Objective.parse(objective), trials=1, random_state=0).fit(x, y)
    x, y = bent(20_000, 3)
    flagged = model.predict(x) == "fraud"
    share = flagged.mean() if "top" in objective else flagged[y == "fine"].mean()
    assert 0.3 < share / Objective.parse(objective).budget < 3
    assert model.finetuned_.after >= model.finetuned_.before


def test_penalties_beyond_the_draws_are_tried_while_they_are_better() -> None:
    tried: list[float] = []

    def fit(draw: dict[str, float]) -> float:
        tried.append(draw["C"])
        return draw["C"]

    draws = [{"C": penalty} for penalty in (1.0, 0.5, 30.0)]
    assert search(draws, fit, lambda found: -abs(np.log(found / 0.04)))[1] == pytest.approx(0.045)
    assert tried == pytest.approx([1.0, 0.5, 30.0, 0.15, 0.045, 0.0135])
    assert search(draws, fit, lambda found: -abs(found - 1.0))[0] == {"C": 1.0}
    assert search(draws, fit, lambda found: -found)[1] < 1e-5  # and there it ends
    both = [{"C": 1.0, "kind": "a"}, {"C": 0.1, "kind": "b"}]
    assert search(both, lambda draw: draw, lambda draw: float(draw["kind"] == "a" and draw["C"] < 0.5))[0] == {
        "C": 0.3, "kind": "a"
    }  # fmt: skip

    random = np.random.default_rng(0)
    x, y = random.standard_normal((500, 60)), np.arange(500) % 10 == 0
    x[y, 0] += 1.5  # 50 positives, one input of 60 that says something
    chosen = RareClassifier("ap", loss="cross_entropy", trials=1, random_state=0).fit(x, y).chosen_
    assert chosen["C"] < 1.0  # the one that was drawn


def test_network() -> None:
    x, y = bent(3_000, 4)
    model = RareClassifier("ap", (8,), trials=1, random_state=0).fit(x, y)
    assert not hasattr(model, "coef_")
    assert average_precision_score(y == "fraud", model.decision_function(x)) > 0.8
    assert model.predict(x[:5]).shape == (5,)
    with pytest.raises(ValueError, match="network"):
        model.standard_errors(x, y)


def test_rows_of_weight_zero_are_absent(fitted: tuple[RareClassifier, Rows]) -> None:
    model, (x, y) = fitted
    longer = np.vstack([x, np.full((30, 3), 1e6)]), np.append(y, np.ones(30, dtype=int))
    other = clone(model).fit(*longer, sample_weight=np.append(np.ones(len(y)), np.zeros(30)))
    np.testing.assert_allclose(other.coef_, model.coef_, rtol=1e-3)


def test_heavy_rows_count_more() -> None:
    x, y = bent(3_000, 5)
    weight = np.where(x[:, 0] > 0, 50.0, 1.0)  # only the positives on the right matter
    plain = RareClassifier("ap", trials=1, random_state=0).fit(x, y)
    heavy = RareClassifier("ap", trials=1, random_state=0).fit(x, y, sample_weight=weight)
    x, y = bent(8_000, 6)
    weight = np.where(x[:, 0] > 0, 50.0, 1.0)
    scores = [
        average_precision_score(y == "fraud", m.decision_function(x), sample_weight=weight) for m in (heavy, plain)
    ]
    assert scores[0] >= scores[1] - 1e-3


def test_standard_errors_are_those_of_new_samples() -> None:
    x, y = bent(2_000, 7)
    model = RareClassifier("ap", trials=1, random_state=0).fit(x, y)
    errors = model.standard_errors(x, y, resamples=8, random_state=0)
    assert errors.shape == (4,)
    fresh = [RareClassifier("ap", trials=1, random_state=0).fit(*bent(2_000, 100 + seed)).coef_[0] for seed in range(8)]
    ratio = errors[:3] / np.std(fresh, axis=0, ddof=1)
    # Of the same size: fresh fits use three quarters of their rows and choose anew.
    assert (ratio > 0.2).all()
    assert (ratio < 3).all()


def test_works_in_cross_validation() -> None:
    x, y = bent(2_000, 8)
    found = cross_val_score(
        RareClassifier("ap", trials=1, random_state=0), x, y == "fraud", scoring="average_precision", cv=2
    )
    assert (found > 0.3).all()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"objective": "auc"}, ValueError, "objective"),
        ({"objective": 3}, TypeError, "objective"),
        ({"trials": 0}, ValueError, "trials"),
        ({"validation_fraction": 0.0}, ValueError, "validation_fraction"),
        ({"hidden_layer_sizes": (0,)}, ValueError, "hidden_layer_sizes"),
        ({"hidden_layer_sizes": 8}, TypeError, "hidden_layer_sizes"),
    ],
)
def test_refuses(change: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        RareClassifier(**change).fit(*bent(100, 0))


@pytest.mark.parametrize("classes", [1, 3])
def test_refuses_other_than_two_classes(classes: int) -> None:
    x, _ = bent(100, 0)
    with pytest.raises(ValueError, match="class"):
        RareClassifier().fit(x, np.arange(100) % classes)


def test_refuses_missing_labels_among_names() -> None:
    x, _ = bent(100, 0)
    y = np.array([None if i == 3 else "ab"[i % 2] for i in range(100)], dtype=object)
    for model in (RareClassifier(), AdditiveRareClassifier()):
        with pytest.raises(ValueError, match=r"1 missing label\(s\) in 100 rows; drop"):
            model.fit(x, y)


def test_refuses_numbers_whose_spread_overflows() -> None:
    x, y = bent(100, 0)
    x[:, 1] *= 1e200
    with pytest.raises(ValueError, match=r"column\(s\) \[1\] of X hold numbers up to .*e\+20.*divide them"):
        RareClassifier().fit(x, y)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resamples": 1}, "resamples"),
        ({"sample_weight": np.full(100, -1.0)}, "Negative values"),
        ({"y": np.full(100, "z")}, "y holds \\['z'\\], but the model was fitted on"),
    ],
)
def test_standard_errors_refuse_what_gives_none(change: dict[str, Any], said: str) -> None:
    x, y = bent(100, 0)
    model = RareClassifier(trials=1, random_state=0).fit(x, y)
    with pytest.raises(ValueError, match=said):
        model.standard_errors(**{"X": x, "y": y, **change})


def test_two_few_rows_of_a_class_are_refused() -> None:
    x, _ = bent(100, 0)
    with pytest.raises(ValueError, match=r"class True has 1 row\(s\) .* at least 2 are needed"):
        RareClassifier().fit(x, np.arange(100) == 0)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in ("classifier", "rows"):
        monkeypatch.delitem(sys.modules, f"rareloss.tabular.estimators.{name}")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "rareloss\[study\]"'):
        importlib.import_module("rareloss.tabular.estimators.classifier")


def test_not_fitted() -> None:
    with pytest.raises(NotFittedError):
        RareClassifier().decision_function(bent(5, 0)[0])


def test_probabilities_are_the_calibrators_and_honest(fitted: tuple[RareClassifier, Rows]) -> None:
    model, _ = fitted
    x, y = bent(8_000, 9)
    probability, fraud = model.predict_proba(x), y == "fraud"
    np.testing.assert_allclose(probability[:, 1], model.calibrator_(model.decision_function(x)))
    np.testing.assert_allclose(probability.sum(1), 1)
    rate = fraud.mean()
    assert probability[:, 1].mean() == pytest.approx(rate, rel=0.25)
    assert log_loss(fraud, probability[:, 1]) < -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))


BOTH = pytest.mark.parametrize("kind", [RareClassifier, AdditiveRareClassifier])


@BOTH
@pytest.mark.parametrize("factor", [1e-170, 1 / 3_000, 1_000.0, 1e155])
def test_a_factor_on_all_weights_changes_nothing(kind: Any, factor: float) -> None:
    x, y = bent(3_000, 1)
    weight = 0.5 + np.random.default_rng(1).random(3_000)
    plain, scaled = (
        kind("ap", trials=2, random_state=0).fit(x, y, sample_weight=each) for each in (weight, factor * weight)
    )
    np.testing.assert_allclose(scaled.decision_function(x), plain.decision_function(x), rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize(("rare", "common"), [("suspicious", "legit"), ("fraud", "legit"), (-1, 1), (True, False)])
def test_the_rarer_class_is_positive_whatever_the_alphabet_says(kind: Any, rare: Any, common: Any) -> None:
    x, y = bent(4_000, 2)
    labels = np.where(y == "fraud", rare, common)
    model = kind("recall@top=2%", trials=2, random_state=0).fit(x, labels)
    assert model.positive_ == rare
    assert 40 <= (model.predict(x) == rare).sum() <= 160  # of a capacity of 80
    np.testing.assert_array_equal(model.classes_, np.sort([rare, common]))
    # Scorers of scikit-learn's take the second of the sorted classes for the positive one.
    of_rare = model.decision_function(x) * (1 if model.classes_[1] == rare else -1)
    assert average_precision_score(labels == rare, of_rare) > 3 * (labels == rare).mean()


@BOTH
def test_a_positive_class_that_is_more_common_is_warned_of(kind: Any) -> None:
    x, y = bent(2_000, 3)
    with pytest.warns(UserWarning, match="positive='fraud' ranks the rare one to the top"):
        model = kind("ap", trials=1, positive="fine", random_state=0).fit(x, y)
    assert model.positive_ == "fine"
    with pytest.raises(ValueError, match="none of the classes"):
        kind("ap", positive="Fraud").fit(x, y)


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_scores_do_not_depend_on_how_a_number_is_stored(hidden: tuple[int, ...]) -> None:
    x, y = bent(2_000, 4)
    x = x.round(1) * [0.1, 1.0, 1.0]  # tied values, no float32 among them
    single = x.astype(np.float32)
    assert (single != x).any()
    model = RareClassifier("recall@top=5%", hidden, trials=1, random_state=0).fit(x, y)
    again = clone(model).fit(single, y)
    np.testing.assert_array_equal(model.decision_function(single), model.decision_function(x))
    np.testing.assert_array_equal(again.decision_function(x), model.decision_function(x))
    np.testing.assert_array_equal(again.predict(single), model.predict(x))


@BOTH
def test_scikit_learn_agrees_where_the_first_class_is_positive(kind: Any) -> None:
    x, y = bent(2_000, 5)
    labels = np.where(y == "fraud", "a rare one", "fine")
    model = kind("ap", trials=1, random_state=0).fit(x, labels)
    assert model.positive_ == model.classes_[0] == "a rare one"
    np.testing.assert_allclose(model.decision_function(x), -model.log_odds(x))
    probability = model.predict_proba(x)[:, 0]
    assert average_precision_score(labels == "a rare one", probability) > 0.3
    np.testing.assert_array_equal(np.argsort(probability)[-1:], np.argsort(model.log_odds(x))[-1:])
    wrapped = CalibratedClassifierCV(kind("ap", trials=1, random_state=0), cv=2).fit(x, labels)
    assert wrapped.predict_proba(x)[labels == "a rare one", 0].mean() > 3 * (labels == "a rare one").mean()
    if kind is RareClassifier:
        np.testing.assert_allclose(model.decision_function(x), x @ model.coef_[0] + model.intercept_[0], atol=1e-5)


@BOTH
def test_several_classes_by_one_against_the_others(kind: Any) -> None:
    x, y = bent(2_000, 6)
    labels = np.where(y == "fraud", np.where(x[:, 0] > 0, "right", "left"), "fine")
    with pytest.raises(ValueError, match=r"OneVsRestClassifier"):
        kind().fit(x, labels)
    every = OneVsRestClassifier(kind("ap", trials=1, random_state=0)).fit(x, labels)
    assert (every.predict(x) == labels).mean() > 0.9
    assert every.decision_function(x).shape == (2_000, 3)


@BOTH
def test_probabilities_of_noise_are_no_worse_than_the_base_rate(kind: Any) -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(3_000, 8)), rng.random(3_000) < 0.05
    model = kind("ap", trials=2, random_state=0).fit(x[:1_500], y[:1_500])
    rate = np.full(1_500, y[:1_500].mean())
    assert log_loss(y[1_500:], model.predict_proba(x[1_500:])[:, 1]) <= log_loss(y[1_500:], rate) + 1e-3


def test_a_factor_on_all_weights_of_a_stream_changes_nothing() -> None:
    x, y = bent(600, 8)
    weight = np.where(np.arange(600) < 300, 1.0, 10.0)  # later batches weigh more than earlier ones
    models = []
    for each in (weight, 1e155 * weight, np.ones(600)):
        model = RareClassifier("ap", random_state=0)
        for part in np.split(np.arange(600), 6):
            model.partial_fit(x[part], y[part], classes=["fine", "fraud"], sample_weight=each[part])
        models.append(model.decision_function(x))
    np.testing.assert_allclose(models[1], models[0], rtol=1e-5)
    assert not np.allclose(models[2], models[0], rtol=1e-5)


@pytest.mark.parametrize("refit", [True, False])
def test_a_sample_of_many_rows_leads_to_nearly_the_same_model(refit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = bent(12_000, 10)
    whole, sampled = (RareClassifier("ap", trials=2, refit=refit, random_state=0) for _ in range(2))
    for name in ("POOL", "LAST_POOL"):
        monkeypatch.setattr(f"rareloss.tabular.estimators.classifier.{name}", 100_000)
    whole.fit(x, y)
    for name in ("POOL", "LAST_POOL"):
        monkeypatch.setattr(f"rareloss.tabular.estimators.classifier.{name}", 4_000)
    sampled.fit(x, y)
    x, y = bent(12_000, 11)
    first, second = (average_precision_score(y == "fraud", m.decision_function(x)) for m in (whole, sampled))
    assert second == pytest.approx(first, abs=0.01)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "pauc@fpr=0-2%", SmoothAPLoss(1, queue_size=0)])
def test_loss(loss: Any) -> None:
    x, y = bent(2_000, 12)
    model = RareClassifier("ap", loss=loss, trials=1, random_state=0).fit(x, y)
    assert (model.finetuned_ is None) == (loss == "cross_entropy")
    assert model.predict_proba(x).shape == (2_000, 2)


@pytest.mark.parametrize("loss", ["auc", 3])
def test_refuses_a_loss(loss: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="loss"):
        RareClassifier(loss=loss).fit(*bent(100, 0))


def test_partial_fit_learns_from_a_stream_and_goes_on_after_fit(
    fitted: tuple[RareClassifier, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rareloss.tabular.estimators.classifier.WARM_UP", 60)
    x, y = bent(12_000, 13)
    model = RareClassifier("ap", random_state=0)
    with pytest.raises(ValueError, match="classes"):
        model.partial_fit(x[:100], y[:100])
    for part in np.split(np.arange(len(y)), 120):
        model.partial_fit(x[part], y[part], classes=["fine", "fraud"])
    x, y = bent(8_000, 14)
    streamed = average_precision_score(y == "fraud", model.decision_function(x))
    assert streamed > 0.7 * average_precision_score(y == "fraud", fitted[0].decision_function(x))
    other = clone(fitted[0]).fit(*fitted[1])
    before = other.coef_.copy()
    other.partial_fit(x, (y == "fraud").astype(int))
    assert not np.array_equal(before, other.coef_)
    with pytest.raises(ValueError, match="does not name"):
        other.partial_fit(x, np.full(len(y), 7))


def test_meta_estimators_tables_and_routed_weights() -> None:
    x, y = bent(1_500, 15)
    table, target = pd.DataFrame(x, columns=["a", "b", "c"]), (y == "fraud").astype(int)
    with sklearn.config_context(enable_metadata_routing=True, transform_output="pandas"):
        model = RareClassifier(trials=1, random_state=0).set_fit_request(sample_weight=True)
        steps = Pipeline([("scale", StandardScaler().set_fit_request(sample_weight=False)), ("model", model)])
        scorer = get_scorer("average_precision").set_score_request(sample_weight=True)
        search = GridSearchCV(steps, {"model__loss": [None, "cross_entropy"]}, cv=2, scoring=scorer)
        search.fit(table, target, sample_weight=np.ones(len(y)))
        assert search.best_estimator_["model"].feature_names_in_.tolist() == ["a", "b", "c"]
    plain = RareClassifier(trials=1, random_state=0)
    assert TunedThresholdClassifierCV(plain, cv=2).fit(table, target).predict(table).shape == (1_500,)
    assert CalibratedClassifierCV(plain, cv=2).fit(table, target).predict_proba(table).shape == (1_500, 2)
    scores = cross_val_score(
        plain, x, target, cv=2, scoring=lambda m, a, b: float(m.decision_function(a)[b == 1].mean())
    )
    assert np.isfinite(scores).all()


EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "a positive of weight 2 is not two rows of it, which rank one "
    "another; and the split for validation is by row"
}


@parametrize_with_checks(
    [RareClassifier(trials=1, random_state=0)], expected_failed_checks=lambda estimator: EXPECTED_FAILURES
)
def test_estimator_contract(estimator: RareClassifier, check: Callable[[Any], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)
