"""The trials of a sweep: hyper-parameters by name, and checks before anything runs."""

from __future__ import annotations

import difflib
import inspect
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks
from distill_jax._arguments import checked

Configuration = dict[str, Any]
"""One value for each hyper-parameter."""

Distribution = Callable[[float], Any]
"""From a number drawn uniformly from [0, 1) to a value; see :func:`sampled`."""


@checked
def sampled(key: Array, n: int, /, **distributions: Distribution | Sequence[Any]) -> list[dict]:
    """Configurations drawn at random: a grid for :func:`sweep`.

    If few of the hyper-parameters matter, random search finds good values with fewer trials than a
    product of lists. Draw ``i`` of a name depends only on the key, the name and ``i``, and a
    configuration that equals an earlier one is skipped: a larger ``n`` adds configurations and
    keeps the others. So does a further name, unless duplicates were skipped.

    Args:
      key: Determines the draws.
      n: Number of configurations, all different.
      **distributions: By name: :func:`uniform`, :func:`log_uniform`, :func:`integers`, a list to
        choose from, or any function from a number in [0, 1) to a value.

    Returns:
      ``n`` dictionaries of one value per name.

    Raises:
      TypeError: if ``n`` is not an integer, or a value has a type that a grid cannot hold.
      ValueError: if ``n`` is below 1, there is no name, a list is empty, or 100 ``n`` draws (6400
        if ``n`` is small) hold fewer than ``n`` different configurations.

    Example:
      >>> grid = sampled(jax.random.key(0), 3, rate=log_uniform(1e-4, 1e-1), wide=[True, False])
      >>> len(grid), sorted(grid[0]), all(1e-4 <= c["rate"] <= 1e-1 for c in grid)
      (3, ['rate', 'wide'], True)

    References:
      Bergstra and Bengio, `Random Search for Hyper-Parameter Optimization
      <https://jmlr.org/papers/v13/bergstra12a.html>`_, 2012.
    """
    n = _checks.count("n", n)
    if not distributions:
        raise ValueError("sampled needs a distribution for one name or more")
    made: dict[tuple, Configuration] = {}
    size = max(n, 64)
    for start in range(0, 100 * size, size):
        columns = [
            [_plain(name, value) for value in _drawn(key, name, distribution, start, size)]
            for name, distribution in distributions.items()
        ]
        for row in zip(*columns, strict=True):
            made.setdefault(row, dict(zip(distributions, row, strict=True)))
            if len(made) == n:
                return list(made.values())
    raise ValueError(
        f"n must be at most the number of different configurations, got {n}, and {100 * size} "
        f"draws hold {len(made)}: lower n, or give sweep a dictionary of lists to try them all"
    )


def _drawn(
    key: Array, name: str, distribution: Distribution | Sequence[Any], start: int, count: int
) -> list[Any]:
    draw = distribution if callable(distribution) else _choice(name, distribution)
    own = jax.random.fold_in(key, zlib.crc32(name.encode()))
    # One after another: under vmap some generators draw a whole batch from its first key.
    numbers = jnp.arange(start, start + count, dtype=jnp.int32)
    bits = jax.lax.map(lambda i: jax.random.bits(jax.random.fold_in(own, i)), numbers)
    # On the host and in double precision, so that the values are the same on every device.
    draws = np.asarray(bits, np.float64) / 2**32
    return [draw(float(u)) for u in draws]


@checked
def uniform(low: float, high: float) -> Distribution:
    """Uniform between ``low`` and ``high``, for :func:`sampled`; six significant digits.

    Returns:
      A function from a number in [0, 1) to a value.

    Example:
      >>> uniform(1.0, 3.0)(0.5)
      2.0
    """
    _ordered(low, high)
    return lambda u: _rounded(low + (high - low) * u, low, high)


@checked
def log_uniform(low: float, high: float) -> Distribution:
    """Uniform in the logarithm, between ``low`` > 0 and ``high``, for :func:`sampled`; six digits.

    Returns:
      A function from a number in [0, 1) to a value.

    Example:
      >>> log_uniform(1e-3, 1e-1)(0.5)
      0.01
    """
    _ordered(low, high)
    if low <= 0:
        raise ValueError(f"low must be > 0 for log_uniform, got {low}")
    return lambda u: _rounded(low * (high / low) ** u, low, high)


@checked
def integers(low: int, high: int) -> Distribution:
    """Integers from ``low`` to ``high``, both included, with equal probability.

    Returns:
      A function from a number in [0, 1) to an integer, for :func:`sampled`.

    Example:
      >>> integers(1, 3)(0.99)
      3
    """
    _ordered(low, high)
    return lambda u: low + int(u * (high - low + 1))


def configurations(grid: Any) -> list[Configuration]:
    """A grid as a list of configurations; the last name of a dictionary varies fastest.

    Raises:
      TypeError: if the grid, or a value in it, has the wrong type.
      ValueError: if there is no configuration, names differ between configurations, a value is NaN,
        or two configurations are the same.
    """
    if isinstance(grid, Mapping):
        made: list[Configuration] = [{}]
        for name, values in grid.items():
            plain = [_plain(name, value) for value in _values(name, values)]
            made = [{**row, name: value} for row in made for value in plain]
    elif isinstance(grid, Iterable) and not isinstance(grid, str):
        made = []
        for i, row in enumerate(grid):
            if not isinstance(row, Mapping):
                raise TypeError(f"grid[{i}] must be a dictionary, got {type(row).__name__}")
            made.append({name: _plain(name, value) for name, value in row.items()})
    else:
        raise TypeError(
            "grid must be a dictionary of lists, or a list of dictionaries, got "
            f"{type(grid).__name__}"
        )
    if not made:
        raise ValueError("grid must hold one configuration or more, got none")
    for i, row in enumerate(made):
        if row.keys() != made[0].keys():
            raise ValueError(
                f"every configuration must have the same names: grid[0] has {sorted(made[0])}, "
                f"grid[{i}] {sorted(row)}"
            )
    seen: dict[Any, int] = {}
    for i, row in enumerate(made):
        before = seen.setdefault(tuple(row[name] for name in made[0]), i)
        if before != i:
            raise ValueError(
                f"configurations must differ, but numbers {before} and {i} are both {row}: "
                "repeat a configuration with seeds="
            )
    return made


def check_names(
    trial: Callable, names: Sequence[str], shared: Sequence[str], static: Sequence[str]
) -> None:
    """Raises ValueError unless a trial can be called with these names, and needs no other."""
    who = trial_name(trial)
    parameters = list(inspect.signature(trial).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted = [p.name for p in named if p.kind is not p.POSITIONAL_ONLY]
    for what, given in (("grid", names), ("shared", shared)):
        for name in given:
            if not isinstance(name, str):
                raise TypeError(f"names in {what} must be strings, got {name!r}")
            if name not in accepted and not open_ended:
                near = difflib.get_close_matches(name, accepted, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(
                    f"{what} names {name!r}, which the trial {who!r} does not have{hint}; its "
                    f"parameters are {accepted}"
                )
    for name in names:
        if name in shared:
            raise ValueError(f"{name!r} is in grid and in shared: it can come from one of them")
        if name in ("seed", "mode"):
            raise ValueError(
                f"grid names {name!r}, which is a column of the results already: rename it, or use "
                f"{'seeds=' if name == 'seed' else 'mode='}"
            )
    for name in static:
        if name not in names:
            raise ValueError(f"static names {name!r}, which is not in grid: it has {list(names)}")
    given = {*names, *shared}
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if missing:
        raise ValueError(
            f"the trial {who!r} needs {missing}, which neither grid {list(names)} nor shared "
            f"{list(shared)} has; its parameters are {accepted}"
        )


def split(
    made: Sequence[Configuration], static: Sequence[str]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names that are fixed in a program, and a column ``[configurations]`` for each other name.

    Raises:
      TypeError: if the values of a name have more than one type.
      ValueError: if an integer needs more than 32 bits.
    """
    fixed, columns = [], {}
    for name in made[0]:
        values = [row[name] for row in made]
        if name in static:
            fixed.append(name)
            continue
        kinds = sorted({_kind(value) for value in values})
        if kinds == ["numbers"]:
            columns[name] = _column(name, values)
        elif len(kinds) == 1:
            fixed.append(name)
        else:
            raise TypeError(
                f"the values of {name!r} must be of one kind, got {' and '.join(kinds)}: "
                f"make them alike, or let each be a program of its own with static=({name!r},)"
            )
    return fixed, columns


def trial_name(trial: Any) -> str:
    """A trial's name, also if it is wrapped by ``jax.jit`` or ``functools.partial``."""
    inner = getattr(trial, "func", trial)
    return getattr(inner, "__qualname__", type(inner).__name__)


def _column(name: str, values: Sequence[Any]) -> np.ndarray:
    if all(isinstance(value, int) for value in values):
        if any(abs(value) >= 2**31 for value in values):
            raise ValueError(f"the integers of {name!r} must fit 32 bits, got {values}")
        return np.asarray(values, np.int32)
    # float32, or float64 where jax_enable_x64 says so.
    return np.asarray(values, jnp.result_type(float))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "booleans"
    if isinstance(value, int | float):
        return "numbers"
    return {str: "strings", tuple: "tuples"}.get(type(value), "None")


def _plain(name: str, value: Any) -> Any:
    """A value as plain Python, which can be compared, printed and written to a file."""
    if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if isinstance(value, tuple):
        return tuple(_plain(name, x) for x in value)
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise TypeError(
            f"values of {name!r} must be numbers, strings, booleans, None or tuples of them, got "
            f"{type(value).__name__}: name what you want by a string, and look it up in the trial; "
            "data go into shared="
        )
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"values of {name!r} must not be NaN")
    return value


def _values(name: str, values: Any) -> list[Any]:
    single = isinstance(values, str | Mapping) or getattr(values, "ndim", 1) == 0
    if single or not isinstance(values, Iterable):
        raise TypeError(f"{name!r} must have a list of values, got {values!r}: write [{values!r}]")
    listed = list(values)
    if not listed:
        raise ValueError(f"{name!r} must have one value or more, got none")
    return listed


def _choice(name: str, values: Sequence[Any]) -> Distribution:
    listed = _values(name, values)
    return lambda u: listed[int(u * len(listed))]


def _ordered(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low must be below high, both finite, got {low} and {high}")


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.6g}"), low), high)
