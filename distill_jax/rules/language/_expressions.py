"""A Pratt parser for formulas and values: each operator has a binding power."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple, NoReturn

from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._patterns import pattern_problem
from distill_jax.rules.language._times import parse_date, parse_datetime
from distill_jax.rules.language._tokens import Token, tokenize
from distill_jax.rules.language.errors import error_at, shortened, visible

# The precedence of each infix operator. formulas.py has the same order for trees.
_LEVELS = {"<=>": 1, "=>": 2, "or": 3, "and": 4}
_LEVELS |= dict.fromkeys([*f.COMPARISONS, "=", "in", "not", "between", "is", "matches"], 6)
_LEVELS |= {"+": 7, "-": 7, "*": 8, "/": 8}
NOT, _COMPARISON, _SUM, _MINUS = 5, 6, 7, 9

_FUNCTIONS = (*f.COUNTS, "view", "days", *f.AVERAGES, *f.TRENDS)
_TIMES = {"date": parse_date, "datetime": parse_datetime}
_BOOLEANS = ("true", "false", "True", "False")


class Part(NamedTuple):
    tree: Any
    start: int  # offset of its text
    depth: int  # levels of nesting, 1 for a leaf


class Parser:
    """Reads the tokens of a text from left to right."""

    def __init__(self, text: str, horn: bool = False):
        self.text = text
        self.tokens = tokenize(text, horn=horn)
        self.i = 0
        self.depth = 0
        self.clause = False  # inside a Horn clause, where x=a compares with the string 'a'

    # Tokens

    @property
    def current(self) -> Token:
        return self.tokens[self.i]

    def peek(self, n: int) -> Token:
        return self.tokens[min(self.i + n, len(self.tokens) - 1)]

    def take(self) -> Token:
        token = self.current
        self.i = min(self.i + 1, len(self.tokens) - 1)
        return token

    def expect(self, kind: str, after: str) -> Token:
        if self.current.kind != kind:
            self.fail(f"expected {kind} {after}, got {self.show(self.current)}")
        return self.take()

    def close(self, bracket: Token) -> None:
        """Consumes the closing bracket."""
        kind = ")" if bracket.kind == "(" else "]"
        if self.current.kind != kind:
            if self.current.kind == "end" or "\n" in self.text[bracket.start : self.current.start]:
                self.fail(f"this {bracket.kind} is not closed", bracket.start)
            self.fail(f"expected {kind}, got {self.show(self.current)}{self.advice()}")
        self.take()

    def fail(self, message: str, offset: int | None = None) -> NoReturn:
        raise error_at(message, self.text, 1, self.current.start if offset is None else offset)

    def show(self, token: Token) -> str:
        named = {"line": "the end of the line", "end": "the end of the text"}
        return named.get(token.kind) or shortened(visible(self.text[token.start : token.end]))

    def advice(self) -> str:
        """How to fix an unexpected token after a formula."""
        token = self.current
        if token.kind == "=":
            return ": write == to compare"
        if token.kind == "." and not self.clause:
            return ": a rule ends with its line; a name that contains a dot is quoted, `a.b`"
        if token.kind in ("name", "quoted", "not", "number", "string", "(", "period") + _BOOLEANS:
            return ": join two formulas with and, or, => or <=>"
        return ""

    # Formulas and values

    def part(self, tree: Any, start: int, *parts: Part) -> Part:
        depth = 1 + max((part.depth for part in parts), default=0)
        if depth > f.MAX_DEPTH:
            self.too_deep(start)
        return Part(tree, start, depth)

    def too_deep(self, start: int) -> NoReturn:
        self.fail(
            f"more than {f.MAX_DEPTH} levels of nesting: split the rule, or group a long sum "
            "with parentheses",
            start,
        )

    def formula(self, part: Part) -> f.Formula:
        if not isinstance(part.tree, f.Formula):
            shown = shortened(str(part.tree))
            message = f"expected a formula, got the value {shown}: compare it with a value"
            self.fail(message, part.start)
        return part.tree

    def value(self, part: Part) -> f.Value:
        if not isinstance(part.tree, f.Value):
            self.fail(
                "expected a column, a number or a string, got a formula: join formulas with "
                "and, or, => or <=>, in parentheses where needed",
                part.start,
            )
        return part.tree

    def expression(self, floor: int) -> Part:
        """The longest expression whose operators bind at ``floor`` or tighter."""
        self.depth += 1
        if self.depth > 2 * f.MAX_DEPTH + 2:  # a level may have a sign and parentheses
            self.too_deep(self.current.start)
        left = self.first(floor)
        while (level := _LEVELS.get(self.current.kind, -1)) >= floor and level > 0:
            sign = self.current.kind
            if sign == "not" and self.peek(1).kind != "in":
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

    def first(self, floor: int) -> Part:
        """A prefix expression: a literal, name, call, or something in parentheses."""
        token = self.take()
        start = token.start
        if token.kind == "number":
            return Part(f.Number(_number(token.value)), start, 1)
        if token.kind == "string":
            return Part(f.String(token.value), start, 1)
        if token.kind == "quoted":
            return Part(f.Name(token.value), start, 1)
        if token.kind == "name":
            if self.current.kind == "(":
                return self.call(token)
            if self.current.kind == "string" and token.value in _TIMES:
                return self.time(token)
            if token.value == "p" and self.current.kind == ".":
                return self.member(None, token)
            return Part(f.Name(token.value), start, 1)
        if token.kind == "(":
            inner = self.expression(0)
            self.close(token)
            return inner._replace(start=start)
        if token.kind == "-":
            if self.current.kind == "number":
                return Part(f.Number(-_number(self.take().value)), start, 1)
            inner = self.expression(_MINUS)
            return self.part(f.Negative(self.value(inner)), start, inner)
        if token.kind == "not" and floor <= NOT:
            inner = self.expression(NOT)
            return self.part(f.Not(self.formula(inner)), start, inner)
        self.i = self.i if token.kind == "end" else self.i - 1
        return self.unexpected(token)

    def unexpected(self, token: Token) -> NoReturn:
        advice = ""
        if token.kind in _BOOLEANS:
            advice = ": use a boolean column directly, as in smoker or not smoker"
            if token.value in ("false", "False"):
                advice += "; what never holds is written not (a and b)"
        elif token.kind == "not":
            advice = ": put parentheses around not and its operand"
        elif token.kind == "+":
            advice = ": omit the sign +"
        elif token.kind in ("and", "or", "=>", "<=>", "in", "between", "is", "matches"):
            advice = f": {token.kind} needs a left operand (a rule continues on the next "
            advice += "line only inside parentheses; a name that is a keyword is quoted, `in`)"
        elif token.kind == "[":
            advice = ": a list follows in; a strength comes at the start of a rule"
        self.fail(f"expected a formula or a value, got {self.show(token)}{advice}", token.start)

    def connective(self, sign: str, level: int, left: Part) -> Part:
        parts = [left]
        while self.current.kind == sign:
            self.take()
            parts.append(self.expression(level if sign == "=>" else level + 1))
            if sign == "<=>" and self.current.kind == "<=>":
                self.fail("a <=> b <=> c is ambiguous: put parentheses around one of the two")
        formulas = tuple(self.formula(part) for part in parts)
        kinds: Any = {"<=>": f.Iff, "=>": f.Implies, "or": f.Or, "and": f.And}
        tree = kinds[sign](*formulas) if level <= 2 else kinds[sign](formulas)
        return self.part(tree, left.start, *parts)

    def comparison(self, left: Part) -> Part:
        """A chain of comparisons, or ``in``, ``between``, ``is missing``, ``matches``."""
        value, sign = self.value(left), self.current.kind
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
            negated = self.current.kind == "not" and bool(self.take())
            if self.current.kind != "name" or self.current.value != "missing":
                got = self.show(self.current)
                self.fail(f"expected is missing or is not missing, got {got}: == compares")
            self.take()
            found = self.part(f.Missing(value, negated), left.start, left)
        elif sign == "matches":
            self.take()
            found = self.part(f.Matches(value, self.pattern()), left.start, left)
        else:
            found = self.choices(left)
        if _LEVELS.get(self.current.kind) == _COMPARISON and self.current.kind != "not":
            self.fail(f"{self.current.kind} cannot follow another comparison: join them with and")
        return found

    def chain(self, left: Part) -> Part:
        parts, signs = [left], []
        while self.current.kind in f.COMPARISONS or self.current.kind == "=":
            if self.current.kind == "=" and not self.clause:
                self.fail("= is not known here: write == to compare")
            sign = self.take().kind
            signs.append("==" if sign == "=" else sign)
            bare = sign == "=" and self.current.kind == "name"
            if bare and self.peek(1).kind not in ("(", ".", "string"):
                word = self.take()
                parts.append(Part(f.String(word.value), word.start, 1))
            else:
                parts.append(self.expression(_SUM))
        values = tuple(self.value(part) for part in parts)
        return self.part(f.Compare(values, tuple(signs)), left.start, *parts)

    def choices(self, left: Part) -> Part:
        negated = self.current.kind == "not" and bool(self.take())
        self.take()  # in
        bracket = self.expect("[", "after in: write a list as [a, b]")
        if self.current.kind == "]":
            self.fail("the list is empty, so this never holds: write at least one choice")
        parts = self.comma_separated(bracket, _SUM)
        values = tuple(self.value(part) for part in parts)
        return self.part(f.In(self.value(left), values, negated), left.start, left, *parts)

    def comma_separated(self, bracket: Token, floor: int) -> list[Part]:
        """Expressions between commas up to the closing bracket; a trailing comma is allowed."""
        closing = ")" if bracket.kind == "(" else "]"
        parts = [self.expression(floor)]
        while self.current.kind == ",":
            self.take()
            if self.current.kind == closing:
                break
            parts.append(self.expression(floor))
        self.close(bracket)
        return parts

    def pattern(self) -> str:
        if self.current.kind != "string":
            self.fail(f'expected a pattern, matches r"...", got {self.show(self.current)}')
        token = self.take()
        if (problem := pattern_problem(token.value)) is not None:
            self.fail(f"not a regular expression: {problem}", token.start)
        return token.value

    def time(self, word: Token) -> Part:
        """``date '2024-01-31'`` or ``datetime '…'``, of which ``word`` was read."""
        text = self.take()
        try:
            return Part(f.Time(_TIMES[word.value](text.value)), word.start, 1)
        except ValueError as error:
            self.fail(str(error), text.start)

    # Calls

    def call(self, function: Token) -> Part:
        name, bracket = function.value, self.take()
        if name in _TIMES:
            self.fail(f"write {name} '…' without parentheses", function.start)
        if name not in _FUNCTIONS:
            near = difflib.get_close_matches(name, _FUNCTIONS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(_FUNCTIONS)}"
            self.fail(
                f"unknown function {shortened(name)}: {advice} (columns and predicates take no "
                "arguments)",
                function.start,
            )
        if name == "view":
            if self.current.kind not in ("name", "quoted"):
                self.fail(f"expected the name of a view, got {self.show(self.current)}")
            view = self.take().value
            self.close(bracket)
            return self.member(view, function)
        if self.current.kind == ")":
            self.fail(f"{name} needs at least one argument")
        if name in f.COUNTS:
            return self.count(function, bracket)
        value = self.expression(_SUM)
        if name == "days":
            self.close(bracket)
            return self.part(f.Days(self.value(value)), function.start, value)
        if name in f.AVERAGES:
            where = self.option("where", 0) if self.current.kind == "," else None
            self.close(bracket)
            parts = [value] if where is None else [value, where]
            condition = None if where is None else self.formula(where)
            return self.part(f.Call(name, self.value(value), condition), function.start, *parts)
        if self.current.kind != ",":
            self.fail(f"expected {name}(value, by=column), got {self.show(self.current)}")
        by = self.option("by", _SUM)
        self.close(bracket)
        tree = f.Trend(name, self.value(value), self.value(by))
        return self.part(tree, function.start, value, by)

    def option(self, name: str, floor: int) -> Part:
        self.take()  # the comma
        if self.current.kind != "name" or self.current.value != name or self.peek(1).kind != "=":
            self.fail(f"expected {name}=, got {self.show(self.current)}")
        self.i += 2
        return self.expression(floor)

    def count(self, function: Token, bracket: Token) -> Part:
        number = None
        if function.value in ("at_most", "at_least"):
            if not (self.current.kind == "number" and self.current.value.isdecimal()):
                got = self.show(self.current)
                self.fail(f"expected a whole number first, {function.value}(2, a, b), got {got}")
            if len(self.current.value) > 9:
                self.fail("this number is too large for a count")
            number = int(self.take().value)
            self.expect(",", "and the formulas to count after the number")
        parts = self.comma_separated(bracket, 0)
        formulas = tuple(self.formula(part) for part in parts)
        return self.part(f.Count(function.value, number, formulas), function.start, *parts)

    def member(self, view: str | None, start: Token) -> Part:
        owner = "p" if view is None else "view(...)"
        self.expect(".", f"and a class or label after {owner}")
        if self.current.kind not in ("name", "quoted"):
            self.fail(f"expected a class or label after {owner}., got {self.show(self.current)}")
        return Part(f.Of(view, self.take().value), start.start, 1)


def _number(text: str) -> int | float:
    """An integer if the text has neither point nor exponent, else a float."""
    return int(text.lstrip("0") or "0") if text.isdecimal() else float(text)
