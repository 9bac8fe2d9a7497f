"""Loss warm-up: a schedule from one loss to another, since a ranking loss learns little from a cold start."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rareloss import checks, distributed
from rareloss.eager import is_recomputation, is_training_call
from rareloss.losses import RankingLoss

__all__ = ["LossWarmupWrapper"]

# The phases of the schedule. The last call of the warm-up is one of its own, since it empties the queue.
_WARMUP, _LAST_OF_WARMUP, _BLEND, _MAIN = range(4)


class LossWarmupWrapper(nn.Module):
    r"""Train on ``warmup_loss`` first, then on a linear blend, then on ``main_loss``.

    .. math:: L = (1 - m_k) \, L_\text{warm-up} + m_k \, L_\text{main}, \qquad
              m_k = m \, \min\Big(1, \max\big(0, \frac{k - K + 1}{B + 1}\big)\Big), \qquad
              t_k = t_0 \Big(\frac{t_1}{t_0}\Big)^{\min(1, \, \max(0, k - K) / D)}

    at the k-th training call (from 0), with K ``warmup_steps``, B ``blend_steps``, m ``final_main_weight`` and D
    ``temp_decay_steps``. Weight and temperature depend on k alone. k counts this module's training calls, those in
    training mode with gradients enabled, so there is no hook to call and validation under ``no_grad`` changes nothing.
    For epochs, ``warmup_steps = epochs * len(loader)``. A loss of weight 0 is not computed. With the last call of the
    warm-up, rows that ``main_loss`` remembers are dropped. An AMP step that the scaler skips counts; ``step`` can be
    set.

    Where a step calls the loss more than once (SAM, closures of L-BFGS), all calls but one go inside
    :meth:`frozen_queue`. ``torch.utils.checkpoint`` with ``use_reentrant=False`` counts a call once, but recomputes it
    one step later in the schedule: leave the loss outside of the function that is checkpointed.

    ``warmup_loss`` may be any module. A plain ``nn.BCEWithLogitsLoss`` or ``nn.CrossEntropyLoss`` gets its targets in
    the shape and dtype that it wants, without the rows that ``main_loss`` ignores; over ragged ranks its mean is that
    of the whole batch. Any other loss is called as ``loss(logits, targets)``, with ``sample_weight`` if that is given,
    and with ``iid_mask`` if that is given and the loss has an attribute ``has_threshold`` that is true.

    Under ``torch.compile`` each of the four phases (warm-up, its last call, blend, after) is one graph.

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
        TypeError: an argument of a wrong type; in ``forward``, a ``sample_weight`` that a loss in use, or yet to come,
            cannot take, or an ``iid_mask`` where no loss has a threshold.
        ValueError: an argument out of range; in ``forward``, whatever the losses refuse.

    Example:
        >>> from rareloss.losses import SmoothAPLoss
        >>> main = SmoothAPLoss(1, queue_size=0)
        >>> loss = LossWarmupWrapper(nn.BCEWithLogitsLoss(), main, warmup_steps=1, blend_steps=1)
        >>> logits, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0])
        >>> [(loss.main_weight, round(loss(logits, targets).item(), 3)) for _ in range(3)]
        [(0.0, 0.313), (0.5, 0.157), (1.0, 0.0)]
    """

    @checks.known_keywords
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
        # On the CPU and no buffer: graphs and Python read it without a wait, whatever device the losses are moved to.
        with torch.inference_mode(False):  # a tensor made in that mode could never be written outside of it
            self._step = torch.zeros((), dtype=torch.int64, device="cpu")
        self._frozen = False
        self.step = 0

    @property
    def step(self) -> int:
        """Training calls so far; can be set."""
        return int(self._step)

    @step.setter
    def step(self, value: int) -> None:
        self._step.fill_(checks.integer("step", value, least=0))
        self._phase: int = _phase(self._step, self.warmup_steps, self.blend_steps)
        if self.temp_start is not None:  # set here too, so that a resumed main_loss is right before its next call
            self.main_loss.temperature = self._temperature_at(value)  # type: ignore[assignment]

    @property
    def main_weight(self) -> float:
        """Weight of ``main_loss`` in the next call."""
        return float(self._weight_at(self.step))

    @property
    def in_warmup(self) -> bool:
        """Whether the next call uses ``warmup_loss`` alone."""
        return self._phase in (_WARMUP, _LAST_OF_WARMUP)

    @property
    def in_blend(self) -> bool:
        """Whether the next call lies between warm-up and the final weight."""
        return self._phase == _BLEND

    @property
    def temperature(self) -> float | None:
        """Temperature of ``main_loss`` in the next call; None if it has none."""
        if self.temp_start is None:
            temperature: float | None = getattr(self.main_loss, "temperature", None)
            return temperature
        return float(self._temperature_at(self.step))

    def reset_queue(self) -> None:
        """Forget the rows that the losses remember."""
        for loss in (self.warmup_loss, self.main_loss):
            if isinstance(loss, RankingLoss):
                loss.reset_queue()

    @contextlib.contextmanager
    def frozen_queue(self) -> Iterator[None]:
        """Call the loss without counting the calls, and without a change of the rows that the losses remember.

        For the second and later calls of one optimizer step: ``with loss.frozen_queue(): optimizer.step(closure)``.
        """
        before, self._frozen = self._frozen, True
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "_frozen", before)
            for loss in dict.fromkeys((self.warmup_loss, self.main_loss)):
                freeze: Any = getattr(loss, "frozen_queue", contextlib.nullcontext)
                stack.enter_context(freeze())
            yield

    def forward(
        self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None, iid_mask: Tensor | None = None
    ) -> Tensor:
        """Compute the blend at this step, and count it in training mode with gradients enabled.

        Args:
            logits: as the losses take them.
            targets: as ``main_loss`` takes them.
            sample_weight: goes to the losses in use; an error if one that is in use, or will be, cannot take it.
            iid_mask: goes to the losses that have a threshold; an error if neither has one.
        """
        # In a graph the schedule is computed by tensors of the step, so that one graph holds for a whole phase.
        step: int | Tensor = self._step.double() if torch.compiler.is_compiling() else self.step
        weight = self._weight_at(step) if self._phase == _BLEND else self.final_main_weight
        if self.temp_start is not None:
            self.main_loss.temperature = self._temperature_at(step)  # type: ignore[assignment]
        warming, done = self.in_warmup, self._phase == _MAIN and self.final_main_weight == 1.0
        for loss in (self.main_loss,) if done else (self.warmup_loss, self.main_loss):
            if sample_weight is not None and _is_torch(loss):
                raise TypeError(
                    f"{type(loss).__name__} takes no sample_weight, and weights are never dropped; "
                    "use a loss of rareloss, for example SigmoidFocalLoss(alpha=None, gamma=0.0) for cross-entropy"
                )
        if iid_mask is not None and not (_has_threshold(self.warmup_loss) or _has_threshold(self.main_loss)):
            raise TypeError("neither loss has a threshold that an iid_mask could set; leave iid_mask out")
        options = {"sample_weight": sample_weight, "iid_mask": iid_mask}
        if warming or done:
            value = self._call(self.warmup_loss if warming else self.main_loss, logits, targets, options)
        else:
            first, last = (self._call(loss, logits, targets, options) for loss in (self.warmup_loss, self.main_loss))
            weight = weight.to(last.dtype) if isinstance(weight, Tensor) else weight
            value = (1.0 - weight) * first + weight * last
        if is_training_call(self) and not self._frozen and not is_recomputation():
            self._count()
        return value

    def get_extra_state(self) -> Tensor:
        """Return the number of training calls, for ``state_dict``."""
        return self._step.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Take the number of training calls from a ``state_dict``."""
        self.step = int(state)

    def extra_repr(self) -> str:
        """Show the schedule."""
        return (
            f"step={self.step}, warmup_steps={self.warmup_steps}, blend_steps={self.blend_steps}, "
            f"final_main_weight={self.final_main_weight}"
        )

    def _count(self) -> None:
        if self._phase == _LAST_OF_WARMUP and isinstance(self.main_loss, RankingLoss):
            self.main_loss.reset_queue()  # of scores that the warm-up has left behind
        if torch.compiler.is_compiling():
            self._step.add_(1)
            self._phase = _traced_phase(self._step, self.warmup_steps, self.blend_steps)
        else:
            self.step += 1

    def _weight_at(self, step: float | Tensor) -> float | Tensor:
        return self.final_main_weight * _clamp((step - self.warmup_steps + 1) / (self.blend_steps + 1))

    def _temperature_at(self, step: float | Tensor) -> float | Tensor:
        assert self.temp_start is not None
        assert self.temp_end is not None
        decay = _clamp((step - self.warmup_steps) / self.temp_decay_steps)
        return self.temp_start * (self.temp_end / self.temp_start) ** decay

    def _call(self, loss: nn.Module, logits: Tensor, targets: Tensor, options: dict[str, Tensor | None]) -> Tensor:
        if _is_torch(loss):
            return self._torch_loss(loss, logits, targets)
        names = ("sample_weight", "iid_mask") if _has_threshold(loss) else ("sample_weight",)
        value: Tensor = loss(logits, targets, **{name: options[name] for name in names if options[name] is not None})
        return value

    def _torch_loss(self, loss: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
        ignore_index = getattr(self.main_loss, "ignore_index", -100)
        if loss.reduction == "none":
            return _torch_terms(loss, logits, targets, ignore_index)[0]

        sums = partial(_torch_sums, loss, logits, targets, ignore_index)
        gathers = getattr(self.main_loss, "gather_distributed", None) is not False
        gathers = gathers and is_training_call(self)
        return distributed.mean_over_ranks(sums, getattr(self.main_loss, "process_group", None), among_ranks=gathers)


def _phase(step: Tensor, warmup_steps: int, blend_steps: int) -> int:
    ends = (warmup_steps - 1, warmup_steps, warmup_steps + blend_steps)
    return sum(int(step) >= end for end in ends)


# A graph counts in a tensor, but Python chooses among graphs: this op gives the tensor's phase back to Python.
_traced_phase = torch.library.custom_op("rareloss::warmup_phase", _phase, mutates_args=())


@_traced_phase.register_fake
def _(step: Tensor, warmup_steps: int, blend_steps: int) -> Any:
    return torch.library.get_ctx().new_dynamic_size()


def _clamp(number: float | Tensor) -> float | Tensor:
    return number.clamp(0.0, 1.0) if isinstance(number, Tensor) else min(1.0, max(0.0, number))


def _has_threshold(loss: nn.Module) -> bool:
    return bool(getattr(loss, "has_threshold", False))


def _is_torch(loss: nn.Module) -> bool:
    # These two themselves: a class made from one of them has a forward of its own to call.
    return type(loss) in (nn.BCEWithLogitsLoss, nn.CrossEntropyLoss)


def _torch_sums(loss: nn.Module, logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    terms, weights = _torch_terms(loss, logits, targets, ignore_index)
    return terms.sum(), weights.sum() if loss.reduction == "mean" else None


def _torch_terms(loss: nn.Module, logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Compute one of torch's two cross-entropies, unreduced, on what a ranking loss takes; and the terms' weights.

    Where targets may not be looked at, one that is no label makes its term NaN.
    """
    checks.floating("logits", logits)
    checks.is_tensor("targets", targets)
    # As every loss here: half precision can neither sum up many terms nor count many rows.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # An ignored logit is taken out before the loss, so that a NaN there leaves no gradient.
    if isinstance(loss, nn.CrossEntropyLoss):
        if not logits.ndim:
            raise ValueError("logits must have shape [..., C] beside class indices, got (); give them a dimension")
        checks.same_shape("targets", targets, logits.shape[:-1])
        checks.class_indices("targets", targets, logits.shape[-1], ignore_index)
        fits = _one_or_nan(targets, logits.shape[-1], ignore_index, logits.dtype).reshape(-1)
        classes = torch.where(fits == 1, targets.reshape(-1), 0).long()
        classes = classes.masked_fill(checks.ignored(targets, ignore_index).reshape(-1), loss.ignore_index)
        valid = classes != loss.ignore_index
        class_weight = None if loss.weight is None else loss.weight.to(logits.dtype)
        terms = F.cross_entropy(
            torch.where(valid[:, None], logits.reshape(-1, logits.shape[-1]), 0.0),
            classes,
            weight=class_weight,
            ignore_index=loss.ignore_index,
            label_smoothing=loss.label_smoothing,
            reduction="none",
        )
        weights = valid.to(terms.dtype)
        weights = weights if class_weight is None else weights * class_weight[torch.where(valid, classes, 0)]
        return terms * fits, weights
    assert isinstance(loss, nn.BCEWithLogitsLoss)
    shape = logits.shape[:-1] if logits.shape[-1:] == (1,) else (*logits.shape, 1)
    checks.same_shape("targets", targets, logits.shape, shape)
    checks.labels("targets", targets, ignore_index)
    targets = targets.reshape(logits.shape)
    valid = ~checks.ignored(targets, ignore_index)
    terms = F.binary_cross_entropy_with_logits(
        torch.where(valid, logits, 0.0),
        torch.where(valid, targets, 0).to(logits.dtype),
        weight=loss.weight,
        pos_weight=loss.pos_weight,
        reduction="none",
    )
    return terms * valid * _one_or_nan(targets, 2, ignore_index, logits.dtype), valid.to(terms.dtype)


def _one_or_nan(targets: Tensor, classes: int, ignore_index: float, dtype: torch.dtype) -> Tensor:
    return torch.where(checks.in_range(targets, classes, ignore_index), 1.0, torch.nan).to(dtype)
