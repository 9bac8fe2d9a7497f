"""A batch larger than memory: images, 1 % positives, room to review the top 1 %, and a network that fills memory.

The top 1 % of a batch of 64 is less than one image. Two ways out, here side by side after the same start on
cross-entropy: remember the scores of earlier batches (the queue: one forward pass, scores of earlier weights), or rank
1,024 images at once and run the network in chunks of 64 (``large_batch``: exact, two forward passes, memory of 64).
The large batch sees 16 times as many images per step, so it gets a sixteenth of the steps. More cross-entropy is the
control. Two seeds choose no winner; what is certain is that the gradient is that of the large batch.

Run: python examples/large_batch.py
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rareloss import Objective, large_batch

OBJECTIVE = Objective.parse("recall@top=1%")
SIDE, CHUNK, LARGE, STEPS = 8, 64, 1_024, 600
METHODS = {"cross-entropy": 160, "recall with a queue": 160, "recall of 1,024 in chunks": 10}


def draw(seed: int, images: int) -> tuple[Tensor, Tensor]:
    """Return images ``[images, 1, SIDE, SIDE]`` and labels; a positive hides a bright cross, a decoy its corners."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randn(images, 1, SIDE, SIDE, generator=generator)
    kind = torch.rand(images, generator=generator)
    label = kind < 0.01
    cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    corners = torch.randint(SIDE - 2, (images, 2), generator=generator).tolist()
    for image in (kind < 0.06).nonzero()[:, 0].tolist():
        row, column = corners[image]
        picture[image, 0, row : row + 3, column : column + 3] += 2.0 * (cross if label[image] else 1 - cross)
    return picture, label


def make_model() -> nn.Module:
    """Return a network whose activations are much larger than its input; GroupNorm, since a chunk is not a batch."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 1)
    )


def difference() -> tuple[float, int]:
    """Compare the gradient in chunks with that of one big batch: its relative error, and the most images in a graph."""
    torch.manual_seed(0)
    model, loss = make_model(), OBJECTIVE.loss(num_classes=1, queue_size=0)
    images, label = draw(seed=0, images=LARGE)
    seen: list[int] = []
    found = []
    for scores in (model, large_batch(model, chunk_size=CHUNK)):
        model.zero_grad()
        hook = model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0]) * torch.is_grad_enabled()))
        loss(scores(images)[:, 0], label).backward()
        hook.remove()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    return float((found[1] - found[0]).norm() / found[0].norm()), max(seen[1:])


def train(model: nn.Module, method: str, steps: int, images: Tensor, label: Tensor, rate: float = 3e-3) -> nn.Module:
    """Return a copy of ``model``, trained on."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    large = method.endswith("in chunks")
    scores = large_batch(model, chunk_size=CHUNK) if large else model
    ranking = OBJECTIVE.loss(num_classes=1, queue_size=LARGE if "queue" in method else 0)
    for _ in range(steps):
        batch = torch.randint(len(images), (LARGE if large else CHUNK,))
        logits = scores(images[batch])[:, 0]
        optimizer.zero_grad()
        if method == "cross-entropy":
            F.binary_cross_entropy_with_logits(logits, label[batch].float()).backward()
        else:
            ranking(logits, label[batch]).backward()
        optimizer.step()
    return model


def judge(model: nn.Module, images: Tensor, label: Tensor) -> float:
    """Return recall in the top 1 %; without gradient the function is one pass over chunks."""
    with torch.no_grad():
        return OBJECTIVE.metric(large_batch(model, chunk_size=LARGE)(images)[:, 0], label).value.item()


def main() -> None:
    """Show that the gradient is the same, then compare the methods on held-out images, two seeds."""
    error, rows = difference()
    print(
        f"{LARGE:,} images in chunks of {CHUNK}: relative error of the gradient {error:.0e}, {rows} images in a graph"
    )
    held_out = draw(seed=999, images=10_000)
    values: dict[str, list[float]] = {}
    for seed in range(2):
        torch.manual_seed(seed)
        rows = draw(seed, images=8_192)
        start = train(make_model(), "cross-entropy", STEPS, *rows, rate=1e-2)
        for method, steps in METHODS.items():
            values.setdefault(method, []).append(judge(train(start, method, steps, *rows), *held_out))
    print(f"{OBJECTIVE.name} on 10,000 held-out images, two seeds: {STEPS} steps of cross-entropy, and then")
    for method, found in values.items():
        shown = "  ".join(f"{value:.3f}" for value in found)
        print(f"  {METHODS[method]:>3} steps of {method:<26}{shown}   mean {sum(found) / len(found):.3f}")


if __name__ == "__main__":
    main()
