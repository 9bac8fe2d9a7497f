"""The functions under ``torch.func``: over classes and seeds, as a plain loop gives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from rareloss import functional

POSITIVE = torch.rand(24, generator=torch.Generator().manual_seed(1)) < 0.3
INDICES = torch.arange(24) % 3
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ap": lambda s: functional.smooth_average_precision(s, POSITIVE, temperature=0.2).value,
    "recall": lambda s: functional.soft_recall_at_quantile(s, POSITIVE, quantile=0.2, temperature=0.2).value,
    "negatives": lambda s: (
        functional.soft_recall_at_quantile(s, POSITIVE, quantile=0.3, among="negatives", temperature=0.2).value
    ),
    "pauc": lambda s: functional.soft_partial_auc(s, POSITIVE, beta=0.4, temperature=0.2).value,
    "count": lambda s: functional.soft_count(s, torch.ones(24), temperature=0.2).square().mean(),
    "sigmoid focal": lambda s: functional.sigmoid_focal_loss(s, POSITIVE),
    "log-odds": lambda s: functional.log_odds(s.reshape(8, 3)).square().mean(),
    "softmax focal": lambda s: functional.softmax_focal_loss(s.reshape(8, 3), INDICES[:8]),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-11)


@every_function
def test_transforms_equal_a_loop(name: str) -> None:
    function, scores = FUNCTIONS[name], torch.randn(4, 24, dtype=torch.float64)
    slopes = []
    for row in scores:
        leaf = row.clone().requires_grad_()
        slopes.append(torch.autograd.grad(function(leaf), leaf)[0])
    values, expected = torch.stack([function(row) for row in scores]), torch.stack(slopes)
    close(vmap(function)(scores), values)
    close(vmap(function, in_dims=1)(scores.mT), values)
    close(vmap(function, chunk_size=3)(scores), values)
    close(torch.stack([grad(function)(row) for row in scores]), expected)
    close(vmap(grad(function))(scores), expected)
    close(vmap(grad(function), in_dims=1, chunk_size=2)(scores.mT), expected)
    close(grad(lambda s: vmap(function)(s).sum())(scores), expected)
    close(jacrev(vmap(function))(scores).diagonal(dim1=0, dim2=1).mT, expected)
    seeds = torch.stack([scores, scores + 1])
    close(vmap(vmap(function))(seeds)[0], values)
