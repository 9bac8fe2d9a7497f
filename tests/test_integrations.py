"""A scorer and a metric from an objective give its metric."""

import socket
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.tree import DecisionTreeClassifier

from processes import start_ranks
from rareloss import Objective
from rareloss.integrations.sklearn_scorer import ObjectiveScorer

TEXTS = ("ap", "recall@top=20/100", "recall@precision=50%", "cost@fn=5,fp=1")


def _rows(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 3))
    return x, (x[:, 0] + random.normal(size=rows) > 1.5).astype(int)


def test_scorer_is_average_precision() -> None:
    x, y = _rows()
    for model in (LogisticRegression(), DecisionTreeClassifier(max_depth=3)):
        model.fit(x, y)
        weight = np.arange(len(y)) % 3 + 1.0
        expected = average_precision_score(y, model.predict_proba(x)[:, 1], sample_weight=weight)
        assert ObjectiveScorer("ap")(model, x, y, sample_weight=weight) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("text", TEXTS)
def test_scorer_in_cross_validation(text: str) -> None:
    x, y = _rows()
    found = cross_val_score(LogisticRegression(), x, y, scoring=ObjectiveScorer(text), cv=3)
    assert ((found > 0) & (found <= 1)).all()


def test_weights_reach_the_scorer_through_metadata_routing() -> None:
    x, y = _rows()
    weight = np.where(x[:, 1] > 0, 5.0, 0.1)
    model = LogisticRegression()
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            model.set_fit_request(sample_weight=False),
            {"C": [1.0]},
            cv=[(np.arange(150), np.arange(150, 300))],
            scoring=ObjectiveScorer("ap").set_score_request(sample_weight=True),
        ).fit(x, y, sample_weight=weight)
        renamed = ObjectiveScorer("ap").set_score_request(sample_weight="importance")
        value = cross_validate(
            LogisticRegression(), x, y, cv=search.cv, scoring=renamed, params={"importance": weight}
        )["test_score"]
        with pytest.raises(ValueError, match=r"set_(score|fit)_request"):
            cross_validate(model, x, y, scoring=ObjectiveScorer("ap"), params={"sample_weight": weight})
    plain = LogisticRegression().fit(x[:150], y[:150]).decision_function(x[150:])
    expected = average_precision_score(y[150:], plain, sample_weight=weight[150:])
    assert expected != pytest.approx(average_precision_score(y[150:], plain), abs=1e-3)
    assert search.cv_results_["mean_test_score"] == pytest.approx([expected], abs=1e-9)
    assert value == pytest.approx([expected], abs=1e-9)


def test_scorer_ranks_the_positive_class() -> None:
    x, y = _rows()
    names = np.where(y == 1, "fraud", "legit")  # "fraud" comes first
    model = LogisticRegression().fit(x, names)
    expected = average_precision_score(y, -model.decision_function(x))
    assert ObjectiveScorer("ap", positive="fraud")(model, x, names) == pytest.approx(expected, abs=1e-9)
    assert ObjectiveScorer("ap")(model, x, names) > 0.9  # of "legit", as scikit-learn has it
    with pytest.raises(ValueError, match=r"positive='frau' is none of .*\['fraud', 'legit'\]"):
        ObjectiveScorer("ap", positive="frau")(model, x, names)


def test_scorer_refuses_an_unknown_class() -> None:
    x, y = _rows()
    with pytest.raises(ValueError, match="not fitted on"):
        ObjectiveScorer("ap")(LogisticRegression().fit(x, y), x, y + 5)


def _rows_of_ranks(case: str, rank: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the scores, labels and weights of a rank; of both together for None."""
    scores, labels = torch.arange(60) * 7 % 31 / 3, torch.arange(60) % 4 == 0
    if case == "multi-label":
        scores, labels = torch.stack([scores, scores.flip(0)], 1), torch.stack([labels, ~labels], 1)
    weight = torch.arange(60) % 3 + 0.5 if case == "weights" else None
    cut = {"none on rank 0": 0, "none on rank 1": 60, "multi-label": 60, "weights": 60}.get(case, 20)
    part = slice(None) if rank is None else slice(0, cut) if rank == 0 else slice(cut, 60)
    scores, labels, weight = (None if each is None else each[part] for each in (scores, labels, weight))
    if case == "two dtypes" and rank == 1:
        scores, labels = scores.double(), labels.long()
    return scores, labels, weight


CASES = ("uneven", "none on rank 0", "none on rank 1", "multi-label", "weights", "two dtypes")


def _on_rank(rank: int, port: int, folder: str) -> None:
    from rareloss.integrations.torchmetrics import ObjectiveMetric

    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found: dict[str, object] = {}
    for case in CASES:
        scores, labels, weight = _rows_of_ranks(case, rank)
        metric = ObjectiveMetric("ap" if case == "multi-label" else "recall@precision=30%")
        if len(scores):
            metric.update(scores, labels, weight)
        found[case] = metric.compute().item()
    metric = ObjectiveMetric("ap")
    metric.update(*(torch.stack([each] * 2, 1) if rank else each for each in _rows_of_ranks("uneven", rank)[:2]))
    try:
        metric.compute()
    except ValueError as error:
        found["shapes"] = str(error)
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_metric_over_two_ranks_is_that_of_all_rows(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_ranks(_on_rank, (port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert "must have one shape" in found.pop("shapes")
        for case, value in found.items():
            objective = Objective.parse("ap" if case == "multi-label" else "recall@precision=30%")
            expected = objective.metric(*_rows_of_ranks(case, None)).value.mean().item()
            assert value == pytest.approx(expected, abs=1e-12), case


def test_metric_takes_weights_of_rows_in_one_batch_and_of_classes_in_another() -> None:
    pytest.importorskip("torchmetrics")
    from rareloss.integrations.torchmetrics import ObjectiveMetric

    draw = torch.Generator().manual_seed(0)
    scores, weight = torch.randn(90, 3, generator=draw), torch.rand(90, 3, generator=draw)
    labels = torch.rand(90, 3, generator=draw) < 0.3
    weight[:30], weight[30:60] = 1, weight[30:60, :1]
    metric = ObjectiveMetric("ap")
    metric.update(scores[:30], labels[:30])
    metric.update(scores[30:60], labels[30:60], weight[30:60, 0])
    metric.update(scores[60:], labels[60:], weight[60:])
    expected = Objective.parse("ap").metric(scores, labels, weight).value.mean()
    assert metric.compute().item() == pytest.approx(expected.item(), abs=1e-12)


def test_metric_refuses_before_its_state_changes() -> None:
    pytest.importorskip("torchmetrics")
    from rareloss.integrations.torchmetrics import ObjectiveMetric, early_stopping

    metric = ObjectiveMetric("ap")
    with pytest.raises(ValueError, match="shape"):
        metric.update(torch.zeros(3), torch.zeros(4))
    assert metric.scores == []
    metric.update(torch.randn(9, 3), torch.arange(9) % 3)
    assert 0 < metric.compute() <= 1
    assert early_stopping("ap") == {"monitor": "val_ap", "mode": "max"}
