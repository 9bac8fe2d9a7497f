"""From logits and targets, in every shape that users have, to the rows of a pool."""

import torch
from torch import Tensor

from rareloss import checks
from rareloss.eager import is_eager
from rareloss.ops import log_odds_by_class
from rareloss.pool import Pool, constant_weight, pool_of, where_absent

__all__ = ["encode"]


def encode(
    logits: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None,
    iid_mask: Tensor | None,
    *,
    num_classes: int,
    ignore_index: float,
    check_values: bool | None = None,
) -> Pool:
    """Check logits and targets and lay them out by class; class indices are ranked by their log-odds.

    Where values may not be looked at, a row whose target is no label gets a score of NaN, so that the loss shows it.

    Args:
        logits: binary ``[...]`` or ``[..., 1]``; else ``[..., C]``.
        targets: binary ``[...]`` or ``[..., 1]`` in {0, 1}; else class indices ``[...]`` or labels ``[..., C]``.
        sample_weight: one per row, or the shape of the logits.
        iid_mask: bool, one per row.
        num_classes: 1 for binary.
        ignore_index: the target that means absent.
        check_values: whether to look at values off the CPU too.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a label out of range, or a weight that is negative or not finite.
    """
    checks.floating("logits", logits)
    checks.is_tensor("targets", targets)
    if num_classes == 1:
        rows_shape, indices = _binary_rows(logits, targets), False
    else:
        rows_shape, indices = _class_rows(logits, targets, num_classes)
    if indices:
        known = checks.class_indices("targets", targets, num_classes, ignore_index, check_values)
    else:
        known = checks.labels("targets", targets, ignore_index, check_values)
    if sample_weight is not None:
        shapes = (rows_shape, (*rows_shape, 1)) if num_classes == 1 else (rows_shape, (*rows_shape, num_classes))
        checks.same_shape("sample_weight", sample_weight, *shapes)
        checks.finite_weights("sample_weight", sample_weight, check_values)
    if iid_mask is not None:
        checks.boolean("iid_mask", checks.same_shape("iid_mask", iid_mask, rows_shape, (*rows_shape, 1)))

    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).reshape(-1, num_classes)
    target = targets.reshape(1, -1) if indices or num_classes == 1 else targets.reshape(-1, num_classes).mT
    kept = None if known else ~checks.ignored(target, ignore_index)
    weight = _weight(kept, sample_weight, scores, rows_shape)
    if not known and not is_eager(targets, check_values=check_values):
        is_target = checks.in_range(target, num_classes if indices else 2, ignore_index)
        scores = scores.masked_fill(~is_target.mT, torch.nan)
    iid = None if iid_mask is None else iid_mask.reshape(1, -1).expand(num_classes, -1)
    # What is absent goes out at once: a NaN there would have a NaN gradient. Not so a class of a row that is present
    # in others: their log-odds are against it too.
    absent = None if weight is None else where_absent(weight, is_eager(scores, check_values=check_values))
    if indices:
        if absent is not None:
            scores = scores.masked_fill(absent.all(0)[:, None], 0.0)
        by_class = log_odds_by_class(scores)
        is_positive = target == torch.arange(num_classes, device=target.device)[:, None]
    else:
        by_class = scores.mT.contiguous()
        if absent is not None:
            by_class = by_class.masked_fill(absent, 0.0)
        is_positive = (target if target.dtype == torch.bool else target == 1).contiguous()
    if kept is not None:
        is_positive = is_positive & kept  # an ignored target is no label, also where it is a class's number
    weight = None if weight is None else weight.expand(num_classes, -1)
    return pool_of(by_class, is_positive, weight, iid, check_values)


def _weight(
    kept: Tensor | None, sample_weight: Tensor | None, scores: Tensor, rows_shape: tuple[int, ...]
) -> Tensor | None:
    # [C, M] or [1, M]; None where every row weighs 1.
    kept = None if kept is None else kept.to(scores.dtype)
    if sample_weight is None:
        return kept
    per_row = sample_weight.ndim == len(rows_shape) or scores.shape[1] == 1
    weight = constant_weight(sample_weight, scores.dtype)
    weight = weight.reshape(1, -1) if per_row else weight.reshape(-1, scores.shape[1]).mT
    return weight.contiguous() if kept is None else kept * weight


def _binary_rows(logits: Tensor, targets: Tensor) -> tuple[int, ...]:
    shape, other = tuple(logits.shape), tuple(targets.shape)
    if shape == (*other, 1):
        return other
    if other == (*shape, 1) or (shape == other and (len(shape) == 1 or shape[-1:] != (1,))):
        return shape
    if shape == other:
        return shape[:-1]
    raise ValueError(
        f"with num_classes=1 targets must have the logits' shape {shape}, a last dimension of 1 aside, got {other}"
    )


def _class_rows(logits: Tensor, targets: Tensor, num_classes: int) -> tuple[tuple[int, ...], bool]:
    shape, other = tuple(logits.shape), tuple(targets.shape)
    if not shape or shape[-1] != num_classes:
        raise ValueError(f"logits must have shape [..., {num_classes}] (num_classes={num_classes}), got {shape}")
    if other not in (shape, shape[:-1]):
        raise ValueError(
            f"targets must be class indices of shape {shape[:-1]} or multi-label of shape {shape}, got shape {other}"
        )
    return shape[:-1], other != shape
