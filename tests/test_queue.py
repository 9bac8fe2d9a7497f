"""The memory queue: it changes the variance of the gradient, never its scale, and is never poisoned or flushed."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rareloss import PAUCAtBudgetLoss, RecallAtQuantileLoss, SmoothAPLoss
from test_pool import LOSSES, every_loss, slope_of

pytestmark = pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning")


def batch(rows: int = 16, classes: int = 1) -> tuple[Tensor, Tensor]:
    logits = torch.randn(rows, classes, dtype=torch.float64)
    return logits, (torch.arange(rows) % 4 == 0).long() if classes == 1 else torch.arange(rows) % classes


def fill(loss: nn.Module, *batches: tuple[Tensor, Tensor], **options: Any) -> None:
    for logits, targets in batches:
        loss(logits, targets, **options)


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("queue_size", [10, 24, 40, 1000])
def test_value_is_that_of_the_pool_and_gradient_is_scaled_by_the_live_share(
    name: str, classes: int, queue_size: int
) -> None:
    batches = [batch(16, classes) for _ in range(3)]
    loss = LOSSES[name](classes, queue_size=queue_size, reduction="none").double()
    fill(loss, *batches[:2])
    value, slope = slope_of(loss, *batches[2])
    kept = min(queue_size, 32)
    logits = torch.cat([batches[2][0], torch.cat([batches[0][0], batches[1][0]])[32 - kept :]])
    targets = torch.cat([batches[2][1], torch.cat([batches[0][1], batches[1][1]])[32 - kept :]])
    whole = LOSSES[name](classes, queue_size=0, reduction="none")
    expected, expected_slope = slope_of(whole, logits, targets)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, expected_slope[:16] * (16 + kept) / 16, rtol=1e-6, atol=1e-9)


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_a_live_share_far_below_one_percent(name: str, dtype: torch.dtype, weighted: bool) -> None:
    rows = 3000
    logits, targets = torch.randn(rows, dtype=dtype), (torch.arange(rows) % 4 == 0).long()
    weight = torch.rand(rows, dtype=dtype) + 0.1 if weighted else torch.ones(rows, dtype=dtype)
    given = {"sample_weight": weight[4:]} if weighted else {}
    loss = LOSSES[name](1, queue_size=rows - 4, temperature=0.3).to(dtype)
    loss(logits[4:], targets[4:], **given)
    given = {"sample_weight": weight[:4]} if weighted else {}
    _, slope = slope_of(loss, logits[:4], targets[:4], **given)
    whole = LOSSES[name](1, queue_size=0, temperature=0.3)
    _, expected = slope_of(whole, logits.double(), targets, sample_weight=weight.double())
    expected = expected[:4] / (weight[:4].sum() / weight.sum())
    assert (slope - expected).norm() <= (1e-4 if dtype == torch.float32 else 1e-8) * expected.norm()


@every_loss
def test_live_share_is_of_weight_and_by_class(name: str) -> None:
    loss = LOSSES[name](2, queue_size=64, reduction="none").double()
    whole = LOSSES[name](2, queue_size=0, reduction="none")
    remembered, live = torch.randn(32, 2, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)
    labels = torch.stack([torch.arange(48) % 3 == 0, torch.arange(48) % 4 == 0], dim=1).long()
    weight = torch.rand(48, 2, dtype=torch.float64) + 0.1
    labels[40:, 1] = -100
    loss(remembered, labels[16:], sample_weight=weight[16:])
    value, slope = slope_of(loss, live, labels[:16], sample_weight=weight[:16])
    expected, expected_slope = slope_of(whole, torch.cat([live, remembered]), labels, sample_weight=weight)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    share = (weight[:16] * (labels[:16] >= 0)).sum(0) / (weight * (labels >= 0)).sum(0)
    torch.testing.assert_close(slope, expected_slope[:16] / share, rtol=1e-6, atol=1e-9)


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_a_few_live_rows_among_many_remembered_get_a_gradient(name: str, weighted: bool) -> None:
    # A tenth of a percent of the pool is live: the gradient is that of the whole pool, a thousand times as large.
    (remembered, labels), (live, own) = batch(4000), batch(4)
    weight = torch.rand(4004, dtype=torch.float64) + 0.1 if weighted else torch.ones(4004, dtype=torch.float64)
    loss = LOSSES[name](1, queue_size=4000, reduction="none").double()
    whole = LOSSES[name](1, queue_size=0, reduction="none")
    of_queue, of_live, of_all = (
        {"sample_weight": part} if weighted else {} for part in (weight[4:], weight[:4], weight)
    )
    loss(remembered, labels, **of_queue)
    value, slope = slope_of(loss, live, own, **of_live)
    expected, expected_slope = slope_of(whole, torch.cat([live, remembered]), torch.cat([own, labels]), **of_all)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    assert expected_slope[:4].abs().amax() > 0
    share = weight[:4].sum() / weight.sum()
    torch.testing.assert_close(slope, expected_slope[:4] / share, rtol=1e-6, atol=1e-9)


@every_loss
def test_class_without_live_rows_keeps_its_value_and_gets_no_gradient(name: str) -> None:
    loss = LOSSES[name](2, queue_size=64, reduction="none")
    labels = (torch.arange(64).reshape(32, 2) % 5 == 0).long()
    loss(torch.randn(32, 2), labels)
    absent = labels.clone()
    absent[:, 1] = -100
    value, slope = slope_of(loss, torch.randn(32, 2), absent)
    assert torch.isfinite(value).all()
    assert slope[:, 0].abs().sum() > 0
    assert slope[:, 1].abs().sum() == 0


@every_loss
def test_first_call_equals_no_queue(name: str) -> None:
    logits, targets = batch(40)
    value, slope = slope_of(LOSSES[name](1, queue_size=64), logits, targets)
    expected, expected_slope = slope_of(LOSSES[name](1, queue_size=0), logits, targets)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, expected_slope)


EVIDENCE = {
    "ap": lambda queue_size: SmoothAPLoss(1, queue_size, temperature=0.3),
    "recall_top": lambda queue_size: RecallAtQuantileLoss(1, 0.05, queue_size=queue_size, temperature=0.3),
    "pauc": lambda queue_size: PAUCAtBudgetLoss(1, beta=0.1, queue_size=queue_size),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVIDENCE)
def test_mean_gradient_equals_that_of_an_all_live_pool(name: str) -> None:
    # 200 draws of a batch of 256 and a queue of 2048, 5 % positives shifted by 1.5, a linear scorer.
    scorer = torch.tensor([0.8, 0.3, -0.2, 0.0])
    shift = torch.tensor([1.5, 0.0, 0.0, 0.0])
    differences, with_queue, alone = [], [], []
    loss, pooled, single = EVIDENCE[name](2048), EVIDENCE[name](0), EVIDENCE[name](0)
    for _ in range(200):
        targets = (torch.rand(2304) < 0.05).long()
        inputs = torch.randn(2304, 4) + shift * targets[:, None]
        logits = inputs @ scorer
        loss.reset_queue()
        loss(logits[256:], targets[256:])
        _, live = slope_of(loss, logits[:256], targets[:256])
        _, whole = slope_of(pooled, logits, targets)
        _, batch_only = slope_of(single, logits[:256], targets[:256])
        differences.append(live @ inputs[:256] - whole @ inputs)
        with_queue.append(live.norm())
        alone.append(batch_only.norm())
    difference = torch.stack(differences).double()
    error = difference.std(0) / 200**0.5
    assert (difference.mean(0).abs() <= 3 * error).all(), (difference.mean(0), error)
    ratio = torch.stack(with_queue).mean() / torch.stack(alone).mean()
    assert 1 / 1.5 <= ratio.item() <= 1.5


@every_loss
def test_padding_does_not_flush_the_queue(name: str) -> None:
    loss = LOSSES[name](1, queue_size=20).double()
    kept: list[Tensor] = []
    for step in range(12):
        logits, targets = batch(16)
        padded, weight = targets.clone(), torch.ones(16)
        if step % 2:
            padded[2:] = -100
        else:
            weight[2:] = 0.0
        loss(logits, padded, sample_weight=weight)
        kept.append(torch.stack([logits[:2, 0], targets[:2].double()], dim=1))
    rows = torch.cat(kept)[-20:]
    logits, targets = batch(16)
    said = loss.diagnose(logits, targets)
    assert said["rows_pool"].item() == 16 + 20
    whole = LOSSES[name](1, queue_size=0)
    expected = whole(torch.cat([logits[:, 0], rows[:, 0]]), torch.cat([targets, rows[:, 1].long()]))
    assert loss(logits, targets).item() == pytest.approx(expected.item(), abs=1e-9)


@every_loss
@pytest.mark.parametrize("held", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("classes", [1, 3])
def test_batch_that_is_not_finite_leaves_no_trace(name: str, held: float, classes: int) -> None:
    loss = LOSSES[name](classes, queue_size=64)
    fill(loss, batch(16, classes), batch(16, classes))
    twin = copy.deepcopy(loss)
    logits, targets = batch(16, classes)
    assert torch.isnan(loss(torch.full_like(logits, held), targets))
    for key, buffer in twin.state_dict().items():
        assert torch.equal(loss.state_dict()[key], buffer)
    logits, targets = batch(16, classes)
    assert loss(logits, targets).item() == twin(logits, targets).item()


@every_loss
def test_only_the_finite_rows_of_a_batch_are_remembered(name: str) -> None:
    loss, twin = LOSSES[name](1, queue_size=64), LOSSES[name](1, queue_size=64)
    logits, targets = batch(16)
    broken = logits.clone()
    broken[5] = float("nan")
    good = torch.arange(16) != 5
    assert torch.isnan(loss(broken, targets))
    twin(logits[good], targets[good])
    for key, buffer in twin.state_dict().items():
        assert torch.equal(loss.state_dict()[key], buffer)


@every_loss
def test_absent_label_of_one_class_is_remembered_as_absent(name: str) -> None:
    loss = LOSSES[name](2, queue_size=64, reduction="none").double()
    whole = LOSSES[name](2, queue_size=0, reduction="none")
    first, labels = torch.randn(32, 2, dtype=torch.float64), (torch.arange(96).reshape(48, 2) % 5 == 0).long()
    labels[:4, 1] = -100
    held = first.clone()
    held[:4, 1] = float("nan")
    loss(held, labels[:32])
    live = torch.randn(16, 2, dtype=torch.float64)
    torch.testing.assert_close(
        loss(live, labels[32:]), whole(torch.cat([live, first]), labels[torch.arange(48).roll(16)])
    )


@every_loss
def test_infinite_log_odds_of_an_absent_class_poison_no_later_batch(name: str) -> None:
    loss, spared = (LOSSES[name](3, queue_size=16) for _ in range(2))
    logits, targets, weight = torch.randn(4, 3), torch.tensor([0, 2, 1, 0]), torch.ones(4, 3)
    weight[1, 0] = 0.0
    for each, lowest in ((loss, -torch.inf), (spared, -50.0)):
        logits[1, 0] = lowest
        each(logits, targets, sample_weight=weight)
    later, classes = torch.randn(6, 3), torch.arange(6) % 3
    value, slope = slope_of(loss, later, classes)
    expected, expected_slope = slope_of(spared, later, classes)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, expected_slope)


@pytest.mark.parametrize("name", ["recall_top", "recall_fpr", "pauc"])
def test_iid_flags_are_remembered(name: str) -> None:
    loss = LOSSES[name](1, queue_size=64).double()
    whole = LOSSES[name](1, queue_size=0)
    (first, labels), (second, more) = batch(32), batch(32)
    iid = torch.arange(64) % 5 != 1
    loss(first, labels, iid_mask=iid[:32])
    got = loss(second, more, iid_mask=iid[32:])
    expected = whole(torch.cat([second, first]), torch.cat([more, labels]), iid_mask=iid.roll(32))
    assert got.item() == pytest.approx(expected.item(), abs=1e-9)


@every_loss
def test_batch_larger_than_the_queue_leaves_its_last_rows(name: str) -> None:
    loss, twin = LOSSES[name](1, queue_size=12).double(), LOSSES[name](1, queue_size=12).double()
    logits, targets = batch(40)
    loss(logits, targets)
    twin(logits[-12:], targets[-12:])
    logits, targets = batch(16)
    assert loss(logits, targets).item() == pytest.approx(twin(logits, targets).item(), abs=1e-12)


@every_loss
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(name: str, steps: int) -> None:
    def make() -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Linear(4, 3)
        return model, LOSSES[name](3, queue_size=40), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    inputs, targets = torch.randn(8, 16, 4), torch.arange(128).reshape(8, 16) % 3

    def train(parts: Any, first: int, last: int) -> list[float]:
        model, loss, optimiser = parts
        seen = []
        for step in range(first, last):
            optimiser.zero_grad()
            value = loss(model(inputs[step]), targets[step])
            value.backward()
            optimiser.step()
            seen.append(value.item())
        return seen

    straight = make()
    expected = train(straight, 0, 8)
    interrupted = make()
    train(interrupted, 0, steps)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in interrupted], file)
    file.seek(0)
    resumed = make()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert train(resumed, steps, 8) == expected[steps:]
    for part, other in zip(resumed[:2], straight[:2], strict=True):
        for key, buffer in part.state_dict().items():
            assert torch.equal(buffer, other.state_dict()[key])


@every_loss
def test_eval_neither_reads_nor_writes_unless_asked(name: str) -> None:
    logits, targets = batch(40)
    loss = LOSSES[name](1, queue_size=64)
    fill(loss, batch(40))
    before = copy.deepcopy(loss.state_dict())
    assert loss.eval()(logits, targets).item() == LOSSES[name](1, queue_size=0).eval()(logits, targets).item()
    for key, buffer in loss.state_dict().items():
        assert torch.equal(buffer, before[key])
    asked, trained = (LOSSES[name](1, queue_size=64, queue_in_eval=flag) for flag in (True, False))
    first, second = batch(40), batch(40)
    fill(asked, first)
    fill(trained, first)
    asked.eval()
    before = copy.deepcopy(asked.state_dict())
    assert asked(*second).item() == trained(*second).item()
    for key, buffer in asked.state_dict().items():
        assert torch.equal(buffer, before[key])


@every_loss
def test_reset_forgets_every_row(name: str) -> None:
    loss, fresh = LOSSES[name](1, queue_size=64), LOSSES[name](1, queue_size=64)
    fill(loss, batch(40), batch(40))
    loss.reset_queue()
    logits, targets = batch(40)
    assert loss(logits, targets).item() == fresh(logits, targets).item()
    for key, buffer in fresh.state_dict().items():
        assert torch.equal(loss.state_dict()[key], buffer)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_are_remembered_in_float32_at_least(name: str, dtype: torch.dtype) -> None:
    # A module moved to half precision keeps its queue, so that near scores do not become ties.
    loss, twin = LOSSES[name](1, queue_size=64).to(dtype), LOSSES[name](1, queue_size=64)
    first, second = batch(40), batch(40)
    for module in (loss, twin):
        fill(module, (first[0].float(), first[1]))
    assert loss(second[0].float(), second[1]).item() == twin(second[0].float(), second[1]).item()
    assert LOSSES[name](1, queue_size=64).to(dtype)(second[0].to(dtype), second[1]).dtype == torch.float32


@every_loss
def test_remembered_rows_keep_no_graph(name: str) -> None:
    loss = LOSSES[name](1, queue_size=64)
    for _ in range(3):
        logits, targets = batch(40)
        logits.requires_grad_()
        loss(logits, targets).backward()
    assert not any(buffer.requires_grad for buffer in loss.state_dict().values())


@every_loss
def test_two_calls_before_one_backward(name: str) -> None:
    # Gradient accumulation and double heads call a loss again before backward: the rows that were read stay as read.
    loss = LOSSES[name](1, queue_size=64)
    fill(loss, batch(40))
    twin = copy.deepcopy(loss)
    first, second = batch(40), batch(40)
    leaves = [logits.clone().requires_grad_() for logits, _ in (first, second)]
    (loss(leaves[0], first[1]) + loss(leaves[1], second[1])).backward()
    for leaf, (logits, targets) in zip(leaves, (first, second), strict=True):
        torch.testing.assert_close(leaf.grad, slope_of(twin, logits, targets)[1])


@every_loss
def test_state_of_another_queue_size_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        LOSSES[name](1, queue_size=32).load_state_dict(LOSSES[name](1, queue_size=64).state_dict())


@every_loss
def test_empty_batch_changes_nothing(name: str) -> None:
    loss = LOSSES[name](1, queue_size=64)
    fill(loss, batch(40))
    before = copy.deepcopy(loss.state_dict())
    value, slope = slope_of(loss, torch.zeros(0, 1), torch.zeros(0))
    assert slope.shape == (0, 1)
    assert 0 <= value.item() <= 1
    for key, buffer in loss.state_dict().items():
        assert torch.equal(buffer, before[key])


@every_loss
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "pointer",
    [torch.tensor(20), torch.tensor(-1), torch.tensor(10**12), torch.tensor([1, 2]), torch.tensor(1.5)],
)
def test_pointer_outside_of_the_queue_is_refused_when_it_is_loaded(name: str, pointer: Tensor, strict: bool) -> None:
    loss = LOSSES[name](1, queue_size=20)
    loss(*batch())
    before = copy.deepcopy(loss.state_dict())
    saved = {**LOSSES[name](1, queue_size=20).state_dict(), "queue.pointer": pointer}
    with pytest.raises(RuntimeError, match=r"queue.pointer=.*, none of its 20 slots; leave the keys"):
        loss.load_state_dict(saved, strict=strict)
    for key, buffer in loss.state_dict().items():
        assert torch.equal(buffer, before[key])


class Network(nn.Module):
    """A network that holds its loss, as Lightning's and transformers' do."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.scores = nn.Linear(4, 1)
        self.loss = loss

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.loss(self.scores(inputs), targets)
        return value


@every_loss
def test_queue_that_does_not_persist_is_in_no_checkpoint(name: str) -> None:
    network = Network(LOSSES[name](1, queue_size=32, persistent_queue=False))
    assert network.loss.state_dict() == {}
    network(torch.randn(16, 4), torch.arange(16) % 4 == 0).backward()
    assert network.loss.queue.weight.count_nonzero() == 16
    assert list(network.state_dict()) == ["scores.weight", "scores.bias"]
    trained = Network(nn.BCEWithLogitsLoss()).state_dict()
    network.load_state_dict(trained)
    assert network.loss.queue.weight.count_nonzero() == 16
    file = io.BytesIO()
    torch.save(Network(LOSSES[name](1000, persistent_queue=False)).state_dict(), file)
    assert file.tell() < 2**14
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*loss.queue.scores"):
        Network(LOSSES[name](1, queue_size=32)).load_state_dict(trained)


@every_loss
def test_queue_that_does_not_persist_moves_and_resets_like_any_other(name: str) -> None:
    loss = LOSSES[name](1, queue_size=32, persistent_queue=False)
    loss(*batch())
    assert loss.double().queue.scores.dtype == torch.float64
    assert copy.deepcopy(loss).queue.weight.count_nonzero() == 16
    loss.reset_queue()
    assert loss.queue.weight.count_nonzero() == 0


@every_loss
def test_queue_of_gigabytes_is_allocated_when_rows_come_and_says_its_size(name: str) -> None:
    loss = LOSSES[name](100_000)
    assert sum(buffer.nbytes for buffer in loss.buffers()) < 2**10
    assert "14,063.4 MiB when first used" in repr(loss)
    with torch.no_grad():  # no training call
        loss(torch.randn(2, 100_000), torch.tensor([3, 5]))
    assert not loss.queue.is_allocated
    smaller = LOSSES[name](20_000, queue_size=2000)
    assert not smaller.queue.is_allocated
    smaller(torch.randn(2, 20_000), torch.tensor([3, 5]))
    assert smaller.queue.is_allocated
    assert "when first used" not in repr(smaller)
