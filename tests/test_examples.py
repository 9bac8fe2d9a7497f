"""Each example runs, with a fifth of its steps, and prints its comparison."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_the_five_examples_are_here() -> None:
    names = {path.stem for path in EXAMPLES}
    assert {"binary", "multilabel", "multiclass_rare", "dense_detection", "token_targets"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_compares_with_cross_entropy(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(path))
    main = example["main"]
    if "STEPS" in example:
        main.__globals__["STEPS"] //= 20
    main()
    printed = capsys.readouterr().out
    assert "cross-entropy" in printed
    assert "nan" not in printed
