"""Rules evaluated on examples: where they fire, how true they are, which classes they forbid.

Columns are known, so atoms over them are 0 or 1, and only labels are uncertain. Over exclusive
classes the probability that a rule holds is therefore exact and linear in the probabilities:

    truth[b, r] = Σ over the classes k that satisfy r on example b of p[b, k]

Label sets need a logic that computes the truth of a formula from the truth of its parts (van
Krieken et al. 2022). Formulas are brought to negation normal form first, so an implication is
``not body or head`` in each of them.

``circuits.fuzzy_logics`` lists the logics that are available. At probabilities 0 and 1 all of them
agree with Boolean logic.

An atom over a missing value (NaN) is unknown. A rule is silent if the known atoms do not decide
it: it does not fire, and its truth is 1.

References:
  van Krieken et al., `Analyzing Differentiable Fuzzy Logic Operators
  <https://arxiv.org/abs/2002.06100>`_, 2022.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.rules.binding.book import Book
from distill_jax.rules.circuits.fuzzy_logics import PRODUCT
from distill_jax.rules.logic import _inputs, _label_sums, _predictions, _tiles
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic._nodes import crisp_nodes, fuzzy_nodes


@checked
def fires(
    book: Book, columns: Float[Any, "batch columns"], *, unknown: bool = False
) -> Bool[Array, "batch rules"]:
    """Where each rule fires, that is, where some class or label would violate it.

    A rule ``body => class`` fires where its body holds. A rule without columns fires everywhere.

    Args:
      book: The rules.
      columns: From ``encode``, ``[batch, columns]``.
      unknown: Whether atoms over missing values hold; by default they do not. A rule that fires
        only with ``unknown=True`` is silent because of a missing value.

    Returns:
      ``[batch, rules]``, boolean.

    Raises:
      TypeError: if the columns are not floating point.
      ValueError: for columns of another shape.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> print(fires(book, jnp.array([[70.0], [50.0], [jnp.nan]])).ravel())
      [ True False False]
    """
    return _held(book, _columns(book, columns), book.fires, unknown)


@checked
def violation(
    book: Book,
    columns: Float[Any, "batch columns"],
    probabilities: Float[Any, "batch classes"],
    *,
    views: Views | None = None,
) -> Float[Array, "batch rules"]:
    """The violation of each rule on each example, 1 − ``truth``, computed without cancellation.

    Args:
      book: The rules.
      columns: From ``encode``, ``[batch, columns]``.
      probabilities: Of the classes (each row sums to 1) or the labels (each from 0 to 1),
        ``[batch, classes]``.
      views: Logits on other views, as in ``truth``.

    Returns:
      ``[batch, rules]``, from 0 to 1, float32 or wider; gradients as for ``truth``.

    Raises:
      ValueError: for other shapes, or if a view is missing.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> print(violation(book, jnp.array([[70.0]]), jnp.array([[0.75, 0.25]])))
      [[0.75]]
    """
    columns, probabilities, arrays = _arguments(book, columns, probabilities, views)
    if book.schema.exclusive:
        weight = guards(book, columns, arrays) * (book.pieces.table @ probabilities.T)
        return jax.ops.segment_sum(weight, book.pieces.rule, len(book)).T
    everything = jnp.concatenate([probabilities, *arrays], axis=1)
    logic = book.info.logic
    found = fuzzy_nodes(book.circuit, columns, everything, logic.algebra)[book.violated].T
    return found if logic.rescale is None else logic.rescale(found)


@checked
def truth(
    book: Book,
    columns: Float[Any, "batch columns"],
    probabilities: Float[Any, "batch classes"],
    *,
    views: Views | None = None,
) -> Float[Array, "batch rules"]:
    """The truth of each rule on each example, from 0 to 1.

    Over exclusive classes, this is the probability that the rule holds; over label sets, its truth
    in the book's fuzzy logic. It is 1 where a rule does not fire.

    Args:
      book: The rules.
      columns: From ``encode``, ``[batch, columns]``.
      probabilities: Of the classes (each row sums to 1) or the labels (each from 0 to 1),
        ``[batch, classes]``.
      views: Logits ``[batch, classes]`` on other views, or the model's ``Outputs`` on them, by
        name. Their probabilities are the softmax, or over label sets the sigmoid, in float32 or
        wider, so a class with the logit ``-inf`` has probability 0. Rules that compare with a view
        treat the two predictions as independent. No gradient passes to them.

    Returns:
      ``[batch, rules]``, float32 or wider. Gradients reach the probabilities and, through soft
      comparisons, the columns.

    Raises:
      ValueError: for other shapes, or if a view is missing.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> columns = jnp.array([[70.0], [50.0]])
      >>> probabilities = jnp.array([[0.75, 0.25], [0.5, 0.5]])
      >>> print(truth(book, columns, probabilities))
      [[0.25]
       [1.  ]]
    """
    return 1.0 - violation(book, columns, probabilities, views=views)


@checked
def energies(
    book: Book,
    columns: Float[Any, "batch columns"],
    *,
    strengths: Float[Any, " rules"] | None = None,
    views: Views | None = None,
) -> Float[Array, "batch classes"]:
    """Each class's penalty under the rules, in log-odds: Σ strength · violation.

    Exclusive classes only. Hard rules add nothing here; see ``forbidden``.

    Args:
      book: The rules.
      columns: From ``encode``, ``[batch, columns]``.
      strengths: Log-odds of the rules that replace the book's own, ``[rules]``; may be traced.
      views: Logits on other views, as in ``truth``.

    Returns:
      ``[batch, classes]``, float32 or wider; ``inf`` or ``-inf`` for a sum beyond its range.
      Gradients reach the strengths and, through soft comparisons, the columns.

    Raises:
      ValueError: for label sets, other shapes, or if a view is missing.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("[w=2] age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> print(energies(book, jnp.array([[70.0], [50.0]])))
      [[2. 0.]
       [0. 0.]]
    """
    scaled, scale = scaled_energies(book, columns, strengths=strengths, views=views)
    return scale * scaled


def scaled_energies(
    book: Book,
    columns: Float[Any, "batch columns"],
    *,
    strengths: Float[Any, " rules"] | None = None,
    views: Views | None = None,
) -> tuple[Float[Array, "batch classes"], float]:
    """``energies`` divided by a power of two, so that no sum or difference of them overflows.

    Returns:
      The scaled energies, ``[batch, classes]``, and the power of two.
    """
    _inputs.check_exclusive(book, "energies")
    columns, _, arrays = _arguments(book, columns, None, views)
    own = book.strengths if strengths is None else jnp.asarray(strengths)
    _checks.shape((len(book),), strengths=own)
    _checks.finite(strengths=own)
    # Exact: dividing by a power of two changes no digit of a strength above 1e-30.
    scale = 2.0 ** (1 + book.pieces.rule.shape[0].bit_length())
    return _against(book, columns, arrays, jnp.where(book.hard, 0.0, own) / scale), scale


@checked
def forbidden(book: Book, columns: Float[Any, "batch columns"]) -> Bool[Array, "batch classes"]:
    """Which classes the hard rules forbid on each example; exclusive classes only.

    Args:
      book: The rules.
      columns: From ``encode``, ``[batch, columns]``.

    Returns:
      ``[batch, classes]``, boolean; True where a class is forbidden.

    Raises:
      ValueError: for label sets, or columns of another shape.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("[hard] age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> print(forbidden(book, jnp.array([[70.0], [50.0]])))
      [[ True False]
       [False False]]
    """
    _inputs.check_exclusive(book, "forbidden")
    guards = _held(book, _columns(book, columns), book.pieces.guard, False)
    hard = jnp.where(book.hard[book.pieces.rule][:, None], book.pieces.table, 0)
    return (guards.astype(hard.dtype) @ hard) > 0


def weighted_violation(
    book: Book,
    columns: Float[Any, "batch columns"],
    probabilities: Float[Any, "batch classes"],
    weights: Float[Any, " rules"],
    *,
    views: Views | None = None,
    squared: bool = False,
) -> Float[Array, " batch"]:
    """Σ weight · violation over the rules, row by row, or Σ weight · violation².

    Memory does not grow with rows times rules, except for squares over exclusive classes and for
    soft comparisons.

    Args:
      book: The rules.
      columns: From ``encode``, ``[batch, columns]``.
      probabilities: Of the classes or labels, ``[batch, classes]``.
      weights: The weights of the rules, ``[rules]``.
      views: Logits on other views, as in ``truth``.
      squared: Whether violations are squared.

    Returns:
      ``[batch]``, float32 or wider.
    """
    columns, probabilities, arrays = _arguments(book, columns, probabilities, views)
    weights = _inputs.float32_or_wider(weights)
    _checks.shape((len(book),), weights=weights)
    if book.schema.exclusive and not squared:
        return (_against(book, columns, arrays, weights) * probabilities).sum(1)
    if book.schema.exclusive or book.plan is None or _at_once(book, columns, SMALL_SUMS):
        each = violation(book, columns, probabilities, views=views)
        return (each * each if squared else each) @ weights
    return _label_sums.weighted(
        book.plan,
        book.circuit,
        columns,
        probabilities,
        weights,
        views=jnp.concatenate(arrays, axis=1) if arrays else None,
        logic=book.info.logic,
        squared=squared,
    )


def _columns(book: Book, columns: Any) -> Array:
    """Encoded columns, checked, in float32 or wider."""
    return _inputs.encoded_columns(book, columns=columns)


def _arguments(
    book: Book, columns: Any, probabilities: Any, views: Views | None
) -> tuple[Array, Any, list[Array]]:
    """Columns, probabilities (None if they are None) and the views' probabilities, checked."""
    columns = _columns(book, columns)
    shape = (columns.shape[0], len(book.schema.classes))
    logits = _inputs.view_logits(book, views, shape)
    arrays = [_predictions.probabilities(book, x) for x in logits.values()]
    if probabilities is None:
        return columns, None, arrays
    _checks.floating(probabilities=probabilities)
    _checks.shape(shape, probabilities=probabilities)
    return columns, _inputs.float32_or_wider(probabilities), arrays


SMALL, SMALL_SUMS = 1 << 21, 1 << 16
"""Nodes times rows up to which all nodes are computed at once; more are computed in tiles of rows.
The second is for sums over label sets with their gradient."""


def _at_once(book: Book, columns: Array, most: int) -> bool:
    """Whether all nodes of all rows are computed at once.

    They are, too, if the number of rows is symbolic, as in ``jax.export`` with a symbolic batch
    size, since the division into tiles needs a number.
    """
    rows = columns.shape[0]
    return not isinstance(rows, int) or book.circuit.number_of_nodes * rows <= most


def _held(book: Book, columns: Array, wanted: Array, unknown: bool) -> Bool[Array, "batch wanted"]:
    """Where the wanted nodes hold."""
    if _at_once(book, columns, SMALL):
        return crisp_nodes(book.circuit, columns, unknown=unknown)[wanted].T
    return _tiles.held(book.circuit, columns, wanted, unknown=unknown)


def _against(
    book: Book, columns: Array, views: list[Array], weights: Array
) -> Float[Array, "batch classes"]:
    """Each class's penalty under the rules, Σ weight · violation."""
    scores = weights[book.pieces.rule][:, None] * book.pieces.table
    if book.info.soft or _at_once(book, columns, SMALL):
        return guards(book, columns, views).T @ scores
    classes = len(book.schema.classes)
    shown = jnp.concatenate(_shown(views), axis=1) if views else jnp.zeros((columns.shape[0], 0))
    first = (classes + 1) * jnp.arange(len(views))
    where = _tiles.Guards(book.pieces.guard, book.pieces.seen + first[None, :], shown.T)
    return _tiles.scored(book.circuit, columns, where, scores)


def _shown(views: list[Array]) -> list[Array]:
    """The probabilities of each view's classes, and 1 for any class, ``[batch, classes + 1]``."""
    return [jnp.concatenate([p, jnp.ones((p.shape[0], 1), p.dtype)], axis=1) for p in views]


def guards(book: Book, columns: Array, views: list[Array]) -> Float[Array, "pieces batch"]:
    """Whether each piece of a rule applies, times the probabilities of the views' classes in it."""
    if book.info.soft:
        no_labels = jnp.zeros((columns.shape[0], 0))
        nodes = fuzzy_nodes(book.circuit, columns, no_labels, PRODUCT.algebra)
    else:
        nodes = crisp_nodes(book.circuit, columns)
    found = nodes[book.pieces.guard].astype(columns.dtype)
    for v, shown in enumerate(_shown(views)):
        found = found * shown.T[book.pieces.seen[:, v]]
    return found
