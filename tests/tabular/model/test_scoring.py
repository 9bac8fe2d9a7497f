"""A file is scored in batches, as the table that it was; what differs from the table of the fit is refused by name."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deploy_table import OPTIONS
from typer.testing import CliRunner, Result

from rareloss.cli import app
from rareloss.table import Schema
from rareloss.tabular.model import DataError, Model, fit, score_file


def read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "parquet", "frame"])
@pytest.mark.parametrize("out", ["scores.parquet", "scores.csv"])
def test_files_of_every_kind_in_batches_are_scored_as_the_whole(
    model: Model, frame: pd.DataFrame, tmp_path: Path, ending: str, out: str
) -> None:
    data: Any = tmp_path / f"tomorrow.{ending}"
    if ending == "parquet":
        frame.to_parquet(data)
    elif ending == "frame":
        data = frame
    else:
        frame.to_csv(data, index=False, sep="\t" if ending == "tsv" else ",")
    scored = score_file(model, data, tmp_path / out, keep=["customer", "amount"], rows_at_once=77)
    whole, found = model.score(frame), read(tmp_path / out)
    assert list(found.columns) == ["customer", "amount", "score", "probability", "decision"]
    assert list(found["customer"]) == list(frame["customer"])
    np.testing.assert_allclose(found["amount"].astype(float), frame["amount"])
    np.testing.assert_allclose(found["score"], whole["score"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["probability"], whole["probability"], rtol=1e-5)
    np.testing.assert_array_equal(found["decision"], whole["decision"])
    assert (scored.rows, scored.alerts) == (len(frame), int(whole["decision"].sum()))
    assert {path.name for path in tmp_path.iterdir()} <= {out, f"tomorrow.{ending}"}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_no_more_than_a_batch_or_two_is_held(
    model: Model, frame: pd.DataFrame, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, long = tmp_path / f"tomorrow.{ending}", pd.concat([frame] * 5, ignore_index=True)
    long.to_csv(path, index=False) if ending == "csv" else long.to_parquet(path)
    rows: list[int] = []
    alive: list[int] = []
    batches: list[weakref.ref[pa.Table]] = []
    features = Schema.features

    def counted(self: Schema, batch: pa.Table) -> pd.DataFrame:
        if len(batch):  # types are looked at in a batch without rows
            batches.append(weakref.ref(batch))
            rows.append(len(batch))
            alive.append(sum(reference() is not None for reference in batches))
        return features(self, batch)

    monkeypatch.setattr(Schema, "features", counted)
    score_file(model, path, tmp_path / "scores.csv", keep=["customer"], rows_at_once=60)
    assert (sum(rows), max(rows), len(rows)) == (len(long), 60, -(-len(long) // 60))
    assert max(alive) <= 2


def test_a_decimal_comma_is_read(model: Model, frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "tomorrow.csv"
    frame.to_csv(path, index=False, sep=";", decimal=",")
    score_file(model, path, tmp_path / "scores.parquet")
    np.testing.assert_allclose(read(tmp_path / "scores.parquet")["score"], model.score(frame)["score"], rtol=1e-6)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_decimal_commas_where_the_fit_saw_points(
    model: Model, frame: pd.DataFrame, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"tomorrow.{ending}"
    changed = frame.assign(limit=frame["limit"].str.replace(".", ","))  # 0,123 can be nothing else than .123
    changed.to_csv(path, index=False) if ending == "csv" else changed.to_parquet(path)
    score_file(model, path, tmp_path / "scores.parquet")
    np.testing.assert_array_equal(read(tmp_path / "scores.parquet")["score"], model.score(frame)["score"])


def test_a_thousands_mark_between_semicolons_is_read_as_by_the_fit(frame: pd.DataFrame, tmp_path: Path) -> None:
    whole = frame.assign(amount=(frame["amount"] * 1000).round().astype(int))
    path = tmp_path / "today.csv"
    whole.assign(amount=[f"{value:,}" for value in whole["amount"]]).to_csv(path, index=False, sep=";")
    model = fit(path, out=tmp_path / "model", **OPTIONS)
    score_file(model, path, tmp_path / "scores.parquet")
    np.testing.assert_allclose(read(tmp_path / "scores.parquet")["score"], model.score(whole)["score"], rtol=1e-6)


@pytest.mark.parametrize("ending", ["csv", "parquet", "frame"])
def test_a_file_without_rows_gives_one_without_rows(
    model: Model, frame: pd.DataFrame, tmp_path: Path, ending: str
) -> None:
    data: Any = tmp_path / f"tomorrow.{ending}"
    empty = frame.iloc[:0]
    if ending == "parquet":
        empty.to_parquet(data)
    elif ending == "csv":
        empty.to_csv(data, index=False)
    else:
        data = empty
    assert score_file(model, data, tmp_path / "scores.parquet", keep=["customer"]) == (0, 0, ("customer",), {}, ())
    assert read(tmp_path / "scores.parquet").shape == (0, 4)


def test_a_fit_that_is_interrupted_says_how_to_go_on(
    csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("rareloss.tabular.training.solve_logistic", stop)
    stopped = run("fit", csv, "--target", "outcome", "--out", tmp_path / "model")
    assert stopped.exit_code == 130
    assert "same command, go on" in stopped.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_scores_never_replace_the_rows(model: Model, frame: pd.DataFrame, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"tomorrow.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="holds the data that are read"):
        score_file(model, path, path)
    assert path.read_bytes() == before


def test_columns_may_be_named_by_numbers(frame: pd.DataFrame, tmp_path: Path) -> None:
    numbered = frame.set_axis(range(frame.shape[1]), axis=1)
    options = {**OPTIONS, "method": "tuned_ce", "target": frame.shape[1] - 1}
    model = fit(numbered, out=tmp_path / "model", **options)
    expected = fit(frame, out=tmp_path / "named", **{**OPTIONS, "method": "tuned_ce"}).score(frame)
    pd.testing.assert_frame_equal(model.score(numbered), expected)


def test_marks_with_digits_are_missing_where_they_were_at_the_fit(frame: pd.DataFrame, tmp_path: Path) -> None:
    marked = frame.assign(limit=frame["limit"].mask(frame.index % 50 == 0, "<0.1"))
    model = fit(marked, out=tmp_path / "model", **{**OPTIONS, "method": "tuned_ce"})
    rows = marked.iloc[:5]
    found = [model.score(rows.assign(limit=limit))["score"] for limit in ("<0.3", "none", None)]
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[2])


def test_columns_to_copy_may_hold_commas(model: Model, frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "tomorrow.csv"
    frame.assign(**{"amount, net": frame["amount"]}).to_csv(path, index=False)
    scored = score_file(model, path, tmp_path / "scores.csv", keep=["amount, net", "customer,amount"])
    assert scored.kept == ("amount, net", "customer", "amount")
    assert list(read(tmp_path / "scores.csv").columns[:3]) == ["amount, net", "customer", "amount"]


def test_lists_are_kept_in_parquet_and_refused_in_csv(model: Model, frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "tomorrow.parquet"
    frame.assign(tags=[[index] for index in frame.index], **{"": 1}).to_parquet(path)
    assert score_file(model, path, tmp_path / "scores.parquet", keep=["tags", ""]).kept == ("tags", "")
    with pytest.raises(DataError, match="'tags' cannot be kept in a csv; write a parquet file"):
        score_file(model, path, tmp_path / "scores.csv", keep=["tags", ""])
    assert not (tmp_path / "scores.csv").exists()


def test_a_file_with_its_index_is_scored_by_the_model_of_one(frame: pd.DataFrame, tmp_path: Path) -> None:
    # Flags are written in capitals, and with gaps, as other programs write them.
    flags = frame["new"].map({True: "TRUE", False: "FALSE"}).where(frame.index % 7 > 0)
    helps = frame.assign(new=flags.where(frame["outcome"] != "bad", "TRUE"))
    helps.to_csv(tmp_path / "rows.csv")
    model = fit(tmp_path / "rows.csv", out=tmp_path / "model", **{**OPTIONS, "method": "tuned_ce"})
    score_file(model, tmp_path / "rows.csv", tmp_path / "scores.csv")
    whole = model.score(pd.read_csv(tmp_path / "rows.csv"))
    np.testing.assert_allclose(read(tmp_path / "scores.csv")["score"], whole["score"], rtol=1e-5, atol=1e-5)


def test_new_categories_gaps_and_one_row_are_scored(model: Model, frame: pd.DataFrame) -> None:
    row = frame.iloc[:1].assign(country="atlantis", age=None, limit=None, new=None, opened=None)
    found = model.score(row.set_axis([17]))
    assert np.isfinite(found["score"]).all()
    assert list(found.index) == [17]


CHANGES: list[tuple[str, Callable[[pd.DataFrame], pd.DataFrame], str]] = [
    ("lacks", lambda f: f.drop(columns=["age", "limit"]), "it lacks 'age', 'limit'"),
    ("unknown", lambda f: f.assign(colour="red"), "it has the unknown 'colour'"),
    ("text for numbers", lambda f: f.assign(amount="much"), "column 'amount' holds 'much', where a number"),
    (
        "one word",
        lambda f: f.assign(amount=f["amount"].astype(str).where(f.index != 333, "n/a?")),
        "rows 257 to 384: column 'amount' holds 'n/a\\?'",
    ),
    ("other dates", lambda f: f.assign(opened="2023-13-45"), "column 'opened' holds '2023-13-45', where a date"),
    ("infinite", lambda f: f.assign(age=np.inf), "column 'age' holds .* infinite"),
]


@pytest.mark.parametrize("ending", ["csv", "parquet", "frame"])
def test_values_of_a_category_that_the_fit_did_not_see_are_counted(
    frame: pd.DataFrame, tmp_path: Path, ending: str
) -> None:
    common = frame["country"].isin(["de", "fr", "it"])  # so that there is no column for all rare ones
    known = frame[common].reset_index(drop=True)
    model = fit(known, out=tmp_path / "model", **OPTIONS)
    new = known.assign(country=known["country"].where(np.arange(len(known)) % 7 > 0, "nowhere"))
    data: Any = tmp_path / f"tomorrow.{ending}"
    if ending == "frame":
        data = new
    else:
        new.to_csv(data, index=False) if ending == "csv" else new.to_parquet(data)
    number = int((new["country"] == "nowhere").sum())
    assert score_file(model, data, tmp_path / "scores.parquet", rows_at_once=60).unseen == {"country": number}
    assert score_file(model, known, tmp_path / "known.parquet").unseen == {}
    if ending != "frame":
        said = run("score", tmp_path / "model", data, "--out", tmp_path / "again.parquet").output
        assert f"check 'country': {number} rows have a value that the fit did not see" in said


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(("change", "said"), [each[1:] for each in CHANGES], ids=[each[0] for each in CHANGES])
def test_a_file_that_differs_is_refused_and_nothing_is_written(
    model: Model, frame: pd.DataFrame, tmp_path: Path, change: Any, said: str, ending: str
) -> None:
    path, out = tmp_path / f"tomorrow.{ending}", tmp_path / "scores.parquet"
    changed = change(frame.drop(columns="outcome"))
    changed.to_csv(path, index=False) if ending == "csv" else changed.to_parquet(path)
    out.write_text("of yesterday")
    with pytest.raises(DataError, match=said):
        score_file(model, path, out, rows_at_once=128)
    assert out.read_text() == "of yesterday"
    assert {each.name for each in tmp_path.iterdir()} == {path.name, out.name}


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("country", 3, "column 'country' holds numbers"),
        ("amount", pd.Timestamp(0), "column 'amount' holds datetime.*, where numbers"),
        ("opened", 3.0, "column 'opened' holds .*, where dates"),
    ],
)
def test_types_of_a_parquet_file_are_refused_before_rows_are_read(
    model: Model, frame: pd.DataFrame, tmp_path: Path, column: str, values: Any, said: str
) -> None:
    frame.assign(**{column: values}).to_parquet(tmp_path / "tomorrow.parquet")
    with pytest.raises(DataError, match=said):
        score_file(model, tmp_path / "tomorrow.parquet", tmp_path / "scores.parquet")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PAR1 no parquet", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_broken_files_are_refused(model: Model, tmp_path: Path, content: bytes, said: str, ending: str) -> None:
    path = tmp_path / f"tomorrow.{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError):
        score_file(model, path, tmp_path / "scores.parquet")
    assert not (tmp_path / "scores.parquet").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out": "scores.xlsx"}, "unknown ending"),
        ({"out": "nowhere/scores.csv"}, "no folder"),
        ({"keep": ["country", "country"]}, "differ from each other"),
        ({"keep": ["nothing"]}, "no column 'nothing' to keep"),
        ({"rows_at_once": 0}, "at least 1"),
        ({"data": "missing.csv"}, "no file"),
    ],
)
def test_bad_options_are_refused(
    model: Model, frame: pd.DataFrame, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    given = {"data": frame, "out": "scores.csv", **options}
    with pytest.raises(DataError, match=said):
        score_file(model, given.pop("data"), tmp_path / given.pop("out"), **given)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_commands_fit_score_and_export(csv: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    folder, scores = tmp_path / "model", tmp_path / "scores.parquet"
    options = ["--target", "outcome", "--trials", 1, "--without", "remark,new", "--out", folder]
    fitted = run("fit", csv, *options)
    assert fitted.exit_code == 0, fitted.output
    assert "left out 'remark', 'new'" in fitted.output
    assert "dropped 5 rows without a value of 'outcome'" in fitted.output
    scored = run("score", folder, csv, "--out", scores, "--keep", "customer")
    assert scored.exit_code == 0, scored.output
    assert pq.read_metadata(scores).num_rows == len(frame)
    assert "500 rows" in scored.output
    exported = run("export", folder, tmp_path / "model.onnx")
    assert exported.exit_code == 0, exported.output
    refusals = [run("fit", csv, *options), run("score", tmp_path, csv), run("export", tmp_path, "model.onnx")]
    for refused in (*refusals, run("export", folder, csv)):
        assert refused.exit_code == 2
        assert refused.stderr.startswith("rareloss: ")
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["score", "probability", "decision"])
def test_a_target_may_be_called_as_what_is_written(name: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    data = frame[frame["outcome"].notna()].rename(columns={"outcome": name})
    fit(data, target=name, trials=1, out=tmp_path / "model")
    scored = score_file(tmp_path / "model", data, tmp_path / "scores.parquet", keep=[name])
    assert scored.kept == (f"{name}_kept",)
    written = pd.read_parquet(tmp_path / "scores.parquet")
    assert written[f"{name}_kept"].tolist() == data[name].tolist()


def test_a_batch_of_a_wide_model_is_small(
    model: Model, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rareloss.tabular.model.scoring.INPUTS_AT_ONCE", 10 * model.inputs.width)
    sizes: list[int] = []
    features = Schema.features
    monkeypatch.setattr(Schema, "features", lambda self, rows: sizes.append(len(rows)) or features(self, rows))
    score_file(model, frame, tmp_path / "scores.parquet")
    assert max(sizes) == 10
