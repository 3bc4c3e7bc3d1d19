"""Circuits over many rows, fast and in bounded memory.

Rows are taken in tiles of 8 × ``width``: row ``i * width + j`` of a tile is bit ``i`` of byte
``j``. Feature-major and with eight rows per byte, a literal costs one comparison per row, and what
is computed from literals (conjunctions, disjunctions, counts) next to nothing. A loop over tiles
holds one tile's nodes at a time, so memory grows with neither rows times rules nor rows times
literals.
The last tile ends with the last row, and so goes over some rows again: that is cheaper than a copy
of everything with rows added.

All that a circuit says is data: a program depends on its number of levels, not of rules.
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

WIDTH = 1000
"""Bytes of a node in one tile, about: the nodes of a thousand rules then fit in caches."""


# Tiles


class Tiles(NamedTuple):
    """How rows are cut: ``count`` tiles of 8 × ``width`` of the ``batch`` rows."""

    batch: int
    width: int
    count: int

    def start(self, tile: Any) -> Array:
        """A tile's first row."""
        return jnp.minimum(tile * (8 * self.width), self.batch - 8 * self.width)

    def fresh(self, tile: Any, plane: Any) -> Bool[Array, " width"]:
        """Which rows of a plane are in no earlier tile."""
        row = self.start(tile) + plane * self.width + jnp.arange(self.width)
        return row >= tile * (8 * self.width)


def tiles_of(batch: int) -> Tiles:
    """Tiles for 128 rows or more."""
    wanted = batch / (8 * math.ceil(batch / (8 * WIDTH)))
    lines = min(math.ceil(wanted / 16), batch // 128)
    # An odd number of 16s: rows whose distance is a power of two displace each other in caches.
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
      tiles: How rows are cut.
      prepare: ``prepare(first row) -> prepared``, once per tile.
      plane: ``plane(carry, prepared, tile, plane) -> carry``.
      carry: What is added to or written into.
      like: Arrays that the loop reads, so that under ``shard_map`` the carry varies as they do.
    """
    carry, _ = vary_alike((carry, like))

    def step(t, carry):
        prepared = prepare(tiles.start(t))
        return jax.lax.fori_loop(0, 8, lambda i, c: plane(c, prepared, t, i), carry)

    return jax.lax.fori_loop(0, tiles.count, step, carry)


def cut(values: Array, first: Any, number: int) -> Array:
    """``values[:, first : first + number]``."""
    return jax.lax.dynamic_slice_in_dim(values, first, number, axis=1)


def write(into: Array, values: Array, first: Any) -> Array:
    """``values`` in the columns from ``first`` on."""
    return jax.lax.dynamic_update_slice_in_dim(into, values, first, axis=1)


def padded(values: Array, fill: float) -> Array:
    """``[batch, …]`` with the rows that a tile needs at least."""
    missing = max(0, 128 - values.shape[0])
    return jnp.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)], constant_values=fill)


# Nodes as bits


def literals(
    circuit: Circuit, values: Float[Array, "registers rows"], *, unknown: bool = False
) -> UInt8[Array, "literals width"]:
    """Literals on features for one tile of registers, eight rows per byte.

    Args:
      circuit: The literals' registers and intervals.
      values: Registers of 8 × width rows; NaN where a value is missing.
      unknown: Whether a literal about a missing value holds, rather than not.
    """
    low, high = circuit.low[:, None], circuit.high[:, None]
    # Literals that ask whether a value is missing are never unknown.
    asks = (low == -jnp.inf) & (high == jnp.inf)
    planes = values.reshape(values.shape[0], 8, -1)

    # A loop: XLA would write down what eight gathers give before comparing it.
    def plane(i, words):
        x = take(jax.lax.dynamic_index_in_dim(planes, i, axis=1, keepdims=False), circuit.register)
        held = ((low <= x) & (x <= high)) != circuit.inverted[:, None]
        if unknown:
            held |= jnp.isnan(x) & ~asks
        return words | jnp.where(held, _bit(i), jnp.uint8(0))

    words = jnp.zeros((circuit.register.shape[0], planes.shape[2]), jnp.uint8)
    words, _ = vary_alike((words, (values, low)))
    return jax.lax.fori_loop(0, 8, plane, words)


def nodes(
    circuit: Circuit, values: Float[Array, "registers rows"], *, unknown: bool = False
) -> UInt8[Array, "nodes width"]:
    """Every node for one tile of registers, eight rows per byte; labels are taken for possible."""
    held = literals(circuit, values, unknown=unknown)
    possible = jnp.full((circuit.label.shape[0], held.shape[1]), 255, jnp.uint8)
    # XLA's own reductions over a short axis are slow, so children are gathered one by one.
    return evaluate(circuit.levels, first_nodes(BITS, held, possible), BITS, gather=each_child)


def holds(words: UInt8[Array, "n width"], plane: Any) -> Bool[Array, "n width"]:
    """The rows of one plane of a tile."""
    return (words & _bit(plane)) != 0


def _bit(plane: Any) -> Array:
    return jnp.uint8(1) << jnp.asarray(plane).astype(jnp.uint8)


# What books ask of circuits


@functools.partial(jax.jit, static_argnames="unknown")
def held(
    circuit: Circuit,
    columns: Float[Array, "batch columns"],
    wanted: Int[Array, " wanted"],
    *,
    unknown: bool = False,
) -> Bool[Array, "batch wanted"]:
    """Which of these nodes hold, row by row; labels are taken for possible.

    Args:
      circuit: The graph.
      columns: NaN where a value is missing.
      wanted: The nodes to give.
      unknown: As in ``literals``.
    """
    values = registers(circuit, padded(columns, jnp.nan))
    tiles = tiles_of(values.shape[1])

    def prepare(first):
        found = nodes(circuit, cut(values, first, 8 * tiles.width), unknown=unknown)
        return take(found, wanted).T  # of bytes, before they become rows

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
    """In how many rows each of these nodes holds, without a table of rows times nodes.

    Args:
      circuit: The graph.
      columns: NaN where a value is missing.
      wanted: The nodes to count.
      where: Rows to count; None for all.
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
        # Four bytes at once: sums of narrow integers are slow.
        fours = chosen.reshape(wanted.shape[0], tiles.width // 4, 4)
        fours = jax.lax.bitcast_convert_type(fours, jnp.uint32)
        return counts + jax.lax.population_count(fours).astype(jnp.int32).sum(1)

    counts = jnp.zeros(wanted.shape[0], jnp.int32)
    counts, _ = vary_alike((counts, (values, keep, circuit, wanted)))
    return jax.lax.fori_loop(0, tiles.count, step, counts)


class Guards(NamedTuple):
    """Parts of rules: where a node holds, times the probabilities that views show a class.

    Attributes:
      node: ``[pieces]``.
      seen: Which of ``factors``, ``[pieces, views]``.
      factors: ``[seen, batch]``.
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
    """The scores of the pieces whose guards hold, summed row by row: products of matrices.

    Over exclusive classes, with ``scores = strength[:, None] * table``, each class's penalty under
    the rules.

    Args:
      circuit: The graph.
      columns: NaN where a value is missing.
      guards: Where each piece applies.
      scores: What each piece adds there.

    Returns:
      Gradients reach the scores alone.
    """
    return _scored(*vary_alike((circuit, columns, guards, scores)))


@jax.custom_vjp
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


def _scored_fwd(circuit, columns, guards, scores):
    return _scored(circuit, columns, guards, scores), (circuit, columns, guards)


def _scored_bwd(residuals, slope):
    circuit, columns, guards = residuals
    factors = padded(guards.factors.T, 0.0).T
    values, slope = registers(circuit, padded(columns, jnp.nan)), padded(slope, 0.0).T
    tiles = tiles_of(values.shape[1])
    prepare, weights = _weights(circuit, guards, values, factors, tiles, slope.dtype)

    def plane(total, chosen, t, i):
        first = tiles.start(t) + i * tiles.width
        new = jnp.where(tiles.fresh(t, i)[None, :], cut(slope, first, tiles.width), 0.0)
        return total + weights(chosen, i, first) @ new.T

    total = jnp.zeros((guards.node.shape[0], slope.shape[0]), slope.dtype)
    return None, None, None, over_tiles(tiles, prepare, plane, total, (values, slope, guards))


_scored.defvjp(_scored_fwd, _scored_bwd)


def _weights(circuit, guards, values, factors, tiles, dtype):
    """How to prepare a tile's guards, and the weights of all pieces in one plane of it."""

    def prepare(first):
        return take(nodes(circuit, cut(values, first, 8 * tiles.width)), guards.node)

    def weights(chosen, plane, first):
        weight = holds(chosen, plane).astype(dtype)
        shown = cut(factors, first, tiles.width)
        for v in range(guards.seen.shape[1]):
            weight = weight * take(shown, guards.seen[:, v])
        return weight

    return prepare, weights
