"""Cases that every rank of a real gloo group runs, and the data and losses that they share."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)
from rareloss.distributed import gather_rows, sum_over_ranks, world_size

Case = Callable[[int, int], None]
CASES: dict[str, Case] = {}
FEATURES = 4


def case(function: Case) -> Case:
    """Register a case; every rank runs it, and raises where something is wrong."""
    CASES[function.__name__] = function
    return function


def share(rank: int, ranks: int, rows: int, sizes: str) -> slice:
    """Return the rows of a rank: of alike size, ragged, or with the last rank empty (the first, where it is alone)."""
    cuts = {
        "even": [rows * r // ranks for r in range(ranks + 1)],
        "ragged": [rows * r * (r + 1) // (ranks * (ranks + 1)) for r in range(ranks + 1)],
        "one empty": [rows * min(r, ranks - 1) // max(ranks - 1, 1) for r in range(ranks + 1)],
    }[sizes]
    cuts[-1] = rows
    return slice(cuts[rank], cuts[rank + 1])


def data(step: int, rows: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same inputs, targets and weights on every rank."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    weight = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    weight[::11] = 0.0
    targets = torch.randint(0, 3, (rows,), generator=generator)
    if kind == "labels":
        targets = (torch.rand(rows, 3, generator=generator) < 0.3).long()
        targets[1, 2] = -100
    elif kind == "binary":
        targets = (targets == 1).long()
    targets[::7] = -100
    return inputs, targets, weight


def scorer(kind: str) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(FEATURES, 1 if kind == "binary" else 3, dtype=torch.float64)


def compare(
    loss: nn.Module,
    whole: nn.Module,
    rank: int,
    ranks: int,
    kind: str,
    *,
    weighted: bool = True,
    mean_value: bool = False,
    steps: int = 3,
) -> None:
    """Train a few steps on the ranks' shares and on the whole batch, and compare the gradients."""
    model, alone = DistributedDataParallel(scorer(kind)), scorer(kind)
    for step in range(steps):
        sizes = ("even", "ragged", "one empty")[step % 3]
        inputs, targets, weight = data(step, 36, kind)
        mine = share(rank, ranks, 36, sizes)
        options = {"sample_weight": weight[mine]} if weighted else {}
        model.zero_grad()
        value = loss(model(inputs[mine]), targets[mine], **options)
        value.sum().backward()
        alone.zero_grad()
        expected = whole(alone(inputs), targets, **({"sample_weight": weight} if weighted else {}))
        expected.sum().backward()
        for parameter, other in zip(model.module.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(
                parameter.grad,
                other.grad,
                rtol=1e-8,
                atol=1e-11,
                msg=lambda said: f"step {step}, {sizes}: {said}",  # noqa: B023
            )
        shown = sum_over_ranks(value.detach()) / ranks if mean_value else value.detach()
        torch.testing.assert_close(shown, expected.detach(), rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            for parameter, other in zip(model.module.parameters(), alone.parameters(), strict=True):
                parameter -= 0.5 * parameter.grad
                other -= 0.5 * other.grad
    for key, buffer in whole.state_dict().items():
        torch.testing.assert_close(loss.state_dict()[key], buffer, rtol=1e-9, atol=1e-12)


def ranking_losses(classes: int, **options: Any) -> list[nn.Module]:
    return [
        SmoothAPLoss(classes, **options),
        RecallAtQuantileLoss(classes, 0.23, **options),
        RecallAtQuantileLoss(classes, 0.17, "negatives", **options),
        PAUCAtBudgetLoss(classes, 0.05, 0.4, **options),
    ]


def compare_ranking(rank: int, ranks: int, queue_size: int) -> None:
    for kind in ("binary", "indices", "labels"):
        classes = 1 if kind == "binary" else 3
        for reduction in ("mean", "none") if kind == "indices" else ("mean",):
            pairs = zip(
                ranking_losses(classes, queue_size=queue_size, reduction=reduction),
                ranking_losses(classes, queue_size=queue_size, reduction=reduction, gather_distributed=False),
                strict=True,
            )
            for loss, whole in pairs:
                compare(loss.double(), whole.double(), rank, ranks, kind)


@case
def ranking_losses_without_queue(rank: int, ranks: int) -> None:
    compare_ranking(rank, ranks, queue_size=0)


@case
def ranking_losses_with_queue(rank: int, ranks: int) -> None:
    compare_ranking(rank, ranks, queue_size=50)


@case
def focal_losses(rank: int, ranks: int) -> None:
    for reduction in ("mean", "mean_positive", "sum"):
        for kind in ("binary", "labels", "indices"):
            make = SoftmaxFocalLoss if kind == "indices" else SigmoidFocalLoss
            # In eval mode a loss looks at its own rows alone: those of the whole batch here.
            compare(make(reduction=reduction), make(reduction=reduction).eval(), rank, ranks, kind, mean_value=True)


@case
def torch_losses_in_warmup(rank: int, ranks: int) -> None:
    class Whole(nn.Module):
        """What torch computes on the rows of the whole batch that are not ignored."""

        def __init__(self, plain: nn.Module) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            kept = targets != -100
            if isinstance(self.plain, nn.CrossEntropyLoss):
                return self.plain(logits[kept], targets[kept])
            return self.plain(logits.reshape(targets.shape)[kept], targets[kept].double())

    class_weight = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    for reduction in ("mean", "sum"):
        for kind, plain in (
            ("binary", nn.BCEWithLogitsLoss(reduction=reduction)),
            ("binary", nn.BCEWithLogitsLoss(pos_weight=class_weight[1:2], reduction=reduction)),
            ("labels", nn.BCEWithLogitsLoss(reduction=reduction)),
            ("indices", nn.CrossEntropyLoss(reduction=reduction)),
            ("indices", nn.CrossEntropyLoss(weight=class_weight, label_smoothing=0.1, reduction=reduction)),
        ):
            main = SmoothAPLoss(1 if kind == "binary" else 3)
            loss = LossWarmupWrapper(plain, main, warmup_steps=100)
            model, alone = DistributedDataParallel(scorer(kind)), scorer(kind)
            for step, sizes in enumerate(("even", "ragged", "one empty")):
                inputs, targets, _ = data(step, 36, kind)
                mine = share(rank, ranks, 36, sizes)
                model.zero_grad()
                alone.zero_grad()
                loss(model(inputs[mine]), targets[mine]).backward()
                Whole(plain)(alone(inputs), targets).backward()
                for parameter, other in zip(model.module.parameters(), alone.parameters(), strict=True):
                    torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-8, atol=1e-11)


@case
def blend_and_switch(rank: int, ranks: int) -> None:
    def make(gather: bool | None) -> LossWarmupWrapper:
        options: dict[str, Any] = {"queue_size": 50, "gather_distributed": gather}
        return LossWarmupWrapper(
            SmoothAPLoss(3, **options), RecallAtQuantileLoss(3, 0.3, **options), warmup_steps=2, blend_steps=2
        ).double()

    compare(make(None), make(False), rank, ranks, "indices", steps=6)


@case
def gathered_rows_and_their_gradient(rank: int, ranks: int) -> None:
    for sizes in ("even", "ragged", "one empty"):
        for trailing, dtype in (((), torch.float64), ((3,), torch.float32), ((2, 2), torch.float64)):
            everything = torch.arange(36 * 4, dtype=dtype)[: 36 * max(1, torch.Size(trailing).numel())]
            everything = everything.reshape(36, *trailing)
            mine = share(rank, ranks, 36, sizes)
            leaf = everything[mine].clone().requires_grad_()
            gathered = gather_rows(leaf)
            assert torch.equal(gathered, everything)
            coefficients = torch.cos(everything)
            (gathered * coefficients).sum().backward()
            torch.testing.assert_close(leaf.grad, ranks * coefficients[mine])
    assert torch.equal(gather_rows(torch.tensor([rank])), torch.arange(ranks))
    assert torch.equal(gather_rows(torch.tensor([rank % 2 == 0])), torch.arange(ranks) % 2 == 0)
    assert gather_rows(torch.zeros(0, 5)).shape == (0, 5)
    low = torch.full((rank + 1, 2), float(rank), dtype=torch.bfloat16)
    expected = torch.cat([torch.full((r + 1, 2), float(r), dtype=torch.bfloat16) for r in range(ranks)])
    assert torch.equal(gather_rows(low), expected)
    assert world_size() == ranks


@case
def rows_that_do_not_fit_raise_on_every_rank(rank: int, ranks: int) -> None:
    if ranks == 1:
        return
    with pytest.raises(ValueError, match="rank"):
        gather_rows(torch.zeros(2, 3 if rank == 0 else 4))
    with pytest.raises(ValueError, match="rank"):
        gather_rows(torch.zeros(2, 3, dtype=torch.float64 if rank == 0 else torch.float32))
    assert gather_rows(torch.zeros(2, 3)).shape == (2 * ranks, 3)


@case
def eval_on_one_rank_alone_does_not_wait_for_the_others(rank: int, ranks: int) -> None:
    if rank == 0:
        logits, targets = torch.randn(24, 3), torch.arange(24) % 3
        losses: list[nn.Module] = [
            *ranking_losses(3, queue_size=20),
            SoftmaxFocalLoss(),
            LossWarmupWrapper(nn.CrossEntropyLoss(), SmoothAPLoss(3), warmup_steps=10),
        ]
        for loss in losses:
            assert torch.isfinite(loss.eval()(logits, targets))
        assert torch.isfinite(SigmoidFocalLoss().eval()(logits, torch.ones(24, 3)))
        for loss in ranking_losses(3, queue_size=20):
            assert torch.isfinite(loss.eval().diagnose(logits, targets)["soft"]).all()
        for loss in ranking_losses(3, queue_size=20, gather_distributed=False):
            assert torch.isfinite(loss(logits, targets))
    dist.barrier()


@case
def gathering_can_be_asked_for_in_eval(rank: int, ranks: int) -> None:
    inputs, targets, weight = data(0, 36, "indices")
    logits = scorer("indices")(inputs).detach()
    mine = share(rank, ranks, 36, "ragged")
    for loss, whole in zip(
        ranking_losses(3, gather_distributed=True), ranking_losses(3, gather_distributed=False), strict=True
    ):
        got = loss.eval()(logits[mine], targets[mine], sample_weight=weight[mine])
        torch.testing.assert_close(got, whole.eval()(logits, targets, sample_weight=weight))


@case
def row_that_is_not_finite_on_one_rank_shows_on_all_and_is_not_remembered(rank: int, ranks: int) -> None:
    for loss in ranking_losses(1, queue_size=200):
        targets = (torch.arange(12) % 3 == 0).long()
        loss(torch.randn(12), targets)
        logits = torch.randn(12)
        if rank == ranks - 1:
            logits[:] = torch.nan
        assert torch.isnan(loss(logits, targets))
        said = loss.diagnose(torch.randn(12), targets)
        assert said["rows_pool"].item() == 12 * (ranks + (ranks - 1) + ranks)
        assert torch.isfinite(loss(torch.randn(12), targets))


@case
def thresholds_count_the_iid_rows_of_all_ranks(rank: int, ranks: int) -> None:
    inputs, targets, weight = data(0, 36, "binary")
    logits = scorer("binary")(inputs).detach()
    iid = torch.arange(36) % 4 != 1
    mine = share(rank, ranks, 36, "ragged")
    for loss, whole in zip(
        ranking_losses(1, queue_size=0)[1:], ranking_losses(1, queue_size=0, gather_distributed=False)[1:], strict=True
    ):
        got = loss(logits[mine], targets[mine], sample_weight=weight[mine], iid_mask=iid[mine])
        torch.testing.assert_close(got, whole(logits, targets, sample_weight=weight, iid_mask=iid))


@case
def bad_input_on_one_rank_raises_on_all(rank: int, ranks: int) -> None:
    losses: list[nn.Module] = [*ranking_losses(3, queue_size=20), SigmoidFocalLoss(), SoftmaxFocalLoss()]
    losses += [
        SigmoidFocalLoss(reduction="sum"),
        LossWarmupWrapper(nn.CrossEntropyLoss(reduction="sum"), SmoothAPLoss(3, queue_size=20), warmup_steps=100),
        LossWarmupWrapper(nn.CrossEntropyLoss(), SmoothAPLoss(3, queue_size=20), warmup_steps=100),
        LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(3, queue_size=20), warmup_steps=100),
        LossWarmupWrapper(SoftmaxFocalLoss(), SmoothAPLoss(3, queue_size=20), warmup_steps=1, blend_steps=100),
    ]
    for loss in losses:
        by_label = isinstance(loss, SigmoidFocalLoss) or isinstance(
            getattr(loss, "warmup_loss", None), nn.BCEWithLogitsLoss
        )
        logits = torch.randn(12, 3)
        targets = torch.arange(36).reshape(12, 3) % 4 == 0 if by_label else torch.arange(12) % 3
        targets = targets.long()
        loss(logits, targets)
        before = copy.deepcopy(loss.state_dict())
        wrong: list[tuple[Tensor, Tensor]] = [
            (logits, targets[:5]),
            (logits, targets + 9),
            (logits.long(), targets),
        ]
        for bad_rank in {0, ranks - 1}:
            for bad_logits, bad_targets in wrong:
                given = (bad_logits, bad_targets) if rank == bad_rank else (logits, targets)
                with pytest.raises((TypeError, ValueError)):
                    loss(*given)
        for key, value in loss.state_dict().items():
            assert torch.equal(value, before[key])
        assert torch.isfinite(loss(logits, targets))


@case
def ranks_of_a_smaller_group_keep_to_themselves(rank: int, ranks: int) -> None:
    if ranks < 3:
        return
    group = dist.new_group([0, 1])
    if rank < 2:
        assert torch.equal(gather_rows(torch.tensor([rank]), group), torch.arange(2))
        inputs, targets, _ = data(0, 36, "indices")
        logits = scorer("indices")(inputs).detach()
        mine = share(rank, 2, 36, "ragged")
        whole = SmoothAPLoss(3, queue_size=0, gather_distributed=False)(logits, targets)
        loss = SmoothAPLoss(3, queue_size=0, process_group=group)
        torch.testing.assert_close(loss(logits[mine], targets[mine]), whole)
        focal = SoftmaxFocalLoss(process_group=group)
        mean = sum_over_ranks(focal(logits[mine], targets[mine]), group) / 2
        torch.testing.assert_close(mean, SoftmaxFocalLoss().eval()(logits, targets))
        main = SmoothAPLoss(3, process_group=group)
        warmup = LossWarmupWrapper(nn.CrossEntropyLoss(), main, warmup_steps=1)(logits[mine], targets[mine])
        mean = sum_over_ranks(warmup, group) / 2
        torch.testing.assert_close(mean, nn.CrossEntropyLoss()(logits, targets))
    dist.barrier()
