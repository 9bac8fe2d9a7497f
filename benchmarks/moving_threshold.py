"""Show what it costs to hold the threshold of a recall loss constant, on one data set.

Three tables are printed, over paired seeds (split 60/20/20, stratified):

1. average precision of an MLP trained by cross-entropy, by ``RecallAtQuantileLoss`` and by the same loss with its
   threshold held constant, both inside ``LossWarmupWrapper``, all with the same settings, untuned, at the last step;
2. recall in the top (base rate) of a linear model, from the converged, tuned logistic solution on, both thresholds;
3. average precision of a linear model, from the converged, tuned logistic solution on, for ``SmoothAPLoss``.

    python benchmarks/moving_threshold.py PATH/TO/mammography.npz --seeds 5
"""

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import sem
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import QuantileTransformer
from torch import Tensor, nn

from rareloss import LossWarmupWrapper, Objective, RecallAtQuantileLoss, finetune, metrics
from rareloss.objectives import AveragePrecision, RecallAtTop
from rareloss.pool import PerClass, Pool
from rareloss.tabular.logistic import solve_logistic

Parts = dict[str, tuple[Tensor, Tensor]]
BATCH, EPOCHS, LEARNING_RATE = 512, 20, 1e-2


class ConstantThresholdLoss(RecallAtQuantileLoss):
    """The recall loss as others have it: the threshold of the pool is a number, without gradient."""

    def soft(self, pool: Pool, temperature: float) -> PerClass:
        """Compute the soft recall over a threshold that does not move."""
        moving = super().soft(pool, temperature)
        above = torch.sigmoid((pool.scores - self.threshold(pool, temperature).detach()[:, None]) / temperature)
        hits = pool.weight * pool.is_positive
        constant = (hits * above).sum(1) / hits.sum(1).clamp(min=1e-12)
        return PerClass(torch.where(moving.defined, constant, moving.value), moving.defined)


def split(path: str, seed: int) -> Parts:
    """Read a data set and split it, inputs quantile-normal as fitted on the train part."""
    with np.load(path) as file:
        inputs, labels = file["X"], file["y"]
    train, rest = train_test_split(np.arange(len(labels)), train_size=0.6, stratify=labels, random_state=seed)
    validation, test = train_test_split(rest, train_size=0.5, stratify=labels[rest], random_state=seed)
    scaler = QuantileTransformer(output_distribution="normal", subsample=None, random_state=seed).fit(inputs[train])
    rows = {"train": train, "validation": validation, "test": test}
    return {
        name: (torch.tensor(scaler.transform(inputs[row]), dtype=torch.float32), torch.tensor(labels[row] == 1))
        for name, row in rows.items()
    }


def train_mlp(parts: Parts, loss: nn.Module, seed: int) -> float:
    """Train an MLP from scratch and return its test AP at the last step."""
    torch.manual_seed(seed)
    inputs, labels = parts["train"]
    net = nn.Sequential(
        nn.Linear(inputs.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            loss(net(inputs[batch]), labels[batch].float()).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        return metrics.average_precision(net(parts["test"][0]), parts["test"][1]).value.item()


def value(model: nn.Module, rows: tuple[Tensor, Tensor], objective: Objective) -> float:
    """Compute the objective of a model on some rows."""
    with torch.no_grad():
        return objective.metric(model(rows[0])[:, 0], rows[1]).value.item()


def logistic_start(parts: Parts, objective: Objective) -> nn.Linear:
    """Solve logistic regression to convergence, C and class weight chosen on validation by the objective."""
    inputs, labels = parts["train"]
    solved = [
        solve_logistic(inputs, labels.long().numpy(), {0: 1.0, 1: weight}, strength)[0]
        for strength in (0.1, 1.0, 10.0, 100.0, 1000.0)
        for weight in (0.3, 1.0, 3.0, 10.0, 30.0)
    ]
    return max(solved, key=lambda model: value(model, parts["validation"], objective))


def ranking_stage(
    parts: Parts, start: nn.Linear, losses: list[nn.Module] | None, objective: Objective
) -> tuple[float, float]:
    """Return the test value before and after a stage, whose loss and place on the path validation chooses."""
    stage = finetune(start, objective, parts["train"], parts["validation"], losses=losses)
    return value(start, parts["test"], objective), value(stage.model, parts["test"], objective)


def row(values: list[float], base: list[float]) -> list[str]:
    """Format a mean, and the mean of the paired differences with its standard error."""
    difference = np.subtract(values, base)
    return [f"{np.mean(values):.3f}", f"{difference.mean():+.3f} ({sem(difference):.3f})"]


def main() -> None:
    """Run the three comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="an npz file with X and y (1 is rare)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--skip-mlp", action="store_true", help="leave the MLP out")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # the pool is what it is here
    console, seeds = Console(), range(arguments.seeds)
    parts = [split(arguments.data, seed) for seed in seeds]
    rate = float(torch.cat([y for _, y in parts[0].values()]).double().mean())

    def warmed(loss: nn.Module) -> nn.Module:
        steps = -(-len(parts[0]["train"][1]) // BATCH)
        return LossWarmupWrapper(nn.BCEWithLogitsLoss(), loss, warmup_steps=10 * steps, blend_steps=5 * steps)

    if not arguments.skip_mlp:
        makers: dict[str, Callable[[], nn.Module]] = {
            "cross-entropy": nn.BCEWithLogitsLoss,
            "recall, moving threshold": lambda: warmed(RecallAtQuantileLoss(1, rate, temperature=0.3)),
            "recall, constant threshold": lambda: warmed(
                ConstantThresholdLoss(1, rate, temperature=0.3, temperature_unit="logit")
            ),
        }
        table = Table("MLP, untuned", "test AP", "difference to cross-entropy (s.e.)")
        scores = {name: [train_mlp(parts[seed], make(), seed) for seed in seeds] for name, make in makers.items()}
        for name, values in scores.items():
            table.add_row(name, *row(values, scores["cross-entropy"]))
        console.print(table)

    def compare(objective: Objective, methods: dict[str, list[nn.Module] | None]) -> None:
        table = Table(f"linear, {objective.name}", "logistic", "after the stage", "difference (s.e.)")
        starts = [logistic_start(part, objective) for part in parts]
        for name, losses in methods.items():
            pairs = [ranking_stage(p, start, losses, objective) for p, start in zip(parts, starts, strict=True)]
            before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            table.add_row(name, f"{np.mean(before):.3f}", *row(after, before))
        console.print(table)

    constant: list[nn.Module] = [
        ConstantThresholdLoss(1, rate, queue_size=0, temperature=t, temperature_unit="logit") for t in (0.1, 0.3)
    ]
    compare(RecallAtTop(rate), {"moving threshold": None, "constant threshold": constant})
    compare(AveragePrecision(), {"Smooth-AP": None})


if __name__ == "__main__":
    main()
