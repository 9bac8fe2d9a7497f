"""One-vs-rest log-odds: the score by which class indices are ranked."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rareloss import checks
from rareloss.eager import is_eager, is_plain
from rareloss.ops import native
from rareloss.ops.functions import eager_twin, without_second_derivative

__all__ = ["log_odds", "log_odds_by_class"]

# Numbers worked on at once: a chunk of float32 (512 KiB) and what is derived from it stay near the core.
_CHUNK = 2**17


def log_odds(logits: Tensor) -> Tensor:
    r"""Turn class logits into one-vs-rest log-odds.

    .. math:: o_c = z_c - \log \sum_{k \ne c} e^{z_k} = \log \frac{p_c}{1 - p_c}

    Softmax leaves each row a free offset, so the raw :math:`z_c` of different rows do not compare; log-odds do.

    Args:
        logits: ``[..., C]``, C of at least 2; float.

    Returns:
        ``[..., C]``, in float32 at least.

    Raises:
        TypeError: ``logits`` are not floats.
        ValueError: there is no class dimension, or it holds fewer than 2 classes.

    Example:
        >>> log_odds(torch.tensor([2.0, 0.5]))
        tensor([ 1.5000, -1.5000])
    """
    checks.floating("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(f"logits must have shape [..., C] with C of at least 2, got {tuple(logits.shape)}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    odds: Tensor = (_EagerLogOdds if is_plain(logits) else _LogOdds).apply(logits)[0]
    return odds


def _forward(logits: Tensor) -> tuple[Tensor, Tensor]:
    # Also returns which class is the top one. What it competes with is summed without it: there 1 - p rounds to 0.
    top, top_class = logits.max(-1, keepdim=True)
    others = logits.scatter(-1, top_class, -torch.inf)
    second = others.amax(-1, keepdim=True)
    others.sub_(second).exp_()
    total, lead = others.sum(-1, keepdim=True), top - second
    # For class c of the others: z_c - log(e^top + sum of the rest).
    rest = others.neg_().add_(total).mul_(lead.neg().exp_()).log1p_()
    return (logits - top).sub_(rest).scatter(-1, top_class, lead - total.log()), top_class


def _backward(log_odds: Tensor, top_class: Tensor, grad_output: Tensor) -> Tensor:
    # d o_c / d z_c = 1 and d o_c / d z_k = -p_k / (1 - p_c), with p / (1 - p) the odds x. So with r_c = g_c (1 + x_c)
    # class k gets r_k - p_k sum(r); and of the top class, whose odds may overflow, g_top p_k / (1 - p_top), the last
    # factor being its probability among the others.
    top, of_top = log_odds.gather(-1, top_class), grad_output.gather(-1, top_class)
    rest = torch.sigmoid(-top)
    among_others = (log_odds - F.logsigmoid(-top)).clamp(max=1.0).exp().scatter(-1, top_class, 0.0)
    plus_one = among_others * rest + 1
    r = (grad_output * plus_one).scatter(-1, top_class, 0.0)
    total = r.sum(-1, keepdim=True)
    gradient = r - among_others * (rest * total + of_top) / plus_one
    return gradient.scatter(-1, top_class, of_top - torch.sigmoid(top) * total)


def _forward_in_cache(logits: Tensor) -> tuple[Tensor, Tensor]:
    # Many passes over rows that stay in cache cost less than each of them over all rows.
    odds, top_class = torch.empty_like(logits), torch.empty_like(logits[..., :1], dtype=torch.int64)
    for chunk in _chunks(logits):
        odds[chunk], top_class[chunk] = _forward(logits[chunk])
    return odds, top_class


def _backward_in_cache(log_odds: Tensor, top_class: Tensor, grad_output: Tensor) -> Tensor:
    gradient = torch.empty_like(log_odds)
    grad_output = grad_output.contiguous()  # laid out by class it is read against the grain, row by row
    for chunk in _chunks(log_odds):
        gradient[chunk] = _backward(log_odds[chunk], top_class[chunk], grad_output[chunk])
    return gradient


def _chunks(logits: Tensor) -> Iterator[slice]:
    rows, size = len(logits), max(1, _CHUNK * len(logits) // max(1, logits.numel()))
    return (slice(start, start + size) for start in range(0, rows, size))


class _LogOdds(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> tuple[Tensor, Tensor]:
        in_cache = is_plain(logits) and logits.ndim > 1
        return _forward_in_cache(logits) if in_cache else _forward(logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        log_odds, top_class = ctx.saved_tensors
        in_cache = is_plain(log_odds, gradients[0]) and log_odds.ndim > 1 and not torch.is_grad_enabled()
        return (_backward_in_cache if in_cache else _backward)(log_odds, top_class, gradients[0])


_EagerLogOdds = eager_twin(_LogOdds)


def log_odds_by_class(logits: Tensor) -> Tensor:
    """Turn logits ``[M, C]`` into log-odds ``[C, M]``, as a pool is laid out; float32 or float64."""
    if native.available() and is_eager(logits):
        odds: Tensor = _NativeLogOdds.apply(logits)  # type: ignore[no-untyped-call]
        return odds
    return log_odds(logits).mT.contiguous()


class _NativeLogOdds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return native.log_odds(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient: Tensor = _native_backward(*ctx.saved_tensors, gradients[0])
        return gradient


_native_backward = without_second_derivative(native.log_odds_backward, "the log-odds have")
