"""One trial of a sweep as a traced function of arrays, whose results have been checked."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, PyTree

from distill_jax import _fingerprints
from distill_jax._programs import described, inner_jaxprs
from distill_jax.training.sweeps.grids import trial_name


@dataclasses.dataclass(frozen=True)
class Traced:
    """One trial, traced once: the function of arrays that all programs are made of.

    Attributes:
      name: The trial's name.
      metrics: Names of what it returns, in the trial's order, which a dictionary would lose.
      program: The trace, with static hyper-parameters and the trial's closure fixed in it.
      words: A hash of what it computes: equal for trials that compute the same, wherever their code
        is; different once code or closure has changed.
      unlike: The random generator that draws other numbers under ``vmap`` than for a trial alone,
        None if the trial uses none.
    """

    name: str
    metrics: tuple[str, ...]
    program: Any
    words: str
    unlike: str | None = None

    def __call__(self, key: Array, shared: PyTree, seed: Array, numbers: Mapping[str, Array]):
        program = self.program.jaxpr
        made = core.jaxpr_as_fun(program)(*jax.tree.leaves((key, shared, seed, numbers)))
        # Constants come back as plain numbers.
        return tuple(jnp.asarray(x, a.dtype) for x, a in zip(made, program.out_avals, strict=True))


def traced(
    trial: Callable, static: Mapping[str, Any], key: Array, shared: PyTree, numbers: Mapping
) -> Traced:
    """Traces a trial, given its static hyper-parameters, and one number for each other one.

    Raises:
      TypeError: if it does not return numbers and arrays by name.
      ValueError: if a metric has the name of another column.
    """
    who, names = trial_name(trial), []

    def one(key, shared, seed, numbers):
        try:
            given = trial(jax.random.fold_in(key, seed), **static, **numbers, **shared)
        except Exception as error:
            if numbers:
                error.add_note(
                    f"This happened in the trial {who!r}, in which {sorted(numbers)} are traced: "
                    "one that determines a shape, a number of steps or a Python branch must be "
                    "named in static=."
                )
            raise
        metrics = _metrics(given, who, {*static, *numbers, "seed", "mode"})
        names[:] = metrics
        return tuple(metrics.values())

    arguments = jax.tree.map(described, (key, shared, np.int32(0), dict(numbers)))
    program = jax.jit(one).trace(*arguments)
    constants = _fingerprints.digest(list(_fingerprints.constants(program.jaxpr)))
    made = f"{program.jaxpr} {constants} {_callbacks(program.jaxpr)}"
    words = hashlib.blake2b(made.encode(), digest_size=16).hexdigest()
    made = Traced(who, tuple(names), program, words)
    return dataclasses.replace(made, unlike=_unlike(made, arguments))


def _unlike(trial: Traced, arguments: tuple) -> str | None:
    """The generator of keys whose batches JAX does not draw key by key, if trials side by side do
    draw from such a batch: equal seeds would start unequal, and any seed by its place in a block.

    ``rbg`` and ``unsafe_rbg`` draw a whole batch from its first key.
    """
    alone = _draws(trial.program.jaxpr)
    if not alone:
        return None
    key, shared, *varying = arguments
    many = 7919  # unlike any axis of the trial's own
    stacked = jax.tree.map(lambda x: described(x, many), varying)
    batched = jax.make_jaxpr(jax.vmap(trial, in_axes=(None, None, 0, 0)))(key, shared, *stacked)
    return next((draw[0] for draw in sorted(_draws(batched.jaxpr) - alone)), None)


def _draws(program: Any) -> set[tuple[str, tuple[tuple[int, ...], ...]]]:
    """What a program draws from such generators: which, and the shapes."""
    found = set()
    for jaxpr in inner_jaxprs(program):
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            kind = str(equation.invars[0].aval.dtype) if equation.invars else ""
            if name == "rng_bit_generator":
                generator = "rng_bit_generator"
            elif kind == "key<urbg>" and name in ("random_bits", "random_split", "random_fold_in"):
                generator = "unsafe_rbg"
            elif kind == "key<rbg>" and name == "random_bits":  # it splits and folds in as threefry
                generator = "rbg"
            else:
                continue
            found.add((generator, tuple(x.aval.shape for x in equation.outvars)))
    return found


def _callbacks(program: Any) -> list[int]:
    """Addresses of a program's host callbacks, which its text does not show."""
    found = [e.params.get("callback") for j in inner_jaxprs(program) for e in j.eqns]
    return [id(getattr(x, "callback_func", x)) for x in found if x is not None]


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
                f"metric {name!r} of the trial {who!r} has the name of another column of the rows: "
                f"rename it; the others are {sorted(taken)}"
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
