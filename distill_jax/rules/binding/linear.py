"""Linear constraints between the outputs of a regression model, from text to matrices.

A constraint is a comparison of sums in the language of rules, ``total >= part_a + part_b``, whose
names are outputs. What satisfies all of them is a convex polyhedron, {y: A y ≤ b, E y = f}.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.rules.binding.binding import as_rules
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error, unknown_name
from distill_jax.rules.language._spelling import quoted
from distill_jax.rules.language.building import Built
from distill_jax.rules.language.errors import RuleError
from distill_jax.types import OutputKind

MOST_SEARCHED = 200
"""Rules among which the smallest set that cannot hold together is searched for."""


class LinearRow(NamedTuple):
    """One comparison, ``Σ coefficient · output ≤ bound``, or ``=`` for an equality.

    Attributes:
      coefficients: Pairs of an output's index and its coefficient, not 0, by index.
      bound: The right side.
      equality: Whether both sides are equal.
      text: The comparison as it is printed.
    """

    coefficients: tuple[tuple[int, Fraction], ...]
    bound: Fraction
    equality: bool
    text: str


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LinearConstraints:
    """Linear constraints between named outputs; made by ``linear_constraints``.

    A pytree without leaves, equal and hashed by its contents: pass it to jitted functions as an
    argument. ``len(constraints)`` is the number of comparisons: a chain ``0 <= share <= 1`` is two.

    Attributes:
      names: The names of the outputs, in the order of the model's.
      rows: The comparisons in the order written, with exact coefficients.
    """

    made_by = "linear_constraints"

    names: tuple[str, ...]
    rows: tuple[LinearRow, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the outputs: training compares them with those that a student declares."""
        return self.names

    @property
    def outputs(self) -> OutputKind:
        """What a student's outputs must mean: predicted numbers."""
        return "regression"

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each comparison."""
        return tuple(row.text for row in self.rows)

    @property
    def a_ub(self) -> np.ndarray:
        """The matrix of the inequalities ``a_ub @ y <= b_ub``, float64 ``[inequalities, outputs]``.

        The four arrays are named as by ``scipy.optimize.linprog``.
        """
        return self._arrays[0]

    @property
    def b_ub(self) -> np.ndarray:
        """The right side of the inequalities, float64 ``[inequalities]``."""
        return self._arrays[1]

    @property
    def a_eq(self) -> np.ndarray:
        """The matrix of the equalities ``a_eq @ y == b_eq``, float64 ``[equalities, outputs]``."""
        return self._arrays[2]

    @property
    def b_eq(self) -> np.ndarray:
        """The right side of the equalities, float64 ``[equalities]``."""
        return self._arrays[3]

    @functools.cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        parts = [[row for row in self.rows if row.equality is kind] for kind in (False, True)]
        (a_ub, b_ub), (a_eq, b_eq) = (matrix(rows, len(self.names)) for rows in parts)
        return a_ub, b_ub, a_eq, b_eq

    def describe(self) -> dict[str, Any]:
        """The constraints as JSON-compatible values, for the configuration of a run."""
        return {"outputs": list(self.names), "constraints": list(self.texts)}

    @functools.cached_property
    def _hash(self) -> int:  # cached: needed at every call of a compiled function
        return hash((self.names, self.rows))

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        # Strings have other hashes in another process.
        return {"names": self.names, "rows": self.rows}

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join(self.texts)

    def __repr__(self) -> str:
        return f"<LinearConstraints: {len(self)} between {len(self.names)} outputs>"


def matrix(rows: Sequence[LinearRow], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as a matrix ``[rows, width]`` and a right side ``[rows]``, float64, read-only."""
    a, b = np.zeros((len(rows), width)), np.array([float(row.bound) for row in rows])
    for i, row in enumerate(rows):
        for j, coefficient in row.coefficients:
            a[i, j] = float(coefficient)
    a.flags.writeable = b.flags.writeable = False
    return a, b


@checked
def linear_constraints(
    rules: str | Sequence[str | f.Rule | f.Formula | Built],
    outputs: Sequence[str],
    *,
    margin: float | None = None,
) -> LinearConstraints:
    """Reads linear constraints between the outputs of a model.

    Constraints are comparisons with ``>=``, ``<=`` and ``==``, chains of them, ``between``, and any
    of these joined by ``and``, over sums, differences and multiples of outputs:
    ``total >= part_a + part_b``, ``0 <= share <= 1``, ``mean == (low + high) / 2``. They always
    hold, so that ``[hard]`` before one changes nothing. Decimal numbers are read exactly.

    Args:
      rules: A text with one rule per line, or a sequence of texts, rules and formulas, such as
        the rules that ``from_requirements`` reads.
      outputs: The names of the model's outputs, in their order.
      margin: What a strict comparison demands: ``a > b`` is ``a >= b + margin``, with a margin of
        at least 0. Without one, strict comparisons are refused: what satisfies them has no nearest
        point.

    Returns:
      The constraints, which ``encourage_linear``, ``project_linear`` and ``enforce_linear`` take.

    Raises:
      RuleError: for a rule that is not linear in the outputs, is not one convex set (``or``,
        ``=>``, ``!=``), has a finite strength, or always or never holds; for an unknown name; and
        for constraints that cannot all hold, which are named. With line and caret where known.
      ValueError: for outputs that are not distinct, or a negative margin.

    Example:
      >>> found = linear_constraints("total >= a + b\\n0 <= a <= 1", ["total", "a", "b"])
      >>> print(found.a_ub, found.b_ub)
      [[-1.  1.  1.]
       [ 0. -1.  0.]
       [ 0.  1.  0.]] [0. 0. 1.]
    """
    names = _checks.names("outputs", outputs)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"outputs must be distinct names, at least one, got {list(names)}")
    if margin is not None:
        _checks.number(margin=margin)
        _checks.finite(margin=margin)
        _checks.at_least(0.0, margin=margin)
    written = as_rules(rules)
    rows = [tuple(_rows(rule, names, margin)) for rule in written]
    found = LinearConstraints(names, tuple(row for own in rows for row in own))
    if not _feasible(found):
        raise contradiction(written, rows, names)
    return found


def contradiction(
    rules: Sequence[f.Rule], rows: Sequence[tuple[LinearRow, ...]], names: tuple[str, ...]
) -> RuleError:
    """An error that names the rules which cannot hold together, as few as will do."""
    kept = list(range(len(rows)))
    for i in range(len(rows) if len(rows) <= MOST_SEARCHED else 0):
        fewer = [k for k in kept if k != i]
        if not _feasible(LinearConstraints(names, tuple(r for k in fewer for r in rows[k]))):
            kept = fewer
    shown = "\n".join(f"    {rules[k]}" for k in kept[:10]) + "\n    …" * (len(kept) > 10)
    return RuleError(f"no outputs satisfy all of these constraints:\n{shown}")


def _feasible(constraints: LinearConstraints) -> bool:
    """Whether any outputs satisfy the constraints."""
    if not constraints.rows:
        return True
    from scipy import optimize  # slow to import, and needed here alone

    a_ub, b_ub, a_eq, b_eq = constraints._arrays
    found = optimize.linprog(
        np.zeros(len(constraints.names)),
        A_ub=a_ub if len(b_ub) else None,
        b_ub=b_ub if len(b_ub) else None,
        A_eq=a_eq if len(b_eq) else None,
        b_eq=b_eq if len(b_eq) else None,
        bounds=(None, None),
    )
    return found.status != 2


_FLIPPED = {">=": "<", "<=": ">", ">": "<=", "<": ">="}


def _rows(rule: f.Rule, names: tuple[str, ...], margin: float | None) -> Iterator[LinearRow]:
    """The comparisons of a rule."""
    if rule.strength.kind not in ("", "hard") or rule.group is not None or rule.definition:
        raise rule_error(
            rule,
            "constraints between outputs are hard and stand alone: write only the comparison, and "
            "give encourage_linear weights if some matter more than others",
        )
    for left, sign, right in _comparisons(rule, rule.formula):
        yield _row(rule, left, sign, right, names, margin)


def _comparisons(rule: f.Rule, formula: Any) -> Iterator[tuple[f.Value, str, f.Value]]:
    match formula:
        case f.Compare(operands, operators):
            yield from zip(operands, operators, operands[1:], strict=False)
        case f.Between(value, low, high):
            yield value, ">=", low
            yield value, "<=", high
        case f.Not(f.Compare((left, right), (sign,))) if sign in _FLIPPED:
            yield left, _FLIPPED[sign], right
        case f.And(parts) if type(formula) is f.And:
            for part in parts:
                yield from _comparisons(rule, part)
        case f.Or() | f.Implies() | f.Iff() | f.Not() | f.Count():
            raise rule_error(
                rule,
                "what satisfies this rule is not one convex set, and linear constraints are: write "
                "comparisons, joined by and alone",
            )
        case _:
            raise rule_error(
                rule,
                f"expected comparisons of outputs, such as total >= part_a + part_b, got {formula}",
            )


def _row(
    rule: f.Rule,
    left: f.Value,
    sign: str,
    right: f.Value,
    names: tuple[str, ...],
    margin: float | None,
) -> LinearRow:
    text = str(f.Compare((left, right), (sign,)))
    if sign == "!=":
        raise rule_error(rule, f"{text} is not one convex set: write >=, <= or ==")
    if sign in "<>" and margin is None:
        raise rule_error(
            rule,
            f"{text} is strict, and has no nearest outputs that satisfy it: write {sign}=, or pass "
            f"margin to linear_constraints, by which the sides shall differ at least",
        )
    if sign in (">", ">="):
        left, right = right, left
    (coefficients, constant), (others, other) = (_affine(rule, x, names) for x in (left, right))
    for i, coefficient in others.items():
        coefficients[i] = coefficients.get(i, Fraction(0)) - coefficient
    bound = other - constant
    if sign in "<>":
        bound -= _exact(margin)
    kept = tuple(sorted((i, c) for i, c in coefficients.items() if c))
    if not kept:
        holds = bound == 0 if sign == "==" else bound >= 0
        verb = "always holds: leave it out" if holds else "never holds"
        raise rule_error(rule, f"{text} {verb}, since no output is left in it")
    return LinearRow(kept, bound, sign == "==", text)


def _affine(
    rule: f.Rule, value: Any, names: tuple[str, ...]
) -> tuple[dict[int, Fraction], Fraction]:
    """A value as coefficients by output, and a constant."""
    match value:
        case f.Number(number):
            return {}, _exact(number)
        case f.Name(name):
            if name not in names:
                raise unknown_name(rule, name, names)
            return {names.index(name): Fraction(1)}, Fraction(0)
        case f.Negative(inner):
            return _scaled(_affine(rule, inner, names), Fraction(-1))
        case f.Arithmetic(operator, left, right):
            a, b = _affine(rule, left, names), _affine(rule, right, names)
            if operator in "+-":
                sign = Fraction(1 if operator == "+" else -1)
                total = dict(a[0])
                for i, coefficient in b[0].items():
                    total[i] = total.get(i, Fraction(0)) + sign * coefficient
                return total, a[1] + sign * b[1]
            if operator == "*" and not (a[0] and b[0]):
                return _scaled(b, a[1]) if not a[0] else _scaled(a, b[1])
            if operator == "/" and not b[0]:
                if not b[1]:
                    raise rule_error(rule, f"{value} divides by 0")
                return _scaled(a, 1 / b[1])
            raise rule_error(rule, f"{value} is not linear: multiply and divide by numbers alone")
    raise rule_error(
        rule, f"expected outputs and numbers, joined by + - * and /, got {quoted(str(value))}"
    )


def _scaled(
    value: tuple[dict[int, Fraction], Fraction], factor: Fraction
) -> tuple[dict[int, Fraction], Fraction]:
    return {i: factor * c for i, c in value[0].items()}, factor * value[1]


def _exact(number: Any) -> Fraction:
    """A number as it is written: 0.1 is a tenth."""
    return Fraction(number) if isinstance(number, int) else Fraction(repr(float(number)))
