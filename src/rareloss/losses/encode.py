"""From logits and targets, in every shape that users have, to rows: scores, positives, weights, iid flags by class."""

from typing import NamedTuple

import torch
from torch import Tensor

from rareloss import checks
from rareloss.ops import log_odds
from rareloss.pool import constant_weight, where_absent

__all__ = ["Rows", "encode"]


class Rows(NamedTuple):
    """Rows of a pool, one column a class.

    Attributes:
        scores: ``[M, C]``, in float32 at least, finite where absent.
        positive: ``[M, C]``, bool.
        weight: ``[M, C]``, dtype of the scores, without gradient; 0 is absent.
        iid: ``[M]``, bool.
    """

    scores: Tensor
    positive: Tensor
    weight: Tensor
    iid: Tensor

    def pack(self) -> Tensor:
        """Lay the rows out in one tensor ``[M, 3 C + 1]``, so that one exchange carries them."""
        dtype = self.scores.dtype
        return torch.cat([self.scores, self.positive.to(dtype), self.weight, self.iid[:, None].to(dtype)], dim=1)

    @classmethod
    def unpack(cls, packed: Tensor) -> "Rows":
        """Undo :meth:`pack`."""
        classes = (packed.shape[1] - 1) // 3
        scores, positive, weight, iid = packed.split([classes, classes, classes, 1], dim=1)
        return cls(scores, positive.detach() > 0.5, weight.detach(), iid.detach()[:, 0] > 0.5)


def encode(
    logits: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None,
    iid_mask: Tensor | None,
    *,
    num_classes: int,
    ignore_index: int,
    check_values: bool | None = None,
) -> Rows:
    """Check logits and targets and flatten them to rows; class indices are ranked by their log-odds.

    Args:
        logits: binary ``[...]`` or ``[..., 1]``; else ``[..., C]``.
        targets: binary ``[...]`` or ``[..., 1]`` in {0, 1}; else class indices ``[...]`` or labels ``[..., C]``.
        sample_weight: one per row, or the shape of the logits.
        iid_mask: bool, one per row.
        num_classes: 1 for binary.
        ignore_index: the target that means absent.
        check_values: whether to look into tensors that are not on the CPU.

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
        checks.class_indices("targets", targets, num_classes, ignore_index, check_values)
    else:
        checks.labels("targets", targets, ignore_index, check_values)
    row_shapes = (rows_shape, (*rows_shape, 1)) if num_classes == 1 else (rows_shape, (*rows_shape, num_classes))
    if sample_weight is not None:
        checks.same_shape("sample_weight", sample_weight, *row_shapes)
        checks.finite_weights("sample_weight", sample_weight, check_values)
    if iid_mask is not None:
        checks.boolean("iid_mask", checks.same_shape("iid_mask", iid_mask, rows_shape, (*rows_shape, 1)))

    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).reshape(-1, num_classes)
    flat = targets.reshape(-1, 1 if indices else num_classes)
    kept = ~checks.ignored(flat, ignore_index)
    weight = kept.to(scores.dtype).expand_as(scores)
    if sample_weight is not None:
        per_row = sample_weight.shape == torch.Size(rows_shape)
        weight = weight * constant_weight(sample_weight, scores.dtype).reshape(-1, 1 if per_row else num_classes)
    # What is absent goes out at once: a NaN there would have a NaN gradient.
    # Not so a class of a row that is present in others: their log-odds are against it too.
    absent = where_absent(weight)
    absent = absent.all(1, keepdim=True) if indices and absent is not None else absent
    scores = scores if absent is None else scores.masked_fill(absent, 0.0)
    if indices:
        scores = log_odds(scores)
        # Class by class in memory, as a pool is laid out.
        positive = (flat.mT == torch.arange(num_classes, device=flat.device)[:, None]).mT
    else:
        positive = flat == 1
    if iid_mask is None:
        iid = torch.ones(scores.shape[0], dtype=torch.bool, device=scores.device)
    else:
        iid = iid_mask.reshape(-1)
    return Rows(scores, positive & kept, weight, iid)


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
