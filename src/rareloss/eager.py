"""What kind of call this is: eager, whose values may be looked at, or traced; training, or not."""

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["is_eager", "is_recomputation", "is_training_call"]


def is_eager(*tensors: Tensor, check_values: bool | None = None) -> bool:
    """Say whether the values of ``tensors`` may be looked at now, without breaking a graph or making a device wait.

    Args:
        tensors: any.
        check_values: whether to look although a device has to wait for it.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all(
        (tensor.device.type == "cpu" or (bool(check_values) and tensor.device.type != "meta"))
        and not isinstance(tensor, FakeTensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


def is_training_call(module: nn.Module) -> bool:
    """Say whether a call of ``module`` trains: in training mode, with gradients enabled.

    Only such a call remembers rows, counts steps or exchanges rows with other ranks, so validation under
    ``torch.no_grad()`` leaves no trace, whatever mode the loss is in.
    """
    return module.training and torch.is_grad_enabled()


def is_recomputation() -> bool:
    """Say whether this code runs inside a backward pass: ``torch.utils.checkpoint`` runs a forward pass again there."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
