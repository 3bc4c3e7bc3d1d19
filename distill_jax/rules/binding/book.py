"""A rule book: rules bound to a schema, as arrays for compiled functions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from distill_jax.rules.binding._plans import Plan
from distill_jax.rules.binding.schema import Schema, encode_columns, missing, read
from distill_jax.rules.circuits._circuit import Circuit
from distill_jax.rules.circuits.fuzzy_logics import Logic
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._patterns import search


@dataclasses.dataclass(frozen=True)
class Info:
    """The static part of a book, on the host. Books with equal info share compiled programs."""

    schema: Schema
    rules: tuple[f.Rule, ...]
    definitions: tuple[f.Rule, ...]
    patterns: tuple[tuple[str, str | None], ...]
    logic: Logic
    soft: bool

    @functools.cached_property
    def _hash(self) -> int:  # cached: needed at every call of a compiled function
        return hash((self.schema, self.rules, self.definitions, self.logic))

    def __hash__(self) -> int:
        return self._hash


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


def encode(book: Book, table: Any) -> np.ndarray:
    """Encodes a table as the array of columns that the functions of this package take.

    The columns of ``encode_columns``, then a 0/1 column for each regular expression of the rules,
    which is matched here, on the host. Values are compared in float32, as thresholds are.

    Args:
      book: The rules; determines the columns and patterns.
      table: A pandas data frame, a dictionary of columns, or a NumPy structured array; one row as a
        dictionary of single values, such as the ``example`` of a conflict; or an array ``[batch,
        columns]`` that is already encoded, if no rule tests text.

    Returns:
      The columns, float32 ``[batch, columns]``; NaN where a value is missing.

    Raises:
      ValueError: if a column is missing or does not fit its kind.
      TypeError: if ``table`` is none of these.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("text", "text"),), ("ham", "spam"))
      >>> book = bind('text matches r"call.*free" => spam', schema)
      >>> print(encode(book, {"text": ["call now, it is free", "see you", None]}))
      [[ 1.]
       [ 0.]
       [nan]]
    """
    if isinstance(table, Mapping) and table and all(np.ndim(x) == 0 for x in table.values()):
        table = {name: [x] for name, x in table.items()}
    columns = encode_columns(book.schema, table)
    if not book.info.patterns:
        return columns
    matched = [_pattern_column(read(table, name), pattern) for name, pattern in book.info.patterns]
    return np.concatenate([columns, np.stack(matched, 1)], 1, dtype=np.float32)


def number_of_columns(book: Book) -> int:
    """The number of columns that ``encode`` returns."""
    return len(book.schema.encoded) + len(book.info.patterns)


def _pattern_column(values: np.ndarray, pattern: str | None) -> np.ndarray:
    unknown = missing(values)
    if pattern is None:
        return unknown.astype(np.float32)
    found = np.full(len(values), np.nan, np.float32)
    found[~unknown] = [search(pattern, str(x)) for x in values[~unknown]]
    return found
