"""Evaluation of circuits in any algebra.

An ``Algebra`` defines the conjunction and the disjunction of values; ``evaluate`` computes every
node of a circuit from its literals. Booleans, bits, the fuzzy logics and pairs of logarithms are
algebras.

Values are feature-major, ``[nodes, batch]``, or a pytree of such arrays. With NumPy arrays
everything here runs on the host, without compilation.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax.rules.circuits._circuit import Circuit, Level

Value = Any
"""Arrays ``[n, batch]``, or a pytree of them."""


@dataclasses.dataclass(frozen=True)
class Algebra:
    """The operations of a logic: pure functions of values, elementwise over nodes and batch.

    Attributes:
      conjunction: ``conjunction(parts) -> value`` of a sequence of one or more values; ``true`` is
        its neutral element.
      disjunction: Likewise, with ``false`` as its neutral element.
      negation: ``negation(value) -> value``.
      false, true: Constants, with the tree structure of a value.
    """

    conjunction: Callable[[Sequence[Value]], Value]
    disjunction: Callable[[Sequence[Value]], Value]
    negation: Callable[[Value], Value]
    false: Any = 0.0
    true: Any = 1.0


def evaluate(
    levels: Sequence[Level],
    nodes: Value,
    algebra: Algebra,
    *,
    gather: Callable[[Value, Any], Sequence[Value]] | None = None,
) -> Value:
    """The values of every node of a circuit.

    Args:
      levels: Conjunctions and disjunctions, from the bottom up.
      nodes: The nodes below all levels, ``[nodes, batch]``; see ``first_nodes``.
      algebra: The algebra of the values.
      gather: ``gather(nodes, children) -> parts``, one value ``[n, batch]`` per child, where
        ``children`` is the content of a level; None for ``all_children``.

    Returns:
      ``nodes``, then each level's conjunctions and disjunctions, ``[all nodes, batch]``.
    """
    gather = gather or all_children
    for level in levels:
        made = [
            join(gather(nodes, children))
            for join, children in (
                (algebra.conjunction, level.ands),
                (algebra.disjunction, level.ors),
            )
            if children is not None
        ]
        nodes = _concatenated(nodes, *made)
    return nodes


def first_nodes(algebra: Algebra, *literals: Value) -> Value:
    """FALSE, TRUE, then the literals, ``[2 + literals, batch]``.

    Args:
      algebra: Defines the constants.
      literals: Values, in the order of the circuit's literals.
    """

    def ends(false: Any, true: Any, like: Any) -> Any:
        if isinstance(like, np.ndarray):
            both = np.array([[false], [true]], like.dtype)
            return np.broadcast_to(both, (2, *like.shape[1:]))
        return jnp.broadcast_to(jnp.array([[false], [true]], like.dtype), (2, *like.shape[1:]))

    return _concatenated(jax.tree.map(ends, algebra.false, algebra.true, literals[0]), *literals)


def label_literals(circuit: Circuit, labels: Value, algebra: Algebra) -> Value:
    """The circuit's literals on labels, ``[label literals, batch]``.

    Args:
      circuit: Defines which labels, and which of them are negated.
      labels: The value of each label, those of the views after the labels themselves,
        ``[labels, batch]``.
      algebra: Defines the negation.
    """
    chosen = jax.tree.map(lambda x: x[circuit.label], labels)
    negated = circuit.negated[:, None]
    return jax.tree.map(
        lambda no, yes: jnp.where(negated, no, yes), algebra.negation(chosen), chosen
    )


# Children of nodes


def all_children(nodes: Value, children: Any) -> list[Value]:
    """The children's values, from one gather."""
    found = jax.tree.map(lambda x: x[children], nodes)
    return [
        jax.tree.map(lambda x, i=i: x[:, i], found)  # type: ignore[misc]
        for i in range(children.shape[1])
    ]


def each_child(nodes: Array, children: Any) -> list[Array]:
    """The children's values, from a gather per child, without an array ``[n, fan_in, batch]``."""
    return [take(nodes, children[:, i]) for i in range(children.shape[1])]


def take(rows: Array, index: Any) -> Array:
    """``rows[index]`` for indices that are known to be in bounds, without a check of each."""
    return rows.at[index].get(mode="promise_in_bounds")


def _concatenated(*values: Value) -> Value:
    def concatenated(*arrays: Any) -> Any:
        on_host = all(isinstance(x, np.ndarray) for x in arrays)
        return (np if on_host else jnp).concatenate(arrays)

    return jax.tree.map(concatenated, *values)


# Booleans


@dataclasses.dataclass(frozen=True)
class Folded:
    """A function of two values, applied to a sequence from the left; equal for equal functions."""

    pair: Callable[[Value, Value], Value]

    def __call__(self, parts: Sequence[Value]) -> Value:
        return functools.reduce(self.pair, parts)


BOOLEAN = Algebra(
    Folded(operator.and_), Folded(operator.or_), operator.invert, false=False, true=True
)
BITS = dataclasses.replace(BOOLEAN, false=0, true=255)
"""Booleans as bits, eight rows per uint8."""
