"""Violations over label sets, summed over rules or rows without a table of rows times rules.

Flat rules (see ``plans``) have their value and their gradient written out by hand: parts of a
short sum stay in the processor's registers, and nothing is scattered. Other rules go through their
part of the circuit with automatic differentiation, a plane of a tile at a time.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax._programs import vary_alike
from distill_jax.rules.binding._circuit import Circuit
from distill_jax.rules.binding._plans import Join, Plan, Sums
from distill_jax.rules.logic._tiles import (
    cut,
    holds,
    joined,
    nodes,
    over_tiles,
    padded,
    registers,
    take,
    tiles_of,
    write,
)

Outer = Callable[[Array], Array]
"""What is made of a violation, elementwise; 0 at 0."""


def weighted(
    plan: Plan,
    circuit: Circuit,
    columns: Float[Array, "batch columns"],
    probabilities: Float[Array, "batch labels"],
    weights: Float[Array, " rules"],
    *,
    views: Float[Array, "batch seen"] | None = None,
    logic: str = "product",
    outer: Outer | None = None,
) -> Float[Array, " batch"]:
    """Σ weight · outer(violation) over the rules, row by row.

    The gradient to the probabilities is made with the value, that to the weights when it is asked
    for. No gradient reaches columns and views.

    Args:
      plan: From ``plan``.
      circuit: The same circuit.
      columns: NaN where a value is missing.
      probabilities: Of the labels.
      weights: Of the rules.
      views: Probabilities on other views, side by side.
      logic: ``"product"``, ``"lukasiewicz"`` or ``"godel"``.
      outer: See ``Outer``; None for the violation itself. One function, not a new one a call.
    """
    p, w = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (probabilities, weights))
    seen = jnp.zeros((p.shape[0], 0), p.dtype) if views is None else views.astype(p.dtype)
    return _weighted((logic, outer), *vary_alike((plan, circuit, columns, seen, p, w)))


def per_rule(
    plan: Plan,
    circuit: Circuit,
    columns: Float[Array, "batch columns"],
    probabilities: Float[Array, "batch labels"],
    row_weights: Float[Array, " batch"],
    number: int,
    *,
    views: Float[Array, "batch seen"] | None = None,
    logic: str = "product",
    outer: Outer | None = None,
) -> Float[Array, " rules"]:
    """Σ row weight · outer(violation) over the rows, rule by rule. Gradients do not pass.

    Args:
      plan, circuit, columns, probabilities, views, logic, outer: As for ``weighted``.
      row_weights: A factor for each row.
      number: Of rules.
    """
    p = jax.lax.stop_gradient(probabilities)
    p = p.astype(jnp.promote_types(p.dtype, jnp.float32))
    seen = jnp.zeros((p.shape[0], 0), p.dtype) if views is None else views.astype(p.dtype)
    rows = jax.lax.stop_gradient(row_weights).astype(p.dtype)
    return _per_rule((logic, outer), plan, circuit, columns, seen, p, rows, number)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(static, plan, circuit, columns, seen, p, weights):
    return _rows(static, plan, circuit, columns, seen, p, weights, False)[0]


def _weighted_fwd(static, *arguments):
    values = jax.tree.map(lambda x: x.value, arguments, is_leaf=lambda x: hasattr(x, "perturbed"))
    plan, circuit, columns, seen, p, weights = values
    for_p, for_weights = (x.perturbed for x in arguments[-2:])
    rows, gradient = _rows(static, plan, circuit, columns, seen, p, weights, for_p)
    return rows, (gradient, values if for_weights else None)


def _weighted_bwd(static, residuals, slope):
    gradient, values = residuals
    of_p = None if gradient is None else slope[:, None] * gradient
    of_weights = None
    if values is not None:
        plan, circuit, columns, seen, p, weights = values
        of_weights = _per_rule(
            static, plan, circuit, columns, seen, p, slope.astype(p.dtype), weights.shape[0]
        ).astype(weights.dtype)
    return None, None, None, None, of_p, of_weights


_weighted.defvjp(_weighted_fwd, _weighted_bwd, symbolic_zeros=True)


class _Batch(NamedTuple):
    """All rows: registers, feature-major, and probabilities of labels and views as they come."""

    values: Array
    labels: Array


def _batch(circuit: Circuit, columns: Array, seen: Array, p: Array) -> _Batch:
    labels = jnp.concatenate([p, seen], axis=1) if seen.shape[1] else p
    return _Batch(registers(circuit, padded(columns, jnp.nan)), padded(labels, 0.0))


def _scratch(batch: _Batch, width: int) -> Array:
    """Room for the rows that ``Flat`` speaks of, in one plane."""
    room = jnp.zeros((2 * batch.labels.shape[1], width), batch.labels.dtype)
    return jnp.concatenate([room, jnp.ones_like(room[:1]), jnp.zeros_like(room[:1])])


def _fill(scratch: Array, batch: _Batch, first: Any) -> Array:
    """Those rows. They overwrite the last plane's: anything fresh, XLA would compute again wherever
    it is read, and for all rows at once it would be a large array more."""
    own = jax.lax.dynamic_slice_in_dim(batch.labels, first, scratch.shape[1], axis=0).T
    scratch = jax.lax.dynamic_update_slice_in_dim(scratch, own, 0, axis=0)
    return jax.lax.dynamic_update_slice_in_dim(scratch, 1.0 - own, own.shape[0], axis=0)


def _prepare(plan: Plan, circuit: Circuit, batch: _Batch, rows: int) -> Callable[[Array], Any]:
    """The bits of the nodes over features that rules need: a group of flat rules each, and rest."""
    guards = [flat.guard for flat in plan.flat]
    crisp = None if plan.rest is None or not plan.rest.crisp.shape[0] else plan.rest.crisp
    if crisp is None and all(guard is None for guard in guards):
        return lambda first: ([None for _ in guards], None)

    def prepare(first):
        found = nodes(circuit, cut(batch.values, first, rows))
        chosen = [None if g is None else joined(operator.and_, found, g) for g in guards]
        return chosen, None if crisp is None else take(found, crisp)

    return prepare


def _rows(static, plan, circuit, columns, seen, p, weights, differentiate):
    """The penalty row by row, and its gradient to the probabilities or None."""
    logic, outer = static
    batch = _batch(circuit, columns, seen, p)
    tiles = tiles_of(batch.values.shape[1])
    prepare = _prepare(plan, circuit, batch, 8 * tiles.width)
    own = [weights[flat.rule] for flat in plan.flat]
    factors = [
        w[flat.chunks.index] * flat.chunks.live for w, flat in zip(own, plan.flat, strict=True)
    ]
    slopes = [w[flat.slot] * flat.sign for w, flat in zip(own, plan.flat, strict=True)]

    def plane(carry, prepared, t, i):
        first = tiles.start(t) + i * tiles.width
        rows, gradients, scratch = carry
        q = _fill(scratch, batch, first)
        guards, crisp = prepared
        value = jnp.zeros((1, tiles.width), p.dtype)
        gradient = jnp.zeros((p.shape[1], tiles.width), p.dtype)
        for flat, guard, factor, slope in zip(plan.flat, guards, factors, slopes, strict=True):
            value += _flat_value(flat, q, guard, i, factor, logic, outer)
            if differentiate:
                gradient += _flat_gradient(flat, q, guard, i, slope, logic, outer, first >= 0)
        if plan.rest is not None:
            held = _crisp(crisp, i, q)
            rest_weights = weights[plan.rest.rule][None, :]

            def of(q):
                return rest_weights @ _rest_values(plan.rest, q, held, logic, outer)

            if differentiate:
                new, pull = jax.vjp(of, q)
                back = pull(jnp.ones_like(new))[0]
                total = p.shape[1] + seen.shape[1]
                gradient += back[: p.shape[1]] - back[total : total + p.shape[1]]
            else:
                new = of(q)
            value += new
        if differentiate:
            gradients = write(gradients, gradient, first)
        return write(rows, value, first), gradients, q

    wide = batch.values.shape[1]
    carry = (
        jnp.zeros((1, wide), p.dtype),
        jnp.zeros((p.shape[1], wide), p.dtype) if differentiate else None,
        _scratch(batch, tiles.width),
    )
    rows, gradients, _ = over_tiles(tiles, prepare, plane, carry, (batch, weights, plan, circuit))
    number = p.shape[0]
    return rows[0, :number], None if gradients is None else gradients.T[:number]


def _per_rule(static, plan, circuit, columns, seen, p, row_weights, number):
    logic, outer = static
    batch = _batch(circuit, columns, seen, p)
    tiles = tiles_of(batch.values.shape[1])
    prepare = _prepare(plan, circuit, batch, 8 * tiles.width)
    row_weights = padded(row_weights, 0.0)[None, :]
    rules = [flat.rule for flat in plan.flat] + ([] if plan.rest is None else [plan.rest.rule])

    def plane(carry, prepared, t, i):
        totals, scratch = carry
        first = tiles.start(t) + i * tiles.width
        q = _fill(scratch, batch, first)
        w = jnp.where(tiles.fresh(t, i)[None, :], cut(row_weights, first, tiles.width), 0.0)
        guards, crisp = prepared
        values = []
        for flat, guard in zip(plan.flat, guards, strict=True):
            v = _outer(_and([take(q, child) for child in flat.children], logic), outer)
            values.append(v if guard is None else jnp.where(holds(guard, i), v, 0.0))
        if plan.rest is not None:
            values.append(_rest_values(plan.rest, q, _crisp(crisp, i, q), logic, outer))
        return [a + v @ w[0] for a, v in zip(totals, values, strict=True)], q

    zeros = [jnp.zeros(r.shape[0], p.dtype) for r in rules]
    carry = zeros, _scratch(batch, tiles.width)
    found, _ = over_tiles(tiles, prepare, plane, carry, (batch, row_weights, plan, circuit))
    order = jnp.concatenate([jnp.asarray(r) for r in rules])
    return jnp.zeros(number, p.dtype).at[order].set(jnp.concatenate(found))


# Flat rules


def _flat_value(flat, q, guard, plane, factor, logic, outer):
    """Σ weight · outer(violation) over the rules, ``[1, width]``."""

    def part(index, factor):
        literals = [take(q, child[index]) for child in flat.children]
        v = factor[:, None] * _outer(_and(literals, logic), outer)
        return v if guard is None else jnp.where(holds(take(guard, index), plane), v, 0.0)

    sums = _short_sum(part, flat.chunks.index, factor)
    return jnp.ones((1, sums.shape[0]), q.dtype) @ sums


def _flat_gradient(flat, q, guard, plane, slope, logic, outer, always):
    """The gradient to the labels, ``[labels, width]``."""

    def part(slot, slope, own, *others):
        own, others = take(q, own), [take(q, other) for other in others]
        d = slope[:, None] * _slope(own, others, logic)
        if outer is not None:
            v = _and([own, *others], logic)
            d = d * jax.jvp(outer, (v,), (jnp.ones_like(v),))[1]
        return d if guard is None else jnp.where(holds(take(guard, slot), plane), d, 0.0)

    # In a branch of its own, or XLA computes the short sums again wherever one is read.
    nothing = jnp.zeros((flat.slot.shape[0], q.shape[1]), q.dtype)
    nothing, _ = vary_alike((nothing, (q, guard, slope, flat)))
    sums = jax.lax.cond(
        always,
        lambda: _short_sum(part, flat.slot, slope, flat.own, *flat.others),
        lambda: nothing,
    )
    return _summed(sums, flat.tree)


def _short_sum(part: Callable[..., Array], *tables: Any) -> Array:
    """Σ part(…) over the second axis of the tables, in one pass."""
    number = tables[0].shape[1]
    return functools.reduce(operator.add, (part(*(t[:, i] for t in tables)) for i in range(number)))


def _summed(rows: Array, tree: tuple[Sums, ...]) -> Array:
    for sums in tree:
        rows = _short_sum(
            lambda index, live, rows=rows: take(rows, index) * live[:, None], sums.index, sums.live
        )
    return rows


def _and(parts: Sequence[Array], logic: str) -> Array:
    if logic == "product":
        return functools.reduce(operator.mul, parts)
    if logic == "lukasiewicz":
        return jnp.maximum(functools.reduce(operator.add, parts) - (len(parts) - 1.0), 0.0)
    return functools.reduce(jnp.minimum, parts)


def _or(parts: Sequence[Array], logic: str) -> Array:
    if logic == "product":
        return 1.0 - functools.reduce(operator.mul, [1.0 - part for part in parts])
    if logic == "lukasiewicz":
        return jnp.minimum(functools.reduce(operator.add, parts), 1.0)
    return functools.reduce(jnp.maximum, parts)


def _slope(own: Array, others: Sequence[Array], logic: str) -> Array:
    """The derivative of a conjunction to one part; parts that are least alike share it."""
    if logic == "product":
        return functools.reduce(operator.mul, others, jnp.ones_like(own))
    if logic == "lukasiewicz":
        excess = functools.reduce(operator.add, others, own) - len(others)
        return (excess > 0).astype(own.dtype)
    least = functools.reduce(jnp.minimum, others, own)
    alike = sum((other == own).astype(own.dtype) for other in others)
    return jnp.where(own == least, 1.0 / (1.0 + alike), 0.0)


def _outer(values: Array, outer: Outer | None) -> Array:
    return values if outer is None else outer(values)


# Other rules


def _crisp(words: Array | None, plane: Any, like: Array) -> Array:
    if words is None:
        return jnp.zeros((0, like.shape[1]), like.dtype)
    return holds(words, plane).astype(like.dtype)


def _rest_values(rest, q, crisp, logic, outer):
    """outer(violation), ``[rest, width]``."""
    rows = jnp.concatenate([q, crisp])
    for ands, ors in rest.levels:
        made = [
            join([parts[:, j] for j in range(parts.shape[1])], logic)
            for join, children in ((_and, ands), (_or, ors))
            if children is not None
            for parts in [_children(rows, children)]
        ]
        rows = jnp.concatenate([rows, *made])
    return _outer(_children(rows, rest.root)[:, 0], outer)


def _children(rows: Array, join: Join) -> Array:
    """``rows[children]``, whose gradient returns by sums."""
    n, fan_in = join.children.shape
    taken = _taken(rows, jnp.asarray(join.children).reshape(-1), join.tree)
    return taken.reshape(n, fan_in, rows.shape[1])


@jax.custom_vjp
def _taken(rows, index, tree):
    return take(rows, index)


def _taken_fwd(rows, index, tree):
    return take(rows, index), tree


def _taken_bwd(tree, slope):
    return _summed(slope, tree), None, None


_taken.defvjp(_taken_fwd, _taken_bwd)
