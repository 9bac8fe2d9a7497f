"""The score laws that everything is measured on, from the ordinary to the hostile."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["HOSTILE", "LAWS", "draw", "draw_positive"]

# Each takes rows, temperature and generator, and returns float64 scores.
Law = Callable[[int, float, torch.Generator], Tensor]


def _normal(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, generator=generator, dtype=torch.float64)


def _student(rows: int, temperature: float, generator: torch.Generator) -> Tensor:
    # Two degrees of freedom: chi-squared / 2 is a standard exponential, so t = z / sqrt(-log u).
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64).clamp_(min=1e-300)
    return _normal(rows, generator) / (-uniform.log()).sqrt()


def _clusters(rows: int, temperature: float, generator: torch.Generator) -> Tensor:
    return _normal(rows, generator) + 2e4 * (torch.rand(rows, generator=generator) < 0.5)


def _outliers(rows: int, temperature: float, generator: torch.Generator) -> Tensor:
    scores = _normal(rows, generator)
    scores[:3], scores[3:5] = 1e30, -1e30
    return scores[torch.randperm(rows, generator=generator)]


def _chain(rows: int, temperature: float, generator: torch.Generator) -> Tensor:
    return 30 * temperature * torch.randperm(rows, generator=generator).double()


LAWS: dict[str, Law] = {
    "normal": lambda rows, temperature, generator: _normal(rows, generator),
    "normal, deviation 5": lambda rows, temperature, generator: 5 * _normal(rows, generator),
    "Student t, 2 degrees": _student,
    "two clusters 2e4 apart": _clusters,
    "five outliers at 1e30": _outliers,
    "all equal": lambda rows, temperature, generator: torch.full((rows,), 0.5, dtype=torch.float64),
    "chain of gaps of 30 temperatures": _chain,
}
HOSTILE = tuple(name for name in LAWS if name != "normal")


def draw(law: str, rows: int, *, temperature: float = 0.01, seed: int = 0) -> Tensor:
    """Draw float32 scores ``[rows]``. A long chain outgrows float32: its far gaps are then rounded, some to 0."""
    return LAWS[law](rows, temperature, torch.Generator().manual_seed(seed)).float()


def draw_positive(rows: int, rate: float = 0.01, *, seed: int = 1) -> Tensor:
    """Draw ``rate`` of the rows, at least one, as positives, whatever their scores."""
    indices = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[: max(1, round(rate * rows))]
    return torch.zeros(rows, dtype=torch.bool).index_fill_(0, indices, True)
