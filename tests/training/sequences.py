"""Rows ``[batch, time]`` with masks and weights of either axes, which several tests train on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses import cross_entropy
from distill_jax.models import from_function
from distill_jax.objectives import term, weighted_sum

ROWS, TIME = 32, 3
STUDENT = from_function(
    lambda key, inputs: 0.1 * jax.random.normal(key, (7, 4)),
    lambda params, inputs: params[inputs["tokens"]] + inputs["shift"][:, None, None],
)


def columns():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 7, (ROWS, TIME)).astype(np.int32)
    first = np.arange(ROWS)
    # Uneven masks: some pieces and devices hold no row that counts.
    return {
        "inputs": {
            "tokens": tokens,
            "shift": rng.normal(size=ROWS).astype(np.float32),
            "rows": (first % 16 < 5) | (first == 9),
        },
        "labels": (tokens % 4).astype(np.int32),
        "rows": (first % 16 < 5) | (first == 9),
        "entries": (first[:, None] < 6) | (rng.random((ROWS, TIME)) < 0.2),
        "trust": np.where(first % 5 == 0, 0, 10.0 ** (first % 4 - 2)).astype(np.float32),
        "each": rng.integers(0, 3, (ROWS, TIME)).astype(np.float32),
    }


def above_the_mean(student_logits, labels, *, where):
    """Couples the rows: each is compared with the mean of those that count."""
    rows = cross_entropy(student_logits, labels, where=where)
    return rows**2 / jnp.maximum(rows.sum() / jnp.maximum(where.sum(), 1), 1e-3)


def objective(coupled=False):
    """A term for each combination of axes."""
    terms = [
        term("all", 0.3, cross_entropy),
        term("rows", 0.5, cross_entropy, where="inputs['rows']"),
        term("entries", 0.7, cross_entropy, where="entries"),
        term("trusted", 0.9, cross_entropy, where="entries", sample_weight="trust"),
        term("each", 1.1, cross_entropy, where="rows", sample_weight="each", divide_by="rows"),
    ]
    if coupled:
        own = {"where": "rows", "sample_weight": "trust", "coupled": True}
        terms.append(term("coupled", 0.4, above_the_mean, **own))
    return weighted_sum(*terms)
