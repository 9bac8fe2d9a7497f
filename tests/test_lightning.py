"""A Lightning Trainer stops, and keeps a checkpoint, by what an objective says; runs where Lightning is installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")
import lightning
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from rareloss import Objective
from rareloss.integrations.torchmetrics import ObjectiveMetric, early_stopping

ROWS = 600


def parts() -> tuple[TensorDataset, TensorDataset]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2 * ROWS, 5, generator=draw)
    y = (x[:, 0] + x[:, 1] + torch.randn(2 * ROWS, generator=draw) > 3).long()
    return TensorDataset(x[:ROWS], y[:ROWS]), TensorDataset(x[ROWS:], y[ROWS:])


class Scorer(lightning.LightningModule):
    """A linear scorer trained, judged and stopped by one objective."""

    def __init__(self, objective: Objective, rate: float) -> None:
        super().__init__()
        self.network, self.rate = nn.Linear(5, 1), rate
        self.loss, self.judged = objective.loss(num_classes=1, queue_size=0), ObjectiveMetric(objective)
        self.monitor = early_stopping(objective)["monitor"]
        self.seen: list[float] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss: Tensor = self.loss(self.network(batch[0])[:, 0], batch[1])
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.judged.update(self.network(batch[0])[:, 0], batch[1])
        self.log(self.monitor, self.judged)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.seen.append(float(self.judged.compute()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def trained(text: str, folder: Path, rate: float, patience: int) -> tuple[Any, Scorer, EarlyStopping, ModelCheckpoint]:
    objective = Objective.parse(text)
    train, validation = parts()
    stop = EarlyStopping(**early_stopping(objective), patience=patience)
    best = ModelCheckpoint(folder, **early_stopping(objective))
    trainer = lightning.Trainer(
        max_epochs=12,
        accelerator="cpu",
        callbacks=[stop, best],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Scorer(objective, rate)
    # Validation in three batches, the last one smaller: a mean over batches would be another number.
    trainer.fit(model, DataLoader(train, 300, shuffle=True), DataLoader(validation, 250))
    return trainer, model, stop, best


@pytest.mark.filterwarnings("ignore")  # of Lightning: workers of data loaders, steps of logging
@pytest.mark.parametrize("text", ["ap", "recall@top=20/400", "recall@fpr=2%", "cost@fn=20,fp=1"])
def test_trainer_keeps_the_checkpoint_that_is_best_by_the_objective(text: str, tmp_path: Path) -> None:
    trainer, model, _, best = trained(text, tmp_path, rate=0.1, patience=12)
    assert model.seen[0] < max(model.seen)
    assert float(best.best_model_score) == pytest.approx(max(model.seen), abs=1e-6)
    x, y = parts()[1].tensors
    kept = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    scores = x @ kept["network.weight"][0] + kept["network.bias"]
    assert float(Objective.parse(text).metric(scores, y).value) == pytest.approx(max(model.seen), abs=1e-6)
    assert float(trainer.callback_metrics[f"val_{text}"]) == pytest.approx(model.seen[-1], abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", ["ap", "recall@top=5%"])
def test_trainer_stops_where_the_objective_no_longer_grows(text: str, tmp_path: Path) -> None:
    _, model, stop, _ = trained(text, tmp_path, rate=0.0, patience=2)
    assert len(model.seen) == 3  # the first epoch, and as many as patience allows
    assert stop.stopped_epoch == 2
