r"""Focal losses in closed form: value and derivative of each loss in one pass, on every device.

Both are one function of :math:`x`, the log-odds of *not* being the target, with :math:`q = \sigma(x) = 1 - p`:

.. math:: f(x) = q^\gamma \, (-\log p), \qquad f'(x) = q^\gamma \, \big[ q + \gamma \, p \, (-\log p) \big].

For a label :math:`y`, :math:`x = (1 - 2 y) z`; for a class index, :math:`x = \log \sum_{k \ne y} e^{z_k} - z_y`. Label
smoothing adds :math:`\varepsilon (z_y - \bar z)` to :math:`-\log p`.

Autograd of these lines would save some ten tensors as large as the logits. Here the derivative is written down instead
of recorded, and the backward pass needs the inputs alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn.functional import logsigmoid, softplus

from rareloss import checks
from rareloss.eager import is_eager
from rareloss.ops import native

__all__ = ["SigmoidFocal", "SoftmaxFocal", "focal_loss"]

# Above this argument log(1 + exp(x)) is x, in float64 too.
_LINEAR = 40.0
# How many elements are worked on at once where no cache has to hold them: few beside the logits of a large model.
_CHUNK_OFF_CPU = 2**25


class _Inputs(NamedTuple):
    # Each [N, C, rest], or with a size of 1 where it repeats: dimension 1 holds what one loss is computed from.
    logits: Tensor
    targets: Tensor
    weight: Tensor | None
    alpha: Tensor | None


class _Terms(NamedTuple):
    # Weighted losses, weights (None where all are 1), weights of positives, and the derivative by each logit or None.
    loss: Tensor
    weight: Tensor | None
    positive: Tensor
    slope: Tensor | None


def _closed_form(nll: Tensor, x: Tensor, gamma: float, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    # The loss, q, and the factor of nll; nll is -log p, plus what label smoothing adds.
    q = torch.sigmoid(x)
    # In logs where gamma is a fraction: such a power has no finite derivative at q = 0.
    focus = q**gamma if float(gamma).is_integer() else torch.exp(gamma * logsigmoid(x))
    focus = focus if weight is None else weight * focus
    return focus * nll, q, focus


def _closed_slope(nll: Tensor, q: Tensor, focus: Tensor, gamma: float) -> Tensor:
    # The derivative by x: q^gamma (q + gamma p nll).
    return torch.addcmul(q, 1 - q, nll, value=gamma).mul_(focus)


@dataclass(frozen=True)
class SigmoidFocal:
    """The focal loss of labels 0 and 1.

    Attributes:
        alpha: weight of the positives, a number or a tensor with as many dimensions as the logits; None for no weights.
        gamma: focusing exponent.
        ignore_index: the label that means absent; None where every label is known to be 0 or 1.
    """

    alpha: float | Tensor | None
    gamma: float
    ignore_index: float | None

    @property
    def chunk(self) -> int:
        """How many float32 to work on at once on the CPU: a handful of such temporaries share a second-level cache."""
        return 3 * 2**15

    def arrange(self, logits: Tensor, targets: Tensor, weight: Tensor | None) -> _Inputs:
        """View all as ``[N, 1, rest]``."""
        rest = logits.shape[1:].numel()

        def fold(t: Tensor) -> Tensor:
            if t.numel() == 1:
                return t.reshape(1, 1, 1)
            if t.numel() == len(t):
                return t.reshape(len(t), 1, 1)
            return t.expand(len(t), *logits.shape[1:]).reshape(len(t), 1, rest)

        alpha = fold(self.alpha) if isinstance(self.alpha, Tensor) else None
        return _Inputs(fold(logits), fold(targets), None if weight is None else fold(weight), alpha)

    def checked(self, targets: Tensor) -> "SigmoidFocal":
        """Refuse what is no label, where looking is free; return the same loss, with what is known of the labels."""
        known = checks.labels("targets", targets, self.ignore_index) and self.ignore_index not in (0, 1)
        return SigmoidFocal(self.alpha, self.gamma, None) if known else self

    def fits_native(self, targets: Tensor) -> bool:
        """Say whether the native kernel reads such targets and has such an ``alpha``."""
        alpha = self.alpha
        by_column = not isinstance(alpha, Tensor) or alpha.numel() == (alpha.shape[-1] if alpha.ndim else 1)
        return by_column and (not targets.is_floating_point() or targets.dtype in (torch.float32, torch.float64))

    def run_native(
        self, logits: Tensor, targets: Tensor, weight: Tensor | None, with_loss: bool, with_slope: bool
    ) -> native.Focal:
        """Let the native kernel compute the same."""
        alpha = self.alpha
        if isinstance(alpha, Tensor):
            alpha = alpha.to(logits.dtype).flatten() if alpha.numel() > 1 else alpha.item()
        return native.sigmoid_focal(
            logits, targets, weight, alpha, self.gamma, self.ignore_index, with_loss, with_slope
        )

    def terms(self, inputs: _Inputs, with_slope: bool, out: Tensor | None = None) -> _Terms:
        """Compute losses and, written to ``out`` where that is given, the derivative by each logit."""
        z, y, weight = _present(inputs, self.ignore_index)
        y = y.to(z.dtype)
        if self.ignore_index is not None:
            y = torch.where((y == 0) | (y == 1), y, torch.nan)
        a, alpha = weight, self.alpha if inputs.alpha is None else inputs.alpha.to(z.dtype)
        if alpha is not None:
            a = ((2 * alpha - 1) * y).add_(1 - alpha)
            a = a if weight is None else weight * a
        sign = torch.rsub(y, 1, alpha=2)  # 1 - 2 y
        # Plus 0 z: an infinite logit makes the loss NaN, whichever its label.
        x = torch.mul(sign, z, out=out).add_(z, alpha=0)
        nll = softplus(x, 1.0, _LINEAR)
        loss, q, focus = _closed_form(nll, x, self.gamma, a)
        slope = torch.mul(sign, _closed_slope(nll, q, focus, self.gamma), out=out) if with_slope else None
        return _Terms(loss, weight, y if weight is None else weight * y, slope)


@dataclass(frozen=True)
class SoftmaxFocal:
    """The focal loss of class indices.

    Attributes:
        alpha: ``[C]``, a weight per target class; None for no weights.
        gamma: focusing exponent.
        label_smoothing: epsilon in [0, 1].
        ignore_index: the target that means absent; None where every target is known to be a class.
        background_class: the class that is no positive.
        classes: C.
    """

    alpha: Tensor | None
    gamma: float
    label_smoothing: float
    ignore_index: int | None
    background_class: int
    classes: int

    @property
    def chunk(self) -> int:
        """How many float32 to work on at once on the CPU: more, for some forty operations have one number a row."""
        return 2**19

    def arrange(self, logits: Tensor, targets: Tensor, weight: Tensor | None) -> _Inputs:
        """View logits as ``[N, C, rest]``, targets and weight as ``[N, 1, rest]``, alpha as ``[1, C, 1]``."""
        rows, classes = (1, len(logits)) if logits.ndim == 1 else logits.shape[:2]
        rest = logits.shape[2:].numel()
        if weight is not None:
            only_rows = weight.numel() == rows
            weight = weight.reshape(rows, 1, 1) if only_rows else weight.expand(targets.shape).reshape(rows, 1, rest)
        alpha = None if self.alpha is None else self.alpha.reshape(1, classes, 1)
        return _Inputs(logits.reshape(rows, classes, rest), targets.reshape(rows, 1, rest), weight, alpha)

    def checked(self, targets: Tensor) -> "SoftmaxFocal":
        """Refuse what is no class, where looking is free; return the same loss, with what is known of the targets."""
        if self.ignore_index is None:
            return self
        known = checks.class_indices("targets", targets, self.classes, self.ignore_index)
        if not known or 0 <= self.ignore_index < self.classes:
            return self
        options = self.alpha, self.gamma, self.label_smoothing, None, self.background_class, self.classes
        return SoftmaxFocal(*options)

    def fits_native(self, targets: Tensor) -> bool:
        """Say whether the native kernel reads such targets."""
        return not targets.is_floating_point()

    def run_native(
        self, logits: Tensor, targets: Tensor, weight: Tensor | None, with_loss: bool, with_slope: bool
    ) -> native.Focal:
        """Let the native kernel compute the same."""
        alpha = None if self.alpha is None else self.alpha.to(logits.dtype)
        ignore_index = -1 if self.ignore_index is None else self.ignore_index
        options = self.gamma, self.label_smoothing, ignore_index, self.background_class
        return native.softmax_focal(logits, targets.long(), weight, alpha, *options, with_loss, with_slope)

    def terms(self, inputs: _Inputs, with_slope: bool, out: Tensor | None = None) -> _Terms:
        """Compute losses and, written to ``out`` where that is given, the derivative by each logit."""
        z, y, weight = _present(inputs, self.ignore_index)
        classes, index, a = z.shape[1], y.long(), weight
        if self.ignore_index is not None:
            is_class = (index == y) & (index >= 0) & (index < classes)
            index = torch.where(is_class, index, 0)
            a = torch.where(is_class, 1.0 if weight is None else weight, torch.nan)
        if inputs.alpha is not None:
            of_class = inputs.alpha.to(z.dtype).flatten()[index]
            a = of_class if a is None else a * of_class

        # The sum of the others alone, not a difference from the sum of all: it keeps its digits where it is tiny.
        others = torch.scatter(z, 1, index, torch.finfo(z.dtype).min, out=out)
        highest = others.amax(1, keepdim=True).detach()
        exponentials = others.sub_(highest).exp_()
        total = exponentials.sum(1, keepdim=True)
        z_y = z.gather(1, index)
        x = highest + total.log() - z_y.masked_fill(z_y == torch.inf, torch.nan)
        nll = softplus(x, 1.0, _LINEAR)
        if self.label_smoothing:
            nll = nll + self.label_smoothing * (z_y - z.mean(1, keepdim=True))
        loss, q, focus = _closed_form(nll, x, self.gamma, a)

        slope = None
        if with_slope:  # the derivative of x by z_k is the softmax among the others; by z_y it is -1
            by_x = _closed_slope(nll, q, focus, self.gamma)
            slope, at_target = torch.mul(exponentials, by_x / total, out=out), -by_x
            if self.label_smoothing:
                shift = self.label_smoothing / classes * focus
                slope, at_target = slope.sub_(shift), at_target + (classes - 1) * shift
            slope = slope.scatter_(1, index, at_target)
        positive = (index != self.background_class).to(z.dtype)
        return _Terms(loss, weight, positive if weight is None else weight * positive, slope)


def _present(inputs: _Inputs, ignore_index: float | None) -> tuple[Tensor, Tensor, Tensor | None]:
    # Logits in float32 at least, 0 where absent; targets and weights, 0 where ignored.
    z, y, weight, _ = inputs
    dtype = torch.promote_types(z.dtype, torch.float32)
    z, weight = z.to(dtype), None if weight is None else weight.to(dtype)
    if ignore_index is not None:
        absent = checks.ignored(y, ignore_index)
        y = torch.where(absent, 0, y)
        weight = (~absent).to(dtype) if weight is None else weight * ~absent
    return z if weight is None else torch.where(weight > 0, z, 0.0), y, weight


def focal_loss(
    equation: SigmoidFocal | SoftmaxFocal, logits: Tensor, targets: Tensor, weight: Tensor | None, summed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a focal loss, with gradient to the logits.

    Args:
        equation: which loss, and its options.
        logits: float, of a shape that the loss takes.
        targets: labels or class indices; without gradient.
        weight: as many dimensions as the targets, each of their size or 1; None where all are 1; without gradient.
        summed: whether the losses are summed.

    Returns:
        the weighted losses, of the shape of the targets, or their sum; the sum of the weights; that of the positives'.

    Raises:
        ValueError: a target is no label, on the CPU; elsewhere its loss is NaN.
    """
    targets, alpha, compiling = targets.detach(), equation.alpha, torch.compiler.is_compiling()
    transformed = torch._C._are_functorch_transforms_active()
    learned = isinstance(alpha, Tensor) and alpha.requires_grad and torch.is_grad_enabled()
    recorded = transformed or learned or (not compiling and unpack_dual(logits).tangent is not None)
    natively = not recorded and _runs_natively(equation, logits, targets)
    if not natively:
        equation = equation.checked(targets)
    if recorded:
        # Transforms, forward mode and an alpha that learns differentiate the value as it stands.
        return _compute(equation, logits, targets, weight, summed, with_slope=False, in_chunks=False)[:3]
    # Kept where a second pass over the inputs costs more than a tensor of their size.
    keep = logits.requires_grad and torch.is_grad_enabled() and (compiling or (summed and logits.device.type == "cpu"))
    arguments = logits, targets, weight, equation, summed, keep, natively
    sums: tuple[Tensor, Tensor, Tensor] = _Focal.apply(*arguments)  # type: ignore[no-untyped-call]
    return sums


class _Focal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        weight: Tensor | None,
        equation: SigmoidFocal | SoftmaxFocal,
        summed: bool,
        keep: bool,
        natively: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = equation, logits, targets, weight
        loss, weights, positives, ctx.slope = _compute(*inputs, summed, with_slope=keep, natively=natively)
        ctx.equation, ctx.natively = equation, natively
        # Without a None, which torch 2.6 gives to hooks as a tensor that is none.
        ctx.save_for_backward(logits, targets, *([] if weight is None else [weight]))
        ctx.mark_non_differentiable(weights, positives)
        return loss, weights, positives

    @staticmethod
    def backward(ctx: Any, *grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (logits, targets, *given), factor = ctx.saved_tensors, grad_output[0]
        weight = given[0] if given else None

        def slope_again(in_chunks: bool) -> Tensor:
            inputs = ctx.equation, logits, targets, weight
            slope: Tensor = _compute(
                *inputs, summed=True, with_slope=True, in_chunks=in_chunks, natively=in_chunks and ctx.natively
            )[3]
            return slope

        if 0 < factor.ndim < logits.ndim:  # one a row, whose classes are on dimension 1
            factor = factor.unsqueeze(1)
        if torch.compiler.is_compiling():
            gradient = ctx.slope * factor
        elif torch.is_grad_enabled():  # create_graph=True: autograd differentiates the slope as it stands
            gradient = slope_again(in_chunks=False) * factor
        else:
            # Scaled in place and given away; a second backward pass through a retained graph works it out again.
            slope, ctx.slope = ctx.slope, None
            gradient = (slope_again(in_chunks=True) if slope is None else slope).mul_(factor)
        return gradient.to(logits.dtype), *((None,) * 6)


def _compute(
    equation: SigmoidFocal | SoftmaxFocal,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    summed: bool,
    *,
    with_slope: bool,
    in_chunks: bool = True,
    natively: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    # The losses or their sum; the sum of the weights; that of the positives' weights; and the slope or None. Whatever
    # the logits, the slope has float32 at least: in half a small one would be 0 before a scaler can lift it.
    if natively:
        given = None if weight is None else weight.to(logits.dtype).expand(targets.shape)
        kernel = equation.run_native(logits, targets, given, not summed, with_slope)
        if kernel.bad:
            equation.checked(targets)
        sums = torch.tensor((kernel.loss_sum, kernel.weight, kernel.positive), dtype=logits.dtype)
        total, weights, positives = sums.unbind()
        return total if kernel.loss is None else kernel.loss, weights, positives, kernel.slope
    inputs, device = equation.arrange(logits, targets, weight), logits.device
    dtype = torch.promote_types(logits.dtype, torch.float32)
    size = equation.chunk * 4 // dtype.itemsize if device.type == "cpu" else _CHUNK_OFF_CPU
    if not in_chunks or torch.compiler.is_compiling() or logits.numel() <= size:
        terms = equation.terms(inputs, with_slope)
        total, weights, positives = _summed(terms)
        slope = None if terms.slope is None else terms.slope.reshape(logits.shape)
        return total if summed else terms.loss.reshape(targets.shape), weights, positives, slope
    slope = torch.empty(logits.shape, dtype=dtype, device=device) if with_slope else None
    loss = None if summed else torch.empty(targets.shape, dtype=dtype, device=device)
    # In float64 where there surely is one.
    sums = torch.zeros(3, dtype=torch.float64 if device.type == "cpu" else dtype, device=device)
    slopes = None if slope is None else slope.view(inputs.logits.shape)
    losses = None if loss is None else loss.view(inputs.targets.shape)
    for *chunk, slope_out, loss_out in _chunks(size, *inputs, slopes, losses):
        terms = equation.terms(_Inputs(*chunk), with_slope, slope_out)
        sums += torch.stack(_summed(terms))
        if loss_out is not None:
            loss_out.copy_(terms.loss)
    total, weights, positives = (each.to(dtype, copy=True) for each in sums)
    return total if loss is None else loss, weights, positives, slope


def _runs_natively(equation: SigmoidFocal | SoftmaxFocal, logits: Tensor, targets: Tensor) -> bool:
    # The kernel counts bad labels as it reads them, so that no look at them goes before.
    if logits.device.type != "cpu" or not native.available() or not is_eager(logits, targets):
        return False
    return logits.dtype in (torch.float32, torch.float64) and equation.fits_native(targets)


def _summed(terms: _Terms) -> tuple[Tensor, Tensor, Tensor]:
    loss, weight, positive, _ = terms
    weights = loss.new_full((), loss.numel()) if weight is None else weight.expand_as(loss).sum()
    return loss.sum(), weights, positive.sum()


def _chunks(size: int, first: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    # Pieces [N, C, rest] of about this many elements of the first, and the pieces of the others that belong to them.
    _, classes, rest = first.shape
    width = max(1, min(rest, size // classes))
    height = max(1, size // (classes * width)) if width == rest else 1

    def pieces(t: Tensor | None, length: int, dim: int) -> Any:
        return repeat(t) if t is None or t.shape[dim] == 1 else t.split(length, dim)

    for strip, *beside in zip(first.split(height), *(pieces(t, height, 0) for t in others), strict=False):
        yield from zip(strip.split(width, 2), *(pieces(t, width, 2) for t in beside), strict=False)
