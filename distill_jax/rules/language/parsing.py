"""Parses text into rules. Nothing in the text is evaluated as Python.

Precedence, from lowest to highest: ``unless``; ``<=>``; ``=>`` (right-associative); ``or``;
``and``; ``not``; comparisons (chained), ``in``, ``between``, ``is missing``, ``matches``; ``+ -``;
``* /``; unary ``-``; calls and names. ``to_text`` is the inverse.
"""

from __future__ import annotations

import bisect
import re
from typing import Any, NamedTuple

from distill_jax._arguments import checked
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._expressions import NOT, Parser, number_of
from distill_jax.rules.language._spelling import quoted
from distill_jax.rules.language._tokens import Token
from distill_jax.rules.language.errors import RuleError


@checked
def parse(text: str) -> tuple[f.Rule, ...]:
    """Parses a text of rules.

    One rule per line; ``#`` starts a comment; a rule continues on the next line inside open
    brackets. A rule may start with its strength and its group in brackets, then its name and a
    colon.
    ``head :- a, b.`` is a Horn clause. In a text of Horn clauses alone, ``%`` starts a comment,
    too.

    Args:
      text: The rules, in the language described in the documentation.

    Returns:
      The rules in order; empty for a text without any.

    Raises:
      RuleError: if the text has a syntax error, with line, column and a caret.
      TypeError: if ``text`` is not a string.

    Example:
      >>> (rule,) = parse("[p=0.9] old: age > 60 and smoker => disease  # from an expert")
      >>> rule.name, rule.strength.kind, rule.strength.number
      ('old', 'p', 0.9)
      >>> print(rule.formula)
      age > 60 and smoker => disease
    """
    return _parse_with(text, _Rules.rules)


@checked
def parse_formula(text: str) -> f.Formula:
    """Parses a single formula: a rule without strength and name.

    Args:
      text: The formula.

    Returns:
      The syntax tree, whose ``str`` is the formula's text.

    Raises:
      RuleError: if the text has a syntax error, with line, column and a caret.
      TypeError: if ``text`` is not a string.

    Example:
      >>> parse_formula("0 < x <= 3").operators
      ('<', '<=')
    """
    return _parse_with(text, _Rules.whole_formula)


def parse_clauses(text: str) -> tuple[f.Rule, ...]:
    """``parse`` for a text of Horn clauses alone, where ``%`` starts a comment."""
    return _parse_with(text, _Rules.rules, horn=True)


def _parse_with(text: str, read: Any, horn: bool = False) -> Any:
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        return read(_Rules(text, horn))
    except RecursionError:  # called from deep within other code
        raise RuleError(
            "the rules are nested too deeply for Python's current recursion limit"
        ) from None


class _Tags(NamedTuple):
    """What stands in brackets before a rule; ``named`` if ``group=`` was written."""

    strength: f.Strength = f.Strength()
    group: str | None = None
    priority: int | float | None = None
    named: bool = False


_ORDERED = "the rules of [first=name] are tried in the order written: leave out the priority"


class _Rules(Parser):
    """Parses rules around formulas: strengths, groups, names, Horn clauses."""

    def __init__(self, text: str, horn: bool = False):
        super().__init__(text, horn)
        self.lines = [0, *(m.end() for m in re.finditer("\n", text))]

    def rules(self) -> tuple[f.Rule, ...]:
        found = []
        while self.current.kind != "end":
            if self.current.kind == "line":
                self.take()
            else:
                found.append(self.rule())
        return tuple(found)

    def rule(self) -> f.Rule:
        first, index = self.current, self.i
        tags, name, self.clause = self.tags(), self.rule_name(), False
        if self.current.kind == "=>":
            self.fail("empty body: write what must hold before =>, or the head alone as a rule")
        if self.current.kind in ("line", "end"):
            self.fail("expected a rule after this, got nothing", first.start)
        head, sign = self.current, self.peek(1).kind
        if head.kind in ("name", "quoted") and sign == ":-":
            self.i += 2
            self.clause = True
            formula: f.Formula = f.Implies(self.body(head.value), f.Name(head.value))
        elif head.kind in ("name", "quoted") and (
            sign == "period" or (sign == "." and self.peek(2).kind in ("line", "end"))
        ):
            self.fail(_empty_body(head.value), self.peek(1).start)
        else:
            formula = self.whole_formula(ends=("line", "end"))
        line = bisect.bisect(self.lines, first.start)
        start, end = self.lines[line - 1], self.tokens[self.i - 1].end
        # A later clause of a line is padded to its column, so that carets point at the right place.
        before = self.text[start : first.start] if first.start - start < 1000 else ""
        blank = "".join(c if c.isspace() else " " for c in before)
        source = blank + self.text[first.start : end]
        self.check_else(formula, index, tags.group is not None)
        at, group = (name, tags.strength, self.clause, line, source), tags.group
        return f.Rule(formula, *at, group=group, priority=tags.priority)

    def check_else(self, formula: f.Formula, first: int, grouped: bool) -> None:
        """Raises for an ``else`` that is not the whole body of a rule in a group."""
        found = [token.start for token in self.tokens[first : self.i] if token.kind == "else"]
        whole = isinstance(formula, f.Implies) and isinstance(formula.body, f.Else)
        wrong = found[whole and grouped :]
        if wrong:
            self.fail(
                "else is the whole body of a group's last rule, as in [first=name] else => class",
                wrong[0],
            )

    def tags(self) -> _Tags:
        """What stands in brackets before a rule: its strength and its group, in any order."""
        if self.current.kind != "[":
            return _Tags()
        bracket, found = self.take(), _Tags()
        while True:
            found = self.tag(bracket, found)
            if self.current.kind != ",":
                break
            self.take()
        self.close(bracket)
        if self.current.kind == "[":
            self.fail(
                "a rule has one strength and one group: write both in one pair of brackets, "
                "[w=2, first=name]"
            )
        if found.priority is not None and found.group is None:
            found = found._replace(group="")
        elif found.named and found.priority is None:
            self.fail("a group needs an order: write priority=number, or first= in place of group=")
        return found

    def tag(self, bracket: Token, found: _Tags) -> _Tags:
        sign = self.take().kind if self.current.kind in ("-", "+") else ""
        kind = self.take()
        if kind.kind == "number":
            number = sign.strip("+") + kind.value
            self.fail(
                f"the strength {number} is ambiguous: write [w={number}] for log-odds or "
                "[p=...] for a probability",
                bracket.start,
            )
        known = ("w", "p", "hard", "learn", "budget", "first", "group", "priority")
        if sign or kind.kind != "name" or kind.value not in known:
            self.fail(
                "expected [w=number], [p=number], [hard], [learn] or [budget] before a rule, or "
                "a group: [first=name], [priority=number]",
                bracket.start,
            )
        if kind.value in ("first", "group"):
            if found.group is not None:
                self.fail("a rule is in one group at most", kind.start)
            if kind.value == "first" and found.priority is not None:
                self.fail(_ORDERED, kind.start)
            self.expect("=", f"and a name after {kind.value}")
            if self.current.kind not in ("name", "quoted") or not self.current.value:
                self.fail(f"expected the name of a group, got {self.show(self.current)}")
            name = self.take().value
            return found._replace(group=name, named=kind.value == "group")
        if kind.value == "priority":
            if found.priority is not None:
                self.fail("a rule has one priority", kind.start)
            if found.group is not None and not found.named:
                self.fail(_ORDERED, kind.start)
            self.expect("=", "and a number after priority")
            return found._replace(priority=self.tag_number("priority"))
        if found.strength.kind:
            self.fail("a rule has one strength", kind.start)
        value = None
        if kind.value in ("w", "p"):
            self.expect("=", f"and a number after {kind.value}")
            value = float(self.tag_number(kind.value))
        at = kind.start if value is None else self.tokens[self.i - 1].start
        try:
            return found._replace(strength=f.Strength(kind.value, value))
        except ValueError as error:
            self.fail(str(error), at)

    def tag_number(self, kind: str) -> int | float:
        sign = self.take().kind if self.current.kind in ("-", "+") else "+"
        if self.current.kind == "name" and self.current.value.lower() in ("inf", "infinity", "nan"):
            advice = "" if kind == "priority" else ": a rule that always holds is [hard]"
            self.fail(f"{kind} must be finite{advice}")
        if self.current.kind != "number":
            self.fail(f"expected a number after {kind}=, got {self.show(self.current)}")
        number = number_of(self.take().value)
        return -number if sign == "-" else number

    def rule_name(self) -> str | None:
        if self.current.kind not in ("name", "quoted") or self.peek(1).kind != ":":
            return None
        name = self.take().value
        self.take()
        return name

    def body(self, head: str) -> f.Formula:
        """The body of a Horn clause, up to and including its period."""
        if self.current.kind in ("period", "line", "end"):
            self.fail(_empty_body(head))
        parts = [self.expression(NOT)]
        while self.current.kind == ",":
            self.take()
            parts.append(self.expression(NOT))
        if self.current.kind != "period":
            advice = self.advice() if self.current.kind == "=" else ": a clause ends with a period"
            if self.current.kind in ("and", "or", "=>", "<=>"):
                advice = f": put the parts of {self.current.kind} in parentheses"
            self.fail(
                f"expected , or . in the clause of {head}, got {self.show(self.current)}{advice}"
            )
        self.take()
        formulas = [self.formula(part) for part in parts]
        return formulas[0] if len(formulas) == 1 else f.And(tuple(formulas))

    def whole_formula(self, ends: tuple[str, ...] = ("end",)) -> f.Formula:
        while self.current.kind == "line" and "line" not in ends:
            self.take()
        part = self.expression(0)
        while self.current.kind == "line" and "line" not in ends:
            self.take()
        if self.current.kind not in ends:
            self.fail(f"expected the end of the rule, got {self.show(self.current)}{self.advice()}")
        return self.formula(part)


def _empty_body(head: str) -> str:
    name = quoted(head)
    return (
        f"empty body: a clause states when {name} holds, {name} :- a, b. If it always "
        f"holds, write the rule [hard] {name}"
    )
