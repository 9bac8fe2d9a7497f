"""Refuse bad input in words: what came, what was expected, how to mend it.

Structure (shape, dtype, range of an argument) is checked always. Values inside tensors are checked where looking is
free: on the CPU, outside of ``torch.compile`` and of ``torch.func`` transforms.
"""

import difflib
import functools
import inspect
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor

from rareloss.eager import is_eager

__all__ = [
    "HEAVIEST",
    "LIGHTEST",
    "as_weights",
    "between",
    "boolean",
    "choice",
    "class_indices",
    "class_weights",
    "finite_weights",
    "flag",
    "floating",
    "gathered_shape",
    "ignore_value",
    "ignored",
    "in_range",
    "integer",
    "is_tensor",
    "known_keywords",
    "labels",
    "non_negative",
    "numbers",
    "optional_flag",
    "positive_number",
    "probability",
    "same_shape",
    "warn_caller",
    "whole",
]

P = ParamSpec("P")

# Weights that float32 can sum up by the million, and divide by; what is lighter counts as 0.
LIGHTEST, HEAVIEST = 1e-32, 1e32
# What torch computes with: a float of 8 bits, or an unsigned number of 16, it only stores.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUMBERS = (*_FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def positive_number(name: str, value: float) -> float:
    """Return ``value``, a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number above 0, got {_said(value)}")
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return float(value)


def non_negative(name: str, value: float) -> float:
    """Return ``value``, a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of at least 0, got {_said(value)}")
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    return float(value)


def probability(name: str, value: float, *, open_low: bool = False, open_high: bool = False) -> float:
    """Return ``value``, a share between 0 and 1; ``open_low`` and ``open_high`` leave out the ends."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number between 0 and 1, got {_said(value)}")
    low_fits = value > 0 if open_low else value >= 0
    high_fits = value < 1 if open_high else value <= 1
    if not (low_fits and high_fits):
        interval = f"{'(' if open_low else '['}0, 1{')' if open_high else ']'}"
        raise ValueError(f"{name} must lie in {interval}, got {value}; half a percent is written 0.005")
    return float(value)


def between(alpha: float, beta: float) -> tuple[float, float]:
    """Return the edges of a band of false-positive rates, ``0 <= alpha < beta <= 1``."""
    alpha, beta = probability("alpha", alpha), probability("beta", beta)
    if alpha >= beta:
        raise ValueError(
            f"the band [alpha, beta] must have a width, got alpha={alpha} and beta={beta}; give alpha < beta"
        )
    return alpha, beta


def integer(name: str, value: int, *, least: int) -> int:
    """Return ``value``, a whole number of at least ``least``."""
    if whole(name, value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def whole(name: str, value: int) -> int:
    """Return ``value``, a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {_said(value)}")
    return value


def choice(name: str, value: str, options: Sequence[str]) -> str:
    """Return ``value``, one of ``options``."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def is_tensor(name: str, value: Tensor) -> Tensor:
    """Return ``value``, a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {_said(value)}; wrap it in torch.as_tensor")
    return value


def floating(name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor``, a tensor of floats."""
    is_tensor(name, tensor)
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name} must be floats (raw logits), got dtype {tensor.dtype}; call .float() on it")
    return tensor


def numbers(name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor``, a tensor of bools, integers or floats that torch computes with."""
    if tensor.dtype not in _NUMBERS:
        raise TypeError(
            f"{name} must be bool, integers or floats, got dtype {tensor.dtype}; call .float() or .long() on it"
        )
    return tensor


def boolean(name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor``, a tensor of bools."""
    is_tensor(name, tensor)
    if tensor.dtype != torch.bool:
        raise TypeError(
            f"{name} must be bool, got dtype {tensor.dtype}; write labels == 1, or call .bool() on zeros and ones"
        )
    return tensor


def same_shape(name: str, tensor: Tensor, shape: Sequence[int], *others: Sequence[int]) -> Tensor:
    """Return ``tensor``, whose shape is one of those given."""
    is_tensor(name, tensor)
    for option in (shape, *others):
        if _alike(tensor.shape, option):
            return tensor
    wanted = " or ".join(map(str, dict.fromkeys(tuple(option) for option in (shape, *others))))
    raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}; nothing is broadcast, reshape it")


def _alike(shape: Sequence[int], other: Sequence[int]) -> bool:
    # One by one: of two tuples a graph does not know whether a size that may change equals one that may not.
    return len(shape) == len(other) and all(a == b for a, b in zip(shape, other, strict=True))


def flag(name: str, value: bool) -> bool:
    """Return ``value``, True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {_said(value)}")
    return value


def optional_flag(name: str, value: bool | None) -> bool | None:
    """Return ``value``, True, False or None."""
    return value if value is None else flag(name, value)


def ignore_value(name: str, value: float) -> float:
    """Return ``value``, the target that means absent: a whole number, or NaN beside float targets."""
    if isinstance(value, float) and math.isnan(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, or NaN beside float targets, got {_said(value)}")
    return value


def ignored(targets: Tensor, ignore_index: float) -> Tensor:
    """Find the targets that mean absent; none where their dtype has no such number."""
    if math.isnan(ignore_index):
        return targets.isnan()
    if not targets.is_floating_point() and targets.dtype != torch.bool:
        held = torch.iinfo(targets.dtype)
        if not held.min <= ignore_index <= held.max:  # torch would compare with what is left of it: -100 is 156
            return torch.zeros_like(targets, dtype=torch.bool)
    return targets == ignore_index


def in_range(targets: Tensor, classes: int, ignore_index: float | None) -> Tensor:
    """Find the targets that are whole numbers from 0 to ``classes - 1``, or ``ignore_index``, without a look."""
    fits = (targets >= 0) & (targets < classes)
    if targets.is_floating_point():
        fits &= targets == targets.round()
    return fits if ignore_index is None else fits | ignored(targets, ignore_index)


def labels(name: str, tensor: Tensor, ignore_index: float | None, check_values: bool | None = None) -> bool:
    """Refuse labels other than 0, 1 and ``ignore_index``; return whether all are known to be 0 or 1, none ignored."""
    if ignore_index is not None:
        ignore_value("ignore_index", ignore_index)
    numbers(name, tensor)
    if tensor.dtype == torch.bool or not is_eager(tensor, check_values=check_values):
        return tensor.dtype == torch.bool and ignore_index not in (0, 1)
    if ignore_index not in (0, 1) and _within(tensor, 0, 1):
        return True
    fits = in_range(tensor, 2, ignore_index)
    if not bool(fits.all()):
        wrong = tensor[~fits][0].item()
        kept = "" if ignore_index is None else f" (or {ignore_index}, ignored)"
        raise ValueError(
            f"{name} must hold 0 and 1{kept}, got {wrong}; class indices need num_classes > 1 and logits [..., C]"
        )
    return False


def class_indices(
    name: str, tensor: Tensor, classes: int, ignore_index: float, check_values: bool | None = None
) -> bool:
    """Refuse class indices outside of ``0 .. classes - 1`` and ``ignore_index``; return whether none is ignored."""
    ignore_value("ignore_index", ignore_index)
    numbers(name, tensor)
    if not is_eager(tensor, check_values=check_values):
        return False
    if not 0 <= ignore_index < classes and _within(tensor, 0, classes - 1):
        return True
    fits = in_range(tensor, classes, ignore_index)
    if not bool(fits.all()):
        wrong = tensor[~fits][0].item()
        raise ValueError(
            f"{name} must hold class indices 0 to {classes - 1} (or {ignore_index}, ignored), got {wrong}; "
            f"the logits have {classes} classes"
        )
    return False


def finite_weights(name: str, tensor: Tensor, check_values: bool | None = None, *, most: float = HEAVIEST) -> None:
    """Refuse weights that are negative, NaN, infinite, or heavier than ``most``, what float32 can sum up."""
    numbers(name, tensor)
    if tensor.dtype == torch.bool or not is_eager(tensor, check_values=check_values):
        return
    held = torch.finfo(tensor.dtype).max if tensor.is_floating_point() else most
    fits = (tensor >= 0) & (tensor <= min(most, held))
    if not bool(fits.all()):
        wrong = tensor[~fits][0].item()
        raise ValueError(
            f"{name} must be finite (at most {most:g}) and not negative, got {wrong}; give a row that is to be "
            "left out weight 0; one factor on all weights changes nothing"
        )


def known_keywords(constructor: Callable[P, None]) -> Callable[P, None]:
    """Make a constructor answer a keyword that it does not take with the nearest one that it takes."""
    names = list(inspect.signature(constructor).parameters)[1:]

    @functools.wraps(constructor)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        for name in options:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f" (did you mean {nearest[0]}?)" if nearest else ""
                raise TypeError(f"{type(args[0]).__name__} takes no argument {name!r}{hint}, only {', '.join(names)}")
        constructor(*args, **options)

    return checked


def as_weights(name: str, weights: Sequence[float] | Tensor, device: str | None = None) -> Tensor:
    """Return ``weights``, a tensor or a sequence of numbers, as a tensor."""
    try:
        return torch.as_tensor(weights, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or a sequence of numbers, got {_said(weights)}") from error


def class_weights(name: str, weights: Sequence[float] | Tensor, most: float = float("inf")) -> Tensor:
    """Return a copy of the weights that a module keeps for its classes, each from 0 to ``most``."""
    if not isinstance(weights, Tensor):
        # Under torch.device("meta") a tensor made of numbers would hold none.
        weights = as_weights(name, weights, "cpu" if torch.empty(0).is_meta else None)
    if weights.is_meta:
        raise ValueError(f"{name} is on the meta device and holds no numbers; make it with device='cpu'")
    finite_weights(name, weights)
    if bool((weights > most).any()):
        raise ValueError(f"{name} must lie in [0, {most}], got {weights.max().item()}")
    return weights.detach().clone()


def gathered_shape(name: str, widths: Sequence[tuple[int, ...]]) -> None:
    """Refuse rows of different width or dtype on different ranks."""
    if len(set(widths)) > 1:
        raise ValueError(
            f"{name} must have the same trailing shape and dtype on every rank, got {list(widths)} by rank"
        )


def _within(tensor: Tensor, low: int, high: int) -> bool:
    # Whether all are whole numbers from low to high, by passes over chunks in cache that write nothing the size of the
    # tensor; comparisons would cost as much as a loss. Float labels are whole where y - y^2 is 0, other floats wait.
    if tensor.is_floating_point() and (low, high) != (0, 1):
        return False
    for chunk in tensor.detach().reshape(-1).split(2**16) if tensor.numel() else ():
        if tensor.is_floating_point():
            chunk, high = torch.addcmul(chunk, chunk, chunk, value=-1), 0
        least, most = torch.aminmax(chunk)
        if not low <= least.item() <= most.item() <= high:
            return False
    return True


def warn_caller(message: str) -> None:
    """Warn at the line of the user's code that led here: the first outside of torch and of this package."""
    ours = tuple(os.path.join(Path(package.__file__ or "").parent, "") for package in (torch, sys.modules["rareloss"]))
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _said(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
