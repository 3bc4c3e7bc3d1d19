"""Divergences to a mixture of both distributions: skewed KL and Jensen-Shannon."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from distill_jax.losses._cores._derivatives import is_zero, zero_if_infinite
from distill_jax.losses._cores._pairs import log_slope, pair_of
from distill_jax.losses._cores._series import orders_of, polynomial
from distill_jax.losses._cores.softmax import through_softmax


class _Mixture(NamedTuple):
    """Of ``m = alpha a + rest b``, a mixture of two distributions; ``[..., classes]`` each.

    With ``rest = 0`` they are the limits from above, which differ only where a lacks a class of b.

    Attributes:
      a: The first distribution.
      b: The second.
      gap: ``b - a``.
      d: ``log(a / b)``, NaN where neither allows the class.
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
    a, b, d, gap, _ = pair_of(second, first, jnp.ones((), first.dtype))
    only_a, only_b = jnp.isposinf(d), jnp.isneginf(d)
    finite_d = zero_if_infinite(d)
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
    relative = zero_if_infinite(jnp.where(near, v / (1.0 + u), b_over_m - a_over_m))
    scaled = jnp.where(near, u / (1.0 + u), 1.0 - a_over_m)

    orders = orders_of(u, 11, 18)
    close = gap * u * polynomial(u, [(-1.0) ** n / (n + 2) for n in orders])
    no_log = only_b | (a == 0)
    over_rest = jnp.where(no_log, 0.0, a * jnp.where(no_log, 0.0, log_m_over_a)) / some_rest
    terms = jnp.where(near, close, gap - over_rest)
    slopes = polynomial(u, [(-1.0) ** (n + 1) * (n + 1) / (n + 2) for n in orders])
    by_alpha = jnp.where(near, gap * v * slopes, (terms - gap * scaled) / some_rest)
    by_alpha = jnp.where(only_b, 0.0, by_alpha)
    return _Mixture(
        a,
        b,
        gap,
        d,
        share,
        first=zero_if_infinite(a_over_m),
        second=zero_if_infinite(b_over_m),
        relative=relative,
        scaled=zero_if_infinite(scaled),
        terms=terms,
        by_alpha=zero_if_infinite(by_alpha),
    )


def _mixture_jvp(primals, tangents):
    first, second, _, rest = primals  # the tangent of rest is that of alpha, negative
    m = _mixture(*primals)
    du_a, _ = log_slope(first, m.a, tangents[0])
    du_b, _ = log_slope(second, m.b, tangents[1])
    dd = jnp.where(jnp.isneginf(first) | jnp.isneginf(second), 0.0, du_a - du_b)
    da, db = m.a * du_a, m.b * du_b
    dgap = db - da
    both = jnp.where(m.d < 0, m.b * m.first, m.a * m.second)  # a b / m
    over_rest = m.gap - zero_if_infinite(m.terms)  # a log(m / a) / rest

    by_both = _Mixture(
        a=da,
        b=db,
        gap=dgap,
        d=dd,
        share=-m.share * (1.0 - m.share) * dd,
        first=zero_if_infinite(m.first * m.share) * dd,
        second=-zero_if_infinite(m.second * (1.0 - m.share)) * dd,
        relative=-zero_if_infinite(m.first * m.second) * dd,
        scaled=-zero_if_infinite(m.first * m.share) * dd,
        terms=dgap - over_rest * du_a + both * dd,
        by_alpha=m.by_alpha * du_a + zero_if_infinite(both * m.relative) * dd,
    )
    if is_zero(tangents[2]):
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
    return m, jax.tree.map(lambda x, y: x + zero_if_infinite(y) * tangents[2], by_both, by_alpha)


def _by_alpha_twice(m: _Mixture, rest: Array) -> Array:
    """The second derivative of a mixture's terms with respect to alpha."""
    finite_d = zero_if_infinite(m.d)
    v = zero_if_infinite(jnp.expm1(-finite_d))
    v = jnp.where(jnp.isposinf(m.d), -1.0, v)
    near = (jnp.abs(rest * v) < 0.1) & ~jnp.isneginf(m.d)
    v = jnp.where(near, v, 0.0)
    u = rest * v
    series = [(-1.0) ** n * (n + 2) * (n + 1) / (n + 3) for n in orders_of(u, 11, 18)]
    some_rest = jnp.where(rest > 0, rest, 1.0)
    far = (m.gap * m.first * m.relative + 2.0 * m.by_alpha) / some_rest
    far = jnp.where(jnp.isneginf(m.d), 0.0, far)
    return jnp.where(near, -m.gap * v * v * polynomial(u, series), far)


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
    if not is_zero(tangents[0]):
        by_first = through_softmax(zero_if_infinite(m.terms) - m.share * m.gap, m.a)
        slope += scale * (by_first * tangents[0]).sum(-1)
    if not is_zero(tangents[1]):
        slope += scale * (through_softmax(m.share * m.gap, m.b) * tangents[1]).sum(-1)
    if not is_zero(tangents[2]):
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
