"""Focal loss, sigmoid and softmax, in log space: cross-entropy with less weight on what is already right.

Reference: Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, equations 4 and 5.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch  # noqa: F401 (the examples call it)
from torch import Tensor, nn

from rareloss import checks, distributed
from rareloss.eager import is_training_call
from rareloss.losses.buffers import keeping_numbers
from rareloss.ops import SigmoidFocal, SoftmaxFocal, focal_loss

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss", "sigmoid_focal_loss", "softmax_focal_loss"]

_REDUCTIONS = ("mean", "mean_positive", "sum", "none")
# The sum of the losses or each of them, the sum of the weights, and that of the positives' weights.
_Sums = tuple[Tensor, Tensor, Tensor]


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: float = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Compute the focal loss of each label on its own, binary or multi-label.

    .. math:: -\alpha_t (1 - p_t)^\gamma \log p_t, \qquad
              p_t = \begin{cases} \sigma(z) & y = 1 \\ 1 - \sigma(z) & y = 0 \end{cases}, \quad
              \alpha_t = \begin{cases} \alpha & y = 1 \\ 1 - \alpha & y = 0 \end{cases}

    Args:
        logits: z, any shape; float.
        targets: y in {0, 1}, same shape; bool, integer or float.
        alpha: weight of the positive class in [0, 1], a float or ``[C]``, one per class: the classes of logits
            ``[N, C]`` or, as in ``F.cross_entropy``, of dimension 1 in ``[N, C, ...]``. A tensor of more dimensions
            broadcasts to the logits. None for no weighting. It is not part of the divisor of ``mean``.
        gamma: focusing exponent, at least 0; 0 is cross-entropy.
        weight: not negative, the shape of the logits or of their leading dimensions; 0 means absent.
        ignore_index: the target that means absent; NaN is one for float targets.
        reduction: ``"mean"`` over the weight of what is not ignored, ``"mean_positive"`` (the sum over the weight of
            positives; over 1 where there are none), ``"sum"`` or ``"none"``.

    Returns:
        0-d, or the shape of the logits; float32 at least. A mean over nothing is 0. Where targets are not looked at
        (under ``torch.compile`` or ``torch.func``, or off the CPU), a label that is none of these makes the loss NaN.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, on the CPU a label other than 0, 1 and ``ignore_index``, or an argument out of range.

    Reference:
        Lin et al., ICCV 2017, equation 5; ``mean_positive`` is its section 4.1.

    Example:
        >>> sigmoid_focal_loss(torch.tensor([0.0]), torch.tensor([1]))  # 0.25 * 0.5 ** 2 * log(2)
        tensor(0.0433)
    """
    checks.choice("reduction", reduction, _REDUCTIONS)
    return _reduced(partial(_sigmoid_sums, logits, targets, alpha, gamma, weight, ignore_index), reduction)


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
        0-d, or the shape of the targets; float32 at least. A mean over nothing is 0. Where targets are not looked at
        (under ``torch.compile`` or ``torch.func``, or off the CPU), an index that is no class makes the loss NaN.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, on the CPU a class index out of range, or an argument out of range.

    Reference:
        Lin et al., ICCV 2017, equation 5, with softmax for sigmoid; ``mean_positive`` is its section 4.1.

    Example:
        >>> softmax_focal_loss(torch.zeros(1, 2), torch.tensor([1]))  # 0.5 ** 2 * log(2)
        tensor(0.1733)
    """
    checks.choice("reduction", reduction, _REDUCTIONS)
    options = (alpha, gamma, label_smoothing, weight, ignore_index, background_class)
    return _reduced(partial(_softmax_sums, logits, targets, *options), reduction)


def _sigmoid_sums(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None,
    gamma: float,
    weight: Tensor | None,
    ignore_index: float,
    summed: bool,
    weight_name: str = "weight",
) -> _Sums:
    checks.floating("logits", logits)
    checks.same_shape("targets", targets, logits.shape)
    checks.numbers("targets", targets)
    alpha, gamma = _sigmoid_alpha(alpha, logits), checks.non_negative("gamma", gamma)
    equation = SigmoidFocal(alpha, gamma, checks.ignore_value("ignore_index", ignore_index))
    return focal_loss(equation, logits, targets, _expanded_weight(weight_name, weight, targets), summed)


def _softmax_sums(
    logits: Tensor,
    targets: Tensor,
    alpha: Sequence[float] | Tensor | None,
    gamma: float,
    label_smoothing: float,
    weight: Tensor | None,
    ignore_index: int,
    background_class: int,
    summed: bool,
    weight_name: str = "weight",
) -> _Sums:
    checks.floating("logits", logits)
    classes_on = 0 if logits.ndim == 1 else 1
    if logits.ndim == 0 or logits.shape[classes_on] < 2:
        raise ValueError(f"logits must have shape [N, C, ...] with C of at least 2, got {tuple(logits.shape)}")
    classes = logits.shape[classes_on]
    checks.same_shape("targets", targets, logits.shape[:classes_on] + logits.shape[classes_on + 1 :])
    checks.numbers("targets", targets)
    if checks.integer("background_class", background_class, least=0) >= classes:
        raise ValueError(f"background_class must be one of the {classes} classes of the logits, got {background_class}")
    equation = SoftmaxFocal(
        None if alpha is None else _class_weights(alpha, classes).to(logits.device),
        checks.non_negative("gamma", gamma),
        checks.probability("label_smoothing", label_smoothing),
        checks.whole("ignore_index", ignore_index),
        background_class,
        classes,
    )
    return focal_loss(equation, logits, targets, _expanded_weight(weight_name, weight, targets), summed)


def _class_weights(alpha: Sequence[float] | Tensor, classes: int) -> Tensor:
    alpha = checks.as_weights("alpha", alpha)
    if alpha.shape != (classes,):
        raise ValueError(f"alpha must hold a weight for each of the {classes} classes, got shape {tuple(alpha.shape)}")
    checks.finite_weights("alpha", alpha)
    return alpha


def _expanded_weight(name: str, weight: Tensor | None, targets: Tensor) -> Tensor | None:
    if weight is None:
        return None
    shapes = [targets.shape[:leading] for leading in range(targets.ndim, 0, -1)] or [targets.shape]
    checks.same_shape(name, weight, *shapes)
    checks.finite_weights(name, weight)
    return weight.detach().reshape(*weight.shape, *[1] * (targets.ndim - weight.ndim))


def _sigmoid_alpha(alpha: float | Tensor | None, logits: Tensor) -> float | Tensor | None:
    if not isinstance(alpha, Tensor):
        return None if alpha is None else checks.probability("alpha", alpha)
    shape = tuple(alpha.shape)
    if alpha.ndim == 1 and alpha.numel() > 1 and logits.ndim > 2:
        if len(alpha) != logits.shape[1]:
            raise ValueError(
                f"alpha must hold a weight for each of the {logits.shape[1]} classes on dimension 1 of the logits "
                f"{tuple(logits.shape)}, got {len(alpha)}; an alpha of more dimensions broadcasts as tensors do"
            )
        shape = (len(alpha), *[1] * (logits.ndim - 2))
    given = tuple(logits.shape)[logits.ndim - len(shape) :]
    if len(shape) > logits.ndim or not all(a in (1, b) for a, b in zip(shape, given, strict=True)):
        raise ValueError(f"alpha {tuple(alpha.shape)} does not broadcast to logits {tuple(logits.shape)}")
    checks.finite_weights("alpha", alpha, most=1.0)
    return alpha.to(logits.device).reshape(*[1] * (logits.ndim - len(shape)), *shape)


def _reduced(
    sums: Callable[[bool], _Sums],
    reduction: str,
    group: distributed.ProcessGroup | None = None,
    *,
    among_ranks: bool = False,
) -> Tensor:
    if reduction == "none":
        return sums(False)[0]

    return distributed.mean_over_ranks(partial(_total_and_divisor, sums, reduction), group, among_ranks=among_ranks)


def _total_and_divisor(sums: Callable[[bool], _Sums], reduction: str) -> tuple[Tensor, Tensor | None]:
    loss, weight, positive = sums(True)
    return loss, {"mean": weight, "mean_positive": positive, "sum": None}[reduction]


class _FocalLoss(nn.Module):
    # What the two modules share: the divisor of a mean is that of all ranks, in training mode.

    ignore_index: float

    def __init__(
        self, gamma: float, reduction: str, ignore_index: float, group: distributed.ProcessGroup | None
    ) -> None:
        super().__init__()
        self.gamma = checks.non_negative("gamma", gamma)
        self.reduction = checks.choice("reduction", reduction, _REDUCTIONS)
        self.ignore_index = ignore_index
        self.process_group = distributed.checked_group(group)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_FocalLoss":
        return super()._apply(keeping_numbers(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _over_ranks(self, sums: Callable[[bool], _Sums]) -> Tensor:
        return _reduced(sums, self.reduction, self.process_group, among_ranks=is_training_call(self))


class SigmoidFocalLoss(_FocalLoss):
    r"""Focal loss of binary or multi-label logits; see :func:`rareloss.functional.sigmoid_focal_loss`.

    In training mode under ``torch.distributed`` the divisor of a mean is summed over ranks, and the value on each rank
    is its share times the number of ranks: their mean, and DDP's gradient, are those of one process on the whole batch.

    Args:
        alpha: weight of the positive class in [0, 1], a float or ``[C]``, one per class (on dimension 1 of logits
            ``[N, C, ...]``); None for no weighting.
        gamma: focusing exponent, at least 0.
        reduction: ``"mean"``, ``"mean_positive"``, ``"sum"`` or ``"none"``.
        ignore_index: the target that means absent; NaN is one for float targets.
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

    @checks.known_keywords
    def __init__(
        self,
        alpha: float | Tensor | None = 0.25,
        gamma: float = 2.0,
        reduction: str = "mean",
        ignore_index: float = -100,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(gamma, reduction, checks.ignore_value("ignore_index", ignore_index), process_group)
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", checks.class_weights("alpha", alpha, most=1), persistent=False)
        else:
            self.alpha = None if alpha is None else checks.probability("alpha", alpha)

    def forward(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss; logits ``[N, 1]`` may come with targets ``[N]``."""
        y = targets
        if isinstance(y, Tensor) and isinstance(logits, Tensor) and logits.shape == (*y.shape, 1):
            y = y[..., None]
        options = (self.alpha, self.gamma, sample_weight, self.ignore_index)
        return self._over_ranks(partial(_sigmoid_sums, logits, y, *options, weight_name="sample_weight"))


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
    ignore_index: int

    @checks.known_keywords
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
        super().__init__(gamma, reduction, checks.whole("ignore_index", ignore_index), process_group)
        self.label_smoothing = checks.probability("label_smoothing", label_smoothing)
        self.background_class = checks.integer("background_class", background_class, least=0)
        weights = None if alpha is None else checks.class_weights("alpha", alpha)
        if weights is not None and weights.ndim != 1:
            raise TypeError(f"alpha must hold a weight per class, got {alpha!r}; give a sequence or a tensor [C]")
        if weights is not None and background_class >= len(weights):
            raise ValueError(
                f"background_class must be one of the {len(weights)} classes of alpha, got {background_class}"
            )
        self.register_buffer("alpha", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss of logits ``[N, C, ...]`` and class indices ``[N, ...]``."""
        options = (self.alpha, self.gamma, self.label_smoothing, sample_weight)
        rules = (self.ignore_index, self.background_class)
        return self._over_ranks(partial(_softmax_sums, logits, targets, *options, *rules, weight_name="sample_weight"))
