"""The module under every ranking loss: encode, gather, join what is remembered, rank, remember, reduce."""

import warnings
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from rareloss import checks, distributed
from rareloss.losses.encode import Rows, encode
from rareloss.losses.queue import MemoryQueue
from rareloss.ops import standardize
from rareloss.pool import PerClass, Pool, lay_out, one_or_nan, safe_ratio

__all__ = ["PoolOptions", "RankingLoss", "Support"]


class PoolOptions(TypedDict, total=False):
    """The arguments that every ranking loss passes on; see :class:`RankingLoss`."""

    queue_size: int
    temperature_unit: str
    reduction: str
    ignore_index: int
    queue_in_eval: bool
    gather_distributed: bool | None
    process_group: distributed.ProcessGroup | None
    check_values: bool | None


class Support(NamedTuple):
    """How many rows stand behind an operating point, how many it needs, and what was counted."""

    rows: Tensor
    needed: float
    of: str


class RankingLoss(nn.Module):
    r"""One minus a soft metric of the pool: the live rows of all ranks and the remembered rows.

    Scores are ranked in units of their spread: with :math:`z = (s - \bar s) / \mathrm{spread}`, mean and spread being
    functions of the pool, a scale of all scores changes nothing and the loss cannot be lowered by growing them.

    The pool's average has a gradient f times too small, f being the live rows' share of its weight (per class), so the
    gradient is multiplied by 1 / f: the queue changes its variance, never its scale.

    Shapes: with ``num_classes=1``, logits ``[...]`` or ``[..., 1]`` and targets likewise, in {0, 1}; else logits
    ``[..., C]`` with class indices ``[...]`` (ranked one-vs-rest by their log-odds) or labels ``[..., C]``. The loss is
    0-d, or ``[C]`` with ``reduction="none"``, in float32 at least.

    Args:
        num_classes: 1 for binary, else the number of classes or labels.
        queue_size: rows remembered from earlier steps, 0 for none.
        temperature: in spreads of the pool's scores, or in logits.
        temperature_unit: ``"std"`` or ``"logit"``.
        reduction: ``"mean"`` or ``"sum"`` over the defined classes, or ``"none"`` (NaN where undefined). If no class is
            defined, mean and sum are 0 with gradient 0 in training, NaN in eval.
        ignore_index: the target that means absent.
        queue_in_eval: read and fill the queue in eval mode too.
        gather_distributed: whether to rank the rows of all ranks; None: in training mode.
        process_group: the ranks that take part; the default group if None.
        check_values: whether to look into targets and weights off the CPU too (the device waits for it).

    Raises:
        TypeError: an argument, logits or targets of a wrong type.
        ValueError: an argument out of range; in ``forward`` a wrong shape, a label out of range, or a weight that is
            negative or not finite. The queue is as it was.
    """

    has_threshold = False

    def __init__(
        self,
        num_classes: int,
        queue_size: int = 16384,
        temperature: float = 0.05,
        temperature_unit: str = "std",
        reduction: str = "mean",
        ignore_index: int = -100,
        queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        process_group: distributed.ProcessGroup | None = None,
        check_values: bool | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = checks.integer("num_classes", num_classes, least=1)
        self.temperature: float | Tensor = checks.positive_number("temperature", temperature)
        self.temperature_unit = checks.choice("temperature_unit", temperature_unit, ("std", "logit"))
        self.reduction = checks.choice("reduction", reduction, ("mean", "sum", "none"))
        self.ignore_index = checks.whole("ignore_index", ignore_index)
        self.queue_in_eval = queue_in_eval
        self.gather_distributed = gather_distributed
        self.process_group = process_group
        self.check_values = check_values
        self.queue = MemoryQueue(checks.integer("queue_size", queue_size, least=0), num_classes)
        self._warned = False
        self._judged: torch.Size | None = None

    def soft(self, pool: Pool, temperature: float) -> PerClass:
        """Compute the soft metric ``[C]`` of a pool; each loss defines its own."""
        raise TypeError(f"{type(self).__name__} defines no soft metric; use one of the losses in rareloss")

    def hard(self, pool: Pool) -> PerClass:
        """Compute the metric ``[C]`` itself of a pool; each loss defines its own."""
        raise TypeError(f"{type(self).__name__} defines no hard metric; use one of the losses in rareloss")

    def threshold(self, pool: Pool, temperature: float) -> Tensor:
        """Compute the operating point's score ``[C]``; NaN for a loss that has none."""
        return pool.scores.new_full(pool.scores.shape[:1], torch.nan)

    def cap(self, pool: Pool) -> Tensor:
        """Compute the best reachable value ``[C]`` of the metric."""
        return torch.ones_like(pool.scores[:, 0])

    def support(self, rows: Tensor, negatives: Tensor) -> Support:
        """Compute how many rows stand behind the operating point, of a pool with so many rows and negatives."""
        return Support(rows - negatives, 1.0, "the pool's positives")

    def reset_queue(self) -> None:
        """Forget every remembered row."""
        self.queue.reset()

    def extra_repr(self) -> str:
        """Show the arguments that were given."""
        shown = ("num_classes", "quantile", "among", "alpha", "beta", "temperature", "temperature_unit", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown if hasattr(self, name))

    def pooled(
        self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None, iid_mask: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of the pool and remember its live rows."""
        live = self._live(logits, targets, sample_weight, iid_mask)
        self._warn_if_unsupported(live)
        rows = self._with_remembered(live)
        pool, _, _, temperature = self._ranked(rows)
        loss, defined = self.soft(pool, temperature)
        loss = 1 - loss
        if rows is not live:
            share = safe_ratio(live.weight.sum(0), rows.weight.sum(0))
            # The value stays; of the gradient, an average over the pool, only the live share arrived. So small a share
            # is none: what arrived of it is rounding.
            share = share.masked_fill(share < 1e-12, 0.0)
            loss = loss.detach() + (loss - loss.detach()) * safe_ratio(torch.ones_like(share), share)
        if self._uses_queue():
            self.queue.remember(live)
        return self._reduced(loss, defined, pool)

    @torch.no_grad()
    def describe(
        self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None, iid_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Describe the pool that this call would rank, without gradient and without changing any state.

        Returns:
            by name, each ``[C]``: ``soft`` and ``hard``, the metric; ``positives_live``, ``positives_pool`` and
            ``rows_pool``, numbers of rows; ``live_share``, of the pool's weight; ``threshold`` and ``temperature``, in
            logits (threshold: NaN for a loss without one); ``saturated``, the share of positive-negative pairs, or of
            positives and the threshold, further apart than 8 temperatures; ``rows_above`` the threshold; ``cap``, the
            best reachable value; ``support``, the rows behind the operating point, ``support_needed`` and
            ``supported``.
        """
        live = self._live(logits, targets, sample_weight, iid_mask)
        rows = self._with_remembered(live)
        pool, mean, spread, temperature = self._ranked(rows)
        threshold = self.threshold(pool, temperature)
        present = pool.weight > 0
        positive, negative = pool.is_positive & present, present & ~pool.is_positive
        counted = pool.counted > 0 if self.has_threshold else present
        support = self.support(counted.sum(1), (negative & counted).sum(1))
        has_threshold = ~torch.isnan(threshold)
        return {
            "soft": self.soft(pool, temperature).value,
            "hard": self.hard(pool).value,
            "positives_live": (live.positive & (live.weight > 0)).sum(0),
            "positives_pool": positive.sum(1),
            "rows_pool": present.sum(1),
            "live_share": safe_ratio(live.weight.sum(0), rows.weight.sum(0)),
            "threshold": threshold * spread + mean,
            "temperature": temperature * spread,
            "saturated": _saturated(pool.scores, positive, negative, threshold, temperature),
            "rows_above": torch.where(has_threshold, (present & (pool.scores > threshold[:, None])).sum(1), torch.nan),
            "cap": self.cap(pool),
            "support": support.rows,
            "support_needed": torch.full_like(spread, support.needed),
            "supported": support.rows >= support.needed,
        }

    def _uses_queue(self) -> bool:
        return self.queue.size > 0 and (self.training or self.queue_in_eval)

    def _live(self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None, iid_mask: Tensor | None) -> Rows:
        asked = self.training if self.gather_distributed is None else self.gather_distributed
        gathering = asked and distributed.world_size(self.process_group) > 1
        rows, error = None, None
        try:
            rows = encode(
                logits,
                targets,
                sample_weight,
                iid_mask,
                num_classes=self.num_classes,
                ignore_index=self.ignore_index,
                check_values=self.check_values,
            )
        except Exception as refused:
            if not gathering:
                raise
            error = refused  # raised below, once the other ranks know
        if not gathering and rows is not None:
            return rows
        packed = None if rows is None else rows.pack()
        sizes = distributed.agree(packed, self.process_group, error)
        assert packed is not None
        return Rows.unpack(distributed.gather_rows(packed, self.process_group, sizes=sizes))

    def _with_remembered(self, live: Rows) -> Rows:
        if not self._uses_queue():
            return live
        remembered = self.queue.rows()
        scores = torch.cat([live.scores, remembered.scores.to(live.scores.dtype)])
        weight = torch.cat([live.weight, remembered.weight.to(live.weight.dtype)])
        return Rows(
            scores, torch.cat([live.positive, remembered.positive]), weight, torch.cat([live.iid, remembered.iid])
        )

    def _ranked(self, rows: Rows) -> tuple[Pool, Tensor, Tensor, float]:
        # The pool in units of the temperature; what was subtracted from its scores, and what they were divided by; and
        # the temperature.
        all_iid = checks.values_readable(rows.iid) and bool(rows.iid.all())
        pool = lay_out(rows.scores, rows.positive, rows.weight, None if all_iid else rows.iid[:, None])
        if self.temperature_unit == "std":
            pool, mean, spread = standardize(pool)
        else:
            mean, spread = pool.scores.new_zeros(self.num_classes), pool.scores.new_ones(self.num_classes)
        if not isinstance(self.temperature, Tensor):
            return pool, mean, spread, self.temperature
        # A temperature that changes within one graph goes into the scores.
        temperature = self.temperature.to(pool.scores)
        return pool._replace(scores=pool.scores / temperature), mean, spread * temperature, 1.0

    def _reduced(self, loss: Tensor, defined: Tensor, pool: Pool) -> Tensor:
        if self.reduction == "none":
            return loss
        total = torch.where(defined, loss, 0.0).sum()
        if self.reduction == "mean":
            total = total / defined.sum().clamp(min=1)
        # A logit that is not finite shows, also in a class that is not defined, so that an AMP scaler skips the step.
        total = total * one_or_nan(pool.scores).amin()
        return total if self.training else torch.where(defined.any(), total, torch.nan)

    def _warn_if_unsupported(self, live: Rows) -> None:
        if self._warned or not self.training or not checks.values_readable(live.scores, self.check_values):
            return
        if self._judged == live.scores.shape:
            return
        self._judged = live.scores.shape
        present = (live.weight > 0) & live.iid[:, None]
        rows = present.sum(0)
        # The queue is judged as full: it is about to be.
        growth = 1 + self.queue.size * safe_ratio((rows > 0).double(), rows.double())
        support = self.support(rows * growth, (present & ~live.positive).sum(0) * growth)
        if not self.has_threshold or bool((support.rows >= support.needed)[rows > 0].all()):
            return
        least = float(support.rows[rows > 0].min())
        self._warned = True
        warnings.warn(
            f"{type(self).__name__}: {support.of} is {least:.3g} rows, with batch and queue_size={self.queue.size} "
            f"together; {support.needed:.0f} are needed for a stable gradient. Use a pool "
            f"{support.needed / max(least, 1e-9):.3g} times as large (batch or queue_size), or a wider point.",
            UserWarning,
            stacklevel=4,
        )


def _saturated(scores: Tensor, positive: Tensor, negative: Tensor, threshold: Tensor, temperature: float) -> Tensor:
    # Pairs are counted through sorted negatives: memory and time stay those of a sort.
    reach = 8 * temperature
    if not bool(torch.isnan(threshold).all()):
        far = ((scores - threshold[:, None]).abs() > reach) & positive
        return safe_ratio(far.sum(1).double(), positive.sum(1).double())
    ordered = torch.where(negative, scores, torch.inf).contiguous().sort(1).values
    near = torch.searchsorted(ordered, scores + reach, right=True) - torch.searchsorted(ordered, scores - reach)
    pairs = positive.sum(1) * negative.sum(1)
    return safe_ratio((pairs - (near * positive).sum(1)).double(), pairs.double())
