"""One operating point, and from it the loss, the metric and the threshold."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rareloss import checks, metrics
from rareloss.losses.average_precision import SmoothAPLoss
from rareloss.losses.partial_auc import PAUCAtBudgetLoss
from rareloss.losses.recall import RecallAtQuantileLoss
from rareloss.ranking.encode import encode
from rareloss.ranking.pool import PerClass, make_pool
from rareloss.ranking.ranking_loss import RankingLoss
from rareloss.ranking.selection import top

__all__ = ["Objective"]

_FORMS = "'ap', 'recall@top=0.5%', 'recall@fpr=0.1%' or 'pauc@fpr=0-0.5%'"


@dataclass(frozen=True)
class Objective:
    """What the ranking is judged by.

    Args:
        kind: ``"ap"``; ``"recall@top"``, the recall within a review capacity; ``"recall@fpr"``, the recall under a
            false-alarm budget; ``"pauc@fpr"``, the mean recall over a band of false-positive rates.
        level: the capacity or the false-positive rate (the band's upper edge), a share in (0, 1); None for ``"ap"``.
        low: the band's lower edge, a share; 0 for the others.

    Raises:
        ValueError: an unknown kind, or a share out of range.

    Example:
        >>> objective = Objective.parse("recall@top=0.5%")
        >>> objective, str(objective)
        (Objective(kind='recall@top', level=0.005, low=0.0), 'recall@top=0.5%')
        >>> objective.loss(num_classes=1)
        RecallAtQuantileLoss(
          num_classes=1, quantile=0.005, among='all', temperature=0.05, temperature_unit='spread', reduction='mean'
          (queue): MemoryQueue()
        )
    """

    kind: str
    level: float | None = None
    low: float = 0.0

    KINDS: ClassVar[tuple[str, ...]] = ("ap", "recall@top", "recall@fpr", "pauc@fpr")

    def __post_init__(self) -> None:
        checks.choice("kind", self.kind, self.KINDS)
        if self.kind == "ap":
            if self.level is not None or self.low:
                raise ValueError(f"'ap' has no level, got level={self.level} and low={self.low}")
        elif self.level is None:
            raise ValueError(f"{self.kind!r} needs a level, a share in (0, 1); half a percent is 0.005")
        elif self.kind == "pauc@fpr":
            checks.between(self.low, self.level)
        else:
            checks.probability("level", self.level, open_low=True, open_high=True)
            if self.low:
                raise ValueError(f"{self.kind!r} has no lower edge, got low={self.low}")

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Read an operating point such as ``"ap"``, ``"recall@top=0.5%"``, ``"recall@fpr=0.1%"`` or
        ``"pauc@fpr=0-0.5%"``.

        Shares are written in percent or as fractions: ``0.5%`` is ``0.005``.

        Raises:
            TypeError: ``text`` is no string.
            ValueError: it names no operating point, or a share out of range.
        """
        if not isinstance(text, str):
            raise TypeError(f"an objective is a string such as {_FORMS}, got {type(text).__name__}")
        plain = re.sub(r"\s", "", text.lower())
        if plain == "ap":
            return cls("ap")
        kind, found, value = plain.partition("=")
        if kind not in cls.KINDS or not found:
            raise ValueError(f"an objective is {_FORMS}, got {text!r}")
        low, dash, high = value.partition("-") if kind == "pauc@fpr" else ("0", "-", value)
        if dash and high.endswith("%") and not low.endswith("%"):
            low += "%"  # "0.1-2%" means percent on both sides
        try:
            shares = [_share(part) for part in ((low, high) if dash else ("0", low))]
        except ValueError:
            raise ValueError(f"an objective is {_FORMS}; {value!r} in {text!r} is no share") from None
        return cls(kind, shares[1], shares[0])

    @classmethod
    def of(cls, given: "Objective | str") -> "Objective":
        """Return an objective as it is, or read it from a string; see :meth:`parse`.

        Raises:
            TypeError: ``given`` is neither.
            ValueError: as in :meth:`parse`.
        """
        if isinstance(given, str):
            return cls.parse(given)
        if not isinstance(given, cls):
            raise TypeError(f"objective must be an Objective or a string, got {type(given).__name__}")
        return given

    def __str__(self) -> str:
        if self.level is None:
            return self.kind
        if self.kind == "pauc@fpr":
            return f"{self.kind}={_number(self.low)}-{_percent(self.level)}"
        return f"{self.kind}={_percent(self.level)}"

    @property
    def name(self) -> str:
        """The operating point in words."""
        if self.level is None:
            return "average precision"
        return {
            "recall@top": f"recall in the top {_percent(self.level)}",
            "recall@fpr": f"recall at a false-positive rate of {_percent(self.level)}",
            "pauc@fpr": f"partial AUC, false-positive rates {_number(self.low)} to {_percent(self.level)}",
        }[self.kind]

    def loss(self, num_classes: int, **options: Any) -> RankingLoss:
        """Make the loss that optimises this operating point.

        Args:
            num_classes: 1 for binary, else the number of classes or labels.
            options: as in :class:`~rareloss.ranking.ranking_loss.RankingLoss`.
        """
        if self.level is None:
            return SmoothAPLoss(num_classes, **options)
        if self.kind == "pauc@fpr":
            return PAUCAtBudgetLoss(num_classes, self.low, self.level, **options)
        among = "all" if self.kind == "recall@top" else "negatives"
        return RecallAtQuantileLoss(num_classes, self.level, among, **options)

    def metric(self, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> PerClass:
        """Compute the exact value per class.

        Args:
            scores: raw logits, ``[M]``, ``[M, 1]`` or ``[M, C]``; class indices are ranked by their log-odds.
            labels: ``[M]`` in {0, 1}; class indices ``[M]`` or labels ``[M, C]`` beside scores ``[M, C]``.
            weight: one per row or the shape of the scores; 1 by default.

        Returns:
            the value, 0-d for binary, else ``[C]``, and whether it is defined.

        Raises:
            TypeError: a wrong dtype.
            ValueError: a wrong shape, a label out of range, or a weight that is negative or not finite.
        """
        ranked, positive, weight = _columns(scores, labels, weight)
        if self.level is None:
            return metrics.average_precision(ranked, positive, weight)
        if self.kind == "pauc@fpr":
            return metrics.partial_auc(ranked, positive, weight, alpha=self.low, beta=self.level)
        among = "all" if self.kind == "recall@top" else "negatives"
        return metrics.recall_at_quantile(ranked, positive, weight, quantile=self.level, among=among)

    @torch.no_grad()
    def threshold(self, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the score to cut at: rows scored *above* it never exceed the capacity or the budget on these rows.

        A group of tied rows that does not fit whole stays below. For a partial AUC the budget is the band's upper edge.

        Args:
            scores: as in :meth:`metric`.
            labels: as in :meth:`metric`.
            weight: as in :meth:`metric`.

        Returns:
            0-d for binary, else ``[C]``, in units of the scores (log-odds for class indices).

        Raises:
            ValueError: average precision has no threshold; or as in :meth:`metric`.
        """
        if self.level is None:
            raise ValueError(
                "average precision looks at every threshold and sets none; use 'recall@top=...' or 'recall@fpr=...'"
            )
        ranked, positive, weight = _columns(scores, labels, weight)
        pool = make_pool(ranked, positive, weight)
        counted = pool.weight if self.kind == "recall@top" else pool.negative
        # The first group that overflows, and by more than rounding.
        cut = top(pool.scores, counted, self.level * (1 + 1e-12)).score[:, 0]
        return cut[0] if ranked.ndim == 1 else cut

    def cap(self, labels: Tensor, num_classes: int = 1) -> Tensor:
        """Compute the best reachable value: a review capacity q below the base rate caps the recall at q over the rate.

        Args:
            labels: ``[M]`` in {0, 1}; or class indices ``[M]`` with ``num_classes``; or labels ``[M, C]``.
            num_classes: 1 for binary.

        Returns:
            0-d for binary, else ``[C]``.
        """
        shape = labels.shape if labels.ndim == 2 or num_classes == 1 else (*labels.shape, num_classes)
        _, positive, _ = _columns(labels.new_zeros(shape, dtype=torch.float64), labels, None)
        rate = positive.double().mean(0)
        if self.kind != "recall@top" or self.level is None:
            return torch.ones_like(rate)
        return torch.where(rate > 0, self.level / torch.where(rate > 0, rate, 1.0), 1.0).clamp(max=1.0)


def _columns(scores: Tensor, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    checks.floating("scores", scores)
    if scores.ndim not in (1, 2):
        raise ValueError(
            f"scores must have shape [M] or [M, C], got {tuple(scores.shape)}; flatten the leading dimensions"
        )
    classes = 1 if scores.ndim == 1 else scores.shape[1]
    rows = encode(scores.detach(), labels, weight, None, num_classes=classes, ignore_index=-100)
    columns = (rows.scores, rows.positive, rows.weight)
    return columns if classes > 1 else (columns[0][:, 0], columns[1][:, 0], columns[2][:, 0])


def _share(text: str) -> float:
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)


def _number(share: float) -> str:
    return f"{share * 100:.10g}"


def _percent(share: float) -> str:
    return f"{_number(share)}%"
