"""What rules mean, a row at a time in plain Python: strong three-valued logic, None for unknown."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from distill_jax.rules.language import formulas as f

Label = Callable[[str | None, str], bool]
"""``(view, name)``: whether a class or label holds."""


def holds(tree: Any, row: Mapping[str, Any], classes: Mapping[Any, Any], clauses: Any = ()) -> Any:
    """True, False or None.

    Args:
      tree: A formula.
      row: Raw values by column; None is missing.
      classes: With exclusive classes ``{None: class, view: class}`` and the target's name under
        ``"target"``; with label sets ``{(view, label): bool}``.
      clauses: Rules that define predicates.
    """

    def boolean(x: Any) -> Any:
        if isinstance(x, f.Not):
            return negation(boolean(x.part))
        if isinstance(x, f.And):
            return conjunction([boolean(p) for p in x.parts])
        if isinstance(x, f.Or):
            return negation(conjunction([negation(boolean(p)) for p in x.parts]))
        if isinstance(x, f.Implies):
            return boolean(f.Or((f.Not(x.body), x.head)))
        if isinstance(x, f.Iff):
            a, b = boolean(x.left), boolean(x.right)
            return None if a is None or b is None else a == b
        if isinstance(x, f.Count):
            return count(x)
        if isinstance(x, f.Compare):
            pairs = zip(x.operands, x.operators, x.operands[1:], strict=False)
            return conjunction([compare(a, op, b) for a, op, b in pairs])
        if isinstance(x, f.Between):
            return conjunction([compare(x.low, "<=", x.value), compare(x.value, "<=", x.high)])
        if isinstance(x, f.In):
            found = negation(conjunction([compare(x.value, "!=", c) for c in x.choices]))
            return negation(found) if x.negated else found
        if isinstance(x, f.Missing):
            return (value(x.value) is None) != x.negated
        if isinstance(x, f.Matches):
            text = value(x.value)
            return None if text is None else re.search(x.pattern, text) is not None
        if isinstance(x, f.Of):
            return label(x.view, x.name)
        if isinstance(x, f.Name):
            if x.name in row:
                return None if row[x.name] is None else bool(row[x.name])
            bodies = [c.formula.body for c in clauses if c.formula.head.name == x.name]
            if bodies:
                return boolean(f.Or(tuple(bodies)))
            return label(None, x.name)
        raise AssertionError(x)

    def label(view: str | None, name: str) -> bool:
        if "target" in classes:
            return classes[view] == name
        return classes[view, name]

    def count(x: f.Count) -> Any:
        values = [boolean(p) for p in x.parts]
        least, most = values.count(True), len(values) - values.count(False)
        low = {"exactly_one": 1, "any_of": 1, "all_of": len(values), "at_least": x.number}
        high = {"exactly_one": 1, "at_most": x.number}
        low, high = low.get(x.kind, 0), high.get(x.kind, len(values))
        if least >= low and most <= high:
            return True
        return False if most < low or least > high else None

    def ends(x: Any) -> tuple[Any, Any]:
        """The least and the most that a score can be, conditions that are unknown being free."""
        if isinstance(x, f.Score):
            both = [(boolean(p.condition), decimal(p.factor)) for p in x.parts]
            free = [factor for held, factor in both if held is None]
            known = sum(factor for held, factor in both if held)
            return known + sum(min(w, 0) for w in free), known + sum(max(w, 0) for w in free)
        if isinstance(x, f.Negative):
            low, high = ends(x.value)
            return -high, -low
        if isinstance(x, f.Arithmetic):
            (a, b), (c, d) = ends(x.left), ends(x.right)
            if x.operator in "+-":
                return (a + c, b + d) if x.operator == "+" else (a - d, b - c)
            found = [a / c, b / d] if x.operator == "/" else [a * c, a * d, b * c, b * d]
            assert a == b or c == d
            return min(found), max(found)
        return decimal(x.value), decimal(x.value)

    def compare_scores(left: Any, operator: str, right: Any) -> Any:
        (a, b), (c, d) = ends(left), ends(right)
        least, most = a - d, b - c
        if operator in ("==", "!="):
            equal = True if least == most == 0 else False if least > 0 or most < 0 else None
            return equal if operator == "==" else negation(equal)
        say = {"<": lambda x: x < 0, "<=": lambda x: x <= 0, ">": lambda x: x > 0,
               ">=": lambda x: x >= 0}[operator]  # fmt: skip
        return say(least) if say(least) == say(most) else None

    def value(x: Any) -> Any:
        if isinstance(x, f.Number | f.String):
            return x.value
        if isinstance(x, f.Negative):
            inner = value(x.value)
            return None if inner is None else -inner
        if isinstance(x, f.Arithmetic):
            a, b = value(x.left), value(x.right)
            if a is None or b is None:
                return None
            return (
                {"+": a + b, "-": a - b, "*": a * b}.get(x.operator)
                if x.operator != "/"
                else (a / b if b else None)
            )
        if x.name == classes.get("target"):
            return classes[x.view if isinstance(x, f.Of) else None]
        return row[x.name] if x.name in row else boolean(x)

    def compare(left: Any, operator: str, right: Any) -> Any:
        if any(isinstance(tree, f.Score) for x in (left, right) for tree in f.trees(x)):
            return compare_scores(left, operator, right)
        a, b = value(left), value(right)
        if a is None or b is None or (isinstance(a, float) and math.isnan(a)):
            return None
        return {
            "==": lambda: a == b, "!=": lambda: a != b, "<": lambda: a < b,
            "<=": lambda: a <= b, ">": lambda: a > b, ">=": lambda: a >= b,
        }[operator]()  # fmt: skip

    return boolean(tree)


def decimal(number: int | float) -> Fraction:
    return Fraction(str(number))


def negation(a: Any) -> Any:
    return None if a is None else not a


def conjunction(values: list[Any]) -> Any:
    if False in values:
        return False
    return None if None in values else True


FEATURES = (
    "x > 1", "x <= 0", "x == 2", "x != 2", "2 >= x", "0 < x <= 2", "not x < 1", "x + y > 1",
    "x - 2 * y <= 0", "x < y", "x / 2 >= y", "-x > 0", "x between 0 and 1", "x in [0, 2]",
    "x not in [1]", "x is missing", "y is not missing", "flag", "flag == 1", "sex == 'F'",
    "sex != 'F'", "sex in ['F', 'M']", "txt matches r'^call'", "txt is missing", "x + y is missing",
    "y >= 1", "known",
)  # fmt: skip
"""Atoms over the columns of ``ROW_VALUES``."""

ROW_VALUES = {
    "x": (-1.0, 0.0, 1.0, 2.0, 3.0, None),
    "y": (-1.0, 0.0, 1.0, None),
    "flag": (True, False, None),
    "sex": ("F", "M", None),
    "txt": ("call me", "so what", None),
}

CLAUSES = "known :- flag, x > 0.\nknown :- y = 1, not flag.\n"


def random_formula(draw: random.Random, atoms: tuple[str, ...], depth: int) -> str:
    """The text of a formula over these atoms."""
    if depth == 0 or draw.random() < 0.15:
        return draw.choice(atoms)
    parts = [f"({random_formula(draw, atoms, depth - 1)})" for _ in range(3)]
    kind = draw.randrange(8)
    if kind < 2:
        return " and ".join(parts[: 2 + kind])
    if kind < 4:
        return " or ".join(parts[:kind])
    if kind == 4:
        return f"not {parts[0]}"
    if kind == 5:
        return f"{parts[0]} => {parts[1]}"
    if kind == 6:
        return f"{parts[0]} <=> {parts[1]}"
    name = draw.choice(("exactly_one(", "at_most(1, ", "at_least(2, ", "all_of(", "any_of("))
    return name + ", ".join(parts) + ")"


def random_rows(draw: random.Random, number: int) -> list[dict[str, Any]]:
    """Rows of raw values, some of them missing."""
    return [{name: draw.choice(v) for name, v in ROW_VALUES.items()} for _ in range(number)]
