"""Formulas: what a rule says, before anyone knows which columns and classes there are.

A formula is a tree of frozen dataclasses that compare by content and can be keys. The text of a
rule is parsed into one (``syntax``), one prints back to text (``printing``), and one is built in
Python with operators (``building``).
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
ARITHMETIC = ("+", "-", "*", "/")
COUNTS = ("exactly_one", "at_most", "at_least", "all_of", "any_of")
AVERAGES = ("mean",)
TRENDS = ("increasing", "decreasing")
MAX_DEPTH = 100  # of trees that have a text: code that walks a tree may recurse


class Tree:
    """A value (a column, a number, a sum) or a formula."""

    def __str__(self) -> str:
        from distill_jax.rules.language.printing import (
            to_text,  # it prints trees, and so knows them all
        )

        return to_text(self)


class Value(Tree):
    """Something with a number or a string for each example."""


class Formula(Tree):
    """Something that holds or not for each example."""


@dataclass_transform(frozen_default=True)
def _node(cls: type[T]) -> type[T]:
    """A frozen dataclass that compares by content and keeps the ``__str__`` above."""
    return dataclasses.dataclass(frozen=True)(cls)


@_node
class Number(Value):
    """A finite number."""

    value: float

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise TypeError(f"value must be a number, got {self.value!r}")
        if not math.isfinite(self.value):
            raise ValueError(f"value must be finite, got {self.value}")
        object.__setattr__(self, "value", float(self.value))


@_node
class String(Value):
    """A string, for comparison with a category or a class."""

    value: str


@_node
class Name(Value, Formula):
    """A column, a class, a label, the class variable, or a predicate that clauses define.

    By itself it is a formula: a boolean column that is true, a class that is the one.
    """

    name: str


@_node
class Of(Value, Formula):
    """``view(v).name``: the student's prediction on another view of the example.

    ``name`` is a class, a label, or the class variable. ``view`` is None for ``p.name``, the
    probability of a class, which stands in budgets and trends alone.
    """

    view: str | None
    name: str


@_node
class Negative(Value):
    """``-value``."""

    value: Value


@_node
class Arithmetic(Value):
    """``left operator right`` with one of ``+ - * /``."""

    operator: str
    left: Value
    right: Value


@_node
class Call(Value):
    """``mean(value, where=formula)``: a budget's average over examples."""

    function: str
    value: Value
    where: Formula | None = None


@_node
class Compare(Formula):
    """A chain: ``0 < x <= 3`` has the operands ``0, x, 3`` and the operators ``<, <=``."""

    operands: tuple[Value, ...]
    operators: tuple[str, ...]


@_node
class In(Formula):
    """``value in [choices]``; ``value not in [choices]`` if ``negated``."""

    value: Value
    choices: tuple[Value, ...]
    negated: bool = False


@_node
class Between(Formula):
    """``value between low and high``, both ends included."""

    value: Value
    low: Value
    high: Value


@_node
class Missing(Formula):
    """``value is missing``; ``value is not missing`` if ``negated``."""

    value: Value
    negated: bool = False


@_node
class Matches(Formula):
    """``value matches r"pattern"``: the regular expression is found somewhere in a text column."""

    value: Value
    pattern: str


@_node
class Not(Formula):
    """``not part``."""

    part: Formula


@_node
class And(Formula):
    """All of two parts or more."""

    parts: tuple[Formula, ...]


@_node
class Or(Formula):
    """One or more of two parts or more."""

    parts: tuple[Formula, ...]


@_node
class Implies(Formula):
    """``body => head``: violated where the body holds and the head does not."""

    body: Formula
    head: Formula


@_node
class Iff(Formula):
    """``left <=> right``: both hold or neither."""

    left: Formula
    right: Formula


@_node
class Count(Formula):
    """``exactly_one(a, b)``, ``at_most(2, a, b, c)``, ``at_least(2, …)``, ``all_of``, ``any_of``.

    ``number`` is None for the kinds that take none.
    """

    kind: str
    number: int | None
    parts: tuple[Formula, ...]


@_node
class Trend(Formula):
    """``increasing(p.disease, by=ap_hi)`` or ``decreasing(…)``: not built yet."""

    kind: str
    value: Value
    by: Value


def pattern_problem(pattern: str) -> str | None:
    """What keeps a text from being a regular expression; None if it is one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on sets that a later Python may read otherwise
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None


def depth(tree: Tree) -> int:
    """How many trees are nested in one another; 1 for a name. A tree of any depth will do."""
    deepest, level = 0, [tree]
    while level:
        deepest += 1
        fields = [x for part in level for x in vars(part).values()]
        inner = [y for x in fields for y in (x if isinstance(x, tuple) else (x,))]
        level = list({id(x): x for x in inner if isinstance(x, Tree)}.values())
    return deepest


@_node
class Strength:
    """How firmly a rule is held: what stands in brackets before it.

    Attributes:
      kind: ``"w"`` (log-odds are given), ``"p"`` (a probability is), ``"hard"``, ``"learn"``,
        ``"budget"``, or ``""`` where nothing is written, which means ``[w=1]``.
      number: What is given with ``"w"`` and ``"p"``, as written; None otherwise.
    """

    kind: str = ""
    number: float | None = None

    def __post_init__(self) -> None:
        if self.kind == "w" and not math.isfinite(self.number or 0.0):
            raise ValueError(
                f"w must be finite, got {self.number}: a rule that always holds is [hard]"
            )
        if self.kind == "p" and not 0.0 < (self.number or 0.0) < 1.0:
            raise ValueError(
                f"p must lie between 0 and 1, both excluded, got {self.number}: a rule that "
                "always holds is [hard]"
            )

    @property
    def log_odds(self) -> float:
        """What is added to the log-odds of all that satisfies the rule; inf if it is hard."""
        if self.kind == "p" and self.number is not None:
            return math.log(self.number) - math.log1p(-self.number)
        if self.kind == "w" and self.number is not None:
            return float(self.number)
        return {"": 1.0, "hard": math.inf}.get(self.kind, 0.0)


HARD = Strength("hard")
LEARN = Strength("learn")
BUDGET = Strength("budget")


@_node
class Rule:
    """A formula with a name and a strength.

    Attributes:
      formula: What should hold.
      name: Its own name, or None.
      strength: How firmly it is held.
      line: Where it was written, from 1; 0 for none.
      source: Its text as it was written, for messages. Rules that differ in line and source alone
        are equal.
      definition: Whether it is a Horn clause, ``head :- body.``: its formula is then
        ``Implies(body, head)``, and a head that is no class *defines* a predicate: it holds where
        one of its clauses' bodies does.
    """

    formula: Formula
    name: str | None = None
    strength: Strength = Strength()
    definition: bool = False
    line: int = dataclasses.field(default=0, compare=False)
    source: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        from distill_jax.rules.language.printing import to_text

        return to_text(self)


def trees(x: Any) -> Iterator[Tree]:
    """A tree and all trees in it."""
    if isinstance(x, Tree):
        yield x
        for value in vars(x).values():
            for part in value if isinstance(value, tuple) else (value,):
                yield from trees(part)
