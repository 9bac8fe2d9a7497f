"""A trained model as one folder: fit it, load it, score tomorrow's file.

Needs the extra ``deploy``: ``pip install "rareloss[deploy]"``.
"""

from typing import TYPE_CHECKING

from rareloss.extras import late

if TYPE_CHECKING:
    from rareloss.table import DataError
    from rareloss.tabular.model.export import to_onnx
    from rareloss.tabular.model.fitting import fit
    from rareloss.tabular.model.model import Model
    from rareloss.tabular.model.scoring import score_file

__all__ = ["DataError", "Model", "fit", "score_file", "to_onnx"]

_HOME = {
    "DataError": "rareloss.table",
    "Model": "rareloss.tabular.model.model",
    "fit": "rareloss.tabular.model.fitting",
    "score_file": "rareloss.tabular.model.scoring",
    "to_onnx": "rareloss.tabular.model.export",
}

if not TYPE_CHECKING:  # which would take any name for one that is there
    __getattr__ = late(__name__, _HOME, "a saved model needs", "deploy")
