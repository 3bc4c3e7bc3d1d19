"""What the tests of the levels train on, and how: one student, one table, one way to run."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax

from distill_jax import models, training
from distill_jax.losses import cross_entropy
from distill_jax.objectives import term, weighted_sum
from distill_jax.rules import Column, Schema, project, violation

SCHEMA = Schema((Column("x"), Column("y")), ("no", "yes"))
MODEL = models.logistic_regression(2)
OPTIMIZER = optax.adam(0.05)


@functools.cache
def table():
    """``inputs``, which are the encoded columns too, and ``labels``: yes where x + y > 0.

    A tenth of the labels is wrong, so that the best parameters are finite.
    """
    inputs = np.random.default_rng(0).standard_normal((256, 2)).astype(np.float32)
    labels = (inputs.sum(1) > 0).astype(np.int32)
    labels[::10] ^= 1
    return {"inputs": inputs, "labels": labels, "columns": inputs}


def train(*terms, data=None, steps=150, teachers=None, initial=None):
    data = table() if data is None else data
    return training.run(
        MODEL,
        weighted_sum(*terms),
        OPTIMIZER,
        data,
        key=jax.random.key(0),
        steps=steps,
        batch_size=len(data["inputs"]),
        teachers=teachers,
        initial=initial,
    )


@functools.cache
def trained_without_rules():
    return train(LABELS)[0]


LABELS = term("labels", 1.0, cross_entropy)


@jax.jit
def _violated(rules, params, state, inputs):
    logits = MODEL.predict(params, state, inputs).logits
    corrected = project(rules, inputs, logits)
    return [violation(rules, inputs, jax.nn.softmax(x)).mean(0) for x in (logits, corrected)]


def violated(rules, end):
    """Each rule's mean violation by the student, and by the student as the rules correct it."""
    return np.asarray(_violated(rules, end.params, end.state, table()["inputs"]))
