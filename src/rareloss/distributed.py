r"""Rows gathered from every rank with the exact gradient, and sums over ranks.

The rule of scale stands here alone. A loss :math:`L(x_1, \dots, x_R)` of the rows of all ``R`` ranks is computed on
each of them, and each rank hands back :math:`R \, \partial L / \partial x_r`. So the *mean* over ranks of the
parameters' gradients is the gradient that one process would compute on the whole batch, and their *sum* is ``R`` times
that:

==========================================================  =========================  ==================
how the ranks' gradients are joined                         the gradient is that of    call ``backward`` on
==========================================================  =========================  ==================
``DistributedDataParallel``                                 their mean                 ``loss``
FSDP2, ``fully_shard``                                      their mean                 ``loss``
FSDP2 after ``set_gradient_divide_factor(1.0)``             their sum                  ``loss / R``
``all_reduce`` by hand, then divided by ``R``               their mean                 ``loss``
``all_reduce`` by hand                                      their sum                  ``loss / R``
==========================================================  =========================  ==================

``R`` is :func:`world_size` of the group. A backward pass exchanges nothing, so gradients may be accumulated over any
number of calls (``no_sync``) before they are joined.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rareloss import checks

__all__ = ["ProcessGroup", "agree", "checked_group", "gather_rows", "mean_over_ranks", "sum_over_ranks", "world_size"]

ProcessGroup = dist.ProcessGroup

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)


def checked_group(group: Any) -> Any:
    """Return ``group``, what ``torch.distributed.new_group`` returned, on any rank, or None.

    Raises:
        TypeError: it is anything else.
    """
    if group is not None and not isinstance(group, ProcessGroup) and group != dist.GroupMember.NON_GROUP_MEMBER:
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup or None, got {type(group).__name__}; of a "
            "DeviceMesh give mesh.get_group()"
        )
    return group


def world_size(group: ProcessGroup | None = None) -> int:
    """Return the number of ranks, 1 where no process group exists; asked anew at each call.

    Raises:
        ValueError: this process is no rank of ``group``.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    ranks = dist.get_world_size(group)
    if ranks < 1:
        raise ValueError(
            f"rank {dist.get_rank()} is not in the process_group that the loss was made with; give each rank the group "
            "that it belongs to"
        )
    return ranks


def agree(
    rows: Tensor | None, group: ProcessGroup | None = None, error: Exception | None = None, settings: str = ""
) -> list[int]:
    """Exchange how many rows each rank has, and raise on every rank if one of them refused its input.

    Args:
        rows: the rows of this rank, ``[n, ...]``; None beside an ``error``.
        group: the ranks that take part.
        error: why this rank refuses its input; raised here, after the others have been told.
        settings: how the caller was set up, which must be the same on every rank.

    Returns:
        the number of rows by rank.

    Raises:
        ValueError: another rank refused its input, or trailing shapes, dtypes or settings differ.
    """
    message = [1, 0, 0, 0] if rows is None else [int(error is not None), rows.shape[0], _width(rows), _code(rows)]
    message.append(zlib.crc32(settings.encode()))
    sent = torch.tensor(message, dtype=torch.int64, device=_device(group))
    received = [torch.empty_like(sent) for _ in range(world_size(group))]
    dist.all_gather(received, sent, group=group)
    answers: list[list[int]] = torch.stack(received).tolist()
    if error is not None:
        raise error
    refused = [rank for rank, answer in enumerate(answers) if answer[0]]
    if refused:
        raise ValueError(
            f"rank {', '.join(map(str, refused))} refused its input, so no rank goes on; see the error there"
        )
    checks.gathered_shape("rows", [tuple(answer[2:4]) for answer in answers])
    others = [rank for rank, answer in enumerate(answers) if answer[4] != message[4]]
    if others:
        raise ValueError(
            f"rank {', '.join(map(str, others))} has other settings than this rank's {settings}; make the same loss on "
            "every rank"
        )
    return [answer[1] for answer in answers]


def gather_rows(x: Tensor, group: ProcessGroup | None = None, *, sizes: Sequence[int] | None = None) -> Tensor:
    """Concatenate the rows of every rank, in rank order, with the gradient of one process under DDP's mean.

    One exchange of sizes and one payload; ranks may hold different numbers of rows, or none. The backward pass is
    local: each rank gets ``world_size`` times its own slice of the gradient.

    Args:
        x: the rows of this rank, ``[n, ...]``; ``n`` may differ by rank, the other dimensions and the dtype may not.
        group: the ranks that take part; the default group if None.
        sizes: what :func:`agree` returned for these rows, where it has been called already.

    Returns:
        the rows of all ranks, ``[sum of n, ...]``; ``x`` itself where there is one rank.

    Raises:
        ValueError: trailing shapes or dtypes differ between ranks.

    Example:
        >>> gather_rows(torch.tensor([1.0, 2.0]))  # no process group: the rows themselves
        tensor([1., 2.])
    """
    if world_size(group) == 1:
        return x
    sizes = agree(x, group) if sizes is None else list(sizes)
    if not any(sizes):
        return x
    gathered: Tensor = _GatherRows.apply(x, sizes, group)  # type: ignore[no-untyped-call]
    return gathered


def sum_over_ranks(x: Tensor | None, group: ProcessGroup | None = None, error: Exception | None = None) -> Tensor:
    """Sum one number over ranks, without gradient, and raise on every rank if one of them refused its input.

    Args:
        x: the number of this rank, 0-d; None beside an ``error``.
        group: the ranks that take part.
        error: why this rank refuses its input; raised here, after the others have been told.

    Returns:
        the sum, 0-d, of the dtype of ``x``.

    Raises:
        ValueError: another rank refused its input.
    """
    if world_size(group) > 1:
        # In float64, so not on the device of x, which may have none.
        sent = torch.zeros(2, dtype=torch.float64, device=_device(group))
        sent[0] = 0.0 if x is None else x.detach()
        sent[1] = float(error is not None)
        dist.all_reduce(sent, group=group)
        if error is None and bool(sent[1] > 0):
            raise ValueError("another rank refused its input, so no rank goes on; see the error there")
    if error is not None:
        raise error
    if x is None:
        raise TypeError("x is None, which goes with an error alone; give the number of this rank")
    return x.detach() if world_size(group) == 1 else sent[0].to(x)


def mean_over_ranks(
    sums: Callable[[], tuple[Tensor, Tensor | None]], group: ProcessGroup | None = None, *, among_ranks: bool = True
) -> Tensor:
    """Compute this rank's share, times the number of ranks, of a sum over ranks divided by a divisor over ranks.

    The mean of the values over ranks, and DDP's gradient, are those of one process on the whole batch. One number is
    exchanged, which also carries whether a rank refuses its input.

    Args:
        sums: computes this rank's sum, with gradient, and its part of the divisor, both 0-d; None for a plain sum.
        group: the ranks that take part.
        among_ranks: whether other ranks take part at all.

    Returns:
        0-d; a divisor of 0 counts as 1.

    Raises:
        Exception: what ``sums`` raises, here; ValueError on the other ranks.
    """
    ranks = world_size(group) if among_ranks else 1
    if ranks == 1:
        total, divisor = sums()
    else:
        try:
            total, divisor = sums()
        except Exception as error:
            sum_over_ranks(None, group, error)
            raise
        whole = sum_over_ranks(torch.zeros_like(total) if divisor is None else divisor, group)
        total, divisor = total * ranks, None if divisor is None else whole
    return total if divisor is None else total / torch.where(divisor == 0, 1.0, divisor)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, sizes: list[int], group: ProcessGroup | None
    ) -> Tensor:
        rank = dist.get_rank(group)
        ctx.slice = (sum(sizes[:rank]), sum(sizes[: rank + 1]))  # type: ignore[attr-defined]
        ctx.ranks = len(sizes)  # type: ignore[attr-defined]
        # Equal sizes are what every backend can exchange, so short ranks are padded and the padding is cut off here.
        padded = x.new_zeros((max(sizes), *x.shape[1:]))
        padded[: x.shape[0]] = x
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded, group=group)
        return torch.cat([rows[:size] for rows, size in zip(received, sizes, strict=True)])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        start, stop = ctx.slice  # type: ignore[attr-defined]
        return gradients[0][start:stop] * ctx.ranks, None, None  # type: ignore[attr-defined]


def _width(rows: Tensor) -> int:
    width = 1
    for size in rows.shape[1:]:
        width = width * 1_000_003 + size  # one number that differs when the trailing shape does
    return width % 2**62


def _code(rows: Tensor) -> int:
    return _DTYPES.index(rows.dtype) if rows.dtype in _DTYPES else len(_DTYPES)


def _device(group: ProcessGroup | None) -> torch.device:
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
