"""One messy table, and one model fitted on it."""

from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("onnx")
from deploy_table import OPTIONS, make_frame

from rareloss.tabular.model import Model, fit


@pytest.fixture(scope="session")
def frame() -> pd.DataFrame:
    return make_frame()


@pytest.fixture(scope="session")
def csv(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cards.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def folder(csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    fit(csv, out=path, **OPTIONS)
    return path


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return Model.load(folder)
