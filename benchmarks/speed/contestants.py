"""What is timed: our losses, what torch has for the same rows, and other libraries' losses where they are installed.

Each function returns builds by name: the judged one is :data:`OURS`, "module" is the same loss as users call it.
"""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from benchmarks.speed import peers
from benchmarks.speed.laws import draw, draw_positive
from benchmarks.speed.measure import Build, Run
from torch import Tensor, nn
from torch.nn import functional as F

from rareloss import (
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
    functional,
    metrics,
)

__all__ = [
    "OURS",
    "class_indices",
    "compiled",
    "exact_average_precision",
    "fused_focal",
    "partial_auc",
    "recall",
    "sigmoid_focal",
    "smooth_ap",
    "softmax_focal",
    "training_step",
    "two_threads",
]

OURS = "rareloss"
PEER = "imbalanced-losses"
BATCH, QUEUE = 1024, 16384

Builds = dict[str, Build]
ScoreLoss = Callable[[Tensor], Tensor]
TargetLoss = Callable[[Tensor, Tensor], Tensor]


# --------------------------------------------------------------------------------------------------- how one is built


def forward_and_backward(scores: Tensor, loss: ScoreLoss) -> Run:
    """Return a run of the loss and its gradient, which is made anew every time."""
    scores.requires_grad_()

    def run() -> None:
        scores.grad = None
        loss(scores).backward()

    return run


def ranked(make: Callable[[Tensor], ScoreLoss], law: str = "normal", temperature: float = 0.01) -> Build:
    """Build from a loss that is made for labels ``[M]``, of which 1 % are true, and takes scores ``[M]``."""

    def build(device: str, rows: int) -> Run:
        scores, positive = draw(law, rows, temperature=temperature), draw_positive(rows)
        return forward_and_backward(scores.to(device), make(positive.to(device)))

    return build


def with_targets(make: Callable[[], TargetLoss]) -> Build:
    """Build from a loss of scores and float targets ``[M]``."""

    def on(positive: Tensor) -> ScoreLoss:
        loss, targets = make(), positive.float()
        return lambda scores: loss(scores, targets)

    return ranked(on)


def module(make: Callable[[], nn.Module]) -> Build:
    """Build from a ranking loss as users make it."""

    def on(positive: Tensor) -> ScoreLoss:
        loss = make()
        return lambda scores: loss(scores, positive)  # type: ignore[no-any-return]

    return ranked(on)


def sort(law: str = "normal", temperature: float = 0.01) -> Build:
    """Build ``torch.sort`` of the scores."""

    def build(device: str, rows: int) -> Run:
        scores = draw(law, rows, temperature=temperature).to(device)
        return lambda: scores.sort()

    return build


BCE = with_targets(lambda: F.binary_cross_entropy_with_logits)


def peer(name: str, make: Callable[[Any, Tensor], ScoreLoss]) -> Builds:
    """Build a peer's loss from its module and the labels; nothing where the peer is not installed."""
    library = peers.load(name)
    return {} if library is None else {name: ranked(lambda positive: make(library, positive))}


def imbalanced_losses(loss: str, **arguments: Any) -> Builds:
    """Build a ranking loss of imbalanced-losses without its queue."""

    def make(library: Any, positive: Tensor) -> ScoreLoss:
        made, targets = getattr(library, loss)(1, queue_size=0, **arguments), positive.long()
        return lambda scores: made(scores[:, None], targets)  # type: ignore[no-any-return]

    return peer(PEER, make)


def libauc(loss: str, **lengths: Callable[[Tensor], int]) -> Builds:
    """Build a loss of LibAUC whose state has the given lengths."""

    def make(library: Any, positive: Tensor) -> ScoreLoss:
        made = getattr(library, loss)(**{name: length(positive) for name, length in lengths.items()})
        targets, index = positive.float(), torch.arange(len(positive), device=positive.device)
        if "pos_len" in lengths:  # its state has one entry for each positive
            index = (positive.cumsum(0) - 1).clamp(min=0)
        return lambda scores: made(scores, targets, index)  # type: ignore[no-any-return]

    return peer("libauc", make)


# ------------------------------------------------------------------------------------------------------ ranking losses


def smooth_ap(law: str = "normal", temperature: float = 0.01) -> Builds:
    """Smooth-AP beside ``torch.sort`` of the same scores, and the peers' where the scores are normal."""

    def ours(positive: Tensor) -> ScoreLoss:
        return lambda s: functional.smooth_average_precision(s, positive, temperature=temperature).value

    builds = {OURS: ranked(ours, law, temperature), "torch.sort": sort(law, temperature)}
    if law != "normal":
        return builds
    builds |= {"module": module(lambda: SmoothAPLoss(1, queue_size=0)), "BCE": BCE}
    return builds | imbalanced_losses("SmoothAPLoss", temperature=0.01) | libauc("APLoss", data_len=len)


def recall() -> Builds:
    """Recall at the top .5 %, beside BCE."""
    return {
        OURS: ranked(lambda y: lambda s: functional.soft_recall_at_quantile(s, y).value),
        "BCE": BCE,
        "module": module(lambda: RecallAtQuantileLoss(1, queue_size=0)),
        "torch.sort": sort(),
        **imbalanced_losses("RecallAtQuantileLoss"),
    }


def partial_auc() -> Builds:
    """Partial AUC up to a false-positive rate of .5 %, beside BCE."""
    return {
        OURS: ranked(lambda y: lambda s: functional.soft_partial_auc(s, y, beta=0.005).value),
        "BCE": BCE,
        "module": module(lambda: PAUCAtBudgetLoss(1, queue_size=0)),
        **imbalanced_losses("PAUCAtBudgetLoss"),
        **libauc("pAUC_CVaR_Loss", data_len=len, pos_len=lambda positive: int(positive.sum())),
    }


def class_indices(classes: int) -> Builds:
    """Smooth-AP of class indices, beside BCE of as many logits."""

    def bce(targets: Tensor) -> ScoreLoss:
        labels = F.one_hot(targets, classes).float()
        return lambda logits: F.binary_cross_entropy_with_logits(logits, labels)

    def smooth(made: nn.Module) -> Callable[[Tensor], ScoreLoss]:
        return lambda targets: lambda logits: made(logits, targets)  # type: ignore[no-any-return]

    builds = {
        OURS: _multiclass(classes, smooth(SmoothAPLoss(classes, queue_size=0))),
        "BCE": _multiclass(classes, bce),
    }
    if (library := peers.load(PEER)) is not None:
        builds[PEER] = _multiclass(classes, smooth(library.SmoothAPLoss(classes, queue_size=0)))
    return builds


def _multiclass(classes: int, make: Callable[[Tensor], ScoreLoss]) -> Build:
    def build(device: str, elements: int) -> Run:
        rows = max(2, elements // classes)
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(rows, classes, generator=generator).to(device)
        return forward_and_backward(logits, make(torch.randint(classes, (rows,), generator=generator).to(device)))

    return build


def training_step(loss: type[nn.Module], rate: float) -> Builds:
    """A training step of a small network with a queue, beside the same network without a loss."""
    builds = {
        OURS: _step(rate, lambda: loss(1, queue_size=QUEUE)),
        "network alone": _step(rate, lambda: lambda logits, targets: logits.sum()),
    }
    if (library := peers.load(PEER)) is not None:

        def theirs() -> TargetLoss:
            made = getattr(library, loss.__name__)(1, queue_size=QUEUE)
            return lambda logits, targets: made(logits[:, None], targets.long())  # type: ignore[no-any-return]

        builds[PEER] = _step(rate, theirs)
    return builds


def _step(rate: float, make: Callable[[], TargetLoss]) -> Build:
    def build(device: str, rows: int) -> Run:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))
            # As many batches as the queue holds and one more: what is remembered is never the batch itself.
            inputs = torch.randn(QUEUE // BATCH + 1, BATCH, 64).to(device)
        network.to(device)
        loss, labels = make(), draw_positive(inputs[..., 0].numel(), rate).view(-1, BATCH).to(device)
        batches = cycle(zip(inputs, labels, strict=True))

        def run() -> None:
            features, targets = next(batches)
            network.zero_grad()
            loss(network(features)[:, 0], targets).backward()

        for _ in range(QUEUE // BATCH):
            run()
        return run

    return build


def compiled() -> Builds:
    """Smooth-AP as a module in a compiled graph."""

    def make() -> nn.Module:
        return torch.compile(SmoothAPLoss(1, queue_size=0), fullgraph=True)  # type: ignore[return-value]

    return {OURS: module(make)}


def two_threads() -> Builds:
    """Smooth-AP with two threads beside one."""
    build = smooth_ap()[OURS]

    def with_threads(number: int) -> Build:
        def built(device: str, rows: int) -> Run:
            run = build(device, rows)

            def threaded() -> None:
                torch.set_num_threads(number)
                try:
                    run()
                finally:
                    torch.set_num_threads(1)

            return threaded

        return built

    return {OURS: with_threads(2), "one thread": with_threads(1)}


# ---------------------------------------------------------------------------------------------------- focal and metrics


def sigmoid_focal() -> Builds:
    """Sigmoid focal loss beside BCE."""
    builds = {OURS: with_targets(lambda: functional.sigmoid_focal_loss), "BCE": BCE}
    builds["module"] = with_targets(SigmoidFocalLoss)
    if (library := peers.load(PEER)) is not None:
        builds[PEER] = with_targets(library.SigmoidFocalLoss)
    # libauc's focal loss multiplies [N] by [N, 1], so it takes N x N and is left out.
    if (monai := peers.load("monai")) is not None:
        focal = monai.FocalLoss(alpha=0.25)
        builds["monai"] = with_targets(lambda: lambda s, t: focal(s[:, None], t[:, None]))
    if (kornia := peers.load("kornia")) is not None:
        binary = kornia.binary_focal_loss_with_logits
        builds["kornia"] = with_targets(lambda: lambda s, t: binary(s[:, None], t[:, None], reduction="mean"))
    return builds


def fused_focal() -> Builds:
    """Compiled sigmoid focal loss beside compiled BCE."""
    return {
        OURS: with_targets(lambda: torch.compile(functional.sigmoid_focal_loss, fullgraph=True)),
        "compiled BCE": with_targets(lambda: torch.compile(F.binary_cross_entropy_with_logits, fullgraph=True)),
    }


def softmax_focal(classes: int) -> Builds:
    """Softmax focal loss beside cross-entropy."""
    losses: dict[str, TargetLoss] = {
        OURS: functional.softmax_focal_loss,
        "cross-entropy": F.cross_entropy,
        "module": SoftmaxFocalLoss(),
    }
    if (library := peers.load(PEER)) is not None:
        losses[PEER] = library.SoftmaxFocalLoss()
    # The one-hot labels and their temporaries outgrow memory with many classes.
    if (kornia := peers.load("kornia")) is not None and classes < 1000:
        losses["kornia"] = lambda z, y: kornia.focal_loss(z, y, alpha=None, reduction="mean")
    if (monai := peers.load("monai")) is not None and classes < 1000:
        focal = monai.FocalLoss(to_onehot_y=True, use_softmax=True)
        losses["monai"] = lambda z, y: focal(z, y[:, None])

    def build(loss: TargetLoss) -> Build:
        return _multiclass(classes, lambda targets: lambda logits: loss(logits, targets))

    return {name: build(loss) for name, loss in losses.items()}


def exact_average_precision() -> Builds:
    """The exact metric beside ``torch.sort`` of its scores."""

    def build(device: str, rows: int) -> Run:
        scores, positive = draw("normal", rows).to(device), draw_positive(rows).to(device)
        return lambda: metrics.average_precision(scores, positive)

    return {OURS: build, "torch.sort": sort()}
