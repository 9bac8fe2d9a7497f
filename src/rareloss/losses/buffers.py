"""Buffers that keep their numbers, whatever moves the module that holds them."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["keeping_numbers"]


def keeping_numbers(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return ``move``, what ``Module.to``, ``half`` or ``to_empty`` does to a buffer, without loss of a digit.

    A move to less than float32 is none, and integers stay integers. ``to_empty`` by itself leaves whatever the memory
    held: here the numbers go along, and a buffer of the meta device, which has none, becomes 0. A buffer moved in
    inference mode can be written outside of it.

    Args:
        move: takes a buffer to another device or dtype.

    Example:
        >>> keeping_numbers(torch.Tensor.half)(torch.tensor([0.1])).dtype
        torch.float32
        >>> keeping_numbers(torch.empty_like)(torch.tensor([3]))
        tensor([3])
    """

    def moved(buffer: Tensor) -> Tensor:
        with torch.inference_mode(False):
            like = move(buffer)
            if like is buffer:
                return like
            wanted = buffer.is_floating_point() and like.is_floating_point() and torch.finfo(like.dtype).bits >= 32
            dtype = like.dtype if wanted else buffer.dtype
            if buffer.is_meta:
                return torch.zeros_like(like, dtype=dtype)
            return buffer.to(like.device, dtype)

    return moved
