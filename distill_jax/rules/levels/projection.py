r"""Predictions corrected by rules: posterior regularisation.

Over exclusive classes, the distribution that minimises the KL divergence from the model's own plus
the expected violations, each times its rule's strength, has the closed form

.. math:: q(y|x) \propto p(y|x) \exp\Big(-\sum_r w_r \, \text{violation}_r(x, y)\Big).

Strengths :math:`w_r` are log-odds: a rule of strength 2 multiplies the odds of the classes that
satisfy it by e². A class that violates a hard rule gets probability 0. So soft rules shift a
prediction, and hard rules always hold.

- ``project`` corrects predictions;
- ``teach`` distils the corrected distribution into the student that it is computed from;
- ``rule_teacher`` and ``corrected`` are teachers, which an objective can combine with others.

Hard rules come first, then the model, then soft rules. Where hard rules forbid every class of an
example, they contradict each other there and are ignored, and the soft rules still apply. Where
they leave only classes that the model itself excludes with the logit ``-inf``, these share the
probability as the soft rules say. A class with the logit ``inf`` takes it all, or shares it with
others at ``inf`` in the same way. The result is never NaN for logits without NaN of which one is
above ``-inf``, for strengths of any size.

Everywhere here, ``columns`` come from ``encode``, and ``views`` are the model's logits (or
``Outputs``) on other views of the examples, by name.

References:
  Hu et al., `Harnessing Deep Neural Networks with Logic Rules
  <https://arxiv.org/abs/1603.06318>`_, 2016; Ganchev et al., `Posterior Regularization for
  Structured Latent Variable Models <https://jmlr.org/papers/v11/ganchev10a.html>`_, 2010.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax._arguments import checked
from distill_jax.rules.binding.book import Book
from distill_jax.rules.logic import _inputs
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic.evaluation import forbidden, scaled_energies


@checked
def project(
    book: Book,
    columns: Float[Any, "batch columns"],
    logits: Float[Any, "batch classes"],
    *,
    strengths: Float[Any, " rules"] | None = None,
    views: Views | None = None,
) -> Float[Array, "batch classes"]:
    """Predictions corrected by the rules, ``softmax(logits - Σ strength · violation)``.

    Args:
      book: Rules over exclusive classes.
      columns: From ``encode``, ``[batch, columns]``.
      logits: The model's logits, ``[batch, classes]``.
      strengths: Log-odds of the rules that replace the book's own, ``[rules]``; may be traced.
        Those of hard rules are ignored.
      views: The model's logits on other views, ``[batch, classes]`` each, by name, if the rules use
        them.

    Returns:
      Log-probabilities of the corrected distribution, ``[batch, classes]``, float32 or wider;
      ``-inf`` for classes that hard rules forbid, unless they forbid all on that example. Gradients
      reach the logits and the strengths.

    Raises:
      ValueError: for label sets, other shapes, or a missing view.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> book = bind("[w=2] age > 60 => sick", schema)
      >>> corrected = jnp.exp(project(book, jnp.array([[70.0], [50.0]]), jnp.zeros((2, 2))))
      >>> [f"{p:.3f}" for p in corrected[:, 1]]  # e² : 1 where the rule fires
      ['0.881', '0.500']
    """
    _inputs.check_exclusive(book, "project")
    logits, columns, views = _inputs.prepared(book, logits, columns, views, name="logits")
    logits = hold(book, columns, logits)
    certain = jnp.isposinf(logits)
    alone = jnp.where(certain, 0.0, -jnp.inf)
    logits = jnp.where(certain.any(-1, keepdims=True), alone, logits)
    against, scale = scaled_energies(book, columns, strengths=strengths, views=views)
    # Relative to the least of the classes that are left, so that no sum of strengths overflows.
    left = ~jnp.isneginf(logits)
    least = jnp.where(left, against, jnp.inf).min(-1, keepdims=True)
    against = scale * (against - jax.lax.stop_gradient(least))
    corrected = jnp.where(left, jnp.where(left, logits, 0.0) - against, -jnp.inf)
    return jax.nn.log_softmax(corrected, axis=-1)


def hold(
    book: Book, columns: Float[Any, "batch columns"], logits: Float[Array, "batch classes"]
) -> Float[Array, "batch classes"]:
    """Logits with ``-inf`` for classes that hard rules forbid, on examples where any class is left.

    Where the model itself excludes every class that is left with the logit ``-inf``, though not all
    classes, these get the logit 0.

    Args:
      book: Rules over exclusive classes.
      columns: From ``encode``, ``[batch, columns]``.
      logits: ``[batch, classes]``.

    Returns:
      ``[batch, classes]``.
    """
    without = forbidden(book, columns)
    without &= ~without.all(-1, keepdims=True)
    possible = ~jnp.isneginf(logits)
    none_left = possible.any(-1, keepdims=True) & ~(possible & ~without).any(-1, keepdims=True)
    return jnp.where(without, -jnp.inf, jnp.where(none_left, 0.0, logits))
