"""Circuits over many rows, evaluated in tiles with bounded memory.

Rows are processed in tiles of 8 × ``width``: row ``i * width + j`` of a tile is bit ``i`` of byte
``j``. The rows with the same ``i`` are a *plane* of the tile. In this feature-major layout, with
eight rows per byte, a literal costs one comparison per row, and bitwise operations on its bytes
(conjunctions, disjunctions, counts) cost little. A loop over tiles keeps the nodes of one tile at a
time, so memory grows with neither rows times rules nor rows times literals.

The last tile ends at the last row, and may overlap the one before it: computing some rows twice is
cheaper than padding a copy of all rows.

The contents of a circuit are data, so a compiled program depends on the circuit's number of levels,
not on the rules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from distill_jax._programs import vary_alike
from distill_jax.rules.circuits._algebra import BITS, each_child, evaluate, first_nodes, take
from distill_jax.rules.circuits._circuit import Circuit
from distill_jax.rules.circuits._registers import registers
from distill_jax.rules.logic._linear_maps import linear_map

WIDTH = 1000
"""The approximate number of bytes per node and tile: the nodes of 1,000 rules then fit in cache."""


# Tiles


class Tiles(NamedTuple):
    """A division of rows into tiles.

    Attributes:
      batch: The number of rows.
      width: Rows per plane; a tile has 8 × ``width`` rows.
      count: The number of tiles.
    """

    batch: int
    width: int
    count: int

    def start(self, tile: Any) -> Array:
        """The first row of a tile."""
        return jnp.minimum(tile * (8 * self.width), self.batch - 8 * self.width)

    def fresh(self, tile: Any, plane: Any) -> Bool[Array, " width"]:
        """Which rows of a plane are not in an earlier tile."""
        row = self.start(tile) + plane * self.width + jnp.arange(self.width)
        return row >= tile * (8 * self.width)


def tiles_of(batch: int) -> Tiles:
    """The division of at least 128 rows into tiles."""
    wanted = batch / (8 * math.ceil(batch / (8 * WIDTH)))
    lines = min(math.ceil(wanted / 16), batch // 128)
    # An odd multiple of 16: with power-of-two strides, rows would evict each other from caches.
    lines += 1 - lines % 2 if lines < batch // 128 else lines % 2 - 1
    width = 16 * lines
    return Tiles(batch, width, math.ceil(batch / (8 * width)))


def over_tiles(
    tiles: Tiles,
    prepare: Callable[[Array], Any],
    plane: Callable[[Any, Any, Array, Array], Any],
    carry: Any,
    like: Any,
) -> Any:
    """Loops over tiles, and over the eight planes of each.

    Args:
      tiles: The division of the rows.
      prepare: ``prepare(first_row) -> prepared``, called once per tile.
      plane: ``plane(carry, prepared, tile, plane) -> carry``.
      carry: The initial carry.
      like: Arrays that the loop reads: under ``shard_map``, the carry varies over the same mesh
        axes.

    Returns:
      The final carry.
    """
    carry, _ = vary_alike((carry, like))

    def step(t, carry):
        prepared = prepare(tiles.start(t))
        return jax.lax.fori_loop(0, 8, lambda i, c: plane(c, prepared, t, i), carry)

    return jax.lax.fori_loop(0, tiles.count, step, carry)


def cut(values: Array, first: Any, number: int) -> Array:
    """``values[:, first : first + number]``, for a traced ``first``."""
    return jax.lax.dynamic_slice_in_dim(values, first, number, axis=1)


def write(into: Array, values: Array, first: Any) -> Array:
    """``into`` with ``values`` written into its columns from ``first`` on."""
    return jax.lax.dynamic_update_slice_in_dim(into, values, first, axis=1)


def padded(values: Array, fill: float) -> Array:
    """``[batch, …]`` padded with ``fill`` to 128 rows, the fewest that tiles can have."""
    missing = max(0, 128 - values.shape[0])
    return jnp.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)], constant_values=fill)


# Nodes as bits


def literals(
    circuit: Circuit, values: Float[Array, "registers rows"], *, unknown: bool = False
) -> UInt8[Array, "literals width"]:
    """Literals on features for one tile of registers, eight rows per byte.

    Args:
      circuit: The graph.
      values: Registers of 8 × width rows; NaN where a value is missing.
      unknown: Whether literals on missing values hold; by default they do not.
    """
    low, high = circuit.low[:, None], circuit.high[:, None]
    # Literals that test whether a value is missing are never unknown.
    tests_missing = (low == -jnp.inf) & (high == jnp.inf)
    planes = values.reshape(values.shape[0], 8, -1)

    # A loop, since XLA would store the results of eight gathers before comparing them.
    def plane(i, words):
        x = take(jax.lax.dynamic_index_in_dim(planes, i, axis=1, keepdims=False), circuit.register)
        held = ((low <= x) & (x <= high)) != circuit.inverted[:, None]
        if unknown:
            held |= jnp.isnan(x) & ~tests_missing
        return words | jnp.where(held, _bit(i), jnp.uint8(0))

    words = jnp.zeros((circuit.register.shape[0], planes.shape[2]), jnp.uint8)
    words, _ = vary_alike((words, (values, low)))
    return jax.lax.fori_loop(0, 8, plane, words)


def nodes(
    circuit: Circuit, values: Float[Array, "registers rows"], *, unknown: bool = False
) -> UInt8[Array, "nodes width"]:
    """Every node for one tile of registers, eight rows per byte; literals on labels hold."""
    held = literals(circuit, values, unknown=unknown)
    possible = jnp.full((circuit.label.shape[0], held.shape[1]), 255, jnp.uint8)
    # XLA's reductions over a short axis are slow, so children are gathered one at a time.
    return evaluate(circuit.levels, first_nodes(BITS, held, possible), BITS, gather=each_child)


def holds(words: UInt8[Array, "n width"], plane: Any) -> Bool[Array, "n width"]:
    """Where nodes hold in one plane of a tile, from their bytes."""
    return (words & _bit(plane)) != 0


def _bit(plane: Any) -> Array:
    return jnp.uint8(1) << jnp.asarray(plane).astype(jnp.uint8)


# Nodes and sums over all rows


@functools.partial(jax.jit, static_argnames="unknown")
def held(
    circuit: Circuit,
    columns: Float[Array, "batch columns"],
    wanted: Int[Array, " wanted"],
    *,
    unknown: bool = False,
) -> Bool[Array, "batch wanted"]:
    """Which of the wanted nodes hold, row by row, where literals on labels hold.

    Args:
      circuit: The graph.
      columns: Encoded columns; NaN where a value is missing.
      wanted: The indices of nodes.
      unknown: As in ``literals``.
    """
    values = registers(circuit, padded(columns, jnp.nan))
    tiles = tiles_of(values.shape[1])

    def prepare(first):
        found = nodes(circuit, cut(values, first, 8 * tiles.width), unknown=unknown)
        return take(found, wanted).T  # transposing bytes is cheaper than transposing rows

    def plane(out, chosen, t, i):
        first = tiles.start(t) + i * tiles.width
        return jax.lax.dynamic_update_slice_in_dim(out, holds(chosen, i), first, axis=0)

    out = jnp.zeros((tiles.batch, wanted.shape[0]), bool)
    return over_tiles(tiles, prepare, plane, out, (values, circuit, wanted))[: columns.shape[0]]


@functools.partial(jax.jit, static_argnames="unknown")
def counted(
    circuit: Circuit,
    columns: Float[Array, "batch columns"],
    wanted: Int[Array, " wanted"],
    where: Bool[Array, " batch"] | None = None,
    *,
    unknown: bool = False,
) -> Int[Array, " wanted"]:
    """In how many rows each of the wanted nodes holds, without an array of rows times nodes.

    Args:
      circuit: The graph.
      columns: Encoded columns; NaN where a value is missing.
      wanted: The indices of nodes.
      where: Rows that count; None for all.
      unknown: As in ``literals``.
    """
    keep = jnp.ones(columns.shape[0], bool) if where is None else where
    keep = padded(keep, False)
    values = registers(circuit, padded(columns, jnp.nan))
    tiles = tiles_of(values.shape[1])
    planes = jnp.arange(8)

    def step(t, counts):
        first = tiles.start(t)
        found = nodes(circuit, cut(values, first, 8 * tiles.width), unknown=unknown)
        new = jax.lax.dynamic_slice_in_dim(keep, first, 8 * tiles.width).reshape(8, -1)
        new &= jax.vmap(lambda i: tiles.fresh(t, i))(planes)
        mask = jnp.where(new, _bit(planes)[:, None], jnp.uint8(0)).sum(0, dtype=jnp.uint8)
        chosen = take(found, wanted) & mask[None, :]
        # Bits are counted in four bytes at once, since sums of narrow integers are slow.
        fours = chosen.reshape(wanted.shape[0], tiles.width // 4, 4)
        fours = jax.lax.bitcast_convert_type(fours, jnp.uint32)
        return counts + jax.lax.population_count(fours).astype(jnp.int32).sum(1)

    counts = jnp.zeros(wanted.shape[0], jnp.int32)
    counts, _ = vary_alike((counts, (values, keep, circuit, wanted)))
    return jax.lax.fori_loop(0, tiles.count, step, counts)


class Guards(NamedTuple):
    """The weight of each piece of a rule: whether a node holds, times probabilities of views.

    Attributes:
      node: The node of each piece, ``[pieces]``.
      seen: The row of ``factors`` for each piece and view, ``[pieces, views]``.
      factors: Probabilities of the views' classes, and 1 for any class, ``[seen, batch]``.
    """

    node: Any
    seen: Any
    factors: Any


def scored(
    circuit: Circuit,
    columns: Float[Array, "batch columns"],
    guards: Guards,
    scores: Float[Array, "pieces outputs"],
) -> Float[Array, "batch outputs"]:
    """The sum of scores over pieces, weighted by their guards, row by row.

    Over exclusive classes, with ``scores = strength[:, None] * table``, this is each class's
    penalty under the rules.

    Args:
      circuit: The graph.
      columns: Encoded columns; NaN where a value is missing.
      guards: Where each piece applies.
      scores: The scores of each piece.

    Returns:
      ``[batch, outputs]``. Gradients reach the scores only.
    """
    return _scored(*vary_alike((circuit, columns, guards, scores)))


@jax.custom_jvp
def _scored(circuit, columns, guards, scores):
    factors = padded(guards.factors.T, 0.0).T
    values = registers(circuit, padded(columns, jnp.nan))
    tiles = tiles_of(values.shape[1])
    prepare, weights = _weights(circuit, guards, values, factors, tiles, scores.dtype)

    def plane(out, chosen, t, i):
        first = tiles.start(t) + i * tiles.width
        return write(out, scores.T @ weights(chosen, i, first), first)

    out = jnp.zeros((scores.shape[1], tiles.batch), scores.dtype)
    out = over_tiles(tiles, prepare, plane, out, (values, circuit, guards, scores))
    return out.T[: columns.shape[0]]


@_scored.defjvp
def _scored_jvp(primals, tangents):
    circuit, columns, guards, scores = primals
    slope = linear_map(
        lambda scores: _scored(circuit, columns, guards, scores),
        lambda slope: _scored_transposed(circuit, columns, guards, slope),
        tangents[-1],
    )
    return _scored(circuit, columns, guards, scores), slope


def _scored_transposed(circuit, columns, guards, slope):
    factors = padded(guards.factors.T, 0.0).T
    values, slope = registers(circuit, padded(columns, jnp.nan)), padded(slope, 0.0).T
    tiles = tiles_of(values.shape[1])
    prepare, weights = _weights(circuit, guards, values, factors, tiles, slope.dtype)

    def plane(total, chosen, t, i):
        first = tiles.start(t) + i * tiles.width
        new = jnp.where(tiles.fresh(t, i)[None, :], cut(slope, first, tiles.width), 0.0)
        return total + weights(chosen, i, first) @ new.T

    total = jnp.zeros((guards.node.shape[0], slope.shape[0]), slope.dtype)
    return over_tiles(tiles, prepare, plane, total, (values, slope, guards))


def _weights(circuit, guards, values, factors, tiles, dtype):
    """Functions for a tile's guards, and for a plane's weights of pieces, ``[pieces, width]``."""

    def prepare(first):
        return take(nodes(circuit, cut(values, first, 8 * tiles.width)), guards.node)

    def weights(chosen, plane, first):
        weight = holds(chosen, plane).astype(dtype)
        shown = cut(factors, first, tiles.width)
        for v in range(guards.seen.shape[1]):
            weight = weight * take(shown, guards.seen[:, v])
        return weight

    return prepare, weights
