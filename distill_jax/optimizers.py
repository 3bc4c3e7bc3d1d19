"""Optax transforms of ours, to be chained with any optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

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


class PullState(NamedTuple):
    """Where training started."""

    start: PyTree


def pull_to_start(strength: float | Array) -> optax.GradientTransformation:
    """Pulls all parameters back to where training started: rules are not forgotten.

    Adds the gradient of ½ · strength · ‖params − start‖². Before an optimizer in a chain it is a
    penalty like L2: ``optax.chain(pull_to_start(1e-3), optax.adam(1e-2))``; between a scaling and
    the learning rate it is decoupled, as in AdamW. The start is remembered in the optimizer's
    state, so a resumed run is pulled to the same place. For parameters that start at 0 it is plain
    weight decay.

    Args:
      strength: 0 or more; may be traced.

    Example:
      >>> pull = pull_to_start(0.5)
      >>> state = pull.init({"w": jnp.ones(2)})
      >>> updates, _ = pull.update({"w": jnp.zeros(2)}, state, {"w": jnp.array([1.0, 3.0])})
      >>> print(updates["w"])
      [0. 1.]
    """
    _checks.at_least(0.0, strength=strength)

    def init(params: PyTree) -> PullState:
        return PullState(jax.tree.map(jnp.copy, params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None):
        if params is None:
            raise ValueError("pull_to_start needs params: call update(updates, state, params)")
        pulled = jax.tree.map(
            lambda g, p, start: g + (strength * (p - start)).astype(g.dtype),
            updates, params, state.start,
        )  # fmt: skip
        return pulled, state

    return optax.GradientTransformation(init, update)
