r"""The focal losses and their gradients with respect to the logits in one pass over chunks that stay in a core's cache.

With ``q`` the probability of not being the target, ``l`` the log-likelihood and ``a`` the weight of an element,

.. math:: L = -a \, q^\gamma \, l, \qquad
          \frac{\partial L}{\partial z_k} = a \Big[ q^\gamma - \gamma q^{\gamma - 1} (1 - q) \, l \Big] (p_k - y_k)

up to label smoothing. Autograd of the plain formula would write some ten tensors as large as the logits; this pass
writes one, the gradient, and that only where somebody will ask for it.
"""

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn.functional import softplus

__all__ = ["Sums", "Terms", "fused", "sigmoid_pass", "sigmoid_slope", "softmax_pass", "softmax_slope"]

# Elements worked on at once: a few buffers of this many float32 share a core's second cache.
_CHUNK = 2**15
# Rows of logits come in larger chunks: each has some twenty small operations of its own.
_ROWS_CHUNK = 2**18
# The argument above which log(1 + exp(x)) is x, in float64 too.
_LINEAR = 40.0


class Sums(NamedTuple):
    """What a pass adds up: the weighted losses, the weights that count, and those of the positives among them."""

    loss: float
    weight: float
    positive: float


class Terms(NamedTuple):
    """The same with gradient to the logits, 0-d; or unreduced, and then perhaps with that gradient worked out."""

    loss: Tensor
    weight: Tensor
    positive: Tensor
    slope: Tensor | None = None


# A pass takes logits, targets, weights or None, a factor of each loss or None, where to write the gradient or None and
# where to write each loss or None.
Pass = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None], Sums]


def _first_derivative_of_logits(logits: Tensor, *others: object) -> bool:
    # None but the logits in need of a gradient, and no transform that looks into the formula.
    return torch._C._functorch.get_dynamic_layer_stack_depth() == 0 and not any(
        isinstance(other, Tensor) and other.requires_grad for other in others
    )


def fused(
    run: Pass,
    plain: Callable[[Tensor, bool], Terms],
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    alpha: object,
    summed: bool,
) -> Terms:
    """Run a pass under autograd; the plain formula where a compiler fuses it or a transform looks into it.

    Args:
        run: the pass.
        plain: the same loss of the logits, unreduced, in differentiable operations; second derivatives are its. Where
            True follows the logits, it may work out their gradient as well, for a compiler to fuse with the loss.
        logits: the pass's own, as are targets and weight.
        targets: class indices or labels.
        weight: of the targets' shape, or None.
        alpha: what the pass was made with; asked whether it needs a gradient.
        summed: whether the losses are summed.

    Returns:
        the losses, with gradient to the logits, the weights and the positives' weights: sums if ``summed``.
    """

    def terms(logits: Tensor, with_slope: bool = False) -> Terms:
        each = _WithSlope.apply(logits, plain) if with_slope else plain(logits, False)[:3]  # type: ignore[no-untyped-call]
        return Terms(*(term.sum() for term in each)) if summed else Terms(*each)

    passes = _first_derivative_of_logits(logits, targets, weight, alpha)
    if torch.compiler.is_compiling():
        return terms(logits, with_slope=passes)
    if not passes or logits.device.type != "cpu" or unpack_dual(logits).tangent is not None:
        return terms(logits)
    slope = logits.requires_grad and torch.is_grad_enabled()
    found = _Fused.apply(logits, targets, weight, run, lambda z: terms(z).loss, summed, slope)  # type: ignore[no-untyped-call]
    return Terms(*found)


class _WithSlope(torch.autograd.Function):
    # Autograd meets one number an element, where a compiler would keep masks for it, slow to write, or redo the loss.

    @staticmethod
    def forward(ctx: Any, logits: Tensor, plain: Callable[[Tensor, bool], Terms]) -> tuple[Tensor, Tensor, Tensor]:
        loss, weight, positive, slope = plain(logits, True)
        assert slope is not None
        # Not yet in the logits' precision: in half a small slope would be 0 before a scaler can lift it.
        ctx.save_for_backward(slope)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(weight, positive)
        return loss, weight, positive

    @staticmethod
    def backward(ctx: Any, *grad_output: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        each = grad_output[0]
        if each.ndim < slope.ndim:  # one for a row, its classes on dimension 1, or alone on 0
            each = each.unsqueeze(min(1, each.ndim))
        return (each * slope).to(ctx.dtype), None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        weight: Tensor | None,
        run: Pass,
        plain: Callable[[Tensor], Tensor],
        summed: bool,
        slope: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.run, ctx.plain, ctx.summed, ctx.gradient = run, plain, summed, None
        ctx.save_for_backward(logits, targets, weight)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        each = None if summed else torch.empty(targets.shape, dtype=dtype)
        if slope and summed:
            # Not yet in the logits' precision: in half a small one would be 0 before a scaler can lift it.
            ctx.gradient = torch.empty(logits.shape, dtype=dtype)
        sums = run(logits, targets, weight, None, ctx.gradient, each)
        total, *divisors = (torch.tensor(value, dtype=dtype) for value in sums)
        ctx.mark_non_differentiable(*divisors)
        return (total if each is None else each, divisors[0], divisors[1])

    @staticmethod
    def backward(ctx: Any, *grad_output: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: somebody may differentiate this gradient
            (gradient,) = torch.autograd.grad(ctx.plain(logits), logits, grad_output[0], create_graph=True)
        elif not ctx.summed:
            gradient = torch.empty(logits.shape, dtype=logits.dtype)
            ctx.run(logits, targets, weight, grad_output[0], gradient, None)
        else:
            # The gradient of the forward pass is given away, and so may be scaled in place; a second backward pass
            # through a retained graph works it out again.
            gradient, ctx.gradient = ctx.gradient, None
            if gradient is None:
                gradient = torch.empty(logits.shape, dtype=grad_output[0].dtype)
                ctx.run(logits, targets, weight, None, gradient, None)
            gradient = gradient.mul_(grad_output[0]).to(logits.dtype)
        return gradient, None, None, None, None, None, None


def sigmoid_slope(x: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return ``-q**gamma * l`` and its derivative by ``x``, the log-odds of ``q``, at the price of one exponential."""
    odds = torch.exp(-x.abs())
    nll = torch.relu(x) + _log1p(odds)
    q = torch.where(x > 0, 1.0, odds) / (1 + odds)
    focus = q**gamma
    return focus * nll, focus * (q + gamma * (1 - q) * nll)


def _log1p(t: Tensor) -> Tensor:
    # log(1 + t) of t in [0, 1] is 2 artanh(t / (2 + t)); seven terms of its series are exact to half of float32's last
    # digit, and save half the time of the whole loss.
    if t.dtype != torch.float32:
        return torch.log1p(t)
    ratio = t / (2 + t)
    square = ratio * ratio
    series = square * (2 / 13) + 2 / 11
    for odd in (9, 7, 5, 3, 1):
        series = series * square + 2 / odd
    return ratio * series


def sigmoid_pass(alpha: float | Tensor | None, gamma: float, ignore_index: int | None) -> Pass:
    """Return the pass of the sigmoid focal loss; weights have the shape of the logits, as has the ``alpha`` tensor."""

    @torch.no_grad()
    def run(
        logits: Tensor,
        targets: Tensor,
        weight: Tensor | None,
        factor: Tensor | None,
        gradient: Tensor | None,
        each: Tensor | None,
    ) -> Sums:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        flat = [None if t is None else t.reshape(-1) for t in (logits, targets, weight, factor, gradient, each)]
        alphas = alpha.expand(logits.shape).reshape(-1) if isinstance(alpha, Tensor) else None
        pieces = [repeat(None) if t is None else t.split(_CHUNK) for t in (*flat, alphas)]
        x, odds, nll, q, a = torch.empty(5, min(_CHUNK, logits.numel()), dtype=dtype)
        loss = counted = positives = 0.0
        for z, y, w, f, g, e, alpha_here in zip(*pieces, strict=False):
            if not len(z):
                break
            if len(z) < len(x):
                x, odds, nll, q, a = (t[: len(z)] for t in (x, odds, nll, q, a))
            absent = _where_absent(y, ignore_index)
            y = y if y.dtype == dtype else y.to(dtype)
            if w is not None or absent is not None:
                w = torch.ones_like(y) if w is None else w.to(dtype, copy=True)
                if absent is not None:
                    w.masked_fill_(absent, 0)
                    y = y.masked_fill(absent, 0)
                z = torch.where(w > 0, z, 0)
            z = z if z.dtype == dtype else z.to(dtype)
            # The log-odds of the wrong label, (1 - 2 y) z; written as a sum, an infinite z makes it NaN.
            torch.addcmul(z, y, z, value=-2, out=x)
            if x.amax().item() <= _LINEAR:
                torch.exp(x, out=odds)
                torch.log1p(odds, out=nll)  # -log p
                torch.add(odds, 1, out=q).reciprocal_()  # p
                torch.mul(q, nll, out=x)
                q.mul_(odds)  # 1 - p
            else:
                nll = softplus(x, 1.0, _LINEAR)
                torch.sigmoid(x, out=q)
                torch.addcmul(nll, q, nll, value=-1, out=x)
            # The weight of the label, its sign that of the slope: 1 - alpha where y = 0, -alpha where y = 1.
            if alpha is None:
                torch.mul(y, -2, out=a).add_(1)
            else:
                torch.sub(1 - (alpha if alpha_here is None else alpha_here), y, out=a)
            a.mul_(torch.pow(q, gamma, out=odds))
            if w is not None:
                a.mul_(w)
            if g is not None:
                q.add_(x, alpha=gamma)  # 1 - p - gamma p log p
                if f is not None:
                    q.mul_(f)
                if g.dtype == dtype:
                    torch.mul(q, a, out=g)
                else:
                    g.copy_(q.mul_(a))
            a.abs_()
            if e is None:
                loss += torch.dot(a, nll).item()
            else:
                torch.mul(a, nll, out=e)
            counted += len(z) if w is None else w.sum().item()
            positives += (y.sum() if w is None else torch.dot(w, y)).item()
        return Sums(loss, counted, positives)

    return run


class _Row:
    # What a row's loss and slopes need of its logits, all relative to the largest: the sum of the exponentials of all
    # but the target, the target's logit, and the mean of all.

    def __init__(self, rest: Tensor, below: Tensor, mean: Tensor | None, gamma: float, smoothing: float) -> None:
        log_total = (rest + below.expm1()).log1p()
        self.total = rest + below.exp()
        self.q, self.p_y, self.log_p = rest / self.total, below.exp() / self.total, below - log_total
        if mean is not None:
            self.log_p = (1 - smoothing) * self.log_p + smoothing * (mean - log_total)
        self.focus = self.q**gamma
        self.loss = -self.focus * self.log_p
        self.gamma, self.smoothing = gamma, smoothing

    def slopes(self, classes: int) -> tuple[Tensor, Tensor | None, Tensor]:
        # The slope at class k is the first times the exponential of k, less the second; at the target it is the third.
        # Where q is 0, so is the focus; what it is multiplied by only has to be finite.
        steep = (self.log_p / self.q.clamp_min(1e-30)).clamp_min(-1e30)
        slope = self.focus * (1 - self.gamma * self.p_y * steep)
        if not self.smoothing:
            return slope / self.total, None, -self.q * slope
        shift = self.smoothing * self.focus / classes
        return slope / self.total, shift, (classes - 1) * shift - self.q * slope


def softmax_slope(z: Tensor, y: Tensor, gamma: float, label_smoothing: float, classes_on: int) -> tuple[Tensor, Tensor]:
    """Return the loss of each row and its slopes; ``y`` has one class where the logits have them all."""
    classes = z.shape[classes_on]
    target = torch.arange(classes, device=z.device).view(-1, *[1] * (z.ndim - 1 - classes_on)) == y
    largest = z.amax(classes_on, keepdim=True)
    exponential = torch.where(target, 0.0, torch.exp(z - largest))
    mean = z.mean(classes_on, keepdim=True) - largest if label_smoothing else None
    rest = exponential.sum(classes_on, keepdim=True)
    row = _Row(rest, z.gather(classes_on, y) - largest, mean, gamma, label_smoothing)
    each, shift, at_target = row.slopes(classes)
    others = exponential * each if shift is None else exponential * each - shift
    return row.loss, torch.where(target, at_target, others)


def softmax_pass(
    alpha: Tensor | None, gamma: float, label_smoothing: float, ignore_index: int, background_class: int
) -> Pass:
    """Return the pass of the softmax focal loss; weights have the shape of the targets."""

    @torch.no_grad()
    def run(
        logits: Tensor,
        targets: Tensor,
        weight: Tensor | None,
        factor: Tensor | None,
        gradient: Tensor | None,
        each: Tensor | None,
    ) -> Sums:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        rows, classes = (1, len(logits)) if logits.ndim == 1 else logits.shape[:2]
        # [N, C, S] and [N, 1, S], a view of what is contiguous.
        places = targets.numel() // max(1, rows)
        wide = [None if t is None else t.reshape(rows, classes, places) for t in (logits, gradient)]
        narrow = [None if t is None else t.reshape(rows, 1, places) for t in (targets, weight, factor, each)]
        buffer = torch.empty(min(logits.numel(), max(classes, _ROWS_CHUNK)), dtype=dtype)
        loss = counted = positives = 0.0
        for chunk in _blocks(rows, classes, places):
            z, g = (None if t is None else t[chunk[0], :, chunk[1]] for t in wide)
            y, w, f, e = (None if t is None else t[chunk[0], :, chunk[1]] for t in narrow)
            assert z is not None
            assert y is not None
            absent = _where_absent(y, ignore_index)
            if w is not None or absent is not None:
                w = torch.ones(y.shape, dtype=dtype) if w is None else w.to(dtype, copy=True)
                if absent is not None:
                    w.masked_fill_(absent, 0)
                    y = y.masked_fill(absent, 0)
                z = torch.where(w > 0, z, 0)
            y, z = y.long(), z.to(dtype)
            p = g if g is not None and g.dtype == dtype else buffer[: z.numel()].view(z.shape)

            largest = z.amax(1, keepdim=True)
            torch.sub(z, largest, out=p).exp_()
            below = z.gather(1, y) - largest
            # The probability of the rest as a sum without the target's: its last digits survive where it is tiny.
            rest = p.scatter_(1, y, 0).sum(1, keepdim=True)
            mean = z.mean(1, keepdim=True) - largest if label_smoothing else None
            row = _Row(rest, below, mean, gamma, label_smoothing)
            a = torch.ones_like(rest) if alpha is None else alpha[y]
            if w is not None:
                a = a * w
            losses = a * row.loss
            if g is not None:
                a = a if f is None else a * f
                each, shift, at_target = row.slopes(classes)
                p.mul_(a * each)
                if shift is not None:
                    p.sub_(a * shift)
                p.scatter_(1, y, a * at_target)
                if p is not g:
                    g.copy_(p)
            if e is None:
                loss += losses.sum().item()
            else:
                e.copy_(losses)
            positive = y != background_class
            counted += y.numel() if w is None else w.sum().item()
            positives += (positive.sum() if w is None else (w * positive).sum()).item()
        return Sums(loss, counted, positives)

    return run


def _blocks(rows: int, classes: int, places: int) -> Iterator[tuple[slice, slice]]:
    columns = max(1, min(places, _ROWS_CHUNK // classes))
    height = max(1, _ROWS_CHUNK // max(1, classes * columns)) if columns == places else 1
    for row in range(0, rows, height):
        for column in range(0, places, columns):
            yield slice(row, row + height), slice(column, column + columns)


def _where_absent(targets: Tensor, ignore_index: int | None) -> Tensor | None:
    # Two numbers say in most chunks that nothing is absent; a comparison of each element costs as much as its loss.
    if ignore_index is not None and targets.dtype != torch.bool:
        low, high = torch.aminmax(targets)
        if low.item() <= ignore_index <= high.item():
            return targets == ignore_index
    return None
