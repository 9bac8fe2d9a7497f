"""Focal loss, sigmoid and softmax, in log space: cross-entropy with less weight on what is already right.

Reference: Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, equations 4 and 5.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rareloss import checks, distributed
from rareloss.losses.buffers import keeping_numbers
from rareloss.ops import Terms, fused, sigmoid_pass, sigmoid_slope, softmax_pass, softmax_slope

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss", "sigmoid_focal_loss", "softmax_focal_loss"]

_REDUCTIONS = ("mean", "mean_positive", "sum", "none")


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Compute the focal loss of each label on its own, binary or multi-label.

    .. math:: -\alpha_t (1 - p_t)^\gamma \log p_t, \qquad
              p_t = \begin{cases} \sigma(z) & y = 1 \\ 1 - \sigma(z) & y = 0 \end{cases}, \quad
              \alpha_t = \begin{cases} \alpha & y = 1 \\ 1 - \alpha & y = 0 \end{cases}

    Args:
        logits: z, any shape; float.
        targets: y in {0, 1}, same shape; bool, integer or float.
        alpha: weight of the positive class in [0, 1], a float or a tensor that broadcasts to the logits (``[C]`` for
            logits ``[N, C]``); None for no weighting. It is not part of the divisor of ``mean``.
        gamma: focusing exponent, at least 0; 0 is cross-entropy.
        weight: not negative, the shape of the logits or of their leading dimensions; 0 means absent.
        ignore_index: the target that means absent.
        reduction: ``"mean"`` over the weight of what is not ignored, ``"mean_positive"`` (the sum over the weight of
            positives; over 1 where there are none), ``"sum"`` or ``"none"``.

    Returns:
        0-d, or the shape of the logits; float32 at least. A mean over nothing is 0.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a label other than 0, 1 and ``ignore_index``, or an argument out of range.

    Reference:
        Lin et al., ICCV 2017, equation 5; ``mean_positive`` is its section 4.1.

    Example:
        >>> sigmoid_focal_loss(torch.tensor([0.0]), torch.tensor([1]))  # 0.25 * 0.5 ** 2 * log(2)
        tensor(0.0433)
    """
    checks.choice("reduction", reduction, _REDUCTIONS)
    return _reduced(partial(_sigmoid_terms, logits, targets, alpha, gamma, weight, ignore_index), reduction)


def softmax_focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: Sequence[float] | Tensor | None = None,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    background_class: int = 0,
    reduction: str = "mean",
) -> Tensor:
    r"""Compute the focal loss of class indices, classes on dimension 1 as in ``F.cross_entropy``.

    .. math:: -\alpha_y (1 - p_y)^\gamma \Big[ (1 - \varepsilon) \log p_y + \frac{\varepsilon}{C} \sum_k \log p_k \Big],
              \qquad p = \operatorname{softmax}(z)

    Args:
        logits: z, ``[N, C, ...]`` or ``[C]``; float.
        targets: y, class indices ``[N, ...]`` or 0-d.
        alpha: a weight per target class, ``[C]``, not negative; None for no weighting. It is not part of the divisor of
            ``mean``.
        gamma: focusing exponent, at least 0; 0 is cross-entropy.
        label_smoothing: epsilon in [0, 1].
        weight: not negative, the shape of the targets or ``[N]``; 0 means absent.
        ignore_index: the target that means absent.
        background_class: the class that is no positive for ``mean_positive``.
        reduction: ``"mean"`` over the weight of what is not ignored, ``"mean_positive"`` (the sum over the weight of
            what is not background; over 1 where there is none), ``"sum"`` or ``"none"``.

    Returns:
        0-d, or the shape of the targets; float32 at least. A mean over nothing is 0.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a class index out of range, or an argument out of range.

    Reference:
        Lin et al., ICCV 2017, equation 5, with softmax for sigmoid; ``mean_positive`` is its section 4.1.

    Example:
        >>> softmax_focal_loss(torch.zeros(1, 2), torch.tensor([1]))  # 0.5 ** 2 * log(2)
        tensor(0.1733)
    """
    checks.choice("reduction", reduction, _REDUCTIONS)
    options = (alpha, gamma, label_smoothing, weight, ignore_index, checks.whole("background_class", background_class))
    return _reduced(partial(_softmax_terms, logits, targets, *options), reduction)


def _sigmoid_terms(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None,
    gamma: float,
    weight: Tensor | None,
    ignore_index: int,
    summed: bool,
) -> Terms:
    checks.floating("logits", logits)
    checks.same_shape("targets", targets, logits.shape)
    all_labelled = checks.labels("targets", targets, ignore_index) and ignore_index not in (0, 1)
    checks.non_negative("gamma", gamma)
    alpha = _sigmoid_alpha(alpha, logits)
    weight = _full_weight(weight, targets, logits)

    def plain(logits: Tensor, with_slope: bool) -> Terms:
        label = targets.to(torch.promote_types(logits.dtype, torch.float32))  # compiled, it compares faster
        z, counted = _present(logits, label, weight, ignore_index)
        y = (label == 1).to(z.dtype)
        x = z - y * z - y * z  # the log-odds of the wrong label; NaN where z is not finite
        a = counted if alpha is None else counted * (1 - alpha + y * (2 * alpha - 1))
        if with_slope:
            loss, slope = sigmoid_slope(x, gamma)
            return Terms(a * loss, counted, counted * y, a * slope * (1 - 2 * y))
        log_p = logsigmoid(-x)
        # (1 - p)^gamma as an exponential of a log: finite gradients for every gamma, where a power has none at 0.
        return Terms(-a * torch.exp(gamma * (x + log_p)) * log_p, counted, counted * y)

    run = sigmoid_pass(alpha, gamma, None if all_labelled else ignore_index)
    return fused(run, plain, logits, targets, weight, alpha, summed)


def _softmax_terms(
    logits: Tensor,
    targets: Tensor,
    alpha: Sequence[float] | Tensor | None,
    gamma: float,
    label_smoothing: float,
    weight: Tensor | None,
    ignore_index: int,
    background_class: int,
    summed: bool,
) -> Terms:
    checks.floating("logits", logits)
    classes_on = 0 if logits.ndim == 1 else 1
    if logits.ndim == 0 or logits.shape[classes_on] < 2:
        raise ValueError(f"logits must have shape [N, C, ...] with C of at least 2, got {tuple(logits.shape)}")
    classes = logits.shape[classes_on]
    checks.same_shape("targets", targets, logits.shape[:classes_on] + logits.shape[classes_on + 1 :])
    checks.class_indices("targets", targets, classes, ignore_index)
    checks.non_negative("gamma", gamma)
    checks.probability("label_smoothing", label_smoothing)
    alpha = _softmax_alpha(alpha, classes, logits)
    weight = _full_weight(weight, targets, logits)

    def plain(logits: Tensor, with_slope: bool) -> Terms:
        z, counted = _present(logits, targets, weight, ignore_index, classes_on)
        y = torch.where(checks.ignored(targets, ignore_index), 0, targets).long().unsqueeze(classes_on)
        positive = counted * (y.squeeze(classes_on) != background_class)
        a = counted if alpha is None else counted * alpha[y.squeeze(classes_on)]
        if with_slope:
            loss, slope = softmax_slope(z, y, gamma, label_smoothing, classes_on)
            return Terms(a * loss.squeeze(classes_on), counted, positive, a.unsqueeze(classes_on) * slope)
        log_p = z.log_softmax(classes_on)
        log_likelihood = log_p.gather(classes_on, y).squeeze(classes_on)
        log_rest = log_p.scatter(classes_on, y, -torch.inf).logsumexp(classes_on)
        if label_smoothing:
            log_likelihood = (1 - label_smoothing) * log_likelihood + label_smoothing * log_p.mean(classes_on)
        return Terms(-a * torch.exp(gamma * log_rest) * log_likelihood, counted, positive)

    run = softmax_pass(alpha, gamma, label_smoothing, ignore_index, background_class)
    return fused(run, plain, logits, targets, weight, alpha, summed)


def _full_weight(weight: Tensor | None, targets: Tensor, logits: Tensor) -> Tensor | None:
    if weight is None:
        return None
    shapes = [targets.shape[:leading] for leading in range(targets.ndim, 0, -1)] or [targets.shape]
    checks.same_shape("weight", weight, *shapes)
    checks.finite_weights("weight", weight)
    weight = weight.detach().to(torch.promote_types(logits.dtype, torch.float32))
    return weight.reshape(*weight.shape, *[1] * (targets.ndim - weight.ndim)).expand(targets.shape)


def _present(
    logits: Tensor, targets: Tensor, weight: Tensor | None, ignore_index: int, classes_on: int | None = None
) -> tuple[Tensor, Tensor]:
    # The logits, upcast once and 0 where absent; the weights, 0 where absent.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    counted = (~checks.ignored(targets, ignore_index)).to(dtype)
    if weight is not None:
        counted = counted * weight
    present = counted > 0 if classes_on is None else (counted > 0).unsqueeze(classes_on)
    return torch.where(present, logits.to(dtype), 0.0), counted


def _sigmoid_alpha(alpha: float | Tensor | None, logits: Tensor) -> float | Tensor | None:
    if not isinstance(alpha, Tensor):
        return None if alpha is None else checks.probability("alpha", alpha)
    sizes = zip(alpha.shape[::-1], logits.shape[::-1], strict=False)
    if alpha.ndim > logits.ndim or not all(size in (1, wanted) for size, wanted in sizes):
        raise ValueError(f"alpha {tuple(alpha.shape)} does not broadcast to logits {tuple(logits.shape)}")
    checks.finite_weights("alpha", alpha, most=1.0)
    return alpha.to(logits.device, torch.promote_types(logits.dtype, torch.float32))


def _softmax_alpha(alpha: Sequence[float] | Tensor | None, classes: int, logits: Tensor) -> Tensor | None:
    if alpha is None:
        return None
    alpha = torch.as_tensor(alpha)
    if alpha.shape != (classes,):
        raise ValueError(f"alpha must hold a weight for each of the {classes} classes, got shape {tuple(alpha.shape)}")
    checks.finite_weights("alpha", alpha)
    return alpha.to(logits.device, torch.promote_types(logits.dtype, torch.float32))


def _reduced(
    terms: Callable[[bool], Terms],
    reduction: str,
    group: distributed.ProcessGroup | None = None,
    *,
    among_ranks: bool = False,
) -> Tensor:
    if reduction == "none":
        return terms(False).loss

    def sums() -> tuple[Tensor, Tensor | None]:
        found = terms(True)
        return found.loss, {"mean": found.weight, "mean_positive": found.positive, "sum": None}[reduction]

    return distributed.mean_over_ranks(sums, group, among_ranks=among_ranks)


class _FocalLoss(nn.Module):
    # What the two modules share: the divisor of a mean is that of all ranks, in training mode.

    def __init__(self, gamma: float, reduction: str, ignore_index: int, group: distributed.ProcessGroup | None) -> None:
        super().__init__()
        self.gamma = checks.non_negative("gamma", gamma)
        self.reduction = checks.choice("reduction", reduction, _REDUCTIONS)
        self.ignore_index = checks.whole("ignore_index", ignore_index)
        self.process_group = group

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_FocalLoss":
        return super()._apply(keeping_numbers(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _over_ranks(self, terms: Callable[[bool], Terms]) -> Tensor:
        return _reduced(terms, self.reduction, self.process_group, among_ranks=self.training)


class SigmoidFocalLoss(_FocalLoss):
    r"""Focal loss of binary or multi-label logits; see :func:`rareloss.functional.sigmoid_focal_loss`.

    In training mode under ``torch.distributed`` the divisor of a mean is summed over ranks, and the value on each rank
    is its share times the number of ranks: their mean, and DDP's gradient, are those of one process on the whole batch.

    Args:
        alpha: weight of the positive class in [0, 1], a float or per class; None for no weighting.
        gamma: focusing exponent, at least 0.
        reduction: ``"mean"``, ``"mean_positive"``, ``"sum"`` or ``"none"``.
        ignore_index: the target that means absent.
        process_group: the ranks that take part; the default group if None.

    Raises:
        TypeError: an argument, logits or targets of a wrong type.
        ValueError: an argument out of range, a wrong shape or label.

    Example:
        >>> loss = SigmoidFocalLoss(alpha=None, gamma=0.0)
        >>> loss(torch.zeros(4, 1), torch.tensor([1, 0, 0, -100]))  # log(2)
        tensor(0.6931)
    """

    alpha: float | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor | None = 0.25,
        gamma: float = 2.0,
        reduction: str = "mean",
        ignore_index: int = -100,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(gamma, reduction, ignore_index, process_group)
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", checks.class_weights("alpha", alpha, most=1), persistent=False)
        else:
            self.alpha = None if alpha is None else checks.probability("alpha", alpha)

    def forward(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss; logits ``[N, 1]`` may come with targets ``[N]``."""

        def terms(summed: bool) -> Terms:
            y = targets
            if isinstance(y, Tensor) and isinstance(logits, Tensor) and logits.shape == (*y.shape, 1):
                y = y[..., None]
            return _sigmoid_terms(logits, y, self.alpha, self.gamma, sample_weight, self.ignore_index, summed)

        return self._over_ranks(terms)


class SoftmaxFocalLoss(_FocalLoss):
    r"""Focal loss of class indices, classes on dimension 1; see :func:`rareloss.functional.softmax_focal_loss`.

    In training mode under ``torch.distributed`` the divisor of a mean is summed over ranks, and the value on each rank
    is its share times the number of ranks: their mean, and DDP's gradient, are those of one process on the whole batch.

    Args:
        alpha: a weight per target class; None for no weighting.
        gamma: focusing exponent, at least 0.
        reduction: ``"mean"``, ``"mean_positive"`` (RetinaNet's: by the rows that are not background), ``"sum"`` or
            ``"none"``.
        label_smoothing: epsilon in [0, 1].
        ignore_index: the target that means absent.
        background_class: the class that is no positive for ``mean_positive``.
        process_group: the ranks that take part; the default group if None.

    Raises:
        TypeError: an argument, logits or targets of a wrong type.
        ValueError: an argument out of range, a wrong shape or class index.

    Example:
        >>> loss = SoftmaxFocalLoss(gamma=0.0)
        >>> loss(torch.zeros(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.long))  # log(4)
        tensor(1.3863)
    """

    alpha: Tensor | None

    def __init__(
        self,
        alpha: Sequence[float] | Tensor | None = None,
        gamma: float = 2.0,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        background_class: int = 0,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(gamma, reduction, ignore_index, process_group)
        self.label_smoothing = checks.probability("label_smoothing", label_smoothing)
        self.background_class = checks.whole("background_class", background_class)
        if isinstance(alpha, (int, float)):
            raise TypeError(f"alpha must hold a weight per class, got {alpha}; give a sequence or a tensor [C]")
        weights = None if alpha is None else checks.class_weights("alpha", alpha)
        self.register_buffer("alpha", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss of logits ``[N, C, ...]`` and class indices ``[N, ...]``."""
        options = (self.alpha, self.gamma, self.label_smoothing, sample_weight, self.ignore_index)
        return self._over_ranks(partial(_softmax_terms, logits, targets, *options, self.background_class))
