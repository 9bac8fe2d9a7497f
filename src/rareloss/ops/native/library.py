"""The kernel's C interface through ctypes: which library is loaded, and a thin function for each of its functions.

Scores, positives, weights and iid flags are ``[classes, rows]``. Weights have the scores' dtype, float32 or float64,
and weight 0 means absent. ``None`` for weights means that all are 1; for iid flags, that all rows are iid.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Focal",
    "available",
    "average_precision",
    "exact_average_precision",
    "log_odds",
    "log_odds_backward",
    "partial_auc",
    "recall",
    "serves",
    "sigmoid_focal",
    "soft_count",
    "softmax_focal",
    "sort",
    "switched_off",
    "why",
]

_ROWS_IN_FULL_PRECISION = 2**16
_SWITCH = "RARELOSS_NATIVE"
_FOLDER = "RARELOSS_NATIVE_FOLDER"  # where the libraries are looked for, in place of here: a build with sanitizers
_ENDING = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
# The variants that a processor runs, the fastest first, by what torch calls its capability.
_RUNS = {
    "AVX512": ("v4", "v3", "v2"),
    "AVX2": ("v3", "v2"),
    "DEFAULT": ("v2", "arm64"),
}
# Others are ARM's: one variant serves all of them.
_RUNS_ELSEWHERE = ("arm64",)

_pointer, _int64, _int, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double


class _Pool(ctypes.Structure):
    # As in common.h.
    _fields_ = [
        *((name, _pointer) for name in ("scores", "positive", "weight", "iid")),
        *((name, _int64) for name in ("classes", "rows", "live")),
        *((f"{name}_stride", _int64) for name in ("score", "positive", "weight", "iid")),
        ("temperature", _double),
        ("in_std", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("value", _pointer),
        ("gradient", _pointer),
    ]


_pool = ctypes.POINTER(_Pool)
_SIGNATURES: dict[str, list[type]] = {
    "average_precision": [_pool],
    "recall": [_pool, _double, _int, _pointer],  # quantile, among negatives, threshold or null
    "partial_auc": [_pool, _double, _double],  # alpha, beta
    "average_precision_exact": [_pool],
    # scores, weights, their strides by pool and by set, points, pools, sets, rows, points of a pool, temperature,
    # count, slope, threads
    "soft_count": [
        *(_pointer, _pointer, _int64, _int64, _pointer, _int64, _int64, _int64, _int64, _double),
        *(_pointer, _pointer, _int),
    ],
    "sort": [_pointer, _int64, _pointer, _pointer],  # scores, rows, sorted or null, order
    # logits, rows, classes, row stride, odds [classes, rows], threads
    "log_odds": [_pointer, _int64, _int64, _int64, _pointer, _int],
    # logits, rows, classes, row stride, gradient of the odds, gradient of the logits, threads
    "log_odds_backward": [_pointer, _int64, _int64, _int64, _pointer, _pointer, _int],
    # logits, targets, their type, weight, elements, alpha, its period, gamma, ignored target, whether there is one,
    # scale of the slope, sums, loss, slope, bad labels, threads
    "sigmoid_focal": [
        *(_pointer, _pointer, _int, _pointer, _int64, _pointer, _int64, _double, _double, _int, _double),
        *(_pointer, _pointer, _pointer, _pointer, _int),
    ],
    # logits, outer, classes, inner, targets, weight, alpha, gamma, label smoothing, ignored target, background class,
    # scale of the slope, sums, loss, slope, bad labels, threads
    "softmax_focal": [
        *(_pointer, _int64, _int64, _int64, _pointer, _pointer, _pointer, _double, _double, _int64, _int64, _double),
        *(_pointer, _pointer, _pointer, _pointer, _int),
    ],
}
_TARGET_TYPES = {
    torch.bool: 0,
    torch.uint8: 0,
    torch.int64: 1,
    torch.float32: 2,
    torch.float64: 3,
    torch.int32: 4,
}


# ---------------------------------------------------------------- which library

_off = False


def available() -> bool:
    """Say whether the native kernel is used on this machine; :func:`why` says why not."""
    return not _off and _LOADED


def serves(scores: Tensor) -> bool:
    """Say whether the kernel is used for pools of these scores ``[C, M]``.

    Its float64 has nine digits in linear time. Who asks for float64 on few rows wants all sixteen.
    """
    precise = scores.dtype == torch.float64 and scores.shape[1] <= _ROWS_IN_FULL_PRECISION
    return available() and scores.device.type == "cpu" and not precise


@contextmanager
def switched_off() -> Iterator[None]:
    """Let nobody use the kernel meanwhile; for tests, and for all threads."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def why() -> str:
    """Say which variant of the native kernel is used and why, or why none is."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    switch = os.environ.get(_SWITCH, "")
    if switch == "0":
        return None, f"no native kernel: {_SWITCH}=0 switches it off"
    if switch not in ("", "1", "v2", "v3", "v4"):
        raise ValueError(f"{_SWITCH} must be 0, 1, v2, v3 or v4, got {switch!r}")
    capability = torch.backends.cpu.get_cpu_capability()
    runs = _RUNS.get(capability, _RUNS_ELSEWHERE)
    forced = switch.startswith("v")
    folder = Path(os.environ.get(_FOLDER, Path(__file__).parent))
    for variant in [switch] if forced else runs:
        reason = "" if variant in runs else f"the processor, {capability}, cannot run variant {variant}"
        library = None if reason else _library(folder / f"_kernel_{variant}{_ENDING}")
        if isinstance(library, ctypes.CDLL):
            chosen = f"{_SWITCH} asks for it" if forced else f"the processor is {capability}"
            return library, f"native kernel, variant {variant}: {chosen}"
        reason = reason or f"no library of variant {variant}: {library or 'rareloss was installed without a compiler'}"
        if forced:
            raise RuntimeError(f"{_SWITCH}={switch}: {reason}")
        if library:
            break
    return None, f"no native kernel: {reason}"


def _library(path: Path) -> ctypes.CDLL | str:
    # The library, or why there is none: an empty reason where there is no file.
    if not path.exists():
        return ""
    sources = [*path.parent.glob("*.h"), *path.parent.glob("*.cpp")]  # not in a wheel
    if any(source.stat().st_mtime > path.stat().st_mtime for source in sources):
        return "it is older than its sources; run python hatch_build.py"
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)


# Known when a graph is traced, which cannot ask.
_LOADED = _load()[0] is not None


@cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., int]:
    library, reason = _load()
    if library is None:
        raise RuntimeError(reason)
    function = getattr(library, f"rareloss_{name}_{'f64' if dtype is torch.float64 else 'f32'}")
    function.restype, function.argtypes = _int, _SIGNATURES[name]

    def checked(*arguments: object) -> int:
        status: int = function(*arguments)
        if status:
            raise MemoryError(f"{name} ran out of memory")
        return status

    return checked


# Bytes from which on it pays to ask the system for huge pages.
_LARGE = 1 << 22


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    # Memory that the kernel writes: where it is large, page faults would take longer than most losses.
    x = torch.empty(shape, dtype=dtype)
    if x.numel() * x.element_size() >= _LARGE:
        library, reason = _load()
        if library is None:
            raise RuntimeError(reason)
        library.rareloss_prefer_huge_pages(_pointer(x.data_ptr()), _int64(x.numel() * x.element_size()))
    return x


# ---------------------------------------------------------------- rankings


def average_precision(
    scores: Tensor,
    positive: Tensor,
    weight: Tensor | None,
    iid: Tensor | None,
    live: int,
    temperature: float,
    in_std: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute smooth average precision.

    Args:
        scores: ``[C, M]``.
        positive: bool, ``[C, M]``.
        weight: ``[C, M]``, the scores' dtype; None where all are 1.
        iid: bool, ``[C, M]``: the rows of the standard deviation; None for all.
        live: how many rows, the first ones, want a gradient.
        temperature: above 0.
        in_std: whether ``temperature`` is in standard deviations of the iid scores.
        with_gradient: whether the gradient is wanted.

    Returns:
        the value ``[C]``, float64, NaN where it is not defined, and its gradient ``[C, live]`` or None.
    """
    return _ranked("average_precision", (), scores, positive, weight, iid, live, temperature, in_std, with_gradient)


def recall(
    scores: Tensor,
    positive: Tensor,
    weight: Tensor | None,
    iid: Tensor | None,
    live: int,
    temperature: float,
    in_std: bool,
    with_gradient: bool,
    quantile: float,
    among_negatives: bool,
    threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute soft recall in the top ``quantile`` of the iid rows, or of the iid negatives.

    ``threshold``, float64 ``[C]``, is where the thresholds are written to. The other arguments and the result are
    those of :func:`average_precision`.
    """
    options = quantile, int(among_negatives), None if threshold is None else threshold.data_ptr()
    return _ranked("recall", options, scores, positive, weight, iid, live, temperature, in_std, with_gradient)


def partial_auc(
    scores: Tensor,
    positive: Tensor,
    weight: Tensor | None,
    iid: Tensor | None,
    live: int,
    temperature: float,
    in_std: bool,
    with_gradient: bool,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor | None]:
    """Compute soft partial AUC over the band ``[alpha, beta]`` of false-positive rates of the iid negatives.

    The other arguments and the result are those of :func:`average_precision`.
    """
    options = alpha, beta
    return _ranked("partial_auc", options, scores, positive, weight, iid, live, temperature, in_std, with_gradient)


def exact_average_precision(scores: Tensor, positive: Tensor, weight: Tensor | None) -> Tensor:
    """Compute exact average precision ``[C]``, float64, tied scores together; the arguments are ``[C, M]``."""
    rows = scores.shape[1]
    return _ranked("average_precision_exact", (), scores, positive, weight, None, rows, 1.0, False, False)[0]


def soft_count(
    scores: Tensor, weights: Tensor, at: Tensor | None, temperature: float, with_count: bool, with_slope: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Count, softly, the weight of the scores above each point.

    Args:
        scores: ``[C, M]``.
        weights: ``[C, K, M]``, for K counts; none below 0.
        at: ``[C, A]``, or None for the scores themselves; slopes then leave out a row's pair with itself.
        temperature: above 0.
        with_count: whether the count is wanted.
        with_slope: whether the slope is wanted.

    Returns:
        the count and its slope ``sum_j w_j sigmoid'((s_j - at) / t)``, each ``[C, K, A]`` or None.
    """
    (pools, rows), sets, points = scores.shape, weights.shape[1], (scores if at is None else at).shape[1]
    scores, at = scores.contiguous(), None if at is None else at.contiguous()
    weights = weights if weights.stride(2) == 1 or rows <= 1 else weights.contiguous()
    count = _empty(pools, sets, points, dtype=scores.dtype) if with_count else None
    slope = _empty(pools, sets, points, dtype=scores.dtype) if with_slope else None
    _function("soft_count", scores.dtype)(
        *(scores.data_ptr(), weights.data_ptr(), weights.stride(0), weights.stride(1)),
        None if at is None else at.data_ptr(),
        *(pools, sets, rows, points, temperature),
        None if count is None else count.data_ptr(),
        None if slope is None else slope.data_ptr(),
        torch.get_num_threads(),
    )
    return count, slope


def sort(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sort scores ``[M]`` upwards, ties in their order and NaN last; return them and their rows, int64."""
    scores = scores.contiguous()
    ordered, order = (_empty(len(scores), dtype=dtype) for dtype in (scores.dtype, torch.int64))
    _function("sort", scores.dtype)(scores.data_ptr(), len(scores), ordered.data_ptr(), order.data_ptr())
    return ordered, order


def _ranked(
    name: str,
    options: tuple[float | None, ...],
    scores: Tensor,
    positive: Tensor,
    weight: Tensor | None,
    iid: Tensor | None,
    live: int,
    temperature: float,
    in_std: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    classes, rows = scores.shape
    scores, positive = _dense_rows(scores), _dense_rows(positive)
    weight, iid = None if weight is None else _dense_rows(weight), None if iid is None else _dense_rows(iid)
    value = torch.empty(classes, dtype=torch.float64)
    gradient = _empty(classes, live, dtype=scores.dtype) if with_gradient else None
    pool = _Pool(
        scores.data_ptr(),
        positive.data_ptr(),
        None if weight is None else weight.data_ptr(),
        None if iid is None else iid.data_ptr(),
        classes,
        rows,
        live,
        scores.stride(0),
        positive.stride(0),
        0 if weight is None else weight.stride(0),
        0 if iid is None else iid.stride(0),
        temperature,
        in_std,
        torch.get_num_threads(),
        value.data_ptr(),
        None if gradient is None else gradient.data_ptr(),
    )
    _function(name, scores.dtype)(pool, *options)
    return value, gradient


def _dense_rows(x: Tensor) -> Tensor:
    # Classes may lie anywhere, or all in one place; the rows of each lie side by side.
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


# ---------------------------------------------------------------- class indices


def log_odds(logits: Tensor) -> Tensor:
    """Turn logits ``[M, C]``, C of at least 2, into one-vs-rest log-odds ``[C, M]``."""
    rows, classes = logits.shape
    logits = _dense_rows(logits)
    odds = _empty(classes, rows, dtype=logits.dtype)
    _function("log_odds", logits.dtype)(
        *(logits.data_ptr(), rows, classes, logits.stride(0)), odds.data_ptr(), torch.get_num_threads()
    )
    return odds


def log_odds_backward(logits: Tensor, grad_odds: Tensor) -> Tensor:
    """Turn the gradient ``[C, M]`` of log-odds into that of their logits, ``[M, C]``."""
    rows, classes = logits.shape
    logits, grad_odds = _dense_rows(logits), grad_odds.contiguous()
    gradient = _empty(rows, classes, dtype=logits.dtype)
    _function("log_odds_backward", logits.dtype)(
        *(logits.data_ptr(), rows, classes, logits.stride(0)),
        *(grad_odds.data_ptr(), gradient.data_ptr(), torch.get_num_threads()),
    )
    return gradient


# ---------------------------------------------------------------- focal losses


class Focal(NamedTuple):
    """What a pass of a focal loss gives.

    Attributes:
        loss_sum: of the weighted losses.
        weight: the weight of what is not ignored.
        positive: the weight of the positives; for class indices, of what is not background.
        bad: how many labels are none; a loss of such a row is NaN.
        loss: of each target, weighted, or None.
        slope: the derivative of the loss sum by the logits, of their shape, times what was asked for; or None.
    """

    loss_sum: float
    weight: float
    positive: float
    bad: int
    loss: Tensor | None
    slope: Tensor | None


def sigmoid_focal(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    alpha: float | Tensor | None,
    gamma: float,
    ignore_index: float | None,
    with_loss: bool,
    with_slope: bool,
    slope_scale: float = 1.0,
) -> Focal:
    """Compute the focal loss of each label on its own.

    Args:
        logits: any shape, float32 or float64.
        targets: the same shape; 0, 1 or ``ignore_index``.
        weight: the same shape and the logits' dtype; None where all are 1.
        alpha: of positives; a number, one for each index of the last dimension in the logits' dtype, or None.
        gamma: at least 0.
        ignore_index: the target that means absent; NaN is allowed.
        with_loss: whether each loss is wanted, not only their sum.
        with_slope: whether the derivative is wanted.
        slope_scale: a factor of the derivative.

    Returns:
        sums, and what was wanted.
    """
    logits, targets, dtype = logits.contiguous(), targets.contiguous(), logits.dtype
    if targets.dtype not in _TARGET_TYPES:
        targets = targets.to(torch.float32 if targets.is_floating_point() else torch.int64)
    weight = None if weight is None else weight.contiguous()
    if isinstance(alpha, Tensor):
        alpha = alpha.contiguous()
        alpha_at, period = alpha.data_ptr(), alpha.numel()
    elif alpha is None:
        alpha_at, period = None, 1
    else:  # a tensor of one number would take longer to make than a small batch
        number = _double(alpha) if dtype is torch.float64 else ctypes.c_float(alpha)
        alpha_at, period = ctypes.addressof(number), 1
    sums, bad = (_double * 3)(), _int64()
    loss = _empty(*logits.shape, dtype=dtype) if with_loss else None
    slope = _empty(*logits.shape, dtype=dtype) if with_slope else None
    _function("sigmoid_focal", dtype)(
        logits.data_ptr(),
        targets.data_ptr(),
        _TARGET_TYPES[targets.dtype],
        None if weight is None else weight.data_ptr(),
        logits.numel(),
        alpha_at,
        period,
        gamma,
        0.0 if ignore_index is None else ignore_index,
        ignore_index is not None,
        slope_scale,
        sums,
        None if loss is None else loss.data_ptr(),
        None if slope is None else slope.data_ptr(),
        ctypes.addressof(bad),
        torch.get_num_threads(),
    )
    return Focal(sums[0], sums[1], sums[2], bad.value, loss, slope)


def softmax_focal(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    alpha: Tensor | None,
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    background_class: int,
    with_loss: bool,
    with_slope: bool,
    slope_scale: float = 1.0,
) -> Focal:
    """Compute the focal loss of class indices.

    Args:
        logits: ``[N, C, ...]`` or ``[C]``, C of at least 2; float32 or float64.
        targets: ``[N, ...]`` or 0-d, int64; class indices or ``ignore_index``.
        weight: the targets' shape and the logits' dtype; None where all are 1.
        alpha: ``[C]`` in the logits' dtype, or None.
        gamma: at least 0.
        label_smoothing: in [0, 1].
        ignore_index: the target that means absent.
        background_class: the class that is no positive.
        with_loss: whether each loss is wanted, not only their sum.
        with_slope: whether the derivative is wanted.
        slope_scale: a factor of the derivative.

    Returns:
        sums, and what was wanted.
    """
    logits, targets, dtype = logits.contiguous(), targets.contiguous(), logits.dtype
    weight = None if weight is None else weight.contiguous()
    alpha = None if alpha is None else alpha.contiguous()
    outer, classes = (1, logits.shape[0]) if logits.ndim == 1 else logits.shape[:2]
    sums, bad = (_double * 3)(), _int64()
    loss = _empty(*targets.shape, dtype=dtype) if with_loss else None
    slope = _empty(*logits.shape, dtype=dtype) if with_slope else None
    _function("softmax_focal", dtype)(
        *(logits.data_ptr(), outer, classes, targets.numel() // max(1, outer), targets.data_ptr()),
        None if weight is None else weight.data_ptr(),
        None if alpha is None else alpha.data_ptr(),
        *(gamma, label_smoothing, ignore_index, background_class, slope_scale, sums),
        None if loss is None else loss.data_ptr(),
        None if slope is None else slope.data_ptr(),
        *(ctypes.addressof(bad), torch.get_num_threads()),
    )
    return Focal(sums[0], sums[1], sums[2], bad.value, loss, slope)
