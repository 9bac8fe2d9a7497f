r"""The threshold that a share of the weight lies above, as a function of the scores, with its gradient.

:math:`\theta` is the root of :math:`C(\theta) = q W`. By the implicit function theorem

.. math:: \frac{\partial \theta}{\partial s_m} = \frac{w_m \, \sigma'_m}{\sum_j w_j \, \sigma'_j},
          \qquad \sigma'_m = \sigma'\big((s_m - \theta) / t\big),

weights that sum to one: the threshold moves with the scores, so raising all of them changes nothing.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rareloss.kernels.batching import fold_into_batch

__all__ = ["margin_over_threshold", "snapped_target"]

# Enough for the worst case of bisection from 1e38 down to rounding; a usual pool needs 3 to 9.
_MOST_STEPS = 160
_STEPS_OFF_CPU = 48
# Newton's steps alone at first; every second one is a bisection once they have not been enough.
_NEWTON_STEPS = 12


def margin_over_threshold(scores: Tensor, counted: Tensor, share: float, temperature: float) -> tuple[Tensor, Tensor]:
    r"""Compute :math:`(s - \theta) / t` with the gradient through both.

    Args:
        scores: ``[C, M]``.
        counted: ``[C, M]``, the weights that set the threshold, without gradient.
        share: q in (0, 1): the share of the counted weight that is to lie above.
        temperature: in units of the scores.

    Returns:
        the margins, ``[C, M]``, and :math:`\theta` without gradient, ``[C]`` (0 where nothing is counted), in float64.
    """
    start, offset = _threshold(scores.detach(), counted, share, temperature)
    # Measured from a score near the root: what is left is small, and float64 keeps it exactly.
    from_start = scores.double() - start[:, None]
    distance = from_start - offset[:, None]
    log_slope = logsigmoid(distance.detach() / temperature) + logsigmoid(-distance.detach() / temperature)
    # A softmax of logs, since in a gap of the scores every slope underflows while their ratios stay.
    any_counted = (counted > 0).any(1, keepdim=True)
    log_weight = torch.where(any_counted, counted.double().log(), 0.0)
    pull = torch.softmax(log_weight + log_slope, dim=1)
    moved = (pull * (from_start - from_start.detach())).sum(1, keepdim=True)
    return (distance - moved) / temperature, start + offset


def snapped_target(cumulated: Tensor, share: float) -> Tensor:
    """Compute ``share`` of the total of running sums ``cumulated[C, M]``, or the sum that it misses by rounding."""
    total = cumulated[:, -1:]
    target = share * total
    nearest = cumulated.gather(1, (cumulated - target).abs().argmin(1, keepdim=True))
    return torch.where((nearest - target).abs() <= 1e-12 * total, nearest, target)


@torch.library.custom_op("rareloss::threshold", mutates_args=())
def _threshold(scores: Tensor, counted: Tensor, share: float, temperature: float) -> tuple[Tensor, Tensor]:
    # Returns the score at the hard quantile and the root's offset from it, float64 [C].
    counted = counted.double()
    ordered, order = scores.double().sort(dim=1, descending=True)
    cumulated = counted.gather(1, order).cumsum(1)
    target = snapped_target(cumulated, share)
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
    on_cpu = scores.device.type == "cpu"
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
    return temperature * torch.sinh((torch.asinh(low / temperature) + torch.asinh(high / temperature)) / 2)


@_threshold.register_fake
def _(scores: Tensor, counted: Tensor, share: float, temperature: float) -> tuple[Tensor, Tensor]:
    per_class = scores.new_empty(scores.shape[0], dtype=torch.float64)
    return per_class, torch.empty_like(per_class)


fold_into_batch(_threshold)
