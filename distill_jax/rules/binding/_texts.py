"""What rules ask of text, answered on the host: tests such as ``contains``, and sizes.

A *test* is an atom over one column of text: ``x matches r"…"``, ``contains(lower(x), 'a')``,
``x == 'a'``, or ``x is missing``. Tests and sizes are computed once per distinct text of a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from distill_jax.rules.binding._tables import Cells, text_of
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._patterns import search

Test = f.Matches | f.Contains | f.Compare | f.Missing
"""An atom over one text column; a ``Compare`` has two operands, the second a string."""


class Texts(NamedTuple):
    """A column of text.

    Attributes:
      distinct: Its texts, each once.
      which: The place in ``distinct`` of each value that is not missing.
      missing: Where a value is missing, ``[batch]``.
    """

    distinct: list[str]
    which: np.ndarray
    missing: np.ndarray

    def mapped(self, function: Callable[[str], int | bool]) -> Cells:
        """The integer of each value that is not missing."""
        values = np.array([function(x) for x in self.distinct], np.int64)
        return Cells(values[self.which], self.missing)


def texts(name: str, column: Cells) -> Texts:
    """The texts of a column.

    Args:
      name: Its name, for messages.
      column: Its cells, as a table has them.

    Raises:
      ValueError: for bytes that are not UTF-8.
    """
    places: dict[str, int] = {}
    every = [x if type(x) is str else text_of(name, x) for x in column.present]
    which = [places.setdefault(x, len(places)) for x in every]
    return Texts(list(places), np.array(which, np.int64), column.missing)


def tested(test: Test, column: Texts) -> Cells:
    """A test of a column as 0 and 1; missing where the text is, but for ``is missing``."""
    if isinstance(test, f.Missing):
        return Cells(column.missing.astype(np.int64), np.zeros_like(column.missing))
    return column.mapped(lambda text: bool(holds(test, text)))


def holds(test: Test, text: str | None) -> bool | None:
    """Whether a test holds for a text; None if it is unknown, for a missing text."""
    if isinstance(test, f.Missing):
        return text is None
    if text is None:
        return None
    if isinstance(test, f.Compare):
        return _value(test.operands[0], text) == literal_of(test)
    found = _value(test.value, text)
    if isinstance(test, f.Matches):
        return search(test.pattern, found)
    if test.where == "contains":
        return test.part in found
    return found.startswith(test.part) if test.where == "starts_with" else found.endswith(test.part)


def size(x: f.Size, text: str) -> int:
    """The length of a text in characters, or in words."""
    found = _value(x.value, text)
    return len(found) if x.unit == "length" else len(found.split())


def column_of(x: Any) -> str:
    """The column of a test, or of a value that is a text or the size of one."""
    if isinstance(x, f.Compare):
        x = x.operands[0]
    while not isinstance(x, f.Name):
        x = x.value
    return x.name


def literal_of(test: Test) -> str | None:
    """The text that a test looks for; None if it does not look for one."""
    if isinstance(test, f.Contains):
        return test.part
    if isinstance(test, f.Compare) and isinstance(test.operands[1], f.String):
        return test.operands[1].value
    return None


def case_of(x: f.Value) -> Callable[[str], str] | None:
    """What ``lower`` or ``upper`` around a column does to its texts; None for the column itself."""
    if not isinstance(x, f.Recased):
        return None
    return str.lower if x.case == "lower" else str.upper


def sizes_in(x: f.Value) -> Iterator[f.Size]:
    """The sizes of texts that arithmetic takes."""
    yield from (part for part in f.trees(x) if isinstance(part, f.Size))


def _value(x: Any, text: str) -> str:
    """The text that a value has for a text of its column."""
    case = case_of(x)
    return text if case is None else case(_value(x.value, text))
