"""A pure ranking stage from a trained model, kept only as far as validation prefers it."""

import copy
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rareloss import checks, distributed
from rareloss.losses import RankingLoss
from rareloss.objectives import Objective
from rareloss.training.descent import (
    Batch,
    Descent,
    Judgement,
    Look,
    arguments,
    descend,
    follow_path,
    keeping_modes,
    part_of,
    pools,
)
from rareloss.training.large_batch import large_batch
from rareloss.training.restarts import start_elsewhere
from rareloss.training.whitening import Uncorrelated

__all__ = ["TEMPERATURES", "FineTuned", "finetune", "ranking_losses", "repeat_finetune"]

# Of each loss, in standard deviations of the scores. A network ranks finely already, and follows a wider one.
TEMPERATURES = {
    "smooth_ap": {"linear": (0.03,), "network": (0.1, 0.3)},
    "recall": {"linear": (0.1,), "network": (0.03, 0.1)},
    "pauc": {"linear": (0.3,), "network": (0.3, 1.0)},
}
_ROWS_AT_ONCE = 65_536
# Of validation rows, and by how many standard errors over them something has to be better to be kept.
_RESAMPLES = 25
# Numbers that are worked on at once there.
_DRAWN_AT_ONCE = 2**18
_MARGIN = 0.5
_LEARNING_RATES = {"linear": 3e-2, "network": 3e-4}


@dataclass(frozen=True)
class FineTuned:
    """What a stage found.

    Args:
        model: the best on validation; a copy, the given model is as it was.
        objective: what validation judged by.
        before: the objective of the model as it was given, on validation.
        kept: the look at ``model``.
        loss: the loss that led there; None if nothing was better.
        looks: of each loss in turn, what validation saw.
    """

    model: nn.Module
    objective: Objective
    before: float
    kept: Look
    loss: nn.Module | None
    looks: list[list[Look]]

    @property
    def after(self) -> float:
        """The objective of ``model`` on validation."""
        return self.kept.validation

    @property
    def step(self) -> int:
        """After how many steps (of L-BFGS: gradients) it was kept; 0 if nothing was better than the start."""
        return self.kept.step

    @property
    def changed(self) -> bool:
        """Whether ``model`` is another than the given one."""
        return self.step > 0

    def __str__(self) -> str:
        name = self.objective.name
        if self.loss is None:
            return f"nothing changed: {name} on validation stays {self.before:.4f}, no step was better"
        temperature = getattr(self.loss, "temperature", None)
        led = type(self.loss).__name__ + ("" if temperature is None else f", temperature {temperature:g}")
        return f"{name} on validation from {self.before:.4f} to {self.after:.4f} ({led}, step {self.step})"


def finetune(
    model: nn.Module,
    objective: Objective | str,
    train: Any,
    validation: Any,
    *,
    losses: Sequence[nn.Module] | None = None,
    optimizer: str | Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    steps: int = 200,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    pool_size: int | None = None,
    chunk_size: int | None = None,
    every: int = 10,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> FineTuned:
    r"""Rank from where cross-entropy has led to, and return what is best on validation, the start included.

    From the given parameters on, nothing but the ranking loss is minimised: a blend with cross-entropy gives the gain
    away. Validation judges on the way by the objective itself, and the best parameters of all are returned. So the
    stage never ends below its start on validation, and says when it changed nothing. It pays where the model cannot fit
    everything: scorecards, small networks.

    * A linear model over all rows is solved by L-BFGS along a path of penalties on how far its scores move from where
      they were, see :func:`~rareloss.training.descent.follow_path`; validation chooses one of six places on it. A
      ranking loss is not convex: for one output the path is walked back from another minimum too, where
      :func:`~rareloss.training.restarts.start_elsewhere` finds a lower one.
    * Everything else takes ``steps`` AdamW steps with cosine decay, and validation looks every ``every`` steps.

    What is chosen has to be better than what was kept before by half a standard error of their difference (of a linear
    model: by :math:`\tfrac12 \sqrt{10 w / P}` standard errors where the rarest class has fewer than ten rows P for each
    of its w weights), over reweighted validation rows.

    What a step ranks:

    * ``train`` and ``validation`` as ``(inputs, targets)`` or ``(inputs, targets, weight)``: a step ranks all rows, in
      the memory of ``chunk_size`` rows of the model (see :func:`rareloss.large_batch`), or a pool of ``pool_size``
      rows: rare classes whole, common ones sampled and weighted to stand for all.
    * ``train`` as an iterable of such batches, for example a ``DataLoader``: a step ranks a batch and the remembered
      rows of earlier ones.

    Dropout is as in training; statistics of batch norm are kept. One process: on several ranks, write the loop.

    Args:
        model: any trained scorer; logits ``[n]`` or ``[n, 1]`` for binary, else ``[n, C]``. It is not changed.
        objective: an operating point such as ``"ap"`` or ``"recall@top=0.5%"``.
        train: what to learn from. Inputs are a tensor, or a tuple of tensors for a model of several arguments.
        validation: what chooses; rows that ``train`` does not hold.
        losses: what to try in turn; by default the objective's own at one or two temperatures, see
            :func:`ranking_losses`.
        optimizer: ``"lbfgs"``, which needs all rows in every step, or ``"adamw"``; by default the first for a model of
            one weight matrix where ``train`` is whole and ``pool_size`` None. Or what makes an optimiser for each place
            of the path from the parameters, which its one ``step(closure)`` is to minimise over, for example under
            bounds.
        steps: of AdamW, for each loss.
        learning_rate: of AdamW at its peak; by default 3e-2 for a model of one weight matrix (for inputs of about unit
            spread), 3e-4 for a network.
        weight_decay: of AdamW, decoupled.
        pool_size: rows of a step; None for all.
        chunk_size: rows that the model scores at once; by default all for a model of one weight matrix, whose scores
            are all that it keeps, and 65,536 for a network.
        every: steps between looks at validation.
        tolerance: of L-BFGS, the change of the loss by which a place on the path is reached.
        seed: draws the pools.

    Returns:
        the model, and what validation saw.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an argument out of range; rows, targets or weights that do not fit; validation on which the
            objective is not defined, or the given model's scores are not finite; more than one rank.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(4_000, 2, generator=generator)
        >>> y = (x[:, 0] + 2 * (x[:, 1] > 1)) > 2.5  # no straight line finds these
        >>> model = nn.Linear(2, 1)
        >>> fit = torch.optim.LBFGS(model.parameters(), max_iter=50)
        >>> def cross_entropy():
        ...     fit.zero_grad()
        ...     value = nn.functional.binary_cross_entropy_with_logits(model(x[:2_000, :])[:, 0], y[:2_000].float())
        ...     value.backward()
        ...     return value
        >>> _ = fit.step(cross_entropy)
        >>> stage = finetune(model, "ap", (x[:2_000], y[:2_000]), (x[2_000:], y[2_000:]), steps=50)
        >>> stage.after >= stage.before
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}; wrap a function in a module")
    objective = Objective.of(objective)
    if distributed.world_size(None) > 1:
        raise ValueError("finetune runs in one process, got several ranks; train with objective.loss(...) there")
    checks.integer("steps", steps, least=1)
    checks.integer("every", every, least=1)
    if chunk_size is not None:
        checks.integer("chunk_size", chunk_size, least=1)
    checks.non_negative("weight_decay", weight_decay)
    checks.non_negative("tolerance", tolerance)
    held_out = _batch("validation", validation)
    whole = _batch("train", train) if _is_batch(train) else None
    if whole is None and (isinstance(train, Tensor) or not isinstance(train, Iterable) or isinstance(train, Iterator)):
        raise TypeError(
            "train must be (inputs, targets) or (inputs, targets, weight), or an iterable of such batches that starts "
            f"anew, got {type(train).__name__}"
        )
    if pool_size is not None:
        checks.integer("pool_size", pool_size, least=2)
        if whole is None:
            raise ValueError("pool_size draws rows from tensors, got an iterable of batches; leave it out")
    kind = _kind(model)
    chunk_size = chunk_size or (_ROWS_AT_ONCE if kind == "network" else sys.maxsize)
    everything = whole is not None and (pool_size is None or pool_size >= len(whole.targets))
    if optimizer is None:
        optimizer = "lbfgs" if kind == "linear" and everything else "adamw"
    solver = None if isinstance(optimizer, str) or not callable(optimizer) else optimizer
    if solver is None:
        checks.choice("optimizer", cast(str, optimizer), ("lbfgs", "adamw"))
    if optimizer != "adamw" and not everything:
        raise ValueError(
            f"optimizer={optimizer!r} needs all rows in every step; give train as tensors, without pool_size"
        )
    rate = _LEARNING_RATES[kind] if learning_rate is None else learning_rate
    checks.positive_number("learning_rate", rate)

    start = _scores(model, held_out.inputs, chunk_size)
    drawn = cache(partial(_weights_drawn, len(held_out.targets)))
    before = _judged(start, held_out, objective, drawn).value
    if not math.isfinite(before):
        raise ValueError(
            f"{objective.name} of the given model on validation is {before}; validation needs positives and negatives, "
            "and the scores must be finite"
        )
    if losses is not None and not losses:
        raise ValueError("losses is empty; name at least one, or leave it out for those of the objective")
    if losses is None:
        outputs = 1 if start.ndim == 1 else start.shape[1]
        losses = ranking_losses(objective, outputs, kind, queue_size=16_384 if whole is None else 0)
    best = FineTuned(copy.deepcopy(model), objective, before, Look(0, math.nan, before), None, [])
    for loss in losses:
        tried = copy.deepcopy(model)
        scores_of = _in_chunks(tried, chunk_size)
        judge = partial(_on_validation, tried, held_out, objective, chunk_size, drawn)
        if optimizer != "adamw" and whole is not None:
            found = _solve(
                tried, loss, whole, judge, scores_of, solver=solver, tolerance=tolerance, objective=objective
            )
        else:
            found = descend(
                tried,
                loss,
                train if whole is None else _Pools(whole, pool_size, seed),
                judge,
                steps=steps,
                learning_rate=rate,
                weight_decay=weight_decay,
                every=every,
                margin=_MARGIN,
                scores_of=scores_of,
            )
        best.looks.append(found.looks)
        if found.kept.validation > best.after:
            best = FineTuned(tried, objective, before, found.kept, loss, best.looks)
    return best


def ranking_losses(objective: Objective, num_classes: int, kind: str, **options: Any) -> list[RankingLoss]:
    """Make the losses that a stage tries in turn: the objective's own, for a network at two temperatures.

    Args:
        objective: what is to be optimised.
        num_classes: 1 for binary, else the number of classes or labels.
        kind: ``"linear"`` for a model of one weight matrix, or ``"network"``.
        options: as in :class:`~rareloss.losses.ranking.RankingLoss`.
    """
    temperatures = TEMPERATURES[objective.loss_name][kind]
    return [objective.loss(num_classes, temperature=temperature, **options) for temperature in temperatures]


def repeat_finetune(stage: FineTuned, model: nn.Module, train: Any, *, tolerance: float = 1e-6) -> nn.Module:
    """Go where a stage of L-BFGS went, on other rows: to the same place on the path, from another start.

    For a refit on all rows after validation has chosen, and for a bootstrap. There is no validation.

    Args:
        stage: what was chosen.
        model: where the path starts, of the same kind as ``stage.model``; it is not changed.
        train: ``(inputs, targets)`` or ``(inputs, targets, weight)``.
        tolerance: as in :func:`finetune`.

    Returns:
        the model at that place; a copy of ``model`` where the stage changed nothing or no finite place was found.
    """
    moved = copy.deepcopy(model)
    if stage.loss is not None:
        count = itertools.count()
        _solve(
            moved,
            stage.loss,
            _batch("train", train),
            lambda: torch.tensor([float(next(count))]),  # the place is taken, whatever it is
            _in_chunks(moved, sys.maxsize),
            first=stage.model,
            penalties=[stage.kept.penalty],
            tolerance=tolerance,
        )
    return moved


class _Pools:
    # The rows of each step, drawn anew from the same seed whenever they are gone through.

    def __init__(self, whole: Batch, size: int | None, seed: int) -> None:
        self.whole, self.size, self.seed = whole, size, seed

    def __iter__(self) -> Iterator[Batch]:
        for rows, weight in pools(self.whole.targets, self.size, torch.Generator().manual_seed(self.seed)):
            yield part_of(self.whole, rows, weight)


def _is_batch(given: Any) -> bool:
    return isinstance(given, (tuple, list)) and len(given) in (2, 3) and isinstance(given[1], Tensor)


def _batch(name: str, given: Any) -> Batch:
    # What came, as one batch; the batches of an iterable end to end.
    if not _is_batch(given):
        if isinstance(given, (Tensor, str, bytes)) or not isinstance(given, Iterable):
            raise TypeError(
                f"{name} must be (inputs, targets) or (inputs, targets, weight), or an iterable of such batches, got "
                f"{type(given).__name__}"
            )
        parts = [_batch(f"a batch of {name}", part) for part in given]
        if not parts:
            raise ValueError(f"{name} holds no batch")
        if len({part.weight is None for part in parts}) > 1:
            raise ValueError(f"some batches of {name} have weights and some have none; give all of them weights")
        inputs = pytree.tree_map(lambda *tensors: torch.cat(tensors), *(part.inputs for part in parts))
        weights = [part.weight for part in parts if part.weight is not None]
        return Batch(inputs, torch.cat([part.targets for part in parts]), torch.cat(weights) if weights else None)
    batch = Batch(*given)
    rows = {len(tensor) for tensor in pytree.tree_leaves(tuple(batch)) if isinstance(tensor, Tensor) and tensor.ndim}
    if rows == {0}:
        raise ValueError(f"{name} holds no row")
    if len(rows) != 1:
        raise ValueError(f"inputs, targets and weight of {name} must have the same rows, got {sorted(rows)}")
    return batch


def _kind(model: nn.Module) -> str:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that requires a gradient; unfreeze what is to be trained")
    return "linear" if sum(parameter.ndim > 1 for parameter in trained) <= 1 else "network"


def _in_chunks(model: nn.Module, chunk_size: int) -> Callable[..., Tensor]:
    chunked = large_batch(model, chunk_size=chunk_size)
    device = next(model.parameters()).device

    def scores_of(*inputs: Any) -> Tensor:
        if len(inputs[0]) > chunk_size:
            scores: Tensor = chunked(*inputs)
        else:
            scores = model(*pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs))
        return scores

    return scores_of


def _solve(
    model: nn.Module,
    loss: nn.Module,
    whole: Batch,
    judge: Callable[[], Judgement | Tensor],
    scores_of: Callable[..., Tensor],
    first: nn.Module | None = None,
    objective: Objective | None = None,
    **options: Any,
) -> Descent:
    options["margin"] = _margin(model, whole.targets)
    # A linear layer is solved in coordinates in which its inputs are uncorrelated: splines and dummies are far from
    # it, and the penalty is then on how far the scores move.
    if not (isinstance(model, nn.Linear) and isinstance(whole.inputs, Tensor) and whole.inputs.ndim == 2):
        return follow_path(model, loss, whole, judge, scores_of=scores_of, first=first, **options)
    turned = Uncorrelated(whole.inputs.to(model.weight.device), whole.weight)
    solved = turned.into(model)
    origin, given = solved.weight.detach().clone(), copy.deepcopy(model.state_dict())

    def judged() -> Judgement | Tensor:
        if not torch.equal(solved.weight, origin):  # the start is judged as it was given, to the last bit
            turned.back(solved, model)
        return judge()

    moved = whole._replace(inputs=turned.inputs.to(origin.dtype))
    if isinstance(first, nn.Linear):
        options["first"] = turned.into(first)
    elif objective is not None and model.out_features == 1:
        options["elsewhere"] = partial(start_elsewhere, turned.into(model), copy.deepcopy(loss), moved, objective)
    found = follow_path(solved, loss, moved, judged, **options)
    turned.back(solved, model)
    if not found.kept.step:
        model.load_state_dict(given)
    return found


def _margin(model: nn.Module, targets: Tensor) -> float:
    # A ranking learns from the positives. With fewer than ten of them for each weight (the rule of thumb for logistic
    # regression: Peduzzi et al., J. Clin. Epidemiol. 1996) chance is stronger, on validation too.
    weights = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1
    )
    if targets.ndim > 1 and targets.shape[-1] > 1:
        rarest, outputs = int((targets == 1).sum(0).amin()), targets.shape[-1]
    else:
        counts = targets.long().reshape(-1).clamp(min=0).bincount(minlength=2)
        rarest, outputs = int(counts[counts > 0].amin()), 1 if len(counts) == 2 else len(counts)
    return _MARGIN * math.sqrt(max(1.0, 10 * weights / outputs / max(rarest, 1)))


def _weights_drawn(rows: int) -> Tensor:
    # From an exponential distribution, [B, n]: the Bayesian bootstrap.
    seeds = (torch.Generator().manual_seed(seed) for seed in range(1, _RESAMPLES + 1))
    return torch.stack([torch.ones(rows).exponential_(generator=seed) for seed in seeds])


def _on_validation(
    model: nn.Module, held_out: Batch, objective: Objective, chunk_size: int, drawn: Callable[[], Tensor]
) -> Judgement:
    return _judged(_scores(model, held_out.inputs, chunk_size), held_out, objective, drawn)


def _judged(scores: Tensor, held_out: Batch, objective: Objective, drawn: Callable[[], Tensor]) -> Judgement:
    targets = held_out.targets.to(scores.device)
    weight = torch.ones(len(targets)) if held_out.weight is None else held_out.weight
    weight = weight.to(scores.device)

    def values(drawn: Tensor) -> Tensor:
        # Under each of the weights ``drawn[n, B]``; those of one column of scores at once, which is then sorted once.
        if scores.ndim == 1 or scores.shape[1] == 1:
            column, labels = (one.reshape(-1, 1).expand_as(drawn) for one in (scores, targets))
            return objective.metric(column, labels, weight.reshape(-1, 1) * drawn).value.reshape(-1)
        shape = (-1, *[1] * (weight.ndim - 1))
        found = [objective.metric(scores, targets, weight * one.reshape(shape)) for one in drawn.unbind(1)]
        return torch.stack([per_class[defined].mean() for per_class, defined in found])

    def reweighted() -> Tensor:
        together = max(1, _DRAWN_AT_ONCE // len(targets))
        return torch.cat([values(part.mT.to(scores.device)) for part in drawn().split(together)])

    return Judgement(float(values(torch.ones(len(targets), 1, device=scores.device))), reweighted)


@torch.no_grad()
def _scores(model: nn.Module, inputs: Any, chunk_size: int) -> Tensor:
    with keeping_modes(model):
        model.eval()
        scores: Tensor = _in_chunks(model, chunk_size)(*arguments(inputs))
    return scores
