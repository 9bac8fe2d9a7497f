"""From a table to a model: compare methods, train the winner, save it, score with it.

Needs the extra ``study``, a saved model ``deploy``: ``pip install "rareloss[study]"``.
"""

from typing import TYPE_CHECKING

from rareloss.extras import late

if TYPE_CHECKING:
    from rareloss.table import DataError, Table, load
    from rareloss.tabular.advice import Advice, Finding, advise
    from rareloss.tabular.comparison.comparison import Comparison, Interrupted, compare
    from rareloss.tabular.estimators.additive import AdditiveRareClassifier
    from rareloss.tabular.estimators.classifier import RareClassifier
    from rareloss.tabular.model.card import metric_names
    from rareloss.tabular.model.export import to_onnx
    from rareloss.tabular.model.fitting import fit
    from rareloss.tabular.model.model import Model
    from rareloss.tabular.model.scoring import kept_name, score_file

__all__ = [
    "AdditiveRareClassifier",
    "Advice",
    "Comparison",
    "DataError",
    "Finding",
    "Interrupted",
    "Model",
    "RareClassifier",
    "Table",
    "advise",
    "compare",
    "fit",
    "kept_name",
    "load",
    "metric_names",
    "score_file",
    "to_onnx",
]

_HOME = {
    "AdditiveRareClassifier": "rareloss.tabular.estimators.additive",
    "Advice": "rareloss.tabular.advice",
    "Comparison": "rareloss.tabular.comparison.comparison",
    "DataError": "rareloss.table",
    "Finding": "rareloss.tabular.advice",
    "Interrupted": "rareloss.tabular.comparison.comparison",
    "Model": "rareloss.tabular.model.model",
    "RareClassifier": "rareloss.tabular.estimators.classifier",
    "Table": "rareloss.table",
    "advise": "rareloss.tabular.advice",
    "compare": "rareloss.tabular.comparison.comparison",
    "fit": "rareloss.tabular.model.fitting",
    "kept_name": "rareloss.tabular.model.scoring",
    "load": "rareloss.table",
    "metric_names": "rareloss.tabular.model.card",
    "score_file": "rareloss.tabular.model.scoring",
    "to_onnx": "rareloss.tabular.model.export",
}

if not TYPE_CHECKING:  # which would take any name for one that is there
    __getattr__ = late(__name__, _HOME, "rareloss.tabular needs", "study")
