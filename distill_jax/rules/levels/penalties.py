r"""Rules as penalties: terms of the objective that grow with the violation of rules.

The penalty of an example is a weighted sum over the rules of one of these:

- ``"linear"``: the violation, the probability that the rule does not hold. Its gradient vanishes
  where the model is certain of a violation.
- ``"log"``: −log of the truth (the semantic loss). Its gradient is largest there. Infinite, with
  gradient 0, where no class of non-zero probability satisfies the rule.
- ``"squared"``: the violation squared, which gives large violations the largest weight.

By default a rule's weight is its strength, and

- a hard rule has ``HARD_WEIGHT``, since a penalty cannot exclude a class; see ``enforce`` and
  ``project``;
- a rule marked ``[learn]`` has weight 1, like a rule without a strength: minimising a penalty over
  its own weight would give 0. ``teach`` learns strengths from labels, and ``dual_ascent`` adapts
  weights until the violations meet a budget;
- a negative strength raises an error: such a penalty would reward violations, without bound.
  ``teach`` and ``project`` accept negative strengths.

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
from distill_jax._arguments import checked
from distill_jax.objectives import Term, term
from distill_jax.objectives.terms import DivideBy
from distill_jax.rules.binding.book import Book
from distill_jax.rules.logic import _inputs, _predictions
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic.evaluation import violation, weighted_violation
from distill_jax.rules.logic.logarithms import log_sum_exp, log_truth

HARD_WEIGHT = 10.0
"""The weight of a hard rule in a penalty, in log-odds: odds of 22,000 to 1."""

Kind = Literal["linear", "log", "squared"]
KINDS = ("linear", "log", "squared")


@checked
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
    """The penalty of each example: a weighted sum over the rules of how much it violates them.

    Args:
      student_logits: Logits of exclusive classes or of labels, ``[batch, classes]``.
      columns: From ``encode``, ``[batch, columns]``; NaN for a missing value.
      views: The student's logits on other views, ``[batch, classes]`` each, by name; ``{}`` if the
        rules use none.
      rules: The book.
      kind: ``"linear"``: the violation; ``"log"``: −log of the truth, the semantic loss;
        ``"squared"``: the violation squared.
      weights: Weights that replace the rules' strengths, ``[rules]``, >= 0.
      where: Rows that count, ``[batch]``; masked rows contribute neither value nor gradient.

    Returns:
      The penalty of each example, ``[batch]``, in float32 or wider. Gradients reach the logits, the
      weights and, through soft comparisons, the columns.

    Raises:
      ValueError: for other shapes, an unknown kind, a missing view, or a negative weight (a traced
        negative strength counts as 0).

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> book = bind("[w=2] age > 60 => sick", schema)
      >>> print(penalty(jnp.zeros((2, 2)), jnp.array([[70.0], [50.0]]), {}, rules=book))
      [1. 0.]
    """
    _check_kind(kind)
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
    """−log of the mean truth over the batch, the same value in each row; it couples the examples.

    This is what Xu et al.'s code optimises for preference rankings and grids
    (``complex_constraints/*_net.py`` of ``UCLA-StarAI/Semantic-Loss``), instead of the paper's mean
    of −log: examples with a truth near 0 have little influence on it. It is at most the mean of
    ``penalty(..., kind="log")``.

    Args:
      student_logits: Logits of exclusive classes or of labels, ``[batch, classes]``.
      columns: From ``encode``, ``[batch, columns]``.
      views: The student's logits on other views, as in ``penalty``.
      rules: The book.
      weights: Weights that replace the rules' strengths, ``[rules]``, >= 0.
      where: Rows that count, ``[batch]``; the others are left out of the mean, and get 0.

    Returns:
      ``[batch]``, float32 or wider.
    """
    each = -each_penalty(student_logits, columns, views, rules, "log", where)
    keep = _inputs.rows_that_count(each, where)
    number = jnp.maximum(keep.sum(dtype=each.dtype), 1.0)
    mean = log_sum_exp(each, jnp.broadcast_to(keep[:, None], each.shape), axis=0) - jnp.log(number)
    mean = jnp.where(keep.any(), mean, 0.0)
    value = weighted_sum(-mean[None, :], _weights(rules, weights))
    return _inputs.masked(jnp.broadcast_to(value, keep.shape), where)


@checked
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
    sample_weight: str | None = None,
    divide_by: DivideBy = "weights",
) -> Term:
    """A term that penalises violations of rules; see ``penalty``.

    Args:
      name: The term's name.
      weight: The term's weight: a number, a traced value, or a schedule ``step -> value``.
      book: The rules.
      kind: ``"linear"``, ``"log"`` or ``"squared"``, as in ``penalty``.
      weights: Weights that replace the rules' strengths: ``[rules]``, >= 0, or a schedule
        ``step -> [rules]``. By default a hard rule weighs ``HARD_WEIGHT``, and one marked
        ``[learn]`` weighs 1.
      coupled: With ``kind="log"``: −log of the mean truth over the batch, instead of the mean of
        −log. It couples the examples of a batch.
      where: Rows that count, as in ``term``.
      reads: Where the arguments are read from, as in ``term``: ``{"columns": "inputs"}`` if the
        model's inputs are the encoded columns, which are otherwise the batch's ``columns``.
      sample_weight: A column of weights of the rows, as in ``term``; not those of rules.
      divide_by: With ``sample_weight``, what the sum of rows is divided by, as in ``term``.

    Returns:
      A term for ``Objective``.

    Raises:
      ValueError: for an unknown kind, weights that do not fit the rules, or a negative strength.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> encourage("rules", 0.5, book, reads={"columns": "inputs"}).name
      'rules'
    """
    _check_kind(kind)
    if coupled and kind != "log":
        raise ValueError(f'coupled is for kind "log", got {kind!r}')
    if not callable(weights):
        _weights(book, weights)
    options: dict[str, Any] = dict(rules=book, weights=weights)
    loss = batch_penalty if coupled else penalty
    if not coupled:
        options["kind"] = kind
    options |= dict(sample_weight=sample_weight, divide_by=divide_by)
    return term(name, weight, loss, where=where, reads=reads, coupled=coupled, **options)


def each_penalty(
    student_logits: Any, columns: Any, views: Any, rules: Book, kind: str, where: Any
) -> Float[Array, "batch rules"]:
    """The penalty of each rule on each example, before weights and ``where`` are applied."""
    logits, columns, views = _inputs.prepared(rules, student_logits, columns, views, where)
    if kind == "log":
        return -log_truth(rules, columns, logits, views=views)
    violated = violation(rules, columns, _predictions.probabilities(rules, logits), views=views)
    return violated if kind == "linear" else violated * violated


def weighted_sum(each: Array, weights: Array) -> Array:
    """The weighted sum over rules, where 0 times an infinite penalty is 0."""
    weights = jnp.broadcast_to(weights, each.shape)
    ignored = (weights == 0) & jnp.isposinf(each)
    return (weights * jnp.where(ignored, 0.0, each)).sum(-1)


def _weights(book: Book, weights: Any) -> Float[Array, "1 rules"]:
    """The given weights, or those that follow from the rules' strengths."""
    if weights is not None:
        _checks.shape((len(book),), weights=weights)
        _checks.at_least(0.0, weights=weights)
        return _inputs.float32_or_wider(weights)[None, :]
    known = _checks.known(book.strengths)
    if known is not None and (known < 0).any():
        first = int(np.argmax(known < 0))
        raise ValueError(
            f"a penalty would reward violations of a rule with a negative strength, here "
            f"{known[first]:g}, in: {book.rules[first]}; use teach or project for it, negate the "
            "rule, or pass weights"
        )
    made = jnp.where(book.learn, 1.0, jnp.maximum(book.strengths, 0.0))
    return jnp.where(book.hard, HARD_WEIGHT, made)[None, :]


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
