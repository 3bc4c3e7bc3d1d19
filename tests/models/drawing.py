"""Params and state drawn by NumPy, where a test needs any and not a model's own start.

Compiling ``init`` takes XLA longer than most tests, for its random numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.types import Model


def drawn(model: Model, inputs: Any) -> tuple[Any, Any]:
    """Params from a normal distribution, and state between 0.5 and 1.5: all of them matter."""
    rng = np.random.default_rng(0)
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return (
        jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), params),
        jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype), state),
    )
