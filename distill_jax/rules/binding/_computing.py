"""Arithmetic on columns, on the host: what rules compare with constants, as exact as the table.

Integers stay integers, of any size. Everything else is float64, or exact fractions in the rows
where integers beyond 2**53 take part. A result over columns of float32 or float16 alone is rounded
to float32. A quotient by 0 is missing. Times are whole nanoseconds, and so are their differences.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from distill_jax.rules.binding._tables import Cells
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._times import DAY


def computed(tree: f.Value, columns: Mapping[str, Cells], rows: int) -> Cells:
    """The values of an expression in the rows where no column in it is missing.

    Args:
      tree: Arithmetic over columns, numbers and times; ``days(…)`` at the top yields nanoseconds.
      columns: The exact values of each column.
      rows: The number of rows.

    Raises:
      ValueError: where a result is beyond float64.
    """
    names = sorted({x.name for x in f.trees(tree) if isinstance(x, f.Name)})
    missing = np.zeros(rows, bool)
    for name in names:
        missing |= columns[name].missing
    arrays = {}
    for name in names:
        present, own = columns[name]
        arrays[name] = present[~missing[~own]]
    inner = tree.value if isinstance(tree, f.Days) else tree
    values, undefined = _evaluated(inner, arrays, int((~missing).sum()))
    infinite = ~undefined & ~_is_finite(values)
    if infinite.any():
        bad = np.flatnonzero(~missing)[np.flatnonzero(infinite)[0]]
        raise ValueError(
            f"{tree} is beyond double precision in row {bad}: rescale the columns {names}, or take "
            "logarithms"
        )
    missing[~missing] = undefined
    return Cells(values[~undefined], missing)


def _evaluated(
    tree: f.Value, arrays: Mapping[str, np.ndarray], rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """The values, and where a divisor is 0."""
    parts = list(_outside_days(tree))
    own = [arrays[x.name] for x in parts if isinstance(x, f.Name)]
    if all(x.dtype.kind in "iu" for x in own) and not any(map(_is_fractional, parts)):
        if _bound(tree, arrays) < 2**62:
            return _in_numpy(tree, arrays, rows, np.int64)
        return _in_python(tree, arrays, rows)
    found, undefined = _in_numpy(tree, arrays, rows, np.float64)
    # Row by row: what holds in one does not depend on the others.
    exact = functools.reduce(np.logical_or, map(_is_beyond_float64, own), np.zeros(rows, bool))
    if exact.any():
        few = {name: x[exact] for name, x in arrays.items()}
        found = found.astype(object)
        found[exact], undefined[exact] = _in_python(tree, few, int(exact.sum()))
    elif (
        own
        and not any(isinstance(x, f.Days) for x in parts)
        and all(x.dtype.kind == "f" for x in own)
    ):
        with np.errstate(over="ignore"):
            rounded = found.astype(np.result_type(np.float32, *own))
        if np.isfinite(rounded[~undefined]).all():
            found = rounded
    return found, undefined


def _in_numpy(
    tree: f.Value, arrays: Mapping[str, np.ndarray], rows: int, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    undefined = np.zeros(rows, bool)

    def value(x: f.Value) -> Any:
        nonlocal undefined
        if isinstance(x, f.Number):
            return dtype(x.value)
        if isinstance(x, f.Time):
            return dtype(x.nanoseconds)
        if isinstance(x, f.Days):
            inner, _ = _evaluated(x.value, arrays, rows)
            return (
                np.array([int(v) / DAY for v in inner], dtype)
                if inner.dtype == object
                else (inner / DAY)
            )
        if isinstance(x, f.Name):
            return arrays[x.name].astype(dtype)
        if isinstance(x, f.Negative):
            return -value(x.value)
        assert isinstance(x, f.Arithmetic)
        left, right = value(x.left), value(x.right)
        if x.operator == "/":
            zero = np.broadcast_to(right == 0, (rows,))
            undefined = undefined | zero
            return left / np.where(zero, dtype(1), right)
        return {"+": np.add, "-": np.subtract, "*": np.multiply}[x.operator](left, right)

    with np.errstate(all="ignore"):
        found = value(tree)
    return np.array(np.broadcast_to(found, (rows,))), undefined


def _in_python(
    tree: f.Value, arrays: Mapping[str, np.ndarray], rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exact fractions, row by row."""
    found, undefined = np.empty(rows, object), np.zeros(rows, bool)
    days = {
        id(x): _evaluated(x.value, arrays, rows)[0]
        for x in _outside_days(tree)
        if isinstance(x, f.Days)
    }
    lists = {name: x.tolist() for name, x in arrays.items()}

    def value(x: f.Value, i: int) -> int | Fraction:
        if isinstance(x, f.Number):
            return x.value if isinstance(x.value, int) else Fraction(x.value)
        if isinstance(x, f.Time):
            return x.nanoseconds
        if isinstance(x, f.Days):
            return Fraction(int(days[id(x)][i]), DAY)
        if isinstance(x, f.Name):
            own = lists[x.name][i]
            return own if isinstance(own, int) else Fraction(own)
        if isinstance(x, f.Negative):
            return -value(x.value, i)
        assert isinstance(x, f.Arithmetic)
        left, right = value(x.left, i), value(x.right, i)
        if x.operator == "/":
            return Fraction(left) / right
        return {"+": operator.add, "-": operator.sub, "*": operator.mul}[x.operator](left, right)

    for i in range(rows):
        try:
            found[i] = value(tree, i)
        except ZeroDivisionError:
            found[i], undefined[i] = 0, True
    return found, undefined


def _outside_days(tree: f.Value) -> Iterator[f.Value]:
    """An expression and its parts, without what is inside ``days(…)``."""
    yield tree
    if isinstance(tree, f.Negative):
        yield from _outside_days(tree.value)
    elif isinstance(tree, f.Arithmetic):
        yield from _outside_days(tree.left)
        yield from _outside_days(tree.right)


def _is_fractional(x: f.Tree) -> bool:
    """Whether an expression with this part may leave the integers."""
    if isinstance(x, f.Number):
        return not isinstance(x.value, int)
    return isinstance(x, f.Days) or (isinstance(x, f.Arithmetic) and x.operator == "/")


def _bound(tree: f.Value, arrays: Mapping[str, np.ndarray]) -> int:
    """A bound on the size of integer arithmetic and of all its parts."""
    if isinstance(tree, f.Number):
        return abs(int(tree.value))
    if isinstance(tree, f.Time):
        return abs(tree.nanoseconds)
    if isinstance(tree, f.Name):
        return _size(arrays[tree.name])
    if isinstance(tree, f.Negative):
        return _bound(tree.value, arrays)
    assert isinstance(tree, f.Arithmetic)
    left, right = _bound(tree.left, arrays), _bound(tree.right, arrays)
    return max(left * right, left, right) if tree.operator == "*" else left + right


def _is_finite(x: np.ndarray) -> np.ndarray:
    if x.dtype != object:
        return np.isfinite(x)
    return np.array([not isinstance(v, float) or math.isfinite(v) for v in x], bool)


def _is_beyond_float64(x: np.ndarray) -> np.ndarray:
    """Which values float64 would round."""
    if x.dtype == object:
        return np.array([not isinstance(v, float) and float(v) != v for v in x], bool)
    if x.dtype.kind == "f":
        return np.zeros(len(x), bool)
    return (x > 2**53) | (x < -(2**53)) if x.dtype.kind == "i" else x > 2**53


def _size(x: np.ndarray) -> int:
    """The largest absolute value among integers; 0 for floats, which float64 holds."""
    if x.dtype.kind == "f" or not len(x):
        return 0
    return max(int(x.max()), -int(x.min()))
