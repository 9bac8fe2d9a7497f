"""One operating point, and from it the loss, the metric and the threshold."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from rareloss import checks, metrics
from rareloss.losses import PAUCAtBudgetLoss, RankingLoss, RecallAtQuantileLoss, SmoothAPLoss, encode
from rareloss.ops import top
from rareloss.pool import PerClass, make_pool

__all__ = ["Objective"]

_FORMS = (
    "'ap', 'recall@top=0.5%', 'recall@top=200/40000', 'recall@fpr=0.1%', 'pauc@fpr=0-0.5%', 'recall@precision=50%', "
    "'precision@recall=80%' or 'cost@fn=500,fp=5'"
)
_WHY = {
    "recall@precision": "how many rows a precision lets through is only known once the scores are, so no share of "
    "rows can be trained for; average precision is the mean precision over all recalls",
    "precision@recall": "what lies above the threshold of a recall is nearly all negatives and no fixed share of rows; "
    "average precision is the mean precision over all recalls",
    "cost": "cross-entropy, cut at the probability fp / (fp + fn), has the least expected cost where its probabilities "
    "are right; where a model cannot get them right, average precision orders the rows that the cut falls between",
}


@dataclass(frozen=True)
class Objective:
    """What the ranking is judged by.

    Args:
        kind: ``"ap"``; ``"recall@top"``, the recall within a review capacity; ``"recall@fpr"``, the recall under a
            false-alarm budget; ``"pauc@fpr"``, the mean recall over a band of false-positive rates;
            ``"recall@precision"``, the most recall at a precision; ``"precision@recall"``, the most precision at a
            recall; ``"cost"``, the avoidable cost saved.
        level: the capacity, the false-positive rate (the band's upper edge), the precision or the recall, a share; None
            for ``"ap"`` and ``"cost"``.
        low: the band's lower edge, a share; 0 for the others.
        rows: out of how many rows a period's capacity is counted: 40,000 with ``level=0.005`` is 200 a period. None
            where the capacity is a mere share.
        fn: what a missed positive costs, for ``"cost"``.
        fp: what a false alarm costs, in the same unit.

    Raises:
        TypeError: a number of a wrong type.
        ValueError: an unknown kind, or a share or a number out of range.

    Example:
        >>> objective = Objective.parse("recall@top=0.5%")
        >>> objective, str(objective)
        (Objective(kind='recall@top', level=0.005, low=0.0), 'recall@top=0.5%')
        >>> objective.loss(num_classes=1)
        RecallAtQuantileLoss(
          num_classes=1, quantile=0.005, among='all', temperature=0.05, temperature_unit='std', reduction='mean'
          (queue): MemoryQueue()
        )
    """

    kind: str
    level: float | None = None
    low: float = 0.0
    rows: int | None = field(default=None, repr=False)
    fn: float | None = field(default=None, repr=False)
    fp: float | None = field(default=None, repr=False)

    KINDS: ClassVar[tuple[str, ...]] = (
        "ap",
        "recall@top",
        "recall@fpr",
        "pauc@fpr",
        "recall@precision",
        "precision@recall",
        "cost",
    )

    def __post_init__(self) -> None:
        checks.choice("kind", self.kind, self.KINDS)
        if self.rows is not None:
            if self.kind != "recall@top":
                raise ValueError(f"{self.kind!r} has no capacity to count out of rows, got rows={self.rows}")
            checks.integer("rows", self.rows, least=2)
        if self.kind == "cost":
            if self.fn is None or self.fp is None:
                raise ValueError("'cost' needs fn and fp, what a missed positive and a false alarm cost")
            checks.positive_number("fn", self.fn)
            checks.positive_number("fp", self.fp)
            if self.level is not None or self.low:
                raise ValueError(f"'cost' has no level, got level={self.level} and low={self.low}")
            return
        if self.fn is not None or self.fp is not None:
            raise ValueError(f"{self.kind!r} has no costs, got fn={self.fn} and fp={self.fp}")
        if self.kind == "ap":
            if self.level is not None or self.low:
                raise ValueError(f"'ap' has no level, got level={self.level} and low={self.low}")
        elif self.level is None:
            raise ValueError(f"{self.kind!r} needs a level, a share in (0, 1); half a percent is 0.005")
        elif self.kind == "pauc@fpr":
            checks.between(self.low, self.level)
        else:
            checks.probability("level", self.level, open_low=True, open_high=self.kind.startswith("recall@"))
            if self.low:
                raise ValueError(f"{self.kind!r} has no lower edge, got low={self.low}")

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Read an operating point: ``"ap"``, ``"recall@top=0.5%"``, ``"recall@top=200/40000"``, ``"recall@fpr=0.1%"``,
        ``"pauc@fpr=0-0.5%"``, ``"recall@precision=50%"``, ``"precision@recall=80%"`` or ``"cost@fn=500,fp=5"``.

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
        if costs := re.fullmatch(r"cost@fn=([^,=]+),fp=([^,=]+)", plain):
            try:
                fn, fp = (float(cost) for cost in costs.groups())
            except ValueError:
                raise ValueError(f"an objective is {_FORMS}; the costs in {text!r} are no numbers") from None
            return cls("cost", fn=fn, fp=fp)
        kind, found, value = plain.partition("=")
        if kind not in cls.KINDS or not found:
            raise ValueError(f"an objective is {_FORMS}, got {text!r}")
        if kind == "recall@top" and (count := re.fullmatch(r"(\d+)/(\d+)", value)):
            alerts, rows = map(int, count.groups())
            if not 0 < alerts < rows:
                raise ValueError(
                    f"a capacity is a count out of more rows, such as 200/40000, got {value!r} in {text!r}"
                )
            return cls(kind, alerts / rows, rows=rows)
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
        if self.kind == "cost":
            return f"cost@fn={self.fn:.10g},fp={self.fp:.10g}"
        if self.level is None:
            return self.kind
        if self.rows is not None:
            return f"{self.kind}={self.level * self.rows:.10g}/{self.rows}"
        if self.kind == "pauc@fpr":
            return f"{self.kind}={_number(self.low)}-{_percent(self.level)}"
        return f"{self.kind}={_percent(self.level)}"

    @property
    def name(self) -> str:
        """The operating point in words."""
        if self.kind == "cost":
            return f"avoidable cost saved at {self.fn:.10g} a miss and {self.fp:.10g} a false alarm"
        if self.level is None:
            return "average precision"
        if self.rows is not None:
            return f"recall in the top {self.level * self.rows:.10g} of {self.rows}"
        return {
            "recall@top": f"recall in the top {_percent(self.level)}",
            "recall@fpr": f"recall at a false-positive rate of {_percent(self.level)}",
            "pauc@fpr": f"partial AUC, false-positive rates {_number(self.low)} to {_percent(self.level)}",
            "recall@precision": f"recall at a precision of {_percent(self.level)}",
            "precision@recall": f"precision at a recall of {_percent(self.level)}",
        }[self.kind]

    @property
    def share(self) -> float | None:
        """The share of rows (``recall@top``) or of negatives above the threshold; None where the scores decide it."""
        return self.level if self.kind in ("recall@top", "recall@fpr", "pauc@fpr") else None

    @property
    def trains(self) -> tuple["Objective", str]:
        """The objective whose loss is trained, and why where that is another: an empty string where it is this one.

        Example:
            >>> Objective.parse("recall@precision=50%").trains[0]
            Objective(kind='ap', level=None, low=0.0)
        """
        return (Objective("ap"), _WHY[self.kind]) if self.kind in _WHY else (self, "")

    def loss(self, num_classes: int, **options: Any) -> RankingLoss:
        """Make the loss that optimises this operating point, or the one that stands in for it: see :attr:`trains`.

        Args:
            num_classes: 1 for binary, else the number of classes or labels.
            options: as in :class:`~rareloss.losses.ranking.RankingLoss`.
        """
        if self.share is None:
            return SmoothAPLoss(num_classes, **options)
        if self.kind == "pauc@fpr":
            return PAUCAtBudgetLoss(num_classes, self.low, self.share, **options)
        among = "all" if self.kind == "recall@top" else "negatives"
        return RecallAtQuantileLoss(num_classes, self.share, among, **options)

    def metric(self, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> PerClass:
        """Compute the exact value per class; more is better.

        Of ``"cost"`` it is the share of the avoidable cost that the best cut on these rows saves, see
        :func:`rareloss.metrics.cost_saved`.

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
        if self.kind == "cost" and self.fn is not None and self.fp is not None:
            return metrics.cost_saved(ranked, positive, weight, fn=self.fn, fp=self.fp)
        if self.level is None:
            return metrics.average_precision(ranked, positive, weight)
        if self.kind == "pauc@fpr":
            return metrics.partial_auc(ranked, positive, weight, alpha=self.low, beta=self.level)
        if self.kind == "recall@precision":
            return metrics.recall_at_precision(ranked, positive, weight, precision=self.level)
        if self.kind == "precision@recall":
            return metrics.precision_at_recall(ranked, positive, weight, recall=self.level)
        among = "all" if self.kind == "recall@top" else "negatives"
        return metrics.recall_at_quantile(ranked, positive, weight, quantile=self.level, among=among)

    @torch.no_grad()
    def threshold(self, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the score to cut at: rows scored *above* it never exceed the capacity or the budget on these rows.

        A group of tied rows that does not fit whole stays below. For a partial AUC the budget is the band's upper edge.
        For a precision, a recall or costs it is the cut whose value :meth:`metric` gives: inf where no row is worth an
        alarm, -inf where all are.

        Args:
            scores: as in :meth:`metric`.
            labels: as in :meth:`metric`.
            weight: as in :meth:`metric`.

        Returns:
            0-d for binary, else ``[C]``, in units of the scores (log-odds for class indices).

        Raises:
            ValueError: average precision has no threshold; or as in :meth:`metric`.
        """
        if self.kind == "ap":
            raise ValueError(
                "average precision looks at every threshold and sets none; use 'recall@top=...' or 'recall@fpr=...'"
            )
        ranked, positive, weight = _columns(scores, labels, weight)
        pool = make_pool(ranked, positive, weight)
        if self.share is None:
            cut = self._best(metrics.cuts(pool))
            return cut[0] if ranked.ndim == 1 else cut
        counted = pool.weight if self.kind == "recall@top" else pool.negative_weight
        # The first group that overflows, and by more than rounding.
        cut = top(pool.scores, counted, self.share * (1 + 1e-12)).score[:, 0]
        return cut[0] if ranked.ndim == 1 else cut

    def _best(self, cuts: metrics.Cuts) -> Tensor:
        # The score below the best cut, [C].
        if self.kind == "cost" and self.fn is not None and self.fp is not None:
            worth = cuts.saved(self.fn, self.fp).clamp(min=0.0)
        elif self.kind == "recall@precision":
            worth = cuts.recall * (cuts.precision >= (self.level or 0.0) * (1 - 1e-12))
        else:
            worth = cuts.precision * (cuts.recall >= (self.level or 0.0) * (1 - 1e-12))
        best, place = torch.where(cuts.ends, worth, 0.0).max(1)
        return torch.where(best > 0, cuts.below.gather(1, place[:, None])[:, 0], torch.inf)

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
    columns = (rows.scores.mT, rows.is_positive.mT, rows.weight.mT)
    return columns if classes > 1 else (columns[0][:, 0], columns[1][:, 0], columns[2][:, 0])


def _share(text: str) -> float:
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)


def _number(share: float) -> str:
    return f"{share * 100:.10g}"


def _percent(share: float) -> str:
    return f"{_number(share)}%"
