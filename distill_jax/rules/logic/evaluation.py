"""What rules say about examples: where they fire, how true they are, what they forbid.

Features are known, so atoms over them are 0 or 1, and only labels are uncertain. Over exclusive
classes the probability that a rule holds is therefore exact and linear in the probabilities:

    truth[b, r] = Σ over the classes k that satisfy r on example b of p[b, k]

Label sets need a logic that computes the truth of a formula from the truth of its parts (van
Krieken et al. 2022). Formulas are brought to negation normal form first, so an implication is
``not body or head`` in each of them:

- ``"product"``: and ``a b``, or ``a + b − a b``; the implication ``1 − a + a b`` (Reichenbach). Its
  gradient to one part vanishes where another decides; a sum of many ors saturates at 1.
- ``"lukasiewicz"``: and ``max(0, a + b − 1)``, or ``min(1, a + b)``; the implication
  ``min(1, 1 − a + b)``. No gradient at all where it is 0 or 1: a conjunction of many parts gets
  none until they are nearly true.
- ``"godel"``: and ``min``, or ``max``; the implication ``max(1 − a, b)`` (Kleene-Dienes). Only one
  part gets a gradient.
- ``"sigmoidal"``: product logic with the sigmoidal implication on top, which moves the gradient to
  where a rule is undecided: a rule's truth ``t`` becomes a rescaled ``sigmoid(9 (t − ½))``.

At probabilities 0 and 1 all four say what Boolean logic says.

A value that is missing (NaN) leaves its atoms unknown, and a rule that is not decided without them
is silent: it does not fire, and its truth is 1.

References:
  van Krieken et al., `Analyzing Differentiable Fuzzy Logic Operators
  <https://arxiv.org/abs/2002.06100>`_, 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax.rules.binding._circuit import Circuit
from distill_jax.rules.binding.book import Book, number_of_columns
from distill_jax.rules.logic import _label_sums, _tiles

STEEPNESS = 9.0
"""Of the sigmoidal implication, as in van Krieken et al. 2022, section 7."""

Views = Mapping[str, Any]
"""Probabilities ``[batch, classes]`` of other views of the examples, by name."""


def fires(
    book: Book, columns: Float[Any, "batch columns"], *, unknown: bool = False
) -> Bool[Array, "batch rules"]:
    """Where each rule has something to say: some class or label would violate it.

    Of ``body => class`` that is where the body holds. A rule without features fires everywhere.

    Args:
      book: The rules.
      columns: From ``encode``.
      unknown: Whether atoms with a missing value are taken for true: fires with it, and not
        without, is a rule that is silent because of a missing value.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> print(fires(book, jnp.array([[70.0], [50.0], [jnp.nan]])).ravel())
      [ True False False]
    """
    return _held(book, _columns(book, columns), book.fires, unknown)


def violation(
    book: Book,
    columns: Float[Any, "batch columns"],
    probabilities: Float[Any, "batch classes"],
    *,
    views: Views | None = None,
) -> Float[Array, "batch rules"]:
    """How far each rule is from being true: 1 − ``truth``, computed without cancellation."""
    columns, probabilities, arrays = _arguments(book, columns, probabilities, views)
    if book.schema.exclusive:
        weight = guards(book, columns, arrays) * (book.pieces.table @ probabilities.T)
        return jax.ops.segment_sum(weight, book.pieces.rule, len(book)).T
    everything = jnp.concatenate([probabilities, *arrays], axis=1)
    nodes = _fuzzy(book.circuit, columns, everything, book.info.logic)
    found = nodes[book.violated].T
    return _sigmoidal(found) if book.info.logic == "sigmoidal" else found


def truth(
    book: Book,
    columns: Float[Any, "batch columns"],
    probabilities: Float[Any, "batch classes"],
    *,
    views: Views | None = None,
) -> Float[Array, "batch rules"]:
    """How true each rule is on each example, from 0 to 1.

    Over exclusive classes, the probability that it holds; over label sets, its truth in the logic
    of the book (see the module). 1 where a rule does not fire.

    Args:
      book: The rules.
      columns: From ``encode``.
      probabilities: Of the classes (each row sums to 1) or the labels (each from 0 to 1).
      views: Probabilities on other views, by name; a rule that compares with one takes the two for
        independent. No gradient passes to them.

    Returns:
      Float32 or better. Gradients reach the probabilities and, through soft comparisons, the
      columns.

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


def energies(
    book: Book,
    columns: Float[Any, "batch columns"],
    *,
    strengths: Float[Any, " rules"] | None = None,
    views: Views | None = None,
) -> Float[Array, "batch classes"]:
    """What the rules speak against each class, in log-odds: Σ strength · violation.

    Exclusive classes only. Hard rules add nothing here; see ``forbidden``.

    Args:
      book: The rules.
      columns: From ``encode``.
      strengths: In place of the book's own, ``[rules]``; may be traced.
      views: As in ``truth``.
    """
    _exclusive(book, "energies")
    columns, _, arrays = _arguments(book, columns, None, views)
    own = book.strengths if strengths is None else jnp.asarray(strengths)
    _checks.shape((len(book),), strengths=own)
    _checks.finite(strengths=own)
    return _against(book, columns, arrays, jnp.where(book.hard, 0.0, own))


def forbidden(book: Book, columns: Float[Any, "batch columns"]) -> Bool[Array, "batch classes"]:
    """Which classes the hard rules forbid on each example; exclusive classes only."""
    _exclusive(book, "forbidden")
    guards = _held(book, _columns(book, columns), book.pieces.guard, False)
    hard = book.hard[book.pieces.rule][:, None] * book.pieces.table
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

    Memory does not grow with rows times rules, but for squares over exclusive classes and for soft
    comparisons.
    """
    columns, probabilities, arrays = _arguments(book, columns, probabilities, views)
    weights = _wide(weights)
    _checks.shape((len(book),), weights=weights)
    if book.schema.exclusive and not squared:
        return (_against(book, columns, arrays, weights) * probabilities).sum(1)
    if book.schema.exclusive or book.plan is None or _size(book, columns) <= SMALL_SUMS:
        each = violation(book, columns, probabilities, views=views)
        return (each * each if squared else each) @ weights
    smooth = book.info.logic == "sigmoidal"
    outer = {(0, 0): None, (0, 1): jnp.square, (1, 0): _sigmoidal, (1, 1): _sigmoidal_squared}
    return _label_sums.weighted(
        book.plan,
        book.circuit,
        columns,
        probabilities,
        weights,
        views=jnp.concatenate(arrays, axis=1) if arrays else None,
        logic="product" if smooth else book.info.logic,
        outer=outer[smooth, squared],
    )


def _exclusive(book: Book, who: str) -> None:
    if not book.schema.exclusive:
        raise ValueError(f"{who} is for exclusive classes, and the book's schema has label sets")


def _columns(book: Book, columns: Any) -> Array:
    width = number_of_columns(book)
    if jnp.ndim(columns) != 2 or jnp.shape(columns)[1] != width:
        raise ValueError(
            f"columns must have shape [batch, {width}], as encode(book, table) gives it, got "
            f"{jnp.shape(columns)}"
        )
    columns = jnp.asarray(columns)
    _checks.floating(columns=columns)
    return columns.astype(jnp.promote_types(columns.dtype, jnp.float32))


def _arguments(
    book: Book, columns: Any, probabilities: Any, views: Views | None
) -> tuple[Array, Any, list[Array]]:
    columns = _columns(book, columns)
    shape = (columns.shape[0], len(book.schema.classes))
    views = dict(views or {})
    if missing := set(book.schema.views) - set(views):
        raise ValueError(
            f"views must hold the probabilities of {sorted(missing)}, got {sorted(views)}"
        )
    arrays = [views[name] for name in book.schema.views]
    for name, x in zip(book.schema.views, arrays, strict=True):
        _checks.shape(shape, **{f"views[{name!r}]": x})
    arrays = [jax.lax.stop_gradient(_wide(x)) for x in arrays]
    if probabilities is None:
        return columns, None, arrays
    _checks.floating(probabilities=probabilities)
    _checks.shape(shape, probabilities=probabilities)
    return columns, _wide(probabilities), arrays


def _wide(x: Any) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


SMALL, SMALL_SUMS = 1 << 21, 1 << 16
"""Nodes times rows up to which all are computed at once; beyond, a tile of rows at a time. The
second holds for sums over label sets with their gradient."""


def _size(book: Book, columns: Array) -> int:
    circuit = book.circuit
    inner = sum(level.ands.shape[0] + level.ors.shape[0] for level in circuit.levels)
    return (circuit.number_of_literals + inner) * columns.shape[0]


def _held(book: Book, columns: Array, wanted: Array, unknown: bool) -> Bool[Array, "batch wanted"]:
    """Where these nodes hold."""
    if _size(book, columns) <= SMALL:
        return _crisp(book.circuit, columns, unknown)[wanted].T
    return _tiles.held(book.circuit, columns, wanted, unknown=unknown)


def _against(
    book: Book, columns: Array, views: list[Array], weights: Array
) -> Float[Array, "batch classes"]:
    """What the rules, with these weights, speak against each class."""
    scores = weights[book.pieces.rule][:, None] * book.pieces.table
    if book.info.soft or _size(book, columns) <= SMALL:
        return guards(book, columns, views).T @ scores
    classes = len(book.schema.classes)
    shown = jnp.concatenate(_shown(views), axis=1) if views else jnp.zeros((len(columns), 0))
    first = (classes + 1) * jnp.arange(len(views))
    where = _tiles.Guards(book.pieces.guard, book.pieces.seen + first[None, :], shown.T)
    return _tiles.scored(book.circuit, columns, where, scores)


def _shown(views: list[Array]) -> list[Array]:
    """Probabilities that a view shows a class, and 1 for any."""
    return [jnp.concatenate([p, jnp.ones((p.shape[0], 1), p.dtype)], axis=1) for p in views]


def guards(book: Book, columns: Array, views: list[Array]) -> Float[Array, "pieces batch"]:
    """Where each piece of a rule applies, and how probably the views show what it asks for."""
    if book.info.soft:
        nodes = _fuzzy(book.circuit, columns, jnp.zeros((columns.shape[0], 0)), "product")
    else:
        nodes = _crisp(book.circuit, columns, False)
    found = nodes[book.pieces.guard].astype(columns.dtype)
    for v, shown in enumerate(_shown(views)):
        found = found * shown.T[book.pieces.seen[:, v]]
    return found


# Circuits, feature-major: [nodes, batch]


def _crisp(circuit: Circuit, columns: Array, unknown: bool) -> Bool[Array, "nodes batch"]:
    """Every node as True or False. Labels are taken for possible."""
    values = _tiles.registers(circuit, columns)[circuit.register]
    inside = (circuit.low[:, None] <= values) & (values <= circuit.high[:, None])
    held = inside ^ circuit.inverted[:, None]
    if unknown:
        held = held | (jnp.isnan(values) & ~_about_missing(circuit)[:, None])
    batch = columns.shape[0]
    possible = jnp.ones((circuit.label.shape[0], batch), bool)
    nodes = jnp.concatenate([jnp.zeros((1, batch), bool), jnp.ones((1, batch), bool)])
    nodes = jnp.concatenate([nodes, held, possible])
    for level in circuit.levels:
        ands, ors = nodes[level.ands].all(1), nodes[level.ors].any(1)
        nodes = jnp.concatenate([nodes, ands, ors])
    return nodes


def _about_missing(circuit: Circuit) -> Bool[Array, " literals"]:
    """Literals that ask whether a value is missing: they are never unknown."""
    return (circuit.low == -jnp.inf) & (circuit.high == jnp.inf)


def _fuzzy(
    circuit: Circuit, columns: Array, labels: Array, logic: str
) -> Float[Array, "nodes batch"]:
    """Every node as a truth from 0 to 1."""
    values = _tiles.registers(circuit, columns)[circuit.register]
    known = ~jnp.isnan(values)
    low, high = circuit.low[:, None], circuit.high[:, None]
    crisp = ((low <= values) & (values <= high)) ^ circuit.inverted[:, None]
    width = circuit.width[:, None]
    safe, scale = jnp.where(known, values, 0.0), jnp.where(width > 0, width, 1.0)
    above = jnp.where(jnp.isfinite(low), (safe - jnp.where(jnp.isfinite(low), low, 0.0)), jnp.inf)
    below = jnp.where(jnp.isfinite(high), jnp.where(jnp.isfinite(high), high, 0.0) - safe, jnp.inf)
    soft = jax.nn.sigmoid(above / scale) * jax.nn.sigmoid(below / scale)
    held = jnp.where(width > 0, jnp.where(known, soft, 0.0), crisp.astype(values.dtype))
    of_label = labels.T[circuit.label]
    of_label = jnp.where(circuit.negated[:, None], 1.0 - of_label, of_label)
    batch = columns.shape[0]
    ends = jnp.broadcast_to(jnp.array([[0.0], [1.0]]), (2, batch))
    nodes = jnp.concatenate([ends.astype(held.dtype), held, of_label.astype(held.dtype)])
    for level in circuit.levels:
        ands, ors = nodes[level.ands], nodes[level.ors]
        if logic in ("product", "sigmoidal"):
            ands, ors = ands.prod(1), 1.0 - (1.0 - ors).prod(1)
        elif logic == "lukasiewicz":
            ands = jnp.maximum(1.0 - (1.0 - ands).sum(1), 0.0)
            ors = jnp.minimum(ors.sum(1), 1.0)
        else:
            ands, ors = ands.min(1), ors.max(1)
        nodes = jnp.concatenate([nodes, ands, ors])
    return nodes


def _sigmoidal(violated: Array) -> Array:
    """The sigmoidal implication, from the violation in product logic."""
    low, high = jax.nn.sigmoid(-STEEPNESS / 2), jax.nn.sigmoid(STEEPNESS / 2)
    return (jax.nn.sigmoid(STEEPNESS * (violated - 0.5)) - low) / (high - low)


def _sigmoidal_squared(violated: Array) -> Array:
    return _sigmoidal(violated) ** 2
