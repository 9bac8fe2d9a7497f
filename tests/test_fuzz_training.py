"""Hostile inputs for focal losses, the warm-up and the soft count; see test_fuzz for how many."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor, nn
from torch.nn import functional as F

from hostile import FAULTS, FLOATS, SCORES, WEIGHTS, Batch, batches, draw_scores, draw_weights, lead_lives
from rareloss import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
    functional,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*nothing is learned:UserWarning")

BY_ROW = [law for law in WEIGHTS if law != "by label"]
FLAT = ["plain", "strided", "transposed", "expanded"]


def labelled(batch: Batch, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, labels and weights of the shape of the targets, in float64, what is absent as 0."""
    logits, targets = batch.logits.detach().double(), batch.targets.double()
    indices = targets.ndim < logits.ndim and logits.shape[-1] > 1
    logits = logits if indices else logits.reshape(targets.shape)
    weight = torch.ones_like(targets)
    if "sample_weight" in batch.options:
        given = batch.options["sample_weight"].double()
        weight = given.reshape(*given.shape, *[1] * (targets.ndim - given.ndim)).reshape(-1)
        weight = weight.reshape(len(weight), 1).expand(-1, max(1, targets.numel() // max(1, len(weight))))
        weight = weight.reshape(targets.shape)
    weight = torch.where(targets != ignore_index, weight, 0.0)
    present = weight > 0
    logits = torch.where(present[..., None] if indices else present, logits, 0.0)
    return logits, torch.where(present, targets, 0.0), weight


def focal(logits: Tensor, targets: Tensor, alpha: float | None, gamma: float) -> Tensor:
    """Compute the terms as the equation has them, of labels or of class indices."""
    if targets.ndim < logits.ndim:
        log_p = logits.log_softmax(-1)
        of_target = log_p.gather(-1, targets.long()[..., None])[..., 0]
        others = log_p.masked_fill(F.one_hot(targets.long(), logits.shape[-1]).bool(), -math.inf).logsumexp(-1)
        return -(gamma * others).exp() * of_target if gamma else -of_target
    towards = torch.where(targets == 1, logits, -logits)
    of_class = 1.0 if alpha is None else torch.where(targets == 1, alpha, 1.0 - alpha)
    return -of_class * (gamma * F.logsigmoid(-towards)).exp() * F.logsigmoid(towards)


def feed_focal(data: st.DataObject) -> None:
    """Feed one batch to a focal loss: it is the equation in float64, or an error in words."""
    softmax = data.draw(st.booleans())
    classes = data.draw(st.sampled_from([2, 3] if softmax else [1, 3]))
    gamma = data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
    reduction = data.draw(st.sampled_from(["mean", "mean_positive", "sum", "none"]))
    ignore_index = data.draw(st.sampled_from([-100, -1, 255]))
    alpha = None if softmax else data.draw(st.sampled_from([None, 0.25, 1.0, 0.0]))
    common: dict[str, Any] = {"gamma": gamma, "reduction": reduction, "ignore_index": ignore_index}
    loss = SoftmaxFocalLoss(**common) if softmax else SigmoidFocalLoss(alpha, **common)
    kind, weights = "indices" if softmax else "labels", BY_ROW if softmax or classes == 1 else WEIGHTS
    batch = data.draw(batches(classes, ignore_index, kind=kind, weights=weights, layouts=FLAT))
    if data.draw(st.integers(0, 4)) == 0 and batch.targets.numel():
        spoil, _ = FAULTS[data.draw(st.sampled_from(sorted(FAULTS)))]
        spoilt = spoil(batch, tuple(batch.targets.shape[:1]))
        with pytest.raises((ValueError, TypeError)) as refused:
            spoilt.call(loss)
        assert any(name in str(refused.value) for name in ("logits", "targets", "weight", "iid_mask"))
        return
    value = batch.call(loss)
    assert value.dtype == torch.promote_types(batch.logits.dtype, torch.float32)
    logits, targets, weight = labelled(batch, ignore_index)
    if not torch.isfinite(logits).all():
        return
    terms = weight * focal(logits, targets, alpha, gamma)
    by = {"mean": weight.sum(), "mean_positive": (weight * (targets > 0)).sum(), "sum": torch.tensor(1.0)}
    divisor = by.get(reduction, 1.0)
    if terms.abs().sum() > torch.finfo(value.dtype).max / 64 or 0 < divisor < 1e-30:  # what float32 cannot hold
        return
    if reduction == "none":
        expected = terms.reshape(value.shape)
    else:
        expected = terms.sum() / divisor if divisor > 0 else terms.sum()
    most = torch.finfo(value.dtype).max
    found = value.double().clamp(-most, most)
    # Weights below float32's smallest number vanish in it.
    scale = expected.abs() + 1e-30 + (1e-36 if reduction in ("none", "sum") else 1e-6)
    assert ((found - expected.clamp(-most, most)).abs() <= 2e-5 * scale).all()
    if batch.logits.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), batch.logits)
        assert not torch.isnan(gradient).any()


def feed_soft_count(data: st.DataObject) -> None:
    """Count one pool: the sum in float64, with a gradient that is no NaN."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    rows, points = data.draw(st.sampled_from([0, 1, 2, 8, 17])), data.draw(st.sampled_from([None, 0, 1, 5]))
    dtype = data.draw(st.sampled_from(FLOATS))
    law = data.draw(st.sampled_from([law for law in SCORES if law not in ("nan", "inf", "-inf")]))
    scores = draw_scores(law, rows, 1, dtype, generator)[:, 0]
    laws = ["ones", "some", "none", "light", "any"]
    weights = draw_weights(data.draw(st.sampled_from(laws)), rows, 1, torch.float32, generator)
    weights = weights.reshape(rows) if data.draw(st.booleans()) else torch.stack([weights.reshape(rows)] * 2)
    at = None if points is None else draw_scores(law, points, 1, dtype, generator)[:, 0]
    temperature = data.draw(st.sampled_from([1e-3, 0.05, 1.0, 1e3]))
    counts = functional.soft_count(scores.requires_grad_(), weights, at=at, temperature=temperature)
    above = (scores if at is None else at).detach().double()
    apart = (scores.detach().double() - above[:, None]) / temperature
    expected = (weights.double()[..., None, :] * apart.sigmoid()).sum(-1)
    assert counts.shape == expected.shape
    whole = weights.double().sum(-1, keepdim=True)
    assert ((counts.double() - expected).abs() <= 1e-5 * whole + 1e-37).all()
    (gradient,) = torch.autograd.grad(counts.sum(), scores)
    assert not torch.isnan(gradient).any()


class LifeOfAWarmup(RuleBasedStateMachine):
    """One wrapper, from warm-up to the end, through whatever a training loop may do to it."""

    fed = 0

    @initialize(
        first=st.sampled_from(["bce", "ce", "sigmoid", "softmax"]),
        main=st.sampled_from(["ap", "recall", "pauc"]),
        warmup_steps=st.integers(0, 3),
        blend_steps=st.integers(0, 3),
        final=st.sampled_from([1.0, 0.5]),
        decaying=st.booleans(),
        queue_size=st.sampled_from([0, 5, 40]),
        data=st.data(),
    )
    def make(self, first: str, main: str, data: st.DataObject, queue_size: int, **schedule: Any) -> None:
        self.kind = "indices" if first in ("ce", "softmax") else "labels"
        self.classes = data.draw(st.sampled_from([2, 3] if self.kind == "indices" else [1, 3]))
        self.weighted = first in ("sigmoid", "softmax")
        self.schedule = schedule
        losses: dict[str, Any] = {
            "bce": nn.BCEWithLogitsLoss(),
            "ce": nn.CrossEntropyLoss(),
            "sigmoid": SigmoidFocalLoss(alpha=None, gamma=1.0),
            "softmax": SoftmaxFocalLoss(gamma=0.0),
            "ap": lambda: SmoothAPLoss(self.classes, queue_size=queue_size),
            "recall": lambda: RecallAtQuantileLoss(self.classes, 0.2, queue_size=queue_size),
            "pauc": lambda: PAUCAtBudgetLoss(self.classes, 0.1, 0.6, queue_size=queue_size),
        }
        decay = {"temp_start": 0.6, "temp_end": 0.2, "temp_decay_steps": 4} if schedule["decaying"] else {}
        self.made = lambda: LossWarmupWrapper(
            copy.deepcopy(losses[first]),
            losses[main](),
            warmup_steps=schedule["warmup_steps"],
            blend_steps=schedule["blend_steps"],
            final_main_weight=schedule["final"],
            **decay,
        )
        self.loss, self.step = self.made(), 0
        self.saved: list[tuple[dict[str, Any], int]] = []

    def batch(self, data: st.DataObject) -> Batch:
        type(self).fed += 1
        weights = BY_ROW if self.weighted else [None]
        return data.draw(batches(self.classes, kind=self.kind, weights=weights, layouts=FLAT))

    def expected(self, batch: Batch) -> tuple[Tensor, nn.Module]:
        """Compute the blend by the two losses themselves, and the main loss after it."""
        main = copy.deepcopy(self.loss.main_loss)
        done, steps = self.step - self.schedule["warmup_steps"], self.schedule["blend_steps"]
        weight = self.schedule["final"] * min(1.0, max(0.0, (done + 1) / (steps + 1)))
        if self.schedule["decaying"]:
            main.temperature = 0.6 * (0.2 / 0.6) ** min(1.0, max(0, done) / 4)
        value = torch.zeros((), dtype=torch.float64)
        if weight > 0:
            value = value + weight * batch.call(main)
        if weight < 1:
            value = value + (1 - weight) * self.first(batch)
        if main.training and done == -1:
            main.reset_queue()
        return value.detach(), main

    def first(self, batch: Batch) -> Tensor:
        if self.weighted:
            return batch.call(copy.deepcopy(self.loss.warmup_loss))
        logits, targets, weight = labelled(batch, -100)
        if not torch.isfinite(logits).all():
            return torch.tensor(math.nan)
        return (focal(logits, targets, None, 0.0) * weight).sum() / weight.sum().clamp(min=1)

    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        batch = self.batch(data)
        expected, main = self.expected(batch)
        ranked = self.loss.main_weight > 0
        value = batch.call(self.loss)
        assert value.dtype == torch.promote_types(batch.logits.dtype, torch.float32)
        near_the_end = expected.abs() > torch.finfo(value.dtype).max / 64  # of the dtype, where sums overflow
        if torch.isfinite(expected) and not near_the_end:
            torch.testing.assert_close(value.detach().double(), expected.double(), rtol=1e-5, atol=1e-6)
        elif not near_the_end and ranked:  # torch's own losses have values of some infinities
            assert not torch.isfinite(value)
        if batch.logits.requires_grad and torch.isfinite(value):
            (gradient,) = torch.autograd.grad(value, batch.logits)
            assert not torch.isnan(gradient).any()
        assert all(torch.equal(x, main.state_dict()[name]) for name, x in self.loss.main_loss.state_dict().items())
        self.step += self.loss.training
        assert self.loss.step == self.step

    @rule(data=st.data(), fault=st.sampled_from(sorted(FAULTS)))
    def refuse(self, data: st.DataObject, fault: str) -> None:
        batch = self.batch(data)
        unread = "flags" in fault and self.loss.in_warmup  # a loss of weight 0 looks at nothing
        if not batch.targets.numel() or unread:
            return
        before = copy.deepcopy(self.loss.state_dict())
        with pytest.raises((ValueError, TypeError)) as refused:
            FAULTS[fault][0](batch, tuple(batch.targets.shape[:1])).call(self.loss)
        assert any(name in str(refused.value) for name in ("logits", "targets", "weight", "iid_mask"))
        self.same_as(before)

    def same_as(self, state: dict[str, Any]) -> None:
        now = self.loss.state_dict()
        assert now.keys() == state.keys()
        assert all(torch.equal(x, state[name]) for name, x in now.items())

    @rule()
    def save(self) -> None:
        self.saved.append((copy.deepcopy(self.loss.state_dict()), self.step))

    @precondition(lambda self: self.saved)
    @rule(fresh=st.booleans())
    def load(self, fresh: bool) -> None:
        self.loss = self.made().train(self.loss.training) if fresh else self.loss
        state, self.step = self.saved[-1]
        self.loss.load_state_dict(state)
        self.same_as(state)
        assert self.loss.step == self.step

    @rule()
    def replace_by_a_copy(self) -> None:
        self.loss = copy.deepcopy(self.loss)

    @rule(training=st.booleans())
    def switch(self, training: bool) -> None:
        self.loss.train(training)

    @rule(step=st.integers(0, 9))
    def jump(self, step: int) -> None:
        self.loss.step = self.step = step


def test_life_of_a_warmup() -> None:
    assert lead_lives(LifeOfAWarmup, 65, 20) > 250


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_long_lives_of_warmups() -> None:
    assert lead_lives(LifeOfAWarmup, 1500, 40) > 10_000


@given(st.data())
@settings(max_examples=300, suppress_health_check=list(HealthCheck), phases=[Phase.generate], deadline=None)
def test_focal_losses(data: st.DataObject) -> None:
    feed_focal(data)


@given(st.data())
@settings(max_examples=100, suppress_health_check=list(HealthCheck), phases=[Phase.generate], deadline=None)
def test_soft_counts(data: st.DataObject) -> None:
    feed_soft_count(data)


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("feed", [feed_focal, feed_soft_count])
def test_functions_at_length(feed: Any) -> None:
    @given(st.data())
    @settings(max_examples=10_000, suppress_health_check=list(HealthCheck), phases=[Phase.generate], deadline=None)
    def fed(data: st.DataObject) -> None:
        feed(data)

    fed()
