"""A model's network as an ONNX graph."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from rareloss.table import DataError
from rareloss.tabular.model.model import Model
from rareloss.tabular.model.reading import written_threshold
from rareloss.tabular.trees import Trees

__all__ = ["to_onnx"]

# Old enough for every runtime in use, and new enough for every operator here.
OPSET, ML_OPSET, IR = 17, 3, 8


def to_onnx(model: Model, path: str | Path) -> None:
    """Write the network: ``inputs`` float32 ``[n, width]``, as ``model.inputs`` makes them, to ``score`` ``[n, 1]``.

    What comes before and after it (medians, quantiles, categories; threshold and calibrator) stands as JSON in the
    graph's metadata under ``rareloss``. Graphs of Gemm and Relu are written as they are, without tracing; trees as a
    ``TreeEnsembleRegressor``, whose sums are in float32.

    Raises:
        DataError: the file cannot be written, or ends on something else than onnx; or trees ask for categories.
    """
    if Path(path).suffix.lower() != ".onnx":
        raise DataError(f"{path} has an unknown ending; onnx files are written, such as {Path(path).stem}.onnx")
    nodes, weights = _of_trees(model.network) if isinstance(model.network, Trees) else _of_layers(model.network)
    graph = helper.make_graph(
        nodes,
        "rareloss",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["n", model.inputs.width])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        ir_version=IR,
        producer_name="rareloss",
    )
    made.producer_version = version("rareloss")
    about: dict[str, Any] = {
        "threshold": written_threshold(model.threshold),
        "calibrator": model.calibrator.to_dict(),
        "inputs": model.inputs.to_dict(),
        "arrays": {name: values.tolist() for name, values in model.inputs.arrays.items()},
    }
    helper.set_model_props(made, {"rareloss": json.dumps(about, allow_nan=False)})
    onnx.checker.check_model(made, full_check=True)
    try:
        onnx.save(made, str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def _of_layers(network: nn.Module) -> tuple[list[Any], list[Any]]:
    nodes, weights, last = [], [], "inputs"
    layers = [network] if isinstance(network, nn.Linear) else list(network.children())
    for index, layer in enumerate(layers):
        result = "score" if index == len(layers) - 1 else f"layer{index}"
        if isinstance(layer, nn.Linear):
            for name in ("weight", "bias"):
                values = getattr(layer, name).detach().numpy()
                weights.append(numpy_helper.from_array(values, f"{index}.{name}"))
            nodes.append(helper.make_node("Gemm", [last, f"{index}.weight", f"{index}.bias"], [result], transB=1))
        else:
            nodes.append(helper.make_node("Relu", [last], [result]))
        last = result
    return nodes, weights


def _of_trees(trees: Trees) -> tuple[list[Any], list[Any]]:
    own = {name: values.numpy() for name, values in trees.named_buffers()}
    if own["categorical"].any():
        raise DataError(
            "trees that ask for categories cannot be written as an ONNX graph, which compares numbers alone; leave the "
            "categories out (--without), or export another model"
        )
    sizes = np.diff(own["nodes_before"])
    tree = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(tree)) - own["nodes_before"][tree]
    leaf = own["leaf"] == 1
    # Inputs are float32, so that the largest float32 up to a threshold parts them as the threshold does.
    thresholds = np.where(leaf, 0, own["threshold"]).astype(np.float32)
    above = thresholds.astype(np.float64) > own["threshold"]
    thresholds[above & ~leaf] = np.nextafter(thresholds, np.float32(-np.inf))[above & ~leaf]
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["inputs"],
        ["score"],
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
        base_values=own["baseline"].tolist(),
        nodes_treeids=tree.tolist(),
        nodes_nodeids=place.tolist(),
        nodes_featureids=np.where(leaf, 0, own["order"][np.where(leaf, 0, own["feature"])]).tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_values=thresholds.tolist(),
        nodes_hitrates=[1.0] * len(tree),
        nodes_truenodeids=np.where(leaf, 0, own["left"]).tolist(),
        nodes_falsenodeids=np.where(leaf, 0, own["right"]).tolist(),
        nodes_missing_value_tracks_true=np.where(leaf, 0, own["missing_left"]).astype(np.int64).tolist(),
        target_treeids=tree[leaf].tolist(),
        target_nodeids=place[leaf].tolist(),
        target_ids=[0] * int(leaf.sum()),
        target_weights=own["value"][leaf].tolist(),
    )
    return [node], []
