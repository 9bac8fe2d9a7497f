"""Steps of gradient descent, of which the one that validation prefers is kept."""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

__all__ = [
    "PENALTIES",
    "Batch",
    "Descent",
    "Judgement",
    "Look",
    "arguments",
    "descend",
    "follow_path",
    "keeping_modes",
    "lbfgs",
    "part_of",
    "pools",
    "value_of",
]

# On the relative change of the weights, squared, in units of the loss.
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# Places on a path that may be no better than the one kept before the path is left.
_PATIENCE = 3


class Batch(NamedTuple):
    """What a step is taken on.

    Args:
        inputs: the model's argument; a tuple holds several.
        targets: as the loss takes them.
        weight: of the rows, ``[n]``, or None.
    """

    inputs: Any
    targets: Tensor
    weight: Tensor | None = None


def part_of(whole: Batch, rows: Tensor | slice, weight: Tensor | None = None) -> Batch:
    """Take rows by their places, with their own weights times others ``[rows]``."""

    def taken(tensor: Tensor) -> Tensor:
        if isinstance(rows, Tensor) and rows.dtype == torch.long:  # several times as fast as tensor[rows]
            return tensor.index_select(0, rows.to(tensor.device))
        return tensor[rows]

    own = None if whole.weight is None else taken(whole.weight)
    given = [each for each in (weight, own) if each is not None]
    inputs = pytree.tree_map(taken, whole.inputs)
    return Batch(inputs, taken(whole.targets), math.prod(given[1:], start=given[0]) if given else None)


class Look(NamedTuple):
    """One look at validation.

    Args:
        step: steps taken so far.
        loss: of the last one; NaN before the first.
        validation: what was judged; more is better.
        penalty: of the place on a path; NaN elsewhere.
    """

    step: int
    loss: float
    validation: float
    penalty: float = math.nan


@dataclass(frozen=True)
class Judgement:
    """What validation thinks of a model.

    Args:
        value: more is better, NaN is worst.
        reweigh: computes the same on reweighted validation rows, ``[B]``. It is called where the margin asks for it,
            which is only where the value is better.
    """

    value: float
    reweigh: Callable[[], Tensor]

    @cached_property
    def reweighted(self) -> Tensor:
        """The values on reweighted rows, computed once."""
        return self.reweigh()


class Descent(NamedTuple):
    """Which step was kept, and what was seen.

    Args:
        kept: the look that validation preferred; its parameters are in the model. Step 0 is the start.
        looks: all of them, in order.
    """

    kept: Look
    looks: list[Look]


def descend(
    model: nn.Module,
    loss: nn.Module,
    batches: Iterable[Any],
    judge: Callable[[], Judgement | Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    warm_up: int = 0,
    every: int = 10,
    margin: float = 0.0,
    scores_of: Callable[..., Tensor] | None = None,
) -> Descent:
    """Take AdamW steps with cosine decay, and keep the parameters that are best on validation, the start included.

    Statistics of batch norm stay what they are: a pool is not what they were collected from. A loss that is not finite
    ends the descent; what was kept until then stays.

    Args:
        model: where to start; it is changed.
        loss: called with scores and targets, and with ``sample_weight`` where a batch has weights.
        batches: inputs, targets and perhaps weights, one a step, see :class:`Batch`; gone through again when they end.
        judge: computes what validation thinks of the model (more is better, NaN is worst) and of its B reweightings,
            for the margin: a :class:`Judgement`, or all of it as ``[1 + B]``.
        steps: how many.
        learning_rate: at its peak.
        weight_decay: decoupled.
        warm_up: steps of a linear rise to the peak.
        every: steps between looks at validation; the last step is always looked at.
        margin: by how many standard errors of their paired difference, over the B reweightings, parameters have to be
            better than those kept.
        scores_of: computes the scores of a batch with their graph; the model itself by default.
    """
    optimiser = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate,
        weight_decay=weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(_share_of_rate, steps=steps, warm_up=warm_up))
    score = model if scores_of is None else scores_of
    keeper = _Keeper(model, judge, margin)
    with keeping_modes(model):
        for step, batch in enumerate(itertools.islice(_for_ever(batches), steps), 1):
            _train(model)
            value = value_of(loss, score, batch)
            if not math.isfinite(value.item()):
                break
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
            schedule.step()
            if step % every == 0 or step == steps:
                keeper.look(step, value.item())
    return keeper.descent()


def follow_path(
    model: nn.Module,
    loss: nn.Module,
    whole: Batch,
    judge: Callable[[], Judgement | Tensor],
    *,
    penalties: Sequence[float] = PENALTIES,
    margin: float = 0.5,
    scores_of: Callable[..., Tensor] | None = None,
    first: nn.Module | None = None,
    tolerance: float = 1e-6,
    solver: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    elsewhere: Callable[[], nn.Module | None] | None = None,
) -> Descent:
    r"""Minimise a loss of all rows ever more freely, and keep what is best on validation, the start included.

    .. math:: L(\theta) + \lambda \, \frac{\lVert \theta - \theta_0 \rVert^2}{\lVert \theta_0 \rVert^2}

    over weights :math:`\theta` (biases are free) from the given ones :math:`\theta_0`, for each penalty
    :math:`\lambda` in turn by L-BFGS from where the last one ended. So the path leads from the start to the minimum,
    validation chooses a place on it, and there is no learning rate. A place takes over only if it is better than the
    one kept by ``margin`` standard errors of their paired difference; three in a row that are not end the path.

    Args:
        model: where to start; it is changed.
        loss: as in :func:`descend`.
        whole: all rows.
        judge: as in :func:`descend`.
        penalties: from the largest to the smallest.
        margin: as in :func:`descend`.
        scores_of: as in :func:`descend`.
        first: a model of the same kind, from whose parameters the first search starts; by default the given one's.
        tolerance: change of the loss (or of every parameter) by which a search ends.
        solver: makes the optimiser whose one ``step(closure)`` minimises; L-BFGS by default.
        elsewhere: makes a model near another minimum, or None; called when the path has ended. From there the path is
            walked again, from the other end: freely at first, then under ever larger penalties.

    Returns:
        looks whose ``step`` counts the gradients that were computed until then.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = [(parameter, parameter.detach().clone()) for parameter in trained if parameter.ndim > 1]
    # Weights that are all 0 have no size to be measured by.
    size = sum(given.double().square().sum().item() for _, given in start) or 1.0
    score = model if scores_of is None else scores_of
    keeper, gradients, last = _Keeper(model, judge, margin), 0, math.nan

    def penalised(penalty: float) -> Tensor:
        nonlocal gradients, last
        gradients += 1
        for parameter in trained:
            parameter.grad = None
        value = value_of(loss, score, whole)
        last = value.item()
        moved = torch.stack([(parameter - origin).square().sum() for parameter, origin in start]).sum()
        value = value + penalty * moved / size
        value.backward()
        return value

    def follow(places: Sequence[float]) -> None:
        # Until places in a row are no better than what is kept, or a search fails.
        worse = 0
        for penalty in places:
            optimiser: Any = lbfgs(trained, 30, tolerance) if solver is None else solver(trained)
            optimiser.step(partial(penalised, penalty))
            if not (math.isfinite(last) and all(bool(torch.isfinite(parameter).all()) for parameter in trained)):
                return
            keeper.look(gradients, last, penalty)
            worse = 0 if keeper.kept is keeper.looks[-1] else worse + 1
            if worse == _PATIENCE:
                return

    if first is not None:
        model.load_state_dict(first.state_dict())
    with keeping_modes(model):
        _train(model)
        follow(penalties)
        other = None if elsewhere is None else elsewhere()
        if other is not None:
            model.load_state_dict(other.state_dict())
            follow(penalties[::-1])
    return keeper.descent()


def lbfgs(trained: list[nn.Parameter], steps: int, tolerance: float) -> torch.optim.Optimizer:
    """Make L-BFGS with a line search by Wolfe's strong conditions, for one ``step`` of so many iterations."""
    return torch.optim.LBFGS(
        trained, max_iter=steps, history_size=10, tolerance_change=tolerance, line_search_fn="strong_wolfe"
    )


class _Keeper:
    # The parameters that validation prefers so far.

    def __init__(self, model: nn.Module, judge: Callable[[], Judgement | Tensor], margin: float) -> None:
        self.model, self.judge, self.margin = model, judge, margin
        self.judged = self._judged()
        self.kept = Look(0, math.nan, self.judged.value)
        self.looks, self.state = [self.kept], copy.deepcopy(model.state_dict())

    def look(self, step: int, loss: float, penalty: float = math.nan) -> None:
        found = self._judged()
        self.looks.append(Look(step, loss, found.value, penalty))
        if self._better(found):
            self.kept, self.judged, self.state = self.looks[-1], found, copy.deepcopy(self.model.state_dict())

    def _judged(self) -> Judgement:
        found = self.judge()
        return found if isinstance(found, Judgement) else Judgement(float(found[0]), lambda: found[1:])

    def _better(self, found: Judgement) -> bool:
        if math.isnan(self.kept.validation):
            return True
        if not found.value > self.kept.validation:
            return False
        better = found.reweighted - self.judged.reweighted
        error = float(better.std()) if len(better) > 1 else 0.0
        return found.value - self.kept.validation > self.margin * error

    def descent(self) -> Descent:
        self.model.load_state_dict(self.state)
        return Descent(self.kept, self.looks)


def pools(
    targets: Tensor, size: int | None, generator: torch.Generator
) -> Iterator[tuple[Tensor | slice, Tensor | None]]:
    """Draw rows for a ranking loss for ever: rare classes whole, common ones sampled and weighted to stand for all.

    Args:
        targets: class indices ``[N]``, or labels ``[N, C]``, whose rows are drawn alike.
        size: rows of a pool; None for all.
        generator: draws them.

    Returns:
        places ``[size]`` and weights ``[size]``, 1 on average, again and again; for all rows, a slice and None.
    """
    while size is None or size >= len(targets):
        yield slice(None), None
    while targets.ndim > 1:
        yield torch.randperm(len(targets), generator=generator)[:size], None
    strata = [(targets == value).nonzero()[:, 0] for value in targets.unique()]
    # Common classes are cut to one level, such that all of them together are ``size`` rows.
    taken, left = [0] * len(strata), size
    for done, place in enumerate(sorted(range(len(strata)), key=lambda place: len(strata[place]))):
        taken[place] = max(1, min(len(strata[place]), left // (len(strata) - done)))
        left -= taken[place]
    weight = torch.tensor([len(rows) / many for rows, many in zip(strata, taken, strict=True)])
    weight = weight.repeat_interleave(torch.tensor(taken))
    weight = weight / weight.mean()
    while True:
        drawn = [
            rows[torch.randperm(len(rows), generator=generator)[:many]]
            for rows, many in zip(strata, taken, strict=True)
        ]
        yield torch.cat(drawn), weight


def _train(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@contextlib.contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Put training and eval mode of every part of a model back at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _for_ever(batches: Iterable[Any]) -> Iterator[Batch]:
    while True:
        given = 0
        for batch in batches:
            given += 1
            yield Batch(*batch)
        if not given:
            raise ValueError("there is no batch to step on; give at least one, and an iterable that starts anew")


def value_of(loss: nn.Module, score: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Compute a loss of a batch."""
    scores = score(*arguments(batch.inputs))
    given = {} if batch.weight is None else {"sample_weight": batch.weight.to(scores.device)}
    value: Tensor = loss(scores, batch.targets.to(scores.device), **given)
    return value


def arguments(inputs: Any) -> tuple[Any, ...]:
    """Return what a model is called with."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _share_of_rate(step: int, *, steps: int, warm_up: int) -> float:
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
