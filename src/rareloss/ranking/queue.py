"""The memory queue: rows of earlier steps, first in first out, without gradient."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rareloss.ranking.encode import Rows

__all__ = ["MemoryQueue"]


class MemoryQueue(nn.Module):
    """Remember the last ``size`` valid rows; an empty slot is a row of weight 0.

    A row is valid if it has weight in some class and its scores are finite wherever it has weight, so padding does not
    flush the queue and a NaN does not poison it. Rows and pointer are buffers: they are saved, loaded and moved with
    the module. Scores stay in float32 at least, also after ``.half()``.

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
        self.register_buffer("scores", torch.zeros(size + 1, num_classes, dtype=dtype))
        self.register_buffer("positive", torch.zeros(size + 1, num_classes, dtype=torch.bool))
        self.register_buffer("weight", torch.zeros(size + 1, num_classes, dtype=dtype))
        self.register_buffer("iid", torch.zeros(size + 1, dtype=torch.bool))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def rows(self) -> Rows:
        """Return all slots, empty ones with weight 0."""
        return Rows(self.scores[:-1], self.positive[:-1], self.weight[:-1], self.iid[:-1])

    def reset(self) -> None:
        """Forget every row."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def remember(self, live: Rows) -> None:
        """Put the valid rows of ``live`` over the oldest slots, in order."""
        present = live.weight > 0
        valid = present.any(1) & (torch.isfinite(live.scores) | ~present).all(1)
        place = valid.cumsum(0)
        total = valid.sum()
        kept = valid & (place > total - self.size)
        slot = torch.where(kept, (self.pointer + place - 1) % max(self.size, 1), self.size)
        self.scores.index_copy_(0, slot, torch.where(present, live.scores, 0.0).to(self.scores.dtype))
        self.positive.index_copy_(0, slot, live.positive & present)
        self.weight.index_copy_(0, slot, live.weight.to(self.weight.dtype))
        self.iid.index_copy_(0, slot, live.iid)
        for buffer in (self.scores, self.positive, self.weight, self.iid):
            buffer[-1] = 0
        self.pointer.copy_((self.pointer + total) % max(self.size, 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MemoryQueue":
        def widened(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and torch.finfo(moved.dtype).bits < 32:
                return tensor.to(moved.device)
            return moved

        super()._apply(widened, recurse)  # type: ignore[no-untyped-call]
        return self
