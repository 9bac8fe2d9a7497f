"""Soft metrics of a pool with their gradient: by the native kernel on the CPU, else by their equation in plain torch.

The kernel computes value and gradient in one call, so its autograd function keeps the gradient and nothing else. This
is the one place that chooses.
"""

import math
from collections.abc import Callable
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
    metric: SoftMetric, pool: Pool, temperature: float, in_std: bool = False, scale: Tensor | float = 1.0
) -> PerClass:
    """Compute a soft metric of each class, with the gradient of the live rows.

    Args:
        metric: which one.
        pool: the rows.
        temperature: above 0, in units of the scores, or of the standard deviation of the pool's iid scores.
        in_std: whether it is in standard deviations; the gradient then goes through them.
        scale: what the gradient is multiplied by, for all classes or each ``[C]``; the value stays.
    """
    if not native.serves(pool.scores):
        pool = pool.joined()
        ranked = standardize(pool)[0] if in_std else pool
        value = metric.equation(ranked, temperature, *metric.settings)
        return per_class(ranked, _scaled_gradient(value, scale))
    scores = pool.scores if pool.live is None else pool.live
    with_gradient = not pool.eager or (scores.requires_grad and torch.is_grad_enabled())
    rows = (scores, pool.scores.detach(), pool.is_positive, _weight(pool), pool.iid)
    options = (metric.name, list(metric.settings), temperature, in_std, with_gradient)
    if pool.eager:
        return _defined(pool, _EagerFused.apply(*rows, scale, *options))  # type: ignore[no-untyped-call]
    value = _scaled_gradient(_Fused.apply(*rows, *options)[0], scale)  # type: ignore[no-untyped-call]
    return _defined(pool, value.to(scores.dtype))


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
    if pool.eager and not math.isnan(value.detach().sum().item()):
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
    return grad_value.to(gradient.dtype)[:, None] * gradient


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
    # The same without the op and the bookkeeping of torch.func, which take longer than a small pool.

    @staticmethod
    def forward(ctx: Any, live: Tensor, *rows_and_options: Any) -> Tensor:
        *rows, scale, name, settings, temperature, in_std, with_gradient = rows_and_options
        value, gradient = _FUNCTIONS[name](*rows, live.shape[1], temperature, in_std, with_gradient, *settings)
        if gradient is not None:
            if isinstance(scale, Tensor):
                gradient *= scale[:, None]
            elif scale != 1:
                gradient *= scale
            ctx.save_for_backward(gradient, live)
        return value.to(live.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient, live), grad_value = ctx.saved_tensors, gradients[0]
        if is_graph_kept() or not is_plain(grad_value, gradient):
            return _scaled_once(grad_value, gradient, live), *((None,) * 10)
        # Given away: no second tensor of its size.
        return gradient.mul_(grad_value[:, None]), *((None,) * 10)
