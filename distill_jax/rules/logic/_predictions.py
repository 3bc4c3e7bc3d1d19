"""Predictions from logits, for exclusive classes or label sets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.rules.binding.book import Book


def probabilities(book: Book, logits: Array) -> Float[Array, "batch classes"]:
    """The softmax over classes, or each label's sigmoid."""
    if book.schema.exclusive:
        return jax.nn.softmax(logits, axis=-1)
    return jax.nn.sigmoid(logits)


def predicted(book: Book, logits: Array) -> Bool[Array, "batch classes"]:
    """The class with the largest logit, or the labels with a logit above 0."""
    if book.schema.exclusive:
        return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=bool)
    return logits > 0


def certain(book: Book, holds: Bool[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    """Logits with probability 1 for classes or labels that hold, and 0 for the others."""
    return jnp.where(holds, 0.0 if book.schema.exclusive else jnp.inf, -jnp.inf)


def log_sigmoid(x: Array) -> Array:
    """The logarithm of the sigmoid, exact at ±inf with gradient 0 there."""
    finite = jnp.isfinite(x)
    ends = jnp.where(x > 0, 0.0, x)  # NaN stays NaN
    return jnp.where(finite, jax.nn.log_sigmoid(jnp.where(finite, x, 0.0)), ends)
