"""Training: loss warm-up, large batches in chunks, and fine-tuning on the objective."""

from rareloss.training.batches import Batch, sample_pools, select_rows
from rareloss.training.early_stopping import train_with_early_stopping
from rareloss.training.finetuning import TEMPERATURES, FineTuned, finetune, ranking_losses, repeat_finetune
from rareloss.training.large_batch import large_batch
from rareloss.training.regularization_path import PENALTIES, fit_regularization_path
from rareloss.training.restarts import find_restart
from rareloss.training.validation import Evaluation, TrainingHistory, ValidationMetric, Validator, bootstrap_weights
from rareloss.training.warmup import LossWarmupWrapper
from rareloss.training.whitening import Whitening, unwhiten

__all__ = [
    "PENALTIES",
    "TEMPERATURES",
    "Batch",
    "Evaluation",
    "FineTuned",
    "LossWarmupWrapper",
    "TrainingHistory",
    "ValidationMetric",
    "Validator",
    "Whitening",
    "bootstrap_weights",
    "find_restart",
    "finetune",
    "fit_regularization_path",
    "large_batch",
    "ranking_losses",
    "repeat_finetune",
    "sample_pools",
    "select_rows",
    "train_with_early_stopping",
    "unwhiten",
]
