"""The base class of the ranking losses: one minus a soft metric of the pool of live and remembered rows."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rareloss import checks, distributed
from rareloss.eager import is_checkpointed, is_recomputation, is_training_call
from rareloss.losses.encode import encode
from rareloss.losses.queue import MemoryQueue
from rareloss.ops import SoftMetric, evaluate, standardize
from rareloss.pool import PerClass, Pool, one_or_nan, safe_ratio

__all__ = ["RankingLoss", "Support"]


class Support(NamedTuple):
    """How many rows stand behind an operating point, how many it needs, and what was counted."""

    rows: Tensor
    needed: float
    of: str


class RankingLoss(nn.Module):
    r"""One minus a soft metric of the pool: the live rows of all ranks and the remembered rows.

    Scores are ranked in units of their standard deviation: with :math:`z = (s - \bar s) / \mathrm{std}`, mean and
    standard deviation being functions of the pool's iid rows, a scale of all scores changes nothing and the loss cannot
    be lowered by growing them.

    The pool's average has a gradient f times too small, f being the live rows' share of its weight (per class), so the
    gradient is multiplied by 1 / f: the queue changes its variance, never its scale.

    A *training call* is one in training mode with gradients enabled. Only a training call reads the queue, remembers
    rows and gathers over ranks; any other, such as validation under ``torch.no_grad()``, ranks its own rows and leaves
    no trace.

    Shapes: with ``num_classes=1``, logits ``[...]`` or ``[..., 1]`` and targets likewise, in {0, 1}; else logits
    ``[..., C]`` with class indices ``[...]`` (ranked one-vs-rest by their log-odds) or labels ``[..., C]``. The loss is
    0-d, or ``[C]`` with ``reduction="none"``, in float32 at least.

    Args:
        num_classes: 1 for binary, else the number of classes or labels.
        queue_size: rows remembered from earlier training calls, 0 for none.
        temperature: in standard deviations of the pool's iid scores, or in logits.
        temperature_unit: ``"std"`` or ``"logit"``.
        reduction: ``"mean"`` or ``"sum"`` over the defined classes, or ``"none"`` (NaN where undefined). If no class is
            defined, mean and sum are 0 with gradient 0 in a training call, else NaN.
        ignore_index: the target that means absent; NaN is allowed beside float targets.
        queue_in_eval: read the queue in other calls too.
        gather_distributed: whether to rank the rows of all ranks; None: in training calls.
        process_group: the ranks that take part; the default group if None.
        check_values: whether to look into targets and weights off the CPU too (the device waits for it).
        persistent_queue: whether the remembered rows are part of ``state_dict``.

    Raises:
        TypeError: an argument, logits or targets of a wrong type; an ``iid_mask`` for a loss without a threshold.
        ValueError: an argument out of range; in ``forward`` a wrong shape, a label out of range, or a weight that is
            negative or not finite. The queue is as it was.
    """

    has_threshold: ClassVar[bool] = False

    @checks.known_keywords
    def __init__(
        self,
        num_classes: int,
        queue_size: int = 16384,
        temperature: float = 0.05,
        temperature_unit: str = "std",
        reduction: str = "mean",
        ignore_index: float = -100,
        queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        process_group: distributed.ProcessGroup | None = None,
        check_values: bool | None = None,
        persistent_queue: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = checks.integer("num_classes", num_classes, least=1)
        self.temperature: float | Tensor = checks.positive_number("temperature", temperature)
        self.temperature_unit = checks.choice("temperature_unit", temperature_unit, ("std", "logit"))
        self.reduction = checks.choice("reduction", reduction, ("mean", "sum", "none"))
        self.ignore_index = checks.ignore_value("ignore_index", ignore_index)
        self.queue_in_eval = checks.flag("queue_in_eval", queue_in_eval)
        self.gather_distributed = checks.optional_flag("gather_distributed", gather_distributed)
        self.process_group = distributed.checked_group(process_group)
        self.check_values = checks.optional_flag("check_values", check_values)
        size = checks.integer("queue_size", queue_size, least=0)
        self.queue = MemoryQueue(size, num_classes, checks.flag("persistent_queue", persistent_queue))
        self._frozen = False
        # The last call within torch.utils.checkpoint: its rows, and the queue as it read it.
        self._checkpointed: tuple[Pool, MemoryQueue] | None = None
        self._warned: set[str] = set()
        self._judged: torch.Size | None = None

    # ---------------------------------------------------------------- what each loss defines

    @property
    def metric(self) -> SoftMetric:
        """The soft metric; each loss defines its own."""
        raise TypeError(f"{type(self).__name__} defines no soft metric; use one of the losses in rareloss")

    def hard(self, pool: Pool) -> PerClass:
        """Compute the exact metric ``[C]`` of a pool; each loss defines its own."""
        raise TypeError(f"{type(self).__name__} defines no exact metric; use one of the losses in rareloss")

    def threshold(self, pool: Pool, temperature: float) -> Tensor:
        """Compute the operating point's score ``[C]``; NaN for a loss that has none."""
        return pool.scores.new_full(pool.scores.shape[:1], torch.nan)

    def cap(self, pool: Pool) -> Tensor:
        """Compute the best reachable value ``[C]`` of the metric."""
        return torch.ones_like(pool.scores[:, 0])

    def support(self, rows: Tensor, negatives: Tensor) -> Support:
        """Compute how many rows stand behind the operating point, of a pool with so many rows and negatives."""
        return Support(rows - negatives, 1.0, "the pool's positives")

    # ---------------------------------------------------------------- what users call

    def forward(
        self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None, iid_mask: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of the pool; a training call also remembers its rows.

        Args:
            logits: as the class says.
            targets: as the class says.
            sample_weight: not negative, one per row or the shape of the logits; 0 means absent.
            iid_mask: bool, one per row: the rows drawn like deployment data, which set the threshold and the standard
                deviation; all by default. Only for a loss with a threshold.
        """
        training = is_training_call(self)
        live = self._live(logits, targets, sample_weight, iid_mask, training)
        pool = self._with_remembered(live, training)
        scale = 1.0 if pool.live is None else _dilution(live, pool)
        value, defined = self._evaluate(pool, scale)
        loss = 1 - value
        if training and self.queue.size and not self._frozen and not is_recomputation():
            self.queue.remember(live)
        loss = self._reduced(loss, defined, pool, training)
        if training and logits.numel():
            self._warn(live)
        return loss

    def reset_queue(self) -> None:
        """Forget every remembered row."""
        self.queue.reset()

    @contextmanager
    def frozen_queue(self) -> Iterator[None]:
        """Read the queue and write nothing into it, for steps that call the loss more than once.

        The closure of L-BFGS and the second pass of SAM see the pool that the step's first call saw:

        Example:
            >>> from rareloss import SmoothAPLoss
            >>> loss = SmoothAPLoss(num_classes=1, queue_size=64)
            >>> logits, targets = torch.randn(8, requires_grad=True), torch.arange(8) % 2
            >>> with loss.frozen_queue():
            ...     first, second = loss(logits, targets), loss(logits, targets)
            >>> bool(first == second)
            True
        """
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before

    @torch.no_grad()
    def diagnose(
        self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None, iid_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Describe the pool that a call in this mode would rank, without gradient and without changing any state.

        Args:
            logits: as in :meth:`forward`.
            targets: as in :meth:`forward`.
            sample_weight: as in :meth:`forward`.
            iid_mask: as in :meth:`forward`.

        Returns:
            by name, each ``[C]``: ``soft`` and ``hard``, the metric; ``positives_live``, ``positives_pool`` and
            ``rows_pool``, numbers of rows; ``live_share``, of the pool's weight; ``threshold`` and ``temperature``, in
            logits (threshold: NaN for a loss without one); ``saturated``, the share of positive-negative pairs, or of
            positives and the threshold, further apart than 8 temperatures; ``rows_above`` the threshold; ``cap``, the
            best reachable value; ``support``, the rows behind the operating point, ``support_needed`` and
            ``supported``.
        """
        live = self._live(logits, targets, sample_weight, iid_mask, self.training)
        pool = self._with_remembered(live, self.training).joined()
        soft = self._evaluate(pool)
        pool, mean, std, temperature = self._standardized(pool)
        threshold = self.threshold(pool, temperature)
        present = pool.weight > 0
        positive, negative = pool.is_positive & present, present & ~pool.is_positive
        iid = pool.threshold_weight > 0
        support = self.support(iid.sum(1), (negative & iid).sum(1))
        above = (present & (pool.scores > threshold[:, None])).sum(1)
        return {
            "soft": soft.value,
            "hard": self.hard(pool).value,
            "positives_live": (live.positive_weight > 0).sum(1),
            "positives_pool": positive.sum(1),
            "rows_pool": present.sum(1),
            "live_share": safe_ratio(live.weight.sum(1), pool.weight.sum(1)),
            "threshold": threshold * std + mean,
            "temperature": temperature * std,
            "saturated": _saturated(
                pool.scores, positive, negative, threshold if self.has_threshold else None, temperature
            ),
            "rows_above": torch.where(torch.isnan(threshold), torch.nan, above),
            "cap": self.cap(pool),
            "support": support.rows,
            "support_needed": torch.full_like(std, support.needed),
            "supported": support.rows >= support.needed,
        }

    def extra_repr(self) -> str:
        """Show the arguments that change the value."""
        shown = ("num_classes", *self.metric_arguments, "temperature", "temperature_unit", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)

    metric_arguments: ClassVar[tuple[str, ...]] = ()

    # ---------------------------------------------------------------- the steps of a call

    def _live(
        self,
        logits: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        iid_mask: Tensor | None,
        training: bool,
    ) -> Pool:
        # The rows of this call, of all ranks where they take part.
        if iid_mask is not None and not self.has_threshold:
            raise TypeError(
                f"{type(self).__name__} has no threshold that iid rows could set, so it takes no iid_mask; leave it out"
            )
        wanted = training if self.gather_distributed is None else self.gather_distributed
        gathering = wanted and distributed.world_size(self.process_group) > 1
        try:
            live = encode(
                *(logits, targets, sample_weight, iid_mask),
                num_classes=self.num_classes,
                ignore_index=self.ignore_index,
                check_values=self.check_values,
            )
        except Exception as error:
            if gathering:
                self._agree(None, error)  # raises here once the other ranks know
            raise
        return self._gathered(live.pack()[: logits.numel()]) if gathering else live  # not an empty batch's absent row

    def _gathered(self, packed: Tensor) -> Pool:
        sizes = self._agree(packed, None)
        return Pool.unpack(distributed.gather_rows(packed, self.process_group, sizes=sizes), self.check_values)

    def _agree(self, packed: Tensor | None, error: Exception | None) -> list[int]:
        settings = f"{type(self).__name__}({self.extra_repr()}, queue_size={self.queue.size})"
        return distributed.agree(packed, self.process_group, error, settings)

    def _with_remembered(self, live: Pool, training: bool) -> Pool:
        reads = self.queue.size > 0 and (training or self._frozen or self.queue_in_eval)
        if not reads:
            return live
        self.queue.allocate()
        queue = self.queue
        if is_recomputation():
            queue = self._queue_of_first_call(live)
        elif training and is_checkpointed():
            self._checkpointed = live.with_scores(live.scores.detach().clone()), copy.deepcopy(queue)
        return queue.extend(live, self.has_threshold)

    def _queue_of_first_call(self, live: Pool) -> MemoryQueue:
        if self._checkpointed is not None:
            rows, queue = self._checkpointed
            same = rows.scores.shape == live.scores.shape and torch.equal(rows.is_positive, live.is_positive)
            if same and torch.allclose(rows.scores, live.scores, equal_nan=True):
                return queue
        raise RuntimeError(
            f"{type(self).__name__} is called again within a backward pass (by torch.utils.checkpoint?), and the queue "
            "that its first call read is gone; call the loss outside of the checkpointed function"
        )

    def _evaluate(self, pool: Pool, scale: Tensor | float = 1.0) -> PerClass:
        in_std = self.temperature_unit == "std"
        if not isinstance(self.temperature, Tensor):
            return evaluate(self.metric, pool, self.temperature, in_std, scale)
        # A temperature that changes within one graph goes into the scores.
        pool = pool.joined()
        pool = standardize(pool)[0] if in_std else pool
        pool = pool.with_scores(pool.scores / self.temperature.to(pool.scores))
        return evaluate(self.metric, pool, 1.0, scale=scale)

    def _standardized(self, pool: Pool) -> tuple[Pool, Tensor, Tensor, float]:
        # The pool in the temperature's unit; what was subtracted from its scores and what they were divided by.
        temperature = float(self.temperature)
        if self.temperature_unit == "std":
            return *standardize(pool), temperature
        return pool, pool.scores.new_zeros(self.num_classes), pool.scores.new_ones(self.num_classes), temperature

    def _reduced(self, loss: Tensor, defined: Tensor, pool: Pool, training: bool) -> Tensor:
        if self.reduction == "none":
            return loss
        if pool.eager and bool(defined.all()):
            return loss.squeeze(0) if loss.shape[0] == 1 else loss.mean() if self.reduction == "mean" else loss.sum()
        total = torch.where(defined, loss, 0.0).sum()
        if self.reduction == "mean":
            total = total / defined.sum().clamp(min=1)
        # A logit that is not finite shows, also in a class that is not defined, so that an AMP scaler skips the step.
        total = total * one_or_nan(pool.scores).amin()
        return total if training else torch.where(defined.any(), total, torch.nan)

    # ---------------------------------------------------------------- warnings, once each

    def _warn(self, live: Pool) -> None:
        if not live.eager:
            return
        if not live.unweighted and not bool((live.weight > 0).any()):
            self._warn_once("no rows", "every row of this batch has weight 0 or an ignored target; nothing is learned")
            return
        if not self.has_threshold or self._judged == live.scores.shape:
            return
        self._judged = live.scores.shape
        present = live.threshold_weight > 0
        rows = present.sum(1)
        # The queue is judged as full: it is about to be.
        growth = 1 + self.queue.size / rows.clamp(min=1)
        support = self.support(rows * growth, (present & ~live.is_positive).sum(1) * growth)
        if bool((support.rows >= support.needed)[rows > 0].all()):
            return
        least = float(support.rows[rows > 0].min())
        self._warn_once(
            "support",
            f"{support.of} is {least:.3g} rows, with batch and queue_size={self.queue.size} "
            f"together; {support.needed:.0f} are needed for a stable gradient. Use a pool "
            f"{support.needed / max(least, 1e-9):.3g} times as large (batch or queue_size), or a wider point.",
        )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            checks.warn_caller(f"{type(self).__name__}: {message}")


def _dilution(live: Pool, pool: Pool) -> Tensor | float:
    # How many times too small the gradient of an average over the pool is. So small a share of live rows is none: what
    # arrives of it is rounding.
    if live.unweighted and pool.unweighted:
        return pool.scores.shape[1] / live.scores.shape[1]
    share = safe_ratio(live.weight.sum(1), pool.weight.sum(1))
    share = share.masked_fill(share < 1e-12, 0.0)
    return safe_ratio(torch.ones_like(share), share)


def _saturated(
    scores: Tensor, positive: Tensor, negative: Tensor, threshold: Tensor | None, temperature: float
) -> Tensor:
    # Pairs are counted through sorted negatives: memory and time stay those of a sort.
    reach = 8 * temperature
    if threshold is not None:
        far = ((scores - threshold[:, None]).abs() > reach) & positive
        return safe_ratio(far.sum(1).to(scores.dtype), positive.sum(1).to(scores.dtype))
    ordered = torch.where(negative, scores, torch.inf).contiguous().sort(1).values
    near = torch.searchsorted(ordered, scores + reach, right=True) - torch.searchsorted(ordered, scores - reach)
    pairs = positive.sum(1) * negative.sum(1)
    return safe_ratio((pairs - (near * positive).sum(1)).to(scores.dtype), pairs.to(scores.dtype))
