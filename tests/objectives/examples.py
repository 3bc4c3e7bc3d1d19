"""A batch, and an objective over it, that the tests of this folder share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import Context, term, weighted_sum
from distill_jax.types import Outputs

ROWS, CLASSES = 12, 3


def example(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    inputs = jax.random.normal(keys[0], (ROWS, 4))
    batch = {
        "inputs": inputs,
        "labels": jax.random.randint(keys[1], (ROWS,), 0, CLASSES),
        "teacher_logits": 2 * jax.random.normal(keys[2], (ROWS, CLASSES)),
        # Uneven: the first four rows hold one label, the last four all.
        "labelled": jnp.array([1, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1], bool),
        "where": jnp.arange(ROWS) != 5,
    }
    return batch, jax.random.normal(keys[3], (4, CLASSES))


def context_of(kernel, batch, **more):
    return Context(Outputs(batch["inputs"] @ kernel), {}, batch, **more)


def both():
    return weighted_sum(
        term("labels", 0.3, cross_entropy, where="labelled"),
        term("teacher", 0.7, soft_targets, temperature=3.0),
    )
