"""Draw the pictures of docs/linear-time.md: the kernel in two parts, the exponentials.

Run: python docs/pictures/linear_time.py
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

BLUE, ORANGE, PURPLE, GREY, GREEN = "#1b6ca8", "#c2571a", "#7b2d8b", "#5f6b76", "#2e8b57"
HERE = Path(__file__).parent


def new_figure(width: float = 9, height: float = 3.6) -> tuple[Figure, Axes, Axes]:
    """Return a figure with two axes side by side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(width, height), layout="constrained", dpi=150)
    return figure, left, right


def title(axes: Axes, text: str) -> None:
    """Write a title in the style of the pages."""
    axes.set_title(text, loc="left", fontsize=11)


# ---------------------------------------------------------------------------------------------------- the kernel


def draw_kernel() -> Figure:
    """Show the sigmoid as a step and a remainder that is felt nearby only."""
    figure, left, right = new_figure()
    x = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    step = (x > 0).double()
    remainder = torch.sigmoid(x) - step
    left.plot(x, torch.sigmoid(x), color=BLUE, linewidth=2, label="sigmoid")
    left.plot(x, torch.where(x.abs() < 0.005, torch.nan, step), color=ORANGE, linewidth=1.6, label="step: a count")
    left.plot(x, torch.where(x.abs() < 0.005, torch.nan, remainder), color=PURPLE, linewidth=1.6, label="remainder")
    left.axhline(0, color=GREY, linewidth=0.6)
    left.set(xlabel="(s_j - s_i) / t", xlim=(-12, 12))
    left.legend(loc="upper left", fontsize=8)
    title(left, "Sigmoid = step + remainder")

    away = torch.linspace(0, 60, 601, dtype=torch.float64)
    right.semilogy(away, torch.sigmoid(-away), color=PURPLE, linewidth=2, label="remainder, both sides")
    for power, colour in ((4, GREEN), (6, BLUE), (8, ORANGE)):
        cut = math.log(10**power) + 37
        right.axvline(cut, color=colour, linestyle="--", linewidth=1.2, label=f"ln M + 37 for M = 1e{power}")
    right.axhline(math.exp(-37), color=GREY, linewidth=0.8, label="exp(-37): one row's rounding")
    right.set(xlabel="|s_j - s_i| / t", ylabel="weight of one row", xlim=(0, 60), ylim=(1e-27, 1))
    right.legend(loc="lower left", fontsize=8)
    title(right, "It decays like exp(-|x|)")
    return figure


# ----------------------------------------------------------------------------------------------- the exponentials


def interpolant(terms: int, power: int, u: Tensor) -> Tensor:
    """Evaluate the polynomial through ``(1 + u)^-power`` at ``terms`` Chebyshev nodes of [0, 1]."""
    index = torch.arange(terms, dtype=torch.float64)
    angle = (index + 0.5) * math.pi / terms
    nodes = (1 + torch.cos(angle)) / 2
    barycentric = (-1.0) ** index * torch.sin(angle)
    quotient = barycentric / (u[:, None] - nodes)
    return (quotient @ (1 + nodes) ** -power) / quotient.sum(1)


def draw_exponentials() -> Figure:
    """Show how few powers of exp(-x) make the sigmoid, and its slope."""
    figure, left, right = new_figure()
    x = torch.linspace(1e-4, 16, 2000, dtype=torch.float64)
    u = torch.exp(-x)
    for terms, colour in ((4, GREY), (6, GREEN), (8, BLUE), (10, ORANGE), (12, PURPLE)):
        error = (interpolant(terms, 1, u) * (1 + u) - 1).abs()
        left.semilogy(x, error, color=colour, linewidth=1.3, label=f"K = {terms}")
    left.set(xlabel="x = |s_j - s_i| / t", ylabel="relative error of sigmoid(-x)", ylim=(1e-12, 1e-1), xlim=(0, 16))
    left.legend(loc="upper right", fontsize=8, ncols=3)
    title(left, "The error is relative, so far rows stay exact")

    counts = list(range(2, 21))
    fine = torch.linspace(1e-9, 1 - 1e-9, 20_000, dtype=torch.float64)
    for power, name, colour in ((1, "sigmoid", BLUE), (2, "its derivative", ORANGE)):
        worst = [float((interpolant(k, power, fine) * (1 + fine) ** power - 1).abs().max()) for k in counts]
        right.semilogy(counts, worst, "o-", color=colour, markersize=4, label=name)
        print(f"{name}: " + ", ".join(f"K = {k}: {worst[counts.index(k)]:.1e}" for k in (8, 10, 12, 14)))
    rate = 3 + 2 * math.sqrt(2)
    right.semilogy(counts, [rate**-k for k in counts], color=GREY, linestyle="--", label="(3 + sqrt 8)^-K")
    right.set(xlabel="terms K", ylabel="largest relative error", xticks=counts[::2])
    right.legend(loc="upper right", fontsize=8)
    title(right, "Convergence")
    return figure


def main() -> None:
    """Write the pictures beside this file."""
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "linear_time"}
    plt.rcParams.update(style)
    pictures = {
        "kernel": draw_kernel,
        "exponentials": draw_exponentials,
    }
    for name, draw in pictures.items():
        draw().savefig(HERE / f"linear_time_{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
