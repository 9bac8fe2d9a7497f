"""Multiclass with rare classes: eight classes, each half as frequent as the one before, down to 0.4 %.

Softmax focal loss with a weight per class, against cross-entropy plain and weighted. Two questions are asked of each:
how well is every class ranked (average precision of its log-odds), and how many of the rare classes' rows does the
arg-max find. They have different answers, and the second can be had by moving cross-entropy's decision instead.

Run: python examples/multiclass_rare.py
"""

import torch
from torch import Tensor, nn

from rareloss import SoftmaxFocalLoss, functional, metrics

CLASSES, FEATURES, STEPS, BATCH, RARE = 8, 16, 500, 256, 4
PRIOR = 0.5 ** torch.arange(1, CLASSES + 1) / (1 - 0.5**CLASSES)


def draw(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return features ``[rows, FEATURES]`` and class indices ``[rows]``: overlapping clusters of unequal width."""
    world = torch.Generator().manual_seed(7)
    centre = 0.9 * torch.randn(CLASSES, FEATURES, generator=world)
    width = 0.6 + torch.rand(CLASSES, FEATURES, generator=world)
    generator = torch.Generator().manual_seed(seed)
    target = torch.multinomial(PRIOR, rows, replacement=True, generator=generator)
    return centre[target] + width[target] * torch.randn(rows, FEATURES, generator=generator), target


def train(loss: nn.Module, features: Tensor, target: Tensor, seed: int) -> nn.Module:
    """Return a small network trained on ``loss``; the seed sets initialisation and batches, alike for every loss."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(features), (BATCH,))
        optimizer.zero_grad()
        loss(model(features[batch]), target[batch]).backward()
        optimizer.step()
        schedule.step()
    return model


def judge(logits: Tensor, target: Tensor) -> Tensor:
    """Return macro AP, AP of the rare half, and the arg-max's recall on the rare half."""
    truth = nn.functional.one_hot(target, CLASSES).bool()
    # One-vs-rest log-odds: the raw logits of different rows do not compare.
    precision = metrics.average_precision(functional.log_odds(logits), truth).value
    found = nn.functional.one_hot(logits.argmax(1), CLASSES).bool()
    recall = (found & truth).sum(0) / truth.sum(0)
    return torch.stack([precision.mean(), precision[RARE:].mean(), recall[RARE:].mean()])


def main() -> None:
    """Compare on held-out rows, three seeds."""
    held_out, truth = draw(seed=999, rows=20_000)
    inverse_root = PRIOR.rsqrt() / PRIOR.rsqrt().mean()
    losses = {
        "cross-entropy": nn.CrossEntropyLoss(),
        "cross-entropy, weighted": nn.CrossEntropyLoss(weight=inverse_root),
        "focal": SoftmaxFocalLoss(),
        "focal, weighted": SoftmaxFocalLoss(alpha=inverse_root.tolist()),
    }
    values: dict[str, list[Tensor]] = {}
    for seed in range(3):
        features, target = draw(seed, rows=12_000)
        for name, loss in losses.items():
            model = train(loss, features, target, seed)
            with torch.no_grad():
                logits = model(held_out)
            values.setdefault(name, []).append(judge(logits, truth))
            if name == "cross-entropy":
                # The same network, its decision moved by the logarithm of the class weights.
                moved = judge(logits + inverse_root.log(), truth)
                values.setdefault("cross-entropy, moved", []).append(moved)
    print("20,000 held-out rows, mean of 3 seeds (standard deviation)")
    print(f"  {'':<26}{'macro AP':<16}{'AP, rare half':<16}recall by arg-max, rare half")
    for name, by_seed in values.items():
        mean, deviation = torch.stack(by_seed).mean(0), torch.stack(by_seed).std(0)
        print(f"  {name:<26}" + "".join(f"{m:.3f} ({d:.3f})   " for m, d in zip(mean, deviation, strict=True)))


if __name__ == "__main__":
    main()
