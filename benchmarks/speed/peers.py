"""The other libraries, each optional: what is not installed is left out, and said to be.

    pip install --no-deps imbalanced-losses==0.6.0 libauc==2.0.1 monai==1.6.1 kornia==0.9.0 kornia_rs tqdm

without dependencies, since some of theirs are heavy and would bring another torch.
"""

import importlib
import warnings
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

__all__ = ["PEERS", "load", "missing", "versions"]

# Distribution and the module that holds its losses.
PEERS = {
    "imbalanced-losses": "imbalanced_losses",
    "libauc": "libauc.losses",
    "kornia": "kornia.losses",
    "monai": "monai.losses",
}


def load(name: str) -> ModuleType | None:
    """Import a peer's losses; None where it, or something it needs, is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, at import
        try:
            return importlib.import_module(PEERS[name])
        except ImportError:
            return None


def versions() -> dict[str, str | None]:
    """Return the version of each peer, None where it cannot be imported."""
    installed: dict[str, str | None] = {}
    for name in PEERS:
        try:
            installed[name] = version(name) if load(name) else None
        except PackageNotFoundError:
            installed[name] = None
    return installed


def missing() -> list[str]:
    """Return a sentence for each peer that is not here."""
    return [f"{name} is not installed and is left out" for name, number in versions().items() if number is None]
