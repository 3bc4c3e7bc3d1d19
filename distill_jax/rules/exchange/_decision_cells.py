"""Cells of decision tables as formulas, and back: the unary tests of DMN, and of spreadsheets.

A cell says something about the value of its column: ``> 3``, ``[10..20)``, ``"a", "b"``,
``not("a")``, or any formula of the rule language with ``?`` in place of the column.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from distill_jax.rules.binding._tables import is_missing, nearest
from distill_jax.rules.binding.schema import FALSE_WORDS, TRUE_WORDS, Column
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._spelling import number, quoted
from distill_jax.rules.language._times import (
    is_duration,
    is_time,
    is_time_of_day,
    nanoseconds,
    parse_date,
    parse_datetime,
    parse_duration,
    parse_time,
    since_midnight,
)
from distill_jax.rules.language._tokens import underflows
from distill_jax.rules.language.errors import RuleError, shortened
from distill_jax.rules.language.parsing import parse_formula

NOTHING = ("", "-", "–", "—")  # spreadsheets make a dash of a hyphen
"""Cells that say nothing."""

ALLOWED = (
    '> 3, [10..20), a value, values as in "a", "b", not(...), a formula with ? for the column, or '
    "- for nothing"
)

_SIGNS = {"=": "==", "≤": "<=", "≥": ">=", "≠": "!="}
_SIGN = re.compile(r"<=|>=|==|!=|<|>|=|≤|≥|≠")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"|' + r"'(?:[^'\\]|\\.)*+'")
_TIME = re.compile(
    r"(date and time|datetime|date|time|duration)\s*(\(\s*)?(" + _STRING.pattern + r")", re.DOTALL
)
_BARE_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9:.]+(?:Z|[+-][0-9:]+)?)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.(?!\.)[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORD = re.compile(
    r"[^\s,()\[\]<>=!≤≥≠\"'?@](?:[^,()\[\]<>=!≤≥≠\"'?@]*?[^\s,()\[\]<>=!≤≥≠\"'?@])??"
    r"(?=\s*(?:\.\.|[,()\[\]<>=!≤≥≠\"'?@]|and\s*[<>=!≤≥≠]|$))"
)


class CellProblem(ValueError):
    """A cell that cannot be read; the message does not say where it is."""


class Subject(NamedTuple):
    """What the cells of a column are about.

    Attributes:
      value: The column, or an expression.
      column: What the schema says of it; None without a schema, or for an expression.
    """

    value: f.Value
    column: Column | None = None


class _Literal(NamedTuple):
    """A value as it stands in a cell: its text, and what it is at first sight."""

    text: str
    kind: str  # "string", "word", "number", "time", "cell"
    value: Any = None


def says_nothing(cell: Any) -> bool:
    """Whether a cell is empty or a dash."""
    if isinstance(cell, str):
        return cell.strip() in NOTHING
    return not isinstance(cell, list | tuple | set | frozenset | np.ndarray) and is_missing(cell)


def condition(cell: Any, subject: Subject) -> f.Formula | None:
    """What a cell says of its column; None if it says nothing.

    Raises:
      CellProblem: for a cell that cannot be read.
    """
    if says_nothing(cell):
        return None
    if isinstance(cell, str):
        column = subject.column
        if column is not None and cell in column.categories:
            return _equals([f.String(cell)], subject)
        return _Cell(cell.strip(), subject).formula()
    if all(hasattr(cell, name) for name in ("left", "right", "closed")):  # of pandas
        low, high = (
            None if _is_infinite(x) else _converted(_of_python(x), subject)
            for x in (cell.left, cell.right)
        )
        return _between(
            low, high, cell.closed in ("left", "both"), cell.closed in ("right", "both"), subject
        )
    if isinstance(cell, set | frozenset):
        cell = sorted(cell, key=lambda x: (type(x).__name__, x))
    if isinstance(cell, list | tuple | np.ndarray):
        if not len(cell):
            raise CellProblem("an empty list allows no value")
        return _equals([_converted(_of_python(x), subject) for x in cell], subject)
    return _equals([_converted(_of_python(cell), subject)], subject)


def _is_infinite(x: Any) -> bool:
    return isinstance(x, float | np.floating) and math.isinf(x)


def _of_python(x: Any) -> _Literal:
    """A value of Python, NumPy or pandas."""
    if isinstance(x, bool | np.bool_):
        return _Literal("true" if x else "false", "word")
    if isinstance(x, str):
        return _Literal(x, "string")
    if isinstance(x, int | np.integer):
        return _Literal(str(int(x)), "number", f.Number(int(x)))
    if isinstance(x, float | np.floating):
        if not math.isfinite(x):
            raise CellProblem(f"a number must be finite, got {x}")
        whole = float(x).is_integer() and abs(x) < 2**53
        exact = int(x) if whole else float(str(x))  # a float32 as it is printed
        return _Literal(number(exact), "number", f.Number(exact))
    if is_missing(x):
        return _Literal("null", "word")
    if is_time(x):
        zoned = getattr(x, "tzinfo", None) is not None
        return _Literal(str(x), "time", f.Time(nanoseconds(x), zoned))
    if is_duration(x):
        return _Literal(str(x), "time", f.Duration(nanoseconds(x)))
    if is_time_of_day(x):
        return _Literal(str(x), "time", f.TimeOfDay(since_midnight(x)))
    raise CellProblem(f"expected {ALLOWED}, got {_shown(x)}")


class _Cell:
    """Reads the text of a cell from left to right."""

    def __init__(self, text: str, subject: Subject):
        self.text, self.subject, self.i = text, subject, 0

    def formula(self) -> f.Formula:
        if _has_question_mark(self.text):
            return _with_subject(self.text, self.subject)
        if (match := re.match(r"not\s*\(", self.text)) is not None:
            self.i = match.end()
            inner = self.tests()
            self.expect(")")
            found = _negated(inner, self.subject)
        else:
            found = _either(self.tests(), self.subject)
        if self.i < len(self.text):
            self.fail()
        return found

    def fail(self) -> NoReturn:
        rest = self.text[self.i :].strip()
        at = f" at {shortened(rest, 40)!r}" if rest and len(rest) < len(self.text) else ""
        raise CellProblem(f"expected {ALLOWED}, got {shortened(self.text, 80)!r}{at}")

    def space(self) -> None:
        while self.text[self.i : self.i + 1].isspace():
            self.i += 1

    def expect(self, sign: str) -> None:
        self.space()
        if not self.text.startswith(sign, self.i):
            self.fail()
        self.i += len(sign)
        self.space()

    def at(self, sign: str) -> bool:
        self.space()
        return self.text.startswith(sign, self.i)

    def tests(self) -> list[f.Formula | f.Value]:
        """Tests between commas: formulas, or values for equality."""
        found = [self.test()]
        while self.at(","):
            self.expect(",")
            found.append(self.test())
        self.space()
        return found

    def test(self) -> f.Formula | f.Value:
        self.space()
        if self.text[self.i : self.i + 1] in ("[", "(", "]"):
            return self.range()
        if _SIGN.match(self.text, self.i) is None:
            return self.value()
        found = [self.comparison()]
        while (match := re.compile(r"\s*and\s+(?=[<>=!≤≥≠])").match(self.text, self.i)) is not None:
            self.i = match.end()
            found.append(self.comparison())
        return _chain(found) or f.And(tuple(found))

    def comparison(self) -> f.Formula:
        match = _SIGN.match(self.text, self.i)
        if match is None:
            self.fail()
        self.i = match.end()
        sign, value = _SIGNS.get(match[0], match[0]), self.value()
        if sign in ("==", "!=") and isinstance(value, f.Formula) and not isinstance(value, f.Value):
            return value if sign == "==" else _not(value)
        if isinstance(value, f.Formula) and not isinstance(value, f.Name):
            self.fail()
        if sign not in ("==", "!="):
            _check_order(self.subject, value)
        return f.Compare((self.subject.value, value), (sign,))  # type: ignore[arg-type]

    def range(self) -> f.Formula:
        opened = self.text[self.i]
        self.i += 1
        low = self.end()
        self.space()
        if self.at(","):
            raise CellProblem(
                f"write [10..20) for a range, and 10, 20 for a list without brackets, got "
                f"{shortened(self.text, 80)!r}"
            )
        self.expect("..")
        high = self.end()
        self.space()
        closed = self.text[self.i : self.i + 1]
        if closed not in ("]", ")", "["):
            self.fail()
        self.i += 1
        return _between(low, high, opened == "[", closed == "]", self.subject)

    def end(self) -> f.Value:
        value = self.value()
        if not isinstance(value, f.Value) or isinstance(value, f.Name):
            self.fail()
        return value

    def value(self) -> f.Formula | f.Value:
        """A value; a formula for true, false and null."""
        self.space()
        return _converted(self.literal(), self.subject)

    def literal(self) -> _Literal:
        text, start = self.text, self.i
        if (match := _TIME.match(text, start)) is not None:
            self.i = match.end()
            if match[2]:
                self.expect(")")
            return _time(match[1], _unquoted(match[3]), match[0])
        if text.startswith("@", start) and (match := _STRING.match(text, start + 1)) is not None:
            self.i = match.end()
            return _any_time(_unquoted(match[0]))
        if (match := _STRING.match(text, start)) is not None:
            self.i = match.end()
            return _Literal(_unquoted(match[0]), "string")
        word = _WORD.match(text, start)
        if word is None:
            self.fail()
        self.i = word.end()
        if _BARE_TIME.fullmatch(word[0]):
            kind = "date" if len(word[0]) == 10 else "datetime"
            return _time(kind, word[0].replace(" ", "T"), word[0], bare=True)
        if _NUMBER.fullmatch(word[0]):
            return _Literal(word[0], "number")
        return _Literal(word[0], "word")


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "'": "'"}


def _unquoted(text: str) -> str:
    """The content of quotes, with the escapes of DMN."""

    def unescaped(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        if match[2] not in _ESCAPES:
            raise CellProblem(f"a backslash in quotes is written \\\\, got {shortened(text, 60)}")
        return _ESCAPES[match[2]]

    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", unescaped, text[1:-1], flags=re.DOTALL)


def _time(kind: str, text: str, written: str, bare: bool = False) -> _Literal:
    """A date, a time or a duration by its kind."""
    try:
        if kind == "date":
            value: f.Value = f.Time(parse_date(text))
        elif kind == "time":
            value = f.TimeOfDay(parse_time(text))
        elif kind == "duration":
            value = f.Duration(parse_duration(text))
        else:
            value = f.Time(*parse_datetime(text))
    except ValueError as error:
        raise CellProblem(str(error)) from None
    return _Literal(text if bare else written, "time", value)


def _any_time(text: str) -> _Literal:
    """What ``@"…"`` stands for, by its form."""
    if re.match(r"-?P", text):
        return _time("duration", text, text)
    if re.match(r"[0-9]{2}:", text):
        return _time("time", text, text)
    return _time("date" if len(text) == 10 else "datetime", text, text)


# Values, as a column's kind asks for


def _converted(x: _Literal, subject: Subject) -> Any:
    """A value of the rule language; a formula for true, false and null."""
    column = subject.column
    if column is None or column.kind not in _OF_KIND:
        return _guessed(x, subject)
    if x.kind == "word" and x.text == "null" and "null" not in column.categories:
        return f.Missing(subject.value)
    return _OF_KIND[column.kind](x, subject)


def _guessed(x: _Literal, subject: Subject) -> Any:
    """A value without a schema: what it looks like."""
    if x.kind == "time":
        return x.value
    if x.kind == "number":
        return x.value or f.Number(_number(x.text))
    if x.kind == "string":
        return f.String(x.text)
    if x.text == "null":
        return f.Missing(subject.value)
    if x.text.lower() in ("true", "false"):
        return _boolean(x.text.lower() == "true", subject)
    if not (x.text[0].isalpha() or x.text[0] == "_"):
        raise CellProblem(
            f"{shortened(x.text, 60)!r} is no number, range or text: write [10..20] for a range, "
            f'and text in quotes, "{shortened(x.text, 60)}"'
        )
    if {"and", "or", "not", "in", "between", "is"} & set(x.text.lower().split()):
        raise CellProblem(
            f"{shortened(x.text, 60)!r} is no value: write a, b for either value, > 3 and < 5 for "
            f'both tests, and text in quotes, "{shortened(x.text, 60)}"'
        )
    return f.String(x.text)


def _number(text: str) -> int | float:
    digits = text.lstrip("+-")
    if re.match(r"0[0-9]", digits):
        raise CellProblem(f'a number would lose the zeros of {text}: quote a code, "{text}"')
    found = float(text)
    if not math.isfinite(found) or underflows(text):
        raise CellProblem(f"{shortened(text, 60)} is beyond double precision")
    return int(text) if digits.isdecimal() else found


def _of_numeric(x: _Literal, subject: Subject) -> f.Value:
    text = x.text.strip()
    if x.kind in ("number", "string") and x.value is None and _NUMBER.fullmatch(text):
        return f.Number(_number(text))
    if isinstance(x.value, f.Number):
        return x.value
    raise CellProblem(f"a number was expected, got {shortened(x.text, 60)!r}")


def _of_categorical(x: _Literal, subject: Subject) -> f.Value:
    assert subject.column is not None
    if x.text not in subject.column.categories:
        raise CellProblem(
            f"there is no category {shortened(x.text, 60)!r}; "
            f"{nearest(x.text, subject.column.categories)}"
        )
    return f.String(x.text)


def _of_boolean(x: _Literal, subject: Subject) -> f.Formula:
    column = subject.column
    assert column is not None
    words = dict.fromkeys(column.false_values or FALSE_WORDS, False)
    words |= dict.fromkeys(column.true_values or TRUE_WORDS, True)
    words = {"1": True, "0": False, "true": True, "false": False} | words
    found = words.get(x.text, words.get(x.text.lower()))
    if found is None:
        raise CellProblem(f"true or false was expected, got {shortened(x.text, 60)!r}")
    return _boolean(found, subject)


def _of_text(x: _Literal, subject: Subject) -> f.Value:
    return f.String(x.text)


def _of_time(parse: Callable[[str], f.Value], kind: type, what: str) -> Callable[..., f.Value]:
    def convert(x: _Literal, subject: Subject) -> f.Value:
        if isinstance(x.value, kind):
            return x.value
        try:
            return parse(x.text)
        except ValueError as error:
            raise CellProblem(f"{what} was expected: {error}") from None

    return convert


def _instant(text: str) -> f.Value:
    return f.Time(parse_date(text)) if len(text) == 10 else f.Time(*parse_datetime(text))


_OF_KIND: dict[str, Callable[[_Literal, Subject], Any]] = {
    "numeric": _of_numeric,
    "categorical": _of_categorical,
    "boolean": _of_boolean,
    "text": _of_text,
    "datetime": _of_time(_instant, f.Time, "a date or time"),
    "time": _of_time(lambda x: f.TimeOfDay(parse_time(x)), f.TimeOfDay, "a time of day"),
    "duration": _of_time(lambda x: f.Duration(parse_duration(x)), f.Duration, "a duration"),
}


def _boolean(holds: bool, subject: Subject) -> f.Formula:
    if not isinstance(subject.value, f.Name):
        raise CellProblem("true and false are for columns, not for expressions")
    return subject.value if holds else f.Not(subject.value)


# Formulas


def _equals(values: Sequence[Any], subject: Subject) -> f.Formula:
    return _either(values, subject)


def _is_value(x: Any) -> bool:
    """Whether a test is a value, rather than a formula; a name here is that of a boolean column."""
    return isinstance(x, f.Value) and not isinstance(x, f.Name)


def _either(tests: Sequence[Any], subject: Subject) -> f.Formula:
    """The tests, of which one must hold."""
    if len(tests) > 1 and all(map(_is_value, tests)):
        return f.In(subject.value, tuple(tests))
    parts = [f.Compare((subject.value, x), ("==",)) if _is_value(x) else x for x in tests]
    return parts[0] if len(parts) == 1 else f.Or(tuple(parts))


def _negated(tests: Sequence[Any], subject: Subject) -> f.Formula:
    """The tests, none of which may hold."""
    if all(map(_is_value, tests)):
        if len(tests) == 1:
            return f.Compare((subject.value, tests[0]), ("!=",))
        return f.In(subject.value, tuple(tests), negated=True)
    return _not(_either(tests, subject))


def _not(x: f.Formula) -> f.Formula:
    match x:
        case f.Missing(value, False):
            return f.Missing(value, negated=True)
        case f.Not(part):
            return part
    return f.Not(x)


def _between(low: Any, high: Any, from_low: bool, to_high: bool, subject: Subject) -> f.Formula:
    """A range; without a low or a high end if it is None."""
    for end in (low, high):
        if end is not None:
            _check_order(subject, end)
    if low is None and high is None:
        raise CellProblem("a range without ends says nothing: write -")
    below, above = "<=" if from_low else "<", "<=" if to_high else "<"
    if low is None:
        return f.Compare((subject.value, high), (above,))
    if high is None:
        return f.Compare((subject.value, low), (">=" if from_low else ">",))
    ends = [_rank(x, subject) for x in (low, high)]
    if None not in ends and type(low) is type(high):
        if ends[0] > ends[1] or (ends[0] == ends[1] and not (from_low and to_high)):
            raise CellProblem("the range is empty: the low end comes first, as in [10..20)")
    return f.Compare((low, subject.value, high), (below, above))


def _rank(x: f.Value, subject: Subject) -> Any:
    """What the ends of a range are compared by; None if it is not known."""
    if isinstance(x, f.Number):
        return x.value
    if isinstance(x, f.Time | f.TimeOfDay | f.Duration):
        return x.nanoseconds
    if isinstance(x, f.String) and subject.column is not None and subject.column.ordered:
        return subject.column.categories.index(x.value)
    return None


def _check_order(subject: Subject, value: Any) -> None:
    column = subject.column
    if isinstance(value, f.Name | f.Not | f.Missing):
        raise CellProblem("true, false and null have no order")
    if column is not None and isinstance(value, f.String) and not column.ordered:
        raise CellProblem(
            f"the values of the column have no order: it is {column.kind}, and ordered=True is "
            "for categories in an order"
        )


def _chain(found: Sequence[f.Formula]) -> f.Formula | None:
    """``3 < x <= 5`` for the two comparisons ``> 3`` and ``<= 5``; None for others."""
    if len(found) == 1:
        return found[0]
    match found:
        case [f.Compare((x, a), (first,)), f.Compare((_, b), (second,))]:
            if first in ("<", "<=") and second in (">", ">="):
                a, b, first, second = b, a, second, first
            if first in (">", ">=") and second in ("<", "<="):
                return f.Compare((a, x, b), (first.replace(">", "<"), second))
    return None


# Formulas with ? for the column


def pieces(text: str) -> list[str]:
    """Text outside of quotes and text in quotes, in turn."""
    return re.split("(" + _STRING.pattern + "|`(?:[^`\\\\]|\\\\.)*`)", text)


def _has_question_mark(text: str) -> bool:
    return any("?" in piece for piece in pieces(text)[::2])


def _with_subject(text: str, subject: Subject) -> f.Formula:
    if text == "?":
        raise CellProblem('? alone is no formula: write "?" for this text, true, or null')
    value = subject.value
    written = quoted(value.name) if isinstance(value, f.Name) else f"({value})"
    parts = pieces(text)
    parts[::2] = [part.replace("?", f" {written} ") for part in parts[::2]]
    try:
        return parse_formula("".join(parts))
    except RuleError as error:
        problem = str(error).removeprefix("line 1, ").split("\n")[0]
        raise CellProblem(
            f"not a formula of the rule language with ? for the column: {shortened(text, 80)!r}: "
            f"{problem}"
        ) from None


# Other cells


def text_of_python(x: Any) -> str:
    """A cell as the text that a class's name would have."""
    if isinstance(x, str):
        return x.strip()
    if isinstance(x, bool | np.bool_ | int | np.integer | float | np.floating | datetime.date):
        return _of_python(x).text
    raise CellProblem(f"expected the name of a class or label, got {_shown(x)}")


def _shown(x: Any) -> str:
    try:
        return shortened(repr(x), 80)
    except ValueError:  # an integer with thousands of digits
        return f"a {type(x).__name__}"
