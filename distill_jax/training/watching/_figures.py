"""What ``evaluate`` returned, as numbers and arrays of numbers by one name each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Figures = dict[str, float | np.ndarray]


def figures(values: Any) -> Figures:
    """Numbers as Python floats, and arrays of numbers.

    ``{"a": {"b": x}}`` is named "a/b". Of a list of rows, which are dictionaries of the same keys,
    the first column is what the rows are called, and the others become arrays: those of the metric
    ``per_class`` of ``evaluate`` are named "per_class/errors" and so on. What is None is left out.

    Raises:
      TypeError: for anything else.
    """
    if not isinstance(values, Mapping):
        raise TypeError(
            f"evaluate must return a dictionary of numbers, got {type(values).__name__}"
        )
    return dict(_named(values))


def _named(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | np.ndarray]]:
    for key, x in values.items():
        name = f"{prefix}{key}"
        if isinstance(x, Mapping):
            yield from _named(x, f"{name}/")
        elif isinstance(x, list | tuple) and x and all(isinstance(row, Mapping) for row in x):
            columns = list(x[0])[1:]
            if any(list(row)[1:] != columns for row in x):
                raise TypeError(f"evaluate must give rows of the same keys, got {name!r}: {x[:2]}")
            for column in columns:
                yield f"{name}/{column}", _array(f"{name}/{column}", [row[column] for row in x])
        elif x is not None:
            array = _array(name, x)
            yield name, array if array.ndim else float(array)


def _array(name: str, x: Any) -> np.ndarray:
    try:
        array = np.asarray(x)
    except ValueError:  # rows of several lengths
        array = np.asarray(None)
    if array.dtype.kind in "OUSMmc":
        raise TypeError(f"evaluate must give numbers, got {name!r}: {x!r}")
    return array.astype(np.float64)  # of bfloat16 too, which NumPy does not know as a float


def scalars(found: Figures) -> dict[str, float]:
    """Those that are single numbers."""
    return {name: x for name, x in found.items() if isinstance(x, float)}


def as_scalars(found: Figures) -> dict[str, float]:
    """All of them for a log: an entry of an array is named by its place, "per_class/errors/0"."""
    made: dict[str, float] = {}
    for name, x in found.items():
        if not isinstance(x, np.ndarray):
            made[name] = x
            continue
        for place in np.ndindex(x.shape):
            made["/".join([name, *map(str, place)])] = float(x[place])
    return made
