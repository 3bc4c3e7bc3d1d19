"""Decision tables as rows of cells, whatever library or file they come from."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_jax import _text
from distill_jax.rules.binding._tables import column_names, columns_of, nearest
from distill_jax.rules.exchange._decision_cells import says_nothing
from distill_jax.rules.language.errors import RuleError


class TableRow(NamedTuple):
    """A row: where it is, the number of its row or line, and its cells by column."""

    where: str
    number: int
    cells: dict[str, Any]


class Table(NamedTuple):
    columns: list[str]
    rows: list[TableRow]


def is_empty(row: TableRow) -> bool:
    return all(says_nothing(x) and not (isinstance(x, str) and x) for x in row.cells.values())


# Tables


def read_rows(table: Any) -> Table:
    """The rows of a table of any library, or of CSV.

    Raises:
      ValueError: for names of columns that are empty or there twice.
    """
    if isinstance(table, str) and ("\n" in table or "\r" in table):
        return _read_csv(table, "")
    if isinstance(table, str | pathlib.Path):
        path = pathlib.Path(table)
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RuleError(f"{path}: not in UTF-8: {error}") from None
        return _read_csv(text, f"{path}, ")
    if isinstance(table, Sequence):
        rows = list(table)
        if not all(isinstance(row, Mapping) for row in rows):
            raise TypeError("table must be a data frame, CSV, or a list of dictionaries")
        names = list(dict.fromkeys(name for row in rows for name in row))
        _check_names(names, "")
        found = [{name: row.get(name) for name in names} for row in rows]
    else:
        names = column_names(table)
        _check_names(names, "")
        lists = {name: _listed(name, x) for name, x in columns_of(table, names).items()}
        lengths = {name: len(x) for name, x in lists.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of the table must have one length, got {lengths}")
        count = next(iter(lengths.values()), 0)
        found = [{name: x[i] for name, x in lists.items()} for i in range(count)]
    return Table(names, [TableRow(f"row {i}", i, row) for i, row in enumerate(found, 1)])


def _listed(column_name: str, column: Any) -> list[Any]:
    """The cells of a column as Python's values, or NumPy's: times keep their kind."""
    if isinstance(column, np.ndarray) and column.ndim:  # its tolist makes nanoseconds integers
        return list(column)
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, name):
            return list(getattr(column, name)())
    if not isinstance(column, Iterable) or isinstance(column, str):
        raise TypeError(f"column {column_name!r} must hold a cell a row, got {column!r}")
    return list(column)


def _check_names(names: Sequence[Any], where: str) -> None:
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise RuleError(f"{where}each column needs a name, got {names}")
    if len(set(names)) < len(names):
        raise RuleError(f"{where}each column needs a name of its own, got {names}")


def _read_csv(text: str, path: str) -> Table:
    """The rows of a text, between whose cells are commas, semicolons or tabs.

    Quotes around a whole cell are those of CSV, and doubled in it. In a cell that has them
    elsewhere, as in ``"New York", Boston`` between semicolons, they are the cell's own.
    """
    header = next((line for line in text.splitlines() if line.strip()), "")
    outside = re.sub(r'"[^"]*"', "", header)
    delimiter = max(",;\t", key=outside.count)
    names: list[str] | None = None
    rows = []
    for number, cells in _csv_lines(text, delimiter):
        where = f"{path}line {number}"
        if not any(cells):
            continue
        if names is None:
            names = cells
            _check_names(names, f"{where}: ")
        elif len(cells) != len(names):
            raise RuleError(
                f"{where}: {len(cells)} cells under {len(names)} columns: quote a cell that "
                f'contains {delimiter!r}, and double the quotes in it, as in """a"",""b"""'
            )
        else:
            row = dict(zip(names, map(_text.from_cell, cells), strict=True))
            rows.append(TableRow(where, number, row))
    return Table(names or [], rows)


def _csv_lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line, without the white space around them, and the line's number."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    end = re.escape(delimiter)
    whole = re.compile(rf'[ ]*"((?:[^"]|"")*+)"[ ]*(?={end}|\n|\Z)')
    loose = re.compile(rf'(?:"(?:[^"\\\n]|\\[^\n])*+"|[^{end}\n])*+')
    i, number, cells = 0, 1, []
    while i < len(text):
        match = whole.match(text, i)
        if match is not None:
            cells.append(match[1].replace('""', '"').strip())
        else:
            match = loose.match(text, i)
            assert match is not None  # it matches the empty text, too
            cells.append(match[0].strip())
        last, i = number + match[0].count("\n"), match.end()
        if i == len(text) or text[i] == "\n":
            yield last, cells
            cells, last = [], last + 1
        elif i + 1 == len(text):  # a delimiter at the end of the text
            yield last, [*cells, ""]
        number, i = last, i + 1


class Layout(NamedTuple):
    """What each column of a table is for.

    Attributes:
      conditions, conclusions: Names of columns.
      priority: A column of numbers, or None.
      strengths: A number, True or a column, for each kind of strength that is given.
      names: The column with the names of the rules, or None.
      columns: Which kinds of strength are columns.
    """

    conditions: list[str]
    conclusions: list[str]
    priority: str | None
    strengths: dict[str, Any]
    names: str | None
    columns: frozenset[str]


def sorted_columns(
    table: Table,
    conclusions: str | Sequence[str] | None,
    priority: str | Sequence[str] | None,
    strengths: dict[str, Any],
    names: str | None,
    ignore: Sequence[str],
) -> Layout:
    """Sorts the columns of a table by what they are for.

    Raises:
      ValueError: for a column that is not there, or has two purposes, and for two strengths.
    """
    strengths = {kind: x for kind, x in strengths.items() if x is not None and x is not False}
    used: dict[str, str] = {}

    def take(argument: str, name: str) -> None:
        if name not in table.columns:
            raise ValueError(
                f"{argument} names {name!r}, which is no column of the table; "
                f"{nearest(name, table.columns)}"
            )
        if name in used:
            raise ValueError(f"the column {name!r} is both {used[name]} and {argument}")
        used[name] = argument

    for name in ignore:
        take("ignore", name)
    if names is not None:
        take("names", names)
    if isinstance(priority, str):
        take("priority", priority)
    columns = frozenset(kind for kind, x in strengths.items() if isinstance(x, str))
    for kind in sorted(columns):
        take(kind, strengths[kind])
    if len(strengths) > 1 and len(columns) < len(strengths):
        raise ValueError(f"rules have one strength, got {', '.join(strengths)}")
    if conclusions is None:
        rest = [name for name in table.columns if name not in used]
        conclusions = rest[-1:]
    chosen = [conclusions] if isinstance(conclusions, str) else list(conclusions)
    if not chosen:
        raise ValueError("the table needs a column of conclusions")
    for name in chosen:
        take("conclusions", name)
    conditions = [name for name in table.columns if name not in used]
    if not conditions:
        raise ValueError("the table needs a column of conditions besides its conclusions")
    ranked = priority if isinstance(priority, str) else None
    return Layout(conditions, chosen, ranked, strengths, names, columns)
