"""Values and thresholds as float32 numbers in the same order as the exact ones.

Rules compare in float32 on the device, and a table holds more digits. The host knows both the
values and every threshold of the book, so it places them: each threshold gets a float32 number
near it, with another number free between any two, and each value a number near it on its own side
of every threshold, or the threshold's own if they are equal. Comparisons of the placed numbers are
then those of the exact ones. A number that float32 holds, far from other thresholds, stays itself.

Thresholds are ``int``, ``float`` or ``Fraction``. Integers are compared exactly; a decimal number
is read in the dtype of the values, as NumPy does: 0.1 is the float32 next to it for float32 values.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Exact = int | float | Fraction

_TINY = 0x007FFFFF  # the bits of the largest subnormal: compiled code flushes these to 0


def placed_thresholds(thresholds: Sequence[Exact], unit: int = 1) -> np.ndarray:
    """The float32 number of each threshold.

    Args:
      thresholds: Ascending, each once.
      unit: What one unit of the float32 numbers is in units of the thresholds.

    Returns:
      float32 ``[thresholds]``, ascending, finite, with one more number free beside each.
    """
    return _number_at(_steps(thresholds, unit))


def placed(values: np.ndarray, thresholds: Sequence[Exact], unit: int = 1) -> np.ndarray:
    """The float32 number of each value, on the same side of all thresholds as the value itself.

    Args:
      values: Finite integers, floats, or objects of ``Exact`` types, ``[batch]``.
      thresholds: Ascending, each once.
      unit: What one unit of the float32 numbers is in units of the values.

    Returns:
      float32 ``[batch]``.
    """
    near = _near(values, unit)
    if not len(thresholds) or not len(values):
        return near
    below, upto = _ranks(values, thresholds)
    n = len(thresholds)
    steps = _steps(thresholds, unit)
    padded = np.concatenate([[-_MOST - 1], steps, [_MOST + 1]])
    own = _step_of(near)
    found = np.clip(own, padded[below] + 1, padded[np.minimum(upto + 1, n + 1)] - 1)
    equal = upto > below
    found = np.where(equal, steps[np.minimum(below, n - 1)], found)
    return np.where(found == own, near, _number_at(found))


def beside(numbers: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """The next float32 number after each number for a side of 1, the last before it for -1."""
    return _number_at(_step_of(numbers) + sides)


def unplaced(numbers: np.ndarray, thresholds: Sequence[Exact], unit: int = 1) -> list[Exact]:
    """Exact values that ``placed`` maps to the same side of all thresholds as these numbers.

    Args:
      numbers: Finite float32 numbers, ``[batch]``.
      thresholds: Ascending, each once.
      unit: As for ``placed``.

    Returns:
      One value per number, as short as a decimal number can be where thresholds leave room.
    """
    near = placed_thresholds(thresholds, unit) if len(thresholds) else np.zeros(0, np.float32)
    places = np.searchsorted(near, numbers)
    found = []
    for x, i in zip(np.asarray(numbers, np.float32), places.tolist(), strict=True):
        if i < len(near) and near[i] == x:
            found.append(thresholds[i])
            continue
        low = thresholds[i - 1] if i else -math.inf
        high = thresholds[i] if i < len(near) else math.inf
        decimal = float(str(x))
        decimal = decimal if abs(decimal) <= float(np.finfo(np.float32).max) else float(x)
        value = decimal if unit == 1 else round(Fraction(decimal) * unit)
        if not low < value < high:  # the number was moved: there is a threshold on each side of it
            step = 1 if unit == 1 else 2 * unit  # in the middle is a whole number of units
            low = Fraction(high) - step if math.isinf(low) else Fraction(low)
            high = low + step if isinstance(high, float) and math.isinf(high) else Fraction(high)
            value = (low + high) / 2
            simple = float(value) if unit == 1 else math.floor(value)
            value = simple if low < simple < high else value
        found.append(value)
    return found


def unheld(values: np.ndarray, thresholds: Sequence[Exact]) -> list[int]:
    """Whole thresholds among floats whose dtype holds them only rounded.

    A value that was meant to be one of these is another number by now.
    """
    if values.dtype.kind != "f" or not len(values):
        return []
    low, high = float(values.min()), float(values.max())
    whole = [t for t in thresholds if isinstance(t, int)]
    with np.errstate(over="ignore"):
        held = [float(values.dtype.type(float(t))) for t in whole]
    return [t for t, x in zip(whole, held, strict=True) if low <= x <= high and int(x) != t]


# Float32 numbers, counted from 0


def _step_of(x: np.ndarray) -> np.ndarray:
    """The place of each float32 number among all of them, without subnormal ones; 0 for 0."""
    bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
    size = np.maximum((bits & 0x7FFFFFFF) - _TINY, 0)
    return np.where(bits < 0, -size, size)


def _number_at(step: np.ndarray) -> np.ndarray:
    """The inverse of ``_step_of``."""
    size = np.abs(step)
    bits = np.where(size > 0, size + _TINY, 0).astype(np.int32)
    return np.copysign(bits.view(np.float32), np.where(step < 0, -1, 1).astype(np.float32))


_MOST = int(_step_of(np.array([np.finfo(np.float32).max], np.float32))[0])


def _near(values: Any, unit: int) -> np.ndarray:
    """The nearest finite float32 number of each value, in units of ``unit``."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        scaled = values.astype(np.float64) / unit
    else:
        scaled = np.array([_as_float(x, unit) for x in values], np.float64)
    most = np.finfo(np.float32).max
    return np.clip(scaled, -most, most).astype(np.float32)


def _as_float(x: Exact, unit: int) -> float:
    try:
        return float(x / unit)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def _steps(thresholds: Sequence[Exact], unit: int) -> np.ndarray:
    signs = np.array([(t > 0) - (t < 0) for t in thresholds], np.int64)
    steps = _step_of(_near(thresholds, unit))
    steps = np.where(steps == 0, signs, steps)  # 1e-50 is not 0
    gaps = 2 * np.arange(len(thresholds))
    spread = np.maximum.accumulate(steps - gaps)
    return np.clip(spread, -_MOST + 1, _MOST - 1 - gaps[-1:].sum()) + gaps


# Exact comparisons


def _ranks(values: np.ndarray, thresholds: Sequence[Exact]) -> tuple[np.ndarray, np.ndarray]:
    """For each value, how many thresholds lie below it, and how many do not lie above it.

    The two differ, by one, where the value equals a threshold.
    """
    if values.dtype == object:
        below = np.array([bisect.bisect_left(thresholds, x) for x in values])
        upto = np.array([bisect.bisect_right(thresholds, x) for x in values])
        return below, upto
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        under = bisect.bisect_left(thresholds, info.min)
        inside = thresholds[under : bisect.bisect_right(thresholds, info.max)]
        floors = np.array([math.floor(t) for t in inside], values.dtype)
        ceilings = np.array([math.ceil(t) for t in inside], values.dtype)
        return under + np.searchsorted(floors, values), under + np.searchsorted(
            ceilings, values, side="right"
        )
    ends = [_around(t, values.dtype) for t in thresholds]
    lows, highs = (np.array(x, values.dtype) for x in zip(*ends, strict=True))
    below, upto = np.searchsorted(lows, values), np.searchsorted(highs, values, side="right")
    for i in np.flatnonzero(upto > below + 1):  # decimals that one narrow float stands for
        at = range(below[i], upto[i])
        nearest = min(at, key=lambda k: abs(Fraction(thresholds[k]) - Fraction(float(values[i]))))
        below[i], upto[i] = nearest, nearest + 1
    return below, upto


def _around(t: Exact, dtype: Any) -> tuple[Any, Any]:
    """The last float of a dtype that is not above a threshold, and the first not below it.

    Both are the nearest float for a decimal number, which is read in this dtype.
    """
    with np.errstate(over="ignore", under="ignore"):
        near = dtype.type(_as_float(t, 1))
    if np.isfinite(near):
        exact = Fraction(float(near))
        if exact == t or (isinstance(t, float) and near != 0):
            return near, near
    else:
        exact = float(near)  # NumPy would cast the threshold to this dtype
    up, down = dtype.type(np.inf), dtype.type(-np.inf)
    return (np.nextafter(near, down), near) if exact > t else (near, np.nextafter(near, up))
