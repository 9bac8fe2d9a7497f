"""From a table to a model: compare methods, train the winner, save it, score with it.

Needs the extra ``study`` (``deploy`` for a saved model): ``pip install "rareloss[study]"``.
"""

from typing import TYPE_CHECKING

from rareloss.extras import late

if TYPE_CHECKING:
    from rareloss.table.source import DataError, Table, load
    from rareloss.tabular.advice import Advice, Finding, advise
    from rareloss.tabular.comparison.comparison import Comparison, Interrupted, compare
    from rareloss.tabular.estimators.additive import AdditiveRareClassifier
    from rareloss.tabular.estimators.classifier import RareClassifier

__all__ = [
    "AdditiveRareClassifier",
    "Advice",
    "Comparison",
    "DataError",
    "Finding",
    "Interrupted",
    "RareClassifier",
    "Table",
    "advise",
    "compare",
    "load",
]

_HOME = {
    "AdditiveRareClassifier": "rareloss.tabular.estimators.additive",
    "Advice": "rareloss.tabular.advice",
    "Comparison": "rareloss.tabular.comparison.comparison",
    "DataError": "rareloss.table.source",
    "Finding": "rareloss.tabular.advice",
    "Interrupted": "rareloss.tabular.comparison.comparison",
    "RareClassifier": "rareloss.tabular.estimators.classifier",
    "Table": "rareloss.table.source",
    "advise": "rareloss.tabular.advice",
    "compare": "rareloss.tabular.comparison.comparison",
    "load": "rareloss.table.source",
}

__getattr__ = late(__name__, _HOME, "rareloss.tabular needs", "study")
