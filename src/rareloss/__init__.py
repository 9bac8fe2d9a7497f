"""Losses that optimise the ranking of a rare class at its operating point, on plain PyTorch."""

from importlib import import_module
from typing import Any

from rareloss import distributed, functional, metrics
from rareloss.losses.average_precision import SmoothAPLoss
from rareloss.losses.focal import SigmoidFocalLoss, SoftmaxFocalLoss
from rareloss.losses.partial_auc import PAUCAtBudgetLoss
from rareloss.losses.recall import RecallAtQuantileLoss
from rareloss.objective import Objective
from rareloss.training.large_batch import large_batch
from rareloss.training.rank_stage import RankStage, rank_stage
from rareloss.training.warmup import LossWarmupWrapper
from rareloss.verify import Certificate, verify

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "LossWarmupWrapper",
    "Objective",
    "PAUCAtBudgetLoss",
    "RankStage",
    "RecallAtQuantileLoss",
    "SigmoidFocalLoss",
    "SmoothAPLoss",
    "SoftmaxFocalLoss",
    "distributed",
    "functional",
    "large_batch",
    "metrics",
    "rank_stage",
    "verify",
]

# What needs an extra, by the module that has it: looked up late, so that the core stays on torch alone.
_LATE = {"advise": "rareloss.study.advise", "calibrate": "rareloss.decide.calibration"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LATE[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "rareloss":
            raise
        raise ModuleNotFoundError(
            f'{error.name} is missing, which rareloss.{name} needs: pip install "rareloss[study]"', name=error.name
        ) from error
