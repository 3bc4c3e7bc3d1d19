"""Formulas: what a rule says, before anyone knows which columns and classes there are.

A formula is a tree of frozen dataclasses that compare by content and can be keys. ``parsing`` reads
one from text, ``building`` makes one in Python with operators, and each node knows its own text:
``str(tree)`` is what ``parsing`` would read as the same tree, with parentheses only where the text
would be read as another tree without them.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, dataclass_transform

from distill_jax.rules.language._spelling import is_word, number, pattern, quoted, string
from distill_jax.rules.language.errors import RuleError

T = TypeVar("T")

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
ARITHMETIC = ("+", "-", "*", "/")
COUNTS = ("exactly_one", "at_most", "at_least", "all_of", "any_of")
AVERAGES = ("mean",)
TRENDS = ("increasing", "decreasing")
MAX_DEPTH = 100  # of trees that have a text: code that walks a tree may recurse

# How tightly each kind of tree binds its parts. _expressions.py has the same order for signs.
_IFF, _IMPLIES, _OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _MINUS, _ATOM = range(1, 11)


class Tree:
    """A value (a column, a number, a sum) or a formula."""

    def __str__(self) -> str:
        _check_depth(self)
        return _text(self, False)

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        """The tree's text, and how tightly it binds.

        Args:
          clause: Whether it stands in a Horn clause, where names may hold hyphens.

        Raises:
          ValueError: if no text would be read as this tree.
        """
        raise ValueError(f"no text says {self!r}")


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

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return number(self.value), _MINUS


@_node
class String(Value):
    """A string, for comparison with a category or a class."""

    value: str

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return string(self.value), _ATOM


@_node
class Name(Value, Formula):
    """A column, a class, a label, the class variable, or a predicate that clauses define.

    By itself it is a formula: a boolean column that is true, a class that is the one.
    """

    name: str

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return quoted(self.name, hyphens=clause), _ATOM


@_node
class Of(Value, Formula):
    """``view(v).name``: the student's prediction on another view of the example.

    ``name`` is a class, a label, or the class variable. ``view`` is None for ``p.name``, the
    probability of a class, which stands in budgets and trends alone.
    """

    view: str | None
    name: str

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        owner = "p" if self.view is None else f"view({quoted(self.view, hyphens=clause)})"
        return f"{owner}.{quoted(self.name, hyphens=clause)}", _ATOM


@_node
class Negative(Value):
    """``-value``."""

    value: Value

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        # -3 is the number itself, so its negative stands in parentheses.
        inner = _ATOM if isinstance(self.value, Number) else _MINUS
        return f"-{_text(self.value, clause, inner)}", _MINUS


@_node
class Arithmetic(Value):
    """``left operator right`` with one of ``+ - * /``."""

    operator: str
    left: Value
    right: Value

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if self.operator not in ARITHMETIC:
            return super().text_and_precedence(clause)
        own = _SUM if self.operator in "+-" else _PRODUCT
        left, right = _text(self.left, clause, own), _text(self.right, clause, own + 1)
        return f"{left} {self.operator} {right}", own


@_node
class Call(Value):
    """``mean(value, where=formula)``: a budget's average over examples."""

    function: str
    value: Value
    where: Formula | None = None

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if self.function not in AVERAGES:
            return super().text_and_precedence(clause)
        option = "" if self.where is None else f", where={_text(self.where, clause)}"
        return f"{self.function}({_text(self.value, clause, _SUM)}{option})", _ATOM


@_node
class Compare(Formula):
    """A chain: ``0 < x <= 3`` has the operands ``0, x, 3`` and the operators ``<, <=``."""

    operands: tuple[Value, ...]
    operators: tuple[str, ...]

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if not len(self.operands) == len(self.operators) + 1 >= 2:
            return super().text_and_precedence(clause)
        if not set(self.operators) <= set(COMPARISONS):
            raise ValueError(f"a comparison is one of {COMPARISONS}, got {self.operators}")
        if clause and self.operators[0] == "==":  # the form of Horn clauses: p-37=c
            match self.operands:
                case (Name(name), String(word)) if is_word(name, hyphens=True) and is_word(
                    word, hyphens=True
                ):
                    return f"{name}={word}", _COMPARISON
        text = _text(self.operands[0], clause, _SUM)
        for sign, operand in zip(self.operators, self.operands[1:], strict=True):
            text += f" {sign} {_text(operand, clause, _SUM)}"
        return text, _COMPARISON


@_node
class In(Formula):
    """``value in [choices]``; ``value not in [choices]`` if ``negated``."""

    value: Value
    choices: tuple[Value, ...]
    negated: bool = False

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if not self.choices:
            return super().text_and_precedence(clause)
        sign = "not in" if self.negated else "in"
        choices = _joined(", ", self.choices, clause, _SUM)
        return f"{_text(self.value, clause, _SUM)} {sign} [{choices}]", _COMPARISON


@_node
class Between(Formula):
    """``value between low and high``, both ends included."""

    value: Value
    low: Value
    high: Value

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        ends = _joined(" and ", (self.low, self.high), clause, _SUM)
        return f"{_text(self.value, clause, _SUM)} between {ends}", _COMPARISON


@_node
class Missing(Formula):
    """``value is missing``; ``value is not missing`` if ``negated``."""

    value: Value
    negated: bool = False

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        sign = "is not missing" if self.negated else "is missing"
        return f"{_text(self.value, clause, _SUM)} {sign}", _COMPARISON


@_node
class Matches(Formula):
    """``value matches r"pattern"``: the regular expression is found somewhere in a text column."""

    value: Value
    pattern: str

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return f"{_text(self.value, clause, _SUM)} matches {pattern(self.pattern)}", _COMPARISON


@_node
class Not(Formula):
    """``not part``."""

    part: Formula

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return f"not {_text(self.part, clause, _NOT)}", _NOT


@_node
class And(Formula):
    """All of two parts or more."""

    parts: tuple[Formula, ...]

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return _joined(" and ", _two_or_more(self), clause, _AND + 1), _AND


@_node
class Or(Formula):
    """One or more of two parts or more."""

    parts: tuple[Formula, ...]

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return _joined(" or ", _two_or_more(self), clause, _OR + 1), _OR


@_node
class Implies(Formula):
    """``body => head``: violated where the body holds and the head does not."""

    body: Formula
    head: Formula

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        body, head = _text(self.body, clause, _IMPLIES + 1), _text(self.head, clause, _IMPLIES)
        return f"{body} => {head}", _IMPLIES


@_node
class Iff(Formula):
    """``left <=> right``: both hold or neither."""

    left: Formula
    right: Formula

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return _joined(" <=> ", (self.left, self.right), clause, _IFF + 1), _IFF


@_node
class Count(Formula):
    """``exactly_one(a, b)``, ``at_most(2, a, b, c)``, ``at_least(2, …)``, ``all_of``, ``any_of``.

    ``number`` is None for the kinds that take none.
    """

    kind: str
    number: int | None
    parts: tuple[Formula, ...]

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        numbered = self.kind.startswith("at_")
        if not self.parts or self.kind not in COUNTS or numbered != (self.number is not None):
            return super().text_and_precedence(clause)
        first = f"{self.number}, " if numbered else ""
        return f"{self.kind}({first}{_joined(', ', self.parts, clause, 0)})", _ATOM


@_node
class Trend(Formula):
    """``increasing(p.disease, by=ap_hi)`` or ``decreasing(…)``: not built yet."""

    kind: str
    value: Value
    by: Value

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if self.kind not in TRENDS:
            return super().text_and_precedence(clause)
        value, by = _text(self.value, clause, _SUM), _text(self.by, clause, _SUM)
        return f"{self.kind}({value}, by={by})", _ATOM


def _text(tree: Any, clause: bool, level: int = 0) -> str:
    """The text, in parentheses if it binds more loosely than ``level``."""
    if not isinstance(tree, Tree):
        raise ValueError(f"no text says {tree!r}")
    text, own = tree.text_and_precedence(clause)
    return text if own >= level else f"({text})"


def _joined(sign: str, parts: Sequence[Tree], clause: bool, level: int) -> str:
    return sign.join([_text(part, clause, level) for part in parts])


def _two_or_more(tree: And | Or) -> tuple[Formula, ...]:
    if len(tree.parts) < 2:
        raise ValueError(f"And and Or need two parts or more, got {tree!r}")
    return tree.parts


def _check_depth(tree: Tree) -> None:
    if depth(tree) > MAX_DEPTH:
        raise RuleError(
            f"the formula has more than {MAX_DEPTH} levels of nesting: split it into rules, or "
            "group a long sum"
        )


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

    def __str__(self) -> str:
        """``[w=2]``, or an empty text where nothing is to be written."""
        if self.kind in ("w", "p"):
            return f"[{self.kind}={number(float(self.number or 0.0))}]"
        return f"[{self.kind}]" if self.kind else ""


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
        _check_depth(self.formula)
        before = str(self.strength) + " " * bool(self.strength.kind)
        before += "" if self.name is None else f"{quoted(self.name)}: "
        if not self.definition:
            return before + _text(self.formula, False)
        formula = self.formula
        if not (isinstance(formula, Implies) and isinstance(formula.head, Name)):
            raise ValueError(f"a Horn clause must say body => name, got {formula}")
        body = formula.body
        parts = _two_or_more(body) if isinstance(body, And) else (body,)
        head = quoted(formula.head.name, hyphens=True)
        return f"{before}{head} :- {_joined(', ', parts, True, _NOT)}."


def trees(x: Any) -> Iterator[Tree]:
    """A tree and all trees in it."""
    if isinstance(x, Tree):
        yield x
        for value in vars(x).values():
            for part in value if isinstance(value, tuple) else (value,):
                yield from trees(part)
