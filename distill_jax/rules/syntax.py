"""Text into rules: a parser with a table of precedence. Nothing is evaluated or imported.

From loosest to tightest: ``<=>``; ``=>`` (to the right); ``or``; ``and``; ``not``; comparisons
(chained), ``in``, ``between``, ``is missing``, ``matches``; ``+ -``; ``* /``; ``-`` before a value;
calls and names. ``printing.to_text`` is the inverse.
"""

from __future__ import annotations

import bisect
import difflib
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from distill_jax.rules import formulas as f
from distill_jax.rules import printing
from distill_jax.rules._tokens import Token, error_at, tokenize

# How tightly each sign between two parts binds. printing.py has the levels of the trees.
_LEVELS = {"<=>": 1, "=>": 2, "or": 3, "and": 4}
_LEVELS |= dict.fromkeys([*f.COMPARISONS, "=", "in", "not", "between", "is", "matches"], 6)
_LEVELS |= {"+": 7, "-": 7, "*": 8, "/": 8}
_NOT, _COMPARISON, _SUM, _MINUS = 5, 6, 7, 9

_FUNCTIONS = (*f.COUNTS, "view", *f.AVERAGES, *f.TRENDS)
_TRUTHS = ("true", "false", "True", "False")


class _Part(NamedTuple):
    tree: Any
    start: int  # where its text starts
    depth: int  # how many trees are nested in it


def parse(text: str) -> tuple[f.Rule, ...]:
    """The rules of a text.

    One rule a line; ``#`` starts a comment; a line goes on inside open brackets. Before a rule may
    stand its strength in brackets, and its name with a colon. ``head :- a, b.`` is a Horn clause.

    Raises:
      RuleError: for a text that is none, with line, column and a caret.

    Example:
      >>> (rule,) = parse("[p=0.9] old: age > 60 and smoker => disease  # from an expert")
      >>> rule.name, rule.strength.kind, rule.strength.number
      ('old', 'p', 0.9)
      >>> print(rule.formula)
      age > 60 and smoker => disease
    """
    return _parsed(text, _Parser.rules)


def parse_formula(text: str) -> f.Formula:
    """The formula of a text: what a rule holds after its strength and name.

    Raises:
      RuleError: for a text that is none, with line, column and a caret.

    Example:
      >>> parse_formula("0 < x <= 3").operators
      ('<', '<=')
    """
    return _parsed(text, _Parser.whole_formula)


def _parsed(text: str, what: Any) -> Any:
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        return what(_Parser(text))
    except RecursionError:  # called from deep within other code
        raise f.RuleError("the rules are nested too deeply to be read here") from None


def name_offset(source: str, name: str) -> int | None:
    """Where a name stands in a rule's source; None if it does not.

    A string with that content counts where no name does: classes are often written as strings. A
    rule's own name and its strength do not count.
    """
    try:
        tokens = tokenize(source)
    except f.RuleError:
        return None
    first = _formula_start(tokens)
    for kinds in (("name", "quoted"), ("string",)):
        for token, after in zip(tokens[first:], tokens[first + 1 :], strict=False):
            if token.kind in kinds and token.value == name and after.kind != "(":
                return token.start
    return None


def _formula_start(tokens: list[Token]) -> int:
    kinds = [token.kind for token in tokens]
    start = kinds.index("]") + 1 if kinds[0] == "[" and "]" in kinds else 0
    named = kinds[start] in ("name", "quoted") and kinds[start + 1] == ":"
    return start + 2 * named


def unknown_name(rule: f.Rule, name: str, known: Sequence[str]) -> f.RuleError:
    """The error that a rule uses a name that nobody knows, with the nearest known ones.

    Args:
      rule: The rule; one built in Python is shown as text.
      name: The name that it uses.
      known: The names that it could use.
    """
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    if name.lower() in ("none", "nan", "null", "na"):
        advice = "for a value that is not there, write x is missing"
    elif near:
        advice = "did you mean " + " or ".join(printing.quoted(lower[x]) for x in near) + "?"
    elif known:
        more = ", …" if len(known) > 8 else ""
        advice = "known are " + ", ".join(printing.quoted(x) for x in known[:8]) + more
    else:
        advice = "nothing is known: give columns and classes"
    source = rule.source or printing.to_text(rule)
    offset = name_offset(source, name)
    message = f"unknown name {printing.quoted(name)}: {advice}"
    return error_at(message, source, rule.line, 0 if offset is None else offset)


class _Parser:
    def __init__(self, text: str):
        self.text = text
        self.tokens = tokenize(text)
        self.i = 0
        self.depth = 0
        self.clause = False  # within a Horn clause, where = compares with a bare word
        self.lines = [0, *(m.end() for m in re.finditer("\n", text))]

    # Words

    @property
    def now(self) -> Token:
        return self.tokens[self.i]

    def ahead(self, n: int) -> Token:
        return self.tokens[min(self.i + n, len(self.tokens) - 1)]

    def take(self) -> Token:
        token = self.now
        self.i = min(self.i + 1, len(self.tokens) - 1)
        return token

    def expect(self, kind: str, after: str) -> Token:
        if self.now.kind != kind:
            self.fail(f"expected {kind} {after}, got {self.shown(self.now)}")
        return self.take()

    def close(self, bracket: Token) -> None:
        """Takes what closes a bracket."""
        kind = ")" if bracket.kind == "(" else "]"
        if self.now.kind != kind:
            if self.now.kind == "end" or "\n" in self.text[bracket.start : self.now.start]:
                self.fail(f"this {bracket.kind} is not closed", bracket.start)
            self.fail(f"expected {kind}, got {self.shown(self.now)}{self.advice()}")
        self.take()

    def fail(self, message: str, offset: int | None = None) -> NoReturn:
        raise error_at(message, self.text, 1, self.now.start if offset is None else offset)

    def shown(self, token: Token) -> str:
        named = {"line": "the end of the line", "end": "the end of the text"}
        words = self.text[token.start : token.end]
        return named.get(token.kind) or (words if len(words) < 40 else words[:39] + "…")

    def advice(self) -> str:
        """What to do about a word that should not follow a formula."""
        token = self.now
        if token.kind == "=":
            return ": write == to compare"
        if token.kind == "." and not self.clause:
            return ": a rule ends with its line; a name that holds a dot is quoted, `a.b`"
        if token.kind in ("name", "quoted", "not", "number", "string", "(", "period") + _TRUTHS:
            return ": between two formulas stands and, or, => or <=>"
        return ""

    # Rules

    def rules(self) -> tuple[f.Rule, ...]:
        found = []
        while self.now.kind != "end":
            if self.now.kind == "line":
                self.take()
            else:
                found.append(self.rule())
        return tuple(found)

    def rule(self) -> f.Rule:
        first = self.now
        strength, name, self.clause = self.strength(), self.rule_name(), False
        if self.now.kind == "=>":
            self.fail("empty body: write what must hold before =>, or the head alone as a rule")
        if self.now.kind in ("line", "end"):
            self.fail("expected a rule after this, got nothing", first.start)
        head, sign = self.now, self.ahead(1).kind
        if head.kind in ("name", "quoted") and sign == ":-":
            self.take(), self.take()
            self.clause = True
            formula: f.Formula = f.Implies(self.body(head.value), f.Name(head.value))
        elif head.kind in ("name", "quoted") and (
            sign == "period" or (sign == "." and self.ahead(2).kind in ("line", "end"))
        ):
            self.fail(_empty_body(head.value), self.ahead(1).start)
        else:
            formula = self.whole_formula(ends=("line", "end"))
        line = bisect.bisect(self.lines, first.start)
        start, end = self.lines[line - 1], self.tokens[self.i - 1].end
        # A later clause of a line is moved to its column, so that carets stand where they should.
        before = self.text[start : first.start] if first.start - start < 1000 else ""
        blank = "".join(c if c.isspace() else " " for c in before)
        source = blank + self.text[first.start : end]
        return f.Rule(formula, name, strength, self.clause, line, source)

    def strength(self) -> f.Strength:
        if self.now.kind != "[":
            return f.Strength()
        bracket = self.take()
        sign = self.take().kind if self.now.kind in ("-", "+") else ""
        kind = self.take()
        if kind.kind == "number":
            number = sign.strip("+") + kind.value
            self.fail(
                f"the strength {number} reads as either: write [w={number}] for log-odds or "
                "[p=...] for a probability",
                bracket.start,
            )
        value = None
        if sign or kind.value not in ("w", "p", "hard", "learn", "budget"):
            self.fail(
                "expected [w=number], [p=number], [hard], [learn] or [budget] before a rule",
                bracket.start,
            )
        if kind.value in ("w", "p"):
            self.expect("=", f"and a number after {kind.value}")
            value = self.strength_number(kind.value)
        at = self.now.start if value is None else self.tokens[self.i - 1].start
        self.close(bracket)
        if self.now.kind == "[":
            self.fail("a rule has one strength: write one pair of brackets")
        try:
            return f.Strength(kind.value, value)
        except ValueError as error:
            self.fail(str(error), at)

    def strength_number(self, kind: str) -> float:
        sign = self.take().kind if self.now.kind in ("-", "+") else "+"
        if self.now.kind == "name" and self.now.value.lower() in ("inf", "infinity", "nan"):
            self.fail(f"{kind} must be finite: a rule that always holds is [hard]")
        if self.now.kind != "number":
            self.fail(f"expected a number after {kind}=, got {self.shown(self.now)}")
        number = float(self.take().value)
        return -number if sign == "-" else number

    def rule_name(self) -> str | None:
        if self.now.kind not in ("name", "quoted") or self.ahead(1).kind != ":":
            return None
        name = self.take().value
        self.take()
        return name

    def body(self, head: str) -> f.Formula:
        """The body of a Horn clause, up to and with its period."""
        if self.now.kind in ("period", "line", "end"):
            self.fail(_empty_body(head))
        parts = [self.expression(_NOT)]
        while self.now.kind == ",":
            self.take()
            parts.append(self.expression(_NOT))
        if self.now.kind != "period":
            advice = self.advice() if self.now.kind == "=" else ": a clause ends with a period"
            if self.now.kind in ("and", "or", "=>", "<=>"):
                advice = f": put the parts of {self.now.kind} in parentheses"
            self.fail(
                f"expected , or . in the clause of {head}, got {self.shown(self.now)}{advice}"
            )
        self.take()
        formulas = [self.formula(part) for part in parts]
        return formulas[0] if len(formulas) == 1 else f.And(tuple(formulas))

    def whole_formula(self, ends: tuple[str, ...] = ("end",)) -> f.Formula:
        while self.now.kind == "line" and "line" not in ends:
            self.take()
        part = self.expression(0)
        while self.now.kind == "line" and "line" not in ends:
            self.take()
        if self.now.kind not in ends:
            self.fail(f"expected the end of the rule, got {self.shown(self.now)}{self.advice()}")
        return self.formula(part)

    # Formulas and values

    def part(self, tree: Any, start: int, *parts: _Part) -> _Part:
        depth = 1 + max((part.depth for part in parts), default=0)
        if depth > f.MAX_DEPTH:
            self.too_deep(start)
        return _Part(tree, start, depth)

    def too_deep(self, start: int) -> NoReturn:
        self.fail(
            f"more than {f.MAX_DEPTH} levels of nesting: write two rules, or group a long sum "
            "with parentheses",
            start,
        )

    def formula(self, part: _Part) -> f.Formula:
        if not isinstance(part.tree, f.Formula):
            text = printing.to_text(part.tree)
            self.fail(
                f"expected a formula, got the value {text if len(text) < 40 else text[:39] + '…'}"
                ": compare it with something",
                part.start,
            )
        return part.tree

    def value(self, part: _Part) -> f.Value:
        if not isinstance(part.tree, f.Value):
            self.fail(
                "expected a column, a number or a string, got a formula: formulas are joined with "
                "and, or, => and <=>, in parentheses where needed",
                part.start,
            )
        return part.tree

    def expression(self, floor: int) -> _Part:
        """What binds at ``floor`` or tighter."""
        self.depth += 1
        if self.depth > f.MAX_DEPTH:
            self.too_deep(self.now.start)
        left = self.first(floor)
        while (level := _LEVELS.get(self.now.kind, -1)) >= floor and level > 0:
            sign = self.now.kind
            if sign == "not" and self.ahead(1).kind != "in":
                break
            if level == _COMPARISON:
                left = self.comparison(left)
            elif level >= _SUM:
                self.take()
                right = self.expression(level + 1)
                tree = f.Arithmetic(sign, self.value(left), self.value(right))
                left = self.part(tree, left.start, left, right)
            else:
                left = self.connective(sign, level, left)
        self.depth -= 1
        return left

    def first(self, floor: int) -> _Part:
        """A formula or value up to the first sign after it."""
        token = self.take()
        start = token.start
        if token.kind == "number":
            return _Part(f.Number(float(token.value)), start, 1)
        if token.kind == "string":
            return _Part(f.String(token.value), start, 1)
        if token.kind == "quoted":
            return _Part(f.Name(token.value), start, 1)
        if token.kind == "name":
            if self.now.kind == "(":
                return self.call(token)
            if token.value == "p" and self.now.kind == ".":
                return self.member(None, token)
            return _Part(f.Name(token.value), start, 1)
        if token.kind == "(":
            inner = self.expression(0)
            self.close(token)
            return inner._replace(start=start)
        if token.kind == "-":
            if self.now.kind == "number":
                return _Part(f.Number(-float(self.take().value)), start, 1)
            inner = self.expression(_MINUS)
            return self.part(f.Negative(self.value(inner)), start, inner)
        if token.kind == "not" and floor <= _NOT:
            inner = self.expression(_NOT)
            return self.part(f.Not(self.formula(inner)), start, inner)
        self.i = self.i if token.kind == "end" else self.i - 1
        return self.unexpected(token)

    def unexpected(self, token: Token) -> NoReturn:
        advice = ""
        if token.kind in _TRUTHS:
            advice = ": a boolean column stands by itself, smoker or not smoker"
        elif token.kind == "not":
            advice = ": put parentheses around not and what follows it"
        elif token.kind == "+":
            advice = ": leave the sign + out"
        elif token.kind in ("and", "or", "=>", "<=>", "in", "between", "is", "matches"):
            advice = f": something must stand before {token.kind} (a rule goes on on the next "
            advice += "line only inside parentheses; a name that is a keyword is quoted, `in`)"
        elif token.kind == "=>":
            advice = ": empty body"
        elif token.kind == "[":
            advice = ": a list stands after in, a strength at the start of a rule"
        self.fail(f"expected a formula or a value, got {self.shown(token)}{advice}", token.start)

    def connective(self, sign: str, level: int, left: _Part) -> _Part:
        parts = [left]
        while self.now.kind == sign:
            self.take()
            parts.append(self.expression(level if sign == "=>" else level + 1))
            if sign == "<=>" and self.now.kind == "<=>":
                self.fail("a <=> b <=> c can be read in two ways: put parentheses around one")
        formulas = tuple(self.formula(part) for part in parts)
        kinds: Any = {"<=>": f.Iff, "=>": f.Implies, "or": f.Or, "and": f.And}
        tree = kinds[sign](*formulas) if level <= 2 else kinds[sign](formulas)
        return self.part(tree, left.start, *parts)

    def comparison(self, left: _Part) -> _Part:
        """A chain of comparisons, or one of the tests that are words."""
        value, sign = self.value(left), self.now.kind
        if sign in f.COMPARISONS or sign == "=":
            found = self.chain(left)
        elif sign == "between":
            self.take()
            low = self.expression(_SUM)
            self.expect("and", "after between and its lower end")
            high = self.expression(_SUM)
            tree = f.Between(value, self.value(low), self.value(high))
            found = self.part(tree, left.start, left, low, high)
        elif sign == "is":
            self.take()
            negated = self.now.kind == "not" and bool(self.take())
            if self.now.kind != "name" or self.now.value != "missing":
                got = self.shown(self.now)
                self.fail(f"expected is missing or is not missing, got {got}: == compares")
            self.take()
            found = self.part(f.Missing(value, negated), left.start, left)
        elif sign == "matches":
            self.take()
            found = self.part(f.Matches(value, self.pattern()), left.start, left)
        else:
            found = self.choices(left)
        if _LEVELS.get(self.now.kind) == _COMPARISON and self.now.kind != "not":
            self.fail(f"{self.now.kind} cannot follow another comparison: join them with and")
        return found

    def chain(self, left: _Part) -> _Part:
        parts, signs = [left], []
        while self.now.kind in f.COMPARISONS or self.now.kind == "=":
            if self.now.kind == "=" and not self.clause:
                self.fail("= is not known here: write == to compare")
            sign = self.take().kind
            signs.append("==" if sign == "=" else sign)
            bare = sign == "=" and self.now.kind == "name"
            if bare and self.ahead(1).kind not in ("(", "."):
                word = self.take()
                parts.append(_Part(f.String(word.value), word.start, 1))
            else:
                parts.append(self.expression(_SUM))
        values = tuple(self.value(part) for part in parts)
        return self.part(f.Compare(values, tuple(signs)), left.start, *parts)

    def choices(self, left: _Part) -> _Part:
        negated = self.now.kind == "not" and bool(self.take())
        self.take()  # in
        bracket = self.expect("[", "after in: write a list as [a, b]")
        if self.now.kind == "]":
            self.fail("the list is empty, so this would never hold: write one choice or more")
        parts = self.listed(bracket, _SUM)
        values = tuple(self.value(part) for part in parts)
        return self.part(f.In(self.value(left), values, negated), left.start, left, *parts)

    def listed(self, bracket: Token, floor: int) -> list[_Part]:
        """Parts between commas up to the closing bracket; a comma may stand after the last."""
        closing = ")" if bracket.kind == "(" else "]"
        parts = [self.expression(floor)]
        while self.now.kind == ",":
            self.take()
            if self.now.kind == closing:
                break
            parts.append(self.expression(floor))
        self.close(bracket)
        return parts

    def pattern(self) -> str:
        if self.now.kind != "string":
            self.fail(f'expected a pattern, matches r"...", got {self.shown(self.now)}')
        token = self.take()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on sets that a later Python may read otherwise
                re.compile(token.value)
        except (re.error, OverflowError, RecursionError) as error:
            self.fail(f"not a regular expression: {error}", token.start)
        return token.value

    # Calls

    def call(self, function: Token) -> _Part:
        name, bracket = function.value, self.take()
        if name not in _FUNCTIONS:
            near = difflib.get_close_matches(name, _FUNCTIONS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(_FUNCTIONS)}"
            self.fail(f"unknown function {name}: {advice}", function.start)
        if name == "view":
            if self.now.kind not in ("name", "quoted"):
                self.fail(f"expected the name of a view, got {self.shown(self.now)}")
            view = self.take().value
            self.close(bracket)
            return self.member(view, function)
        if self.now.kind == ")":
            self.fail(f"{name} needs something in its parentheses")
        if name in f.COUNTS:
            return self.count(function, bracket)
        value = self.expression(_SUM)
        if name in f.AVERAGES:
            where = self.option("where", 0) if self.now.kind == "," else None
            self.close(bracket)
            parts = [value] if where is None else [value, where]
            condition = None if where is None else self.formula(where)
            return self.part(f.Call(name, self.value(value), condition), function.start, *parts)
        if self.now.kind != ",":
            self.fail(f"expected {name}(value, by=column), got {self.shown(self.now)}")
        by = self.option("by", _SUM)
        self.close(bracket)
        tree = f.Trend(name, self.value(value), self.value(by))
        return self.part(tree, function.start, value, by)

    def option(self, name: str, floor: int) -> _Part:
        self.take()  # the comma
        if self.now.kind != "name" or self.now.value != name or self.ahead(1).kind != "=":
            self.fail(f"expected {name}=, got {self.shown(self.now)}")
        self.take(), self.take()
        return self.expression(floor)

    def count(self, function: Token, bracket: Token) -> _Part:
        number = None
        if function.value in ("at_most", "at_least"):
            if not (self.now.kind == "number" and self.now.value.isdecimal()):
                got = self.shown(self.now)
                self.fail(f"expected a whole number first, {function.value}(2, a, b), got {got}")
            if len(self.now.value) > 9:
                self.fail("this number is larger than any number of parts")
            number = int(self.take().value)
            self.expect(",", "and what is counted after the number")
        parts = self.listed(bracket, 0)
        formulas = tuple(self.formula(part) for part in parts)
        return self.part(f.Count(function.value, number, formulas), function.start, *parts)

    def member(self, view: str | None, start: Token) -> _Part:
        owner = "p" if view is None else "view(...)"
        self.expect(".", f"and a class or label after {owner}")
        if self.now.kind not in ("name", "quoted"):
            self.fail(f"expected a class or label after {owner}., got {self.shown(self.now)}")
        return _Part(f.Of(view, self.take().value), start.start, 1)


def _empty_body(head: str) -> str:
    name = printing.quoted(head)
    return (
        f"empty body: a clause says when {name} holds, {name} :- a, b. For something that always "
        f"holds write the rule [hard] {name}"
    )
