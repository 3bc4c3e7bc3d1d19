"""The hard numerics: cores over dense, clean, float blocks ``[..., classes]``, student first.

What is common to all: probabilities come from log-probabilities, the log-ratio of the two is taken
as a difference of differences, and a sum runs over terms that are each non-negative. Near equality
those terms are series in the log-ratio, because the closed forms cancel there. Arguments of every
branch that is not taken are replaced beforehand, or their derivative would be NaN.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

_NEAR = 0.7  # a log-ratio below which the series is used


def _pair(student: Array, teacher: Array) -> tuple[Array, Array, Array]:
    """Probabilities ``p`` (teacher) and ``q`` (student), and ``log(p / q)``.

    The ratio is infinite where one side forbids a class, and 0 where both do.
    """
    lse_student = jax.nn.logsumexp(student, axis=-1, keepdims=True)
    lse_teacher = jax.nn.logsumexp(teacher, axis=-1, keepdims=True)
    q, p = jnp.exp(student - lse_student), jnp.exp(teacher - lse_teacher)
    neither = jnp.isneginf(student) & jnp.isneginf(teacher)
    gap = jnp.where(neither, 0.0, teacher) - jnp.where(neither, 0.0, student)
    return p, q, jnp.where(neither, 0.0, gap - (lse_teacher - lse_student))


def _series(x: Array, coefficients: list[float]) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _bend(d: Array) -> Array:
    """``(d + exp(-d) - 1) / d**2`` for absolute d below 0.7: a smooth bowl, 1/2 at 0."""
    return _series(d, [(-1.0) ** n / math.factorial(n + 2) for n in range(10)])


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _is_zero(tangent: object) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


@jax.custom_jvp
def kl(student: Array, teacher: Array) -> Array:
    p, q, d = _pair(student, teacher)
    near = jnp.abs(d) < _NEAR
    small = jnp.where(near, d, 0.0)
    # The sum of p (d + exp(-d) - 1), where p exp(-d) is q.
    far = jnp.where(p > 0, p * d + (q - p), q)
    return jnp.where(near, p * small * small * _bend(small), far).sum(-1)


def _kl_jvp(primals, tangents):
    value = kl(*primals)
    p, q, d = _pair(*primals)
    slope = jnp.zeros_like(value)
    if not _is_zero(tangents[0]):
        slope += ((q - p) * tangents[0]).sum(-1)
    if not _is_zero(tangents[1]):
        slope += (p * (_finite(d) - _finite(value)[..., None]) * tangents[1]).sum(-1)
    return value, slope


kl.defjvp(_kl_jvp, symbolic_zeros=True)


def soft_targets(student: Array, teacher: Array, temperature: Array) -> Array:
    return temperature**2 * kl(soften(student, temperature), soften(teacher, temperature))


def soften(logits: Array, temperature: Array) -> Array:
    # -inf / T would reach the temperature's gradient.
    dead = jnp.isneginf(logits)
    return jnp.where(dead, -jnp.inf, jnp.where(dead, 0.0, logits) / temperature)


@jax.custom_jvp
def kl_to_mixture(first: Array, second: Array, alpha: Array, rest: Array) -> Array:
    """``KL(a || alpha a + rest b)``; ``rest`` is ``1 - alpha``, given apart because either may be
    tiny, and carries no tangent of its own."""
    a, b, d = _pair(second, first)
    u = rest * jnp.expm1(-d)
    near = jnp.abs(u) < 0.1
    small = jnp.where(near, u, 0.0)
    # u - log1p(u), over u squared
    bend = _series(small, [(-1.0) ** n / (n + 2) for n in range(9)])
    far = jnp.where(a > 0, rest * (b - a) - a * _log_share(d, alpha, rest), rest * b)
    return jnp.where(near, a * small * small * bend, far).sum(-1)


def _log_share(d: Array, alpha: Array, rest: Array) -> Array:
    """``log(alpha + rest exp(-d))``, the log of mixture over first."""
    return jnp.logaddexp(_log(alpha, rest), _log(rest, alpha) - d)


def _log(x: Array, complement: Array) -> Array:
    return jnp.where(complement < 0.5, jnp.log1p(-complement), jnp.log(x))


def _kl_to_mixture_jvp(primals, tangents):
    first, second, alpha, rest = primals
    value = kl_to_mixture(*primals)
    a, b, d = _pair(second, first)
    log_share = _log_share(d, alpha, rest)
    share = jax.nn.sigmoid(_log(rest, alpha) - _log(alpha, rest) - d)  # of b in the mixture
    slope = jnp.zeros_like(value)

    def through_softmax(c, probabilities):
        return c - probabilities * c.sum(-1, keepdims=True)

    if not _is_zero(tangents[0]):
        c = -a * _finite(log_share) + (1.0 - share) * rest * (b - a)
        slope += (through_softmax(c, a) * tangents[0]).sum(-1)
    if not _is_zero(tangents[1]):
        slope += (through_softmax(share * rest * (b - a), b) * tangents[1]).sum(-1)
    if not _is_zero(tangents[2]):
        slope += (_finite(jnp.exp(-log_share)) * (b - a)).sum(-1) * tangents[2]
    return value, slope


kl_to_mixture.defjvp(_kl_to_mixture_jvp, symbolic_zeros=True)


def jensen_shannon(student: Array, teacher: Array, beta: Array) -> Array:
    rest = 1.0 - beta

    def part(weight, first, second, alpha, rest):
        # At weight 0 the KL may be infinite, and its part is 0 all the same.
        inside = weight > 0
        safe = jnp.where(inside, alpha, 0.5), jnp.where(inside, rest, 0.5)
        return jnp.where(inside, weight * kl_to_mixture(first, second, *safe), 0.0)

    return part(beta, teacher, student, beta, rest) + part(rest, student, teacher, rest, beta)


def scaled_jensen_shannon(student: Array, teacher: Array, beta: Array) -> Array:
    rest = 1.0 - beta

    def part(divisor, first, second, alpha, rest):
        # KL to a mixture that is all but itself falls off like the square of the rest.
        inside = divisor > 0
        safe = jnp.where(inside, alpha, 0.5), jnp.where(inside, rest, 0.5)
        return jnp.where(inside, kl_to_mixture(first, second, *safe) / safe[1], 0.0)

    return part(rest, teacher, student, beta, rest) + part(beta, student, teacher, rest, beta)


def total_variation(student: Array, teacher: Array) -> Array:
    p, q, d = _pair(student, teacher)
    near = jnp.abs(d) < _NEAR
    small = p * jnp.abs(jnp.expm1(jnp.where(near, -d, 0.0)))
    return 0.5 * jnp.where(near, small, jnp.abs(p - q)).sum(-1)


def _expm1_over(y: Array) -> Array:
    """``expm1(y) / y``, 1 at 0, smooth there."""
    near = jnp.abs(y) < 0.1
    small, large = jnp.where(near, y, 0.0), jnp.where(near, 1.0, y)
    series = _series(small, [1.0 / math.factorial(n + 1) for n in range(7)])
    return jnp.where(near, series, jnp.expm1(large) / large)


def alpha_beta(student: Array, teacher: Array, alpha: Array, beta: Array) -> Array:
    """With ``s = hi + lo``, a term is ``base**s / hi * (E(s) - E(lo))``, ``E(c) = expm1(-c d) / c``,
    where ``hi`` is the larger power and ``base`` the side that it belongs to."""
    dead_p, dead_q = jnp.isneginf(teacher), jnp.isneginf(student)
    live = ~(dead_p | dead_q)
    lse_p = jax.nn.logsumexp(teacher, axis=-1, keepdims=True)
    lse_q = jax.nn.logsumexp(student, axis=-1, keepdims=True)
    log_p = jnp.where(dead_p, 0.0, teacher) - lse_p
    log_q = jnp.where(dead_q, 0.0, student) - lse_q
    gap = jnp.where(live, teacher, 0.0) - jnp.where(live, student, 0.0)
    ratio = jnp.where(live, gap - (lse_p - lse_q), 0.0)

    swap = beta > alpha
    hi, lo = jnp.where(swap, beta, alpha), jnp.where(swap, alpha, beta)
    base, other = jnp.where(swap, log_q, log_p), jnp.where(swap, log_p, log_q)
    dead_base, dead_other = jnp.where(swap, dead_q, dead_p), jnp.where(swap, dead_p, dead_q)
    d = jnp.where(swap, -ratio, ratio)
    s = hi + lo
    weight = jnp.exp(s * base)

    near = jnp.abs(d) * jnp.maximum(s, jnp.abs(lo)) < _NEAR
    small = jnp.where(near, d, 0.0)
    close = weight * small * small * (s * _bend(s * small) - lo * _bend(lo * small)) / hi

    y = -lo * d
    flat = jnp.abs(y) < 0.1
    slope = -d * weight * _expm1_over(jnp.where(flat, y, 0.0))
    steep = jnp.exp(hi * base + jnp.where(flat, 0.0, lo) * jnp.where(flat, 0.0, other)) - weight
    reach = jnp.where(flat, slope, steep / jnp.where(flat, 1.0, lo))
    apart = ((jnp.exp(s * other) - weight) / s - reach) / hi

    # One side forbids the class: what is left of the three summands.
    lo_ok = jnp.where(lo > 0, lo, 1.0)
    only_base = jnp.where(lo > 0, weight / (s * lo_ok), jnp.inf)
    only_other = jnp.exp(s * other) / (s * hi)
    term = jnp.where(near, close, apart)
    term = jnp.where(dead_other, only_base, jnp.where(dead_base, only_other, term))
    return jnp.where(dead_base & dead_other, 0.0, term).sum(-1)


def renyi(student: Array, teacher: Array, alpha: Array) -> Array:
    """Near equality by the alpha-beta sum S of powers (alpha, 1 - alpha), for which the sum of
    ``p**alpha q**(1 - alpha)`` is ``1 - alpha (1 - alpha) S``; elsewhere by logsumexp."""
    rest = 1.0 - alpha
    total = alpha_beta(student, teacher, alpha, rest)
    y = alpha * rest * total
    near = jnp.abs(y) < 0.5
    small = jnp.where(near, y, 0.0)
    tiny = jnp.abs(small) < 0.05
    log_over = jnp.where(
        tiny,
        _series(jnp.where(tiny, small, 0.0), [1.0 / (n + 1) for n in range(8)]),
        -jnp.log1p(-small) / jnp.where(tiny, 1.0, small),
    )
    close = alpha * total * log_over

    dead = jnp.isneginf(teacher) | jnp.isneginf(student)
    shared = ~dead.all(-1, keepdims=True)
    log_p, log_q = (x - jax.nn.logsumexp(x, axis=-1, keepdims=True) for x in (teacher, student))
    power = alpha * jnp.where(dead, 0.0, log_p) + rest * jnp.where(dead, 0.0, log_q)
    power = jnp.where(dead & shared, -jnp.inf, power)
    apart = jax.nn.logsumexp(power, axis=-1) / jnp.where(near, 1.0, -rest)
    uncovered = (jnp.isneginf(student) & ~jnp.isneginf(teacher)).any(-1) & (rest <= 0)
    infinite = uncovered | ~shared[..., 0]
    return jnp.where(infinite, jnp.inf, jnp.where(near, close, apart))


def squared_error(student: Array, teacher: Array) -> Array:
    both = jnp.isneginf(student) & jnp.isneginf(teacher)
    gap = jnp.where(both, 0.0, student) - jnp.where(both, 0.0, teacher)
    return 0.5 * (gap * gap).sum(-1)
