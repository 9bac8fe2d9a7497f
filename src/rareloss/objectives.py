"""Objectives: what a ranking is judged by, each with its exact metric, its loss and its threshold."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rareloss import checks, metrics
from rareloss.losses import PAUCAtBudgetLoss, RankingLoss, RecallAtQuantileLoss, SmoothAPLoss, encode
from rareloss.ops import accumulator, top
from rareloss.pool import PerClass, make_pool, safe_ratio

__all__ = [
    "AveragePrecision", "Cost", "Objective", "PartialAUC", "PrecisionAtRecall", "RecallAtFPR", "RecallAtPrecision",
    "RecallAtTop",
]  # fmt: skip


class Objective:
    """What a ranking is judged by: the base class of the objectives, which :meth:`parse` reads from texts.

    =============================================  ==============================================
    ``ap``                                         :class:`AveragePrecision`
    ``recall@top=0.5%``, ``recall@top=200/40000``  :class:`RecallAtTop`
    ``recall@fpr=0.1%``                            :class:`RecallAtFPR`
    ``pauc@fpr=0-0.5%``                            :class:`PartialAUC`
    ``recall@precision=50%``                       :class:`RecallAtPrecision`
    ``precision@recall=80%``                       :class:`PrecisionAtRecall`
    ``cost@fn=500,fp=5``                           :class:`Cost`
    =============================================  ==============================================

    A subclass names such texts as its ``examples``. What it asks for are its fields; all others are None.

    Attributes:
        quantile: the review capacity, the most alerts as a fraction of all rows.
        fpr: the most alerts among negatives, as a fraction of them.
        alpha, beta: the edges of a band of false-positive rates.
        precision, recall: the least that the threshold must reach.
        fn, fp: the costs of a missed positive and of a false alert.
        text, words: what ``str`` and :attr:`name` give, with the fields in braces, in percent.
        exact: computes :meth:`metric` from the fields; one of :mod:`rareloss.metrics`.
        loss_name: short for the loss that is trained.
        surrogate_reason: why it is the loss of another objective, :attr:`surrogate`; empty where it is not.
        sets_threshold: False where the metric looks at all thresholds.
    """

    quantile: float | None = None
    fpr: float | None = None
    alpha: float | None = None
    beta: float | None = None
    precision: float | None = None
    recall: float | None = None
    fn: float | None = None
    fp: float | None = None
    text: ClassVar[str]
    words: ClassVar[str]
    exact: ClassVar[Callable[..., PerClass]]
    loss_name: ClassVar[str] = "smooth_ap"
    surrogate_reason: ClassVar[str] = ""
    sets_threshold: ClassVar[bool] = True
    __match_args__: ClassVar[tuple[str, ...]]
    _unit: ClassVar[float] = 100.0  # percent
    _by_example: ClassVar[dict[str, type["Objective"]]] = {}

    def __init_subclass__(cls, examples: tuple[str, ...] = ()) -> None:
        Objective._by_example.update(dict.fromkeys(examples, cls))

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError("Objective has no kind of its own; use Objective.parse or a class such as RecallAtTop")

    @staticmethod
    def parse(text: str) -> "Objective":
        """Read an objective; a fraction is written in percent, ``0.5%``, or as it is, ``0.005``.

        Raises:
            TypeError: ``text`` is no string.
            ValueError: it names no objective, or a number is out of range.

        Example:
            >>> Objective.parse("recall@fpr=0.5%")
            RecallAtFPR(fpr=0.005)
        """
        forms = ", ".join(map(repr, Objective._by_example))
        if not isinstance(text, str):
            raise TypeError(f"an objective is a string such as {forms}, got {type(text).__name__}")
        key, equals, value = "".join(text.lower().split()).partition("=")
        for example, objective in Objective._by_example.items():
            if example.partition("=")[:2] == (key, equals):
                try:
                    return objective._read(value)
                except ValueError as error:
                    raise ValueError(f"an objective is {forms}; in {text!r}: {error}") from error
        raise ValueError(f"an objective is {forms}, got {text!r}")

    @staticmethod
    def of(given: "Objective | str") -> "Objective":
        """Return an objective as it is, or :meth:`parse` a string."""
        if not isinstance(given, (str, Objective)):
            raise TypeError(f"objective must be an Objective or a string, got {type(given).__name__}")
        return Objective.parse(given) if isinstance(given, str) else given

    @classmethod
    def _read(cls, value: str) -> Self:
        return cls(**{name: _fraction(value) for name in cls.__match_args__})

    def _written(self) -> dict[str, str]:
        return {name: f"{self._unit * value:.10g}" for name, value in vars(self).items()}

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            checks.probability(name, value, open_low=True, open_high=True)

    def __str__(self) -> str:
        return self.text.format(**self._written())

    @property
    def name(self) -> str:
        """The objective in words."""
        return self.words.format(**self._written())

    @property
    def budget(self) -> float | None:
        """The most alerts, a fraction of all rows (:attr:`quantile`) or of the negatives; None for no limit."""
        return next((most for most in (self.quantile, self.fpr, self.beta) if most is not None), None)

    @property
    def surrogate(self) -> "Objective":
        """The objective whose loss is trained: this one, or average precision where it has no loss of its own."""
        return AveragePrecision() if self.surrogate_reason else self

    def loss(self, num_classes: int, **options: Any) -> RankingLoss:
        """Make the loss of :attr:`surrogate`, with the options of :class:`~rareloss.losses.ranking.RankingLoss`."""
        return SmoothAPLoss(num_classes, **options)

    def metric(self, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> PerClass:
        """Compute the exact value, 0-d for binary, else ``[C]``; more is better. Raises as :mod:`rareloss.metrics`.

        Args:
            scores: raw logits, ``[M]``, ``[M, 1]`` or ``[M, C]``; class indices are ranked by their log-odds.
            labels: ``[M]`` in {0, 1}; class indices ``[M]`` or labels ``[M, C]`` beside scores ``[M, C]``.
            weight: one per row or the shape of the scores; 1 by default.
        """
        return self.exact(*_columns(scores, labels, weight), **vars(self))

    @torch.no_grad()
    def threshold(self, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the threshold, 0-d or ``[C]``, from what :meth:`metric` takes; rows scored *above* it are alerts.

        Under a budget it is the lowest that alerts no more on these rows; tied rows that do not all fit stay below.
        Else it has the highest :meth:`utility`: inf where no alert is worth it, -inf where all are. For a device
        without float64 the CPU finds it.

        Raises:
            ValueError: average precision looks at all thresholds and sets none; or as in :meth:`metric`.
        """
        if not self.sets_threshold:
            raise ValueError(f"{self.name} looks at every threshold and sets none; use 'recall@top=...'")
        scores, positive, weight = _columns(scores, labels, weight)
        device = scores.device
        if accumulator(scores) != torch.float64:
            # Whether a row is the last that fits is told by float64, which this device has not: the CPU finds it.
            scores, positive, weight = scores.cpu(), positive.cpu(), weight.cpu()
        pool = make_pool(scores, positive, weight)
        if self.budget is not None:
            counted = pool.negative_weight if self.quantile is None else pool.weight
            # The first tied group that overflows, and by more than rounding.
            thresholds = top(pool.scores, counted, min(1.0, self.budget * (1 + 1e-12))).score[:, 0]
            if self.budget >= 1:  # all may be alerted
                thresholds = torch.full_like(thresholds, -torch.inf)
        else:
            cuts = metrics.cuts(pool)
            utility = torch.where(cuts.ends, self.utility(cuts.hits, cuts.taken - cuts.hits), 0.0)
            best, index = utility.max(1)
            thresholds = torch.where(best > 0, cuts.below.gather(1, index[:, None])[:, 0], torch.inf)
        return (thresholds[0] if scores.ndim == 1 else thresholds).to(device)

    def utility(self, tp: Tensor, fp: Tensor) -> Tensor:
        """Compute what each of K thresholds is worth where there is no budget; 0 is worth no more than no alerts.

        ``tp`` and ``fp``, ``[..., K]``, are the weights of positives and negatives above each; above the last lie all.
        """
        raise NotImplementedError(f"the threshold of {self} is not chosen by labels")

    def best_value(self, prevalence: float) -> float:
        """Compute the highest value of any ranking: a capacity below the prevalence caps the recall at their ratio."""
        return 1.0 if self.quantile is None or not prevalence else min(1.0, self.quantile / prevalence)

    def cap(self, labels: Tensor, num_classes: int = 1) -> Tensor:
        """Compute :meth:`best_value` from labels as in :meth:`metric`, 0-d for ``num_classes=1``, else ``[C]``."""
        shape = labels.shape if labels.ndim == 2 or num_classes == 1 else (*labels.shape, num_classes)
        _, positive, _ = _columns(labels.new_zeros(shape, dtype=torch.float32), labels, None)
        return positive.cpu().double().mean(0).apply_(self.best_value).to(labels.device, accumulator(labels))


@dataclass(frozen=True)
class AveragePrecision(Objective, examples=("ap",)):
    """Average precision: the mean precision over all recalls."""

    text, words, sets_threshold = "ap", "average precision", False
    exact = staticmethod(metrics.average_precision)


@dataclass(frozen=True)
class RecallAtTop(Objective, examples=("recall@top=0.5%", "recall@top=200/40000")):
    """Recall within a review capacity: a ``quantile`` of all rows in (0, 1), told as a count of ``rows`` if given."""

    quantile: float = field()
    rows: int | None = None
    text, words, loss_name = "recall@top={capacity}", "recall in the top {words}", "recall"

    def __post_init__(self) -> None:
        checks.probability("quantile", self.quantile, open_low=True, open_high=True)
        if self.rows is not None:
            checks.integer("rows", self.rows, least=2)

    @classmethod
    def _read(cls, value: str) -> Self:
        alerts, slash, rows = value.partition("/")
        if slash and not 0 < int(alerts) < int(rows):
            raise ValueError(f"a capacity is a count out of more rows, such as 200/40000, not {value!r}")
        return cls(int(alerts) / int(rows), int(rows)) if slash else cls(_fraction(value))

    def _written(self) -> dict[str, str]:
        if self.rows is None:
            return {"capacity": f"{100 * self.quantile:.10g}%", "words": f"{100 * self.quantile:.10g}%"}
        alerts = f"{self.quantile * self.rows:.10g}"
        return {"capacity": f"{alerts}/{self.rows}", "words": f"{alerts} of {self.rows}"}

    def loss(self, num_classes: int, **options: Any) -> RankingLoss:
        return RecallAtQuantileLoss(num_classes, self.quantile, "all", **options)

    @staticmethod
    def exact(scores: Tensor, positive: Tensor, weight: Tensor, **fields: Any) -> PerClass:
        return metrics.recall_at_quantile(scores, positive, weight, quantile=fields["quantile"])


@dataclass(frozen=True)
class RecallAtFPR(Objective, examples=("recall@fpr=0.1%",)):
    """Recall at a false-positive rate ``fpr`` in (0, 1), the budget of false alerts."""

    fpr: float = field()
    text, words, loss_name = "recall@fpr={fpr}%", "recall at a false-positive rate of {fpr}%", "recall"
    exact = staticmethod(metrics.recall_at_fpr)

    def loss(self, num_classes: int, **options: Any) -> RankingLoss:
        return RecallAtQuantileLoss(num_classes, self.fpr, "negatives", **options)


@dataclass(frozen=True)
class PartialAUC(Objective, examples=("pauc@fpr=0-0.5%",)):
    """Partial AUC: the mean recall over the false-positive rates from ``alpha`` to ``beta``, the threshold's budget."""

    alpha: float = field()
    beta: float = field()
    text, words = "pauc@fpr={alpha}-{beta}%", "partial AUC, false-positive rates {alpha} to {beta}%"
    loss_name, exact = "pauc", staticmethod(metrics.partial_auc)

    def __post_init__(self) -> None:
        checks.between(self.alpha, self.beta)

    @classmethod
    def _read(cls, value: str) -> Self:
        alpha, beta = value.split("-", 1) if "-" in value else ("0", value)
        if beta.endswith("%") and not alpha.endswith("%"):
            alpha += "%"  # "0.1-2%" means percent on both sides
        return cls(_fraction(alpha), _fraction(beta))

    def loss(self, num_classes: int, **options: Any) -> RankingLoss:
        return PAUCAtBudgetLoss(num_classes, self.alpha, self.beta, **options)


@dataclass(frozen=True)
class RecallAtPrecision(Objective, examples=("recall@precision=50%",)):
    """The most recall at a precision in (0, 1); 0 where no threshold has it."""

    precision: float = field()
    text, words = "recall@precision={precision}%", "recall at a precision of {precision}%"
    exact = staticmethod(metrics.recall_at_precision)
    surrogate_reason = "a precision fixes no fraction of rows; average precision is its mean over all recalls"

    def utility(self, tp: Tensor, fp: Tensor) -> Tensor:
        return safe_ratio(tp, tp[..., -1:]) * (safe_ratio(tp, tp + fp) >= self.precision * (1 - 1e-12))


@dataclass(frozen=True)
class PrecisionAtRecall(Objective, examples=("precision@recall=80%",)):
    """The most precision at a recall in (0, 1]."""

    recall: float = field()
    text, words = "precision@recall={recall}%", "precision at a recall of {recall}%"
    exact = staticmethod(metrics.precision_at_recall)
    surrogate_reason = "a recall fixes no fraction of all rows; average precision is the mean precision over recalls"

    def __post_init__(self) -> None:
        checks.probability("recall", self.recall, open_low=True)

    def utility(self, tp: Tensor, fp: Tensor) -> Tensor:
        return safe_ratio(tp, tp + fp) * (safe_ratio(tp, tp[..., -1:]) >= self.recall * (1 - 1e-12))


@dataclass(frozen=True)
class Cost(Objective, examples=("cost@fn=500,fp=5",)):
    """The avoidable cost saved, of ``fn`` a miss and ``fp`` a false alert; see :func:`rareloss.metrics.cost_saved`."""

    fn: float = field()
    fp: float = field()
    text, words = "cost@fn={fn},fp={fp}", "avoidable cost saved at {fn} a miss and {fp} a false alert"
    exact, _unit = staticmethod(metrics.cost_saved), 1.0
    surrogate_reason = "cross-entropy is best above fp / (fp + fn) if it is calibrated; if not, average precision ranks"

    def __post_init__(self) -> None:
        checks.positive_number("fn", self.fn)
        checks.positive_number("fp", self.fp)

    @classmethod
    def _read(cls, value: str) -> Self:
        fn, _, fp = value.partition(",fp=")
        return cls(float(fn), float(fp))

    def utility(self, tp: Tensor, fp: Tensor) -> Tensor:
        return self.fn * tp - self.fp * fp


def _columns(scores: Tensor, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    checks.floating("scores", scores)
    if scores.ndim not in (1, 2):
        raise ValueError(f"scores must be [M] or [M, C], got {tuple(scores.shape)}; flatten the leading dimensions")
    classes = 1 if scores.ndim == 1 else scores.shape[1]
    pool = encode(scores.detach(), labels, weight, None, num_classes=classes, ignore_index=-100)
    index = slice(None) if classes > 1 else 0
    return pool.scores.mT[:, index], pool.is_positive.mT[:, index], pool.weight.mT[:, index]


def _fraction(text: str) -> float:
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
