"""Objectives: the loss, metric, threshold and cap of each mean the same thing."""

import copy
import pickle

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from pools import Pool, pools
from rareloss import Objective, PAUCAtBudgetLoss, RecallAtQuantileLoss, SmoothAPLoss, functional, metrics, objectives
from rareloss.objectives import (
    AveragePrecision,
    Cost,
    PartialAUC,
    PrecisionAtRecall,
    RecallAtFPR,
    RecallAtPrecision,
    RecallAtTop,
)

TEXTS = ("ap", "recall@top=0.5%", "recall@fpr=0.1%", "pauc@fpr=0-0.5%", "pauc@fpr=0.1-2%")


@pytest.mark.parametrize("text", TEXTS)
def test_parsed_and_printed_is_the_same(text: str) -> None:
    objective = Objective.parse(text)
    assert str(objective) == text
    assert Objective.parse(str(objective)) == objective
    assert hash(objective) == hash(Objective.parse(text))
    assert objective.name


@pytest.mark.parametrize("same", ["recall@top=0.5%", "recall@top=0.005", " Recall@Top = 0.5 % ", "recall@top=.5%"])
def test_shares_are_percent_or_fractions(same: str) -> None:
    assert Objective.parse(same) == Objective.parse("recall@top=0.5%")


@pytest.mark.parametrize(
    "text",
    [
        "", "auc", "ap=1%", "recall", "recall@top", "recall@top=", "recall@top=0", "recall@top=0%", "recall@top=100%",
        "recall@top=-1%", "recall@top=2", "recall@top=a%", "recall@top=nan", "recall@top=1%%", "recall@fpr=1-2%",
        "precision@top=1%", "pauc@fpr=2-1%", "pauc@fpr=1-1%", "pauc@fpr=0-101%", "pauc@fpr=0-", "pauc@fpr=",
    ],
)  # fmt: skip
def test_what_is_no_operating_point_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Objective.parse(text)


def test_what_is_no_string_is_refused() -> None:
    with pytest.raises(TypeError, match="string"):
        Objective.parse(0.005)  # type: ignore[arg-type]


def test_losses() -> None:
    assert isinstance(Objective.parse("ap").loss(3), SmoothAPLoss)
    top = Objective.parse("recall@top=0.5%").loss(1, queue_size=7)
    assert isinstance(top, RecallAtQuantileLoss)
    assert (top.quantile, top.among) == (0.005, "all")
    fpr = Objective.parse("recall@fpr=0.1%").loss(1)
    assert isinstance(fpr, RecallAtQuantileLoss)
    assert (fpr.quantile, fpr.among) == (0.001, "negatives")
    band = Objective.parse("pauc@fpr=0.1-2%").loss(4, reduction="none")
    assert isinstance(band, PAUCAtBudgetLoss)
    assert (band.alpha, band.beta) == pytest.approx((0.001, 0.02))


@given(pool=pools())
def test_metric_is_the_hard_metric(pool: Pool) -> None:
    labels = pool.positive.long()
    expected = {
        "ap": metrics.average_precision(*pool),
        "recall@top=20%": metrics.recall_at_quantile(*pool, quantile=0.2),
        "recall@fpr=20%": metrics.recall_at_fpr(*pool, fpr=0.2),
        "pauc@fpr=10-30%": metrics.partial_auc(*pool, alpha=0.1, beta=0.3),
    }
    for text, value in expected.items():
        got = Objective.parse(text).metric(pool.scores, labels, pool.weight)
        assert got.value.shape == ()
        assert got.value.item() == pytest.approx(value.value.item(), abs=1e-12)
        assert Objective.parse(text).metric(pool.scores[:, None], labels, pool.weight).value.item() == pytest.approx(
            value.value.item(), abs=1e-12
        )


def test_metric_of_class_indices_ranks_log_odds() -> None:
    logits, classes = torch.randn(60, 3), torch.arange(60) % 3
    got = Objective.parse("ap").metric(logits, classes)
    expected = metrics.average_precision(functional.log_odds(logits), torch.nn.functional.one_hot(classes, 3) == 1)
    torch.testing.assert_close(got.value, expected.value)
    assert got.defined.tolist() == [True, True, True]


def test_metric_of_labels_ranks_them_as_they_come() -> None:
    logits, labels = torch.randn(60, 3), torch.arange(180).reshape(60, 3) % 4 == 0
    got = Objective.parse("recall@top=10%").metric(logits, labels)
    torch.testing.assert_close(got.value, metrics.recall_at_quantile(logits, labels, quantile=0.1).value)


def test_loss_tends_to_one_minus_the_metric() -> None:
    scores = torch.randperm(400).double()
    labels = (torch.arange(400) % 7 == 0).long()
    for text in ("ap", "recall@top=10.1%", "recall@fpr=10.1%", "pauc@fpr=5-20%"):
        objective = Objective.parse(text)
        loss = objective.loss(1, queue_size=0, temperature=1e-5)
        assert 1 - loss(scores, labels).item() == pytest.approx(objective.metric(scores, labels).value.item(), abs=1e-9)


@given(pool=pools(), share=st.sampled_from([0.05, 0.2, 0.5, 0.9]))
def test_rows_above_the_threshold_never_exceed_capacity_or_budget(pool: Pool, share: float) -> None:
    for objective in (RecallAtTop(share), RecallAtFPR(share), PartialAUC(0.0, share)):
        threshold = objective.threshold(pool.scores, pool.positive, pool.weight)
        assert threshold in pool.scores[pool.weight > 0]
        counted = pool.weight if isinstance(objective, RecallAtTop) else pool.weight * ~pool.positive
        above = counted[pool.scores > threshold].sum()
        assert above <= share * counted.sum() * (1 + 1e-9)
        # And no lower threshold would do: with the tied group at the threshold the capacity is exceeded.
        assert counted[pool.scores >= threshold].sum() > share * counted.sum() * (1 - 1e-9)


def test_threshold_by_hand() -> None:
    scores, labels = torch.arange(100.0), torch.arange(100) >= 90
    assert Objective.parse("recall@top=5%").threshold(scores, labels).item() == 94.0
    assert Objective.parse("recall@fpr=10%").threshold(scores, labels).item() == 80.0
    assert Objective.parse("pauc@fpr=0-10%").threshold(scores, labels).item() == 80.0
    tied = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])
    assert Objective.parse("recall@top=40%").threshold(tied, torch.tensor([1, 0, 0, 0, 0])).item() == 2.0
    below_zero = torch.tensor([-1.0, -2.0, -3.0, -3.0, -5.0])
    assert Objective.parse("recall@top=40%").threshold(below_zero, torch.tensor([1, 0, 0, 0, 0])).item() == -3.0


def test_average_precision_has_no_threshold() -> None:
    with pytest.raises(ValueError, match="threshold"):
        Objective.parse("ap").threshold(torch.zeros(4), torch.tensor([0, 1, 0, 1]))


def test_cap_is_the_capacity_over_the_base_rate() -> None:
    labels = (torch.arange(100) < 20).long()
    assert Objective.parse("recall@top=5%").cap(labels).item() == pytest.approx(0.05 / 0.2)
    assert Objective.parse("recall@top=50%").cap(labels).item() == 1.0
    assert Objective.parse("recall@fpr=5%").cap(labels).item() == 1.0
    assert Objective.parse("ap").cap(labels).item() == 1.0
    classes = torch.tensor([0] * 50 + [1] * 40 + [2] * 10)
    assert Objective.parse("recall@top=20%").cap(classes, 3).tolist() == pytest.approx([0.2 / 0.5, 0.2 / 0.4, 1.0])


def test_cap_is_reached_by_a_perfect_order() -> None:
    scores = torch.arange(200.0)
    labels = (scores >= 160).long()
    objective = Objective.parse("recall@top=5%")
    assert objective.metric(scores, labels).value.item() == pytest.approx(objective.cap(labels).item())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (AveragePrecision, (0.1,)), (RecallAtTop, ()), (RecallAtTop, (0.0,)), (RecallAtTop, (1.0,)),
        (RecallAtTop, (0.1, 1)), (RecallAtTop, ("0.1",)), (RecallAtFPR, (1.0,)), (PartialAUC, (0.2, 0.1)),
        (PartialAUC, (0.1, 1.1)), (RecallAtPrecision, (1.0,)), (PrecisionAtRecall, (1.1,)), (Cost, (0.0, 1.0)),
        (Cost, (1.0, float("inf"))), (Cost, (1.0,)),
    ],
)  # fmt: skip
def test_constructor_refuses_what_parse_would(kind: type[Objective], fields: tuple[float, ...]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"."):
        kind(*fields)


def test_objective_itself_is_no_objective() -> None:
    with pytest.raises(TypeError, match=r"Objective\.parse"):
        Objective("recall@top", 0.1)


@pytest.mark.parametrize(
    ("objective", "shown"),
    [
        (AveragePrecision(), "AveragePrecision()"),
        (RecallAtTop(0.005, rows=40_000), "RecallAtTop(quantile=0.005, rows=40000)"),
        (RecallAtFPR(0.001), "RecallAtFPR(fpr=0.001)"),
        (PartialAUC(0.0, 0.005), "PartialAUC(alpha=0.0, beta=0.005)"),
        (RecallAtPrecision(0.5), "RecallAtPrecision(precision=0.5)"),
        (PrecisionAtRecall(1.0), "PrecisionAtRecall(recall=1.0)"),
        (Cost(fn=500.0, fp=5.0), "Cost(fn=500.0, fp=5.0)"),
    ],
)
def test_an_objective_is_a_value(objective: Objective, shown: str) -> None:
    assert isinstance(objective, Objective)
    assert repr(objective) == shown
    for same in (eval(shown, vars(objectives)), pickle.loads(pickle.dumps(objective)), copy.deepcopy(objective)):
        assert same == objective
        assert hash(same) == hash(objective)
    assert objective == Objective.of(str(objective)) == Objective.of(objective)
    others = [RecallAtTop(0.005), PartialAUC(0.0, 0.001), Cost(5.0, 500.0), PrecisionAtRecall(0.5)]
    assert objective not in others
    with pytest.raises(AttributeError):
        objective.fpr = 0.5


def test_what_an_objective_asks_for() -> None:
    def asked(text: str) -> dict[str, float]:
        objective = Objective.parse(text)
        names = ("budget", "quantile", "alpha", "precision", "recall", "fn", "fp")
        return {name: value for name in names if (value := getattr(objective, name)) is not None}

    assert asked("ap") == {}
    assert asked("recall@top=5%") == {"budget": 0.05, "quantile": 0.05}
    assert asked("recall@fpr=5%") == {"budget": 0.05}
    assert asked("pauc@fpr=1-5%") == {"budget": 0.05, "alpha": 0.01}
    assert asked("recall@precision=5%") == {"precision": 0.05}
    assert asked("precision@recall=5%") == {"recall": 0.05}
    assert asked("cost@fn=5,fp=2") == {"fn": 5.0, "fp": 2.0}


def test_a_new_objective_is_one_class() -> None:
    class Best(AveragePrecision, examples=("best@of=3",)):
        @classmethod
        def _read(cls, value: str) -> "Best":
            return cls()

    try:
        assert type(Objective.parse("best@of=7")) is Best
        with pytest.raises(ValueError, match="best@of=3"):
            Objective.parse("worst")
    finally:
        del Objective._by_example["best@of=3"]


NEW = ("recall@top=200/40000", "recall@precision=50%", "precision@recall=80%", "cost@fn=500,fp=5")


@pytest.mark.parametrize("text", NEW)
def test_new_kinds_parsed_and_printed_are_the_same(text: str) -> None:
    objective = Objective.parse(text)
    assert str(objective) == text
    assert Objective.parse(str(objective)) == objective
    assert objective.name
    assert (objective.surrogate == objective) == (objective.surrogate_reason == "")
    assert type(objective.loss(1)) is type(objective.surrogate.loss(1))
    assert objective.loss_name == objective.surrogate.loss_name


@pytest.mark.parametrize(
    "text",
    [
        "recall@top=0/10", "recall@top=10/10", "recall@top=200/40000%", "recall@fpr=1/10", "recall@precision=0",
        "precision@recall=101%", "cost@fn=0,fp=1", "cost@fn=1", "cost=1", "cost@fp=1,fn=2", "cost@fn=a,fp=1",
        "cost@fn=nan,fp=1", "cost@fn=1,fp=inf",
    ],
)  # fmt: skip
def test_new_kinds_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Objective.parse(text)


@given(pool=pools(), share=st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_new_kinds_equal_scikit_learn(pool: Pool, share: float) -> None:
    labels, weight = pool.positive.numpy(), pool.weight.double().numpy()
    value, defined = PrecisionAtRecall(share).metric(pool.scores, pool.positive, pool.weight)
    if not defined:
        return
    scores = pool.scores.double().numpy()
    there = weight > 0  # a row of weight 0 is absent, and sets no cut
    curve = sklearn.metrics.precision_recall_curve(labels[there], scores[there], sample_weight=weight[there])
    precision, recall = curve[0][:-1], curve[1][:-1]
    assert value.item() == pytest.approx(precision[recall >= share - 1e-9].max(), abs=1e-6)
    most = recall[precision >= min(share, 0.99) - 1e-9]
    got = RecallAtPrecision(min(share, 0.99)).metric(pool.scores, pool.positive, pool.weight).value
    assert got.item() == pytest.approx(most.max() if len(most) else 0.0, abs=1e-6)
    cost = Cost(fn=7.0, fp=2.0)
    costs = []
    for threshold in [np.inf, *np.unique(scores[there])]:
        alert = scores >= threshold
        costs.append(7.0 * weight[labels & ~alert].sum() + 2.0 * weight[~labels & alert].sum())
    blind = min(7.0 * weight[labels].sum(), 2.0 * weight[~labels].sum())
    expected = max(0.0, 1 - min(costs) / blind)
    assert cost.metric(pool.scores, pool.positive, pool.weight).value.item() == pytest.approx(expected, abs=1e-6)
    alert = scores > cost.threshold(pool.scores, pool.positive, pool.weight).item()
    reached = 7.0 * weight[labels & ~alert].sum() + 2.0 * weight[~labels & alert].sum()
    assert reached == pytest.approx(min(costs), rel=1e-6)


def test_where_alerts_for_all_are_cheapest_the_threshold_lets_all_through() -> None:
    # A fifth is positive and a miss costs ten false alerts: no alert at all would cost 2 a row, all of them 0.8.
    scores, labels = torch.zeros(10), torch.arange(10) < 2
    objective = Objective.parse("cost@fn=10,fp=1")
    assert objective.metric(scores, labels).value.item() == 0.0
    assert objective.threshold(scores, labels).item() == -torch.inf
    assert Objective.parse("cost@fn=1,fp=10").threshold(scores, labels).item() == torch.inf


def test_new_thresholds_by_hand() -> None:
    scores, labels = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0, 0])
    assert Objective.parse("recall@precision=60%").threshold(scores, labels).item() == 2.0
    assert Objective.parse("precision@recall=50%").threshold(scores, labels).item() == 4.0
    assert Objective.parse("cost@fn=10,fp=1").threshold(scores, labels).item() == 2.0
    assert Objective.parse("recall@precision=60%").threshold(scores, 1 - labels).item() == -torch.inf
    assert Objective.parse("recall@precision=99%").threshold(-scores, labels).item() == torch.inf
