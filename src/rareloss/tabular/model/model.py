"""A trained model with everything that turns a row of a file into a decision, and the folder that holds it."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rareloss import Objective
from rareloss.decisions import Calibrator
from rareloss.table import Column, Data, DataError, Schema, open_source
from rareloss.tabular.model.card import page
from rareloss.tabular.model.effects import contributions, reasons
from rareloss.tabular.model.inputs import Inputs
from rareloss.tabular.model.profile import Profile
from rareloss.tabular.model.reading import listed, read, read_bytes, read_json, threshold_of, written_threshold
from rareloss.tabular.training import score_with
from rareloss.tabular.trees import Trees

__all__ = ["Model", "layers_of", "network_of", "replace_folder"]

FORMAT = 2
TREES = "trees"
MODEL, WEIGHTS, CARD, PAGE = "model.json", "weights.safetensors", "card.json", "README.md"


@dataclass(frozen=True, eq=False)
class Model:
    """A model of two classes, ready for tomorrow's file.

    Args:
        network: layers of ``nn.Linear`` and ``nn.ReLU``, or boosted trees; one output.
        inputs: from features to what the network takes.
        schema: from columns of a file to features, as the fit decided.
        target: the column that was learned from.
        classes: the negative one and the positive one.
        objective: what it was chosen by.
        threshold: a row scored above it is an alert; inf alerts nobody, -inf everybody.
        calibrator: from scores to probabilities.
        profile: what the rows of its fit were like.
        card: what is known of it: data, versions, held-out metrics.
    """

    network: nn.Module
    inputs: Inputs
    schema: Schema
    target: str
    classes: tuple[str, str]
    objective: Objective
    threshold: float
    calibrator: Calibrator
    profile: Profile
    card: Mapping[str, Any] = field(default_factory=dict)

    def features(self, rows: Data) -> pd.DataFrame:
        """Turn columns of a data frame or a file into features, by the stored schema.

        Raises:
            DataError: a column is missing, unknown, or of another type.
        """
        source = open_source(rows)
        self.schema.check_names(source.names)
        return self.schema.of_source(source).features(source.table(self.schema.names))

    def score(self, rows: Data) -> pd.DataFrame:
        """Score rows, all at once, that have the columns of the file that the model was fitted on.

        Args:
            rows: a data frame, or the path of a file.

        Returns:
            ``score``, float32, the raw score; ``probability`` of the positive class; ``decision``, whether the score is
            above the threshold. The index is that of a data frame of pandas.

        Raises:
            DataError: as in :meth:`features`.
        """
        scored = self.score_inputs(self.inputs.transform(self.features(rows)))
        return scored.set_axis(rows.index) if isinstance(rows, pd.DataFrame) else scored

    def score_inputs(self, inputs: np.ndarray) -> pd.DataFrame:
        """Score inputs ``[n, width]``, as :meth:`score` does; rows are numbered from 0."""
        scores = self.raw(inputs)
        columns = {
            "score": scores,
            "probability": self.calibrator(scores),
            "decision": scores.astype(np.float64) > self.threshold,
        }
        return pd.DataFrame(columns)

    def reasons(self, inputs: np.ndarray, many: int) -> list[np.ndarray]:
        """Write the features that add to or take from each row's score most, ``many`` arrays of text ``[n]``.

        Raises:
            DataError: the model is a network or trees, whose score is no sum over features.
        """
        return reasons(contributions(self.network, self.inputs, self.profile.centre, inputs), many)

    def raw(self, inputs: np.ndarray) -> np.ndarray:
        """Compute raw scores, float32 ``[n]``, of inputs ``[n, width]``."""
        return score_with(self.network, 1, torch.from_numpy(inputs)).numpy().astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Write the folder: it appears whole or not at all.

        Raises:
            DataError: the folder exists, or cannot be written.
        """
        folder = Path(folder)
        if folder.exists():
            raise DataError(f"{folder} exists; name another folder, or delete it")
        try:
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part") as beside:
                self.write(Path(beside) / "model")
                replace_folder(Path(beside) / "model", folder)
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror}; name another folder") from error

    def write(self, folder: Path) -> None:
        """Write the files into a new folder, through to the disk."""
        weights, content = self._contents()
        files = {WEIGHTS: weights, MODEL: _json(content), CARD: _json(self.card), PAGE: page(self.card).encode()}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, written in files.items():
            with open(folder / name, "wb") as file:
                file.write(written)
                file.flush()
                os.fsync(file.fileno())

    def _contents(self) -> tuple[bytes, dict[str, Any]]:
        tensors = {f"inputs.{name}": torch.from_numpy(values) for name, values in self.inputs.arrays.items()}
        tensors |= {f"network.{name}": values.contiguous() for name, values in self.network.state_dict().items()}
        tensors |= {f"profile.{name}": torch.from_numpy(values) for name, values in self.profile.arrays().items()}
        weights = save_tensors(tensors)
        return weights, {
            "format": FORMAT,
            "target": self.target,
            "classes": list(self.classes),
            "objective": str(self.objective),
            "threshold": written_threshold(self.threshold),
            "calibrator": self.calibrator.to_dict(),
            "columns": [column.to_dict() for column in self.schema.columns],
            "unused": list(self.schema.unused),
            "inputs": self.inputs.to_dict(),
            "layers": layers_of(self.network),
            "profile": self.profile.to_dict(),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }

    @classmethod
    def load(cls, folder: str | Path) -> "Model":
        """Read a folder. Nothing in it is run: it holds numbers and names, and every one is checked.

        Raises:
            DataError: it is no model, or not the one that was written.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; give the one that rareloss fit wrote")
        path = folder / MODEL
        given = read(str(path), read_json(path), _KEYS)
        weights = read_bytes(folder / WEIGHTS)
        if given["format"] != FORMAT:
            raise DataError(f"{path} has format {given['format']}; this version of rareloss reads format {FORMAT}")
        if hashlib.sha256(weights).hexdigest() != given["weights_sha256"]:
            raise DataError(f"{folder / WEIGHTS} is not the file that was written with {MODEL}; fit the model again")
        try:
            tensors = load_tensors(weights)
        except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
            raise DataError(f"{folder / WEIGHTS} is no safetensors file: {error}") from error
        if odd := [name for name in tensors if not name.startswith(("network.", "inputs.", "profile."))]:
            raise DataError(f"{folder / WEIGHTS} holds {odd[0]!r:.60}, which is no tensor of a model")
        of: dict[str, dict[str, np.ndarray]] = {"inputs": {}, "profile": {}}
        for part, arrays in of.items():
            arrays |= {name.removeprefix(f"{part}."): t.numpy() for name, t in tensors.items() if name.startswith(part)}
        layers = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        try:
            inputs = Inputs.from_dict(given["inputs"], of["inputs"])
            network = network_of(listed_layers(given["layers"]), layers)
            calibrator = Calibrator.from_dict(given["calibrator"])
            profile = Profile.from_dict(given["profile"], of["profile"], list(inputs.features), inputs.width)
            objective = Objective.parse(given["objective"])
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        columns = tuple(_column(each) for each in given["columns"])
        if (width := _width(network)) != inputs.width or (inputs.kind == "trees") != isinstance(network, Trees):
            raise DataError(f"{path}: the network takes {width} inputs, but there are {inputs.width} for {inputs.kind}")
        made = [feature for column in columns for feature in column.features]
        if sorted(listed("columns, features", made)) != sorted(inputs.features):
            raise DataError(f"{path}: the features of its columns are not those of its inputs")
        listed("columns", [column.name for column in columns])
        if len(given["classes"]) != 2:
            raise DataError(f"{path}: two classes were expected")
        return cls(
            network.eval(),
            inputs,
            Schema(columns, listed("unused", given["unused"])),
            given["target"],
            listed("classes", given["classes"]),
            objective,
            threshold_of(str(path), given["threshold"]),
            calibrator,
            profile,
            read_json(folder / CARD),
        )


_KEYS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "target": str,
    "classes": list,
    "objective": str,
    "threshold": (float, int, str),
    "calibrator": dict,
    "columns": list,
    "unused": list,
    "inputs": dict,
    "layers": list,
    "profile": dict,
    "weights_sha256": str,
}


def _column(given: Any) -> Column:
    kinds: dict[str, type] = {
        "name": str,
        "reads": str,
        "features": list,
        "format": str,
        "decimal": str,
        "missing": list,
    }
    found = read("columns", given, kinds)
    listed("columns, features", found["features"])
    listed("columns, missing", found["missing"])
    return Column.from_dict(found)


def _width(network: nn.Module) -> int:
    if isinstance(network, Trees):
        return network.width
    return next(layer for layer in network.modules() if isinstance(layer, nn.Linear)).in_features


def layers_of(network: nn.Module) -> list[str]:
    """Name the layers of a network that can be saved: ``nn.Linear``, or an ``nn.Sequential`` of it and ``nn.ReLU``.

    Raises:
        DataError: it is made of something else, which could not be loaded without its code.
    """
    if type(network) is Trees:
        return [TREES]
    layers = [network] if type(network) is nn.Linear else list(network) if type(network) is nn.Sequential else []
    names = [{nn.Linear: "linear", nn.ReLU: "relu"}.get(type(layer), "") for layer in layers]
    if not layers or "" in names or any(layer.bias is None for layer in layers if isinstance(layer, nn.Linear)):
        raise DataError(
            f"a network of {type(network).__name__} cannot be saved without its code; nn.Linear with a bias, or an "
            "nn.Sequential of it and nn.ReLU can"
        )
    return names


def listed_layers(names: Sequence[Any]) -> list[str]:
    """Check names of layers."""
    if list(names) == [TREES]:
        return [TREES]
    if not names or not set(map(str, names)) <= {"linear", "relu"} or len(names) > 1000:
        raise DataError(f"layers must be 'linear' and 'relu', got {list(names)!r:.60}")
    return list(names)


def network_of(layers: Sequence[str], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a network from its layers' names and its tensors, whose shapes are those of the layers.

    Raises:
        DataError: tensors that are missing, too many, not finite, or do not fit.
    """
    if list(layers) == [TREES]:
        return Trees(tensors)
    alone = list(layers) == ["linear"] and "weight" in tensors
    expected: set[str] = set()
    built: list[nn.Module] = []
    width: int | None = None
    for index, name in enumerate(layers):
        if name == "relu":
            built.append(nn.ReLU())
            continue
        keys = [key if alone else f"{index}.{key}" for key in ("weight", "bias")]
        expected |= set(keys)
        weight, bias = (tensors.get(key) for key in keys)
        fits = weight is not None and bias is not None and weight.ndim == 2 and bias.shape == weight.shape[:1]
        if not fits or weight is None or (width is not None and weight.shape[1] != width) or 0 in weight.shape:
            raise DataError(f"layer {index}: tensors {', '.join(keys)} are missing or of a wrong shape")
        built.append(nn.Linear(weight.shape[1], weight.shape[0]))
        width = weight.shape[0]
    if set(tensors) != expected or width != 1:
        raise DataError(f"tensors {sorted(expected)!r:.200} and one output were expected, got {sorted(tensors)!r:.200}")
    for name, values in tensors.items():
        if values.dtype != torch.float32 or not bool(torch.isfinite(values).all()):
            raise DataError(f"tensor {name!r:.60} must be finite float32")
    network = built[0] if alone else nn.Sequential(*built)
    network.load_state_dict(dict(tensors))
    return network


def replace_folder(whole: Path, folder: Path) -> None:
    """Give a finished folder its name, so that it is there for good or not at all."""
    for place in (whole, folder.parent):
        if place is not whole:
            os.rename(whole, folder)
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
