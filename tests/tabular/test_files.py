"""Files appear whole or not at all, with the permissions that they had, and leave nothing beside them."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from rareloss.cli import app
from rareloss.table.files import whole_file
from rareloss.tabular import DataError, fit


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_a_new_file_has_the_permissions_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "a") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == 0o666 & ~umask


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o600)
    with whole_file(tmp_path / "a") as file:
        file.write(b"new")
    assert ((tmp_path / "a").read_text(), mode(tmp_path / "a")) == ("new", 0o600)


def test_what_is_raised_leaves_the_old_file(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole_file(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_parts_of_a_killed_process_are_removed_and_those_of_a_running_one_stay(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from rareloss.table.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file: file.write(b'x'); file.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a[1]")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    running = tmp_path / f".a[1].1.{os.getppid()}.part"
    running.write_text("of another")
    with whole_file(tmp_path / "a[1]") as file:
        file.write(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([running.name, "a[1]"])


def test_a_folder_of_somebody_else_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "m.unfinished").mkdir()
    (tmp_path / "m.unfinished" / "thesis.txt").write_text("mine")
    frame = pd.DataFrame({"x": range(200), "z": [i % 7 for i in range(200)], "y": [i % 5 == 0 for i in range(200)]})
    with pytest.raises(DataError, match="no unfinished work of rareloss fit"):
        fit(frame, target="y", trials=1, out=tmp_path / "m")
    assert (tmp_path / "m.unfinished" / "thesis.txt").read_text() == "mine"


def test_verify_does_not_write_over_its_batch(tmp_path: Path) -> None:
    batch = tmp_path / "b.pt"
    batch.write_bytes(b"rows")
    arguments = ["verify", "rareloss:SigmoidFocalLoss", "--batch", str(batch), "--out", str(batch), "--ranks", "none"]
    found = CliRunner().invoke(app, arguments)
    assert (found.exit_code, batch.read_bytes()) == (2, b"rows")
    assert "would be lost" in found.stderr


def test_the_first_of_several_writers_stays(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a", first=True) as file:
        file.write(b"one")
        with whole_file(tmp_path / "b") as other:
            other.write(b"beside it")
    with whole_file(tmp_path / "a", first=True) as file:
        file.write(b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
