"""One trial of a sweep, as a function of arrays that checks what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from distill_jax.training.grids import trial_name


@dataclasses.dataclass(frozen=True)
class Solo:
    """One trial with its static hyper-parameters, as a function of arrays."""

    trial: Callable
    static: tuple[tuple[str, Any], ...]

    def __call__(self, key: Array, shared: PyTree, seed: Array, numbers: Mapping[str, Array]):
        who = trial_name(self.trial)
        try:
            given = self.trial(
                jax.random.fold_in(key, seed), **dict(self.static), **numbers, **shared
            )
        except Exception as error:
            if numbers and isinstance(error, TypeError | IndexError):
                error.add_note(
                    f"This came up in the trial {who!r}, where {sorted(numbers)} are traced: one "
                    "that decides a shape, a number of steps or a branch of Python must be named "
                    "in static=."
                )
            raise
        return _metrics(given, who, {*dict(self.static), *numbers, "seed", "mode"})


def _metrics(given: Any, who: str, taken: set[str]) -> dict[str, Array]:
    if not isinstance(given, Mapping) or not given:
        raise TypeError(
            f"the trial {who!r} must return a dictionary of metrics, name to number or array, got "
            f"{'an empty one' if isinstance(given, Mapping) else type(given).__name__}"
        )
    metrics = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise TypeError(f"metrics of the trial {who!r} must have names, got {name!r}")
        if name in taken:
            raise ValueError(
                f"metric {name!r} of the trial {who!r} is called like a column that rows have "
                f"already: rename it; there are {sorted(taken)}"
            )
        plain = isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array)
        kind = jnp.result_type(value) if plain else None
        if kind is None or not (jnp.issubdtype(kind, jnp.number) or kind == jnp.bool_):
            raise TypeError(
                f"metric {name!r} of the trial {who!r} must be a number or an array of numbers, "
                f"got {type(value).__name__ if kind is None else kind}"
            )
        if jnp.issubdtype(kind, jnp.complexfloating):
            raise TypeError(f"metric {name!r} of the trial {who!r} must be real, got {kind}")
        metrics[name] = jnp.asarray(value)
    return metrics
