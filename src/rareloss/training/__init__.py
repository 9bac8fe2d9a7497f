"""What wraps a training step: warm-up, large batches, fine-tuning on the objective."""

from rareloss.training.descent import PENALTIES, Batch, Descent, Judgement, Look, descend, follow_path, part_of, pools
from rareloss.training.finetuning import TEMPERATURES, FineTuned, finetune, ranking_losses, repeat_finetune
from rareloss.training.large_batch import large_batch
from rareloss.training.restarts import start_elsewhere
from rareloss.training.warmup import LossWarmupWrapper
from rareloss.training.whitening import Uncorrelated, carry_back

__all__ = [
    "PENALTIES",
    "TEMPERATURES",
    "Batch",
    "Descent",
    "FineTuned",
    "Judgement",
    "Look",
    "LossWarmupWrapper",
    "Uncorrelated",
    "carry_back",
    "descend",
    "finetune",
    "follow_path",
    "large_batch",
    "part_of",
    "pools",
    "ranking_losses",
    "repeat_finetune",
    "start_elsewhere",
]
