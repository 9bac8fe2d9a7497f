"""Warm up on one loss, blend, then train on another: a ranking loss has no information to give at a cold start."""

import inspect
import itertools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rareloss import checks, distributed
from rareloss.losses import RankingLoss

__all__ = ["LossWarmupWrapper"]


class LossWarmupWrapper(nn.Module):
    r"""Train on ``warmup_loss`` first, then on a blend, then on ``main_loss``.

    .. math:: L = (1 - m_k) \, L_\text{warm-up} + m_k \, L_\text{main}, \qquad
              m_k = m \, \min\Big(1, \max\big(0, \frac{k - K + 1}{B + 1}\big)\Big), \qquad
              t_k = t_0 \Big(\frac{t_1}{t_0}\Big)^{\min(1, \, \max(0, k - K) / D)}

    at the k-th training call (from 0), with K ``warmup_steps``, B ``blend_steps``, m ``final_main_weight`` and D
    ``temp_decay_steps``. Weight and temperature depend on k alone, and k counts this module's calls in training mode:
    there is no hook to call. For epochs, ``warmup_steps = epochs * len(loader)``. A loss of weight 0 is not computed.
    With the last call of the warm-up, rows that ``main_loss`` remembers are dropped. An AMP step that the scaler skips
    counts; ``step`` can be set.

    ``warmup_loss`` may be any module. A plain ``nn.BCEWithLogitsLoss`` or ``nn.CrossEntropyLoss`` gets its targets in
    the shape and dtype that it wants, without the rows that ``main_loss`` ignores; over ragged ranks its mean is that
    of the whole batch.

    Args:
        warmup_loss: called with logits and targets.
        main_loss: the loss to end with.
        warmup_steps: K, training calls on ``warmup_loss`` alone.
        blend_steps: B, training calls on the blend.
        temp_start: temperature of ``main_loss`` until step K; needs ``temp_end``.
        temp_end: temperature of ``main_loss`` from step K + D on.
        temp_decay_steps: D.
        final_main_weight: m in (0, 1].

    Raises:
        TypeError: an argument of a wrong type; in ``forward``, a ``sample_weight`` or ``iid_mask`` that a loss in use
            cannot take.
        ValueError: an argument out of range; in ``forward``, whatever the losses refuse.

    Example:
        >>> from rareloss.losses import SmoothAPLoss
        >>> main = SmoothAPLoss(1, queue_size=0)
        >>> loss = LossWarmupWrapper(nn.BCEWithLogitsLoss(), main, warmup_steps=1, blend_steps=1)
        >>> logits, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0])
        >>> [(loss.main_weight, round(loss(logits, targets).item(), 3)) for _ in range(3)]
        [(0.0, 0.313), (0.5, 0.157), (1.0, 0.0)]
    """

    def __init__(
        self,
        warmup_loss: nn.Module,
        main_loss: nn.Module,
        *,
        warmup_steps: int,
        blend_steps: int = 0,
        temp_start: float | None = None,
        temp_end: float | None = None,
        temp_decay_steps: int = 10_000,
        final_main_weight: float = 1.0,
    ) -> None:
        super().__init__()
        for name, loss in (("warmup_loss", warmup_loss), ("main_loss", main_loss)):
            if not isinstance(loss, nn.Module):
                raise TypeError(f"{name} must be an nn.Module, got {type(loss).__name__}; wrap a function in a module")
        self.warmup_loss, self.main_loss = warmup_loss, main_loss
        self.warmup_steps = checks.integer("warmup_steps", warmup_steps, least=0)
        self.blend_steps = checks.integer("blend_steps", blend_steps, least=0)
        self.temp_decay_steps = checks.integer("temp_decay_steps", temp_decay_steps, least=1)
        self.final_main_weight = checks.probability("final_main_weight", final_main_weight, open_low=True)
        if (temp_start is None) != (temp_end is None):
            raise ValueError(
                f"give temp_start and temp_end together, got temp_start={temp_start} and temp_end={temp_end}"
            )
        if temp_start is not None and not hasattr(main_loss, "temperature"):
            raise ValueError(
                f"main_loss ({type(main_loss).__name__}) has no temperature to decay; leave temp_start out"
            )
        self.temp_start = None if temp_start is None else checks.positive_number("temp_start", temp_start)
        self.temp_end = None if temp_end is None else checks.positive_number("temp_end", temp_end)
        # Where a graph can read and count it, whatever device the losses are moved to.
        with torch.inference_mode(False):  # a tensor made in that mode could never be written outside of it
            self._count = torch.zeros((), dtype=torch.int64, device="cpu")
        self._register()
        self.step = 0

    @property
    def step(self) -> int:
        """Training calls so far; can be set."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step = checks.integer("step", value, least=0)
        self._count.fill_(value)
        self._phase = "warm-up" if self.in_warmup else "blend" if self.in_blend else "after"
        if self.temp_start is not None:  # set here, so that a resumed main_loss is right before its next call too
            self.main_loss.temperature = self.temperature  # type: ignore[assignment]

    @property
    def main_weight(self) -> float:
        """Weight of ``main_loss`` in the next call."""
        share = (self._step - self.warmup_steps + 1) / (self.blend_steps + 1)
        return self.final_main_weight * min(1.0, max(0.0, share))

    @property
    def in_warmup(self) -> bool:
        """Whether the next call uses ``warmup_loss`` alone."""
        return self._step < self.warmup_steps

    @property
    def in_blend(self) -> bool:
        """Whether the next call lies between warm-up and the final weight."""
        return self.warmup_steps <= self._step < self.warmup_steps + self.blend_steps

    @property
    def temperature(self) -> float | None:
        """Temperature of ``main_loss`` in the next call; None if it has none."""
        if self.temp_start is None or self.temp_end is None:
            temperature: float | None = getattr(self.main_loss, "temperature", None)
            return temperature
        done = min(1.0, max(0, self._step - self.warmup_steps) / self.temp_decay_steps)
        return float(self.temp_start * (self.temp_end / self.temp_start) ** done)

    def reset_queue(self) -> None:
        """Forget the rows that the losses remember."""
        for loss in (self.warmup_loss, self.main_loss):
            if isinstance(loss, RankingLoss):
                loss.reset_queue()

    def forward(
        self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None, iid_mask: Tensor | None = None
    ) -> Tensor:
        """Compute the blend at this step, and count it in training mode.

        Args:
            logits: as the losses take them.
            targets: as ``main_loss`` takes them.
            sample_weight: goes to both losses; an error if a loss in use cannot take it.
            iid_mask: goes to the loss that has a threshold; an error if neither has one.
        """
        given = {"sample_weight": sample_weight, "iid_mask": iid_mask}
        takers = {name: [loss for loss in (self.warmup_loss, self.main_loss) if _takes(loss, name)] for name in given}
        if sample_weight is not None and len(takers["sample_weight"]) < 2:
            refusing = self.warmup_loss if self.warmup_loss not in takers["sample_weight"] else self.main_loss
            raise TypeError(
                f"{type(refusing).__name__} takes no sample_weight, and weights are never dropped; "
                "use a loss of rareloss, for example SigmoidFocalLoss(alpha=None, gamma=0.0) for cross-entropy"
            )
        if iid_mask is not None and not takers["iid_mask"]:
            raise TypeError("neither loss has a threshold that an iid_mask could set; leave iid_mask out")

        def called(loss: nn.Module) -> Tensor:
            taken = {name: value for name, value in given.items() if value is not None and loss in takers[name]}
            result: Tensor = (
                self._torch_loss(loss, logits, targets) if _is_torch(loss) else loss(logits, targets, **taken)
            )
            return result

        weight: float | Tensor = self._trace_schedule() if torch.compiler.is_compiling() else self.main_weight
        if not isinstance(weight, Tensor) and weight in (0.0, 1.0):
            loss = called(self.main_loss if weight else self.warmup_loss)
        else:
            first, last = called(self.warmup_loss), called(self.main_loss)
            weight = weight.to(last.dtype) if isinstance(weight, Tensor) else weight
            loss = (1.0 - weight) * first + weight * last
        if self.training and torch.compiler.is_compiling():
            _count_call(self._count, self._number)
        elif self.training:
            self._count_one()
        return loss

    def get_extra_state(self) -> Tensor:
        """Return the number of training calls, for ``state_dict``."""
        return torch.tensor(self._step)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the number of training calls from a ``state_dict``."""
        self.step = int(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes of a copy, which counts for itself."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._register()

    def extra_repr(self) -> str:
        """Show the schedule."""
        return (
            f"step={self._step}, warmup_steps={self.warmup_steps}, blend_steps={self.blend_steps}, "
            f"final_main_weight={self.final_main_weight}"
        )

    def _register(self) -> None:
        self._number = next(_NUMBERS)
        _WRAPPERS[self._number] = self

    def _count_one(self) -> None:
        self.step += 1
        if self._step == self.warmup_steps and isinstance(self.main_loss, RankingLoss):
            self.main_loss.reset_queue()  # of scores that the warm-up has left behind

    def _trace_schedule(self) -> float | Tensor:
        # Weight and temperature as tensors of the step, so that a graph holds for a whole phase: it is chosen by
        # Python's values alone, and step is none that it looks at.
        done = (self._count - self.warmup_steps).double()
        if self.temp_start is not None and self.temp_end is not None:
            decayed = (done.clamp(min=0) / self.temp_decay_steps).clamp(max=1.0)
            temperature = self.temp_start * (self.temp_end / self.temp_start) ** decayed
            self.main_loss.temperature = temperature
        if self._phase != "blend":
            return 0.0 if self._phase == "warm-up" else self.final_main_weight
        return self.final_main_weight * (done + 1) / (self.blend_steps + 1)

    def _torch_loss(self, loss: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
        ignore_index = getattr(self.main_loss, "ignore_index", -100)
        if loss.reduction == "none":
            return _torch_terms(loss, logits, targets, ignore_index)[0]

        def sums() -> tuple[Tensor, Tensor | None]:
            terms, counted = _torch_terms(loss, logits, targets, ignore_index)
            return terms.sum(), counted.sum() if loss.reduction == "mean" else None

        gathering = self.training and getattr(self.main_loss, "gather_distributed", None) is not False
        return distributed.mean_over_ranks(sums, getattr(self.main_loss, "process_group", None), among_ranks=gathering)


# By number, so that an op of a compiled graph finds the wrapper whose call it counts.
_NUMBERS = itertools.count()
_WRAPPERS: "weakref.WeakValueDictionary[int, LossWarmupWrapper]" = weakref.WeakValueDictionary()


@torch.library.custom_op("rareloss::count_call", mutates_args={"count"})
def _count_call(count: Tensor, number: int) -> None:
    # Counts for the graphs to come in the tensor, and for Python, which chooses among graphs, in the wrapper.
    wrapper = _WRAPPERS[number]
    wrapper._count_one()
    count.fill_(wrapper.step)


@_count_call.register_fake
def _(count: Tensor, number: int) -> None:
    return None


def _takes(loss: nn.Module, name: str) -> bool:
    return name in inspect.signature(loss.forward).parameters


def _is_torch(loss: nn.Module) -> bool:
    # These two themselves: a class made from one of them has a forward of its own to call.
    return type(loss) in (nn.BCEWithLogitsLoss, nn.CrossEntropyLoss)


def _torch_terms(loss: nn.Module, logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Compute one of torch's two cross-entropies, unreduced, on what a ranking loss takes; and the terms' weights."""
    checks.floating("logits", logits)
    checks.is_tensor("targets", targets)
    # As every loss here: half precision can neither sum up many terms nor count many rows.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if isinstance(loss, nn.CrossEntropyLoss):
        if not logits.ndim:
            raise ValueError("logits must have shape [..., C] beside class indices, got (); give them a dimension")
        checks.same_shape("targets", targets, logits.shape[:-1])
        checks.class_indices("targets", targets, logits.shape[-1], ignore_index)
        flat = torch.where(checks.ignored(targets, ignore_index), loss.ignore_index, targets.long()).reshape(-1)
        # An ignored logit is taken out before the loss, so that a NaN there leaves no gradient.
        kept = (flat != loss.ignore_index)[:, None]
        of_class = None if loss.weight is None else loss.weight.to(logits.dtype)
        terms = F.cross_entropy(
            torch.where(kept, logits.reshape(-1, logits.shape[-1]), 0.0),
            flat,
            weight=of_class,
            ignore_index=loss.ignore_index,
            label_smoothing=loss.label_smoothing,
            reduction="none",
        )
        counted = kept[:, 0].to(terms.dtype)
        if of_class is not None:
            counted = counted * of_class[torch.where(flat == loss.ignore_index, 0, flat)]
        return terms, counted
    assert isinstance(loss, nn.BCEWithLogitsLoss)
    checks.same_shape(
        "targets", targets, logits.shape, logits.shape[:-1] if logits.shape[-1:] == (1,) else (*logits.shape, 1)
    )
    checks.labels("targets", targets, ignore_index)
    kept = ~checks.ignored(targets, ignore_index).reshape(logits.shape)
    terms = F.binary_cross_entropy_with_logits(
        torch.where(kept, logits, 0.0),
        torch.where(kept, targets.reshape(logits.shape), 0).to(logits.dtype),
        weight=loss.weight,
        pos_weight=loss.pos_weight,
        reduction="none",
    )
    counted = kept.to(terms.dtype)
    return terms * counted, counted
