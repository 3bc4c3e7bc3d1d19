"""Schemas: the columns of a table and the classes to predict, which rules refer to by name."""

from __future__ import annotations

import collections
import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from distill_jax._arguments import checked
from distill_jax.rules.binding._places import placed
from distill_jax.rules.binding._tables import (
    Cells,
    cells,
    column_names,
    columns_of,
    holds,
    nearest,
    number_of_rows,
    numbers,
    text_of,
    times,
)
from distill_jax.rules.language._times import DAY

Kind = Literal["numeric", "categorical", "boolean", "datetime", "duration", "text"]
KINDS = ("numeric", "categorical", "boolean", "datetime", "duration", "text")

MOST_CATEGORIES = 50
"""A column of strings with more distinct values is inferred as text."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A feature column.

    Attributes:
      name: Its name in the table and in rules.
      kind: ``"numeric"``, ``"categorical"`` (one of ``categories``), ``"boolean"`` (0 or 1),
        ``"datetime"`` (dates and times; without a zone they are UTC), ``"duration"``, or ``"text"``
        (for regular expressions only; not an input of models).
      categories: The values of a categorical column, in the order of their codes.
      mean: The mean of a column of numbers in the training table, of times in days since
        1970-01-01 and of durations in days; models standardise with it.
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
        if name not in self._by_name:
            raise ValueError(f"there is no column {name!r}; {nearest(name, list(self._by_name))}")
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}


@checked
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
    categorical up to 50 distinct values, and text beyond that; pandas categoricals are categorical;
    dates and times are datetime, their differences duration. Bytes are text in UTF-8.

    Missing are None, NaN, NaT, ``pandas.NA``, masked entries, and what a column of pandas, Polars
    or Arrow calls null. A string never is, not even ``""`` or ``"nan"``.

    Args:
      table: A data frame of pandas, Polars or Arrow, a dictionary of columns, or a NumPy structured
        array. Pass training rows only: models standardise with their means and standard deviations.
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
    found = columns_of(table, names)
    columns = tuple(_infer_column(name, x, kinds.get(name)) for name, x in found.items())
    return Schema(
        columns,
        _checked_names("classes", classes),
        exclusive,
        target,
        _checked_names("views", views),
    )


@checked
def encode_columns(schema: Schema, table: Any) -> np.ndarray:
    """Encodes the columns of a schema as numbers, without regard to rules; see ``encode``.

    Numbers are rounded to float32, categories become their code, booleans 0 and 1, times the days
    since 1970-01-01T00:00Z, durations days, and missing values NaN. An unknown category gets the
    code after the last, so it equals no category. Columns that are not in the schema are ignored.

    Rounding may merge values that a rule tells apart. ``encode(book, table)`` knows the rules: use
    it for whatever compares columns with thresholds.

    Args:
      schema: The columns that the table must have.
      table: As in ``infer_schema``; or an array ``[batch, columns]`` that is already encoded.

    Returns:
      float32 ``[batch, columns]``, in the order of ``schema.encoded``.

    Raises:
      ValueError: if a column is missing, does not fit its kind, is infinite, or differs in length.
      TypeError: if ``table`` is none of these.

    Warns:
      UserWarning: where float32 cannot hold whole numbers or times exactly.

    Example:
      >>> schema = Schema((Column("age"), Column("sex", "categorical", ("F", "M"))), ("no", "yes"))
      >>> print(encode_columns(schema, {"age": [50, None], "sex": ["M", "F"]}))
      [[50.  1.]
       [nan  0.]]
    """
    if is_array(table):
        return encoded_array(schema, table)
    found = exact_columns(schema, table)
    rows = number_of_rows(table) if not found else len(next(iter(found.values())).missing)
    out = np.empty((rows, len(schema.encoded)), np.float32)
    rounded = []
    for i, name in enumerate(schema.encoded):
        unit = unit_of(schema.column(name))
        near = placed(found[name].present, (), unit)
        rounded += [name] if _is_rounded(found[name].present, near, unit) else []
        out[:, i] = found[name].spread(near)
    if rounded:
        warnings.warn(
            f"float32 rounds whole numbers or times in the columns {rounded}: use encode(book, "
            "table) if rules compare them, which places each value on its side of every threshold",
            stacklevel=2,
        )
    return out


def is_array(table: Any) -> bool:
    """Whether a table is an array without names for its columns."""
    return isinstance(table, np.ndarray | jax.Array) and table.dtype.names is None


def unmasked(columns: Any) -> Any:
    """An array of columns with NaN in place of masked entries; any other array unchanged."""
    if not isinstance(columns, np.ma.MaskedArray):
        return columns
    floats = columns if columns.dtype.kind == "f" else np.ma.asarray(columns, np.float64)
    return np.ma.filled(floats, np.nan)


def encoded_array(schema: Schema, table: Any) -> np.ndarray:
    """An array that is already encoded, checked, as float32 ``[batch, columns]``."""
    table = np.asarray(unmasked(table))
    if table.ndim != 2 or table.shape[1] != len(schema.encoded):
        raise ValueError(
            f"table must have shape [batch, {len(schema.encoded)}] for the columns "
            f"{list(schema.encoded)}, got {table.shape}"
        )
    if table.dtype.kind not in "biufV":  # the last is bfloat16 and its like
        raise TypeError(
            f"table is an array of {table.dtype}: pass a dictionary of columns, or an array of "
            "numbers and codes"
        )
    if np.isinf(table).any():
        raise ValueError("table must be finite or NaN (missing), got inf")
    return table.astype(np.float32)


def exact_columns(schema: Schema, table: Any) -> dict[str, Cells]:
    """The exact values of the columns that are encoded: numbers, codes, or nanoseconds.

    Raises:
      ValueError: as ``encode_columns``.
    """
    every = {name: cells(name, x) for name, x in columns_of(table, schema.encoded).items()}
    lengths = {name: len(own.missing) for name, own in every.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of the table must have one length, got {lengths}")
    return {
        name: Cells(_exact(schema.column(name), own.present), own.missing)
        for name, own in every.items()
    }


def unit_of(column: Column) -> int:
    """What one unit of the encoded column is in units of its exact values."""
    return DAY if column.kind in ("datetime", "duration") else 1


def _checked_names(argument: str, values: Any) -> tuple[str, ...]:
    """The names as a tuple; a ``TypeError`` unless each is a string, as rules need."""
    if isinstance(values, str):
        raise TypeError(f"{argument} must be a tuple of names, got the string {values!r}")
    for x in values:
        if not isinstance(x, str):
            raise TypeError(f"{argument} must have strings as names, got {x!r}: rename it")
    return tuple(map(str, values))


def _infer_column(name: str, values: Any, kind: Kind | None) -> Column:
    declared = str(getattr(values, "dtype", getattr(values, "type", ""))).lower()
    if kind is None and declared.startswith(("category", "categorical", "enum", "dictionary")):
        kind = "categorical"  # by pandas, Polars or Arrow
    present = cells(name, values).present
    if not len(present):
        raise ValueError(f"column {name!r} has only missing values: leave it out")
    found = holds(present)
    if kind is None:
        if found == "strings":
            several = len({text_of(name, x) for x in present}) > MOST_CATEGORIES
            kind = "text" if several else "categorical"
        elif found == "numbers":
            exact = numbers(name, present)
            kind = "boolean" if all(x in (0, 1) for x in np.unique(exact)[:3]) else "numeric"
        else:
            kind = found
    if kind == "text":
        return Column(name, "text")
    if kind == "categorical":
        return Column(name, "categorical", tuple(sorted({text_of(name, x) for x in present})))
    if kind == "numeric" and found == "strings":
        raise ValueError(f"column {name!r} must hold numbers to be {kind}, got strings")
    column = Column(name, kind)
    exact = _exact(column, present)
    if kind == "boolean":
        return column
    unit = unit_of(column)
    values = exact.astype(np.float64) / unit
    std = float(values.std())
    return Column(name, kind, (), float(values.mean()), std if std > 0 else 1.0)


def _exact(column: Column, present: np.ndarray) -> np.ndarray:
    """The values of a column as numbers: themselves, codes of categories, or nanoseconds."""
    if column.kind == "categorical":
        codes = {name: code for code, name in enumerate(column.categories)}
        found = [codes.get(text_of(column.name, x), len(codes)) for x in present]
        return np.array(found, np.int64)
    if column.kind in ("datetime", "duration"):
        return times(column.name, present, column.kind)
    if column.kind == "boolean" and holds(present) == "strings":
        bad = next(x for x in present if isinstance(x, str | bytes | bytearray))
        raise ValueError(
            f"column {column.name!r} must be boolean, 0 or 1, got the string {bad!r}: convert it"
        )
    found = numbers(column.name, present)
    if column.kind == "boolean" and (bad := found[(found != 0) & (found != 1)]).size:
        raise ValueError(f"column {column.name!r} must be boolean, 0 or 1, got {bad[0]:g}")
    return found


def _is_rounded(exact: np.ndarray, near: np.ndarray, unit: int) -> bool:
    """Whether float32 changes whole numbers, or merges times that differ."""
    if unit != 1:
        return len(np.unique(near)) < len(np.unique(exact))
    if exact.dtype.kind == "f":  # fractions lose no more than every measurement does
        exact = exact.astype(np.float64)
        exact = exact[(np.abs(exact) < 2**53) & (np.floor(exact) == exact)]
        return bool((exact.astype(np.float32) != exact).any())
    return bool((near.astype(np.float64).astype(object) != exact.astype(object)).any())
