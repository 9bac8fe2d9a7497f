"""A messy table as people have it, and how its model is fitted."""

from typing import Any

import numpy as np
import pandas as pd

ROWS = 500
OPTIONS: dict[str, Any] = {
    "target": "outcome",
    "objective": "recall@top=10%",
    "method": "recall_stage",
    "trials": 1,
    "seed": 3,
}


def make_frame() -> pd.DataFrame:
    """Numbers with gaps and marks, dates, flags, categories, free text, an id, and a target of strings with gaps."""
    rng = np.random.default_rng(0)
    bad = rng.random(ROWS) < 0.2
    table = pd.DataFrame(
        {
            "customer": [f"C-{number:05d}" for number in rng.permutation(ROWS)],
            "amount": np.exp(rng.normal(size=ROWS) + bad).round(2),
            "age": np.where(rng.random(ROWS) < 0.1, np.nan, rng.normal(40, 9, ROWS).round(1) - 5 * bad),
            "limit": (rng.normal(size=ROWS) + bad).round(3).astype(str),
            "opened": (pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 500, ROWS), unit="D")).strftime(
                "%d/%m/%Y"
            ),
            "new": rng.random(ROWS) < 0.4,
            "country": rng.choice(["de", "fr", "it", "rare"], ROWS, p=[0.5, 0.3, 0.19, 0.01]),
            "remark": [f"called {number} times on {number * 7}" for number in range(ROWS)],
            "outcome": np.where(bad, "bad", "good"),
        }
    )
    table.loc[::60, "limit"] = "?"
    table.loc[::90, "country"] = None
    table.loc[::100, "outcome"] = None
    return table
