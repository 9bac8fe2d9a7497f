"""The bootstrap that intervals of thresholds are compared with is the one that is named."""

import numpy as np
import pytest
from benchmarks.coverage import KEPT, cells, chosen, draw, line, resample

from rareloss.decisions.thresholds import find_threshold


@pytest.mark.parametrize("objective", ["recall@fpr=1%", "recall@top=1%"])
@pytest.mark.parametrize("kind", ["all", "1 in 20 or 7"])
def test_bootstrap_that_counts_rows_near_the_cut_is_that_of_all_rows(kind: str, objective: str) -> None:
    random = np.random.default_rng(0)
    scores, labels, weight = draw(random, 100, 0.01, KEPT[kind])
    cut = find_threshold(scores, labels, objective, weight).threshold.value
    found = []
    for _ in range(600):
        drawn = np.sort(random.integers(0, len(scores), len(scores)))
        s, y, w = scores[drawn], labels[drawn], weight[drawn]
        counted = w if "top" in objective else w * ~y
        anew = s[np.searchsorted(np.cumsum(counted), 0.01 * counted.sum())]
        for at in (cut, anew):
            hits, false = w[y & (s > at)].sum(), w[~y & (s > at)].sum()
            found.append(
                (anew, hits / w[y].sum(), hits / max(hits + false, 1e-9), false / w[~y].sum(), (hits + false) / w.sum())
            )
    slow = np.reshape(found, (600, 2, 5))
    for at, fast in enumerate(resample(random, objective, (scores, labels, weight), cut, 2000)):
        spread = slow[:, at].std(axis=0)
        assert (np.abs(fast.mean(axis=1) - slow[:, at].mean(axis=0)) <= 5 * spread / 600**0.5 + 1e-12).all()
        assert fast.std(axis=1) == pytest.approx(spread, rel=0.25, abs=1e-4)


def test_table_has_a_row_for_each_setting() -> None:
    rows = [line(cell) for cell in cells(3, "1.0% | 10 |")]
    assert len(rows) == 6
    assert all(row.count("|") == 12 for row in rows)
    assert "no end in 100%" in next(row for row in rows if row.startswith("| recall@fpr=1% | 1.0% | 10 | 1 in 10 |"))


def test_table_of_cuts_that_labels_choose_has_both_samples() -> None:
    rows = list(chosen(3, "precision@recall=50% | 10 |"))
    assert [row.split(" | ")[2] for row in rows] == ["all", "1 in 20 or 7"]
    assert all(row.count("|") == 8 for row in rows)
