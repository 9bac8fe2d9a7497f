"""Warm-up: it counts itself, blends, decays, drops the warm-up's rows, takes torch's losses, resumes anywhere."""

import contextlib
import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
    distributed,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning")


def batch(rows: int = 24) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 1), (torch.arange(rows) % 3 == 0).long()


def wrapper(**options: Any) -> LossWarmupWrapper:
    given = {"warmup_steps": 3, "blend_steps": 4, **options}
    return LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(1, queue_size=64), **given)


def test_weight_is_zero_then_rises_in_equal_steps_then_stays() -> None:
    loss = wrapper(final_main_weight=0.8)
    weights, phases = [], []
    for step in range(12):
        assert loss.step == step
        weights.append(loss.main_weight)
        phases.append((loss.in_warmup, loss.in_blend))
        loss(*batch())
    assert weights[:3] == [0.0, 0.0, 0.0]
    assert all(0 < weight < 0.8 for weight in weights[3:7])
    assert weights[7:] == [0.8] * 5
    gains = [weights[step + 1] - weights[step] for step in range(3, 6)]
    assert gains == pytest.approx([gains[0]] * 3)
    assert gains[0] > 0
    assert phases == [(True, False)] * 3 + [(False, True)] * 4 + [(False, False)] * 5


def test_no_blend_switches_at_once() -> None:
    loss = wrapper(blend_steps=0)
    weights = []
    for _ in range(6):
        weights.append(loss.main_weight)
        loss(*batch())
    assert weights == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def test_no_warmup_is_the_main_loss() -> None:
    loss, main = wrapper(warmup_steps=0, blend_steps=0), SmoothAPLoss(1, queue_size=64)
    for _ in range(3):
        logits, targets = batch()
        assert loss(logits, targets).item() == main(logits, targets).item()


def test_value_and_gradient_are_the_weighted_sum() -> None:
    loss = wrapper(warmup_steps=2, blend_steps=2, final_main_weight=0.75)
    main = SmoothAPLoss(1, queue_size=64)
    for step in range(8):
        logits, targets = batch()
        logits.requires_grad_()
        share = loss.main_weight
        got = torch.autograd.grad(loss(logits, targets), logits)[0]
        expected = (1 - share) * torch.autograd.grad(
            F.binary_cross_entropy_with_logits(logits[:, 0], targets.float()), logits
        )[0]
        if step >= 2:
            expected = expected + share * torch.autograd.grad(main(logits, targets), logits)[0]
        torch.testing.assert_close(got, expected)


def test_temperature_decays_geometrically_from_the_switch() -> None:
    loss = wrapper(warmup_steps=2, blend_steps=0, temp_start=0.8, temp_end=0.1, temp_decay_steps=3)
    seen = []
    for _ in range(8):
        seen.append(loss.temperature)
        loss(*batch())
    assert seen == pytest.approx([0.8, 0.8, 0.8, 0.4, 0.2, 0.1, 0.1, 0.1])


def test_main_loss_uses_the_temperature_of_the_step() -> None:
    loss = wrapper(warmup_steps=1, blend_steps=0, temp_start=0.8, temp_end=0.1, temp_decay_steps=2)
    main = SmoothAPLoss(1, queue_size=64)
    for step in range(5):
        logits, targets = batch()
        main.temperature = [0.8, 0.8, (0.8 * 0.1) ** 0.5, 0.1, 0.1][step]
        value = loss(logits, targets).item()
        if step >= 1:
            assert value == pytest.approx(main(logits, targets).item(), abs=1e-6)


def test_temperature_is_the_main_losss_own_unless_asked() -> None:
    assert wrapper().temperature == SmoothAPLoss(1).temperature
    assert LossWarmupWrapper(nn.BCEWithLogitsLoss(), SigmoidFocalLoss(), warmup_steps=1).temperature is None


def test_eval_does_not_count_and_is_the_loss_of_the_step() -> None:
    loss = wrapper(warmup_steps=1, blend_steps=0)
    logits, targets = batch()
    bce = F.binary_cross_entropy_with_logits(logits[:, 0], targets.float()).item()
    for _ in range(3):
        assert loss.eval()(logits, targets).item() == pytest.approx(bce, abs=1e-7)
    assert loss.step == 0
    loss.train()(logits, targets)
    assert loss.step == 1
    assert loss.eval()(logits, targets).item() == SmoothAPLoss(1, queue_size=0)(logits, targets).item()
    assert loss.step == 1


def test_validation_in_training_mode_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, gathered = wrapper(warmup_steps=1, blend_steps=0), []
    monkeypatch.setattr(distributed, "mean_over_ranks", lambda sums, group, among_ranks: gathered.append(among_ranks))
    with torch.no_grad():
        for _ in range(3):
            loss(*batch())
    with torch.inference_mode():
        loss(*batch())
    assert loss.step == 0
    loss(*batch())
    assert loss.step == 1
    assert gathered == [False] * 4 + [True]  # nor does it wait for other ranks


def test_calls_within_frozen_queue_do_not_count() -> None:
    class Freezing(SmoothAPLoss):
        frozen = 0

        @contextlib.contextmanager
        def frozen_queue(self) -> Iterator[None]:
            self.frozen += 1
            yield
            self.frozen -= 1

    main = Freezing(1)
    loss = LossWarmupWrapper(nn.BCEWithLogitsLoss(), main, warmup_steps=1)
    with loss.frozen_queue(), loss.frozen_queue():
        loss(*batch())
        assert main.frozen == 2
    with pytest.raises(ValueError, match="targets"), loss.frozen_queue():
        loss(torch.randn(24, 1), torch.zeros(23))
    assert loss.step == 0
    loss(*batch())
    assert loss.step == 1


def test_closures_of_lbfgs_count_once_where_all_but_one_call_are_frozen() -> None:
    model, loss = nn.Linear(3, 1), wrapper(warmup_steps=100)
    inputs, targets = torch.randn(24, 3), batch()[1]
    optimizer, calls = torch.optim.LBFGS(model.parameters(), max_iter=4), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        calls.append(loss.step)
        return value

    for _ in range(2):
        with loss.frozen_queue():
            optimizer.step(closure)
        loss(model(inputs), targets)
    assert len(calls) > 4
    assert loss.step == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_in_a_checkpoint_does_not_count_again(reentrant: bool) -> None:
    loss = wrapper(warmup_steps=10)
    for step in range(3):
        logits, targets = batch()
        value = checkpoint(loss, logits.requires_grad_(), targets, use_reentrant=reentrant)
        value.backward()
        assert loss.step == step + 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copy_counts_for_itself(copied: Callable[[LossWarmupWrapper], LossWarmupWrapper]) -> None:
    loss = wrapper()
    for _ in range(3):
        loss(*batch())
    twin = copied(loss)
    twin(*batch())
    assert (loss.step, twin.step) == (3, 4)
    assert (loss.in_blend, twin.in_blend) == (True, True)


def test_step_can_be_set() -> None:
    loss = wrapper()
    loss.step = 3 + 4
    assert loss.main_weight == 1.0
    loss.step = 0
    assert loss.in_warmup
    with pytest.raises(ValueError, match="step"):
        loss.step = -1
    with pytest.raises(TypeError, match="step"):
        loss.step = 1.5  # type: ignore[assignment]


def test_rows_from_warmup_do_not_survive_the_switch() -> None:
    # The main loss serves as warm-up too, at another weight of its own: its rows are those of a model that is gone.
    main = SmoothAPLoss(1, queue_size=64)
    loss = LossWarmupWrapper(main, main, warmup_steps=2)
    fresh = SmoothAPLoss(1, queue_size=64)
    for step in range(5):
        logits, targets = batch()
        value = loss(logits, targets).item()
        if step >= 2:
            assert value == fresh(logits, targets).item()


def test_rows_from_the_blend_are_kept() -> None:
    loss = wrapper(warmup_steps=1, blend_steps=2)
    fresh = SmoothAPLoss(1, queue_size=64)
    for step in range(5):
        logits, targets = batch()
        value = loss(logits, targets).item()
        if step >= 1:
            expected = fresh(logits, targets).item()
        if step >= 3:
            assert value == expected


def test_reset_queue_reaches_both_losses() -> None:
    loss = LossWarmupWrapper(
        SmoothAPLoss(1, queue_size=64), PAUCAtBudgetLoss(1, beta=0.5, queue_size=64), warmup_steps=1
    )
    for _ in range(3):
        loss(*batch())
    loss.reset_queue()
    logits, targets = batch()
    expected = PAUCAtBudgetLoss(1, beta=0.5, queue_size=64)(logits, targets).item()
    assert loss(logits, targets).item() == expected


STEPS = 9


def schedules() -> dict[str, dict[str, Any]]:
    return {
        "plain": {},
        "partial": {"final_main_weight": 0.5},
        "decay": {"temp_start": 0.9, "temp_end": 0.1, "temp_decay_steps": 4},
    }


@pytest.mark.parametrize("options", schedules().values(), ids=schedules().keys())
@pytest.mark.parametrize("interrupted_at", range(STEPS))
def test_resumes_bit_for_bit_in_every_phase(interrupted_at: int, options: dict[str, Any]) -> None:
    inputs, targets = torch.randn(STEPS, 24, 4), torch.arange(24) % 3 == 0

    def make() -> tuple[nn.Module, LossWarmupWrapper, torch.optim.Optimizer]:
        torch.manual_seed(3)
        model = nn.Linear(4, 1)
        loss = LossWarmupWrapper(
            SmoothAPLoss(1, queue_size=40, temperature=0.5),
            RecallAtQuantileLoss(1, 0.25, queue_size=40),
            warmup_steps=3,
            blend_steps=3,
            **options,
        )
        return model, loss, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    def train(parts: Any, first: int, last: int) -> list[float]:
        model, loss, optimiser = parts
        seen = []
        for step in range(first, last):
            optimiser.zero_grad()
            value = loss(model(inputs[step]), targets)
            value.backward()
            optimiser.step()
            seen.append(value.item())
        return seen

    straight, parts = make(), make()
    expected = train(straight, 0, STEPS)
    train(parts, 0, interrupted_at)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    resumed = make()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert resumed[1].step == interrupted_at
    assert resumed[1].temperature == parts[1].temperature
    assert train(resumed, interrupted_at, STEPS) == expected[interrupted_at:]
    final = straight[1].state_dict()
    for key, value in resumed[1].state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(final[key]))


# A plain torch loss as warm-up


@pytest.mark.parametrize("shape", [(24,), (24, 1), (4, 6), (4, 6, 1)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_binary_cross_entropy_takes_every_binary_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = torch.randn(24)
    targets = (torch.arange(24) % 3 == 0).to(dtype)
    expected = F.binary_cross_entropy_with_logits(logits, targets.float()).item()
    for target_shape in {shape, shape[:-1] if shape[-1] == 1 else shape}:
        got = wrapper()(logits.reshape(shape), targets.reshape(target_shape))
        assert got.item() == pytest.approx(expected, abs=1e-6)


def test_binary_cross_entropy_keeps_ignore_index() -> None:
    logits, targets = batch()
    targets[[1, 5]] = -100
    held = logits.clone()
    held[5] = float("nan")
    held.requires_grad_()
    loss = wrapper()(held, targets)
    kept = targets != -100
    expected = F.binary_cross_entropy_with_logits(logits[kept, 0], targets[kept].float())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    assert held.grad is not None
    assert torch.isfinite(held.grad).all()
    assert held.grad[[1, 5]].abs().sum() == 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_binary_cross_entropy_keeps_its_own_arguments(reduction: str) -> None:
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([7.0]), reduction=reduction)
    loss = LossWarmupWrapper(weighted, SmoothAPLoss(1), warmup_steps=5)
    logits, targets = batch()
    assert loss(logits, targets).item() == pytest.approx(weighted(logits[:, 0], targets.float()).item(), rel=1e-6)


def test_binary_cross_entropy_of_many_labels() -> None:
    plain = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0]))
    loss = LossWarmupWrapper(plain, SmoothAPLoss(3), warmup_steps=5)
    logits, targets = torch.randn(4, 6, 3), (torch.arange(72).reshape(4, 6, 3) % 4 == 0).long()
    assert loss(logits, targets).item() == pytest.approx(plain(logits, targets.float()).item(), rel=1e-6)
    targets[0, 0, 1] = -100
    terms = F.binary_cross_entropy_with_logits(
        logits, (targets == 1).float(), pos_weight=plain.pos_weight, reduction="none"
    )
    expected = terms[targets != -100].mean()
    assert loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 2, 6)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_cross_entropy_takes_every_shape_of_class_indices(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    plain = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
    loss = LossWarmupWrapper(plain, SmoothAPLoss(3), warmup_steps=5)
    logits, targets = torch.randn(24, 3), torch.arange(24) % 3
    expected = plain(logits, targets).item()
    got = loss(logits.reshape(*shape, 3), targets.reshape(shape).to(dtype)).item()
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ignore_index", [-100, 255, -1])
def test_cross_entropy_keeps_ignore_index(ignore_index: int) -> None:
    plain = nn.CrossEntropyLoss()
    loss = LossWarmupWrapper(plain, SmoothAPLoss(3, ignore_index=ignore_index), warmup_steps=5)
    logits, targets = torch.randn(24, 3), torch.arange(24) % 3
    targets[[0, 7]] = ignore_index
    kept = targets != ignore_index
    assert loss(logits, targets).item() == pytest.approx(plain(logits[kept], targets[kept]).item(), rel=1e-6)


@pytest.mark.parametrize("plain", [nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()])
def test_ignored_row_that_holds_nan_has_no_gradient(plain: nn.Module) -> None:
    classes = 1 if isinstance(plain, nn.BCEWithLogitsLoss) else 3
    loss = LossWarmupWrapper(plain, SmoothAPLoss(classes), warmup_steps=5)
    logits, targets = torch.randn(6, classes), torch.tensor([0, 1, 0, 0, 1, -100])
    logits[5] = torch.nan
    logits.requires_grad_()
    value = loss(logits, targets)
    value.backward()
    assert torch.isfinite(value)
    assert torch.equal(logits.grad[5], torch.zeros(classes))


@pytest.mark.parametrize("plain", [nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()])
def test_nothing_to_count_is_zero_with_gradient_zero(plain: nn.Module) -> None:
    classes = 1 if isinstance(plain, nn.BCEWithLogitsLoss) else 3
    loss = LossWarmupWrapper(plain, SmoothAPLoss(classes), warmup_steps=5)
    for rows in (0, 4):
        logits = torch.randn(rows, classes, requires_grad=True)
        value = loss(logits, torch.full((rows,), -100))
        value.backward()
        assert value.item() == 0.0
        assert logits.grad is not None
        assert logits.grad.abs().sum() == 0


def test_any_module_serves_as_warmup() -> None:
    class Hinge(nn.Module):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            return F.relu(1 - logits[:, 0] * (2 * targets - 1)).mean()

    loss = LossWarmupWrapper(Hinge(), SmoothAPLoss(1), warmup_steps=5)
    logits, targets = batch()
    assert loss(logits, targets).item() == Hinge()(logits, targets).item()
    focal = LossWarmupWrapper(SoftmaxFocalLoss(), SmoothAPLoss(3), warmup_steps=5)
    rows, classes = torch.randn(24, 3), torch.arange(24) % 3
    assert focal(rows, classes).item() == SoftmaxFocalLoss()(rows, classes).item()


def test_class_made_from_a_torch_loss_is_called_by_its_own_forward() -> None:
    class Halved(nn.BCEWithLogitsLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return super().forward(input, target.reshape(input.shape).to(input.dtype)) / 2

    logits, targets = batch()
    loss = LossWarmupWrapper(Halved(), SmoothAPLoss(1), warmup_steps=5)
    assert loss(logits, targets).item() == Halved()(logits, targets).item()


# Weights and masks are never dropped


def test_sample_weight_reaches_both_losses() -> None:
    loss = LossWarmupWrapper(SigmoidFocalLoss(), SmoothAPLoss(1, queue_size=0), warmup_steps=1, blend_steps=1)
    weight = torch.rand(24)
    for _ in range(3):
        logits, targets = batch()
        share = loss.main_weight
        got = loss(logits, targets, sample_weight=weight).item()
        expected = (1 - share) * SigmoidFocalLoss()(logits, targets, sample_weight=weight)
        expected = expected + share * SmoothAPLoss(1, queue_size=0)(logits, targets, sample_weight=weight)
        assert got == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("step", [0, 1])
def test_sample_weight_that_a_loss_cannot_take_is_refused(step: int) -> None:
    loss = wrapper(warmup_steps=1, blend_steps=1)
    loss.step = step
    with pytest.raises(TypeError, match="sample_weight"):
        loss(*batch(), sample_weight=torch.ones(24))
    assert loss.step == step


def test_sample_weight_of_a_main_loss_that_cannot_take_it_is_refused_from_the_start() -> None:
    loss = LossWarmupWrapper(SigmoidFocalLoss(), nn.BCEWithLogitsLoss(), warmup_steps=5)
    with pytest.raises(TypeError, match="takes no sample_weight"):
        loss(*batch(), sample_weight=torch.ones(24))
    assert loss.step == 0


def test_after_the_switch_only_the_main_loss_has_to_take_sample_weight() -> None:
    loss, main = wrapper(warmup_steps=1, blend_steps=1), SmoothAPLoss(1, queue_size=64)
    loss.step = 2
    (logits, targets), weight = batch(), torch.rand(24)
    assert loss(logits, targets, sample_weight=weight).item() == main(logits, targets, sample_weight=weight).item()
    mixed = wrapper(warmup_steps=1, blend_steps=1, final_main_weight=0.5)
    mixed.step = 2
    with pytest.raises(TypeError, match="takes no sample_weight"):
        mixed(logits, targets, sample_weight=weight)


def test_other_losses_get_keywords_only_where_they_are_given() -> None:
    class Recording(nn.Module):
        has_threshold = True

        def forward(self, logits: Tensor, targets: Tensor, **options: Tensor) -> Tensor:
            self.options = options
            return logits.sum()

    class Plain(nn.Module):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            return logits.sum()

    loss, ones = LossWarmupWrapper(Recording(), SmoothAPLoss(1), warmup_steps=5), torch.ones(24)
    loss(*batch())
    assert loss.warmup_loss.options == {}
    loss(*batch(), sample_weight=ones, iid_mask=ones > 0)
    assert set(loss.warmup_loss.options) == {"sample_weight", "iid_mask"}
    plain = LossWarmupWrapper(Plain(), SmoothAPLoss(1), warmup_steps=5)
    with pytest.raises(TypeError, match="sample_weight"):
        plain(*batch(), sample_weight=ones)
    with pytest.raises(TypeError, match="neither loss has a threshold"):
        plain(*batch(), iid_mask=ones > 0)
    assert plain.step == 0


def test_iid_mask_goes_to_the_loss_that_has_a_threshold() -> None:
    main = RecallAtQuantileLoss(1, 0.25, queue_size=0)
    loss = LossWarmupWrapper(nn.BCEWithLogitsLoss(), main, warmup_steps=1)
    mask = torch.arange(24) % 5 != 1
    logits, targets = batch()
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], targets.float()).item()
    assert loss(logits, targets, iid_mask=mask).item() == pytest.approx(expected, abs=1e-6)
    assert loss(logits, targets, iid_mask=mask).item() == main(logits, targets, iid_mask=mask).item()


def test_refused_input_is_not_counted() -> None:
    loss = wrapper(warmup_steps=0)
    with pytest.raises(ValueError, match="targets"):
        loss(torch.randn(24, 1), torch.zeros(23))
    assert loss.step == 0
    loss = wrapper()
    with pytest.raises(ValueError, match="targets"):
        loss(torch.randn(24, 1), torch.zeros(23))
    assert loss.step == 0


@pytest.mark.parametrize("wrong", [2, -1, 0.5])
def test_wrong_labels_are_refused_in_warmup_too(wrong: float) -> None:
    loss = wrapper()
    with pytest.raises(ValueError, match=str(wrong)):
        loss(torch.randn(24, 1), torch.full((24,), wrong))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 3])
def test_torch_loss_of_many_half_rows(dtype: torch.dtype, classes: int) -> None:
    logits = (3 * torch.randn(200_000, classes)).to(dtype)
    targets = torch.randint(max(2, classes), (200_000,))
    loss = nn.BCEWithLogitsLoss() if classes == 1 else nn.CrossEntropyLoss()
    wrapper = LossWarmupWrapper(loss, SmoothAPLoss(classes, queue_size=0), warmup_steps=9)
    half, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found, expected = wrapper(half, targets), wrapper(exact, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (2.0**16 * found).backward()  # as a scaler does
    (2.0**16 * expected).backward()
    torch.testing.assert_close(half.grad, exact.grad.to(dtype), rtol=2e-2, atol=1e-7)  # float16 ends at 6e-8


@pytest.mark.parametrize("of_module", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_class_weights_of_any_precision_meet_logits_of_any(of_module: torch.dtype) -> None:
    logits, targets, weight = torch.randn(8, 3).bfloat16(), torch.arange(8) % 3, torch.tensor([1.0, 2.0, 4.0])
    expected = F.cross_entropy(logits.double(), targets, weight.double()).item()
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        wrapper = LossWarmupWrapper(nn.CrossEntropyLoss(weight), SmoothAPLoss(3, queue_size=0), warmup_steps=1)
        assert wrapper.to(of_module)(logits.to(dtype), targets).item() == pytest.approx(expected, rel=1e-5)


def test_one_number_holds_no_classes() -> None:
    loss = LossWarmupWrapper(nn.CrossEntropyLoss(), SmoothAPLoss(3), warmup_steps=1)
    with pytest.raises(ValueError, match="logits"):
        loss(torch.tensor(1.0), torch.tensor(1))
    assert loss.step == 0
