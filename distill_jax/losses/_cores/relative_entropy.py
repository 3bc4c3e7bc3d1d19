"""Kullback-Leibler divergences, with a temperature and symmetric."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax.losses._cores._derivatives import is_zero, zero_if_infinite
from distill_jax.losses._cores._pairs import pair_of
from distill_jax.losses._cores._series import NEAR, phi_over_square
from distill_jax.losses._cores.softmax import centre, sum_classes, through_softmax


def _kl_terms(p: Array, q: Array, d: Array, small: Array) -> Array:
    """The non-negative terms ``p (d + exp(-d) - 1)`` of ``KL(p || q)``; p exp(-d) is q.

    ``small`` is d where that is near 0. Elsewhere it is not used, but its series must be finite if
    this is differentiated.
    """
    close = p * (small * small * phi_over_square(small))
    return jnp.where(jnp.abs(d) < NEAR, close, jnp.where(p == 0, q, p * d + (q - p)))


@jax.custom_jvp
def soft_targets(student: Array, teacher: Array, temperature: Array) -> Array:
    """``T**2 KL(p || q)``, ``[...]``, with both distributions softened by the temperature T."""
    p, q, d, _, _ = pair_of(student, teacher, temperature)
    return temperature * temperature * sum_classes(_kl_terms(p, q, d, small=d))[..., 0]


def _soft_targets_jvp(primals, tangents):
    value = soft_targets(*primals)
    student, teacher, temperature = primals
    p, q, d, gap, log_ratio = pair_of(*primals)
    slope = jnp.zeros_like(value)
    if not is_zero(tangents[0]):
        slope += temperature * (gap * tangents[0]).sum(-1)
    if not is_zero(tangents[1]):
        mean = zero_if_infinite(value) / (temperature * temperature)
        to_teacher = p * (zero_if_infinite(d) - mean[..., None])
        slope += temperature * (to_teacher * tangents[1]).sum(-1)
    if not is_zero(tangents[2]):
        # An infinite term counts as 0; a class that only the student allows, as one far away.
        d = jnp.where(jnp.isneginf(d), -1.0, zero_if_infinite(d))
        is_near = jnp.abs(d) < NEAR
        terms = _kl_terms(p, q, d, small=jnp.where(is_near, d, 0.0))
        mean = terms.sum(-1)
        s, t = (jnp.where(jnp.isneginf(x), 0.0, centre(x)[0]) for x in (student, teacher))
        # Both sides' gradients times their logits. Where the sides are close, the student's logit
        # is t - T d up to a constant, and what is of first order in d cancels.
        near = terms * t - temperature * gap * d
        far = gap * (s + temperature * log_ratio) + p * d * t
        by_logits = jnp.where(is_near, near, far).sum(-1) - mean * (p * t).sum(-1)
        slope += (2.0 * temperature * mean - by_logits) * tangents[2]
    return value, slope


soft_targets.defjvp(_soft_targets_jvp, symbolic_zeros=True)


def kl(student: Array, teacher: Array) -> Array:
    return soft_targets(student, teacher, jnp.ones((), student.dtype))


@jax.custom_jvp
def symmetric_kl(student: Array, teacher: Array) -> Array:
    """``KL(p || q) + KL(q || p)``, ``[...]``: of both sums, the terms add up to ``(p - q) d``."""
    _, _, d, gap, _ = pair_of(student, teacher, jnp.ones((), student.dtype))
    return jnp.where(gap == 0, 0.0, jnp.abs(gap * d)).sum(-1)


def _symmetric_kl_jvp(primals, tangents):
    value = symmetric_kl(*primals)
    p, q, d, gap, _ = pair_of(*primals, jnp.ones((), value.dtype))
    finite_d = zero_if_infinite(d)
    slope = jnp.zeros_like(value)
    if not is_zero(tangents[0]):
        slope += ((gap - through_softmax(q * finite_d, q)) * tangents[0]).sum(-1)
    if not is_zero(tangents[1]):
        slope += ((through_softmax(p * finite_d, p) - gap) * tangents[1]).sum(-1)
    return value, slope


symmetric_kl.defjvp(_symmetric_kl_jvp, symbolic_zeros=True)
