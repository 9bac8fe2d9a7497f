"""One ``vmap`` rule for custom ops whose tensors all share a leading batch dimension."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

__all__ = ["fold_into_batch"]


def fold_into_batch(op: CustomOpDef) -> None:
    """Register a ``vmap`` rule that folds the mapped dimension into the leading dimension of every tensor of ``op``."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        def fold(argument: Any, dim: int | None) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            mapped = argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)
            return mapped.flatten(0, 1)

        result = op(*map(fold, arguments, in_dims))
        unfold: Callable[[Tensor], Tensor] = lambda t: t.unflatten(0, (info.batch_size, -1))  # noqa: E731
        if isinstance(result, Tensor):
            return unfold(result), 0
        return tuple(map(unfold, result)), (0,) * len(result)

    torch.library.register_vmap(op, rule)
