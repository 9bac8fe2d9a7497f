"""What a user says of a table: which column is what."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict, Unpack

from rareloss.table.words import DataError, columns_named, listed, nearest

__all__ = ["TableOptions", "TableSpec"]


class TableOptions(TypedDict, total=False):
    """The fields of :class:`TableSpec`, as keywords of what reads a table."""

    target: str | None
    positive: str | None
    group: str | None
    time: str | None
    without: str | Iterable[str]
    weight: str | None
    category: str | Iterable[str]
    missing: str | Iterable[str]
    header: bool


@dataclass(frozen=True)
class TableSpec:
    """Say which column of a table is what.

    Args:
        target: column to predict. Built-in data and npz files know theirs.
        positive: value of the target that is the positive class; every other value is negative. Without it, the rarer
            one of two classes is positive, and three or more classes stay as they are.
        group: column whose equal values belong together (a patient, a day): no group straddles two folds. ``"none"``:
            split by rows, also where built-in data are grouped by default.
        time: column to split by: train is before validation, and validation before test.
        without: columns to leave out, such as those that give the answer away; see :func:`columns_named`.
        weight: column of weights, such as 100 where one of 100 negatives was kept; a row counts so often as it says.
        category: columns of whole numbers that are names, not quantities: shops, apps, codes.
        missing: further values that mean "missing" in any column, such as "?", "pending" or -999.
        header: whether the first row of a csv or xlsx file holds the names; else they are ``x0, x1, ...``.

    Raises:
        DataError: one column has two roles.
    """

    target: str | None = None
    positive: str | None = None
    group: str | None = None
    time: str | None = None
    without: tuple[str, ...] = ()
    weight: str | None = None
    category: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    header: bool = True

    def __post_init__(self) -> None:
        for name in ("target", "positive", "group", "time", "weight"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else str(value))
        for name in ("without", "category", "missing"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(map(str, given or ())))
        roles = self.roles
        for role in list(roles)[1:]:
            for other in list(roles)[: list(roles).index(role)]:
                if roles[role] == roles[other] and {role, other} != {"group", "time"}:
                    raise DataError(
                        f"column {roles[role]!r} was named as {other} and as {role}; name another column as {role}"
                    )

    @classmethod
    def of(cls, **options: Unpack[TableOptions]) -> "TableSpec":
        """Make it of keywords; names in lists may be joined by commas.

        Raises:
            DataError: one column has two roles.
        """
        return cls(**options)  # type: ignore[arg-type]  # lists become tuples there

    @property
    def roles(self) -> dict[str, str]:
        """Columns that are no features, by what they are."""
        by_group = None if self.group == "none" else self.group
        named = {"target": self.target, "group": by_group, "time": self.time, "weight": self.weight}
        return {role: name for role, name in named.items() if name is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return what was said, as JSON holds it."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def words(self) -> list[str]:
        """Return the options of a command that say the same.

        Example:
            >>> TableSpec(target="fraud", without=["id", "day"]).words()
            ['--target', 'fraud', '--without', 'id', '--without', 'day']
        """
        named = ("target", "positive", "group", "time", "weight")
        words = [word for name in named if (value := getattr(self, name)) is not None for word in (f"--{name}", value)]
        for name in ("without", "category", "missing"):
            words += [word for value in getattr(self, name) for word in (f"--{name}", value)]
        return words if self.header else [*words, "--no-header"]

    def named(self, target: str | None, group: str | None) -> "TableSpec":
        """Return it with what the data know by themselves, where nothing else was said."""
        return replace(self, target=self.target or target, group=self.group or group)

    def checked(self, source: str, names: Sequence[str], *, headless: bool = False) -> "TableSpec":
        """Return it with each column named as the data name it.

        Args:
            source: what the data are called.
            names: of their columns.
            headless: whether all names are numbers, so that the header may be missing.

        Raises:
            DataError: there is no such column, or one that has a role was to be left out.
        """
        mend = " (is the header missing? then name --no-header)" if headless else ""
        if self.target is None:
            raise DataError(f"the column to predict was not named; give target, one of {listed(names)}{mend}")
        for role, column in self.roles.items():
            if column not in names:
                raise DataError(f"{source} has no column {column!r} ({role}); {nearest(column, names)}{mend}")
        found = {
            name: tuple(dict.fromkeys(columns_named(getattr(self, name), names))) for name in ("without", "category")
        }
        for name, what in (("without", "leave out"), ("category", "read as a category")):
            for column in found[name]:
                if column not in names:
                    raise DataError(f"{source} has no column {column!r} to {what}; {nearest(column, names)}{mend}")
                if column in self.roles.values():
                    role = next(role for role, named in self.roles.items() if named == column)
                    raise DataError(f"column {column!r} is the {role}, and cannot be one to {what}")
        return replace(self, without=found["without"], category=found["category"])
