"""A trained model as one folder: fit it, load it, score tomorrow's file.

Needs the extra ``deploy``: ``pip install "rareloss[deploy]"``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rareloss.deploy.export import to_onnx
    from rareloss.deploy.fitting import fit
    from rareloss.deploy.model import Model
    from rareloss.deploy.scoring import score_file
    from rareloss.study.data import DataError

__all__ = ["DataError", "Model", "fit", "score_file", "to_onnx"]

_HOME = {
    "DataError": "rareloss.study.data",
    "Model": "rareloss.deploy.model",
    "fit": "rareloss.deploy.fitting",
    "score_file": "rareloss.deploy.scoring",
    "to_onnx": "rareloss.deploy.export",
}


def __getattr__(name: str) -> Any:
    # Looked up late, so that what a part needs is loaded with that part.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "rareloss":
            raise
        raise ModuleNotFoundError(
            f'{error.name} is missing, which a saved model needs: pip install "rareloss[deploy]"', name=error.name
        ) from error
