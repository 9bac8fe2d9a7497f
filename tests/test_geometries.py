"""The drawn distributions are what they say they are; the runner goes on where it was; the page says what ran."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
from benchmarks.geometries import __main__ as geometries
from benchmarks.geometries.draws import bent, contested, with_noise
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from rareloss import metrics


@pytest.mark.parametrize(("bend", "rate"), [(0.0, 0.1), (1.0, 0.01), (1.5, 0.003)])
def test_labels_have_the_rate_that_was_asked_for_and_the_odds_that_are_told(bend: float, rate: float) -> None:
    drawn = bent(200_000, bend, rate, np.random.default_rng(1))
    assert drawn.y.mean() == pytest.approx(rate, rel=0.15)
    p = expit(drawn.truth)
    for low, high in ((0.0, 0.02), (0.02, 0.2), (0.2, 1.0)):
        inside = (p > low) & (p <= high)
        error = np.sqrt((p[inside] * (1 - p[inside])).sum()) + 1
        assert abs(drawn.y[inside].sum() - p[inside].sum()) < 4 * error


def test_logistic_regression_is_right_where_nothing_bends() -> None:
    drawn = bent(100_000, 0.0, 0.1, np.random.default_rng(2))
    found = LogisticRegression(C=np.inf).fit(drawn.x, drawn.y).coef_[0]
    assert found == pytest.approx([1, 0, 0, 0, 0], abs=0.05)


def test_odds_of_the_contested_top_are_right_and_beat_every_input() -> None:
    drawn = contested(400_000, np.random.default_rng(3))
    assert drawn.y.mean() == pytest.approx(0.0015, rel=0.15)
    p = expit(drawn.truth)
    assert p.sum() == pytest.approx(drawn.y.sum(), rel=0.15)
    near = p > 0.5
    assert drawn.y[near].mean() == pytest.approx(p[near].mean(), abs=0.06)
    positive = torch.from_numpy(drawn.y == 1)
    best = metrics.average_precision(torch.from_numpy(drawn.truth), positive).value
    shared = metrics.average_precision(torch.from_numpy(drawn.x[:, :3].sum(1)), positive).value
    assert best > 2 * shared


def test_noise_moves_labels_and_keeps_their_number() -> None:
    y = np.repeat([0, 1], [900, 100])
    noisy = with_noise(y, 0.2, np.random.default_rng(0))
    assert noisy.sum() == 100
    assert (noisy[y == 1] == 0).sum() == (noisy[y == 0] == 1).sum() == 20


def small(monkeypatch: pytest.MonkeyPatch) -> list[geometries.Record]:
    """A few small cells in the place of all."""
    common = {"bend": 1.0, "rate": 0.05, "rows": 2_000}
    cells = [
        {"name": "dial", **common, "seed": 0},
        {"name": "dial", **common, "seed": 1},
        {"name": "noise", **common, "noise": 0.1, "seed": 0},
        {"name": "pool", **common, "pool": 256, "seed": 0},
        {"name": "queue", **common, "queue": 512, "seed": 0},
        {"name": "contested", "model": "linear", "rows": 20_000, "seed": 0},
    ]
    monkeypatch.setattr(geometries, "cells", lambda: iter(cells))
    monkeypatch.setattr(geometries, "TEST_ROWS", 5_000)
    monkeypatch.setattr(geometries, "TRIALS", 1)
    return cells


@pytest.mark.slow
def test_run_goes_on_where_it_was_and_the_page_says_what_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells, out = small(monkeypatch), tmp_path / "found.json"
    threads = torch.get_num_threads()
    try:
        geometries.main(["--out", str(out), "--only", "dial"])
        before = json.loads(out.read_text())
        geometries.main(["--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    after = json.loads(out.read_text())
    assert after[:2] == before
    assert len(after) == len(cells) == len(capsys.readouterr().out.splitlines())
    assert all(one["test"]["tuned_ce"] <= one["bayes"] + 0.03 for one in after if one["name"] == "dial")
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    geometries.main(["--out", str(out), "--page", "--root", str(tmp_path)])
    said = (tmp_path / "docs" / "geometries.md").read_text()
    assert "6 cells ran, 2 seeds at most" in said
    mean = np.mean([one["bayes"] for one in before])
    assert f"| 5.00% | 1 | 2 | {mean:.3f} |" in said
    assert "<svg" in (tmp_path / "docs" / "pictures" / "geometries.svg").read_text()
