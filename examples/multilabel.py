"""Multi-label with missing labels: four labels, the rarest at 1 %, a third of all labels unknown.

Mini-batches of 256 hold two or three positives of the rarest label, so the ranking loss remembers rows of earlier
steps; it starts inside LossWarmupWrapper, since a cold ranking loss has little to say. The network can fit these
labels, so do not expect a winner: where cross-entropy is trained for too few steps it looks worse than it is.

Run: python examples/multilabel.py
"""

import torch
from torch import Tensor, nn

from rareloss import LossWarmupWrapper, SigmoidFocalLoss, SmoothAPLoss, metrics

RATES = torch.tensor([0.05, 0.03, 0.02, 0.01])
LEARNING_RATES = (1e-2, 3e-2)
FEATURES, UNKNOWN, STEPS, BATCH = 12, -100, 600, 256


def draw(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return features ``[rows, FEATURES]`` and labels ``[rows, labels]``; a label depends on products of features."""
    world = torch.Generator().manual_seed(12_345)
    first, second = (torch.randn(FEATURES, len(RATES), generator=world) / FEATURES**0.5 for _ in range(2))
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, FEATURES, generator=generator)
    signal = features @ first + (features @ second).square()
    noisy = signal + 0.5 * torch.randn(signal.shape, generator=generator)
    return features, (noisy > noisy.quantile(1 - RATES, dim=0).diagonal()).long()


def train(loss: nn.Module, rate: float, features: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """Return a small network trained on ``loss``; the seed sets initialisation and batches, alike for every loss."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, len(RATES)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(features), (BATCH,))
        optimizer.zero_grad()
        loss(model(features[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model


def losses() -> dict[str, nn.Module]:
    """Return what is compared, fresh: a loss that remembers rows must not see those of another run."""
    # Without weights and with gamma 0, focal loss is cross-entropy, here one that knows which labels are missing.
    cross_entropy = SigmoidFocalLoss(alpha=None, gamma=0.0)
    ranking = SmoothAPLoss(num_classes=len(RATES), queue_size=1_024, temperature=0.3)
    switched = LossWarmupWrapper(cross_entropy, ranking, warmup_steps=STEPS - STEPS // 5)
    return {
        "cross-entropy": cross_entropy,
        "focal": SigmoidFocalLoss(),
        "Smooth-AP after warm-up": switched,
    }


def judge(model: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Return the average precision of each label."""
    with torch.no_grad():
        return metrics.average_precision(model(features), labels == 1, (labels != UNKNOWN).float()).value


def main() -> None:
    """Compare average precision by label on held-out rows, two seeds, learning rates chosen on validation."""
    held_out = draw(seed=999, rows=20_000)
    values: dict[str, list[Tensor]] = {}
    for seed in range(2):
        features, labels = draw(seed, rows=12_000)
        labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < 1 / 3] = UNKNOWN
        validation = draw(100 + seed, rows=6_000)
        for name in losses():
            models = [train(losses()[name], rate, features, labels, seed) for rate in LEARNING_RATES]
            chosen = max(models, key=lambda model: judge(model, *validation).mean().item())
            values.setdefault(name, []).append(judge(chosen, *held_out))
    print("average precision on 20,000 held-out rows, mean of 2 seeds; labels at", *(f"{rate:.0%}" for rate in RATES))
    for name, by_seed in values.items():
        macro = torch.stack(by_seed).mean(1)
        mean = torch.stack(by_seed).mean(0)
        by_label = "  ".join(f"{value:.3f}" for value in mean)
        print(f"  {name:<26}{by_label}   macro {macro.mean():.3f} ({macro.min():.3f} to {macro.max():.3f})")


if __name__ == "__main__":
    main()
