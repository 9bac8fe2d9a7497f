"""Names, lists and counts in the sentences that a user reads."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = ["DataError", "columns_named", "counted", "listed", "nearest"]


class DataError(ValueError):
    """Say what is wrong with a user's data, what was expected, and how to mend it."""


def columns_named(texts: str | Iterable[str], columns: Iterable[str]) -> list[str]:
    """Return the names that texts hold: each is one where a column has it whole, and else several by commas.

    Example:
        >>> columns_named(["a,c", "b, c"], ["a", "b, c", "c"])
        ['a', 'c', 'b, c']
    """
    known, texts = set(columns), [texts] if isinstance(texts, str) else texts
    parts = ([text] if text in known else filter(None, map(str.strip, text.split(","))) for text in texts)
    return [name for names in parts for name in names]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question with the nearest names, or else the names that there are."""
    known = list(known)
    folded = {label.casefold(): label for label in known}
    near = [folded[match] for match in get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {listed(known)}"


def listed(names: Iterable[Any], most: int = 8) -> str:
    """Write names in quotes, the first few of many.

    Example:
        >>> listed("abc", most=2)
        "'a', 'b' and 1 more"
    """
    quoted = [repr(str(name)) for name in names]
    more = f" and {len(quoted) - most} more" if len(quoted) > most else ""
    return ", ".join(quoted[:most]) + more


def counted(number: int, noun: str) -> str:
    """Write how many there are.

    Example:
        >>> counted(1200, "row")
        '1,200 rows'
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
