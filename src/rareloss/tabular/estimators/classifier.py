"""A ranking model with the face of a scikit-learn estimator.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# First, since it says which extra is missing.
from rareloss.tabular.estimators.rows import (
    Array,
    as_batch,
    as_inputs,
    as_numbers,
    check_labels,
    check_numbers,
    check_weight,
    log_odds_of,
    scores_of,
    two_classes,
)

# isort: split
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import _check_partial_fit_first_call
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from rareloss import FineTuned, Objective, SigmoidFocalLoss, checks, finetune
from rareloss.decisions import Calibrator
from rareloss.tabular.estimators.binary import BinaryRanker, choose_positive, even_odds, probabilities_of
from rareloss.tabular.estimators.networks import descents, judge, new_model
from rareloss.tabular.estimators.stream import QUEUE, Stream
from rareloss.tabular.logistic import (
    logistic_draws,
    mean_weight,
    platt,
    relative_weight,
    sample,
    search,
    solve_logistic,
)
from rareloss.tabular.preprocess import single_precision
from rareloss.training import Batch, ranking_losses, repeat_finetune, select_rows

__all__ = ["RareClassifier"]

# Rows that choose among the draws and walk the path, and rows on which the chosen place is found again.
POOL, LAST_POOL = 8192, 16_384
# Of logistic regression's gradient, and of the ranking loss: a change that moves no row in the ranking.
TOLERANCE, FINETUNE_TOLERANCE = 1e-4, 3e-5
# Of ``partial_fit``: steps of cross-entropy before a ranking.
WARM_UP = 200


class RareClassifier(BinaryRanker):
    r"""Rank a rare class by a linear model, or a small network, trained for its operating point.

    Where a model cannot fit everything, the loss decides where it is right. Five steps:

    1. Rows are split into train and validation, which makes every choice below by the objective itself.
    2. Cross-entropy: logistic regression on standardised inputs, solved to convergence for each of ``trials`` draws of
       penalty and class weight, and for larger penalties while they are better.
    3. :func:`rareloss.finetune` from there. Validation keeps it only as far as it helps.
    4. A linear model is solved again on all rows, train and validation, with what was chosen: penalty, class weight and
       place on the path. A network is not: nothing would tell it where to stop.
    5. A ranking has no scale, so scores are mapped to log-odds by Platt's method on the validation rows, with the model
       that had not seen them; threshold and probabilities are fitted there too. The refitted model's scores are given
       the mean and the standard deviation of that one's.

    Of many rows, steps 2 and 3 see 8,192: positives, the highest negatives, and a weighted sample of the others. What
    they choose is then solved on all rows, its place on the path on 16,384.

    A row of weight 0 is absent; other weights count as in the losses, so a positive of weight 2 is not the same as two
    rows of it, which rank one another. A factor on all weights changes nothing. Numbers are taken as float32 holds
    them, so that the same rows score alike however they are stored.

    Args:
        objective: an operating point such as ``"ap"`` or ``"recall@top=0.5%"``; validation judges by it.
        hidden_layer_sizes: of a network with ReLU; () for a linear model.
        loss: what fine-tuning minimises. None: the objective's own ranking loss. Another operating point: its ranking
            loss. ``"focal"``: focal loss with gamma 2. A module called with scores, targets and ``sample_weight``.
            ``"cross_entropy"``: there is no fine-tuning.
        trials: draws of hyper-parameters for cross-entropy.
        validation_fraction: share of the rows that choose.
        refit: whether a linear model is solved again on all rows.
        positive: the class that is ranked to the top; None: the rarer one, the second of two that are as rare.
        random_state: of the split, the draws and the network; an integer, a generator, or None.

    Attributes:
        classes_: the two classes, sorted.
        positive_: the one that is ranked to the top; ``threshold_`` and ``calibrator_`` are about its own log-odds.
        coef_: ``[1, d]``, of a linear model: what a unit of each input adds to :meth:`decision_function`, which is the
            log-odds of ``classes_[1]``, as scikit-learn has it.
        intercept_: ``[1]``.
        threshold_: the log-odds strictly above which :meth:`predict` says the positive class: the objective's on
            validation; for average precision, which has none, where the probability is one half.
        calibrator_: from log-odds to the probabilities of :meth:`predict_proba`.
        finetuned_: the result of fine-tuning, see :class:`rareloss.FineTuned`; None where there was none.
        chosen_: the hyper-parameters of cross-entropy that validation chose.
        n_features_in_: d.
        feature_names_in_: of a table whose columns have names.

    Example:
        >>> from sklearn.datasets import make_classification
        >>> x, y = make_classification(4_000, weights=[0.97], class_sep=0.8, random_state=0)
        >>> model = RareClassifier("ap", random_state=0).fit(x, y)
        >>> model.coef_.shape, bool(model.finetuned_.after >= model.finetuned_.before)
        ((1, 20), True)
    """

    def __init__(
        self,
        objective: str | Objective = "ap",
        hidden_layer_sizes: Sequence[int] = (),
        *,
        loss: str | Objective | nn.Module | None = None,
        trials: int = 8,
        validation_fraction: float = 0.25,
        refit: bool = True,
        positive: Any = None,
        random_state: Any = None,
    ) -> None:
        self.objective = objective
        self.hidden_layer_sizes = hidden_layer_sizes
        self.loss = loss
        self.trials = trials
        self.validation_fraction = validation_fraction
        self.refit = refit
        self.positive = positive
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------------------ fit

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "RareClassifier":
        """Fit the model.

        Args:
            X: ``[n, d]``, numbers.
            y: ``[n]``, two classes.
            sample_weight: ``[n]``, not negative; 1 by default.

        Raises:
            TypeError: an argument of a wrong type.
            ValueError: an argument out of range, more or fewer than two classes, or too few rows of one.
        """
        objective = self._checked()
        losses = self._losses(0)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_labels(y)
        weight = None if sample_weight is None else check_weight(sample_weight, y)
        if weight is not None:  # a row of weight 0 is absent
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        self.classes_, codes = two_classes(y)
        self.positive_ = choose_positive(self.classes_, np.bincount(codes, weight), self.positive)
        target = (y == self.positive_).astype(np.int64)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        counts = np.bincount(target)
        if counts.min() < 2:
            raise ValueError(
                f"class {y[target == counts.argmin()][0]} has {counts.min()} row(s) of some weight; at least 2 are "
                "needed, one to learn from and one to choose by"
            )
        self._stream: Stream | None = None
        # Mean and spread are no labels, so validation rows may have a part in them.
        X = check_numbers(X)
        self._scaler = StandardScaler().fit(X, sample_weight=weight)
        whole = as_batch(self._scaler.transform(X), target, weight, np.arange(len(target)))
        train, held = (select_rows(whole, part) for part in self._split(target, seed))
        fit = self._fit_network if self.hidden_layer_sizes else self._fit_linear
        chosen, self._model = fit(objective, losses, whole, train, held, seed)
        self._map_scores(objective, chosen, whole, held, seed)
        self._describe()
        return self

    def _split(self, target: np.ndarray, seed: int) -> Iterator[Tensor]:
        # Rows of train and validation, a share of each class.
        by_class = (
            train_test_split(np.flatnonzero(target == label), test_size=self.validation_fraction, random_state=seed)
            for label in (0, 1)
        )
        return (torch.from_numpy(np.sort(np.concatenate(part))) for part in zip(*by_class, strict=True))

    def _map_scores(self, objective: Objective, chosen: nn.Module, whole: Batch, held: Batch, seed: int) -> None:
        # Log-odds, probabilities and threshold, on rows that ``chosen`` has not seen.
        some = sample(held, LAST_POOL, torch.Generator().manual_seed(seed), chosen)
        scores, labels, weight = scores_of(chosen, some), some.targets.numpy(), as_numbers(some.weight)
        self._slope, self._offset = platt(scores, labels, weight)
        self.calibrator_ = probabilities_of(self._slope * scores + self._offset, labels, weight, objective, seed)
        self.threshold_ = even_odds(self.calibrator_)
        if objective.sets_threshold:
            log_odds = torch.from_numpy(self._slope * scores_of(chosen, held) + self._offset)
            self.threshold_ = float(objective.threshold(log_odds, held.targets, held.weight))
        if self._model is not chosen:
            (mean, spread), (own_mean, own_spread) = (_moments(model, whole) for model in (chosen, self._model))
            self._offset += self._slope * (mean - own_mean * spread / own_spread)
            self._slope *= spread / own_spread

    def _fit_linear(
        self,
        objective: Objective,
        losses: list[nn.Module] | None,
        whole: Batch,
        train: Batch,
        held: Batch,
        seed: int,
    ) -> tuple[nn.Module, nn.Module]:
        # The model that the validation rows have not seen, and the last one.
        generator = torch.Generator().manual_seed(seed)
        pilot, _ = self._solve(sample(train, POOL, generator), {"C": 1.0, "class_weight": 1.0})
        seen = sample(train, POOL, generator, pilot), sample(held, POOL, generator, pilot)
        start = self._tuned(objective, *seen, seed, pilot)
        chosen = self._finetune(start, objective, losses, *seen, seed)
        last = whole if self.refit else train
        if last is seen[0]:
            return chosen, chosen
        model, self.chosen_["converged"] = self._solve(last, self.chosen_, start)
        moved = self._again(model, sample(last, LAST_POOL, generator, chosen))
        return chosen if self.refit else moved, moved

    def _fit_network(
        self,
        objective: Objective,
        losses: list[nn.Module] | None,
        whole: Batch,
        train: Batch,
        held: Batch,
        seed: int,
    ) -> tuple[nn.Module, nn.Module]:
        self.chosen_: dict[str, Any]
        found = descents(objective, self.hidden_layer_sizes, train, held, self.trials, seed)
        start, self.chosen_ = max(found, key=lambda one: judge(objective, one[0], held))
        chosen = self._finetune(start, objective, losses, train, held, seed)
        return chosen, chosen

    def _finetune(
        self,
        start: nn.Module,
        objective: Objective,
        losses: list[nn.Module] | None,
        train: Batch,
        held: Batch,
        seed: int,
    ) -> nn.Module:
        self.finetuned_: FineTuned | None = None
        if losses == []:
            return start
        self.finetuned_ = finetune(
            start, objective, train, held, losses=losses, tolerance=FINETUNE_TOLERANCE, seed=seed
        )
        return self.finetuned_.model

    def _again(self, model: nn.Module, rows: Batch) -> nn.Module:
        # The loss and penalty that validation chose, on other rows.
        return (
            model
            if self.finetuned_ is None
            else repeat_finetune(self.finetuned_, model, rows, tolerance=FINETUNE_TOLERANCE)
        )

    def _solve(self, rows: Batch, draw: Mapping[str, float], start: nn.Module | None = None) -> tuple[nn.Linear, bool]:
        return solve_logistic(
            rows.inputs,
            rows.targets.numpy(),
            {0: 1.0, 1: draw["class_weight"]},
            draw["C"],
            rows.weight,
            tolerance=TOLERANCE,
            dtype=torch.float32,
            start=start if isinstance(start, nn.Linear) else None,
        )

    def _tuned(self, objective: Objective, train: Batch, held: Batch, seed: int, start: nn.Linear) -> nn.Linear:
        last = 1.0

        def solved(draw: Mapping[str, float]) -> tuple[nn.Linear, bool]:
            nonlocal start, last
            start = copy.deepcopy(start)
            with torch.no_grad():  # where positives weigh w times as much, the odds are w times as high
                start.bias.add_(math.log(draw["class_weight"] / last))
            last = draw["class_weight"]
            start, converged = self._solve(train, draw, start)
            return start, converged

        draw, (model, converged) = search(
            logistic_draws(self.trials, seed), solved, lambda found: judge(objective, found[0], held)
        )
        self.chosen_ = {**draw, "converged": converged}
        return model

    # --------------------------------------------------------------------------------------------------- partial_fit

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> "RareClassifier":
        r"""Take one AdamW step of the loss on a batch, which is ranked together with the last 16,384 rows.

        For a stream, or to follow new rows after :meth:`fit`. Nothing is held out, so nothing is chosen and no earlier
        step is kept: the rate is constant (1e-2; 1e-3 for a network), and the objective does not stop it. Without
        :meth:`fit` before it, the first batch sets mean and spread of the inputs for good, and 200 steps of
        cross-entropy come first, since a ranking has nothing to say about a random order. Batches in random order, of
        some hundred rows; a batch without positives learns from those remembered.

        Each batch is scored before its step. Log-odds and threshold are fitted on the last 16,384 such scores, which no
        step had seen (progressive validation).

        Args:
            X: ``[n, d]``, numbers.
            y: ``[n]``.
            classes: the two classes; needed in the first call, unless :meth:`fit` came before.
            sample_weight: ``[n]``, not negative; 1 by default. They count in units of the first batch's mean.

        Raises:
            ValueError: classes that are missing, change or are not two; a label that is none of them; or as in
                :meth:`fit`.

        Reference:
            Blum, Kalai, Langford, "Beating the Hold-Out: Bounds for K-fold and Progressive Cross-Validation", 1999.
        """
        objective = self._checked()
        losses = self._losses(QUEUE)
        first = not hasattr(self, "_model")
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], reset=first)
        check_labels(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._check_classes(y, classes)
        if first:
            # One unit for all batches, so that they compare, and a factor on all weights changes nothing.
            self._unit = mean_weight(weight)
        weight = weight / getattr(self, "_unit", 1.0)
        if first:
            counts = np.bincount(np.searchsorted(self.classes_, y), weight, minlength=2)
            self.positive_ = choose_positive(self.classes_, counts, self.positive)
        target = (y == self.positive_).astype(np.int64)
        X = check_numbers(X)
        if first:
            self._scaler = StandardScaler().fit(X, sample_weight=weight)
        rows = as_batch(self._scaler.transform(X), target, weight, np.arange(len(target)))
        if first:
            self._model = new_model(
                rows, self.hidden_layer_sizes, int(check_random_state(self.random_state).randint(2**31 - 1))
            )
            self._slope, self._offset, self.threshold_ = 1.0, 0.0, 0.0
        # The log-odds below are fitted to the last rows, so their logistic function is the probability.
        self.calibrator_ = Calibrator("sigmoid")
        stream: Stream = getattr(self, "_stream", None) or Stream(self._model, losses, WARM_UP if first else 0)
        self._stream = stream
        recent = stream.step(rows)
        if 0 < int(recent.targets.sum()) < len(recent.targets):
            scores = recent.inputs.double().numpy()
            self._slope, self._offset = platt(scores, recent.targets.numpy(), as_numbers(recent.weight))
            if objective.sets_threshold:
                log_odds = torch.from_numpy(self._slope * scores + self._offset)
                self.threshold_ = float(objective.threshold(log_odds, recent.targets, recent.weight))
        self._describe()
        return self

    def _check_classes(self, y: np.ndarray, classes: Any) -> None:
        _check_partial_fit_first_call(self, classes)
        if len(self.classes_) != 2:
            count = len(self.classes_)
            del self.classes_  # the next call is the first one again
            raise ValueError(f"Only binary classification is supported: classes must name two, got {count} class(es)")
        if unknown := sorted(set(np.unique(y).tolist()) - set(self.classes_.tolist())):
            raise ValueError(f"y holds {unknown}, which classes={self.classes_.tolist()} does not name")

    # ------------------------------------------------------------------------------------------------------- predict

    def log_odds(self, X: Any) -> Array:
        """Compute the log-odds of the positive class, ``[n]``."""
        check_is_fitted(self, "_model")
        X = single_precision(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))
        if isinstance(self._model, nn.Linear):
            return np.asarray(self._sign * (X @ self.coef_[0] + self.intercept_[0]))
        with torch.no_grad():
            scores = self._model(as_inputs(self._scaler.transform(X)))[:, 0]
        return np.asarray(self._slope * scores.double().numpy() + self._offset)

    def standard_errors(
        self, X: Any, y: Any, sample_weight: Any = None, *, resamples: int = 50, random_state: Any = None
    ) -> np.ndarray:
        r"""Estimate the standard errors of ``coef_`` and ``intercept_`` by the Bayesian bootstrap.

        Each resample gives all rows weights from an exponential distribution, so that no positive is lost, and repeats
        the fit with the penalties that validation chose: cross-entropy, the place on the path, the mapping to log-odds.

        Args:
            X: the rows that the model was fitted on.
            y: their targets.
            sample_weight: as in :meth:`fit`.
            resamples: how many.
            random_state: of the weights.

        Returns:
            ``[d + 1]``, the intercept's last.

        Raises:
            ValueError: a network, which has no coefficients; labels that are not those of the fit; fewer than two
                resamples; or as in :meth:`fit`.
            NotFittedError: :meth:`fit` has not been called; :meth:`partial_fit` chooses nothing that could be repeated.

        Reference:
            Rubin, "The Bayesian Bootstrap", Annals of Statistics 1981.
        """
        check_is_fitted(self, "chosen_")
        if self.hidden_layer_sizes:
            raise ValueError("a network has no coefficients; fit with hidden_layer_sizes=()")
        checks.integer("resamples", resamples, least=2)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], reset=False)
        check_labels(y)
        if unknown := sorted(set(np.unique(y).tolist()) - set(self.classes_.tolist())):
            raise ValueError(f"y holds {unknown}, but the model was fitted on {self.classes_.tolist()}")
        target = (y == self.positive_).astype(int)
        own = check_weight(sample_weight, y)
        random = check_random_state(random_state)
        generator = torch.Generator().manual_seed(int(random.randint(2**31 - 1)))
        x = self._scaler.transform(check_numbers(X))
        found = []
        for _ in range(resamples):
            drawn = relative_weight(own * random.exponential(size=len(target)))
            rows = as_batch(x, target, drawn, np.arange(len(target)))
            solved, _ = self._solve(rows, self.chosen_)
            model = self._again(solved, sample(rows, LAST_POOL, generator, solved))
            assert isinstance(model, nn.Linear)
            found.append(np.append(*self._coefficients(model, *log_odds_of(model, rows))))
        return np.asarray(np.std(found, axis=0, ddof=1))

    # ---------------------------------------------------------------------------------------------------------- parts

    def _checked(self) -> Objective:
        objective = Objective.of(self.objective)
        checks.integer("trials", self.trials, least=1)
        checks.probability("validation_fraction", self.validation_fraction, open_low=True, open_high=True)
        if not isinstance(self.hidden_layer_sizes, (tuple, list)):
            raise TypeError(f"hidden_layer_sizes must be a tuple of widths, got {self.hidden_layer_sizes!r}")
        for width in self.hidden_layer_sizes:
            checks.integer("hidden_layer_sizes", width, least=1)
        return objective

    def _losses(self, queue_size: int) -> list[nn.Module] | None:
        # What fine-tuning tries: None for the objective's own, nothing for cross-entropy alone.
        if isinstance(self.loss, nn.Module):
            return [copy.deepcopy(self.loss)]
        if self.loss == "cross_entropy":
            return []
        if self.loss == "focal":
            return [SigmoidFocalLoss(alpha=None, gamma=2.0)]
        if self.loss is not None and not isinstance(self.loss, (str, Objective)):
            raise TypeError(
                "loss must be None, 'cross_entropy', 'focal', an operating point such as 'pauc@fpr=0-0.5%', or an "
                f"nn.Module, got {type(self.loss).__name__}"
            )
        try:
            ranked = Objective.of(self.objective if self.loss is None else self.loss)
        except ValueError as error:
            raise ValueError(f"loss is 'cross_entropy', 'focal' or an operating point: {error}") from error
        return list(
            ranking_losses(ranked, 1, "network" if self.hidden_layer_sizes else "linear", queue_size=queue_size)
        )

    def _describe(self) -> None:
        if isinstance(self._model, nn.Linear):
            self.coef_, self.intercept_ = self._coefficients(self._model, self._slope, self._offset)

    def _coefficients(self, layer: nn.Linear, slope: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
        coefficients = slope * layer.weight.detach().double().numpy() / self._scaler.scale_
        intercept = slope * layer.bias.item() + offset - float(coefficients[0] @ self._scaler.mean_)
        return self._sign * coefficients, self._sign * np.array([intercept])


def _moments(model: nn.Module, rows: Batch) -> tuple[float, float]:
    scores, weight = scores_of(model, rows), as_numbers(rows.weight)
    mean = np.average(scores, weights=weight)
    return float(mean), float(np.sqrt(np.average((scores - mean) ** 2, weights=weight))) or 1.0
