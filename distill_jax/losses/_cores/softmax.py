"""Reductions over classes, and what a softmax does with them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array


def max_classes(x: Array) -> Array:
    return _over_classes(x, jnp.maximum, jnp.max)


def sum_classes(x: Array) -> Array:
    return _over_classes(x, jnp.add, jnp.sum)


def _over_classes(x: Array, of_two: Callable, of_many: Callable) -> Array:
    """Over classes, ``[..., 1]``. XLA takes long to reduce an axis of two."""
    if x.shape[-1] == 2:
        return of_two(x[..., :1], x[..., 1:])
    return of_many(x, axis=-1, keepdims=True)


def centre(logits: Array) -> tuple[Array, Array]:
    """Logits shifted so that the largest of each row is 0, and that largest, without gradient."""
    top = jax.lax.stop_gradient(max_classes(logits))
    return logits - top, top


def log_softmax(logits: Array) -> Array:
    centred, _ = centre(logits)
    return centred - jnp.log(sum_classes(jnp.exp(centred)))


def through_softmax(slope: Array, probabilities: Array) -> Array:
    """A slope with respect to log-probabilities as one with respect to logits."""
    return slope - probabilities * sum_classes(slope)
