"""Schemas: the columns of a table and the classes to predict, which rules refer to by name."""

from __future__ import annotations

import collections
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

Kind = Literal["numeric", "categorical", "boolean", "text"]
KINDS = ("numeric", "categorical", "boolean", "text")

MOST_CATEGORIES = 50
"""A column of strings with more distinct values is inferred as text."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A feature column.

    Attributes:
      name: Its name in the table and in rules.
      kind: ``"numeric"``, ``"categorical"`` (one of ``categories``), ``"boolean"`` (0 or 1) or
        ``"text"`` (for regular expressions only; not an input of models).
      categories: The values of a categorical column, in the order of their codes.
      mean: The mean of a numeric column in the training table; models standardise with it.
      std: Its standard deviation, likewise (ddof 0; 1 for a constant column).

    Raises:
      ValueError: for an unknown kind, categories that are missing, repeated or not allowed for the
        kind, or a mean or std that is not finite, or a std that is not positive.
      TypeError: if a category is not a string.

    Example:
      >>> Column("sex", "categorical", ("F", "M")).categories
      ('F', 'M')
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
                "a categorical column needs at least one, other columns have none"
            )
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(
                f"column {self.name!r} must list each category once, got {list(self.categories)}"
            )
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"column {self.name!r} must have a finite mean and a std > 0, got mean "
                f"{self.mean} and std {self.std}"
            )


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns, classes and views that rules refer to.

    Attributes:
      columns: Feature columns, in the order of the encoded table.
      classes: Names of the classes or labels, in the order of the logits; two or more if
        exclusive.
      exclusive: Whether each example has exactly one class (softmax); otherwise it has any set of
        labels (one sigmoid per label).
      target: The name of the class variable, for ``species == 'cat'``; exclusive classes only.
      views: Names of other views of an example, for ``view(clause_b).sentiment``.

    Raises:
      ValueError: if a name is used twice, there are too few classes, or ``target`` is given for
        label sets.
      TypeError: if a column is not a ``Column``, or a name is not a string.

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
            raise ValueError(f"views must have distinct names, got {list(self.views)}")
        names = [column.name for column in self.columns] + list(self.classes)
        names += [self.target] if self.target is not None else []
        twice = sorted(name for name, n in collections.Counter(names).items() if n > 1)
        if twice:
            raise ValueError(
                f"columns, classes and target must have distinct names, got twice: {twice}. "
                "Rename the column, or remove the label column from the features"
            )

    @property
    def encoded(self) -> tuple[str, ...]:
        """Names of the columns that are encoded as numbers: all except text."""
        return tuple(column.name for column in self.columns if column.kind != "text")

    def column(self, name: str) -> Column:
        """The column named ``name``; a ``ValueError`` if there is none."""
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
    """Infers the schema of a table: kinds, categories, means and standard deviations of columns.

    Booleans, and numbers that are all 0 or 1, are boolean; other numbers are numeric; strings are
    categorical up to 50 distinct values, and text beyond that; pandas categoricals are categorical.
    None and NaN are missing values.

    Args:
      table: A pandas data frame, a dictionary of columns, or a NumPy structured array. Pass
        training rows only: models standardise with their means and standard deviations.
      classes: Names of the classes, in the order of the logits.
      exclusive, target, views: As in ``Schema``. A column named ``target`` is not a feature.
      kinds: Kinds by column name, for columns that would be inferred wrongly.

    Returns:
      The schema, with the columns in the order of the table.

    Raises:
      ValueError: if a column has only missing values, or values that do not fit its kind, or if
        ``kinds`` names an unknown column or kind.
      TypeError: if ``table`` is none of these, or a name is not a string.

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
            raise ValueError(f"kinds names {name!r}, which is not a column; {nearest(name, names)}")
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
    """Encodes the columns of a schema as numbers, without the patterns of rules; see ``encode``.

    Numbers are kept, categories become their code, booleans 0 and 1, missing values NaN. An unknown
    category gets the code after the last, so it equals no category. Columns that are not in the
    schema are ignored.

    Args:
      schema: The columns that the table must have.
      table: As in ``infer_schema``; or an array ``[batch, columns]`` that is already encoded.

    Returns:
      float32 ``[batch, columns]``, in the order of ``schema.encoded``.

    Raises:
      ValueError: if a column is missing, does not fit its kind, is infinite, or differs in length.
      TypeError: if ``table`` is none of these.

    Example:
      >>> schema = Schema((Column("age"), Column("sex", "categorical", ("F", "M"))), ("no", "yes"))
      >>> print(encode_columns(schema, {"age": [50, None], "sex": ["M", "F"]}))
      [[50.  1.]
       [nan  0.]]
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
    """The number of rows of a table."""
    names = column_names(table)
    return len(table[names[0]]) if names else 0


def read(table: Any, name: str) -> np.ndarray:
    """The values of a column, ``[batch]``.

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
    """A hint for an unknown name: the closest known names, or all of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    lowered = {k.lower(): k for k in known}
    if name.lower() in lowered:
        close = [lowered[name.lower()]]
    if close:
        return f"did you mean {' or '.join(repr(x) for x in close)}?"
    return f"there are {list(known)[:30]}" + (" and more" if len(known) > 30 else "")


def _checked_names(argument: str, values: Any) -> tuple[str, ...]:
    """The names as a tuple; a ``TypeError`` unless each is a string, as rules need."""
    if isinstance(values, str):
        raise TypeError(f"{argument} must be a tuple of names, got the string {values!r}")
    for x in values:
        if not isinstance(x, str):
            raise TypeError(f"{argument} must have strings as names, got {x!r}: rename it")
    return tuple(map(str, values))


def _none_if_pandas_na(x: Any) -> Any:
    return None if type(x).__name__ in ("NAType", "NaTType") else x


def _infer_column(name: str, values: Any, kind: Kind | None) -> Column:
    if kind is None and str(getattr(values, "dtype", "")) == "category":  # declared in pandas
        kind = "categorical"
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"column {name!r} must have shape [batch], got {values.shape}")
    present = values[~missing(values)]
    if not len(present):
        raise ValueError(f"column {name!r} has only missing values: leave it out")
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
    """A category's name: integral floats lose their decimal point."""
    if isinstance(x, bytes):
        return x.decode()
    if isinstance(x, float | np.floating) and float(x).is_integer():
        return str(int(x))
    return str(x)


def _checked_numbers(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "mMc":  # dates would silently become counts of nanoseconds
        raise ValueError(
            f"column {name!r} must hold numbers, got {values.dtype}: convert dates to numbers, "
            "such as days since a reference date"
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
