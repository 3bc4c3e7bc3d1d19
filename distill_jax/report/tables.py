"""Rows of results as tables in the terminal."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from distill_jax._arguments import checked
from distill_jax._text import printable


@checked
def table(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str | None = None,
    columns: Sequence[str] | Mapping[str, str] | None = None,
) -> Table:
    """A table of rows, ready for ``rich.print``.

    Args:
      rows: One dictionary per row; names may be missing. Numbers are shown with four significant
        digits, ``{"mean", "std"}`` as mean ± std, and ``{"mean", "low", "high"}`` as
        mean [low, high], to two significant digits of the spread.
      title: Shown above the table.
      columns: Names in the order to show, or a mapping from names to headings. By default all
        names in the order in which they first occur, except those of lists and other nested values.

    Returns:
      A :class:`rich.table.Table`. Control characters in names and values are escaped.

    Raises:
      ValueError: if one of the ``columns`` is in no row.

    Example:
      >>> rows = [{"model": "student", "accuracy": {"mean": 0.98765, "std": 0.0021}}]
      >>> str(list(table(rows).columns[1].cells)[0])
      '0.9877 ± 0.0021'
    """
    return _table(rows, title, columns, "utf-8")


def _table(
    rows: Sequence[Mapping[str, Any]],
    title: str | None,
    columns: Sequence[str] | Mapping[str, str] | None,
    encoding: str,
) -> Table:
    headings = _headings(rows, columns)

    # Text, since rich reads square brackets in a string as markup.
    def text(x: str) -> Text:
        return Text(printable(x, encoding))

    made = Table(title=None if title is None else text(title))
    for name, heading in headings.items():
        values = [row[name] for row in rows if row.get(name) is not None]
        right = all(_is_number(x) or _is_spread(x) for x in values)
        justify = "right" if right else "left"
        made.add_column(text(heading), justify=justify, overflow="fold")
    for row in rows:
        made.add_row(*(text(_text(row.get(name))) for name in headings))
    return made


@checked
def show(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str | None = None,
    columns: Sequence[str] | Mapping[str, str] | None = None,
    console: Console | None = None,
) -> None:
    """Prints rows as a table; see :func:`table`.

    Args:
      rows: One dictionary per row.
      title: Shown above the table.
      columns: As for :func:`table`.
      console: Where to print; standard output by default. If that is not a terminal, the table gets
        its full width; if its encoding lacks a character, that is escaped.

    Example:
      >>> show([{"model": "student", "errors": 74}, {"model": "teacher", "errors": 67}])
      ┏━━━━━━━━━┳━━━━━━━━┓
      ┃ model   ┃ errors ┃
      ┡━━━━━━━━━╇━━━━━━━━┩
      │ student │     74 │
      │ teacher │     67 │
      └─────────┴────────┘
    """
    out = Console() if console is None else console
    made = _table(rows, title, columns, out.encoding)
    if console is None and not out.is_terminal:
        options = out.options.update(max_width=10_000)
        out.width = max(out.width, Measurement.get(out, options, made).maximum)
    out.print(made)


def _headings(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str] | None
) -> dict[str, str]:
    names = {name: None for row in rows for name in row}
    if columns is None:
        nested = {n for row in rows for n, x in row.items() if _is_nested(x) and not _is_spread(x)}
        return {name: name for name in names if name not in nested}
    missing = [name for name in columns if name not in names]
    if missing and rows:
        raise ValueError(
            f"columns must be names in the rows, got {missing}, rows have {list(names)}"
        )
    return dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Number) or (hasattr(x, "dtype") and np.ndim(x) == 0)


def _is_nested(x: Any) -> bool:
    return isinstance(x, Mapping | list | tuple) or np.ndim(x) > 0


def _is_spread(x: Any) -> bool:
    return isinstance(x, Mapping) and "mean" in x and ("std" in x or {"low", "high"} <= set(x))


def _text(x: Any) -> str:
    if x is None:
        return "–"
    if _is_spread(x):
        return _spread_text(x)
    if isinstance(x, bool | np.bool_):
        return "yes" if x else "no"
    if not _is_number(x):
        return str(x)
    value = x.item() if hasattr(x, "item") else x
    return f"{value:,}" if isinstance(value, int) else _number_text(float(value))


def _number_text(x: float) -> str:
    if not math.isfinite(x):
        return str(x)
    size = abs(x)
    if size == 0:
        return "0"
    if not 1e-3 <= size < 1e9:
        return f"{x:.3e}"
    return f"{x:,.{max(0, 3 - math.floor(math.log10(size)))}f}"


def _spread_text(x: Mapping[str, Any]) -> str:
    if "low" in x and "high" in x:
        places = _decimals((x["high"] - x["low"]) / 2)
        low, high = (f"{x[name]:,.{places}f}" for name in ("low", "high"))
        return f"{x['mean']:,.{places}f} [{low}, {high}]"
    if x["std"] is None:
        return _text(x["mean"])
    places = _decimals(x["std"])
    return f"{x['mean']:,.{places}f} ± {x['std']:,.{places}f}"


def _decimals(spread: float) -> int:
    """The number of decimals that shows two significant digits of the spread."""
    if not math.isfinite(spread) or spread <= 0:
        return 4
    return max(0, 1 - math.floor(math.log10(spread)))
