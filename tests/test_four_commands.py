"""One file, one objective, four commands and a report: each number of the report and of the card is found again.

``advise``, ``compare``, ``fit`` and ``score`` run as a user types them: on flights, with what real files hold beside
numbers, and on card transactions where their file is there (in ``RARELOSS_DATA``, or ``shared/data`` beside the
checkout).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("duckdb")
from scipy import stats
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_curve,
    roc_curve,
)
from typer.testing import CliRunner

from rareloss.cli import app
from rareloss.table import Table, TableSpec, load, source_of
from rareloss.table.folds import split

DATA = Path(os.environ.get("RARELOSS_DATA", Path(__file__).parents[2] / "shared" / "data"))
QUICK = ["--seeds", "1", "--trials", "1", "--models", "linear", "--methods", "recall_stage", "--workers", "1"]
FN, FP = 300.0, 7.0


@dataclass(frozen=True)
class Journey:
    """Where everything lies that the commands wrote, and what they said."""

    folder: Path
    target: str
    positive: str
    group: str | None
    share: float
    said: dict[str, str]

    @property
    def file(self) -> Path:
        return self.folder / "data.csv"

    @property
    def options(self) -> list[str]:
        grouped = ["--group", self.group, "--without", "refund"] if self.group else []
        return ["--target", self.target, "--positive", self.positive, *grouped]

    @property
    def table(self) -> Table:
        """The file as the commands read it."""
        without = ["refund"] if self.group else []
        return load(self.file, target=self.target, positive=self.positive, group=self.group, without=without)

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text("utf-8"))

    @property
    def scored(self) -> pd.DataFrame:
        """The rows that have a label, in their order in the file."""
        return pd.read_parquet(self.folder / "scores.parquet").dropna(subset=self.target).reset_index(drop=True)

    def labels(self, rows: pd.DataFrame) -> np.ndarray:
        return (rows[self.target] == self.positive).to_numpy()


def messy_flights() -> pd.DataFrame:
    """Flights with dates, a leak, an id, free text, and gaps in the target."""
    frame = source_of("flights", TableSpec()).table().to_pandas().iloc[::12].reset_index(drop=True)
    rng = np.random.default_rng(0)
    cancelled = frame["cancelled"] == "cancelled"
    frame["date"] = frame["date"].dt.strftime("%d.%m.%Y")
    frame["refund"] = np.where(cancelled, rng.uniform(80, 400, len(frame)), rng.uniform(0, 90, len(frame))).round(2)
    frame["booking"] = [f"NY-{number:06d}" for number in rng.permutation(len(frame))]
    frame["remark"] = [f"gate {number % 71}, seat {number % 317}; {number} bags" for number in range(len(frame))]
    frame.loc[::500, "cancelled"] = None
    return frame


def transactions() -> pd.DataFrame:
    if not (DATA / "fdh.npz").is_file():
        pytest.skip(f"there is no fdh.npz in {DATA}")
    with np.load(DATA / "fdh.npz") as arrays:
        frame = pd.DataFrame(arrays["X"][::8]).rename(columns="x{}".format)
        return frame.assign(fraud=np.where(arrays["y"][::8] == 1, "yes", "no"))


@pytest.fixture(scope="module", params=["flights", "fdh"])
def journey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    folder, said = tmp_path_factory.mktemp(request.param), {}
    if request.param == "flights":
        frame, kept = messy_flights(), ["origin", "cancelled", "booking"]
        made = Journey(folder, "cancelled", "cancelled", "date", 0.03, said)
    else:
        frame, kept = transactions(), ["fraud"]
        made = Journey(folder, "fraud", "yes", None, 0.005, said)
    frame.to_csv(made.file, index=False)
    unseen = folder / "unseen.csv"
    goal = ["--objective", f"recall@top={100 * made.share:g}%"]
    report = ["--label", made.target, "--positive", made.positive, "--score", "probability", "--probability"]
    report += ["probability", "--fn-cost", FN, "--fp-cost", FP, *(["--group", "origin"] if made.group else [])]
    for name, *arguments in (
        ("advise", made.file, *made.options, *goal, "--out", folder / "advice.json"),
        ("compare", made.file, *made.options, *goal, *QUICK, "--out", folder / "compared"),
        ("fit", made.file, "--from", folder / "compared", "--held-out", unseen, "--out", folder / "model"),
        ("score", folder / "model", unseen, "--keep", made.target, "--out", folder / "unseen.parquet"),
        ("report", folder / "unseen.parquet", *report[:6], *goal, "--out", folder / "unseen"),
        ("score", folder / "model", made.file, "--keep", ",".join(kept), "--out", folder / "scores.parquet"),
        ("report", folder / "scores.parquet", *report, "--out", folder / "costs"),
        ("report", folder / "scores.parquet", *report[: -6 if made.group else -4], *goal, "--out", folder / "report"),
    ):
        result = CliRunner().invoke(app, [name, *map(str, arguments)])
        assert result.exit_code == 0, f"{name}: {result.output}"
        said[name] = result.output
    return made


@pytest.mark.slow
def test_each_command_names_the_next_and_what_was_odd_in_the_file(journey: Journey) -> None:
    assert f"Next: rareloss compare {journey.file} --target {journey.target}" in journey.said["advise"]
    assert f"Next: rareloss fit {journey.file} --from {journey.folder / 'compared'}" in journey.said["compare"]
    following = f"{journey.folder / 'model'} {journey.folder / 'unseen.csv'} --keep {journey.target}"
    assert f"Next: rareloss score {following}" in journey.said["fit"]
    assert "Next: rareloss report" in journey.said["score"]
    assert "A report is too good if the model was fitted on some" in journey.said["score"]
    rows = len(pd.read_csv(journey.file))
    assert journey.said["score"].startswith(f"{rows:,} rows, ")
    if journey.group:
        for name in ("advise", "compare", "fit"):
            assert "left out 'refund', as was asked for" in journey.said[name]
            assert "dropped 'booking', 'remark': an id or free text" in journey.said[name]
            assert "dropped 20 rows without a value of 'cancelled'" in journey.said[name]
            assert "check" not in journey.said[name]
        assert "20 rows left out: label missing" in journey.said["report"]
        leaking = CliRunner().invoke(app, ["advise", str(journey.file), *journey.options[:6]])
        assert "check 'refund': it ranks 'cancelled' by itself" in leaking.output


@pytest.mark.slow
def test_numbers_of_the_advice_are_those_of_scipy(journey: Journey) -> None:
    labels = journey.labels(journey.scored)
    advice = journey.json("advice.json")
    found = {finding["name"]: finding["value"] for finding in advice["findings"]}
    assert (advice["rows"], advice["positives"]) == (len(labels), labels.sum())
    assert found["cap"] == pytest.approx(min(1, journey.share / labels.mean()))
    interval = found["interval"]
    positives = interval["test_positives"]
    assert positives == round(0.2 * labels.sum())
    caught = round(interval["at"] * positives)
    assert (interval["low"], interval["high"]) == pytest.approx(
        tuple(stats.binomtest(caught, positives).proportion_ci(0.95, method="exact"))
    )
    chance = stats.binom.pmf(0, found["empty_batch"]["positives"] / labels.mean(), labels.mean())
    assert found["empty_batch"]["chance"] == pytest.approx(chance)


def clopper_pearson(hits: np.ndarray, trials: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    pairs = [
        stats.binomtest(int(hit), int(trial)).proportion_ci(level, method="exact") if trial else (0, 1)
        for hit, trial in zip(hits, trials, strict=True)
    ]
    return tuple(np.array(pairs).T)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "costs"])
def test_every_number_of_the_report_is_found_again(journey: Journey, name: str) -> None:
    made, rows = journey.json(f"{name}/report.json"), journey.scored
    y, p = journey.labels(rows), rows["probability"].to_numpy()
    priced = name == "costs"
    unlabelled = len(pd.read_parquet(journey.folder / "scores.parquet")) - len(rows)
    assert made.pop("schema") == 1
    assert made.pop("level") == 0.95
    assert made.pop("rows") == len(rows)
    assert made.pop("left_out") == {"label": unlabelled, "score": 0, "weight_0": 0}
    other = "flown" if journey.group else "no"
    assert made.pop("labels") == {"positive": journey.positive, "negative": other}
    assert (made.pop("positives"), made.pop("negatives")) == (y.sum(), (~y).sum())
    assert made.pop("rate") == pytest.approx(y.mean())
    assert made.pop("objective") == ("ap" if priced else f"recall@top={100 * journey.share:g}%")
    assert made.pop("costs") == {"fn": FN if priced else None, "fp": FP if priced else None}
    columns = made.pop("columns")
    assert (columns["label"], columns["score"]) == (journey.target, "probability")

    # All positives' scores are thresholds, so that the average precision is exact.
    assert y.sum() <= 4000
    assert made.pop("average_precision") == pytest.approx(
        dict.fromkeys(("value", "bound_low", "bound_high"), average_precision_score(y, p))
    )

    curve, start = made.pop("curve"), made.pop("start") - 1
    nobody = {name: values.pop(0) for name, values in curve.items()}
    assert (nobody["threshold"], nobody["alerts"]) == (p.max(), 0)
    at = np.nextafter(curve["threshold"], np.inf)  # the lowest alert above each
    fpr, tpr, cuts = roc_curve(y, p, drop_intermediate=False)
    place = len(cuts) - 1 - np.searchsorted(cuts[::-1], at)
    assert (cuts[place] == at).all()
    expected = {"threshold": np.nextafter(at, -np.inf), "recall": tpr[place], "fpr": fpr[place]}
    precision, _, cuts = precision_recall_curve(y, p)
    expected["precision"] = precision[np.searchsorted(cuts, at)]
    expected["lift"] = expected["precision"] / y.mean()
    expected["tp"], expected["fp"] = tpr[place] * y.sum(), fpr[place] * (~y).sum()
    expected["alerts"] = expected["rows"] = expected["tp"] + expected["fp"]
    tp, fp = (np.round(expected[key]) for key in ("tp", "fp"))
    bounded = np.unique(np.r_[np.linspace(0, len(at) - 1, 60).astype(int), start])
    for share, hits, trials in (
        ("recall", tp, np.full_like(tp, y.sum())),
        ("precision", tp, tp + fp),
        ("fpr", fp, np.full_like(fp, (~y).sum())),
    ):
        for end, interval in zip(("low", "high"), clopper_pearson(hits[bounded], trials[bounded]), strict=True):
            assert np.array(curve.pop(f"{share}_{end}"))[bounded] == pytest.approx(interval)
    # Those that hold at all thresholds at once: Massart's, and Clopper and Pearson's with a share of the risk.
    recall, reach = tp / y.sum(), np.sqrt(np.log(2 / 0.05) / 2 / y.sum())
    confidence = 1 - 0.05 / (len(y) + 1)
    alike = clopper_pearson(fp[bounded], np.full(len(bounded), (~y).sum()), confidence)
    fewer = clopper_pearson(fp[bounded], np.maximum(fp[bounded], (~y).sum() - 1), confidence)
    precise = clopper_pearson(tp[bounded], (tp + fp)[bounded], confidence)
    for name, ends in {
        "recall": np.clip([recall - reach, recall + reach], 0, 1)[:, bounded],
        "precision": precise,
        "fpr": (alike[0], fewer[1]),
    }.items():
        for end, one in zip(("low", "high"), ends, strict=True):
            assert np.array(curve.pop(f"{name}_anywhere_{end}"))[bounded] == pytest.approx(one)
    if priced:
        expected["cost"] = FN * (y.sum() - tp) + FP * fp
        missed = clopper_pearson(y.sum() - tp[bounded], np.full(len(bounded), y.sum()), 0.975)
        false = clopper_pearson(fp[bounded], np.full(len(bounded), (~y).sum()), 0.975)
        for place, end in enumerate(("low", "high")):
            cost = FN * y.sum() * missed[place] + FP * (~y).sum() * false[place]
            assert np.array(curve.pop(f"cost_{end}"))[bounded] == pytest.approx(cost)
        assert curve["cost"][start] == min(expected["cost"])
    else:
        inside = np.flatnonzero(tp + fp <= journey.share * len(y))
        assert start == inside[-1]
        assert tp[start] + fp[start] == int(journey.share * len(y))  # no tie is split by the capacity here
    assert set(curve) == set(expected)
    for key, values in expected.items():
        assert np.array(curve[key]) == pytest.approx(values, rel=1e-9), key
    says = made.pop("start_is")
    if not priced and journey.share < y.mean():
        assert f"can catch {100 * journey.share / y.mean():.3g} % of the positives at most" in says

    table = made.pop("table")
    assert start in [int(np.flatnonzero(at == np.nextafter(row["threshold"], np.inf))[0]) for row in table]
    for row in table:
        here = int(np.flatnonzero(at == np.nextafter(row["threshold"], np.inf))[0])
        (_, false), (_, true) = confusion_matrix(y, p > row["threshold"])
        assert (row["tp"], row["fp"]) == (true, false)
        for key, values in curve.items():
            assert row[key] == values[here]
        for share, hits, trials in (("recall", true, y.sum()), ("precision", true, true + false)):
            found = stats.binomtest(int(hits), int(trials)).proportion_ci(0.95, method="exact")
            assert (row[f"{share}_low"], row[f"{share}_high"]) == pytest.approx((found.low, found.high))

    groups = made.pop("groups")
    if priced and journey.group:
        assert set(groups) == set(rows["origin"])
    for key, group in groups.items():
        mine = (rows["origin"] == key).to_numpy()
        group |= {name: values[1:] for name, values in group.items() if isinstance(values, list)}
        assert (group["positives"], group["negatives"]) == (y[mine].sum(), (~y[mine]).sum())
        for here in bounded[::6]:
            (_, false), (_, true) = confusion_matrix(y[mine], p[mine] >= at[here])
            assert (group["tp"][here], group["fp"][here]) == (true, false)
            assert group["recall"][here] == pytest.approx(true / y[mine].sum())
            found = stats.binomtest(int(true), int(y[mine].sum())).proportion_ci(0.95, method="exact")
            assert (group["recall_low"][here], group["recall_high"][here]) == pytest.approx((found.low, found.high))

    calibration = made.pop("calibration")
    observed, mean = calibration_curve(y, p, n_bins=20)
    assert [row["observed"] for row in calibration] == pytest.approx(observed)
    assert [row["mean_probability"] for row in calibration] == pytest.approx(mean)
    weight, _ = np.histogram(p, np.linspace(0, 1, 21))
    assert [row["weight"] for row in calibration] == list(weight[weight > 0])
    assert not made, f"numbers that no test looks at: {', '.join(made)}"


@pytest.mark.slow
def test_numbers_of_the_card_are_found_again_in_the_scores(journey: Journey) -> None:
    rows, card = journey.scored, journey.json("model/card.json")
    table = journey.table
    fold = split(table, 0)
    labels = journey.labels(rows)
    y, s, p, alert = (
        values[fold.test]
        for values in (labels, *(rows[name].to_numpy() for name in ("score", "probability", "decision")))
    )
    (tn, fp), (fn, tp) = confusion_matrix(y, alert)
    held = card["held_out"]
    assert (held["rows"], held["positives"], held["alerts"], held["caught"]) == (len(y), tp + fn, tp + fp, tp)
    groups = np.arange(len(y)) if table.group is None else pd.factorize(table.group[fold.test], sort=True)[0]
    rng = np.random.default_rng(0)
    weights = [rng.exponential(size=groups.max() + 1)[groups] for _ in range(200)]
    order = np.argsort(-s, kind="stable")

    def recall_in_top(weight: np.ndarray) -> float:
        """Share ties at the cut, as the metric does: by groups of equal scores."""
        edges = np.flatnonzero(np.diff(s[order], append=-np.inf))
        all_above, hit_above = (np.cumsum(w[order])[edges] for w in (weight, weight * y))
        budget = journey.share * weight.sum()
        return float(np.interp(budget, np.r_[0, all_above], np.r_[0, hit_above]) / (weight @ y))

    expected = {
        f"recall@top={100 * journey.share:g}%": recall_in_top,
        "ap": lambda weight: average_precision_score(y, s, sample_weight=weight),
        "log_loss": lambda weight: log_loss(y, p, sample_weight=weight),
        "brier": lambda weight: brier_score_loss(y, p, sample_weight=weight),
    }
    for name, judge in expected.items():
        found = held["metrics"].pop(name)
        # Scores are float32, and their last bit depends on how many rows are multiplied at once.
        assert found["value"] == pytest.approx(judge(np.ones(len(y))), rel=1e-6), name
        interval = np.quantile([judge(weight) for weight in weights], [0.025, 0.975])
        assert (found["low"], found["high"]) == pytest.approx(tuple(interval), rel=1e-6), name
    for name, part, whole in (
        ("recall", tp, tp + fn),
        ("precision", tp, tp + fp),
        ("false_positive_rate", fp, fp + tn),
    ):
        interval = stats.binomtest(int(part), int(whole)).proportion_ci(0.95, method="exact")
        found = held["metrics"].pop(name)
        assert (found["value"], found["low"], found["high"]) == pytest.approx((part / whole, *interval)), name
    bins = np.digitize(p, np.unique(np.quantile(p, np.linspace(0.1, 0.9, 9), method="inverted_cdf")), right=True)
    gaps = pd.Series(p - y).groupby(bins).agg(["mean", "size"])
    ece = held["metrics"].pop("ece")
    # For the same reason a row may lie on the other side of a bin's edge, which is some row's probability.
    assert ece["value"] == pytest.approx((gaps["mean"].abs() * gaps["size"]).sum() / len(y), rel=1e-2)
    assert ece["low"] <= ece["value"] <= ece["high"]
    assert not held["metrics"]
    assert held["cap"] == pytest.approx(min(1, journey.share / y.mean()))

    z = rows["score"].to_numpy().astype(float)[fold.validation]
    assert (z > card["threshold"]["value"]).sum() == int(journey.share * len(z))
    assert (rows["decision"] == (rows["score"].astype(float) > card["threshold"]["value"])).all()
    before = card["calibration"]["before"]["all"]
    assert before["log_loss"]["value"] == pytest.approx(log_loss(labels[fold.validation], expit(z)))
    assert before["expected"] == pytest.approx(expit(z).sum())
    assert before["observed"] == labels[fold.validation].sum()
    assert card["data"]["rate"] == pytest.approx(labels.mean())
    assert card["data"]["folds"] == {"train": len(fold.train), "validation": len(z), "test": len(y)}


@pytest.mark.slow
def test_report_on_the_rows_that_were_held_out_says_what_the_card_says(journey: Journey) -> None:
    card, made = journey.json("model/card.json")["held_out"], journey.json("unseen/report.json")
    unseen = pd.read_parquet(journey.folder / "unseen.parquet")
    assert (made["rows"], made["positives"]) == (card["rows"], card["positives"])
    assert unseen["decision"].sum() == card["alerts"]
    ap = average_precision_score(journey.labels(unseen), unseen["score"])
    assert made["average_precision"]["value"] == pytest.approx(ap)
    assert card["metrics"]["ap"]["value"] == pytest.approx(ap, rel=1e-6)
    # Of the budget at most the fraction of a row is left over, which the metric takes from the next row.
    at = made["start"]
    ranked = card["metrics"][f"recall@top={100 * journey.share:g}%"]["value"]
    assert made["curve"]["recall"][at] <= ranked + 1e-9 <= made["curve"]["recall"][at + 1] + 2e-9
    seen = journey.scored.iloc[split(journey.table, 0).test]
    np.testing.assert_allclose(unseen["score"], seen["score"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_comparison_judged_the_model_that_was_saved(journey: Journey) -> None:
    results, card = journey.json("compared/results.json"), journey.json("model/card.json")
    winner = results["deploy"]["method"]
    assert card["chosen"]["method"] == winner
    run = next(run for run in results["runs"] if (run["model"], run["method"]) == ("linear", winner))
    assert card["held_out"]["metrics"][results["objective"]["text"]]["value"] == pytest.approx(run["test"], abs=1e-9)
    assert results["settings"]["without"] == (["refund"] if journey.group else [])
