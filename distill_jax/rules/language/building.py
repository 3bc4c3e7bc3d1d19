"""Builds formulas in Python, with operators.

``implies((col("ap_hi") >= 140) & (col("age") > 55), label("disease"))`` is the tree that the text
``ap_hi >= 140 and age > 55 => disease`` parses to. A formula has no truth value until it is
bound to data: ``and``, ``or``, ``not``, ``if`` and chained comparisons on one raise a TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distill_jax._arguments import checked
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._patterns import pattern_problem
from distill_jax.rules.language._times import (
    is_duration,
    is_time,
    is_time_of_day,
    nanoseconds,
    since_midnight,
)


class Built:
    """A value or formula with operators; made by ``col``, ``label`` and the functions below."""

    __slots__ = ("tree",)
    __hash__ = None  # type: ignore[assignment]  # == builds a formula

    def __init__(self, tree: f.Value | f.Formula | f.Points):
        self.tree = tree

    def __bool__(self) -> bool:
        raise TypeError(
            f"a formula has no truth value: {self}. Write & for and, | for or, ~ for not, each "
            "comparison in its own parentheses, and (low < x) & (x < high) for low < x < high"
        )

    def __str__(self) -> str:
        return str(self.tree)

    def __repr__(self) -> str:
        return f"<{self.tree}>"

    def __eq__(self, other: Any) -> Built:  # type: ignore[override]
        return _compare(self, "==", other)

    def __ne__(self, other: Any) -> Built:  # type: ignore[override]
        return _compare(self, "!=", other)

    def __lt__(self, other: Any) -> Built:
        return _compare(self, "<", other)

    def __le__(self, other: Any) -> Built:
        return _compare(self, "<=", other)

    def __gt__(self, other: Any) -> Built:
        return _compare(self, ">", other)

    def __ge__(self, other: Any) -> Built:
        return _compare(self, ">=", other)

    def __add__(self, other: Any) -> Built:
        return _arithmetic("+", self, other)

    def __radd__(self, other: Any) -> Built:
        return _arithmetic("+", other, self)

    def __sub__(self, other: Any) -> Built:
        return _arithmetic("-", self, other)

    def __rsub__(self, other: Any) -> Built:
        return _arithmetic("-", other, self)

    def __mul__(self, other: Any) -> Built:
        points = _points(other, self)
        return _arithmetic("*", self, other) if points is None else points

    def __rmul__(self, other: Any) -> Built:
        points = _points(other, self)
        return _arithmetic("*", other, self) if points is None else points

    def __truediv__(self, other: Any) -> Built:
        return _arithmetic("/", self, other)

    def __rtruediv__(self, other: Any) -> Built:
        return _arithmetic("/", other, self)

    def __neg__(self) -> Built:
        points = _points(-1, self)
        return points if points is not None else Built(f.Negative(_value(self)))

    def __and__(self, other: Any) -> Built:
        return Built(f.And((*_flattened(f.And, self), *_flattened(f.And, other))))

    def __or__(self, other: Any) -> Built:
        return Built(f.Or((*_flattened(f.Or, self), *_flattened(f.Or, other))))

    def __invert__(self) -> Built:
        return Built(f.Not(formula(self)))

    def is_in(self, choices: Sequence[Any] | np.ndarray) -> Built:
        """``self in [choices]``."""
        if isinstance(choices, str):
            raise TypeError(f"choices must be a list, got the string {choices!r}")
        if not len(choices):
            raise ValueError("choices must hold at least one choice: in [] never holds")
        return Built(f.In(_value(self), tuple(_value(x) for x in choices)))

    def between(self, low: Any, high: Any) -> Built:
        """``self between low and high``, both ends included."""
        return Built(f.Between(_value(self), _value(low), _value(high)))

    def is_missing(self) -> Built:
        """``self is missing``."""
        return Built(f.Missing(_value(self)))

    def days(self) -> Built:
        """``days(self)``: the number of days of a duration, as of ``col("end") - col("start")``."""
        return Built(f.Days(_value(self)))

    def unless(self, exception: Built) -> Built:
        """``a => b unless c``: the rule ``self``, made by ``implies``, but not where ``exception``
        holds. A second exception is joined to the first with ``or``."""
        tree, own = self.tree, formula(exception)
        if not isinstance(tree, f.Implies):
            raise TypeError(f"unless is for a rule made by implies(body, head), got {self!r}")
        if isinstance(tree.body, f.Else):
            raise TypeError("otherwise(head) takes no exception: write it as a rule before")
        body = tree.body
        if isinstance(body, f.Unless):
            body, known = body.sides
            own = f.Or((*_flattened(f.Or, known), *_flattened(f.Or, own)))
        return Built(f.Implies(f.Unless((body, f.Not(own))), tree.head))

    def matches(self, pattern: str) -> Built:
        """``self matches r"pattern"``: the regular expression is found in the text."""
        if (problem := pattern_problem(pattern)) is not None:
            raise ValueError(
                f"pattern is not a regular expression: {problem}, got {pattern[:99]!r}"
            )
        return Built(f.Matches(_value(self), pattern))

    def lower(self) -> Built:
        """``lower(self)``: a text in lower case."""
        return Built(f.Recased("lower", _value(self)))

    def upper(self) -> Built:
        """``upper(self)``: a text in upper case."""
        return Built(f.Recased("upper", _value(self)))

    def length(self) -> Built:
        """``length(self)``: the number of characters of a text."""
        return Built(f.Size("length", _value(self)))

    def words(self) -> Built:
        """``words(self)``: the number of words of a text, which white space separates."""
        return Built(f.Size("words", _value(self)))

    def contains(self, part: str) -> Built:
        """``contains(self, 'part')``: a text has this part, letter for letter."""
        return _contains("contains", self, part)

    def starts_with(self, part: str) -> Built:
        """``starts_with(self, 'part')``: a text begins with this part."""
        return _contains("starts_with", self, part)

    def ends_with(self, part: str) -> Built:
        """``ends_with(self, 'part')``: a text ends with this part."""
        return _contains("ends_with", self, part)


@checked
def col(name: str) -> Built:
    """A feature column, for use in comparisons, arithmetic and formulas.

    Args:
      name: The column's name in the schema.

    Returns:
      An expression with the operators ``== != < <= > >= + - * /``, the connectives ``& | ~`` and
      the methods ``is_in``, ``between``, ``is_missing`` and ``days``; for text ``matches``,
      ``contains``, ``starts_with``, ``ends_with``, ``lower``, ``upper``, ``length`` and ``words``.
      Dates, times and durations of Python, NumPy and pandas are compared with columns of these.

    Raises:
      TypeError, ValueError: if ``name`` is not a string, or empty.

    Example:
      >>> print((col("age") > 60) & ~col("smoker"))
      age > 60 and not smoker
    """
    return Built(f.Name(_checked_name(name)))


@checked
def label(name: str, *, view: str | None = None) -> Built:
    """A class, a label or the class variable; with ``view``, the student's prediction on that view.

    Args:
      name: The class, label or class variable of the schema.
      view: The name of another view of the example; None for the example itself.

    Returns:
      An expression with the operators of ``col``.

    Raises:
      TypeError, ValueError: if ``name`` is not a string, or empty.

    Example:
      >>> print(implies(col("has_but"), label("sentiment") == label("sentiment", view="clause")))
      has_but => sentiment == view(clause).sentiment
    """
    return Built(f.Name(_checked_name(name)) if view is None else f.Of(view, _checked_name(name)))


@checked
def implies(body: Built, head: Built) -> Built:
    """The formula ``body => head``: violated where ``body`` holds and ``head`` does not.

    Raises:
      TypeError: if ``body`` or ``head`` is not a formula.

    Example:
      >>> print(implies((col("ap_hi") >= 140) & (col("age") > 55), label("disease")))
      ap_hi >= 140 and age > 55 => disease
    """
    return Built(f.Implies(formula(body), formula(head)))


@checked
def otherwise(head: Built) -> Built:
    """The formula ``else => head``, of the last rule of a group: where none of the others applies.

    Raises:
      TypeError: if ``head`` is not a formula.

    Example:
      >>> print(rule(otherwise(label("virginica")), first="iris"))
      [first=iris] else => virginica
    """
    return Built(f.Implies(f.Else(), formula(head)))


@checked
def iff(left: Built, right: Built) -> Built:
    """The formula ``left <=> right``: both hold, or neither does.

    Raises:
      TypeError: if ``left`` or ``right`` is not a formula.

    Example:
      >>> print(iff(label("animal"), any_of(label("cat"), label("dog"))))
      animal <=> any_of(cat, dog)
    """
    return Built(f.Iff(formula(left), formula(right)))


@checked
def exactly_one(*parts: Built) -> Built:
    """The formula that exactly one of the formulas ``parts`` holds.

    Raises:
      TypeError: if a part is not a formula.
      ValueError: if there are none.

    Example:
      >>> print(exactly_one(label("cat"), label("dog")))
      exactly_one(cat, dog)
    """
    return _count("exactly_one", None, parts)


@checked
def at_most(number: int, *parts: Built) -> Built:
    """The formula that at most ``number`` of the formulas ``parts`` hold.

    Raises:
      TypeError: if a part is not a formula.
      ValueError: if there are none, or ``number`` is not an integer >= 0.

    Example:
      >>> print(at_most(1, label("cat"), label("dog"), label("horse")))
      at_most(1, cat, dog, horse)
    """
    return _count("at_most", number, parts)


@checked
def at_least(number: int, *parts: Built) -> Built:
    """The formula that at least ``number`` of the formulas ``parts`` hold.

    Raises:
      TypeError: if a part is not a formula.
      ValueError: if there are none, or ``number`` is not an integer >= 0.

    Example:
      >>> print(at_least(2, col("fever"), col("cough"), col("smoker")))
      at_least(2, fever, cough, smoker)
    """
    return _count("at_least", number, parts)


@checked
def all_of(*parts: Built) -> Built:
    """The formula that all of the formulas ``parts`` hold.

    Raises:
      TypeError: if a part is not a formula.
      ValueError: if there are none.

    Example:
      >>> print(all_of(col("fever"), col("age") > 60))
      all_of(fever, age > 60)
    """
    return _count("all_of", None, parts)


@checked
def any_of(*parts: Built) -> Built:
    """The formula that at least one of the formulas ``parts`` holds.

    Raises:
      TypeError: if a part is not a formula.
      ValueError: if there are none.

    Example:
      >>> print(any_of(col("fever"), col("age") > 60))
      any_of(fever, age > 60)
    """
    return _count("any_of", None, parts)


@checked
def score(*parts: Built) -> Built:
    """The sum of the points of the conditions that hold, to be compared with a number.

    Factors are exact: integers, or decimal numbers as they are printed. Where conditions are
    unknown, the score is an interval, and a comparison is known where both of its ends agree.

    Args:
      *parts: Formulas, each alone for one point, or multiplied by its points, which may be
        negative: ``2 * (col("age") >= 75)``.

    Returns:
      A value with the operators of ``col``.

    Raises:
      TypeError: if a part is neither a formula nor a number times one.
      ValueError: if there are none, or for a factor that is not finite.

    Example:
      >>> print(score(2 * (col("age") >= 75), col("stroke"), 0.5 * col("diabetes")) >= 2)
      score(2*(age >= 75), stroke, 0.5*diabetes) >= 2
    """
    if not parts:
        raise ValueError("score needs at least one condition, got none")
    return Built(f.Score(tuple(_part_of_score(part) for part in parts)))


@checked
def rule(
    what: Built | f.Formula,
    *,
    name: str | None = None,
    w: float | None = None,
    p: float | None = None,
    hard: bool = False,
    learn: bool = False,
    first: str | None = None,
    group: str | None = None,
    priority: int | float | np.integer | np.floating | None = None,
) -> f.Rule:
    """A rule: a formula with a name and at most one of ``w``, ``p``, ``hard``, ``learn``.

    A rule of a group, that is, one with ``first`` or ``priority``, is an implication, and *applies*
    where its body holds. It may be hidden by other rules of its group, and then it does not fire.

    Args:
      what: The formula that should hold.
      name: The rule's name in reports.
      w: Log-odds added to whatever satisfies the rule; 1 if no strength is given.
      p: The strength as a probability, 0 < p < 1: log-odds log(p / (1 − p)).
      hard: The rule may never be violated.
      learn: The strength starts at 0 and is trained.
      first: The name of a group whose rules are tried in their order: only the first that applies
        fires.
      priority: The rule fires only where no rule of its group with a higher priority applies.
      group: The name of its group, with ``priority``; without, the rules that have a priority and
        no ``group`` are one group.

    Returns:
      The rule.

    Raises:
      TypeError: if ``what`` is not a formula.
      ValueError: for more than one strength, a ``w`` that is not finite, a ``p`` that does not lie
        between 0 and 1, ``first`` together with ``group`` or ``priority``, an empty name, or a
        ``group`` without a priority.

    Example:
      >>> print(rule(implies(col("smoker"), label("disease")), name="smoking", p=0.9))
      [p=0.9] smoking: smoker => disease
    """
    given = [key for key, on in (("w", w is not None), ("p", p is not None)) if on]
    given += [key for key, on in (("hard", hard), ("learn", learn)) if on]
    if len(given) > 1:
        raise ValueError(f"a rule has one strength at most, got {given}")
    strength = f.Strength()
    if w is not None:
        strength = f.Strength("w", f.as_float(w))
    elif p is not None:
        strength = f.Strength("p", f.as_float(p))
    elif hard or learn:
        strength = f.HARD if hard else f.LEARN
    if first is not None and (group is not None or priority is not None):
        raise ValueError("first is a group in the order written: leave out group and priority")
    if group is not None and priority is None:
        raise ValueError("group needs a priority; first=name is for rules in the order written")
    if group == "":
        raise ValueError("the name of a group must not be empty")
    if first is None and priority is not None:
        first = "" if group is None else group
    ranked = priority.item() if isinstance(priority, np.generic) else priority
    return f.Rule(formula(what), name, strength, group=first, priority=ranked)


@checked
def clause(head: str, *body: Built | f.Formula) -> f.Rule:
    """A Horn clause: ``head`` holds where all formulas of ``body`` do.

    Several clauses with the same head are alternatives: it holds where at least one body does.

    Args:
      head: The name of a class, or of the predicate to define.
      *body: One or more formulas.

    Returns:
      The clause, a ``Rule`` with ``definition=True``.

    Raises:
      TypeError: if a part of the body is not a formula.
      ValueError: if the body is empty.

    Example:
      >>> print(clause("risky", col("smoker"), col("age") > 60))
      risky :- smoker, age > 60.
    """
    parts = tuple(formula(part) for part in body)
    if not parts:
        raise ValueError("body must hold at least one formula, got none")
    whole = parts[0] if len(parts) == 1 else f.And(parts)
    return f.Rule(f.Implies(whole, f.Name(head)), definition=True)


def formula(x: Any) -> f.Formula:
    """The syntax tree of a formula, with or without operators around it.

    Raises:
      TypeError: if ``x`` is not a formula.
    """
    tree = x.tree if isinstance(x, Built) else x
    if isinstance(tree, f.Formula):
        return tree
    raise TypeError(
        f"a formula was expected, got {x!r}. A comparison within & | ~ needs its own parentheses: "
        '(col("age") > 55) & col("smoker")'
    )


def _value(x: Any) -> f.Value:
    tree = x.tree if isinstance(x, Built) else x
    if isinstance(tree, f.Value):
        return tree
    if isinstance(tree, str):
        return f.String(tree)
    if isinstance(tree, int | np.integer) and not isinstance(tree, bool):
        return f.Number(int(tree))
    if isinstance(tree, float | np.floating):
        return f.Number(float(tree))
    if is_time(tree) and tree == tree:  # not NaT
        return f.Time(nanoseconds(tree), getattr(tree, "tzinfo", None) is not None)
    if is_duration(tree) and tree == tree:
        return f.Duration(nanoseconds(tree))
    if is_time_of_day(tree):
        return f.TimeOfDay(since_midnight(tree))
    raise TypeError(
        f"a formula compares columns, numbers, strings and times, got {x!r}. Compare two formulas "
        "with iff, use a boolean column directly, and test for missing values with is_missing()"
    )


def _contains(where: str, value: Any, part: Any) -> Built:
    if not isinstance(part, str) or not part:
        raise ValueError(f"part must be a string that is not empty, got {part!r}")
    return Built(f.Contains(where, _value(value), part))


def _points(factor: Any, x: Any) -> Built | None:
    """``factor * formula``, for a score; None if it is arithmetic."""
    tree = x.tree if isinstance(x, Built) else x
    if isinstance(tree, f.Value) or not isinstance(tree, f.Formula):
        return None
    number = _value(factor)
    if not isinstance(number, f.Number):
        raise TypeError(f"a condition is multiplied by a number of points, got {factor!r}")
    return Built(f.Points(number.value, tree))


def _part_of_score(part: Any) -> f.Points:
    match part.tree if isinstance(part, Built) else part:
        case f.Points() as points:
            return points
        case f.Formula() as condition:
            return f.Points(1, condition)
        case f.Negative(f.Name() | f.Of() as condition):
            return f.Points(-1, condition)
        case f.Arithmetic("*", f.Number(factor), f.Name() | f.Of() as condition) | f.Arithmetic(
            "*", f.Name() | f.Of() as condition, f.Number(factor)
        ):
            return f.Points(factor, condition)
    raise TypeError(
        f"score takes conditions, each alone or times its points, got {part!r}: write "
        '2 * (col("age") >= 75)'
    )


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if not name:
        raise ValueError("name must not be empty")
    return name


def _compare(left: Any, operator: str, right: Any) -> Built:
    return Built(f.Compare((_value(left), _value(right)), (operator,)))


def _arithmetic(operator: str, left: Any, right: Any) -> Built:
    return Built(f.Arithmetic(operator, _value(left), _value(right)))


def _flattened(kind: type[f.And] | type[f.Or], x: Any) -> tuple[f.Formula, ...]:
    match formula(x):
        case f.And(parts) if kind is f.And:
            return parts
        case f.Or(parts) if kind is f.Or:
            return parts
        case other:
            return (other,)


def _count(kind: str, number: Any, parts: Sequence[Any]) -> Built:
    whole = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    if number is not None and not whole:
        raise ValueError(f"number must be an integer >= 0, got {number!r}")
    if number is not None and number >= 10**9:
        raise ValueError("number must be below 1e9, got one of ten digits or more")
    if not parts:
        raise ValueError(f"{kind} needs at least one formula, got none")
    return Built(f.Count(kind, number, tuple(formula(part) for part in parts)))
