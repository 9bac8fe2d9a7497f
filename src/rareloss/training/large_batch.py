"""Gradient caching: large batches in the memory of one chunk, by a forward pass without and one with a graph."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from rareloss import checks
from rareloss.eager import is_eager

__all__ = ["large_batch"]

RandomState = dict[torch.device | None, Tensor]  # by generator; None is the CPU's
BufferKey = tuple[nn.Module, str]
_TENSOR = object()  # placeholder of a tensor in a flattened tree


def large_batch(
    model: nn.Module,
    *,
    chunk_size: int,
    device: torch.device | str | None = None,
    check_values: bool | None = None,
) -> Callable[..., Any]:
    r"""Make a function that scores a batch as ``model`` does, in the memory of one chunk.

    .. math:: \frac{dL}{d\theta} = \sum_k \sum_{i \in \text{chunk } k}
              \frac{\partial L(s_1, \dots, s_n)}{\partial s_i} \, \frac{ds_i}{d\theta}

    A ranking loss needs all scores s at once, but each score needs only its own row of the model. So the call computes
    the scores of all chunks without a graph; the loss ranks them as it would those of one big batch; and its
    ``backward`` runs the model again, chunk by chunk, with the gradient that the loss has given to the scores. The
    gradient is that of the whole batch, to rounding, for one forward pass more. What follows the scores sees ordinary
    tensors: any loss, weights, sums of losses, a ``GradScaler``.

    The second pass repeats the first: random numbers (dropout), autocast and buffers are put back as they were for each
    chunk, and left alone afterwards. Dropout draws chunk by chunk, so its masks are not those that one big batch would
    draw. Parameters' gradients are accumulated, and hooks on them run, once a chunk.

    Under ``DistributedDataParallel`` gradients are reduced once, with the last chunk; ``no_sync`` around call and
    ``backward`` is respected. Under ``fully_shard`` ranks agree on the most chunks that one of them has, and the others
    add empty ones. Wrap the model first, then call this on it. An empty batch is one chunk of no rows.

    Args:
        model: scores rows independently of each other. Its outputs, in tuples or dicts at will, have the batch as
            their first dimension.
        chunk_size: rows per chunk; the last one may be smaller.
        device: where chunks of inputs on the CPU are moved; by default the model's first parameter's, ``"cpu"`` to
            leave them.
        check_values: whether to compare the second pass's scores with the first's off the CPU too (the device waits).

    Returns:
        a function to be called as the model. Tensors in its arguments, in tuples or dicts at will, are cut along their
        first dimension, which must be alike; those of no dimension, and what is no tensor, reach every chunk.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``chunk_size`` below 1; in a call, no tensor to cut or rows that differ, outputs that are not by
            row, a layer that uses statistics of the batch, a buffer whose change depends on the rows, or a wrapper that
            does not take chunks.
        RuntimeError: in ``backward``, the model changed or does not repeat itself; ``create_graph``;
            ``torch.autograd.grad``.

    Reference:
        Gao, Zhang, Han, Callan: Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.

    Example:
        >>> from rareloss.losses import SmoothAPLoss
        >>> model, loss = nn.Linear(3, 1), SmoothAPLoss(num_classes=1, queue_size=0)
        >>> features, target = torch.randn(1_000, 3), torch.arange(1_000) % 50 == 0
        >>> loss(large_batch(model, chunk_size=64)(features), target).backward()
        >>> in_chunks = model.weight.grad.clone()
        >>> model.zero_grad()
        >>> loss(model(features), target).backward()
        >>> torch.allclose(model.weight.grad, in_chunks)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}; wrap a function in a module")
    checks.integer("chunk_size", chunk_size, least=1)
    target = None if device is None else torch.device(device)

    def scores(*inputs: Any, **named: Any) -> Any:
        _refuse_batch_statistics(model)
        leaves, spec = pytree.tree_flatten((inputs, named))
        passes = _Passes(model, leaves, spec, chunk_size, target, check_values)
        # Autograd calls back only for an output that depends on something.
        anchor = torch.zeros((), requires_grad=any(parameter.requires_grad for parameter in model.parameters()))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        outputs = _InChunks.apply(passes, anchor, *tensors)  # type: ignore[no-untyped-call]
        return passes.unflatten(outputs)

    return scores


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: "_Passes", anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = passes.forward(tensors)
        ctx.passes, ctx.inputs = passes, len(tensors)
        ctx.save_for_backward(*tensors, *outputs)
        ctx.mark_non_differentiable(*(output for output in outputs if not _differentiable(output)))
        ctx.set_materialize_grads(False)  # an output that the loss does not use is not run backwards
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("large_batch has no second derivative; leave create_graph out, or call the model itself")
        if not torch.autograd._is_checkpoint_valid():
            raise RuntimeError(
                "large_batch adds to .grad of all parameters, so it cannot serve torch.autograd.grad(...) or "
                "backward(inputs=...); call backward() and read .grad"
            )
        saved = ctx.saved_tensors
        tensors, outputs = saved[: ctx.inputs], saved[ctx.inputs :]
        return None, None, *ctx.passes.backward(tensors, outputs, gradients, ctx.needs_input_grad[2:])


class _Passes:
    """Run a model over the chunks of one batch, and run it again the same way."""

    def __init__(
        self,
        model: nn.Module,
        leaves: list[Any],
        spec: pytree.TreeSpec,
        chunk_size: int,
        device: torch.device | None,
        check_values: bool | None,
    ) -> None:
        self.model, self.spec, self.check_values = model, spec, check_values
        _reshard(model)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        # Tensors are passed beside this, so that autograd knows of them.
        self.leaves = _without_tensors(leaves)
        self.rows = _count_rows(tensors)
        count = _max_over_ranks(model, max(1, -(-self.rows // chunk_size)))
        edges = [min(chunk * chunk_size, self.rows) for chunk in range(count + 1)]
        self.chunks = list(itertools.pairwise(edges))
        devices = dict.fromkeys(tensor.device for tensor in (*model.parameters(), *model.buffers()))
        self.device = device if device is not None else next(iter(devices), torch.device("cpu"))
        devices[self.device] = None
        self.accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
        self.autocast: list[dict[str, Any]] = [
            {
                "device_type": device_type,
                "enabled": torch.is_autocast_enabled(device_type),
                "dtype": torch.get_autocast_dtype(device_type),
                "cache_enabled": torch.is_autocast_cache_enabled(),
            }
            for device_type in dict.fromkeys(["cpu", *(device.type for device in self.accelerators)])
            if torch.amp.is_autocast_available(device_type)
        ]
        ddp = (module for module in model.modules() if isinstance(module, DistributedDataParallel))
        self.require_sync = [(module, module.require_backward_grad_sync) for module in ddp]
        self.versions: list[int | bool] = []
        self.random: list[RandomState] = []
        self.sizes: list[list[int]] = []
        self.buffers = _Buffers(model)

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the outputs of all chunks without a graph, and save random and other state for the second pass."""
        chunks: list[list[Tensor]] = []
        forms = []
        for start, stop in self.chunks:
            self.buffers.rewind()
            self.random.append(_random_state(self.accelerators))
            leaves, spec = pytree.tree_flatten(self._call([_rows_of(tensor, start, stop) for tensor in tensors]))
            self.buffers.record()
            outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if not outputs or any(output.ndim == 0 for output in outputs):
                got = [tuple(output.shape) for output in outputs] or type(leaves[0] if leaves else None).__name__
                raise ValueError(
                    f"outputs of the model must have the batch as their first dimension, got {got}; "
                    "a mean over the batch belongs into the loss"
                )
            forms.append((spec, [(output.dtype, output.shape[1:]) for output in outputs]))
            chunks.append(outputs)
        if any(form != forms[0] for form in forms):
            raise ValueError(f"every chunk must give outputs of one form, got {forms[0]} and others; pad to one shape")
        self.sizes = [[output.shape[0] for output in outputs] for outputs in zip(*chunks, strict=True)]
        rows = [stop - start for start, stop in self.chunks]
        for sizes in self.sizes:
            per_row = sum(sizes) // max(self.rows, 1)
            if self.rows and sizes != [per_row * row for row in rows]:
                raise ValueError(
                    f"outputs of the model must have the batch as their first dimension, got sizes {sizes} for chunks "
                    f"of {rows} rows"
                )
        # Autocast keeps the weights that were cast here, and later calls in its region would give them no gradient.
        torch.clear_autocast_cache()
        self.buffers.finish()
        _reshard(self.model)
        self.versions = _versions(self.model)
        self.output_spec, self.output_leaves = spec, _without_tensors(leaves)
        return tuple(torch.cat(outputs) for outputs in zip(*chunks, strict=True))

    def unflatten(self, outputs: Sequence[Tensor]) -> Any:
        """Return outputs as the model returns them."""
        return pytree.tree_unflatten(_with_tensors(self.output_leaves, outputs), self.output_spec)

    def backward(
        self,
        tensors: Sequence[Tensor],
        outputs: Sequence[Tensor],
        grad_outputs: Sequence[Tensor | None],
        needs_grad: Sequence[bool],
    ) -> list[Tensor | None]:
        """Add the gradients of all chunks to the parameters, and return those of the inputs that need one."""
        _reshard(self.model)
        if _versions(self.model) != self.versions:
            raise RuntimeError(
                "a parameter, or train() or eval(), changed between the call and its backward, so the scores cannot be "
                "computed again; call backward() first"
            )
        grad_inputs = [torch.zeros_like(x) if needs else None for x, needs in zip(tensors, needs_grad, strict=True)]
        expected = zip(*map(_split, outputs, self.sizes), strict=True)
        grads = zip(*map(_split, grad_outputs, self.sizes), strict=True)
        steps = zip(self.chunks, self.random, expected, grads, strict=True)
        with _preserve_random_state(self.accelerators), self.buffers.preserve():
            for chunk, ((start, stop), random, scores, grad_scores) in enumerate(steps):
                self.buffers.rewind()
                _set_random_state(random)
                inputs = [
                    _rows_of(tensor, start, stop).detach().requires_grad_(needs)
                    for tensor, needs in zip(tensors, needs_grad, strict=True)
                ]
                with self._sync_gradients(last=chunk == len(self.chunks) - 1), torch.enable_grad():
                    self._backward_chunk(inputs, scores, grad_scores)
                for grad_input, x in zip(grad_inputs, inputs, strict=True):
                    if grad_input is not None and x.grad is not None:
                        _rows_of(grad_input, start, stop).add_(x.grad)
        return grad_inputs

    def _backward_chunk(
        self, inputs: Sequence[Tensor], expected: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> None:
        # On its own, so that every graph of a chunk is gone before the next chunk has one.
        outputs = [leaf for leaf in pytree.tree_leaves(self._call(inputs)) if isinstance(leaf, Tensor)]
        self._refuse_other_scores(expected, outputs)
        used = [
            (output, grad)
            for output, grad in zip(outputs, grads, strict=True)
            if grad is not None and output.requires_grad
        ]
        torch.autograd.backward([output for output, _ in used], [grad for _, grad in used])

    def _call(self, tensors: Sequence[Tensor]) -> Any:
        moved = [x.to(self.device, non_blocking=True) if x.device.type == "cpu" else x for x in tensors]
        inputs, named = pytree.tree_unflatten(_with_tensors(self.leaves, moved), self.spec)
        with contextlib.ExitStack() as stack:
            for options in self.autocast:
                stack.enter_context(torch.autocast(**options))
            return self.model(*inputs, **named)

    @contextlib.contextmanager
    def _sync_gradients(self, *, last: bool) -> Iterator[None]:
        before = [module.require_backward_grad_sync for module, _ in self.require_sync]
        for module, require in self.require_sync:
            module.require_backward_grad_sync = require and last
        try:
            yield
        finally:
            for (module, _), value in zip(self.require_sync, before, strict=True):
                module.require_backward_grad_sync = value

    def _refuse_other_scores(self, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> None:
        for first, second in zip(expected, actual, strict=True):
            if not (_differentiable(first) and first.numel() and is_eager(first, check_values=self.check_values)):
                continue
            second = second.detach()
            # Half the digits: rounding may differ, another dropout mask or a stale state is far beyond.
            allowed = torch.finfo(first.dtype).eps ** 0.5 * first.abs().nan_to_num(0.0, 0.0).amax()
            same = ((first - second).abs() <= allowed) | (first == second) | ((first != first) & (second != second))
            if not bool(same.all()):
                raise RuntimeError(
                    "the model gave other scores in the second pass than in the first, so the gradient would be wrong; "
                    "random numbers must come from torch's default generators, and state that changes from call to "
                    "call must be in registered buffers"
                )


class _Buffers:
    """The buffers of a model, for calls that must each start from one state and leave one behind."""

    def __init__(self, model: nn.Module) -> None:
        self.start: dict[BufferKey, tuple[Tensor, Tensor]] = {
            (module, name): (buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        }
        self.versions = {key: _version(buffer) for key, (buffer, _) in self.start.items()}
        self.changed: dict[BufferKey, Tensor] | None = None

    def rewind(self) -> None:
        """Restore the buffers that a call changes to the start."""
        for key in self.changed or ():
            _restore(key, *self.start[key])
            self.versions[key] = _version(self.start[key][0])

    def record(self) -> None:
        """Record the buffers that the first call has changed, and refuse a later one that changes them otherwise."""
        changed = {}
        for key, (buffer, start) in self.start.items():
            now = getattr(*key)
            # Values are compared, which a GPU must wait for, only where somebody wrote.
            if (now is not buffer or _version(buffer) != self.versions[key]) and not _same(now, start):
                changed[key] = now.clone()
        if self.changed is None:
            self.changed = changed
            return
        for key in {**self.changed, **changed}:
            if key in self.changed and key in changed and _same(self.changed[key], changed[key]):
                continue
            for other, tensors in self.start.items():
                _restore(other, *tensors)
            raise ValueError(
                f"buffer {key[1]!r} of {type(key[0]).__name__} changes with the rows it sees, so chunks cannot "
                "leave the state that one big batch would; call eval() on that module"
            )

    def finish(self) -> None:
        """Drop the copies of buffers that do not change."""
        self.start = {key: self.start[key] for key in self.changed or ()}

    @contextlib.contextmanager
    def preserve(self) -> Iterator[None]:
        """Restore the buffers of now at the end."""
        now = {key: (getattr(*key), getattr(*key).clone()) for key in self.start}
        try:
            yield
        finally:
            for key, tensors in now.items():
                _restore(key, *tensors)


def _restore(key: BufferKey, buffer: Tensor, value: Tensor) -> None:
    if getattr(*key) is not buffer:
        setattr(*key, buffer)
    buffer.copy_(value)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _count_rows(tensors: Sequence[Tensor]) -> int:
    """Return the number of rows that all tensors with rows have."""
    shapes = [tuple(tensor.shape) for tensor in tensors if tensor.ndim]
    if not shapes:
        raise ValueError("the call holds no tensor with a first dimension, so there is nothing to cut into chunks")
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f"tensors must have the batch as their first dimension, got shapes {shapes}; "
            "give the model what is not by row in another way, for example as an attribute"
        )
    return shapes[0][0]


def _rows_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop] if tensor.ndim else tensor


def _split(tensor: Any, sizes: list[int]) -> Any:
    return [None] * len(sizes) if tensor is None else tensor.detach().split(sizes)


def _without_tensors(leaves: Sequence[Any]) -> list[Any]:
    return [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _with_tensors(leaves: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    remaining = iter(tensors)
    return [next(remaining) if leaf is _TENSOR else leaf for leaf in leaves]


def _refuse_batch_statistics(model: nn.Module) -> None:
    refused = [
        f"{name or 'model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if (isinstance(module, _BatchNorm) and (module.training or module.running_mean is None))
        or (isinstance(module, _InstanceNorm) and module.training and module.track_running_stats)
    ]
    if refused:
        raise ValueError(
            f"{', '.join(refused)} would take the statistics of a chunk for those of the batch; call eval() on such "
            "layers, where they track statistics (which then stay as they are), or use GroupNorm or LayerNorm"
        )
    for module in model.modules():
        if isinstance(module, DistributedDataParallel) and module.static_graph:
            raise ValueError(
                "DistributedDataParallel(static_graph=True) wants every step to be one graph, got chunks; leave it out"
            )
        if isinstance(module, _fsdp_class("FullyShardedDataParallel")):
            raise ValueError("FullyShardedDataParallel does not say how ranks can agree on chunks; use fully_shard")


def _versions(model: nn.Module) -> list[int | bool]:
    """Return the versions of parameters, and modes, which must not change between the two passes."""
    return [*(_version(parameter) for parameter in model.parameters()), *(each.training for each in model.modules())]


def _fsdp_class(name: str) -> Any:
    # Imported by whoever shards a model, and a second of everybody else's time.
    return getattr(sys.modules.get("torch.distributed.fsdp"), name, ())


def _reshard(model: nn.Module) -> None:
    # After a call without gradient the root of a sharded model holds whole parameters.
    for module in model.modules():
        if isinstance(module, _fsdp_class("FSDPModule")):
            module.reshard()


def _max_over_ranks(model: nn.Module, number: int) -> int:
    """Return the maximum over ranks, where ranks must call a sharded model equally often."""
    meshes = dict.fromkeys(each.device_mesh for each in model.parameters() if hasattr(each, "device_mesh"))
    for mesh in meshes:
        maximum = torch.tensor(number, device=mesh.device_type)
        for group in mesh.get_all_groups():
            dist.all_reduce(maximum, dist.ReduceOp.MAX, group=group)
        number = int(maximum)
    return number


def _random_state(accelerators: Sequence[torch.device]) -> RandomState:
    states: RandomState = {None: torch.get_rng_state()}
    for device in accelerators:
        states[device] = torch.get_device_module(device).get_rng_state(*_named(device))
    return states


def _set_random_state(states: RandomState) -> None:
    for device, state in states.items():
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, *_named(device))


@contextlib.contextmanager
def _preserve_random_state(accelerators: Sequence[torch.device]) -> Iterator[None]:
    before = _random_state(accelerators)
    try:
        yield
    finally:
        _set_random_state(before)


def _named(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one, and its functions take no device
