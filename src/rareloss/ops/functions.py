"""Autograd functions and custom ops: rules for ``vmap``, the eager short cut, second derivatives refused, precision."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

__all__ = ["accumulator", "chunks", "eager_twin", "fold_into_batch", "in_float64", "without_second_derivative"]

# Types of device that have no float64.
WITHOUT_FLOAT64 = {"mps"}


def accumulator(tensor: Tensor) -> torch.dtype:
    """Return the dtype to sum up in where ``tensor`` is: float64, or float32 on a device that has no other."""
    return torch.float32 if tensor.device.type in WITHOUT_FLOAT64 else torch.float64


def in_float64(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, on the CPU if its device has none."""
    return (tensor if accumulator(tensor) == torch.float64 else tensor.cpu()).double()


def chunks(pools: int, rows: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut ``[pools, rows]`` into blocks of ``size`` entries at most, of whole pools or of some rows of one pool."""
    together = max(1, size // max(rows, 1))
    for first in range(0, pools, together):
        for start in range(0, rows, size):
            yield slice(first, min(first + together, pools)), slice(start, min(start + size, rows))


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


def eager_twin(function: Any) -> Any:
    """Make the same autograd function for plain tensors alone, without the bookkeeping of ``torch.func``.

    A function with ``setup_context`` binds its signature at every call: longer than the work on a small pool.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    twin = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), twin)


def without_second_derivative(vjp: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Make ``vjp``, which computes a vector-Jacobian product, refuse to be differentiated itself.

    Args:
        vjp: takes and returns tensors.
        what: of which it is the gradient, as a sentence begins.
    """

    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(f"{what} no second derivative here; call backward without create_graph=True")

    refusing: Any = type(
        vjp.__name__,
        (torch.autograd.Function,),
        {
            "generate_vmap_rule": True,
            "forward": staticmethod(lambda *inputs: vjp(*inputs)),
            "setup_context": staticmethod(lambda ctx, inputs, output: None),
            "backward": staticmethod(backward),
        },
    )
    # Only where a graph of the gradient is asked for is there something to refuse.
    return lambda *inputs: (refusing.apply if torch.is_grad_enabled() else vjp)(*inputs)
