"""The logarithm of the truth of rules, without underflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax._arguments import checked
from distill_jax.rules.binding.book import Book
from distill_jax.rules.circuits._algebra import Algebra
from distill_jax.rules.circuits._log_pairs import log_sum_exp
from distill_jax.rules.logic import _inputs, _predictions
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic._nodes import log_nodes
from distill_jax.rules.logic.evaluation import violation

LEAST_TRUTH = 1e-7
"""The smallest truth in the logics that compute truth as 1 − violation, of the size of their
rounding errors. The gradient is 0 below it."""


@checked
def log_truth(
    book: Book,
    columns: Float[Any, "batch columns"],
    logits: Float[Any, "batch classes"],
    *,
    views: Views | None = None,
) -> Float[Array, "batch rules"]:
    """The logarithm of ``truth``, from logits, without underflow.

    Over exclusive classes, and over label sets in product logic, the result is accurate for truths
    near 0 and near 1: a truth of 1e-40 has a finite logarithm and an accurate gradient, and a truth
    of 1 − 1e-20 is not rounded to 1. It is ``-inf``, with gradient 0, only where the rule cannot
    hold at all. Over exclusive classes it needs memory for rows × rules × classes, unlike
    ``violation``. The other logics compute truth as 1 − violation, clipped to at least
    ``LEAST_TRUTH`` (1e-7).

    Args:
      book: The rules.
      columns: From ``encode``, ``[batch, columns]``.
      logits: Logits of exclusive classes or of labels, ``[batch, classes]``; ``-inf`` for a class
        or label that is certainly absent.
      views: Logits on other views, ``[batch, classes]`` each, by name, if the rules use them. Over
        exclusive classes their probabilities may underflow.

    Returns:
      ``[batch, rules]``, at most 0, float32 or wider. Gradients reach the logits and, through soft
      comparisons, the columns.

    Raises:
      ValueError: for other shapes, or if a view is missing.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> print(log_truth(book, jnp.array([[70.0]]), jnp.array([[200.0, 0.0]])))
      [[-200.]]
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
    """A sum over the classes that satisfy a rule where the truth is at most ½, else log1p of minus
    the violation, so that neither a small nor a large truth loses digits."""
    classes = logits.shape[1]

    def of_class(one_hot: Array) -> Array:  # violation is linear in probabilities
        return violation(book, columns, jnp.broadcast_to(one_hot, logits.shape), views=views)

    violates = jax.vmap(of_class, out_axes=2)(jnp.eye(classes, dtype=logits.dtype)[:, None, :])
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
    mostly_true = violated < 0.5
    return jnp.where(mostly_true, jnp.log1p(-jnp.where(mostly_true, violated, 0.0)), summed)


def _log_truth_of_labels(
    book: Book, columns: Array, logits: Array, views: Mapping[str, Array], algebra: Algebra
) -> Array:
    """The logarithm of 1 − violation, from pairs of logarithms."""
    everything = jnp.concatenate([logits, *(views[v] for v in book.schema.views)], axis=1)
    _, satisfied = log_nodes(book.circuit, columns, everything, algebra)
    return satisfied[book.violated].T
