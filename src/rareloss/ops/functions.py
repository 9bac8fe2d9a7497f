"""What custom ops and autograd functions need for transforms, and how eager code goes without."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

__all__ = ["eager_twin", "fold_into_batch", "is_eager", "without_second_derivative"]


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


def is_eager(*tensors: Tensor) -> bool:
    """Say whether all of ``tensors`` are numbers that are there now: no graph is traced, no transform wraps them."""
    return not torch.compiler.is_compiling() and all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type != "meta"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


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


def without_second_derivative(pull: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Make ``pull``, which computes a gradient, refuse to be differentiated itself.

    Args:
        pull: takes and returns tensors.
        what: of which it is the gradient, as a sentence begins.
    """

    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(f"{what} no second derivative here; call backward without create_graph=True")

    refusing: Any = type(
        pull.__name__,
        (torch.autograd.Function,),
        {
            "generate_vmap_rule": True,
            "forward": staticmethod(lambda *inputs: pull(*inputs)),
            "setup_context": staticmethod(lambda ctx, inputs, output: None),
            "backward": staticmethod(backward),
        },
    )
    # Only where a graph of the gradient is asked for is there something to refuse.
    return lambda *inputs: (refusing.apply if torch.is_grad_enabled() else pull)(*inputs)
