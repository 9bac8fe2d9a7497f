r"""The threshold that a share of the weight lies above, as a function of the scores, with its gradient.

:math:`\theta` is the root of :math:`C(\theta) = q W`. By the implicit function theorem

.. math:: \frac{\partial \theta}{\partial s_m} = \frac{w_m \, \sigma'_m}{\sum_j w_j \, \sigma'_j},
          \qquad \sigma'_m = \sigma'\big((s_m - \theta) / t\big),

weights that sum to one: the threshold moves with the scores, so raising all of them changes nothing.

Where values can be read, only the rows near the root are worked on: a sample brackets the hard quantile, the rows
within a reach of it are gathered once, and all others are above or below as a whole. The reach is right if what is
neglected beyond it, at most :math:`w_\text{far} e^{-\text{reach} / t}`, moves the root by less than its rounding.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from rareloss.eager import is_eager
from rareloss.ops.functions import fold_into_batch
from rareloss.pool import select

__all__ = ["margin_over_threshold"]

# Enough for the worst case of bisection from 1e38 down to rounding; a usual pool needs 3 to 5.
_MOST_STEPS = 160
_STEPS_OFF_CPU = 48
# Newton's steps alone at first; every second one is a bisection once they have not been enough.
_NEWTON_STEPS = 12
# What a running sum may miss a share of the total by, in totals.
_ROUNDING = 1e-12
# Rows looked at at once where all of them are near: their float64 copies stay in a core's cache.
_CHUNK = 2**15
# Below so many rows a look at all of them is as fast as a bracket; so few are near enough; so many near are gathered.
_FEW, _NEAR_ENOUGH, _GATHERED = 2**11, 2**13, 2**16
# Windows tried before all rows are taken.
_WINDOWS = 4
# By dtype of the scores: the share of the total by which rows beyond the window may change the count, and the last
# step of Newton's, in temperatures, whose error is squared.
_PRECISION = {torch.float32: (1e-7, 5e-4), torch.float64: (1e-16, 1e-9)}
# Places tried to measure offsets from, and how far from it, in temperatures, an offset keeps its digits.
_ANCHORS, _CLOSE = 4, 1e6
# A count with so much of the lesser side's weight in its slope sets the root well enough for float32.
_STEEP = 1e-3


def margin_over_threshold(
    scores: Tensor,
    counted: Tensor,
    share: float,
    temperature: float,
    places: Tensor | None = None,
    at: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Compute :math:`(a - \theta) / t` at points a with the gradient through both.

    Args:
        scores: ``[C, M]``, float32 or float64.
        counted: ``[C, M]``, the weights that set the threshold, without gradient.
        share: q in (0, 1): the share of the counted weight that is to lie above.
        temperature: in units of the scores.
        places: of the rows whose scores are the points, ``[C, A]``; all rows by default.
        at: other points, ``[C, A]``.

    Returns:
        the margins, ``[C, A]``, and :math:`\theta` without gradient, ``[C]`` (0 where nothing is counted), in float64.
    """
    if at is None and _one_by_one(scores) and is_eager(scores, counted):
        margin: Tensor
        theta: Tensor
        margin, theta = _Margin.apply(scores, counted, places, share, temperature)  # type: ignore[no-untyped-call]
        return margin, theta
    start, offset = _traced_threshold(scores, counted, share, temperature)
    # Measured from a score near the root: what is left is small, and float64 keeps it exactly.
    from_start = (select(scores, places) if at is None else at).double() - start[:, None]
    return (from_start - offset[:, None]) / temperature, start + offset.detach()


def _snapped_target(cumulated: Tensor, share: float) -> Tensor:
    # The share of the total of running sums [C, M], or the sum that it misses by rounding.
    total = cumulated[:, -1:]
    target = share * total
    nearest = cumulated.gather(1, (cumulated - target).abs().argmin(1, keepdim=True))
    return torch.where((nearest - target).abs() <= _ROUNDING * total, nearest, target)


def _one_by_one(scores: Tensor) -> bool:
    # Small classes are faster together than each by fewer rows.
    return len(scores) == 1 or scores.shape[1] >= _FEW


class _Margin(torch.autograd.Function):
    # The pull of the rows on the threshold is kept from the forward, for the few rows near it.

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, counted: Tensor, places: Tensor | None, share: float, temperature: float
    ) -> tuple[Tensor, Tensor]:
        found = [_solved(*row, share, temperature) for row in zip(scores, counted, strict=True)]
        ctx.shape, ctx.dtype, ctx.temperature = scores.shape, scores.dtype, temperature
        ctx.save_for_backward(places, *(tensor for one in found for tensor in (one.rows, one.pull)))
        start, offset = _stacked(found)
        theta = start + offset
        ctx.mark_non_differentiable(theta)
        margin = select(scores, places).double().sub(start[:, None]).sub_(offset[:, None]).mul_(1 / temperature)
        return margin, theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_output = grad_output * (1 / ctx.temperature)
        places, *saved = ctx.saved_tensors
        gradient = torch.zeros(ctx.shape, dtype=ctx.dtype)
        for row, one, rows, pull in zip(gradient, grad_output.sum(1).tolist(), saved[::2], saved[1::2], strict=True):
            if rows is None:
                torch.mul(pull, -one, out=row)
            else:
                row.index_copy_(0, rows, pull * -one)
            if not math.isfinite(one):
                row.fill_(one)
        grad_output = grad_output.to(ctx.dtype)
        gradient = gradient.add_(grad_output) if places is None else gradient.scatter_add_(1, places, grad_output)
        return gradient, None, None, None, None


class _Near(NamedTuple):
    # Rows worked on one by one: their places (None: all), scores and weights; the weight above and below them, and
    # the scores that they lie between.
    rows: Tensor | None
    scores: Tensor
    weight: Tensor
    above: float
    below: float
    low: float
    high: float

    def chunks(self, start: float, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
        # Differences from the start, exact in float64, and weights. Gathered rows are float64 already.
        if self.rows is not None:
            yield self.scores - start, self.weight
        else:
            for scores, weight in zip(self.scores.split(_CHUNK), self.weight.split(_CHUNK), strict=True):
                yield scores.to(dtype) - start, weight.to(dtype)


class _Solved(NamedTuple):
    start: float
    offset: float
    rows: Tensor | None
    pull: Tensor


def _stacked(found: list[_Solved]) -> tuple[Tensor, Tensor]:
    starts, offsets = [one.start for one in found], [one.offset for one in found]
    return torch.tensor(starts, dtype=torch.float64), torch.tensor(offsets, dtype=torch.float64)


def _solved(scores: Tensor, counted: Tensor, share: float, temperature: float) -> _Solved:
    # The threshold of one class, and how it is pulled by the rows near it (by all rows where they number as many).
    total: float = sum(part.double().sum().item() for part in counted.split(_CHUNK))
    nowhere = _Solved(0.0, 0.0, torch.empty(0, dtype=torch.int64), scores.new_empty(0))
    if total == 0:
        return nowhere
    allowed, _ = _PRECISION[scores.dtype]
    # Enough where the slope is of the lesser side's size, as it is in most pools.
    reach = temperature * (3.0 - math.log(allowed) - math.log(min(share, 1 - share)))
    low, middle, high = _bracket(scores, counted, share)
    for window in range(_WINDOWS + 1):
        near = _gather(scores, counted, share, total, low - reach, high + reach)
        found = _root(near, share, total, middle, temperature, scores.dtype)
        reach = math.inf
        if found is None:
            continue
        start, root = found
        if not math.isfinite(start):
            return nowhere._replace(start=math.nan)
        pull, log_slope = _pulls(near, start, total, root, temperature, scores.dtype)
        # What is far changes the count by its weight times exp(-reach / t) at most.
        up, down = (
            temperature * (math.log(far) - math.log(total * allowed) - log_slope) if far > 0 else 0.0
            for far in (near.above, near.below)
        )
        if near.high - start - root >= up and root + start - near.low >= down:
            break
        if window + 1 < _WINDOWS:
            reach = 1.1 * max(up, down, 0.0)
        low, middle, high = start + min(root, 0.0), start + root, start + max(root, 0.0)
    return _Solved(start, root, near.rows, pull)


def _bracket(scores: Tensor, counted: Tensor, share: float) -> tuple[float, float, float]:
    # The quantile of a sample, between two scores that the quantile almost surely lies between: those of the sample
    # five standard errors either way; infinite where the sample is all rows, or nothing.
    stride = int(len(scores) ** (1 / 3)) if len(scores) >= _FEW else 1
    ordered, order = scores[::stride].sort(descending=True)
    weight = counted[::stride].index_select(0, order).double()
    until = weight.cumsum(0).tolist()
    whole = until[-1]
    error = math.inf
    if stride > 1 and whole > 0:
        squares = torch.dot(weight, weight).item()
        error = 5 * math.sqrt(share * (1 - share) * squares) + 2 * squares / whole
    first, at, last = (bisect_left(until, share * whole + apart) for apart in (-error, 0.0, error))
    high = ordered[first].item() if first > 0 else math.inf
    low = ordered[last].item() if last < len(ordered) else -math.inf
    return low, ordered[min(at, len(ordered) - 1)].item(), high


def _gather(scores: Tensor, counted: Tensor, share: float, total: float, low: float, high: float) -> _Near:
    # The rows from low to high, looked for among those on the smaller side.
    every = _Near(None, scores, counted, 0.0, 0.0, -math.inf, math.inf)
    if not (low > -math.inf or high < math.inf):
        return every
    from_above = low > -math.inf and (share < 0.5 or high == math.inf)
    on_side = scores >= low if from_above else scores <= high
    bound = max(_GATHERED, len(scores) // 8)
    if len(scores) > _GATHERED and int(on_side.count_nonzero()) > bound + min(share, 1 - share) * len(scores):
        return every
    rows = on_side.nonzero()[:, 0]
    score, weight = scores.index_select(0, rows), counted.index_select(0, rows).double()
    rest = total - weight.sum().item()
    if len(rows) <= _NEAR_ENOUGH:
        sides = (0.0, rest, low, math.inf) if from_above else (rest, 0.0, -math.inf, high)
        return _Near(rows, score.double(), weight, *sides)
    far = score > high if from_above else score < low
    kept = (~far).nonzero()[:, 0]
    if len(kept) > bound:
        return every
    beyond = torch.dot(weight, far.double()).item()
    above, below = (beyond, rest) if from_above else (rest, beyond)
    score, weight = score.index_select(0, kept).double(), weight.index_select(0, kept)
    return _Near(rows.index_select(0, kept), score, weight, above, below, low, high)


def _root(
    near: _Near, share: float, total: float, start: float, temperature: float, dtype: torch.dtype
) -> tuple[float, float] | None:
    # A score near the threshold and the threshold's offset from it, NaN if scores are not finite; None if the score
    # next to the threshold may be far.
    target, rest = share * total, total - share * total
    low, high, less, more = near.low, near.high, 0.0, 0.0
    # At the lowest score less t logit(q) every row is above with at least q; at the highest, with at most q.
    shift = temperature * math.log(target / rest)
    if low == -math.inf and len(near.scores):
        low, less = near.scores.amin().item(), -shift - temperature
    if high == math.inf and len(near.scores):
        high, more = near.scores.amax().item(), temperature - shift
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(start)):
        return math.nan, 0.0
    # The many rows of a float32 pool are counted in float32.
    many = near.rows is None and len(near.scores) > _GATHERED and dtype == torch.float32
    noise = 1e-7 * min(target, rest) if many else _ROUNDING * total
    step = _PRECISION[dtype][1]

    def softly(root: float) -> tuple[float, float]:
        count, slope = _soft_count(near, start, root, temperature, dtype if many else torch.float64)
        return count - target, slope

    root = 0.0
    for _ in range(_ANCHORS):
        bounds = low - start + less, high - start + more
        root, slope = _newton(softly, root, *bounds, target, rest, temperature, max(step, 5e-4), noise)
        if slope > _STEEP * min(target, rest) and dtype == torch.float32 and abs(root) < _CLOSE * temperature:
            return start, root
        above, below = _around(near, start + root)
        if (above == math.inf and near.above > 0) or (below == -math.inf and near.below > 0):
            return None
        moved = above if above < math.inf else below
        close = abs(moved - start) < _CLOSE * temperature
        start, root = moved, root + (start - moved)  # their sum may have no room for the root's digits
        if close:
            break
    edge = below if start == above else -math.inf
    # Now what lies above is counted as a difference from what lies from the start upwards, and the tails apart: the
    # sign stays right in gaps, where tails are tiny.
    surplus = near.above + _weight_from(near, start) - target
    if abs(surplus) <= _ROUNDING * total:
        surplus, target, rest = 0.0, target + surplus, rest - surplus
        # The share falls between two rows: if far apart, the root lies where their tails are equal.
        if math.isfinite(edge) and start - edge > temperature:
            root = _between_tails(near, start, edge - start, temperature)
    at_start = _count(near, start, 0.0, temperature)[0]

    def exactly(root: float) -> tuple[float, float]:
        whole, tails, slope = _count(near, start, root, temperature)
        return surplus + (whole - at_start) + tails, slope

    root, _ = _newton(exactly, root, low - start + less, high - start + more, target, rest, temperature, step, 0.0)
    return start, root


def _newton(
    excess_at: Callable[[float], tuple[float, float]],
    root: float,
    low: float,
    high: float,
    target: float,
    rest: float,
    temperature: float,
    last_step: float,
    noise: float,
) -> tuple[float, float]:
    # Newton's steps for the log-odds of the share above: exact for equal scores, few for others; or bisection. With
    # the slope there, in units of 1 / t.
    slope = 0.0
    for step in range(_MOST_STEPS):
        excess, slope = excess_at(root)
        if not abs(excess) > noise:
            break
        low, high = (root, high) if excess > 0 else (low, root)
        newton = math.nan
        if slope > 0 and -target < excess < rest:
            odds = math.log1p(excess / target) - math.log1p(-excess / rest)
            newton = root + temperature * odds * (target + excess) / (target + rest) * (rest - excess) / slope
        if abs(newton - root) <= last_step * temperature + 4e-16 * abs(root):
            return min(max(newton, low), high), slope
        if high - low <= 1e-9 * temperature + 4e-16 * abs(root):
            break
        trusted = low < newton < high and (step < _NEWTON_STEPS or step % 2 == 0)
        root = newton if trusted else _middle_of(low, high, temperature)
    return root, slope


def _around(near: _Near, place: float) -> tuple[float, float]:
    # The nearest scores of some weight: at or above the place, and below.
    some, above = near.weight > 0, near.scores >= place
    upper = torch.where(some & above, near.scores, torch.inf).amin()
    lower = torch.where(some & ~above, near.scores, -torch.inf).amax()
    return upper.item(), lower.item()


def _weight_from(near: _Near, score: float) -> float:
    return sum(
        torch.where(scores >= score, weight, 0.0).sum(dtype=torch.float64).item()
        for scores, weight in zip(near.scores.split(_CHUNK), near.weight.split(_CHUNK), strict=True)
    )


def _between_tails(near: _Near, start: float, edge: float, temperature: float) -> float:
    # Where tails above 0 and below the edge, both exponential, are equal.
    upper = lower = 0.0
    for distance, weight in near.chunks(start):
        upper += torch.dot(weight, torch.where(distance >= 0, -distance / temperature, -torch.inf).exp()).item()
        beyond = torch.where(distance <= edge, (distance - edge) / temperature, -torch.inf)
        lower += torch.dot(weight, beyond.exp()).item()
    return (edge + temperature * math.log(lower / upper)) / 2


def _count(near: _Near, start: float, root: float, temperature: float) -> tuple[float, float, float]:
    # The weight above the root as whole rows, what their tails add to it, and the slope in units of 1 / t.
    whole = tails = slope = 0.0
    for distance, weight in near.chunks(start):
        apart = distance.sub_(root).mul_(1 / temperature)
        above = (apart >= 0).double()
        tail = apart.abs_().neg_().sigmoid_()
        weighted = weight * tail
        every = weighted.sum().item()
        whole += torch.dot(weight, above).item()
        tails += every - 2 * torch.dot(weighted, above).item()
        slope += every - torch.dot(weighted, tail).item()
    return whole, tails, slope


def _soft_count(near: _Near, start: float, root: float, temperature: float, dtype: torch.dtype) -> tuple[float, float]:
    # The soft weight above the root and the slope in units of 1 / t.
    count, slope = near.above, 0.0
    for distance, weight in near.chunks(start, dtype):
        above = distance.sub_(root).mul_(1 / temperature).sigmoid_()
        weighted = weight * above
        part = weighted.sum().item()
        count += part
        slope += part - torch.dot(weighted, above).item()
    return count, slope


def _pulls(
    near: _Near, start: float, total: float, root: float, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, float]:
    # Each row's share of the slope, and the log of the slope in units of W / t.
    slopes, slope = _slopes(near, start, total, root, temperature, 0.0, dtype)
    nearest = 0.0
    if not slope > 1e-20:
        # In a gap of the scores every slope underflows while their ratios stay: relative to the nearest row's.
        nearest = min(
            torch.where(weight > 0, (distance - root).abs_(), torch.inf).amin().item() / temperature
            for distance, weight in near.chunks(start)
        )
        slopes, slope = _slopes(near, start, total, root, temperature, nearest, dtype)
    return slopes.mul_(1 / slope), math.log(slope) - nearest


def _slopes(
    near: _Near, start: float, total: float, root: float, temperature: float, nearest: float, dtype: torch.dtype
) -> tuple[Tensor, float]:
    # The rows' weighted slopes and their sum, in units of W exp(-nearest) / t.
    found, slope_of_all = [], 0.0
    for distance, weight in near.chunks(start, dtype):
        # Infinite for scores near the end of their dtype, of which the nearest could not be taken away.
        furthest = torch.finfo(distance.dtype).max / 2
        apart = distance.sub_(root).abs_().mul_(-1 / temperature).clamp_(min=-furthest)
        tail = apart.sigmoid()
        if nearest:
            slope = apart.add_(min(nearest, furthest)).clamp_(max=0.0).exp_().mul_((1 - tail).square_())
        else:
            slope = torch.addcmul(tail, tail, tail, value=-1)
        slope.mul_(weight).mul_(1 / total)
        slope_of_all += slope.sum().item()
        found.append(slope.to(dtype))
    return torch.cat(found), slope_of_all


def _middle_of(low: float, high: float, temperature: float) -> float:
    # Halfway on a scale that is linear within a temperature and logarithmic beyond: 1e38 is 90 temperatures away.
    middle = (_on_scale(low, temperature) + _on_scale(high, temperature)) / 2
    if abs(middle) < 300:
        return temperature * math.sinh(middle)
    return math.copysign(math.exp(abs(middle) - math.log(2) + math.log(temperature)), middle)


def _on_scale(place: float, temperature: float) -> float:
    if math.isfinite(place / temperature):
        return math.asinh(place / temperature)
    return math.copysign(math.log(abs(place)) - math.log(temperature) + math.log(2), place)


def _traced_threshold(scores: Tensor, counted: Tensor, share: float, temperature: float) -> tuple[Tensor, Tensor]:
    # The same as operations on all rows, without a look at any number.
    start, offset = _threshold(scores.detach(), counted, share, temperature)
    from_start = scores.double() - start[:, None]
    # Kept finite for scores near the end of their dtype.
    furthest = torch.finfo(torch.float64).max / 4
    distance = ((from_start.detach() - offset[:, None]) / temperature).clamp(-furthest, furthest)
    log_slope = logsigmoid(distance) + logsigmoid(-distance)
    # A softmax of logs, since in a gap of the scores every slope underflows while their ratios stay.
    any_counted = (counted > 0).any(1, keepdim=True)
    log_weight = torch.where(any_counted, counted.double().log(), 0.0)
    pull = torch.softmax(log_weight + log_slope, dim=1)
    return start, offset + (pull * (from_start - from_start.detach())).sum(1)


@torch.library.custom_op("rareloss::threshold", mutates_args=())
def _threshold(scores: Tensor, counted: Tensor, share: float, temperature: float) -> tuple[Tensor, Tensor]:
    # Returns the score at the hard quantile and the root's offset from it, float64 [C].
    on_cpu = scores.device.type == "cpu"
    if on_cpu and _one_by_one(scores):
        found = [_solved(*row, share, temperature) for row in zip(scores, counted, strict=True)]
        return _stacked(found)
    counted = counted.double()
    ordered, order = scores.double().sort(dim=1, descending=True)
    cumulated = counted.gather(1, order).cumsum(1)
    target = _snapped_target(cumulated, share)
    at = (cumulated < target).sum(1, keepdim=True).clamp_(max=scores.shape[1] - 1)
    start = ordered.gather(1, at)
    rows = scores.double() - start
    present = counted > 0
    # At the lowest score less t logit(q) every counted row is above with at least q; at the highest, with at most q.
    shift = temperature * torch.logit(torch.tensor(share, dtype=torch.float64)).item()
    low = torch.where(present, rows, torch.inf).amin(1, keepdim=True) - shift
    high = torch.where(present, rows, -torch.inf).amax(1, keepdim=True) - shift
    # Where the share falls between two rows the root lies in a gap; between exponential tails it has a closed form.
    log_weight = counted.log()
    upper = torch.where(rows >= 0, log_weight - rows / temperature, -torch.inf).logsumexp(1, keepdim=True)
    lower = torch.where(rows < 0, log_weight + rows / temperature, -torch.inf).logsumexp(1, keepdim=True)
    in_gap = (cumulated.gather(1, at) == target) & torch.isfinite(lower)
    root = torch.where(in_gap, (lower - upper) * temperature / 2, 0.0).clamp(low, high)
    for step in range(_MOST_STEPS if on_cpu else _STEPS_OFF_CPU):
        # Count exactly what lies above and add the tails apart: the sign stays right in gaps, where tails are tiny.
        distance = (rows - root) / temperature
        tail = (-distance.abs()).exp_()
        slope = (counted * tail / (1 + tail) ** 2).sum(1, keepdim=True) / temperature
        tails = torch.where(distance > 0, -tail, tail) / (1 + tail)
        excess = ((counted * (distance > 0)).sum(1, keepdim=True) - target) + (counted * tails).sum(1, keepdim=True)
        low = torch.where(excess > 0, root, low)
        high = torch.where(excess < 0, root, high)
        newton = root + excess / slope
        bisected = _middle(low, high, temperature)
        trusted = (newton > low) & (newton < high) & ((step < _NEWTON_STEPS) | (step % 2 == 0))
        # Newton's error is squared at each step: what is taken at 1e-9 is exact to rounding. NaN ends the search too.
        tolerance = 1e-9 * temperature + 4e-16 * root.abs()
        unfinished = (excess.abs() > 0) & ((newton - root).abs() > tolerance) & (high - low > tolerance)
        last = torch.where((excess.abs() > 0) & (newton >= low) & (newton <= high), newton, root)
        root = torch.where(unfinished, torch.where(trusted, newton, bisected), last)
        if on_cpu and not bool(unfinished.any()):
            break
    nothing = ~present.any(1, keepdim=True)
    return torch.where(nothing, 0.0, start)[:, 0], torch.where(nothing, 0.0, root)[:, 0]


def _middle(low: Tensor, high: Tensor, temperature: float) -> Tensor:
    # Halfway on a scale that is linear within a temperature and logarithmic beyond: 1e38 is 90 temperatures away.
    ends = torch.stack([low, high])
    beyond = ends.sign() * (ends.abs().log() - math.log(temperature) + math.log(2))
    middle = torch.where((ends / temperature).isfinite(), (ends / temperature).asinh(), beyond).mean(0)
    far = middle.sign() * (middle.abs() - math.log(2) + math.log(temperature)).exp()
    return torch.where(middle.abs() < 300, temperature * middle.sinh(), far)


@_threshold.register_fake
def _(scores: Tensor, counted: Tensor, share: float, temperature: float) -> tuple[Tensor, Tensor]:
    per_class = scores.new_empty(scores.shape[0], dtype=torch.float64)
    return per_class, torch.empty_like(per_class)


fold_into_batch(_threshold)
