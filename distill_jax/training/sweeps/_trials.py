"""One trial of a sweep, as a function of arrays that checks what it returns."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, PyTree

from distill_jax import _fingerprints
from distill_jax._programs import inner_jaxprs
from distill_jax.training.sweeps.grids import trial_name


@dataclasses.dataclass(frozen=True)
class Traced:
    """One trial, traced once: a function of arrays, of which all programs are made.

    Attributes:
      name: Of the trial.
      metrics: What it returns, in the trial's order, which a dictionary would lose.
      program: The trace, with static hyper-parameters and what the trial closes over fixed in it.
      words: A name of what it computes. Two trials of the same words are the same, wherever their
        code came from; one whose code or closure has changed has others.
    """

    name: str
    metrics: tuple[str, ...]
    program: Any
    words: str

    def __call__(self, key: Array, shared: PyTree, seed: Array, numbers: Mapping[str, Array]):
        program = self.program.jaxpr
        made = core.jaxpr_as_fun(program)(*jax.tree.leaves((key, shared, seed, numbers)))
        # Constants come back as plain numbers.
        return tuple(jnp.asarray(x, a.dtype) for x, a in zip(made, program.out_avals, strict=True))


def traced(
    trial: Callable, static: Mapping[str, Any], key: Array, shared: PyTree, numbers: Mapping
) -> Traced:
    """Traces a trial, given its static hyper-parameters, and a number of each other one.

    Raises:
      TypeError: if it does not return numbers and arrays by name.
      ValueError: if a metric is called like another column.
    """
    who, names = trial_name(trial), []

    def one(key, shared, seed, numbers):
        try:
            given = trial(jax.random.fold_in(key, seed), **static, **numbers, **shared)
        except Exception as error:
            if numbers:
                error.add_note(
                    f"This came up in the trial {who!r}, where {sorted(numbers)} are traced: one "
                    "that decides a shape, a number of steps or a branch of Python must be named "
                    "in static=."
                )
            raise
        metrics = _metrics(given, who, {*static, *numbers, "seed", "mode"})
        names[:] = metrics
        return tuple(metrics.values())

    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (key, shared, np.int32(0), dict(numbers))
    )
    program = jax.jit(one).trace(*arguments)
    made = f"{program.jaxpr} {_fingerprints.digest(list(_constants(program.jaxpr)))}"
    words = hashlib.blake2b(made.encode(), digest_size=16).hexdigest()
    return Traced(who, tuple(names), program, words)


def _constants(program: Any) -> Iterator[Any]:
    """Arrays, and addresses of host callbacks, in a program, which its text only names."""
    for jaxpr in inner_jaxprs(program):
        yield from getattr(jaxpr, "consts", ())
        for equation in jaxpr.eqns:
            yield from (x.val for x in equation.invars if isinstance(x, core.Literal))
            if (callback := equation.params.get("callback")) is not None:
                yield np.asarray(id(getattr(callback, "callback_func", callback)))
            parts = jax.tree.leaves(list(equation.params.values()))
            yield from (x for x in parts if isinstance(x, np.ndarray))


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
