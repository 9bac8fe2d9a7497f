"""Methods: which fit an objective, that all start alike, and that validation chooses."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("sklearn")
from rareloss import Objective, SmoothAPLoss
from rareloss.table import DataError, load
from rareloss.table.folds import split
from rareloss.tabular.comparison.runs import run_unit
from rareloss.tabular.methods import RECIPE, Method, choose_methods, methods_for
from rareloss.tabular.models import Family, find_model
from rareloss.tabular.network import batches
from rareloss.tabular.training import Fitted, Task, cross_entropy, descend, new_model
from rareloss.tabular.ways import fit_methods, fit_trees


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train briefly: what is tested does not need the whole recipe."""
    for name, steps in {"network_steps": 60, "network_warm_up_steps": 10, "stage_steps": 20}.items():
        monkeypatch.setitem(RECIPE, name, steps)
    monkeypatch.setitem(RECIPE, "warmup_cross_entropy_steps", {"linear": 20, "network": 40})


def make_task(objective: str = "ap", classes: int = 2, rows: int = 300) -> Task:
    """A small table whose rarest class has its own corner, so that something can be learnt."""
    rng = np.random.default_rng(0)
    target = rng.choice(classes, rows, p=np.array([0.8, *[0.2 / (classes - 1)] * (classes - 1)]))
    frame = pd.DataFrame(rng.standard_normal((rows, 3)) + target[:, None], columns=["a", "b", "c"])
    table = load(frame.assign(y=target), target="y")
    return Task(table, split(table, 0), Objective.parse(objective), 0)


@pytest.mark.parametrize(
    ("objective", "ranking"),
    [
        ("ap", {"smooth_ap_stage", "smooth_ap_warmup"}),
        ("recall@top=5%", {"recall_stage", "recall_warmup", "pauc_stage", "pauc_warmup"}),
        ("recall@fpr=5%", {"recall_stage", "recall_warmup", "pauc_stage", "pauc_warmup"}),
        ("pauc@fpr=0-5%", {"pauc_stage", "pauc_warmup"}),
    ],
)
def test_ranking_arms_fit_the_objective(objective: str, ranking: set[str]) -> None:
    methods = methods_for(Objective.parse(objective))
    assert {method.name for method in methods if method.kind == "ranking"} == ranking
    assert methods[0].name == "tuned_ce"


def test_chosen_arms_keep_the_baselines_and_the_control() -> None:
    chosen = choose_methods(Objective.parse("ap"), ["smooth_ap_stage"])
    assert [method.name for method in chosen] == ["tuned_ce", "ce_continued", "weighted_ce", "smooth_ap_stage", "trees"]


def test_unknown_arm_is_refused() -> None:
    with pytest.raises(DataError, match="no method 'recall_stage' for the objective ap"):
        choose_methods(Objective.parse("ap"), ["recall_stage"])


@pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("objective", ["ap", "recall@top=10%", "recall@fpr=10%", "pauc@fpr=0-10%"])
def test_every_arm_of_a_scorecard_is_fitted(objective: str, classes: int) -> None:
    task = make_task(objective, classes)
    methods = methods_for(task.objective)
    fitted = dict(fit_methods(task, find_model("linear"), methods, trials=2))
    assert [method.name for method in fitted] == [method.name for method in methods if method.name != "trees"]
    for method, found in fitted.items():
        assert isinstance(found, Fitted), (method.name, found)
        scores = found.score(task.inputs(found.kind)[1])
        assert task.judge(scores) == pytest.approx(found.validation, abs=1e-9), method.name


@pytest.mark.slow
def test_every_arm_of_a_network_is_fitted() -> None:
    task = make_task()
    fitted = dict(fit_methods(task, find_model("mlp"), methods_for(task.objective), trials=2))
    for method, found in fitted.items():
        assert isinstance(found, Fitted), (method.name, found)
        assert found.validation > 0.2, method.name


def test_a_stage_is_never_below_its_start_on_validation() -> None:
    task = make_task()
    fitted = {
        method.name: found for method, found in fit_methods(task, find_model("linear"), methods_for(task.objective), 1)
    }
    start = fitted["tuned_ce"]
    assert isinstance(start, Fitted)
    for name in ("ce_continued", "focal", "smooth_ap_stage"):
        found = fitted[name]
        assert isinstance(found, Fitted)
        assert found.validation >= start.validation
        assert found.history[0]["validation"] == pytest.approx(start.validation)


def shrunk(task: Task, family: Family, tuned: Fitted, trials: int) -> Fitted:
    """A method from outside: the tuned solution with scores a hundred times smaller, which ranks alike."""
    return replace(tuned, score=lambda x: tuned.score(x) / 100, chosen={"trials": trials})


def test_arm_from_outside_is_trained_by_its_own_function() -> None:
    task = make_task()
    own = Method("shrunk", "Shrunk", "ranks as tuned cross-entropy does", "reweight", fit=shrunk)
    methods = (*methods_for(task.objective)[:1], own)
    unit = run_unit(task.table, task.objective, methods, "linear", seed=0, trials=2)
    tuned, found = unit["runs"]
    assert found["method"] == "shrunk"
    assert found["chosen"] == {"trials": 2}
    assert found["test"] == tuned["test"]


def test_arm_from_outside_that_fails_is_told() -> None:
    def fail(task: Task, family: Family, tuned: Fitted, trials: int) -> Fitted:
        raise RuntimeError("no such loss")

    task = make_task()
    methods = (*methods_for(task.objective)[:1], Method("broken", "Broken", "fails", "reweight", fit=fail))
    unit = run_unit(task.table, task.objective, methods, "linear", seed=0, trials=1)
    assert [run["method"] for run in unit["runs"]] == ["tuned_ce"]
    assert unit["failed"][0]["error"] == "RuntimeError: no such loss"


def test_trees_keep_the_round_that_validation_prefers() -> None:
    task = make_task()
    found = fit_trees(task, trials=1)
    best = max(found.history, key=lambda look: look["validation"])
    assert found.kept == f"round {best['step']}"
    assert task.judge(found.score(task.inputs("trees")[1])) == pytest.approx(best["validation"])


def test_a_seed_starts_every_arm_at_the_same_weights() -> None:
    task, family = make_task(), find_model("mlp")
    one, other = (new_model(task, family, "normal").state_dict() for _ in range(2))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


def test_the_best_checkpoint_is_kept_even_if_it_is_the_start() -> None:
    task = make_task()
    model = new_model(task, find_model("linear"), "normal")
    everything = [(slice(None), None)]

    def reversed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = SmoothAPLoss(1, queue_size=0)(-logits, targets)
        return loss

    good = descend(task, model, "normal", cross_entropy(1), everything * 40, steps=40, learning_rate=0.1, chosen={})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bad = descend(task, model, "normal", reversed_loss, everything * 20, steps=20, learning_rate=0.1, chosen={})
    assert bad.kept == "start"
    assert bad.validation == pytest.approx(good.validation)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_batches_pass_over_all_rows() -> None:
    drawn = batches(torch.zeros(12), 4, seed=0)
    seen = torch.cat([next(drawn)[0] for _ in range(3)])
    assert seen.sort().values.tolist() == list(range(12))
