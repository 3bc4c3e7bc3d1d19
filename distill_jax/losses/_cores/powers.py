"""Divergences by powers of probabilities: alpha-beta and Renyi."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax.losses._cores._derivatives import is_zero, zero_if_infinite
from distill_jax.losses._cores._pairs import pair_of
from distill_jax.losses._cores._series import (
    NEAR,
    expm1_ratio,
    orders_of,
    phi_over_square,
    polynomial,
)
from distill_jax.losses._cores.softmax import log_softmax, through_softmax


def _log_probabilities(student: Array, teacher: Array) -> tuple[Array, ...]:
    """Log-probabilities, their difference, and where a class is excluded, each teacher first.

    Log-probabilities are 0 where excluded, and their difference where either is. A row without any
    allowed class stays NaN.
    """
    no_p, no_q = (x & ~x.all(-1, keepdims=True) for x in map(jnp.isneginf, (teacher, student)))
    log_p = jnp.where(no_p, 0.0, log_softmax(teacher))
    log_q = jnp.where(no_q, 0.0, log_softmax(student))
    d = pair_of(student, teacher, jnp.ones((), student.dtype)).d
    d = jnp.where(no_p | no_q, 0.0, d)
    return log_p, log_q, d, no_p, no_q


def _alpha_beta(student: Array, teacher: Array, alpha: Array, beta: Array) -> Array:
    """The alpha-beta divergence, ``[...]``.

    With ``s = hi + lo``, a term is ``base**s / hi * (E(s) - E(lo))``, where ``hi`` is the larger
    power, ``base`` the side to which it belongs, and ``E(c) = expm1(-c d) / c``.
    """
    log_p, log_q, ratio, no_p, no_q = _log_probabilities(student, teacher)
    swap = beta > alpha
    hi, lo = jnp.where(swap, beta, alpha), jnp.where(swap, alpha, beta)
    base, other = jnp.where(swap, log_q, log_p), jnp.where(swap, log_p, log_q)
    no_base, no_other = jnp.where(swap, no_q, no_p), jnp.where(swap, no_p, no_q)
    d = jnp.where(swap, -ratio, ratio)
    s = hi + lo
    weight = jnp.exp(s * base)

    near = jnp.abs(d) * jnp.maximum(s, jnp.abs(lo)) < NEAR
    small = jnp.where(near, d, 0.0)
    phis = s * phi_over_square(s * small) - lo * phi_over_square(lo * small)
    close = weight * small * small * phis / hi

    y = -lo * d
    tiny = jnp.abs(y) < 0.1
    by_series = -d * weight * expm1_ratio(jnp.where(tiny, y, 0.0))
    mixed = jnp.exp(hi * base + jnp.where(tiny, 0.0, lo) * jnp.where(tiny, 0.0, other))
    by_powers = (mixed - weight) / jnp.where(tiny, 1.0, lo)
    far = ((jnp.exp(s * other) - weight) / s - jnp.where(tiny, by_series, by_powers)) / hi

    # Where one side excludes the class, only its own power remains.
    positive_lo = jnp.where(lo > 0, lo, 1.0)
    only_base = jnp.where(lo > 0, weight / (s * positive_lo), jnp.inf)
    only_other = jnp.exp(s * other) / (s * hi)
    term = jnp.where(near, close, far)
    term = jnp.where(no_other, only_base, jnp.where(no_base, only_other, term))
    return jnp.where(no_base & no_other, 0.0, term).sum(-1)


@jax.custom_jvp
def alpha_beta(student: Array, teacher: Array, alpha: Array, beta: Array) -> Array:
    return _alpha_beta(student, teacher, alpha, beta)


def _alpha_beta_jvp(primals, tangents):
    student, teacher, alpha, beta = primals
    value = alpha_beta(*primals)
    log_p, log_q, d, no_p, no_q = _log_probabilities(student, teacher)
    slope = jnp.zeros_like(value)

    def through(own, other, d, own_power, power, no_own, no_other, tangent):
        """The part of the derivative by one side's own logits.

        It is ``own**s (1 - exp(-power d)) / power`` through the softmax, where ``power`` is the
        other side's, and d the log-ratio of own to other.
        """
        weight = jnp.exp((alpha + beta) * own)
        y = -power * d
        near = jnp.abs(y) < 0.7
        close = weight * d * expm1_ratio(jnp.where(near, y, 0.0))
        nonzero = jnp.where(power == 0, 1.0, power)
        mixed = jnp.exp(own_power * own + power * other)
        c = jnp.where(near, close, (weight - mixed) / nonzero)
        alone = jnp.where(power > 0, weight / nonzero, 0.0)
        c = jnp.where(no_own, 0.0, jnp.where(no_other, alone, c))
        probability = jnp.where(no_own, 0.0, jnp.exp(own))
        return (through_softmax(c, probability) * tangent).sum(-1)

    if not is_zero(tangents[0]):
        slope += through(log_q, log_p, -d, beta, alpha, no_q, no_p, tangents[0])
    if not is_zero(tangents[1]):
        slope += through(log_p, log_q, d, alpha, beta, no_p, no_q, tangents[1])
    one, of_powers = jnp.ones_like(alpha), functools.partial(_alpha_beta, student, teacher)
    if not is_zero(tangents[2]):
        by_alpha = jax.jvp(lambda a: of_powers(a, beta), (alpha,), (one,))[1]
        slope += zero_if_infinite(by_alpha) * tangents[2]
    if not is_zero(tangents[3]):
        by_beta = jax.jvp(lambda b: of_powers(alpha, b), (beta,), (one,))[1]
        slope += zero_if_infinite(by_beta) * tangents[3]
    return value, slope


alpha_beta.defjvp(_alpha_beta_jvp, symbolic_zeros=True)


def renyi(student: Array, teacher: Array, alpha: Array) -> Array:
    """The Rényi divergence, ``[...]``.

    Near equality it comes from the alpha-beta divergence S of powers (alpha, 1 - alpha), since the
    sum of ``p**alpha q**(1 - alpha)`` is ``1 - alpha (1 - alpha) S``; elsewhere from logsumexp.
    """
    rest = 1.0 - alpha
    excluded = jnp.isneginf(teacher) | jnp.isneginf(student)
    shared = ~excluded.all(-1)
    uncovered = (jnp.isneginf(student) & ~jnp.isneginf(teacher)).any(-1) & (rest <= 0)
    log_p, log_q = (jnp.where(excluded, 0.0, log_softmax(x)) for x in (teacher, student))
    power = jnp.where(excluded & shared[..., None], -jnp.inf, alpha * log_p + rest * log_q)
    log_sum = jax.nn.logsumexp(power, axis=-1)
    infinite = uncovered | ~shared

    near = ~infinite & (jnp.abs(jax.lax.stop_gradient(log_sum)) < 0.4)
    # Far from equality the terms of S may overflow.
    s, t = (jnp.where(near[..., None], x, 0.0) for x in (student, teacher))
    total = alpha_beta(s, t, alpha, rest)
    small = alpha * rest * total
    tiny = jnp.abs(small) < 0.05
    log_over = jnp.where(
        tiny,
        polynomial(jnp.where(tiny, small, 0.0), [1.0 / (n + 1) for n in orders_of(small, 11, 14)]),
        -jnp.log1p(-jnp.where(tiny, 0.5, small)) / jnp.where(tiny, 1.0, small),
    )
    not_far = near | infinite
    far = jnp.where(not_far, 0.0, log_sum) / jnp.where(not_far, 1.0, -rest)
    no_class = jnp.isneginf(teacher).all(-1) | jnp.isneginf(student).all(-1)
    value = jnp.where(infinite, jnp.inf, jnp.where(near, alpha * total * log_over, far))
    return jnp.where(no_class, jnp.nan, value)
