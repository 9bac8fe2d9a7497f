"""The command line: every refusal is one sentence and exit code 2; a whole run writes what it says."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner, Result

import rareloss
from rareloss.cli import app
from rareloss.tabular.comparison.runs import run_unit

QUICK = ["--seeds", "1", "--trials", "1", "--models", "linear", "--methods", "smooth_ap_stage", "--workers", "1"]


def make_frame(rows: int = 200, positives: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    target = np.arange(rows) < positives
    columns = {name: rng.standard_normal(rows) + target for name in "ab"}
    return pd.DataFrame({**columns, "y": target.astype(int)}).sample(frac=1, random_state=0)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result: Result, said: str, folder: Path) -> None:
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    assert not folder.exists()


def test_version_is_shown() -> None:
    assert run("--version").output == f"rareloss {rareloss.__version__}\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    make_frame().to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (make_frame().drop(columns="y"), "no column 'y'"),
        (make_frame().assign(y=1), "holds one class alone"),
        (make_frame(positives=5), "5 positives"),
        (make_frame().assign(a=np.inf), "infinite"),
        (make_frame().iloc[:0], "no rows"),
        (make_frame()[["y"]], "no column is left to predict from"),
        (make_frame().assign(y=[f"{value:.7f}" for value in np.linspace(0, 1, 200)]), "classes were expected"),
    ],
)
def test_bad_data_are_refused(frame: pd.DataFrame, said: str, tmp_path: Path) -> None:
    path, out = tmp_path / "bad.csv", tmp_path / "out"
    frame.to_csv(path, index=False)
    assert_refused(run("compare", path, "--target", "y", "--out", out), said, out)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"a,a,y\n1,2,0\n", "more than one column"), (b"\x00\x93\xff", "cannot be read")],
)
def test_bad_files_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path, out = tmp_path / "bad.csv", tmp_path / "out"
    path.write_bytes(content)
    assert_refused(run("compare", path, "--target", "y", "--out", out), said, out)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--objective", "accuracy"], "an objective is 'ap'"),
        (["--objective", "recall@top=150%"], "(0, 1)"),
        (["--methods", "magic"], "no method 'magic'"),
        (["--models", "magic"], "no model 'magic'"),
        (["--models", "nowhere:build"], "cannot be imported"),
        (["--positive", "7"], "no value '7'"),
    ],
)
def test_bad_options_are_refused(options: list[str], said: str, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(run("compare", table, "--target", "y", "--out", out, *options), said, out)


@pytest.mark.parametrize("command", ["advise", "compare", "fit"])
def test_columns_are_left_out_by_every_command_that_reads_a_table(command: str, tmp_path: Path) -> None:
    if command == "fit":
        pytest.importorskip("safetensors")
    path, out = tmp_path / "data.csv", tmp_path / "out"
    frame = make_frame()
    frame.assign(**{"paid, back": frame["y"] * 2.0 + frame["a"] / 100}).to_csv(path, index=False)
    options = {"advise": [], "compare": [*QUICK, "--out", out], "fit": ["--trials", "1", "--out", out]}[command]
    assert_refused(run(command, path, "--target", "y", *options, "--without", "paid"), "no column 'paid' to leave", out)
    warned = run(command, path, "--target", "y", *options)
    assert "check 'paid, back': it ranks '1' by itself, with an average precision of 1.000" in warned.stdout
    assert "leave it out (--without 'paid, back')" in warned.stdout
    more = ["--out", tmp_path / "other"] if command != "advise" else []
    done = run(command, path, "--target", "y", *options, "--without", "paid, back", *more)
    assert done.exit_code == 0, done.output
    assert "left out 'paid, back', as was asked for" in done.stdout
    assert "check" not in done.stdout


def test_check_reads_what_a_table_is_read_from_and_says_which_file_cannot_be(tmp_path: Path) -> None:
    scores = pd.DataFrame({"score": np.linspace(0, 1, 300), "name": "a"})
    before, after, broken = tmp_path / "before.csv", tmp_path / "after.pq", tmp_path / "broken.csv"
    scores.to_csv(before, index=False, sep=";", decimal=",")
    scores.to_parquet(after)
    broken.write_text("")
    done = run("check", before, after, "--threshold", "0.9")
    assert done.exit_code == 0, done.output
    assert "Alerts: 30, expected 30" in done.stdout
    for arguments, said in (
        ((before, broken), "broken.csv is empty"),
        ((before, after, "--score", "name"), "column 'name' of"),
        ((before, after, "--score", "nothing"), "has no column 'nothing'"),
        ((before, tmp_path / "none.csv"), "there is no file"),
    ):
        assert_refused(run("check", *arguments, "--threshold", "0.9"), said, tmp_path / "out")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(run("compare", tmp_path / "none.csv", "--target", "y", "--out", out), "there is no file", out)


def test_folder_that_cannot_be_written_is_refused(table: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "file" / "out"
    assert_refused(run("compare", table, "--target", "y", "--out", out), "cannot be used as output folder", out)


def test_whole_run_prints_its_verdict_and_writes_both_files(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("compare", table, "--target", "y", "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    for expected in ("Tuned cross-entropy", "Boosted trees", "keep cross-entropy", "report.html"):
        assert expected in result.stdout
    assert json.loads((out / "results.json").read_text("utf-8"))["settings"]["trials"] == 1
    assert (out / "report.html").exists()


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(table: Path, tmp_path: Path) -> None:
    out, calls = tmp_path / "out", []

    def press(*arguments: Any, **options: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return run_unit(*arguments, **options)

    command = ["compare", table, "--target", "y", "--out", out, *QUICK]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rareloss.tabular.comparison.comparison.run_unit", press)
        stopped = run(*command)
    assert stopped.exit_code == 130
    assert "Stopped with" in stopped.stderr
    assert "Traceback" not in stopped.output
    assert json.loads((out / "results.json").read_text("utf-8"))["unfinished"]
    assert run(*command).exit_code == 0
    assert not json.loads((out / "results.json").read_text("utf-8"))["unfinished"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_ctrl_c_among_workers_ends_with_130(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--target", "y", "--seeds", "20", "--trials", "1", "--models", "linear", "--methods", "focal"]
    command = [sys.executable, "-c", "from rareloss.cli import main; main()", "compare", str(table), *options]
    command += ["--workers", "2", "--out", str(out)]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job that a shell put in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(out.glob("runs/linear-*.json")) and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 130, said
    assert "Stopped with" in said
    assert "Traceback" not in said
    assert json.loads((out / "results.json").read_text("utf-8"))["unfinished"]


def test_labels_and_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(300) % 7 == 0, "bad\x1b[31m\u202e", "good")
    frame = pd.DataFrame({"x": rng.normal(size=300), "plain\x1b]0;t\x07": 1, "y": labels})
    frame.to_csv(tmp_path / "a.csv", index=False)
    for words in (["--target", "y"], ["--target", "z"]):
        told = run("advise", tmp_path / "a.csv", *words)
        assert not {"\x1b", "\x07", "\u202e"} & set(told.output + told.stderr)
        assert "\\x1b" in told.output + told.stderr
    assert "bad\\x1b[31m\\u202e" in run("advise", tmp_path / "a.csv", "--target", "y").output
