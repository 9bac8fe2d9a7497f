"""A folder is data: whatever stands in its files, nothing is run, and what is no model is refused in words."""

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rareloss.tabular.model import DataError, Model

FILES = ["model.json", "weights.safetensors", "card.json"]


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.sentinel}",)


@pytest.fixture
def copy(model: Model, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def assert_refused(folder: Path, said: str = "") -> None:
    with pytest.raises(DataError, match=said or None):
        Model.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("protocol", [0, 5])
def test_a_pickle_in_place_of_a_file_is_not_run(copy: Path, tmp_path: Path, name: str, protocol: int) -> None:
    sentinel = tmp_path / "ran"
    (copy / name).write_bytes(pickle.dumps(Hostile(sentinel), protocol))
    assert_refused(copy)
    torch.save(Hostile(sentinel), copy / name)
    assert_refused(copy)
    if name.startswith("weights"):  # also where its hash was written along
        change(copy, lambda given: given | {"weights_sha256": sha256(copy / name)})
        assert_refused(copy, "no safetensors file")
    assert not sentinel.exists()


def change(folder: Path, changed: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()))))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put(given: Any, path: str, value: Any) -> Any:
    *places, last = (int(place) if place.isdigit() else place for place in path.split("/"))
    inner = given
    for place in places:
        inner = inner[place]
    inner[last] = value
    return given


SYSTEM = {"__class__": "system", "__module__": "os", "__reduce__": ["os.system", ["true"]]}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("layers/0", "os.system"),
        ("layers/0", SYSTEM),
        ("layers", []),
        ("layers", ["linear", "relu", "linear"]),
        ("layers", ["relu"]),
        ("inputs", SYSTEM),
        ("inputs/kind", "trees"),
        ("inputs/kind", "os.system"),
        ("inputs/numbers/0", SYSTEM),
        ("inputs/numbers/0", "../../etc/passwd"),
        ("inputs/numbers", []),
        ("inputs/gaps", ["country"]),
        ("inputs/categories/0/rare", "yes"),
        ("inputs/categories/0/frequent", [1, 2]),
        ("inputs/categories/0/frequent", ["de", "de"]),
        ("calibrator", SYSTEM),
        ("calibrator/slope", -1),
        ("calibrator/slope", "os.system"),
        ("objective", "os.system"),
        ("objective", 3),
        ("threshold", "0"),
        ("threshold", True),
        ("threshold", 10**400),
        ("calibrator/slope", 10**400),
        ("profile/age/low", 10**400),
        ("profile/age", {}),
        ("profile", {}),
        ("inputs/categories/0/frequent", [str(value) for value in range(100_000)]),
        ("format", 3),
        ("classes", ["bad"]),
        ("columns/0/reads", "pickle"),
        ("columns/0/features", ["age"]),
        ("columns/0/features", []),
        ("columns/0/name", "../amount"),
        ("columns/0", SYSTEM),
        ("columns", []),
        ("unused/0", 3),
        ("weights_sha256", "0" * 64),
        ("more", "os.system"),
    ],
)
def test_what_is_no_model_is_refused(copy: Path, path: str, value: Any) -> None:
    change(copy, lambda given: put(given, path, value))
    assert_refused(copy)


@pytest.mark.parametrize(
    "text",
    ["", "[", "[" * 100_000, "{}", "null", '{"format": NaN}', '{"format": 1, "format": 1}', "\x00", "9" * 5000],
)
@pytest.mark.parametrize("name", ["model.json", "card.json"])
def test_broken_json_is_refused(copy: Path, name: str, text: str) -> None:
    if name == "card.json" and text in ("{}", "null"):
        pytest.skip("a card may say anything")
    (copy / name).write_text(text)
    assert_refused(copy)


def header(size: int, text: str) -> bytes:
    return struct.pack("<Q", size) + text.encode()


HUGE = '{"network.weight":{"dtype":"F32","shape":[4000000000,4000000000],"data_offsets":[0,64000000000000000000]}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header(2**63, "{}"),
        header(len(HUGE), HUGE),
        header(10**12, HUGE),
        header(2, "{}"),
        header(4, "null"),
    ],
)
def test_weights_that_declare_more_than_they_hold_are_refused(copy: Path, content: bytes) -> None:
    path = copy / "weights.safetensors"
    path.write_bytes(content)
    change(copy, lambda given: given | {"weights_sha256": sha256(path)})
    assert_refused(copy)


@pytest.mark.parametrize(
    "broken",
    [
        lambda t: t | {"network.../../../evil": torch.zeros(1)},
        lambda t: t | {"/etc/passwd": torch.zeros(1)},
        lambda t: t | {"inputs.os.system": torch.zeros(1, dtype=torch.float64)},
        lambda t: t | {"network.weight": torch.full_like(t["network.weight"], torch.nan)},
        lambda t: t | {"network.weight": t["network.weight"].double()},
        lambda t: t | {"network.weight": t["network.weight"][:, 1:].contiguous()},
        lambda t: t | {"network.weight": torch.zeros(0, 3)},
        lambda t: t | {"network.weight": torch.zeros(())},
        lambda t: t | {"inputs.numbers.scale": torch.zeros_like(t["inputs.numbers.scale"])},
        lambda t: t | {"inputs.numbers.mean": t["inputs.numbers.mean"][1:].clone()},
        lambda t: t | {"inputs.numbers.mean": t["inputs.numbers.mean"].float()},
        lambda t: {name: values for name, values in t.items() if name != "network.bias"},
    ],
)
def test_tensors_that_do_not_fit_are_refused(copy: Path, broken: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = copy / "weights.safetensors"
    save_file(broken(load_file(path)), path)
    change(copy, lambda given: given | {"weights_sha256": sha256(path)})
    assert_refused(copy)


@pytest.mark.parametrize("name", FILES)
def test_missing_huge_and_odd_files_are_refused(copy: Path, tmp_path: Path, name: str) -> None:
    path = copy / name
    path.unlink()
    assert_refused(copy, "no saved model")
    os.mkfifo(path)  # reading it would wait for ever
    assert_refused(copy, "no saved model")
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(2**40)  # a hole: no bytes on the disk
    assert_refused(copy, "bytes; at most")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing", "there is no folder")
    assert_refused(tmp_path, "no saved model")


def test_onnx_runtime_computes_the_same_scores(model: Model, frame: Any, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    from deploy_table import OPTIONS

    from rareloss.tabular.model import fit, to_onnx

    network = fit(frame, out=tmp_path / "network", **{**OPTIONS, "model": "mlp8", "method": "tuned_ce"})
    for each in (model, network):
        to_onnx(each, tmp_path / "model.onnx")
        session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        inputs = each.inputs.transform(each.features(frame))
        for rows in (inputs, inputs[:1]):
            (scores,) = session.run(["score"], {"inputs": rows})
            np.testing.assert_allclose(scores[:, 0], each.raw(rows), rtol=1e-5, atol=1e-6)
        about = json.loads(session.get_modelmeta().custom_metadata_map["rareloss"])
        assert about["threshold"] == each.threshold
        assert about["calibrator"] == each.calibrator.to_dict()
    with pytest.raises(DataError, match="cannot be written"):
        to_onnx(model, tmp_path / "nowhere" / "model.onnx")
