"""The hard numerics: cores over dense, clean, float blocks ``[..., classes]``, student first.

What is common to all: probabilities come from log-probabilities, the log-ratio of the two is taken
as a difference of differences, and a sum runs over terms that are each non-negative. Near equality
those terms are series in the log-ratio, because the closed forms cancel there. Arguments of every
branch that is not taken are replaced beforehand, or their derivative would be NaN. Slopes that are
infinite are given as 0.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

_NEAR = 0.7  # a log-ratio below which the series is used


def _centre(logits: Array) -> tuple[Array, Array]:
    """Logits with the largest of a row at 0, and that largest, a constant to gradients."""
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return logits - top, top


def log_softmax(logits: Array) -> Array:
    centred, _ = _centre(logits)
    return centred - jnp.log(jnp.exp(centred).sum(-1, keepdims=True))


def _pair(
    student: Array, teacher: Array, *, temperature: Array | float = 1.0, precise: bool = False
) -> tuple[Array, Array, Array]:
    """Probabilities ``p`` (teacher) and ``q`` (student), and ``log(p / q)``.

    The ratio is infinite where one side forbids a class, and 0 where both do. Only differences of
    logits go into it, so a constant added to all of them costs no digits. An error common to all
    classes is left in it, of the size of rounding; ``precise`` removes that too, for sums whose
    terms do not cancel it.
    """
    s, top_s = _centre(student)
    t, top_t = _centre(teacher)
    exp_s, exp_t = jnp.exp(s / temperature), jnp.exp(t / temperature)
    sum_s, sum_t = (x.sum(-1, keepdims=True) for x in (exp_s, exp_t))
    neither = jnp.isneginf(student) & jnp.isneginf(teacher)

    def gap(ours: Array, theirs: Array) -> Array:
        return jnp.where(neither, 0.0, theirs) - jnp.where(neither, 0.0, ours)

    # Where the two are close, so are their raw logits, and their difference is exact; where they
    # are far apart, raw logits may be large, and the centred ones have more digits.
    apart = top_t - top_s
    d = jnp.where(jnp.abs(apart) < 1.0, gap(student, teacher) - apart, gap(s, t)) / temperature
    ratio = sum_t / sum_s
    if precise:
        near = jnp.abs(d) < _NEAR
        more = jnp.where(near, exp_s * jnp.expm1(jnp.where(near, d, 0.0)), exp_t - exp_s)
        more = more.sum(-1, keepdims=True) / sum_s  # ratio - 1, without the rounding of the sums
        near = jnp.abs(more) < 0.5
        excess = jnp.log1p(jnp.where(near, more, 0.0))
        excess = jnp.where(near, excess, jnp.log(jnp.where(near, 1.0, ratio)))
    else:
        excess = jnp.log(ratio)
    return exp_t / sum_t, exp_s / sum_s, jnp.where(neither, 0.0, d - excess)


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
def soft_targets(student: Array, teacher: Array, temperature: Array) -> Array:
    """T² KL(p || q), where p and q are softened by T."""
    p, q, d = _pair(student, teacher, temperature=temperature)
    near = jnp.abs(d) < _NEAR
    small = jnp.where(near, d, 0.0)
    # The sum of p (d + exp(-d) - 1), where p exp(-d) is q.
    far = jnp.where(p == 0, q, p * d + (q - p))
    terms = jnp.where(near, p * small * small * _bend(small), far)
    return temperature * temperature * terms.sum(-1)


def _soft_targets_jvp(primals, tangents):
    value = soft_targets(*primals)
    student, teacher, temperature = primals
    p, q, d = _pair(student, teacher, temperature=temperature)
    to_student = q - p
    mean = _finite(value) / (temperature * temperature)
    to_teacher = p * (_finite(d) - mean[..., None])
    slope = jnp.zeros_like(value)
    if not _is_zero(tangents[0]):
        slope += temperature * (to_student * tangents[0]).sum(-1)
    if not _is_zero(tangents[1]):
        slope += temperature * (to_teacher * tangents[1]).sum(-1)
    if not _is_zero(tangents[2]):
        s, t = (_finite(_centre(x)[0]) for x in (student, teacher))
        moved = (to_student * s + to_teacher * t).sum(-1)
        slope += (2.0 * temperature * mean - moved) * tangents[2]
    return value, slope


soft_targets.defjvp(_soft_targets_jvp, symbolic_zeros=True)


def kl(student: Array, teacher: Array) -> Array:
    return soft_targets(student, teacher, jnp.ones((), student.dtype))


def _mixture(first: Array, second: Array, alpha: Array, rest: Array) -> tuple[Array, ...]:
    """What the mixture ``m = alpha a + rest b`` of two distributions needs; ``rest`` is
    ``1 - alpha``, given apart because either may be tiny.

    Returns:
      ``a``; ``b - a``; ``near``, where m is close to a; ``v = (b - a) / a`` there, else 0;
      ``log(m / a) / rest``; and b's share of m, 1 where b has a class to itself.
    """
    a, b, d = _pair(second, first)
    v = jnp.expm1(-d)
    near = jnp.abs(rest * v) < 0.1
    v = jnp.where(near, v, 0.0)
    log_m = jnp.logaddexp(_log(alpha, rest), _log(rest, alpha) - d)  # over a
    some = rest > 0
    over = jnp.where(some, log_m / jnp.where(some, rest, 1.0), 0.0)
    # log1p(u) / u, where u is m / a - 1
    bend = _series(rest * v, [(-1.0) ** n / (n + 1) for n in range(11)])
    sure = jnp.isinf(d)
    odds = _log(rest, alpha) - _log(alpha, rest) - jnp.where(sure, 0.0, d)
    share = jnp.where(sure, jnp.where(d < 0, 1.0, 0.0), jax.nn.sigmoid(odds))
    return a, jnp.where(near, a * v, b - a), near, v, jnp.where(near, v * bend, over), share


def _log(x: Array, complement: Array) -> Array:
    near_one = complement < 0.5
    small = jnp.where(near_one, complement, 0.0)
    logs = jnp.log(jnp.where(near_one | (x == 0), 1.0, x))
    return jnp.where(near_one, jnp.log1p(-small), jnp.where(x == 0, -jnp.inf, logs))


def _mixture_terms(a, gap, near, v, over, share, rest):
    """The non-negative terms of KL(a || m), over ``rest``."""
    u = rest * v
    bend = _series(u, [(-1.0) ** n / (n + 2) for n in range(11)])  # (u - log1p(u)) / u**2
    # Where rest is 0, only the mass that b has and a lacks is left, the limit from above.
    far = jnp.where(a == 0, gap, gap - a * over)
    far = jnp.where((rest > 0) | (share == 1.0), far, 0.0 * gap)
    return jnp.where(near, a * u * v * bend, far), a * v * v * bend


@jax.custom_jvp
def kl_to_mixture(first: Array, second: Array, alpha: Array, rest: Array) -> Array:
    """``KL(a || alpha a + rest b)``. ``rest`` carries no tangent of its own."""
    return rest * kl_to_mixture_over_rest(first, second, alpha, rest)


@jax.custom_jvp
def kl_to_mixture_over_rest(first: Array, second: Array, alpha: Array, rest: Array) -> Array:
    """``KL(a || alpha a + rest b) / rest``, smooth where ``rest`` comes to 0."""
    a, gap, near, v, over, share = _mixture(first, second, alpha, rest)
    return _mixture_terms(a, gap, near, v, over, share, rest)[0].sum(-1)


def _mixture_jvp(primals, tangents, *, over_rest: bool):
    first, second, alpha, rest = primals
    value = (kl_to_mixture_over_rest if over_rest else kl_to_mixture)(*primals)
    a, gap, near, v, over, share = _mixture(*primals)
    b = a + gap
    scale = jnp.ones_like(rest) if over_rest else rest
    slope = jnp.zeros_like(value)

    def through_softmax(c, probabilities):
        return c - probabilities * c.sum(-1, keepdims=True)

    if not _is_zero(tangents[0]):
        c = (1.0 - share) * gap - a * _finite(over)
        slope += scale * (through_softmax(c, a) * tangents[0]).sum(-1)
    if not _is_zero(tangents[1]):
        slope += scale * (through_softmax(share * gap, b) * tangents[1]).sum(-1)
    if not _is_zero(tangents[2]):
        m = alpha * a + rest * b
        some = m > 0
        bends = -jnp.where(some, gap * (gap / jnp.where(some, m, 1.0)), 0.0)
        if over_rest:
            terms, over_square = _mixture_terms(a, gap, near, v, over, share, rest)
            far = terms / jnp.where(rest > 0, rest, 1.0)
            bends += jnp.where(near, over_square, jnp.where(rest > 0, far, 0.0))
        slope += scale * _finite(bends).sum(-1) * tangents[2]
    return value, slope


kl_to_mixture.defjvp(functools.partial(_mixture_jvp, over_rest=False), symbolic_zeros=True)
kl_to_mixture_over_rest.defjvp(functools.partial(_mixture_jvp, over_rest=True), symbolic_zeros=True)


def scaled_jensen_shannon(student: Array, teacher: Array, beta: Array) -> Array:
    rest = 1.0 - beta
    towards_teacher = kl_to_mixture_over_rest(student, teacher, rest, beta)
    return kl_to_mixture_over_rest(teacher, student, beta, rest) + towards_teacher


def jensen_shannon(student: Array, teacher: Array, beta: Array) -> Array:
    scaled = scaled_jensen_shannon(student, teacher, beta)
    # Infinite only where beta is 0 or 1, and 0 times that is 0.
    return beta * (1.0 - beta) * jnp.where(jnp.isinf(scaled), 0.0, scaled)


def total_variation(student: Array, teacher: Array) -> Array:
    p, q, d = _pair(student, teacher, precise=True)
    near = jnp.abs(d) < _NEAR
    small = p * jnp.abs(jnp.expm1(jnp.where(near, -d, 0.0)))
    return 0.5 * jnp.where(near, small, jnp.abs(p - q)).sum(-1)


def _expm1_over(y: Array) -> Array:
    """``expm1(y) / y``, 1 at 0, smooth there."""
    near = jnp.abs(y) < 0.1
    small, large = jnp.where(near, y, 0.0), jnp.where(near, 1.0, y)
    series = _series(small, [1.0 / math.factorial(n + 1) for n in range(7)])
    return jnp.where(near, series, jnp.expm1(large) / large)


def _powers(student: Array, teacher: Array) -> tuple[Array, ...]:
    """Log-probabilities, teacher first, 0 where forbidden; their difference, 0 where either is
    forbidden; and where they are. A row that is forbidden as a whole stays NaN."""
    dead_p, dead_q = (x & ~x.all(-1, keepdims=True) for x in map(jnp.isneginf, (teacher, student)))
    log_p = jnp.where(dead_p, 0.0, log_softmax(teacher))
    log_q = jnp.where(dead_q, 0.0, log_softmax(student))
    d = jnp.where(dead_p | dead_q, 0.0, _pair(student, teacher, precise=True)[2])
    return log_p, log_q, d, dead_p, dead_q


def _alpha_beta(student: Array, teacher: Array, alpha: Array, beta: Array) -> Array:
    """With ``s = hi + lo``, a term is ``base**s / hi * (E(s) - E(lo))``, where
    ``E(c) = expm1(-c d) / c``, ``hi`` is the larger power and ``base`` the side it belongs to."""
    log_p, log_q, ratio, dead_p, dead_q = _powers(student, teacher)
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


@jax.custom_jvp
def alpha_beta(student: Array, teacher: Array, alpha: Array, beta: Array) -> Array:
    return _alpha_beta(student, teacher, alpha, beta)


def _alpha_beta_jvp(primals, tangents):
    student, teacher, alpha, beta = primals
    value = alpha_beta(*primals)
    log_p, log_q, d, dead_p, dead_q = _powers(student, teacher)
    slope = jnp.zeros_like(value)

    def through(own, other, d, power, dead_own, dead_other, tangent):
        """``own**s (1 - exp(-power d)) / power``, by own's logits: ``power`` is the other's, d the
        log-ratio of own to other."""
        weight = jnp.exp((alpha + beta) * own)
        y = -power * d
        flat = jnp.abs(y) < 0.7
        close = weight * d * _expm1_over(jnp.where(flat, y, 0.0))
        some = jnp.where(power == 0, 1.0, power)
        mixed = jnp.exp((alpha + beta - power) * own + power * other)
        c = jnp.where(flat, close, (weight - mixed) / some)
        alone = jnp.where(power > 0, weight / some, 0.0)
        c = jnp.where(dead_own, 0.0, jnp.where(dead_other, alone, c))
        probability = jnp.where(dead_own, 0.0, jnp.exp(own))
        return ((c - probability * c.sum(-1, keepdims=True)) * tangent).sum(-1)

    if not _is_zero(tangents[0]):
        slope += through(log_q, log_p, -d, alpha, dead_q, dead_p, tangents[0])
    if not _is_zero(tangents[1]):
        slope += through(log_p, log_q, d, beta, dead_p, dead_q, tangents[1])
    one, by_powers = jnp.ones_like(alpha), functools.partial(_alpha_beta, student, teacher)
    if not _is_zero(tangents[2]):
        slope += _finite(jax.jvp(lambda a: by_powers(a, beta), (alpha,), (one,))[1]) * tangents[2]
    if not _is_zero(tangents[3]):
        slope += _finite(jax.jvp(lambda b: by_powers(alpha, b), (beta,), (one,))[1]) * tangents[3]
    return value, slope


alpha_beta.defjvp(_alpha_beta_jvp, symbolic_zeros=True)


def renyi(student: Array, teacher: Array, alpha: Array) -> Array:
    """Near equality by the alpha-beta sum S of powers (alpha, 1 - alpha), for which the sum of
    ``p**alpha q**(1 - alpha)`` is ``1 - alpha (1 - alpha) S``; elsewhere by logsumexp."""
    rest = 1.0 - alpha
    dead = jnp.isneginf(teacher) | jnp.isneginf(student)
    shared = ~dead.all(-1)
    uncovered = (jnp.isneginf(student) & ~jnp.isneginf(teacher)).any(-1) & (rest <= 0)
    log_p, log_q = (jnp.where(dead, 0.0, log_softmax(x)) for x in (teacher, student))
    power = jnp.where(dead & shared[..., None], -jnp.inf, alpha * log_p + rest * log_q)
    log_sum = jax.nn.logsumexp(power, axis=-1)
    infinite = uncovered | ~shared

    near = ~infinite & (jnp.abs(jax.lax.stop_gradient(log_sum)) < 0.4)
    # Far from equality the terms of S may overflow.
    ours, theirs = (jnp.where(near[..., None], x, 0.0) for x in (student, teacher))
    total = alpha_beta(ours, theirs, alpha, rest)
    small = alpha * rest * total
    tiny = jnp.abs(small) < 0.05
    log_over = jnp.where(
        tiny,
        _series(jnp.where(tiny, small, 0.0), [1.0 / (n + 1) for n in range(11)]),
        -jnp.log1p(-jnp.where(tiny, 0.5, small)) / jnp.where(tiny, 1.0, small),
    )
    settled = near | infinite
    apart = jnp.where(settled, 0.0, log_sum) / jnp.where(settled, 1.0, -rest)
    nothing = jnp.isneginf(teacher).all(-1) | jnp.isneginf(student).all(-1)
    value = jnp.where(infinite, jnp.inf, jnp.where(near, alpha * total * log_over, apart))
    return jnp.where(nothing, jnp.nan, value)


def squared_error(student: Array, teacher: Array) -> Array:
    dead = jnp.isneginf(student), jnp.isneginf(teacher)
    ours, theirs = (jnp.where(dead[0] | dead[1], 0.0, x) for x in (student, teacher))
    gap = ours - theirs
    return 0.5 * jnp.where(dead[0] ^ dead[1], jnp.inf, gap * gap).sum(-1)
