"""The programs that the loops share: the state before the first step, and some steps.

With the same key and the same batches, ``run`` and ``fit`` give the same bits.

``start`` and ``step`` are what these programs are made of. Each is traced once for arguments of the
same shapes: JAX keeps the trace, for the programs that run it as well as for what is done before
(finding shapes and convolutions, hashing the program).

A recipe and the losses of an objective are fixed in a program. JAX keeps the programs of a function
as long as the function, so one function for all recipes would keep those of every optimizer and
every lambda there ever was. Here each has a function of its own, and the last ``KEPT`` are kept.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.training.devices.layout import Layout
from distill_jax.training.step.recipe import Recipe, TrainState

KEPT = 32
"""Functions whose programs are kept, for each of those below: a few megabytes each."""


class Compiled:
    """``jax.jit`` of a function whose first arguments are fixed, with a bounded memory.

    Programs are freed with the function that they were compiled for, and that is forgotten once
    ``KEPT`` others with another fixed part were called since.
    """

    def __init__(self, function: Callable, fixed: int, **options: Any):
        functools.update_wrapper(self, function)
        self._function, self._fixed, self._options = function, fixed, options
        self._kept: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        return self.of(*arguments)(*arguments[self._fixed :])

    def lower(self, *arguments: Any) -> Any:
        return self.of(*arguments).lower(*arguments[self._fixed :])

    def of(self, *arguments: Any) -> Any:
        """The compiled function of the other arguments, given the fixed ones."""
        fixed, others = arguments[: self._fixed], arguments[self._fixed :]
        if jax.config.jax_check_tracer_leaks:  # pyright: ignore[reportAttributeAccessIssue]
            return self._new(fixed)  # an optimizer may close over a traced learning rate
        # The structure of an objective holds its losses, that of teachers how they predict.
        key = fixed, jax.tree.structure(others)
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                found = self._kept[key] = self._new(fixed)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    def _new(self, fixed: tuple[Any, ...]) -> Any:
        @functools.wraps(self._function)
        def function(*others: Any) -> Any:
            return self._function(*fixed, *others)

        del function.__wrapped__  # or JAX would read the signature with the fixed arguments
        return jax.jit(function, **self._options)


def compiled(fixed: int, **options: Any) -> Callable[[Callable], Compiled]:
    """``jax.jit`` with the first ``fixed`` arguments static, and :class:`Compiled`'s memory."""
    return functools.partial(Compiled, fixed=fixed, **options)


@compiled(1, inline=True)
def start(recipe: Recipe, objective, batch, teachers, key, weights) -> TrainState:
    """``recipe.init``, traced once."""
    return recipe.init(objective, batch, teachers, key, weights)


@compiled(1, inline=True)
def step(recipe: Recipe, state, batch, objective, teachers, decay):
    """``recipe.step``, traced once."""
    return recipe.step(state, batch, objective, teachers, decay)


@compiled(2)
def init(
    recipe: Recipe, layout: Layout | None, objective, batch, teachers, key, weights
) -> TrainState:
    """The state before the first step, made on the devices that will hold it."""
    state = start(recipe, objective, batch, teachers, key, weights)
    return state if layout is None else layout.constrain(state)


@compiled(3, donate_argnums=0)
def steps_of(
    recipe: Recipe, unroll: int, layout: Layout | None, state, group, objective, teachers, decay
):
    """A step for each batch of ``group``, in the memory of ``state``. Metrics are ``[steps]``."""

    def body(state, batch):
        if layout is not None:
            batch = layout.constrain_batch(batch)
        state, metrics = step(recipe, state, batch, objective, teachers, decay)
        return state if layout is None else layout.constrain(state), metrics

    if len(group) == 1:
        state, metrics = body(state, group[0])
        metrics = jax.tree.map(lambda x: x[None], metrics)
    else:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *group)
        state, metrics = jax.lax.scan(body, state, stacked, unroll=unroll)
    if layout is not None:
        metrics = jax.lax.with_sharding_constraint(metrics, layout.replicated)
    return state, metrics


@compiled(2)
def scanned(recipe: Recipe, unroll: int, state, index, data, objective, teachers, decay):
    """One scan over all steps; ``index`` holds the rows of each, ``[steps, batch]``."""

    def body(state, rows):
        batch = jax.tree.map(lambda x: x[rows], data)
        return step(recipe, state, batch, objective, teachers, decay)

    return jax.lax.scan(body, state, index, unroll=unroll)
