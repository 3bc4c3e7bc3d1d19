"""The programs that the loops share: the state before the first step, and some steps.

With the same key and the same batches, ``run`` and ``fit`` give the same bits.

``start`` and ``step`` are what these programs are made of. Each is traced once for arguments of the
same shapes: JAX keeps the trace, for the programs that run it as well as for what is done before
(finding shapes and convolutions, hashing the program).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from distill_jax.training.devices.layout import Layout
from distill_jax.training.step.recipe import Recipe, TrainState


@functools.partial(jax.jit, static_argnums=0, inline=True)
def start(recipe: Recipe, objective, batch, teachers, key) -> TrainState:
    """``recipe.init``, traced once."""
    return recipe.init(objective, batch, teachers, key)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def step(recipe: Recipe, state, batch, objective, teachers, decay):
    """``recipe.step``, traced once."""
    return recipe.step(state, batch, objective, teachers, decay)


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(recipe: Recipe, layout: Layout | None, objective, batch, teachers, key) -> TrainState:
    """The state before the first step, made on the devices that will hold it."""
    state = start(recipe, objective, batch, teachers, key)
    return state if layout is None else layout.constrain(state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
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
