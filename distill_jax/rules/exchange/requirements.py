"""Requirements as PiShield writes them: clauses over labels, inequalities between outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from distill_jax._arguments import checked
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.errors import RuleError, error_at, shortened

_VARIABLE = r"(y_?[0-9]{1,9})"
_LITERAL = re.compile(rf"\s*(not\s+|neg\s+)?{_VARIABLE}\s*")
_INDEX = re.compile(r"(n?)([0-9]{1,9})")
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_TERM = re.compile(rf"\s*([+-])?\s*(?:({_NUMBER})?\s*\*?\s*{_VARIABLE}|({_NUMBER}))\s*")
_SIGN = re.compile(r">=|<=|==|>|<|=")
_MOST_IN_A_ROW = 40
"""Summands in a row: a formula may have 100 levels, and each summand is one."""


class Requirements(NamedTuple):
    """What a file of requirements holds; made by ``from_requirements``.

    Attributes:
      rules: The requirements, hard, in the order of the file.
      ordering: The names of the variables in the order in which outputs are corrected: that of the
        line ``ordering``, or without one those that occur, by number.
    """

    rules: tuple[f.Rule, ...]
    ordering: tuple[str, ...]


@checked
def from_requirements(text: str, *, names: Sequence[str] | None = None) -> Requirements:
    """Reads requirements in the formats of PiShield, propositional and linear.

    =============================  ================================================================
    line                           meaning
    =============================  ================================================================
    ``y_0 or not y_1 or y_2``      a clause: one of these holds
    ``0 :- 1 n2``                  label 0 holds where label 1 does and label 2 does not
    ``2y_0 - 3y_1 >= 0.5``         a linear inequality between outputs; also ``y0``, ``2*y_0``
    ``y_0 >= 1 or neg y_1 >= 0``   one of the inequalities holds; ``neg`` negates one
    ``ordering y_1 y_0``           the order in which outputs are corrected
    =============================  ================================================================

    A name before a Horn rule (``c0 0 :- 1``) becomes the rule's name. Empty lines, and those that
    start with ``#``, are skipped.

    Args:
      text: The file's text.
      names: Labels or outputs in the order of their numbers: ``names[3]`` is ``y_3``. By default a
        variable is called ``y_3``.

    Returns:
      Hard rules and the ordering. ``bind`` takes rules that are clauses, for a schema with
      ``exclusive=False``; ``linear_constraints`` takes those that are inequalities.

    Raises:
      RuleError: for a line that is none of these, a variable that the line ``ordering`` or
        ``names`` lacks, or a text without requirements, with line and column.

    Example:
      >>> for rule in from_requirements("y_0 or not y_1", names=["animal", "cat"]).rules:
      ...     print(rule)
      [hard] animal or not cat
      >>> print(*from_requirements("ordering y_0 y_1\\n2y_0 - y_1 >= 0.5").rules)
      [hard] 2 * y_0 - y_1 >= 0.5

    References:
      Stoian, Tatomir, Lukasiewicz and Giunchiglia, `PiShield: A PyTorch Package for Learning with
      Requirements <https://arxiv.org/abs/2402.18285>`_, 2024.
    """
    known = _Names(names)
    rules: list[f.Rule] = []
    ordering: tuple[str, ...] | None = None
    for number, row in enumerate(re.split("\r\n|\n|\r", text), 1):
        words = row.split()
        if not words or row.lstrip().startswith("#"):
            continue
        if words[0] == "ordering":
            if ordering is not None:
                raise error_at("expected one line ordering, got a second", row, number, 0)
            ordering = known.ordered(row, number)
            continue
        read = _horn if ":-" in row else _inequalities if _SIGN.search(row) else _clause
        name, formula = read(row, number, known)
        rules.append(f.Rule(formula, name, f.HARD, False, number, row))
    if not rules:
        raise RuleError(f"expected requirements, one per line, got {shortened(text.strip())!r}")
    if ordering is None:
        ordering = tuple(known.used[i] for i in sorted(known.used))
    return Requirements(tuple(rules), ordering)


class _Names:
    """The names of variables by number.

    Attributes:
      used: Those that occurred, by number.
    """

    def __init__(self, names: Sequence[str] | None):
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"names must differ from each other, got {list(names)}")
        self.names, self.used = names, {}
        self._ordered: set[int] | None = None

    def __call__(self, variable: str, row: str, line: int, offset: int) -> f.Name:
        """The name of a variable that a requirement mentions."""
        number = int(variable.lstrip("y_"))
        if self.names is not None and number >= len(self.names):
            message = f"names has {len(self.names)} names, from y_0, got variable y_{number}"
            raise error_at(message, row, line, offset)
        if self._ordered is not None and number not in self._ordered:
            message = f"y_{number} is not in the line ordering: add it there"
            raise error_at(message, row, line, offset)
        name = f"y_{number}" if self.names is None else self.names[number]
        return f.Name(self.used.setdefault(number, name))

    def ordered(self, row: str, line: int) -> tuple[str, ...]:
        """The names in a line ``ordering``, which stands before the requirements."""
        if self.used:
            raise error_at("ordering must stand before the requirements", row, line, 0)
        found: dict[int, str] = {}
        for word in list(re.finditer(r"\S+", row))[1:]:
            variable = re.fullmatch(_VARIABLE, word[0])
            if variable is None:
                message = f"expected a variable such as y_0, got {shortened(word[0], 20)}"
                raise error_at(message, row, line, word.start())
            name = self(variable[1], row, line, word.start()).name
            if name in found.values():
                raise error_at(f"{word[0]} is in the ordering twice", row, line, word.start())
            found[int(variable[1].lstrip("y_"))] = name
        self._ordered = set(found)
        return tuple(found.values())


def _clause(row: str, line: int, known: _Names) -> tuple[None, f.Formula]:
    """``y_0 or not y_1``."""
    parts = []
    for start, part in _alternatives(row):
        literal = _LITERAL.fullmatch(part)
        if literal is None:
            message = "expected y_0, not y_1, joined by or; 0 :- 1 n2; or an inequality such as "
            raise error_at(f"{message}y_0 - 2y_1 >= 0.5", row, line, _first(part, start))
        name = known(literal[2], row, line, start + literal.start(2))
        parts.append(f.Not(name) if literal[1] else name)
    return None, _joined(f.Or, parts)


def _horn(row: str, line: int, known: _Names) -> tuple[str | None, f.Formula]:
    """``0 :- 1 n2``: label 0 holds where 1 does and 2 does not."""
    arrow = row.index(":-")
    before = list(re.finditer(r"\S+", row[:arrow]))
    if len(before) not in (1, 2):
        raise error_at("expected one head before :-, as in 0 :- 1 n2", row, line, 0)
    words = [before[-1], *re.compile(r"\S+").finditer(row, arrow + 2)]
    literals = []
    for word in words:
        index = _INDEX.fullmatch(word[0])
        if index is None:
            message = f"expected a label's number, such as 1 or n2, got {shortened(word[0], 20)}"
            raise error_at(message, row, line, word.start())
        name = known(index[2], row, line, word.start())
        literals.append(f.Not(name) if index[1] else name)
    head, *body = literals
    name = before[0][0] if len(before) == 2 else None
    return name, f.Implies(_joined(f.And, body), head) if body else head


def _inequalities(row: str, line: int, known: _Names) -> tuple[None, f.Formula]:
    """``y_0 - 2y_1 >= 0.5``, or several joined by ``or``, each perhaps after ``neg``."""
    parts = []
    for start, part in _alternatives(row):
        negated = re.match(r"\s*(neg|not)\b", part)
        offset = start + (negated.end() if negated else 0)
        inner = row[offset : start + len(part)]
        signs = list(_SIGN.finditer(inner))
        if len(signs) != 1:
            message = "expected one comparison, such as y_0 - 2y_1 >= 0.5"
            place = signs[1].start() + offset if signs else _first(part, start)
            raise error_at(message, row, line, place)
        sign = signs[0]
        left = _sum(row, line, known, offset, offset + sign.start())
        right = _sum(row, line, known, offset + sign.end(), offset + len(inner))
        formula = f.Compare((left, right), ("==" if sign[0] == "=" else sign[0],))
        parts.append(f.Not(formula) if negated else formula)
    return None, _joined(f.Or, parts)


def _sum(row: str, line: int, known: _Names, start: int, stop: int) -> f.Value:
    """A sum of numbers and of multiples of variables."""
    terms: list[tuple[str, f.Value]] = []
    at = start
    while at < stop or not terms:
        term = _TERM.match(row, at, stop)
        if term is None or (terms and not term[1]):
            message = "expected terms such as 2y_0, joined by + or -"
            raise error_at(message, row, line, min(_first(row[at:stop], at), stop))
        sign, factor, variable, number = term.groups()
        if variable is None:
            value: f.Value = _number(number, row, line, term.start(4))
        else:
            value = known(variable, row, line, term.start(3))
            if factor is not None:
                factor_ = _number(factor, row, line, term.start(2))
                value = f.Arithmetic("*", factor_, value)
        terms.append((sign or "+", value))
        at = term.end()
    return _added(terms)


def _added(terms: Sequence[tuple[str, f.Value]]) -> f.Value:
    """The sum, in groups that stay flat enough to be printed."""
    if len(terms) > _MOST_IN_A_ROW:
        groups = range(0, len(terms), _MOST_IN_A_ROW)
        return _added([("+", _added(terms[i : i + _MOST_IN_A_ROW])) for i in groups])
    (sign, total), *rest = terms
    if sign == "-":
        total = f.Number(-total.value) if isinstance(total, f.Number) else _negative(total)
    for sign, value in rest:
        total = f.Arithmetic(sign, total, value)
    return total


def _negative(value: f.Value) -> f.Value:
    """A negated term; of a multiple, the factor is negated, as it would be read from text."""
    match value:
        case f.Arithmetic("*", f.Number(factor), other):
            return f.Arithmetic("*", f.Number(-factor), other)
    return f.Negative(value)


def _number(text: str, row: str, line: int, offset: int) -> f.Number:
    value = float(text)
    if value == float("inf"):
        raise error_at("this number is beyond double precision", row, line, offset)
    return f.Number(int(value) if value.is_integer() and "e" not in text.lower() else value)


def _alternatives(row: str) -> list[tuple[int, str]]:
    """The parts between ``or``, each with where it starts."""
    found, start = [], 0
    for word in re.finditer(r"\bor\b", row):
        found.append((start, row[start : word.start()]))
        start = word.end()
    return [*found, (start, row[start:])]


def _first(part: str, start: int) -> int:
    """Where the text of a part begins."""
    return start + len(part) - len(part.lstrip())


def _joined(kind: type[f.And] | type[f.Or], parts: Sequence[f.Formula]) -> f.Formula:
    return parts[0] if len(parts) == 1 else kind(tuple(parts))
