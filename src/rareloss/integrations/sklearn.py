"""A ranking model with the face of a scikit-learn estimator.

Needs the extra ``study``: ``pip install "rareloss[study]"``.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

try:
    import sklearn  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error.name} is missing, which RareClassifier needs: pip install "rareloss[study]"', name=error.name
    ) from error

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from rareloss import Objective, SigmoidFocalLoss, checks, rank_stage
from rareloss.integrations.search import between, cube, network_draws
from rareloss.training.descent import PENALTIES, Batch, descend, follow_path

__all__ = ["RareClassifier", "logistic_draws", "solve_logistic"]

# The Hessian of so many weights is solved whole; beyond this, by conjugate gradients, which is faster and as exact.
MOST_UNKNOWNS = 1000
NETWORK = {"steps": 400, "batch": 1024, "warm_up": 40, "every": 20}


class RareClassifier(ClassifierMixin, BaseEstimator):
    r"""Rank a rare class by a linear model, or a small network, trained for its operating point.

    Where a model cannot fit everything, the loss decides where it is right. Four steps:

    1. Rows are split into train and validation, which makes every choice below by the objective itself.
    2. Cross-entropy: logistic regression on standardised inputs, solved to convergence for each of ``trials`` draws of
       penalty and class weight.
    3. :func:`rareloss.rank_stage` from there on all train rows. Validation keeps it only as far as it helps.
    4. A ranking has no scale, so scores are mapped to log-odds by a logistic regression of the target on the one score.

    Args:
        objective: an operating point such as ``"ap"`` or ``"recall@top=0.5%"``.
        hidden_layer_sizes: of a network with ReLU; () for a linear model.
        trials: draws of hyper-parameters for cross-entropy.
        validation_fraction: share of the rows that choose.
        random_state: of the split, the draws and the network; an integer, a generator, or None.

    Attributes:
        classes_: the two classes; the second one is ranked to the top.
        coef_: ``[1, d]``, log-odds per unit of each input; of a linear model.
        intercept_: ``[1]``.
        threshold_: the log-odds above which :meth:`predict` says the second class: the objective's on validation, 0 for
            average precision.
        stage_: what the ranking stage found, see :class:`rareloss.RankStage`.
        chosen_: the hyper-parameters of cross-entropy that validation chose.
        n_features_in_: d.

    Example:
        >>> from sklearn.datasets import make_classification
        >>> x, y = make_classification(4_000, weights=[0.97], class_sep=0.8, random_state=0)
        >>> model = RareClassifier("ap", random_state=0).fit(x, y)
        >>> model.coef_.shape, bool(model.stage_.after >= model.stage_.before)
        ((1, 20), True)
    """

    def __init__(
        self,
        objective: str | Objective = "ap",
        hidden_layer_sizes: Sequence[int] = (),
        *,
        trials: int = 8,
        validation_fraction: float = 0.25,
        random_state: Any = None,
    ) -> None:
        self.objective = objective
        self.hidden_layer_sizes = hidden_layer_sizes
        self.trials = trials
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "RareClassifier":
        """Fit the model.

        Args:
            X: ``[n, d]``, numbers.
            y: ``[n]``, two classes.
            sample_weight: ``[n]``, not negative; 1 by default.

        Raises:
            ValueError: an argument out of range, more or fewer than two classes, or too few rows of one.
        """
        objective = Objective.of(self.objective)
        checks.integer("trials", self.trials, least=1)
        checks.probability("validation_fraction", self.validation_fraction, open_low=True, open_high=True)
        if not isinstance(self.hidden_layer_sizes, (tuple, list)):
            raise TypeError(f"hidden_layer_sizes must be a tuple of widths, got {self.hidden_layer_sizes!r}")
        for width in self.hidden_layer_sizes:
            checks.integer("hidden_layer_sizes", width, least=1)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        if weight is not None:  # a row of weight 0 is absent
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        self.classes_, target = np.unique(y, return_inverse=True)
        if len(self.classes_) != 2:
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {type_of_target(y)}; "
                f"got {len(self.classes_)} class(es) among rows of some weight"
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = np.arange(len(target))
        train, held = train_test_split(rows, test_size=self.validation_fraction, stratify=target, random_state=seed)
        self._scaler = StandardScaler().fit(X[train], sample_weight=None if weight is None else weight[train])
        parts = [_batch(self._scaler.transform(X[part]), target[part], weight, part) for part in (train, held)]

        def judge(model: nn.Module) -> float:
            with torch.no_grad():
                return float(objective.metric(model(parts[1].inputs), *parts[1][1:]).value)

        tried = self._linear(parts[0], seed) if not self.hidden_layer_sizes else self._networks(parts[0], judge, seed)
        start, self.chosen_ = max(tried, key=lambda found: judge(found[0]))
        self.stage_ = rank_stage(start, objective, *parts, seed=seed)
        self._slope, self._offset = _log_odds(self.stage_.model, parts[0])
        if isinstance(self.stage_.model, nn.Linear):
            self.coef_, self.intercept_ = self._coefficients(self.stage_.model, self._slope, self._offset)
        scores = torch.from_numpy(self.decision_function(X[held]))
        self.threshold_ = 0.0 if objective.kind == "ap" else float(objective.threshold(scores, *parts[1][1:]))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute the log-odds of the second class, ``[n]``."""
        check_is_fitted(self, "stage_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        if not self.hidden_layer_sizes:
            return np.asarray(X @ self.coef_[0] + self.intercept_[0])
        with torch.no_grad():
            scores = self.stage_.model(_inputs(self._scaler.transform(X)))[:, 0]
        return np.asarray(self._slope * scores.double().numpy() + self._offset)

    def predict(self, X: Any) -> np.ndarray:
        """Say the second class above ``threshold_``."""
        check_is_fitted(self, "stage_")
        return np.asarray(self.classes_[(self.decision_function(X) > self.threshold_).astype(int)])

    def standard_errors(
        self, X: Any, y: Any, sample_weight: Any = None, *, resamples: int = 50, random_state: Any = None
    ) -> np.ndarray:
        r"""Estimate the standard errors of ``coef_`` and ``intercept_`` by the Bayesian bootstrap.

        Each resample gives all rows weights from an exponential distribution, so that no positive is lost, and repeats
        the fit with the penalties that validation chose: cross-entropy, the path, the mapping to log-odds.

        Args:
            X: the rows that the model was fitted on.
            y: their targets.
            sample_weight: as in :meth:`fit`.
            resamples: how many.
            random_state: of the weights.

        Returns:
            ``[d + 1]``, the intercept's last.

        Raises:
            ValueError: a network, which has no coefficients; or as in :meth:`fit`.

        Reference:
            Rubin, "The Bayesian Bootstrap", Annals of Statistics 1981.
        """
        check_is_fitted(self, "stage_")
        if self.hidden_layer_sizes:
            raise ValueError("a network has no coefficients; fit with hidden_layer_sizes=()")
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], reset=False)
        target = (y == self.classes_[1]).astype(int)
        own = np.ones(len(target)) if sample_weight is None else _check_sample_weight(sample_weight, X)
        random = check_random_state(random_state)
        x = self._scaler.transform(X)
        found = []
        for _ in range(resamples):
            rows = _batch(x, target, own * random.exponential(size=len(target)), np.arange(len(target)))
            model, _ = self._solve(rows, self.chosen_)
            if self.stage_.loss is not None:
                looks = next(one for one in self.stage_.looks if any(look.step == self.stage_.step for look in one))
                many = [look.step for look in looks].index(self.stage_.step)
                places = iter(range(many + 1))  # judged by their order, so that the last place on the path is kept
                follow_path(
                    model,
                    self.stage_.loss,
                    rows,
                    partial(_next_of, places),
                    penalties=PENALTIES[:many],
                )
            found.append(np.append(*self._coefficients(model, *_log_odds(model, rows))))
        return np.asarray(np.std(found, axis=0, ddof=1))

    def _solve(self, train: Batch, draw: Mapping[str, float]) -> tuple[nn.Linear, bool]:
        classes = {0: 1.0, 1: draw["class_weight"]}
        return solve_logistic(train.inputs, train.targets.numpy(), classes, draw["C"], train.weight)

    def _coefficients(self, layer: nn.Linear, slope: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
        coefficients = slope * layer.weight.detach().double().numpy() / self._scaler.scale_
        intercept = slope * layer.bias.item() + offset - float(coefficients[0] @ self._scaler.mean_)
        return coefficients, np.array([intercept])

    def _linear(self, train: Batch, seed: int) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
        for draw in logistic_draws(self.trials, seed):
            model, converged = self._solve(train, draw)
            yield model, {**draw, "converged": converged}

    def _networks(
        self, train: Batch, judge: Callable[[nn.Module], float], seed: int
    ) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
        for draw in network_draws(self.trials, seed):
            model = _network([train.inputs.shape[1], *self.hidden_layer_sizes], train.targets, seed)
            descend(
                model,
                SigmoidFocalLoss(alpha=None, gamma=0.0),
                _shuffled(train, NETWORK["batch"], torch.Generator().manual_seed(seed)),
                lambda model=model: torch.tensor([judge(model)]),  # type: ignore[misc]
                steps=NETWORK["steps"],
                warm_up=NETWORK["warm_up"],
                every=NETWORK["every"],
                **draw,  # type: ignore[arg-type]
            )
            yield model, draw

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


def logistic_draws(trials: int, seed: int) -> list[dict[str, float]]:
    """Draw penalties (C) and class weights for logistic regression: the usual setting, then random ones."""
    drawn = cube(trials - 1, 2, seed)
    return [{"C": 1.0, "class_weight": 1.0}] + [
        {"C": between(penalty, 0.1, 1000), "class_weight": between(weight, 0.3, 100)} for penalty, weight in drawn
    ]


def solve_logistic(
    x: Tensor,
    target: np.ndarray,
    class_weight: Mapping[int, float],
    C: float,
    weight: Tensor | None = None,
) -> tuple[nn.Linear, bool]:
    """Solve logistic regression to convergence.

    Args:
        x: inputs ``[n, d]``.
        target: class indices ``[n]``.
        class_weight: by class.
        C: inverse penalty.
        weight: of the rows.

    Returns:
        the model, with one output for two classes, else one a class; and whether the solver converged.
    """
    classes = len(class_weight)
    outputs = 1 if classes == 2 else classes
    solver = LogisticRegression(
        C=C,
        class_weight=dict(class_weight),
        solver="newton-cholesky" if (x.shape[1] + 1) * outputs <= MOST_UNKNOWNS else "newton-cg",
        tol=1e-6,
        max_iter=1000,
    )
    with warnings.catch_warnings(record=True) as caught:
        # An ill-conditioned Hessian makes scikit-learn go on with lbfgs, which is what is wanted.
        warnings.simplefilter("always")
        solver.fit(x.double().numpy(), target, None if weight is None else weight.double().numpy())
        converged = not any(issubclass(each.category, ConvergenceWarning) for each in caught)
    model = nn.Linear(x.shape[1], outputs)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(solver.coef_))
        model.bias.copy_(torch.from_numpy(solver.intercept_))
    return model, converged


def _network(sizes: Sequence[int], target: Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        last = nn.Linear(sizes[-1], 1)
    nn.init.constant_(last.bias, float(target.double().mean().logit()))  # every row starts at the base rate
    return nn.Sequential(*layers, last)


def _log_odds(model: nn.Module, train: Batch) -> tuple[float, float]:
    # Slope and offset that make scores log-odds on these rows.
    with torch.no_grad():
        scores = model(train.inputs).double().numpy()
    spread = float(scores.std()) or 1.0
    fitted = LogisticRegression(C=np.inf, tol=1e-8, solver="newton-cholesky").fit(
        scores / spread, train.targets.numpy(), None if train.weight is None else train.weight.numpy()
    )
    # A score that ranks the wrong way round would be turned; it is flat at least.
    return max(float(fitted.coef_[0, 0]) / spread, 1e-12), float(fitted.intercept_[0])


def _next_of(places: Iterator[int]) -> Tensor:
    return torch.tensor([float(next(places))])


def _inputs(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _batch(x: np.ndarray, target: np.ndarray, weight: np.ndarray | None, rows: np.ndarray) -> Batch:
    own = None if weight is None else torch.from_numpy(weight[rows].astype(np.float32))
    return Batch(_inputs(x), torch.from_numpy(target), own)


def _shuffled(whole: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    size = max(1, min(size, len(whole.targets) // 8))
    while True:
        for rows in torch.randperm(len(whole.targets), generator=generator).split(size):
            yield Batch(whole.inputs[rows], whole.targets[rows], None if whole.weight is None else whole.weight[rows])
