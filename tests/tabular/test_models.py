"""Models: names, shapes, and the start at the base rate."""

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
from rareloss.table import DataError
from rareloss.tabular.models import MODELS, ON_REQUEST, find_model, logits_of, start_at_base_rate


@pytest.mark.parametrize("name", [*MODELS, *ON_REQUEST])
@pytest.mark.parametrize(("outputs", "shape"), [(1, (5,)), (4, (5, 4))])
def test_logits_have_one_value_per_output(name: str, outputs: int, shape: tuple[int, ...]) -> None:
    model = find_model(name).build(3, outputs)
    assert logits_of(model, torch.zeros(5, 3), outputs).shape == shape


@pytest.mark.parametrize("name", [*MODELS, *ON_REQUEST])
def test_binary_scorer_starts_at_the_log_odds_of_the_base_rate(name: str) -> None:
    model = find_model(name).build(3, 1)
    start_at_base_rate(model, torch.tensor([90, 10]), 1)
    # 10 to 90 are odds of 1 / 9.
    assert logits_of(model, torch.zeros(1, 3), 1).item() == pytest.approx(-torch.tensor(9.0).log().item(), abs=0.5)


@pytest.mark.parametrize(("name", "hidden"), [("mlp8", [8]), ("mlp32", [32]), ("mlp", [128, 64])])
def test_networks_are_as_wide_as_they_say(name: str, hidden: list[int]) -> None:
    layers = [layer for layer in find_model(name).build(3, 1).modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers[:-1]] == hidden


def test_multiclass_scorer_starts_at_the_shares_of_the_classes() -> None:
    model = find_model("linear").build(3, 3)
    start_at_base_rate(model, torch.tensor([50, 30, 20]), 3)
    shares = logits_of(model, torch.zeros(1, 3), 3).softmax(1)
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.3, 0.2]]))


def test_network_without_a_last_bias_is_left_alone() -> None:
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.clone()
    start_at_base_rate(model, torch.tensor([90, 10]), 1)
    torch.testing.assert_close(model.weight, before)


def test_users_function_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scorer.py").write_text(
        "from torch import nn\n\ndef build(n, outputs):\n    return nn.Linear(n, outputs)\n"
    )
    monkeypatch.chdir(tmp_path)
    family = find_model("own_scorer:build")
    assert not family.scorecard
    assert logits_of(family.build(3, 2), torch.zeros(5, 3), 2).shape == (5, 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("forest", "there is no model 'forest'"),
        ("no_such_module:build", "cannot be imported"),
        ("math:no_such_function", "cannot be imported"),
        ("math:pi", "is no function"),
    ],
)
def test_unknown_scorer_is_refused(name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_model(name)


def test_network_of_a_wrong_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"logits of shape \[5, 1\], got \[5, 2\]"):
        logits_of(nn.Linear(3, 2), torch.zeros(5, 3), 1)
