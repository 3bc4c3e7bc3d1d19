"""Every node of a circuit for all rows at once: its literals, then its levels.

Arrays are feature-major, ``[nodes, batch]``, so memory grows with nodes times rows. ``_tiles`` and
``_label_sums`` process many rows with bounded memory.
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
    """Which nodes hold, where all literals on labels do.

    Args:
      circuit: The graph.
      columns: Encoded columns; NaN where a value is missing.
      unknown: Whether literals on missing values hold; by default they do not.
    """
    values = registers(circuit, columns)[circuit.register]
    held = _inside(circuit, values)
    if unknown:
        held = held | (jnp.isnan(values) & ~_tests_missing(circuit)[:, None])
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
      columns: Encoded columns; NaN, a missing value, lies in no interval.
      labels: Probabilities of the labels, then those of the views.
      algebra: The algebra of a fuzzy logic.
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
      columns: Encoded columns; NaN, a missing value, lies in no interval.
      logits: Logits of the labels, then those of the views.
      algebra: An algebra of pairs of logarithms.
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


def _tests_missing(circuit: Circuit) -> Bool[Array, " literals"]:
    """Which literals test whether a value is missing; these are never unknown."""
    return (circuit.low == -jnp.inf) & (circuit.high == jnp.inf)


class _Margins(NamedTuple):
    """How far values lie inside soft intervals, in widths; any finite number for a missing value.

    Attributes:
      above: The distance above the lower end; inf if there is none.
      below: The distance below the upper end; inf if there is none.
      known: Which values are not missing.
    """

    above: Array
    below: Array
    known: Array


def _margins(circuit: Circuit, values: Array) -> _Margins:
    low, high, width = (x[:, None] for x in (circuit.low, circuit.high, circuit.width))
    known = ~jnp.isnan(values)
    # Values that are not used are replaced first: their derivative would be NaN otherwise.
    safe, scale = jnp.where(known, values, 0.0), jnp.where(width > 0, width, 1.0)
    above = jnp.where(jnp.isfinite(low), safe - jnp.where(jnp.isfinite(low), low, 0.0), jnp.inf)
    below = jnp.where(jnp.isfinite(high), jnp.where(jnp.isfinite(high), high, 0.0) - safe, jnp.inf)
    return _Margins(above / scale, below / scale, known)
