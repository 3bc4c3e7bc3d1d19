"""The logarithm of how true rules are, without underflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.rules.binding.book import Book
from distill_jax.rules.circuits._algebra import Algebra
from distill_jax.rules.circuits._log_pairs import log_sum_exp
from distill_jax.rules.logic import _inputs, _predictions
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic._nodes import log_nodes
from distill_jax.rules.logic.evaluation import violation

LEAST_TRUTH = 1e-7
"""What the logarithm takes for a smaller truth in the logics that compute truth as 1 − violation:
their rounding. There is no gradient below it."""


def log_truth(
    book: Book,
    columns: Float[Any, "batch columns"],
    logits: Float[Any, "batch classes"],
    *,
    views: Views | None = None,
) -> Float[Array, "batch rules"]:
    """The logarithm of ``truth``, from logits, without underflow.

    Over exclusive classes, and over label sets in product logic, a truth of 1e-40 has a finite
    logarithm and the right gradient, and a truth of 1 − 1e-20 does not round to 1 on the way; it is
    ``-inf``, with gradient 0, only where the rule cannot hold at all. Over exclusive classes it
    takes memory for rows × rules × classes, unlike ``violation``. The other logics compute
    truth as 1 − violation, and have the logarithm of that, at least ``LEAST_TRUTH``.

    Args:
      book: The rules.
      columns: From ``encode``.
      logits: Of exclusive classes or of labels. ``-inf`` is a class or label that is surely
        absent.
      views: Logits on other views, where the rules use them. Over exclusive classes their
        probabilities are taken as they are, and may underflow.
    """
    logits, columns, views = _inputs.prepared(book, logits, columns, views, name="logits")
    if book.schema.exclusive:
        return _log_truth_of_classes(book, columns, logits, views)
    if book.info.logic.logarithm is not None:
        return _log_truth_of_labels(book, columns, logits, views, book.info.logic.logarithm)
    violated = violation(book, columns, _predictions.probabilities(book, logits), views=views)
    return jnp.log(jnp.maximum(1.0 - violated, LEAST_TRUTH))


def _log_truth_of_classes(
    book: Book, columns: Array, logits: Array, views: Mapping[str, Array]
) -> Array:
    """By a sum over the classes that satisfy a rule, or, where that is most of them, by log1p of
    the others, so that neither end loses digits."""
    classes = logits.shape[1]

    def by(one: Array) -> Array:  # violation is linear in probabilities
        return violation(book, columns, jnp.broadcast_to(one, logits.shape), views=views)

    violates = jax.vmap(by, out_axes=2)(jnp.eye(classes, dtype=logits.dtype)[:, None, :])
    log_p = jax.nn.log_softmax(logits, axis=-1)
    possible = ~jnp.isneginf(log_p)
    p = jnp.where(possible, jnp.exp(jnp.where(possible, log_p, 0.0)), 0.0)
    violated = (p[:, None, :] * violates).sum(2)
    satisfies = jnp.clip(1.0 - violates, 0.0)
    allowed = (satisfies > 0) & possible[:, None, :]
    terms = jnp.where(possible, log_p, 0.0)[:, None, :] + jnp.log(
        jnp.where(allowed, satisfies, 1.0)
    )
    summed = log_sum_exp(terms, allowed, axis=2)
    few = violated < 0.5
    return jnp.where(few, jnp.log1p(-jnp.where(few, violated, 0.0)), summed)


def _log_truth_of_labels(
    book: Book, columns: Array, logits: Array, views: Mapping[str, Array], algebra: Algebra
) -> Array:
    """Of each rule, as the logarithm of 1 minus its violation."""
    everything = jnp.concatenate([logits, *(views[v] for v in book.schema.views)], axis=1)
    _, satisfied = log_nodes(book.circuit, columns, everything, algebra)
    return satisfied[book.violated].T
