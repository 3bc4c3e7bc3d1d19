"""The features of models made from rules: plain columns, and the atoms of rules as 0 and 1.

A model takes the encoded columns and computes these features itself, so that prediction needs
nothing but the table. A feature that depends on a missing value is 0.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distill_jax.rules.binding.binding import RuleWarning, bind_like
from distill_jax.rules.binding.book import Book
from distill_jax.rules.binding.schema import OF_TIME, Schema
from distill_jax.rules.language import formulas as f
from distill_jax.rules.logic.evaluation import fires

Clauses = Mapping[str, Sequence[f.Rule]]
"""The clauses that define a predicate, by its name."""


def clauses_of(rules: Sequence[f.Rule]) -> dict[str, list[f.Rule]]:
    """The clauses among the rules, by the name of their head."""
    found: dict[str, list[f.Rule]] = {}
    for rule in rules:
        if isinstance(rule.formula, f.Implies) and isinstance(rule.formula.head, f.Name):
            found.setdefault(rule.formula.head.name, []).append(rule)
    return found


class Raw:
    """Columns as features: numbers standardised, booleans as 0 and 1, categories one-hot.

    Attributes:
      names: The names of the features, such as ``"age"`` or ``"sex == 'F'"``.
    """

    def __init__(self, schema: Schema):
        names, place, code, mean, std = [], [], [], [], []
        for i, column in enumerate(schema.column(name) for name in schema.encoded):
            for k, value in enumerate(column.categories or (None,)):
                one_hot = value is not None
                equal = f.Compare((f.Name(column.name), f.String(str(value))), ("==",))
                names.append(str(equal if one_hot else f.Name(column.name)))
                place.append(i)
                code.append(float(k) if one_hot else np.nan)
                is_scaled = column.kind in ("numeric", *OF_TIME)
                mean.append(column.mean if is_scaled else 0.0)
                std.append(column.std if is_scaled else 1.0)
        self.names = tuple(names)
        self._place = np.asarray(place, np.int32)
        self._code, self._mean, self._std = (
            np.asarray(x, np.float32)[None, :] for x in (code, mean, std)
        )

    def __call__(self, columns: Float[Array, "batch columns"]) -> Float[Array, "batch features"]:
        values = columns[:, self._place]
        standard = (values - self._mean) / self._std
        equal = (values == self._code).astype(values.dtype)
        features = jnp.where(np.isnan(self._code), standard, equal)
        return jnp.where(jnp.isnan(values), 0.0, features)


@dataclasses.dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms of rules as 0/1 features; 0 where a missing value leaves an atom unknown.

    Each atom that also occurs negated has a second feature, 1 where the atom is unknown, since the
    negation of an unknown atom does not hold either.

    Attributes:
      formulas: The atoms, each once.
      negated: The indices of those that also occur negated.
      book: One rule per atom, which fires where the atom holds; None if there is no atom.
    """

    formulas: tuple[f.Formula, ...]
    negated: tuple[int, ...]
    book: Book | None

    @functools.cached_property
    def place(self) -> dict[f.Formula, int]:
        """The index of each atom."""
        return {formula: i for i, formula in enumerate(self.formulas)}

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the features: the atoms as text, then ``"unknown: "`` and a negated atom."""
        texts = [str(formula) for formula in self.formulas]
        return (*texts, *(f"unknown: {texts[i]}" for i in self.negated))

    def __call__(self, columns: Float[Array, "batch columns"]) -> Float[Array, "batch features"]:
        if self.book is None:
            return jnp.zeros((columns.shape[0], 0), columns.dtype)
        held = fires(self.book, columns)
        features = held
        if self.negated:
            maybe = fires(self.book, columns, unknown=True) & ~held
            features = jnp.concatenate([held, maybe[:, np.asarray(self.negated)]], axis=1)
        return features.astype(columns.dtype)


def atoms(book: Book, found: Sequence[tuple[f.Formula, bool]]) -> Atoms:
    """Features over the columns of ``book``.

    Args:
      book: Its schema and tests of text determine the columns.
      found: Atoms, each with whether it occurs without negation.
    """
    place = {formula: i for i, formula in enumerate(dict.fromkeys(x for x, _ in found))}
    formulas = tuple(place)
    negated = dict.fromkeys(place[formula] for formula, positive in found if not positive)
    if not formulas:
        return Atoms((), (), None)
    head = f.Name(book.schema.classes[0])
    rules = [f.Rule(f.Implies(formula, head)) for formula in formulas]
    # A score, unlike a connective, is one atom whatever it is made of: also of predicates.
    if any(isinstance(tree, f.Score) for formula in formulas for tree in f.trees(formula)):
        rules += book.info.definitions
    with warnings.catch_warnings():  # binding the rules themselves already gave these warnings
        warnings.simplefilter("ignore", RuleWarning)
        own = bind_like(book, rules)
    return Atoms(formulas, tuple(negated), own)


def atoms_in(
    x: Any, classes: Sequence[str], target: str | None, clauses: Clauses
) -> Iterator[tuple[f.Formula, bool]]:
    """The atoms over columns in a formula, each with whether it occurs without negation.

    Names that clauses define are expanded, once per sign; atoms over labels are left out.
    """
    entered: set[tuple[str, bool]] = set()

    def walk(x: Any, positive: bool) -> Iterator[tuple[f.Formula, bool]]:
        if isinstance(x, f.Not):
            yield from walk(x.part, not positive)
        elif isinstance(x, f.Connective):
            for part in f.operands(x):
                yield from walk(part, positive)
        elif isinstance(x, f.Name) and x.name in clauses and x.name not in classes:
            if (x.name, positive) in entered:
                return
            entered.add((x.name, positive))
            for clause in clauses[x.name]:
                assert isinstance(clause.formula, f.Implies)
                yield from walk(clause.formula.body, positive)
        elif isinstance(x, f.Else):
            return  # no condition of its own
        elif not any(is_label(tree, classes, target) for tree in f.trees(x)):
            yield x, positive

    return walk(x, True)


def is_label(x: Any, classes: Sequence[str], target: str | None) -> bool:
    """Whether a formula is a class, a label, the class variable, or a prediction on a view."""
    return isinstance(x, f.Of) or (isinstance(x, f.Name) and x.name in (*classes, target))
