"""A model's network as an ONNX graph."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from rareloss.table import DataError
from rareloss.tabular.model.model import Model
from rareloss.tabular.model.reading import written_threshold

__all__ = ["to_onnx"]

# Old enough for every runtime in use, and new enough for every operator here.
OPSET, IR = 17, 8


def to_onnx(model: Model, path: str | Path) -> None:
    """Write the network: ``inputs`` float32 ``[n, width]``, as ``model.inputs`` makes them, to ``score`` ``[n, 1]``.

    What comes before and after it (medians, quantiles, categories; threshold and calibrator) stands as JSON in the
    graph's metadata under ``rareloss``. Graphs of Gemm and Relu are written as they are, without tracing.

    Raises:
        DataError: the file cannot be written, or ends on something else than onnx.
    """
    if Path(path).suffix.lower() != ".onnx":
        raise DataError(f"{path} has an unknown ending; onnx files are written, such as {Path(path).stem}.onnx")
    nodes, weights, last = [], [], "inputs"
    layers = [model.network] if isinstance(model.network, nn.Linear) else list(model.network.children())
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
    graph = helper.make_graph(
        nodes,
        "rareloss",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["n", model.inputs.width])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="rareloss"
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
