"""The models that are compared: how each looks, what inputs it takes, and how it starts."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rareloss.table import DataError
from rareloss.tabular.network import perceptron
from rareloss.tabular.preprocess import Kind

__all__ = ["MODELS", "ON_REQUEST", "Family", "find_model", "logits_of", "start_at_base_rate"]


@dataclass(frozen=True)
class Family:
    """A model family.

    Args:
        name: how it is called on the command line.
        about: one sentence for the report.
        kinds: the inputs it may take; where there are several, validation chooses.
        scorecard: whether logistic regression solves its cross-entropy exactly.
        build: makes the model from the number of features and of outputs.
    """

    name: str
    about: str
    kinds: tuple[Kind, ...]
    scorecard: bool
    build: Callable[[int, int], nn.Module]


def _linear(n_features: int, n_outputs: int) -> nn.Module:
    model = nn.Linear(n_features, n_outputs)
    nn.init.zeros_(model.weight)
    return model


MODELS = {
    family.name: family
    for family in (
        Family(
            "linear",
            "a linear scorecard on standardised or quantile-normal inputs, whichever validation prefers",
            ("standard", "normal"),
            True,
            _linear,
        ),
        Family(
            "additive", "a scorecard: a sum of smooth curves (cubic splines) of each input", ("spline",), True, _linear
        ),
        Family(
            "mlp",
            "a network with hidden layers of 128 and 64 on quantile-normal inputs",
            ("normal",),
            False,
            partial(perceptron, hidden=(128, 64)),
        ),
    )
}
# Models that a comparison has where they are asked for: networks that cannot fit everything, and a linear scorecard
# whose inputs are given, as they are where a scorecard's columns are prescribed.
ON_REQUEST = {
    "linear_normal": Family("linear_normal", "a linear scorecard on quantile-normal inputs", ("normal",), True, _linear)
} | {
    f"mlp{units}": Family(
        f"mlp{units}",
        f"a network of {units} hidden units on quantile-normal inputs",
        ("normal",),
        False,
        partial(perceptron, hidden=(units,)),
    )
    for units in (8, 32)
}


def find_model(name: str) -> Family:
    """Return the model of a name: a built-in one, or ``module:function`` of the user's.

    The function takes the number of features and of outputs and returns an ``nn.Module`` whose output is
    ``[n, n_outputs]``. It is trained as the built-in network is, on quantile-normal inputs.

    Raises:
        DataError: there is no such model, or the function cannot be imported.
    """
    known = MODELS | ON_REQUEST
    if name in known:
        return known[name]
    module, found, function = name.partition(":")
    if not found:
        raise DataError(f"there is no model {name!r}; use {', '.join(known)} or module:function of your own")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # an installed command does not look into the current folder by itself
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"model {name!r} cannot be imported ({error}); write module:function, the module in the current folder "
            "or installed"
        ) from error
    if not callable(build):
        raise DataError(f"model {name!r} is no function of (n_features, n_outputs), but {build!r:.60}")
    return Family(name, f"the network that {name} builds, on quantile-normal inputs", ("normal",), False, build)


def logits_of(model: nn.Module, x: Tensor, outputs: int) -> Tensor:
    """Compute the logits: ``[n]`` for one output, else ``[n, C]``.

    Raises:
        DataError: the model's output has another shape, or it is no module.
    """
    logits = model(x)
    if not isinstance(logits, Tensor) or logits.numel() != len(x) * outputs:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(f"the network must return logits of shape [{len(x)}, {outputs}], got {got}")
    return logits.reshape(len(x)) if outputs == 1 else logits.reshape(len(x), outputs)


@torch.no_grad()
def start_at_base_rate(model: nn.Module, counts: Tensor, outputs: int) -> None:
    """Set the bias of the last layer so that every row starts at the classes' shares ``counts`` (``[C]`` rows)."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == outputs]
    if layers and layers[-1].bias is not None:
        logs = counts.double().clamp(min=1).log()
        bias = logs[1:] - logs[:1] if outputs == 1 else logs - logs.logsumexp(0)
        layers[-1].bias.copy_(bias.to(layers[-1].bias.dtype))
