"""Formulas: the syntax trees of rules, before names are bound to columns and classes.

A formula is a tree of frozen dataclasses, compared by content and hashable. ``parsing`` reads one
from text, ``building`` makes one in Python with operators. ``str(tree)`` is text that parses to the
same tree, with parentheses only where they are needed.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, dataclass_transform

from distill_jax.rules.language._spelling import is_word, number, pattern, quoted, string
from distill_jax.rules.language._times import (
    DAY,
    MOST_DURATION,
    spelled,
    spelled_duration,
    spelled_time,
)
from distill_jax.rules.language.errors import RuleError

T = TypeVar("T")

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
ARITHMETIC = ("+", "-", "*", "/")
COUNTS = ("exactly_one", "at_most", "at_least", "all_of", "any_of")
AVERAGES = ("mean",)
TRENDS = ("increasing", "decreasing")
TEXT_TESTS = ("contains", "starts_with", "ends_with")
CASES = ("lower", "upper")
SIZES = ("length", "words")
MAX_DEPTH = 100  # of trees that can be printed, so that code may recurse over them

# The precedence of each kind of tree. _expressions.py has the same order for operators.
(
    _UNLESS, _IFF, _IMPLIES, _OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _MINUS, _ATOM,
) = range(1, 12)  # fmt: skip


class Tree:
    """A value (a column, a number, a sum) or a formula."""

    def __str__(self) -> str:
        _check_depth(self)
        return _text(self, False)

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        """The tree's text, and its precedence.

        Args:
          clause: Whether it is part of a Horn clause, where names may contain hyphens.

        Raises:
          ValueError: if no text parses to this tree.
        """
        raise ValueError(f"no rule text stands for {self!r}")


class Value(Tree):
    """An expression with a number or a string for each example."""


class Formula(Tree):
    """An expression that is true or false for each example."""


class Connective(Formula):
    """A formula made of formulas; every other formula is an atom."""


@dataclass_transform(frozen_default=True)
def _node(cls: type[T]) -> type[T]:
    """A frozen dataclass that compares by content and keeps the ``__str__`` above."""
    return dataclasses.dataclass(frozen=True)(cls)


@_node
class Number(Value):
    """A finite number: an ``int`` if it was written as one, which is kept exactly, else a float."""

    value: int | float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _finite("value", self.value))

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return number(self.value), _MINUS


@_node
class String(Value):
    """A string, for comparison with a category or a class."""

    value: str

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return string(self.value), _ATOM


@_node
class Time(Value):
    """``date '2024-01-31'`` or ``datetime '2024-01-31T12:00:00Z'``, for columns of times.

    Nanoseconds from 1970-01-01T00:00 in UTC if ``zoned``, else in the zone of the column.
    """

    nanoseconds: int
    zoned: bool = False

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        try:
            return spelled(self.nanoseconds, self.zoned), _ATOM
        except (OverflowError, ValueError):  # beyond the years 1 to 9999
            return super().text_and_precedence(clause)


@_node
class TimeOfDay(Value):
    """``time '18:30'``, for columns of times of day: nanoseconds since midnight."""

    nanoseconds: int

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if not 0 <= self.nanoseconds < DAY:
            return super().text_and_precedence(clause)
        return spelled_time(self.nanoseconds), _ATOM


@_node
class Duration(Value):
    """``duration '3 days 4 hours'``, for durations and differences of times."""

    nanoseconds: int

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if abs(self.nanoseconds) > MOST_DURATION:
            return super().text_and_precedence(clause)
        return spelled_duration(self.nanoseconds), _ATOM


@_node
class Days(Value):
    """``days(value)``: a duration as a number of days, such as ``days(end - start)``."""

    value: Value

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return f"days({_text(self.value, clause, _SUM)})", _ATOM


@_node
class Recased(Value):
    """``lower(value)`` or ``upper(value)``: a text in lower or upper case."""

    case: str
    value: Value

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if self.case not in CASES:
            return super().text_and_precedence(clause)
        return f"{self.case}({_text(self.value, clause, _SUM)})", _ATOM


@_node
class Size(Value):
    """``length(value)``, the number of characters of a text; ``words(value)``, of its words."""

    unit: str
    value: Value

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if self.unit not in SIZES:
            return super().text_and_precedence(clause)
        return f"{self.unit}({_text(self.value, clause, _SUM)})", _ATOM


@_node
class Name(Value, Formula):
    """A column, a class, a label, the class variable, or a predicate that clauses define.

    Used as a formula: a boolean column that is true, or a class that is the example's class.
    """

    name: str

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return quoted(self.name, hyphens=clause), _ATOM


@_node
class Of(Value, Formula):
    """``view(v).name``: the student's prediction on another view of the example.

    ``name`` is a class, a label, or the class variable. ``view`` is None for ``p.name``, the
    probability of a class, which only budgets and trends may use.
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
        # -3 is a number literal, so the negative of 3 is written -(3).
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
class Points(Tree):
    """``factor*condition`` in a score: the points that a condition adds where it holds."""

    factor: int | float
    condition: Formula

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _finite("the factor of a score", self.factor))

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if self.factor == 1:
            return _text(self.condition, clause), _UNLESS
        return f"{number(self.factor)}*{_text(self.condition, clause, _ATOM)}", _PRODUCT


@_node
class Score(Value):
    """``score(2*(age >= 75), stroke)``: the sum of the factors of the conditions that hold."""

    parts: tuple[Points, ...]

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if not self.parts:
            return super().text_and_precedence(clause)
        return f"score({_joined(', ', self.parts, clause, 0)})", _ATOM


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
class Contains(Formula):
    """``contains(value, 'part')``, ``starts_with(…)`` or ``ends_with(…)``: a text has this part."""

    where: str
    value: Value
    part: str

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        if self.where not in TEXT_TESTS or not self.part:
            return super().text_and_precedence(clause)
        return f"{self.where}({_text(self.value, clause, _SUM)}, {string(self.part)})", _ATOM


@_node
class Not(Connective):
    """``not part``."""

    part: Formula

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return f"not {_text(self.part, clause, _NOT)}", _NOT


@_node
class And(Connective):
    """All of two or more parts hold."""

    parts: tuple[Formula, ...]

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return _joined(" and ", _two_or_more(self), clause, _AND + 1), _AND


@_node
class Unless(And):
    """The body of ``a => b unless c``: the conjunction of ``a`` and ``not c``, written that way."""

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return Tree.text_and_precedence(self, clause)  # only the rule around it has a text

    @property
    def sides(self) -> tuple[Formula, Formula]:
        """``a`` and ``c``.

        Raises:
          ValueError: if the parts are not ``a`` and ``not c``.
        """
        match self.parts:
            case (body, Not(exception)):
                return body, exception
        raise ValueError(f"no rule text stands for {self!r}")


@_node
class Or(Connective):
    """At least one of two or more parts holds."""

    parts: tuple[Formula, ...]

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return _joined(" or ", _two_or_more(self), clause, _OR + 1), _OR


@_node
class Implies(Connective):
    """``body => head``: violated where the body holds and the head does not."""

    body: Formula
    head: Formula

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        head = _text(self.head, clause, _IMPLIES)
        if isinstance(self.body, Unless):
            body, exception = self.body.sides
            written = f"{_text(body, clause, _IMPLIES + 1)} => {head}"
            return f"{written} unless {_text(exception, clause, _OR)}", _UNLESS
        return f"{_text(self.body, clause, _IMPLIES + 1)} => {head}", _IMPLIES


@_node
class Else(Formula):
    """``else``, the body of a group's last rule: no other rule of the group applies."""

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return "else", _ATOM


@_node
class Iff(Connective):
    """``left <=> right``: both hold, or neither does."""

    left: Formula
    right: Formula

    def text_and_precedence(self, clause: bool) -> tuple[str, int]:
        return _joined(" <=> ", (self.left, self.right), clause, _IFF + 1), _IFF


@_node
class Count(Connective):
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
    """The text, in parentheses if its precedence is lower than ``level``."""
    if not isinstance(tree, Tree):
        raise ValueError(f"no rule text stands for {tree!r}")
    text, own = tree.text_and_precedence(clause)
    return text if own >= level else f"({text})"


def _joined(sign: str, parts: Sequence[Tree], clause: bool, level: int) -> str:
    return sign.join([_text(part, clause, level) for part in parts])


def _two_or_more(tree: And | Or) -> tuple[Formula, ...]:
    if len(tree.parts) < 2:
        raise ValueError(f"And and Or need at least two parts, got {tree!r}")
    return tree.parts


def _check_depth(tree: Tree) -> None:
    if depth(tree) > MAX_DEPTH:
        raise RuleError(
            f"the formula has more than {MAX_DEPTH} levels of nesting: split the rule, or "
            "group a long sum"
        )


def _finite(name: str, value: Any) -> int | float:
    """A finite number as Python's own ``int`` or ``float``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(as_float(value)):
        raise ValueError(f"{name} must be finite, got {as_float(value)}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)  # of NumPy, too


def as_float(value: Any) -> float:
    """A number as a float; infinite for an integer that is beyond the range of floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def depth(tree: Tree) -> int:
    """Levels of nesting; 1 for a name. Not recursive: works for trees of any depth."""
    deepest, level = 0, [tree]
    while level:
        deepest += 1
        fields = [x for part in level for x in vars(part).values()]
        inner = [y for x in fields for y in (x if isinstance(x, tuple) else (x,))]
        level = list({id(x): x for x in inner if isinstance(x, Tree)}.values())
    return deepest


@_node
class Strength:
    """A rule's strength, written in brackets before it.

    Attributes:
      kind: ``"w"`` (given as log-odds), ``"p"`` (given as a probability), ``"hard"``, ``"learn"``,
        ``"budget"``, or ``""`` if none is written, which means ``[w=1]``.
      number: The log-odds or probability of ``"w"`` and ``"p"``; None otherwise.
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
        """Added to the log-odds of whatever satisfies the rule; inf for a hard rule."""
        if self.kind == "p" and self.number is not None:
            return math.log(self.number) - math.log1p(-self.number)
        if self.kind == "w" and self.number is not None:
            return float(self.number)
        return {"": 1.0, "hard": math.inf}.get(self.kind, 0.0)

    def __str__(self) -> str:
        """``[w=2]``, or an empty string if none was written."""
        if self.kind in ("w", "p"):
            return f"[{self.kind}={number(float(self.number or 0.0))}]"
        return f"[{self.kind}]" if self.kind else ""


HARD = Strength("hard")
LEARN = Strength("learn")
BUDGET = Strength("budget")


@_node
class Rule:
    """A formula with a name and a strength; made by ``parse``, ``rule`` and ``clause``.

    ``str(rule)`` is its text, which ``parse`` reads back as an equal rule.

    Attributes:
      formula: What should hold.
      name: Its own name, or None.
      strength: How strongly it is weighted: log-odds, a probability, hard, or learned.
      definition: Whether it is a Horn clause, ``head :- body.``: its formula is then
        ``Implies(body, head)``. A head that is not a class *defines* a predicate, which holds where
        the body of at least one of its clauses does.
      group: The name of the group of rules that it belongs to, of which some hide others; None for
        a rule on its own. Empty for the rules that are written ``[priority=n]`` without a name.
      priority: None in a group ``[first=name]``, whose rules are tried in the order written: only
        the first that applies fires. A number in a group ``[group=name, priority=n]``: a rule fires
        only if no rule of a higher priority applies. A rule *applies* where its body holds.
      line: The line number in the text it was parsed from, from 1; 0 if built in Python.
      source: Its text as it was written, for messages. ``line`` and ``source`` are ignored when
        rules are compared.

    Example:
      >>> from distill_jax.rules import parse
      >>> (smoking,) = parse("[p=0.9] smoking: smoker => disease")
      >>> smoking.name, smoking.strength.number, str(smoking.formula)
      ('smoking', 0.9, 'smoker => disease')
    """

    formula: Formula
    name: str | None = None
    strength: Strength = Strength()
    definition: bool = False
    line: int = dataclasses.field(default=0, compare=False)
    source: str = dataclasses.field(default="", compare=False)
    group: str | None = dataclasses.field(default=None, kw_only=True)
    priority: int | float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_group(self.group, self.priority)
        if self.priority is not None:
            object.__setattr__(self, "priority", _finite("priority", self.priority))

    @property
    def tags(self) -> str:
        """Its strength and its group as they are written, ``w=2, first=name``; empty if neither."""
        parts = [str(self.strength).strip("[]")] if self.strength.kind else []
        if self.group is not None and self.priority is None:
            parts.append(f"first={quoted(self.group)}")
        elif self.group is not None and self.priority is not None:
            parts += [f"group={quoted(self.group)}"] if self.group else []
            parts.append(f"priority={number(self.priority)}")
        return ", ".join(parts)

    def __str__(self) -> str:
        _check_depth(self.formula)
        before = f"[{self.tags}] " if self.tags else ""
        before += "" if self.name is None else f"{quoted(self.name)}: "
        if not self.definition:
            return before + _text(self.formula, False)
        formula = self.formula
        if not (isinstance(formula, Implies) and isinstance(formula.head, Name)):
            raise ValueError(f"a Horn clause must say body => name, got {formula}")
        body = formula.body
        parts = _two_or_more(body) if type(body) is And else (body,)
        head = quoted(formula.head.name, hyphens=True)
        return f"{before}{head} :- {_joined(', ', parts, True, _NOT)}."


def _check_group(group: Any, priority: Any) -> None:
    """Raises for a group that no rule can have.

    Raises:
      TypeError: for a name that is not a string.
      ValueError: for an empty name in a group without priorities, or a priority without a group.
    """
    if group is not None and not isinstance(group, str):
        raise TypeError(f"a group's name must be a string, got {group!r}")
    if group == "" and priority is None:
        raise ValueError("the name of a group must not be empty")
    if group is None and priority is not None:
        raise ValueError("a priority needs a group: its name, or '' for the one without a name")


def trees(x: Any) -> Iterator[Tree]:
    """Iterates over a tree and all its subtrees."""
    if isinstance(x, Tree):
        yield x
        for value in vars(x).values():
            for part in value if isinstance(value, tuple) else (value,):
                yield from trees(part)


def operands(x: Connective) -> Iterator[Formula]:
    """The formulas that a connective joins, in their order."""
    for value in vars(x).values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Formula):
                yield part
