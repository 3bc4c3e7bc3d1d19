"""The numerics of the losses: cores over unmasked float blocks ``[..., classes]``, student first.

All cores share a scheme. The log-ratio of the two distributions is a difference of differences of
logits, and a divergence is a sum of non-negative terms. Near equality, where the closed forms
cancel, those terms are series in the log-ratio. In every ``where``, the argument of the branch not
taken is replaced beforehand, since its derivative would be NaN otherwise. Infinite derivatives are
returned as 0.
"""

from __future__ import annotations

import functools
import math

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


def _probabilities(
    student: Array, teacher: Array, *, temperature: Array | float = 1.0, precise: bool = False
) -> tuple[Array, Array, Array]:
    """Probabilities p (teacher), q (student), and ``log(p / q)``, each ``[..., classes]``.

    The log-ratio is infinite where one side excludes a class, and 0 where both do. It is computed
    from differences of logits, so a constant added to all of them costs no precision. It has a
    rounding error that is the same for all classes; ``precise`` removes that too, for sums whose
    terms do not cancel it.
    """
    s, top_s = _centre(student)
    t, top_t = _centre(teacher)
    exp_s, exp_t = jnp.exp(s / temperature), jnp.exp(t / temperature)
    sum_s, sum_t = (x.sum(-1, keepdims=True) for x in (exp_s, exp_t))
    neither = jnp.isneginf(student) & jnp.isneginf(teacher)

    def gap(ours: Array, theirs: Array) -> Array:
        return jnp.where(neither, 0.0, theirs) - jnp.where(neither, 0.0, ours)

    # If the two are close, so are their raw logits, whose difference is then exact. If they are far
    # apart, raw logits may be large, and the centred ones keep more digits.
    shift = top_t - top_s
    d = jnp.where(jnp.abs(shift) < 1.0, gap(student, teacher) - shift, gap(s, t)) / temperature
    ratio = sum_t / sum_s
    if precise:
        near = jnp.abs(d) < _NEAR
        terms = jnp.where(near, exp_s * jnp.expm1(jnp.where(near, d, 0.0)), exp_t - exp_s)
        excess = terms.sum(-1, keepdims=True) / sum_s  # ratio - 1, without the rounding of the sums
        near = jnp.abs(excess) < 0.5
        log_ratio = jnp.log1p(jnp.where(near, excess, 0.0))
        log_ratio = jnp.where(near, log_ratio, jnp.log(jnp.where(near, 1.0, ratio)))
    else:
        log_ratio = jnp.log(ratio)
    return exp_t / sum_t, exp_s / sum_s, jnp.where(neither, 0.0, d - log_ratio)


def _polynomial(x: Array, coefficients: list[float]) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _phi_over_square(d: Array) -> Array:
    """``(d + exp(-d) - 1) / d**2`` for absolute d below 0.7; smooth, and 1/2 at 0."""
    return _polynomial(d, [(-1.0) ** n / math.factorial(n + 2) for n in range(10)])


def _zero_if_infinite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _is_zero(tangent: object) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


@jax.custom_jvp
def soft_targets(student: Array, teacher: Array, temperature: Array) -> Array:
    """``T**2 KL(p || q)``, ``[...]``, with both distributions softened by the temperature T."""
    p, q, d = _probabilities(student, teacher, temperature=temperature)
    near = jnp.abs(d) < _NEAR
    small = jnp.where(near, d, 0.0)
    # The sum of p (d + exp(-d) - 1), where p exp(-d) is q.
    far = jnp.where(p == 0, q, p * d + (q - p))
    terms = jnp.where(near, p * small * small * _phi_over_square(small), far)
    return temperature * temperature * terms.sum(-1)


def _soft_targets_jvp(primals, tangents):
    value = soft_targets(*primals)
    student, teacher, temperature = primals
    p, q, d = _probabilities(student, teacher, temperature=temperature)
    to_student = q - p
    mean = _zero_if_infinite(value) / (temperature * temperature)
    to_teacher = p * (_zero_if_infinite(d) - mean[..., None])
    slope = jnp.zeros_like(value)
    if not _is_zero(tangents[0]):
        slope += temperature * (to_student * tangents[0]).sum(-1)
    if not _is_zero(tangents[1]):
        slope += temperature * (to_teacher * tangents[1]).sum(-1)
    if not _is_zero(tangents[2]):
        s, t = (_zero_if_infinite(_centre(x)[0]) for x in (student, teacher))
        by_logits = (to_student * s + to_teacher * t).sum(-1)
        slope += (2.0 * temperature * mean - by_logits) * tangents[2]
    return value, slope


soft_targets.defjvp(_soft_targets_jvp, symbolic_zeros=True)


def kl(student: Array, teacher: Array) -> Array:
    return soft_targets(student, teacher, jnp.ones((), student.dtype))


def _mixture_parts(first: Array, second: Array, alpha: Array, rest: Array) -> tuple[Array, ...]:
    """Parts of the mixture ``m = alpha a + rest b`` of two distributions a (first) and b (second).

    ``rest`` is ``1 - alpha``, passed separately because either may be tiny.

    Returns:
      Arrays ``[..., classes]``: ``a``; ``b - a``; ``near``, where m is close to a; ``(b - a) / a``
      there, else 0; ``log(m / a) / rest``; and b's share of m, 1 where only b allows the class.
    """
    a, b, d = _probabilities(second, first)
    relative = jnp.expm1(-d)
    near = jnp.abs(rest * relative) < 0.1
    relative = jnp.where(near, relative, 0.0)
    log_m_over_a = jnp.logaddexp(_log(alpha, rest), _log(rest, alpha) - d)
    mixed = rest > 0
    far = jnp.where(mixed, log_m_over_a / jnp.where(mixed, rest, 1.0), 0.0)
    # log1p(u) / u, where u = m / a - 1
    series = _polynomial(rest * relative, [(-1.0) ** n / (n + 1) for n in range(11)])
    one_sided = jnp.isinf(d)
    log_odds = _log(rest, alpha) - _log(alpha, rest) - jnp.where(one_sided, 0.0, d)
    share = jnp.where(one_sided, jnp.where(d < 0, 1.0, 0.0), jax.nn.sigmoid(log_odds))
    gap = jnp.where(near, a * relative, b - a)
    log_over_rest = jnp.where(near, relative * series, far)
    return a, gap, near, relative, log_over_rest, share


def _log(x: Array, complement: Array) -> Array:
    """``log(x)`` for x in [0, 1], accurate near 1 too, given ``complement = 1 - x``."""
    near_one = complement < 0.5
    small = jnp.where(near_one, complement, 0.0)
    logs = jnp.log(jnp.where(near_one | (x == 0), 1.0, x))
    return jnp.where(near_one, jnp.log1p(-small), jnp.where(x == 0, -jnp.inf, logs))


def _mixture_terms(a, gap, near, relative, log_over_rest, share, rest):
    """The non-negative terms of ``KL(a || m) / rest``, and those of the near ones over ``rest``."""
    u = rest * relative
    series = _polynomial(u, [(-1.0) ** n / (n + 2) for n in range(11)])  # (u - log1p(u)) / u**2
    # At rest = 0 only the mass that b has and a lacks remains: the limit from above.
    far = jnp.where(a == 0, gap, gap - a * log_over_rest)
    far = jnp.where((rest > 0) | (share == 1.0), far, 0.0 * gap)
    return jnp.where(near, a * u * relative * series, far), a * relative * relative * series


@jax.custom_jvp
def kl_to_mixture(first: Array, second: Array, alpha: Array, rest: Array) -> Array:
    """``KL(a || alpha a + rest b)``, ``[...]``. ``rest`` carries no tangent of its own."""
    return rest * kl_to_mixture_over_rest(first, second, alpha, rest)


@jax.custom_jvp
def kl_to_mixture_over_rest(first: Array, second: Array, alpha: Array, rest: Array) -> Array:
    """``KL(a || alpha a + rest b) / rest``, ``[...]``, smooth as ``rest`` goes to 0."""
    a, gap, near, relative, log_over_rest, share = _mixture_parts(first, second, alpha, rest)
    return _mixture_terms(a, gap, near, relative, log_over_rest, share, rest)[0].sum(-1)


def _mixture_jvp(primals, tangents, *, over_rest: bool):
    first, second, alpha, rest = primals
    value = (kl_to_mixture_over_rest if over_rest else kl_to_mixture)(*primals)
    a, gap, near, relative, log_over_rest, share = _mixture_parts(*primals)
    b = a + gap
    scale = jnp.ones_like(rest) if over_rest else rest
    slope = jnp.zeros_like(value)

    def through_softmax(c, probabilities):
        return c - probabilities * c.sum(-1, keepdims=True)

    if not _is_zero(tangents[0]):
        c = (1.0 - share) * gap - a * _zero_if_infinite(log_over_rest)
        slope += scale * (through_softmax(c, a) * tangents[0]).sum(-1)
    if not _is_zero(tangents[1]):
        slope += scale * (through_softmax(share * gap, b) * tangents[1]).sum(-1)
    if not _is_zero(tangents[2]):
        m = alpha * a + rest * b
        allowed = m > 0
        by_alpha = -jnp.where(allowed, gap * (gap / jnp.where(allowed, m, 1.0)), 0.0)
        if over_rest:
            terms, near_terms = _mixture_terms(a, gap, near, relative, log_over_rest, share, rest)
            far = terms / jnp.where(rest > 0, rest, 1.0)
            by_alpha += jnp.where(near, near_terms, jnp.where(rest > 0, far, 0.0))
        slope += scale * _zero_if_infinite(by_alpha).sum(-1) * tangents[2]
    return value, slope


kl_to_mixture.defjvp(functools.partial(_mixture_jvp, over_rest=False), symbolic_zeros=True)
kl_to_mixture_over_rest.defjvp(functools.partial(_mixture_jvp, over_rest=True), symbolic_zeros=True)


def scaled_jensen_shannon(student: Array, teacher: Array, beta: Array) -> Array:
    rest = 1.0 - beta
    towards_teacher = kl_to_mixture_over_rest(student, teacher, rest, beta)
    return kl_to_mixture_over_rest(teacher, student, beta, rest) + towards_teacher


def jensen_shannon(student: Array, teacher: Array, beta: Array) -> Array:
    scaled = scaled_jensen_shannon(student, teacher, beta)
    # Infinite only if beta is 0 or 1, where the divergence is 0 by definition.
    return beta * (1.0 - beta) * jnp.where(jnp.isinf(scaled), 0.0, scaled)


def total_variation(student: Array, teacher: Array) -> Array:
    p, q, d = _probabilities(student, teacher, precise=True)
    near = jnp.abs(d) < _NEAR
    small = p * jnp.abs(jnp.expm1(jnp.where(near, -d, 0.0)))
    return 0.5 * jnp.where(near, small, jnp.abs(p - q)).sum(-1)


def _expm1_ratio(y: Array) -> Array:
    """``expm1(y) / y``; smooth, and 1 at 0."""
    near = jnp.abs(y) < 0.1
    small, large = jnp.where(near, y, 0.0), jnp.where(near, 1.0, y)
    series = _polynomial(small, [1.0 / math.factorial(n + 1) for n in range(7)])
    return jnp.where(near, series, jnp.expm1(large) / large)


def _log_probabilities(student: Array, teacher: Array) -> tuple[Array, ...]:
    """Log-probabilities, their difference, and where a class is excluded, each teacher first.

    Log-probabilities are 0 where excluded, and their difference where either is. A row without any
    allowed class stays NaN.
    """
    no_p, no_q = (x & ~x.all(-1, keepdims=True) for x in map(jnp.isneginf, (teacher, student)))
    log_p = jnp.where(no_p, 0.0, log_softmax(teacher))
    log_q = jnp.where(no_q, 0.0, log_softmax(student))
    d = jnp.where(no_p | no_q, 0.0, _probabilities(student, teacher, precise=True)[2])
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

    def through(own, other, d, power, no_own, no_other, tangent):
        """The part of the derivative by one side's own logits.

        It is ``own**s (1 - exp(-power d)) / power`` through the softmax, where ``power`` is the
        other side's, and d the log-ratio of own to other.
        """
        weight = jnp.exp((alpha + beta) * own)
        y = -power * d
        near = jnp.abs(y) < 0.7
        close = weight * d * _expm1_ratio(jnp.where(near, y, 0.0))
        nonzero = jnp.where(power == 0, 1.0, power)
        mixed = jnp.exp((alpha + beta - power) * own + power * other)
        c = jnp.where(near, close, (weight - mixed) / nonzero)
        alone = jnp.where(power > 0, weight / nonzero, 0.0)
        c = jnp.where(no_own, 0.0, jnp.where(no_other, alone, c))
        probability = jnp.where(no_own, 0.0, jnp.exp(own))
        return ((c - probability * c.sum(-1, keepdims=True)) * tangent).sum(-1)

    if not _is_zero(tangents[0]):
        slope += through(log_q, log_p, -d, alpha, no_q, no_p, tangents[0])
    if not _is_zero(tangents[1]):
        slope += through(log_p, log_q, d, beta, no_p, no_q, tangents[1])
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
        _polynomial(jnp.where(tiny, small, 0.0), [1.0 / (n + 1) for n in range(11)]),
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
