"""The drawing of the layers is the architecture: nobody imports what stands above them."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import rareloss

# From the bottom to the top; a layer imports itself and what stands to its left.
LAYERS = (
    "extras",
    "eager",
    "checks",
    "distributed",
    "pool",
    "ops",
    "metrics",
    "losses",
    "objectives",
    "training",
    "testing",
    "integrations",
    "table",
    "decisions",
    "tabular",
    "cli",
)
CORE = LAYERS[: LAYERS.index("testing") + 1]
# Folders whose insides are their own business: others import from the folder alone.
DOORS = ("ops", "losses", "training", "testing", "table", "decisions", "tabular")
FAMILIES = ("average_precision", "focal", "partial_auc", "recall")  # the loss files, which never import each other
# These show a user the public names, so they import everything of the core, and the core nothing of them.
FACADES = ("", "functional", "native")
PACKAGE = Path(rareloss.__file__).parent


def read_package() -> dict[str, str]:
    """Return the source of every module by its dotted name below ``rareloss`` (the package itself: an empty name)."""
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def imports(module: str, source: str, sources: Mapping[str, str]) -> Iterator[str]:
    """Yield the full dotted name of everything that ``source`` imports, at any depth of its code."""
    is_package = any(other.startswith(f"{module}.") for other in sources) or not module
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                here = ["rareloss", *filter(None, module.split("."))]
                up = node.level - 1 if is_package else node.level
                start = ".".join([*here[: len(here) - up], *filter(None, [start])])
            # `from rareloss import checks` imports a layer, `from rareloss.checks import labels` a name in one.
            yield from (f"{start}.{alias.name}" for alias in node.names)


def faults(sources: Mapping[str, str]) -> list[str]:
    """Return a sentence for each import that breaks a rule of the layers."""
    found = []
    for module, source in sorted(sources.items()):
        layer = module.split(".")[0]
        facade = module in FACADES
        if not facade and layer not in LAYERS:
            found.append(f"{module} belongs to no layer")
            continue
        for name in imports(module, source, sources):
            top, *rest = name.split(".")
            if top != "rareloss":
                if (facade or layer in CORE) and top != "torch" and top not in sys.stdlib_module_names:
                    found.append(f"{module or 'rareloss'} is part of the core and imports {name}")
                continue
            wanted = rest[0] if rest else ""
            if wanted not in LAYERS:  # `import rareloss`, a public name of it, or `functional`
                if not facade and layer in CORE:
                    found.append(f"{module} imports {name}, a facade above it")
                continue
            if facade:
                if wanted not in CORE:
                    found.append(f"{module or 'rareloss'} imports {name}, above the core")
            elif LAYERS.index(wanted) > LAYERS.index(layer):
                found.append(f"{module} imports {name}, a layer above it")
            elif layer == wanted == "losses":
                family = module.partition(".")[2]
                if family in FAMILIES and (len(rest) < 3 or rest[1] in FAMILIES):
                    found.append(f"{module} imports {name}, another loss")
            if wanted in DOORS and layer != wanted and past_door(rest, sources):
                found.append(f"{module or 'rareloss'} imports {name}, past the door of {wanted}")
    return found


def past_door(path: list[str], sources: Mapping[str, str]) -> bool:
    """Whether a name below ``rareloss`` reaches into a module of a folder, not into what the folder shows."""
    if len(path) < 2 or ".".join(path[:2]) not in sources:
        return False
    shown = {name.rpartition(".")[2] for name in imports(path[0], sources[path[0]], sources)}
    return len(path) > 2 or path[1] not in shown


def test_no_layer_imports_one_above_it() -> None:
    assert faults(read_package()) == []


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        ("metrics", "from rareloss.losses import SmoothAPLoss", "a layer above it"),
        ("checks", "import rareloss.distributed", "a layer above it"),
        ("ops.pairs", "from .. import metrics", "a layer above it"),
        ("ops", "from . import pairs\nfrom ..losses import RankingLoss", "a layer above it"),
        ("objectives", "def late() -> None:\n    from rareloss import training", "a layer above it"),
        ("losses.recall", "from rareloss.losses import sigmoid_focal_loss", "another loss"),
        ("losses.recall", "from .focal import sigmoid_focal_loss", "another loss"),
        ("ops.pairs", "from rareloss import functional", "a facade above it"),
        ("losses.recall", "from rareloss import SmoothAPLoss", "a facade above it"),
        ("training.warmup", "def late() -> None:\n    import numpy", "part of the core"),
        ("", "from rareloss.tabular import compare", "above the core"),
        ("functional", "import scipy.special", "part of the core"),
        ("helpers", "import torch", "belongs to no layer"),
        ("objectives", "from rareloss.losses.recall import RecallAtQuantileLoss", "past the door of losses"),
        ("tabular.ways", "from rareloss.losses import recall", "past the door of losses"),
        ("functional", "from rareloss.ops.pairs import dense_pairs", "past the door of ops"),
    ],
)
def test_planted_violation_is_found(module: str, line: str, said: str) -> None:
    sources = {"ops": "", "ops.pairs": "", "losses": "", "losses.recall": "", module: line}
    found = faults(sources)
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("losses", "from rareloss.losses import RecallAtQuantileLoss"),
        (
            "losses.recall",
            "import math\nfrom rareloss import checks, pool\nfrom rareloss.losses.ranking import RankingLoss",
        ),
        ("functional", "from rareloss.losses import soft_recall_at_quantile"),
        ("", "from rareloss import functional, metrics\nfrom rareloss.training import LossWarmupWrapper"),
        ("tabular.arms", "import numpy\nfrom rareloss import SmoothAPLoss, functional"),
        ("losses.ranking", "from rareloss.losses.queue import MemoryQueue"),
        ("objectives", "from rareloss.losses import recall_of\nfrom rareloss.ops import soft_count"),
        ("cli", "import typer\nfrom rareloss.tabular import compare"),
    ],
)
def test_permitted_import_is_not_reported(module: str, line: str) -> None:
    assert faults({"losses": "", "losses.recall": "", "tabular": "", module: line}) == []


def test_contributing_draws_the_layers_in_their_order() -> None:
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", page, re.MULTILINE)
    assert tuple(drawn) == LAYERS


def test_import_of_the_package_reads_no_tests_of_losses() -> None:
    code = "import sys, rareloss; print(any(name.startswith('rareloss.testing') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_import_of_the_core_loads_no_library_of_an_extra() -> None:
    code = "import sys, torch; before = set(sys.modules); import rareloss; print(*(set(sys.modules) - before))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in finished.stdout.split()}
    assert loaded <= {"rareloss", "torch"} | sys.stdlib_module_names


def test_there_is_one_training_loop() -> None:
    """Estimators and commands step through ``training``; a stream steps as its batches come."""
    made = [
        module
        for module, source in read_package().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.optim.")
        if "lr_scheduler" not in ast.unparse(node.func)
    ]
    assert sorted(made) == [
        "tabular.estimators.stream",
        "training.early_stopping",
        "training.regularization_path",
    ]
