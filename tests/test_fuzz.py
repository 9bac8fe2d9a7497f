"""Hostile inputs by the thousand: an error in words or a number that is right, and a state that is valid after each.

The default run feeds some two thousand inputs; ``pytest -m fuzz`` feeds a hundred thousand and more.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from torch import Tensor, nn

from hostile import FAULTS, FLOATS, SCORES, WEIGHTS, Batch, batches, draw_scores, draw_weights, lead_lives
from rareloss import (
    Objective,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SmoothAPLoss,
    distributed,
    functional,
    metrics,
)
from rareloss.losses import encode

pytestmark = pytest.mark.filterwarnings("ignore:.*nothing is learned:UserWarning")


class Row(NamedTuple):
    """One remembered row, by class."""

    scores: list[float]
    positive: list[bool]
    weight: list[float]
    iid: bool

    def matches(self, other: "Row") -> bool:
        present = [weight > 0 for weight in self.weight]
        close = all(
            math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4)
            for a, b, there in zip(self.scores, other.scores, present, strict=True)
            if there
        )
        return close and self[1:] == other[1:]


class Model:
    """A queue in plain Python: what a loss has to remember, and which classes are defined."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self.rows: deque[Row] = deque(maxlen=loss.queue.size)

    def live(self, batch: Batch) -> tuple[list[Row], bool]:
        """Return the rows of a batch, and whether every present logit is finite."""
        classes = self.loss.num_classes
        z = batch.logits.detach().reshape(-1, classes)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        indices = classes > 1 and batch.targets.shape == batch.logits.shape[:-1]
        y = batch.targets.long().reshape(-1, 1 if indices else classes)
        weight = torch.ones_like(z)
        if "sample_weight" in batch.options:
            given = batch.options["sample_weight"].to(z.dtype)
            weight = given.reshape(len(z), given.numel() // max(1, len(z)) or 1).expand(z.shape)
        weight = torch.where((y != self.loss.ignore_index) & (weight > 1e-32), weight, 0.0)
        present = (weight > 0).any(1, keepdim=True) if indices else weight > 0
        z = torch.where(present, z, 0.0)
        finite = bool(torch.isfinite(z).all())
        scores = functional.log_odds(z) if indices else z
        positive = (y == torch.arange(classes) if indices else y == 1) & (y != self.loss.ignore_index)
        iid = batch.options.get("iid_mask", torch.ones(len(z), dtype=torch.bool)).reshape(-1)
        columns = (x.tolist() for x in (scores.double(), positive.expand(z.shape), weight.double(), iid))
        return [Row(*row) for row in zip(*columns, strict=True)], finite

    def remember(self, rows: list[Row]) -> None:
        for row in rows:
            there = [score for score, weight in zip(row.scores, row.weight, strict=True) if weight > 0]
            if there and all(abs(score) <= torch.finfo(torch.float32).max for score in there):
                self.rows.append(row._replace(weight=torch.tensor(row.weight).tolist()))

    def defined(self, rows: list[Row]) -> list[bool]:
        among_iid = self.loss.has_threshold

        def has(c: int, positive: bool) -> bool:
            return any(
                row.weight[c] > 0 and row.positive[c] == positive and (positive or row.iid or not among_iid)
                for row in rows
            )

        return [has(c, True) and has(c, False) for c in range(self.loss.num_classes)]


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_bits(module: nn.Module, before: dict[str, Tensor]) -> bool:
    after = module.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], x) for name, x in before.items())


@contextmanager
def beside(others: Tensor | None) -> Iterator[None]:
    """Make a loss believe in a second rank with these rows; in one that refuses its input where they are None."""

    def agree(rows: Tensor | None, group: Any = None, error: Exception | None = None, settings: str = "") -> list[int]:
        if error is not None:
            raise error
        if others is None:
            raise ValueError("rank 1 refused its input, so no rank goes on; see the error there")
        assert rows is not None
        return [len(rows), len(others)]

    def gather_rows(x: Tensor, group: Any = None, *, sizes: Any = None) -> Tensor:
        assert others is not None
        return torch.cat([x, others.to(x.dtype)])

    with (
        mock.patch.object(distributed, "world_size", return_value=2),
        mock.patch.object(distributed, "agree", agree),
        mock.patch.object(distributed, "gather_rows", gather_rows),
    ):
        yield


MAKERS: dict[str, Callable[..., Any]] = {
    "ap": SmoothAPLoss,
    "recall": lambda num_classes, **options: RecallAtQuantileLoss(num_classes, 0.2, **options),
    "few": lambda num_classes, **options: RecallAtQuantileLoss(num_classes, 1e-9, **options),
    "negatives": lambda num_classes, **options: RecallAtQuantileLoss(num_classes, 0.3, "negatives", **options),
    "pauc": lambda num_classes, **options: PAUCAtBudgetLoss(num_classes, 0.1, 0.6, **options),
    "budget": lambda num_classes, **options: PAUCAtBudgetLoss(num_classes, 0.0, 1e-6, **options),
}


class LifeOfALoss(RuleBasedStateMachine):
    """One loss, from its making, through whatever a training loop may do to it."""

    fed = 0

    @initialize(
        name=st.sampled_from(sorted(MAKERS)),
        classes=st.sampled_from([1, 1, 2, 3]),
        queue_size=st.sampled_from([0, 1, 5, 12, 40]),
        temperature=st.sampled_from([1e-3, 0.05, 1.0, 1e3]),
        unit=st.sampled_from(["std", "logit"]),
        reduction=st.sampled_from(["mean", "sum", "none"]),
        ignore_index=st.sampled_from([-100, -1, 255, 0, 1]),
        in_eval=st.booleans(),
    )
    def make(self, name: str, classes: int, queue_size: int, ignore_index: int, in_eval: bool, **options: Any) -> None:
        unit, temperature, reduction = (options[key] for key in ("unit", "temperature", "reduction"))
        kept = {
            "temperature": temperature,
            "temperature_unit": unit,
            "reduction": reduction,
            "ignore_index": ignore_index,
            "queue_in_eval": in_eval,
        }
        self.made = lambda **other: MAKERS[name](**{"num_classes": classes, "queue_size": queue_size, **kept, **other})
        self.loss = self.made()
        self.model = Model(self.loss)
        self.saved: list[tuple[dict[str, Tensor], list[Row]]] = []

    def batch(self, data: st.DataObject) -> Batch:
        type(self).fed += 1
        takes_iid = self.loss.has_threshold
        return data.draw(batches(self.loss.num_classes, self.loss.ignore_index, takes_iid=takes_iid))

    def check(self, batch: Batch, value: Tensor, rows: list[Row], finite: bool) -> None:
        """Compare what a call returned with what the rows, live and remembered, allow."""
        classes, training = self.loss.num_classes, self.loss.training
        remembered = list(self.model.rows) if training or self.loss.queue_in_eval else []
        defined = self.model.defined([*rows, *remembered])
        assert value.dtype == torch.promote_types(batch.logits.dtype, torch.float32)
        assert value.shape == ((classes,) if self.loss.reduction == "none" else ())
        if not finite:
            assert self.loss.reduction == "none" or torch.isnan(value)
        elif self.loss.reduction == "none":
            assert torch.isfinite(value).tolist() == defined
        elif any(defined):
            most = 1 if self.loss.reduction == "mean" else classes
            assert -1e-5 <= value.item() <= most + 1e-5
        else:
            assert value.item() == 0 if training else torch.isnan(value)
        if finite and batch.logits.requires_grad:
            (gradient,) = torch.autograd.grad(value.nansum(), batch.logits)
            assert torch.isfinite(gradient).all() or gradient.dtype == torch.float16  # what overflows is large
            per_class = gradient.double().reshape(-1, classes)
            # Beside a heavy row the gradients of light ones are what its rounding leaves.
            heavy = {weight for row in rows for weight in row.weight if weight > 0}
            alike = not heavy or max(heavy) <= 1e6 * min(heavy)
            if alike and rows and not remembered and gradient.dtype in (torch.float32, torch.float64):
                # What cancels in each row's gradient has the size of 1 / t, in spreads where that is the unit.
                scores = torch.tensor([row.scores for row in rows], dtype=torch.float64)
                spread = max(scores.std(0, correction=0).amin().item(), 1e-300)
                scale = 1 / self.loss.temperature / (spread if self.loss.temperature_unit == "std" else 1.0)
                least = torch.finfo(gradient.dtype).tiny  # below which digits are lost
                assert per_class.sum().abs() <= 1e-4 * per_class.abs().sum() + 1e-5 * scale + least

    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        batch = self.batch(data)
        rows, finite = self.model.live(batch)
        self.check(batch, batch.call(self.loss), rows, finite)
        if self.loss.training:
            self.model.remember(rows)

    @rule(data=st.data(), fault=st.sampled_from(sorted(FAULTS)))
    def refuse(self, data: st.DataObject, fault: str) -> None:
        batch = self.batch(data)
        if not batch.targets.numel() or (fault.startswith("label") and self.loss.ignore_index in (77, -7)):
            return
        indices = self.loss.num_classes > 1 and batch.targets.ndim < batch.logits.ndim
        shape = batch.targets.shape if indices or batch.targets.ndim == batch.logits.ndim - 1 else batch.logits.shape
        if self.loss.num_classes > 1 and not indices:
            shape = shape[:-1]
        before = bits(self.loss)
        spoil, name = FAULTS[fault]
        spoilt = spoil(batch, tuple(shape))
        with pytest.raises((ValueError, TypeError)) as refused:
            spoilt.call(self.loss)
        said = str(refused.value)
        assert name in said or "targets" in said or ("iid_mask" in spoilt.options and "iid_mask" in said)
        assert same_bits(self.loss, before)

    @rule(data=st.data(), cut=st.floats(0, 1))
    def call_on_one_of_two_ranks(self, data: st.DataObject, cut: float) -> None:
        batch = self.batch(data)
        if batch.logits.ndim > batch.targets.ndim + 1 or not self.loss.training:
            return
        at = int(cut * len(batch.logits))
        flat = batch.logits.detach()
        others = encode(
            flat[at:],
            batch.targets[at:],
            **{
                name: batch.options[name][at:] if name in batch.options else None
                for name in ("sample_weight", "iid_mask")
            },
            num_classes=self.loss.num_classes,
            ignore_index=self.loss.ignore_index,
        ).pack()
        twin = copy.deepcopy(self.loss)
        rows, finite = self.model.live(batch)
        whole = batch.call(twin)
        mine = Batch(flat[:at].clone(), batch.targets[:at], {name: x[:at] for name, x in batch.options.items()})
        mine.logits.requires_grad_(batch.logits.requires_grad)
        before = bits(self.loss)
        with beside(None), pytest.raises(ValueError, match="rank 1"):
            mine.call(self.loss)
        assert same_bits(self.loss, before)
        with beside(others):
            value = mine.call(self.loss)
        torch.testing.assert_close(value, whole, rtol=1e-5, atol=1e-6, equal_nan=True)
        if finite and batch.logits.requires_grad:
            (part,) = torch.autograd.grad(value.nansum(), mine.logits)
            (full,) = torch.autograd.grad(whole.nansum(), batch.logits)
            # What overflows is as large as it can be, whichever way it was cut.
            most = torch.finfo(part.dtype).max
            part, full = part.clamp(-most, most).double(), full.clamp(-most, most).double()
            assert (part - full[:at]).norm() <= 1e-4 * full.norm() + 1e-6
        self.model.remember(rows)

    @rule(data=st.data())
    def diagnose(self, data: st.DataObject) -> None:
        batch = self.batch(data)
        before = bits(self.loss)
        rows, finite = self.model.live(batch)
        said = self.loss.diagnose(batch.logits, batch.targets, **batch.options)
        assert same_bits(self.loss, before)
        remembered = list(self.model.rows) if self.loss.training or self.loss.queue_in_eval else []
        defined = self.model.defined([*rows, *remembered])
        assert all(x.shape == (self.loss.num_classes,) for x in said.values())
        if finite:
            assert torch.isfinite(said["soft"]).tolist() == torch.isfinite(said["hard"]).tolist() == defined
        count = [sum(row.weight[c] > 0 for row in [*rows, *remembered]) for c in range(self.loss.num_classes)]
        assert said["rows_pool"].tolist() == count

    @rule()
    def save(self) -> None:
        self.saved.append((bits(self.loss), list(self.model.rows)))

    @precondition(lambda self: self.saved)
    @rule(fresh=st.booleans())
    def load(self, fresh: bool) -> None:
        training = self.loss.training
        self.loss = self.made().train(training) if fresh else self.loss
        state, rows = self.saved[-1]
        self.loss.load_state_dict(state)
        self.model = Model(self.loss)
        self.model.rows.extend(rows)
        assert same_bits(self.loss, state)

    @rule(lost=st.sampled_from(["queue.scores", "queue.is_positive", "queue.weight", "queue.iid", "queue.pointer", ""]))
    def load_what_does_not_fit(self, lost: str) -> None:
        before = bits(self.loss)
        if lost:
            state = {name: x for name, x in before.items() if name != lost}
        else:
            state = self.made(queue_size=self.loss.queue.size + 1).state_dict()
        with pytest.raises(RuntimeError, match=lost or "queue_size"):
            self.loss.load_state_dict(state)
        assert same_bits(self.loss, before)

    @rule(training=st.booleans())
    def switch(self, training: bool) -> None:
        self.loss.train(training)

    @rule()
    def reset(self) -> None:
        self.loss.reset_queue()
        self.model.rows.clear()

    @rule()
    def replace_by_a_copy(self) -> None:
        self.loss = copy.deepcopy(self.loss)
        self.model.loss = self.loss

    @invariant()
    def queue_is_that_of_plain_python(self) -> None:
        if not hasattr(self, "loss"):
            return
        queue, size = self.loss.queue, self.loss.queue.size
        pointer = int(queue.pointer)
        assert 0 <= pointer < max(size, 1)
        assert torch.isfinite(queue.scores).all()
        assert torch.isfinite(queue.weight).all()
        assert (queue.weight >= 0).all()
        assert not queue.weight[:, size].any()
        by_row = (queue.scores.mT, queue.is_positive.mT, queue.weight.mT, queue.iid[0])
        columns = (x[:size].roll(-pointer, 0).tolist() for x in by_row)
        rows = [row for row in (Row(*row) for row in zip(*columns, strict=True)) if any(row.weight)]
        assert len(rows) == len(self.model.rows)
        assert all(row.matches(other) for row, other in zip(rows, self.model.rows, strict=True))


def test_life_of_a_loss() -> None:
    assert lead_lives(LifeOfALoss, 120, 25) > 700


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_long_lives_of_losses() -> None:
    assert lead_lives(LifeOfALoss, 6000, 40) > 80_000


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "smooth_average_precision": lambda s, p, w, _, t: functional.smooth_average_precision(s, p, w, temperature=t),
    "soft_recall_at_quantile": lambda s, p, w, iid, t: functional.soft_recall_at_quantile(
        s, p, w, iid_mask=iid, temperature=t
    ),
    "soft_partial_auc": lambda s, p, w, iid, t: functional.soft_partial_auc(s, p, w, iid_mask=iid, temperature=t),
    "average_precision": lambda s, p, w, *_: metrics.average_precision(s, p, w),
    "recall_at_quantile": lambda s, p, w, iid, _: metrics.recall_at_quantile(s, p, w, iid_mask=iid),
    "recall_at_fpr": lambda s, p, w, iid, _: metrics.recall_at_fpr(s, p, w, iid_mask=iid),
    "partial_auc": lambda s, p, w, iid, _: metrics.partial_auc(s, p, w, iid_mask=iid),
}
TEMPERATURES = (1e-3, 0.05, 1.0, 1e3, 0.0, -1.0, math.nan, math.inf, "low", None)


def rank(data: st.DataObject) -> None:
    """Feed one batch to a ranking function; it refuses in words, or its values are those of defined classes."""
    name = data.draw(st.sampled_from(sorted(FUNCTIONS)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    rows, columns = data.draw(st.sampled_from([0, 1, 2, 8, 17])), data.draw(st.sampled_from([1, 3]))
    scores = draw_scores(
        data.draw(st.sampled_from(SCORES)), rows, columns, data.draw(st.sampled_from(FLOATS)), generator
    )
    positive = torch.rand(rows, columns, generator=generator) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    law = data.draw(st.sampled_from(WEIGHTS))
    weight = None if law is None else draw_weights(law, rows, columns, data.draw(st.sampled_from(FLOATS)), generator)
    iid = torch.rand(rows, generator=generator) < 0.7 if data.draw(st.booleans()) else None
    temperature = data.draw(st.sampled_from(TEMPERATURES))
    hard = not name.startswith(("smooth", "soft"))
    if not hard and temperature not in TEMPERATURES[:4]:
        with pytest.raises((ValueError, TypeError), match="temperature"):
            FUNCTIONS[name](scores, positive, weight, iid, temperature)
        return
    value, defined = FUNCTIONS[name](scores.requires_grad_(), positive, weight, iid, temperature)
    counted = torch.ones(rows, columns) if weight is None else weight.double()
    present = ((counted[:, None] if counted.ndim == 1 else counted) > 1e-32).expand(rows, columns)
    finite = (torch.isfinite(scores) | ~present).all(0)
    assert (torch.isfinite(value) == (defined & finite)).all()
    inside = value[torch.isfinite(value)]
    assert ((inside >= -1e-5) & (inside <= 1 + 1e-5)).all()
    if not hard and bool(finite.all()):
        (gradient,) = torch.autograd.grad(value.nansum(), scores)
        assert not torch.isnan(gradient).any()


@given(st.data())
@settings(max_examples=450, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_functions(data: st.DataObject) -> None:
    rank(data)


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.timeout(0)
@given(st.data())
@settings(max_examples=20_000, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_functions_at_length(data: st.DataObject) -> None:
    rank(data)


PIECES = (
    "ap",
    "recall@top",
    "recall@fpr",
    "pauc@fpr",
    "=",
    "-",
    "%",
    "0.5",
    "1e-3",
    "nan",
    "inf",
    "-1",
    " ",
    "@",
    "0",
    "é",
)


@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=7).map("".join)))
@settings(max_examples=300)
def test_objectives(text: str) -> None:
    with suppress(ValueError):
        objective = Objective.parse(text)
        assert type(Objective.parse(str(objective))) is type(objective)
