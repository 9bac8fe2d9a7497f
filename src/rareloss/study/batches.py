"""Which train rows a step of cross-entropy sees."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["batches"]


def batches(target: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and weights for ever: shuffled passes over all rows, ``size`` at a time."""
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(size)
    while True:
        order = torch.randperm(len(target), generator=generator)
        for rows in torch.split(order, size):
            if len(rows) == size:
                yield rows, ones
