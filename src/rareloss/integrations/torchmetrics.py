"""An operating point as a metric of torchmetrics, and the key by which Lightning stops early."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from rareloss.objectives import Objective

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
    from torchmetrics.utilities.distributed import gather_all_tensors
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f'{missing.name} is missing, which the metric needs: pip install "rareloss[torchmetrics]"'
    ) from missing

__all__ = ["ObjectiveMetric", "early_stopping", "gather_ragged"]


class ObjectiveMetric(Metric):
    """Compute an objective's metric over all rows of all ranks, exactly, on raw logits.

    Every row's score is kept until ``reset``: a mean over batches would be another number.

    Args:
        objective: an operating point.
        options: of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> metric = ObjectiveMetric("ap")
        >>> metric.update(torch.tensor([2.0, 1.0]), torch.tensor([1, 0]))
        >>> metric.update(torch.tensor([0.5]), torch.tensor([1]))
        >>> metric.compute()
        tensor(0.8333, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]
    weight: list[Tensor]

    def __init__(self, objective: Objective | str, **options: Any) -> None:
        options.setdefault("dist_sync_fn", gather_ragged)
        super().__init__(**options)
        self.objective = Objective.of(objective)
        for name in ("scores", "labels", "weight"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
        """Take a batch in; shapes as in :meth:`rareloss.Objective.metric`."""
        scores = scores.detach()
        self.objective.metric(scores, labels, weight)  # refuses what does not fit before any state changes
        self.scores.append(scores)
        self.labels.append(labels.detach())
        weight = scores.new_ones(len(scores)) if weight is None else weight.detach()
        # Of one shape in every batch, also where one has a weight per row and another one per class.
        self.weight.append(weight[:, None].expand(scores.shape) if weight.ndim < scores.ndim else weight)

    def compute(self) -> Tensor:
        """Return the value, the mean over classes that have positives and negatives; NaN where there is none."""
        scores, labels, weight = (dim_zero_cat(each) for each in (self.scores, self.labels, self.weight))
        value, defined = self.objective.metric(scores, labels, weight)
        return value[defined].mean() if value.ndim else value


def gather_ragged(rows: Tensor, group: Any = None) -> list[Tensor]:
    """Gather the rows of every rank, also where a rank has none or others of another dtype.

    Args:
        rows: ``[n]`` or ``[n, C]``; of a rank without rows, anything empty.
        group: the process group.

    Returns:
        the rows of each rank, in one dtype that holds them all.

    Raises:
        ValueError: the ranks' rows differ in shape; on every rank.
    """
    known: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(known, (len(rows), tuple(rows.shape[1:]), rows.dtype), group=group)
    shapes = {shape: dtype for length, shape, dtype in known if length}
    if len(shapes) > 1:
        raise ValueError(f"rows of all ranks must have one shape, got [n, *] with {', '.join(map(str, shapes))}")
    dtypes = [dtype for length, _, dtype in known if length] or [rows.dtype]
    shape = next(iter(shapes), rows.shape[1:])
    dtype = reduce(torch.promote_types, dtypes)
    return gather_all_tensors(rows.reshape(len(rows), *shape).to(dtype), group)


def early_stopping(objective: Objective | str, prefix: str = "val_") -> dict[str, str]:
    """Return what Lightning's ``EarlyStopping`` and ``ModelCheckpoint`` watch: ``monitor`` and ``mode``.

    Log the metric under ``monitor``: ``self.log(early_stopping(objective)["monitor"], metric)``.

    Example:
        >>> early_stopping("recall@top=0.5%")
        {'monitor': 'val_recall@top=0.5%', 'mode': 'max'}
    """
    return {"monitor": f"{prefix}{Objective.of(objective)}", "mode": "max"}
