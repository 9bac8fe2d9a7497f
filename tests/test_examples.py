"""Each example runs on its own and prints its comparison."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_the_five_examples_are_here() -> None:
    names = {path.stem for path in EXAMPLES}
    assert {"binary", "multilabel", "multiclass_rare", "dense_detection", "token_targets"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_compares_with_cross_entropy(path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, check=False, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    assert "cross-entropy" in finished.stdout
