"""Product logic over pairs (log t, log(1 − t)): no truth underflows, and none rounds to 1."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax.rules.circuits._algebra import Algebra

Pair = tuple[Array, Array]
"""The logarithms of a truth and of 1 minus it."""


def conjunction(parts: Sequence[Pair]) -> Pair:
    """The product of truths, computed without subtraction: 1 − a b is (1 − a) + a (1 − b)."""
    yes, no = (jnp.stack(x, axis=1) for x in zip(*parts, strict=True))
    before = jnp.cumsum(yes, axis=1)
    before = jnp.concatenate([jnp.zeros_like(yes[:, :1]), before[:, :-1]], axis=1)
    all_hold = yes.sum(1)
    terms = no + before
    fails = log_sum_exp(terms, ~jnp.isneginf(terms), axis=1)
    # For a small t, log(1 − t) is near 0, where the sum of exponentials loses digits.
    small = all_hold < -1.0
    return all_hold, jnp.where(small, jnp.log1p(-jnp.exp(jnp.where(small, all_hold, -1.0))), fails)


def negation(pair: Pair) -> Pair:
    yes, no = pair
    return no, yes


def disjunction(parts: Sequence[Pair]) -> Pair:
    return negation(conjunction([negation(part) for part in parts]))


def log_sum_exp(x: Array, allowed: Array, axis: int) -> Array:
    """log Σ exp over the allowed terms other than -inf; -inf with gradient 0 if there are none."""
    allowed = allowed & ~jnp.isneginf(x)
    safe = jnp.where(allowed, x, 0.0)
    top = jnp.where(allowed, x, -jnp.inf).max(axis, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0.0, top))
    total = jnp.where(allowed, jnp.exp(jnp.where(allowed, safe - top, 0.0)), 0.0).sum(axis)
    any_allowed = allowed.any(axis)
    value = jnp.log(jnp.where(any_allowed, total, 1.0)) + jnp.squeeze(top, axis)
    return jnp.where(any_allowed, value, -jnp.inf)


LOG_PAIRS = Algebra(conjunction, disjunction, negation, false=(-jnp.inf, 0.0), true=(0.0, -jnp.inf))
