"""Binary, 1 % positives: a linear model solved by cross-entropy, then fine-tuned on average precision.

The data hold two kinds of positives, one of which no linear model can reach; cross-entropy compromises between
the two, Smooth-AP takes the kind that can be ranked on top. The same further steps of cross-entropy are the control.

Run: python examples/binary.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rareloss import SmoothAPLoss, metrics


def draw(seed: int, rows: int = 6_000) -> tuple[Tensor, Tensor]:
    """Return features ``[rows, 2]`` and labels ``[rows]``."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.rand(rows, generator=generator) < 0.01
    kind = torch.rand(rows, generator=generator)
    noise = torch.randn(rows, 2, generator=generator)
    clear, hidden, decoy = label & (kind < 0.4), label & (kind >= 0.4), ~label & (kind < 0.03)
    features = noise.clone()
    features[clear] = torch.tensor([3.2, 0.0]) + 0.4 * noise[clear]
    features[hidden] += torch.tensor([0.0, 2.0])
    features[decoy] = torch.tensor([0.0, 3.0]) + 0.5 * noise[decoy]
    return features, label


def solve_cross_entropy(model: nn.Linear, features: Tensor, label: Tensor) -> None:
    """Fit ``model`` by cross-entropy to convergence: an untuned baseline flatters whatever is compared with it."""
    solver = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = F.binary_cross_entropy_with_logits(model(features)[:, 0], label.float())
        value.backward()
        return value

    solver.step(closure)


def finetuned(start: nn.Linear, loss: nn.Module, features: Tensor, target: Tensor, steps: int = 100) -> nn.Linear:
    """Return a copy of ``start`` after full-batch Adam steps on ``loss``."""
    model = nn.Linear(2, 1)
    model.load_state_dict(start.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(features)[:, 0], target).backward()
        optimizer.step()
    return model


def main() -> None:
    """Compare on held-out rows, five seeds."""
    rows = []
    for seed in range(5):
        torch.manual_seed(seed)
        features, label = draw(seed)
        held_out, truth = draw(1_000 + seed, rows=50_000)
        solved = nn.Linear(2, 1)
        solve_cross_entropy(solved, features, label)
        continued = finetuned(solved, nn.BCEWithLogitsLoss(), features, label.float())
        ranked = finetuned(solved, SmoothAPLoss(num_classes=1, queue_size=0), features, label)
        with torch.no_grad():
            scores = torch.cat([model(held_out) for model in (solved, continued, ranked)], dim=1)
        rows.append(metrics.average_precision(scores, truth[:, None].expand_as(scores)).value)
    values = torch.stack(rows)
    print("average precision on 50,000 held-out rows, 5 seeds: mean (lowest to highest)")
    for name, column in zip(("cross-entropy", "cross-entropy, continued", "fine-tuned"), values.T, strict=True):
        print(f"  {name:<26}{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})")
    gains = values[:, 2] - values[:, 0]
    print(f"  Smooth-AP minus cross-entropy, by seed: {', '.join(f'{gain:+.3f}' for gain in gains)}")
    print("A network that can fit both kinds gains nothing here: try it before you reach for a loss.")


if __name__ == "__main__":
    main()
