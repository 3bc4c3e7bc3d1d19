"""Clauses in DIMACS CNF, the file format of SAT solvers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.errors import RuleError, error_at, shortened

_HEADER = re.compile(r"p\s+cnf\s+([0-9]{1,9})\s+([0-9]{1,9})\s*")


def from_dimacs(text: str, names: Sequence[str] | None = None) -> tuple[f.Rule, ...]:
    """The clauses of a file, each as a hard disjunction.

    Args:
      text: The file's text.
      names: The names of the variables; if None, comments ``c 3 name`` name them, and variable 3 is
        ``x3`` without one.

    Raises:
      RuleError: for text that is not DIMACS CNF, with line and column.
      ValueError: if the number of ``names`` differs from the number of variables.
    """
    variables, count, commented = 0, -1, {}
    clauses: list[tuple[int, list[int]]] = []
    clause: list[int] = []
    first = line = 0
    for line, row in enumerate(re.split("\r\n|\n|\r", text), 1):
        if row.startswith("%"):  # files of SATLIB end with it
            break
        comment = row.split(maxsplit=2)
        if comment[:1] == ["c"]:
            if len(comment) == 3 and re.fullmatch("[0-9]{1,9}", comment[1]):
                commented.setdefault(int(comment[1]), comment[2].rstrip())
            continue
        if row.startswith("p"):
            header = _HEADER.fullmatch(row)
            if header is None or count >= 0:
                raise error_at("expected one header, p cnf VARIABLES CLAUSES", row, line, 0)
            variables, count = int(header[1]), int(header[2])
            continue
        for word in re.finditer(r"\S+", row):
            if count < 0:
                raise error_at("expected a header first, p cnf VARIABLES CLAUSES", row, line, 0)
            literal = _literal(word, variables, row, line)
            first = first if clause else line
            if literal:
                clause.append(literal)
            elif not clause:
                raise error_at("this clause is empty, and can never hold", row, line, word.start())
            else:
                clauses.append((first, clause))
                clause = []
    if clause:
        raise RuleError(f"line {first}: this clause does not end with 0")
    if len(clauses) != max(count, 0):
        raise RuleError(f"line {line}: expected {max(count, 0)} clauses, got {len(clauses)}")
    used = {abs(x) for _, one in clauses for x in one}
    known = _names(variables, used, commented, names)
    return tuple(
        f.Rule(_disjunction([known[abs(x)] for x in one], one), None, f.HARD, False, start)
        for start, one in clauses
    )


def _literal(word: re.Match[str], variables: int, row: str, line: int) -> int:
    """A variable's number, negative if it is negated; 0 at the end of a clause."""
    if not re.fullmatch("-?[0-9]{1,9}", word[0]):
        raise error_at(f"expected a whole number, got {word[0][:20]}", row, line, word.start())
    literal = int(word[0])
    if abs(literal) > variables:
        message = f"the header has {variables} variables, got variable {abs(literal)}"
        raise error_at(message, row, line, word.start())
    return literal


def _names(
    count: int, used: set[int], commented: dict[int, str], names: Sequence[str] | None
) -> dict[int, str]:
    """The name of each variable that occurs, by number: a header may promise any number."""
    if names is not None and len(names) != count:
        raise ValueError(f"names must hold {count} names, one per variable, got {len(names)}")
    if names is not None:
        known = dict(enumerate(names, 1))
    else:
        numbers = sorted(used | {i for i in commented if 1 <= i <= count})
        known = {i: commented.get(i, f"x{i}") for i in numbers}
    number_of: dict[str, int] = {}
    for i, name in known.items():
        if (other := number_of.setdefault(name, i)) != i:
            raise RuleError(f"line 1: the variables {other} and {i} are both named {name!r}")
    return known


def _disjunction(names: list[str], clause: list[int]) -> f.Formula:
    parts = tuple(
        f.Name(name) if x > 0 else f.Not(f.Name(name))
        for name, x in zip(names, clause, strict=True)
    )
    return parts[0] if len(parts) == 1 else f.Or(parts)


def to_dimacs(rules: Sequence[f.Rule]) -> str:
    """The text of a file with these rules as clauses, and comments that name the variables.

    Args:
      rules: Hard disjunctions of names and negated names, themselves without names.

    Raises:
      ValueError: for other rules, or a name that a comment cannot hold.
    """
    numbers: dict[str, int] = {}
    lines = []
    for rule in rules:
        literals = [_name_and_sign(part) for part in _parts(rule)]
        named = rule.name is not None or rule.group is not None
        if None in literals or rule.strength != f.HARD or rule.definition or named:
            raise ValueError(
                "a .cnf file can only hold rules such as [hard] a or not b, got "
                f"{shortened(str(rule), 200)}"
            )
        signed = [
            numbers.setdefault(name, len(numbers) + 1) * sign
            for name, sign in filter(None, literals)
        ]
        lines.append(" ".join(map(str, [*signed, 0])))
    for name in numbers:
        if not name.isprintable() or name != name.strip() or not name:
            raise ValueError(f"a .cnf file cannot hold the name {shortened(repr(name), 80)}")
    comments = [f"c {number} {name}" for name, number in numbers.items()]
    return "\n".join([*comments, f"p cnf {len(numbers)} {len(rules)}", *lines]) + "\n"


def _parts(rule: f.Rule) -> tuple[f.Formula, ...]:
    return rule.formula.parts if isinstance(rule.formula, f.Or) else (rule.formula,)


def _name_and_sign(part: f.Formula) -> tuple[str, int] | None:
    """A name and 1, or −1 if it is negated; None for other formulas."""
    match part:
        case f.Name(name):
            return name, 1
        case f.Not(f.Name(name)):
            return name, -1
    return None
