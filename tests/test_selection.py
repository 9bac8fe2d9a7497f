"""The top of the weight and hard counts: classes large enough to be searched or sorted in parts, against plain sums."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rareloss.ops import hard_count, top

ROWS = 20_000


def draw(law: str, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    scores = torch.randn(rows, generator=generator)
    if law == "ties":
        return (8 * scores).round() / 8
    if law == "equal":
        return torch.full_like(scores, 0.75)
    if law == "heavy":
        return scores.sinh().sinh().clamp(-1e30, 1e30)
    if law == "sorted":
        return scores.sort().values
    if law == "periodic":
        # Every row that an even sample would take is low.
        for step in range(30, 40):
            scores[::step] = -5.0 + scores[::step] / 100
    return scores


def weights(name: str, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    weight = torch.ones(rows)
    if name == "drawn":
        weight = torch.rand(rows, generator=generator) ** 8
        weight[torch.rand(rows, generator=generator) < 0.5] = 0.0
    elif name == "one giant":
        weight[rows // 3] = 2.0**24
    elif name == "few":
        weight[10:] = 0.0
    return weight


def parts_by_sorting(scores: Tensor, weight: Tensor, share: float) -> NDArray[np.float64]:
    """Return the part of each row that lies above ``share`` of the weight, counted downwards group by group."""
    values, group = np.unique(-scores.double().numpy(), return_inverse=True)
    tied = np.bincount(group.ravel(), weight.double().numpy(), len(values))
    before = tied.cumsum() - tied
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(tied > 0, np.clip((share * tied.sum() - before) / tied, 0, 1), np.nan)
    return part[group.ravel()]


@pytest.mark.parametrize("weighting", ["none", "drawn", "one giant", "few"])
@pytest.mark.parametrize("law", ["normal", "ties", "equal", "heavy", "sorted", "periodic"])
@pytest.mark.parametrize("share", [0.0005, 0.005, 0.5, 0.93, 1.0])
def test_top_holds_the_share_of_the_weight(law: str, weighting: str, share: float) -> None:
    scores, weight = draw(law), weights(weighting)
    found = top(scores[None], weight[None], share)
    present = (weight > 0).numpy()
    part = found.part(scores[None])[0].numpy()
    expected = parts_by_sorting(scores, weight, share)
    np.testing.assert_allclose(part[present], expected[present], atol=1e-7)
    held = (found.weight.double() * found.part(found.scores)).sum().item()
    assert held == pytest.approx(share * weight.double().sum().item(), rel=1e-9)


def test_classes_of_one_pool_are_searched_apart() -> None:
    scores = torch.stack([draw("normal"), draw("ties") + 50, draw("heavy")])
    weight = torch.stack([weights("none"), weights("drawn"), weights("few")])
    found = top(scores, weight, 0.02)
    for row in range(3):
        alone = top(scores[row : row + 1], weight[row : row + 1], 0.02)
        assert found.score[row].item() == alone.score.item()
        assert found.above[row].item() == pytest.approx(alone.above.item(), rel=1e-12)
        assert found.tied[row].item() == pytest.approx(alone.tied.item(), rel=1e-12)


def test_gradient_reaches_the_rows_of_the_top_alone() -> None:
    scores = draw("normal").requires_grad_()
    found = top(scores[None], torch.ones(1, ROWS), 0.01)
    (found.scores * found.weight * found.part(found.scores)).sum().backward()
    assert scores.grad is not None
    assert scores.grad.sum().item() == 0.01 * ROWS
    assert (scores.grad > 0).equal(scores.detach() >= found.score[0])


def test_top_of_no_weight_is_nothing() -> None:
    for rows in (10, ROWS):
        found = top(torch.randn(1, rows), torch.zeros(1, rows), 0.1)
        assert found.above.item() == found.tied.item() == 0.0
        assert (found.weight * found.part(found.scores)).sum() == 0.0


@pytest.mark.parametrize("points", [1, 50, 5000])
@pytest.mark.parametrize("law", ["normal", "ties", "equal"])
def test_hard_count_equals_a_sum_however_it_is_split(law: str, points: int) -> None:
    rows = 400_000
    scores, weight = torch.stack([draw(law, rows), -draw(law, rows)]), torch.stack([weights("drawn", rows)] * 2)
    at = torch.stack([scores[0, -points:], scores[1, :points]])
    above, or_at = hard_count(scores, weight, at)
    for row in range(2):
        for point in range(0, points, max(1, points // 5)):
            higher, equal = scores[row] > at[row, point], scores[row] == at[row, point]
            assert above[row, point].item() == pytest.approx(weight[row].double()[higher].sum().item(), rel=1e-12)
            expected = weight[row].double()[higher | equal].sum().item()
            assert or_at[row, point].item() == pytest.approx(expected, rel=1e-12)
