"""Several predictions of the same rows as one, by what their numbers mean."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax import _checks
from distill_jax.types import OutputKind

Mix = Literal["probability", "log"]
"""What is averaged: probabilities, or their logarithms."""


def check_mix(mix: Any, kind: OutputKind, whose: str) -> None:
    """Raises ValueError for an unknown mix, and for logarithms of what are no probabilities."""
    if mix not in ("probability", "log"):
        raise ValueError(f'mix must be "probability" or "log", got {mix!r}')
    if mix == "log" and kind in ("regression", "embedding"):
        raise ValueError(
            f'mix="log" averages the logarithms of probabilities, and the outputs of the {whose} '
            f"are {kind!r}: leave mix out for the mean of the outputs"
        )


def mixed(
    logits: Float[Array, "members *batch outputs"],
    mix: str,
    kind: OutputKind,
    weights: Float[Array, " members"] | None = None,
) -> Float[Array, "*batch outputs"]:
    """The mean prediction, as ``ensemble`` documents it.

    Args:
      logits: Of each member, float32 or wider.
      mix: What is averaged.
      kind: What the logits mean.
      weights: They sum to 1; equal by default. A member of weight 0 may say -inf or NaN.
    """
    number = logits.shape[0]
    weights = jnp.full(number, 1.0 / number, logits.dtype) if weights is None else weights
    weights = weights.reshape((-1,) + (1,) * (logits.ndim - 1))
    counts = weights > 0
    log_w = jnp.log(jnp.where(counts, weights, 1.0))

    def mean(x: Array) -> Array:
        return jnp.where(counts, weights * jnp.where(counts, x, 0.0), 0.0).sum(0)

    def log_mean(log_p: Array) -> Array:
        return jax.nn.logsumexp(jnp.where(counts, log_w + log_p, -jnp.inf), axis=0)

    if kind == "softmax":
        log_p = jax.nn.log_softmax(logits, axis=-1)
        return mean(log_p) if mix == "log" else log_mean(log_p)
    if kind == "multi_label" and mix == "probability":
        return log_mean(jax.nn.log_sigmoid(logits)) - log_mean(jax.nn.log_sigmoid(-logits))
    return mean(logits)


def wide(x: Any) -> Array:
    """Floats as float32 or better; integers, booleans and keys as they are."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return x.astype(_checks.wide_dtype(x))
