"""Feed the native kernel pools that nobody should send, and compare it with plain torch in float64.

``python -m tests.native_fuzz --pools 1000000`` draws so many; ``--sanitize`` first compiles a library with
AddressSanitizer and UndefinedBehaviorSanitizer into a temporary folder, and runs under it in a process of its own. A
disagreement is printed with the seed that draws it again (``--seed S --pools 1``); a sanitizer's report ends the run.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rareloss import functional, metrics
from rareloss.ops import native

SIZES = (0, 1, 2, 3, 5, 8, 17, 40, 130, 300, 1000, 5000)
ODDS_OF_SIZES = (1, 1, 2, 3, 4, 8, 12, 12, 8, 4, 1, 0.3)
SCORES = ("normal", "ties", "equal", "huge", "outlier", "tiny", "subnormal", "zeros", "spread", "gaps")
WEIGHTS = ("none", "some", "light", "heavy", "any")
# Value and gradient, relative to 1 and to the largest slope.
TOLERANCE = {torch.float32: (2e-6, 2e-5), torch.float64: (1e-8, 1e-7)}


class Pool(NamedTuple):
    """Rows of one class."""

    scores: Tensor
    positive: Tensor
    weight: Tensor | None
    iid: Tensor | None
    temperature: float
    in_std: bool

    def present(self) -> "Pool":
        """The same rows in float64, weights and iid flags written out and scores 0 where absent."""
        weight = torch.ones_like(self.scores) if self.weight is None else self.weight
        iid = torch.ones_like(self.positive) if self.iid is None else self.iid
        scores = torch.where(weight > 0, self.scores, 0.0).double()
        return self._replace(scores=scores, weight=weight.double(), iid=iid)


def chosen(options: Sequence[Any], generator: torch.Generator, odds: Sequence[float] | None = None) -> Any:
    """Choose one of the options."""
    odds_here = torch.ones(len(options)) if odds is None else torch.tensor(odds)
    return options[int(torch.multinomial(odds_here, 1, generator=generator))]


def draw_scores(law: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw finite scores."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if law == "ties":
        x = (2 * x).round() / 2
    elif law == "equal":
        x = torch.full_like(x, 0.75)
    elif law == "zeros":
        x = x.round() * 0.0 * x.sign()
    elif law == "spread":
        x = x.sign() * (20 * x).exp().clamp(max=1e30)
    elif law == "gaps":
        x = (4 * x).round() * 1e3 + x * 1e-3
    x = x * {"huge": 1e30, "tiny": 1e-30, "subnormal": 1e-40}.get(law, 1.0)
    if law == "outlier" and x.numel():
        x.view(-1)[0] = 1e30
    return x.to(dtype)


def draw_pool(generator: torch.Generator) -> Pool:
    """Draw a pool."""
    rows, dtype = chosen(SIZES, generator, ODDS_OF_SIZES), chosen((torch.float32, torch.float64), generator)
    scores = draw_scores(chosen(SCORES, generator), (rows,), dtype, generator)
    positive = torch.rand(rows, generator=generator) < chosen((0.0, 0.01, 0.1, 0.5, 0.9, 1.0), generator)
    weight = iid = None
    law = chosen(WEIGHTS, generator)
    if law != "none":
        weight = 0.1 + torch.rand(rows, generator=generator, dtype=torch.float64)
        if law == "any":
            weight = 10.0 ** torch.randint(-6, 7, (rows,), generator=generator).double()
        weight = (weight * {"light": 1e-30, "heavy": 1e30}.get(law, 1.0)).to(dtype)
        absent = torch.rand(rows, generator=generator) < chosen((0.0, 0.3), generator)
        weight[absent], scores[absent] = 0.0, chosen((math.nan, math.inf, 0.0), generator)
    if torch.rand((), generator=generator) < 0.4:
        iid = torch.rand(rows, generator=generator) < chosen((0.0, 0.5, 0.9), generator)
    temperature = 10.0 ** chosen((-4, -2, -1, 0, 1), generator)
    return Pool(scores, positive, weight, iid, temperature, bool(torch.rand((), generator=generator) < 0.5))


def standardised(pool: Pool, scores: Tensor) -> Tensor:
    """Return scores in standard deviations of the iid ones, with gradient; as they are where that is not asked for."""
    assert pool.weight is not None
    assert pool.iid is not None
    counted = pool.weight * pool.iid
    if not pool.in_std or not counted.sum() > 0:
        return scores
    share, largest = counted / counted.sum(), (scores.detach().abs() * (counted > 0)).amax()
    scaled = scores / largest if largest > 0 else scores
    present = scaled.detach()[counted > 0]
    if (present == present[0]).all():
        return scores
    centred = scaled - scaled[counted > 0][0].detach()
    centred = centred - (share * centred).sum()
    return centred / (share * centred * centred).sum().sqrt()


def band_part(pool: Pool, alpha: float, beta: float) -> Tensor:
    """Return the part of each negative's weight that lies in the band, whose edges come from the iid ones."""
    assert pool.weight is not None
    counted = torch.where(pool.positive, 0.0, pool.weight) * pool.iid
    ordered, order = pool.scores.sort(descending=True)
    until, parts = counted[order].cumsum(0), []
    for share in (beta, alpha):
        target = share * counted.sum()
        edge = ordered[min(int((until < target).sum()), len(ordered) - 1)]
        above, tied = counted[pool.scores > edge].sum(), counted[pool.scores == edge].sum()
        within = ((target - above) / tied).clamp(0, 1) if tied > 0 else tied
        part = torch.where(pool.scores > edge, 1.0, torch.where(pool.scores == edge, within, 0.0))
        parts.append(part if share > 0 else torch.zeros_like(part))
    inside = torch.ones_like(parts[0]) if beta == 1 else parts[0]  # all of the weight is also all that scores lower
    return torch.where(pool.positive, 0.0, pool.weight) * (inside - parts[1])


def mined_far_away(pool: Pool) -> bool:
    """Say whether a row that is not iid dwarfs the standard deviation of those that are.

    Torch leaves such a row a slope of 1e-32 where it is 0; times its score that moves the slopes of all others.
    """
    assert pool.weight is not None
    if not pool.in_std or not len(pool.scores):
        return False
    largest = torch.where((pool.weight > 0) & pool.iid, pool.scores.abs(), 0.0).amax()
    return bool(pool.scores.abs().amax() > 1e6 * largest)


def plain(name: str, pool: Pool, options: tuple[Any, ...], scores: Tensor) -> Tensor:
    """Compute what the kernel should find, from scores in units of the temperature's."""
    weight, iid, t = pool.weight, pool.iid, pool.temperature
    if name == "average_precision":
        return functional.smooth_average_precision(scores, pool.positive, weight, temperature=t).value
    if name == "recall":
        among = "negatives" if options[1] else "all"
        found = functional.soft_recall_at_quantile(
            scores, pool.positive, weight, quantile=options[0], among=among, temperature=t, iid_mask=iid
        )
        return found.value
    assert weight is not None
    hits, band = torch.where(pool.positive, weight, 0.0), band_part(pool, *options)
    if not hits.sum() > 0 or not (weight * iid)[~pool.positive].sum() > 0:
        return scores.sum() * math.nan
    i, j = hits.nonzero()[:, 0], band.nonzero()[:, 0]
    above = torch.sigmoid((scores[i, None] - scores[j]) / t)
    return (hits[i] / hits.sum()) @ above @ (band[j] / band.sum())


def slope_at_fixed_std(name: str, pool: Pool, options: tuple[Any, ...]) -> Tensor:
    """Return the gradient with the standard deviation and the mean held constant."""
    ranked = standardised(pool, pool.scores).requires_grad_()
    with native.switched_off():
        (slope,) = torch.autograd.grad(plain(name, pool, options, ranked), ranked)
    return slope / ((pool.scores.amax() - pool.scores.amin()) / (ranked.amax() - ranked.amin()).clamp(min=1e-300))


def compare(found: Tensor, wanted: Tensor, tolerance: float, scale: float) -> str:
    """Say how two results differ; nothing where they agree."""
    found, wanted = found.detach().double(), wanted.detach().double()
    if not torch.equal(found.isfinite(), wanted.isfinite()):
        return f"finite: {found.isfinite().sum()} in place of {wanted.isfinite().sum()} of {found.numel()}"
    error = (found - wanted).nan_to_num(0.0, 0.0, 0.0).abs()
    worst = error.amax().item() / scale if error.numel() else 0.0
    return f"off by {worst:.1e}" if worst > tolerance else ""


def ranking(name: str, generator: torch.Generator) -> str:
    """Compare value and gradient of a soft metric on a pool."""
    pool = draw_pool(generator)
    quantile, edge = chosen((0.005, 0.1, 0.5, 0.9), generator), chosen((0.005, 0.1, 0.5, 1.0), generator)
    options = {
        "average_precision": (),
        "recall": (quantile, bool(torch.rand((), generator=generator) < 0.5)),
        "partial_auc": (chosen((0.0, 0.3), generator) * edge, edge),
    }[name]
    by_class = [None if x is None else x[None] for x in pool[:4]]
    rows, function = len(pool.scores), getattr(native, name)
    value, gradient = function(*by_class, rows, pool.temperature, pool.in_std, True, *options)
    present = pool.present()
    scores = present.scores.clone().requires_grad_()
    with native.switched_off():
        wanted = plain(name, present, options, standardised(present, scores)) if rows else scores.sum() * math.nan
        slope = torch.autograd.grad(wanted.nan_to_num(), scores)[0] if rows else scores
    value_tolerance, slope_tolerance = TOLERANCE[pool.scores.dtype]
    said = compare(value[0], wanted, value_tolerance, 1.0)
    unit = standardised(present, present.scores).std().item() if pool.in_std and rows > 1 else 1.0
    spread = max(present.scores.std().item() / max(unit, 1e-300), 1e-300) if pool.in_std and rows > 1 else 1.0
    least = max(1e-3 / (pool.temperature * spread), torch.finfo(pool.scores.dtype).tiny * 1e6)
    scale = max(slope.abs().amax().item() if rows else 0.0, least)
    if not said and scale < 1e30 and not mined_far_away(present):
        said = compare(gradient[0], slope, slope_tolerance, scale)
        if said and pool.in_std:
            # Its two parts, by the scores and by their standard deviation, may cancel: each has these digits.
            scale = max(scale, slope_at_fixed_std(name, present, options).abs().amax().item())
            said = compare(gradient[0], slope, slope_tolerance, scale)
    return said and f"{name}{options}, {pool.scores.dtype}, {rows} rows, t={pool.temperature}: {said}"


def exact(generator: torch.Generator) -> str:
    """Compare exact average precision and the sort."""
    pool = draw_pool(generator)
    present = pool.present()
    found = native.exact_average_precision(pool.scores[None], pool.positive[None], _row(pool.weight))
    ordered, order = native.sort(present.scores)
    with native.switched_off():
        wanted = metrics.average_precision(present.scores, present.positive, present.weight).value
    said = compare(found[0], wanted, 1e-9, 1.0)
    if not torch.equal(order, present.scores.sort(stable=True).indices) or not torch.equal(
        ordered, present.scores[order]
    ):
        said = "the sort differs"
    return said and f"exact, {pool.scores.dtype}, {len(pool.scores)} rows: {said}"


def _row(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[None]


def count(generator: torch.Generator) -> str:
    """Compare soft counts and their slopes, at the scores or at other points."""
    pool, points = draw_pool(generator), int(torch.randint(0, 40, (), generator=generator))
    present = pool.present()
    assert present.weight is not None
    at = draw_scores(chosen(SCORES, generator), (points,), pool.scores.dtype, generator)
    own = bool(torch.rand((), generator=generator) < 0.3) and bool(pool.scores.isfinite().all())
    weight = torch.ones_like(pool.scores) if pool.weight is None else pool.weight
    given = (pool.scores[None], weight[None, None], None if own else at[None])
    found = native.soft_count(*given, pool.temperature, True, True)
    distance = (present.scores - (pool.scores if own else at).double()[:, None]) / pool.temperature
    tail = torch.sigmoid(-distance.abs())
    slope = tail * (1 - tail)
    wanted = torch.sigmoid(distance) @ present.weight, (slope.fill_diagonal_(0) if own else slope) @ present.weight
    tolerance, scale = TOLERANCE[pool.scores.dtype][0], max(present.weight.sum().item(), 1e-35)
    for name, one, exactly in zip(("count", "its slope"), found, wanted, strict=True):
        assert one is not None
        said = compare(one[0, 0], exactly, tolerance, scale)
        if said:
            return f"{name}, {pool.scores.dtype}, {len(pool.scores)} rows, {points} points: {said}"
    return ""


def odds(generator: torch.Generator) -> str:
    """Compare log-odds and their gradient."""
    rows, classes = chosen((0, 1, 3, 16, 65, 200), generator), chosen((2, 3, 16, 33, 150), generator)
    dtype = chosen((torch.float32, torch.float64), generator)
    logits = draw_scores(chosen(SCORES[:3] + SCORES[5:8], generator), (rows, classes), dtype, generator) * 20
    grad = torch.randn(rows, classes, generator=generator, dtype=torch.float64).to(dtype)
    exact_logits = logits.double().requires_grad_()
    with native.switched_off():
        wanted = functional.log_odds(exact_logits)
        (slope,) = torch.autograd.grad(wanted, exact_logits, grad.double())
    value_tolerance, slope_tolerance = TOLERANCE[dtype]
    said = compare(native.log_odds(logits).mT, wanted, value_tolerance, 100.0)
    said = said or compare(native.log_odds_backward(logits, grad.mT), slope, slope_tolerance, 100.0)
    return said and f"log-odds, {dtype}, {rows} x {classes}: {said}"


def focal(kind: str, generator: torch.Generator) -> str:
    """Compare a focal loss and its slope."""
    dtype, gamma = (
        chosen((torch.float32, torch.float64), generator),
        chosen((0.0, 0.5, 1.0, 1.3, 1.5, 2.0, 5.0), generator),
    )
    shape = chosen(((0, 3), (1, 2), (17, 5), (130, 33), (600, 3), (2, 7, 31), (3, 4, 5, 6)), generator)
    logits = draw_scores(
        chosen(("normal", "ties", "equal", "tiny", "zeros", "gaps"), generator), shape, dtype, generator
    )
    classes, of_targets = shape[1], shape if kind == "sigmoid" else shape[:1] + shape[2:]
    targets = torch.randint(2 if kind == "sigmoid" else classes, of_targets, generator=generator)
    targets[torch.rand(of_targets, generator=generator) < chosen((0.0, 0.3), generator)] = -100
    weight = torch.rand(of_targets, generator=generator, dtype=torch.float64).to(dtype) if kind == "sigmoid" else None
    by_class = torch.rand(shape[-1] if kind == "sigmoid" else classes, generator=generator, dtype=torch.float64).to(
        dtype
    )
    alpha = chosen((0.25 if kind == "sigmoid" else None, by_class), generator)
    smoothing = chosen((0.0, 0.1), generator) if kind == "softmax" and gamma >= 0.5 else 0.0
    exact_logits = logits.double().requires_grad_()
    options: dict[str, Any] = {"gamma": gamma, "weight": None if weight is None else weight.double()}
    options["reduction"] = "none"
    with native.switched_off():
        if kind == "sigmoid":
            found = native.sigmoid_focal(logits, targets, weight, alpha, gamma, -100, True, True)
            if alpha is by_class:  # of the last dimension
                alpha = by_class.double().expand(shape)
            wanted = functional.sigmoid_focal_loss(exact_logits, targets, alpha=alpha, **options)
        else:
            found = native.softmax_focal(logits, targets, weight, alpha, gamma, smoothing, -100, 0, True, True)
            options |= {"alpha": None if alpha is None else alpha.double(), "label_smoothing": smoothing}
            wanted = functional.softmax_focal_loss(exact_logits, targets, **options)
        (slope,) = torch.autograd.grad(wanted.sum(), exact_logits)
    assert found.loss is not None
    assert found.slope is not None
    value_tolerance, slope_tolerance = TOLERANCE[dtype]
    largest = max(1.0, wanted.detach().abs().amax().item()) if wanted.numel() else 1.0
    steepest = max(1.0, slope.abs().amax().item()) if slope.numel() else 1.0
    said = compare(found.loss, wanted, value_tolerance, largest)
    said = said or compare(found.slope, slope, slope_tolerance, steepest)
    weighed = torch.where(targets == -100, 0.0, options["weight"] if weight is not None else 1.0)
    hits = weighed * (targets == 1 if kind == "sigmoid" else targets != 0)
    sums = torch.stack([wanted.detach().sum(), weighed.sum(), hits.sum()])
    of_kernel = torch.tensor([found.loss_sum, found.weight, found.positive], dtype=torch.float64)
    said = said or compare(of_kernel, sums, value_tolerance, largest * max(1, targets.numel()))
    if not said and found.bad:
        said = f"{found.bad} labels are bad"
    return said and f"{kind} focal, {dtype}, {shape}, gamma {gamma}, smoothing {smoothing}: {said}"


COMPARISONS: dict[str, Callable[[torch.Generator], str]] = {
    "average_precision": lambda generator: ranking("average_precision", generator),
    "recall": lambda generator: ranking("recall", generator),
    "partial_auc": lambda generator: ranking("partial_auc", generator),
    "exact": exact,
    "count": count,
    "odds": odds,
    "sigmoid": lambda generator: focal("sigmoid", generator),
    "softmax": lambda generator: focal("softmax", generator),
}


def disagreement(seed: int, only: str | None = None) -> str:
    """Draw the pool of a seed; return in words how the kernel differs from torch, or nothing."""
    name = only or list(COMPARISONS)[seed % len(COMPARISONS)]
    return COMPARISONS[name](torch.Generator().manual_seed(seed))


def under_sanitizers(arguments: list[str]) -> int:
    """Compile a library with sanitizers, and run this module with it in a process of its own."""
    from hatch_build import compile_kernel, machine

    variant = "v3" if machine() == "x86_64" else "arm64"
    compiler = os.environ.get("CXX", "c++")

    def runtime(name: str) -> str:
        return subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()

    with tempfile.TemporaryDirectory() as folder:
        flags = "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"
        compile_kernel(Path(native.__file__).parent, Path(folder), *flags, only=variant)
        settings = {
            "RARELOSS_NATIVE": variant if variant != "arm64" else "1",
            "RARELOSS_NATIVE_FOLDER": folder,
            "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0",  # python's own would be reported
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        return subprocess.run(
            [sys.executable, "-m", __spec__.name, *arguments], env={**os.environ, **settings}
        ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, default=10_000, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="the first one's")
    parser.add_argument("--only", choices=COMPARISONS, help="one function alone")
    parser.add_argument("--sanitize", action="store_true", help="compile with sanitizers, and run under them")
    arguments = parser.parse_args()
    if arguments.sanitize:
        return under_sanitizers([argument for argument in sys.argv[1:] if argument != "--sanitize"])
    torch.set_num_threads(1)
    print(native.why())
    failed = 0
    for seed in range(arguments.seed, arguments.seed + arguments.pools):
        said = disagreement(seed, arguments.only)
        if said:
            failed += 1
            print(f"seed {seed}: {said}", flush=True)
    print(f"{arguments.pools - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
