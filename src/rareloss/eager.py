"""What kind of call this is: eager, whose values may be looked at, or traced; training, or not."""

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

__all__ = [
    "is_checkpointed",
    "is_eager",
    "is_graph_kept",
    "is_plain",
    "is_recomputation",
    "is_training_call",
]


def is_plain(*tensors: Tensor) -> bool:
    """Say whether all of ``tensors`` hold numbers now: no graph is traced, no transform or mode wraps them."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    functorch = torch._C._functorch
    for tensor in tensors:  # no generator: this is asked several times a call
        if tensor.is_meta or isinstance(tensor, FakeTensor) or functorch.is_functorch_wrapped_tensor(tensor):
            return False
        if functorch.is_legacy_batchedtensor(tensor):  # of is_grads_batched, another kind than vmap's
            return False
    return True


def is_eager(*tensors: Tensor, check_values: bool | None = None) -> bool:
    """Say whether the values of ``tensors`` may be looked at now, without breaking a graph or making a device wait.

    Args:
        tensors: any.
        check_values: whether to look although a device has to wait for it.
    """
    return is_plain(*tensors) and (bool(check_values) or all(tensor.is_cpu for tensor in tensors))


def is_training_call(module: nn.Module) -> bool:
    """Say whether a call of ``module`` trains: in training mode, with gradients enabled.

    Only such a call remembers rows, counts steps or exchanges rows with other ranks, so validation under
    ``torch.no_grad()`` leaves no trace, whatever mode the loss is in.
    """
    return module.training and torch.is_grad_enabled()


def is_recomputation() -> bool:
    """Say whether ``torch.utils.checkpoint`` runs a forward pass again, within a backward pass.

    Its reentrant form calls first without gradients, which is no training call, and again within a node of its own,
    which is the first one that trains.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return False
    node = torch._C._current_autograd_node()
    return node is None or node.name() != "CheckpointFunctionBackward"


def is_checkpointed() -> bool:
    """Say whether hooks take the tensors saved for backward, as where ``torch.utils.checkpoint`` will compute again.

    A torch that cannot tell (2.6) says no.
    """
    top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return not torch.compiler.is_compiling() and top_hooks is not None and top_hooks(True) is not None


def is_graph_kept() -> bool:
    """Say whether the backward pass that runs may be run again: what it saved has to stay as it is.

    A torch that cannot tell says yes.
    """
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return torch.is_grad_enabled() or keeps is None or bool(keeps())
