"""Distances: total variation of the distributions, squared error of the logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax.losses._cores._derivatives import is_zero
from distill_jax.losses._cores._pairs import pair_of
from distill_jax.losses._cores.softmax import sum_classes, through_softmax


@jax.custom_jvp
def total_variation(student: Array, teacher: Array) -> Array:
    gap = pair_of(student, teacher, jnp.ones((), student.dtype)).gap
    return 0.5 * jnp.abs(gap).sum(-1)


def _total_variation_jvp(primals, tangents):
    value = total_variation(*primals)
    pair = pair_of(*primals, jnp.ones((), value.dtype))
    # Where both sides have the same probability, up to the rounding of the row, the sign is 0.
    rounding = 4.0 * jnp.finfo(value.dtype).eps * sum_classes(jnp.abs(pair.gap))
    sign = jnp.where(jnp.abs(pair.d) > rounding, jnp.sign(pair.d), 0.0)  # 0 for NaN too
    slope = jnp.zeros_like(value)
    if not is_zero(tangents[0]):
        slope -= 0.5 * (through_softmax(pair.q * sign, pair.q) * tangents[0]).sum(-1)
    if not is_zero(tangents[1]):
        slope += 0.5 * (through_softmax(pair.p * sign, pair.p) * tangents[1]).sum(-1)
    return value, slope


total_variation.defjvp(_total_variation_jvp, symbolic_zeros=True)


def squared_error(student: Array, teacher: Array) -> Array:
    no_s, no_t = jnp.isneginf(student), jnp.isneginf(teacher)
    s, t = (jnp.where(no_s | no_t, 0.0, x) for x in (student, teacher))
    gap = s - t
    return 0.5 * jnp.where(no_s ^ no_t, jnp.inf, gap * gap).sum(-1)
