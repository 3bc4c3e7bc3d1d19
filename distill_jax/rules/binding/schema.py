"""What a table holds and what is predicted: the names that rules may speak of."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

Kind = Literal["numeric", "categorical", "boolean", "text"]
KINDS = ("numeric", "categorical", "boolean", "text")

MOST_CATEGORIES = 50
"""A column of strings with more distinct values than this is taken for text."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A feature column.

    Attributes:
      name: Its name in the table and in rules.
      kind: ``"numeric"``, ``"categorical"`` (one of ``categories``), ``"boolean"`` (0 or 1) or
        ``"text"`` (for regular expressions alone; models do not see it).
      categories: The values of a categorical column, in the order of their codes.
      mean: Of a numeric column, over the table it was inferred from; models standardise with it.
      std: Likewise, with ddof 0; 1 for a column that is constant.
    """

    name: str
    kind: Kind = "numeric"
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", _checked_names("categories", self.categories))
        if self.kind not in KINDS:
            raise ValueError(
                f"kind of column {self.name!r} must be one of {KINDS}, got {self.kind!r}"
            )
        if (self.kind == "categorical") != bool(self.categories):
            raise ValueError(
                f"column {self.name!r} is {self.kind} and has {len(self.categories)} categories: "
                "a categorical column has one or more, others have none"
            )
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(
                f"column {self.name!r} must have each category once, got {list(self.categories)}"
            )
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"column {self.name!r} must have a finite mean and a std > 0, got mean "
                f"{self.mean} and std {self.std}"
            )


@dataclasses.dataclass(frozen=True)
class Schema:
    """Columns, classes, and views.

    Attributes:
      columns: Feature columns, in the order of the encoded table.
      classes: Names of the classes or labels, in the order of the logits; two or more.
      exclusive: Whether exactly one class is right for an example (softmax), or any set of labels
        may be (a sigmoid each).
      target: The name of the class variable, for ``species == 'cat'``; exclusive classes only.
      views: Names of other views of an example, for ``view(clause_b).sentiment``.

    Raises:
      ValueError: if a name is used twice, or there are fewer than two classes.

    Example:
      >>> schema = Schema((Column("age"), Column("smoker", "boolean")), ("healthy", "disease"))
      >>> schema.encoded
      ('age', 'smoker')
    """

    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    exclusive: bool = True
    target: str | None = None
    views: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        for column in self.columns:
            if not isinstance(column, Column):
                raise TypeError(f"columns must be Column(...) objects, got {column!r}")
        for name in ("classes", "views"):
            object.__setattr__(self, name, _checked_names(name, getattr(self, name)))
        if len(self.classes) < (2 if self.exclusive else 1):
            raise ValueError(
                f"classes must be two or more (a binary task has two), got {list(self.classes)}"
            )
        if self.target is not None and not self.exclusive:
            raise ValueError(
                f"target names the variable of exclusive classes, got {self.target!r} with "
                "exclusive=False: leave it out"
            )
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views must have names of their own, got {list(self.views)}")
        names = [column.name for column in self.columns] + list(self.classes)
        names += [self.target] if self.target is not None else []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"columns, classes and target must have names of their own, got twice: {twice}. "
                "Rename the column, or leave the column of labels out of the features"
            )

    @property
    def encoded(self) -> tuple[str, ...]:
        """The names of the columns that are encoded as numbers: all but text."""
        return tuple(column.name for column in self.columns if column.kind != "text")

    def column(self, name: str) -> Column:
        """The column of that name."""
        for column in self.columns:
            if column.name == name:
                return column
        raise ValueError(f"there is no column {name!r}; {nearest(name, self._names())}")

    def _names(self) -> list[str]:
        return [column.name for column in self.columns]


def infer_schema(
    table: Any,
    classes: Sequence[str],
    *,
    exclusive: bool = True,
    target: str | None = None,
    views: Sequence[str] = (),
    kinds: Mapping[str, Kind] | None = None,
) -> Schema:
    """The schema of a table: kinds, categories, means and standard deviations of its columns.

    A column of booleans, or of numbers that are all 0 or 1, is boolean; other numbers are numeric;
    strings are categorical up to 50 distinct values, and text beyond, and what pandas declares as a
    category is one. None and NaN are missing.

    Args:
      table: A pandas data frame, a dictionary of columns, or a NumPy structured array. Only the
        training rows: what models standardise with comes from it.
      classes: Names of the classes, in the order of the logits.
      exclusive, target, views: As in ``Schema``. A column named like ``target`` is left out.
      kinds: Kinds of columns that are not as they look.

    Raises:
      ValueError: if a column has no value, or holds what its kind does not.

    Example:
      >>> table = {"age": [50, 61], "sex": ["F", "M"], "smoker": [0, 1]}
      >>> schema = infer_schema(table, ["healthy", "disease"])
      >>> [f"{column.name}: {column.kind}" for column in schema.columns]
      ['age: numeric', 'sex: categorical', 'smoker: boolean']
    """
    kinds = dict(kinds or {})
    names = [x for x in _checked_names("columns of the table", column_names(table)) if x != target]
    for name in kinds:
        if name not in names:
            raise ValueError(f"kinds names {name!r}, which is no column; {nearest(name, names)}")
        if kinds[name] not in KINDS:
            raise ValueError(f"kind of column {name!r} must be one of {KINDS}, got {kinds[name]!r}")
    columns = tuple(_infer_column(name, table[name], kinds.get(name)) for name in names)
    return Schema(
        columns,
        _checked_names("classes", classes),
        exclusive,
        target,
        _checked_names("views", views),
    )


def encode_columns(schema: Schema, table: Any) -> np.ndarray:
    """The table as numbers, float32 ``[batch, columns]`` in the order of ``schema.encoded``.

    Numbers are themselves, categories their code, booleans 0 and 1, what is missing NaN. A category
    that the schema does not know gets the code after the last: it equals none. Columns that the
    schema does not name are ignored.

    Args:
      schema: What the table must hold.
      table: As in ``infer_schema``; or an array ``[batch, columns]`` that is encoded already.

    Raises:
      ValueError: if a column is missing, not of its kind, infinite, or of another length.
    """
    if isinstance(table, np.ndarray) and table.dtype.names is None:
        if table.ndim != 2 or table.shape[1] != len(schema.encoded):
            raise ValueError(
                f"table must have shape [batch, {len(schema.encoded)}] for the columns "
                f"{list(schema.encoded)}, got {table.shape}"
            )
        if np.isinf(table).any():
            raise ValueError("table must be finite or NaN (missing), got inf")
        return table.astype(np.float32)
    encoded = [
        _encode_column(column, read(table, column.name))
        for column in schema.columns
        if column.kind != "text"
    ]
    lengths = {
        c.name: len(x)
        for c, x in zip([c for c in schema.columns if c.kind != "text"], encoded, strict=True)
    }
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of the table must have one length, got {lengths}")
    rows = next(iter(lengths.values()), number_of_rows(table))
    out = np.empty((rows, len(encoded)), np.float32)
    for i, values in enumerate(encoded):
        out[:, i] = values
    return out


def column_names(table: Any) -> list[str]:
    """Names of the columns of a data frame, a dictionary or a structured array."""
    if isinstance(table, np.ndarray):
        if table.dtype.names is None:
            raise TypeError(
                "table is an array without column names: pass a dictionary of columns, or write "
                "the Schema by hand"
            )
        return list(table.dtype.names)
    if isinstance(table, Mapping) or hasattr(table, "columns"):
        return list(table if isinstance(table, Mapping) else table.columns)
    raise TypeError(
        "table must be a pandas data frame, a dictionary of columns or a NumPy structured array, "
        f"got {type(table).__name__}"
    )


def number_of_rows(table: Any) -> int:
    """Rows of the table."""
    names = column_names(table)
    return len(table[names[0]]) if names else 0


def read(table: Any, name: str) -> np.ndarray:
    """A column's values.

    Raises:
      ValueError: if the table has no such column.
    """
    names = column_names(table)
    if name not in names:
        known = [str(x) for x in names]
        raise ValueError(f"the table has no column {name!r}; {nearest(name, known)}")
    return np.asarray(table[name])


def missing(values: np.ndarray) -> np.ndarray:
    """Where a value is None or NaN, ``[batch]``."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind != "O":
        return np.zeros(len(values), bool)
    return np.array([bool(x is None or x != x) for x in map(_none_if_pandas_na, values)], bool)


def nearest(name: str, known: Sequence[str]) -> str:
    """Advice for a name that is not known: the nearest ones, or all of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    lowered = {k.lower(): k for k in known}
    if name.lower() in lowered:
        close = [lowered[name.lower()]]
    if close:
        return f"did you mean {' or '.join(repr(x) for x in close)}?"
    return f"there are {list(known)[:30]}" + (" and more" if len(known) > 30 else "")


def _checked_names(argument: str, values: Any) -> tuple[str, ...]:
    """Names, each a string; rules could not speak of others."""
    if isinstance(values, str):
        raise TypeError(f"{argument} must be a tuple of names, got the string {values!r}")
    for x in values:
        if not isinstance(x, str):
            raise TypeError(f"{argument} must have strings as names, got {x!r}: rename it")
    return tuple(map(str, values))


def _none_if_pandas_na(x: Any) -> Any:
    return None if type(x).__name__ in ("NAType", "NaTType") else x


def _infer_column(name: str, values: Any, kind: Kind | None) -> Column:
    if kind is None and str(getattr(values, "dtype", "")) == "category":  # declared, in pandas
        kind = "categorical"
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"column {name!r} must have shape [batch], got {values.shape}")
    present = values[~missing(values)]
    if not len(present):
        raise ValueError(f"column {name!r} has no value that is not missing: leave it out")
    holds_strings = present.dtype.kind in "UOS" and any(isinstance(x, str | bytes) for x in present)
    if kind is None:
        if holds_strings:
            kind = "categorical" if len(set(map(str, present))) <= MOST_CATEGORIES else "text"
        else:
            numbers = _checked_numbers(name, present)
            kind = "boolean" if np.isin(numbers, (0, 1)).all() else "numeric"
    if kind == "text":
        return Column(name, "text")
    if kind == "categorical":
        return Column(name, "categorical", tuple(sorted({category(x) for x in present})))
    if holds_strings:
        raise ValueError(f"column {name!r} must hold numbers to be {kind}, got strings")
    numbers = _checked_numbers(name, present)
    if kind == "boolean":
        _check_boolean(name, numbers)
        return Column(name, "boolean")
    std = float(numbers.std())
    return Column(name, "numeric", (), float(numbers.mean()), std if std > 0 else 1.0)


def _encode_column(column: Column, values: np.ndarray) -> np.ndarray:
    if values.ndim != 1:
        raise ValueError(f"column {column.name!r} must have shape [batch], got {values.shape}")
    out = np.full(len(values), np.nan)
    present = ~missing(values)
    if column.kind == "categorical":
        codes = {name: code for code, name in enumerate(column.categories)}
        out[present] = [codes.get(category(x), len(codes)) for x in values[present]]
        return out
    out[present] = _checked_numbers(column.name, values[present])
    if column.kind == "boolean":
        _check_boolean(column.name, out[present])
    return out


def category(x: Any) -> str:
    """A category's name: numbers that are whole have no decimal point."""
    if isinstance(x, bytes):
        return x.decode()
    if isinstance(x, float | np.floating) and float(x).is_integer():
        return str(int(x))
    return str(x)


def _checked_numbers(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "mMc":  # dates would quietly become counts of nanoseconds
        raise ValueError(
            f"column {name!r} must hold numbers, got {values.dtype}: turn dates into numbers, such "
            "as days since a day"
        )
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} must hold numbers: {error}") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"column {name!r} must be finite or NaN (missing), got inf")
    if len(numbers) and np.abs(numbers).max() > np.finfo(np.float32).max:
        raise ValueError(f"column {name!r} must fit float32, got {np.abs(numbers).max()}")
    return numbers


def _check_boolean(name: str, numbers: np.ndarray) -> None:
    if not np.isin(numbers, (0, 1)).all():
        bad = numbers[~np.isin(numbers, (0, 1))][0]
        raise ValueError(f"column {name!r} must be boolean, 0 or 1, got {bad:g}")
