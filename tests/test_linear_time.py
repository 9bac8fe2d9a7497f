"""The two methods of the soft count against pairs in float64: accuracy, linear memory, hostile scores, odd inputs."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from rareloss import SmoothAPLoss
from rareloss.functional import log_odds, smooth_average_precision, soft_count, soft_partial_auc
from rareloss.ops import (
    SLOPE_COEFFICIENTS,
    VALUE_COEFFICIENTS,
    CountRequest,
    Counts,
    count_by_exponentials,
    count_by_pairs,
    locate,
    native,
)


@pytest.fixture(autouse=True)
def torch_path() -> Iterator[None]:
    """The methods of plain torch are what is tested here."""
    with native.switched_off():
        yield


LAWS = ("normal", "wide", "heavy", "equal", "clusters", "outliers", "chain")
TEMPERATURES = (0.005, 0.05, 1.0)
Method = Callable[..., Counts]


def draw(law: str, rows: int, temperature: float, seed: int = 0) -> Tensor:
    """Draw scores that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, generator=generator)
    if law == "wide":
        return 5 * normal
    if law == "heavy":  # Student's t with two degrees of freedom
        return normal / (torch.randn(2, rows, generator=generator).square().mean(0)).sqrt()
    if law == "equal":
        return torch.full((rows,), 0.75)
    if law == "clusters":
        return normal + 2e4 * (torch.rand(rows, generator=generator) < 0.5)
    if law == "outliers":
        return torch.where(torch.arange(rows) % 97 == 3, 1e30 * normal.sign(), normal)
    if law == "chain":
        return 30 * temperature * torch.randperm(rows, generator=generator)
    return normal


def draw_pool(law: str, rows: int, temperature: float, share: float = 0.01) -> tuple[Tensor, Tensor]:
    """Draw scores and, mostly from the upper half, the given share of positives."""
    scores = draw(law, rows, temperature)
    generator = torch.Generator().manual_seed(1)
    order = (scores.argsort().argsort() / rows + torch.rand(rows, generator=generator)).argsort(descending=True)
    positive = torch.zeros(rows, dtype=torch.bool)
    positive[order[: int(rows * share * 2)][torch.randperm(int(rows * share * 2), generator=generator)[::2]]] = True
    return scores, positive


def draw_weights(*shape: int, signed: bool = False) -> Tensor:
    weights = torch.rand(shape) * (torch.rand(shape) < 0.8)
    return weights * torch.randn(shape) if signed else weights


def by_pairs(scores: Tensor, weights: Tensor, at: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Count every pair in float64: counts and slopes ``[B, K, A]``."""
    scores, weights, at = scores.double(), weights.double(), at.double()
    counts, slopes = [], []
    for block in at.split(max(1, 2**22 // scores.numel()), dim=1):
        distance = (scores[:, None] - block[..., None]) / temperature
        tail = torch.sigmoid(-distance.abs())
        counts.append(weights @ torch.sigmoid(distance).mT)
        slopes.append(weights @ (tail * (1 - tail)).mT / temperature)
    return torch.cat(counts, 2), torch.cat(slopes, 2)


def by_blocks(
    scores: Tensor, weights: Tensor, at: Tensor | None, temperature: float, values: bool = True, slopes: bool = True
) -> Counts:
    return count_by_pairs(CountRequest(scores, weights, at, temperature, values, slopes))


def by_exponentials(
    scores: Tensor, weights: Tensor, at: Tensor | None, temperature: float, values: bool = True, slopes: bool = True
) -> Counts:
    request = CountRequest(scores, weights, at, temperature, values, slopes)
    return count_by_exponentials(request, locate(scores, request.points))


# Largest errors of counts and slopes, relative to what the magnitudes of the weights sum to, in norm over the points.
SINGLE: dict[Method, tuple[float, float]] = {
    by_blocks: (3e-6, 3e-6),
    by_exponentials: (1e-7, 1e-6),
}


def assert_counts_like_pairs(
    methods: dict[Method, tuple[float, float]], scores: Tensor, weights: Tensor, at: Tensor, temperature: float
) -> None:
    """Assert the errors of counts and slopes, in norm over the points of each pool."""
    expected = by_pairs(scores, weights, at, temperature)
    scales = by_pairs(scores, weights.abs(), at, temperature)
    for method, tolerances in methods.items():
        values, slopes = method(scores, weights, at, temperature)
        got = values.double(), slopes.double() / temperature
        assert values.dtype == slopes.dtype == scores.dtype
        for found, exact, scale, tolerance in zip(got, expected, scales, tolerances, strict=True):
            assert found.shape == exact.shape
            assert ((found - exact).norm(dim=2) <= tolerance * scale.norm(dim=2) + 1e-30).all(), method


def three_pools(law: str, temperature: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Draw scores ``[3, 700]``, and points ``[3, 150]`` of which a half are scores."""
    scores = torch.stack([draw(law, 700, temperature, seed) for seed in range(3)]).to(dtype)
    return scores, torch.cat([scores[:, :75], scores[:, 75:150] + 0.3 * temperature], 1)


# The methods


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", SINGLE)
def test_methods_count_like_pairs(method: Method, law: str, temperature: float, signed: bool) -> None:
    scores, at = three_pools(law, temperature, torch.float32)
    weights = draw_weights(3, 2, 700, signed=signed)
    assert_counts_like_pairs({method: SINGLE[method]}, scores, weights, at, temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("law", LAWS)
def test_methods_count_like_pairs_in_float64(law: str, temperature: float) -> None:
    scores, at = three_pools(law, temperature, torch.float64)
    weights = draw_weights(3, 2, 700, signed=True).double()
    # Scores are divided by the temperature before they are subtracted: 2e4 / .005 leaves nine digits and a half.
    loose = (1e-11, 1e-9) if law in ("clusters", "chain") else (1e-13, 1e-12)
    tolerances = {by_blocks: (1e-13, 1e-13), by_exponentials: loose}
    assert_counts_like_pairs(tolerances, scores, weights, at, temperature)


def sizes() -> Iterator[tuple[int, int]]:
    small = (1, 2, 15, 16, 17, 31, 33)
    yield from ((rows, points) for rows in small for points in (1, 2, 16, 31))
    # Around the blocks of pairs and the chunks of the exponentials, which hold a power of two of rows.
    large = (2**11 - 1, 2**11, 2**11 + 1, 2**15 - 1, 2**15, 2**16 + 1, 2**17 - 1, 2**17, 2**17 + 1)
    yield from ((rows, 20) for rows in large)
    yield from ((20, points) for points in large)


@pytest.mark.parametrize(("rows", "points"), list(sizes()))
def test_any_size_counts_like_pairs(rows: int, points: int) -> None:
    scores, weights, at = torch.randn(1, rows), draw_weights(1, 2, rows, signed=True), torch.randn(1, points)
    assert_counts_like_pairs(SINGLE, scores, weights, at, 0.05)


@given(
    seed=st.integers(0, 2**31),
    pools=st.sampled_from([1, 2, 5]),
    rows=st.integers(1, 600),
    points=st.integers(1, 60),
    law=st.sampled_from(LAWS),
    exponent=st.floats(-4, 2),
)
def test_methods_agree_on_any_pool(seed: int, pools: int, rows: int, points: int, law: str, exponent: float) -> None:
    temperature = 10.0**exponent
    scores = torch.stack([draw(law, rows, temperature, seed + pool) for pool in range(pools)])
    somewhere = torch.randint(rows, (pools, points))
    at = scores.gather(1, somewhere) + temperature * torch.randn(points) * (torch.rand(points) < 0.5)
    weights = 10.0 ** float(torch.randint(-9, 9, ())) * draw_weights(pools, 2, rows, signed=seed % 2 == 0)
    assert_counts_like_pairs(SINGLE, scores, weights, at, temperature)


def test_pools_of_different_reach() -> None:
    # Equal scores, narrow ones far away, wide ones; several pools go into one chunk.
    scores = torch.cat([torch.zeros(9, 200), 1e3 + 0.01 * torch.randn(9, 200), 5 * torch.randn(9, 200)])
    assert_counts_like_pairs(SINGLE, scores, draw_weights(27, 1, 200), scores[:, :50], 0.05)


def test_one_set_of_weights_seen_by_every_pool() -> None:
    scores = torch.randn(4, 300)
    for weights in (torch.ones(1, 1, 1).expand(4, 1, 300), draw_weights(1, 2, 300).expand(4, 2, 300)):
        assert_counts_like_pairs(SINGLE, scores, weights, scores, 0.05)


@pytest.mark.parametrize("method", SINGLE)
def test_only_what_is_asked_for_is_counted(method: Method) -> None:
    scores, weights, at = torch.randn(2, 90), draw_weights(2, 1, 90), torch.randn(2, 40)
    values, slopes = method(scores, weights, at, 0.1)
    only_values, no_slopes = method(scores, weights, at, 0.1, slopes=False)
    no_values, only_slopes = method(scores, weights, at, 0.1, values=False)
    assert no_slopes.shape == no_values.shape == (2, 0, 40)
    torch.testing.assert_close((only_values, only_slopes), (values, slopes), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", SINGLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_at_the_scores_leave_out_each_row_with_itself(method: Method, dtype: torch.dtype) -> None:
    scores = torch.cat([torch.randn(2, 90), torch.zeros(2, 30)], 1).to(dtype)
    scores[:, 20:30] = 100 * torch.arange(1, 11)  # alone
    weights = 1 + draw_weights(2, 2, 120).to(dtype)
    values, slopes = method(scores, weights, None, 0.1)
    distance = (scores[:, None].double() - scores[..., None].double()) / 0.1
    pairs = torch.sigmoid(distance) * torch.sigmoid(-distance)
    pairs.diagonal(0, 1, 2).zero_()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    exact = weights.double() @ pairs.mT
    assert ((slopes.double() - exact).abs() <= tolerance * exact + 1e-13).all()
    torch.testing.assert_close(values.double(), weights.double() @ torch.sigmoid(distance).mT, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coefficients_are_the_chebyshev_ones(dtype: torch.dtype) -> None:
    values, slopes = VALUE_COEFFICIENTS[dtype], SLOPE_COEFFICIENTS[dtype]
    terms = len(values)
    older, newer = [Fraction(1)], [Fraction(-1), Fraction(2)]  # T(2u - 1): T_{n+1} = 2 (2u - 1) T_n - T_{n-1}
    for _ in range(terms - 1):
        times = [4 * up - 2 * same for up, same in zip([Fraction(0), *newer], [*newer, Fraction(0)], strict=True)]
        older, newer = newer, [a - b for a, b in zip(times, [*older, Fraction(0), Fraction(0)], strict=True)]
    # An error T(u) / T(-1) is 1 at -1, so that what it leaves of 1 can be divided by 1 + u.
    height = sum(c * (-1) ** power for power, c in enumerate(newer))
    tilt = sum(power * c * (-1) ** (power + 1) for power, c in enumerate(newer))
    assert list(values) == [float(c) for c in over_one_plus_u([c / height for c in newer])]
    # (a + b (1 + u)) T(u) is 1 at -1 and flat there: (1 + u)^2 divides what is left.
    a, b = 1 / height, -tilt / height**2
    error = [(a + b) * same + b * up for same, up in zip([*newer, Fraction(0)], [Fraction(0), *newer], strict=True)]
    once = over_one_plus_u(error)
    assert list(slopes) == [float(c) for c in over_one_plus_u([int(power == 0) - c for power, c in enumerate(once)])]
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    bound = 2 * 5.828**-terms
    for coefficients, power, worst in ((values, 1, bound), (slopes, 2, bound * (1 + 1.4143 * terms))):
        estimate = sum(c * u**k for k, c in enumerate(coefficients))
        assert (estimate * (1 + u) ** power - 1).abs().max() <= 1.001 * worst + 2e-13


def over_one_plus_u(error: list[Fraction]) -> list[Fraction]:
    """Divide one less the error, which is 1 at -1, by 1 + u."""
    quotient: list[Fraction] = []
    for power, coefficient in enumerate(error[:-1]):
        quotient.append(int(power == 0) - coefficient - (quotient[-1] if quotient else 0))
    return quotient


# Through the doors: the method is chosen by the sizes


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Name the methods that were taken."""
    names: set[str] = set()

    def spy(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            names.add(name)
            return method(*args, **kwargs)

        return watched

    for name, method in (("pairs", count_by_pairs), ("exponentials", count_by_exponentials)):
        monkeypatch.setattr(f"rareloss.ops.counts.count_by_{name}", spy(name, method))
    return names


# Pools and the method that takes them: law, rows, points, temperature.
TAKES = {
    "pairs": ("normal", 300, 40, 0.05),
    "exponentials": ("normal", 8000, 400, 0.05),
    "exponentials, heavy tails": ("heavy", 8000, 400, 0.005),
}


def method_of(case: str) -> str:
    return case.split(",")[0]


def average_precision_by_pairs(
    scores: Tensor, positive: Tensor, weight: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Compute smooth average precision and its gradient in float64, positives x pool."""
    scores = scores.double()
    weight = torch.ones_like(scores) if weight is None else weight.double()
    own = weight * positive
    gradient = torch.zeros_like(scores)
    value = torch.zeros((), dtype=torch.float64)
    for rows in (own > 0).nonzero()[:, 0].split(max(1, 2**22 // len(scores))):
        distance = (scores - scores[rows, None]) / temperature
        step = torch.sigmoid(distance)
        among_positives, among_all = step @ own + own[rows] / 2, step @ weight + own[rows] / 2
        share = own[rows] / own.sum()
        value += (share * among_positives / among_all).sum()
        tail = torch.sigmoid(distance.abs_().neg_())
        slope = tail.mul_(1 - tail).div_(temperature)
        to_positives, to_all = share / among_all, -share * among_positives / among_all**2
        gradient += own * (to_positives @ slope) + weight * (to_all @ slope)
        gradient[rows] -= to_positives * (slope @ own) + to_all * (slope @ weight)
    return value, gradient


def value_and_gradient(soft: Callable[[Tensor], Tensor], scores: Tensor) -> tuple[Tensor, Tensor]:
    leaf = scores.detach().clone().requires_grad_()
    value = soft(leaf)
    (gradient,) = torch.autograd.grad(value.nansum(), leaf)
    return value.detach(), gradient


def assert_exact(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], temperature: float) -> None:
    """Assert 1e-6 of the value and 5e-6 of the gradient's norm."""
    assert abs(got[0].double() - expected[0]) <= 1e-6 * expected[0].abs()
    error, norm = (got[1].double() - expected[1]).norm(), expected[1].norm()
    # Far from all others a row has no gradient to speak of: its own pair gives w / 4t to the score and takes as much
    # from the point, which cancel to the rounding of float32. Compared absolutely there.
    assert error <= (5e-6 * norm if norm > 1e-5 / temperature else 5e-10 / temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("law", LAWS)
def test_weighted_average_precision_of_16k_rows(law: str, temperature: float) -> None:
    scores, positive = draw_pool(law, 16384, temperature)
    weight = draw_weights(16384) + (positive & (torch.rand(16384) < 0.9))
    got = value_and_gradient(
        lambda s: smooth_average_precision(s, positive, weight, temperature=temperature).value, scores
    )
    assert_exact(got, average_precision_by_pairs(scores, positive, weight, temperature), temperature)


@pytest.mark.parametrize(
    ("law", "temperature"),
    [
        ("normal", 0.005),
        ("wide", 0.05),
        ("equal", 0.05),
        ("heavy", 0.005),
        ("clusters", 0.05),
        ("outliers", 1.0),
        ("chain", 0.005),
    ],
)
def test_average_precision_of_40k_rows(law: str, temperature: float, taken: set[str]) -> None:
    scores, positive = draw_pool(law, 40_000, temperature)
    got = value_and_gradient(lambda s: smooth_average_precision(s, positive, temperature=temperature).value, scores)
    assert "exponentials" in taken
    assert_exact(got, average_precision_by_pairs(scores, positive, None, temperature), temperature)


@pytest.mark.parametrize("law", LAWS)
def test_average_precision_of_few_rows(law: str, taken: set[str]) -> None:
    scores, positive = draw_pool(law, 1500, 0.05)
    got = value_and_gradient(lambda s: smooth_average_precision(s, positive, temperature=0.05).value, scores)
    assert taken == {"pairs"}
    assert_exact(got, average_precision_by_pairs(scores, positive, None, 0.05), 0.05)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("law", LAWS)
def test_partial_auc_of_16k_rows(law: str, temperature: float) -> None:
    scores, positive = draw_pool(law, 16384, temperature)
    exact = scores.double()
    # From the top, each level of tied negatives takes what is left of the band, and shares it alike.
    _, level, number = exact[~positive].neg().unique(return_inverse=True, return_counts=True)
    left = 0.05 * number.sum() - (number.cumsum(0) - number)
    band = torch.zeros_like(exact)
    band[~positive] = (left / number).clamp(0, 1).double()[level]
    rows, columns = positive.nonzero()[:, 0], (band > 0).nonzero()[:, 0]
    distance = (exact[rows, None] - exact[columns]) / temperature
    tail = torch.sigmoid(-distance.abs())
    scale = 1 / (len(rows) * band.sum())
    gradient = torch.zeros_like(exact)
    slope = tail * (1 - tail) * band[columns] * scale / temperature
    gradient[rows] += slope.sum(1)
    gradient[columns] -= slope.sum(0)
    value = (torch.sigmoid(distance) * band[columns]).sum() * scale
    got = value_and_gradient(lambda s: soft_partial_auc(s, positive, beta=0.05, temperature=temperature).value, scores)
    assert_exact(got, (value, gradient), temperature)


@pytest.mark.parametrize("case", TAKES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_to_scores_weights_and_points(case: str, dtype: torch.dtype, taken: set[str]) -> None:
    law, rows, points, temperature = TAKES[case]
    scores = draw(law, rows, temperature).to(dtype).requires_grad_()
    weights = draw_weights(2, rows).to(dtype).requires_grad_()
    at = draw(law, points, temperature, seed=5).to(dtype).requires_grad_()
    grad_output = torch.randn(2, points, dtype=dtype)
    counts = soft_count(scores, weights, at=at, temperature=temperature)
    got = torch.autograd.grad(counts, (scores, weights, at), grad_output)
    assert taken == {method_of(case)}

    def expected(weights: Tensor, grad_output: Tensor, sign: float) -> tuple[Tensor, Tensor, Tensor]:
        _, slopes = by_pairs(scores[None], weights[None], at[None], temperature)
        beneath, pulls = by_pairs(at[None], grad_output[None], scores[None], temperature)
        to_weights = grad_output.double().sum(1, keepdim=True) - beneath[0]
        return (weights * pulls[0]).sum(0), to_weights, sign * (grad_output * slopes[0]).sum(0)

    with torch.no_grad():
        exact, scale = expected(weights, grad_output, -1.0), expected(weights.abs(), grad_output.abs(), 1.0)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-11
    for one, true, of in zip(got, exact, scale, strict=True):
        assert one.dtype == dtype
        assert (one.double() - true).norm() <= tolerance * of.norm()


@pytest.mark.parametrize("case", TAKES)
def test_second_derivative_is_refused(case: str, taken: set[str]) -> None:
    law, rows, points, temperature = TAKES[case]
    scores, weights = draw(law, rows, temperature).requires_grad_(), draw_weights(rows).requires_grad_()
    at = draw(law, points, temperature, seed=5)
    counts = soft_count(scores, weights, at=at, temperature=temperature).square().sum()
    once = torch.autograd.grad(counts, (scores, weights), create_graph=True)
    assert taken == {method_of(case)}
    for first in once:
        with pytest.raises(RuntimeError, match="second derivative"):
            torch.autograd.grad(first.sum(), scores, retain_graph=True)
    again = torch.autograd.grad(soft_count(scores, weights, at=at, temperature=temperature).square().sum(), scores)
    assert torch.equal(again[0], once[0])


@pytest.mark.parametrize("heavy", [1e-4, 1e2, 1e5])
def test_light_positives_among_heavy_negatives(heavy: float, taken: set[str]) -> None:
    positive = torch.arange(30_000) % 100 == 0
    weight = torch.where(positive, 1.0, heavy)
    # A tail of 28 temperatures, of all negatives at once, still weighs something beside a single positive.
    near, far = torch.where(positive, 2.0, 0.0) + torch.randn(30_000), torch.where(positive, 0.0, -1.4)
    for scores in (near, far + 5e-4 * torch.randn(30_000)):
        value = smooth_average_precision(scores, positive, weight, temperature=0.05).value
        exact, _ = average_precision_by_pairs(scores, positive, weight, 0.05)
        assert abs(value.double() - exact) <= 1e-6 * exact
    assert "exponentials" in taken


@pytest.mark.parametrize("case", TAKES)
@pytest.mark.parametrize("alone", ["scores", "weights", "at"])
def test_gradient_to_one_input_alone(case: str, alone: str) -> None:
    law, rows, points, temperature = TAKES[case]
    given = {
        "scores": draw(law, rows, temperature),
        "weights": draw_weights(rows),
        "at": draw(law, points, temperature, 5),
    }
    grad_output = torch.randn(points)
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    soft_count(**leaves, temperature=temperature).backward(grad_output)
    leaf = given[alone].clone().requires_grad_()
    soft_count(**{**given, alone: leaf}, temperature=temperature).backward(grad_output)
    torch.testing.assert_close(leaf.grad, leaves[alone].grad, rtol=1e-5, atol=1e-5 / temperature)


# Many classes


@pytest.mark.parametrize("rows", [400, 6000])
@pytest.mark.parametrize("weighted", [None, "rows", "all"])
def test_classes_of_different_sizes_equal_calls_of_their_own(rows: int, weighted: str | None) -> None:
    scores = torch.randn(rows, 6) * torch.tensor([1.0, 1.0, 30.0, 1e-3, 1.0, 1e4])
    number = torch.tensor([1, 3, rows // 100, rows // 10, 0, rows // 2])
    positive = torch.rand(rows, 6).argsort(0).argsort(0) < number
    weight = {None: None, "rows": draw_weights(rows) + 0.01, "all": draw_weights(rows, 6) + positive * 0.5}[weighted]
    got = value_and_gradient(lambda s: smooth_average_precision(s, positive, weight, temperature=0.05).value, scores)
    assert got[0].isnan().tolist() == [False, False, False, False, True, False]
    assert not got[1][:, 4].any()
    for c in (0, 1, 2, 3, 5):
        own = weight[:, c] if weighted == "all" else weight
        exact = average_precision_by_pairs(scores[:, c], positive[:, c], own, 0.05)
        assert_exact((got[0][c], got[1][:, c]), exact, 0.05)
        alone = smooth_average_precision(scores[:, c], positive[:, c], own, temperature=0.05).value
        torch.testing.assert_close(got[0][c], alone, rtol=2e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.005, 0.3])
def test_class_indices_rank_each_class_against_the_rest(temperature: float) -> None:
    classes = 40
    logits = 3 * torch.randn(5000, classes)
    targets = (torch.rand(5000).square() * (classes - 1)).long()  # the last class has no rows
    loss = SmoothAPLoss(classes, queue_size=0, temperature=temperature, temperature_unit="logit", reduction="none")
    got = value_and_gradient(lambda z: loss(z, targets), logits)
    assert got[0].isnan().nonzero().flatten().tolist() == [classes - 1]
    ranked = log_odds(logits.double()).float()
    for c in (0, 1, classes // 2, classes - 2):
        exact, _ = average_precision_by_pairs(ranked[:, c], targets == c, None, temperature)
        # Log-odds in float32 are rounded by the loss itself, before they are ranked.
        torch.testing.assert_close(1 - got[0][c].double(), exact, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(got[1]).all()


def test_missing_labels_of_many_classes() -> None:
    logits, targets = torch.randn(4000, 5), (torch.rand(4000, 5) < 0.02).long()
    missing = torch.rand(4000, 5) < 0.3
    garbage = torch.where(missing, torch.nan, logits)
    loss = SmoothAPLoss(5, queue_size=0, temperature=0.05, temperature_unit="logit", reduction="none")
    got = value_and_gradient(lambda z: loss(z, targets.masked_fill(missing, -100)), garbage)
    assert not got[1][missing].any()
    for c in range(5):
        present = ~missing[:, c]
        value, gradient = average_precision_by_pairs(logits[present, c], targets[present, c] == 1, None, 0.05)
        assert_exact((got[0][c], got[1][present, c]), (1 - value, -gradient), 0.05)


# Transforms


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
@pytest.mark.parametrize("case", TAKES)
def test_compiled_graphs_stay_whole(case: str) -> None:
    law, rows, points, temperature = TAKES[case]
    scores, weights = draw(law, rows, temperature), draw_weights(rows)
    at = draw(law, points, temperature, seed=5)

    def count(scores: Tensor) -> Tensor:
        return soft_count(scores, weights, at=at, temperature=temperature).square().sum()

    torch.compiler.reset()
    compiled = torch.compile(count, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradient(compiled, scores), value_and_gradient(count, scores))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
@pytest.mark.parametrize("case", TAKES)
def test_compiled_average_precision_stays_whole(case: str) -> None:
    law, rows, _, temperature = TAKES[case]
    scores, positive = draw_pool(law, rows, temperature)

    def precision(scores: Tensor) -> Tensor:
        return smooth_average_precision(scores, positive, temperature=temperature).value

    torch.compiler.reset()
    compiled = torch.compile(precision, fullgraph=True, backend="aot_eager")
    expected, got = value_and_gradient(precision, scores), value_and_gradient(compiled, scores)
    assert_exact(got, (expected[0].double(), expected[1].double()), temperature)


@pytest.mark.parametrize("case", TAKES)
def test_function_transforms_equal_autograd(case: str) -> None:
    law, rows, points, temperature = TAKES[case]
    scores = torch.stack([draw(law, rows, temperature, seed) for seed in range(3)])
    weights, points_at = draw_weights(3, rows), draw(law, 3 * points, temperature, seed=5).view(3, points)
    inputs = (scores, weights, points_at)

    def count(scores: Tensor, weights: Tensor, at: Tensor) -> Tensor:
        return soft_count(scores, weights, at=at, temperature=temperature).square().mean()

    def one_by_one(mapped: tuple[bool, ...], argument: int) -> Tensor:
        found = []
        for b in range(3):
            leaves = [(x[b] if m else x[0]).clone().requires_grad_() for x, m in zip(inputs, mapped, strict=True)]
            found.append(torch.autograd.grad(count(*leaves), leaves[argument])[0])
        return torch.stack(found)

    for mapped in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        given = [x if m else x[0] for x, m in zip(inputs, mapped, strict=True)]
        dims = tuple(0 if m else None for m in mapped)
        for argument in range(3):
            got = vmap(grad(count, argnums=argument), dims)(*given)
            expected = one_by_one(mapped, argument)
            assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("case", TAKES)
def test_one_gradient_arrives_for_many_weights(case: str) -> None:
    law, rows, points, temperature = TAKES[case]
    scores, at, weights = draw(law, rows, temperature), draw(law, points, temperature, seed=5), draw_weights(3, rows)
    grad_output = torch.randn(points)

    def pulled(weights: Tensor) -> Tensor:
        _, pull = vjp(lambda s: soft_count(s, weights, at=at, temperature=temperature), scores)
        (found,) = pull(grad_output)
        return found

    expected = torch.stack([pulled(one) for one in weights])
    assert (vmap(pulled)(weights) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("case", TAKES)
def test_function_transforms_of_average_precision(case: str) -> None:
    law, rows, _, temperature = TAKES[case]
    pools = [draw_pool(law, rows, temperature, share) for share in (0.02, 0.05)]
    scores, positive = (torch.stack(column) for column in zip(*pools, strict=True))

    def precision(scores: Tensor, positive: Tensor) -> Tensor:
        return smooth_average_precision(scores, positive, temperature=temperature).value

    values, gradients = vmap(precision)(scores, positive), vmap(grad(precision))(scores, positive)
    for b in range(2):
        expected = average_precision_by_pairs(scores[b], positive[b], None, temperature)
        assert_exact((values[b], gradients[b]), expected, temperature)


@pytest.mark.parametrize("case", TAKES)
@pytest.mark.parametrize("classes", [(), (3,)])
def test_meta_tensors_give_shapes(case: str, classes: tuple[int, ...]) -> None:
    rows = TAKES[case][1]
    scores = torch.empty(rows, *classes, device="meta", requires_grad=True)
    value = smooth_average_precision(scores, torch.empty_like(scores, dtype=torch.bool), temperature=0.05).value
    assert value.shape == classes
    value.sum().backward()
    assert scores.grad is not None
    assert scores.grad.shape == scores.shape


@pytest.mark.parametrize("case", TAKES)
def test_fake_tensors_give_shapes(case: str) -> None:
    law, rows, _, temperature = TAKES[case]
    scores, positive = draw_pool(law, rows, temperature)
    with FakeTensorMode() as mode:
        leaf = mode.from_tensor(scores).requires_grad_()
        value = smooth_average_precision(leaf, mode.from_tensor(positive), temperature=temperature).value
        value.backward()
    assert value.shape == ()
    assert leaf.grad is not None
    assert leaf.grad.shape == scores.shape


# Cost: no tensor of positives x pool


class Largest(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return result


@pytest.mark.parametrize("law", LAWS)
def test_no_tensor_holds_the_pairs(law: str) -> None:
    rows = 200_000
    scores, positive = draw_pool(law, rows, 0.005)
    scores.requires_grad_()
    with Largest() as largest:
        smooth_average_precision(scores, positive, temperature=0.005).value.backward()
    assert rows <= largest.elements <= 16 * rows
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("rows", [50, 2000])
def test_classes_share_blocks_of_pairs(rows: int) -> None:
    scores = torch.randn(rows, 300, requires_grad=True)
    positive = torch.randint(300, (rows, 1)) == torch.arange(300)
    with Largest() as largest:
        smooth_average_precision(scores, positive, temperature=0.01).value.nansum().backward()
    assert largest.elements <= 16 * rows * 300


# Odd inputs


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("case", TAKES)
def test_scores_that_are_not_finite(case: str, number: float) -> None:
    law, rows, _, temperature = TAKES[case]
    scores, positive = draw_pool(law, rows, temperature)
    scores[[3, rows - 3]] = number
    value, _ = value_and_gradient(
        lambda s: smooth_average_precision(s, positive, temperature=temperature).value, scores
    )
    assert value.isnan()
    absent = torch.ones(rows)
    absent[[3, rows - 3]] = 0
    got = value_and_gradient(
        lambda s: smooth_average_precision(s, positive, absent, temperature=temperature).value, scores
    )
    kept = absent > 0
    exact = average_precision_by_pairs(scores[kept], positive[kept], None, temperature)
    assert_exact((got[0], got[1][kept]), exact, temperature)
    assert not got[1][~kept].any()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("points", [0, 2])
@pytest.mark.parametrize("classes", [(), (1,), (4,)])
def test_nothing_to_count(rows: int, points: int, classes: tuple[int, ...]) -> None:
    scores = torch.randn(rows, *classes, requires_grad=True)
    weights = torch.rand(2, rows, *classes, requires_grad=True)
    at = torch.randn(points, *classes, requires_grad=True)
    counts = soft_count(scores, weights, at=at, temperature=0.1)
    assert counts.shape == (2, points, *classes)
    counts.sum().backward()
    for leaf in (scores, weights, at):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape
        assert torch.isfinite(leaf.grad).all()
    if not rows or not points:
        assert not counts.any()


def test_no_classes() -> None:
    scores = torch.zeros(5, 0, requires_grad=True)
    value, defined = smooth_average_precision(scores, torch.zeros(5, 0, dtype=torch.bool))
    assert value.shape == defined.shape == (0,)
    assert soft_count(scores, scores, temperature=1.0).shape == (5, 0)


@pytest.mark.parametrize("rows", [60, 4000])
@pytest.mark.parametrize("temperature", [1e-30, 0.05, 1e30])
def test_scores_and_temperatures_of_any_size(rows: int, temperature: float) -> None:
    points = rows // 20
    for size in (1e-40, 1e-30, 1.0, 1e30, 1e38):
        scores = (torch.randn(rows).clamp(-3, 3) * size)[:, None].repeat(1, 2)
        weights = draw_weights(rows, 2)
        leaf = scores.clone().requires_grad_()
        counts = soft_count(leaf, weights, at=scores[:points], temperature=temperature)
        expected, _ = by_pairs(scores.T, weights.T[:, None], scores[:points].T, temperature)
        torch.testing.assert_close(counts.double(), expected[:, 0].T, rtol=1e-5, atol=1e-4)
        counts.sum().backward()
        assert leaf.grad is not None
        assert not leaf.grad.isnan().any()


@pytest.mark.parametrize("temperature", [1e-38, 1e-36])
def test_subnormal_scores(temperature: float) -> None:
    for rows in (60, 9000):
        scores, weights = temperature * torch.randn(1, rows), draw_weights(1, 1, rows)
        expected, _ = by_pairs(scores, weights, scores[:, : rows // 10], temperature)
        counts = soft_count(scores[0], weights[0, 0], at=scores[0, : rows // 10], temperature=temperature)
        torch.testing.assert_close(counts.double(), expected[0, 0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [60, 9000])
@pytest.mark.parametrize("temperature", [1e-40, 1e-300])
def test_vanishing_temperatures_count_hard(rows: int, temperature: float) -> None:
    scores, weights = torch.randn(rows).round(decimals=1), draw_weights(rows)
    at = scores[: rows // 20]
    above = (scores > at[:, None]).double() + (scores == at[:, None]).double() / 2
    counts = soft_count(scores, weights, at=at, temperature=temperature)
    torch.testing.assert_close(counts.double(), above @ weights.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [60, 9000])
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 2e-8, 1e45, 1e100, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_at_temperatures_of_any_size(rows: int, temperature: float, dtype: torch.dtype) -> None:
    drawn, positive = torch.randn(rows, dtype=torch.float64), torch.arange(rows) % 9 == 0
    weight = draw_weights(rows).to(dtype)
    for scores in (drawn, 1 + 2e-8 * drawn, (2 * drawn).round()):
        for soft in (smooth_average_precision, soft_partial_auc):
            value, gradient = value_and_gradient(
                lambda s, soft=soft: soft(s, positive, weight, temperature=temperature).value, scores.to(dtype)
            )
            assert 0 <= value <= 1 + 1e-6
            assert torch.isfinite(gradient).all()
            if temperature > 1e40:
                assert gradient.abs().max() <= 1e-38


@pytest.mark.parametrize("case", TAKES)
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_one_factor_on_all_weights_changes_nothing(case: str, factor: float) -> None:
    law, rows, _, temperature = TAKES[case]
    scores, positive = draw_pool(law, rows, temperature)
    weight = draw_weights(rows) + 0.1
    expected = average_precision_by_pairs(scores, positive, weight, temperature)
    got = value_and_gradient(
        lambda s: smooth_average_precision(s, positive, factor * weight, temperature=temperature).value, scores
    )
    assert_exact(got, expected, temperature)


@pytest.mark.parametrize("case", TAKES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ranks_like_float32(case: str, dtype: torch.dtype) -> None:
    law, rows, _, temperature = TAKES[case]
    scores, positive = draw_pool(law, rows, temperature)
    scores = scores.clamp(-6e4, 6e4).to(dtype)
    weight = draw_weights(rows).to(dtype) + positive.to(dtype)

    def precision(scores: Tensor) -> Tensor:
        return smooth_average_precision(scores, positive, weight, temperature=temperature).value

    value, gradient = value_and_gradient(precision, scores)
    expected = value_and_gradient(precision, scores.float())
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1].to(dtype))


@pytest.mark.parametrize("case", TAKES)
def test_autocast_changes_nothing(case: str) -> None:
    law, rows, _, temperature = TAKES[case]
    scores, positive = draw_pool(law, rows, temperature)
    columns, positives = scores[:, None].repeat(1, 2), positive[:, None].repeat(1, 2)

    def precision(scores: Tensor) -> Tensor:
        marks = positives if scores.ndim == 2 else positive
        return smooth_average_precision(scores, marks, temperature=temperature).value

    for laid in (scores, columns):
        expected = value_and_gradient(precision, laid)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = value_and_gradient(precision, laid)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("case", TAKES)
def test_layout_changes_nothing(case: str) -> None:
    law, rows, points, temperature = TAKES[case]
    scores = torch.stack([draw(law, rows, temperature, seed) for seed in range(2)], 1)
    weights, at = draw_weights(rows, 2), scores[:points].clone()
    spread = torch.randn(2, rows, 3).transpose(0, 1)
    layouts = [spread[..., 0].copy_(scores), scores.T.contiguous().T, scores.flip(0).contiguous().flip(0)]
    expected = soft_count(scores, weights, at=at, temperature=temperature)
    for layout in layouts:
        assert torch.equal(soft_count(layout, weights, at=at, temperature=temperature), expected)
    one = scores[:, :1]
    broad = soft_count(
        one.expand(-1, 2), weights[:, :1].expand(-1, 2), at=at[:, :1].expand(-1, 2), temperature=temperature
    )
    alone = soft_count(
        one.repeat(1, 2), weights[:, :1].repeat(1, 2), at=at[:, :1].repeat(1, 2), temperature=temperature
    )
    torch.testing.assert_close(broad, alone)
    leaf = torch.randn(1, requires_grad=True)
    soft_count(leaf.expand(rows), weights[:, 0], at=at[:, 0], temperature=temperature).sum().backward()
    assert leaf.grad is not None
    whole = torch.full((rows,), leaf.item(), requires_grad=True)
    soft_count(whole, weights[:, 0], at=at[:, 0], temperature=temperature).sum().backward()
    assert whole.grad is not None
    torch.testing.assert_close(leaf.grad, whole.grad.sum().view(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", TAKES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_counting_without_a_graph_spoils_no_later_graph(case: str, mode: Callable[[], Any]) -> None:
    law, rows, _, temperature = TAKES[case]
    rows += (
        7 if mode is torch.no_grad else 2 * rows
    )  # sizes that no other test has met, so that nothing is known of them
    scores, positive = draw_pool(law, rows, temperature)
    with mode():
        quiet = smooth_average_precision(scores.clone(), positive, temperature=temperature).value
    assert not quiet.requires_grad
    got = value_and_gradient(lambda s: smooth_average_precision(s, positive, temperature=temperature).value, scores)
    torch.testing.assert_close(got[0], quiet.clone(), rtol=1e-6, atol=0)
    assert_exact(got, average_precision_by_pairs(scores, positive, None, temperature), temperature)


@pytest.mark.parametrize("case", TAKES)
@pytest.mark.parametrize("classes", [1, 5])
def test_repeats_agree_bit_for_bit(case: str, classes: int) -> None:
    law, rows, _, temperature = TAKES[case]
    pools = [draw_pool(law, rows, temperature, 0.01 * (c + 1)) for c in range(classes)]
    scores, positive = (torch.stack(column, 1) for column in zip(*pools, strict=True))

    def precision(scores: Tensor) -> Tensor:
        return smooth_average_precision(scores, positive, temperature=temperature).value

    once, again = value_and_gradient(precision, scores), value_and_gradient(precision, scores)
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])


@pytest.mark.parametrize("case", TAKES)
def test_graph_walked_twice_gives_the_same_gradient(case: str) -> None:
    law, rows, points, temperature = TAKES[case]
    scores, weights = draw(law, rows, temperature).requires_grad_(), draw_weights(2, rows).requires_grad_()
    counts = soft_count(scores, weights, at=draw(law, points, temperature, seed=5), temperature=temperature)
    grad_output = torch.randn_like(counts)
    once = torch.autograd.grad(counts, (scores, weights), grad_output, retain_graph=True)
    again = torch.autograd.grad(counts, (scores, weights), grad_output)
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize("case", TAKES)
def test_gradient_of_average_precision_sums_to_zero(case: str) -> None:
    law, rows, _, temperature = TAKES[case]
    scores, positive = draw_pool(law, rows, temperature)
    _, gradient = value_and_gradient(
        lambda s: smooth_average_precision(s, positive, temperature=temperature).value, scores
    )
    assert abs(gradient.double().sum()) <= 1e-6 * gradient.double().abs().sum()
