"""Draw docs/pictures/why.svg: cross-entropy and Smooth-AP on one linear scorer at 1 % positives, and a network beside.

Run: python docs/pictures/why.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from rareloss import SmoothAPLoss, metrics

CROSS_ENTROPY, SMOOTH_AP, NETWORK = "#c2571a", "#1b6ca8", "#5f6b76"
NEGATIVE, POSITIVE = "#b8bec6", "#7b2d8b"


def draw(seed: int, rows: int = 10_000) -> tuple[Tensor, Tensor]:
    """Return two features ``[rows, 2]`` and labels ``[rows]``: 1 % positives of two kinds, and decoys."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.rand(rows, generator=generator) < 0.01
    kind = torch.rand(rows, generator=generator)
    noise = torch.randn(rows, 2, generator=generator)
    clear, hidden, decoy = label & (kind < 0.4), label & (kind >= 0.4), ~label & (kind < 0.03)
    features = noise.clone()
    features[clear] = torch.tensor([3.2, 0.0]) + 0.4 * noise[clear]  # 40 % of the positives: well apart
    features[hidden] += torch.tensor([0.0, 2.0])  # 60 %: moved upwards, but inside the bulk
    features[decoy] = torch.tensor([0.0, 3.0]) + 0.5 * noise[decoy]  # 3 % of the negatives: further up still
    return features, label


def fit() -> tuple[nn.Linear, nn.Linear]:
    """Return the scorer that cross-entropy finds, solved to convergence, and the one Smooth-AP makes of it."""
    features, label = draw(seed=0)
    solved, ranked = nn.Linear(2, 1), nn.Linear(2, 1)
    nn.init.zeros_(solved.weight)
    solver = torch.optim.LBFGS(solved.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(solved(features)[:, 0], label.float())
        value.backward()
        return value

    solver.step(closure)
    ranked.load_state_dict(solved.state_dict())
    loss = SmoothAPLoss(num_classes=1, queue_size=0)
    optimizer = torch.optim.Adam(ranked.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss(ranked(features), label).backward()
        optimizer.step()
    return solved, ranked


def fit_network() -> nn.Sequential:
    """Return a network with one hidden layer after cross-entropy, its last bias started at the base rate."""
    torch.manual_seed(0)
    features, label = draw(seed=0)
    network = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
    nn.init.constant_(network[-1].bias, torch.logit(label.double().mean()).item())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(500):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(features)[:, 0], label.float()).backward()
        optimizer.step()
    return network


def precision_recall(scores: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return recall and precision at every cut, from the top downwards."""
    hits = label[scores.argsort(descending=True)].cumsum(0)
    return hits / label.sum(), hits / torch.arange(1, len(scores) + 1)


def show_rows(axes: Axes, features: Tensor, label: Tensor, scorers: dict[str, tuple[nn.Linear, str]]) -> None:
    """Draw the rows and, for each scorer, the line above which lies the top 1 % of its scores."""
    axes.scatter(*features[~label].T, s=3, color=NEGATIVE, linewidths=0, label="negative", rasterized=True)
    axes.scatter(*features[label].T, s=12, color=POSITIVE, linewidths=0, label="positive (1 %)")
    across = torch.linspace(-4.5, 5.5, 2)
    for name, (scorer, colour) in scorers.items():
        with torch.no_grad():
            cut = scorer(features)[:, 0].quantile(0.99) - scorer.bias
            first, second = scorer.weight[0]
            # Parametrised along the line, since one of the two lines stands upright.
            foot = cut * scorer.weight[0] / scorer.weight[0].square().sum()
            along = torch.stack([-second, first]) / scorer.weight[0].norm()
        line = foot[:, None] + 12 * along[:, None] * torch.tensor([-1.0, 1.0])
        axes.plot(*line, color=colour, linewidth=2, label=f"top 1 % by {name}: right of it")
    axes.set(xlim=(across[0], across[1]), ylim=(-4, 5.5), xlabel="feature 1", ylabel="feature 2")
    axes.set_title("Where each puts its top 1 %", loc="left", fontsize=11)
    axes.legend(loc="lower left", fontsize=7.5, framealpha=0.95)


def show_curves(axes: Axes, features: Tensor, label: Tensor, scorers: dict[str, tuple[nn.Module, str]]) -> None:
    """Draw precision against recall on rows that no scorer was fitted to."""
    for name, (scorer, colour) in scorers.items():
        with torch.no_grad():
            scores = scorer(features)[:, 0]
        value = metrics.average_precision(scores, label).value
        axes.plot(*precision_recall(scores, label), color=colour, linewidth=1.8, label=f"{name}: AP {value:.2f}")
        print(f"{name}: average precision {value:.3f} on held-out rows")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title("Precision and recall on held-out rows", loc="left", fontsize=11)
    axes.legend(loc="upper right", fontsize=8)


def main() -> None:
    """Fit the scorers and write the picture beside this file."""
    solved, ranked = fit()
    features, label = draw(seed=1)
    linear = {"cross-entropy": (solved, CROSS_ENTROPY), "Smooth-AP": (ranked, SMOOTH_AP)}
    scorers: dict[str, tuple[nn.Module, str]] = {f"linear, {name}": shown for name, shown in linear.items()}
    scorers["network, cross-entropy"] = (fit_network(), NETWORK)
    plt.rcParams.update({"svg.hashsalt": "why", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained", dpi=150)
    show_rows(left, features, label, linear)
    show_curves(right, features, label, scorers)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
