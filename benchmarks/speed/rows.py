"""What is measured: one row for each line of the table, with its bar and its stretch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from benchmarks.speed import peers
from benchmarks.speed.laws import HOSTILE, LAWS, draw, draw_positive
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

__all__ = ["GROWTH", "OURS", "TEMPERATURES", "Row", "all_rows", "slug"]

OURS = "rareloss"
TEMPERATURES = (0.005, 0.01, 0.1, 1.0)
GROWTH = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000, 4_000_000, 10_000_000)
K, M = 1_000, 1_000_000


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        key: how it is called on the command line and in the results.
        what: in words.
        kind: ``"ratio"`` of times to the reference, ``"added"`` milliseconds over it, ``"memory"`` in bytes a row or
            element, ``"growth"``, ``"value"`` or ``"gradient"`` error, or ``"replay"``.
        rows: rows, or elements of logits.
        bar: what must be reached at most, None where nothing is promised.
        stretch: what is hoped for.
        cases: contestants by case; the reference of times comes first, ``OURS`` is judged, and the worst case counts.
        most: the rows that a contestant is given at most, where its cost is not linear.
        large: measured on request only.
    """

    key: str
    what: str
    kind: str
    rows: int
    bar: float | None = None
    stretch: float | None = None
    cases: Mapping[str, Mapping[str, Build]] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    large: bool = False

    @property
    def reference(self) -> str:
        """What the times are compared with."""
        return next(iter(next(iter(self.cases.values()))))


def all_rows() -> list[Row]:
    """Return every line, in the order of the table."""
    return [*_smooth_ap(), *_accuracy(), *_multiclass(), *_recall(), *_partial_auc(), *_steps(), *_focal(), *_metrics()]


# ------------------------------------------------------------------------------------------------------- contestants


def _step(scores: Tensor, loss: Callable[[Tensor], Tensor]) -> Run:
    scores.requires_grad_()

    def run() -> None:
        scores.grad = None
        loss(scores).backward()

    return run


def _ranked(law: str, temperature: float, loss: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> Build:
    """Build from a loss that is made for labels ``[M]``, of which 1 % are true, and takes scores ``[M]``."""

    def build(device: str, rows: int) -> Run:
        positive = draw_positive(rows).to(device)
        return _step(draw(law, rows, temperature=temperature).to(device), loss(positive))

    return build


def _sort(law: str = "normal", temperature: float = 0.01) -> Build:
    def build(device: str, rows: int) -> Run:
        scores = draw(law, rows, temperature=temperature).to(device)
        return lambda: scores.sort()

    return build


def _smooth(law: str = "normal", temperature: float = 0.01) -> Build:
    return _ranked(
        law,
        temperature,
        lambda positive: lambda s: functional.smooth_average_precision(s, positive, temperature=temperature).value,
    )


def _module(make: Callable[[], nn.Module]) -> Build:
    def loss(positive: Tensor) -> Callable[[Tensor], Tensor]:
        module = make()
        return lambda scores: module(scores, positive)  # type: ignore[no-any-return]

    return _ranked("normal", 0.01, loss)


def _elementwise(make: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Build:
    """Build from a loss of scores and targets ``[M]``, both float."""

    def loss(positive: Tensor) -> Callable[[Tensor], Tensor]:
        made, targets = make(), positive.float()
        return lambda scores: made(scores, targets)

    return _ranked("normal", 0.01, loss)


def _bce() -> Build:
    return _elementwise(lambda: F.binary_cross_entropy_with_logits)


def _peer(name: str, make: Callable[[Any, Tensor], Callable[[Tensor], Tensor]]) -> dict[str, Build]:
    """Build a peer's loss from its module and the labels; nothing where the peer is not installed."""
    module = peers.load(name)
    return {} if module is None else {name: _ranked("normal", 0.01, lambda positive: make(module, positive))}


def _imbalanced(loss: str, **arguments: Any) -> dict[str, Build]:
    def make(module: Any, positive: Tensor) -> Callable[[Tensor], Tensor]:
        made, targets = getattr(module, loss)(1, queue_size=0, **arguments), positive.long()
        return lambda scores: made(scores[:, None], targets)  # type: ignore[no-any-return]

    return _peer("imbalanced-losses", make)


def _libauc(loss: str, **lengths: Callable[[Tensor], int]) -> dict[str, Build]:
    def make(module: Any, positive: Tensor) -> Callable[[Tensor], Tensor]:
        made = getattr(module, loss)(**{name: length(positive) for name, length in lengths.items()})
        targets, index = positive.float(), torch.arange(len(positive), device=positive.device)
        if "pos_len" in lengths:  # its state has one entry for each positive
            index = (positive.cumsum(0) - 1).clamp(min=0)
        return lambda scores: made(scores, targets, index)  # type: ignore[no-any-return]

    return _peer("libauc", make)


# -------------------------------------------------------------------------------------------------------------- rows


def _smooth_ap() -> list[Row]:
    peer = _imbalanced("SmoothAPLoss", temperature=0.01)
    other = _libauc("APLoss", data_len=len)
    rows = [
        Row(
            f"smooth_ap/{name}",
            f"Smooth-AP, {name} rows, against torch.sort",
            "ratio",
            size,
            bar,
            stretch,
            {"": {"torch.sort": _sort(), OURS: _smooth(), "module": _module(lambda: SmoothAPLoss(1, queue_size=0))}},
        )
        for name, size, bar, stretch in (
            ("64k", 64 * K, 3.0, 1.5),
            ("256k", 256 * K, 1.3, 0.6),
            ("1M", M, 0.6, 0.3),
            ("10M", 10 * M, 0.4, 0.25),
        )
    ]
    rows += [
        Row(
            f"smooth_ap/{name}-peer",
            f"Smooth-AP, {name} rows, against imbalanced-losses",
            "ratio",
            size,
            bar,
            0.3 if bar else None,
            {"": {**peer, OURS: _smooth(), **other, "BCE": _bce()}},
        )
        for name, size, bar in (("1k", K, 0.7), ("4k", 4 * K, 0.6), ("16k", 16 * K, 0.5), ("64k", 64 * K, None))
        if peer
    ]
    rows += [
        Row(
            f"smooth_ap/hostile-{slug(law)}",
            f"Smooth-AP, 1M rows, {law}, worst temperature, against torch.sort",
            "ratio",
            M,
            5.0,
            2.0,
            {f"temperature {t}": {"torch.sort": _sort(law, t), OURS: _smooth(law, t)} for t in TEMPERATURES},
        )
        for law in HOSTILE
    ]
    quadratic = {**peer, **other}
    rows += [
        Row(
            f"growth/{slug(law)}",
            f"Smooth-AP, growth with the rows, {law}",
            "growth",
            GROWTH[-1],
            1.1,
            None,
            {"": {OURS: _smooth(law), **({"torch.sort": _sort(), **quadratic} if law == "normal" else {})}},
            dict.fromkeys(quadratic, 64 * K),
        )
        for law in LAWS
    ]
    contestants = {OURS: _smooth(), **quadratic}
    rows.append(
        Row("memory/smooth_ap-16k", "Smooth-AP, 16k rows, extra memory", "memory", 16 * K, cases={"": contestants})
    )
    rows.append(
        Row("memory/smooth_ap-1M", "Smooth-AP, 1M rows, extra memory", "memory", M, 20, 12, {"": {OURS: _smooth()}})
    )
    return rows


def _accuracy() -> list[Row]:
    return [
        Row("accuracy/value", "Smooth-AP, relative error of the value, worst case", "value", 16384, 1e-6, 1e-7),
        Row("accuracy/gradient", "Smooth-AP, relative error of the gradient", "gradient", 16384, 5e-6, 1e-6),
    ]


def _multiclass() -> list[Row]:
    def build(classes: int, loss: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> Build:
        def built(device: str, elements: int) -> Run:
            rows = max(2, elements // classes)
            generator = torch.Generator().manual_seed(0)
            logits = torch.randn(rows, classes, generator=generator).to(device)
            return _step(logits, loss(torch.randint(classes, (rows,), generator=generator).to(device)))

        return built

    def row(classes: int, bar: float, stretch: float) -> Row:
        def bce(targets: Tensor) -> Callable[[Tensor], Tensor]:
            hot = F.one_hot(targets, classes).float()
            return lambda logits: F.binary_cross_entropy_with_logits(logits, hot)

        def ours(targets: Tensor) -> Callable[[Tensor], Tensor]:
            loss = SmoothAPLoss(classes, queue_size=0)
            return lambda logits: loss(logits, targets)  # type: ignore[no-any-return]

        contestants = {"BCE": build(classes, bce), OURS: build(classes, ours)}
        if (peer := peers.load("imbalanced-losses")) is not None:

            def theirs(targets: Tensor) -> Callable[[Tensor], Tensor]:
                loss = peer.SmoothAPLoss(classes, queue_size=0)
                return lambda logits: loss(logits, targets)  # type: ignore[no-any-return]

            contestants["imbalanced-losses"] = build(classes, theirs)
        what = f"Smooth-AP, class indices, 4096 x {classes}, against BCE of as many logits"
        return Row(f"multiclass/{classes}", what, "ratio", 4096 * classes, bar, stretch, {"": contestants})

    return [row(1000, 6.0, 3.0), row(100, 45.0, 8.0)]


def _recall() -> list[Row]:
    ours = _ranked("normal", 0.01, lambda y: lambda s: functional.soft_recall_at_quantile(s, y).value)
    module = _module(lambda: RecallAtQuantileLoss(1, queue_size=0))
    peer = _imbalanced("RecallAtQuantileLoss")
    return [
        Row(
            f"recall/{name}",
            f"Recall at the top .5 %, {name} rows, against BCE",
            "ratio",
            size,
            bar,
            stretch,
            # torch.quantile, which the peer calls, takes 2**24 elements at most.
            {"": {"BCE": _bce(), OURS: ours, "module": module, "torch.sort": _sort(), **(peer if size <= M else {})}},
        )
        for name, size, bar, stretch in (("16k", 16 * K, 5.0, 2.0), ("1M", M, 3.0, 1.0), ("20M", 20 * M, 1.5, 0.5))
    ] + [
        Row("memory/recall-1M", "Recall, 1M rows, extra memory", "memory", M, cases={"": {OURS: ours, **peer}}),
        Row(
            "growth/recall",
            "Recall, growth with the rows, normal",
            "growth",
            GROWTH[-1],
            cases={"": {OURS: ours, "BCE": _bce()}},
        ),
    ]


def _partial_auc() -> list[Row]:
    ours = _ranked("normal", 0.01, lambda y: lambda s: functional.soft_partial_auc(s, y, beta=0.005).value)
    module = _module(lambda: PAUCAtBudgetLoss(1, queue_size=0))
    peer = _imbalanced("PAUCAtBudgetLoss")
    # A pairs matrix of positives and negatives: small pools only.
    pairs = _libauc("pAUC_CVaR_Loss", data_len=len, pos_len=lambda positive: int(positive.sum()))
    return [
        Row(
            f"pauc/{name}",
            f"Partial AUC, false-positive rate up to .5 %, {name} rows, against BCE",
            "ratio",
            size,
            bar,
            stretch,
            {"": {"BCE": _bce(), OURS: ours, "module": module, **peer, **(pairs if size < M else {})}},
        )
        for name, size, bar, stretch in (("16k", 16 * K, None, None), ("1M", M, 8.0, 4.0))
    ] + [
        Row("memory/pauc-1M", "Partial AUC, 1M rows, extra memory", "memory", M, 20, None, {"": {OURS: ours, **peer}}),
        Row(
            "growth/pauc",
            "Partial AUC, growth with the rows, normal",
            "growth",
            GROWTH[-1],
            cases={"": {OURS: ours, "BCE": _bce()}},
        ),
    ]


def _steps() -> list[Row]:
    batch, queue = 1024, 16384

    def build(share: float, make: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Build:
        def built(device: str, rows: int) -> Run:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                network = nn.Sequential(
                    nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
                )
                # As many batches as the queue holds and one more: what is remembered is never the batch itself.
                inputs = torch.randn(queue // batch + 1, batch, 64).to(device)
            network.to(device)
            loss, labels = make(), draw_positive(inputs[..., 0].numel(), share).view(-1, batch).to(device)
            batches = cycle(zip(inputs, labels, strict=True))

            def run() -> None:
                features, targets = next(batches)
                network.zero_grad()
                loss(network(features)[:, 0], targets).backward()

            for _ in range(queue // batch):
                run()
            return run

        return built

    def ours(name: str, make: Callable[[], nn.Module], bar: float, stretch: float, share: float) -> Row:
        contestants = {"network alone": build(share, lambda: lambda out, targets: out.sum()), OURS: build(share, make)}
        if (peer := peers.load("imbalanced-losses")) is not None:

            def theirs() -> Callable[[Tensor, Tensor], Tensor]:
                loss = getattr(peer, type(make()).__name__)(1, queue_size=queue)
                return lambda out, targets: loss(out[:, None], targets.long())  # type: ignore[no-any-return]

            contestants["imbalanced-losses"] = build(share, theirs)
        what = f"Training step, batch 1024, queue 16384, {share:.0%} positives: {name}, over the network"
        return Row(f"step/{name}-{share:.0%}", what, "added", queue, bar, stretch, {"": contestants})

    return [
        ours(name, make, bar, stretch, share)
        for name, make, bar, stretch in (
            ("recall", lambda: RecallAtQuantileLoss(1, queue_size=queue), 1.0, 0.5),
            ("pauc", lambda: PAUCAtBudgetLoss(1, queue_size=queue), 1.0, 0.5),
            ("smooth_ap", lambda: SmoothAPLoss(1, queue_size=queue), 4.0, 2.0),
        )
        for share in (0.01, 0.1)
    ]


def _focal() -> list[Row]:
    ours, module, others = _elementwise(lambda: functional.sigmoid_focal_loss), _elementwise(SigmoidFocalLoss), {}
    if (peer := peers.load("imbalanced-losses")) is not None:
        others["imbalanced-losses"] = _elementwise(peer.SigmoidFocalLoss)
    # libauc's focal loss multiplies [N] by [N, 1], so it takes N x N and has no place here.
    if (monai := peers.load("monai")) is not None:
        focal = monai.FocalLoss(alpha=0.25)
        others["monai"] = _elementwise(lambda: lambda s, t: focal(s[:, None], t[:, None]))
    if (kornia := peers.load("kornia")) is not None:
        binary = kornia.binary_focal_loss_with_logits
        others["kornia"] = _elementwise(lambda: lambda s, t: binary(s[:, None], t[:, None], reduction="mean"))

    sigmoid = [
        Row(
            f"focal/sigmoid-{name}",
            f"Sigmoid focal, {name} logits, against BCE",
            "ratio",
            size,
            bar,
            stretch,
            {"": {"BCE": _bce(), OURS: ours, "module": module, **others}},
        )
        for name, size, bar, stretch in (("1M", M, 1.5, 1.2), ("16M", 16 * M, 1.0, 0.75))
    ]
    memory = [
        Row(
            f"memory/focal-{name}",
            f"Sigmoid focal, {name} logits, extra memory",
            "memory",
            size,
            5.0,
            None,
            {"": {OURS: ours, "BCE": _bce(), **others}},
        )
        for name, size in (("1M", M), ("16M", 16 * M))
    ]
    fused = {
        "compiled BCE": _elementwise(lambda: torch.compile(F.binary_cross_entropy_with_logits, fullgraph=True)),
        OURS: _elementwise(lambda: torch.compile(functional.sigmoid_focal_loss, fullgraph=True)),
    }
    return [
        *sigmoid,
        *_softmax(),
        Row("focal/compiled", "Compiled sigmoid focal, 1M, against compiled BCE", "ratio", M, 1.0, 0.85, {"": fused}),
        *memory,
        Row(
            "growth/focal",
            "Sigmoid focal, growth with the logits",
            "growth",
            GROWTH[-1],
            cases={"": {OURS: ours, "BCE": _bce()}},
        ),
    ]


def _softmax() -> list[Row]:
    def build(classes: int, loss: Callable[[Tensor, Tensor], Tensor]) -> Build:
        def built(device: str, elements: int) -> Run:
            rows = max(2, elements // classes)
            generator = torch.Generator().manual_seed(0)
            logits = torch.randn(rows, classes, generator=generator).to(device)
            targets = torch.randint(classes, (rows,), generator=generator).to(device)
            return _step(logits, lambda z: loss(z, targets))

        return built

    rows = []
    for count, classes, bar, stretch in ((65536, 100, 1.1, 0.85), (2048, 32000, 0.7, 0.5)):
        losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "cross-entropy": F.cross_entropy,
            OURS: functional.softmax_focal_loss,
            "module": SoftmaxFocalLoss(),
        }
        if (peer := peers.load("imbalanced-losses")) is not None:
            losses["imbalanced-losses"] = peer.SoftmaxFocalLoss()
        # The one-hot labels and their temporaries outgrow memory with many classes.
        if (peer := peers.load("kornia")) is not None and classes < K:
            losses["kornia"] = lambda z, y, f=peer.focal_loss: f(z, y, alpha=None, reduction="mean")  # type: ignore[misc]
        if (peer := peers.load("monai")) is not None and classes < K:
            focal = peer.FocalLoss(to_onehot_y=True, use_softmax=True)
            losses["monai"] = lambda z, y, f=focal: f(z, y[:, None])  # type: ignore[misc]
        name, size = f"{count} x {classes}", count * classes
        contestants = {key: build(classes, loss) for key, loss in losses.items()}
        key = f"softmax-{count}x{classes}"
        what = f"Softmax focal, {name}"
        without_module = {OURS: contestants[OURS], **contestants}
        del without_module["module"]
        rows += [
            Row(f"focal/{key}", f"{what}, against cross-entropy", "ratio", size, bar, stretch, {"": contestants}),
            Row(f"memory/{key}", f"{what}, extra memory", "memory", size, 4.3, None, {"": without_module}),
        ]
    return rows


def _metrics() -> list[Row]:
    def build(device: str, rows: int) -> Run:
        scores, positive = draw("normal", rows).to(device), draw_positive(rows).to(device)
        return lambda: metrics.average_precision(scores, positive)

    size, cases = 100 * M, {"": {"torch.sort": _sort(), OURS: build}}
    return [
        Row("metric/ap-1M", "Exact average precision, 1M scores, against torch.sort", "ratio", M, cases=cases),
        Row(
            "metric/ap-100M",
            "Exact average precision, 100M scores, against torch.sort",
            "ratio",
            size,
            1.2,
            None,
            cases,
            large=True,
        ),
        Row(
            "memory/metric-ap-100M",
            "Exact average precision, 100M scores, extra memory",
            "memory",
            size,
            16.0,
            None,
            {"": {OURS: build, "torch.sort": _sort()}},
            large=True,
        ),
    ]


def slug(law: str) -> str:
    """Make a law's name fit for a key."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in law).split())
