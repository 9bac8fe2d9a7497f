"""Losses that optimise the ranking of a rare class at its operating point, on plain PyTorch."""

from rareloss import distributed, functional, metrics
from rareloss.extras import late
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

_LATE = {"advise": "rareloss.study.advise", "calibrate": "rareloss.decide.calibration"}

__getattr__ = late(__name__, _LATE, "rareloss.{name} needs", "study")
