"""A rule book: rules bound to a schema, as arrays for compiled functions."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import numpy as np

from distill_jax._arguments import checked
from distill_jax.rules.binding._computing import computed
from distill_jax.rules.binding._places import Exact, placed, unheld
from distill_jax.rules.binding._plans import Plan
from distill_jax.rules.binding._tables import (
    Cells,
    is_column,
    number_of_rows,
    numbers,
    one_row,
    read,
    text_of,
)
from distill_jax.rules.binding.schema import (
    Schema,
    encoded_array,
    exact_columns,
    is_array,
    unit_of,
    unmasked,
)
from distill_jax.rules.circuits._circuit import Circuit
from distill_jax.rules.circuits.fuzzy_logics import Logic
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._patterns import search
from distill_jax.types import OutputKind


@dataclasses.dataclass(frozen=True)
class Info:
    """The static part of a book, on the host. Books with equal info share compiled programs.

    Attributes:
      schema, rules, definitions: What was bound.
      patterns: Columns computed from text: a column's name and a regular expression, or None for
        whether the text is missing.
      computed: Columns computed by arithmetic: an expression, and what one unit of the encoded
        column is in units of the exact value.
      thresholds: What each column of the encoded table is compared with, exactly, ascending.
      logic: For label sets.
      soft: Whether some comparisons are soft.
    """

    schema: Schema
    rules: tuple[f.Rule, ...]
    definitions: tuple[f.Rule, ...]
    patterns: tuple[tuple[str, str | None], ...]
    computed: tuple[tuple[f.Value, int], ...]
    thresholds: tuple[tuple[Exact, ...], ...]
    logic: Logic
    soft: bool

    @functools.cached_property
    def _hash(self) -> int:  # cached: needed at every call of a compiled function
        return hash((self.schema, self.rules, self.definitions, self.logic))

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        # Strings have other hashes in another process.
        return {name: x for name, x in vars(self).items() if name != "_hash"}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["strengths", "hard", "learn", "circuit", "fires", "violated", "pieces", "plan"],
    meta_fields=["info"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Book:
    """Rules bound to a schema, as arrays; made by ``bind``.

    A pytree: pass it to jitted functions as an argument. ``len(book)`` is the number of rules, and
    ``str(book)`` the text of its clauses and rules.

    Attributes:
      strengths: Log-odds of each rule, float32 ``[rules]``; 0 for hard and for learned rules.
      hard: Which rules may never be violated, bool ``[rules]``.
      learn: Which rules have a trained strength, bool ``[rules]``.
      circuit: The circuit over columns and labels.
      fires: The node that holds where a rule can be violated, ``[rules]``.
      violated: For label sets, the node of a rule's violation, ``[rules]``; else empty.
      pieces: For exclusive classes, which classes violate which rule where; see ``Pieces``.
      plan: For label sets without soft comparisons, the execution plan of violations; else None.
      info: Rules, schema and options, on the host.
    """

    strengths: Any
    hard: Any
    learn: Any
    circuit: Circuit
    fires: Any
    violated: Any
    pieces: Pieces
    plan: Plan | None
    info: Info

    @property
    def schema(self) -> Schema:
        """The columns and classes that the rules refer to."""
        return self.info.schema

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that the rules refer to, in the order of the student's logits."""
        return self.schema.classes

    @property
    def outputs(self) -> OutputKind:
        """What a student's outputs must mean: classes, or labels that do not exclude each other."""
        return "softmax" if self.schema.exclusive else "multi_label"

    def describe(self) -> dict[str, Any]:
        """The rules as JSON-compatible values, for the configuration of a run."""
        return {
            "rules": str(self).splitlines(),
            "logic": self.info.logic.name,
            "strengths": np.asarray(self.strengths).tolist(),
        }

    @property
    def rules(self) -> tuple[f.Rule, ...]:
        """The rules, without the clauses that define predicates."""
        return self.info.rules

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each rule, or its text if it has none."""
        return tuple(rule.name or str(rule.formula) for rule in self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __str__(self) -> str:
        return "\n".join(str(rule) for rule in (*self.info.definitions, *self.rules))

    def __repr__(self) -> str:
        return f"<Book of {len(self)} rules over {len(self.schema.classes)} classes>"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["guard", "rule", "seen", "table"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Pieces:
    """Rules over exclusive classes, in pieces.

    Where ``guard`` holds and the predictions on the views are ``seen``, the classes in ``table``
    violate ``rule``.

    Attributes:
      guard: Nodes, ``[pieces]``.
      rule: Which rule, ``[pieces]``, ascending.
      seen: The class predicted on each view, ``[pieces, views]``; the number of classes for any.
      table: 1 for a class that violates, ``[pieces, classes]``.
    """

    guard: Any
    rule: Any
    seen: Any
    table: Any


@checked
def encode(book: Book, table: Any) -> np.ndarray:
    """Encodes a table as the array of columns that the functions of this package take.

    The columns of ``encode_columns``, then a 0/1 column for each regular expression of the rules,
    then the results of arithmetic that rules compare (such as ``a - b`` for ``a < b``): text and
    arithmetic are read here, on the host. Comparisons are exact: the table's values and the rules'
    constants are known here in full, and each value is placed in float32 on its own side of every
    constant (see ``docs/rules_language.md``). So a value may be a few units in the last place of
    float32 away from its nearest float32 number, and columns are encoded for one book: nothing in
    an array tells for which, so those of another book with as many columns give wrong results.

    Args:
      book: The rules; determines the columns.
      table: A data frame of pandas, Polars or Arrow, a dictionary of columns, or a NumPy structured
        array; one row as a dictionary of single values, such as the ``example`` of a conflict; or
        an array ``[batch, columns]`` with the values of ``schema.encoded``, numbers and codes, if
        no rule tests text and no column holds times.

    Returns:
      The columns, float32 ``[batch, columns]``; NaN where a value is missing.

    Raises:
      ValueError: if a column is missing or does not fit its kind, if arithmetic is beyond double
        precision, or for text that is not UTF-8.
      TypeError: if ``table`` is none of these.

    Warns:
      UserWarning: where a column of floats cannot hold a whole number that rules compare it with,
        such as a code of 18 digits in float64: its values were rounded before they came here.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("text", "text"),), ("ham", "spam"))
      >>> book = bind('text matches r"call.*free" => spam', schema)
      >>> print(encode(book, {"text": ["call now, it is free", "see you", None]}))
      [[ 1.]
       [ 0.]
       [nan]]
    """
    if is_array(table):
        found = _cells_of_array(book, np.asarray(unmasked(table)))
        _warn_of_rounded_columns(book, found)
        return encode_exact(book, found, {}, len(table))
    if isinstance(table, Mapping) and table and not any(map(is_column, table.values())):
        table = one_row(table)
    found = exact_columns(book.schema, table)
    _warn_of_rounded_columns(book, found)
    matched = dict.fromkeys(name for name, _ in book.info.patterns)
    texts = {name: read(table, name) for name in matched}
    lengths = {name: len(own.missing) for name, own in {**texts, **found}.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of the table must have one length, got {lengths}")
    rows = next(iter(lengths.values()), None)
    return encode_exact(book, found, texts, number_of_rows(table) if rows is None else rows)


def encode_exact(
    book: Book, columns: Mapping[str, Cells], texts: Mapping[str, Cells], rows: int
) -> np.ndarray:
    """Encodes exact values; see ``encode``.

    Args:
      book: The rules.
      columns: Numbers, codes or nanoseconds of each encoded column of the schema.
      texts: The cells of the columns that rules match.
      rows: The number of rows.
    """
    info = book.info
    out = np.empty((rows, number_of_columns(book)), np.float32)
    every: list[tuple[Cells, int]] = [
        (columns[name], unit_of(book.schema.column(name))) for name in book.schema.encoded
    ]
    every += [(_pattern_column(name, texts[name], pattern), 1) for name, pattern in info.patterns]
    every += [(computed(tree, columns, rows), unit) for tree, unit in info.computed]
    for i, ((cells, unit), thresholds) in enumerate(zip(every, info.thresholds, strict=True)):
        out[:, i] = cells.spread(placed(cells.present, thresholds, unit))
    return out


def number_of_columns(book: Book) -> int:
    """The number of columns that ``encode`` returns."""
    return len(book.info.thresholds)


def encoded_rows(book: Book, columns: Any) -> np.ndarray:
    """Columns that ``encode`` made, checked, as float32 ``[batch, columns]``.

    Raises:
      ValueError: for another shape.
      TypeError: if they hold more digits than float32, which ``encode`` would have placed.
    """
    columns = np.asarray(unmasked(columns))
    width = number_of_columns(book)
    if columns.ndim != 2 or columns.shape[1] != width:
        raise ValueError(
            f"expected a table, or columns of shape [batch, {width}] from encode(book, table), got "
            f"{columns.shape}"
        )
    check_placed(columns)
    return columns.astype(np.float32)


def check_placed(columns: Any, name: str = "columns") -> None:
    """Raises a ``TypeError`` for columns that are not float32, and cannot be."""
    columns = columns if hasattr(columns, "dtype") else np.asarray(columns)
    if columns.dtype == np.float32:
        return
    if not isinstance(columns, jax.core.Tracer) and columns.dtype == np.float64:
        columns = np.asarray(columns)
        if np.array_equal(columns.astype(np.float32), columns, equal_nan=True):
            return
    raise TypeError(
        f"{name} must be float32 as encode(book, table) gives them, got {columns.dtype}: rules "
        "compare numbers that encode has placed on the right side of each threshold, so encode the "
        "table, and do not cast its columns"
    )


def _cells_of_array(book: Book, table: np.ndarray) -> dict[str, Cells]:
    """The exact values of an array, by column."""
    schema = book.schema
    encoded_array(schema, table)
    kinds = {schema.column(name).kind for name in schema.encoded}
    if book.info.patterns or kinds & {"datetime", "duration"}:
        raise TypeError(
            "table is an array without column names, and the rules or the schema have columns of "
            "text or times: pass a table with names"
        )
    cells = {}
    for name, values in zip(schema.encoded, table.T, strict=True):
        own = read({name: values}, name)
        cells[name] = Cells(numbers(name, own.present), own.missing)
    return cells


def _warn_of_rounded_columns(book: Book, columns: Mapping[str, Cells]) -> None:
    for name, thresholds in zip(book.schema.encoded, book.info.thresholds, strict=False):
        present = columns[name].present
        if lost := unheld(present, thresholds):
            warnings.warn(
                f"column {name!r} is {present.dtype}, which cannot hold {lost[:3]}, with which "
                "rules compare it: its values were rounded before, so load it as integers "
                "(nullable ones if some are missing) or wider floats",
                stacklevel=3,
            )


def _pattern_column(name: str, cells: Cells, pattern: str | None) -> Cells:
    if pattern is None:
        return Cells(cells.missing.astype(np.int64), np.zeros_like(cells.missing))
    found = [search(pattern, text_of(name, x)) for x in cells.present]
    return Cells(np.array(found, np.int64), cells.missing)
