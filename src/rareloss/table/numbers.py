"""Numbers in text, however people write them."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rareloss.table.missing import MISSING
from rareloss.table.words import DataError

__all__ = ["as_numbers", "decimal_mark", "flags", "is_whole", "to_numbers", "trimmed", "without_marks"]

_MINUS, _SIGN = "-\u2212", "[$\u20ac\u00a3\u00a5%]"
_INFINITE = "(?i:inf|infinity)"


def _plain(decimal: str) -> str:
    return rf"^[-+]?((\d+{decimal}?\d*|{decimal}\d+)([eE][-+]?\d+)?|{_INFINITE})$"


def _amount(decimal: str, thousands: str) -> str:
    # 1,234.50 and 1 234.50 and 1'234.50, with or without a sign of money or percent; (12.50) is negative.
    between = f"[{thousands} \u00a0\u202f'\u2019]"
    return (
        rf"^[{_MINUS}+]?\(?[{_MINUS}+]?{_SIGN}?\s?"
        rf"([1-9]\d{{0,2}}({between}\d{{3}})+|\d+)({decimal}\d+)?\s?{_SIGN}?\)?$"
    )


_PATTERNS = {".": (_plain(r"\."), _amount(r"\.", ",")), ",": (_plain(","), _amount(",", "."))}


def trimmed(text: pa.Array) -> pa.Array:
    """Return text without blanks around it; what is empty then is missing."""
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)


def without_marks(text: pa.Array, marks: tuple[str, ...] = MISSING) -> pa.Array:
    """Return text in which the marks that mean "missing" are missing."""
    marked = pc.is_in(text, value_set=pa.array(marks, text.type))
    return pc.if_else(marked, pa.scalar(None, text.type), text)


def to_numbers(text: pa.Array, decimal: str = ".") -> pa.Array:
    """Read numbers, also with thousands marks, a sign of money or percent, or in parentheses for a negative one.

    Args:
        text: strings, trimmed.
        decimal: the decimal mark, ``"."`` or ``","``; the other one may stand between thousands.

    Returns:
        float64, the nearest to what is written; missing where that is no number.

    Example:
        >>> to_numbers(pa.array(["1,234.50", "(3)", "$ 2", "1e3", "x"])).to_pylist()
        [1234.5, -3.0, 2.0, 1000.0, None]
        >>> to_numbers(pa.array(["1.234,50", "2,5", "2.5"]), ",").to_pylist()
        [1234.5, 2.5, None]
    """
    if decimal == ".":
        try:
            numbers = pc.cast(text, pa.float64())
            return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
        except pa.ArrowInvalid:
            pass
    plain, amount = _PATTERNS[decimal]
    none = pa.scalar(None, text.type)
    is_plain = pc.match_substring_regex(text, plain)
    numbers = _parsed(pc.if_else(is_plain, text, none), decimal)
    rest = pc.if_else(is_plain, none, text)
    rest = pc.if_else(pc.match_substring_regex(rest, amount), rest, none)
    if rest.null_count == len(rest):
        return numbers
    sizes = _parsed(pc.replace_substring_regex(rest, rf"[^\d{decimal}]", ""), decimal)
    negative = pc.match_substring_regex(rest, f"[{_MINUS}(]")
    return pc.coalesce(numbers, pc.if_else(negative, pc.negate(sizes), sizes))


def as_numbers(column: Any, name: str, decimal: str) -> Any:
    """Return a column that holds numbers alone, or marks for missing ones, as float64.

    Raises:
        DataError: it holds something else.
    """
    if not pa.types.is_string(column.type):
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(f"column {name} holds {column.type}; numbers were expected")
        return pc.cast(column, pa.float64())
    text = without_marks(trimmed(column.combine_chunks()))
    numbers = to_numbers(text, decimal)
    if numbers.null_count > text.null_count:
        odd = text.filter(pc.and_(pc.is_null(numbers), pc.is_valid(text)))[0]
        raise DataError(f"column {name} holds {odd.as_py()!r}; numbers were expected")
    return numbers


def _parsed(text: pa.Array, decimal: str) -> pa.Array:
    return pc.cast(pc.replace_substring(text, ",", ".") if decimal == "," else text, pa.float64())


def decimal_mark(text: pa.Array) -> str:
    """Find the decimal mark: the one by which more of a text is numbers.

    Returns:
        ``"."``, ``","``, or ``""`` where both read as many, such as "1,234" alone.

    Example:
        >>> [decimal_mark(pa.array(each)) for each in (["0.5", "7"], ["1.234,5"], ["1,234", "7"])]
        ['.', ',', '']
    """
    by_point, by_comma = (len(text) - to_numbers(text, mark).null_count for mark in (".", ","))
    return "." if by_point > by_comma else "," if by_comma > by_point else ""


def is_whole(text: pa.Array) -> bool:
    """Say whether all that is there are whole numbers in plain digits."""
    return bool(pc.all(pc.match_substring_regex(text, r"^-?\d+$")).as_py())


def flags(text: pa.Array) -> pa.Array:
    """Read true and false, however they are spelt; missing where text is neither."""
    lower = pc.utf8_lower(text)
    yes, no = pc.equal(lower, "true"), pc.equal(lower, "false")
    return pc.if_else(pc.or_(yes, no), yes, pa.scalar(None, pa.bool_()))
