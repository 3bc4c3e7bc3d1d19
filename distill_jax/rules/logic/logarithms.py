"""The logarithm of how true rules are, without underflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.rules.binding.book import Book
from distill_jax.rules.logic import _inputs
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic._tiles import registers
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
    logits, columns, views = _inputs.clean(book, logits, columns, views)
    if book.schema.exclusive:
        return _log_truth_of_classes(book, columns, logits, views)
    if book.info.logic == "product":
        return _log_truth_of_labels(book, columns, logits, views)
    violated = violation(
        book, columns, _inputs.probabilities(book, logits), views=_inputs.seen(book, views)
    )
    return jnp.log(jnp.maximum(1.0 - violated, LEAST_TRUTH))


def _log_truth_of_classes(
    book: Book, columns: Array, logits: Array, views: Mapping[str, Array]
) -> Array:
    """By a sum over the classes that satisfy a rule, or, where that is most of them, by log1p of
    the others, so that neither end loses digits."""
    classes = logits.shape[1]
    shown = _inputs.seen(book, views)

    def by(one: Array) -> Array:  # violation is linear in probabilities
        return violation(book, columns, jnp.broadcast_to(one, logits.shape), views=shown)

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
    book: Book, columns: Array, logits: Array, views: Mapping[str, Array]
) -> Array:
    """The circuit of product logic over pairs (log t, log(1 − t)), without a subtraction: 1 − a b
    is (1 − a) + a (1 − b)."""
    circuit = book.circuit
    held = _log_literals(circuit, columns)
    everything = jnp.concatenate([logits, *(views[v] for v in book.schema.views)], axis=1)
    of_label = everything.T[circuit.label]
    of_label = jnp.where(circuit.negated[:, None], -of_label, of_label)
    ends = jnp.broadcast_to(jnp.array([[-jnp.inf], [0.0]], logits.dtype), (2, logits.shape[0]))
    yes = jnp.concatenate([ends, held[0], _inputs.log_sigmoid(of_label)])
    no = jnp.concatenate([ends[::-1], held[1], _inputs.log_sigmoid(-of_label)])
    for level in circuit.levels:
        and_yes, and_no = _log_and(yes[level.ands], no[level.ands])
        or_no, or_yes = _log_and(no[level.ors], yes[level.ors])
        yes = jnp.concatenate([yes, and_yes, or_yes])
        no = jnp.concatenate([no, and_no, or_no])
    return no[book.violated].T


def _log_literals(circuit: Any, columns: Array) -> tuple[Array, Array]:
    """Literals on features as pairs; a value that is missing lies in no interval."""
    values = registers(circuit, columns)[circuit.register]
    low, high, width = (x[:, None] for x in (circuit.low, circuit.high, circuit.width))
    inside = ((low <= values) & (values <= high)) ^ circuit.inverted[:, None]
    soft, known = width > 0, ~jnp.isnan(values)
    safe, scale = jnp.where(known, values, 0.0), jnp.where(soft, width, 1.0)
    above = jnp.where(jnp.isfinite(low), safe - jnp.where(jnp.isfinite(low), low, 0.0), jnp.inf)
    below = jnp.where(jnp.isfinite(high), jnp.where(jnp.isfinite(high), high, 0.0) - safe, jnp.inf)
    ends = jnp.stack([above / scale, below / scale], axis=1)
    pair = _log_and(_inputs.log_sigmoid(ends), _inputs.log_sigmoid(-ends))
    crisp = jnp.where(inside, 0.0, -jnp.inf), jnp.where(inside, -jnp.inf, 0.0)
    yes, no = (
        jnp.where(soft, jnp.where(known, p, end), c)
        for p, end, c in zip(pair, (-jnp.inf, 0.0), crisp, strict=True)
    )
    return yes, no


def _log_and(yes: Array, no: Array) -> tuple[Array, Array]:
    """Of parts ``[n, parts, batch]``: the first that fails does so after all before it hold."""
    before = jnp.cumsum(yes, axis=1)
    before = jnp.concatenate([jnp.zeros_like(yes[:, :1]), before[:, :-1]], axis=1)
    all_hold = yes.sum(1)
    terms = no + before
    fails = log_sum_exp(terms, ~jnp.isneginf(terms), axis=1)
    rare = all_hold < -1.0  # then log(1 − t) is near 0, and a sum of exponentials has few digits
    return all_hold, jnp.where(rare, jnp.log1p(-jnp.exp(jnp.where(rare, all_hold, -1.0))), fails)


def log_sum_exp(x: Array, allowed: Array, axis: int) -> Array:
    """Over the terms that are allowed and above 0; -inf with gradient 0 where there are none."""
    allowed = allowed & ~jnp.isneginf(x)
    safe = jnp.where(allowed, x, 0.0)
    top = jnp.where(allowed, x, -jnp.inf).max(axis, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0.0, top))
    total = jnp.where(allowed, jnp.exp(jnp.where(allowed, safe - top, 0.0)), 0.0).sum(axis)
    any_allowed = allowed.any(axis)
    value = jnp.log(jnp.where(any_allowed, total, 1.0)) + jnp.squeeze(top, axis)
    return jnp.where(any_allowed, value, -jnp.inf)
