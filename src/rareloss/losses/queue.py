"""The memory queue: rows of earlier steps, first in first out, without gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rareloss import checks
from rareloss.losses.buffers import keeping_numbers
from rareloss.losses.encode import Rows

__all__ = ["MemoryQueue"]


class MemoryQueue(nn.Module):
    """Remember the last ``size`` valid rows; an empty slot is a row of weight 0.

    A row is valid if it has weight in some class and its scores are finite, in float32, wherever it has weight, so
    padding does not flush the queue and a NaN does not poison it. Rows and pointer are buffers: they are saved, loaded
    and moved with the module. Scores stay in float32 at least, also after ``.half()``.

    Args:
        size: rows remembered, 0 for none.
        num_classes: columns of a row.
    """

    scores: Tensor
    positive: Tensor
    weight: Tensor
    iid: Tensor
    pointer: Tensor

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.size = size
        # A spare row at the end, of weight 0, takes what is not to be remembered: no shape depends on the data.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        with torch.inference_mode(False):  # a buffer made in that mode could never be written outside of it
            self.register_buffer("scores", torch.zeros(size + 1, num_classes, dtype=dtype))
            self.register_buffer("positive", torch.zeros(size + 1, num_classes, dtype=torch.bool))
            self.register_buffer("weight", torch.zeros(size + 1, num_classes, dtype=dtype))
            self.register_buffer("iid", torch.zeros(size + 1, dtype=torch.bool))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def rows(self) -> Rows:
        """Return all slots, empty ones with weight 0."""
        return Rows(*(slots[:-1] for slots in self._slots()))

    def reset(self) -> None:
        """Forget every row."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def remember(self, live: Rows) -> None:
        """Put the valid rows of ``live`` over the oldest slots, in order."""
        # What float32 does not hold would be infinite in a later batch, and poison it; so would the log-odds of a class
        # that is absent in a row, whatever its weight.
        live = live._replace(scores=live.scores.masked_fill(live.weight <= 0, 0.0))
        finite = live.scores.float() * 0 + live.weight.float() * 0 == 0
        valid = (live.weight > 0).any(1) & finite.all(1)
        rows, size = len(live.scores), self.size
        if rows <= size and checks.values_readable(live.scores) and bool(valid.all()):
            # As below, by slices: up to the end of the buffers, and on from their start.
            start = int(self.pointer)
            first = min(rows, size - start)
            for slots, values in zip(self._slots(), live, strict=True):
                slots[start : start + first] = values[:first]
                if first < rows:
                    slots[: rows - first] = values[first:]
            self.pointer.fill_((start + rows) % max(size, 1))
            return
        place = valid.cumsum(0)
        total = valid.sum()
        kept = valid & (place > total - size)
        slot = torch.where(kept, (self.pointer + place - 1) % max(size, 1), size)
        for slots, values in zip(self._slots(), live, strict=True):
            slots.index_copy_(0, slot, values.to(slots.dtype))
            slots[-1] = 0
        self.pointer.copy_((self.pointer + total) % max(size, 1))

    def _slots(self) -> Rows:
        return Rows(self.scores, self.positive, self.weight, self.iid)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MemoryQueue":
        super()._apply(keeping_numbers(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *said: list[str]
    ) -> None:
        # A queue is loaded whole or not at all: half of one would rank rows by the weights of others.
        absent = [name for name, _ in self.named_buffers() if prefix + name not in state_dict]
        other = state_dict.get(prefix + "scores")
        if absent and len(absent) < len(list(self.buffers())):
            said[-1].append(f"the queue of the checkpoint lacks {', '.join(prefix + name for name in absent)}")
        elif isinstance(other, Tensor) and other.ndim == 2 and other.shape != self.scores.shape:
            said[-1].append(
                f"size mismatch for {prefix[:-1]}: the checkpoint has queue_size={len(other) - 1} and "
                f"num_classes={other.shape[1]}, this loss queue_size={self.size} and "
                f"num_classes={self.scores.shape[1]}; make the loss with the checkpoint's, or leave the keys that "
                f"start with {prefix!r} out and load with strict=False, which starts an empty queue"
            )
        else:
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *said)
