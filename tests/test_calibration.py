"""Calibrators keep the order, equal independent computations, and are chosen by rows that did not fit them."""

import json
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss

from rareloss import decisions
from rareloss.decisions.calibration import METHODS, Calibrator, calibrate

every_method = pytest.mark.parametrize("method", METHODS)


def draw(rows: int = 400, rate: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(rows) < rate
    return 3 * (rng.standard_normal(rows) + 1.5 * labels), labels


class Identity(ClassifierMixin, BaseEstimator):
    """A classifier whose scores are its one input."""

    def fit(self, X: Any, y: Any) -> "Identity":
        self.classes_ = np.array([0, 1])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        return np.asarray(X)[:, 0]

    def predict(self, X: Any) -> np.ndarray:
        return (self.decision_function(X) > 0).astype(int)


SCORES = {
    "usual": lambda rng, y: rng.standard_normal(len(y)) + y,
    "tied": lambda rng, y: np.round(rng.standard_normal(len(y)) + y),
    "constant": lambda rng, y: np.full(len(y), 0.3),
    "wrong way round": lambda rng, y: rng.standard_normal(len(y)) - 3 * y,
    "separated": lambda rng, y: rng.random(len(y)) + 2 * y,
    "huge": lambda rng, y: 9e99 * (rng.random(len(y)) - 0.5),
    "tiny": lambda rng, y: 1e-310 * rng.random(len(y)),
}


@every_method
@pytest.mark.parametrize("kind", SCORES)
def test_probabilities_never_decrease_and_json_keeps_them(kind: str, method: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(120) < 0.2
    scores = SCORES[kind](rng, labels)
    calibrator = calibrate(scores, labels, methods=method, prior=0.05, folds=2).calibrator
    at = np.sort(np.concatenate([scores, [-np.inf, np.inf, -1e300, 1e300, 0]]))
    found = calibrator(at)
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()
    np.testing.assert_array_equal(Calibrator.from_json(calibrator.to_json())(at), found)
    assert np.isnan(calibrator([np.nan])).all()


def test_platt_equals_scikit_learn() -> None:
    scores, labels = draw()
    judge = CalibratedClassifierCV(FrozenEstimator(Identity().fit(None, None)), method="sigmoid", ensemble=False)
    judge.fit(scores[:, None], labels.astype(int))
    found = calibrate(scores, labels, methods="platt")(scores)
    np.testing.assert_allclose(found, judge.predict_proba(scores[:, None])[:, 1], atol=1e-4)


def test_isotonic_equals_scikit_learn() -> None:
    scores, labels = draw()
    weight = np.random.default_rng(1).exponential(size=len(scores))
    judge = IsotonicRegression(y_min=1 / 402, y_max=1 - 1 / 402, out_of_bounds="clip").fit(scores, labels, weight)
    at = np.linspace(-10, 12, 500)
    np.testing.assert_allclose(calibrate(scores, labels, weight, methods="isotonic")(at), judge.predict(at), atol=1e-12)


@pytest.mark.parametrize("decimals", [1, 9])
def test_venn_abers_is_two_isotonic_regressions_with_the_row_added(decimals: int) -> None:
    scores, labels = draw(90)
    scores = scores.round(decimals)
    found = calibrate(scores, labels, methods="venn_abers")(scores)
    for score, probability in zip(scores[:25], found, strict=False):
        low, high = (
            IsotonicRegression().fit(np.append(scores, score), np.append(labels, label)).predict([score])[0]
            for label in (0, 1)
        )
        assert probability == pytest.approx(high / (1 - low + high), abs=1e-12)


def test_beta_is_the_minimum_of_its_likelihood() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(3000) * 2 - 1
    labels = rng.random(3000) < expit(0.3 * log_expit(scores) - 2 * log_expit(-scores) - 1)
    found = calibrate(scores, labels, methods="beta", folds=2).calibrator
    z = found.slope * scores + found.offset
    p, n = labels.sum(), (~labels).sum()
    target = np.where(labels, (p + 1) / (p + 2), 1 / (n + 2))

    def loss(parameters: np.ndarray) -> float:
        odds = parameters[0] * log_expit(z) - parameters[1] * log_expit(-z) + parameters[2]
        return -float((target * log_expit(odds) + (1 - target) * log_expit(-odds)).sum())

    own = np.array([found.left, found.right, found.constant])
    assert loss(own) == pytest.approx(minimize(loss, [1, 1, 0]).fun, abs=1e-4)
    assert loss(own) < loss(np.array([1, 1, 0])) - 1


def test_scores_that_are_log_odds_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    scores = 2 * rng.standard_normal(3000) - 2
    found = calibrate(scores, rng.random(3000) < expit(scores))
    assert found.method == "sigmoid"
    assert list(found.candidates) == list(METHODS)


def test_few_positives_get_a_simple_map() -> None:
    scores, labels = draw(300, 0.07)
    assert labels.sum() < 30
    assert list(calibrate(scores, labels).candidates) == ["sigmoid", "platt"]


def test_a_shape_that_no_line_fits_gets_a_free_map() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(-3, 3, 3000)
    assert calibrate(scores, rng.random(3000) < np.where(scores > 0, 0.5, 0.1)).method in ("isotonic", "venn_abers")


@pytest.mark.parametrize("told", ["weight", "sampling_rate", "prior"])
@pytest.mark.parametrize("method", ["platt", "beta", "isotonic", "venn_abers"])
def test_a_sample_of_the_negatives_is_undone(told: str, method: str) -> None:
    rng = np.random.default_rng(1)
    scores, labels = draw(20_000, 0.05)
    kept = labels | (rng.random(len(labels)) < 0.1)
    given: dict[str, Any] = {
        "weight": {"weight": np.where(labels, 1.0, 10.0)[kept]},
        "sampling_rate": {"sampling_rate": 0.1},
        "prior": {"prior": float(labels.mean())},
    }[told]
    found = calibrate(scores[kept], labels[kept], methods=method, folds=2, **given)
    assert found(scores).mean() == pytest.approx(labels.mean(), rel=0.05)
    assert found.after["all"].expected == pytest.approx(found.after["all"].observed, rel=0.1)


def test_quality_equals_scikit_learn_and_near_is_half_to_twice_the_rank() -> None:
    scores, labels = draw(1000)
    cut = float(np.sort(scores)[-101])
    found = calibrate(scores, labels, threshold=cut)
    order = np.argsort(-scores)
    for where, rows in (("all", order), ("near", order[49:200])):
        quality = found.before[where]
        probability = expit(scores[rows])
        assert quality.rows == len(rows)
        assert quality.log_loss.value == pytest.approx(log_loss(labels[rows], probability))
        assert (quality.expected, quality.observed) == pytest.approx((probability.sum(), labels[rows].sum()))
        bins = np.array_split(np.argsort(probability), 10)
        gaps = [abs((probability[b] - labels[rows][b]).sum()) for b in bins]
        assert quality.ece.value == pytest.approx(sum(gaps) / len(rows), rel=0.1)
        for estimate in (quality.log_loss, quality.ece):
            assert estimate.low <= estimate.value <= estimate.high
    assert found.after["near"].ece.high < found.before["near"].ece.low
    assert "near the threshold" in str(found)
    assert calibrate(scores, labels, objective="recall@top=10%").threshold == cut


def test_rows_of_weight_0_are_absent() -> None:
    scores, labels = draw()
    absent = np.arange(len(scores)) % 5 == 0
    spoiled, odd = np.where(absent, np.nan, scores), np.where(absent, 7, labels)
    found = calibrate(spoiled, odd, (~absent).astype(float))
    assert found == calibrate(scores[~absent], labels[~absent])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_of_a_model_are_taken_as_they_come(dtype: torch.dtype) -> None:
    scores, labels = draw()
    given = torch.tensor(scores, dtype=dtype, requires_grad=True)
    expected = calibrate(given.detach().double().numpy(), labels, methods="platt")
    found = calibrate(given, torch.tensor(labels), torch.ones(len(labels), dtype=dtype), methods="platt")
    assert found == expected
    np.testing.assert_array_equal(found(given), expected(given.detach().double().numpy()))


@pytest.mark.parametrize("rare", [0, 1])
def test_two_rows_of_a_class_are_enough(rare: int) -> None:
    scores, labels = draw()
    few = np.concatenate([np.flatnonzero(labels == rare)[:2], np.flatnonzero(labels != rare)[:60]])
    found = calibrate(scores[few], labels[few])
    assert set(found.candidates) == {"sigmoid", "platt"} if rare else {"sigmoid", "platt", "beta"}
    assert 0 < found.after["all"].expected < len(few)


def test_rows_of_a_group_are_folded_and_resampled_together() -> None:
    scores, labels = draw(60, 0.4)
    twice = (np.repeat(scores, 20), np.repeat(labels, 20))
    together = calibrate(*twice, groups=np.repeat(np.arange(60), 20), methods="platt")
    apart = calibrate(*twice, methods="platt")
    widths = [found.after["all"].log_loss.high - found.after["all"].log_loss.low for found in (together, apart)]
    assert widths[0] > 3 * widths[1]
    with pytest.raises(ValueError, match="fold without one of the classes"):
        calibrate(scores, labels, groups=labels)
    with pytest.raises(ValueError, match="fold without one of the classes: positives lie in 1 groups"):
        calibrate(scores, labels, groups=np.zeros(60))
    with pytest.raises(ValueError, match="groups holds 1 missing values"):
        calibrate(scores, labels, groups=[None, *map(str, range(59))])


def test_name_is_public_and_loaded_late() -> None:
    assert decisions.calibrate is calibrate


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": []}, "n above 0"),
        ({"scores": [[1.0]]}, r"shape \[n\]"),
        ({"scores": [np.nan, 1, 2, 3]}, "1 of 4 scores are not finite"),
        ({"labels": [0, 1, 2, 1]}, "labels must be 0 or 1, got"),
        ({"labels": [0, 1, 1]}, "labels must have the shape"),
        ({"labels": [0, 0, 0, 1]}, "1 positives and 3 negatives"),
        ({"weight": [1, 1, 1, -1]}, "not negative"),
        ({"weight": [0, 0, 0, 0]}, "0 positives"),
        ({"methods": "magic"}, "methods"),
        ({"methods": []}, "methods is empty"),
        ({"prior": 0.1, "sampling_rate": 0.1}, "not both"),
        ({"prior": 1.0}, "prior"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"threshold": np.nan}, "got NaN"),
        ({"threshold": 0.0, "objective": "ap"}, "not both"),
        ({"folds": 1}, "folds"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"scores": [0.1, 0.4, 0.3, 0.9], "labels": [0, 0, 1, 1]}
    with pytest.raises(ValueError, match=said):
        calibrate(**{**given, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"method": 3},
        {"slope": -1.0},
        {"slope": "os.system"},
        {"offset": float("inf")},
        {"left": True},
        {"scores": [0.0, 1.0]},
        {"scores": [1.0, 0.0], "probabilities": [0.1, 0.2]},
        {"scores": [0.0, 1.0], "probabilities": [0.3, 0.2]},
        {"scores": [0.0, 1.0], "probabilities": [0.3, 1.2]},
        {"scores": [0.0, None], "probabilities": [0.3, 0.4]},
        {"scores": "ab", "probabilities": [0.3, 0.4]},
        {"__class__": "os.system"},
    ],
)
def test_a_file_that_holds_no_calibrator_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="calibrator"):
        Calibrator.from_json(json.dumps({"method": "platt", **change}))


@pytest.mark.parametrize("threshold", [np.inf, -np.inf])
def test_a_threshold_may_alert_nobody_or_everybody(threshold: float) -> None:
    random = np.random.default_rng(0)
    labels = random.random(600) < 0.1
    found = calibrate(random.normal(size=600) + 2 * labels, labels, threshold=threshold, methods=["platt"])
    assert found.threshold == threshold
    # Near nobody are the highest scores, at least one row; near everybody the lower half of the weight.
    assert found.after["near"].rows == (6 if threshold > 0 else 301)
