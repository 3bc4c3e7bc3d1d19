"""Reading tables of any library: columns by name, which cells are missing, and what a cell holds.

Everything that reads a table goes through ``read``, so that one function decides what is missing:
None, NaN of any float type, NaT, ``pandas.NA``, masked entries of NumPy arrays, the ``na_object``
of NumPy strings, and whatever a column of pandas, Polars, Arrow or narwhals itself calls null.
These libraries are never imported. A string is never missing, not even ``""`` or ``"nan"``.
"""

from __future__ import annotations

import collections
import datetime
import difflib
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from distill_jax.rules.language._times import (
    as_nanoseconds,
    is_duration,
    is_time,
    nanoseconds,
    parse_date,
    parse_datetime,
    spelled,
)

MAX = float(np.finfo(np.float32).max)

_NULLS = (("isna", "dropna"), ("is_null", "drop_nulls"), ("is_null", "drop_null"))
"""How columns of other libraries tell and drop their nulls: pandas, Polars and narwhals, Arrow."""


_STRUCTURED = (np.void, np.ma.core.mvoid)  # pyright: ignore[reportAttributeAccessIssue]
"""What NumPy holds a row of a structured array in, without and with a mask."""


class Cells(NamedTuple):
    """A column of a table.

    Attributes:
      present: The values that are not missing, in the order of the rows.
      missing: Where a value is missing, ``[batch]``.
    """

    present: np.ndarray
    missing: np.ndarray

    def spread(self, values: Any) -> np.ndarray:
        """One number per present value as float32 ``[batch]``, with NaN for missing ones."""
        out = np.full(len(self.missing), np.nan, np.float32)
        out[~self.missing] = values
        return out


# Tables


def column_names(table: Any) -> list[str]:
    """Names of the columns of a data frame, a dictionary or a structured array."""
    if isinstance(table, np.ndarray):
        if table.dtype.names is None:
            raise TypeError(
                "table is an array without column names: pass a dictionary of columns, or write "
                "the Schema by hand"
            )
        return list(table.dtype.names)
    if isinstance(table, Mapping):
        return list(table)
    if hasattr(type(table), "collect") and not hasattr(type(table), "__len__"):
        raise TypeError(f"table is a lazy {type(table).__name__}: pass table.collect()")
    for attribute in ("column_names", "columns"):  # Arrow has both; its columns are the data
        if _has_property(table, attribute):
            return list(getattr(table, attribute))
    raise TypeError(
        "table must be a data frame, a dictionary of columns or a NumPy structured array, "
        f"got {type(table).__name__}"
    )


def number_of_rows(table: Any) -> int:
    """The number of rows of a table."""
    names = column_names(table)
    return len(table[names[0]]) if names else 0


def one_row(example: Any) -> Any:
    """A row, as a table that has it as its only one; a table unchanged.

    Args:
      example: A mapping or a pandas Series from columns to values, a named tuple, a row of a
        structured array, or a table.

    Raises:
      ValueError: if a label of a Series is there twice.
    """
    if _has_property(example, "index") and not _has_property(example, "columns"):  # pandas
        labels = list(example.index)
        twice = sorted({str(x) for x in labels if labels.count(x) > 1})
        if twice:
            raise ValueError(f"the row has the labels {twice} twice: rename or drop all but one")
        example = dict(zip(labels, example.array, strict=True))
    elif hasattr(example, "_asdict"):
        example = example._asdict()
    elif isinstance(example, _STRUCTURED) and example.dtype.names is not None:
        example = {name: example[name] for name in example.dtype.names}
    if not isinstance(example, Mapping):
        return example
    return {name: _of_one_row(x) for name, x in example.items()}


def _has_property(x: Any, name: str) -> bool:
    """Whether an object's type has an attribute that is not a method.

    Attributes of the object itself may be the columns of a data frame.
    """
    return hasattr(type(x), name) and not callable(getattr(type(x), name))


def _of_one_row(x: Any) -> Any:
    """A value, or a column with one row, as a column."""
    if isinstance(x, str | bytes):
        return [x]
    if x is not np.ma.masked and hasattr(x, "dtype") and np.ndim(x) == 0:
        return np.asarray(x)[None]
    return x if is_column(x) else [x]


def is_column(x: Any) -> bool:
    """Whether a value of a mapping is a column, rather than a single cell."""
    return hasattr(x, "__len__") and not isinstance(x, str | bytes) and x is not np.ma.masked


def read(table: Any, name: str) -> Cells:
    """The cells of a column.

    Raises:
      ValueError: if the table has no such column, or two, or it is not one-dimensional.
    """
    return cells(name, column_of(table, name))


def column_of(table: Any, name: str) -> Any:
    """A column as its library holds it; see ``columns_of``."""
    return columns_of(table, [name])[name]


def columns_of(table: Any, names: Sequence[str]) -> dict[str, Any]:
    """Columns as their library holds them. The table's own names are listed once.

    Raises:
      ValueError: if the table has no such column, or two.
    """
    known = collections.Counter(column_names(table))
    for name in names:
        if name not in known:
            shown = [str(x) for x in known]
            raise ValueError(f"the table has no column {name!r}; {nearest(name, shown)}")
        if known[name] > 1:
            raise ValueError(
                f"the table has {known[name]} columns named {name!r}: rename or drop all but one"
            )
    return {name: table[name] for name in names}


def cells(name: str, column: Any) -> Cells:
    """The cells of a column that any library holds, or of a list.

    Args:
      name: Its name, for messages.
      column: A sequence of values, ``[batch]``.

    Raises:
      ValueError: unless it is one-dimensional.
    """
    shape = getattr(column, "shape", None)
    if isinstance(shape, tuple) and len(shape) != 1:
        raise ValueError(f"column {name!r} must have shape [batch], got {shape}")
    if isinstance(column, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(column)
        inner = _split(name, column.data[~mask])
        mask[~mask] = inner.missing
        return Cells(inner.present, mask)
    for tell, drop in _NULLS:
        if hasattr(column, tell) and hasattr(column, drop):
            mask = np.array(getattr(column, tell)(), bool)
            # The rest first: with a null among them, integers would become floats.
            try:
                kept = getattr(column, drop)()
            except NotImplementedError:  # Arrow cannot filter strings in views, for example
                kept = [x for x in column.to_pylist() if x is not None]
            inner = _split(name, _dates_in_utc(kept))
            if len(inner.missing) + mask.sum() != len(mask):
                raise ValueError(f"column {name!r} disagrees with itself about what is missing")
            mask[~mask] = inner.missing  # a Polars NaN is not null
            return Cells(inner.present, mask)
    if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
        raise ValueError(f"column {name!r} must have shape [batch], got {_shown(column)}")
    return _split(name, column)


def _dates_in_utc(column: Any) -> Any:
    """A pandas column with a time zone as instants; any other column unchanged."""
    dtype = getattr(column, "dtype", None)
    if getattr(dtype, "tz", None) is None:
        return column
    return np.asarray(column, dtype=f"M8[{getattr(dtype, 'unit', 'ns')}]")


def _split(name: str, column: Any) -> Cells:
    """The cells of a column whose library has no notion of null, or whose nulls are gone."""
    if isinstance(column, list | tuple) and any(isinstance(x, list | tuple) for x in column):
        raise ValueError(f"column {name!r} must have shape [batch], got a list of lists")
    values = _array(column)
    if values.ndim != 1:
        raise ValueError(f"column {name!r} must have shape [batch], got {values.shape}")
    if values.dtype.kind == "f":
        mask = np.isnan(values)
    elif values.dtype.kind in "mM":
        mask = np.isnat(values)
    elif values.dtype.kind == "T":  # NumPy's strings of variable width
        nothing = getattr(values.dtype, "na_object", None)
        values = values.astype(object)
        mask = np.array([x is nothing or is_missing(x) for x in values], bool)
    elif values.dtype.kind == "O":
        mask = np.array([is_missing(x) for x in values], bool)
    else:
        mask = np.zeros(len(values), bool)
    return Cells(values[~mask], mask)


def _array(column: Any) -> np.ndarray:
    """A column as an array that holds its values as they are: no text "nan", no rounded integer."""
    if isinstance(column, list | tuple | range):
        kinds = set(map(type, column))
        if kinds <= {int, bool} or kinds == {float}:
            values = np.asarray(column)
            if values.dtype.kind in "biuO" or kinds == {float}:
                return values
        values = np.empty(len(column), object)
        for i, x in enumerate(column):
            values[i] = None if x is np.ma.masked else x  # it would become 0.0
        return values
    values = np.asarray(column)
    if values.dtype.kind == "V" and values.dtype.names is None:  # bfloat16 and its like
        values = values.astype(np.float32)
    return values


def is_missing(x: Any) -> bool:
    """Whether a single value stands for a missing one."""
    if x is None or x is np.ma.masked or type(x).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(x, str | bytes | bool | int):
        return False
    if isinstance(x, Decimal):
        return x.is_nan()
    if getattr(x, "is_valid", True) is False:  # a null of Arrow
        return True
    try:
        return bool(x != x)
    except (TypeError, ValueError):
        return False


# Cells


def text_of(name: str, x: Any) -> str:
    """The text of a cell: what ``matches`` searches, and what names a category.

    Bytes are UTF-8. Whole numbers have no decimal point, so that 3, 3.0 and ``Decimal("3.00")`` are
    all ``"3"``, and ``Decimal("2.50")`` is ``"2.5"``. Times are as rules write them, in UTC,
    whatever holds them: ``"2024-01-31"`` at midnight, else ``"2024-01-31T12:00:00Z"``. Anything
    else is as ``str`` prints it.

    Args:
      name: The column's name, for messages.
      x: A value that is not missing.

    Raises:
      ValueError: for bytes that are not UTF-8.
    """
    if isinstance(x, str):
        return str(x)
    if isinstance(x, bytes | bytearray):
        try:
            return bytes(x).decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"column {name!r} holds bytes that are not UTF-8: {_shown(x)}: decode it to text"
            ) from error
    if isinstance(x, bool | np.bool_):
        return str(bool(x))
    x = getattr(x, "as_py", lambda: x)()
    if isinstance(x, Decimal) and x.is_finite() and abs(x.adjusted()) < 400:
        near = float(x)
        x = near if Decimal(repr(near)) == x else x.normalize()
    if isinstance(x, float | np.floating | Decimal | Fraction):
        is_finite = x.is_finite() if isinstance(x, Decimal) else math.isfinite(x)
        return str(int(x)) if is_finite and x == int(x) else str(x)
    if is_time(x):
        try:
            return spelled(nanoseconds(x)).split("'")[1]
        except (ValueError, OverflowError):  # before the year 1, or after 9999
            return str(x)
    return str(x)


def numbers(name: str, present: np.ndarray) -> np.ndarray:
    """The values of a column of numbers, exactly.

    Args:
      name: The column's name, for messages.
      present: The values that are not missing.

    Returns:
      Integers or floats in the column's own dtype; or an object array of ``int``, ``float`` and
      ``Fraction``, where no dtype holds them all.

    Raises:
      ValueError: for what is not a number, is infinite, or does not fit float32.
    """
    if present.dtype.kind in "mM":
        kind = "datetime" if present.dtype.kind == "M" else "duration"
        raise ValueError(
            f"column {name!r} must hold numbers, got {present.dtype}: declare it as "
            f"Column({name!r}, {kind!r}), or with kinds={{{name!r}: {kind!r}}}"
        )
    if present.dtype.kind == "b":
        return present.astype(np.int64)
    if present.dtype.kind == "f" and present.dtype.itemsize > 8 and np.isfinite(present).all():
        exact = [Fraction(*x.as_integer_ratio()) for x in present]
        present = _as_tight(name, [float(x) if float(x) == x else x for x in exact])
    if present.dtype.kind == "O":
        present = _as_tight(name, [_number(name, x) for x in present])
    elif present.dtype.kind not in "iuf":
        for x in present[:1]:
            _number(name, x)
    if present.dtype.kind == "f" and not np.isfinite(present).all():
        raise ValueError(f"column {name!r} must be finite or NaN (missing), got inf")
    if len(present):
        most = max(int(present.max()), -int(present.min()))
        if most > MAX:
            raise ValueError(
                f"column {name!r} must fit float32, got a value near {float(most):.3g}: rescale "
                "it, as by dividing or with a logarithm"
            )
    return present


def times(name: str, present: np.ndarray, kind: str) -> np.ndarray:
    """The values of a column of times or durations, as whole nanoseconds.

    Args:
      name: The column's name, for messages.
      present: The values that are not missing: NumPy's, Python's or pandas' own; for times, strings
        as a rule's ``date`` and ``datetime`` take them, too. A time without a zone is UTC.
      kind: ``"datetime"``, counted from 1970-01-01T00:00Z, or ``"duration"``.

    Returns:
      int64; or an object array of ``int``, for what lies beyond.

    Raises:
      ValueError: for anything else, or for some times with a zone and some without.
    """
    try:
        if present.dtype.kind in ("M" if kind == "datetime" else "m"):
            return as_nanoseconds(present)
        found = [
            _nanoseconds(name, text_of(name, x) if isinstance(x, bytes) else x, kind)
            for x in present
        ]
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from error
    zones = {x.utcoffset() is None for x in present if isinstance(x, datetime.datetime)}
    if len(zones) > 1:
        raise ValueError(
            f"column {name!r} has times with a time zone and times without: give all of them one"
        )
    return _as_tight(name, found) if found else np.zeros(0, np.int64)


def _nanoseconds(name: str, x: Any, kind: str) -> int:
    x = getattr(x, "as_py", lambda: x)()
    if is_time(x) if kind == "datetime" else is_duration(x):
        return nanoseconds(x)
    if kind == "datetime" and isinstance(x, str):
        return parse_datetime(x) if len(x) > 10 else parse_date(x)
    example = "datetime.datetime, numpy.datetime64" if kind == "datetime" else "datetime.timedelta"
    raise ValueError(f"it is a {kind} column, of values such as {example}, got {_shown(x)}")


def holds(present: np.ndarray) -> Literal["strings", "datetime", "duration", "numbers"]:
    """What the values of a column are, as far as its kind depends on it."""
    if present.dtype.kind in "mM":
        return "datetime" if present.dtype.kind == "M" else "duration"
    if present.dtype.kind in "US":
        return "strings"
    if present.dtype.kind == "O":
        if any(isinstance(x, str | bytes | bytearray) for x in present):
            return "strings"
        if all(map(is_time, present)):
            return "datetime"
        if all(map(is_duration, present)):
            return "duration"
    return "numbers"


def _as_tight(name: str, values: Sequence[Any]) -> np.ndarray:
    """Python numbers as an array of integers, of floats, or of objects."""
    kinds = set(map(type, values))
    if kinds == {float} or (
        kinds == {int, float} and all(isinstance(x, float) or abs(x) <= 2**53 for x in values)
    ):
        return np.array(values, np.float64)
    if kinds == {int} and -(2**63) <= min(values) and max(values) < 2**63:
        return np.array(values, np.int64)
    if any(isinstance(x, float) and not math.isfinite(x) for x in values):
        raise ValueError(f"column {name!r} must be finite or NaN (missing), got inf")
    out = np.empty(len(values), object)
    out[:] = values
    return out


def _number(name: str, x: Any) -> int | float | Fraction:
    """A single number as Python has it.

    A ``Decimal`` that is the shortest text of a float64 is that float, which is what a rule's
    literal is, too.
    """
    x = getattr(x, "as_py", lambda: x)()
    if isinstance(x, bool | np.bool_ | np.integer):
        return int(x)
    if isinstance(x, int | Fraction) or type(x) is float:
        return x
    if isinstance(x, np.floating) and x.dtype.itemsize > 8 and np.isfinite(x):
        return Fraction(*x.as_integer_ratio())
    if isinstance(x, Decimal):
        if not x.is_finite() or x.adjusted() > 40:
            return math.inf if x > 0 else -math.inf
        if x.adjusted() >= -400 and x == x.to_integral_value():
            return int(x)
        near = float(x)
        return near if Decimal(repr(near)) == x or x.adjusted() < -400 else Fraction(x)
    is_number = not isinstance(x, str | bytes | complex | np.complexfloating)
    if is_number and hasattr(x, "__float__") and np.ndim(x) == 0:
        return float(x)
    advice = ": convert it to numbers first" if isinstance(x, str | bytes) else ""
    what = "the string " if isinstance(x, str) else "bytes " if isinstance(x, bytes) else ""
    kind = "" if what else f" of type {type(x).__name__}"
    raise ValueError(f"column {name!r} must hold numbers, got {what}{_shown(x)}{kind}{advice}")


def _shown(x: Any) -> str:
    shown = repr(x)
    return shown if len(shown) < 60 else shown[:59] + "…"


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown name: the closest known names, or all of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    lowered = {k.lower(): k for k in known}
    if name.lower() in lowered:
        close = [lowered[name.lower()]]
    if close:
        return f"did you mean {' or '.join(repr(x) for x in close)}?"
    return f"there are {list(known)[:30]}" + (" and more" if len(known) > 30 else "")
