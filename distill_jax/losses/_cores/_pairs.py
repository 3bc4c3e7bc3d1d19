"""Two softened distributions and the differences between them, with exact derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax.losses._cores._derivatives import is_zero
from distill_jax.losses._cores._series import VERY_NEAR, small_expm1_ratio
from distill_jax.losses._cores.softmax import centre, sum_classes


class Pair(NamedTuple):
    """Two softened distributions, ``[..., classes]`` each unless a shape is given.

    Attributes:
      p: The teacher's.
      q: The student's.
      d: ``log(p / q)``: infinite where one side excludes a class, NaN where both do. A constant
        added to all logits costs no precision, nor does equality: it is 0 there.
      gap: ``q - p``, accurate relative to the row's largest.
      log_ratio: Of the sums of both sides' exponentials, ``[..., 1]``.
    """

    p: Array
    q: Array
    d: Array
    gap: Array
    log_ratio: Array


@jax.custom_jvp
def pair_of(student: Array, teacher: Array, temperature: Array) -> Pair:
    s, top_s = centre(student)
    t, top_t = centre(teacher)
    exp_s, exp_t = jnp.exp(s / temperature), jnp.exp(t / temperature)
    sum_s, sum_t = (sum_classes(x) for x in (exp_s, exp_t))

    # If the two are close, so are their raw logits, whose difference is then exact. If they are far
    # apart, raw logits may be large, and the centred ones keep more digits.
    shift = top_t - top_s
    raw = jnp.abs(shift) < 1.0
    ours, theirs = (x - jnp.where(raw, 0.0, top) for x, top in ((student, top_s), (teacher, top_t)))
    d = (theirs - ours - jnp.where(raw, shift, 0.0)) / temperature  # NaN where both are -inf

    # exp_t - exp_s without rounding where the two are close. The series may overflow elsewhere:
    # JAX differentiates none of this. Passes over the classes are what costs, arithmetic hardly, so
    # log_ratio and gap are both made from this array.
    change = jnp.where(jnp.abs(d) < VERY_NEAR, exp_s * d * small_expm1_ratio(d), exp_t - exp_s)
    excess = sum_classes(change) / sum_s  # the ratio of the sums, less 1
    close = jnp.abs(excess) < 0.5
    log_ratio = jnp.where(close, jnp.log1p(jnp.where(close, excess, 0.0)), jnp.log(sum_t / sum_s))
    p, q = exp_t / sum_t, exp_s / sum_s
    gap = jnp.where(close, (exp_s * excess - change) / sum_t, q - p)
    return Pair(p, q, d - log_ratio, gap, log_ratio)


def _pair_jvp(primals, tangents):
    student, teacher, temperature = primals
    by_temperature = tangents[2]

    def softened(logits: Array, tangent: Any) -> Array:
        slope = jnp.zeros_like(logits) if is_zero(tangent) else tangent
        if not is_zero(by_temperature):
            centred = jnp.where(jnp.isneginf(logits), 0.0, centre(logits)[0])
            slope = slope - centred / temperature * by_temperature
        return slope / temperature

    pair = pair_of(*primals)
    du_t, mean_t = log_slope(teacher, pair.p, softened(teacher, tangents[1]))
    du_s, mean_s = log_slope(student, pair.q, softened(student, tangents[0]))
    dp, dq = pair.p * du_t, pair.q * du_s
    dd = jnp.where(jnp.isneginf(student) | jnp.isneginf(teacher), 0.0, du_t - du_s)
    return pair, Pair(dp, dq, dd, dq - dp, mean_t - mean_s)


def log_slope(logits: Array, probabilities: Array, tangent: Any) -> tuple[Array, Array]:
    """Tangents of the log-probabilities of allowed classes, and of their normaliser."""
    allowed = jnp.zeros_like(logits)
    if not is_zero(tangent):
        allowed = jnp.where(jnp.isneginf(logits), 0.0, tangent)
    mean = sum_classes(probabilities * allowed)
    return allowed - mean, mean


pair_of.defjvp(_pair_jvp, symbolic_zeros=True)
