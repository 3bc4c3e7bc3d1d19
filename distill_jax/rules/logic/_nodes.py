"""Every node of a circuit for all rows at once: its literals, then the walk over its levels.

Feature-major, ``[nodes, batch]``: memory grows as nodes times rows. ``_tiles`` and ``_label_sums``
do the same for many rows in bounded memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.rules.circuits._algebra import (
    BOOLEAN,
    Algebra,
    evaluate,
    first_nodes,
    label_literals,
)
from distill_jax.rules.circuits._circuit import Circuit
from distill_jax.rules.circuits._log_pairs import Pair, conjunction
from distill_jax.rules.circuits._registers import registers
from distill_jax.rules.logic._predictions import log_sigmoid


def crisp_nodes(
    circuit: Circuit, columns: Float[Array, "batch columns"], *, unknown: bool = False
) -> Bool[Array, "nodes batch"]:
    """Which nodes hold. Labels are taken for possible.

    Args:
      circuit: The graph.
      columns: NaN where a value is missing.
      unknown: Whether a literal about a missing value holds, rather than not.
    """
    values = registers(circuit, columns)[circuit.register]
    held = _inside(circuit, values)
    if unknown:
        held = held | (jnp.isnan(values) & ~_asks_for_missing(circuit)[:, None])
    possible = jnp.ones((circuit.label.shape[0], columns.shape[0]), bool)
    return evaluate(circuit.levels, first_nodes(BOOLEAN, held, possible), BOOLEAN)


def fuzzy_nodes(
    circuit: Circuit,
    columns: Float[Array, "batch columns"],
    labels: Float[Array, "batch labels"],
    algebra: Algebra,
) -> Float[Array, "nodes batch"]:
    """The truth of each node, from 0 to 1.

    Args:
      circuit: The graph.
      columns: NaN where a value is missing: it lies in no interval.
      labels: Probabilities of the labels, then of those of the views.
      algebra: Of a fuzzy logic.
    """
    values = registers(circuit, columns)[circuit.register]
    margins = _margins(circuit, values)
    soft = jax.nn.sigmoid(margins.above) * jax.nn.sigmoid(margins.below)
    soft = jnp.where(margins.known, soft, 0.0)
    crisp = _inside(circuit, values).astype(values.dtype)
    held = jnp.where(circuit.width[:, None] > 0, soft, crisp)
    of_label = label_literals(circuit, labels.T, algebra).astype(held.dtype)
    return evaluate(circuit.levels, first_nodes(algebra, held, of_label), algebra)


def log_nodes(
    circuit: Circuit,
    columns: Float[Array, "batch columns"],
    logits: Float[Array, "batch labels"],
    algebra: Algebra,
) -> Pair:
    """The logarithms of each node's truth and of 1 minus it, ``[nodes, batch]`` each.

    Args:
      circuit: The graph.
      columns: NaN where a value is missing: it lies in no interval.
      logits: Of the labels, then of those of the views.
      algebra: Over pairs of logarithms.
    """
    values = registers(circuit, columns)[circuit.register]
    margins = _margins(circuit, values)
    ends = margins.above, margins.below
    soft = conjunction([(log_sigmoid(end), log_sigmoid(-end)) for end in ends])
    inside, is_soft = _inside(circuit, values), circuit.width[:, None] > 0
    crisp = jnp.where(inside, 0.0, -jnp.inf), jnp.where(inside, -jnp.inf, 0.0)
    held = tuple(
        jnp.where(is_soft, jnp.where(margins.known, s, unknown), c)
        for s, unknown, c in zip(soft, algebra.false, crisp, strict=True)
    )
    labels = log_sigmoid(logits.T), log_sigmoid(-logits.T)
    of_label = label_literals(circuit, labels, algebra)
    return evaluate(circuit.levels, first_nodes(algebra, held, of_label), algebra)


# Literals on features, from the values of their registers [literals, batch]


def _inside(circuit: Circuit, values: Array) -> Bool[Array, "literals batch"]:
    """Where crisp literals hold."""
    inside = (circuit.low[:, None] <= values) & (values <= circuit.high[:, None])
    return inside ^ circuit.inverted[:, None]


def _asks_for_missing(circuit: Circuit) -> Bool[Array, " literals"]:
    """Literals that ask whether a value is missing: they are never unknown."""
    return (circuit.low == -jnp.inf) & (circuit.high == jnp.inf)


class _Margins(NamedTuple):
    """How far values lie inside of soft intervals, in widths; any finite number where unknown.

    Attributes:
      above: Over the lower end, inf where there is none.
      below: Under the upper end, inf where there is none.
      known: Which values are not missing.
    """

    above: Array
    below: Array
    known: Array


def _margins(circuit: Circuit, values: Array) -> _Margins:
    low, high, width = (x[:, None] for x in (circuit.low, circuit.high, circuit.width))
    known = ~jnp.isnan(values)
    # Whatever is not used is replaced beforehand: its derivative would be NaN otherwise.
    safe, scale = jnp.where(known, values, 0.0), jnp.where(width > 0, width, 1.0)
    above = jnp.where(jnp.isfinite(low), safe - jnp.where(jnp.isfinite(low), low, 0.0), jnp.inf)
    below = jnp.where(jnp.isfinite(high), jnp.where(jnp.isfinite(high), high, 0.0) - safe, jnp.inf)
    return _Margins(above / scale, below / scale, known)
