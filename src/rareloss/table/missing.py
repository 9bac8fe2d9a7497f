"""Marks that mean "missing" in text: the one list of every reader."""

__all__ = ["MISSING", "NOT_A_NUMBER"]

# Those that pandas takes for missing in a csv. In a column of numbers all of them are; elsewhere NA may be a country
# and None a class.
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
# Those that are missing in any column.
NOT_A_NUMBER = ("", "-NaN", "-nan", "NaN", "nan")
