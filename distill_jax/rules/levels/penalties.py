r"""Rules as penalties: what a violated rule adds to the objective.

An example's penalty is a sum over the rules, each with its weight:

- ``"linear"``: the violation, the probability that the rule does not hold. Its gradient fades where
  the model is sure of a violation.
- ``"log"``: −log of the truth (the semantic loss). Its gradient is largest there. Infinite, with
  gradient 0, where nothing that the model thinks possible satisfies the rule.
- ``"squared"``: the violation squared, which cares most for the worst.

By default a rule's weight is its strength, and

- a hard rule has ``HARD_WEIGHT``, since a penalty cannot forbid; see ``enforce`` and ``project``;
- a rule marked ``[learn]`` has weight 1, like one with nothing written: a penalty has nothing to
  learn from but itself, and would learn 0. ``teach`` learns strengths from labels, and
  ``dual_ascent`` finds the weights that keep to a budget;
- a rule with a negative strength is refused: as a penalty it would reward violations, without
  bound. ``teach`` and ``project`` can hold it.

``columns`` come from ``encode``; ``views`` are the student's logits (or ``Outputs``) on other views
of the examples, by name. No gradient passes to them.

References:
  Xu et al., `A Semantic Loss Function for Deep Learning with Symbolic Knowledge
  <https://arxiv.org/abs/1711.11157>`_, 2018; van Krieken et al., `Analyzing Differentiable Fuzzy
  Logic Operators <https://arxiv.org/abs/2002.06100>`_, 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax.objectives import Term, term
from distill_jax.rules.binding.book import Book
from distill_jax.rules.logic import _inputs, _predictions
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic.evaluation import violation, weighted_violation
from distill_jax.rules.logic.logarithms import log_sum_exp, log_truth

HARD_WEIGHT = 10.0
"""The weight of a hard rule in a penalty, as log-odds: 22,000 to 1."""

Kind = Literal["linear", "log", "squared"]
KINDS = ("linear", "log", "squared")


def penalty(
    student_logits: Float[Array, "batch classes"],
    columns: Float[Any, "batch columns"],
    views: Views,
    *,
    rules: Book,
    kind: Kind = "linear",
    weights: Float[Any, " rules"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """What the rules add to the objective, example by example.

    Args:
      student_logits: Of exclusive classes or of labels, ``[batch, classes]``.
      columns: From ``encode``; NaN for a missing value.
      views: The student's logits on other views; {} where the rules use none.
      rules: The book.
      kind: See the module.
      weights: In place of the rules' strengths, ``[rules]``, >= 0; see the module.
      where: Rows to count; the others get value 0 and gradient 0, whatever they hold.

    Returns:
      ``[batch]``, not reduced, float32 or better. Gradients reach the logits, the weights and,
      through soft comparisons, the columns.

    Raises:
      ValueError: for other shapes, a missing view, or a weight below 0 that is known beforehand (a
        traced strength below 0 counts as 0).

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> book = bind("[w=2] age > 60 => sick", schema)
      >>> print(penalty(jnp.zeros((2, 2)), jnp.array([[70.0], [50.0]]), {}, rules=book))
      [1. 0.]
    """
    _kind(kind)
    own = _weights(rules, weights)
    if kind == "log":
        each = each_penalty(student_logits, columns, views, rules, kind, where)
        return _inputs.masked(weighted_sum(each, own), where)
    logits, columns, views = _inputs.prepared(rules, student_logits, columns, views, where)
    rows = weighted_violation(
        rules,
        columns,
        _predictions.probabilities(rules, logits),
        own[0],
        views=views,
        squared=kind == "squared",
    )
    return _inputs.masked(rows, where)


def batch_penalty(
    student_logits: Float[Array, "batch classes"],
    columns: Float[Any, "batch columns"],
    views: Views,
    *,
    rules: Book,
    weights: Float[Any, " rules"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """−log of the mean truth over the batch, the same in each row; it couples examples.

    What the code of Xu et al. optimises on sushi and grids (``complex_constraints/*_net.py`` of
    ``UCLA-StarAI/Semantic-Loss``), in place of the paper's mean of −log: examples that violate a
    rule hopelessly weigh little in it. Never above ``penalty(..., kind="log")``.
    """
    each = -each_penalty(student_logits, columns, views, rules, "log", where)
    keep = _inputs.rows_that_count(each, where)
    number = jnp.maximum(keep.sum(dtype=each.dtype), 1.0)
    mean = log_sum_exp(each, jnp.broadcast_to(keep[:, None], each.shape), axis=0) - jnp.log(number)
    mean = jnp.where(keep.any(), mean, 0.0)
    value = weighted_sum(-mean[None, :], _weights(rules, weights))
    return _inputs.masked(jnp.broadcast_to(value, keep.shape), where)


def encourage(
    name: str,
    weight: Any,
    book: Book,
    *,
    kind: Kind = "linear",
    weights: Any = None,
    coupled: bool = False,
    where: str | Callable | None = None,
    reads: Mapping[str, Any] | None = None,
) -> Term:
    """A term that penalises violations.

    Args:
      name: The term's name.
      weight: Its factor: a number, a traced value, or a schedule ``step -> value``.
      book: The rules.
      kind: ``"linear"``, ``"log"`` or ``"squared"``; see the module.
      weights: In place of the rules' strengths: ``[rules]``, >= 0, or a schedule
        ``step -> [rules]``.
      coupled: With ``kind="log"``: −log of the mean truth over the batch, in place of the mean of
        −log; see ``batch_penalty``.
      where: Rows that count, as in ``term``.
      reads: Where ``columns`` come from, if not from the batch's column of that name:
        ``{"columns": "inputs"}`` where the model's inputs are the encoded columns.

    Raises:
      ValueError: for an unknown kind, weights that do not fit the rules, or a negative strength.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> encourage("rules", 0.5, book, reads={"columns": "inputs"}).name
      'rules'
    """
    _kind(kind)
    if coupled and kind != "log":
        raise ValueError(f'coupled is for kind "log", got {kind!r}')
    if not callable(weights):
        _weights(book, weights)
    options: dict[str, Any] = dict(rules=book, weights=weights)
    loss = batch_penalty if coupled else penalty
    if not coupled:
        options["kind"] = kind
    return term(name, weight, loss, where=where, reads=reads, coupled=coupled, **options)


def each_penalty(
    student_logits: Any, columns: Any, views: Any, rules: Book, kind: str, where: Any
) -> Float[Array, "batch rules"]:
    logits, columns, views = _inputs.prepared(rules, student_logits, columns, views, where)
    if kind == "log":
        return -log_truth(rules, columns, logits, views=views)
    violated = violation(rules, columns, _predictions.probabilities(rules, logits), views=views)
    return violated if kind == "linear" else violated * violated


def weighted_sum(each: Array, weights: Array) -> Array:
    """The sum over rules; a rule of weight 0 has no say, not even an infinite one."""
    weights = jnp.broadcast_to(weights, each.shape)
    silent = (weights == 0) & jnp.isposinf(each)
    return (weights * jnp.where(silent, 0.0, each)).sum(-1)


def _weights(book: Book, weights: Any) -> Float[Array, "1 rules"]:
    if weights is not None:
        _checks.shape((len(book),), weights=weights)
        _checks.at_least(0.0, weights=weights)
        return _inputs.float32_or_wider(weights)[None, :]
    known = _checks.known(book.strengths)
    if known is not None and (known < 0).any():
        first = int(np.argmax(known < 0))
        raise ValueError(
            f"a penalty would reward violations of a rule with a negative strength, here "
            f"{known[first]:g}, in: {book.rules[first]}; hold it with teach or project, write down "
            "its opposite, or pass weights"
        )
    made = jnp.where(book.learn, 1.0, jnp.maximum(book.strengths, 0.0))
    return jnp.where(book.hard, HARD_WEIGHT, made)[None, :]


def _kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
