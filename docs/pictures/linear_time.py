"""Draw the pictures of docs/linear-time.md: the kernel in two parts, the grid, the exponentials.

Run: python docs/pictures/linear_time.py
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from rareloss.ops import exponentials, grid
from rareloss.ops import pairs as dense

BLUE, ORANGE, PURPLE, GREY, GREEN = "#1b6ca8", "#c2571a", "#7b2d8b", "#5f6b76", "#2e8b57"
CELLS_PER_TEMPERATURE = 16
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


# ------------------------------------------------------------------------------------------------------ the grid


def interpolation(position: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Return the first node and the weights ``[M, order + 1]`` of the polynomial through the nearest nodes.

    Args:
        position: in cells, ``[M]``.
        order: degree of the polynomial.
    """
    first = torch.floor(position - (order - 1) / 2).long()
    offset = position - first
    nodes = torch.arange(order + 1, dtype=position.dtype)
    weights = torch.ones(len(position), order + 1, dtype=position.dtype)
    for node in range(order + 1):
        for other in range(order + 1):
            if other != node:
                weights[:, node] *= (offset - nodes[other]) / (node - other)
    return first, weights


def count_on_grid(scores: Tensor, width: float, order: int) -> Tensor:
    """Count softly above each score (temperature 1) through nodes ``width`` apart."""
    position = (scores - scores.min()) / width + order + 1
    first, weights = interpolation(position, order)
    nodes = int(first.max()) + order + 2
    places = first[:, None] + torch.arange(order + 1)
    mass = torch.zeros(nodes, dtype=scores.dtype).index_add_(0, places.flatten(), weights.flatten())
    apart = torch.arange(nodes, dtype=scores.dtype) * width
    at_nodes = torch.sigmoid(apart - apart[:, None]) @ mass
    return (at_nodes[places] * weights).sum(1)


def draw_grid() -> Figure:
    """Show rows handed to nodes and read back from them, and what that costs in digits."""
    figure, left, right = new_figure()
    scores = torch.tensor([-2.3, -1.1, -0.75, 0.6, 2.4], dtype=torch.float64)
    x = torch.linspace(-4, 4, 801, dtype=torch.float64)
    count = torch.sigmoid(scores - x[:, None]).sum(1)
    width, start = 1.0, -6.0
    first, weights = interpolation((scores - start) / width, 3)
    nodes = start + width * torch.arange(13, dtype=torch.float64)
    mass = torch.zeros(13, dtype=torch.float64)
    mass.index_add_(0, (first[:, None] + torch.arange(4)).flatten(), weights.flatten())
    at_nodes = torch.sigmoid(nodes - nodes[:, None]) @ mass
    left.plot(x, count, color=BLUE, linewidth=1.8, label="soft count of five rows")
    left.plot(nodes, at_nodes, "o", color=ORANGE, markersize=5, label="at the nodes, from node weights")
    left.vlines(nodes, 0, mass, color=PURPLE, linewidth=3, label="node weights")
    left.plot(scores, torch.full_like(scores, -0.35), "|", color="black", markersize=11, label="rows")
    left.axhline(0, color=GREY, linewidth=0.6)
    left.set(xlim=(-4, 4), ylim=(-0.6, 6.4), xlabel="s / t")
    left.legend(loc="upper right", fontsize=8)
    title(left, "Hand rows to nodes, count there, read back")

    generator = torch.Generator().manual_seed(0)
    pool = 20 * torch.randn(1000, generator=generator, dtype=torch.float64)
    exact = torch.sigmoid(pool - pool[:, None]).sum(1)
    widths = [2.0**-power for power in range(6)]
    for order, name, colour in (
        (1, "linear", GREY),
        (2, "quadratic", GREEN),
        (3, "cubic", BLUE),
        (5, "quintic", ORANGE),
    ):
        errors = [float(((count_on_grid(pool, h, order) - exact) / exact).abs().max()) for h in widths]
        right.loglog(widths, errors, "o-", color=colour, markersize=4, label=f"{name}: h^{order + 1}")
        guide = [errors[-1] * (h / widths[-1]) ** (order + 1) for h in widths]
        right.loglog(widths, guide, color=colour, linewidth=0.7, linestyle=":")
        print(f"{name}: largest relative error {errors[-1]:.1e} at h = 1/32, {errors[3]:.1e} at h = 1/8")
    right.set_xticks(widths, [f"1/{round(1 / h)}" for h in widths], minor=False)
    right.set_xticks([], minor=True)
    right.set(xlabel="width of a cell, in temperatures", ylabel="largest relative error of a count")
    right.legend(loc="lower right", fontsize=8)
    title(right, "Error against the width of a cell")
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


# --------------------------------------------------------------------------------------------- the predicted cost


def draw_choice() -> Figure:
    """Show which method has the least predicted cost, for one class with 1 % positives."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained", dpi=150)
    rows = torch.logspace(3, 8, 401, dtype=torch.float64)
    width = torch.logspace(0, 7, 401, dtype=torch.float64)[:, None]  # from the lowest to the highest score
    points = rows / 100
    pairs = (dense.NANOSECONDS * rows * points).expand(len(width), -1)
    by_grid = (
        grid.NANOSECONDS
        + grid.NANOSECONDS_PER_ROW * (rows + points)
        + grid.NANOSECONDS_PER_NODE * (CELLS_PER_TEMPERATURE * width + 5)
    ).masked_fill(CELLS_PER_TEMPERATURE * width > grid.MOST_CELLS, math.inf)
    by_exponentials = (exponentials.NANOSECONDS + exponentials.NANOSECONDS_PER_ROW * (rows + points)).expand(
        len(width), -1
    )
    cheapest = torch.stack([pairs, by_grid, by_exponentials]).argmin(0)
    axes.pcolormesh(
        rows, width[:, 0], cheapest, cmap=ListedColormap(("#dfe3e8", "#bcd7ec", "#f1d2bd")), rasterized=True
    )
    axes.set(xscale="log", yscale="log", xlabel="rows of the pool", ylabel="range of the scores / t")
    for method, name in enumerate(("pairs", "grid", "exponentials")):
        inside = (cheapest == method).nonzero().double().mean(0)
        axes.text(rows[int(inside[1])], width[int(inside[0]), 0], name, ha="center", va="center", fontsize=11)
    title(axes, "The method that is predicted to be the fastest")
    return figure


def main() -> None:
    """Write the pictures beside this file."""
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "linear_time"}
    plt.rcParams.update(style)
    pictures = {
        "kernel": draw_kernel,
        "grid": draw_grid,
        "exponentials": draw_exponentials,
        "choice": draw_choice,
    }
    for name, draw in pictures.items():
        draw().savefig(HERE / f"linear_time_{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
