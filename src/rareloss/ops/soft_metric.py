"""Soft metrics of a pool with their gradient: by the native kernel on the CPU, else by their equation in plain torch.

The kernel computes value and gradient in one call, so its autograd function keeps the gradient and nothing else. This
is the one place that chooses.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, List, NamedTuple  # noqa: UP035, torch 2.6 reads no list[float] in the signature of an op

import torch
from torch import Tensor

from rareloss.eager import is_graph_kept, is_plain
from rareloss.ops import native
from rareloss.ops.functions import fold_into_batch, without_second_derivative
from rareloss.ops.standardization import standardize
from rareloss.pool import PerClass, Pool, per_class

__all__ = ["SoftMetric", "average_precision_in_one_call", "evaluate"]

_FUNCTIONS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "average_precision": native.average_precision,
    "recall": native.recall,
    "partial_auc": native.partial_auc,
}


class SoftMetric(NamedTuple):
    """A soft metric of each class of a pool.

    Attributes:
        name: the kernel's function.
        settings: its arguments, such as the quantile.
        equation: ``equation(pool, temperature, *settings) -> [C]`` in plain torch.
    """

    name: str
    settings: tuple[float, ...]
    equation: Callable[..., Tensor]


def evaluate(
    metric: SoftMetric,
    pool: Pool,
    temperature: float,
    in_std: bool = False,
    scale: Tensor | float = 1.0,
    like: Tensor | None = None,
) -> PerClass:
    """Compute a soft metric of each class, with the gradient of the live rows.

    Args:
        metric: which one.
        pool: the rows.
        temperature: above 0, in units of the scores, or of the standard deviation of the pool's iid scores.
        in_std: whether it is in standard deviations; the gradient then goes through them.
        scale: what the gradient is multiplied by, for all classes or each ``[C]``; the value stays.
        like: the scores that the pool was made of; if ``[M]``, the value is 0-d.
    """
    if not native.serves(pool.scores):
        pool = pool.joined()
        ranked = standardize(pool)[0] if in_std else pool
        value = metric.equation(ranked, temperature, *metric.settings)
        return per_class(ranked, _scaled_gradient(value, scale)).like(ranked.scores if like is None else like)
    scores = pool.scores if pool.live is None else pool.live
    if like is not None and like.ndim == 1 and pool.eager and like.dtype == scores.dtype:
        scores = like  # the gradient goes to them without a step over [C, M]
    with_gradient = not pool.eager or (scores.requires_grad and torch.is_grad_enabled())
    rows = (pool.scores.detach(), pool.is_positive, _weight(pool), pool.iid)
    options = (temperature, in_std, with_gradient)
    if pool.eager:
        compute = partial(_FUNCTIONS[metric.name], *rows, scores.shape[-1], *options, *metric.settings)
        value = _EagerFused.apply(scores, compute, scale)  # type: ignore[no-untyped-call]
    else:
        value = _Fused.apply(scores, *rows, metric.name, list(metric.settings), *options)[0]  # type: ignore[no-untyped-call]
        value = _scaled_gradient(value, scale).to(scores.dtype)
    return _defined(pool, value).like(scores if like is None else like)


def average_precision_in_one_call(pool: Pool) -> PerClass | None:
    """Compute the exact average precision of each class by the native kernel, or nothing where it cannot."""
    if not (native.available() and pool.eager and pool.scores.device.type == "cpu"):
        return None
    return _defined(pool, native.exact_average_precision(pool.scores, pool.is_positive, _weight(pool)))


def _scaled_gradient(value: Tensor, scale: Tensor | float) -> Tensor:
    if not isinstance(scale, Tensor) and scale == 1:
        return value
    return value.detach() + (value - value.detach()) * scale


def _weight(pool: Pool) -> Tensor | None:
    return None if pool.unweighted else pool.weight


def _defined(pool: Pool, value: Tensor) -> PerClass:
    # The kernel's NaN means either: not defined, or not finite. A free look mostly finds neither.
    one = value if value.numel() == 1 else value.detach().sum()
    if pool.eager and not math.isnan(one.item()):
        return PerClass(value, torch.ones_like(value, dtype=torch.bool))
    return per_class(pool, value)


def _call(
    scores: Tensor,
    is_positive: Tensor,
    weight: Tensor | None,
    iid: Tensor | None,
    live: int,
    name: str,
    settings: List[float],  # noqa: UP006
    temperature: float,
    in_std: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    value, gradient = _FUNCTIONS[name](
        scores, is_positive, weight, iid, live, temperature, in_std, with_gradient, *settings
    )
    return value, value.new_empty(0) if gradient is None else gradient


_op = torch.library.custom_op("rareloss::soft_metric", _call, mutates_args=())


@_op.register_fake
def _(
    scores: Tensor, is_positive: Tensor, weight: Tensor | None, iid: Tensor | None, live: int, *options: Any
) -> tuple[Tensor, Tensor]:
    value = scores.new_empty(scores.shape[0], dtype=torch.float64)
    return value, scores.new_empty(scores.shape[0], live) if options[-1] else value.new_empty(0)


fold_into_batch(_op)


def _scaled(grad_value: Tensor, gradient: Tensor, scores: Tensor) -> Tensor:
    return (grad_value.to(gradient.dtype)[..., None] * gradient).view(scores.shape)


_scaled_once = without_second_derivative(_scaled, "the soft metric has")


class _Fused(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        live: Tensor,
        scores: Tensor,
        is_positive: Tensor,
        weight: Tensor | None,
        iid: Tensor | None,
        name: str,
        settings: list[float],
        temperature: float,
        in_std: bool,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        rows = (scores, is_positive, weight, iid, live.shape[1])
        output: tuple[Tensor, Tensor] = _op(*rows, name, settings, temperature, in_std, with_gradient)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, live = ctx.saved_tensors
        return _scaled_once(gradients[0], gradient, live), *((None,) * 9)


class _EagerFused(torch.autograd.Function):
    # The same without the op and the bookkeeping of torch.func, which take longer than a small pool: of live scores
    # [C, n], or [n] with a value that is 0-d. Two inputs beside them, as torch unwraps each.

    @staticmethod
    def forward(
        ctx: Any, live: Tensor, compute: Callable[[], tuple[Tensor, Tensor | None]], scale: Tensor | float
    ) -> Tensor:
        value, gradient = compute()
        if gradient is not None:
            if isinstance(scale, Tensor):
                gradient *= scale[:, None]
            elif scale != 1:
                gradient *= scale
            ctx.save_for_backward(gradient, live)
        value = value.to(live.dtype)
        return value if live.ndim == 2 else value.squeeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient, live), grad_value = ctx.saved_tensors, gradients[0]
        if is_graph_kept() or not is_plain(grad_value):
            return _scaled_once(grad_value, gradient, live), None, None
        # Given away: no second tensor of its size.
        return gradient.mul_(grad_value[..., None]).view(live.shape), None, None
