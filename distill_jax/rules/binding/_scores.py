"""Scores as exact sums: the factor of each condition, and a threshold in whole numbers.

A factor is the number as it is written, 0.1 being one tenth, so that 0.1 + 0.2 ≥ 0.3.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from distill_jax.rules.language import formulas as f


class Total(NamedTuple):
    """A sum of points: the factor of each condition, and a constant."""

    factors: dict[f.Formula, Fraction]
    constant: Fraction


class AtLeast(NamedTuple):
    """The weights of the conditions that hold add up to ``least`` or more."""

    weights: dict[f.Formula, int]
    least: int


class NotPoints(ValueError):
    """A value that is no sum of points, and why."""


def is_score(x: f.Value) -> bool:
    """Whether a value is made of a score."""
    if isinstance(x, f.Name | f.Number | f.String):  # most are
        return False
    return any(isinstance(tree, f.Score) for tree in f.trees(x))


def points_of(x: f.Value) -> Total:
    """A value made of scores and numbers. A condition that occurs twice counts once, with the sum.

    Raises:
      NotPoints: for a value that depends on columns in another way.
    """
    match x:
        case f.Number(number):
            return Total({}, _exact(number))
        case f.Negative(value):
            return difference(Total({}, Fraction(0)), points_of(value))
        case f.Score(parts):
            found: dict[f.Formula, Fraction] = {}
            for part in parts:
                found[part.condition] = found.get(part.condition, 0) + _exact(part.factor)
            return Total(found, Fraction(0))
        case f.Arithmetic("-", left, right):
            return difference(points_of(left), points_of(right))
        case f.Arithmetic("+", left, right):
            return difference(points_of(left), points_of(f.Negative(right)))
        case f.Arithmetic("*" | "/" as operator, left, right):
            one, other = points_of(left), points_of(right)
            if operator == "*" and not one.factors:
                one, other = other, one
            if other.factors or (operator == "/" and other.constant == 0):
                raise NotPoints(
                    f"{x} is no sum of points: multiply or divide a score by numbers other than 0"
                )
            by = other.constant if operator == "*" else 1 / other.constant
            return Total({k: by * v for k, v in one.factors.items()}, by * one.constant)
    raise NotPoints(
        f"a score is compared with numbers and other scores, got {x}: put what depends on columns "
        "into the score as a condition, such as 2*(age >= 75)"
    )


def difference(left: Total, right: Total) -> Total:
    """The difference of two totals."""
    factors = dict(left.factors)
    for condition, factor in right.factors.items():
        factors[condition] = factors.get(condition, Fraction(0)) - factor
    return Total(factors, left.constant - right.constant)


def at_least(total: Total, sign: int = 1, strict: bool = False) -> AtLeast:
    """``sign · total ≥ 0``, or ``> 0`` if ``strict``, in the smallest whole numbers."""
    weights = {key: sign * factor for key, factor in total.factors.items() if factor}
    scale = math.lcm(1, *(x.denominator for x in weights.values()))
    whole = {key: int(x * scale) for key, x in weights.items()}
    unit = math.gcd(*whole.values()) or 1
    wanted = -sign * total.constant * scale / unit
    least = math.floor(wanted) + 1 if strict else math.ceil(wanted)
    return AtLeast({key: x // unit for key, x in whole.items()}, least)


def one_sided(x: f.Formula) -> AtLeast | None:
    """A comparison of a score with ``< <= > >=``, as one threshold; None for other formulas."""
    match x:
        case f.Compare((left, right), ("<" | "<=" | ">" | ">=" as operator,)) if is_score(
            left
        ) or is_score(right):
            sign = 1 if operator[0] == ">" else -1
            return at_least(difference(points_of(left), points_of(right)), sign, len(operator) == 1)
    return None


def _exact(number: int | float) -> Fraction:
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))
