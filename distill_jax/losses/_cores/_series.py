"""Series that stand in for closed forms where these cancel."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array

# Absolute log-ratios below these use the series.
NEAR = 0.7  # phi_over_square
VERY_NEAR = 0.25  # small_expm1_ratio


def polynomial(x: Array, coefficients: list[float]) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def orders_of(x: Array, single: int, double: int) -> range:
    """The terms that a series needs in the precision of ``x``."""
    return range(single if x.dtype.itemsize <= 4 else double)


def phi_over_square(d: Array) -> Array:
    """``(d + exp(-d) - 1) / d**2`` for absolute d below 0.7; smooth, and 1/2 at 0."""
    return polynomial(d, [(-1.0) ** n / math.factorial(n + 2) for n in orders_of(d, 8, 18)])


def small_expm1_ratio(y: Array) -> Array:
    """``expm1(y) / y`` for absolute y below 0.25."""
    coefficients = [1.0 / math.factorial(n + 1) for n in orders_of(y, 5, 12)]
    if len(coefficients) == 5:
        # The next term by the cubic nearest to it, which Chebyshev's polynomial gives.
        coefficients[3] += 20 / 16 * VERY_NEAR**2 / math.factorial(6)
        coefficients[1] -= 5 / 16 * VERY_NEAR**4 / math.factorial(6)
    return polynomial(y, coefficients)


def expm1_ratio(y: Array) -> Array:
    """``expm1(y) / y``; smooth, and 1 at 0."""
    near = jnp.abs(y) < VERY_NEAR
    small, large = jnp.where(near, y, 0.0), jnp.where(near, 1.0, y)
    return jnp.where(near, small_expm1_ratio(small), jnp.expm1(large) / large)
