"""Batches: inputs, targets and sample weights of a training step, and stratified samples of the rows to rank."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Batch", "PoolSampler", "as_batch", "is_batch", "sample_pools", "select_rows"]


class Batch(NamedTuple):
    """Rows that a step is taken on.

    Args:
        inputs: the model's argument; a tuple holds several.
        targets: as the loss takes them.
        weight: sample weights ``[n]``, or None.
    """

    inputs: Any
    targets: Tensor
    weight: Tensor | None = None


def is_batch(value: Any) -> bool:
    """Whether ``value`` is one batch, not an iterable of batches."""
    return isinstance(value, (tuple, list)) and len(value) in (2, 3) and isinstance(value[1], Tensor)


def as_batch(name: str, value: Any) -> Batch:
    """Check a batch, or concatenate an iterable of batches.

    Args:
        name: of the argument, for messages.
        value: ``(inputs, targets)``, ``(inputs, targets, weight)``, or an iterable of such batches.

    Raises:
        TypeError: neither a batch nor an iterable of batches.
        ValueError: no rows, numbers of rows that differ, or weights in some batches only.
    """
    if not is_batch(value):
        return _concatenated(name, value)
    batch = Batch(*value)
    rows = {len(tensor) for tensor in pytree.tree_leaves(tuple(batch)) if isinstance(tensor, Tensor) and tensor.ndim}
    if rows == {0}:
        raise ValueError(f"{name} holds no row")
    if len(rows) != 1:
        raise ValueError(f"inputs, targets and weight of {name} must have the same rows, got {sorted(rows)}")
    return batch


def _concatenated(name: str, value: Any) -> Batch:
    if isinstance(value, (Tensor, str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(
            f"{name} must be (inputs, targets) or (inputs, targets, weight), or an iterable of such batches, got "
            f"{type(value).__name__}"
        )
    batches = [as_batch(f"a batch of {name}", batch) for batch in value]
    if not batches:
        raise ValueError(f"{name} holds no batch")
    weights = [batch.weight for batch in batches if batch.weight is not None]
    if len(weights) not in (0, len(batches)):
        raise ValueError(f"some batches of {name} have weights and some have none; give all of them weights")
    inputs = pytree.tree_map(lambda *tensors: torch.cat(tensors), *(batch.inputs for batch in batches))
    return Batch(inputs, torch.cat([batch.targets for batch in batches]), torch.cat(weights) if weights else None)


def select_rows(batch: Batch, indices: Tensor | slice, weight: Tensor | None = None) -> Batch:
    """Take rows by index (or mask, or slice); their sample weights are multiplied by ``weight``, one per row taken."""

    def select(tensor: Tensor) -> Tensor:
        if isinstance(indices, Tensor) and indices.dtype == torch.long:  # several times as fast as tensor[indices]
            return tensor.index_select(0, indices.to(tensor.device))
        return tensor[indices]

    factors = [
        factor for factor in (weight, None if batch.weight is None else select(batch.weight)) if factor is not None
    ]
    product = math.prod(factors[1:], start=factors[0]) if factors else None
    return Batch(pytree.tree_map(select, batch.inputs), select(batch.targets), product)


def sample_pools(
    targets: Tensor, size: int | None, generator: torch.Generator
) -> Iterator[tuple[Tensor | slice, Tensor | None]]:
    """Sample pools of rows for a ranking loss for ever: all rows of rare classes, a weighted sample of common ones.

    Stratified by class: common classes are cut to one number of rows, such that the pool has ``size`` rows, and the
    sampled rows are weighted to stand for all rows of their class.

    Args:
        targets: class indices ``[N]``, or labels ``[N, C]``, whose rows are sampled uniformly.
        size: rows of a pool; None for all.
        generator: of the random numbers.

    Returns:
        indices ``[size]`` and sample weights ``[size]`` of mean 1, again and again; for all rows, a slice and None.
    """
    while size is None or size >= len(targets):
        yield slice(None), None
    while targets.ndim > 1:
        yield torch.randperm(len(targets), generator=generator)[:size], None
    strata = [(targets == value).nonzero()[:, 0] for value in targets.unique()]
    counts, left = [0] * len(strata), size
    for done, stratum in enumerate(sorted(range(len(strata)), key=lambda stratum: len(strata[stratum]))):
        counts[stratum] = max(1, min(len(strata[stratum]), left // (len(strata) - done)))
        left -= counts[stratum]
    weight = torch.tensor([len(rows) / count for rows, count in zip(strata, counts, strict=True)])
    weight = weight.repeat_interleave(torch.tensor(counts))
    weight = weight / weight.mean()
    while True:
        samples = [
            rows[torch.randperm(len(rows), generator=generator)[:count]]
            for rows, count in zip(strata, counts, strict=True)
        ]
        yield torch.cat(samples), weight


class PoolSampler:
    """The pools of :func:`sample_pools` as batches; every iteration starts anew from the same seed."""

    def __init__(self, batch: Batch, size: int | None, seed: int) -> None:
        self.batch, self.size, self.seed = batch, size, seed

    def __iter__(self) -> Iterator[Batch]:
        for indices, weight in sample_pools(self.batch.targets, self.size, torch.Generator().manual_seed(self.seed)):
            yield select_rows(self.batch, indices, weight)
