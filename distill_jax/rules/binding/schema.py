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
    CellError,
    Cells,
    cells,
    column_names,
    columns_of,
    declared_categories,
    declared_zone,
    holds,
    nearest,
    number_of_rows,
    numbers,
    text_of,
    times,
)
from distill_jax.rules.language._times import DAY, zone_of
from distill_jax.rules.language.formulas import Implies, Name, Rule, trees
from distill_jax.rules.language.parsing import parse

Kind = Literal["numeric", "categorical", "boolean", "datetime", "duration", "time", "text"]
KINDS = ("numeric", "categorical", "boolean", "datetime", "duration", "time", "text")
OF_TIME = ("datetime", "duration", "time")

TRUE_WORDS, FALSE_WORDS = ("yes", "y", "true", "t"), ("no", "n", "false", "f")
"""Texts that a boolean column reads, in any case, unless it declares its own."""

MOST_CATEGORIES = 50
"""A column of strings with more distinct values is inferred as text."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A feature column.

    Attributes:
      name: Its name in the table and in rules.
      kind: ``"numeric"``, ``"categorical"`` (one of ``categories``), ``"boolean"`` (0 or 1, False
        or True, or texts such as "yes" and "no"), ``"datetime"`` (dates and times), ``"duration"``,
        ``"time"`` (times of day, without a zone), or ``"text"`` (for tests and sizes of text only;
        not an input of models). By default categorical with ``categories``, boolean with
        ``true_values``, and numeric otherwise.
      categories: The values of a categorical column, in the order of their codes.
      mean: The mean of a column of numbers in the training table, of times in days since
        1970-01-01, and of durations and times of day in days; models standardise with it.
      std: Its standard deviation, likewise (ddof 0; 1 for a constant column).
      ordered: Whether ``categories`` are in an order, so that rules may compare them by ``<`` and
        the like. Such a column takes no other category: what has no place in the order is an error.
      true_values, false_values: The texts that stand for 1 and for 0 in a boolean column, compared
        letter for letter with every cell; both or neither. By default cells are booleans, 0 and 1,
        and the texts yes, y, true and t, and no, n, false and f, in any case.
      zone: The zone of times without one in a datetime column, and in rules that compare it: a name
        of the tz database, such as "Europe/Berlin", or an offset, "+01:00". UTC by default.

    Raises:
      ValueError: for an unknown kind, categories that are missing, repeated or not allowed for the
        kind, a mean or std that is not finite, a std that is not positive, an order without
        categories, values of a boolean column that overlap or are not allowed for the kind, or a
        zone that is unknown or not of a datetime column.
      TypeError: if a category or a value is not a string.

    Example:
      >>> severity = Column("severity", categories=("mild", "moderate", "severe"), ordered=True)
      >>> severity.kind
      'categorical'
      >>> Column("smoker", true_values=("current", "former"), false_values=("never",)).kind
      'boolean'
    """

    name: str
    kind: Kind = None  # type: ignore[assignment]  # a kind after __post_init__
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    ordered: bool = False
    true_values: tuple[str, ...] = ()
    false_values: tuple[str, ...] = ()
    zone: str = ""

    def __post_init__(self) -> None:
        for name in ("categories", "true_values", "false_values"):
            object.__setattr__(self, name, _checked_names(name, getattr(self, name)))
        if self.kind is None:
            default = "boolean" if self.true_values or self.false_values else "numeric"
            object.__setattr__(self, "kind", "categorical" if self.categories else default)
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
        if self.ordered and self.kind != "categorical":
            raise ValueError(
                f"column {self.name!r} is {self.kind}: ordered=True is for categories in an order"
            )
        if self.zone:
            if self.kind != "datetime":
                raise ValueError(
                    f"column {self.name!r} is {self.kind}: zone is for datetime columns"
                )
            zone_of(self.zone)
        self._check_values()
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"column {self.name!r} must have a finite mean and a std > 0, got mean "
                f"{self.mean} and std {self.std}"
            )

    def _check_values(self) -> None:
        """Raises unless the texts of a boolean column are of one, and each says one thing."""
        values = self.true_values + self.false_values
        if not values:
            return
        if self.kind != "boolean":
            raise ValueError(
                f"column {self.name!r} is {self.kind}: true_values and false_values are for "
                "boolean columns"
            )
        if not (self.true_values and self.false_values) or len(set(values)) < len(values):
            raise ValueError(
                f"column {self.name!r} must have texts for true and for false, each once, got "
                f"true_values={self.true_values} and false_values={self.false_values}"
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
    kinds: Mapping[str, Kind | Column] | None = None,
    columns: Sequence[str] | str | Sequence[Rule] | None = None,
) -> Schema:
    """Infers the schema of a table: kinds, categories, means and standard deviations of columns.

    Booleans, and numbers that are all 0 or 1, are boolean; other numbers are numeric; strings are
    categorical up to 50 distinct values, and text beyond that; dates and times are datetime, in the
    zone that the table declares; their differences duration, times of day time. Bytes are text in
    UTF-8.

    What pandas, Polars (``Enum``) or Arrow declares a category is categorical, with all the
    categories that it declares, in their order, whether the table has them or not; ordered as
    declared there.

    A later table may hold what this one does not. An unknown category equals no category of the
    schema; in an ordered column it is an error, and so is a number other than 0 and 1 in a boolean
    one: declare it numeric by ``kinds``.

    Missing are None, NaN, NaT, ``pandas.NA``, masked entries, and what a column of pandas, Polars
    or Arrow calls null. A string never is, not even ``""`` or ``"nan"``.

    Args:
      table: A data frame of pandas, Polars or Arrow, a dictionary of columns, or a NumPy structured
        array. Pass training rows only: models standardise with their means and standard deviations.
      classes: Names of the classes, in the order of the logits.
      exclusive, target, views: As in ``Schema``. A column named ``target`` is not a feature.
      kinds: Kinds by column name, for columns that would be inferred wrongly; or whole columns,
        taken as they are: ``Column("grade", categories=("low", "high"), ordered=True)``.
      columns: Which columns of the table to use: their names; or rules, as a text or as ``parse``
        returns them, for the columns that these name. All others are ignored. None for all.

    Returns:
      The schema, with the columns in the order of the table.

    Raises:
      ValueError: if a column has only missing values, or values that do not fit its kind, or if
        ``kinds`` or ``columns`` names an unknown column or kind.
      RuleError: if ``columns`` is a text that is no rule.
      TypeError: if ``table`` is none of these, or a name is not a string.

    Example:
      >>> table = {"age": [50, 61], "sex": ["F", "M"], "smoker": [0, 1]}
      >>> schema = infer_schema(table, ["healthy", "disease"])
      >>> [f"{column.name}: {column.kind}" for column in schema.columns]
      ['age: numeric', 'sex: categorical', 'smoker: boolean']
      >>> [column.name for column in infer_schema(
      ...     table, ["healthy", "disease"], columns="age > 60 and smoker => disease").columns]
      ['age', 'smoker']
    """
    kinds = dict(kinds or {})
    names = [x for x in _chosen(table, columns, classes) if x != target]
    for name, kind in kinds.items():
        if name not in names:
            raise ValueError(f"kinds names {name!r}, which is not a column; {nearest(name, names)}")
        if isinstance(kind, Column) and kind.name != name:
            raise ValueError(f"kinds[{name!r}] must be a column of this name, got {kind.name!r}")
        if not isinstance(kind, Column) and kind not in KINDS:
            raise ValueError(f"kind of column {name!r} must be one of {KINDS}, got {kind!r}")
    held = columns_of(table, names)
    found = tuple(_infer_column(name, x, kinds.get(name)) for name, x in held.items())
    return Schema(
        found,
        _checked_names("classes", classes),
        exclusive,
        target,
        _checked_names("views", views),
    )


@checked
def encode_columns(schema: Schema, table: Any) -> np.ndarray:
    """Encodes the columns of a schema as numbers, without regard to rules; see ``encode``.

    Numbers are rounded to float32, categories become their code, booleans 0 and 1, times the days
    since 1970-01-01T00:00Z, durations days, times of day the part of the day that is gone, and
    missing values NaN. An unknown category gets the code after the last, so it equals no category;
    in an ordered column it is an error. Columns that are not in the schema are ignored.

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
    check_codes(schema, table)
    return table.astype(np.float32)


def check_codes(schema: Schema, table: np.ndarray) -> None:
    """Raises a ``ValueError`` for a number in an encoded array that is no code of its column.

    Args:
      schema: The columns.
      table: Numbers, ``[batch, columns]``, those of the schema first.
    """
    for name, values in zip(schema.encoded, table.T, strict=False):
        column = schema.column(name)
        if column.kind not in ("boolean", "categorical"):
            continue
        values = values.astype(np.float64)
        most = 1 if column.kind == "boolean" else len(column.categories) - column.ordered
        bad = ~np.isnan(values) & ~((values >= 0) & (values <= most) & (values == values.round()))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"column {name!r} is {column.kind} and must hold the codes 0 to {most} or NaN, got "
                f"{values[row]:g} in row {row} (the first is 0)"
            )


def exact_columns(schema: Schema, table: Any) -> dict[str, Cells]:
    """The exact values of the columns that are encoded: numbers, codes, or nanoseconds.

    Raises:
      ValueError: as ``encode_columns``.
    """
    held = columns_of(table, schema.encoded)
    every = {name: cells(name, x) for name, x in held.items()}
    lengths = {name: len(own.missing) for name, own in every.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of the table must have one length, got {lengths}")
    return {
        name: Cells(_exact(_as_held(schema.column(name), held[name]), own), own.missing)
        for name, own in every.items()
    }


def _as_held(column: Column, values: Any) -> Column:
    """The column, with a zone only if the table's times have none themselves."""
    if column.zone and declared_zone(column.name, values) is not None:
        return dataclasses.replace(column, zone="")
    return column


def unit_of(column: Column) -> int:
    """What one unit of the encoded column is in units of its exact values."""
    return DAY if column.kind in OF_TIME else 1


def _chosen(table: Any, columns: Any, classes: Sequence[str]) -> list[str]:
    """The names of the columns to use, in the order of the table."""
    names = column_names(table)
    if columns is None:
        return list(_checked_names("columns of the table", names))
    if isinstance(columns, str):
        columns = parse(columns)
    chosen = set(columns)
    if columns and all(isinstance(x, Rule) for x in columns):
        heads = {x.formula.head for x in columns if x.definition and isinstance(x.formula, Implies)}
        used = {x for rule in columns for x in trees(rule.formula) if isinstance(x, Name)}
        chosen = {x.name for x in used - heads} & set(names) - set(classes)
    unknown = chosen - set(names)
    for name in _checked_names("columns", chosen):
        if name in unknown:
            known = [str(x) for x in names]
            raise ValueError(
                f"columns names {name!r}, which the table lacks; {nearest(name, known)}"
            )
    return [name for name in names if name in chosen]


def _checked_names(argument: str, values: Any) -> tuple[str, ...]:
    """The names as a tuple; a ``TypeError`` unless each is a string, as rules need."""
    if isinstance(values, str):
        raise TypeError(f"{argument} must be a tuple of names, got the string {values!r}")
    for x in values:
        if not isinstance(x, str):
            raise TypeError(f"{argument} must have strings as names, got {x!r}: rename it")
    return tuple(map(str, values))


def _infer_column(name: str, values: Any, kind: Kind | Column | None) -> Column:
    own = cells(name, values)
    if isinstance(kind, Column):
        if kind.kind != "text":
            _exact(_as_held(kind, values), own)
        return kind
    declared, ordered = declared_categories(name, values)
    dtype = str(getattr(values, "dtype", getattr(values, "type", ""))).lower()
    if kind is None and (declared or dtype.startswith(("category", "categorical", "dictionary"))):
        kind = "categorical"
    if kind == "categorical" and declared:
        return Column(name, "categorical", declared, ordered=ordered)
    present = own.present
    if not len(present):
        raise ValueError(
            f"column {name!r} has only missing values: leave it out, by the argument columns"
        )
    found = holds(present)
    if kind is None:
        if found == "strings":
            several = len({text_of(name, x) for x in present}) > MOST_CATEGORIES
            kind = "text" if several else "categorical"
        elif found == "numbers":
            exact = _exact(Column(name), own)
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
    exact = _exact(column, own)
    if kind == "boolean":
        return column
    as_held, values = values, exact.astype(np.float64) / unit_of(column)
    std = float(values.std())
    zone = (declared_zone(name, as_held) or "") if kind == "datetime" else ""
    return Column(name, kind, (), float(values.mean()), std if std > 0 else 1.0, zone=zone)


def _exact(column: Column, own: Cells) -> np.ndarray:
    """The values of a column as numbers: themselves, codes of categories, or nanoseconds.

    Raises:
      ValueError: for a cell that does not fit, with its row.
    """
    try:
        if column.kind == "categorical":
            return _codes(column, own.present)
        if column.kind in OF_TIME:
            return times(column.name, own.present, column.kind, column.zone)
        if column.kind == "boolean":
            return _booleans(column, own.present)
        return numbers(column.name, own.present)
    except CellError as error:
        row = int(np.flatnonzero(~own.missing)[error.place])
        raise ValueError(error.message(row)) from error


def _codes(column: Column, present: np.ndarray) -> np.ndarray:
    """Codes of categories; the number of categories for an unknown one."""
    codes = {name: code for code, name in enumerate(column.categories)}
    unknown = len(codes)
    texts = [x if type(x) is str else text_of(column.name, x) for x in present]
    found = np.array([codes.get(x, unknown) for x in texts], np.int64)
    if column.ordered and (found == unknown).any():
        place = int((found == unknown).argmax())
        raise CellError(
            place,
            f"column {column.name!r} is ordered and has no category {texts[place]!r}, which is",
            "add it to the categories in its place, or make it missing; "
            + nearest(texts[place], column.categories),
        )
    return found


def _booleans(column: Column, present: np.ndarray) -> np.ndarray:
    """0 and 1 for the cells of a boolean column."""
    declared = bool(column.true_values)
    if not declared and holds(present) != "strings":
        found = numbers(column.name, present)
        if (bad := (found != 0) & (found != 1)).any():
            place = int(bad.argmax())
            raise CellError(
                place,
                f"column {column.name!r} must be boolean, 0 or 1, got {found[place]:g}",
                f"if it counts or measures, declare it numeric, Column({column.name!r}) or "
                f"kinds={{{column.name!r}: 'numeric'}}",
            )
        return found
    words = dict.fromkeys(column.false_values if declared else FALSE_WORDS, 0)
    words |= dict.fromkeys(column.true_values if declared else TRUE_WORDS, 1)
    known: dict[str, int] = {}

    def value(place: int, x: Any) -> int:
        is_text = isinstance(x, str | bytes | bytearray)
        text = text_of(column.name, x)
        found = words.get(text if declared else text.lower())
        if not declared and not is_text:
            found = int(x) if x in (0, 1) else None
        if found is None:
            shown = f"the string {x!r}" if isinstance(x, str) else f"bytes {x!r}" if is_text else x
            expected = f"one of {list(words)}" if declared else "0 or 1, or yes or no"
            raise CellError(
                place,
                f"column {column.name!r} must be boolean, {expected}, got {shown}",
                "declare what it stands for, by Column's true_values and false_values, or make it "
                "missing",
            )
        if type(x) is str:
            known[x] = found
        return found

    # A string is looked up once; 1 and True would be the same key.
    return np.array(
        [known[x] if type(x) is str and x in known else value(i, x) for i, x in enumerate(present)],
        np.int64,
    )


def _is_rounded(exact: np.ndarray, near: np.ndarray, unit: int) -> bool:
    """Whether float32 changes whole numbers, or merges times that differ."""
    if unit != 1:
        return len(np.unique(near)) < len(np.unique(exact))
    if exact.dtype.kind == "f":  # fractions lose no more than every measurement does
        exact = exact.astype(np.float64)
        exact = exact[(np.abs(exact) < 2**53) & (np.floor(exact) == exact)]
        return bool((exact.astype(np.float32) != exact).any())
    return bool((near.astype(np.float64).astype(object) != exact.astype(object)).any())
