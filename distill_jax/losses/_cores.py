"""The numerics of the losses: cores over unmasked float blocks ``[..., classes]``, student first.

All cores share a scheme. The log-ratio of the two distributions is a difference of differences of
logits, and a divergence is a sum of non-negative terms. Near equality, where the closed forms
cancel, those terms are series in the log-ratio. In every ``where``, the argument of the branch not
taken is replaced beforehand, since its derivative would be NaN otherwise. Infinite derivatives are
returned as 0.

Derivatives are closed forms in a few quantities per class (``_pair``, ``_mixture``), whose own
derivatives are closed forms in the same quantities. So they hold to any order, and no order divides
by a probability that may underflow.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

_NEAR = 0.7  # log-ratios below this use the series


def _centre(logits: Array) -> tuple[Array, Array]:
    """Logits shifted so that the largest of each row is 0, and that largest, without gradient."""
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return logits - top, top


def log_softmax(logits: Array) -> Array:
    centred, _ = _centre(logits)
    return centred - jnp.log(jnp.exp(centred).sum(-1, keepdims=True))


def _polynomial(x: Array, coefficients: list[float]) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _length(x: Array, single: int, double: int) -> range:
    """The terms that a series needs in the precision of ``x``."""
    return range(single if x.dtype.itemsize <= 4 else double)


def _phi_over_square(d: Array) -> Array:
    """``(d + exp(-d) - 1) / d**2`` for absolute d below 0.7; smooth, and 1/2 at 0."""
    return _polynomial(d, [(-1.0) ** n / math.factorial(n + 2) for n in _length(d, 8, 18)])


def _small_expm1_ratio(y: Array) -> Array:
    """``expm1(y) / y`` for absolute y below 0.1."""
    return _polynomial(y, [1.0 / math.factorial(n + 1) for n in _length(y, 5, 11)])


def _phi(d: Array) -> tuple[Array, Array, Array]:
    """Where absolute d is below 0.7; d there, else 0; and ``d + exp(-d) - 1`` of that."""
    near = jnp.abs(d) < _NEAR
    small = jnp.where(near, d, 0.0)
    return near, small, small * small * _phi_over_square(small)


def _zero_if_infinite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _is_zero(tangent: object) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _through_softmax(slope: Array, probabilities: Array) -> Array:
    """A slope with respect to log-probabilities as one with respect to logits."""
    return slope - probabilities * slope.sum(-1, keepdims=True)


class _Pair(NamedTuple):
    """Two softened distributions, ``[..., classes]`` each unless a shape is given.

    Attributes:
      p: The teacher's.
      q: The student's.
      d: ``log(p / q)``: infinite where one side excludes a class, any number where both do. A
        constant added to all logits costs no precision, nor does equality: it is 0 there.
      gap: ``q - p``, as accurate as ``d``.
      log_ratio: Of the sums of both sides' exponentials, ``[..., 1]``.
    """

    p: Array
    q: Array
    d: Array
    gap: Array
    log_ratio: Array


@jax.custom_jvp
def _pair(student: Array, teacher: Array, temperature: Array) -> _Pair:
    s, top_s = _centre(student)
    t, top_t = _centre(teacher)
    exp_s, exp_t = jnp.exp(s / temperature), jnp.exp(t / temperature)
    sum_s, sum_t = (x.sum(-1, keepdims=True) for x in (exp_s, exp_t))

    # If the two are close, so are their raw logits, whose difference is then exact. If they are far
    # apart, raw logits may be large, and the centred ones keep more digits.
    shift = top_t - top_s
    raw = jnp.abs(shift) < 1.0
    ours, theirs = (x - jnp.where(raw, 0.0, top) for x, top in ((student, top_s), (teacher, top_t)))
    d = jnp.where(ours == theirs, 0.0, theirs - ours)  # also where both are -inf
    d = (d - jnp.where(raw, shift, 0.0)) / temperature

    # The ratio of the sums is 1 + excess, without the rounding of the sums.
    near = jnp.abs(d) < 0.1
    small = jnp.where(near, d, 0.0)
    terms = jnp.where(near, exp_s * small * _small_expm1_ratio(small), exp_t - exp_s)
    excess = terms.sum(-1, keepdims=True) / sum_s
    close = jnp.abs(excess) < 0.5
    log_ratio = jnp.where(close, jnp.log1p(jnp.where(close, excess, 0.0)), jnp.log(sum_t / sum_s))
    d = d - log_ratio
    p, q = exp_t / sum_t, exp_s / sum_s
    near, small, phi = _phi(d)
    return _Pair(p, q, d, jnp.where(near, p * (phi - small), q - p), log_ratio)


def _pair_jvp(primals, tangents):
    student, teacher, temperature = primals
    by_temperature = tangents[2]

    def softened(logits: Array, tangent: Any) -> Array:
        slope = jnp.zeros_like(logits) if _is_zero(tangent) else tangent
        if not _is_zero(by_temperature):
            centred = jnp.where(jnp.isneginf(logits), 0.0, _centre(logits)[0])
            slope = slope - centred / temperature * by_temperature
        return slope / temperature

    pair = _pair(*primals)
    du_t, mean_t = _log_slope(teacher, pair.p, softened(teacher, tangents[1]))
    du_s, mean_s = _log_slope(student, pair.q, softened(student, tangents[0]))
    dp, dq = pair.p * du_t, pair.q * du_s
    dd = jnp.where(jnp.isneginf(student) | jnp.isneginf(teacher), 0.0, du_t - du_s)
    return pair, _Pair(dp, dq, dd, dq - dp, mean_t - mean_s)


def _log_slope(logits: Array, probabilities: Array, tangent: Any) -> tuple[Array, Array]:
    """Tangents of the log-probabilities of allowed classes, and of their normaliser."""
    allowed = jnp.zeros_like(logits)
    if not _is_zero(tangent):
        allowed = jnp.where(jnp.isneginf(logits), 0.0, tangent)
    mean = (probabilities * allowed).sum(-1, keepdims=True)
    return allowed - mean, mean


_pair.defjvp(_pair_jvp, symbolic_zeros=True)


def _kl_terms(p: Array, d: Array, gap: Array) -> Array:
    """The non-negative terms ``p (d + exp(-d) - 1)`` of ``KL(p || q)``; p exp(-d) is q."""
    near, _, phi = _phi(d)
    return jnp.where(near, p * phi, jnp.where(p == 0, gap, p * d + gap))


@jax.custom_jvp
def soft_targets(student: Array, teacher: Array, temperature: Array) -> Array:
    """``T**2 KL(p || q)``, ``[...]``, with both distributions softened by the temperature T."""
    pair = _pair(student, teacher, temperature)
    return temperature * temperature * _kl_terms(pair.p, pair.d, pair.gap).sum(-1)


def _soft_targets_jvp(primals, tangents):
    value = soft_targets(*primals)
    student, teacher, temperature = primals
    p, _, d, gap, log_ratio = _pair(*primals)
    slope = jnp.zeros_like(value)
    if not _is_zero(tangents[0]):
        slope += temperature * (gap * tangents[0]).sum(-1)
    if not _is_zero(tangents[1]):
        mean = _zero_if_infinite(value) / (temperature * temperature)
        to_teacher = p * (_zero_if_infinite(d) - mean[..., None])
        slope += temperature * (to_teacher * tangents[1]).sum(-1)
    if not _is_zero(tangents[2]):
        # An infinite term counts as 0; a class that only the student allows, as one far away.
        d = jnp.where(jnp.isposinf(d), 0.0, jnp.where(jnp.isneginf(d), -1.0, d))
        terms = _kl_terms(p, d, gap)
        mean = terms.sum(-1)
        s, t = (jnp.where(jnp.isneginf(x), 0.0, _centre(x)[0]) for x in (student, teacher))
        # Both sides' gradients times their logits. Where the sides are close, the student's logit
        # is t - T d up to a constant, and what is of first order in d cancels.
        near = terms * t - temperature * gap * d
        far = gap * (s + temperature * log_ratio) + p * d * t
        by_logits = jnp.where(jnp.abs(d) < _NEAR, near, far).sum(-1) - mean * (p * t).sum(-1)
        slope += (2.0 * temperature * mean - by_logits) * tangents[2]
    return value, slope


soft_targets.defjvp(_soft_targets_jvp, symbolic_zeros=True)


def kl(student: Array, teacher: Array) -> Array:
    return soft_targets(student, teacher, jnp.ones((), student.dtype))


class _Mixture(NamedTuple):
    """Of ``m = alpha a + rest b``, a mixture of two distributions; ``[..., classes]`` each.

    With ``rest = 0`` they are the limits from above, which differ only where a lacks a class of b.

    Attributes:
      a: The first distribution.
      b: The second.
      gap: ``b - a``.
      d: ``log(a / b)``.
      share: b's share of m, ``rest b / m``; 1 where only b allows the class.
      first: ``a / m``, and 0 where infinite, as the next three.
      second: ``b / m``.
      relative: ``(b - a) / m``.
      scaled: ``rest (b - a) / m``.
      terms: ``gap - a log(m / a) / rest``, the non-negative terms of ``KL(a || m) / rest``.
      by_alpha: Their derivative with respect to alpha, ``(terms - gap scaled) / rest``.
    """

    a: Array
    b: Array
    gap: Array
    d: Array
    share: Array
    first: Array
    second: Array
    relative: Array
    scaled: Array
    terms: Array
    by_alpha: Array


@jax.custom_jvp
def _mixture(first: Array, second: Array, alpha: Array, rest: Array) -> _Mixture:
    """``rest`` is ``1 - alpha``, passed separately because either may be tiny."""
    a, b, d, gap, _ = _pair(second, first, jnp.ones((), first.dtype))
    only_a, only_b = jnp.isposinf(d), jnp.isneginf(d)
    finite_d = jnp.where(only_a | only_b, 0.0, d)
    log_alpha, log_rest = _log(alpha, rest), _log(rest, alpha)
    some_rest = jnp.where(rest > 0, rest, 1.0)

    log_m_over_a = jnp.where(only_a, log_alpha, jnp.logaddexp(log_alpha, log_rest - finite_d))
    log_m_over_b = jnp.logaddexp(log_alpha + finite_d, log_rest)
    a_over_m = jnp.where(only_b, 0.0, jnp.exp(-log_m_over_a))
    b_over_m = jnp.where(only_b, 1.0 / some_rest, jnp.exp(-log_m_over_b))
    b_over_m = jnp.where(only_a, 0.0, b_over_m)
    share = jax.nn.sigmoid(log_rest - log_alpha - finite_d)
    share = jnp.where(only_b, 1.0, jnp.where(only_a, 0.0, share))

    # With v = b / a - 1 and u = rest v, log(m / a) is log1p(u), by its series where u is small.
    v = jnp.expm1(-jnp.where(only_b, 0.0, d))
    u = jnp.where(rest > 0, rest * v, 0.0)
    near = (jnp.abs(u) < 0.1) & ~only_b
    u, v = jnp.where(near, u, 0.0), jnp.where(near & jnp.isfinite(v), v, 0.0)
    relative = _zero_if_infinite(jnp.where(near, v / (1.0 + u), b_over_m - a_over_m))
    scaled = jnp.where(near, u / (1.0 + u), 1.0 - a_over_m)

    length = _length(u, 11, 18)
    close = gap * u * _polynomial(u, [(-1.0) ** n / (n + 2) for n in length])
    no_log = only_b | (a == 0)
    over_rest = jnp.where(no_log, 0.0, a * jnp.where(no_log, 0.0, log_m_over_a)) / some_rest
    terms = jnp.where(near, close, gap - over_rest)
    slopes = _polynomial(u, [(-1.0) ** (n + 1) * (n + 1) / (n + 2) for n in length])
    by_alpha = jnp.where(near, gap * v * slopes, (terms - gap * scaled) / some_rest)
    by_alpha = jnp.where(only_b, 0.0, by_alpha)
    return _Mixture(
        a,
        b,
        gap,
        d,
        share,
        first=_zero_if_infinite(a_over_m),
        second=_zero_if_infinite(b_over_m),
        relative=relative,
        scaled=_zero_if_infinite(scaled),
        terms=terms,
        by_alpha=_zero_if_infinite(by_alpha),
    )


def _mixture_jvp(primals, tangents):
    first, second, _, rest = primals  # the tangent of rest is that of alpha, negative
    m = _mixture(*primals)
    du_a, _ = _log_slope(first, m.a, tangents[0])
    du_b, _ = _log_slope(second, m.b, tangents[1])
    dd = jnp.where(jnp.isneginf(first) | jnp.isneginf(second), 0.0, du_a - du_b)
    da, db = m.a * du_a, m.b * du_b
    dgap = db - da
    both = jnp.where(m.d < 0, m.b * m.first, m.a * m.second)  # a b / m
    over_rest = m.gap - _zero_if_infinite(m.terms)  # a log(m / a) / rest

    by_both = _Mixture(
        a=da,
        b=db,
        gap=dgap,
        d=dd,
        share=-m.share * (1.0 - m.share) * dd,
        first=_zero_if_infinite(m.first * m.share) * dd,
        second=-_zero_if_infinite(m.second * (1.0 - m.share)) * dd,
        relative=-_zero_if_infinite(m.first * m.second) * dd,
        scaled=-_zero_if_infinite(m.first * m.share) * dd,
        terms=dgap - over_rest * du_a + both * dd,
        by_alpha=m.by_alpha * du_a + _zero_if_infinite(both * m.relative) * dd,
    )
    if _is_zero(tangents[2]):
        return m, by_both
    zero = jnp.zeros_like(m.a)
    by_alpha = _Mixture(
        a=zero,
        b=zero,
        gap=zero,
        d=zero,
        share=-m.first * m.second,
        first=m.first * m.relative,
        second=m.second * m.relative,
        relative=m.relative * m.relative,
        scaled=-m.first * m.relative,
        terms=m.by_alpha,
        by_alpha=_by_alpha_twice(m, rest),
    )
    return m, jax.tree.map(lambda x, y: x + _zero_if_infinite(y) * tangents[2], by_both, by_alpha)


def _by_alpha_twice(m: _Mixture, rest: Array) -> Array:
    """The second derivative of a mixture's terms with respect to alpha."""
    finite_d = jnp.where(jnp.isinf(m.d), 0.0, m.d)
    v = _zero_if_infinite(jnp.expm1(-finite_d))
    v = jnp.where(jnp.isposinf(m.d), -1.0, v)
    near = (jnp.abs(rest * v) < 0.1) & ~jnp.isneginf(m.d)
    v = jnp.where(near, v, 0.0)
    u = rest * v
    series = [(-1.0) ** n * (n + 2) * (n + 1) / (n + 3) for n in _length(u, 11, 18)]
    some_rest = jnp.where(rest > 0, rest, 1.0)
    far = (m.gap * m.first * m.relative + 2.0 * m.by_alpha) / some_rest
    far = jnp.where(jnp.isneginf(m.d), 0.0, far)
    return jnp.where(near, -m.gap * v * v * _polynomial(u, series), far)


_mixture.defjvp(_mixture_jvp, symbolic_zeros=True)


def _log(x: Array, complement: Array) -> Array:
    """``log(x)`` for x in [0, 1], accurate near 1 too, given ``complement = 1 - x``."""
    near_one = complement < 0.5
    small = jnp.where(near_one, complement, 0.0)
    logs = jnp.log(jnp.where(near_one | (x == 0), 1.0, x))
    return jnp.where(near_one, jnp.log1p(-small), jnp.where(x == 0, -jnp.inf, logs))


@jax.custom_jvp
def kl_to_mixture(first: Array, second: Array, alpha: Array, rest: Array) -> Array:
    """``KL(a || alpha a + rest b)``, ``[...]``. ``rest`` carries no tangent of its own."""
    return rest * kl_to_mixture_over_rest(first, second, alpha, rest)


@jax.custom_jvp
def kl_to_mixture_over_rest(first: Array, second: Array, alpha: Array, rest: Array) -> Array:
    """``KL(a || alpha a + rest b) / rest``, ``[...]``, smooth as ``rest`` goes to 0."""
    return _mixture(first, second, alpha, rest).terms.sum(-1)


def _kl_to_mixture_jvp(primals, tangents, *, over_rest: bool):
    value = (kl_to_mixture_over_rest if over_rest else kl_to_mixture)(*primals)
    m = _mixture(*primals)
    scale = jnp.ones_like(primals[3]) if over_rest else primals[3]
    slope = jnp.zeros_like(value)
    if not _is_zero(tangents[0]):
        by_first = _through_softmax(_zero_if_infinite(m.terms) - m.share * m.gap, m.a)
        slope += scale * (by_first * tangents[0]).sum(-1)
    if not _is_zero(tangents[1]):
        slope += scale * (_through_softmax(m.share * m.gap, m.b) * tangents[1]).sum(-1)
    if not _is_zero(tangents[2]):
        by_alpha = m.by_alpha if over_rest else -m.gap * m.scaled
        slope += by_alpha.sum(-1) * tangents[2]
    return value, slope


kl_to_mixture.defjvp(functools.partial(_kl_to_mixture_jvp, over_rest=False), symbolic_zeros=True)
kl_to_mixture_over_rest.defjvp(
    functools.partial(_kl_to_mixture_jvp, over_rest=True), symbolic_zeros=True
)


def scaled_jensen_shannon(student: Array, teacher: Array, beta: Array) -> Array:
    rest = 1.0 - beta
    towards_teacher = kl_to_mixture_over_rest(student, teacher, rest, beta)
    return kl_to_mixture_over_rest(teacher, student, beta, rest) + towards_teacher


def jensen_shannon(student: Array, teacher: Array, beta: Array) -> Array:
    scaled = scaled_jensen_shannon(student, teacher, beta)
    # Infinite only if beta is 0 or 1, where the divergence is 0 by definition.
    return beta * (1.0 - beta) * jnp.where(jnp.isinf(scaled), 0.0, scaled)


@jax.custom_jvp
def total_variation(student: Array, teacher: Array) -> Array:
    gap = _pair(student, teacher, jnp.ones((), student.dtype)).gap
    return 0.5 * jnp.abs(gap).sum(-1)


def _total_variation_jvp(primals, tangents):
    value = total_variation(*primals)
    pair = _pair(*primals, jnp.ones((), value.dtype))
    # Where both sides have the same probability, up to the rounding of the row, the sign is 0.
    rounding = 4.0 * jnp.finfo(value.dtype).eps * jnp.abs(pair.gap).sum(-1, keepdims=True)
    sign = jnp.where(jnp.abs(pair.d) <= rounding, 0.0, jnp.sign(pair.d))
    slope = jnp.zeros_like(value)
    if not _is_zero(tangents[0]):
        slope -= 0.5 * (_through_softmax(pair.q * sign, pair.q) * tangents[0]).sum(-1)
    if not _is_zero(tangents[1]):
        slope += 0.5 * (_through_softmax(pair.p * sign, pair.p) * tangents[1]).sum(-1)
    return value, slope


total_variation.defjvp(_total_variation_jvp, symbolic_zeros=True)


def _expm1_ratio(y: Array) -> Array:
    """``expm1(y) / y``; smooth, and 1 at 0."""
    near = jnp.abs(y) < 0.1
    small, large = jnp.where(near, y, 0.0), jnp.where(near, 1.0, y)
    return jnp.where(near, _small_expm1_ratio(small), jnp.expm1(large) / large)


def _log_probabilities(student: Array, teacher: Array) -> tuple[Array, ...]:
    """Log-probabilities, their difference, and where a class is excluded, each teacher first.

    Log-probabilities are 0 where excluded, and their difference where either is. A row without any
    allowed class stays NaN.
    """
    no_p, no_q = (x & ~x.all(-1, keepdims=True) for x in map(jnp.isneginf, (teacher, student)))
    log_p = jnp.where(no_p, 0.0, log_softmax(teacher))
    log_q = jnp.where(no_q, 0.0, log_softmax(student))
    d = _pair(student, teacher, jnp.ones((), student.dtype)).d
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

    near = jnp.abs(d) * jnp.maximum(s, jnp.abs(lo)) < _NEAR
    small = jnp.where(near, d, 0.0)
    phis = s * _phi_over_square(s * small) - lo * _phi_over_square(lo * small)
    close = weight * small * small * phis / hi

    y = -lo * d
    tiny = jnp.abs(y) < 0.1
    by_series = -d * weight * _expm1_ratio(jnp.where(tiny, y, 0.0))
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
        close = weight * d * _expm1_ratio(jnp.where(near, y, 0.0))
        nonzero = jnp.where(power == 0, 1.0, power)
        mixed = jnp.exp(own_power * own + power * other)
        c = jnp.where(near, close, (weight - mixed) / nonzero)
        alone = jnp.where(power > 0, weight / nonzero, 0.0)
        c = jnp.where(no_own, 0.0, jnp.where(no_other, alone, c))
        probability = jnp.where(no_own, 0.0, jnp.exp(own))
        return (_through_softmax(c, probability) * tangent).sum(-1)

    if not _is_zero(tangents[0]):
        slope += through(log_q, log_p, -d, beta, alpha, no_q, no_p, tangents[0])
    if not _is_zero(tangents[1]):
        slope += through(log_p, log_q, d, alpha, beta, no_p, no_q, tangents[1])
    one, of_powers = jnp.ones_like(alpha), functools.partial(_alpha_beta, student, teacher)
    if not _is_zero(tangents[2]):
        by_alpha = jax.jvp(lambda a: of_powers(a, beta), (alpha,), (one,))[1]
        slope += _zero_if_infinite(by_alpha) * tangents[2]
    if not _is_zero(tangents[3]):
        by_beta = jax.jvp(lambda b: of_powers(alpha, b), (beta,), (one,))[1]
        slope += _zero_if_infinite(by_beta) * tangents[3]
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
        _polynomial(jnp.where(tiny, small, 0.0), [1.0 / (n + 1) for n in _length(small, 11, 14)]),
        -jnp.log1p(-jnp.where(tiny, 0.5, small)) / jnp.where(tiny, 1.0, small),
    )
    not_far = near | infinite
    far = jnp.where(not_far, 0.0, log_sum) / jnp.where(not_far, 1.0, -rest)
    no_class = jnp.isneginf(teacher).all(-1) | jnp.isneginf(student).all(-1)
    value = jnp.where(infinite, jnp.inf, jnp.where(near, alpha * total * log_over, far))
    return jnp.where(no_class, jnp.nan, value)


def squared_error(student: Array, teacher: Array) -> Array:
    no_s, no_t = jnp.isneginf(student), jnp.isneginf(teacher)
    s, t = (jnp.where(no_s | no_t, 0.0, x) for x in (student, teacher))
    gap = s - t
    return 0.5 * jnp.where(no_s ^ no_t, jnp.inf, gap * gap).sum(-1)
