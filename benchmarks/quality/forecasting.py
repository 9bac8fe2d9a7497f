"""Fit the forecast of ``rareloss compare`` to results of the grid, and say how it does on sets that were left out.

python -m benchmarks.quality.forecasting            # prints the errors
python -m benchmarks.quality.forecasting --write    # and writes the factors that the package ships
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.quality.__main__ import RESULTS
from benchmarks.quality.page import OWN_STAGE
from rich.console import Console
from rich.table import Table

from rareloss.tabular.comparison import forecast as forecasts
from rareloss.tabular.comparison.runs import TREES, write_atomically

__all__ = ["left_out", "main", "observed"]

SHIPPED = Path(forecasts.__file__).with_name("forecast.json")
SCORECARDS = ("linear", "linear_normal", "additive")
# A gain of this size, either way, is one that a user would act on.
MATTERS = 0.02


def observed(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Collect what was known and what came out: a row for each set, scorecard and objective.

    Args:
        results: what the files hold.

    Returns:
        ``family`` (sets that share rows), ``data``, ``objective``, ``model``, ``splits``, ``gain``, ``error`` (of the
        mean over splits) and the features.
    """
    rows = []
    for one in results:
        runs = pd.DataFrame([run for run in one["runs"] if run["model"] in (*SCORECARDS, TREES)])
        trees = runs[runs.model == TREES]
        for (data, objective, model), mine in runs[runs.model != TREES].groupby(["data", "objective", "model"]):
            stage = mine[mine.method == OWN_STAGE.get(objective)].set_index("seed").test
            base = mine[mine.method == "tuned_ce"].set_index("seed")
            reference = trees[(trees.data == data) & (trees.objective == objective)]
            shared = stage.index.intersection(base.index)
            if reference.empty or len(shared) < 2:
                continue
            set_ = one["sets"][data]
            gains = stage[shared] - base.test[shared]
            features = forecasts.features(
                _mean(base), _mean(reference),
                value=base.validation.mean(), reference_value=reference.validation.mean(),
                positives=0.6 * (set_["positives"] or set_["rows"] / set_["classes"]),
            )  # fmt: skip
            row = {"family": _family(data), "data": data, "objective": objective, "model": model}
            row |= {"splits": len(gains), "gain": gains.mean(), "error": gains.sem()}
            rows.append(row | dict(zip(forecasts.FEATURES, features, strict=True)))
    return pd.DataFrame(rows)


def _mean(runs: pd.DataFrame) -> forecasts.Signals:
    return forecasts.Signals(*np.mean([list(each.values()) for each in runs.signals], axis=0).tolist())


def _family(data: str) -> str:
    # Sets that share rows, or a simulator, are left out together.
    return data.partition("=")[0].removesuffix("_early")


def weights_of(rows: pd.DataFrame) -> np.ndarray:
    """Let each family count once, however many sets and objectives it has."""
    return (1 / rows.groupby("family").gain.transform("size")).to_numpy()


def left_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Forecast each family from all others; beside it, the plain mean gain of the others.

    Returns:
        the rows with ``forecast`` and ``mean`` added.
    """
    found = rows.assign(forecast=np.nan, mean=np.nan)
    for family in rows.family.unique():
        mine, others = rows.family == family, rows[rows.family != family]
        factors = forecasts.fit(others[list(forecasts.FEATURES)].to_numpy(), others.gain.to_numpy(), weights_of(others))
        found.loc[mine, "forecast"] = rows[mine][list(forecasts.FEATURES)].to_numpy() @ factors
        found.loc[mine, "mean"] = np.average(others.gain, weights=weights_of(others))
    return found


def summary(found: pd.DataFrame) -> dict[str, float]:
    """Compute mean absolute errors on families left out (each family counts once), and how often the sign is right."""
    weights = weights_of(found)
    large = found[found.gain.abs() > MATTERS]
    return {
        "error": float(np.average((found.forecast - found.gain).abs(), weights=weights)),
        "error_of_mean": float(np.average((found["mean"] - found.gain).abs(), weights=weights)),
        "large": len(large),
        "sign_right": int((np.sign(large.forecast) == np.sign(large.gain)).sum()),
        "families": int(found.family.nunique()),
        "rows": len(found),
    }


def shipped(rows: pd.DataFrame, found: pd.DataFrame) -> dict[str, Any]:
    """Fit to everything; the band is where four of five left-out gains were."""
    factors = forecasts.fit(rows[list(forecasts.FEATURES)].to_numpy(), rows.gain.to_numpy(), weights_of(rows))
    missed = (found.gain - found.forecast).to_numpy()
    low, high = np.quantile(missed, [0.1, 0.9], method="inverted_cdf", weights=weights_of(found))
    return {
        "factors": dict(zip(forecasts.FEATURES, np.round(factors, 4).tolist(), strict=True)),
        "below": round(float(-low), 4),
        "above": round(float(high), 4),
        **{key: round(value, 4) for key, value in summary(found).items()},
    }


def main() -> None:
    """Print the table, and write the factors where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {SHIPPED.name}")
    parser.add_argument("results", nargs="*", type=Path, default=[RESULTS / "quality.json", RESULTS / "classes.json"])
    given = parser.parse_args()
    rows = observed([json.loads(path.read_text("utf-8")) for path in given.results])
    found = left_out(rows)
    table = Table("set", "judged by", "model", "splits", *forecasts.FEATURES, "gain", "forecast, set left out")
    for row in found.sort_values(["family", "data", "objective"]).to_dict("records"):
        features = [f"{row[name]:.3f}" for name in forecasts.FEATURES]
        gain = f"{row['gain']:+.3f} ({row['error']:.3f})"
        table.add_row(
            row["data"], row["objective"], row["model"], str(row["splits"]), *features, gain, f"{row['forecast']:+.3f}"
        )
    Console(width=150).print(table)
    ships = shipped(rows, found)
    print(json.dumps(ships, indent=1))
    if given.write:
        write_atomically(SHIPPED, json.dumps(ships, indent=1) + "\n")


if __name__ == "__main__":
    main()
