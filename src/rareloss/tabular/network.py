"""The small network that is trained on a table, and the batches that its steps see."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["NETWORK", "batches", "perceptron"]

# Of the descent on cross-entropy; a batch is an eighth of the rows where there are fewer.
NETWORK = {"steps": 400, "batch": 1024, "warm_up": 40, "every": 20}


def perceptron(n_features: int, n_outputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Build hidden layers of given widths with ReLU, and a linear output."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(n_features, width), nn.ReLU()]
        n_features = width
    return nn.Sequential(*layers, nn.Linear(n_features, n_outputs))


def batches(target: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and weights for ever: shuffled passes over all rows, ``size`` at a time."""
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(size)
    while True:
        order = torch.randperm(len(target), generator=generator)
        for rows in torch.split(order, size):
            if len(rows) == size:
                yield rows, ones
