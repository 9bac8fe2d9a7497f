"""Fine-tuning returns what validation prefers, changes nothing that it was given, and says what it did."""

import copy
import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rareloss import FineTuned, Objective, SigmoidFocalLoss, SmoothAPLoss, finetune
from rareloss.training import (
    PENALTIES,
    Batch,
    ValidationMetric,
    Validator,
    bootstrap_weights,
    find_restart,
    fit_regularization_path,
    repeat_finetune,
    sample_pools,
    train_with_early_stopping,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning")
Rows = tuple[Tensor, Tensor]


def bent(rows: int, seed: int) -> Rows:
    """Draw rows whose positives lie where no straight line is right for all of them."""
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
    y = (x[:, 0] > 1.8) | ((x[:, 1] > 1) & (x[:, 0] < -1.2))
    return x, y.long()


def solved(x: Tensor, y: Tensor) -> nn.Linear:
    """Solve logistic regression."""
    model = nn.Linear(x.shape[1], 1)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y.float())
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Linear, Rows, Rows]:
    train, validation = bent(3_000, 0), bent(3_000, 1)
    return solved(*train), train, validation


def value(objective: str, model: nn.Module, rows: Rows) -> float:
    with torch.no_grad():
        return Objective.parse(objective).metric(model(rows[0]), rows[1]).value.item()


@pytest.mark.parametrize("optimizer", ["lbfgs", "adamw"])
@pytest.mark.parametrize("objective", ["ap", "recall@top=5%", "recall@fpr=1%", "pauc@fpr=0-2%"])
def test_finetuning_improves_validation_and_leaves_the_given_model(
    objective: str, optimizer: str, parts: tuple[nn.Linear, Rows, Rows]
) -> None:
    model, train, validation = parts
    given = model.weight.clone()
    finetuned = finetune(model, objective, train, validation, optimizer=optimizer, steps=60)
    assert torch.equal(model.weight, given)
    assert finetuned.before == pytest.approx(value(objective, model, validation))
    assert finetuned.after == pytest.approx(value(objective, finetuned.model, validation))
    assert finetuned.after > finetuned.before + 0.02
    assert finetuned.changed
    assert f"{finetuned.before:.4f} to {finetuned.after:.4f}" in str(finetuned)
    evaluations = [evaluation for one in finetuned.evaluations for evaluation in one]
    assert finetuned.after in [evaluation.validation for evaluation in evaluations]
    assert [one[0].validation for one in finetuned.evaluations] == pytest.approx(
        [finetuned.before] * len(finetuned.evaluations)
    )


@pytest.mark.parametrize("optimizer", ["lbfgs", "adamw"])
def test_finetuning_that_finds_nothing_says_so(optimizer: str, parts: tuple[nn.Linear, Rows, Rows]) -> None:
    model, train, _ = parts
    model = finetune(model, "ap", train, train).model  # so that every way from here leads down

    class Reversed(SmoothAPLoss):
        def forward(self, logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
            return super().forward(-logits, targets, **options)

    finetuned = finetune(
        model, "ap", train, train, losses=[Reversed(1, queue_size=0)], optimizer=optimizer, learning_rate=1.0
    )
    assert not finetuned.changed
    assert finetuned.step == 0
    assert finetuned.loss is None
    assert finetuned.before == finetuned.after
    assert "nothing changed" in str(finetuned)
    for name, number in finetuned.model.state_dict().items():
        assert torch.equal(number, model.state_dict()[name])


def test_loss_that_is_not_finite_ends_its_steps(parts: tuple[nn.Linear, Rows, Rows]) -> None:
    model, train, validation = parts

    class Broken(SmoothAPLoss):
        calls = 0

        def forward(self, logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
            self.calls += 1
            return super().forward(logits, targets, **options) * (math.nan if self.calls > 15 else 1.0)

    broken = Broken(1, queue_size=0, temperature=0.03)
    finetuned = finetune(model, "ap", train, validation, losses=[broken], optimizer="adamw", steps=60, eval_every=5)
    assert broken.calls == 16
    assert finetuned.step <= 15
    assert torch.isfinite(finetuned.model.weight).all()
    broken.calls = 0
    finetuned = finetune(model, "ap", train, validation, losses=[broken])
    assert 15 < broken.calls < 80
    assert all(evaluation.step <= 15 for evaluation in finetuned.evaluations[0])
    assert torch.isfinite(finetuned.model.weight).all()


def test_chunks_and_a_loader_of_everything_rank_the_same(parts: tuple[nn.Linear, Rows, Rows]) -> None:
    model, train, validation = parts
    losses = [SmoothAPLoss(1, queue_size=0, temperature=0.1)]
    options: dict[str, Any] = {"losses": losses, "optimizer": "adamw", "steps": 20, "learning_rate": 1e-2}
    whole = finetune(model, "ap", train, validation, **options)
    chunked = finetune(model, "ap", train, validation, chunk_size=700, **options)
    loaded = finetune(
        model,
        "ap",
        DataLoader(TensorDataset(*train), batch_size=len(train[0])),
        DataLoader(TensorDataset(*validation), batch_size=1_000),
        **options,
    )
    for other in (chunked, loaded):
        torch.testing.assert_close(other.model.weight, whole.model.weight, rtol=1e-4, atol=1e-5)
        assert other.after == pytest.approx(whole.after, abs=1e-4)


def test_small_batches_are_ranked_with_the_queue(parts: tuple[nn.Linear, Rows, Rows]) -> None:
    model, train, validation = parts
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(*train), batch_size=128, shuffle=True, generator=generator)
    finetuned = finetune(model, "ap", loader, validation, steps=60, learning_rate=3e-2)
    assert finetuned.loss is not None
    assert finetuned.loss.queue.size > 0
    assert finetuned.after > finetuned.before + 0.02


def test_weights_are_seen_by_loss_and_by_judge(parts: tuple[nn.Linear, Rows, Rows]) -> None:
    model, (x, y), (x_held, y_held) = parts
    # Rows of weight 0 are as if they were not there, whatever they hold.
    wrong = torch.full((50, 2), math.nan)
    longer = (
        torch.cat([x, wrong]),
        torch.cat([y, torch.zeros(50).long()]),
        torch.cat([torch.ones(len(x)), torch.zeros(50)]),
    )
    held = (
        torch.cat([x_held, wrong]),
        torch.cat([y_held, torch.zeros(50).long()]),
        torch.cat([torch.ones(len(x_held)), torch.zeros(50)]),
    )
    expected = finetune(model, "ap", (x, y), (x_held, y_held), steps=20)
    found = finetune(model, "ap", longer, held, steps=20)
    assert found.before == pytest.approx(expected.before)
    assert found.after == pytest.approx(expected.after, abs=1e-4)


def test_network_of_two_inputs_and_three_classes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.dropout, self.last = nn.Linear(3, 8), nn.Dropout(0.1), nn.Linear(8, 3)
            self.norm = nn.BatchNorm1d(8)

        def forward(self, number: Tensor, flag: Tensor) -> Tensor:
            return self.last(self.dropout(self.norm(self.first(torch.cat([number, flag], 1)).relu())))

    generator = torch.Generator().manual_seed(0)
    number, flag = torch.randn(600, 2, generator=generator), torch.randn(600, 1, generator=generator)
    target = (number[:, 0] > 1).long() + (number[:, 1] > 1).long()
    torch.manual_seed(0)
    model = Two().eval()
    model.dropout.train()
    rows = ((number, flag), target)
    finetuned = finetune(model, "ap", rows, rows, steps=40, learning_rate=1e-2, pool_size=300, chunk_size=100)
    assert finetuned.after > finetuned.before
    assert torch.equal(finetuned.model.norm.running_mean, model.norm.running_mean)
    # Modes of the parts are as they were given.
    assert [part.training for part in finetuned.model.modules()] == [part.training for part in model.modules()]
    again = finetune(model, "ap", rows, rows, steps=40, learning_rate=1e-2, pool_size=300, losses=[SmoothAPLoss(3)])
    assert len(again.evaluations) == 1


def test_any_loss_can_be_continued(parts: tuple[nn.Linear, Rows, Rows]) -> None:
    model, train, validation = parts
    focal = SigmoidFocalLoss(alpha=None, gamma=2.0)
    finetuned = finetune(model, Objective.parse("recall@top=5%"), train, validation, losses=[focal], steps=20)
    assert isinstance(finetuned, FineTuned)
    assert finetuned.after >= finetuned.before


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model": "linear"}, TypeError, "model"),
        ({"objective": 3}, TypeError, "objective"),
        ({"objective": "auc"}, ValueError, "objective"),
        ({"steps": 0}, ValueError, "steps"),
        ({"eval_every": 0}, ValueError, "eval_every"),
        ({"chunk_size": 1.5}, TypeError, "chunk_size"),
        ({"pool_size": 1}, ValueError, "pool_size"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"losses": []}, ValueError, "losses"),
        ({"train": torch.zeros(3, 2)}, TypeError, "train"),
        ({"train": (torch.zeros(3, 2), torch.zeros(4))}, ValueError, "train"),
        ({"train": iter([])}, TypeError, "train"),
        ({"train": []}, ValueError, "batch"),
        ({"optimizer": "sgd"}, ValueError, "optimizer"),
        ({"optimizer": "lbfgs", "pool_size": 20}, ValueError, "all rows"),
        ({"optimizer": "lbfgs", "train": [bent(50, 0)]}, ValueError, "all rows"),
        ({"train": [bent(50, 0)], "pool_size": 20}, ValueError, "pool_size"),
        ({"validation": (torch.zeros(3, 2), torch.zeros(3))}, ValueError, "validation"),
        ({"validation": (torch.full((3, 2), math.nan), torch.tensor([0, 1, 0]))}, ValueError, "finite"),
        ({"validation": []}, ValueError, "validation"),
        ({"train": (torch.zeros(0, 2), torch.zeros(0))}, ValueError, "no row"),
        ({"train": (torch.full((50, 2), math.inf), bent(50, 0)[1])}, ValueError, "infinite"),
    ],
)
def test_finetuning_refuses(change: dict[str, Any], error: type[Exception], said: str) -> None:
    given = {"model": nn.Linear(2, 1), "objective": "ap", "train": bent(50, 0), "validation": bent(50, 1)}
    with pytest.raises(error, match=said):
        finetune(**{**given, **change})


@pytest.mark.parametrize("factor", [1e-20, 1e15, 1e30])
def test_inputs_of_any_size_and_no_change_is_none_to_the_last_bit(
    factor: float, parts: tuple[nn.Linear, Rows, Rows]
) -> None:
    model, (x, y), held_out = parts
    finetuned = finetune(model, "ap", (x * factor, y), held_out)
    assert finetuned.after >= finetuned.before == pytest.approx(value("ap", model, held_out))
    assert finetuned.changed or torch.equal(finetuned.model.weight, model.weight)
    assert finetuned.changed == (finetuned.after > finetuned.before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precisions(dtype: torch.dtype, parts: tuple[nn.Linear, Rows, Rows]) -> None:
    model, (x, y), (x_held, y_held) = parts
    finetuned = finetune(copy.deepcopy(model).to(dtype), "ap", (x.to(dtype), y), (x_held.to(dtype), y_held))
    assert finetuned.model.weight.dtype == dtype
    assert finetuned.after > finetuned.before + 0.02


def test_weights_of_zero_are_a_start_too(parts: tuple[nn.Linear, Rows, Rows]) -> None:
    _, train, validation = parts
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    assert finetune(model, "ap", train, validation).after > 0.2


def test_frozen_model_is_refused() -> None:
    with pytest.raises(ValueError, match="requires a gradient"):
        finetune(nn.Linear(2, 1).requires_grad_(False), "ap", bent(50, 0), bent(50, 1))


def test_path_leads_from_the_start_to_the_minimum(parts: tuple[nn.Linear, Rows, Rows]) -> None:
    model, (x, y), _ = parts
    start = model.weight.detach().clone()
    loss = SmoothAPLoss(1, queue_size=0, temperature=0.1)
    moved, values = [0.0], []
    for many in range(1, len(PENALTIES) + 1, 2):
        walker = copy.deepcopy(model)
        # Judged by the number of evaluations, so that the end of the path is kept.
        evaluated = itertools.count()
        found = fit_regularization_path(
            walker,
            loss,
            Batch(x, y),
            lambda evaluated=evaluated: float(next(evaluated)),
            penalties=PENALTIES[:many],
        )
        assert [evaluation.validation for evaluation in found.evaluations] == list(range(many + 1))
        assert found.best == found.evaluations[-1]
        moved.append(((walker.weight - start).norm() / start.norm()).item())
        values.append(found.best.loss)
    assert moved == sorted(moved)
    assert values == sorted(values, reverse=True)
    with torch.no_grad():
        assert loss(walker(x), y).item() == pytest.approx(values[-1], abs=2e-3)


@pytest.mark.parametrize("way", ["steps", "path"])
@pytest.mark.parametrize(
    ("judged", "margin", "kept"),
    [
        ([[0.0], [3.0], [5.0], [4.0], [5.0]], 0.0, 2),
        ([[1.0], [0.0], [0.5], [1.0]], 0.0, 0),
        ([[math.nan], [0.5], [math.nan], [0.7]], 0.0, 3),
        # The standard deviation of 1, 3, 5 is 2: a gain of 3 is more than one of them, but not more than two.
        ([[0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 3.0, 5.0]], 1.0, 1),
        ([[0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 3.0, 5.0]], 2.0, 0),
        # Better than the start by three standard deviations, but not than what was kept before.
        ([[0.0, 0.0, 0.0], [4.0, 4.0, 4.0], [5.0, 3.0, 7.0]], 1.0, 1),
    ],
)
def test_what_is_kept_is_what_was_judged_better(
    way: str, judged: list[list[float]], margin: float, kept: int, parts: tuple[nn.Linear, Rows, Rows]
) -> None:
    model, (x, y), _ = parts
    walker, seen = copy.deepcopy(model), []

    def judge() -> ValidationMetric:
        seen.append(copy.deepcopy(walker.state_dict()))
        metric, *bootstrap = judged[len(seen) - 1]
        return ValidationMetric(metric, lambda: torch.tensor(bootstrap))

    loss = SmoothAPLoss(1, queue_size=0, temperature=0.1)
    if way == "steps":
        steps = len(judged) - 1
        found = train_with_early_stopping(
            walker, loss, [Batch(x, y)], judge, steps=steps, learning_rate=0.1, eval_every=1, margin=margin
        )
    else:
        found = fit_regularization_path(
            walker, loss, Batch(x, y), judge, penalties=PENALTIES[: len(judged) - 1], margin=margin
        )
    assert found.best is found.evaluations[kept]
    assert len(found.evaluations) == len(seen) == len(judged)
    assert all(torch.equal(number, seen[kept][name]) for name, number in walker.state_dict().items())
    assert len({tuple(state["weight"].flatten().tolist()) for state in seen}) == len(seen)


@pytest.mark.parametrize("point", ["ap", "recall@top=5%", "recall@fpr=5%", "pauc@fpr=5%"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("at_once", [None, 500])  # None: as many reweightings as the module takes
def test_bootstrap_values_are_the_metric_under_each_weight(
    point: str, outputs: int, weighted: bool, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once is not None:
        monkeypatch.setattr("rareloss.training.validation._WEIGHTS_AT_ONCE", at_once)
    generator, objective = torch.Generator().manual_seed(0), Objective.parse(point)
    scores = torch.randn(200, outputs, generator=generator)
    targets = torch.randint(max(2, outputs), (200,), generator=generator)
    weight = torch.rand(200, generator=generator) if weighted else None
    drawn = bootstrap_weights(200)
    found = Validator(Batch(None, targets, weight), objective, lambda model, inputs: inputs).metric(scores)

    def value(own: Tensor) -> float:
        return objective.metric(scores, targets, own if weight is None else own * weight).value.mean().item()

    assert found.value == pytest.approx(value(torch.ones(200)), abs=1e-12)
    assert found.bootstrap_values.tolist() == pytest.approx([value(one) for one in drawn], abs=1e-7)


def turning(rows: int, seed: int) -> Rows:
    """Draw rows of which the second input speaks against the class in the bulk and for it at the top."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator)
    odds = x[:, 0] + 4 * (x[:, 1] - 1.5).clamp(min=0) - 0.7 * x[:, 1].clamp(max=1.5) - 5
    return x, (torch.rand(rows, generator=generator) < odds.sigmoid()).long()


# Of data where the gain is far above what the rule of keeping asks for.
@pytest.mark.parametrize("seed", [3, 4])
def test_another_minimum_is_found_where_the_path_ends_in_a_local_one(seed: int) -> None:
    x, y = turning(12_000, seed)
    train, validation = (x[:8_000], y[:8_000]), (x[8_000:], y[8_000:])
    model = solved(*train)
    loss = SmoothAPLoss(1, queue_size=0, temperature=0.03)
    walker = copy.deepcopy(model)
    held = partial(value, "ap", walker, validation)
    alone = fit_regularization_path(walker, loss, Batch(*train), lambda: held())
    finetuned = finetune(model, "ap", train, validation)
    assert walker.weight[0, 1] < finetuned.model.weight[0, 1]
    assert finetuned.after > 1.3 * alone.best.validation
    # It was reached from the free end of the path, and a refit goes to the same place.
    (evaluations,) = finetuned.evaluations
    walked = [evaluation.penalty for evaluation in evaluations]
    back = walked[len(walked) - 1 - walked[::-1].index(PENALTIES[-1]) :]
    assert back == list(PENALTIES[::-1][: len(back)])
    assert finetuned.step > evaluations[len(evaluations) - len(back) - 1].step
    again = repeat_finetune(finetuned, solved(x, y), (x, y))
    assert again.weight[0, 1] > 0


def test_no_restart_is_found_where_cross_entropy_is_right() -> None:
    x = torch.randn(8_000, 3, generator=torch.Generator().manual_seed(0))
    y = (torch.rand(8_000, generator=torch.Generator().manual_seed(1)) < (2 * x[:, 0] - 4).sigmoid()).long()
    loss = SmoothAPLoss(1, queue_size=0, temperature=0.03)
    ap = Objective.parse("ap")
    assert find_restart(solved(x, y), loss, Batch(x, y), ap) is None
    wrong = nn.Linear(3, 1)
    nn.init.constant_(wrong.weight, -1.0)
    assert find_restart(wrong, loss, Batch(x, y), ap) is None  # its own steps lead to where the others end
    assert find_restart(wrong, BrokenLoss(), Batch(x, y), ap) is None


def test_rows_without_a_label_are_no_part_of_the_search_for_a_restart() -> None:
    x, y = turning(8_000, 0)
    model, loss = solved(x, y), SmoothAPLoss(1, queue_size=0, temperature=0.03)
    found = find_restart(model, loss, Batch(x, y), Objective.parse("ap"))
    more = Batch(torch.cat([x, 1e6 * torch.ones(50, 3)]), torch.cat([y, torch.full((50,), -100)]))
    again = find_restart(model, loss, more, Objective.parse("ap"))
    assert found is not None
    assert again is not None
    assert torch.equal(found.weight, again.weight)
    assert find_restart(model, loss, Batch(x[:1], y[:1] * 0 + 1), Objective.parse("ap")) is None


class BrokenLoss(nn.Module):
    """A loss that is nowhere finite."""

    def forward(self, scores: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return scores.sum() * math.nan


def test_path_that_leads_nowhere_is_left(parts: tuple[nn.Linear, Rows, Rows]) -> None:
    model, (x, y), _ = parts
    walker, worse = copy.deepcopy(model), itertools.count()
    loss = SmoothAPLoss(1, queue_size=0, temperature=0.1)
    found = fit_regularization_path(walker, loss, Batch(x, y), lambda: -float(next(worse)))
    assert len(found.evaluations) == 4
    assert torch.equal(walker.weight, model.weight)


def test_few_positives_for_many_weights_have_to_convince_validation() -> None:
    # A straight line is right here, so that what fine-tuning finds is chance: 30 positives for 60 weights.
    changed = 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1_200, 60, generator=generator)
        y = (x[:, 0] + 0.5 * torch.randn(1_200, generator=generator) > 1.85).long()
        model = nn.Linear(60, 1)
        with torch.no_grad():
            model.weight.copy_(0.02 * torch.randn(1, 60, generator=generator))
            model.weight[0, 0] = 1.0
        finetuned = finetune(model, "ap", (x[:600], y[:600]), (x[600:], y[600:]))
        assert len(finetuned.evaluations[0]) > 1
        changed += finetuned.changed
    assert changed <= 1


@pytest.mark.parametrize("counts", [[70_000, 1_760], [100_000, 100], [50_000, 50_000], [9_000, 5_000, 30, 16]])
def test_pool_holds_rare_classes_whole_and_stands_for_all(counts: list[int]) -> None:
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    size = 4_000
    rows, weight = next(sample_pools(targets, size, torch.Generator().manual_seed(0)))
    assert isinstance(rows, Tensor)
    assert weight is not None
    assert len(rows) == len(weight) == rows.unique().numel()
    assert size - len(counts) <= len(rows) <= size
    drawn = torch.bincount(targets[rows], minlength=len(counts)).tolist()
    assert all(many == count for many, count in zip(drawn, counts, strict=True) if count < size / len(counts) / 2)
    shares = torch.bincount(targets[rows], weight, minlength=len(counts)) / weight.sum()
    torch.testing.assert_close(shares, torch.tensor(counts) / sum(counts), rtol=1e-4, atol=0.0)
    assert weight.mean().item() == pytest.approx(1.0, rel=1e-4)


def test_pool_of_labels_is_drawn_alike_and_a_large_one_is_everything() -> None:
    labels = torch.zeros(100, 3)
    rows, weight = next(sample_pools(labels, 10, torch.Generator()))
    assert isinstance(rows, Tensor)
    assert len(rows.unique()) == 10
    assert weight is None
    for size in (None, 100, 500):
        assert next(sample_pools(labels[:, 0], size, torch.Generator())) == (slice(None), None)


def test_early_stopping_refuses_batches_that_end() -> None:
    model = nn.Linear(2, 1)

    def two() -> Iterator[Batch]:
        yield from [Batch(*bent(50, seed)) for seed in range(2)]

    with pytest.raises(ValueError, match="no batch"):
        train_with_early_stopping(model, SmoothAPLoss(1, queue_size=0), two(), lambda: 0.0, steps=5, learning_rate=0.1)


def test_optimiser_of_ones_own_searches_for_each_penalty_of_the_path(parts: tuple[nn.Linear, Rows, Rows]) -> None:
    made: list[int] = []

    class NotNegative(torch.optim.LBFGS):
        def step(self, closure: Any) -> Any:
            made.append(1)
            found = super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.clamp_(min=0.0)
            return found

    model, train, validation = parts
    model = nn.Sequential(model)  # solved in its own coordinates
    finetuned = finetune(model, "ap", train, validation, optimizer=lambda trained: NotNegative(trained, max_iter=10))
    assert len(made) == len(finetuned.evaluations[0]) - 1 > 0
    assert not finetuned.changed or bool((finetuned.model[0].weight >= 0).all())
    with pytest.raises(ValueError, match="all rows"):
        finetune(model, "ap", train, validation, optimizer=NotNegative, pool_size=50)
    with pytest.raises((TypeError, ValueError), match="optimizer"):
        finetune(model, "ap", train, validation, optimizer=3)


def test_few_positives_ask_for_a_gain_beyond_a_standard_error() -> None:
    """The best of many looks at few positives is better on validation by chance, and costs on other rows."""
    changed = 0
    for seed in range(16):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2_400, 3, generator=generator)
        y = (torch.rand(2_400, generator=generator) < (x.sum(1) - 3.5).sigmoid()).long()  # a line is right
        start, validation = solved(x[:1_800], y[:1_800]), Batch(x[1_800:], y[1_800:])
        found = finetune(start, "ap", (x[:1_800], y[:1_800]), validation)
        validator = Validator(validation, found.objective, lambda model, inputs: model(inputs))
        after, before = validator(found.model), validator(start)
        if found.changed:
            assert after.value - before.value > (after.bootstrap_values - before.bootstrap_values).std()
        changed += found.changed
    assert 0 < changed < 10
