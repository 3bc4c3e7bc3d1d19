"""Constraints on parameters, as Optax transforms to put last in a chain."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from distill_jax import _checks


def max_norm(limit: float, *, name: str = "kernel") -> optax.GradientTransformation:
    """Keeps the incoming weights of every unit within a ball of radius ``limit``.

    Where a step would leave the ball, the unit's weights are scaled back onto it. A unit is an
    index of a kernel's last axis; the norm runs over the others. Put it last:
    ``optax.chain(optax.adam(1e-3), max_norm(3.0))``.

    Args:
      limit: Largest L2 norm, > 0.
      name: Last part of the path of the parameters it is for; biases are left free.

    References:
      Srivastava et al., `Dropout <https://jmlr.org/papers/v15/srivastava14a.html>`_, 2014,
      section 5.1.

    Example:
      >>> params = {"kernel": jnp.full((4, 1), 2.0)}
      >>> transform = max_norm(1.0)
      >>> zero = {"kernel": jnp.zeros((4, 1))}
      >>> updates, _ = transform.update(zero, transform.init(params), params)
      >>> print(jnp.linalg.norm(optax.apply_updates(params, updates)["kernel"]))
      1.0
    """
    _checks.positive(limit=limit)

    def update(updates: PyTree, state: Any, params: PyTree | None = None):
        if params is None:
            raise ValueError("max_norm needs params: call update(updates, state, params)")

        def project(path, change, old):
            last = getattr(path[-1], "key", getattr(path[-1], "name", None)) if path else None
            if last != name or old.ndim < 2:
                return change
            new = old + change
            square = jnp.sum(new * new, axis=tuple(range(new.ndim - 1)), keepdims=True)
            over = square > limit * limit
            scale = jnp.where(over, limit * jax.lax.rsqrt(jnp.where(over, square, 1.0)), 1.0)
            return jnp.where(over, new * scale - old, change)

        return jax.tree_util.tree_map_with_path(project, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
