"""Dense detection: every cell of a grid is an anchor, and 99 % of them are background.

Logits are ``[N, C, H, W]``. ``reduction="mean_positive"`` divides by the number of objects, not of cells, so the size
of a step does not shrink as the grid grows. Against cross-entropy over all cells.

Run: python examples/dense_detection.py
"""

import torch
from torch import Tensor, nn

from rareloss import SoftmaxFocalLoss, functional, metrics

SIZE, CLASSES, STEPS, BATCH = 24, 3, 150, 16
IGNORED = -100


def draw(images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images ``[N, 1, H, W]`` and cells ``[N, H, W]``: 0 background, 1 cross, 2 square, -100 beside one."""
    image = 0.6 * torch.randn(images, 1, SIZE, SIZE, generator=generator)
    cell = torch.zeros(images, SIZE, SIZE, dtype=torch.long)
    cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    shapes = {1: cross, 2: 1 - cross + torch.eye(3) * torch.tensor([0.0, 1.0, 0.0])}
    for index in range(images):
        for kind in (1, 2):
            count = int(torch.randint(1, 4, (), generator=generator))
            for row, column in torch.randint(1, SIZE - 1, (count, 2), generator=generator).tolist():
                around = slice(row - 1, row + 2), slice(column - 1, column + 2)
                image[index, 0][around] += 1.2 * shapes[kind]
                # A cell beside an object is neither object nor clean background.
                beside = cell[index][around]
                beside[beside == 0] = IGNORED
                cell[index, row, column] = kind
    return image, cell


def train(loss: nn.Module, seed: int) -> nn.Module:
    """Return a small fully convolutional network; the seed sets initialisation and images, alike for every loss."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, CLASSES, 1)
    )
    # Start at the base rate, so that the first steps are not spent on learning that most cells are background.
    head = model[-1]
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.99, 0.005, 0.005]).log())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        image, cell = draw(BATCH, generator)
        optimizer.zero_grad()
        value = loss(model(image), cell)
        value.backward()
        optimizer.step()
        schedule.step()
    return model


def main() -> None:
    """Compare average precision over all cells of held-out images, two seeds."""
    image, cell = draw(200, torch.Generator().manual_seed(999))
    counted = cell != IGNORED
    truth = torch.stack([cell == kind for kind in range(1, CLASSES)], dim=-1)[counted]
    rate = truth.any(1).double().mean()
    print(f"{rate:.2%} of {len(truth):,} cells hold an object; average precision, mean of 2 seeds")
    losses = {
        "cross-entropy": nn.CrossEntropyLoss(ignore_index=IGNORED),
        "focal, mean_positive": SoftmaxFocalLoss(reduction="mean_positive"),
    }
    for name, loss in losses.items():
        values = []
        for seed in range(2):
            model = train(loss, seed)
            with torch.no_grad():
                odds = functional.log_odds(model(image).movedim(1, -1))[counted][:, 1:]
            values.append(metrics.average_precision(odds, truth).value)
        by_class = torch.stack(values)
        cross, square = by_class.mean(0)
        lowest, highest = by_class.mean(1).min(), by_class.mean(1).max()
        print(f"  {name:<26}cross {cross:.3f}  square {square:.3f}  macro {lowest:.3f} to {highest:.3f} by seed")


if __name__ == "__main__":
    main()
