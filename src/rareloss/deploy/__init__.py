"""A trained model as one folder: fit it, load it, score tomorrow's file.

Needs the extra ``deploy``: ``pip install "rareloss[deploy]"``.
"""

from typing import TYPE_CHECKING

from rareloss.extras import late

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

__getattr__ = late(__name__, _HOME, "a saved model needs", "deploy")
