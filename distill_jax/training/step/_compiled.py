"""The programs that ``run`` and ``fit`` share: the start, and some steps.

With the same key and the same batches, both give the same bits.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax.training.devices.layout import Layout
from distill_jax.training.step.recipe import Recipe, TrainState


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(recipe: Recipe, layout: Layout | None, objective, batch, teachers, key) -> TrainState:
    """The state before the first step, made where it will lie."""
    state = recipe.init(objective, batch, teachers, key)
    return state if layout is None else layout.constrain(state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def steps_of(
    recipe: Recipe, unroll: int, layout: Layout | None, state, group, objective, teachers, decay
):
    """A step for each batch of ``group``, in the memory of ``state``. Metrics are ``[steps]``."""

    def body(state, batch):
        if layout is not None:
            batch = layout.constrain_batch(batch)
        state, metrics = recipe.step(state, batch, objective, teachers, decay)
        return state if layout is None else layout.constrain(state), metrics

    if len(group) == 1:
        state, metrics = body(state, group[0])
        metrics = jax.tree.map(lambda x: x[None], metrics)
    else:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *group)
        state, metrics = jax.lax.scan(body, state, stacked, unroll=unroll)
    if layout is not None:
        everywhere = NamedSharding(layout.mesh, PartitionSpec())
        metrics = jax.lax.with_sharding_constraint(metrics, everywhere)
    return state, metrics
