"""The memory queue: rows of earlier steps, first in first out, without gradient."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rareloss.eager import is_eager
from rareloss.losses.buffers import keeping_numbers
from rareloss.pool import Pool

__all__ = ["MemoryQueue"]

# A queue of more bytes is allocated when its first rows come: nobody expects 14 GiB (100,000 classes) of a constructor.
_ALLOCATED_WHEN_MADE = 2**28


class MemoryQueue(nn.Module):
    """Remember the last ``size`` valid rows; an empty slot is a row of weight 0.

    A row is valid if it has weight in some class and its scores are finite, in float32, wherever it has weight, so
    padding does not flush the queue and a NaN does not poison it. Rows and pointer are buffers: they are saved, loaded
    and moved with the module. Scores stay in float32 at least, also after ``.half()``. Buffers of more than 256 MiB
    are allocated when the first rows come, or when they are saved or loaded.

    Args:
        size: rows remembered, 0 for none.
        num_classes: classes of a row.
        persistent: whether the rows are part of ``state_dict``.
    """

    scores: Tensor
    is_positive: Tensor
    weight: Tensor
    iid: Tensor
    pointer: Tensor

    def __init__(self, size: int, num_classes: int, persistent: bool = True) -> None:
        super().__init__()
        self.size, self.num_classes, self.persistent = size, num_classes, persistent
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        with torch.inference_mode(False):  # a buffer made in that mode could never be written outside of it
            for name, of in (("scores", dtype), ("is_positive", torch.bool), ("weight", dtype)):
                self.register_buffer(name, torch.zeros(num_classes, 0, dtype=of), persistent=persistent)
            self.register_buffer("iid", torch.zeros(1, 0, dtype=torch.bool), persistent=persistent)
            self.register_buffer("pointer", torch.zeros((), dtype=torch.int64), persistent=persistent)
        if self._bytes <= _ALLOCATED_WHEN_MADE:
            self.allocate()

    @property
    def _bytes(self) -> int:
        return self.num_classes * (self.size + 1) * (2 * self.scores.element_size() + 1)

    @property
    def is_allocated(self) -> bool:
        """Whether the buffers hold memory; before, no row is remembered."""
        return self.scores.shape[1] > 0

    def allocate(self) -> None:
        """Allocate the buffers, all slots empty, unless they are."""
        if self.is_allocated:
            return
        # A spare slot at the end, of weight 0, takes what is not to be remembered: no shape depends on the data.
        with torch.inference_mode(False):
            self.is_positive = self.is_positive.new_zeros(self.num_classes, self.size + 1)
            self.weight = self.weight.new_zeros(self.num_classes, self.size + 1)
            self.iid = self.iid.new_ones(1, self.size + 1)  # an empty slot is no mined row
            # The last, since it says that all are allocated.
            self.scores = self.scores.new_zeros(self.num_classes, self.size + 1)

    def extend(self, live: Pool, with_iid: bool = True) -> Pool:
        """Return the pool of the live rows, first, and of all slots; ``with_iid`` false takes every row for iid."""
        size = self.size
        weight, iid = self.weight.narrow(1, 0, size).to(live.weight.dtype), self.iid.narrow(1, 0, size)
        if live.unweighted and live.eager and _all_one(weight):
            all_weights = live.weight.new_ones(1, 1).expand(self.num_classes, live.scores.shape[1] + size)
        else:
            all_weights = torch.cat([live.weight, weight], 1)
        if not with_iid or (live.iid is None and live.eager and _all_one(iid.view(torch.uint8))):
            all_iid = None
        else:
            all_iid = torch.cat([_iid_of(live), iid], 1).expand(self.num_classes, -1)
        return Pool(
            torch.cat([live.scores.detach(), self.scores.narrow(1, 0, size).to(live.scores.dtype)], 1),
            torch.cat([live.is_positive, self.is_positive.narrow(1, 0, size)], 1),
            all_weights,
            all_iid,
            live.eager,
            live.scores,
        )

    def reset(self) -> None:
        """Forget every row."""
        for buffer in self.buffers():
            buffer.zero_()
        self.iid.fill_(True)

    @torch.no_grad()
    def remember(self, live: Pool) -> None:
        """Put the valid rows of ``live`` over the oldest slots, in order.

        An interrupt at any point leaves every slot as it was, empty, or as it is to be.
        """
        self.allocate()
        scores = live.scores.detach()
        eager = live.eager and is_eager(self.scores)
        if eager and live.unweighted and math.isfinite(scores.sum(dtype=torch.float32).item()):
            self._write_slices((scores, live.is_positive, _iid_of(live), live.weight))
            return
        # What float32 does not hold would be infinite in a later batch, and poison it; so would the log-odds of a class
        # that is absent in a row, whatever its weight.
        scores = scores.masked_fill(live.weight <= 0, 0.0)
        finite = scores.float() * 0 + live.weight.float() * 0 == 0
        valid = (live.weight > 0).any(0) & finite.all(0)
        rows = (scores, live.is_positive, _iid_of(live), live.weight)
        if eager:
            indices = valid.nonzero()[:, 0]
            self._write_slices(tuple(row.index_select(1, indices) for row in rows))
            return
        # A graph or a device does not wait for the number of valid rows: the others go to the spare slot.
        place, total = valid.cumsum(0), valid.sum()
        kept = valid & (place > total - self.size)
        slot = torch.where(kept, (self.pointer + place - 1) % max(self.size, 1), self.size)
        # Empty before they are written and weighted at last, so that an interrupt leaves no row half written.
        self.weight.index_fill_(1, slot, 0.0)
        for slots, values in zip(self._slots(), rows, strict=True):
            slots.index_copy_(1, slot, values.to(slots.dtype))
            slots[:, -1] = 0
        self.iid[:, -1] = True
        self.pointer.copy_((self.pointer + total) % max(self.size, 1))

    def _write_slices(self, rows: tuple[Tensor, ...]) -> None:
        # Up to the end of the buffers, and on from their start, pointer included, in one call: Ctrl-C is handled before
        # or after it, so no row is ever half written.
        total = rows[0].shape[1]
        count = min(total, self.size)
        start = (int(self.pointer) + total - count) % self.size
        first = min(count, self.size - start)
        targets = [slots.narrow(1, start, first) for slots in self._slots()]
        values = [row.narrow(1, total - count, first) for row in rows]
        if first < count:
            targets += [slots.narrow(1, 0, count - first) for slots in self._slots()]
            values += [row.narrow(1, total - count + first, count - first) for row in rows]
        pointer = self.pointer.new_tensor((start + count) % self.size)
        torch._foreach_copy_([*targets, self.pointer], [*values, pointer])

    def _holds(self, pointer: Tensor) -> bool:
        return pointer.ndim == 0 and pointer.dtype == torch.int64 and 0 <= int(pointer) < max(self.size, 1)

    def _slots(self) -> tuple[Tensor, ...]:
        return self.scores, self.is_positive, self.iid, self.weight

    def extra_repr(self) -> str:
        """Show the size, and what the buffers take."""
        return f"size={self.size}, {self._bytes / 2**20:,.1f} MiB{'' if self.is_allocated else ' when first used'}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MemoryQueue":
        super()._apply(keeping_numbers(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # Of one shape whether rows have come or not, since a distributed checkpoint is read into what is there.
        if self.persistent:
            self.allocate()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *said: list[str]
    ) -> None:
        # A queue is loaded whole or not at all: half of one would rank rows by the weights of others.
        absent = [name for name, _ in self.named_buffers() if prefix + name not in state_dict]
        remedy = (
            f"leave the keys that start with {prefix!r} out and load with strict=False, which starts an empty queue"
        )
        other, pointer = state_dict.get(prefix + "scores"), state_dict.get(prefix + "pointer")
        if absent and len(absent) < len(list(self.buffers())):
            lost = ", ".join(prefix + name for name in absent)
            said[-1].append(f"the queue of the checkpoint lacks {lost}; {remedy}")
        elif isinstance(other, Tensor) and other.shape != (self.num_classes, self.size + 1):
            theirs = list(other.shape) if other.ndim != 2 else [other.shape[1] - 1, other.shape[0]]
            said[-1].append(
                f"size mismatch for {prefix[:-1]}: the checkpoint has queue_size={theirs[0]} and "
                f"num_classes={theirs[-1]}, this loss queue_size={self.size} and "
                f"num_classes={self.num_classes}; make the loss with the checkpoint's, or {remedy}"
            )
        elif isinstance(pointer, Tensor) and is_eager(pointer) and not self._holds(pointer):
            said[-1].append(
                f"the queue of the checkpoint has {prefix}pointer={pointer.tolist()}, none of its {self.size} slots; "
                f"{remedy}"
            )
        else:
            if not absent and self.persistent:
                self.allocate()
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *said)


def _all_one(x: Tensor) -> bool:
    # One pass that writes nothing; a comparison and all() of bools take five times as long.
    low, high = torch.aminmax(x)
    return low.item() == 1 == high.item()


def _iid_of(live: Pool) -> Tensor:
    return live.is_positive.new_ones(1, live.scores.shape[1]) if live.iid is None else live.iid[:1]
